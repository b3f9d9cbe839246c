"""PyCUDA 2026.1's driver module over the GPU of fake_libcuda: its names and signatures, and what it refuses.

Read from inducer/pycuda 2026.1 (the sdist): pycuda/driver.py, src/wrapper/wrap_cudadrv.cpp, src/cpp/cuda.hpp. Only names
that the real module has are here; any other is an AttributeError, as there. What Boost.Python refuses is a TypeError.
``installed`` puts it into sys.modules. Nothing frees itself when it is collected: what is not freed shows in Gpu.live.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.fakes import fake_libcuda
from tests.fakes.fake_libcuda import Gpu, Refused


class Error(Exception):
    pass


class MemoryError(Error):  # noqa: A001  # the real module's name
    pass


class LogicError(Error):
    pass


class LaunchError(Error):
    pass


class RuntimeError(Error):  # noqa: A001
    pass


def _kind_of(code: int) -> type[Error]:
    """As translate_cuda_error has it."""
    if code in (719, 701, 702, 703):
        return LaunchError
    if code == 2:
        return MemoryError
    return RuntimeError if code in (100, 209, 301, 600, 214) else LogicError


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Refused as why:
        raise _kind_of(why.code)(str(why)) from None


class event_flags(IntEnum):  # noqa: N801
    DEFAULT = 0
    BLOCKING_SYNC = 1
    DISABLE_TIMING = 2
    INTERPROCESS = 4


class device_attribute(IntEnum):  # noqa: N801
    MULTIPROCESSOR_COUNT = 16
    INTEGRATED = 18
    CAN_MAP_HOST_MEMORY = 19
    CONCURRENT_MANAGED_ACCESS = 89


host_alloc_flags = SimpleNamespace(PORTABLE=1, DEVICEMAP=2, WRITECOMBINED=4)
mem_host_register_flags = SimpleNamespace(PORTABLE=1, DEVICEMAP=2)


def _pointer(value: Any) -> int:
    """What Boost.Python takes as a CUdeviceptr: an int, or an allocation."""
    if type(value) is int or hasattr(value, "_cu_pointer"):
        return int(value)
    raise TypeError(f"Boost.Python.ArgumentError: {type(value).__name__} is no device pointer")


class _Freeable:
    _valid = True

    def _once(self, routine: str) -> None:
        if not self._valid:
            raise LogicError(f"{routine} failed: invalid resource handle")
        self._valid = False


def driver_module(gpu: Gpu) -> ModuleType:
    """``pycuda.driver`` on that GPU."""
    module = ModuleType("pycuda.driver")
    pushed: dict[int, list[Any]] = {}  # PyCUDA's own stack, one a thread

    def stack() -> list[Any]:
        return pushed.setdefault(threading.get_ident(), [])

    def dependent() -> Any:
        """Every object of a context takes the one on PyCUDA's stack."""
        if not stack():
            raise LogicError("explicit_context_dependent failed: invalid device context - no currently active context?")
        return stack()[-1]

    @contextmanager
    def freeing(context: Any) -> Iterator[None]:
        """PyCUDA pushes an object's context to free it, but only in the thread that made the context."""
        if (not stack() or stack()[-1] is not context) and context._thread != threading.get_ident():
            raise AssertionError("freed in a thread without its context: the real PyCUDA warns and leaks it")
        try:
            yield
        except Refused as why:
            if not gpu.fault:  # of a lost GPU the real one prints a warning and goes on
                raise AssertionError(f"a clean-up operation failed: {why}") from why

    def init(flags: int = 0) -> None:
        gpu.started = True

    def get_version() -> tuple[int, int, int]:
        return 12, 6, 0

    def get_driver_version() -> int:
        return gpu.driver

    class Context:
        def __init__(self, raw: fake_libcuda.Context) -> None:
            self._raw, self._is_valid, self._thread = raw, True, threading.get_ident()

        @property
        def handle(self) -> int:
            return self._raw.handle

        def push(self) -> None:
            if not self._is_valid:
                raise LogicError("cuCtxPushCurrent failed: invalid device context")
            if stack():
                gpu.stack().pop()
            gpu.stack().append(self._raw)
            stack().append(self)

        @staticmethod
        def pop() -> None:
            if not stack():
                raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
            gpu.stack().pop()
            stack().pop()
            if stack():
                gpu.stack().append(stack()[-1]._raw)

        def detach(self) -> None:
            if not self._is_valid:
                raise LogicError("context::detach failed: invalid device context - cannot detach from invalid context")
            self._is_valid = False
            self._raw.retained -= 1
            if stack() and stack()[-1] is self:
                gpu.stack().pop()
                stack().pop()

        @staticmethod
        def synchronize() -> None:
            with _translated():
                gpu.synchronize()

        @staticmethod
        def get_device() -> Any:
            with _translated():
                gpu.current("cuCtxGetDevice")
            return Device(0)

        @staticmethod
        def get_current() -> Any:
            return stack()[-1] if stack() else None

    class Device:
        def __init__(self, number: int) -> None:
            if not gpu.started:
                raise LogicError("cuDeviceGet failed: initialization error")
            if number:
                raise LogicError("cuDeviceGet failed: invalid device ordinal")

        @staticmethod
        def count() -> int:
            return 1

        def name(self) -> str:
            return gpu.name

        def compute_capability(self) -> tuple[int, int]:
            return divmod(gpu.chip, 10)

        def total_memory(self) -> int:
            return gpu.total

        def get_attribute(self, attribute: device_attribute) -> int:
            if not isinstance(attribute, device_attribute):
                raise TypeError("Boost.Python.ArgumentError: no device_attribute")
            told = {"MULTIPROCESSOR_COUNT": gpu.multiprocessors, "INTEGRATED": 1, "CAN_MAP_HOST_MEMORY": 1}
            return told.get(attribute.name, 0)

        def retain_primary_context(self) -> Context:
            gpu.primary.retained += 1
            return Context(gpu.primary)  # not made current

        def make_context(self, flags: int = 0) -> Context:
            made = Context(fake_libcuda.Context(gpu.handle(), False))
            made.push()
            return made

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            dependent()
            with _translated():
                self._handle = gpu.stream_create(flags)

        @property
        def handle(self) -> int:
            return self._handle

        def synchronize(self) -> None:
            with _translated():
                gpu.stream_synchronize(self._handle)

        def is_done(self) -> bool:
            with _translated():
                return gpu.stream_query(self._handle)

    def handle_of(stream: Any) -> int:
        if stream is None:
            return 0
        if not isinstance(stream, Stream):
            raise TypeError(f"Boost.Python: {type(stream).__name__} is no Stream")  # foreign handles cannot be wrapped
        return stream.handle

    class Event:
        def __init__(self, flags: int = 0) -> None:
            dependent()
            with _translated():
                self._handle = gpu.event_create(int(flags))

        def record(self, stream: Any = None) -> Event:
            with _translated():
                gpu.event_record(self._handle, handle_of(stream))
            return self

        def synchronize(self) -> Event:
            with _translated():
                gpu.event_synchronize(self._handle)
            return self

        def query(self) -> bool:
            with _translated():
                return gpu.event_query(self._handle)

        def time_since(self, start: Event) -> float:
            with _translated():
                return gpu.elapsed(start._handle, self._handle)

        def time_till(self, end: Event) -> float:
            return end.time_since(self)

    class DeviceAllocation(_Freeable):
        _cu_pointer = True

        def __init__(self, address: int) -> None:
            self._address, self._ward = address, dependent()

        def __int__(self) -> int:
            return self._address

        __index__ = __int__

        def free(self) -> None:
            self._once("device_allocation::free")
            with freeing(self._ward):
                gpu.mem_free(self._address)

    def mem_alloc(nbytes: int) -> DeviceAllocation:
        with _translated():
            return DeviceAllocation(gpu.mem_alloc(nbytes))

    def mem_get_info() -> tuple[int, int]:
        with _translated():
            gpu.current("cuMemGetInfo")
        used = sum(one.nbytes for one in gpu._ranges if one.kind == "device")
        return gpu.limit - used, gpu.total

    class PagelockedHostAllocation(_Freeable):
        def __init__(self, nbytes: int, flags: int) -> None:
            self._ward = dependent()
            with _translated():
                self._address, self._kept = gpu.host_alloc(nbytes, flags)
            self.__array_interface__ = {"version": 3, "shape": (nbytes,), "typestr": "|u1", "data": (self._address, False)}

        def get_device_pointer(self) -> int:
            with _translated():
                return gpu.host_device_pointer(self._address)

        def free(self) -> None:
            self._once("pagelocked_host_allocation::free")
            with freeing(self._ward):
                gpu.host_free(self._address)

    def pagelocked_empty(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
        sides = (shape,) if isinstance(shape, int) else tuple(shape)
        kind = np.dtype(dtype)
        held = PagelockedHostAllocation(int(np.prod(sides)) * kind.itemsize, int(mem_flags))
        flat = np.asarray(held)
        if kind == np.uint8 and len(sides) == 1:
            return flat  # its base is the allocation, as there
        raise NotImplementedError("the stand-in gives bytes in a row only")

    def register_host_memory(ary: Any, flags: int = 0) -> Any:
        if not isinstance(ary, np.ndarray):
            raise LogicError("register_host_memory failed: invalid argument - ary argument is not a numpy array")
        raise ValueError("Cannot set the NumPy array 'base' dependency more than once")  # of an array over mmap

    def memset_d8_async(dest: Any, data: int, size: int, stream: Any = None) -> None:
        with _translated():
            gpu.memset(_pointer(dest), data, size, handle_of(stream))

    def host_of(array: Any, writable: bool = False) -> tuple[int, int]:
        view = memoryview(array)
        if not view.contiguous or (writable and view.readonly):
            raise BufferError("memoryview: underlying buffer is not contiguous, or not writable")
        flat = np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)
        return int(flat.ctypes.data), view.nbytes

    def memcpy_htod_async(dest: Any, src: Any, stream: Any = None) -> None:
        at, nbytes = host_of(src)
        with _translated():
            gpu.copy("cuMemcpyHtoDAsync", _pointer(dest), at, nbytes, handle_of(stream), 2)

    def memcpy_dtoh_async(dest: Any, src: Any, stream: Any = None) -> None:
        at, nbytes = host_of(dest, writable=True)
        with _translated():
            gpu.copy("cuMemcpyDtoHAsync", at, _pointer(src), nbytes, handle_of(stream), 1)

    def now(copy: Any, dest: Any, src: Any) -> None:
        """The synchronous ones run on the default stream, and do not wait for a non-blocking one."""
        with _translated():
            gpu.unsafe("cuMemcpy")
        copy(dest, src, None)
        with _translated():
            gpu.stream_synchronize(0)

    class Function:
        def __init__(self, name: str) -> None:
            self._name = name
            self.arg_format = ""

        def prepare(self, arg_types: Sequence[Any], texrefs: Any = None) -> Function:
            self.arg_format = "".join(one if isinstance(one, str) else _letter(one) for one in arg_types)
            return self

        def prepared_async_call(self, grid: Any, block: Any, stream: Any, *args: Any, shared_size: int = 0) -> None:
            if not isinstance(block, tuple):
                raise DeprecationWarning("not passing the block size to prepared_async_call")
            self._launch_kernel(grid, block, struct.pack(self.arg_format, *args), shared_size, stream)

        def prepared_call(self, grid: Any, block: Any, *args: Any, shared_size: int = 0) -> None:
            self.prepared_async_call(grid, block, None, *args, shared_size=shared_size)

        def __call__(self, *args: Any, block: Any = None, grid: Any = (1, 1), stream: Any = None, shared: int = 0) -> None:
            if block is None:
                raise ValueError("must specify block size")
            self._launch_kernel(grid, block, _buffer_of(args), shared, stream)

        def _launch_kernel(self, grid: Any, block: Any, buffer: bytes, shared: int, stream: Any) -> None:
            with _translated():
                gpu.launch(self._name, grid, block, buffer, handle_of(stream))

    class Module:
        def __init__(self, names: bytes) -> None:
            self._names = names

        def get_function(self, name: str) -> Function:
            known = name in ("sample_u8", "sample_u16", "reduce_map") or (
                name.startswith("gather_") and name[7:] in fake_libcuda._BYTES_OF_PIXEL
            )
            if not known:
                raise LogicError("cuModuleGetFunction failed: named symbol not found")
            return Function(name)

    def module_from_buffer(buffer: Any, options: Any = (), message_handler: Any = None) -> Module:
        dependent()
        with _translated():
            gpu.load(bytes(buffer))
        return Module(bytes(buffer))

    def _letter(kind: Any) -> str:
        kind = np.dtype(kind)
        return f"{kind.itemsize}s" if kind.char == "V" else kind.char

    def _buffer_of(args: Sequence[Any]) -> bytes:
        """What an unprepared call makes of its arguments."""
        letters, values = "", []
        for index, one in enumerate(args):
            if isinstance(one, np.number):
                letters, value = letters + one.dtype.char, one
            elif isinstance(one, DeviceAllocation):
                letters, value = letters + "P", int(one)
            elif isinstance(one, np.ndarray):  # by value, page-locked or not
                letters, value = letters + f"{one.nbytes}s", one.tobytes()
            elif isinstance(one, np.void):
                letters, value = letters + f"{one.itemsize}s", one.tobytes()
            else:
                raise TypeError(f"invalid type on parameter #{index} (0-based)")
            values.append(value)
        return struct.pack(letters, *values)

    def memcpy_htod(dest: Any, src: Any) -> None:
        now(memcpy_htod_async, dest, src)

    def memcpy_dtoh(dest: Any, src: Any) -> None:
        now(memcpy_dtoh_async, dest, src)

    ours = (
        init, get_version, get_driver_version, Error, MemoryError, LogicError, LaunchError, RuntimeError, event_flags,
        device_attribute, Context, Device, Stream, Event, DeviceAllocation, mem_alloc, mem_get_info,
        PagelockedHostAllocation, pagelocked_empty, register_host_memory, memset_d8_async, memcpy_htod_async,
        memcpy_dtoh_async, memcpy_htod, memcpy_dtoh, Function, Module, module_from_buffer,
    )  # fmt: skip
    for one in ours:
        setattr(module, one.__name__, one)
    module.host_alloc_flags = host_alloc_flags  # type: ignore[attr-defined]
    module.mem_host_register_flags = mem_host_register_flags  # type: ignore[attr-defined]
    return module


class _Autoinit(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """``import pycuda.autoinit``: a context of its own, current from then on."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self) if name == "pycuda.autoinit" else None

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: Any) -> None:
        self._driver.init()
        module.context = self._driver.Device(0).make_context()


@contextmanager
def installed(gpu: Gpu) -> Iterator[Any]:
    """``import pycuda.driver`` gives the stand-in; yields that module."""
    package, driver = ModuleType("pycuda"), driver_module(gpu)
    package.__path__ = []
    package.driver, package.VERSION = driver, (2026, 1)  # type: ignore[attr-defined]
    names = {"pycuda": package, "pycuda.driver": driver}
    before = {name: sys.modules.get(name) for name in (*names, "pycuda.autoinit")}
    finder = _Autoinit(driver)
    sys.modules.update(names)
    sys.meta_path.insert(0, finder)
    try:
        yield driver
    finally:
        sys.meta_path.remove(finder)
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
