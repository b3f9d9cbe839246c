"""The network on a CPU: an engine on the bundle's graph, preprocess and decode handed in by wiring; onnxruntime's engine.

onnxruntime is named in this file only, and imported when the first engine is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from appliance.clock import now_ns
from appliance.ports import EngineError, Findings, Frame, Statistics

Box = tuple[int, int, int, int]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Shape = tuple[Any, ...]  # a size that is not fixed is a word


class PreparedFrame(Statistics, Protocol):
    """What preprocess gives: ``tensor`` float32 (C, H, W), and the ROI's statistics."""

    @property
    def tensor(self) -> F32: ...


class Prepare(Protocol):
    """memory (bytes, 1-D), size (width, height), pitch in bytes, pixel format, ROI or None. Raises ValueError."""

    def __call__(self, memory: U8, size: tuple[int, int], pitch: int, pixel: str, roi: Box | None, /) -> PreparedFrame: ...


# Outputs by tensor name -> (scores float32, 0..1; score map uint8 (h, w) or None).
Decode = Callable[[Mapping[str, F32]], tuple[F32, U8 | None]]


class InferenceEngine(Protocol):
    """One model ready to run on the CPU: static shapes, one thread. ``version``: as in the ledger record.

    ``inputs`` and ``outputs``: shapes by tensor name; ``kinds``: element types in onnxruntime's words, tensor(float)."""

    version: str
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    kinds: dict[str, str]

    def run(self, name: str, tensor: F32) -> dict[str, F32]:
        """Outputs by name for one input, read where it lies; valid until the next run. Raises EngineError."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


class Engine:
    """One ONNX model in onnxruntime: one thread, no spinning (two threads that spin halve a busy two-core machine).

    Never set session.qdqisint8allowed: the kernels for signed activations are nine times slower on x86."""

    def __init__(self, onnx: bytes, what: str) -> None:
        """``what`` names the model in errors. Raises EngineError when ``onnx`` is no model that can be run."""
        import onnxruntime  # type: ignore[import-untyped]  # slow, and not needed where no CPU network is

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        except Exception as why:  # onnxruntime has a class of its own for each cause, none of them public
            raise EngineError(f"{what} is not a model that can be run ({_first_line(why)}); make the bundle anew") from why
        self.version = f"onnxruntime-{onnxruntime.__version__}/cpu"
        self.inputs: dict[str, Shape] = {one.name: tuple(one.shape) for one in self._session.get_inputs()}
        self.outputs: dict[str, Shape] = {one.name: tuple(one.shape) for one in self._session.get_outputs()}
        self.kinds = {one.name: str(one.type) for one in (*self._session.get_inputs(), *self._session.get_outputs())}
        self._binding: Any = None
        self._bound: tuple[int, Shape] | None = None
        self._results = {
            name: np.empty(shape, np.float32)
            for name, shape in self.outputs.items()
            if self.kinds[name] == "tensor(float)" and all(isinstance(side, int) for side in shape)
        }

    def run(self, name: str, tensor: F32) -> dict[str, F32]:
        """Outputs by name for one input, read where it lies; valid until the next run. Raises EngineError."""
        place = (int(tensor.__array_interface__["data"][0]), tensor.shape)
        try:
            if self._bound != place:
                self._bind(name, place)
                self._bound = place
            self._session.run_with_iobinding(self._binding)
            if len(self._results) == len(self.outputs):
                return self._results
            return dict(zip(self.outputs, self._binding.copy_outputs_to_cpu()))
        except Exception as why:  # see __init__
            self._bound = None
            raise EngineError(f"onnxruntime failed: {_first_line(why)}") from why

    def close(self) -> None:
        """onnxruntime frees with the object."""
        self._binding = self._session = self._bound = None

    def _bind(self, name: str, place: tuple[int, Shape]) -> None:
        self._binding = self._session.io_binding()
        self._binding.bind_input(name, "cpu", 0, np.float32, place[1], place[0])
        for output, shape in self.outputs.items():
            result = self._results.get(output)
            if result is None:  # of a size that only the run tells
                self._binding.bind_output(output, "cpu")
            else:
                self._binding.bind_output(output, "cpu", 0, np.float32, shape, result.ctypes.data)


class CpuNetwork:
    """ports.Network by an engine on the CPU."""

    frame_copies = 0  # the CPU reads every frame where it lies

    def __init__(
        self, engine: InferenceEngine, why: str, what: str, identity: dict[str, str], task: str, input_name: str,
        input_shape: tuple[int, ...], prepare: Prepare, decode: Decode,
    ) -> None:  # fmt: skip
        """``why`` this engine, in words. Raises EngineError when it does not take float32 of ``input_shape`` as
        ``input_name``; ``what`` names the model there."""
        self.engine = engine
        self.why = why
        if self.engine.inputs != {input_name: input_shape}:
            found = ", ".join(f"{name} {list(shape)}" for name, shape in self.engine.inputs.items())
            raise EngineError(f"{what} takes {found}; model.yaml says {input_name} {list(input_shape)}; make the bundle anew")
        foreign = [f"{name} is {kind}" for name, kind in self.engine.kinds.items() if kind != "tensor(float)"]
        if foreign:
            raise EngineError(f"{what}: {', '.join(foreign)}; inputs and outputs are float32: make the bundle anew")
        self.identity = {**identity, "engine": self.engine.version}
        self.outputs = self.engine.outputs
        self._task, self._input = task, input_name
        self._prepare, self._decode = prepare, decode
        self._ticket = 0
        self._waiting: tuple[int, Frame, Box | None] | None = None
        self.last_input: F32 | None = None
        self.last_outputs: dict[str, F32] = {}

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
        try:
            memory = np.frombuffer(frame.memory, np.uint8)
            prepared = self._prepare(memory, frame.size, frame.pitch_bytes, frame.pixel, roi)
        except ValueError as why:
            raise EngineError(str(why)) from why
        middle = now_ns()
        self.last_input = prepared.tensor
        self.last_outputs = self.engine.run(self._input, prepared.tensor[None])
        scores, score_map = self._decode(self.last_outputs)
        ended = now_ns()
        return Findings(self._task, scores, score_map, None, prepared, (middle - begun) / 1e6, (ended - middle) / 1e6)

    def warm(self, frame: Frame, roi: Box | None) -> None:
        """Run once: buffers of that size are made."""
        self.wait(self.submit(frame, roi), 0)

    def statistics(self) -> dict[str, Any]:
        """Figures for health: why this engine."""
        return {"why": self.why}

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()


def _first_line(why: Exception) -> str:
    return (str(why).strip().splitlines() or [type(why).__name__])[0][:200]
