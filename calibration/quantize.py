"""From a float ONNX to INT8 Q/DQ as the contract's bundle section says; onnxruntime's quantiser, TensorRT's placement."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from appliance.model.graph import WEIGHTED, lint


class _Reader(CalibrationDataReader):
    def __init__(self, name: str, tensors: Iterable[npt.NDArray[np.float32]]) -> None:
        self._name = name
        self._tensors: Iterator[npt.NDArray[np.float32]] = iter(tensors)

    def get_next(self) -> dict[str, Any] | None:  # type: ignore[override]
        tensor = next(self._tensors, None)
        return None if tensor is None else {self._name: tensor[None]}


def quantize(model: onnx.ModelProto, tensors: Iterable[npt.NDArray[np.float32]]) -> onnx.ModelProto:
    """INT8 Q/DQ on the inputs of weighted ops only, zero point 0, per channel on weights, float bias.

    ``tensors``: preprocessed inputs (C, H, W) to calibrate on (min-max: the surest where defects are rare extremes).
    Raises ValueError naming what breaks the contract."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)  # the quantiser tells each node it leaves alone, on the root logger
    try:
        quantised = _quantise(model, tensors)
    finally:
        root.setLevel(level)
    problems = lint(quantised)
    if problems:
        raise ValueError("the quantised graph breaks the contract: " + "; ".join(problems[:6]))
    return quantised


def _quantise(model: onnx.ModelProto, tensors: Iterable[npt.NDArray[np.float32]]) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        source, ready, result = (Path(folder) / name for name in ("float.onnx", "ready.onnx", "int8.onnx"))
        onnx.save(model, str(source))
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready), str(result), _Reader(model.graph.input[0].name, tensors),
            quant_format=QuantFormat.QDQ, op_types_to_quantize=list(WEIGHTED), per_channel=True,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
                "AddQDQPairToWeight": True, "OpTypesToExcludeOutputQuantization": list(WEIGHTED),
            },
        )  # fmt: skip
        return onnx.load(str(result))
