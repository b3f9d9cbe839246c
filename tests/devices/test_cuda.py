"""The owner of the GPU on a stand-in that bites: context, memory, graphs; each trap is fallen into on purpose."""

from __future__ import annotations

import ctypes
import logging
import mmap
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from appliance.devices.cuda import Cuda, CudaMemory, Driver, Graph, driver
from appliance.ports import EngineError, FrameMemory, MemoryRefused
from tests.fakes.fake_libcuda import Gpu, Refused
from tests.fakes.fake_pycuda import installed

PTX = b".version 8.5\n.target sm_80\n.address_size 64\n"


def cubin(chip: int = 87, cuda: int = 12) -> bytes:
    """The header of one, as CUDA 12.6 or 13.0 writes it."""
    image = bytearray(64)
    image[:4] = b"\x7fELF"
    image[7], image[8] = (0x33, 7) if cuda == 12 else (0x41, 8)
    image[18:20] = (190).to_bytes(2, "little")
    image[48:52] = (0x00500500 + chip if cuda == 12 else 0x06000002 | chip << 8).to_bytes(4, "little")
    return bytes(image)


@dataclass
class Box:
    gpu: Gpu
    vendor: Any
    cuda: Cuda


@pytest.fixture
def box() -> Iterator[Box]:
    gpu = Gpu()
    with installed(gpu) as vendor:
        cuda = Cuda.open(gpu.library, gpu.library)
        yield Box(gpu, vendor, cuda)
        cuda.close()
    assert gpu.left_pushed() == []


def elsewhere(work: Callable[[], Any]) -> Any:
    """What ``work`` gives, or raises, in a thread of its own."""
    told: list[Any] = []

    def run() -> None:
        try:
            told.append(work())
        except Exception as why:  # the thread's edge
            told.append(why)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    if isinstance(told[0], Exception):
        raise told[0]
    return told[0]


# --- the driver -------------------------------------------------------------------------------------------------


def test_the_driver_is_probed_without_pycuda() -> None:
    assert driver(Gpu(driver=13020).library) == Driver(13020, 1)
    assert "pycuda" not in sys.modules


def test_no_driver_is_none_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    assert driver(absent) is None
    for call, code in (("cuInit", 100), ("cuDriverGetVersion", 3)):
        library = Gpu().library("libcuda.so.1")
        monkeypatch.setattr(library._functions[call], "_body", _refusing(code))
        assert driver(lambda name, library=library: library) is None  # type: ignore[misc]
    library = Gpu().library("libcuda.so.1")
    monkeypatch.setattr(library._functions["cuDeviceGetCount"], "_body", lambda gpu, count: None)
    assert driver(lambda name: library) is None, "a driver without a GPU"


def _refusing(code: int) -> Callable[..., None]:
    def body(*anything: Any) -> None:
        raise Refused(code)

    return body


def test_this_machine_answers_or_says_none() -> None:
    assert driver() is None or driver().version > 0  # type: ignore[union-attr]


def test_a_driver_without_graphs_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    library = gpu.library("libcuda.so.1")
    del library._functions["cuGraphInstantiateWithFlags"]
    with installed(gpu), pytest.raises(EngineError, match="driver is too old.*cuGraphInstantiateWithFlags"):
        Cuda.open(lambda name: library, lambda name: library)


def test_opening_without_a_driver_or_pycuda_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    with pytest.raises(EngineError, match="no CUDA driver answers"):
        Cuda.open(absent, absent)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    gpu = Gpu()
    with pytest.raises(EngineError, match="PyCUDA cannot be imported"):
        Cuda.open(gpu.library, gpu.library)


def test_nothing_of_cuda_is_imported_with_the_module() -> None:
    code = "import sys, appliance.devices.cuda, appliance.devices.network_cuda; sys.exit('pycuda' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_facts_are_the_gpus(box: Box) -> None:
    facts = box.cuda.facts
    assert (facts.name, facts.capability, facts.multiprocessors, facts.driver_version) == ("Orin", (8, 7), 8, 12060)
    assert facts.integrated and facts.total_bytes == box.gpu.total
    assert box.cuda.free_bytes() == box.gpu.limit


# --- context (trap 10) --------------------------------------------------------------------------------------------


def test_the_context_is_the_primary_one_and_the_stream_is_not_the_default(box: Box) -> None:
    assert box.gpu.stack() == [box.gpu.primary]
    assert box.cuda.stream and box.gpu.streams[box.cuda.stream].flags == 1


def test_closing_pops_and_releases_the_context_once() -> None:
    gpu = Gpu()
    with installed(gpu):
        cuda = Cuda.open(gpu.library, gpu.library)
        assert gpu.primary.retained == 1
        cuda.close()
        cuda.close()
    assert gpu.primary.retained == 0 and gpu.left_pushed() == []


def test_autoinit_makes_a_second_context_in_which_our_stream_and_memory_are_void(box: Box) -> None:
    memory = box.cuda.allocate(64)
    import pycuda.autoinit as second  # type: ignore[import-not-found]

    with pytest.raises(EngineError, match="invalid resource handle"):
        box.cuda.zero(memory.address, 64)
    foreign = box.vendor.Stream(1)
    box.vendor.memset_d8_async(memory.address, 0, 64, foreign)
    with pytest.raises(box.vendor.LogicError, match="illegal memory access"):
        foreign.synchronize()
    box.gpu.fault = 0
    second.context.pop()
    memory.free()


def test_a_thread_without_the_context_is_refused(box: Box) -> None:
    memory = box.cuda.allocate(64)
    with pytest.raises(EngineError, match="invalid device context"):
        elsewhere(lambda: box.cuda.zero(memory.address, 64))
    with pytest.raises(EngineError, match="invalid device context"):
        elsewhere(box.cuda.free_bytes)
    memory.free()


def test_a_thread_that_ends_with_a_context_pushed_is_noticed(box: Box) -> None:
    """PyCUDA aborts the process then; ``here`` pops what it pushed, whatever happens inside."""

    def failing() -> None:
        with box.cuda.here():
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        elsewhere(failing)
    assert box.gpu.left_pushed() == [threading.get_ident()]

    def careless() -> None:
        box.cuda._context.push()

    elsewhere(careless)
    assert len(box.gpu.left_pushed()) == 2
    for thread in box.gpu.left_pushed():
        if thread != threading.get_ident():
            box.gpu._stacks[thread].clear()


# --- kernels (traps 11, 12, 13) ------------------------------------------------------------------------------------


def test_pycuda_has_no_graphs_and_wraps_no_foreign_stream(box: Box) -> None:
    """Trap 12."""
    for name in ("Graph", "GraphExec", "begin_capture", "ExternalStream", "SourceModule"):
        assert not hasattr(box.vendor, name)
    for name in ("begin_capture", "end_capture", "from_handle"):
        assert not hasattr(box.vendor.Stream, name)
    with pytest.raises(TypeError, match="is no Stream"):
        box.vendor.memset_d8_async(1, 0, 1, box.cuda.stream)


def test_an_int_as_a_kernels_argument_is_refused_and_an_array_goes_by_value(box: Box) -> None:
    """Trap 11; a prepared kernel takes ints as addresses."""
    box.cuda.load_kernels(cubin())
    function = box.cuda._module.get_function("reduce_map")
    page_locked = box.vendor.pagelocked_empty(64, np.uint8, mem_flags=box.vendor.host_alloc_flags.DEVICEMAP)
    floats = (np.int32(4), np.float32(0), np.float32(1))
    with pytest.raises(TypeError, match="invalid type on parameter #0"):
        function(page_locked.base.get_device_pointer(), *floats, np.uintp(8), np.uintp(8), block=(1, 1, 1))
    with pytest.raises(box.vendor.LogicError, match="invalid argument"):
        function(page_locked, *floats, np.uintp(8), np.uintp(8), block=(1, 1, 1))
    stream = box.cuda._stream
    function(page_locked[:8], *floats, np.uintp(8), np.uintp(8), block=(1, 1, 1), stream=stream)
    with pytest.raises(box.vendor.LogicError, match="illegal memory access"):  # the pixels were taken as an address
        stream.synchronize()
    box.gpu.fault = 0
    page_locked.base.free()


def test_a_cubin_for_another_chip_or_driver_is_refused_in_words(box: Box) -> None:
    """Trap 13."""
    for image in (cubin(110), cubin(90), cubin(87, cuda=13)):
        with pytest.raises(EngineError, match=r"Orin \(sm_87\) under driver 12060.*build.sh kernels"):
            box.cuda.load_kernels(image)
    with pytest.raises(EngineError, match="no kernels are loaded"):
        box.cuda.kernel("reduce_map", ["P"])
    box.cuda.load_kernels(cubin())
    with pytest.raises(EngineError, match="kernel gather_jpeg: .*named symbol not found"):
        box.cuda.kernel("gather_jpeg", ["P"])


def test_a_cubin_of_cuda_13_loads_on_its_driver() -> None:
    gpu = Gpu(chip=110, driver=13020)
    with installed(gpu):
        cuda = Cuda.open(gpu.library, gpu.library)
        cuda.load_kernels(cubin(110, cuda=13))
        cuda.close()


def test_ptx_ends_with_a_nought_and_is_no_newer_than_the_driver(box: Box) -> None:
    """Trap 13; PTX is a C string, and a file has no nought at its end."""
    with pytest.raises(box.vendor.LogicError, match="PTX JIT"):
        box.vendor.module_from_buffer(PTX)
    box.cuda.load_kernels(PTX)
    box.cuda.load_kernels(PTX + b"\0")
    with pytest.raises(EngineError, match="unsupported toolchain"):
        box.cuda.load_kernels(PTX.replace(b"8.5", b"9.0"))


def test_a_launch_of_no_shape_or_with_an_argument_too_few_is_an_error(box: Box) -> None:
    box.cuda.load_kernels(cubin())
    kernel = box.cuda.kernel("reduce_map", ["P", "i", "f", "f", "P", "P"])
    with pytest.raises(EngineError, match="reduce_map cannot be launched"):
        kernel.launch((1, 2048), 8, 1, 0.0, 1.0, 8, 8)
    with pytest.raises(EngineError, match="reduce_map cannot be launched"):
        box.cuda.kernel("reduce_map", ["P", "i"]).launch((1, 32), 8, 1)


# --- streams and graphs (trap 20) --------------------------------------------------------------------------------------


def test_work_is_done_when_it_was_waited_for_and_not_before(box: Box) -> None:
    memory, mapped = box.cuda.allocate(64), box.cuda.allocate_mapped(64)
    done = box.cuda.done()
    box.cuda.zero(memory.address, 64)
    mapped.array[:] = 9
    box.cuda.fetch(mapped.array[:64], memory.address)
    done.record()
    assert mapped.array[:64].tolist() == [9] * 64, "read too early"
    done.wait()
    assert mapped.array[:64].tolist() == [0] * 64
    memory.free()
    mapped.free()


def test_the_synchronous_copies_do_not_wait_for_our_stream(box: Box) -> None:
    memory, got = box.cuda.allocate(4), np.full(4, 1, np.uint8)
    box.cuda.zero(memory.address, 4)
    box.vendor.memcpy_dtoh(got, memory.address)
    assert got.tolist() != [0] * 4, "the default stream runs beside a non-blocking one"
    box.cuda.finish()
    box.vendor.memcpy_dtoh(got, memory.address)
    assert got.tolist() == [0] * 4
    memory.free()


def test_a_graph_runs_again_and_again_with_the_arguments_it_was_captured_with(box: Box) -> None:
    first, second, mapped = box.cuda.allocate(8), box.cuda.allocate(8), box.cuda.allocate_mapped(8)
    back, source = mapped.array[:8], {"address": first.address}
    graph = box.cuda.capture(lambda: box.cuda.fetch(back, source["address"]))
    assert back.tolist() == [0] * 8, "nothing ran while it was captured"
    for value, memory in ((3, first), (5, second)):
        box.vendor.memset_d8_async(memory.address, value, 8, box.cuda._stream)
    source["address"] = second.address
    for _ in range(3):
        back[:] = 0
        graph.launch()
        box.cuda.finish()
        assert back.tolist() == [3] * 8, "the address it was captured with, not the one it changed to"
    graph.free()
    with pytest.raises(EngineError, match="launching a graph: CUDA_ERROR_INVALID_HANDLE: invalid resource handle"):
        graph.launch()
    for one in (first, second, mapped):
        one.free()
    assert box.gpu.live_handles() == 0


def test_the_default_stream_cannot_be_captured(box: Box) -> None:
    library = box.cuda._library
    assert library.cuStreamBeginCapture_v2(0, 1) == 900
    with pytest.raises(EngineError, match="beginning a graph: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
        library.check("beginning a graph", library.cuStreamBeginCapture_v2(0, 1))


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda cuda: cuda.finish(), lambda cuda: cuda.allocate(8), lambda cuda: cuda.allocate_mapped(8),
        lambda cuda: cuda.fetch(np.empty(8, np.uint8), 8),
    ],
)  # fmt: skip
def test_waiting_and_allocating_break_a_capture_and_the_stream_goes_on(box: Box, forbidden: Callable[[Cuda], None]) -> None:
    with pytest.raises((EngineError, MemoryRefused), match="not permitted when stream is capturing"):
        box.cuda.capture(lambda: forbidden(box.cuda))
    box.cuda.finish()
    memory = box.cuda.allocate(8)
    box.cuda.capture(lambda: box.cuda.zero(memory.address, 8)).free()
    memory.free()
    assert box.gpu.live_handles() == 0


def test_what_a_record_swallows_shows_at_the_end_of_the_capture(box: Box) -> None:
    def careless() -> None:
        with pytest.raises(EngineError):
            box.cuda.allocate(8)

    with pytest.raises(EngineError, match="ending a graph: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        box.cuda.capture(careless)


def test_a_camera_may_allocate_while_a_graph_is_captured(box: Box) -> None:
    """Thread-local capture; a global one is broken by it."""
    memory, device = box.cuda.memory(), box.cuda.allocate(8)

    def record() -> None:
        box.cuda.zero(device.address, 8)
        elsewhere(lambda: memory.allocate(100, 1))

    box.cuda.capture(record).free()
    library, made = box.cuda._library, ctypes.c_void_p()
    assert library.cuStreamBeginCapture_v2(box.cuda.stream, 0) == 0
    with pytest.raises(MemoryRefused, match="not permitted when stream is capturing"):
        elsewhere(lambda: memory.allocate(100, 1))
    assert library.cuStreamEndCapture(box.cuda.stream, ctypes.byref(made)) == 901
    memory.close()
    device.free()


def test_an_event_of_pycuda_is_void_once_it_was_captured(box: Box) -> None:
    done = box.cuda.done()
    graph = box.cuda.capture(done.record)
    with pytest.raises(EngineError, match="last recorded in a capturing stream"):
        done.wait()
    graph.free()


def test_instants_are_measured_inside_a_graph_and_outside(box: Box) -> None:
    memory, marks = box.cuda.allocate(1 << 20), box.cuda.marks(2)

    def record() -> None:
        marks.mark(0)
        box.cuda.zero(memory.address, 1 << 20)
        marks.mark(1)

    record()
    with pytest.raises(EngineError, match="CUDA_ERROR_NOT_READY"):
        marks.milliseconds(0, 1)
    box.cuda.finish()
    assert marks.milliseconds(0, 1) > 0
    graph = box.cuda.capture(record)
    graph.launch()
    box.cuda.finish()
    assert marks.milliseconds(0, 1) > 0
    graph.free()
    marks.free()
    memory.free()
    assert box.gpu.live_handles() == 0


def test_addresses_keep_all_their_bits(box: Box) -> None:
    """Without declared arguments ctypes cuts an int to 32 bits, and the driver finds no such stream."""
    undeclared = box.gpu.library("libcuda.so.1")
    assert undeclared.cuStreamBeginCapture_v2(box.cuda.stream, 1) == 400
    assert box.cuda.stream > 2**32
    with pytest.raises(ctypes.ArgumentError):
        box.cuda._library.cuStreamEndCapture(box.cuda.stream, ctypes.byref(ctypes.c_int()))


def test_what_is_freed_is_freed_once(box: Box) -> None:
    memory, mapped = box.cuda.allocate(8), box.cuda.allocate_mapped(8)
    for one in (memory, mapped):
        one.free()
        with pytest.raises(box.vendor.LogicError):
            one.free()
    assert box.gpu.live() == 0


def test_a_gpu_without_room_says_how_much_is_left(box: Box) -> None:
    box.gpu.limit = 3 << 20
    with pytest.raises(EngineError, match="no 4.0 MiB left, 3.0 are free"):
        box.cuda.allocate(4 << 20)


# --- memory of cameras ------------------------------------------------------------------------------------------------


@pytest.fixture
def memory(box: Box) -> Iterator[CudaMemory]:
    made = box.cuda.memory()
    yield made
    made.close()
    assert box.gpu.live() == 0


def seen_by_the_gpu(address: int, nbytes: int) -> bytes:
    return ctypes.string_at(address, nbytes)


def test_buffers_are_whole_zeroed_pages_that_the_gpu_finds_at_another_address(memory: CudaMemory) -> None:
    given: FrameMemory = memory
    first, second = given.allocate(5000, 2)
    for buffer in (first, second):
        at = np.frombuffer(buffer.memory, np.uint8).ctypes.data
        assert len(buffer.memory) == 2 * mmap.PAGESIZE and at % mmap.PAGESIZE == 0 == buffer.address % mmap.PAGESIZE
        assert buffer.address not in (0, at) and not any(buffer.memory) and not buffer.memory.readonly
    first.memory[4999] = 77
    assert seen_by_the_gpu(first.address + 4998, 2) == b"\0M"
    assert not any(second.memory)


def test_any_thread_may_ask_for_buffers_and_leaves_no_context_behind(box: Box, memory: CudaMemory) -> None:
    buffers = elsewhere(lambda: memory.allocate(100, 3))
    assert len(buffers) == 3
    mapping = mmap.mmap(-1, mmap.PAGESIZE)
    buffer = elsewhere(lambda: memory.register(memoryview(mapping)))
    elsewhere(lambda: memory.unregister(buffer))
    assert box.gpu.left_pushed() == [threading.get_ident()]
    elsewhere(memory.close)


def test_a_drivers_mapping_is_shared_where_it_lies(memory: CudaMemory) -> None:
    mapping = mmap.mmap(-1, 3 * mmap.PAGESIZE)
    buffer = memory.register(memoryview(mapping)[: 2 * mmap.PAGESIZE + 100])  # V4L2: sizeimage is no multiple of a page
    assert buffer.address not in (0, np.frombuffer(mapping, np.uint8).ctypes.data)
    mapping[2 * mmap.PAGESIZE] = 5
    assert seen_by_the_gpu(buffer.address + 2 * mmap.PAGESIZE, 1) == b"\5"
    with pytest.raises(BufferError):
        mapping.close()  # the driver's memory cannot go away while the GPU has it
    memory.unregister(buffer)
    buffer.memory.release()


def test_what_cannot_be_shared_is_refused_in_words(box: Box, memory: CudaMemory) -> None:
    mapping = mmap.mmap(-1, 4 * mmap.PAGESIZE)
    with pytest.raises(MemoryRefused, match="does not begin on a page"):
        memory.register(memoryview(mapping)[8:])
    assert box.cuda._library.cuMemHostRegister_v2(np.frombuffer(mapping, np.uint8).ctypes.data + 8, 4096, 2) == 1
    buffer = memory.register(memoryview(mapping))
    with pytest.raises(MemoryRefused, match="registered already"):
        memory.register(memoryview(mapping)[mmap.PAGESIZE :])
    memory.unregister(buffer)
    with pytest.raises(MemoryRefused, match="is not registered"):
        memory.unregister(buffer)
    box.gpu.coherent = False
    with pytest.raises(MemoryRefused, match="not I/O-coherent.*CUDA_ERROR_NOT_SUPPORTED.*copy"):
        memory.register(memoryview(mapping))


def test_pycuda_refuses_arrays_over_a_mapping(box: Box) -> None:
    with pytest.raises(ValueError, match="base"):
        box.vendor.register_host_memory(np.frombuffer(mmap.mmap(-1, 4096), np.uint8), flags=2)


def test_closing_lets_go_of_what_drivers_gave(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    memory = box.cuda.memory()
    mapping = mmap.mmap(-1, mmap.PAGESIZE)
    memory.register(memoryview(mapping))
    memory.allocate(10, 2)
    with caplog.at_level(logging.WARNING):
        memory.close()
        memory.close()
    assert box.gpu.live() == 0 and not caplog.records
    mapping.close()


def test_a_buffer_that_there_is_no_room_for_leaves_none_behind(box: Box, memory: CudaMemory) -> None:
    real, asked = box.gpu.host_alloc, []

    def scarce(nbytes: int, flags: int) -> Any:
        asked.append(nbytes)
        if len(asked) > 2:
            raise Refused(2, "cuMemHostAlloc")
        return real(nbytes, flags)

    box.gpu.host_alloc = scarce  # type: ignore[method-assign]
    with pytest.raises(MemoryRefused, match="gives no .* MiB that the GPU can read: cuMemHostAlloc failed: out of memory"):
        memory.allocate(1 << 20, 4)
    assert len(asked) == 3 and box.gpu.live() == 0


def test_memory_not_mapped_for_the_gpu_has_no_address_there(box: Box) -> None:
    """Pinned alone is not enough: DEVICEMAP is what maps it."""
    held = box.vendor.pagelocked_empty(64, np.uint8)
    with pytest.raises(box.vendor.LogicError, match="invalid argument"):
        held.base.get_device_pointer()
    held.base.free()


def test_the_hosts_address_is_not_the_gpus(box: Box) -> None:
    """Assumed equal, it is memory that the GPU does not reach."""
    mapped = box.cuda.allocate_mapped(64)
    box.cuda.zero(int(mapped.array.ctypes.data), 64)
    with pytest.raises(EngineError, match="illegal memory access"):
        box.cuda.finish()
    box.gpu.fault = 0
    mapped.free()


def test_freed_memory_in_use_loses_the_gpu_for_good(box: Box) -> None:
    memory = box.cuda.allocate(64)
    box.cuda.zero(memory.address, 64)
    memory.free()
    with pytest.raises(EngineError, match="illegal memory access"):
        box.cuda.finish()
    with pytest.raises(EngineError, match="illegal memory access"):
        box.cuda.allocate(8)
    box.gpu.fault = 0


def test_a_graph_is_what_capture_gives(box: Box) -> None:
    graph = box.cuda.capture(lambda: None)
    assert isinstance(graph, Graph)
    graph.free()


def test_a_camera_that_comes_after_the_gpu_was_closed_is_told(box: Box) -> None:
    memory = box.cuda.memory()
    box.cuda.close()
    with pytest.raises(MemoryRefused, match="the GPU is closed"):
        elsewhere(lambda: memory.allocate(100, 1))
    with pytest.raises(MemoryRefused, match="invalid device context"):
        memory.allocate(100, 1)
