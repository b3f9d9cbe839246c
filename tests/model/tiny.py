"""Tiny ONNX models and bundles for tests: no training, every weight written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from appliance.model.bundle import Bundle
from appliance.wiring.models import write_bundle

SIDE = 32
CLASSES = ("good", "dark", "bright")


def tensor(name: str, values: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)


Pair = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]


def pair(name: str, source: str, scale: Any, axis: int | None = None) -> Pair:
    """Q and DQ after ``source``; the result is called ``name``."""
    scale = np.asarray(scale, np.float32)
    extra = {} if axis is None else {"axis": axis}
    names = [f"{name}_scale", f"{name}_zero"]
    nodes = [
        helper.make_node("QuantizeLinear", [source, *names], [f"{name}_int8"], name=f"{name}_q", **extra),
        helper.make_node("DequantizeLinear", [f"{name}_int8", *names], [name], name=f"{name}_dq", **extra),
    ]
    return nodes, [tensor(names[0], scale), tensor(names[1], np.zeros(scale.shape, np.int8))]


def model(
    nodes: list[onnx.NodeProto], initialisers: list[onnx.TensorProto], channels: int, outputs: dict[str, list[int]]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, channels, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        initialisers,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def classifier(channels: int = 1, int8: bool = True, weight: float = 8.0) -> onnx.ModelProto:
    """Mean of the input m (about -0.5 .. 0.5) -> logits good 0, dark -w*m - 2, bright w*m - 2 (mean over channels)."""
    # A 1x1 convolution splits dark and bright, the pool averages, a matrix spreads to three classes.
    weights = np.array([[-weight] * channels, [weight] * channels], np.float32).reshape(2, channels, 1, 1) / channels
    initialisers = [
        tensor("weights", weights), tensor("bias", np.zeros(2, np.float32)),
        tensor("spread", np.array([[0, 1, 0], [0, 0, 1]], np.float32)), tensor("offset", np.array([0, -2, -2], np.float32)),
    ]  # fmt: skip
    nodes: list[onnx.NodeProto] = []
    image, weighted = "image", "weights"
    if int8:
        per_channel = [weight / channels / 127] * 2
        for more, constants in (pair("image_8", "image", 1 / 127), pair("weights_8", "weights", per_channel, axis=0)):
            nodes += more
            initialisers += constants
        image, weighted = "image_8", "weights_8"
    nodes += [
        helper.make_node("Conv", [image, weighted, "bias"], ["split"], name="conv"),
        helper.make_node("GlobalAveragePool", ["split"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "spread", "offset"], ["scores"], name="gemm"),
    ]
    return model(nodes, initialisers, channels, {"scores": [1, 3]})


def anomaly() -> onnx.ModelProto:
    """The input itself (0..1 where mean 0, std 1) as map: bright places are anomalies."""
    nodes, initialisers = pair("image_8", "image", 1 / 127)
    initialisers.append(tensor("one", np.ones((1, 1, 1, 1), np.float32)))
    nodes.append(helper.make_node("Conv", ["image_8", "one"], ["map"], name="conv"))
    return model(nodes, initialisers, 1, {"map": [1, 1, SIDE, SIDE]})


def meta(task: str = "classify", channels: int = 1, **changes: Any) -> dict[str, Any]:
    """model.yaml of the tiny models, without files."""
    normal = {"mean": [0.5] * channels, "std": [1.0] * channels} if task == "classify" else {"mean": [0.0], "std": [1.0]}
    whole: dict[str, Any] = {
        "name": "tiny", "revision": 1, "task": task, "taught_on": "photographs",
        "input": {"tensor": "image", "size": [SIDE, SIDE], "channels": channels, "fit": "stretch", **normal},
        "output": {"tensor": "scores", "activation": "softmax"} if task == "classify" else {"map": "map", "high": 1.0},
        "classes": list(CLASSES) if task == "classify" else ["good", "anomaly"],
        "good": ["good"], "thresholds": {"review_at": 0.4, "fail_at": 0.6},
    }  # fmt: skip
    return {**whole, **changes}


def frames(channels: int = 1, side: int = 2 * SIDE) -> list[np.ndarray]:
    """Eight grey pictures from dark to bright with a little noise, seeded; red and blue apart where coloured."""
    rng = np.random.default_rng(5)
    shape = (side, side) if channels == 1 else (side, side, 3)
    made = []
    for level in (20, 60, 100, 120, 135, 160, 200, 235):
        picture = rng.normal(level, 6, shape)
        if channels == 3:
            picture[:, :, 0] += 12
            picture[:, :, 2] -= 12
        made.append(np.clip(picture, 0, 255).astype(np.uint8))
    return made


def tiny_bundle(
    folder: Path, task: str = "classify", channels: int = 1, graph: onnx.ModelProto | None = None, **changes: Any
) -> Bundle:
    """A whole bundle on disk."""
    made = graph or (classifier(channels) if task == "classify" else anomaly())
    return write_bundle(folder, made, meta(task, channels, **changes), frames(channels), "mono8" if channels == 1 else "rgb8")
