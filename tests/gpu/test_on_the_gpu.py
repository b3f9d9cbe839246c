"""The kernels, the graph and the memory on a real GPU; the engine behind the port is a torch module there."""

from __future__ import annotations

import mmap
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.devices.cuda import Cuda
from appliance.model import pixels
from appliance.model.preprocess import prepare
from appliance.ports import Findings, FrameBuffer
from tests.gpu.rig import NEVER_NS, filled, frame_in, network, spec_of
from tests.gpu.torch_engine import projection

FRAMES, WARM = 100_000, 2_000


def ran(net: Any, frame: Any, roi: Any = None) -> Findings:
    found = net.wait(net.submit(frame, roi), NEVER_NS)
    assert found is not None
    return found


@pytest.mark.parametrize("pixel", pixels.FORMATS)
@pytest.mark.parametrize(
    ("roi", "target", "fit"),
    [
        (None, (24, 24), "stretch"), (None, (24, 24), "letterbox"), ((7, 5, 91, 53), (40, 24), "stretch"),
        ((1, 1, 60, 60), (60, 60), "stretch"), ((70, 30, 58, 42), (16, 12), "letterbox"), (None, (150, 90), "stretch"),
    ],
)  # fmt: skip
def test_the_kernels_are_the_references(gpu: Cuda, pixel: str, roi: Any, target: Any, fit: str) -> None:
    size, memory = (128, 72), gpu.memory()
    pitch = pixels.bytes_per_row(pixel, size[0]) + 32
    (buffer,) = memory.allocate(pixels.frame_bytes(pixel, *size, pitch), 1)
    for channels in (1, 3):
        spec = spec_of(target, channels, fit)
        net = network(gpu, spec, projection(target, channels, 8))
        content = filled(buffer, pixel, size, pitch, seed=1)
        wanted = prepare(content, size, pitch, pixel, roi, spec)
        found = ran(net, frame_in(buffer, pixel, size, pitch, camera=False), roi)
        np.testing.assert_allclose(net.last_input, wanted.tensor, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(found.statistics.histogram, wanted.histogram)
        assert found.statistics.total == wanted.total
        assert found.statistics.laplacian_variance == pytest.approx(wanted.laplacian_variance, rel=1e-9, abs=1e-9)
        net.close()
    memory.close()


@pytest.mark.parametrize("pixel", ["mono8", "bgr8", "nv12", "bayer_rggb12"])
def test_the_graph_gives_what_the_plain_launch_gives_whatever_buffer_the_frame_lies_in(gpu: Cuda, pixel: str) -> None:
    size, spec, memory = (640, 480), spec_of((160, 120), 3), gpu.memory()
    row = pixels.bytes_per_row(pixel, size[0])
    net, plainly = network(gpu, spec, projection(spec.size, 3, 8)), network(gpu, spec, projection(spec.size, 3, 8))
    plainly._capture = lambda kind: None  # type: ignore[method-assign]  # it never gets a graph
    buffers = memory.allocate(pixels.frame_bytes(pixel, *size, row + 64), 4)
    for number in range(40):
        buffer, pitch = buffers[number % 4], row + 32 * (number % 3)
        filled(buffer, pixel, size, pitch, seed=number)
        plain = ran(plainly, frame_in(buffer, pixel, size, pitch, sequence=number + 1))
        scores, total, counts = plain.scores.copy(), plain.statistics.total, plain.statistics.histogram.copy()
        graph = ran(net, frame_in(buffer, pixel, size, pitch, sequence=number + 1))
        np.testing.assert_array_equal(graph.scores, scores)
        np.testing.assert_array_equal(graph.statistics.histogram, counts)
        assert graph.statistics.total == total
    assert net.statistics()["graph_launches"] == 39 and net.statistics()["capture_failures"] == 0
    assert plainly.statistics()["graph_launches"] == 0
    assert net.frame_copies == 0
    plainly.close()
    net.close()
    memory.close()


def test_a_mapping_of_somebody_elses_is_read_where_it_lies(gpu: Cuda) -> None:
    size, spec, memory = (640, 480), spec_of((160, 120), 1), gpu.memory()
    theirs = mmap.mmap(-1, 640 * 480)
    buffer = memory.register(memoryview(theirs))
    net = network(gpu, spec, projection(spec.size, 1, 8))
    content = filled(buffer, "mono8", size, 640, seed=3)
    for sequence in range(3):
        found = ran(net, frame_in(buffer, "mono8", size, 640, sequence))
    assert found.statistics.total == int(content.sum(dtype=np.int64)) and net.frame_copies == 0
    plain = FrameBuffer(memoryview(bytearray(640 * 480)), 0)
    ran(net, frame_in(plain, "mono8", size, 640, 9))
    assert net.frame_copies == 1, "memory that the GPU does not reach is copied, and counted"
    net.close()
    memory.unregister(buffer)
    memory.close()


@pytest.mark.timeout(1200)
def test_memory_is_flat_over_100_000_frames(gpu: Cuda) -> None:
    size, spec, memory = (640, 480), spec_of((160, 120), 1), gpu.memory()
    net = network(gpu, spec, projection(spec.size, 1, 8))
    buffers = memory.allocate(640 * 480, 4)
    for number, buffer in enumerate(buffers):
        filled(buffer, "mono8", size, 640, number)
    for number in range(WARM):
        ran(net, frame_in(buffers[number % 4], "mono8", size, 640, number + 1))
    free, resident = gpu.free_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(FRAMES):
        ran(net, frame_in(buffers[number % 4], "mono8", size, 640, number + 1))
    assert gpu.free_bytes() == free, "not a byte of the GPU's memory"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 1024, "less than 1 MiB"
    net.close()
    memory.close()


def test_compute_sanitizer_finds_nothing(gpu: Cuda) -> None:
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).is_file():
        pytest.skip("no compute-sanitizer")
    command = [tool, "--error-exitcode", "9", "--leak-check", "no", sys.executable, "-m", "tests.gpu.one_pass"]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "passed" in done.stdout
