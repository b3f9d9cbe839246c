"""A GPU and its driver in this process: libcuda's calls on the CPU's memory, the kernels' CPU build behind their names.

It bites where the real one bites. Device memory and mapped memory have real addresses, but a mapped buffer's device
address is never its host address (the same pages, mapped twice); work on a stream runs when somebody waits for it and
not before; a graph keeps the arguments it was captured with; what touches memory that is freed, foreign or of another
context is a fault that stays. Codes and rules as cuda.h of CUDA 13.0 documents them.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from appliance.model.kernel_plan import ExtremesStruct, FrameStruct, PlanStruct, SumsStruct

NAMES = {
    1: ("CUDA_ERROR_INVALID_VALUE", "invalid argument"), 2: ("CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
    3: ("CUDA_ERROR_NOT_INITIALIZED", "initialization error"),
    100: ("CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"),
    101: ("CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"),
    200: ("CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"),
    201: ("CUDA_ERROR_INVALID_CONTEXT", "invalid device context"),
    209: ("CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"),
    218: ("CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"),
    222: ("CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."),
    400: ("CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"), 500: ("CUDA_ERROR_NOT_FOUND", "named symbol not found"),
    600: ("CUDA_ERROR_NOT_READY", "device not ready"),
    700: ("CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"),
    712: ("CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"),
    713: ("CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region"),
    716: ("CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"),
    801: ("CUDA_ERROR_NOT_SUPPORTED", "operation not supported"),
    900: ("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"),
    901: ("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"),
    903: ("CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not initiated in this stream"),
    906: ("CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capturing blocking stream"),
    907: ("CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"),
    908: ("CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread"),
}  # fmt: skip
_PTX_OF_CUDA = {12020: (8, 2), 12060: (8, 5), 13000: (9, 0), 13020: (9, 2)}
_BYTES_OF_PIXEL = {"mono8": 1, "mono16": 2, "rgb8": 3, "bgr8": 3, "yuyv": 2, "uyvy": 2, "nv12": 1} | {
    f"{kind}{bits}": bits // 8 for kind in ("bayer", "quads") for bits in (8, 16)
}
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
_libc.mremap.restype = ctypes.c_void_p
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Refused(Exception):
    """A call's result that is not 0."""

    def __init__(self, code: int, routine: str = "") -> None:
        super().__init__(f"{routine} failed: {NAMES[code][1]}")
        self.code = code


@dataclass
class Context:
    handle: int
    primary: bool
    retained: int = 1


@dataclass
class Range:
    """Memory that a GPU reaches: device memory, or a second mapping of the host's."""

    start: int
    nbytes: int
    context: Context
    kind: str
    host: int = 0
    kept: Any = None


@dataclass
class Work:
    what: str
    run: Callable[[], None]


@dataclass
class Capture:
    mode: int
    thread: int
    nodes: list[Work] = field(default_factory=list)
    broken: bool = False


@dataclass
class Stream:
    handle: int
    flags: int
    context: Context
    queue: deque[Work] = field(default_factory=deque)
    capture: Capture | None = None


@dataclass
class Event:
    handle: int
    flags: int
    stream: Stream | None = None
    captured: bool = False
    pending: int = 0
    at_ns: int = 0


class Gpu:
    """One machine's GPU. ``chip``: 87 for sm_87; ``driver``: as cuDriverGetVersion has it."""

    name, multiprocessors, total = "Orin", 8, 8 << 30

    def __init__(self, kernels: Any = None, chip: int = 87, driver: int = 12060, coherent: bool = True) -> None:
        self.kernels, self.chip, self.driver, self.coherent = kernels, chip, driver, coherent
        self.started = False
        self.fault = 0
        self.capturable = True  # False: every capture ends broken, as of an engine that cannot be captured
        self.limit = self.total
        self.allocations = 0  # ever made, of every kind
        self.calls: list[str] = []  # what reached the stream or a graph's launch, in order
        self.keep_calls = False
        self.primary = Context(0x7F0100000000, True, 0)
        self.streams: dict[int, Stream] = {}
        self.events: dict[int, Event] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, tuple[Work, ...]] = {}
        self._ranges: list[Range] = []
        self._starts: list[int] = []
        self._stacks: dict[int, list[Context]] = {}
        self._next = 0x7F1200000000  # handles need all their bits
        self._lock = threading.RLock()

    # --- what a test asks ---------------------------------------------------------------------------------

    def live(self, kind: str = "") -> int:
        """How many pieces of memory (of that kind) are not freed."""
        return sum(1 for one in self._ranges if kind in (one.kind, ""))

    def live_handles(self) -> int:
        """Events of ctypes, graphs and their executables that nobody destroyed."""
        return len(self.graphs) + len(self.executables) + sum(1 for one in self.events.values() if one.handle & 1)

    def left_pushed(self) -> list[int]:
        """Threads whose context is still pushed: PyCUDA aborts the process when such a thread ends."""
        return [thread for thread, stack in self._stacks.items() if stack]

    def device_address(self, host: int) -> int:
        return next(one.start + host - one.host for one in self._ranges if one.host <= host < one.host + one.nbytes)

    def handle(self, odd: bool = False) -> int:
        self._next += 0x100
        return self._next + odd

    # --- contexts -----------------------------------------------------------------------------------------

    def stack(self) -> list[Context]:
        return self._stacks.setdefault(threading.get_ident(), [])

    def current(self, routine: str) -> Context:
        if not self.started:
            raise Refused(3, routine)
        if self.fault:
            raise Refused(self.fault, routine)
        if not self.stack():
            raise Refused(201, routine)
        return self.stack()[-1]

    # --- memory -------------------------------------------------------------------------------------------

    def _add(self, one: Range) -> Range:
        place = bisect.bisect(self._starts, one.start)
        self._starts.insert(place, one.start)
        self._ranges.insert(place, one)
        self.allocations += 1
        return one

    def _drop(self, one: Range) -> None:
        place = self._starts.index(one.start)
        del self._starts[place], self._ranges[place]

    def find(self, address: int, nbytes: int = 1) -> Range | None:
        place = bisect.bisect(self._starts, address) - 1
        if place < 0:
            return None
        one = self._ranges[place]
        return one if one.start <= address and address + nbytes <= one.start + one.nbytes else None

    def reach(self, context: Context, address: int, nbytes: int, align: int = 1) -> int:
        """An access by the GPU: to memory of that context that is alive, or the GPU is lost."""
        one = self.find(address, nbytes)
        if one is None or one.context is not context:
            self.fault = 700
        elif address % align:
            self.fault = 716
        if self.fault:
            raise Refused(self.fault, "kernel")
        return address

    def mem_alloc(self, nbytes: int) -> int:
        context = self.unsafe("cuMemAlloc")
        used = sum(one.nbytes for one in self._ranges if one.kind == "device")
        if nbytes < 1:
            raise Refused(1, "cuMemAlloc")
        if used + nbytes > self.limit:
            raise Refused(2, "cuMemAlloc")
        kept = mmap.mmap(-1, nbytes)
        kept.write(b"\xcd" * nbytes)
        return self._add(Range(_address(kept), nbytes, context, "device", kept=kept)).start

    def mem_free(self, address: int) -> None:
        self.unsafe("cuMemFree")
        one = self.find(address)
        if one is None or one.start != address or one.kind != "device":
            raise Refused(1, "cuMemFree")
        self._drop(one)

    def host_alloc(self, nbytes: int, flags: int) -> tuple[int, Any]:
        """Address and what keeps it. The driver promises no page: the buffer begins past one."""
        context = self.unsafe("cuMemHostAlloc")
        kept = mmap.mmap(-1, nbytes + 256)
        kept.write(b"\xcd" * (nbytes + 256))
        host = _address(kept)
        if flags & 2:
            self._add(Range(_again(host, nbytes + 256) + 256, nbytes, context, "mapped", host + 256, kept))
        else:
            self._add(Range(-host - 256, nbytes, context, "pinned", host + 256, kept))
        return host + 256, kept

    def host_free(self, host: int) -> None:
        self.unsafe("cuMemFreeHost")
        one = next((one for one in self._ranges if one.host == host and one.kind in ("mapped", "pinned")), None)
        if one is None:
            raise Refused(1, "cuMemFreeHost")
        self._drop(one)
        if one.kind == "mapped":
            _libc.munmap(one.start - 256, one.nbytes + 256)

    def host_register(self, host: int, nbytes: int, flags: int) -> None:
        context = self.unsafe("cuMemHostRegister")
        if not self.coherent:
            raise Refused(801, "cuMemHostRegister")
        if host % mmap.PAGESIZE or nbytes % mmap.PAGESIZE or not nbytes:
            raise Refused(1, "cuMemHostRegister")
        if any(one.host and one.host < host + nbytes and host < one.host + one.nbytes for one in self._ranges):
            raise Refused(712, "cuMemHostRegister")
        if flags & 2:
            self._add(Range(_again(host, nbytes), nbytes, context, "registered", host))
        else:
            self._add(Range(-host, nbytes, context, "registered", host))

    def host_unregister(self, host: int) -> None:
        self.unsafe("cuMemHostUnregister")
        one = next((one for one in self._ranges if one.host == host and one.kind == "registered"), None)
        if one is None:
            raise Refused(713, "cuMemHostUnregister")
        self._drop(one)
        if one.start > 0:
            _libc.munmap(one.start, one.nbytes)

    def host_device_pointer(self, host: int) -> int:
        self.current("cuMemHostGetDevicePointer")
        one = next((one for one in self._ranges if one.host <= host < one.host + one.nbytes and one.host), None)
        if one is None or one.start < 0:
            raise Refused(1, "cuMemHostGetDevicePointer")
        return one.start + host - one.host

    def page_locked(self, host: int) -> bool:
        return any(one.host and one.host <= host < one.host + one.nbytes for one in self._ranges)

    # --- streams, events, graphs --------------------------------------------------------------------------

    def unsafe(self, routine: str) -> Context:
        """A call that may wait or allocate: it breaks a capture of this thread, or a global one of any."""
        context = self.current(routine)
        for stream in list(self.streams.values()):
            capture = stream.capture
            if capture and capture.mode != 2 and (capture.mode == 0 or capture.thread == threading.get_ident()):
                capture.broken = True
                raise Refused(900, routine)
        return context

    def stream_create(self, flags: int) -> int:
        stream = Stream(self.handle(), flags, self.unsafe("cuStreamCreate"))
        self.streams[stream.handle] = stream
        return stream.handle

    def stream(self, handle: int, routine: str) -> Stream:
        context = self.current(routine)
        if not handle:
            return self.streams.setdefault(-context.handle, Stream(0, 0, context))
        if handle not in self.streams:
            raise Refused(400, routine)
        stream = self.streams[handle]
        if stream.context is not context:
            raise Refused(400, routine)
        return stream

    def enqueue(self, handle: int, what: str, run: Callable[[], None]) -> None:
        """Work on a stream: into its capture, or to be done when somebody waits."""
        stream = self.stream(handle, what)
        if not handle:
            for other in self.streams.values():
                if other.capture and not other.flags & 1:
                    other.capture.broken = True
                    raise Refused(906, what)
        if self.keep_calls:
            self.calls.append(what)
        if stream.capture:
            if stream.capture.broken:
                raise Refused(901, what)
            stream.capture.nodes.append(Work(what, run))
        else:
            stream.queue.append(Work(what, run))

    def flush(self, stream: Stream) -> None:
        while stream.queue:
            stream.queue.popleft().run()

    def stream_synchronize(self, handle: int) -> None:
        stream = self.stream(handle, "cuStreamSynchronize")
        if stream.capture:
            stream.capture.broken = True
            raise Refused(900, "cuStreamSynchronize")
        self.unsafe("cuStreamSynchronize")
        self.flush(stream)

    def stream_query(self, handle: int) -> bool:
        """False as long as there is work; asking lets it be done."""
        stream = self.stream(handle, "cuStreamQuery")
        self.unsafe("cuStreamQuery")
        waiting = bool(stream.queue)
        self.flush(stream)
        return not waiting

    def synchronize(self) -> None:
        context = self.unsafe("cuCtxSynchronize")
        for stream in list(self.streams.values()):
            if stream.context is context:
                self.flush(stream)

    def event_create(self, flags: int, odd: bool = False) -> int:
        self.current("cuEventCreate")
        event = Event(self.handle(odd), flags)
        self.events[event.handle] = event
        return event.handle

    def event(self, handle: int, routine: str) -> Event:
        self.current(routine)
        if handle not in self.events:
            raise Refused(400, routine)
        return self.events[handle]

    def event_record(self, handle: int, stream_handle: int, external: bool = False) -> None:
        event, stream = self.event(handle, "cuEventRecord"), self.stream(stream_handle, "cuEventRecord")
        if external and not stream.capture:
            raise Refused(1, "cuEventRecordWithFlags")

        def passed() -> None:
            event.pending -= 1
            event.at_ns = time.perf_counter_ns()

        def node() -> None:
            event.pending += 1
            event.stream = stream
            passed()

        if stream.capture and not external:
            event.captured = True
            return
        if external:
            self.enqueue(stream_handle, "event", node)
            return
        event.captured, event.stream = False, stream
        event.pending += 1
        self.enqueue(stream_handle, "event", passed)

    def event_synchronize(self, handle: int) -> None:
        event = self.event(handle, "cuEventSynchronize")
        if event.captured:
            raise Refused(907, "cuEventSynchronize")
        self.unsafe("cuEventSynchronize")
        while event.pending and event.stream and event.stream.queue:
            event.stream.queue.popleft().run()

    def event_query(self, handle: int) -> bool:
        event = self.event(handle, "cuEventQuery")
        if event.captured:
            raise Refused(907, "cuEventQuery")
        self.unsafe("cuEventQuery")
        waiting = event.pending > 0
        if event.stream:
            self.flush(event.stream)
        return not waiting

    def elapsed(self, first: int, second: int) -> float:
        events = [self.event(one, "cuEventElapsedTime") for one in (first, second)]
        if any(one.captured for one in events):
            raise Refused(907, "cuEventElapsedTime")
        if any(one.flags & 2 or not (one.at_ns or one.pending) for one in events):
            raise Refused(400, "cuEventElapsedTime")
        if any(one.pending for one in events):
            raise Refused(600, "cuEventElapsedTime")
        return (events[1].at_ns - events[0].at_ns) / 1e6

    def begin_capture(self, handle: int, mode: int) -> None:
        stream = self.stream(handle, "cuStreamBeginCapture")
        if not handle:
            raise Refused(900, "cuStreamBeginCapture")
        if stream.capture:
            raise Refused(1, "cuStreamBeginCapture")
        stream.capture = Capture(mode, threading.get_ident())

    def end_capture(self, handle: int) -> int:
        stream = self.stream(handle, "cuStreamEndCapture")
        capture, stream.capture = stream.capture, None
        if capture is None:
            raise Refused(903, "cuStreamEndCapture")
        if capture.thread != threading.get_ident() and capture.mode != 2:
            stream.capture = capture
            raise Refused(908, "cuStreamEndCapture")
        if capture.broken or not self.capturable:
            raise Refused(901, "cuStreamEndCapture")
        graph = self.handle()
        self.graphs[graph] = capture.nodes
        return graph

    def instantiate(self, graph: int) -> int:
        self.unsafe("cuGraphInstantiateWithFlags")
        if graph not in self.graphs:
            raise Refused(1, "cuGraphInstantiateWithFlags")
        executable = self.handle()
        self.executables[executable] = tuple(self.graphs[graph])
        return executable

    def graph_launch(self, executable: int, handle: int) -> None:
        if executable not in self.executables:
            raise Refused(400, "cuGraphLaunch")
        if self.keep_calls:
            self.calls.append("graph")
        kept, self.keep_calls = self.keep_calls, False
        for node in self.executables[executable]:
            self.enqueue(handle, node.what, node.run)
        self.keep_calls = kept

    # --- copies -------------------------------------------------------------------------------------------

    def memset(self, address: int, value: int, nbytes: int, handle: int) -> None:
        context = self.current("cuMemsetD8Async")
        self.enqueue(handle, "memset", lambda: ctypes.memset(self.reach(context, address, nbytes), value, nbytes) and None)

    def copy(self, routine: str, target: int, source: int, nbytes: int, handle: int, host: int) -> None:
        """``host``: which of the two addresses (1 target, 2 source) is the host's."""
        context = self.current(routine)
        kept: Any = None
        if not self.page_locked(target if host == 1 else source):
            if self.stream(handle, routine).capture:
                raise Refused(900, routine)  # pageable memory is staged by the driver
            if host == 2:
                kept = ctypes.create_string_buffer(ctypes.string_at(source, nbytes), nbytes)
                source = ctypes.addressof(kept)

        def run(kept: Any = kept) -> None:
            self.reach(context, source if host == 1 else target, nbytes)
            ctypes.memmove(target, source, nbytes)

        self.enqueue(handle, routine, run)

    # --- kernels ------------------------------------------------------------------------------------------

    def load(self, image: bytes) -> None:
        self.unsafe("cuModuleLoadDataEx")
        if image[:4] == b"\x7fELF":
            new = image[7] == 0x41
            flags = int.from_bytes(image[48:52], "little")
            if new and self.driver < 13000:
                raise Refused(200, "cuModuleLoadDataEx")
            if ((flags >> 8) if new else flags) & 0xFF != self.chip:
                raise Refused(209, "cuModuleLoadDataEx")
            return
        version, target = re.search(rb"\.version (\d+)\.(\d+)", image), re.search(rb"\.target sm_(\d+)", image)
        if b"\0" not in image or version is None or target is None:
            raise Refused(218, "cuModuleLoadDataEx")
        if (int(version[1]), int(version[2])) > _PTX_OF_CUDA[self.driver]:
            raise Refused(222, "cuModuleLoadDataEx")
        if int(target[1]) > self.chip:
            raise Refused(209, "cuModuleLoadDataEx")

    def launch(self, name: str, grid: tuple[int, ...], block: tuple[int, ...], buffer: bytes, handle: int) -> None:
        context = self.current("cuLaunchKernel")
        kind = _Gather if name.startswith("gather_") else _Sample if name.startswith("sample_") else _Reduce
        last = kind._fields_[-1][0]
        size = getattr(kind, last).offset + getattr(kind, last).size
        blocks, threads = int(np.prod(grid)), int(np.prod(block))
        if len(buffer) != size or not 1 <= threads <= 1024 or blocks < 1:
            raise Refused(1, "cuLaunchKernel")
        arguments = kind.from_buffer_copy(buffer + b"\0" * (ctypes.sizeof(kind) - size))
        run = {_Gather: self._gather, _Sample: self._sample, _Reduce: self._reduce}[kind]
        self.enqueue(handle, name, lambda: run(context, name, blocks, arguments))

    def _gather(self, context: Context, name: str, blocks: int, a: Any) -> None:
        format_, plan = name.removeprefix("gather_"), a.plan
        at = self.reach(context, a.frame, ctypes.sizeof(FrameStruct), 8)
        frame = FrameStruct.from_address(at)
        wide = _BYTES_OF_PIXEL[format_]
        first = plan.y * frame.pitch + plan.x * wide
        last = (plan.y + plan.height - 1) * frame.pitch + (plan.x + plan.width) * wide
        if format_ == "nv12":
            last = (plan.frame_height + (plan.y + plan.height - 1) // 2) * frame.pitch + plan.x + plan.width
        even = 2 if format_.endswith("16") else 1
        self.reach(context, frame.data + first, last - first)
        if (frame.data | frame.pitch) % even:
            self.fault = 716
            raise Refused(716, "kernel")
        channels = 3 if format_ not in ("mono8", "mono16") and plan.channels == 3 else 1
        self.reach(context, a.halved, plan.out_width * plan.out_height * channels * even, even)
        self.reach(context, a.sums, ctypes.sizeof(SumsStruct), 8)
        assert self.kernels.run_gather(format_.encode(), blocks, at, ctypes.byref(plan), a.halved, a.sums) == 0

    def _sample(self, context: Context, name: str, blocks: int, a: Any) -> None:
        plan, words = a.plan, name == "sample_u16"
        self.reach(context, a.halved, plan.out_width * plan.out_height * a.channels * (2 if words else 1))
        for table, count in ((a.rows, plan.content_height), (a.row_shares, plan.content_height),
                             (a.columns, plan.content_width), (a.column_shares, plan.content_width)):  # fmt: skip
            self.reach(context, table, 4 * count, 4)
        self.reach(context, a.tensor, 4 * plan.channels * plan.target_width * plan.target_height, 4)
        self.reach(context, a.sums, ctypes.sizeof(SumsStruct), 8)
        self.kernels.run_sample(
            int(words), blocks, ctypes.byref(plan), a.channels, a.halved, a.rows, a.row_shares, a.columns, a.column_shares,
            a.tensor, a.sums,
        )  # fmt: skip

    def _reduce(self, context: Context, name: str, blocks: int, a: Any) -> None:
        self.reach(context, a.map, 4 * a.count, 4)
        self.reach(context, a.shares, a.count)
        self.reach(context, a.extremes, ctypes.sizeof(ExtremesStruct), 4)
        self.kernels.run_reduce_map(blocks, a.map, a.count, a.low, a.high, a.shares, a.extremes)

    # --- libcuda.so.1 -------------------------------------------------------------------------------------

    def library(self, name: str) -> Library:
        """What ctypes.CDLL would give."""
        if name != "libcuda.so.1":
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        return Library(self)


class _Gather(ctypes.Structure):
    _fields_ = [("frame", ctypes.c_uint64), ("plan", PlanStruct), ("halved", ctypes.c_uint64), ("sums", ctypes.c_uint64)]


class _Sample(ctypes.Structure):
    _fields_ = [
        ("plan", PlanStruct), ("channels", ctypes.c_int),
        *((name, ctypes.c_uint64) for name in (
            "halved", "rows", "row_shares", "columns", "column_shares", "tensor", "sums"
        )),
    ]  # fmt: skip


class _Reduce(ctypes.Structure):
    _fields_ = [
        ("map", ctypes.c_uint64), ("count", ctypes.c_int), ("low", ctypes.c_float), ("high", ctypes.c_float),
        ("shares", ctypes.c_uint64), ("extremes", ctypes.c_uint64),
    ]  # fmt: skip


def _address(mapping: mmap.mmap) -> int:
    """Of its first byte; the mapping stays closable."""
    return int(np.frombuffer(mapping, np.uint8).ctypes.data)


def _again(host: int, nbytes: int) -> int:
    """A second mapping of the same shared pages (mremap(2) with an old size of 0)."""
    at = _libc.mremap(host, 0, -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE, 1)
    if at in (None, ctypes.c_void_p(-1).value):
        raise Refused(1, "cuMemHostRegister")  # a private mapping: give the stand-in a shared one
    return int(at)


class Library:
    """libcuda as ctypes sees it: a function without declared arguments gets its ints cut to 32 bits."""

    def __init__(self, gpu: Gpu) -> None:
        self._functions = {name: _Function(gpu, name, body) for name, body in _CALLS.items()}

    def __getattr__(self, name: str) -> _Function:
        try:
            return self._functions[name]
        except KeyError:
            raise AttributeError(f"libcuda.so.1: undefined symbol: {name}") from None


class _Function:
    def __init__(self, gpu: Gpu, name: str, body: Callable[..., Any]) -> None:
        self._gpu, self._body, self.__name__ = gpu, body, name
        self.argtypes: list[Any] | None = None
        self.restype: Any = ctypes.c_int

    def __call__(self, *arguments: Any) -> int:
        types = self.argtypes if self.argtypes is not None else [None] * len(arguments)
        if len(types) != len(arguments):
            raise TypeError(f"{self.__name__} takes {len(types)} arguments ({len(arguments)} given)")
        try:
            with self._gpu._lock:
                self._body(self._gpu, *(_as_c(value, kind) for value, kind in zip(arguments, types)))
        except Refused as why:
            return why.code
        return 0


def _as_c(value: Any, kind: Any) -> Any:
    """What the C function would see; a pointer's target for byref."""
    target = getattr(value, "_obj", None)
    if kind is None:
        if target is not None:
            return target
        value = getattr(value, "value", value) or 0
        return value & 0xFFFFFFFF  # an int is a C int where nothing else is declared
    wanted = getattr(kind, "_type_", None)
    if isinstance(wanted, type):  # a pointer
        if not isinstance(target, wanted):
            raise ctypes.ArgumentError(f"expected a pointer to {wanted.__name__}")
        return target
    if isinstance(value, kind):
        value = value.value
    if value is not None and not isinstance(value, int):
        raise ctypes.ArgumentError(f"{type(value).__name__} instead of {kind.__name__}")
    return kind(value).value or 0


def _init(gpu: Gpu, flags: int) -> None:
    gpu.started = True


def _set(target: Any, value: Any) -> None:
    target.value = value


def _word(gpu: Gpu, code: int, target: Any, which: int) -> None:
    if code not in NAMES:
        raise Refused(1)
    target.value = NAMES[code][which].encode()


def _destroy(table: dict[int, Any], handle: int) -> None:
    if table.pop(handle, None) is None:
        raise Refused(400)


_CALLS: dict[str, Callable[..., Any]] = {
    "cuInit": _init,
    "cuDriverGetVersion": lambda gpu, target: _set(target, gpu.driver),
    "cuDeviceGetCount": lambda gpu, target: _set(target, 1),
    "cuGetErrorName": lambda gpu, code, target: _word(gpu, code, target, 0),
    "cuGetErrorString": lambda gpu, code, target: _word(gpu, code, target, 1),
    "cuMemHostRegister_v2": lambda gpu, host, nbytes, flags: gpu.host_register(host, nbytes, flags),
    "cuMemHostGetDevicePointer_v2": lambda gpu, target, host, flags: _set(target, gpu.host_device_pointer(host)),
    "cuMemHostUnregister": lambda gpu, host: gpu.host_unregister(host),
    "cuStreamBeginCapture_v2": lambda gpu, stream, mode: gpu.begin_capture(stream, mode),
    "cuStreamEndCapture": lambda gpu, stream, target: _set(target, gpu.end_capture(stream)),
    "cuGraphInstantiateWithFlags": lambda gpu, target, graph, flags: _set(target, gpu.instantiate(graph)),
    "cuGraphDestroy": lambda gpu, graph: _destroy(gpu.graphs, graph),
    "cuGraphExecDestroy": lambda gpu, executable: _destroy(gpu.executables, executable),
    "cuGraphLaunch": lambda gpu, executable, stream: gpu.graph_launch(executable, stream),
    "cuEventCreate": lambda gpu, target, flags: _set(target, gpu.event_create(flags, odd=True)),
    "cuEventDestroy_v2": lambda gpu, event: _destroy(gpu.events, event),
    "cuEventRecord": lambda gpu, event, stream: gpu.event_record(event, stream),
    "cuEventRecordWithFlags": lambda gpu, event, stream, flags: gpu.event_record(event, stream, external=bool(flags & 1)),
    "cuEventElapsedTime": lambda gpu, target, first, second: _set(target, gpu.elapsed(first, second)),
}
