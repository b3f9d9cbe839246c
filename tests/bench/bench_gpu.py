"""From a camera's buffer to the verdict on a GPU, beside the bare engine and a plain copy of the frame, in one run.

    ./build.sh bench gpu [--rounds N] [--json FILE]

Round by round, so that what disturbs the machine disturbs all alike:
  frame → verdict   submit, wait, image health, judge: what inspectd does with a frame that lies in mapped memory
  engine            the same engine's graph alone, on the same stream, its input already on the GPU
  copy + engine     one cuMemcpyHtoDAsync of the whole frame, then that graph, one wait: what a lean program without our
                    kernels has to do at least (it still has no preprocess)
and on the GPU's own clock the copy and `gather` alone.

Bounds: frame → verdict p50 at most copy + engine p50 + 60 µs; its p99 at most 1.2 times the engine's p99; `gather` moves
the ROI's bytes at 70 % of the copy's bandwidth or more. Exit: 0 kept, 1 not, 2 wrong call, 4 no GPU here.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from appliance.clock import now_ns
from appliance.devices.cuda import Cuda
from appliance.inspect.image_health import HealthLimits, ImageHealth
from appliance.inspect.judge import Limits, judge
from appliance.model import pixels
from appliance.model.bundle import Bundle
from appliance.model.kernel_images import KernelImageMissing
from appliance.ports import EngineError
from tests.gpu.rig import CLASSES, NEVER_NS, filled, frame_in, missing, network, open_gpu, spec_of
from tests.gpu.torch_engine import mobile_net

ALLOWED_US, ALLOWED_TAIL, ALLOWED_BANDWIDTH = 60.0, 1.2, 0.7
SIZE, ROI = (1280, 1024), (128, 0, 1024, 1024)
BUFFERS, WARM = 6, 200
NAMES = tuple(["good", *(f"defect-{number}" for number in range(1, CLASSES))])


def bundle_of(channels: int) -> Bundle:
    """What the judge wants to know of the engine's scores."""
    mean, std = ([0.5] * channels), ([0.25] * channels)
    return Bundle.model_validate(
        {
            "schema": 1, "name": "bench", "revision": 1, "task": "classify", "taught_on": "twin", "precision": "float32",
            "input": {"tensor": "image", "size": [224, 224], "channels": channels, "mean": mean, "std": std},
            "output": {"tensor": "scores", "activation": "none"}, "classes": list(NAMES), "good": ["good"],
            "thresholds": {"review_at": 0.4, "fail_at": 0.6},
            "files": {"model.onnx": "sha256:" + "0" * 64, "golden.npz": "sha256:" + "0" * 64},
        }
    )  # fmt: skip


def percentile(values: Sequence[float], share: float) -> float:
    return float(np.percentile(np.asarray(values), share))


class Line:
    """One pixel format: what is timed, and the times in µs."""

    def __init__(self, gpu: Cuda, pixel: str, channels: int) -> None:
        self.gpu, self.pixel, self.roi = gpu, pixel, ROI
        self.memory = gpu.memory()
        self.pitch = pixels.bytes_per_row(pixel, SIZE[0])
        self.nbytes = pixels.frame_bytes(pixel, *SIZE, self.pitch)
        self.buffers = self.memory.allocate(self.nbytes, BUFFERS)
        for number, buffer in enumerate(self.buffers):
            filled(buffer, pixel, SIZE, self.pitch, number)
        self.network = network(gpu, spec_of((224, 224), channels), mobile_net(channels, CLASSES))
        self.bundle, self.limits = bundle_of(channels), Limits(0.4, 0.6, {}, {})
        self.health = ImageHealth(HealthLimits(frozen=True))
        self.device_frame = gpu.allocate(self.nbytes)
        self.done, self.marks = gpu.done(), gpu.marks(2)
        engine = self.network._engine  # the very engine, with the tensors it is bound to
        self.verdict(0)
        self.engine_graph = gpu.capture(lambda: engine.enqueue(gpu.stream))
        self.times: dict[str, list[float]] = {name: [] for name in ("verdict", "engine", "copy_engine", "copy", "gather")}

    def verdict(self, number: int) -> None:
        frame = frame_in(self.buffers[number % BUFFERS], self.pixel, SIZE, self.pitch, number + 1)
        found = self.network.wait(self.network.submit(frame, self.roi), NEVER_NS)
        assert found is not None
        self.health.cause(found)
        judge(found, self.bundle, self.limits, "top", self.roi)

    def engine(self, number: int) -> None:
        self.engine_graph.launch()
        self.done.record()
        self.done.wait()

    def copy_engine(self, number: int) -> None:
        self.gpu.send(self.device_frame.address, self._content(number))
        self.engine(number)

    def on_the_gpu_us(self, work: Callable[[], None]) -> float:
        self.marks.mark(0)
        work()
        self.marks.mark(1)
        self.done.record()
        self.done.wait()
        return self.marks.milliseconds(0, 1) * 1000

    def round(self, number: int) -> None:
        for name in ("verdict", "engine", "copy_engine"):
            begun = now_ns()
            getattr(self, name)(number)
            self.times[name].append((now_ns() - begun) / 1000)
        content = self._content(number)
        self.times["copy"].append(self.on_the_gpu_us(lambda: self.gpu.send(self.device_frame.address, content)))
        kind = next(one for one in self.network._kinds.values() if one.graph is not None)
        self.times["gather"].append(self.on_the_gpu_us(kind.gather))

    def warm(self) -> None:
        for number in range(WARM):
            self.round(number)
        for values in self.times.values():
            values.clear()

    def figures(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            name: {share: round(percentile(values, float(share[1:])), 2) for share in ("p50", "p99")}
            for name, values in self.times.items()
        }
        roi_bytes = sum(pixels.bytes_per_row(self.pixel, ROI[2]) for _ in range(ROI[3]))
        copy_gb_s = self.nbytes / percentile(self.times["copy"], 50) / 1000
        gather_gb_s = roi_bytes / percentile(self.times["gather"], 50) / 1000
        told |= {
            "copy_gb_s": round(copy_gb_s, 2), "gather_gb_s": round(gather_gb_s, 2), "frame_bytes": self.nbytes,
            "roi_bytes": roi_bytes, "frame_copies": self.network.frame_copies,
            "over_us": round(told["verdict"]["p50"] - told["copy_engine"]["p50"], 2),
            "tail": round(told["verdict"]["p99"] / told["engine"]["p99"], 3),
            "bandwidth": round(gather_gb_s / copy_gb_s, 3),
        }  # fmt: skip
        return told

    def close(self) -> None:
        self.engine_graph.free()
        self.network.close()
        self.marks.free()
        self.device_frame.free()
        self.memory.close()

    def _content(self, number: int) -> np.ndarray:
        return np.frombuffer(self.buffers[number % BUFFERS].memory, np.uint8)[: self.nbytes]


def faults(told: dict[str, Any]) -> list[str]:
    """Which bounds are not kept, in words."""
    found = []
    if told["over_us"] > ALLOWED_US:
        found.append(f"frame → verdict takes {told['over_us']} µs more than copy + engine, allowed are {ALLOWED_US:g}")
    if told["tail"] > ALLOWED_TAIL:
        found.append(f"its p99 is {told['tail']} times the engine's, allowed are {ALLOWED_TAIL:g}")
    if told["bandwidth"] < ALLOWED_BANDWIDTH:
        found.append(f"gather moves {told['bandwidth']:.0%} of the copy's bandwidth, wanted are {ALLOWED_BANDWIDTH:.0%}")
    if told["frame_copies"]:
        found.append(f"{told['frame_copies']} frames were copied, none may be")
    return found


def machine(gpu: Cuda) -> dict[str, str]:
    """What a figure is worth nothing without."""
    import pycuda
    import torch

    version = ctypes.c_int(gpu.facts.driver_version).value
    return {
        "gpu": gpu.facts.name, "compute capability": ".".join(map(str, gpu.facts.capability)),
        "driver (CUDA)": f"{version // 1000}.{version % 1000 // 10}", "pycuda": ".".join(map(str, pycuda.VERSION)),
        "torch": torch.__version__, "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def table(here: dict[str, str], told: dict[str, dict[str, Any]], rounds: int) -> str:
    """As it belongs into tests/gpu/RESULTS.md."""
    lines = [", ".join(f"{key} {value}" for key, value in here.items()) + f"; {rounds} rounds", ""]
    lines += ["| pixel | frame → verdict p50 / p99 µs | engine p50 / p99 | copy + engine p50 | over (≤ 60) | p99 ratio (≤ 1.2) |"
              " gather / copy GB/s (≥ 0.7) | frame_copies |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for pixel, one in told.items():
        lines.append(
            f"| {pixel} | {one['verdict']['p50']} / {one['verdict']['p99']} | {one['engine']['p50']} / {one['engine']['p99']} |"
            f" {one['copy_engine']['p50']} | {one['over_us']} | {one['tail']} | {one['gather_gb_s']} / {one['copy_gb_s']}"
            f" = {one['bandwidth']} | {one['frame_copies']} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """See above."""
    parser = argparse.ArgumentParser(prog="bench gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    why = missing()
    if why:
        sys.stderr.write(f"bench gpu: {why}\n")
        return 4
    try:
        gpu = open_gpu()
    except (EngineError, KernelImageMissing) as refused:
        sys.stderr.write(f"bench gpu: {refused}\n")
        return 4
    told = {}
    for pixel, channels in (("mono8", 1), ("bgr8", 3), ("nv12", 3)):
        line = Line(gpu, pixel, channels)
        line.warm()
        for number in range(options.rounds):
            line.round(number)
        told[pixel] = line.figures()
        line.close()
    here = machine(gpu)
    gpu.close()
    sys.stdout.write(table(here, told, options.rounds))
    if options.json:
        options.json.write_text(json.dumps({"machine": here, "rounds": options.rounds, "lines": told}, indent=1) + "\n")
    found = [f"{pixel}: {fault}" for pixel, one in told.items() for fault in faults(one)]
    sys.stdout.write("".join(f"{one}\n" for one in found) or "all bounds are kept\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
