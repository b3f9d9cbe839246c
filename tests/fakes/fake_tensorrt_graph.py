"""What the stand-in of TensorRT knows of a graph: what its parser refuses, its layers, and the inspector's account of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Operators of the QOperator format, and of dynamic quantisation.
FOREIGN = {
    "ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QGemm", "QLinearAdd", "QLinearConv", "QLinearMatMul",
}  # fmt: skip
LAYER_TYPES = {
    QUANTIZE: "QUANTIZE", DEQUANTIZE: "DEQUANTIZE", "Conv": "CONVOLUTION", "ConvTranspose": "DECONVOLUTION",
    "Gemm": "MATRIX_MULTIPLY", "MatMul": "MATRIX_MULTIPLY", "Cast": "CAST", "Relu": "ACTIVATION", "Sigmoid": "ACTIVATION",
    "MaxPool": "POOLING", "AveragePool": "POOLING", "GlobalAveragePool": "REDUCE", "Add": "ELEMENTWISE",
    "Concat": "CONCATENATION", "Flatten": "SHUFFLE", "Reshape": "SHUFFLE", "Slice": "SLICE", "Softmax": "SOFTMAX",
    "Resize": "RESIZE",
}  # fmt: skip
DATA_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.BFLOAT16: "BF16", TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32", TensorProto.INT64: "INT64", TensorProto.BOOL: "BOOL", TensorProto.UINT8: "UINT8",
}  # fmt: skip
_WORDS = {"FLOAT": "Float", "HALF": "Half", "INT8": "Int8", "INT32": "Int32", "INT64": "Int64"}


@dataclass(frozen=True)
class Refusal:
    """One error of the parser, at a node."""

    node: int
    name: str
    operator: str
    text: str


def read(onnx_bytes: bytes) -> onnx.ModelProto | str:
    """The model with all its shapes, or why it is none."""
    try:
        model = onnx.ModelProto.FromString(onnx_bytes)
        onnx.checker.check_model(model, full_check=True)
        return onnx.shape_inference.infer_shapes(model)
    except Exception as why:  # protobuf and onnx have many
        return f"Failed to parse ONNX model: {str(why).strip()[:200]}"


def refusals(model: onnx.ModelProto) -> Iterator[Refusal]:
    """What TensorRT's parser does not take of a valid model."""
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    for index, node in enumerate(model.graph.node):
        text = ""
        if node.op_type in FOREIGN or node.domain not in ("", "ai.onnx"):
            text = f"No importer registered for op: {node.op_type}"
        elif node.op_type in (QUANTIZE, DEQUANTIZE):
            text = _pair_fault(node, constants, made_by)
        if text:
            yield Refusal(index, node.name, node.op_type, text)


def _pair_fault(node: onnx.NodeProto, constants: dict[str, Any], made_by: dict[str, onnx.NodeProto]) -> str:
    scale = constants.get(node.input[1])
    if scale is None:
        return "The scale must be an initializer"
    if not np.all(scale > 0):
        return "The scale must be positive"
    if node.op_type == DEQUANTIZE and getattr(constants.get(node.input[0]), "dtype", None) == np.int32:
        return "DequantizeLinear of INT32 is not supported: leave the bias in FP32"
    if len(node.input) > 2 and node.input[2]:
        zero = constants.get(node.input[2])
        if zero is None or zero.dtype == np.uint8:
            return "UINT8 zero points are not supported: quantization is symmetric INT8"
        if np.any(zero != 0):
            return "Non-zero zero point is not supported: quantization is symmetric"
    source = node.input[0] if node.op_type == QUANTIZE else getattr(made_by.get(node.input[0]), "input", [node.input[0]])[0]
    if scale.size > 1 and source not in constants:
        return "Per-channel scales are supported on weights only"
    return ""


def quantised(model: onnx.ModelProto) -> bool:
    """Whether there are Q/DQ pairs."""
    return any(node.op_type == QUANTIZE for node in model.graph.node)


def types(model: onnx.ModelProto) -> dict[str, str]:
    """TensorRT's word for the type of every tensor."""
    known = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    named = {one.name: DATA_TYPES.get(one.type.tensor_type.elem_type, "FLOAT") for one in known}
    return {**named, **{one.name: DATA_TYPES.get(one.data_type, "FLOAT") for one in model.graph.initializer}}


def shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """-1 where a side is not fixed."""
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim)


def inspected(model: onnx.ModelProto, major: int, detailed: bool) -> str:
    """The inspector's JSON in the words of 10 or of 11: Q/DQ is fused into what is weighted behind it."""
    named = types(model)
    before = {node.output[0]: node for node in model.graph.node if node.op_type == DEQUANTIZE}
    layers: list[Any] = [_reformat(model, major)]
    for node in model.graph.node:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            continue
        inputs = [(name, "INT8" if name in before else named.get(name, "FLOAT")) for name in node.input[:1]]
        outputs = [(name, named.get(name, "FLOAT")) for name in node.output]
        layers.append(_layer(node.name or node.output[0], node.op_type, inputs, outputs, major))
    io = [one.name for one in (*model.graph.input, *model.graph.output)]
    rim: dict[str, Any] = {"Bindings": io} if major < 11 else {"I/O Tensors": [{"Name": name} for name in io]}
    return json.dumps({"Layers": layers if detailed else [one["Name"] for one in layers], **rim})


def _reformat(model: onnx.ModelProto, major: int) -> dict[str, Any]:
    name = model.graph.input[0].name
    return _layer(f"Reformatting CopyNode for Input {name}", "Reformat", [(name, "FLOAT")], [(f"{name}'", "INT8")], major)


def _layer(name: str, kind: str, inputs: list[tuple[str, str]], outputs: list[tuple[str, str]], major: int) -> dict[str, Any]:
    def tensor(one: tuple[str, str]) -> dict[str, str]:
        word = _WORDS.get(one[1], one[1])
        if major < 11:
            return {"Name": one[0], "Format/Datatype": f"Row major linear {word} format" if word == "Half" else word}
        return {"Name": one[0], "Format": "Row major linear format (kLINEAR)", "DataType": word}

    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [tensor(one) for one in inputs],
        "Outputs": [tensor(one) for one in outputs],
    }
