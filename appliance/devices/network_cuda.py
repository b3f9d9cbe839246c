"""The network on a GPU: the frame is read once where the camera put it, a few bytes come back; one graph a kind of frame.

No vendor library is named here: the GPU (devices/cuda.py), the engine, plans and decoding are handed in by wiring.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from appliance.clock import now_ns
from appliance.ports import Counted, DeviceEngine, EngineError, EngineLost, Findings, Frame, MemoryRefused

log = logging.getLogger("appliance.gpu")
Size = tuple[int, int]
Box = tuple[int, int, int, int]
Shape = tuple[int, int]  # blocks, threads of each
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

MOST_KINDS = 8  # of frames, each with memory and maybe a graph; a box has one a camera and recipe, and the golden vectors'
_MOST_LAYOUTS = 64
_ALIGNED_BYTES = 256  # what engines ask of a tensor's address
_REDUCE_THREADS = 256


class DeviceMemory(Protocol):
    """``address``: on the GPU."""

    address: int

    def free(self) -> None: ...


class MappedMemory(Protocol):
    """``array`` u8, which the GPU finds at ``address``."""

    address: int
    array: U8

    def free(self) -> None: ...


class Kernel(Protocol):
    def launch(self, shape: Shape, *arguments: int | float | bytes) -> None: ...


class Done(Protocol):
    def record(self) -> None: ...
    def wait(self) -> None: ...


class Marks(Protocol):
    def mark(self, index: int) -> None: ...
    def milliseconds(self, first: int, second: int) -> float: ...
    def free(self) -> None: ...


class Graph(Protocol):
    def launch(self) -> None: ...
    def free(self) -> None: ...


class Facts(Protocol):
    @property
    def multiprocessors(self) -> int: ...


class Gpu(Protocol):
    """devices/cuda.py's Cuda, with its kernels loaded."""

    @property
    def stream(self) -> int: ...
    @property
    def facts(self) -> Facts: ...
    def allocate(self, nbytes: int) -> DeviceMemory: ...
    def allocate_mapped(self, nbytes: int) -> MappedMemory: ...
    def zero(self, address: int, nbytes: int) -> None: ...
    def poison(self, address: int, nbytes: int) -> None: ...
    def send(self, address: int, source: npt.NDArray[Any]) -> None: ...
    def fetch(self, target: npt.NDArray[Any], address: int) -> None: ...
    def finish(self) -> None: ...
    def kernel(self, name: str, layout: list[str]) -> Kernel: ...
    def done(self) -> Done: ...
    def marks(self, count: int) -> Marks: ...
    def capture(self, record: Callable[[], None]) -> Graph: ...


class Plan(Protocol):
    """appliance/model/kernel_plan.KernelPlan."""

    @property
    def gather(self) -> str: ...
    @property
    def words(self) -> bool: ...
    @property
    def struct(self) -> ctypes.Structure: ...
    @property
    def halved_channels(self) -> int: ...
    @property
    def halved_bytes(self) -> int: ...
    @property
    def rows(self) -> npt.NDArray[np.int32]: ...
    @property
    def row_shares(self) -> F32: ...
    @property
    def columns(self) -> npt.NDArray[np.int32]: ...
    @property
    def column_shares(self) -> F32: ...
    def gather_launch(self, multiprocessors: int) -> Shape: ...
    def sample_launch(self, multiprocessors: int) -> Shape: ...
    def laplacian_variance(self, sums: Any) -> float: ...


# size (width, height), pixel format, ROI or None -> plan. Raises ValueError in words.
PlanFor = Callable[[Size, str, "Box | None"], Plan]
# memory (bytes, 1-D), size, pitch in bytes, pixel format, ROI: raises ValueError in words for what does not fit.
Check = Callable[[U8, Size, int, str, Box], object]
# small outputs by tensor name, the raw map's worst value, the map as u8 (h, w) or None -> (scores, score map).
DecodeReduced = Callable[[Mapping[str, F32], float, "U8 | None"], "tuple[F32, U8 | None]"]


@dataclass(frozen=True)
class Structs:
    """The kernels' structs, as appliance/model/kernel_plan.py has them: FrameStruct, SumsStruct, ExtremesStruct."""

    frame: type[ctypes.Structure]
    sums: type[ctypes.Structure]
    extremes: type[ctypes.Structure]


@dataclass(frozen=True)
class Wanted:
    """What comes back of the engine's outputs: tensors whole by name, and ``map``, if any, as u8: ``low`` is 0, ``high`` 255."""

    whole: tuple[str, ...]
    map: str | None = None
    low: float = 0.0
    high: float = 1.0


@dataclass
class _Kind:
    """All that is made once for frames of one size, pixel format and ROI."""

    plan: Plan
    memory: DeviceMemory
    gather: Callable[[], None]
    sample: Callable[[], None]
    graph: Graph | None = None
    capturable: bool = True
    seen: int = 0
    used: int = 0
    fitting: set[tuple[int, int, int]] = field(default_factory=set)  # layouts that were checked


@dataclass(frozen=True)
class _Waiting:
    ticket: int
    kind: _Kind
    replayed: bool  # not a camera's frame: its tensors are kept for whoever compares them


class CudaNetwork:
    """ports.Network on a GPU, in the thread that opened it."""

    def __init__(
        self, gpu: Gpu, engine: DeviceEngine, identity: dict[str, str], task: str, input_name: str,
        input_shape: tuple[int, ...], wanted: Wanted, plan_for: PlanFor, check: Check, decode: DecodeReduced, structs: Structs,
    ) -> None:  # fmt: skip
        """``engine`` is closed with this network, not when the constructor raises. Raises EngineError."""
        _check_engine(engine, input_name, input_shape, wanted)
        self._gpu, self._engine, self._wanted = gpu, engine, wanted
        self._plan_for, self._check, self._decode, self._structs = plan_for, check, decode, structs
        self._task = task
        self.identity = {**identity, "engine": engine.version}
        self.outputs = dict(engine.outputs)
        self.frame_copies = 0
        self.last_input: F32 | None = None
        self.last_outputs: dict[str, F32] = {}
        self._kept: dict[str, F32] = {}
        self._kinds: dict[tuple[Size, str, Box | None], _Kind] = {}
        self._kernels: dict[str, Kernel] = {}
        self._counts = {"graph_launches": 0, "plain_launches": 0, "capture_failures": 0, "unread_times": 0}
        self._held: list[DeviceMemory | MappedMemory | Marks] = []
        self._staging: MappedMemory | None = None
        self._ticket = 0
        self._waiting: _Waiting | None = None
        self._open = True
        self._input_name = input_name
        try:
            self._make()
        except (EngineError, MemoryRefused) as why:
            self._free()
            raise EngineError(str(why)) from why

    # --- a frame ----------------------------------------------------------------------------------------------

    def submit(self, frame: Frame, roi: Box | None) -> int:
        """Start on a frame: one write to the descriptor and one launch. Raises EngineError; then nothing of it runs."""
        if self._waiting is not None:
            self._settle()
        self._ticket += 1
        try:
            kind = self._kinds.get((frame.size, frame.pixel, roi)) or self._new_kind(frame.size, frame.pixel, roi)
            if _layout(frame) not in kind.fitting:
                self._check_fit(kind, frame, roi)
            camera = frame.arrived_ns != 0  # what never arrived is a golden vector, or a picture from a disk
            address = frame.address
            if not address:
                address = self._staged(frame)
                self.frame_copies += camera
            self._descriptor.data, self._descriptor.pitch = address, frame.pitch_bytes
            kind.used = self._ticket
            self._launch(kind)
            self._done.record()
        except (EngineError, MemoryRefused) as why:
            lost = self._settle()  # maybe by a camera's library: it works in the same context, and every call fails from then on
            if lost is not None:
                raise lost from why
            raise EngineError(str(why)) from why
        self._waiting = _Waiting(self._ticket, kind, not camera)
        return self._ticket

    def wait(self, ticket: int, deadline_ns: int) -> Findings | None:
        """Findings of the frame submitted last. The GPU has let go of the frame when this returns, late or not."""
        waiting, self._waiting = self._waiting, None
        if waiting is None or waiting.ticket != ticket:
            self._waiting = waiting
            raise EngineError(f"ticket {ticket} is not the one that waits")
        self._done.wait()
        if now_ns() > deadline_ns:
            return None
        if waiting.replayed:
            self._keep_tensors()
        else:
            self.last_input, self.last_outputs = None, {}
        back = self._back
        worst = back.extremes.extreme(self._wanted.low < self._wanted.high) if self._wanted.map else 0.0
        scores, score_map = self._decode(back.whole, worst, back.shares)
        np.copyto(self._histogram, back.counted)
        return Findings(
            task=self._task, scores=scores, score_map=score_map, candidates=None,
            statistics=Counted(self._histogram, back.sums.total, waiting.kind.plan.laplacian_variance(back.sums)),
            preprocess_ms=self._took_ms(0, 1), infer_ms=self._took_ms(1, 2),
        )  # fmt: skip

    def _took_ms(self, first: int, second: int) -> float:
        """A figure is no reason to call a part blind."""
        try:
            return self._marks.milliseconds(first, second)
        except EngineError as why:
            self._counts["unread_times"] += 1
            if self._counts["unread_times"] == 1:
                log.warning("how long a run took cannot be read: %s", why)
            return 0.0

    def warm(self, frame: Frame, roi: Box | None) -> None:
        """Make all that frames like this one need, run once, and capture: the first part is then as fast as the next.

        ``frame``: of a camera's size and format, its content does not matter, not counted. Raises EngineError."""
        self.wait(self.submit(frame, roi), 0)
        kind = self._kinds[(frame.size, frame.pixel, roi)]
        if kind.graph is None and kind.capturable:
            self._capture(kind)

    def statistics(self) -> dict[str, Any]:
        """Figures for health: launches by graph and plain ones, graphs and kinds of frames kept, captures that failed."""
        graphs = sum(kind.graph is not None for kind in self._kinds.values())
        return {**self._counts, "graphs": graphs, "kinds": len(self._kinds), "frame_copies": self.frame_copies}

    def close(self) -> None:
        """Free the engine and all memory, once; arrays of Findings are void then."""
        if not self._open:
            return
        self._settle()
        for kind in self._kinds.values():
            if kind.graph:  # before the engine whose kernels it names
                kind.graph.free()
                kind.graph = None
        try:
            self._engine.close()
        finally:
            self._free()

    # --- what runs --------------------------------------------------------------------------------------------

    def _launch(self, kind: _Kind) -> None:
        """Golden vectors go by a graph too: what they prove must be the way that parts go."""
        if kind.graph is None and kind.capturable and kind.seen:
            self._capture(kind)
        kind.seen += 1
        if kind.graph is not None:
            self._counts["graph_launches"] += 1
            kind.graph.launch()
        else:
            self._counts["plain_launches"] += 1
            self._put(kind)

    def _put(self, kind: _Kind) -> None:
        """One frame's work on the stream: run at once, or captured. No argument of it changes from frame to frame."""
        gpu, marks = self._gpu, self._marks
        marks.mark(0)
        gpu.zero(self._results.address, self._zeroed_bytes)
        kind.gather()
        kind.sample()
        marks.mark(1)
        for address, nbytes in self._answers:
            gpu.poison(address, nbytes)  # what the engine leaves out is no number, and blind: never the part before's answer
        self._engine.enqueue(gpu.stream)
        self._reduce()
        gpu.fetch(self._back.array, self._results.address)
        marks.mark(2)

    def _capture(self, kind: _Kind) -> None:
        try:
            kind.graph = self._gpu.capture(partial(self._put, kind))
        except EngineError as why:
            kind.capturable = False
            self._counts["capture_failures"] += 1
            if self._counts["capture_failures"] == 1:
                log.warning("no CUDA graph for %s: %s; frames are launched kernel by kernel, which costs time", self._task, why)

    def _settle(self) -> EngineLost | None:
        """Whatever is on the stream is over: the frame may go back to its driver. Returns why the GPU is lost, if it is:
        nothing runs any more then."""
        self._waiting = None
        try:
            self._gpu.finish()
        except EngineLost as why:
            log.error("after a failed run: %s", why)
            return why
        return None

    def _staged(self, frame: Frame) -> int:
        needed = frame.memory.nbytes
        if self._staging is None or self._staging.array.size < needed:
            if self._staging is not None:
                self._held.remove(self._staging)
                self._staging.free()
                self._staging = None
            self._staging = self._mapped(needed)
        self._staging.array[:needed] = np.frombuffer(frame.memory, np.uint8)
        return self._staging.address

    def _keep_tensors(self) -> None:
        """What the engine was given and gave, for golden vectors; into arrays made at the first."""
        if not self._kept:
            shapes = {self._input_name: self._engine.inputs[self._input_name], **self._engine.outputs}
            self._kept = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
        for name, array in self._kept.items():
            self._gpu.fetch(array, self._tensors[name])
        self._gpu.finish()
        self.last_input = self._kept[self._input_name][0]
        self.last_outputs = {name: self._kept[name] for name in self._engine.outputs}

    # --- what is made once ------------------------------------------------------------------------------------

    def _make(self) -> None:
        gpu, engine = self._gpu, self._engine
        frame = self._mapped(ctypes.sizeof(self._structs.frame))
        written: Any = frame.array
        self._descriptor: Any = self._structs.frame.from_buffer(written)
        self._descriptor_address = frame.address
        layout = _Layout(self._wanted, engine.outputs, self._structs)
        self._results = self._device(layout.nbytes)
        self._back = _Back(layout, self._mapped(layout.nbytes).array)
        self._zeroed_bytes = layout.zeroed_bytes
        self._sums_address = self._results.address + layout.sums
        self._tensors = {name: self._results.address + at for name, at in layout.whole.items()}
        for name, shape in (*engine.inputs.items(), *engine.outputs.items()):
            if name not in self._tensors:
                self._tensors[name] = self._device(_float_bytes(shape)).address
            engine.bind(name, self._tensors[name])
        answers = tuple(filter(None, (*self._wanted.whole, self._wanted.map)))
        self._answers = [(self._tensors[name], _float_bytes(engine.outputs[name])) for name in answers]
        self._reduce = self._reducer(layout)
        self._histogram = np.zeros(256, np.int64)
        self._done, self._marks = gpu.done(), gpu.marks(3)
        self._held.append(self._marks)

    def _reducer(self, layout: _Layout) -> Callable[[], None]:
        wanted, results = self._wanted, self._results.address
        if wanted.map is None:
            return _nothing
        blocks = min(-(-layout.map_values // _REDUCE_THREADS), 8 * self._gpu.facts.multiprocessors)
        return partial(
            self._kernel("reduce_map", ["P", "i", "f", "f", "P", "P"]).launch, (blocks, _REDUCE_THREADS),
            self._tensors[wanted.map], layout.map_values, wanted.low, wanted.high,
            results + layout.shares, results + layout.extremes,
        )  # fmt: skip

    def _new_kind(self, size: Size, pixel: str, roi: Box | None) -> _Kind:
        try:
            plan = self._plan_for(size, pixel, roi)
        except ValueError as why:
            raise EngineError(str(why)) from why
        struct, cores = bytes(plan.struct), self._gpu.facts.multiprocessors
        by_value = f"{len(struct)}s"
        gather = self._kernel(f"gather_{plan.gather}", ["P", by_value, "P", "P"])
        sample = self._kernel(f"sample_{'u16' if plan.words else 'u8'}", [by_value, "i", *"PPPPPPP"])
        while len(self._kinds) >= MOST_KINDS:
            self._drop(min(self._kinds, key=lambda key: self._kinds[key].used))
        places = _Places()
        tables: tuple[npt.NDArray[Any], ...] = (plan.rows, plan.row_shares, plan.columns, plan.column_shares)
        halved, *starts = places.add(plan.halved_bytes), *(places.add(table.nbytes) for table in tables)
        memory = self._filled(places.end, dict(zip(starts, tables)))
        at = memory.address + halved
        kind = _Kind(
            plan, memory,
            partial(gather.launch, plan.gather_launch(cores), self._descriptor_address, struct, at, self._sums_address),
            partial(
                sample.launch, plan.sample_launch(cores), struct, plan.halved_channels, at,
                *(memory.address + start for start in starts), self._tensors[self._input_name], self._sums_address,
            ),
        )  # fmt: skip
        self._kinds[(size, pixel, roi)] = kind
        return kind

    def _check_fit(self, kind: _Kind, frame: Frame, roi: Box | None) -> None:
        """A kernel that reads past a frame's end loses the GPU for the whole process: look before, once a layout."""
        try:
            memory = np.frombuffer(frame.memory, np.uint8)
            self._check(memory, frame.size, frame.pitch_bytes, frame.pixel, roi or (0, 0, *frame.size))
        except ValueError as why:
            raise EngineError(str(why)) from why
        if kind.plan.words and (frame.address | frame.pitch_bytes) % 2:
            raise EngineError(f"a {frame.pixel} frame begins its rows at odd addresses; set the camera's pitch to whole words")
        if len(kind.fitting) >= _MOST_LAYOUTS:
            kind.fitting.clear()
        kind.fitting.add(_layout(frame))

    def _drop(self, key: tuple[Size, str, Box | None]) -> None:
        kind = self._kinds.pop(key)
        if kind.graph:
            kind.graph.free()
        self._held.remove(kind.memory)
        kind.memory.free()

    def _kernel(self, name: str, layout: list[str]) -> Kernel:
        if name not in self._kernels:
            self._kernels[name] = self._gpu.kernel(name, layout)
        return self._kernels[name]

    def _device(self, nbytes: int) -> DeviceMemory:
        made = self._gpu.allocate(nbytes)
        self._held.append(made)
        return made

    def _filled(self, nbytes: int, tables: dict[int, npt.NDArray[Any]]) -> DeviceMemory:
        memory = self._device(nbytes)
        try:
            for at, table in tables.items():
                self._gpu.send(memory.address + at, np.ascontiguousarray(table))
            self._gpu.finish()
        except EngineError:
            self._held.remove(memory)
            memory.free()
            raise
        return memory

    def _mapped(self, nbytes: int) -> MappedMemory:
        made = self._gpu.allocate_mapped(nbytes)
        self._held.append(made)
        return made

    def _free(self) -> None:
        self._open = False
        self._kinds.clear()
        while self._held:
            self._held.pop().free()


class _Places:
    """Pieces one after another in one block, each where an engine may find a tensor."""

    def __init__(self) -> None:
        self.end = 0

    def add(self, nbytes: int) -> int:
        at = self.end
        self.end = -(-(at + nbytes) // _ALIGNED_BYTES) * _ALIGNED_BYTES
        return at


class _Layout:
    """Where everything that comes back stands in one block of the GPU's memory: one copy brings it, and atomics need that
    memory. Sums and extremes come first, so that one stroke zeroes both."""

    def __init__(self, wanted: Wanted, shapes: Mapping[str, tuple[int, ...]], structs: Structs) -> None:
        places = _Places()
        self.structs = structs
        self.sums, self.extremes = places.add(ctypes.sizeof(structs.sums)), places.add(ctypes.sizeof(structs.extremes))
        self.zeroed_bytes = self.extremes + ctypes.sizeof(structs.extremes)
        self.whole = {name: places.add(_float_bytes(shapes[name])) for name in wanted.whole}
        self.shapes = {name: shapes[name] for name in wanted.whole}
        self.map_shape = shapes[wanted.map][-2:] if wanted.map else None
        self.map_values = int(np.prod(shapes[wanted.map])) if wanted.map else 0
        self.shares = places.add(self.map_values)
        self.nbytes = places.end


class _Back:
    """That block on the CPU's side, and views of it: made once, read after every run."""

    def __init__(self, layout: _Layout, array: U8) -> None:
        block: Any = array[: layout.nbytes]
        self.array: U8 = block
        self.sums: Any = layout.structs.sums.from_buffer(block, layout.sums)
        self.extremes: Any = layout.structs.extremes.from_buffer(block, layout.extremes)
        self.counted = np.frombuffer(self.sums.histogram, np.uint32)
        self.whole: dict[str, F32] = {
            name: block[at : at + _float_bytes(layout.shapes[name])].view(np.float32).reshape(layout.shapes[name])
            for name, at in layout.whole.items()
        }
        values = block[layout.shares : layout.shares + layout.map_values]
        self.shares: U8 | None = values.reshape(layout.map_shape) if layout.map_shape else None


def _float_bytes(shape: tuple[int, ...]) -> int:
    return 4 * int(np.prod(shape))


def _layout(frame: Frame) -> tuple[int, int, int]:
    return frame.pitch_bytes, frame.memory.nbytes, frame.address & 1


def _nothing() -> None:
    """No map to reduce."""


def _check_engine(engine: DeviceEngine, input_name: str, input_shape: tuple[int, ...], wanted: Wanted) -> None:
    if engine.inputs != {input_name: input_shape}:
        found = ", ".join(f"{name} {list(shape)}" for name, shape in engine.inputs.items())
        raise EngineError(f"the engine takes {found}; model.yaml says {input_name} {list(input_shape)}; build it anew")
    missing = [name for name in (*wanted.whole, *filter(None, [wanted.map])) if name not in engine.outputs]
    if missing:
        raise EngineError(f"the engine has no output {', '.join(missing)}, only {', '.join(engine.outputs)}; build it anew")
