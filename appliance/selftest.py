"""``appliance selftest``: the first hour with a module in one command. Says what it did, what it skipped, what to send back.

Each step is a function that returns what it saw; what a step cannot do here is a sentence, never a silence.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from appliance.box import derate
from appliance.box.jetson import read_facts
from appliance.box.sensors import Reading, as_health, read
from appliance.box.sysfs import Files
from appliance.clock import now_ns
from appliance.config import Station
from appliance.inspect.stamps import StampProof
from appliance.model.bundle import Bundle, BundleError, load_bundle
from appliance.model.golden import GoldenError, frame_of, load_golden, replay_all
from appliance.ports import Camera, CameraLost, Clock, EngineError, Frame, FrameMemory, InputLost, MemoryRefused, OutputLost

State = Literal["ok", "failed", "skipped"]
LOOPS, FRAMES, RUNS = 100, 200, 300
_EDGE_S, _FRAME_S, _CAMERA_S = 0.5, 1.0, 60.0
_DELAY_FRAMES = 60
_REFUSED = 3  # what ``appliance engine licence`` ends with
# What the box is made of, by the name it is installed under and the module that answers to it.
PARTS = (
    ("numpy", "numpy"), ("opencv-python-headless", "cv2"), ("onnx", "onnx"), ("onnxruntime", "onnxruntime"),
    ("openvino", "openvino"), ("gpiod", "gpiod"), ("gpiozero", "gpiozero"), ("pymodbus", "pymodbus"), ("paho-mqtt", "paho.mqtt"),
    ("tensorrt", "tensorrt"), ("pycuda", "pycuda"), ("jetson-utils", "jetson_utils"),
    ("jetson-inference", "jetson_inference"), ("PyGObject", "gi"),
)  # fmt: skip


@dataclass
class Step:
    """What one step saw: ``lines`` for a person, ``figures`` to send back."""

    name: str
    state: State = "ok"
    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def say(self, text: str) -> None:
        self.lines.append(text)

    def fail(self, text: str) -> None:
        self.state = "failed"
        self.lines.append(text)

    def skip(self, text: str) -> None:
        self.state = "skipped"
        self.lines.append(text)


@dataclass(frozen=True)
class Bench:
    """What the steps need of this machine; wiring's constructors, or a test's."""

    clock: Clock
    root: Path
    machine: Callable[[], Any]
    camera: Callable[[str, float | None], Camera]
    """By its name in the station file, with another ``exposure_us`` if one is given."""
    line_pair: Callable[[str, str], tuple[Any, Any]]
    """(Output, Input) of two addresses."""
    licence: Callable[[Path, TextIO], int] | None
    """Builds a bundle's INT8 engine and licences it, as ``appliance engine licence``; None: no TensorRT judges here."""


def selftest(
    station: Station | None, bundles: Sequence[Path], loopback: tuple[str, str] | None, bench: Bench, out: TextIO,
    json_file: Path | None,
) -> int:  # fmt: skip
    """Every step, told as it ends. Exit 0, or 1 when one failed; what could not be done here is no failure."""
    before = _look(bench)
    steps = [_told(step, out) for step in _steps(station, bundles, loopback, bench)]
    steps.append(_told(_throttling(before, bench), out))
    failed = [step.name for step in steps if step.state == "failed"]
    skipped = [step.name for step in steps if step.state == "skipped"]
    passed = len(steps) - len(failed) - len(skipped)
    out.write(f"\n{len(steps)} steps: {passed} ok, {len(failed)} failed, {len(skipped)} skipped\n")
    if json_file is None:
        out.write("to send back: run again with --json FILE, and send that file\n")
    else:
        json_file.write_text(json.dumps([asdict(step) for step in steps], indent=1, default=str) + "\n", encoding="utf-8")
        out.write(f"to send back: {json_file}\n")
    return 1 if failed else 0


def _steps(
    station: Station | None, bundles: Sequence[Path], loopback: tuple[str, str] | None, bench: Bench
) -> Iterator[Step]:  # fmt: skip
    yield _machine(bench)
    yield _libraries()
    yield _gpio(loopback, bench)
    yield from _licences(bundles, bench)  # before the GPU is opened for the rest: each opens it for itself
    with ExitStack() as stack:
        step = Step("what judges")
        try:
            judge = bench.machine()
        except EngineError as why:
            step.fail(str(why))
            yield step
            judge = None
        else:
            stack.callback(judge.close)
            step.say(f"{type(judge).__name__}: frames lie in {type(judge.memory).__name__}")
            yield step
        yield from _cameras(station, judge, bench)
        yield from _models(bundles, judge)


def _told(step: Step, out: TextIO) -> Step:
    out.write(f"{step.state:<8}{step.name}\n" + "".join(f"          {line}\n" for line in step.lines))
    out.flush()
    return step


# --- machine and libraries ----------------------------------------------------------------------------------


def _machine(bench: Bench) -> Step:
    step, facts = Step("machine"), read_facts(bench.root)
    step.figures = asdict(facts)
    step.say(f"Python {platform.python_version()} on {platform.machine()}, kernel {platform.release()}")
    if facts.l4t is None:
        step.say("not a Jetson: no /etc/nv_tegra_release")
    else:
        step.say(f"L4T {facts.l4t}, module {facts.module}, power mode {facts.power_mode or 'unknown'}")
    look = _look(bench)
    step.figures["sensors"] = as_health(look)
    if look.hottest is not None:
        limit = derate.limit_of(look.hottest)
        says = f", slower from {limit[0]:g} °C on ({limit[1]})" if limit else ""
        step.say(f"hottest: {look.hottest.name} {look.hottest.celsius:.1f} °C{says}")
    if look.rails:
        step.say("power: " + ", ".join(f"{rail.name} {rail.watts:.1f} W" for rail in look.rails if rail.watts is not None))
    if look.watchdog is not None or look.chip is not None:
        doubt = derate.watchdog_unproven(look, proven=False)
        step.say("watchdog: " + (f"not proven: {doubt.what}" if doubt.bad else f"{look.watchdog and look.watchdog.identity}"))
    for name, why in look.unreadable.items():
        step.say(f"not to be believed: {name}: {why}")
    return step


def _look(bench: Bench) -> Reading:
    return read(Files(bench.root), bench.clock.now_ns(), clock=bench.clock.quality())


def _libraries() -> Step:
    """Installed, and under whose name: imports nothing, for some of them do more at their import than a look may do."""
    step = Step("libraries")
    for package, module in PARTS:
        found = _version(package, module)
        step.figures[package] = found
        step.say(f"{package:<24}{found or 'not installed'}")
    return step


def _version(package: str, module: str) -> str | None:
    place = _place(module)
    if place is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"without a version, at {place}"


def _place(module: str) -> str | None:
    """Where a module would come from; None: from nowhere."""
    if module in sys.modules:
        return str(getattr(sys.modules[module], "__file__", "a place it does not tell"))
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # a parent package that is not there
        return None
    return None if spec is None else str(spec.origin)


def _throttling(before: Reading, bench: Bench) -> Step:
    step = Step("throttling")
    after = _look(bench)
    moved = derate.since(before, after)
    if not moved:
        step.skip("no throttle counters on this machine")
        return step
    step.figures = {"before": dict(before.events), "after": dict(after.events)}
    step.say(derate.throttle_told(before.events, after.events, after.chip) or "nothing throttled while this ran")
    if moved.get("oc1") or moved.get("oc2"):  # the third counts peaks, which are normal at full power
        step.state = "failed"
    return step


# --- pins ---------------------------------------------------------------------------------------------------


def _gpio(loopback: tuple[str, str] | None, bench: Bench) -> Step:
    """Only a wire shows that a pin moves: without the pinmux a request succeeds and reads back what was written."""
    step = Step("GPIO loop-back")
    if loopback is None:
        step.skip("name two lines joined by a wire: --loopback gpio://OUT,gpio://IN")
        return step
    try:
        output, line = bench.line_pair(*loopback)
    except (OSError, ValueError, OutputLost, InputLost) as why:
        step.fail(str(why))
        return step
    try:
        _toggle(step, output, line, bench.clock)
    finally:
        output.close()
        line.close()
    return step


def _toggle(step: Step, output: Any, line: Any, clock: Clock) -> None:
    import select

    delays_us, lost = [], 0
    line.read()
    for number in range(LOOPS):
        level = number % 2 == 0
        moved_ns = output.set(level, clock.now_ns())
        ready = select.select([line], [], [], _EDGE_S)[0]
        edges = [edge for edge in line.read() if edge.level == level] if ready else []
        if not edges:
            lost += 1
            continue
        delays_us.append((edges[0].time_ns - moved_ns) / 1000)
    step.figures = {"loops": LOOPS, "lost": lost, "edge_us": _spread(delays_us)}
    if lost == LOOPS:
        step.fail("no edge came: is the wire there, and is the pad a GPIO in the pinmux?")
    elif lost:
        step.fail(f"{lost} of {LOOPS} edges did not come")
    else:
        step.say(f"{LOOPS} edges, kernel's stamp less our write: {_spread(delays_us)} µs")


# --- cameras ------------------------------------------------------------------------------------------------


def _cameras(station: Station | None, judge: Any, bench: Bench) -> Iterator[Step]:
    if station is None or judge is None:
        step = Step("cameras")
        step.skip("name the station: -c FILE" if station is None else "nothing judges here, so no memory for frames")
        yield step
        return
    for name, camera in station.cameras.items():
        step = Step(f"camera {name}")
        try:
            _camera(step, name, camera, bench, judge.memory)
        except (CameraLost, MemoryRefused) as why:
            step.fail(str(why))
        yield step


def _camera(step: Step, name: str, given: Any, bench: Bench, memory: FrameMemory) -> None:
    proof = StampProof(round(1e9 / given.fps), False, round(given.offset_ms * 1e6))  # nobody tells of edges here
    with _open(bench.camera(name, None), memory) as camera:
        arrivals, clocks = [], set()
        for frame in _frames(camera, FRAMES):
            proof.place(frame)
            arrivals.append(frame.arrived_ns)
            clocks.add(frame.clock)
            frame.release()
        if len(arrivals) < 2:
            step.fail(f"{len(arrivals)} frames came; with trigger: hardware let parts pass while this runs")
            return
        rate = (len(arrivals) - 1) / ((arrivals[-1] - arrivals[0]) / 1e9)
        step.figures = {"fps": rate, "frame_copies": camera.frame_copies, **camera.statistics(), "stamps": proof.health()}
    step.say(f"{len(arrivals)} frames at {rate:.1f}/s (asked: {given.fps:g}), copies after the kernel: {camera.frame_copies}")
    step.say(f"stamps: {'; '.join(f'{key} {value}' for key, value in proof.health().items())}")
    if given.trigger == "free-run" and rate < 0.95 * given.fps:
        step.fail(f"slower than asked; a longer exposure than {1e6 / given.fps:.0f} µs, or the wire, may hold it back")
    if "driver" in clocks and given.exposure_us != "auto":
        _stamp_meaning(step, name, given, bench, memory)


def _stamp_meaning(step: Step, name: str, given: Any, bench: Bench, memory: FrameMemory) -> None:
    """Does the driver's stamp mark what it is taken for? Frames that are placed at their middle arrive half an exposure
    later for each exposure longer; a wrong mark shows as another share."""
    short_us, long_us = given.exposure_us, min(given.exposure_us + 4000, 0.8e6 / given.fps)
    if long_us - short_us < 1000:
        step.say(f"stamp's mark not measured: no longer exposure than {short_us:g} µs fits {given.fps:g} frames/s")
        return
    delays = {}
    for exposure_us in (short_us, long_us):
        with _open(bench.camera(name, exposure_us), memory) as camera:
            taken = []
            for frame in _frames(camera, _DELAY_FRAMES):
                taken.append(frame.arrived_ns - frame.time_ns)
                frame.release()
        if not taken:
            step.say("stamp's mark not measured: no frames came")
            return
        delays[exposure_us] = min(taken) / 1000
    share = (delays[long_us] - delays[short_us]) / (long_us - short_us)
    step.figures["stamp_share"] = share
    mark = stamp_mark(share)
    if mark is None:
        step.say(f"stamp's mark not clear: arrival moves {share:.2f} of what the exposure does")
    elif mark == "as taken":
        step.say(f"the stamp marks what it is taken for (arrival moves {share:.2f} of the exposure, 0.50 is right)")
    else:
        step.fail(f"the driver's stamp marks the {mark} of the exposure: write ?stamp={mark} behind the camera's address")


def stamp_mark(share: float) -> str | None:
    """``as taken``, ``start``, ``end``, or None: by how much of a longer exposure a frame, placed at what is taken for its
    middle, arrives later. The middle itself: 1/2. Taken for a start and really an end: -1/2; the other way round: 3/2."""
    for wanted, mark in ((0.5, "as taken"), (-0.5, "end"), (1.5, "start")):
        if abs(share - wanted) < 0.2:
            return mark
    return None


@contextmanager
def _open(camera: Camera, memory: FrameMemory) -> Iterator[Camera]:
    camera.open(memory)
    try:
        yield camera
    finally:
        camera.close()


def _frames(camera: Camera, most: int) -> Iterator[Any]:
    end_ns = now_ns() + round(_CAMERA_S * 1e9)
    count = 0
    while count < most and now_ns() < end_ns:
        frame = camera.next_frame(_FRAME_S)
        if frame is None:
            if count == 0 and now_ns() > end_ns - round((_CAMERA_S - 5) * 1e9):
                return  # five seconds without a first frame
            continue
        count += 1
        yield frame


# --- models -------------------------------------------------------------------------------------------------


def _licences(bundles: Sequence[Path], bench: Bench) -> Iterator[Step]:
    for folder in bundles:
        step, told = Step(f"INT8 licence {folder.name}"), io.StringIO()
        if bench.licence is None:
            step.skip("no TensorRT judges here")
        else:
            code = bench.licence(folder, told)
            step.lines += told.getvalue().splitlines()
            step.figures = {"exit": code}
            if code:
                step.fail("not licensed: float16 runs" if code == _REFUSED else "no engine, see above")
        yield step


def _models(bundles: Sequence[Path], judge: Any) -> Iterator[Step]:
    if judge is None or not bundles:
        step = Step("models")
        step.skip("nothing judges here" if bundles else "name a station with -c, or a bundle with -m")
        yield step
        return
    for folder in bundles:
        step = Step(f"model {folder.name}")
        try:
            _model(step, load_bundle(folder), judge)
        except (BundleError, GoldenError, EngineError, MemoryRefused) as why:
            step.fail(str(why))
        yield step


def _model(step: Step, bundle: Bundle, judge: Any) -> None:
    network = judge.network(bundle, (1.0, 1.0, 1.0), lambda what, share: None)
    try:
        for text in judge.told:
            step.say(text)
        step.say(f"runs as {network.identity['precision']} on {network.identity['engine']}")
        first = load_golden(bundle)
        frame = frame_of(first.frames[0], first.pixel)
        # A network's first frame of a kind is launched kernel by kernel; what comes after it goes by the graph.
        plain = network.wait(network.submit(frame, None), 2**62).scores.copy()
        golden = replay_all(network, bundle)
        step.say(f"{len(golden)} golden vectors reproduced")
        _as_a_camera_gives_it(step, network, frame, plain, judge.memory)
    finally:
        network.close()


def _as_a_camera_gives_it(step: Step, network: Any, plain: Frame, scores: Any, memory: FrameMemory) -> None:
    """A golden frame in a camera's buffer, read where it lies as a part's is, against ``scores``: of its first launch."""
    (buffer,) = memory.allocate(plain.memory.nbytes, 1)
    np.frombuffer(buffer.memory, np.uint8)[: plain.memory.nbytes] = np.frombuffer(plain.memory, np.uint8)
    copies, taken_ms = network.frame_copies, []
    for number in range(RUNS):
        begun_ns = now_ns()
        frame = replace(
            plain, memory=buffer.memory[: plain.memory.nbytes], address=buffer.address, sequence=number + 1,
            time_ns=begun_ns, arrived_ns=begun_ns,
        )  # fmt: skip
        found = network.wait(network.submit(frame, None), 2**62)
        taken_ms.append((now_ns() - begun_ns) / 1e6)
        if not np.array_equal(found.scores, scores):
            apart = float(np.abs(found.scores - scores).max())
            step.fail(f"frame {number + 1} in a camera's buffer scores {apart:.3g} apart from the same frame's first launch")
            return
    copied = network.frame_copies - copies
    step.figures |= {"frame_to_findings_ms": _spread(taken_ms), "frame_copies": copied}
    step.say(f"frame to findings: {_spread(taken_ms)} ms over {RUNS} frames, as of its first launch, {copied} copied")
    if copied:
        step.fail(f"{copied} of {RUNS} frames were copied before the engine could read them")


def _spread(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {"p50": round(cuts[49], 3), "p99": round(cuts[98], 3), "max": round(max(values), 3)}
