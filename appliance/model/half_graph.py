"""The float16 graph of a float model, for TensorRT where precision stands in the graph. Needs onnx and onnxruntime's tools."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from appliance.model.graph import quantised

_MOST = float(np.finfo(np.float16).max)


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float model (see ``graph.float_model``) with float16 inside, float32 inputs and outputs, same names and shapes.

    Raises ValueError when there are Q/DQ pairs, or weights that float16 cannot hold."""
    if quantised(model):
        raise ValueError("the model has Q/DQ pairs; take them out first (float_model), float16 is made of the float model")
    problems = [*_too_large(model.graph)]
    if problems:
        raise ValueError(f"{'; '.join(problems)}: float16 ends at {_MOST:.0f}; run this model as int8 or float32")
    # Slow (it loads onnxruntime), and needed only where an engine is built. Without torch, unlike its neighbours.
    from onnxruntime.transformers.float16 import convert_float_to_float16  # type: ignore[import-untyped]

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    result: onnx.ModelProto = convert_float_to_float16(copy, keep_io_types=True)
    _sort(result.graph)
    onnx.checker.check_model(result, full_check=True)
    return result


def _too_large(graph: onnx.GraphProto) -> list[str]:
    """The converter would cut these off without a word."""
    constants = [attribute.t for node in graph.node for attribute in node.attribute if attribute.name == "value"]
    found = []
    for one in (*graph.initializer, *constants):
        if one.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(one)
            if values.size and not bool(np.all(np.abs(values) <= _MOST)):  # not of an infinity or a NaN either
                found.append(f"{one.name or 'a constant'} reaches {float(np.max(np.abs(values))):g}")
    return found


def _sort(graph: onnx.GraphProto) -> None:
    """Every node after what it reads: the converter puts its casts last, and onnx's checker refuses that."""
    waiting = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    unmade = {name for node in waiting for name in node.output}
    in_order: list[onnx.NodeProto] = []
    while waiting:
        later = []
        for node in waiting:
            if unmade.isdisjoint(node.input):
                in_order.append(node)
                unmade.difference_update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ValueError(f"the graph runs in a circle at {later[0].name or later[0].op_type}; make the bundle anew")
        waiting = later
    del graph.node[:]
    graph.node.extend(in_order)
