"""The judge's answers for ``--fast``: the real preprocess, engine, decode and judge over 2,000 and more images, once.

Cached per bundle digest and recipe, so that a second rehearsal begins at once; how long it took is told.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np

from appliance.clock import now_ns
from appliance.config import Station
from appliance.inspect.image_health import ImageHealth
from appliance.inspect.inspector import Look
from appliance.inspect.judge import blind, judge
from appliance.model.golden import frame_of
from appliance.twin.parts import KINDS, draw_part
from appliance.twin.scene import render
from appliance.twin.supply import Item, images, photographed
from appliance.wiring.machine import machine_of
from appliance.wiring.station import any_size, look_of

GOOD, PER_KIND = 1200, 120
_SEED = 770_001  # of the bank's images: no test and no training uses it


@dataclass(frozen=True)
class Answer:
    """What the judge says of one image, and what is true of it (``kind`` None = good)."""

    kind: str | None
    size: float
    step: float
    verdict: str
    cause: str | None
    score: float | None
    threshold: float | None
    class_id: int


@dataclass(frozen=True)
class Bank:
    """Answers to draw from. ``model_rehearsed``: False where verdicts are the twin's truth itself."""

    good: tuple[Answer, ...]
    bad: tuple[Answer, ...]
    identity: dict[str, str]
    photographs: tuple[Answer, ...] = ()
    model_rehearsed: bool = True


def bank_of(station: Station, hard: bool, good: Path | None, bad: Path | None, out: TextIO) -> Bank:
    """The bank of the active recipe's first look. Raises BundleError, GoldenError, EngineError, ValueError."""
    with ExitStack() as made:  # PyCUDA aborts the process where a context is left open
        machine = machine_of(station.engine, _kept() / "data")
        made.callback(machine.close)
        look, _ = look_of(station, 0, None, machine, lambda what, share: None)
        made.callback(look.network.close)
        identity = dict(look.network.identity)
        if good is None and look.bundle.taught_on != "twin":
            return _by_truth(hard, identity)
        rows = _rows(look, station, hard, good, bad, out)
    answers = [Answer(**row) for row in rows]
    fine = tuple(one for one in answers if one.kind is None)
    wrong = tuple(one for one in answers if one.kind is not None)
    return Bank(fine, wrong, identity, tuple(answers) if good else ())


def _rows(
    look: Look, station: Station, hard: bool, good: Path | None, bad: Path | None, out: TextIO
) -> list[dict[str, Any]]:  # fmt: skip
    path = _cache(look, station, hard, good, bad)
    if path.is_file():
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        out.write(f"bank of {len(rows)} judged images: from its cache\n")
        return rows
    begun = now_ns()
    rows = [asdict(_answer(look, item, station)) for item in _items(hard, good, bad)]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")
    partial.write_text(json.dumps(rows), encoding="utf-8")
    os.replace(partial, path)
    out.write(f"bank of {len(rows)} judged images: made in {(now_ns() - begun) / 1e9:.1f} s\n")
    return rows


def _items(hard: bool, good: Path | None, bad: Path | None) -> Iterator[Item]:
    if good and bad:
        supply = photographed(good, bad, 0)
        for _ in range(len(images(good)) + len(images(bad))):
            yield next(supply)
        return
    rng = np.random.default_rng(_SEED)
    wanted: list[tuple[str | None, bool]] = [(None, False)] * GOOD
    wanted += [(kind, False) for kind in KINDS for _ in range(PER_KIND)]
    if hard:
        wanted += [(kind, True) for kind in KINDS for _ in range(PER_KIND)]
    for kind, faint in wanted:
        part = draw_part(rng, defective=kind is not None, hard=faint, kind=kind)
        frame = render(part, lamp=float(rng.uniform(0.95, 1.05)), frame_rng=rng)
        yield Item(part.kind, round(part.size, 4), part.step, frame, "mono8")


def _answer(look: Look, item: Item, station: Station) -> Answer:
    cv2.setNumThreads(1)
    frame = frame_of(item.frame, item.pixel)
    whole = frame.size == look.size
    roi = look.roi if whole else None
    findings = look.network.wait(look.network.submit(frame, roi), 2**62)
    assert findings is not None
    health = ImageHealth(look.health)
    cause = health.cause(findings)
    box = roi or (0, 0, *frame.size)
    judged = blind(cause) if cause else judge(findings, look.bundle, look.limits, look.camera, box)
    return Answer(
        item.kind, item.size, item.step, judged.verdict, judged.cause, judged.score, judged.threshold, judged.class_id
    )


def _cache(look: Look, station: Station, hard: bool, good: Path | None, bad: Path | None) -> Path:
    what = [look.bundle.digest, station.recipe.model_dump_json(), str(hard), str(_SEED), str((GOOD, PER_KIND))]
    what.append(str(any_size(station.cameras[look.camera].source)))
    for folder in (good, bad):
        if folder:
            what += [f"{path}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in images(folder)]
    digest = hashlib.sha256("\n".join(what).encode()).hexdigest()[:24]
    return _kept() / f"bank-{digest}.json"


def _kept() -> Path:
    """Banks, and on a Jetson the engines that judged them: made once, not for each rehearsal."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "appliance"


def _by_truth(hard: bool, identity: dict[str, str]) -> Bank:
    fine = Answer(None, 0.0, 1.0, "pass", None, 0.0, 0.5, -1)
    wrong = tuple(Answer(kind, 0.0, 1.0, "fail", kind, 1.0, 0.5, 1 + i) for i, kind in enumerate(KINDS))
    return Bank((fine,), wrong, identity, model_rehearsed=False)
