"""A network of MobileNetV2's size (1.0, 224 x 224, colour) as a bundle: seeded weights, real shapes, INT8 as the contract says.

Nothing is trained: what counts here is what a frame costs. Each layer is scaled so that its results spread as a trained
network's do, or INT8 and ReLU6 would be measured on numbers that never occur.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from appliance.devices.network_cpu import Engine
from appliance.model.bundle import Bundle, BundleError, load_bundle
from appliance.model.pixels import U8
from appliance.model.preprocess_cv2 import prepare_cv2
from appliance.wiring.models import write_bundle
from calibration import quantize

F32 = npt.NDArray[np.float32]
SIDE = 224
FRAME = (1280, 1024)
CLASSES = ("good", "spot", "scratch", "chip", "crack", "stain", "misprint", "dent")
# expansion, channels, blocks, stride of the first: table 2 of the MobileNetV2 paper (arXiv 1801.04381)
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
SEED = 41
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SOURCES = (Path(__file__), Path(quantize.__file__))


def mobile_net_bundle(cache: Path | None = None) -> Bundle:
    """The bundle, made once (half a minute) and kept in ``cache`` under the digest of what made it."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:16]
    cache = cache or Path(tempfile.gettempdir()) / f"appliance-bench-{os.getuid()}"
    folder = cache / f"mobile-net-{digest}"
    try:
        return load_bundle(folder)
    except BundleError:
        pass  # not made yet, or cut short
    cache.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=cache))
    _write(made)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(made, folder)
    return load_bundle(folder)


def pictures(count: int, channels: int = 3, size: tuple[int, int] = FRAME) -> Iterator[U8]:
    """Seeded frames, blurred noise on a shaded ground: no two alike, no flat areas. uint8 (h, w) or (h, w, 3)."""
    import cv2

    rng = np.random.default_rng(SEED)
    for number in range(count):
        coarse = rng.integers(0, 256, (16, 20, channels)).astype(np.float32)
        shaded = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC).reshape(size[1], size[0], channels)
        noise = rng.normal(0, 12, (size[1], size[0], 1)).astype(np.float32)
        picture = np.clip(shaded * (0.5 + 0.05 * number) + noise + 20, 0, 255).astype(np.uint8)
        yield picture[:, :, 0].copy() if channels == 1 else picture


def float_graph(images: F32) -> onnx.ModelProto:
    """The float model; ``images`` (N, 3, 224, 224) are what its layers are scaled on."""
    layers = _Layers(images)
    layers.convolution("stem", 3, 32, kernel=3, stride=2)
    channels = 32
    for stage, (expansion, wanted, blocks, stride) in enumerate(BLOCKS):
        for block in range(blocks):
            layers.block(f"stage{stage}.{block}", channels, wanted, expansion, stride if block == 0 else 1)
            channels = wanted
    layers.convolution("last", channels, 1280, kernel=1)
    layers.head(1280, len(CLASSES))
    return layers.model()


class _Layers:
    """Grows the graph and carries the images' activations along, layer by layer."""

    def __init__(self, images: F32) -> None:
        self._rng = np.random.default_rng(SEED)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._name, self._values = "image", images

    def block(self, name: str, channels: int, wanted: int, expansion: int, stride: int) -> None:
        """Inverted residual: widen, depthwise, narrow; added to its input where the shapes agree."""
        skip, skipped, wide = self._name, self._values, channels * expansion
        if expansion > 1:
            self.convolution(f"{name}.widen", channels, wide, kernel=1)
        self.convolution(f"{name}.depthwise", wide, wide, kernel=3, stride=stride, groups=wide)
        self.convolution(f"{name}.narrow", wide, wanted, kernel=1, limited=False)
        if stride == 1 and channels == wanted:
            self._add("Add", [skip, self._name], f"{name}.sum")
            self._values = skipped + self._values

    def convolution(
        self, name: str, channels: int, wanted: int, kernel: int, stride: int = 1, groups: int = 1, limited: bool = True
    ) -> None:  # fmt: skip
        """Convolution and, if ``limited``, ReLU6; scaled so that each channel has the spread of a trained layer."""
        shape = (wanted, channels // groups, kernel, kernel)
        weights = self._rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        bias = np.zeros(wanted, np.float32)
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4, "group": groups}
        raw = _convolve(self._values, weights, attributes)
        spread = self._rng.uniform(0.8, 2.0, wanted) if limited else self._rng.uniform(0.4, 0.8, wanted)
        middle = self._rng.normal(0.5, 0.5, wanted) if limited else np.zeros(wanted)
        gain = (spread / (raw.std(axis=(0, 2, 3)) + 1e-3)).astype(np.float32)
        weights *= gain.reshape(-1, 1, 1, 1)
        bias += (middle - raw.mean(axis=(0, 2, 3)) * gain).astype(np.float32)
        self._values = raw * gain.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)
        self._constant(f"{name}.weight", weights)
        self._constant(f"{name}.bias", bias)
        self._add("Conv", [self._name, f"{name}.weight", f"{name}.bias"], f"{name}.result", **attributes)
        if limited:
            if not any(one.name == "six" for one in self._weights):
                self._constant("zero", np.float32(0))
                self._constant("six", np.float32(6))
            self._add("Clip", [self._name, "zero", "six"], f"{name}.limited")
            self._values = np.clip(self._values, 0, 6)

    def head(self, channels: int, classes: int) -> None:
        """Mean of each channel, then a matrix; logits within some units, as a network that is unsure here and there."""
        pooled = self._values.mean(axis=(2, 3))
        weights = self._rng.normal(0, 1, (channels, classes)).astype(np.float32)
        raw = pooled @ weights
        weights *= np.float32(1.0 / (raw.std() + 1e-3))
        self._constant("head.weight", weights)
        self._constant("head.bias", (-(pooled @ weights).mean(axis=0)).astype(np.float32))
        self._add("GlobalAveragePool", [self._name], "pooled")
        self._add("Flatten", ["pooled"], "flat")
        self._add("Gemm", ["flat", "head.weight", "head.bias"], "scores")

    def model(self) -> onnx.ModelProto:
        """What has grown, as the contract wants it: opset 17, static, batch 1."""
        graph = helper.make_graph(
            self._nodes, "mobile-net",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, len(CLASSES)])],
            self._weights,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self._nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}.{kind.lower()}", **attributes))
        self._name = output

    def _constant(self, name: str, values: Any) -> None:
        self._weights.append(numpy_helper.from_array(np.asarray(values, np.float32), name))


def quantised_skips(model: onnx.ModelProto) -> onnx.ModelProto:
    """The skip of a residual Add taken behind the Q/DQ that the next convolution has anyway: TensorRT adds in INT8 then."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    before = {node.output[0]: node.input[0] for node in result.graph.node if node.op_type == "QuantizeLinear"}
    pairs = {
        before[node.input[0]]: node.output[0]
        for node in result.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in before
    }
    for node in result.graph.node:
        if node.op_type == "Add" and node.input[0] in pairs:
            node.input[0] = pairs[node.input[0]]
    return result


def _convolve(values: F32, weights: F32, attributes: dict[str, Any]) -> F32:
    shape = list(values.shape)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], **attributes)], "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Engine(model.SerializeToString(), "a layer").run("x", np.ascontiguousarray(values))["y"]


def _write(folder: Path) -> None:
    meta: dict[str, Any] = {
        "name": "mobile-net", "revision": 1, "task": "classify", "taught_on": "photographs",
        "input": {"tensor": "image", "size": [SIDE, SIDE], "channels": 3, "fit": "stretch", "mean": _MEAN, "std": _STD},
        "output": {"tensor": "scores", "activation": "softmax"},
        "classes": list(CLASSES), "good": ["good"], "thresholds": {"review_at": 0.35, "fail_at": 0.5},
    }  # fmt: skip
    from appliance.model.bundle import InputSpec

    spec = InputSpec(**meta["input"])
    frames = list(pictures(24, size=(320, 256)))
    images = [prepare_cv2(one.reshape(-1), (320, 256), 960, "bgr8", None, spec).tensor for one in frames]
    model = quantised_skips(quantize.quantize(float_graph(np.stack(images[:4])), images))
    write_bundle(folder, model, meta, frames[:8], "bgr8")
