"""The float model inside a quantised one, and every rule of the contract's bundle section broken once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from appliance.devices.network_cpu import Engine
from appliance.model.graph import float_model, lint, quantised
from tests.model.tiny import SIDE, anomaly, classifier, model, pair, tensor


def scores(graph: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    return next(iter(Engine(graph.SerializeToString(), "test").run("image", image).values()))


def set_constant(graph: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    for one in graph.graph.initializer:
        if one.name == name:
            one.CopyFrom(numpy_helper.from_array(values, name))


def test_the_tiny_models_keep_the_rules() -> None:
    assert lint(classifier()) == [] and lint(classifier(3, int8=False)) == [] and lint(anomaly()) == []


def test_without_pairs_the_graph_is_the_float_model() -> None:
    whole = float_model(classifier())
    onnx.checker.check_model(whole, full_check=True)
    assert quantised(classifier()) and not quantised(whole)
    assert [node.op_type for node in whole.graph.node] == ["Conv", "GlobalAveragePool", "Flatten", "Gemm"]
    assert sorted(one.name for one in whole.graph.initializer) == ["bias", "offset", "spread", "weights"]
    image = np.random.default_rng(1).normal(0, 0.3, (1, 1, SIDE, SIDE)).astype(np.float32)
    assert np.array_equal(scores(whole, image), scores(classifier(int8=False), image))
    assert not np.array_equal(scores(classifier(), image), scores(whole, image))


def test_taking_pairs_out_leaves_the_given_model_alone() -> None:
    given = classifier()
    before = given.SerializeToString()
    float_model(given)
    assert given.SerializeToString() == before


def test_a_pair_shared_by_two_users_is_taken_out_of_both() -> None:
    nodes, constants = pair("image_8", "image", 1 / 127)
    constants.append(tensor("one", np.ones((1, 1, 1, 1), np.float32)))
    nodes += [
        helper.make_node("Conv", ["image_8", "one"], ["left"], name="a"),
        helper.make_node("Conv", ["image_8", "one"], ["right"], name="b"),
        helper.make_node("Add", ["left", "right"], ["map"], name="sum"),
    ]
    whole = float_model(model(nodes, constants, 1, {"map": [1, 1, SIDE, SIDE]}))
    assert [list(node.input) for node in whole.graph.node] == [["image", "one"], ["image", "one"], ["left", "right"]]


def residual(on_both: bool, plus_constant: bool = False) -> onnx.ModelProto:
    nodes, constants = pair("image_8", "image", 1 / 127)
    constants.append(tensor("one", np.ones((1, 1, 1, 1), np.float32)))
    nodes.append(helper.make_node("Conv", ["image_8", "one"], ["body"], name="conv"))
    skip_nodes, skip_constants = pair("skip_8", "image", 1 / 127)
    nodes += skip_nodes
    constants += skip_constants
    second = "body"
    if on_both:
        more, more_constants = pair("body_8", "body", 1 / 127)
        nodes += more
        constants += more_constants
        second = "body_8"
    if plus_constant:
        constants.append(tensor("offset", np.ones((1, 1, 1, 1), np.float32)))
        second = "offset"
    nodes.append(helper.make_node("Add", ["skip_8", second], ["map"], name="sum"))
    return model(nodes, constants, 1, {"map": [1, 1, SIDE, SIDE]})


def test_the_skip_of_a_residual_add_may_be_quantised_and_nothing_else() -> None:
    assert lint(residual(on_both=False)) == []
    assert any("of Add" in one for one in lint(residual(on_both=True)))
    assert any("of Add" in one for one in lint(residual(on_both=False, plus_constant=True)))


def opset_16(graph: onnx.ModelProto) -> None:
    graph.opset_import[0].version = 16


def batch_4(graph: onnx.ModelProto) -> None:
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def free_size(graph: onnx.ModelProto) -> None:
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"


def zero_point_3(graph: onnx.ModelProto) -> None:
    set_constant(graph, "image_8_zero", np.array(3, np.int8))


def unsigned(graph: onnx.ModelProto) -> None:
    set_constant(graph, "image_8_zero", np.array(0, np.uint8))


def scale_0(graph: onnx.ModelProto) -> None:
    set_constant(graph, "image_8_scale", np.array(0, np.float32))


def per_channel_activation(graph: onnx.ModelProto) -> None:
    set_constant(graph, "image_8_scale", np.full(1, 0.1, np.float32).repeat(2))
    set_constant(graph, "image_8_zero", np.zeros(2, np.int8))


def stored_int8(graph: onnx.ModelProto) -> None:
    nodes = [node for node in graph.graph.node if node.name != "weights_8_q"]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    graph.graph.initializer.append(tensor("weights_8_int8", np.ones((2, 1, 1, 1), np.int8)))


def before_pool(graph: onnx.ModelProto) -> None:
    _insert(graph, "GlobalAveragePool", 0)


def on_bias(graph: onnx.ModelProto) -> None:
    nodes, constants = pair("bias_8", "bias", 0.1)
    graph.graph.initializer.extend(constants)
    _set_input(graph, "Conv", 2, "bias_8", nodes)


def on_output(graph: onnx.ModelProto) -> None:
    for node in graph.graph.node:
        if node.op_type == "Gemm":
            node.output[0] = "raw"
    nodes, constants = pair("scores", "raw", 0.1)
    graph.graph.initializer.extend(constants)
    graph.graph.node.extend(nodes)


def other_grid(graph: onnx.ModelProto) -> None:
    graph.graph.initializer.append(tensor("other", np.array(0.5, np.float32)))
    next(node for node in graph.graph.node if node.name == "image_8_dq").input[1] = "other"


def not_onnx(graph: onnx.ModelProto) -> None:
    graph.graph.node[0].op_type = "Invented"


def _insert(graph: onnx.ModelProto, operator: str, index: int) -> None:
    source = next(node for node in graph.graph.node if node.op_type == operator).input[index]
    nodes, constants = pair("more_8", source, 0.1)
    graph.graph.initializer.extend(constants)
    _set_input(graph, operator, index, "more_8", nodes)


def _set_input(graph: onnx.ModelProto, operator: str, index: int, name: str, before: list[onnx.NodeProto]) -> None:
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.graph.node]
    place = next(at for at, node in enumerate(kept) if node.op_type == operator)
    kept[place].input[index] = name
    del graph.graph.node[:]
    graph.graph.node.extend([*kept[:place], *before, *kept[place:]])


@pytest.mark.parametrize(
    ("breaking", "said"),
    [
        (opset_16, "opset 16, not 17"), (batch_4, "image is not static with batch 1"), (free_size, "image is not static"),
        (zero_point_3, "zero point is not int8 0"), (unsigned, "zero point is not int8 0"), (scale_0, "not a float32 above 0"),
        (per_channel_activation, "per-channel scales on an activation"), (stored_int8, "not stored as int8"),
        (before_pool, "on input 0 of GlobalAveragePool"), (on_bias, "on input 2 of Conv"),
        (on_output, "on the output scores"), (other_grid, "scale is not its Q's"), (not_onnx, "not a valid ONNX model"),
    ],
)  # fmt: skip
def test_each_broken_rule_is_named(breaking: Callable[[onnx.ModelProto], None], said: str) -> None:
    graph = classifier()
    breaking(graph)
    assert any(said in one for one in lint(graph)), lint(graph)


def test_an_int_input_is_named() -> None:
    graph = classifier()
    graph.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    assert any("scores is not float32" in one for one in lint(graph))
