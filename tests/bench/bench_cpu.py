"""Frame to verdict on a CPU, beside the bare engine, OpenVINO and a script, all in one run, frame by frame in turn.

    ./build.sh bench cpu [--openvino FOLDER] [--rounds N] [--json FILE]

1280 x 1024 frames in colour (bgr8) and mono (mono8), through the bundle that ships and one of MobileNetV2's size. One
inference thread everywhere, one thread of OpenCV. Each contender finds the frame freshly written, as from a camera, and
each round begins with another of them, so that noise hits all alike. What is held against what:

- frame to verdict: submit, wait, image health and judge, as inspectd does it; on the engine that the product chose. What
  image health works out only after the verdict has left has a line of its own
- engine alone: that very engine on the very tensor, nothing around it
- OpenVINO alone: on the bundle's file; onnxruntime alone: on the rewritten graph
- frame to verdict on onnxruntime: what a computer without OpenVINO gets
- script: tests/bench/naive_script.py on the float model
- yardstick: cv2's bilinear resize of the same frame and normalising it into the network's float32 planes, as lean as
  they can be had: in place, one multiplication and one subtraction a value

Bounds, on medians: frame to verdict less the engine alone at most 4 yardsticks; the script at least 1.5 times as long as
frame to verdict; the engine alone not slower than OpenVINO alone, or OpenVINO itself.

Exit: 0 the bounds are kept, 1 they are not, 2 wrong call, 3 the run cannot be judged: the hypervisor stole time in more
than a third of its slices of a second.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx

from appliance.clock import now_ns
from appliance.devices.engine_openvino import OpenVinoEngine, installed
from appliance.devices.memory_plain import PlainMemory
from appliance.devices.network_cpu import CpuNetwork, Engine
from appliance.inspect.image_health import HealthLimits, ImageHealth
from appliance.inspect.judge import blind, judge, limits_of
from appliance.model.bundle import Bundle, InputSpec, load_bundle
from appliance.model.cpu_graph import cpu_graph
from appliance.model.graph import float_model
from appliance.model.pixels import U8
from appliance.ports import Frame
from appliance.wiring import models
from tests.bench.bench_reject import read_steal
from tests.bench.mobile_net import FRAME, mobile_net_bundle, pictures
from tests.bench.naive_script import NaiveScript

SHIPPED = Path(__file__).resolve().parents[2] / "models/cap-28mm"
SECOND_NS = 1_000_000_000
NEVER_NS = 2**62

OVERHEAD_BOUND = 4.0
SCRIPT_BOUND = 1.5
LEFT_OUT_AT_MOST = 1 / 3
WARM_UP = 10  # rounds; buffers, threads and caches are there after the first few

OURS, BARE, YARDSTICK, SCRIPT = "frame to verdict", "engine alone", "yardstick", "script"
OPENVINO, ONNXRUNTIME, OURS_ONNXRUNTIME = "OpenVINO alone", "onnxruntime alone", "frame to verdict on onnxruntime"
SETTLING = "statistics after the verdict"
Turn = Callable[[], object]


# --- the contenders -------------------------------------------------------------------------------------------------


class Line:
    """One camera's frames in a buffer of the product's memory, and the product's way from there to a verdict."""

    def __init__(self, network: CpuNetwork, bundle: Bundle, memory: memoryview, pixel: str) -> None:
        self._network, self._bundle = network, bundle
        self._health = ImageHealth(HealthLimits())
        self._limits = limits_of(bundle, None, None, {})
        pitch = FRAME[0] * (3 if pixel == "bgr8" else 1)
        self._frame = Frame(memory, 0, pitch, FRAME, pixel, 0, 0, 0, lambda: None)

    def __call__(self) -> str:
        """As inspect.inspector looks at a frame, until it sends the verdict."""
        findings = self._network.wait(self._network.submit(self._frame, None), NEVER_NS)
        assert findings is not None
        cause = self._health.early(findings)
        judged = blind(cause) if cause else judge(findings, self._bundle, self._limits, "bench", (0, 0, *FRAME))
        return judged.verdict

    def settle(self) -> None:
        """As it does before it gives the frame back: the rest of the statistics."""
        self._health.settle()


def yardstick(frame: U8, spec: InputSpec) -> Turn:
    """cv2's bilinear of the frame to the network's size, and (v/255 - mean)/std into planes that are there already."""
    planes = np.empty((spec.channels, spec.size[1], spec.size[0]), np.float32)
    small = np.empty((spec.size[1], spec.size[0], *frame.shape[2:]), np.uint8)
    factors = [np.float32(1 / (255 * std)) for std in spec.std]
    offsets = [np.float32(mean / std) for mean, std in zip(spec.mean, spec.std)]

    def turn() -> None:
        image = cv2.resize(frame, spec.size, dst=small, interpolation=cv2.INTER_LINEAR)
        if spec.channels == 1 and image.ndim == 3:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        for channel, plane in enumerate(planes):
            np.multiply(image if image.ndim == 2 else image[:, :, 2 - channel], factors[channel], out=plane)
            np.subtract(plane, offsets[channel], out=plane)

    return turn


@dataclass(frozen=True)
class Case:
    """One network on one kind of frames. ``write`` puts the next frame into the camera's buffer; ``after`` names what
    follows a turn, timed as a contender of its own."""

    name: str
    engine: str
    why: str
    left: tuple[str, ...]
    write: Callable[[int], None]
    turns: dict[str, Turn]
    after: dict[str, tuple[str, Turn]]


def case_of(bundle: Bundle, pixel: str, folder: Path) -> Case:
    """The contenders for one network and one kind of frames. ``folder``: where the float model may lie."""
    channels = 3 if pixel == "bgr8" else 1
    shots = list(pictures(16, channels))
    buffer = PlainMemory().allocate(shots[0].nbytes, 1)[0].memory[: shots[0].nbytes]
    picture: U8 = np.frombuffer(buffer, np.uint8).reshape(shots[0].shape)
    raw = bundle.onnx.read_bytes()
    model = onnx.load_from_string(raw)
    rewritten = cpu_graph(model)
    float_file = folder / f"{bundle.name}-float.onnx"
    onnx.save(float_model(model), str(float_file))
    script = NaiveScript(str(float_file), bundle.input.size, bundle.input.channels, bundle.thresholds.fail_at)
    network: Any = models.cpu_network(bundle)
    plain: Any = models.network_on(bundle, Engine(rewritten.model.SerializeToString(), bundle.name), "for the bench")
    name = bundle.input.tensor

    def write(number: int) -> None:
        np.copyto(picture, shots[number % len(shots)])

    write(0)
    ours, ours_plain = Line(network, bundle, buffer, pixel), Line(plain, bundle, buffer, pixel)
    for one in (ours, ours_plain):
        one()
        one.settle()
    tensor, tensor_plain = network.last_input[None], plain.last_input[None]  # where the engines find them bound already
    turns: dict[str, Turn] = {
        OURS: ours,
        BARE: lambda: network.engine.run(name, tensor),
        YARDSTICK: yardstick(picture, bundle.input),
        SCRIPT: lambda: script.verdict(picture),
        OURS_ONNXRUNTIME: ours_plain,
        ONNXRUNTIME: lambda: plain.engine.run(name, tensor_plain),
    }
    if installed():
        openvino = OpenVinoEngine(raw, bundle.name)
        turns[OPENVINO] = lambda: openvino.run(name, tensor)
    after = {OURS: (SETTLING, ours.settle), OURS_ONNXRUNTIME: (SETTLING, ours_plain.settle)}
    return Case(f"{bundle.name}, {pixel}", network.identity["engine"], network.why, rewritten.left, write, turns, after)


# --- one run --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """When it began, and how long each contender took, in ns."""

    at_ns: int
    took_ns: dict[str, int]


@dataclass(frozen=True)
class Slice:
    """About a second of the run. ``steal``: ticks that the hypervisor took, all cores together."""

    from_ns: int
    to_ns: int
    steal: int


def read_busy_s() -> float:
    """Seconds that all cores together have worked since boot, for whomever."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _idle, _iowait, irq, softirq = (int(one) for one in fields[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def play(case: Case, rounds: int) -> tuple[list[Round], list[Slice]]:
    """All contenders in turn, round after round, after a warm-up."""
    for number in range(WARM_UP):
        one_round(case, number)
    done: list[Round] = []
    slices: list[Slice] = []
    from_ns, before = now_ns(), read_steal()
    for number in range(rounds):
        done.append(one_round(case, number))
        at_ns = now_ns()
        if at_ns - from_ns >= SECOND_NS or number == rounds - 1:
            steal = read_steal()
            slices.append(Slice(from_ns, at_ns, steal - before))
            from_ns, before = at_ns, steal
    return done, slices


def one_round(case: Case, number: int) -> Round:
    """Each contender once on the same frame, beginning with another one than the round before."""
    names = list(case.turns)
    begin = number % len(names)
    took: dict[str, int] = {}
    started_ns = now_ns()
    for name in names[begin:] + names[:begin]:
        turn = case.turns[name]
        case.write(number)
        before_ns = now_ns()
        turn()
        took[name] = now_ns() - before_ns
        if name in case.after:
            what, follow = case.after[name]
            before_ns = now_ns()
            follow()
            took[what] = now_ns() - before_ns
    return Round(started_ns, took)


# --- figures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Times of one contender over the judged rounds, ms."""

    what: str
    n: int
    p50: float
    p99: float
    least: float


def row(what: str, times_ns: Sequence[int]) -> Row:
    """Nearest ranks."""
    ordered = sorted(times_ns)

    def at(share: float) -> float:
        return ordered[max(1, math.ceil(share * len(ordered))) - 1] / 1e6

    return Row(what, len(ordered), at(0.5), at(0.99), ordered[0] / 1e6)


def clean(rounds: Sequence[Round], slices: Sequence[Slice]) -> list[Round]:
    """The rounds of slices without steal."""
    return [one for one in rounds if any(part.from_ns <= one.at_ns < part.to_ns and part.steal == 0 for part in slices)]


def judged(case: Case, rounds: Sequence[Round], slices: Sequence[Slice]) -> dict[str, Any]:
    """Rows, ratios and verdict of one case as plain values: ``passed`` True, False, or None where too much was stolen."""
    used = clean(rounds, slices)
    left_out = sum(one.steal > 0 for one in slices)
    result: dict[str, Any] = {
        "case": case.name, "engine": case.engine, "why": case.why, "left": list(case.left),
        "slices": {"all": len(slices), "left_out": left_out, "steal_ticks": sum(one.steal for one in slices)},
        "rows": [], "bounds": {}, "passed": None,
    }  # fmt: skip
    if not used:
        return result
    rows = {name: row(name, [one.took_ns[name] for one in used]) for name in used[0].took_ns}
    result["rows"] = [asdict(one) for one in rows.values()]
    result["bounds"] = bounds({name: one.p50 for name, one in rows.items()}, case.engine)
    if left_out <= LEFT_OUT_AT_MOST * len(slices):
        result["passed"] = all(one["kept"] for one in result["bounds"].values())
    return result


def bounds(p50: dict[str, float], engine: str) -> dict[str, dict[str, Any]]:
    """Each bound: its figure, what it is held against, and whether it is kept. ``p50``: ms by contender."""
    overhead = (p50[OURS] - p50[BARE]) / p50[YARDSTICK]
    times = p50[SCRIPT] / p50[OURS]
    found: dict[str, dict[str, Any]] = {
        "overhead in yardsticks": {"figure": overhead, "bound": OVERHEAD_BOUND, "kept": overhead <= OVERHEAD_BOUND},
        "script / frame to verdict": {"figure": times, "bound": SCRIPT_BOUND, "kept": times >= SCRIPT_BOUND},
    }
    if OPENVINO in p50:
        ahead = p50[OPENVINO] / p50[BARE]
        found["OpenVINO / engine"] = {"figure": ahead, "bound": 1.0, "kept": engine.startswith("openvino") or ahead >= 1}
    return found


# --- telling it -----------------------------------------------------------------------------------------------------


def told(result: dict[str, Any]) -> str:
    """One case in words and columns; times in ms."""
    slices = result["slices"]
    left = f"; onnxruntime leaves {len(result['left'])} operators in float" if result["left"] else ""
    lines = [f"{result['case']}: {result['engine']}", f"  {result['why']}{left}"]
    lines.append(f"  {'ms':<34}{'n':>6}{'p50':>9}{'p99':>9}{'least':>9}")
    for one in result["rows"]:
        lines.append(f"  {one['what']:<34}{one['n']:>6}{one['p50']:>9.3f}{one['p99']:>9.3f}{one['least']:>9.3f}")
    for name, one in result["bounds"].items():
        sign = "at most" if name.startswith("overhead") else "at least"
        lines.append(f"  {name:<34}{one['figure']:>15.2f}   {sign} {one['bound']:g}: {'kept' if one['kept'] else 'MISSED'}")
    others = f"; other programs kept {result['others_cores']:.1f} cores busy" if "others_cores" in result else ""
    lines.append(f"  slices of 1 s: {slices['all']}, left out for steal: {slices['left_out']}{others}")
    return "\n".join(lines)


def measure(rounds: int) -> dict[str, Any]:
    """Every case, one after the other; contenders in turn within each."""
    cv2.setNumThreads(1)
    load_before = os.getloadavg()
    results = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for bundle in (load_bundle(SHIPPED), mobile_net_bundle()):
            for pixel in ("bgr8", "mono8"):
                case = case_of(bundle, pixel, Path(folder))
                gc.collect()
                gc.freeze()
                gc.disable()  # as inspectd runs
                busy_s, own_s, began_ns = read_busy_s(), time.process_time(), now_ns()
                try:
                    results.append(judged(case, *play(case, rounds)))
                finally:
                    gc.enable()
                others_s = read_busy_s() - busy_s - (time.process_time() - own_s)
                results[-1]["others_cores"] = max(0.0, others_s / ((now_ns() - began_ns) / SECOND_NS))
                print(told(results[-1]), flush=True)
    verdicts = [one["passed"] for one in results]
    return {
        "cases": results,
        "rounds": rounds,
        "passed": False if False in verdicts else None if None in verdicts else True,
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "load_before": load_before,
            "load_after": os.getloadavg(),
        },
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, return the exit status (0, 1, 3; a wrong call ends with 2)."""
    parser = argparse.ArgumentParser(prog="bench cpu", description="frame to verdict on a CPU, beside what else one could run")
    parser.add_argument("--openvino", type=Path, metavar="FOLDER", help="where OpenVINO is installed (pip install --target)")
    parser.add_argument("--rounds", type=int, default=300, help="frames of each case (default 300)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    asked = parser.parse_args(arguments)
    if asked.rounds < 1:
        parser.error("--rounds must be 1 or more")
    if asked.openvino:
        if not (asked.openvino / "openvino").is_dir():
            parser.error(f"no openvino in {asked.openvino}; install it there: pip install --target {asked.openvino} openvino")
        sys.path.append(str(asked.openvino))  # behind our own packages: its numpy must not hide ours
    result = measure(asked.rounds)
    machine = result["machine"]
    print(
        f"machine: {machine['cores']} cores, Python {machine['python']}, load average "
        f"{machine['load_before'][0]:.1f} before and {machine['load_after'][0]:.1f} after"
    )
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=2) + "\n")
    if not installed():
        print("without OpenVINO: nothing is said about it (--openvino FOLDER)")
    print({True: "passed", False: "FAILED", None: "not judged: too much was stolen; run it again"}[result["passed"]])
    return 3 if result["passed"] is None else 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
