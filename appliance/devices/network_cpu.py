"""The network on a CPU: onnxruntime on the bundle's graph, preprocess and decode handed in by wiring."""

from __future__ import annotations


from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from appliance.clock import now_ns
from appliance.ports import EngineError, Findings, Frame

Box = tuple[int, int, int, int]


class _Prepared(Protocol):
    @property
    def tensor(self) -> npt.NDArray[np.float32]: ...
    @property
    def histogram(self) -> npt.NDArray[np.int64]: ...
    @property
    def total(self) -> int: ...
    @property
    def laplacian_variance(self) -> float: ...


Prepare = Callable[[npt.NDArray[np.uint8], tuple[int, int], int, str, "Box | None"], Any]
Decode = Callable[[Mapping[str, npt.NDArray[np.float32]]], "tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]"]


class CpuNetwork:
    """ports.Network by onnxruntime: one thread, no spinning (two threads that spin halve a busy two-core machine)."""

    def __init__(
        self, onnx: bytes, what: str, identity: dict[str, str], task: str, input_name: str,
        input_shape: tuple[int, ...], prepare: Prepare, decode: Decode,
    ) -> None:  # fmt: skip
        """Raises EngineError when ``onnx`` is no model or does not take ``input_shape`` under ``input_name``."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        except Exception as why:  # onnxruntime has a class of its own for each cause, none of them public
            raise EngineError(f"{what} is not a model that can be run: {str(why).splitlines()[0][:200]}") from why
        inputs = {one.name: tuple(one.shape) for one in self._session.get_inputs()}
        if inputs != {input_name: input_shape}:
            raise EngineError(f"{what} takes {inputs}, model.yaml says {{{input_name!r}: {input_shape}}}; make the bundle anew")
        self.identity = {**identity, "engine": f"onnxruntime-{onnxruntime.__version__}/cpu"}
        self._task, self._input = task, input_name
        self._outputs = [one.name for one in self._session.get_outputs()]
        self._prepare, self._decode = prepare, decode
        self._ticket = 0
        self._waiting: tuple[int, Frame, Box | None] | None = None
        self.last_input: npt.NDArray[np.float32] | None = None
        self.last_outputs: dict[str, npt.NDArray[np.float32]] = {}

    def submit(self, frame: Frame, roi: Box | None) -> int:
        """Remember the frame; a CPU has nothing to run beside us."""
        self._ticket += 1
        self._waiting = (self._ticket, frame, roi)
        return self._ticket

    def wait(self, ticket: int, deadline_ns: int) -> Findings | None:
        """Findings of the frame submitted last. A run once begun is ended: the caller looks at the deadline before."""
        if self._waiting is None or self._waiting[0] != ticket:
            raise EngineError(f"ticket {ticket} is not the one that waits")
        _, frame, roi = self._waiting
        self._waiting = None
        begun = now_ns()
        pixels = np.frombuffer(frame.memory, np.uint8)
        try:
            prepared: _Prepared = self._prepare(pixels, frame.size, frame.pitch_bytes, frame.pixel, roi)
            middle = now_ns()
            raw = self._session.run(None, {self._input: prepared.tensor[None]})
        except ValueError as why:
            raise EngineError(str(why)) from why
        except Exception as why:  # see __init__
            raise EngineError(f"onnxruntime: {str(why).splitlines()[0][:200]}") from why
        self.last_input = prepared.tensor
        self.last_outputs = dict(zip(self._outputs, raw))
        scores, score_map = self._decode(self.last_outputs)
        ended = now_ns()
        return Findings(
            task=self._task, scores=scores, score_map=score_map, candidates=None, histogram=prepared.histogram,
            total=prepared.total, laplacian_variance=prepared.laplacian_variance,
            preprocess_ms=(middle - begun) / 1e6, infer_ms=(ended - middle) / 1e6,
        )  # fmt: skip

    def close(self) -> None:
        """onnxruntime frees with the object."""
