"""``appliance engine build | bench | licence``: the engines of a bundle on this module, their speed, and whether INT8 may run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from appliance.clock import now_ns
from appliance.inspect.decode import decode
from appliance.inspect.judge import Limits, judge, limits_of
from appliance.model.bundle import ONNX_FILE, Bundle, BundleError, file_digest, load_bundle
from appliance.model.engine_cache import EngineCache, EngineCacheError, StoredEngine
from appliance.model.golden import Golden, GoldenError, frame_of, load_golden, replay_all
from appliance.model.licence import (
    Answer,
    Basis,
    Compared,
    Latency,
    Licence,
    LicenceError,
    Shown,
    Terms,
    decide,
    latency_of,
    sample_digest,
    write_licence,
)
from appliance.model.photograph import PhotographError, photographs_in, read_photograph
from appliance.model.preprocess import prepare
from appliance.ports import Counted, EngineError, Findings, Frame, MemoryRefused
from appliance.wiring.engines import (
    CHOICE_FILE,
    LICENCE_FILE,
    PRECISIONS,
    Builder,
    NotThisPrecision,
    Precision,
    Progress,
    Site,
    build_in_child,
    engines_dir,
    found_or_built,
    graph_of,
    measure,
    network_on,
    plan_network,
    write_choice,
)

OpenSite = Callable[[], Site]
DONE, UNUSABLE, REFUSED = 0, 2, 3
BENCH_RUNS = LATENCY_RUNS = 2000  # two runs lie above the 99.9th percentile
_SAMPLE_DIR, _GOOD_DIR = "sample", "good"
_NEVER_NS = 2**62
_STEP = 0.05  # progress is told at each twentieth
_FAULTS = (BundleError, EngineError, EngineCacheError, GoldenError, LicenceError, PhotographError, MemoryRefused, OSError)


def engine_build(
    bundle_dir: Path, data_dir: Path, out: TextIO, errors: TextIO, open_site: OpenSite, json_file: Path | None = None,
    build: Builder = build_in_child,
) -> int:  # fmt: skip
    """Build what the bundle needs on this module: float16, and INT8 if it has it. Exit 0, or 2 when one cannot be had."""

    def work(bundle: Bundle, cache: EngineCache, site: Site, progress: Progress) -> int:
        rows = []
        for precision in PRECISIONS[:2] if bundle.precision == "int8" else PRECISIONS[1:2]:
            stored = _get(bundle, cache, site, precision, data_dir, progress, errors, build)
            if stored is None:  # float16 cannot hold this model
                stored = _needed(_get(bundle, cache, site, "float32", data_dir, progress, errors, build))
            rows.append(_built_row(stored))
        _table(out, ("precision", "p50 ms", "p99 ms", "MiB", "built in s", "power mode"), rows)
        _write_json(json_file, {"bundle": bundle.digest, "module": asdict(site.here), "engines": rows})
        return DONE

    return _verb(bundle_dir, data_dir, errors, open_site, work)


def engine_bench(
    bundle_dir: Path, data_dir: Path, out: TextIO, errors: TextIO, open_site: OpenSite, json_file: Path | None = None,
    build: Builder = build_in_child,
) -> int:  # fmt: skip
    """Time every precision on this module and keep the fastest that reproduces the golden vectors. Exit 0, or 2."""

    def work(bundle: Bundle, cache: EngineCache, site: Site, progress: Progress) -> int:
        rows = []
        for precision in PRECISIONS if bundle.precision == "int8" else PRECISIONS[1:]:
            stored = _get(bundle, cache, site, precision, data_dir, progress, errors, build)
            if stored is not None:
                progress(f"{precision}: timing", 0.0)
                rows.append(_benched(bundle, site, precision, stored))
        passing = sorted((row for row in rows if not row["golden"]), key=lambda row: float(row["p50_ms"]))
        columns = ("precision", "p50 ms", "p99 ms", "p99.9 ms", "int8 layers", "layers", "reformats", "golden")
        _table(out, columns, [{**row, "golden": row["golden"] or "agree"} for row in rows])
        _write_json(json_file, {"bundle": bundle.digest, "module": asdict(site.here), "precisions": rows})
        if not passing:
            errors.write(f"{bundle.folder}: no precision reproduces the golden vectors on this module; make the bundle anew\n")
            return UNUSABLE
        order: list[Precision] = [row["precision"] for row in passing]
        write_choice(cache.folder_of(bundle.files[ONNX_FILE]) / CHOICE_FILE, order, bundle, site.here)
        out.write(f"kept: {order[0]}{_needs_licence(order[0], bundle_dir)}\n")
        return DONE

    return _verb(bundle_dir, data_dir, errors, open_site, work)


def engine_licence(
    bundle_dir: Path, data_dir: Path, out: TextIO, errors: TextIO, open_site: OpenSite, images: Path | None = None,
    json_file: Path | None = None, build: Builder = build_in_child,
) -> int:  # fmt: skip
    """INT8 on this module beside the float model, on ``images`` (good/, other folders = classes), else the bundle's sample,
    else the golden vectors only. Exit 0 granted, 3 refused (float16 runs), 2 when it cannot be tried."""

    def work(bundle: Bundle, cache: EngineCache, site: Site, progress: Progress) -> int:
        if bundle.precision != "int8":
            raise BundleError(f"{bundle.folder}: has no INT8 model, so there is nothing to license; float16 runs")
        stored = _needed(_get(bundle, cache, site, "int8", data_dir, progress, errors, build))
        licence = _licence(bundle, site, stored, images, progress)
        write_licence(stored.folder / LICENCE_FILE, licence)
        _tell(out, licence)
        _write_json(json_file, asdict(licence))
        return DONE if licence.granted else REFUSED

    return _verb(bundle_dir, data_dir, errors, open_site, work)


# --- shared by the verbs ------------------------------------------------------------------------------------


def _verb(
    bundle_dir: Path, data_dir: Path, errors: TextIO, open_site: OpenSite,
    work: Callable[[Bundle, EngineCache, Site, Progress], int],
) -> int:  # fmt: skip
    """What all verbs do around their work: every fault is one sentence and exit 2."""
    try:
        bundle = load_bundle(bundle_dir)
        site = open_site()
        try:
            return work(bundle, EngineCache(engines_dir(data_dir)), site, progress_lines(errors))
        finally:
            site.close()
    except _FAULTS as why:
        errors.write(f"{why}\n")
        return UNUSABLE


def progress_lines(errors: TextIO) -> Progress:
    """A line for each new thing that is done, and for each twentieth of it."""
    last = ("", -1.0)

    def progress(doing: str, share: float) -> None:
        nonlocal last
        step = math.floor(share / _STEP)
        if (doing, step) != last:
            last = (doing, step)
            errors.write(f"{share:4.0%} {doing}\n")
            errors.flush()

    return progress


def _get(
    bundle: Bundle, cache: EngineCache, site: Site, precision: Precision, data_dir: Path, progress: Progress,
    errors: TextIO, build: Builder,
) -> StoredEngine | None:  # fmt: skip
    """The engine, built where it is missing; None, and it is said, where the model cannot be of that precision."""
    told: list[str] = []

    def named(doing: str, share: float) -> None:
        progress(f"{precision}: {doing}", share)

    try:
        return found_or_built(cache, bundle, precision, site.here, data_dir, named, told, build)
    except NotThisPrecision as why:
        told.append(str(why))
        return None
    finally:
        errors.write("".join(f"{one}\n" for one in told))


def _needed(stored: StoredEngine | None) -> StoredEngine:
    if stored is None:
        raise EngineError("this model cannot be of any precision that is needed; see above")
    return stored


def _built_row(stored: StoredEngine) -> dict[str, Any]:
    figures = stored.figures
    return {
        "precision": stored.key.precision, "p50_ms": figures.p50_ms, "p99_ms": figures.p99_ms,
        "plan_mib": round(len(stored.plan) / 2**20, 2), "build_s": figures.build_s,
        "power_mode": figures.power_mode or "unknown",
    }  # fmt: skip


def _benched(bundle: Bundle, site: Site, precision: Precision, stored: StoredEngine) -> dict[str, Any]:
    """One engine's row; "golden" is empty where it reproduces the vectors."""
    from appliance.devices.engine_tensorrt import TensorRtEngine

    what = f"the {precision} engine of {bundle.name}"
    engine = TensorRtEngine(stored.plan, what, site.gpu.facts.capability, site.probe)
    with _closing(engine, partial(network_on, site.gpu, bundle, engine, precision)) as network:
        layers = engine.layers()
        fault = _golden_fault(network, bundle)
        latency = measure(site.gpu, engine, BENCH_RUNS)
    return {
        "precision": precision, "p50_ms": latency.p50_ms, "p99_ms": latency.p99_ms, "p999_ms": latency.p999_ms,
        "int8_layers": layers.int8, "layers": layers.working, "reformats": layers.reformats, "golden": fault or "",
    }  # fmt: skip


@contextmanager
def _closing(engine: Any, make: Callable[[], Any]) -> Iterator[Any]:
    """The network of an engine, and both closed behind it."""
    try:
        network = make()
    except EngineError:
        engine.close()
        raise
    try:
        yield network
    finally:
        network.close()


def _golden_fault(network: Any, bundle: Bundle) -> str | None:
    try:
        replay_all(network, bundle)
    except GoldenError as why:
        return str(why)
    return None


def _needs_licence(precision: str, bundle_dir: Path) -> str:
    if precision != "int8":
        return ""
    return f"; it runs once `appliance engine licence {bundle_dir}` grants it, and the next fastest until then"


# --- the licence --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Item:
    """One image to be judged twice. ``kind``: its class, None where nobody said."""

    name: str
    kind: str | None
    frame: Frame


def _licence(bundle: Bundle, site: Site, stored: StoredEngine, images: Path | None, progress: Progress) -> Licence:
    golden = load_golden(bundle)
    root, basis = _sample_of(bundle, images)
    paths = photographs_in(root) if root is not None else []
    count = len(paths) or len(golden)
    reference = _reference(bundle)
    limits = limits_of(bundle, None, None, {})
    network = plan_network(site.gpu, bundle, stored.plan, "int8", site.probe)
    try:
        fault = _golden_fault(network, bundle)
        shown = []
        for index, item in enumerate(_items(root, paths, golden)):
            progress("judging each image twice", index / count)
            shown.append(_shown(item, bundle, limits, reference, network))
        progress("timing", 1.0)
        latency = _frame_latency(site, network, golden)
    finally:
        network.close()
    files = [(str(path.relative_to(root)), file_digest(path)) for path in paths] if root is not None else []
    digest = sample_digest(files or [(bundle.golden.name, file_digest(bundle.golden))])
    terms = terms_of(bundle, golden)
    return decide(shown, terms, basis, fault, latency, bundle.digest, stored.digest, digest, stored.key)


def terms_of(bundle: Bundle, golden: Golden) -> Terms:
    """What the bundle's own model.yaml and golden vectors ask for."""
    promised = bundle.promise.get("false_rejects")
    named = bundle.task == "classify"  # an anomaly has no kinds: whatever folder is not good shows one
    number = isinstance(promised, (int, float)) and not isinstance(promised, bool)
    return Terms(
        good=tuple(sorted({*bundle.good, _GOOD_DIR})), defects=tuple(bundle.classes[index] for index in bundle.defects if named),
        review_at=bundle.thresholds.review_at, fail_at=bundle.thresholds.fail_at, band=golden.tolerance,
        promised=float(promised) if number else None,  # type: ignore[arg-type]
    )  # fmt: skip


def _sample_of(bundle: Bundle, images: Path | None) -> tuple[Path | None, Basis]:
    if images is not None:
        return images, "images"
    sample = bundle.folder / _SAMPLE_DIR
    return (sample, "sample") if sample.is_dir() else (None, "golden only")


def _items(root: Path | None, paths: Sequence[Path], golden: Golden) -> Iterator[_Item]:
    """Raises PhotographError."""
    if root is None:
        for index, pixels in enumerate(golden.frames):
            yield _Item(f"golden vector {index}", None, frame_of(pixels, golden.pixel))
        return
    for path in paths:
        name = path.relative_to(root)
        if len(name.parts) < 2:
            raise PhotographError(f"{path}: lies in no class's folder; put it into {root / _GOOD_DIR} or a folder of its class")
        pixels, pixel = read_photograph(path)
        yield _Item(str(name), name.parts[0], frame_of(pixels, pixel))


def _shown(item: _Item, bundle: Bundle, limits: Limits, reference: Callable[[Frame], Findings], network: Any) -> Shown:
    def answer(findings: Findings) -> Answer:
        found = judge(findings, bundle, limits, "licence", (0, 0, *item.frame.size))
        return Answer(found.verdict, found.cause, found.score, found.threshold)

    ours = answer(network.wait(network.submit(item.frame, None), _NEVER_NS))
    return Shown(item.name, item.kind, answer(reference(item.frame)), ours)


def _reference(bundle: Bundle) -> Callable[[Frame], Findings]:
    """The float model by onnxruntime behind the preprocess as it is defined."""
    from appliance.devices.network_cpu import Engine

    engine = Engine(graph_of(bundle, "float32", ""), f"{bundle.onnx} without its Q/DQ pairs")

    def findings(frame: Frame) -> Findings:
        memory = np.frombuffer(frame.memory, np.uint8)
        try:
            tensor = prepare(memory, frame.size, frame.pitch_bytes, frame.pixel, None, bundle.input).tensor
        except ValueError as why:
            raise EngineError(str(why)) from why
        scores, score_map = decode(engine.run(bundle.input.tensor, np.ascontiguousarray(tensor[None])), bundle)
        return Findings(bundle.task, scores, score_map, None, Counted(np.zeros(256, np.int64), 0, 0.0), 0.0, 0.0)

    return findings


def _frame_latency(site: Site, network: Any, golden: Golden) -> Latency:
    """Frame in, findings out, as a camera's frames go: from memory that the GPU reads, launched as a graph."""
    memory = site.gpu.memory()
    try:
        frame = _in_memory(frame_of(golden.frames[0], golden.pixel), memory)
        network.warm(frame, None)
        times_ms = []
        for _ in range(LATENCY_RUNS):
            begun = now_ns()
            network.wait(network.submit(frame, None), _NEVER_NS)
            times_ms.append((now_ns() - begun) / 1e6)
    finally:
        memory.close()
    return latency_of(times_ms)


def _in_memory(frame: Frame, memory: Any) -> Frame:
    (buffer,) = memory.allocate(frame.memory.nbytes, 1)
    pixels: npt.NDArray[np.uint8] = np.frombuffer(buffer.memory, np.uint8)
    pixels[: frame.memory.nbytes] = np.frombuffer(frame.memory, np.uint8)
    return Frame(
        buffer.memory, buffer.address, frame.pitch_bytes, frame.size, frame.pixel, 1, 0, 1, frame.release
    )  # it arrived, so it counts as a camera's


# --- what is printed ----------------------------------------------------------------------------------------


def _tell(out: TextIO, licence: Licence) -> None:
    found, latency = licence.agreement, licence.latency
    near = sum(flip.near for flip in found.flips)
    out.write(f"INT8 licence: {'granted' if licence.granted else 'refused'} ({licence.basis}, {found.images} images)\n")
    out.write(f"verdicts that differ: {len(found.flips)}, of them {near} on a threshold\n")
    rows = [_compared_row(one, "recall of ") for one in found.recall]
    rows += [_compared_row(found.false_rejects, "false rejects of ")] if found.false_rejects.engine.of else []
    if rows:
        _table(out, ("share", "float", "INT8", "only float", "only INT8"), rows)
    out.write(f"frame to findings: p50 {latency.p50_ms} ms, p99 {latency.p99_ms} ms, p99.9 {latency.p999_ms} ms\n")
    for flip in [flip for flip in found.flips if not flip.near][:20]:
        out.write(f"flip: {flip.image}: {flip.reference.verdict} {flip.reference.score}, INT8 {flip.engine.verdict} "
                  f"{flip.engine.score}\n")  # fmt: skip
    for line in (*(f"refused: {one}" for one in licence.reasons), *(f"remark: {one}" for one in licence.remarks)):
        out.write(line + "\n")
    if not licence.granted:
        out.write("the float16 engine runs\n")


def _compared_row(one: Compared, what: str) -> dict[str, Any]:
    def told(share: Any) -> str:
        return f"{share.hits}/{share.of} ({share.low:.1%} to {share.high:.1%})"

    return {
        "share": what + one.kind, "float": told(one.reference), "int8": told(one.engine),
        "only_float": one.only_reference, "only_int8": one.only_engine,
    }  # fmt: skip


def _table(out: TextIO, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """``rows``: values in the order of ``columns``."""
    lines = [tuple(columns), *(tuple(str(value) for value in row.values()) for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    for line in lines:
        out.write("  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip() + "\n")


def _write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Raises OSError."""
    if path is not None:
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
