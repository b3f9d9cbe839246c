"""The ONNX graph of a bundle: the float model inside a quantised one, and the contract's rules as a lint. Needs onnx."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

OPSET = 17
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def float_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with every Q/DQ pair taken out: reference of the licence, maker of the golden vectors."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    renamed: dict[str, str] = {}
    quantised = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    kept = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in quantised:
            renamed[node.output[0]] = quantised[node.input[0]]
        elif node.op_type != "QuantizeLinear":
            kept.append(node)
    for node in kept:
        for index, name in enumerate(node.input):
            while name in renamed:
                name = renamed[name]
            node.input[index] = name
    used = {name for node in kept for name in node.input}
    initialisers = [one for one in graph.initializer if one.name in used]
    del graph.node[:]
    graph.node.extend(kept)
    del graph.initializer[:]
    graph.initializer.extend(initialisers)
    return result


def lint(model: onnx.ModelProto) -> list[str]:
    """What breaks the contract's bundle section, in words; empty when nothing does."""
    graph, found = model.graph, []
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if opset != OPSET:
        found.append(f"opset {opset}, not {OPSET}")
    for value in (*graph.input, *graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type != onnx.TensorProto.FLOAT:
            found.append(f"{value.name} is not float32")
        if not tensor.shape.dim or any(not dim.dim_value for dim in tensor.shape.dim) or tensor.shape.dim[0].dim_value != 1:
            found.append(f"{value.name} is not static with batch 1")
    initial = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    users: dict[str, list[tuple[str, int]]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            users.setdefault(name, []).append((node.op_type, index))
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += _lint_pair(node, initial, users)
    return found


def _lint_pair(node: onnx.NodeProto, initial: dict[str, np.ndarray], users: dict[str, list[tuple[str, int]]]) -> list[str]:
    found = []
    zero = initial.get(node.input[2]) if len(node.input) > 2 else None
    if zero is None or zero.dtype != np.int8 or zero.any():
        found.append(f"{node.name}: zero point is not int8 0")
    scale = initial.get(node.input[1])
    if scale is None:
        found.append(f"{node.name}: its scale is not a constant")
        return found
    if node.op_type == "QuantizeLinear":
        if scale.size > 1 and node.input[0] not in initial:
            found.append(f"{node.name}: per-channel scales on an activation")
        return found
    if node.input[0] in initial:
        found.append(f"{node.name}: weights must be float32 behind Q and DQ, not stored as int8")
    for op_type, index in users.get(node.output[0], []):
        if op_type not in (*WEIGHTED, "Add") or (op_type in WEIGHTED and index == 2):
            found.append(f"{node.name}: Q/DQ on input {index} of {op_type}")
    return found


def quantised(model: onnx.ModelProto) -> bool:
    """Whether there are Q/DQ pairs."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)
