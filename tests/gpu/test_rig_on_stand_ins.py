"""What is written for a GPU machine, run on the stand-in of CUDA: so that it does what it says when one is at hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from appliance.devices.cuda import Cuda
from tests.bench import bench_gpu
from tests.fakes import fake_pycuda
from tests.fakes.fake_libcuda import Gpu
from tests.gpu import rig, test_on_the_gpu
from tests.kernels.host_library import host_library
from tests.wiring.test_engines import cubin


class Projection:
    """As torch_engine's projection, by numpy at the addresses it is bound to, on the stand-in's stream."""

    version = "numpy"

    def __init__(self, gpu: Gpu, make: Any, input_shape: tuple[int, ...], output_shape: tuple[int, ...], stream: int) -> None:
        self._gpu = gpu
        self.inputs, self.outputs = {"image": input_shape}, {"scores": output_shape}
        shape = (output_shape[1], math.prod(input_shape))
        self._weights = np.random.default_rng(0).normal(0, 1 / math.sqrt(shape[1]), shape).astype(np.float32)
        self._bound: dict[str, int] = {}

    def bind(self, name: str, address: int) -> None:
        self._bound[name] = address

    def enqueue(self, stream: int) -> None:
        bound = dict(self._bound)
        self._gpu.enqueue(stream, "engine", lambda: self._run(bound))

    def close(self) -> None:
        self._bound.clear()

    def _run(self, bound: dict[str, int]) -> None:
        given = _floats(bound["image"], math.prod(self.inputs["image"]))
        _floats(bound["scores"], self.outputs["scores"][1])[:] = self._weights @ given


def _floats(address: int, count: int) -> Any:
    import ctypes

    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    simulated = Gpu(host_library())
    monkeypatch.setattr(rig, "TorchEngine", lambda *given: Projection(simulated, *given))
    with fake_pycuda.installed(simulated):
        opened = Cuda.open(simulated.library, simulated.library)
        opened.load_kernels(cubin())
        yield opened
        opened.close()
    assert simulated.live() == 0 and simulated.left_pushed() == []


@pytest.mark.parametrize("pixel", ["mono8", "nv12/limited", "bayer_grbg10"])
def test_the_comparison_with_the_reference(gpu: Cuda, pixel: str) -> None:
    test_on_the_gpu.test_the_kernels_are_the_references(gpu, pixel, (7, 5, 91, 53), (40, 24), "letterbox")


def test_the_comparison_of_graph_and_plain_launch(gpu: Cuda) -> None:
    test_on_the_gpu.test_the_graph_gives_what_the_plain_launch_gives_whatever_buffer_the_frame_lies_in(gpu, "bgr8")


def test_the_mapping_of_somebody_elses(gpu: Cuda) -> None:
    test_on_the_gpu.test_a_mapping_of_somebody_elses_is_read_where_it_lies(gpu)


def test_the_long_run(gpu: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_on_the_gpu, "FRAMES", 300)
    monkeypatch.setattr(test_on_the_gpu, "WARM", 30)
    test_on_the_gpu.test_memory_is_flat_over_100_000_frames(gpu)


def test_the_bench_measures_every_figure_of_its_table(gpu: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu, "SIZE", (320, 240))
    monkeypatch.setattr(bench_gpu, "ROI", (32, 0, 224, 240))
    monkeypatch.setattr(bench_gpu, "WARM", 3)
    line = bench_gpu.Line(gpu, "mono8", 1)
    line.warm()
    for number in range(5):
        line.round(number)
    told = line.figures()
    line.close()
    assert told["frame_copies"] == 0 and told["roi_bytes"] == 224 * 240 and told["frame_bytes"] == 320 * 240
    assert all(told[name]["p50"] > 0 for name in ("verdict", "engine", "copy_engine"))
    page = bench_gpu.table({"gpu": "none", "date": "never"}, {"mono8": told}, 5)
    assert page.count("|") > 20


def test_the_bounds_are_judged() -> None:
    kept = {"over_us": 60.0, "tail": 1.2, "bandwidth": 0.7, "frame_copies": 0}
    assert bench_gpu.faults(kept) == []
    for name, value in (("over_us", 60.1), ("tail", 1.21), ("bandwidth", 0.69), ("frame_copies", 1)):
        assert len(bench_gpu.faults({**kept, name: value})) == 1
