"""The ONNX graph of a bundle: the float model inside a quantised one, and the contract's rules as a lint. Needs onnx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

OPSET = 17
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
Constants = dict[str, npt.NDArray[Any]]
Uses = dict[str, list[tuple[onnx.NodeProto, int]]]


def float_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with every Q/DQ pair taken out: reference of the licence, maker of the golden vectors."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    before = {node.output[0]: node.input[0] for node in graph.node if node.op_type == _QUANTIZE}
    pairs = [node for node in graph.node if node.op_type == _DEQUANTIZE and node.input[0] in before]
    instead = {node.output[0]: before[node.input[0]] for node in pairs}
    paired = {node.input[0] for node in pairs}
    kept = [node for node in graph.node if not _belongs_to_pair(node, instead, paired)]
    for node in kept:
        for index, name in enumerate(node.input):
            node.input[index] = _source(name, instead)
    used = {name for node in kept for name in node.input}
    initialisers = [one for one in graph.initializer if one.name in used]
    stale = [one for one in graph.value_info if one.name not in instead and one.name not in before]
    for field, values in ((graph.node, kept), (graph.initializer, initialisers), (graph.value_info, stale)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    return result


def quantised(model: onnx.ModelProto) -> bool:
    """Whether there are Q/DQ pairs."""
    return any(node.op_type == _QUANTIZE for node in model.graph.node)


def lint(model: onnx.ModelProto) -> list[str]:
    """What breaks the contract's bundle section, in words; empty when nothing does."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as why:
        return [f"not a valid ONNX model: {str(why).strip().splitlines()[0]}"]
    constants = _constants(model.graph)
    uses: Uses = {}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            uses.setdefault(name, []).append((node, index))
    found = [*_lint_frame(model), *_lint_biases(model.graph, constants)]
    for node in model.graph.node:
        if node.op_type == _QUANTIZE:
            found += _lint_quantize(node, constants, uses)
        elif node.op_type == _DEQUANTIZE:
            found += _lint_dequantize(node, model.graph, constants, uses)
    return found


def _belongs_to_pair(node: onnx.NodeProto, instead: dict[str, str], paired: set[str]) -> bool:
    return (node.op_type == _DEQUANTIZE and node.output[0] in instead) or (
        node.op_type == _QUANTIZE and node.output[0] in paired
    )


def _source(name: str, instead: dict[str, str]) -> str:
    while name in instead:
        name = instead[name]
    return name


def _constants(graph: onnx.GraphProto) -> Constants:
    found: Constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = numpy_helper.to_array(attribute.t)
    return found


def _lint_frame(model: onnx.ModelProto) -> Iterator[str]:
    """Opset, inputs, outputs, and files beside the model."""
    versions = {one.domain: one.version for one in model.opset_import}
    opset = versions.get("", versions.get("ai.onnx", 0))
    if opset != OPSET:
        yield f"opset {opset}, not {OPSET}"
    foreign = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})
    if foreign:
        yield f"operators of {', '.join(foreign)}; only ONNX's own run everywhere"
    initialisers = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in initialisers]
    if len(inputs) != 1:
        yield f"{len(inputs)} inputs, not 1"
    for value in (*inputs, *model.graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type != onnx.TensorProto.FLOAT:
            yield f"{value.name} is not float32"
        if not tensor.shape.dim or any(dim.dim_value < 1 for dim in tensor.shape.dim) or tensor.shape.dim[0].dim_value != 1:
            yield f"{value.name} is not static with batch 1"
    if any(one.data_location == onnx.TensorProto.EXTERNAL for one in model.graph.initializer):
        yield "weights lie in a file beside the model; save them inside"


def _lint_biases(graph: onnx.GraphProto, constants: Constants) -> Iterator[str]:
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2 and node.input[2]:
            bias = constants.get(node.input[2])
            if bias is not None and bias.dtype != np.float32:
                yield f"{_named(node)}: its bias is {bias.dtype}, not float32"


def _lint_quantize(node: onnx.NodeProto, constants: Constants, uses: Uses) -> list[str]:
    found = _lint_scale(node, constants)
    users = uses.get(node.output[0], [])
    if not users or any(user.op_type != _DEQUANTIZE for user, _ in users):
        found.append(f"{_named(node)}: a Q without its DQ")
    scale = constants.get(node.input[1])
    if scale is not None and scale.size > 1 and node.input[0] not in constants:
        found.append(f"{_named(node)}: per-channel scales on an activation")
    return found


def _lint_dequantize(node: onnx.NodeProto, graph: onnx.GraphProto, constants: Constants, uses: Uses) -> list[str]:
    found = _lint_scale(node, constants)
    quantize = next((one for one in graph.node if one.op_type == _QUANTIZE and one.output[0] == node.input[0]), None)
    if quantize is None:
        found.append(f"{_named(node)}: weights must be float32 behind Q and DQ, not stored as int8")
    elif list(quantize.input[1:]) != list(node.input[1:]) and not _same_grid(quantize, node, constants):
        found.append(f"{_named(node)}: its scale is not its Q's")
    if node.output[0] in {one.name for one in graph.output}:
        found.append(f"{_named(node)}: Q/DQ on the output {node.output[0]}")
    for user, index in uses.get(node.output[0], []):
        if not _allowed(user, index, graph, constants):
            found.append(f"{_named(node)}: Q/DQ on input {index} of {user.op_type} {user.name}")
    return found


def _allowed(user: onnx.NodeProto, index: int, graph: onnx.GraphProto, constants: Constants) -> bool:
    """Inputs and weights of weighted operators; one input, the skip, of an Add of two activations."""
    if user.op_type in WEIGHTED:
        return index < 2
    if user.op_type != "Add":
        return False
    other = user.input[1 - index]
    return other not in constants and not any(one.op_type == _DEQUANTIZE and one.output[0] == other for one in graph.node)


def _lint_scale(node: onnx.NodeProto, constants: Constants) -> list[str]:
    found = []
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    if zero is None or zero.dtype != np.int8 or bool(np.any(zero != 0)):
        found.append(f"{_named(node)}: zero point is not int8 0")
    scale = constants.get(node.input[1])
    if scale is None:
        found.append(f"{_named(node)}: its scale is not a constant")
    elif scale.dtype != np.float32 or not bool(np.all(np.isfinite(scale) & (scale > 0))):
        found.append(f"{_named(node)}: its scale is not a float32 above 0")
    return found


def _same_grid(quantize: onnx.NodeProto, dequantize: onnx.NodeProto, constants: Constants) -> bool:
    pairs = zip(quantize.input[1:], dequantize.input[1:])
    return all(np.array_equal(constants.get(one, np.empty(0)), constants.get(two, np.ones(1))) for one, two in pairs)


def _named(node: onnx.NodeProto) -> str:
    return node.name or f"{node.op_type} -> {node.output[0]}"
