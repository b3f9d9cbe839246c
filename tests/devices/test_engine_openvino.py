"""OpenVINO as an engine, the real one where it is installed and a stand-in everywhere; and when wiring takes it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.devices.engine_openvino import OpenVinoEngine, installed
from appliance.devices.network_cpu import Engine
from appliance.model.golden import frame_of, replay_all
from appliance.ports import EngineError
from appliance.wiring import models
from appliance.wiring.models import cpu_engine, cpu_network
from tests.model.test_cpu_graph import residual
from tests.model.tiny import SIDE, anomaly, classifier, frames, tiny_bundle

BENCHES = Path(__file__).resolve().parents[2] / ".venv/bench/openvino"  # where ./build.sh bench cpu puts it
SMALLEST = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}


class Tensor:
    """An array by its address, as openvino.Tensor with shared memory; without, it would be a copy."""

    def __init__(self, array: np.ndarray, shared_memory: bool = False) -> None:
        assert shared_memory and array.flags.c_contiguous and array.dtype == np.float32
        self.array = array


class Port:
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self._name, self.shape = name, shape
        self.partial_shape = types.SimpleNamespace(is_static=True)
        self.element_type = types.SimpleNamespace(get_type_name=lambda: "f32")

    def get_any_name(self) -> str:
        return self._name


class Model:
    """What compile_model gives, and its infer request in one: onnxruntime at the arrays it was given."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.inputs = [Port(name, shape) for name, shape in engine.inputs.items()]
        self.outputs = [Port(name, shape) for name, shape in engine.outputs.items()]
        self._tensors: dict[str, np.ndarray] = {}

    def create_infer_request(self) -> Model:
        return self

    def set_tensor(self, name: str, tensor: Tensor) -> None:
        shape = {**self._engine.inputs, **self._engine.outputs}[name]
        if tensor.array.shape != shape:
            raise RuntimeError("Exception from src/inference:66:\nThe tensor size is not equal to the model's\n\n")
        self._tensors[name] = tensor.array

    def infer(self, share_outputs: bool = False) -> None:
        ((name, _),) = self._engine.inputs.items()
        for output, values in self._engine.run(name, self._tensors[name]).items():
            self._tensors[output][...] = values


class Core:
    refused = ""

    def read_model(self, model: bytes) -> bytes:
        if self.refused:
            raise RuntimeError(f"Exception from src/core.cpp:105:\n{self.refused}\n\n")
        return model

    def compile_model(self, model: bytes, device: str, config: dict[str, Any]) -> Model:
        assert device == "CPU" and SMALLEST.items() <= config.items() and config["INFERENCE_PRECISION_HINT"] == "f32"
        try:
            return Model(Engine(model, "stand-in"))
        except EngineError as why:
            raise RuntimeError(f"Exception from src/core.cpp:105:\n{why}\n\n") from why


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("openvino")
    module.__spec__ = importlib.machinery.ModuleSpec("openvino", None)
    core = type("Core", (Core,), {})
    module.__dict__.update(Core=core, Tensor=Tensor, __version__="2026.4.1-22982-e213a147257")
    monkeypatch.setitem(sys.modules, "openvino", module)
    return module


@pytest.fixture(params=["stand-in", "real"])
def openvino(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both, one after the other; the real one where it can be found."""
    if request.param == "stand-in":
        request.getfixturevalue("stand_in")
        yield
        return
    if not importlib.util.find_spec("openvino") and not (BENCHES / "openvino").is_dir():
        pytest.skip("OpenVINO is not installed; ./build.sh bench cpu installs it")
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHES)])
    importlib.invalidate_caches()
    yield


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, (1, 1, SIDE, SIDE)).astype(np.float32)


def test_it_answers_as_onnxruntime_does(openvino: None) -> None:
    for model in (classifier(), classifier(int8=False), anomaly()):
        raw = model.SerializeToString()
        ours, theirs = OpenVinoEngine(raw, "tiny"), Engine(raw, "tiny")
        assert (ours.inputs, ours.outputs, ours.kinds) == (theirs.inputs, theirs.outputs, theirs.kinds)
        for seed in range(3):
            found, wanted = ours.run("image", image(seed)), theirs.run("image", image(seed))
            assert all(np.allclose(found[name], wanted[name], atol=1e-4) for name in wanted)


def test_its_name_is_the_ledgers(openvino: None) -> None:
    version = OpenVinoEngine(classifier().SerializeToString(), "tiny").version
    assert version.startswith("openvino-20") and version.endswith("/cpu") and version.count("-") == 1


def test_the_input_is_read_where_it_lies_and_another_one_is_found(openvino: None) -> None:
    engine = OpenVinoEngine(classifier().SerializeToString(), "tiny")
    given = image(1)
    first = engine.run("image", given)["scores"].copy()
    given += 0.5
    moved = engine.run("image", given)["scores"].copy()
    assert not np.allclose(first, moved, atol=0.1)
    other = given - np.float32(0.5)
    assert np.allclose(engine.run("image", other)["scores"], first, atol=1e-3)


def test_what_it_cannot_run_is_said_in_words(openvino: None) -> None:
    with pytest.raises(EngineError, match="b.onnx cannot be run by OpenVINO .*; make the bundle anew"):
        OpenVinoEngine(b"no model", "b.onnx")
    engine = OpenVinoEngine(classifier().SerializeToString(), "tiny")
    with pytest.raises(EngineError, match="OpenVINO failed: "):
        engine.run("image", np.zeros((1, 1, 3, 3), np.float32))
    assert engine.run("image", image(1))["scores"].shape == (1, 3)


def test_without_it_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match="OpenVINO cannot be imported"):
        OpenVinoEngine(b"", "tiny")


# --- when wiring takes it -------------------------------------------------------------------------------------------


def test_a_bundle_keeps_its_golden_vectors_on_it(openvino: None, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", graph=classifier())
    network = models.network_on(bundle, OpenVinoEngine(bundle.onnx.read_bytes(), "tiny"), "tried")
    replay_all(network, bundle)
    assert network.identity["engine"].startswith("openvino-") and network.why == "tried"
    found = network.wait(network.submit(frame_of(frames()[-1], "mono8"), None), 2**62)
    assert found is not None and int(found.scores.argmax()) == 2


def test_what_stays_float_in_onnxruntime_runs_on_openvino(stand_in: types.ModuleType) -> None:
    engine, why = cpu_engine(residual().model().SerializeToString(), "residual")
    assert engine.version == "openvino-2026.4.1/cpu" and "conv4.node: its result goes to Add" in why


def test_without_openvino_it_runs_on_onnxruntime_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.engine_openvino, "installed", lambda: False)
    engine, why = cpu_engine(residual().model().SerializeToString(), "residual")
    assert engine.version.startswith("onnxruntime-")
    assert "OpenVINO is not installed" in why and "its result goes to Add" in why


@pytest.mark.parametrize("slow", ["onnxruntime", "openvino"])
def test_of_two_that_both_run_integers_the_faster_is_taken(
    stand_in: types.ModuleType, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    kind: Any = Engine if slow == "onnxruntime" else OpenVinoEngine

    class Slow(kind):  # type: ignore[misc]
        def run(self, name: str, tensor: np.ndarray) -> dict[str, np.ndarray]:
            for _ in range(50):
                result: dict[str, np.ndarray] = super().run(name, tensor)
            return result

    monkeypatch.setattr(models, kind.__name__, Slow)
    engine, why = cpu_engine(classifier().SerializeToString(), "tiny")
    assert not engine.version.startswith(slow)
    assert "onnxruntime-" in why and "openvino-" in why and " ms" in why


def test_an_openvino_that_refuses_the_file_is_told_and_done_without(
    stand_in: types.ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.Core.refused = "Not implemented"
    engine, why = cpu_engine(classifier().SerializeToString(), "tiny")
    assert engine.version.startswith("onnxruntime-") and "Not implemented" in why and "Not implemented" in caplog.text


def test_a_float_graph_asks_nobody(stand_in: types.ModuleType) -> None:
    stand_in.Core.refused = "never to be asked"
    engine, why = cpu_engine(classifier(int8=False).SerializeToString(), "tiny")
    assert engine.version.startswith("onnxruntime-") and why == "the graph is float"


def test_the_choice_is_logged_and_stands_in_the_network(
    stand_in: types.ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    network = cpu_network(tiny_bundle(tmp_path / "b"))
    assert network.why in caplog.text and network.identity["engine"] in caplog.text


def test_it_is_imported_with_the_first_engine_only() -> None:
    assert installed() in (True, False)
    code = "import sys, appliance.wiring.models; sys.exit('openvino' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
