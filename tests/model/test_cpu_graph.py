"""The rewrite for onnxruntime: every value as before, bit for bit; integer kernels where it promises them, told where not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from appliance.inspect.decode import decode
from appliance.model.bundle import load_bundle
from appliance.model.cpu_graph import cpu_graph
from appliance.model.golden import load_golden
from appliance.model.graph import lint
from tests.model.tiny import pair, tensor

SHIPPED = Path(__file__).resolve().parents[2] / "models/cap-28mm"
CHANNELS, SIDE = 4, 16
SHAPE = [1, CHANNELS, SIDE, SIDE]
Nodes = list[onnx.NodeProto]


def session(model: onnx.ModelProto, optimised: bool, dump: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if dump:
        options.optimized_model_filepath = str(dump)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def outputs(model: onnx.ModelProto, image: np.ndarray, optimised: bool = False) -> dict[str, np.ndarray]:
    made = session(model, optimised)
    return dict(zip([one.name for one in made.get_outputs()], made.run(None, {made.get_inputs()[0].name: image})))


def kernels(model: onnx.ModelProto, tmp_path: Path) -> Counter[str]:
    """What onnxruntime really runs."""
    session(model, True, tmp_path / "run.onnx")
    return Counter(node.op_type for node in onnx.load(str(tmp_path / "run.onnx")).graph.node)


def with_every_value(model: onnx.ModelProto, like: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """The same model with the result of each activation's DQ as an output, too. ``like``: the model whose DQs are meant."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = (like or model).graph.node
    constant = {one.name for one in (like or model).graph.initializer}
    bytes_ = {node.output[0] for node in nodes if node.op_type == "QuantizeLinear" and node.input[0] not in constant}
    for node in nodes:
        if node.op_type == "DequantizeLinear" and node.input[0] in bytes_:
            result.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))
    return result


def same_bits(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(one[name].tobytes() == two[name].tobytes() for name in one)


def whole(nodes: Nodes, constants: list[onnx.TensorProto], output: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "test",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    shapes = {one.name: one for one in onnx.shape_inference.infer_shapes(model).graph.output}
    model.graph.output[0].CopyFrom(shapes[output])
    return model


class Chain:
    """Grows image -> ... -> result; weights seeded, scales given."""

    def __init__(self, seed: int = 3) -> None:
        self.nodes: Nodes = []
        self.constants: list[onnx.TensorProto] = []
        self.at = "image"
        self._rng = np.random.default_rng(seed)

    def add(self, kind: str, *more: str, first: str | None = None, **attributes: Any) -> str:
        """A node on what is there; returns its result's name."""
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [first or self.at, *more], [name], name=f"{name}.node", **attributes))
        self.at = name
        return name

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(tensor(name, value))
        return name

    def quantised(self, scale: float) -> str:
        nodes, constants = pair(f"{self.at}_8", self.at, scale)
        self.nodes += nodes
        self.constants += constants
        self.at = nodes[-1].output[0]
        return self.at

    def convolution(self, kind: str = "Conv") -> str:
        number = len(self.nodes)
        weights = self._rng.normal(0, 0.3, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
        axis = 0 if kind == "Conv" else 1
        scale = np.abs(weights).max(axis=tuple(one for one in range(4) if one != axis)) / 127
        self.constant(f"weight{number}", weights)
        nodes, constants = pair(f"weight{number}_8", f"weight{number}", scale, axis=axis)
        self.nodes += nodes
        self.constants += constants
        bias = self.constant(f"bias{number}", self._rng.normal(0, 0.2, CHANNELS).astype(np.float32))
        return self.add(kind, nodes[-1].output[0], bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def clip(self, low: float | None, high: float | None) -> str:
        number = len(self.nodes)
        limits = {f"low{number}": low, f"high{number}": high}
        return self.add("Clip", *("" if one is None else self.constant(name, np.float32(one)) for name, one in limits.items()))

    def model(self) -> onnx.ModelProto:
        return whole(self.nodes, self.constants, self.at)


def hostile(scale: float) -> np.ndarray:
    """Every level's border (k + 1/2) * scale and its neighbours, beyond saturation too; infinities, zeros."""
    borders = ((np.arange(-300, 300) + 0.5) * np.float64(scale)).astype(np.float32)
    levels = (np.arange(-300, 300) * np.float64(scale)).astype(np.float32)
    odd = np.array([np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38, 6.0, -1.0], np.float32)
    parts = [borders, np.nextafter(borders, np.float32(np.inf)), np.nextafter(borders, np.float32(-np.inf)), levels, odd]
    return np.concatenate(parts)


def images(scale: float, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    values = hostile(scale)
    values = np.concatenate([values, rng.choice(values, -len(values) % (CHANNELS * SIDE * SIDE))])
    noise = rng.normal(0, 90 * scale, SHAPE).astype(np.float32)
    return [noise, *values.reshape(-1, *SHAPE)]


def nothing(chain: Chain) -> None:
    """No limiter before the Q."""


LIMITERS: dict[str, Callable[[Chain], object]] = {
    "nothing": nothing,
    "Relu": lambda chain: chain.add("Relu"),
    "Clip 0..6": lambda chain: chain.clip(0, 6),
    "Clip 0..": lambda chain: chain.clip(0, None),
    "Clip ..6": lambda chain: chain.clip(None, 6),
    "Clip -1..1": lambda chain: chain.clip(-1, 1),
    "Clip 0.3..0.9": lambda chain: chain.clip(0.3, 0.9),
    "Clip of a point": lambda chain: chain.clip(0.5, 0.5),
    "Clip turned round": lambda chain: chain.clip(2, 1),
    "Clip to infinity": lambda chain: chain.clip(-np.inf, np.inf),
    "Clip of no number": lambda chain: chain.clip(np.nan, 6),
    "Relu, MaxPool": lambda chain: (chain.add("Relu"), chain.add("MaxPool", kernel_shape=[2, 2], pads=[1, 1, 1, 1])),
    "Clip 0..6, MaxPool": lambda chain: (chain.clip(0, 6), chain.add("MaxPool", kernel_shape=[3, 3], strides=[2, 2])),
    "Clip 0..6, AveragePool": lambda chain: (chain.clip(0, 6), chain.add("AveragePool", kernel_shape=[2, 2])),
    "Clip 0..6, Transpose": lambda chain: (chain.clip(0, 6), chain.add("Transpose", perm=[0, 1, 3, 2])),
    "Sigmoid": lambda chain: chain.add("Sigmoid"),
}


@pytest.mark.parametrize("limiter", LIMITERS)
@pytest.mark.parametrize("scale", [6 / 127, 0.0371, 1 / 64, 1.7e-6, 311.0])
def test_every_value_is_the_same_bit_for_bit(limiter: str, scale: float) -> None:
    chain = Chain()
    LIMITERS[limiter](chain)
    chain.quantised(scale)
    model = chain.model()
    rewritten = cpu_graph(model).model
    onnx.checker.check_model(rewritten)
    zeros = {one.name for one in rewritten.graph.initializer if "zero" in one.name or "middle" in one.name}
    assert zeros & {"cpu_graph_zero", "cpu_graph_middle"}, "nothing was rewritten"
    for image in images(scale, 11):
        assert same_bits(outputs(model, image), outputs(rewritten, image))


@pytest.mark.parametrize("limiter", ["Relu", "Clip 0..6", "Clip -1..1", "Clip 0.3..0.9", "Clip 0..6, MaxPool"])
def test_onnxruntimes_own_optimising_keeps_the_bits_too(limiter: str) -> None:
    """It drops the Relu and moves the Q about."""
    chain = Chain()
    LIMITERS[limiter](chain)
    chain.quantised(0.0371)
    for image in images(0.0371, 12):
        assert same_bits(outputs(chain.model(), image), outputs(cpu_graph(chain.model()).model, image, optimised=True))


@pytest.mark.parametrize("optimised", [False, True])
@pytest.mark.parametrize("limiter", ["nothing", "Relu", "Clip 0..6", "Clip -1..1", "Clip 0.3..0.9"])
def test_what_is_no_number_becomes_the_lower_limit(limiter: str, optimised: bool) -> None:
    """ONNX leaves open what Q makes of it; int8 kernels take their lowest level even where a Relu allowed none below 0."""
    chain = Chain()
    LIMITERS[limiter](chain)
    chain.quantised(0.0371)
    image = images(0.0371, 13)[1]
    image[0, 0, 0] = np.nan
    lowest = np.where(np.isnan(image), np.float32(-np.inf), image)
    assert same_bits(outputs(cpu_graph(chain.model()).model, image, optimised), outputs(chain.model(), lowest))


def layers(limit: Callable[[Chain], object]) -> Chain:
    chain = Chain()
    chain.quantised(0.02)
    for _ in range(3):
        chain.convolution()
        limit(chain)
        chain.quantised(0.0371)
    chain.convolution()
    return chain


@pytest.mark.parametrize("limiter", ["nothing", "Relu", "Clip 0..6", "Clip -1..1", "Relu, MaxPool", "Clip 0..6, MaxPool"])
def test_convolutions_become_integer_kernels_and_the_last_stays_float(limiter: str, tmp_path: Path) -> None:
    model = layers(LIMITERS[limiter]).model()
    made = cpu_graph(model)
    assert lint(model) == [] and made.left == ()
    found = kernels(made.model, tmp_path)
    assert found["QLinearConv"] == 3 and found["Conv"] + found["FusedConv"] == 1
    assert found["Relu"] == 0 and "QLinearConv" not in kernels(model, tmp_path) or limiter == "nothing"
    image = np.random.default_rng(4).normal(0, 1, SHAPE).astype(np.float32)
    assert same_bits(outputs(with_every_value(model), image), outputs(with_every_value(made.model, model), image))


def test_the_shipped_bundle_runs_in_integers_but_for_its_two_heads(tmp_path: Path) -> None:
    made = cpu_graph(onnx.load(str(SHIPPED / "model.onnx")))
    found = kernels(made.model, tmp_path)
    assert made.left == () and found["QLinearConv"] == 8 and found["Conv"] + found["FusedConv"] == 2


def test_the_shipped_bundle_keeps_every_value_and_its_answers() -> None:
    """Unoptimised: the same bits everywhere. Optimised, onnxruntime sums in integers and rounds each bias to the sum's
    step, which moves a value across a border here and there: logits less than INT8 itself moves them from the float
    model (half of output_tolerance, as make_bundle writes it), scores within a fifth of the golden tolerance."""
    bundle = load_bundle(SHIPPED)
    golden = load_golden(bundle)
    model = onnx.load(str(bundle.onnx))
    rewritten = cpu_graph(model).model
    plain, exact = (session(with_every_value(one, model), False) for one in (model, rewritten))
    quick = session(rewritten, True)
    for case in golden.inputs:
        image = np.ascontiguousarray(case[None])
        wanted = plain.run(None, {"image": image})
        assert all(one.tobytes() == two.tobytes() for one, two in zip(wanted, exact.run(None, {"image": image})))
        (found,) = quick.run(None, {"image": image})
        assert np.abs(found - wanted[0]).max() <= golden.output_tolerance / 2
        scores, before = (decode({"scores": one}, bundle)[0] for one in (found, wanted[0]))
        assert np.abs(scores - before).max() <= golden.tolerance / 5


# --- what is left ---------------------------------------------------------------------------------------------------


def residual() -> Chain:
    chain = Chain()
    skip = chain.quantised(0.02)
    chain.convolution()
    chain.add("Add", skip)
    chain.quantised(0.03)
    chain.convolution()
    return chain


def silu() -> Chain:
    chain = Chain()
    chain.quantised(0.02)
    result = chain.convolution()
    chain.add("Sigmoid")
    chain.add("Mul", result)
    chain.quantised(0.03)
    chain.convolution()
    return chain


def transposed() -> Chain:
    chain = Chain()
    chain.quantised(0.02)
    chain.convolution("ConvTranspose")
    chain.add("Relu")
    chain.quantised(0.03)
    chain.convolution()
    return chain


def read_twice() -> Chain:
    chain = Chain()
    chain.quantised(0.02)
    chain.convolution()
    limited = chain.clip(0, 6)
    chain.quantised(0.03)
    chain.convolution()
    chain.add("Add", limited)
    return chain


@pytest.mark.parametrize(
    ("chain", "told"),
    [
        (residual, "conv4.node: its result goes to Add"),
        (silu, "conv4.node: its result goes to Mul and Sigmoid"),
        (transposed, "convtranspose4.node: ConvTranspose has no integer kernel"),
        (read_twice, "conv4.node: its result goes to Clip"),
    ],
)
def test_what_stays_float_is_told_and_keeps_its_values(chain: Callable[[], Chain], told: str) -> None:
    model = chain().model()
    made = cpu_graph(model)
    assert made.left == (told,)
    for seed in range(5):
        image = np.random.default_rng(seed).normal(0, 1, SHAPE).astype(np.float32)
        assert same_bits(outputs(with_every_value(model), image), outputs(with_every_value(made.model, model), image))


def test_left_is_what_onnxruntime_really_runs_in_float(tmp_path: Path) -> None:
    for chain in (residual, silu, read_twice):
        made = cpu_graph(chain().model())
        found = kernels(made.model, tmp_path)
        heads = 1
        assert found["Conv"] + found["FusedConv"] == heads + len(made.left), chain.__name__


# --- what is left alone ---------------------------------------------------------------------------------------------


def test_the_given_model_is_left_alone_and_a_float_one_comes_back() -> None:
    model = layers(LIMITERS["Relu"]).model()
    before = model.SerializeToString()
    cpu_graph(model)
    assert model.SerializeToString() == before
    chain = Chain()
    chain.add("Relu")
    assert cpu_graph(chain.model()).model.graph.node[0].op_type == "Relu"


@pytest.mark.parametrize("zero", [np.int8(3), np.uint8(0), np.uint8(128)])
def test_pairs_that_are_not_symmetric_int8_are_left_alone(zero: Any) -> None:
    chain = Chain()
    chain.add("Relu")
    chain.quantised(0.03)
    for one in chain.constants:
        if one.name.endswith("_zero"):
            one.CopyFrom(tensor(one.name, np.asarray(zero)))
    model = chain.model()
    assert [node.op_type for node in cpu_graph(model).model.graph.node] == [node.op_type for node in model.graph.node]
    for image in images(0.03, 5):
        assert same_bits(outputs(model, image), outputs(cpu_graph(model).model, image))


def test_a_zero_point_that_weights_share_stays_theirs() -> None:
    """Some tools keep one zero point for all; uint8 weights would be another network."""
    chain = layers(LIMITERS["Relu"])
    chain.constants.append(tensor("shared", np.int8(0)))
    scalars = {one.name for one in chain.constants if one.name.endswith("_zero") and not one.dims}
    for node in chain.nodes:
        for index, name in enumerate(node.input):
            if name in scalars:
                node.input[index] = "shared"
    weight = tensor("per_tensor", np.ones((CHANNELS, CHANNELS, 1, 1), np.float32))
    nodes, constants = pair("per_tensor_8", "per_tensor", 1 / 127)
    nodes[0].input[2] = nodes[1].input[2] = "shared"
    chain.nodes += nodes
    chain.constants += [weight, *constants]
    chain.quantised(0.04)
    chain.add("Conv", "per_tensor_8")
    model = chain.model()
    image = np.random.default_rng(8).normal(0, 1, SHAPE).astype(np.float32)
    assert same_bits(outputs(with_every_value(model), image), outputs(with_every_value(cpu_graph(model).model, model), image))


def test_a_clip_whose_limits_are_computed_stays_where_it_is() -> None:
    chain = Chain()
    low = chain.constant("low", np.float32(0))
    high = chain.add("ReduceMax", keepdims=0)
    chain.add("Clip", low, high, first="image")
    chain.quantised(0.03)
    rewritten = cpu_graph(chain.model()).model
    assert [node.op_type for node in rewritten.graph.node] == ["ReduceMax", "Clip", "QuantizeLinear", "DequantizeLinear"]
    image = np.random.default_rng(9).normal(0, 1, SHAPE).astype(np.float32)
    assert same_bits(outputs(chain.model(), image), outputs(rewritten, image))


def test_a_q_read_by_two_is_rewritten_for_both() -> None:
    chain = Chain()
    chain.add("Relu")
    first = chain.quantised(0.03)
    byte = chain.nodes[-1].input[0]
    again = helper.make_node("DequantizeLinear", list(chain.nodes[-1].input), ["again"], name="again.node")
    chain.nodes.append(again)
    chain.at = "again"
    chain.add("Add", first)
    rewritten = cpu_graph(chain.model()).model
    reading = [node.input[0] for node in rewritten.graph.node if node.op_type == "DequantizeLinear"]
    assert reading == [f"{byte}_limited"] * 2
    for image in images(0.03, 6):
        assert same_bits(outputs(chain.model(), image), outputs(rewritten, image))
