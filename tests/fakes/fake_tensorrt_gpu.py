"""The stand-in of TensorRT on the stand-in of the GPU: its work waits on that GPU's streams, in its memory and contexts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from tests.fakes import fake_tensorrt
from tests.fakes.fake_libcuda import Gpu, Refused


@contextlib.contextmanager
def on_gpu(gpu: Gpu) -> Iterator[None]:
    """Joins them for a while; ``fake_tensorrt.installed`` and ``fake_pycuda.installed`` put them in their places."""

    def refused(call: Callable[[], object]) -> None:
        try:
            call()
        except Refused as why:
            raise fake_tensorrt.CudaRefused(str(why)) from why

    def put(handle: int, work: Callable[[], None]) -> None:
        if gpu.current("enqueueV3") is not gpu.primary:
            raise Refused(400, "enqueueV3")  # engines live in the primary context, where CUDA's runtime is
        gpu.enqueue(handle, "engine", work)

    def is_capturing(handle: int) -> bool:
        streams = gpu.streams.values() if handle == 0 else [gpu.streams[handle]] if handle in gpu.streams else []
        return any(stream.capture for stream in streams)

    def reach(address: int, nbytes: int) -> None:
        gpu.reach(gpu.primary, address, nbytes, 4)

    with fake_tensorrt.hooks(
        on_stream=lambda handle, work: refused(lambda: put(handle, work)),
        is_capturing=is_capturing,
        on_allocate=lambda: refused(lambda: gpu.unsafe("cudaMalloc")),
        on_synchronise=lambda: refused(gpu.synchronize),
        on_address=reach,
    ):
        yield
