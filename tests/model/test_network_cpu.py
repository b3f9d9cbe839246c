"""The CPU network behind its port: findings, times, tickets, errors in words, and no onnxruntime until it is needed."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import load_from_string

from appliance.devices.memory_plain import PlainMemory
from appliance.devices.network_cpu import Engine
from appliance.model.bundle import Bundle, BundleError, load_bundle
from appliance.model.golden import frame_of
from appliance.model.preprocess import prepare
from appliance.model.preprocess_cv2 import CvSteps
from appliance.ports import EngineError, Findings, Frame, FrameMemory, Network
from appliance.wiring import models
from appliance.wiring.models import cpu_engine, cpu_network, network_on
from tests.model.tiny import SIDE, classifier, frames, tiny_bundle

NEVER_NS = 2**62
SHIPPED = Path(__file__).resolve().parents[2] / "models/cap-28mm"


def test_a_frame_in_findings_out(bundle: Bundle) -> None:
    network: Network = cpu_network(bundle)
    dark, bright = frames()[0], frames()[-1]
    found = network.wait(network.submit(frame_of(bright, "mono8"), None), NEVER_NS)
    assert found is not None and found.task == "classify" and found.score_map is None and found.candidates is None
    assert found.scores.dtype == np.float32 and found.scores.shape == (3,) and found.scores.sum() == pytest.approx(1, abs=1e-5)
    assert int(found.scores.argmax()) == 2
    assert found.statistics.total == int(bright.sum()) and int(found.statistics.histogram.sum()) == bright.size
    assert found.preprocess_ms > 0 and found.infer_ms > 0
    again = network.wait(network.submit(frame_of(dark, "mono8"), None), NEVER_NS)
    assert again is not None and int(again.scores.argmax()) == 1


def test_the_roi_is_what_is_judged(bundle: Bundle) -> None:
    network = cpu_network(bundle)
    picture = np.full((96, 128), 128, np.uint8)
    picture[20:84, 40:104] = 250
    inside = network.wait(network.submit(frame_of(picture, "mono8"), (40, 20, 64, 64)), NEVER_NS)
    whole = network.wait(network.submit(frame_of(picture, "mono8"), None), NEVER_NS)
    assert inside is not None and whole is not None
    assert inside.scores[2] > 0.7 > 0.5 > whole.scores[2]


def test_an_anomaly_network_gives_a_score_and_a_map_of_bytes(tmp_path: Path) -> None:
    network = cpu_network(tiny_bundle(tmp_path / "b", "anomaly"))
    picture = np.full((SIDE, SIDE), 40, np.uint8)
    picture[3, 5] = 204
    found = network.wait(network.submit(frame_of(picture, "mono8"), None), NEVER_NS)
    assert found is not None and found.score_map is not None
    assert found.score_map.shape == (SIDE, SIDE) and found.score_map.dtype == np.uint8
    assert np.unravel_index(found.score_map.argmax(), found.score_map.shape) == (3, 5)
    assert found.scores[0] == pytest.approx(0.8, abs=0.01)


def test_the_identity_is_the_ledgers(bundle: Bundle) -> None:
    identity = cpu_network(bundle).identity
    assert identity["name"] == "tiny" and identity["digest"] == bundle.digest and identity["precision"] == "int8"
    assert identity["engine"].startswith("onnxruntime-") and identity["engine"].endswith("/cpu")


def test_the_same_frame_gives_the_same_bits(bundle: Bundle) -> None:
    network = cpu_network(bundle)
    first = [network.wait(network.submit(frame_of(one, "mono8"), None), NEVER_NS) for one in frames()]
    second = [network.wait(network.submit(frame_of(one, "mono8"), None), NEVER_NS) for one in frames()]
    assert all(one is not None and two is not None and np.array_equal(one.scores, two.scores) for one, two in zip(first, second))


def test_results_come_into_the_same_arrays_and_nothing_is_made_anew(bundle: Bundle) -> None:
    network = cpu_network(bundle)
    network.wait(network.submit(frame_of(frames()[0], "mono8"), None), NEVER_NS)
    first, given = network.last_outputs["scores"], network.last_input
    network.wait(network.submit(frame_of(frames()[-1], "mono8"), None), NEVER_NS)
    assert network.last_outputs["scores"] is first and network.last_input is not None and given is not None
    assert network.last_input.ctypes.data == given.ctypes.data


def test_a_tensor_at_another_place_is_found(bundle: Bundle) -> None:
    engine = Engine(bundle.onnx.read_bytes(), "tiny")
    places = [np.full((1, 1, SIDE, SIDE), level, np.float32) for level in (-0.4, 0.0, 0.4)]
    apart = [engine.run("image", one)["scores"].copy() for one in (*places, *places)]
    assert all(np.array_equal(one, two) for one, two in zip(apart[:3], apart[3:]))
    assert [int(one.argmax()) for one in apart[:3]] == [1, 0, 2]


@pytest.mark.parametrize("pixel", ["mono8", "bgr8"])
@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_asked_for_after_the_scores_are_the_references(tmp_path: Path, pixel: str, channels: int) -> None:
    made = tiny_bundle(tmp_path / "b", "classify", channels)
    network = cpu_network(made)
    rng = np.random.default_rng(3)
    for number in range(5):
        shape = (400 + number, 330) if pixel == "mono8" else (400 + number, 330, 3)
        frame = frame_of(rng.integers(0, 256, shape).astype(np.uint8), pixel)
        found = network.wait(network.submit(frame, None), NEVER_NS)
        memory = np.frombuffer(frame.memory, np.uint8)
        wanted = prepare(memory, frame.size, frame.pitch_bytes, pixel, None, made.input)
        assert found is not None and isinstance(found, Findings)
        assert np.array_equal(found.statistics.histogram, wanted.histogram) and found.statistics.total == wanted.total
        assert found.statistics.laplacian_variance == pytest.approx(wanted.laplacian_variance, rel=1e-9)


def test_statistics_that_nobody_asks_for_cost_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    plain = CvSteps.histogram
    monkeypatch.setattr(CvSteps, "histogram", lambda self, grey: counted.append(1) or plain(self, grey))
    network = cpu_network(bundle)
    found = network.wait(network.submit(frame_of(frames()[0], "mono8"), None), NEVER_NS)
    assert found is not None and not counted
    told = found.statistics
    assert told.histogram is told.histogram and told.total == int(frames()[0].sum()) and len(counted) == 1


def test_a_model_that_is_not_the_bundles_is_refused_in_words(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"takes image \[1, 3, 32, 32\]; model.yaml says image \[1, 1, 32, 32\]"):
        network_on(bundle, Engine(classifier(3).SerializeToString(), "tiny"), "tried")
    with pytest.raises(EngineError, match="is not a model that can be run"):
        cpu_engine(b"no model", "b.onnx")


def test_the_engine_runs_the_graph_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    class Told(Engine):
        def __init__(self, onnx: bytes, what: str) -> None:
            given.append(load_from_string(onnx))
            super().__init__(onnx, what)

    monkeypatch.setattr(models, "Engine", Told)
    monkeypatch.setattr(models.engine_openvino, "installed", lambda: False)
    network = cpu_network(load_bundle(SHIPPED))
    assert any(node.op_type == "Clip" for node in given[0].graph.node)
    assert network.why == "OpenVINO is not installed"


def test_a_ticket_that_does_not_wait_is_an_error(bundle: Bundle) -> None:
    network = cpu_network(bundle)
    ticket = network.submit(frame_of(frames()[0], "mono8"), None)
    network.wait(ticket, NEVER_NS)
    with pytest.raises(EngineError, match="not the one that waits"):
        network.wait(ticket, NEVER_NS)


@pytest.mark.parametrize(
    ("pixel", "roi", "said"), [("h264", None, "cannot be judged"), ("mono8", (0, 0, 999, 2), "beyond the frame")]
)
def test_a_frame_that_does_not_fit_is_an_engine_error_and_the_next_one_goes_on(
    bundle: Bundle, pixel: str, roi: tuple[int, int, int, int] | None, said: str
) -> None:
    network = cpu_network(bundle)
    with pytest.raises(EngineError, match=said):
        network.wait(network.submit(frame_of(frames()[0], pixel), roi), NEVER_NS)
    assert network.wait(network.submit(frame_of(frames()[0], "mono8"), None), NEVER_NS) is not None


def test_white_balance_reaches_the_preprocess(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "b", "classify", 3)
    plain, gained = cpu_network(made), cpu_network(made, (1.5, 1.5, 1.5))
    frame = frame_of(frames(3)[3], "rgb8")
    one, two = (network.wait(network.submit(frame, None), NEVER_NS) for network in (plain, gained))
    assert one is not None and two is not None and two.scores[2] > one.scores[2] + 0.2


def test_memory_gives_writable_buffers_that_a_frame_is_read_from(bundle: Bundle) -> None:
    memory: FrameMemory = PlainMemory()
    first, second = memory.allocate(64 * 64, 2)
    first.memory[: 64 * 64] = frames()[-1].tobytes()
    frame = Frame(first.memory, first.address, 64, (64, 64), "mono8", 0, 0, 0, lambda: None)
    network = cpu_network(bundle)
    found = network.wait(network.submit(frame, None), NEVER_NS)
    assert found is not None and int(found.scores.argmax()) == 2
    assert not any(second.memory) and len(second.memory) % mmap.PAGESIZE == 0
    memory.close()


def test_onnxruntime_is_imported_with_the_first_engine_only() -> None:
    code = "import sys, appliance.wiring.models; sys.exit('onnxruntime' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
