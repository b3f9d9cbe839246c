"""The bundle's INT8 graph made quick for onnxruntime's CPU kernels, at load, without changing one value. Needs onnx.

Those kernels take unsigned activations, and swallow a Relu or Clip only where it ends at the type's own limits. So:
- int8 with zero point 0 becomes uint8 with zero point 128: same scale, same rounding, same range -128..127;
- behind Relu it becomes uint8 with zero point 0, and a Clip(0, 127) on the bytes saturates where int8 did;
- a float Clip before Q becomes a Clip of the bytes behind it. Q is monotone, so both give Q of the nearer limit.
What follows a Q (its DQ's float values) stays bit for bit what it was; tests/model/test_cpu_graph.py proves it. Only for
what is no number, where ONNX leaves Q open, the lower limit comes out, and not a level that the Relu or Clip forbade.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

_LOW, _HIGH = -128, 127
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_NO_INTEGER_KERNEL = ("ConvTranspose",)
# They only pick or move values: in which order they and a monotone step come makes no difference.
_PICKING = ("MaxPool", "GlobalMaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Identity")
_ZERO, _MIDDLE = "cpu_graph_zero", "cpu_graph_middle"


@dataclass(frozen=True)
class Rewritten:
    """``left``: what still runs in float behind quantised inputs, in words, one entry for each operator. The last
    operators before an output are no entry: their results are float by the contract."""

    model: onnx.ModelProto
    left: tuple[str, ...]


def cpu_graph(model: onnx.ModelProto) -> Rewritten:
    """The same model for onnxruntime; the given one stays as it is. Pairs that break the contract are left alone."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = _Graph(result.graph)
    for quantize in [node for node in result.graph.node if node.op_type == "QuantizeLinear"]:
        if graph.is_symmetric_activation(quantize):
            _rewrite(graph, quantize)
    graph.write_back()
    return Rewritten(result, tuple(_left(result.graph)))


class _Graph:
    """A graph's nodes by what they make and use, kept right while it is rewritten."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self.constants = _constants(graph)
        self.makers: dict[str, onnx.NodeProto] = {name: node for node in graph.node for name in node.output}
        self.behind: dict[str, list[onnx.NodeProto]] = {}  # new nodes by the output they stand behind
        self.bypassed: set[str] = set()
        self._retyped: set[str] = set()
        self._count_uses()

    def is_symmetric_activation(self, quantize: onnx.NodeProto) -> bool:
        """int8, zero point 0, one scale, on values that are not constant, used by DQs of that zero point only."""
        name = quantize.output[0]
        users = self.users(name)
        if quantize.input[0] in self.constants or name in self._outputs or not users:
            return False
        return all(self._is_symmetric(node) for node in (quantize, *users)) and all(
            user.op_type == "DequantizeLinear" for user in users
        )

    def users(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read ``name``."""
        return self._uses.get(name, [])

    def only_user(self, name: str) -> bool:
        """Is it read once, and no output?"""
        return len(self.users(name)) == 1 and name not in self._outputs

    def number(self, name: str) -> float:
        """A constant of one value."""
        return float(self.constants[name].reshape(-1)[0])

    def constant(self, name: str, value: int) -> str:
        """A uint8 constant; returns its name."""
        if name not in self.constants:
            self.constants[name] = np.array(value, np.uint8)
            self._graph.initializer.append(numpy_helper.from_array(self.constants[name], name))
        return name

    def set_zero(self, quantize: onnx.NodeProto, zero: str) -> None:
        """Another zero point for a Q and its DQs."""
        for node in (quantize, *self.users(quantize.output[0])):
            node.input[2] = zero
        self._retyped.add(quantize.output[0])

    def limit(self, quantize: onnx.NodeProto, low: int, high: int) -> None:
        """A Clip of the bytes between a Q and its DQs."""
        whole = quantize.output[0]
        name = f"{whole}_limited"
        bounds = [self.constant(f"cpu_graph_{value}", value) for value in (low, high)]
        clip = helper.make_node("Clip", [whole, *bounds], [name], name=name)
        for user in self.users(whole):
            user.input[0] = name
        self.behind.setdefault(whole, []).append(clip)

    def bypass(self, clip: onnx.NodeProto) -> None:
        """Take a node out: its only user reads what it read."""
        (user,) = self.users(clip.output[0])
        for index, name in enumerate(user.input):
            if name == clip.output[0]:
                user.input[index] = clip.input[0]
        self.bypassed.add(clip.output[0])
        self._count_uses()

    def write_back(self) -> None:
        """The nodes in an order that can be run, without stale types and constants."""
        kept = [node for node in self._graph.node if not (node.output and node.output[0] in self.bypassed)]
        nodes = [one for node in kept for one in (node, *(n for name in node.output for n in self.behind.get(name, [])))]
        stale = self._retyped | self.bypassed
        infos = [one for one in self._graph.value_info if one.name not in stale]
        used = {name for node in nodes for name in node.input}
        initialisers = [one for one in self._graph.initializer if one.name in used]
        _replace(self._graph.node, nodes)
        _replace(self._graph.value_info, infos)
        _replace(self._graph.initializer, initialisers)

    def _is_symmetric(self, node: onnx.NodeProto) -> bool:
        if len(node.input) < 3:
            return False
        scale, zero = (self.constants.get(name) for name in node.input[1:3])
        if scale is None or zero is None or scale.size != 1 or scale.dtype != np.float32:
            return False
        return zero.dtype == np.int8 and zero.size == 1 and not zero.any() and bool(np.isfinite(scale) & (scale > 0))

    def _count_uses(self) -> None:
        self._outputs = {one.name for one in self._graph.output}
        self._uses: dict[str, list[onnx.NodeProto]] = {}
        for node in self._graph.node:
            if node.output and node.output[0] in self.bypassed:
                continue
            for name in node.input:
                self._uses.setdefault(name, []).append(node)


def _rewrite(graph: _Graph, quantize: onnx.NodeProto) -> None:
    low, high = _LOW, _HIGH
    limiter = _limiter(graph, quantize)
    if limiter is not None and limiter.op_type == "Relu":
        low = 0
    elif limiter is not None:
        low, high = (_level(graph, quantize, limiter, index, whole) for index, whole in ((1, _LOW), (2, _HIGH)))
        graph.bypass(limiter)
    if low >= 0:
        zero, offset = graph.constant(_ZERO, 0), 0
        graph.set_zero(quantize, zero)
        graph.limit(quantize, low, high)
        return
    zero, offset = graph.constant(_MIDDLE, 128), 128
    graph.set_zero(quantize, zero)
    if (low, high) != (_LOW, _HIGH):
        graph.limit(quantize, low + offset, high + offset)


def _limiter(graph: _Graph, quantize: onnx.NodeProto) -> onnx.NodeProto | None:
    """The Relu or Clip whose result, picked and moved at most, is all that the Q reads and that nobody else reads."""
    name = quantize.input[0]
    while (node := graph.makers.get(name)) is not None and graph.only_user(name) and len(node.output) == 1:
        if node.op_type == "Relu":
            return node
        if node.op_type == "Clip":
            known = all(not one or one in graph.constants for one in node.input[1:])
            return node if known and _in_order(graph, node) else None
        if node.op_type not in _PICKING:
            return None
        name = node.input[0]
    return None


def _in_order(graph: _Graph, clip: onnx.NodeProto) -> bool:
    """Limits that are numbers, the lower one not above the upper."""
    low, high = (_limit(graph, clip, index) for index in (1, 2))
    return low <= high  # False for what is no number


def _limit(graph: _Graph, clip: onnx.NodeProto, index: int) -> float:
    given = clip.input[index] if len(clip.input) > index else ""
    return graph.number(given) if given else (np.inf if index == 2 else -np.inf)


def _level(graph: _Graph, quantize: onnx.NodeProto, clip: onnx.NodeProto, index: int, whole: int) -> int:
    """What the Q makes of a limit: divided in float32, rounded half to even, saturated."""
    limit = _limit(graph, clip, index)
    if np.isinf(limit):
        return whole if (limit > 0) == (whole > 0) else _LOW + _HIGH - whole
    level = np.rint(np.float32(limit) / np.float32(graph.number(quantize.input[1])))
    return int(np.clip(level, _LOW, _HIGH))


def _left(graph: onnx.GraphProto) -> Iterator[str]:
    """Weighted operators whose inputs are both quantised and whose result no kernel gives as bytes."""
    constants = _constants(graph)
    makers = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    outputs = {one.name for one in graph.output}
    to_a_quantize = _leads_to_quantize(graph, constants)
    for node in graph.node:
        if node.op_type not in _WEIGHTED or not all(_dequantised(makers, name) for name in node.input[:2]):
            continue
        if node.output[0] not in to_a_quantize:
            continue  # a head
        blocker = _blocker(node, users, outputs)
        if node.op_type in _NO_INTEGER_KERNEL:
            yield f"{node.name or node.output[0]}: {node.op_type} has no integer kernel"
        elif blocker:
            yield f"{node.name or node.output[0]}: its result goes to {blocker}"


def _blocker(node: onnx.NodeProto, users: dict[str, list[onnx.NodeProto]], outputs: set[str]) -> str:
    """What stands between an operator and the Q of its result; empty when nothing does."""
    name, may_limit = node.output[0], True
    while True:
        reading = users.get(name, [])
        if len(reading) != 1 or name in outputs:
            kinds = sorted({one.op_type for one in reading} | ({"an output"} if name in outputs else set()))
            return " and ".join(kinds)
        (user,) = reading
        if user.op_type == "QuantizeLinear":
            return ""
        if user.op_type == "Relu" and may_limit:
            may_limit = False
        elif user.op_type not in _PICKING:
            return user.op_type
        name = user.output[0]


def _leads_to_quantize(graph: onnx.GraphProto, constants: dict[str, npt.NDArray[Any]]) -> set[str]:
    """Tensors from which some path runs to the Q of an activation."""
    found: set[str] = set()
    for node in reversed(graph.node):
        activation = node.op_type == "QuantizeLinear" and node.input[0] not in constants
        if activation or any(name in found for name in node.output):
            found.update(name for name in node.input if name and name not in constants)
    return found


def _dequantised(makers: dict[str, onnx.NodeProto], name: str) -> bool:
    maker = makers.get(name)
    return maker is not None and maker.op_type == "DequantizeLinear"


def _constants(graph: onnx.GraphProto) -> dict[str, npt.NDArray[Any]]:
    found: dict[str, npt.NDArray[Any]] = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for one in node.attribute:
                if one.name == "value":
                    found[node.output[0]] = numpy_helper.to_array(one.t)
    return found


def _replace(field: Any, values: list[Any]) -> None:
    copies = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(copies)
