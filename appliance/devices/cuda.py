"""The GPU, owned here alone: its context, one stream, memory that camera and GPU share, kernels, graphs.

PyCUDA where it has the call, ctypes on libcuda for what it lacks: graphs, event nodes inside them, and registering a
mapping that is not numpy's. Both are named in this file only, and loaded when ``driver`` or ``Cuda.open`` is called.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.ports import EngineError, EngineLost, FrameBuffer, MemoryRefused

log = logging.getLogger("appliance.gpu")
U8 = npt.NDArray[np.uint8]
Loader = Callable[[str], Any]
"""What opens a shared library by its name: ctypes.CDLL, ctypes.PyDLL, or a test's."""

LIBRARY = "libcuda.so.1"
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, for which PyCUDA has no name
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what a camera's thread allocates meanwhile breaks no capture
_EXTERNAL = 1  # CU_EVENT_RECORD_EXTERNAL: a node of the graph; not allowed outside a capture
_DEVICEMAP = 2  # CU_MEMHOSTREGISTER_DEVICEMAP
_OUT_OF_MEMORY = 2
_HANDLE, _ADDRESS, _UNSIGNED = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint
# Without these ctypes passes every int as 32 bits, and cuts an address in half.
_ARGUMENTS: dict[str, list[Any]] = {
    "cuInit": [_UNSIGNED],
    "cuDriverGetVersion": [ctypes.POINTER(ctypes.c_int)],
    "cuDeviceGetCount": [ctypes.POINTER(ctypes.c_int)],
    "cuGetErrorName": [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)],
    "cuGetErrorString": [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)],
    "cuMemHostRegister_v2": [_HANDLE, ctypes.c_size_t, _UNSIGNED],
    "cuMemHostGetDevicePointer_v2": [ctypes.POINTER(_ADDRESS), _HANDLE, _UNSIGNED],
    "cuMemHostUnregister": [_HANDLE],
    "cuStreamBeginCapture_v2": [_HANDLE, ctypes.c_int],
    "cuStreamEndCapture": [_HANDLE, ctypes.POINTER(_HANDLE)],
    "cuGraphInstantiateWithFlags": [ctypes.POINTER(_HANDLE), _HANDLE, ctypes.c_ulonglong],
    "cuGraphDestroy": [_HANDLE],
    "cuGraphExecDestroy": [_HANDLE],
    "cuGraphLaunch": [_HANDLE, _HANDLE],
    "cuEventCreate": [ctypes.POINTER(_HANDLE), _UNSIGNED],
    "cuEventDestroy_v2": [_HANDLE],
    "cuEventRecord": [_HANDLE, _HANDLE],
    "cuEventRecordWithFlags": [_HANDLE, _HANDLE, _UNSIGNED],
    "cuEventElapsedTime": [ctypes.POINTER(ctypes.c_float), _HANDLE, _HANDLE],
}
_PROBE = ("cuInit", "cuDriverGetVersion", "cuDeviceGetCount")
# Why a driver's mapping is refused; the rest is told in CUDA's own words.
_REFUSALS = {
    1: "its pages cannot be pinned",
    712: "it is registered already",
    800: "this kernel does not allow it",
    801: "this GPU does not read the CPU's caches (not I/O-coherent), or the mapping is the driver's I/O memory",
}


@dataclass(frozen=True)
class Driver:
    """``version``: as cuDriverGetVersion has it, 12060 = CUDA 12.6; ``devices``: how many GPUs."""

    version: int
    devices: int


def driver(load: Loader = ctypes.CDLL) -> Driver | None:
    """The driver of this machine, None where none answers. Ask before TensorRT: its Runtime made without one crashes later."""
    try:
        library = _Libcuda(load, _PROBE)
    except EngineError:
        return None
    version, devices = ctypes.c_int(), ctypes.c_int()
    if library.cuInit(0) or library.cuDriverGetVersion(ctypes.byref(version)):
        return None
    if library.cuDeviceGetCount(ctypes.byref(devices)) or devices.value < 1:
        return None
    return Driver(version.value, devices.value)


@dataclass(frozen=True)
class GpuFacts:
    """``capability``: compute capability, (8, 7) = sm_87; ``integrated``: shares its memory with the CPU (a Jetson)."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    driver_version: int
    total_bytes: int
    integrated: bool


class _Libcuda:
    """libcuda's functions with their arguments declared. Raises EngineError when it, or one of ``names``, is not there."""

    def __init__(self, load: Loader, names: tuple[str, ...] = tuple(_ARGUMENTS)) -> None:
        try:
            self._library = load(LIBRARY)
            for name in names:
                function = getattr(self._library, name)
                function.argtypes, function.restype = _ARGUMENTS[name], ctypes.c_int
                setattr(self, name, function)
        except OSError as why:
            raise EngineError(f"no CUDA driver on this machine ({why})") from why
        except AttributeError as why:
            raise EngineError(f"the CUDA driver is too old ({why}); 12.6 of JetPack 6 has it") from why

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)  # the names above are set on the object: this is for the type checker

    def words(self, code: int) -> str:
        """A result code's name and what the driver says of it."""
        told = []
        for ask in (self.cuGetErrorName, self.cuGetErrorString):
            text = ctypes.c_char_p()
            told.append(text.value.decode() if not ask(code, ctypes.byref(text)) and text.value else f"error {code}")
        return ": ".join(told)

    def check(self, doing: str, code: int) -> None:
        """Raises EngineError."""
        if code:
            raise EngineError(f"{doing}: {self.words(code)}")


class Cuda:
    """The one GPU. Opened, used and closed in one thread (the judge's), which must close it before it ends: PyCUDA
    aborts the process when a thread ends with a context pushed. Only ``memory`` may be used by other threads."""

    def __init__(self, vendor: Any, library: _Libcuda, quick: _Libcuda, found: Driver) -> None:
        """See ``open``."""
        self._vendor, self._library, self._quick = vendor, library, quick
        device = vendor.Device(0)
        attribute = vendor.device_attribute
        self.facts = GpuFacts(
            name=str(device.name()), capability=tuple(device.compute_capability()),
            multiprocessors=device.get_attribute(attribute.MULTIPROCESSOR_COUNT), driver_version=found.version,
            total_bytes=device.total_memory(), integrated=bool(device.get_attribute(attribute.INTEGRATED)),
        )  # fmt: skip
        if not device.get_attribute(attribute.CAN_MAP_HOST_MEMORY):
            raise EngineError(f"{self.facts.name} cannot read the CPU's memory; no camera's frame would reach it uncopied")
        self._thread = threading.get_ident()
        self._context = device.retain_primary_context()  # TensorRT lives in it too; any other makes its addresses void
        self._context.push()
        try:
            self._stream = vendor.Stream(_NON_BLOCKING)  # waits for nothing that others put on the default stream
        except vendor.Error:
            self._let_go()
            raise
        self.stream: int = self._stream.handle
        self._module: Any = None
        self._capturing = False

    @classmethod
    def open(cls, load: Loader = ctypes.CDLL, load_quick: Loader = ctypes.PyDLL) -> Cuda:
        """In the thread that judges. ``load_quick`` keeps the interpreter's lock over calls of microseconds: whoever lets
        go of it may wait milliseconds to get it back. Raises EngineError."""
        found = driver(load)
        if found is None:
            raise EngineError("no CUDA driver answers on this machine; is this a Jetson, and does the container see its GPU?")
        try:
            import pycuda.driver as vendor  # type: ignore[import-not-found]  # built on the box: there are no wheels
        except ImportError as why:
            raise EngineError(f"PyCUDA cannot be imported ({why}); the box's image builds it, see README") from why
        try:
            vendor.init()
            return cls(vendor, _Libcuda(load), _Libcuda(load_quick), found)
        except vendor.Error as why:
            raise EngineError(f"the GPU cannot be opened: {why}") from why

    def close(self) -> None:
        """Give the context back; everything of it must be freed. In the thread that opened it."""
        if self._context is None:
            return
        self._module = self._stream = None  # both go while their context is there
        self._let_go()

    def _let_go(self) -> None:
        context, self._context = self._context, None
        self._vendor.Context.pop()
        context.detach()

    @contextmanager
    def here(self) -> Iterator[None]:
        """The context in the calling thread; other threads have none of their own."""
        if threading.get_ident() == self._thread:
            yield
            return
        if self._context is None:
            raise EngineError("the GPU is closed")
        with self._told("using the GPU in another thread"):
            self._context.push()
        try:
            yield
        finally:
            self._vendor.Context.pop()

    # --- memory ---------------------------------------------------------------------------------------------

    def free_bytes(self) -> int:
        """Of the GPU's memory; on a Jetson that is the machine's."""
        with self._told("asking for the GPU's free memory"):
            return int(self._vendor.mem_get_info()[0])

    def allocate(self, nbytes: int) -> DeviceMemory:
        """``nbytes`` that only the GPU reaches, not zeroed. Raises EngineError."""
        try:
            return DeviceMemory(self._vendor.mem_alloc(nbytes), nbytes)
        except self._vendor.MemoryError as why:
            raise EngineError(f"the GPU has no {nbytes / 2**20:.1f} MiB left, {self.free_bytes() / 2**20:.1f} are free") from why
        except self._vendor.Error as why:
            raise EngineError(f"allocating on the GPU: {why}") from why

    def allocate_mapped(self, nbytes: int) -> MappedMemory:
        """``nbytes`` of the CPU's memory that the GPU reaches too, on a page, zeroed. Raises MemoryRefused."""
        try:
            # The driver promises no alignment; one page more holds whole pages wherever it begins.
            flags = self._vendor.host_alloc_flags.DEVICEMAP
            held = self._vendor.pagelocked_empty(_pages(nbytes) + mmap.PAGESIZE, np.uint8, mem_flags=flags)
            address = int(held.base.get_device_pointer())
        except self._vendor.Error as why:
            raise MemoryRefused(f"the driver gives no {nbytes / 2**20:.1f} MiB that the GPU can read: {why}") from why
        return MappedMemory(held, address, _pages(nbytes))

    def memory(self) -> CudaMemory:
        """For cameras."""
        return CudaMemory(self, self._library)

    def zero(self, address: int, nbytes: int) -> None:
        """On the stream. Raises EngineError."""
        with self._told("zeroing memory of the GPU"):
            self._vendor.memset_d8_async(address, 0, nbytes, self._stream)

    def poison(self, address: int, nbytes: int) -> None:
        """No number (all bits set) in every float there, on the stream. Raises EngineError."""
        with self._told("filling memory of the GPU"):
            self._vendor.memset_d8_async(address, 0xFF, nbytes, self._stream)

    def send(self, address: int, source: npt.NDArray[Any]) -> None:
        """To the GPU, on the stream. Raises EngineError."""
        with self._told("copying to the GPU"):
            self._vendor.memcpy_htod_async(address, source, self._stream)

    def fetch(self, target: npt.NDArray[Any], address: int) -> None:
        """From the GPU, on the stream: there after ``finish``, or the event recorded next. Raises EngineError."""
        with self._told("copying from the GPU"):
            self._vendor.memcpy_dtoh_async(target, address, self._stream)

    def finish(self) -> None:
        """Wait for all that is on the stream. Raises EngineLost: whatever fails here, fails until the process ends."""
        try:
            self._stream.synchronize()
        except self._vendor.Error as why:
            raise _lost(why) from why

    # --- kernels and graphs -----------------------------------------------------------------------------------

    def load_kernels(self, image: bytes) -> None:
        """A cubin for this very chip, or PTX no newer than the driver. Raises EngineError."""
        text = image if image[:4] == b"\x7fELF" or image.endswith(b"\0") else image + b"\0"  # PTX is a C string
        try:
            self._module = self._vendor.module_from_buffer(text)
        except self._vendor.Error as why:
            major, minor = self.facts.capability
            where = f"{self.facts.name} (sm_{major}{minor}) under driver {self.facts.driver_version}"
            raise EngineError(f"the kernels cannot be loaded on {where}: {why}; make them for it (./build.sh kernels)") from why

    def kernel(self, name: str, layout: list[str]) -> Kernel:
        """A kernel of the image; ``layout``: struct's letter for each argument ("P" an address, "i", "f", "284s" a struct
        of 284 bytes, which must then stand at a multiple of its alignment). Raises EngineError."""
        if self._module is None:
            raise EngineError("no kernels are loaded")
        with self._told(f"kernel {name}"):
            return Kernel(self._module.get_function(name).prepare(layout), name, self._stream, self._vendor.Error)

    def done(self) -> Done:
        """An event to wait for with core and interpreter free. Raises EngineError."""
        flags = self._vendor.event_flags
        with self._told("making an event"):
            return Done(self._vendor.Event(flags.BLOCKING_SYNC | flags.DISABLE_TIMING), self._stream, self._vendor.Error)

    def marks(self, count: int) -> Marks:
        """``count`` instants on the stream whose distance can be read. Raises EngineError."""
        return Marks(self, self._library, self._quick, count)

    def capture(self, record: Callable[[], None]) -> Graph:
        """What ``record`` puts on the stream, as a graph; nothing of it runs. Raises EngineError, MemoryRefused."""
        library, made = self._library, ctypes.c_void_p()
        library.check("beginning a graph", library.cuStreamBeginCapture_v2(self.stream, _THREAD_LOCAL))
        self._capturing = True
        try:
            record()
        except BaseException:  # a capture that is not ended leaves the stream unusable
            if not self._end_capture(made):
                library.cuGraphDestroy(made)
            raise
        executable = ctypes.c_void_p()
        library.check("ending a graph", self._end_capture(made))
        try:
            code = library.cuGraphInstantiateWithFlags(ctypes.byref(executable), made, 0)
            library.check("making a graph ready", code)
        finally:
            library.cuGraphDestroy(made)
        return Graph(library, self._quick, executable.value or 0, self.stream)

    def _end_capture(self, made: ctypes.c_void_p) -> int:
        self._capturing = False
        return int(self._library.cuStreamEndCapture(self.stream, ctypes.byref(made)))

    @property
    def capturing(self) -> bool:
        """Whether what is put on the stream now becomes a graph."""
        return self._capturing

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        try:
            yield
        except self._vendor.Error as why:
            raise EngineError(f"{doing}: {why}") from why


class DeviceMemory:
    """``nbytes`` at ``address``, which only the GPU reaches."""

    def __init__(self, held: Any, nbytes: int) -> None:
        """See Cuda.allocate."""
        self._held, self.address, self.nbytes = held, int(held), nbytes

    def free(self) -> None:
        """Once, when nothing on the stream uses it."""
        self._held.free()


class MappedMemory:
    """``array``: whole pages of the CPU's memory, u8; ``address``: where the GPU finds its first byte."""

    def __init__(self, held: U8, address: int, nbytes: int) -> None:
        """See Cuda.allocate_mapped."""
        self._held = held
        past = -held.ctypes.data % mmap.PAGESIZE
        self.array: U8 = held[past : past + nbytes]
        self.array[:] = 0
        self.address = address + past

    def free(self) -> None:
        """Once, when nothing on the stream uses it; whoever still looks at ``array`` looks at nothing."""
        self._held.base.free()  # type: ignore[union-attr]


class Kernel:
    """One kernel, prepared. PyCUDA's prepared call packs the arguments by their letters; plain ints are right there."""

    def __init__(self, function: Any, name: str, stream: Any, error: type[Exception]) -> None:
        """See Cuda.kernel."""
        self._function, self._name, self._stream, self._error = function, name, stream, error

    def launch(self, shape: tuple[int, int], *arguments: int | float | bytes) -> None:
        """On the stream; ``shape``: blocks, threads of each. Raises EngineError."""
        blocks, threads = shape
        try:
            self._function.prepared_async_call((blocks, 1), (threads, 1, 1), self._stream, *arguments)
        except self._error as why:
            raise EngineError(f"kernel {self._name} cannot be launched: {why}") from why


class Done:
    """What was on the stream when ``record`` was called is done when ``wait`` returns."""

    def __init__(self, event: Any, stream: Any, error: type[Exception]) -> None:
        """See Cuda.done."""
        self._event, self._stream, self._error = event, stream, error

    def record(self) -> None:
        """Raises EngineError."""
        try:
            self._event.record(self._stream)
        except self._error as why:
            raise EngineError(f"marking the end of a run: {why}") from why

    def wait(self) -> None:
        """Sleeps in the driver. Raises EngineLost: a kernel's fault shows here, and stays until the process ends."""
        try:
            self._event.synchronize()
        except self._error as why:
            raise _lost(why) from why


def _lost(why: Exception) -> EngineLost:
    return EngineLost(f"the GPU failed: {why}; it answers again only to a new process")


class Marks:
    """Instants on the stream. PyCUDA's events cannot be nodes of a graph, so these are made by ctypes."""

    def __init__(self, gpu: Cuda, library: _Libcuda, quick: _Libcuda, count: int) -> None:
        """See Cuda.marks."""
        self._gpu, self._library = gpu, library
        self._apart, self._distance = quick.cuEventElapsedTime, ctypes.c_float()
        self._into = ctypes.byref(self._distance)
        self._events: list[ctypes.c_void_p] = []
        for _ in range(count):
            event = ctypes.c_void_p()
            library.check("making an event", library.cuEventCreate(ctypes.byref(event), 0))
            self._events.append(event)

    def mark(self, index: int) -> None:
        """Raises EngineError."""
        library, event, stream = self._library, self._events[index], self._gpu.stream
        if self._gpu.capturing:
            code = library.cuEventRecordWithFlags(event, stream, _EXTERNAL)
        else:
            code = library.cuEventRecord(event, stream)
        library.check("marking an instant", code)

    def milliseconds(self, first: int, second: int) -> float:
        """Between two marks that the stream has passed. Raises EngineError."""
        code = self._apart(self._into, self._events[first], self._events[second])
        if code:
            self._library.check("reading how long it took", code)
        return self._distance.value

    def free(self) -> None:
        """Once."""
        while self._events:
            self._library.cuEventDestroy_v2(self._events.pop())


class Graph:
    """What was captured, with the arguments it had then, to be launched any number of times."""

    def __init__(self, library: _Libcuda, quick: _Libcuda, executable: int, stream: int) -> None:
        """See Cuda.capture."""
        self._library, self._launch = library, quick.cuGraphLaunch
        self._executable, self._stream = ctypes.c_void_p(executable), ctypes.c_void_p(stream)

    def launch(self) -> None:
        """On the stream. Raises EngineError."""
        code = self._launch(self._executable, self._stream)
        if code:
            self._library.check("launching a graph", code)

    def free(self) -> None:
        """Once, when no launch of it is on the stream."""
        self._library.cuGraphExecDestroy(self._executable)


class CudaMemory:
    """ports.FrameMemory on the GPU: buffers of ours, and drivers' mappings registered where they lie. Any thread."""

    def __init__(self, gpu: Cuda, library: _Libcuda) -> None:
        """See Cuda.memory."""
        self._gpu, self._library = gpu, library
        self._lock = threading.Lock()
        self._ours: list[MappedMemory] = []
        self._registered: dict[int, U8] = {}  # by the CPU's address; a view keeps its mapping from being closed

    def allocate(self, nbytes: int, count: int) -> list[FrameBuffer]:
        """``count`` buffers of ``nbytes`` bytes, rounded up to whole pages."""
        made: list[MappedMemory] = []
        with self._told(), self._gpu.here():
            try:
                for _ in range(count):
                    made.append(self._gpu.allocate_mapped(nbytes))
            except MemoryRefused:
                for one in made:
                    one.free()
                raise
        with self._lock:
            self._ours += made
        return [FrameBuffer(memoryview(one.array), one.address) for one in made]  # type: ignore[arg-type]

    def register(self, memory: memoryview) -> FrameBuffer:
        """Whole pages from ``memory``'s first byte, where it begins on one."""
        view = np.frombuffer(memory, np.uint8)
        host = view.ctypes.data
        if host % mmap.PAGESIZE or not view.size:
            raise MemoryRefused("a mapping that does not begin on a page cannot be shared with the GPU; copy")
        with self._lock, self._told(), self._gpu.here():
            self._accepted(self._library.cuMemHostRegister_v2(host, _pages(view.size), _DEVICEMAP))
            address = ctypes.c_uint64()
            code = self._library.cuMemHostGetDevicePointer_v2(ctypes.byref(address), host, 0)
            if code:
                self._library.cuMemHostUnregister(host)
            self._accepted(code)
            self._registered[host] = view
        return FrameBuffer(memory, address.value)

    def unregister(self, buffer: FrameBuffer) -> None:
        """Raises MemoryRefused for what is not registered (any more)."""
        host = np.frombuffer(buffer.memory, np.uint8).ctypes.data
        with self._lock, self._told(), self._gpu.here():
            if self._registered.pop(host, None) is None:
                raise MemoryRefused("that memory is not registered with the GPU, or no more")
            self._accepted(self._library.cuMemHostUnregister(host))

    def close(self) -> None:
        """Free ours, let go of the drivers'; before the GPU is closed, and when no frame of them is looked at any more."""
        with self._lock, self._told(), self._gpu.here():
            registered, ours = list(self._registered), self._ours
            self._registered, self._ours = {}, []
            codes = [self._library.cuMemHostUnregister(host) for host in registered]
            for one in ours:
                one.free()
        for code in filter(None, codes):
            log.warning("a camera's mapping stays registered with the GPU: %s", self._library.words(code))

    def _accepted(self, code: int) -> None:
        if code:
            why = _REFUSALS.get(code, "there is none left" if code == _OUT_OF_MEMORY else "the driver refuses")
            raise MemoryRefused(f"the GPU cannot share that memory: {why} ({self._library.words(code)}); copy")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except EngineError as why:
            raise MemoryRefused(str(why)) from why


def _pages(nbytes: int) -> int:
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
