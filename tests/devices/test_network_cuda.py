"""The whole path on the stand-in of the GPU: camera buffer, kernels, engine, reducer, findings; held to the CPU's network."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.devices.cuda import Cuda, CudaMemory
from appliance.devices.memory_plain import PlainMemory
from appliance.devices.network_cuda import MOST_KINDS, CudaNetwork, Structs, Wanted
from appliance.inspect.decode import decode_reduced
from appliance.model import pixels
from appliance.model.bundle import Bundle
from appliance.model.golden import GoldenError, frame_of, load_golden, replay_all
from appliance.model.kernel_plan import ExtremesStruct, FrameStruct, SumsStruct, kernel_plan
from appliance.model.preprocess import NO_GAINS
from appliance.ports import EngineError, EngineLost, Findings, Frame, FrameMemory, Network
from appliance.wiring.models import cpu_network
from tests.fakes.fake_engine import FakeEngine
from tests.fakes.fake_libcuda import Gpu, Refused
from tests.fakes.fake_pycuda import installed
from tests.kernels.host_library import host_library
from tests.model.tiny import classifier, frames, tiny_bundle

NEVER_NS = 2**62
SIZE = (96, 80)
PIXELS = ("mono8", "mono12", "rgb8", "bgr8", "yuyv", "uyvy", "nv12", "bayer_rggb8", "bayer_grbg12")


def cubin(chip: int = 87) -> bytes:
    """The header of one, as CUDA 12.6 writes it."""
    image = bytearray(64)
    image[:4], image[7], image[8] = b"\x7fELF", 0x33, 7
    image[18:20] = (190).to_bytes(2, "little")
    image[48:52] = (0x00500500 + chip).to_bytes(4, "little")
    return bytes(image)


@dataclass
class Box:
    gpu: Gpu
    cuda: Cuda
    memory: CudaMemory

    def network(self, bundle: Bundle, onnx: bytes | None = None, gains: Any = NO_GAINS, **changes: Any) -> CudaNetwork:
        """As wiring puts one together."""
        output, spec = bundle.output, bundle.input
        whole = tuple(filter(None, (output.tensor, output.score)))
        engine = FakeEngine(self.gpu, onnx or bundle.onnx.read_bytes())
        given = {
            "identity": {"name": bundle.name, "digest": bundle.digest, "precision": bundle.precision}, "task": bundle.task,
            "input_name": spec.tensor, "input_shape": (1, spec.channels, spec.size[1], spec.size[0]),
            "wanted": Wanted(whole, output.map, output.low, output.high),
            "plan_for": partial(kernel_plan, spec=spec, gains=gains), "check": pixels.checked_rows,
            "decode": partial(decode_reduced, bundle=bundle), "structs": Structs(FrameStruct, SumsStruct, ExtremesStruct),
        }  # fmt: skip
        return CudaNetwork(self.cuda, engine, **{**given, **changes})


@pytest.fixture
def box() -> Iterator[Box]:
    gpu = Gpu(host_library())
    with installed(gpu):
        cuda = Cuda.open(gpu.library, gpu.library)
        cuda.load_kernels(cubin())
        memory = cuda.memory()
        yield Box(gpu, cuda, memory)
        memory.close()
        cuda.close()
    assert gpu.left_pushed() == []


_sequence = iter(range(1, 10**9))


def camera_frame(
    memory: FrameMemory, pixel: str = "mono8", size: tuple[int, int] = SIZE, more: int = 0, seed: int = 0, level: int = 90
) -> Frame:  # fmt: skip
    """A picture in a buffer of ``memory``, its rows ``more`` bytes further apart than they must be."""
    pitch = pixels.bytes_per_row(pixel, size[0]) + more
    count = pixels.frame_bytes(pixel, *size, pitch)
    (buffer,) = memory.allocate(count, 1)
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 90, count, dtype=np.uint8)
    buffer.memory[:count] = memoryview((noise + level).astype(np.uint8))
    return Frame(buffer.memory[:count], buffer.address, pitch, size, pixel, next(_sequence), 5, 7, lambda: None)


def look(network: Network, frame: Frame, roi: Any = None) -> Findings:
    found = network.wait(network.submit(frame, roi), NEVER_NS)
    assert found is not None
    return found


def told(found: Findings) -> tuple[Any, ...]:
    """Copies: the next submit writes over the arrays."""
    score_map = None if found.score_map is None else found.score_map.copy()
    told = found.statistics
    return found.scores.copy(), score_map, told.histogram.copy(), told.total, told.laplacian_variance


def same(found: tuple[Any, ...], wanted: tuple[Any, ...], tolerance: float = 0.0) -> None:
    np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=tolerance)
    if wanted[1] is None:
        assert found[1] is None
    else:
        assert np.abs(found[1].astype(int) - wanted[1].astype(int)).max() <= 255 * tolerance
    np.testing.assert_array_equal(found[2], wanted[2])
    assert found[3] == wanted[3] and found[4] == pytest.approx(wanted[4], rel=1e-6, abs=1e-6)


# --- the findings are the CPU's ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pixel", PIXELS)
@pytest.mark.parametrize(("task", "channels"), [("classify", 1), ("classify", 3), ("anomaly", 1)])
def test_the_findings_are_those_of_the_network_on_the_cpu(
    box: Box, tmp_path: Path, pixel: str, task: str, channels: int
) -> None:
    bundle = tiny_bundle(tmp_path / "b", task, channels)
    network, reference = box.network(bundle), cpu_network(bundle)
    tolerance = load_golden(bundle).tolerance
    for seed, roi in enumerate((None, None, (10, 6, 70, 66), (10, 6, 70, 66))):  # plain and by graph
        frame = camera_frame(box.memory, pixel, more=32, seed=seed)
        same(told(look(network, frame, roi)), told(look(reference, frame, roi)), tolerance)
    assert network.frame_copies == 0 and network.statistics()["graph_launches"] == 2
    network.close()


def test_the_shape_of_the_findings_is_the_ports(box: Box, tmp_path: Path) -> None:
    network: Network = box.network(tiny_bundle(tmp_path / "b", "anomaly"))
    found = look(network, camera_frame(box.memory))
    assert found.task == "anomaly" and found.scores.shape == (1,) and found.scores.dtype == np.float32
    assert found.score_map is not None and found.score_map.shape == (32, 32) and found.score_map.dtype == np.uint8
    assert found.statistics.histogram.dtype == np.int64 and type(found.statistics.total) is int and found.candidates is None
    assert found.preprocess_ms > 0 and found.infer_ms > 0
    assert network.identity["engine"] == "fake-1.0/sm87" and network.identity["name"] == "tiny"
    network.close()


def test_a_score_tensor_and_a_turned_map_are_decoded_as_on_the_cpu(box: Box, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", "anomaly", output={"map": "map", "low": 0.9, "high": 0.1})
    network, reference = box.network(bundle), cpu_network(bundle)
    for seed in range(3):
        frame = camera_frame(box.memory, seed=seed)
        same(told(look(network, frame)), told(look(reference, frame)), 0.02)
    network.close()


def test_white_balance_reaches_the_kernels(box: Box, tmp_path: Path) -> None:
    bundle, gains = tiny_bundle(tmp_path / "b", "classify", 3), (1.5, 1.0, 1.25)
    network, reference = box.network(bundle, gains=gains), cpu_network(bundle, gains)
    frame = camera_frame(box.memory, "rgb8", level=60)
    same(told(look(network, frame)), told(look(reference, frame)), 0.02)
    network.close()


# --- golden vectors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "channels"), [("classify", 1), ("classify", 3), ("anomaly", 1)])
def test_golden_vectors_pass_and_are_no_copies_of_frames(box: Box, tmp_path: Path, task: str, channels: int) -> None:
    bundle = tiny_bundle(tmp_path / "b", task, channels)
    network = box.network(bundle)
    golden = replay_all(network, bundle)
    assert network.last_input is not None
    np.testing.assert_allclose(network.last_input, golden.inputs[-1], rtol=0, atol=1e-4)
    assert set(network.last_outputs) == set(network.outputs)
    told_ = network.statistics()
    assert network.frame_copies == 0 and told_["plain_launches"] == 1 and told_["graph_launches"] == len(golden) - 1
    look(network, camera_frame(box.memory))
    assert network.last_input is None and network.last_outputs == {}, "a camera's frame brings no tensors back"
    network.close()


def test_golden_vectors_name_a_wrong_engine(box: Box, bundle: Bundle) -> None:
    network = box.network(bundle, onnx=classifier(weight=3.0).SerializeToString())
    with pytest.raises(GoldenError, match="output: the engine's scores differs") as raised:
        replay_all(network, bundle)
    assert raised.value.stage == "output"
    network.close()


def test_golden_vectors_name_a_wrong_preprocess(box: Box, bundle: Bundle) -> None:
    wrong = bundle.input.model_copy(update={"mean": (0.4,)})
    network = box.network(bundle, plan_for=partial(kernel_plan, spec=wrong))
    with pytest.raises(GoldenError) as raised:
        replay_all(network, bundle)
    assert raised.value.stage == "input"
    network.close()


class Forgetful(FakeEngine):
    """Whose captured work does nothing: what stands in its outputs is the last plain run's."""

    def enqueue(self, stream: int) -> None:
        if not self._gpu.streams[stream].capture:
            super().enqueue(stream)


def test_golden_vectors_go_the_way_that_parts_go(box: Box, tmp_path: Path) -> None:
    """A graph that does not do what the plain launch does judges parts by an old picture, and no vector would notice."""
    bundle = tiny_bundle(tmp_path / "b")
    network = box.network(bundle)
    engine = Forgetful(box.gpu, bundle.onnx.read_bytes())
    forgetful = CudaNetwork(
        box.cuda, engine, {}, "classify", "image", engine.inputs["image"], Wanted(("scores",)),
        partial(kernel_plan, spec=bundle.input), pixels.checked_rows, partial(decode_reduced, bundle=bundle),
        Structs(FrameStruct, SumsStruct, ExtremesStruct),
    )  # fmt: skip
    dark, bright = camera_frame(box.memory, level=0), camera_frame(box.memory, level=160)
    assert np.isfinite(look(forgetful, dark).scores).all(), "the plain launch is right"
    assert np.isnan(look(forgetful, bright).scores).all(), "what the engine leaves out is no number, never the answer before"
    replay_all(network, bundle)
    with pytest.raises(GoldenError):
        replay_all(forgetful, bundle)
    network.close()
    forgetful.close()


def test_a_time_that_cannot_be_read_makes_no_part_blind(box: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(first: int, second: int) -> float:
        raise EngineError("CUDA_ERROR_NOT_READY")

    network = box.network(tiny_bundle(tmp_path / "b"))
    monkeypatch.setattr(network._marks, "milliseconds", unread)
    found = look(network, camera_frame(box.memory))
    assert np.isfinite(found.scores).all() and found.infer_ms == 0 and network.statistics()["unread_times"] == 2
    network.close()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "tiny")


# --- graphs ---------------------------------------------------------------------------------------------------------


def test_a_graph_gives_the_bits_of_the_plain_launch(box: Box, tmp_path: Path) -> None:
    network = box.network(tiny_bundle(tmp_path / "b", "anomaly"))
    frame = camera_frame(box.memory)
    plain = told(look(network, frame))
    by_graph = told(look(network, frame))
    assert network.statistics() | {"frame_copies": 0} == {
        "plain_launches": 1, "graph_launches": 1, "capture_failures": 0, "unread_times": 0, "graphs": 1, "kinds": 1,
        "frame_copies": 0,
    }  # fmt: skip
    assert all(np.array_equal(one, two) for one, two in zip(plain, by_graph))
    network.close()


def test_a_ring_of_buffers_with_pitches_of_their_own_goes_through_one_graph(box: Box, bundle: Bundle) -> None:
    network, reference = box.network(bundle), cpu_network(bundle)
    ring = [camera_frame(box.memory, more=16 * index, seed=index, level=20 * index) for index in range(5)]
    for _ in range(3):
        for frame in ring:
            same(told(look(network, frame)), told(look(reference, frame)), 0.02)
    assert network.statistics()["graphs"] == 1 and network.statistics()["graph_launches"] == 14
    network.close()


def test_a_frame_costs_one_launch_and_one_event(box: Box, bundle: Bundle) -> None:
    network = box.network(bundle)
    frame = camera_frame(box.memory)
    look(network, frame), look(network, frame)
    box.gpu.calls, box.gpu.keep_calls = [], True
    look(network, frame)
    assert box.gpu.calls == ["graph", "event"]
    network.close()


def test_the_frame_is_read_once_where_it_lies(box: Box, bundle: Bundle) -> None:
    network = box.network(bundle)
    frame = camera_frame(box.memory)
    look(network, frame)
    for _ in range(2):
        box.gpu.kernels.take_bytes_read()
        look(network, frame, (8, 8, 64, 64))
        assert box.gpu.kernels.take_bytes_read() == 64 * 64
    network.close()


def test_warming_makes_the_first_frame_as_fast_as_the_next(box: Box, bundle: Bundle) -> None:
    network = box.network(bundle)
    blank = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    network.warm(frame_of(blank, "mono8"), None)
    made = box.gpu.allocations
    look(network, camera_frame(box.memory))
    assert network.statistics()["graph_launches"] == 1 and network.frame_copies == 0
    assert box.gpu.allocations == made + 1, "the camera's buffer alone"
    network.close()


def test_a_capture_that_fails_leaves_the_plain_launch_and_is_told_once(
    box: Box, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    box.gpu.capturable = False
    network, reference = box.network(bundle), cpu_network(bundle)
    ring = [camera_frame(box.memory, seed=index) for index in range(4)]
    with caplog.at_level(logging.WARNING):
        for frame in (*ring, *ring):
            same(told(look(network, frame)), told(look(reference, frame)), 0.02)
        look(network, ring[0], (0, 0, 64, 64)), look(network, ring[0], (0, 0, 64, 64))
    figures = network.statistics()
    assert (figures["graphs"], figures["capture_failures"], figures["plain_launches"]) == (0, 2, 10)
    assert [one.message for one in caplog.records if "no CUDA graph" in one.message] == [caplog.records[0].message]
    assert "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" in caplog.text
    network.close()


# --- copies, kinds, memory --------------------------------------------------------------------------------------------


def test_a_cameras_frame_that_the_gpu_does_not_reach_is_copied_and_counted(box: Box, bundle: Bundle) -> None:
    network, reference = box.network(bundle), cpu_network(bundle)
    plain = PlainMemory()
    for seed in range(4):
        frame = camera_frame(plain, more=8, seed=seed)
        assert frame.address == 0
        same(told(look(network, frame)), told(look(reference, frame)), 0.02)
    assert network.frame_copies == 4 and network.statistics()["graph_launches"] == 3
    look(network, frame_of(frames()[0], "mono8"))
    look(network, replace(camera_frame(box.memory), sequence=0))
    assert network.frame_copies == 4, "a golden vector and a mapped frame are not copies"
    look(network, replace(camera_frame(plain), sequence=0))
    assert network.frame_copies == 5, "the first frame of a camera that counts from 0 is one"
    network.close()


def test_nothing_is_allocated_after_the_warm_up(box: Box, bundle: Bundle) -> None:
    network = box.network(bundle)
    ring = [camera_frame(box.memory, seed=index) for index in range(4)]
    golden = frame_of(frames()[2], "mono8")
    for frame in (*ring, golden, golden):
        look(network, frame)
    before = (box.gpu.allocations, box.gpu.live(), len(box.gpu.events), box.gpu.live_handles())
    staging, kept = network._staging, network.last_outputs["scores"]
    for index in range(3000):
        look(network, golden if index % 100 == 99 else ring[index % 4])
    assert (box.gpu.allocations, box.gpu.live(), len(box.gpu.events), box.gpu.live_handles()) == before
    assert network._staging is staging and network.last_outputs["scores"] is kept
    network.close()


def test_kinds_of_frames_are_bounded_and_the_cameras_own_stays(box: Box, bundle: Bundle) -> None:
    network, reference = box.network(bundle), cpu_network(bundle)
    camera = camera_frame(box.memory)
    look(network, camera), look(network, camera)
    for side in range(64, 64 + 4 * MOST_KINDS, 2):
        other = camera_frame(box.memory, size=(side, side))
        same(told(look(network, other)), told(look(reference, other)), 0.02)
        look(network, camera)
    assert network.statistics()["kinds"] == MOST_KINDS and network.statistics()["graphs"] == 1
    before = box.gpu.live("device")
    look(network, camera_frame(box.memory, size=(150, 150)))
    assert box.gpu.live("device") == before
    network.close()


def test_closing_frees_everything_once(box: Box, bundle: Bundle) -> None:
    before = box.gpu.live(), box.gpu.live_handles()
    network = box.network(bundle)
    memory = box.cuda.memory()
    for frame in (camera_frame(memory), camera_frame(memory), frame_of(frames()[0], "mono8")):
        look(network, frame)
    network.close()
    network.close()
    memory.close()
    assert (box.gpu.live(), box.gpu.live_handles()) == before


def test_a_network_that_cannot_be_made_leaves_nothing(box: Box, tmp_path: Path) -> None:
    box.gpu.limit = 9000
    with pytest.raises(EngineError, match="MiB left"):
        box.network(tiny_bundle(tmp_path / "b", "anomaly"))
    assert box.gpu.live() == 0 and box.gpu.live_handles() == 0


def test_two_networks_share_the_gpu(box: Box, tmp_path: Path) -> None:
    bundles = [tiny_bundle(tmp_path / "one"), tiny_bundle(tmp_path / "two", "anomaly")]
    pairs = [(box.network(bundle), cpu_network(bundle)) for bundle in bundles]
    for seed in range(3):
        frame = camera_frame(box.memory, seed=seed)
        for network, reference in pairs:
            same(told(look(network, frame)), told(look(reference, frame)), 0.02)
    for network, _ in pairs:
        network.close()


# --- late, wrong, broken ------------------------------------------------------------------------------------------------


def test_an_answer_after_the_deadline_is_none_and_the_gpu_has_let_go_of_the_frame(box: Box, bundle: Bundle) -> None:
    network = box.network(bundle)
    frame = camera_frame(box.memory)
    assert network.wait(network.submit(frame, None), 1) is None
    assert not any(stream.queue for stream in box.gpu.streams.values())
    assert look(network, frame).scores.shape == (3,)
    network.close()


def test_nothing_is_there_before_it_was_waited_for(box: Box, bundle: Bundle) -> None:
    network = box.network(bundle)
    look(network, camera_frame(box.memory, level=20))
    before = bytes(network._back.array)
    ticket = network.submit(camera_frame(box.memory, level=120), None)
    assert bytes(network._back.array) == before
    network.wait(ticket, NEVER_NS)
    assert bytes(network._back.array) != before
    network.close()


def test_a_ticket_that_does_not_wait_is_an_error(box: Box, bundle: Bundle) -> None:
    network = box.network(bundle)
    ticket = network.submit(camera_frame(box.memory), None)
    with pytest.raises(EngineError, match="not the one that waits"):
        network.wait(ticket + 1, NEVER_NS)
    assert network.wait(ticket, NEVER_NS) is not None
    with pytest.raises(EngineError, match="not the one that waits"):
        network.wait(ticket, NEVER_NS)
    network.close()


def test_a_frame_nobody_waited_for_is_over_before_the_next_begins(box: Box, bundle: Bundle) -> None:
    network, reference = box.network(bundle), cpu_network(bundle)
    network.submit(camera_frame(box.memory, level=10), None)
    frame = camera_frame(box.memory, level=120)
    network.submit(frame, None)
    engine: Any = network._engine
    assert engine.runs == 1
    same(told(look(network, frame)), told(look(reference, frame)), 0.02)
    network.close()


@pytest.mark.parametrize(
    ("changes", "roi", "said"),
    [
        ({"pitch_bytes": 95}, None, "cannot hold"), ({"size": (96, 90)}, None, "needs"),
        ({}, (60, 0, 60, 20), "beyond the frame"),
        ({"pixel": "h264"}, None, "h264"), ({"pixel": "mono12", "size": (40, 80), "pitch_bytes": 95}, None, "odd"),
    ],
)  # fmt: skip
def test_a_frame_that_does_not_fit_is_refused_before_the_gpu_is_lost(
    box: Box, bundle: Bundle, changes: dict[str, Any], roi: Any, said: str
) -> None:
    network = box.network(bundle)
    frame = camera_frame(box.memory)
    with pytest.raises(EngineError, match=said):
        network.submit(replace(frame, **changes), roi)
    assert box.gpu.fault == 0 and look(network, frame).scores.shape == (3,)
    network.close()


def test_every_layout_is_looked_at(box: Box, bundle: Bundle) -> None:
    network = box.network(bundle)
    frame, words = camera_frame(box.memory), camera_frame(box.memory, "mono12")
    for one in (frame, frame, words, words):
        look(network, one)
    short = replace(frame, memory=frame.memory[:4000])
    for wrong in (short, replace(frame, pitch_bytes=500), replace(words, address=words.address + 1)):
        with pytest.raises(EngineError, match="needs|odd"):
            network.submit(wrong, None)
    assert box.gpu.fault == 0
    network.close()


def test_without_that_look_a_short_frame_loses_the_gpu(box: Box, bundle: Bundle) -> None:
    """The stand-in bites: what the check prevents is a fault that stays."""
    network = box.network(bundle, check=lambda *anything: None)
    frame = camera_frame(box.memory)
    ticket = network.submit(replace(frame, size=(96, 4000)), None)
    with pytest.raises(EngineError, match="illegal memory access.*new process"):
        network.wait(ticket, NEVER_NS)
    with pytest.raises(EngineError, match="illegal memory access"):
        network.submit(frame, None)
    box.gpu.fault = 0  # a new process
    network.close()


@pytest.mark.parametrize("by_graph", [False, True])
def test_a_gpu_that_something_else_lost_is_told_as_lost(box: Box, bundle: Bundle, by_graph: bool) -> None:
    """A camera's library works in the same context. Its fault shows at our next call, and every part would be blind for good."""
    network, frame = box.network(bundle), camera_frame(box.memory)
    for _ in range(2 if by_graph else 0):
        look(network, frame)
    box.gpu.fault = 700
    with pytest.raises(EngineLost):
        network.submit(frame, None)
    box.gpu.fault = 0
    network.close()


def test_an_image_that_lacks_a_kernel_costs_no_memory_a_frame(box: Box, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    network, frame = box.network(bundle), camera_frame(box.memory)

    def lacks(name: str, layout: list[str]) -> Any:
        raise EngineError(f"kernel {name}: named symbol not found")

    monkeypatch.setattr(box.cuda, "kernel", lacks)
    before = box.gpu.live()
    for _ in range(3):
        with pytest.raises(EngineError, match="named symbol"):
            network.submit(frame, None)
    assert box.gpu.live() == before
    network.close()


def test_a_gpu_lost_as_tensors_are_fetched_is_told_as_lost(box: Box, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    network, golden = box.network(bundle), frame_of(np.zeros((SIZE[1], SIZE[0]), np.uint8), "mono8")
    ticket = network.submit(golden, None)
    box.cuda.finish()
    fetch = box.cuda.fetch

    def lost(target: Any, address: int) -> None:
        fetch(target, address)
        box.gpu.fault = 700

    monkeypatch.setattr(box.cuda, "fetch", lost)
    monkeypatch.setattr(network, "_kept", {"image": np.empty(network._engine.inputs["image"], np.float32)})
    with pytest.raises(EngineLost):
        network.wait(ticket, NEVER_NS)
    box.gpu.fault = 0
    network.close()


def test_an_engine_that_fails_is_an_error_and_the_next_frame_goes_on(box: Box, bundle: Bundle) -> None:
    network = box.network(bundle)
    engine: Any = network._engine
    frame = camera_frame(box.memory)
    engine.fails = True
    with pytest.raises(EngineError, match="enqueue gave False"):
        network.submit(frame, None)
    assert not any(stream.queue for stream in box.gpu.streams.values()), "the frame goes back to its driver now"
    engine.fails = False
    assert look(network, frame).scores.shape == (3,)
    network.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input_shape": (1, 3, 32, 32)}, "the engine takes image \\[1, 1, 32, 32\\]"), ({"input_name": "pixels"}, "takes image"),
        ({"wanted": Wanted(("logits",))}, "no output logits, only scores"),
    ],
)  # fmt: skip
def test_an_engine_of_another_model_is_refused(box: Box, bundle: Bundle, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineError, match=said):
        box.network(bundle, **changes)
    assert box.gpu.live() == 0


# --- traps ------------------------------------------------------------------------------------------------------------------


def test_an_address_in_a_kernels_argument_is_frozen_by_the_graph(box: Box, bundle: Bundle) -> None:
    """Trap 20: a descriptor for each frame instead of one that is written; the second frame gets the first one's answer."""

    class Careless(CudaNetwork):
        def submit(self, frame: Frame, roi: Any) -> int:
            own = self._mapped(16)
            written: Any = own.array
            self._descriptor = FrameStruct.from_buffer(written)
            kind = self._kinds.get((frame.size, frame.pixel, roi)) or self._new_kind(frame.size, frame.pixel, roi)
            _, struct, halved, sums = kind.gather.args[1:]  # type: ignore[attr-defined]
            kind.gather = partial(kind.gather.func, kind.gather.args[0], own.address, struct, halved, sums)  # type: ignore[attr-defined]
            return super().submit(frame, roi)

    careful = box.network(bundle)
    network = Careless(
        box.cuda, FakeEngine(box.gpu, bundle.onnx.read_bytes()), {}, "classify", "image", (1, 1, 32, 32), Wanted(("scores",)),
        partial(kernel_plan, spec=bundle.input), pixels.checked_rows, partial(decode_reduced, bundle=bundle),
        Structs(FrameStruct, SumsStruct, ExtremesStruct),
    )  # fmt: skip
    dark, bright = camera_frame(box.memory, level=0), camera_frame(box.memory, level=160)
    for one in (careful, network):
        look(one, dark), look(one, dark)
    right, wrong = told(look(careful, bright)), told(look(network, bright))
    assert right[3] != wrong[3] == told(look(careful, dark))[3]
    network.close()
    careful.close()


def test_an_engine_captured_before_its_first_run_breaks_the_capture(box: Box, bundle: Bundle) -> None:
    """Trap 20: without the plain run the engine takes its memory inside the capture."""
    engine = FakeEngine(box.gpu, bundle.onnx.read_bytes())
    tensors = {name: box.cuda.allocate(4096) for name in ("image", "scores")}
    for name, memory in tensors.items():
        engine.bind(name, memory.address)
    with pytest.raises(EngineError, match="not permitted when stream is capturing"):
        box.cuda.capture(lambda: engine.enqueue(box.cuda.stream))
    engine.enqueue(box.cuda.stream)
    box.cuda.finish()
    box.cuda.capture(lambda: engine.enqueue(box.cuda.stream)).free()
    engine.close()
    for memory in tensors.values():
        memory.free()


def test_an_unbound_tensor_is_refused(box: Box, bundle: Bundle) -> None:
    engine = FakeEngine(box.gpu, bundle.onnx.read_bytes())
    with pytest.raises(EngineError, match="image, scores: bound to no address"):
        engine.enqueue(box.cuda.stream)


def test_an_engine_in_another_context_than_the_primary_is_refused(box: Box, bundle: Bundle) -> None:
    """Trap 10: autoinit makes a context of its own, and what lives in the primary one is void there."""
    network = box.network(bundle)
    frame = camera_frame(box.memory)
    import pycuda.autoinit as second  # type: ignore[import-not-found]

    with pytest.raises(EngineError, match="invalid resource handle"):
        network.submit(frame, None)
    second.context.pop()
    assert look(network, frame).scores.shape == (3,)
    network.close()


def test_a_freed_buffer_in_flight_loses_the_gpu(box: Box, bundle: Bundle) -> None:
    network = box.network(bundle)
    memory = box.cuda.memory()
    ticket = network.submit(camera_frame(memory), None)
    memory.close()
    with pytest.raises(EngineError, match="illegal memory access"):
        network.wait(ticket, NEVER_NS)
    box.gpu.fault = 0
    network.close()


def test_the_arguments_stand_where_the_kernels_look_for_them(box: Box) -> None:
    """struct's letters and C's alignment agree for every launch: a struct by value stands at a multiple of its own."""
    from tests.fakes.fake_libcuda import _Gather, _Reduce, _Sample

    plan = ctypes.sizeof(kernel_plan(SIZE, "mono8", None, tiny_spec()).struct)
    import struct

    for layout, kind in ((f"P{plan}sPP", _Gather), (f"{plan}siPPPPPPP", _Sample), ("PiffPP", _Reduce)):
        last = kind._fields_[-1][0]
        assert struct.calcsize(layout) == getattr(kind, last).offset + getattr(kind, last).size


def tiny_spec() -> Any:
    from appliance.model.bundle import InputSpec

    return InputSpec(tensor="image", size=(32, 32), channels=1, mean=(0.5,), std=(1.0,))


def test_the_stand_in_refuses_what_reaches_beyond(box: Box) -> None:
    piece = box.cuda.allocate(64)
    with pytest.raises(Refused):
        box.gpu.reach(box.gpu.primary, piece.address, 65)
    box.gpu.fault = 0
    piece.free()
