"""OpenVINO as the engine of network_cpu: its INT8 kernels take the bundle's file as it is. Imported with the first engine."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.ports import EngineError

F32 = npt.NDArray[np.float32]
Shape = tuple[Any, ...]  # a size that is not fixed is a word
# One picture as soon as can be: one stream, one thread. Not pinned: rejectd may have that core to itself. float32 said
# aloud: a processor with bfloat16 would take that for all that is not INT8, and leave the golden tolerance.
_CONFIGURATION = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "INFERENCE_NUM_THREADS": 1,
    "ENABLE_CPU_PINNING": False,
    "INFERENCE_PRECISION_HINT": "f32",
}


def installed() -> bool:
    """Whether OpenVINO can be imported here; it is not imported for that."""
    return importlib.util.find_spec("openvino") is not None


class OpenVinoEngine:
    """network_cpu.InferenceEngine by OpenVINO: static shapes, one thread; the input is read where it lies."""

    def __init__(self, onnx: bytes, what: str) -> None:
        """``what`` names the model in errors. Raises EngineError when OpenVINO cannot run ``onnx``, or is not there."""
        try:
            import openvino  # type: ignore[import-not-found, unused-ignore]  # slow, and seldom installed
        except ImportError as why:
            raise EngineError(f"OpenVINO cannot be imported ({why}); install openvino, or take it away") from why
        self._openvino = openvino
        try:
            core = openvino.Core()
            self._model = core.compile_model(core.read_model(onnx), "CPU", _CONFIGURATION)
            self._request = self._model.create_infer_request()
            self.version = f"openvino-{str(openvino.__version__).split('-')[0]}/cpu"
            self.inputs: dict[str, Shape] = {_name(one): _shape(one) for one in self._model.inputs}
            self.outputs: dict[str, Shape] = {_name(one): _shape(one) for one in self._model.outputs}
            self.kinds = {_name(one): _kind(one) for one in (*self._model.inputs, *self._model.outputs)}
            self._results = self._bind_outputs()
        except Exception as why:  # OpenVINO raises RuntimeError, and its binding TypeError; neither is documented
            raise EngineError(f"{what} cannot be run by OpenVINO ({_last_line(why)}); make the bundle anew") from why
        self._bound: tuple[int, Shape] | None = None

    def run(self, name: str, tensor: F32) -> dict[str, F32]:
        """Outputs by name for one input, read where it lies; valid until the next run. Raises EngineError."""
        place = (int(tensor.__array_interface__["data"][0]), tensor.shape)
        try:
            if self._bound != place:
                self._request.set_tensor(name, self._openvino.Tensor(tensor, shared_memory=True))
                self._bound = place
            self._request.infer(share_outputs=True)
        except Exception as why:  # see __init__
            self._bound = None
            raise EngineError(f"OpenVINO failed: {_last_line(why)}") from why
        return self._results

    def close(self) -> None:
        """OpenVINO frees with the objects."""
        self._request = self._model = self._bound = None

    def _bind_outputs(self) -> dict[str, F32]:
        """Results into arrays of ours, made once."""
        results = {name: np.zeros(shape, np.float32) for name, shape in self.outputs.items()}
        for name, result in results.items():
            self._request.set_tensor(name, self._openvino.Tensor(result, shared_memory=True))
        return results


def _name(port: Any) -> str:
    return str(port.get_any_name())


def _shape(port: Any) -> Shape:
    if port.partial_shape.is_static:
        return tuple(int(side) for side in port.shape)
    raise ValueError(f"{_name(port)} has no fixed size {port.partial_shape}")


def _kind(port: Any) -> str:
    kind = port.element_type.get_type_name()
    return "tensor(float)" if kind == "f32" else f"tensor({kind})"


def _last_line(why: Exception) -> str:
    """OpenVINO's reason stands last, behind the places in its source that it went through."""
    lines = [line.strip() for line in str(why).splitlines() if line.strip()]
    return (lines or [type(why).__name__])[-1][:200]
