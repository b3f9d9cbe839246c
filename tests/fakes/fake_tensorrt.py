"""A stand-in of TensorRT that behaves, and punishes what the real one punishes: 10.3, 10.16 or 11.4, with that version's names.

    with installed("10.3.0") as trt:      # stands in sys.modules["tensorrt"]
        engine_tensorrt.build(...)

An engine runs its ONNX on onnxruntime, at the addresses it was given (host memory). What a real one does with CUDA comes in
through five functions of this module, replaced for a while by ``hooks``; their defaults are a GPU that works at once:

- ``on_stream(handle, work)``: put ``work()`` on a stream; it may be called later, and again (a graph that is launched).
- ``is_capturing(handle)``: whether that stream is being captured.
- ``on_allocate()``, before an engine's first run, and ``on_synchronise()``, before a run on the default stream.
- ``on_address(address, nbytes)``: raises where that is not live device memory. Asked when work runs.

The first four raise CudaRefused where CUDA refuses; TensorRT logs that and gives False. ``fake_tensorrt_gpu.on_gpu`` joins all
five to the stand-in of libcuda.

What would end the process raises ProcessCrashed (no ``Exception``: nobody catches a segmentation fault), after ``on_crash``.
Names: trt_names.json, read from the real bindings by fake_tensorrt_names.py."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import hashlib
import json
import operator
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx

from tests.fakes import fake_tensorrt_graph as graphs

VERSIONS = ("10.3.0", "10.16", "11.4")
_NAMES: dict[str, Any] = json.loads(Path(__file__).with_name("trt_names.json").read_text())
_PLAN = b"stand-in of a TensorRT plan\n"
_ALIGNMENT_BYTES = 256
_LEAST_WORKSPACE_BYTES = 4096
_SIZES = {"FLOAT": 4, "HALF": 2, "INT8": 1, "INT32": 4, "INT64": 8, "UINT8": 1, "BOOL": 1}


class ProcessCrashed(BaseException):
    """The real one would have ended the process here."""


class CudaRefused(Exception):
    """A call into CUDA that fails."""


def on_stream(handle: int, work: Callable[[], None]) -> None:
    """Put ``work`` on a stream."""
    work()


def is_capturing(handle: int) -> bool:
    """Whether a graph is being captured on that stream; 0: on any."""
    return False


def on_allocate() -> None:
    """Device memory is allocated."""


def on_synchronise() -> None:
    """The whole device is synchronised."""


def on_address(address: int, nbytes: int) -> None:
    """Raises where these bytes are not live device memory."""


def on_crash(why: str) -> None:
    """The process ends."""


@contextlib.contextmanager
def hooks(**functions: Callable[..., Any]) -> Iterator[None]:
    """Replace functions of this module by name, for a while."""
    before = {name: globals()[name] for name in functions}
    globals().update(functions)
    try:
        yield
    finally:
        globals().update(before)


@contextlib.contextmanager
def installed(version: str = "10.3.0", driver: bool = True, gpu: str = "sm87") -> Iterator[types.ModuleType]:
    """The stand-in as ``import tensorrt`` finds it."""
    before = sys.modules.get("tensorrt")
    module = fake_tensorrt(version, driver, gpu)
    sys.modules["tensorrt"] = module
    try:
        yield module
    finally:
        if before is None:
            del sys.modules["tensorrt"]
        else:
            sys.modules["tensorrt"] = before


def fake_tensorrt(version: str = "10.3.0", driver: bool = True, gpu: str = "sm87") -> types.ModuleType:
    """A module of that version on that GPU; ``driver``: whether libcuda answers."""
    return _Module(_World(version, driver, gpu))


class _World:
    """One TensorRT in one process."""

    def __init__(self, version: str, driver: bool, gpu: str) -> None:
        self.real, self.driver, self.gpu = _NAMES[version], driver, gpu
        self.full: str = self.real["full"]
        self.major, self.minor = (int(part) for part in self.full.split(".")[:2])
        enums: Any = _Number
        self.kinds: dict[str, Any] = {name: enums(name, numbers) for name, numbers in self.real["numbers"].items()}
        self._logger: Any = None  # a weak reference: TensorRT holds a pointer
        self._holders: weakref.WeakSet[Any] = weakref.WeakSet()
        for kind in _KINDS:
            self.kinds[kind.__name__] = self._as_in_this_version(kind)
        for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
            setattr(self.kinds["ILogger"], name, self.kinds["Severity"][name])
        self.kinds["ILogger"].Severity = self.kinds["Severity"]

    def _as_in_this_version(self, kind: Any) -> Any:
        members = {*self.real["members"][kind.__name__]}
        kept = {
            name: value
            for name, value in vars(kind).items()
            if name not in ("__dict__", "__weakref__") and (name.startswith("_") or name in members)
        }
        return type(kind)(kind.__name__, kind.__bases__, {**kept, "_world": self})

    def make(self, kind: str, *given: Any) -> Any:
        """An object that only TensorRT makes."""
        made = object.__new__(self.kinds[kind])
        made._world_ = self
        made._fill(*given)
        return made

    def need_driver(self, what: str) -> None:
        if not self.driver:
            crash(f"{what} without a CUDA driver: segmentation fault")

    def take_logger(self, holder: Any, logger: Any) -> None:
        """The first logger stays while anything lives that was made meanwhile; a second is told that it comes too late."""
        if not isinstance(logger, self.kinds["ILogger"]):
            raise TypeError("incompatible constructor arguments: a logger is wanted")
        first = not self._holders
        self._holders.add(holder)
        if first:
            self._logger = weakref.ref(logger)
        elif self._logger() is not logger:
            self._tell(logger, "WARNING", "The logger differs from one already provided for an existing object; that is used")

    def log(self, severity: str, text: str) -> None:
        logger = self._logger()
        if logger is None:
            crash("TensorRT calls a logger that was freed")
        self._tell(logger, severity, text)

    def _tell(self, logger: Any, severity: str, text: str) -> None:
        call(logger.log, self.kinds["Severity"][severity], text)


def crash(why: str) -> NoReturn:
    """End the process, as far as a stand-in can."""
    on_crash(why)
    raise ProcessCrashed(why)


def call(method: Callable[..., Any], *given: Any) -> Any:
    """A call from C++ that may not throw."""
    try:
        return method(*given)
    except BaseException as why:
        crash(f"{getattr(method, '__name__', method)} threw through noexcept: {why!r}")


class _Number(enum.Enum):
    """As pybind11's enums: an int only by ``int()``."""

    def __int__(self) -> int:
        return int(self.value)

    __index__ = __int__


class _Made(type):
    """As pybind11's classes: an override of __init__ that does not call the base's is found."""

    def __call__(cls, *given: Any, **named: Any) -> Any:
        made = super().__call__(*given, **named)
        if not hasattr(made, "_world_"):
            raise TypeError(f"tensorrt.{cls.__name__}.__init__() must be called when overriding __init__")
        return made


class _Bound(metaclass=_Made):
    """What all have in common: no constructor unless one is written, no attribute that the real class has not."""

    _world: _World
    _world_: _World

    def __init__(self) -> None:
        raise TypeError(f"tensorrt.{type(self).__name__}: No constructor defined!")

    def _fill(self, *given: Any) -> None:
        """What ``_World.make`` hands in."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and type(self).__module__ == __name__ and not hasattr(type(self), name):
            raise AttributeError(f"'tensorrt.{type(self).__name__}' object has no attribute {name!r}")
        object.__setattr__(self, name, value)


class ILogger(_Bound):
    def __init__(self) -> None:
        self._world_ = self._world

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError('Tried to call pure virtual function "ILogger::log"')


class IProgressMonitor(_Bound):
    def __init__(self) -> None:
        self._world_ = self._world

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError('Tried to call pure virtual function "IProgressMonitor::phase_start"')

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError('Tried to call pure virtual function "IProgressMonitor::step_complete"')

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError('Tried to call pure virtual function "IProgressMonitor::phase_finish"')


class Dims(_Bound):
    """A sequence, and no tuple."""

    def _fill(self, sides: tuple[int, ...]) -> None:
        self._sides = sides

    def __len__(self) -> int:
        return len(self._sides)

    def __getitem__(self, index: int) -> int:
        return self._sides[index]


class IHostMemory(_Bound):
    """The real one is a buffer; ``bytes()`` works on both."""

    def _fill(self, content: bytes) -> None:
        self._content = content

    def __bytes__(self) -> bytes:
        return self._content

    @property
    def nbytes(self) -> int:
        return len(self._content)


# --- building -----------------------------------------------------------------------------------------


class Builder(_Bound):
    def __init__(self, logger: Any) -> None:
        self._world_ = self._world
        self._world.take_logger(self, logger)
        if not self._world.driver:
            self._world.log("ERROR", "CUDA initialization failure with error: 35")

    @property
    def num_DLA_cores(self) -> int:
        self._world.need_driver("num_DLA_cores")
        return 0

    @property
    def platform_has_fast_int8(self) -> bool:
        self._world.need_driver("platform_has_fast_int8")
        return True

    def create_network(self, flags: int = 0) -> Any:
        self._world.need_driver("create_network")
        return self._world.make("INetworkDefinition", operator.index(flags))

    def create_builder_config(self) -> Any:
        self._world.need_driver("create_builder_config")
        return self._world.make("IBuilderConfig")

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        """None, and a line in the log, when nothing was built."""
        self._world.need_driver("build_serialized_network")
        if not isinstance(network, self._world.kinds["INetworkDefinition"]):
            raise TypeError("incompatible function arguments: a network is wanted")
        if network._parser is not None and network._parser() is None:
            crash("the builder reads weights of a parser that was freed: segmentation fault")
        problem = self._problem(network, config)
        if not problem and not self._phases(config._monitor, network):
            problem = "Error Code 10: Internal Error (the build was cancelled by the progress monitor)"
        if problem:
            self._world.log("ERROR", problem)
            return None
        if config._cache is not None:
            config._cache._entries += network.num_layers
        return self._world.make("IHostMemory", self._plan(network, config))

    def _problem(self, network: Any, config: Any) -> str:
        world, model = self._world, network._model
        if model is None:
            return "Error Code 4: Internal Error (Network must have at least one output)"
        if any(side < 1 for one in model.graph.input for side in graphs.shape(one)):
            return "Error Code 4: Network has dynamic or shape inputs, but no optimization profile has been defined."
        asked = sorted(set(config._flags) & {"INT8", "FP16", "BF16", "FP8", "INT4", "FP4"})
        if network._typed and asked:
            return f"Error Code 3: API Usage Error ({', '.join(asked)} cannot be set with kSTRONGLY_TYPED)"
        if not network._typed and graphs.quantised(model) and "INT8" not in asked:
            return "Error Code 4: Internal Error (the network has Q/DQ layers, but BuilderFlag kINT8 is not set)"
        if config._workspace is not None and config._workspace < _LEAST_WORKSPACE_BYTES:
            return f"Error Code 10: Could not find any implementation for node {model.graph.node[0].name}."
        if not network._typed and (world.major, world.minor) >= (10, 12):
            world.log("WARNING", "Weakly typed networks are deprecated; use kSTRONGLY_TYPED")
        return ""

    def _phases(self, monitor: Any, network: Any) -> bool:
        """Whether the monitor let it go on to the end."""
        if monitor is None:
            return True
        top, inner, steps = "Building Engine", "Timing graph nodes", network.num_layers
        call(monitor.phase_start, top, None, 3)
        going = call(monitor.step_complete, top, 0)
        call(monitor.phase_start, inner, top, steps)
        for step in range(steps):
            going = going and call(monitor.step_complete, inner, step)
        call(monitor.phase_finish, inner)
        for step in (1, 2):
            going = going and call(monitor.step_complete, top, step)
        call(monitor.phase_finish, top)
        return bool(going)

    def _plan(self, network: Any, config: Any) -> bytes:
        onnx_bytes = network._model.SerializeToString()
        head = {
            "tensorrt": self._world.full, "gpu": self._world.gpu, "onnx": hashlib.sha256(onnx_bytes).hexdigest(),
            "flags": sorted(config._flags), "typed": network._typed, "detailed": config._detailed(),
        }  # fmt: skip
        return _PLAN + json.dumps(head).encode() + b"\n" + onnx_bytes


class INetworkDefinition(_Bound):
    def _fill(self, flags: int) -> None:
        typed = self._world.kinds["NetworkDefinitionCreationFlag"]["STRONGLY_TYPED"]
        self._flags = flags
        self._typed = self._world.major >= 11 or bool(flags >> int(typed) & 1)
        self._model: onnx.ModelProto | None = None
        self._parser: Any = None
        self._layers: list[Any] = []

    @property
    def flags(self) -> int:
        return self._flags

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input) if self._model else 0

    @property
    def num_outputs(self) -> int:
        return len(self._model.graph.output) if self._model else 0

    def get_layer(self, index: int) -> Any:
        return self._layers[index]

    def get_input(self, index: int) -> Any:
        return self._tensor(self._model.graph.input[index])  # type: ignore[union-attr]

    def get_output(self, index: int) -> Any:
        return self._tensor(self._model.graph.output[index])  # type: ignore[union-attr]

    def _tensor(self, value: onnx.ValueInfoProto) -> Any:
        kind = graphs.DATA_TYPES.get(value.type.tensor_type.elem_type, "FLOAT")
        return self._world.make("ITensor", value.name, graphs.shape(value), kind)

    def _take(self, model: onnx.ModelProto, parser: Any) -> None:
        self._model, self._parser = model, weakref.ref(parser)
        named = graphs.types(model)
        for node in model.graph.node:
            outputs = [self._world.make("ITensor", name, (), named.get(name, "FLOAT")) for name in node.output]
            self._layers.append(self._world.make("ILayer", node, outputs))


class ITensor(_Bound):
    def _fill(self, name: str, sides: tuple[int, ...], kind: str) -> None:
        self._name, self._sides, self._kind = name, sides, kind

    @property
    def name(self) -> str:
        return self._name

    @property
    def shape(self) -> Any:
        return self._world.make("Dims", self._sides)

    @property
    def dtype(self) -> Any:
        return self._world.kinds["DataType"][self._kind]


class ILayer(_Bound):
    def _fill(self, node: onnx.NodeProto, outputs: list[Any]) -> None:
        self._node, self._outputs = node, outputs

    @property
    def name(self) -> str:
        return self._node.name

    @property
    def type(self) -> Any:
        return self._world.kinds["LayerType"][graphs.LAYER_TYPES.get(self._node.op_type, "UNARY")]

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_output(self, index: int) -> Any:
        return self._outputs[index] if index < len(self._outputs) else None


class IBuilderConfig(_Bound):
    def _fill(self) -> None:
        self._flags = {"TF32"}
        self._workspace: int | None = None
        self._monitor: Any = None
        self._cache: Any = None
        self._verbosity: Any = self._world.kinds["ProfilingVerbosity"]["LAYER_NAMES_ONLY"]

    def set_flag(self, flag: Any) -> None:
        self._flags.add(self._flag(flag))

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(self._flag(flag))

    def get_flag(self, flag: Any) -> bool:
        return self._flag(flag) in self._flags

    def _flag(self, flag: Any) -> str:
        if not isinstance(flag, self._world.kinds["BuilderFlag"]):
            raise TypeError("incompatible function arguments: a BuilderFlag is wanted")
        return str(flag.name)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        """A size that cannot be is an error in the log, and changes nothing."""
        if pool is self._world.kinds["MemoryPoolType"]["WORKSPACE"]:
            if pool_size <= 0:
                self._world.log("ERROR", f"Error Code 3: API Usage Error (invalid pool size {pool_size})")
            else:
                self._workspace = pool_size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self._workspace if self._workspace is not None else 8 << 30

    @property
    def profiling_verbosity(self) -> Any:
        return self._verbosity

    @profiling_verbosity.setter
    def profiling_verbosity(self, verbosity: Any) -> None:
        if not isinstance(verbosity, self._world.kinds["ProfilingVerbosity"]):
            raise TypeError("incompatible function arguments: a ProfilingVerbosity is wanted")
        self._verbosity = verbosity

    def _detailed(self) -> bool:
        return bool(self._verbosity.name == "DETAILED")

    @property
    def progress_monitor(self) -> Any:
        return self._monitor

    @progress_monitor.setter
    def progress_monitor(self, monitor: Any) -> None:
        if not isinstance(monitor, self._world.kinds["IProgressMonitor"]):
            raise TypeError("incompatible function arguments: an IProgressMonitor is wanted")
        self._monitor = monitor

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        """None for bytes that are no timing cache."""
        if not serialized_timing_cache:
            return self._world.make("ITimingCache", {"tensorrt": self._world.full, "gpu": self._world.gpu, "entries": 0})
        try:
            return self._world.make("ITimingCache", json.loads(bytes(serialized_timing_cache)))
        except ValueError:
            self._world.log("ERROR", "Error Code 1: Serialization (the timing cache cannot be read)")
            return None

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache._made_by != self._world.full or (cache._gpu != self._world.gpu and not ignore_mismatch):
            self._world.log("WARNING", "The timing cache was generated by another TensorRT or on another device")
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache


class ITimingCache(_Bound):
    def _fill(self, content: dict[str, Any]) -> None:
        self._made_by, self._gpu, self._entries = content["tensorrt"], content["gpu"], content["entries"]

    def serialize(self) -> Any:
        content = {"tensorrt": self._made_by, "gpu": self._gpu, "entries": self._entries}
        return self._world.make("IHostMemory", json.dumps(content).encode())


class OnnxParser(_Bound):
    def __init__(self, network: Any, logger: Any) -> None:
        self._world_ = self._world
        self._world.take_logger(self, logger)
        self._network = network
        self._errors: list[graphs.Refusal] = []

    def parse(self, model: bytes, path: str | None = None) -> bool:
        found = graphs.read(bytes(model))
        if isinstance(found, str):
            self._errors = [graphs.Refusal(-1, "", "", found)]
        else:
            self._errors = list(graphs.refusals(found))
        for one in self._errors:
            self._world.log("ERROR", f"In node {one.node} with name: {one.name} and operator: {one.operator}: {one.text}")
        if not self._errors and not isinstance(found, str):
            self._network._take(found, self)
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Any:
        return self._world.make("ParserError", self._errors[index])

    def clear_errors(self) -> None:
        self._errors = []


class ParserError(_Bound):
    def _fill(self, refusal: graphs.Refusal) -> None:
        self._refusal = refusal

    def desc(self) -> str:
        return self._refusal.text

    def code(self) -> Any:
        return self._world.kinds["ErrorCode"]["UNSUPPORTED_NODE"]

    def node(self) -> int:
        return self._refusal.node

    def node_name(self) -> str:
        return self._refusal.name

    def node_operator(self) -> str:
        return self._refusal.operator


# --- running ------------------------------------------------------------------------------------------


class Runtime(_Bound):
    def __init__(self, logger: Any) -> None:
        self._world_ = self._world
        self._world.take_logger(self, logger)
        if not self._world.driver:  # an object all the same
            self._world.log("ERROR", "CUDA initialization failure with error: 35")

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        """None, and a line in the log, for what is not of this TensorRT and GPU."""
        self._world.need_driver("deserialize_cuda_engine")
        head, problem = _head(bytes(serialized_engine), self._world)
        if problem:
            self._world.log("ERROR", problem)
            return None
        model = onnx.ModelProto.FromString(bytes(serialized_engine).split(b"\n", 2)[2])
        return self._world.make("ICudaEngine", model, head, self)


def _head(plan: bytes, world: _World) -> tuple[dict[str, Any], str]:
    """What a plan says of itself, and why it cannot be used here."""
    parts = plan.split(b"\n", 2)
    if len(parts) != 3 or parts[0] + b"\n" != _PLAN:
        return {}, "Error Code 1: Serialization (Magic tag does not match)"
    head = json.loads(parts[1])
    if head["tensorrt"] != world.full:
        told = f"version tag {head['tensorrt']} does not match {world.full}"
        return head, f"Error Code 1: Serialization (Serialization assertion failed: {told})"
    if head["gpu"] != world.gpu:
        told = f"expecting compute {head['gpu']} got compute {world.gpu}"
        return head, f"The engine plan file is generated on an incompatible device, {told}, please rebuild."
    if hashlib.sha256(parts[2]).hexdigest() != head["onnx"]:
        return head, "Error Code 1: Serialization (the plan is truncated or damaged)"
    return head, ""


class ICudaEngine(_Bound):
    def _fill(self, model: onnx.ModelProto, head: dict[str, Any], runtime: Any) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        self._model, self._head, self._runtime = model, head, weakref.ref(runtime)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
        rim = [*((one, "INPUT") for one in model.graph.input), *((one, "OUTPUT") for one in model.graph.output)]
        self._io = {one.name: (mode, graphs.shape(one), graphs.types(model)[one.name]) for one, mode in rim}

    @property
    def num_io_tensors(self) -> int:
        return len(self._io)

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node)

    @property
    def device_memory_size_v2(self) -> int:
        return sum(self._nbytes(name) for name in self._io)

    def get_tensor_name(self, index: int) -> str:
        return list(self._io)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._world.kinds["TensorIOMode"][self._io[name][0] if name in self._io else "NONE"]

    def get_tensor_shape(self, name: str) -> Any:
        return self._world.make("Dims", self._io[name][1])

    def get_tensor_dtype(self, name: str) -> Any:
        return self._world.kinds["DataType"][self._io[name][2]]

    def get_tensor_location(self, name: str) -> Any:
        return self._world.kinds["TensorLocation"]["DEVICE"]

    def create_execution_context(self) -> Any:
        return self._world.make("IExecutionContext", self)

    def create_engine_inspector(self) -> Any:
        return self._world.make("EngineInspector", self)

    def _nbytes(self, name: str) -> int:
        _, sides, kind = self._io[name]
        return int(np.prod(sides)) * _SIZES[kind]


class EngineInspector(_Bound):
    def _fill(self, engine: Any) -> None:
        self._engine = engine

    def get_engine_information(self, format: Any) -> str:
        if format is not self._world.kinds["LayerInformationFormat"]["JSON"]:
            return "Layers:"
        return graphs.inspected(self._engine._model, self._world.major, self._engine._head["detailed"])


class IExecutionContext(_Bound):
    def _fill(self, engine: Any) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._warm = False

    def set_tensor_address(self, name: str, memory: int) -> bool:
        memory = operator.index(memory)
        if name not in self._engine._io:
            self._world.log("ERROR", f"Error Code 3: API Usage Error (given invalid tensor name: {name})")
            return False
        if memory % _ALIGNMENT_BYTES:
            self._world.log("ERROR", f"Error Code 3: API Usage Error (address of {name} is not aligned to 256 bytes)")
            return False
        self._addresses[name] = memory
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def execute_async_v3(self, stream_handle: int) -> bool:
        """False, and a line in the log, when nothing was put on the stream."""
        handle = operator.index(stream_handle)
        if self._engine._runtime() is None:
            crash("an engine runs whose runtime was freed")
        unbound = [name for name in self._engine._io if not self._addresses.get(name)]
        if unbound:
            self._world.log("ERROR", f"Error Code 3: API Usage Error (address is not set for tensor {unbound[0]})")
            return False
        try:
            self._put(handle, is_capturing(handle))
        except CudaRefused as why:
            self._world.log("ERROR", f"Error Code 1: Cuda Runtime ({why})")
            return False
        return True

    def _put(self, handle: int, capturing: bool) -> None:
        if not self._warm:
            on_allocate()
        if handle == 0:
            self._world.log("WARNING", "Using default stream in enqueueV3() may lead to performance issues")
            on_synchronise()
        if capturing and (handle == 0 or not self._warm):  # whatever the hooks say
            raise CudaRefused("operation not permitted when stream is capturing")
        addresses = dict(self._addresses)  # a graph goes on with these, whatever is bound later
        on_stream(handle, lambda: self._run(addresses))
        self._warm = True

    def _run(self, addresses: dict[str, int]) -> None:
        engine = self._engine
        arrays = {name: self._at(name, address) for name, address in addresses.items()}
        given = {name: array.copy() for name, array in arrays.items() if engine._io[name][0] == "INPUT"}
        names = [name for name in arrays if engine._io[name][0] == "OUTPUT"]
        for name, made in zip(names, engine._session.run(names, given)):
            arrays[name][...] = made

    def _at(self, name: str, address: int) -> Any:
        _, sides, kind = self._engine._io[name]
        nbytes = self._engine._nbytes(name)
        on_address(address, nbytes)
        dtype = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32}[kind]
        return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), dtype).reshape(sides)


_KINDS: tuple[Any, ...] = (
    ILogger, IProgressMonitor, Dims, IHostMemory, Builder, INetworkDefinition, ITensor, ILayer, IBuilderConfig, ITimingCache,
    OnnxParser, ParserError, Runtime, ICudaEngine, EngineInspector, IExecutionContext,
)  # fmt: skip
_ALIASES = {"float32": "FLOAT", "float16": "HALF", "int8": "INT8", "int32": "INT32"}


class _Module(types.ModuleType):
    """Names that this version has not are not there; real ones that the stand-in lacks say so."""

    def __init__(self, world: _World) -> None:
        super().__init__("tensorrt", "a stand-in")
        self._world = world
        self.__version__ = world.full
        for name, kind in world.kinds.items():
            if name in world.real["names"]:
                setattr(self, name, kind)
        for name, kind in _ALIASES.items():
            setattr(self, name, world.kinds["DataType"][kind])

    def __getattr__(self, name: str) -> Any:
        if name in self._world.real["names"]:
            raise NotImplementedError(f"tensorrt {self._world.full} has {name}, the stand-in does not: build it")
        raise AttributeError(f"module 'tensorrt' has no attribute {name!r}")
