"""``appliance inspect``: photographs to verdicts, one JSON line each, through the box's own network and judge."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from appliance import config
from appliance.clock import now_ns
from appliance.inspect.image_health import HealthLimits, ImageHealth
from appliance.inspect.judge import Judgement, Limits, blind, judge, limits_of
from appliance.model.bundle import Bundle, BundleError, load_bundle
from appliance.model.golden import GoldenError, frame_of, replay_all
from appliance.model.photograph import PhotographError, photographs_in, read_photograph
from appliance.ports import EngineError, Frame

Box = tuple[int, int, int, int]
_NEVER_NS = 2**62
_UNREADABLE = 2


@dataclass(frozen=True)
class Look:
    """How photographs are looked at. ``roi`` holds for those of the camera's ``size``; others are cut to it already."""

    camera: str
    limits: Limits
    roi: Box | None = None
    size: tuple[int, int] | None = None
    health: HealthLimits = HealthLimits(frozen=False)


def inspect_paths(
    bundle_dir: Path, recipe_file: Path | None, paths: Sequence[Path], out: TextIO, json_file: Path | None,
    make_network: Callable[[Bundle], Any], errors: TextIO | None = None,
) -> int:  # fmt: skip
    """One JSON line to ``out`` for every picture of ``paths`` (files or folders), sentences to ``errors`` (stderr).

    ``recipe_file``: a station file, whose active recipe gives ROI, thresholds and image health; None: the bundle's own.
    ``json_file``: the same lines and their counts as one object. ``make_network(bundle)`` gives a ports.Network that is
    Replayable. Exit code 0, or 2 when the bundle, the recipe or any picture could not be used; the others are judged."""
    errors = errors or sys.stderr
    try:
        bundle = load_bundle(bundle_dir)
        look = look_of(bundle, bundle_dir, recipe_file)
        network = make_network(bundle)
        replay_all(network, bundle)
    except (BundleError, GoldenError, EngineError, config.ConfigError) as why:
        errors.write(f"{why}\n")
        return _UNREADABLE
    rows, unread = [], 0
    for path in _every(paths):
        try:
            if isinstance(path, PhotographError):
                raise path
            row = _inspect(network, bundle, look, path)
        except (PhotographError, EngineError) as why:
            unread += 1
            row = {"file": str(path) if isinstance(path, Path) else None, "error": str(why)}
            errors.write(f"{why}\n")
        if row["file"] is not None:
            rows.append(row)
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    network.close()
    if json_file is not None and not _write_json(json_file, _summary(bundle, network.identity, rows, unread), errors):
        return _UNREADABLE
    return _UNREADABLE if unread else 0


def look_of(bundle: Bundle, bundle_dir: Path, recipe_file: Path | None) -> Look:
    """From the station file's active recipe: the look with this bundle. Raises ConfigError, BundleError."""
    if recipe_file is None:
        return Look("photograph", limits_of(bundle, None, None, {}))
    station = config.load(recipe_file, built_only=False)
    recipe = station.recipes[station.active]
    names = {bundle.name, Path(bundle_dir).resolve().name}
    found = next((one for one in recipe.inspect if one.bundle in names), None)
    if found is None:
        used = ", ".join(sorted({one.bundle for one in recipe.inspect}))
        raise BundleError(f"{recipe_file}: recipe {station.active} does not use {bundle.name}; give -m one of {used}")
    classes = {name: (one.fail_at, one.min_area_px) for name, one in found.classes.items()}
    health = recipe.image_health
    return Look(
        camera=found.camera,
        limits=limits_of(bundle, found.review_at, found.fail_at, classes),
        roi=found.roi,
        size=station.cameras[found.camera].size,
        # Two equal photographs are two files, not a camera that hangs.
        health=HealthLimits(False, health.brightness, health.sharpness_min, health.saturated_max),
    )


def _every(paths: Sequence[Path]) -> Iterator[Path | PhotographError]:
    for path in paths:
        try:
            yield from photographs_in(Path(path))
        except PhotographError as why:
            yield why


def _inspect(network: Any, bundle: Bundle, look: Look, path: Path) -> dict[str, Any]:
    """One picture's line. Raises PhotographError, EngineError."""
    begun = now_ns()
    pixels, pixel = read_photograph(path)
    frame: Frame = frame_of(pixels, pixel)
    roi = look.roi if frame.size == look.size else None
    read = now_ns()
    findings = network.wait(network.submit(frame, roi), _NEVER_NS)
    judged = now_ns()
    cause = ImageHealth(look.health).cause(findings)
    verdict = blind(cause) if cause else judge(findings, bundle, look.limits, look.camera, roi or (0, 0, *frame.size))
    return _row(path, verdict) | {
        "times_ms": {
            "read": round((read - begun) / 1e6, 3),
            "preprocess": round(findings.preprocess_ms, 3),
            "infer": round(findings.infer_ms, 3),
            "decide": round((now_ns() - judged) / 1e6, 3),
        }
    }


def _row(path: Path, verdict: Judgement) -> dict[str, Any]:
    return {
        "file": str(path),
        "verdict": verdict.verdict,
        "cause": verdict.cause,
        "score": verdict.score,
        "threshold": verdict.threshold,
        "regions": [
            {"camera": one.camera, "class": one.name, "score": one.score, "box": list(one.box), "area_px": one.area_px}
            for one in verdict.regions
        ],
    }


def _summary(bundle: Bundle, identity: dict[str, str], rows: list[dict[str, Any]], unread: int) -> dict[str, Any]:
    counts = Counter(row["verdict"] for row in rows if "verdict" in row)
    return {
        "model": identity, "taught_on": bundle.taught_on, "judged": sum(counts.values()), "unreadable": unread,
        **{name: counts[name] for name in ("pass", "review", "fail", "blind")}, "results": rows,
    }  # fmt: skip


def _write_json(path: Path, content: dict[str, Any], errors: TextIO) -> bool:
    try:
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as why:
        errors.write(f"{path}: cannot be written ({why.strerror}); name a file in a folder that exists\n")
        return False
    return True


