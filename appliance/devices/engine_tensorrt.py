"""TensorRT 10.3 to 11.4: an engine built of a bundle's graph, and an engine that runs. Failures carry what TensorRT logged.

tensorrt is named in this file only, and imported when something of it is needed."""

from __future__ import annotations

import ctypes
import functools
import json
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from appliance.ports import EngineError

Precision = Literal["int8", "float16", "float32"]
# devices/cuda.driver: None where no CUDA driver answers. Asked before anything of TensorRT is made: a Builder or Runtime made
# without one is an object, and the next call on it ends the process.
Probe = Callable[[], object]

_ALIGNMENT_BYTES = 256  # of every address TensorRT is given (NvInferRuntime.h, setTensorAddress)
_DEFAULT_STREAMS = (0, 1, 2)  # null, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD: TensorRT synchronises there
_LINES = 50  # of the log that are kept
_WANTED = "install JetPack's python3-libnvinfer and make the venv with --system-site-packages; never the index's `tensorrt`"
_INT8 = re.compile(r"\bint8\b", re.IGNORECASE)  # not uint8
_NO_WORK = ("reformat", "quantize", "constant", "noop")  # layer types that only move or convert; dequantize is in quantize


@dataclass(frozen=True)
class BuildOptions:
    """``workspace_bytes``: the most scratch memory a layer may use; ``timing_cache``: of an earlier build on this module."""

    precision: Precision
    workspace_bytes: int
    timing_cache: bytes | None = None


@dataclass(frozen=True)
class Built:
    """An engine's plan; ``flags``: what it was built with, as ``flags_for``; ``notes``: what TensorRT warned of."""

    plan: bytes
    timing_cache: bytes
    flags: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layers:
    """What an engine is made of: ``working`` layers, how many of them take INT8, and ``reformats`` between formats."""

    working: int
    int8: int
    reformats: int


# --- which TensorRT -----------------------------------------------------------------------------------


def version(library: Callable[[str], Any] = ctypes.CDLL) -> str:
    """Full version (``10.3.0.30``): plans and timing caches hold for exactly one. Raises EngineError without TensorRT."""
    told = str(_tensorrt().__version__)  # 10.3's bindings say 10.3.0; the build number only the library knows
    try:
        loaded = library(f"libnvinfer.so.{told.split('.')[0]}")
        parts = [getattr(loaded, f"getInferLib{part}Version") for part in ("Major", "Minor", "Patch", "Build")]
    except (OSError, AttributeError):
        return told
    return ".".join(str(int(part())) for part in parts)


def strongly_typed(full: str) -> bool:
    """Whether precision stands in the graph (10.12 on): a float16 engine is then built of the float16 graph."""
    return _typing(full) != "weakly_typed"


def flags_for(full: str, precision: Precision) -> tuple[str, ...]:
    """What ``build`` sets for a version and a precision; part of an engine's key. Raises EngineError when it is too old."""
    typing = _typing(full)
    weak = {"int8": ("INT8", "FP16"), "float16": ("FP16",), "float32": ()}[precision] if typing == "weakly_typed" else ()
    return (typing, *weak, "TF32", "DETAILED")


def _typing(full: str) -> str:
    """``STRONGLY_TYPED`` is the name of a flag; 11 has no other way, and no flag is set."""
    try:
        major, minor = (int(part) for part in full.split(".")[:2])
    except ValueError as why:
        raise EngineError(f"TensorRT calls itself {full!r}, which is no version; {_WANTED}") from why
    if major < 10:
        raise EngineError(f"TensorRT {full} is too old; JetPack 6.1 brings 10.3, the first this runs on")
    if major > 10:
        return "strongly_typed"
    return "weakly_typed" if minor < 12 else "STRONGLY_TYPED"


def _tensorrt() -> Any:
    try:
        import tensorrt  # type: ignore[import-not-found]
    except (ImportError, OSError) as why:
        raise EngineError(f"tensorrt cannot be imported ({why}); {_WANTED}") from why
    if not hasattr(tensorrt, "Builder"):
        raise EngineError(f"the module tensorrt at {getattr(tensorrt, '__file__', None)} is not TensorRT; {_WANTED}")
    return tensorrt


# --- what TensorRT says -------------------------------------------------------------------------------


@functools.cache
def _logger(trt: Any) -> Any:
    """One for the process, for good: TensorRT keeps the first it was given, and tells it what happens to later objects."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: deque[tuple[int, str]] = deque(maxlen=_LINES)

        def log(self, severity: Any, msg: str) -> None:  # what is raised here ends the process
            if int(severity) <= int(trt.ILogger.WARNING):
                self.lines.append((int(severity), msg))

    return Logger()


def _errors(trt: Any) -> str:
    """Errors since the log was cleared, or failing those all that was said."""
    lines = list(_logger(trt).lines)
    worst = [text for severity, text in lines if severity <= int(trt.ILogger.ERROR)] or [text for _, text in lines]
    return "; ".join(dict.fromkeys(worst)) or "TensorRT logged nothing"


def _begin(probe: Probe, what: str) -> tuple[Any, Any]:
    """tensorrt and the logger, its lines cleared. Raises EngineError without a driver or without TensorRT."""
    if probe() is None:
        raise EngineError(f"{what} needs a GPU, and no CUDA driver answers; run it on the box, or use the CPU network")
    trt = _tensorrt()
    logger = _logger(trt)
    logger.lines.clear()
    return trt, logger


def _make(trt: Any, kind: Callable[..., Any], *given: Any) -> Any:
    """An object of TensorRT's; a constructor that fails raises a bare TypeError, another factory gives None."""
    try:
        made = kind(*given)
    except TypeError as why:
        raise EngineError(f"TensorRT's {kind.__name__} fails: {_errors(trt)} ({why})") from why
    if made is None:
        raise EngineError(f"TensorRT's {kind.__name__} fails: {_errors(trt)}")
    return made


# --- building -----------------------------------------------------------------------------------------


class _Share:
    """Phases within phases as one share of the whole that never falls. Remembers what ``progress`` raised."""

    def __init__(self, progress: Callable[[str, float], None]) -> None:
        self._progress = progress
        self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, steps done
        self._told = 0.0
        self.raised: BaseException | None = None

    def begin(self, phase: str, parent: str | None, steps: int) -> None:
        self._phases[phase] = (parent, max(steps, 1), 0)
        self._tell(phase)

    def step(self, phase: str, step: int) -> bool:
        """False ends the build."""
        if phase in self._phases:
            parent, steps, _ = self._phases[phase]
            self._phases[phase] = (parent, steps, step + 1)
        self._tell(phase)
        return self.raised is None

    def end(self, phase: str) -> None:
        self._phases.pop(phase, None)

    def _tell(self, phase: str) -> None:
        tops = [name for name, (parent, _, _) in self._phases.items() if parent not in self._phases]
        # The end is told by build: only it knows that no phase follows.
        self._told = max(self._told, min(0.99, max((self._of(name) for name in tops), default=0.0)))
        if self.raised is None:
            try:
                self._progress(phase, self._told)
            except BaseException as why:  # through TensorRT's C++ it would end the process; build raises it
                self.raised = why

    def _of(self, name: str) -> float:
        _, steps, done = self._phases[name]
        inner = [self._of(child) for child, (parent, _, _) in self._phases.items() if parent == name != child]
        return min(1.0, (done + max(inner, default=0.0)) / steps)


def _monitor(trt: Any, share: _Share) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            share.begin(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return share.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            share.end(phase_name)

    return Monitor()


def build(onnx: bytes, options: BuildOptions, progress: Callable[[str, float], None], probe: Probe) -> Built:
    """An engine for this module's GPU; takes minutes, and wants a process of its own.

    ``onnx``: int8: the bundle's file; float32: its float model; float16: the float model, or its float16 graph where
    ``strongly_typed``. ``progress`` is told phase and share 0..1; what it raises ends the build and is raised here.
    Raises EngineError."""
    trt, logger = _begin(probe, f"building an engine ({options.precision})")
    flags = flags_for(version(), options.precision)
    builder = _make(trt, trt.Builder, logger)
    network, parser = _network(trt, builder, onnx, options.precision, flags)
    config = _config(trt, builder, options, flags)
    cache, notes = _timing_cache(trt, config, options.timing_cache)
    share = _Share(progress)
    monitor = _monitor(trt, share)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    del parser, monitor, cache  # TensorRT held pointers to them until now; the parser owns the weights
    if share.raised is not None:
        raise share.raised
    if plan is None:
        raise EngineError(f"TensorRT built no {options.precision} engine: {_errors(trt)}")
    notes += [text for _, text in logger.lines]
    progress("built", 1.0)
    return Built(bytes(plan), bytes(config.get_timing_cache().serialize()), flags, tuple(dict.fromkeys(notes)))


def _network(trt: Any, builder: Any, onnx: bytes, precision: Precision, flags: tuple[str, ...]) -> tuple[Any, Any]:
    """The network and its parser."""
    typed = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED  # its number is 1 in 10, 0 in 11
    network = _make(trt, builder.create_network, 1 << int(typed) if typed.name in flags else 0)
    parser = _make(trt, trt.OnnxParser, network, _logger(trt))
    if not parser.parse(onnx):
        faults = [parser.get_error(index) for index in range(parser.num_errors)]
        told = "; ".join(f"{one.node_operator()} {one.node_name()}: {one.desc()}".strip(" :") for one in faults)
        raise EngineError(f"TensorRT does not take the graph: {told or _errors(trt)}; make the bundle anew")
    problem = _graph_problem(trt, network, precision, flags[0] != "weakly_typed")
    if problem:
        raise EngineError(f"no {precision} engine of this graph: {problem}")
    return network, parser


def _graph_problem(trt: Any, network: Any, precision: Precision, typed: bool) -> str:
    """TensorRT would build what the graph says, under whatever name: a float32 engine that calls itself float16."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    pairs = any(layer.type == trt.LayerType.QUANTIZE for layer in layers)
    outputs = [layer.get_output(index) for layer in layers for index in range(layer.num_outputs)]
    half = any(one is not None and one.dtype == trt.DataType.HALF for one in outputs)
    if pairs != (precision == "int8"):
        return "it has Q/DQ pairs; hand in the float model" if pairs else "it has no Q/DQ pairs; hand in the bundle's file"
    if precision == "float16" and typed and not half:
        return "this TensorRT takes precision from the graph, and nothing in it is float16; hand in the float16 graph"
    if precision == "float32" and half:
        return "parts of it are float16; hand in the float model"
    shapes = {one.name: tuple(one.shape) for one in (network.get_input(index) for index in range(network.num_inputs))}
    loose = [f"{name} is {list(shape)}" for name, shape in shapes.items() if any(side < 1 for side in shape)]
    return f"{', '.join(loose)}; shapes are static: make the bundle anew" if loose else ""


def _config(trt: Any, builder: Any, options: BuildOptions, flags: tuple[str, ...]) -> Any:
    config = _make(trt, builder.create_builder_config)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) > options.workspace_bytes:
        raise EngineError(f"TensorRT takes no workspace of {options.workspace_bytes} bytes: {_errors(trt)}")
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for name in ("INT8", "FP16", "TF32"):  # TF32 is on by default; set, so that `flags` is what was set
        if name in flags:
            config.set_flag(getattr(trt.BuilderFlag, name))  # INT8 and FP16 are names that 11 does not have
    return config


def _timing_cache(trt: Any, config: Any, earlier: bytes | None) -> tuple[Any, list[str]]:
    """The cache that is set, to be kept until the build ends. One that does not belong here is left out, and that is noted."""
    cache = config.create_timing_cache(earlier or b"")
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return cache, []
    fresh = config.create_timing_cache(b"")
    if fresh is None or not config.set_timing_cache(fresh, ignore_mismatch=False):
        raise EngineError(f"TensorRT takes no timing cache: {_errors(trt)}")
    return fresh, ["the timing cache is of another TensorRT or GPU and was left out; this build takes longer"]


# --- running ------------------------------------------------------------------------------------------


class TensorRtEngine:
    """ports.DeviceEngine. ``device_memory_bytes``: what its inference takes on the GPU beside weights and tensors;
    ``notes``: what TensorRT warned of as it was loaded (a plan of another module with the same chip runs, with a warning)."""

    def __init__(self, plan: bytes, what: str, capability: tuple[int, int], probe: Probe) -> None:
        """``plan``: of ``build`` on this module, from a file whose digest was checked: loading runs code of TensorRT's on it.
        ``what`` names the engine in errors. Raises EngineError: then build anew."""
        self._trt, self._log = _begin(probe, what)
        self._what = what
        self._runtime = _make(self._trt, self._trt.Runtime, self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(
                f"{what} was not loaded: {_errors(self._trt)}; it belongs to another TensorRT or GPU, or is damaged: build anew"
            )
        self.inputs, self.outputs = _tensors(self._trt, self._engine, what)
        self._context: Any = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"{what} was loaded, but cannot run: {_errors(self._trt)}; free GPU memory")
        self.version = f"tensorrt-{'.'.join(version().split('.')[:3])}/sm{capability[0]}{capability[1]}"
        self.device_memory_bytes = int(self._engine.device_memory_size_v2)
        self.notes = tuple(dict.fromkeys(text for _, text in self._log.lines))
        self._unbound = {*self.inputs, *self.outputs}
        self._begun = False

    def bind(self, name: str, address: int) -> None:
        """Where a tensor lies on the device: at a multiple of 256. Raises EngineError, also after the first ``enqueue``:
        a captured graph would go on with the old address."""
        if self._context is None or self._begun:
            raise EngineError(f"{self._what}: {name} cannot be bound any more; bind every tensor before the first run")
        if name not in self._unbound:
            known = ", ".join([*self.inputs, *self.outputs])
            raise EngineError(f"{self._what}: {name} is bound already, or none of its tensors ({known})")
        if address <= 0 or address % _ALIGNMENT_BYTES:
            raise EngineError(f"{self._what}: {name} at {address:#x}; an address is a multiple of {_ALIGNMENT_BYTES}, above 0")
        self._log.lines.clear()
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"{self._what}: {name} was not bound: {_errors(self._trt)}")
        self._unbound.remove(name)

    def enqueue(self, stream: int) -> None:
        """One inference on the stream, by its handle. Raises EngineError."""
        if self._context is None or self._unbound or stream in _DEFAULT_STREAMS:
            raise EngineError(f"{self._what} cannot run: {self._missing()}")
        self._begun = True
        if self._log.lines:
            self._log.lines.clear()
        if not self._context.execute_async_v3(stream_handle=stream):
            raise EngineError(f"{self._what} failed: {_errors(self._trt)}")

    def layers(self) -> Layers:
        """Counted by TensorRT's inspector. Raises EngineError when the plan carries no details."""
        if self._engine is None:
            raise EngineError(f"{self._what} is closed")
        inspector = _make(self._trt, self._engine.create_engine_inspector)
        return int8_layers(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Free the engine; nothing of it is on the stream any more."""
        self._context = None  # before its engine, and that before its runtime
        self._engine = None
        self._runtime = None

    def _missing(self) -> str:
        if self._context is None:
            return "it is closed"
        if self._unbound:
            return f"{', '.join(sorted(self._unbound))} not bound"
        return "it was given the default stream, which synchronises and cannot be captured; make a stream"


def _tensors(trt: Any, engine: Any, what: str) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Shapes by name of inputs and outputs: static, batch 1, float32, on the device. Raises EngineError with all faults."""
    inputs: dict[str, tuple[int, ...]] = {}
    outputs: dict[str, tuple[int, ...]] = {}
    faults = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = tuple(int(side) for side in engine.get_tensor_shape(name))
        (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs)[name] = shape
        if shape[:1] != (1,) or any(side < 1 for side in shape):
            faults.append(f"{name} is {list(shape)}, not static with batch 1")
        kind = engine.get_tensor_dtype(name)
        if kind != trt.DataType.FLOAT:
            faults.append(f"{name} is {kind.name}, not float32")
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            faults.append(f"{name} does not lie on the device")
    if faults:
        raise EngineError(f"{what}: {'; '.join(faults)}; make the bundle anew")
    return inputs, outputs


# --- what it became -----------------------------------------------------------------------------------


def int8_layers(inspected: str) -> Layers:
    """Counts in the inspector's JSON of a whole engine, of 10 (``Format/Datatype``) and of 11 (``DataType``).

    A layer takes INT8 when one of its inputs or its weights are INT8. Raises EngineError where there are names only."""
    try:
        layers = json.loads(inspected)["Layers"]
        if not all(isinstance(one, dict) for one in layers):
            raise EngineError("the engine was built without details (profiling_verbosity); build anew")
    except (ValueError, KeyError, TypeError) as why:
        raise EngineError(f"TensorRT's inspector says nothing that is known ({str(why)[:80]})") from why
    kinds = [str(one.get("LayerType", "")).lower() for one in layers]
    working = [one for one, kind in zip(layers, kinds) if not any(word in kind for word in _NO_WORK)]
    return Layers(
        working=len(working),
        int8=sum(_takes_int8(one) for one in working),
        reformats=sum("reformat" in kind for kind in kinds),
    )


def _takes_int8(layer: dict[str, Any]) -> bool:
    weights = layer.get("Weights")
    words = [weights.get("Type", "")] if isinstance(weights, dict) else []
    for tensor in layer.get("Inputs", []):
        words += [tensor.get("Format/Datatype", ""), tensor.get("DataType", ""), tensor.get("Datatype", "")]
    return any(_INT8.search(str(word)) for word in words)
