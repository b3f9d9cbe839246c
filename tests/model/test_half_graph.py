"""The float16 graph: as near to the float model as float16 allows, float32 at its rim, refused where float16 ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
from onnx import TensorProto, helper

from appliance.model import graph
from appliance.model.half_graph import half
from tests.model import tiny

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "models" / "cap-28mm"
OUTPUT_TOLERANCE = 0.05  # on logits up to 33; the worst of the shipped golden inputs was 0.028 in this very test
SCORE_TOLERANCE = 0.002  # after softmax; the worst was 0.0005


def run(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})[0]


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max())
    return raised / raised.sum()


def floats(model: onnx.ModelProto) -> set[int]:
    return {one.data_type for one in model.graph.initializer if one.data_type != TensorProto.INT64}


def test_the_shipped_model_answers_its_golden_inputs_as_in_float32() -> None:
    whole = graph.float_model(onnx.load(SHIPPED / "model.onnx"))
    halved = half(whole)
    assert floats(halved) == {TensorProto.FLOAT16}
    for image in np.load(SHIPPED / "golden.npz")["input"]:
        expected, found = run(whole, image[None]), run(halved, image[None])
        assert np.abs(expected - found).max() < OUTPUT_TOLERANCE
        assert np.abs(softmax(expected) - softmax(found)).max() < SCORE_TOLERANCE


@pytest.mark.parametrize("made", [tiny.classifier(), tiny.classifier(3), tiny.anomaly()], ids=["mono", "colour", "anomaly"])
def test_the_rim_stays_as_it_was(made: onnx.ModelProto) -> None:
    whole = graph.float_model(made)
    before = whole.SerializeToString()
    halved = half(whole)
    assert whole.SerializeToString() == before, "the caller's model is its own"
    for old, new in zip((*whole.graph.input, *whole.graph.output), (*halved.graph.input, *halved.graph.output)):
        assert new == old
    assert [(one.domain, one.version) for one in halved.opset_import] == [("", 17)]
    assert "Cast" in {node.op_type for node in halved.graph.node} and floats(halved) == {TensorProto.FLOAT16}


def test_every_node_comes_after_what_it_reads() -> None:
    made = half(graph.float_model(onnx.load(SHIPPED / "model.onnx")))
    unmade = {name for node in made.graph.node for name in node.output}
    for node in made.graph.node:
        assert unmade.isdisjoint(node.input)
        unmade.difference_update(node.output)


def test_a_graph_with_operators_that_stay_float32_is_in_order_too() -> None:
    nodes = [
        helper.make_node("Conv", ["image", "one"], ["a"], name="conv"),
        helper.make_node("Max", ["a", "floor"], ["b"], name="max"),  # the converter leaves Max in float32, between casts
        helper.make_node("Conv", ["b", "one"], ["scores"], name="conv2"),
    ]
    constants = [tiny.tensor("one", np.ones((1, 1, 1, 1), np.float32)), tiny.tensor("floor", np.zeros(1, np.float32))]
    whole = tiny.model(nodes, constants, 1, {"scores": [1, 1, tiny.SIDE, tiny.SIDE]})
    image = np.random.default_rng(3).normal(size=(1, 1, tiny.SIDE, tiny.SIDE)).astype(np.float32)
    assert np.abs(run(whole, image) - run(half(whole), image)).max() < 0.01


@pytest.mark.parametrize("value", [70000.0, -1e9, np.inf, np.nan])
def test_weights_float16_cannot_hold_are_refused(value: float) -> None:
    made = graph.float_model(tiny.classifier())
    weights = next(one for one in made.graph.initializer if one.name == "weights")
    weights.CopyFrom(tiny.tensor("weights", np.full((2, 1, 1, 1), value, np.float32)))
    with pytest.raises(ValueError, match="weights reaches .*: float16 ends at 65504; run this model as int8 or float32"):
        half(made)


def test_the_largest_float16_is_held() -> None:
    made = graph.float_model(tiny.classifier())
    next(one for one in made.graph.initializer if one.name == "bias").CopyFrom(
        tiny.tensor("bias", np.full(2, 65504.0, np.float32))
    )
    assert half(made)


def test_a_quantised_model_is_refused() -> None:
    with pytest.raises(ValueError, match="take them out first"):
        half(tiny.classifier())


def test_neither_torch_nor_onnxruntime_is_loaded_before_it_is_needed() -> None:
    script = (
        "import sys, onnx\nfrom appliance.model.half_graph import half\nassert 'onnxruntime' not in sys.modules\n"
        f"from appliance.model.graph import float_model\nhalf(float_model(onnx.load({str(SHIPPED / 'model.onnx')!r})))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
