"""Stand-in of jetson-utils that behaves: rings that are overwritten, conversion that is not done yet, silence for an error.

``World`` holds the sensors and the GPU; ``World.utils()`` is the module to put in the place of ``jetson_utils``. Waits
run in virtual time unless the world is made with ``real=True``. Memory that is gone reads as FREED, memory whose
conversion was not waited for as UNCONVERTED."""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
FREED = 0xDE
UNCONVERTED = 0xA5
_CHANNELS = {"rgb8": 3, "rgba8": 4, "bgr8": 3, "gray8": 1}
_FLIPS = {"none": "none", "rotate-180": "rotate-180", "horizontal": "horizontal-flip", "vertical": "vertical-flip",
          "horizontal-flip": "horizontal-flip", "vertical-flip": "vertical-flip", "clockwise": "clockwise",
          "counterclockwise": "counterclockwise"}  # fmt: skip


class Crashed(BaseException):
    """The process would have died here."""


class Block:
    """Bytes that device and CPU reach at one address; they stay readable when freed, and are then FREED."""

    def __init__(self, size: int) -> None:
        self.raw = (ctypes.c_ubyte * size)()
        self.address = ctypes.addressof(self.raw)
        self.view: U8 = np.frombuffer(memoryview(self.raw), np.uint8)

    def free(self) -> None:
        self.view[:] = FREED


class Sensor:
    """A camera or stream: ``size``, ``rate`` it has; ``show`` is a frame of it, as its lens sees the scene."""

    def __init__(self, world: World, size: tuple[int, int], rate: float) -> None:
        self._world, self.size, self.rate = world, size, rate
        self.alive = True
        self.ended = self.absent = False
        self.listeners: weakref.WeakSet[Any] = weakref.WeakSet()

    def show(self, image: U8) -> None:
        """(h, w, 3) RGB, now. Who does not fetch it before the next one never sees it."""
        if self.alive:
            with self._world.arrived:
                for pipeline in list(self.listeners):
                    pipeline.take(image)
                self._world.arrived.notify_all()

    def die(self) -> None:
        """Unplugged, or its daemon is gone: nothing is said."""
        self.alive = False

    def end(self) -> None:
        """A stream's end."""
        with self._world.arrived:
            self.ended = True
            self._world.arrived.notify_all()


class World:
    """The box: sensors by address, streams of the GPU, the wall clock, and what was done wrong."""

    def __init__(self, real: bool = False) -> None:
        self._real = real
        self._now_ns = 1_000_000_000_000
        self.arrived = threading.Condition()
        self.sensors: dict[str, Sensor] = {}
        self.blocks: dict[int, Block] = {}
        self.kept: list[Block] = []  # so that a dangling address is wrong and not a crash of the tests
        self.pending: dict[int, list[Callable[[], None]]] = {0: []}
        self.handles = itertools.count(0x1000)
        self.clock_step_ns = 0  # a wait under way is stretched by a step back (> 0) or ended by one forward (< 0)
        self.leaked_dicts = self.device_waits = self.sources_alive = 0
        self.capturing_graph = False
        self.log: list[str] = []
        self.later: list[tuple[int, Callable[[], None]]] = []  # virtual time: what happens when

    def sensor(self, address: str, size: tuple[int, int] = (8, 6), rate: float = 30.0) -> Sensor:
        """One that can be opened at ``address``."""
        self.sensors[address] = Sensor(self, size, rate)
        return self.sensors[address]

    def now_ns(self) -> int:
        """This world is also the Clock of what is tested in it."""
        return time.monotonic_ns() if self._real else self._now_ns

    def wall_us(self, at_ns: int) -> int:
        return at_ns // 1000

    def quality(self) -> Any:
        return "synced"

    def pass_time(self, ms: float) -> None:
        """Virtual time goes on, and what is due happens."""
        end_ns = self._now_ns + round(ms * 1e6)
        while self.later and min(self.later, key=lambda one: one[0])[0] <= end_ns:
            first = min(self.later, key=lambda one: one[0])
            self.later.remove(first)
            self._now_ns = max(self._now_ns, first[0])
            first[1]()
        self._now_ns = end_ns

    def after(self, ms: float, what: Callable[[], None]) -> None:
        self.later.append((self._now_ns + round(ms * 1e6), what))

    def wait(self, ready: Callable[[], bool], timeout_ms: float) -> bool:
        """As pthread_cond_timedwait on the wall clock. Called with ``arrived`` held."""
        if self.clock_step_ns:
            timeout_ms, self.clock_step_ns = max(0.0, timeout_ms + self.clock_step_ns / 1e6), 0
        if self._real:
            return self.arrived.wait_for(ready, timeout_ms / 1e3)
        end_ns = self._now_ns + round(timeout_ms * 1e6)
        while not ready() and self._now_ns < end_ns:
            due = [at for at, _ in self.later if at <= end_ns]
            self.pass_time((min(due, default=end_ns) - self._now_ns) / 1e6)
        return ready()

    def allocate(self, size: int) -> Block:
        block = Block(size)
        self.kept.append(block)
        self.blocks[block.address] = block
        return block

    def free(self, block: Block) -> None:
        block.free()
        self.blocks.pop(block.address, None)

    def pixels(self, image: Any) -> U8:
        """What the GPU finds at an image's address now."""
        block = self.blocks.get(image.ptr)
        if block is None:
            raw = (ctypes.c_ubyte * image.size).from_address(image.ptr)
            return np.frombuffer(memoryview(raw), np.uint8).reshape(image.shape)
        return block.view[: image.size].reshape(image.shape)

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        if self.capturing_graph and stream == 0:
            raise Crashed("work on the default stream while another thread captures a graph")
        self.pending[stream].append(work)

    def finish(self, stream: int) -> None:
        work, self.pending[stream] = self.pending[stream], []
        for one in work:
            one()

    def utils(self) -> types.ModuleType:
        """The module ``jetson_utils``, as built with its C extension."""
        return _module(self)


class _Pipeline:
    """GStreamer's side of a source: one slot, the newest wins; and the two rings."""

    def __init__(self, world: World, sensor: Sensor, options: dict[str, Any], csi: bool) -> None:
        self.world, self.sensor, self.options, self.csi = world, sensor, options, csi
        self.slot: U8 | None = None
        self.received = self.written = 0
        self.streaming = False
        self.ring: list[Block] = []

    def take(self, image: U8) -> None:
        if self.streaming:
            turned = image[::-1, ::-1] if self.options["flipMethod"] == "rotate-180" else image
            self.slot = np.ascontiguousarray(turned)
            self.received += 1

    def start(self) -> None:
        if self.csi:
            busy = [one for one in self.sensor.listeners if one.streaming]
            if busy:
                raise Exception("[gstreamer] nvarguscamerasrc: the sensor is in use")
        self.streaming = True
        self.sensor.listeners.add(self)

    def stop(self) -> None:
        self.streaming = False

    def free(self) -> None:
        self.stop()
        for block in self.ring:
            self.world.free(block)
        self.world.sources_alive -= 1

    def convert(self, image: U8, stream: int) -> Block:
        height, width = image.shape[:2]
        if not self.ring:
            self.ring = [self.world.allocate(height * width * 3) for _ in range(self.options["numBuffers"])]
        self.written += 1
        block = self.ring[self.written % len(self.ring)]
        block.view[:] = UNCONVERTED
        flat = image.reshape(-1).copy()
        self.world.enqueue(stream, lambda: block.view.__setitem__(slice(None), flat))
        return block


def _module(world: World) -> types.ModuleType:  # one class after the other, as in the binding
    class cudaMemory:
        def __init__(self, size: int, mapped: int = 1, freeOnDelete: int = 1) -> None:
            self._fill(world.allocate(size).address, size, bool(mapped), bool(freeOnDelete))

        def _fill(self, ptr: int, size: int, mapped: bool, free: bool) -> None:
            self.ptr = self.gpudata = ptr
            self.size, self.mapped, self.freeOnDelete = size, mapped, free
            self.stream = self.event = 0
            if free and ptr in world.blocks:
                weakref.finalize(self, world.free, world.blocks[ptr])

    class cudaImage(cudaMemory):
        def __init__(
            self, width: int, height: int, format: str = "rgb8", timestamp: int = 0, mapped: int = -1,
            freeOnDelete: int = -1, ptr: int = 0, like: Any = None,
        ) -> None:  # fmt: skip
            if like is not None:
                width, height, format = like.width, like.height, like.format
            if format not in _CHANNELS:
                raise Exception("[jetson-utils] cudaImage.__init()__ had invalid image format")
            size = width * height * _CHANNELS[format]
            if ptr:
                self._fill(ptr, size, mapped > 0, freeOnDelete > 0)
            else:
                self._fill(world.allocate(size).address, size, mapped != 0, freeOnDelete != 0)
            self.width, self.height, self.format, self.timestamp = width, height, format, timestamp
            self.channels = _CHANNELS[format]
            self.shape = (height, width, self.channels)
            self._interface: dict[str, Any] | None = None

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            if self._interface is None:
                world.leaked_dicts += 1  # never freed with the image
                self._interface = {"shape": self.shape, "typestr": "<u1", "data": (self.ptr, False), "version": 3}
            return self._interface

        @property
        def __array_interface__(self) -> dict[str, Any] | None:
            return self.__cuda_array_interface__ if self.mapped else None

    class videoSource:
        def __init__(
            self, uri: str | None = None, argv: list[str] | None = None, positionArg: int = -1,
            options: dict[str, Any] | None = None,
        ) -> None:  # fmt: skip
            uri = uri or "csi://0"
            sensor, csi = world.sensors.get(uri), uri.startswith("csi://")
            if sensor is None or sensor.absent:
                raise Exception("[jetson-utils] failed to create videoSource device")
            given = dict(options or {})
            if not isinstance(given.get("zeroCopy", True), bool):
                raise Exception("[jetson-utils] zeroCopy should be a bool")
            flip = _FLIPS.get(given.get("flipMethod", "none"), "none")  # an unknown word is the default, silently
            if csi:
                flip = {"none": "rotate-180", "rotate-180": "none"}.get(flip, flip)
            width, height = sensor.size  # the nearest there is, silently
            rate = float(int(min(given.get("framerate", 30), sensor.rate))) if csi else sensor.rate
            told = {"resource": uri, "width": width, "height": height, "framerate": rate, "flipMethod": flip,
                    "numBuffers": given.get("numBuffers", 4), "zeroCopy": given.get("zeroCopy", True)}  # fmt: skip
            pipeline = _Pipeline(world, sensor, told, csi)
            self._pipeline = pipeline
            world.sources_alive += 1
            weakref.finalize(self, pipeline.free)

        def Open(self) -> None:
            """On failure it sets an error without holding the interpreter's lock."""
            if not self._pipeline.sensor.alive:
                raise Crashed("videoSource.Open failed and set an exception without the lock")
            self._pipeline.start()

        def Close(self) -> None:
            self._pipeline.stop()

        def Capture(self, format: str = "rgb8", timeout: int = 1000, stream: int = 0) -> Any:
            pipeline = self._pipeline
            del self  # an error's traceback knows no source: the real one is C
            if not pipeline.streaming:
                pipeline.start()
            with world.arrived:
                ready = lambda: pipeline.slot is not None or pipeline.sensor.ended  # noqa: E731
                world.wait(ready, 3.6e6 if timeout < 0 else timeout)
                if pipeline.sensor.ended:
                    raise Exception("[jetson-utils] videoSource failed to capture image")
                image, pipeline.slot = pipeline.slot, None
            if image is None:
                world.log.append("a timeout occurred waiting for the next image buffer")
                return None
            height, width = image.shape[:2]
            if format not in _CHANNELS:  # not an error: the raw image, in a ring GStreamer's thread goes on writing
                raw = cudaImage(width, height, "rgb8", ptr=world.allocate(height * width * 3).address, mapped=1)
                raw.format = "nv12"
                return raw
            if format == "gray8":
                raise Exception("[jetson-utils] videoSource failed to capture image")
            block = pipeline.convert(image, stream)
            mapped = int(pipeline.options["zeroCopy"])
            stamp = round(pipeline.received * 1e9 / pipeline.sensor.rate)  # running time, near 0 at the start
            return cudaImage(width, height, format, stamp, mapped, 0, block.address)

        def GetWidth(self) -> int:
            return int(self._pipeline.options["width"])

        def GetHeight(self) -> int:
            return int(self._pipeline.options["height"])

        def GetFrameRate(self) -> int:
            return int(self._pipeline.options["framerate"])

        def GetFrameCount(self) -> int:
            return self._pipeline.received

        def GetOptions(self) -> dict[str, Any]:
            return dict(self._pipeline.options)

        def IsStreaming(self) -> bool:
            return self._pipeline.streaming

        @staticmethod
        def Usage() -> str:
            return ""

    def cudaStreamCreate(nonblocking: bool = False, priority: int = 0) -> int:
        handle = next(world.handles)
        world.pending[handle] = []
        return handle

    def cudaStreamDestroy(stream: int, /) -> None:
        del world.pending[stream]

    def cudaStreamSynchronize(stream: int, /) -> None:
        world.finish(stream)

    def cudaDeviceSynchronize() -> None:
        world.device_waits += 1
        if world.capturing_graph:
            raise Crashed("waiting for the device ends the graph another thread captures")
        for stream in world.pending:
            world.finish(stream)

    def cudaCrop(input: Any, output: Any, roi: tuple[float, float, float, float], stream: int = 0) -> None:
        left, top, right, bottom = (int(one) for one in roi)
        if input.format != output.format:
            raise Exception("[jetson-utils] cudaCrop() input and output image formats are different")
        if left < 0 or top < 0 or right > input.width or bottom > input.height or right <= left or bottom <= top:
            raise ValueError("[jetson-utils] cudaCrop() had an invalid ROI")
        world.enqueue(stream, lambda: world.pixels(output).__setitem__(slice(None), world.pixels(input)[top:bottom, left:right]))

    def cudaMemcpy(dst: Any, src: Any = None, mapped: bool = True, stream: int = 0) -> Any:
        made = None
        if src is None:
            dst, src = (made := cudaImage(dst.width, dst.height, dst.format)), dst
        world.enqueue(stream, lambda: world.pixels(dst).__setitem__(slice(None), world.pixels(src)))
        return made

    module = types.ModuleType("jetson_utils")
    module.HAS_JETSON_UTILS_EXT = True  # type: ignore[attr-defined]
    for one in (cudaMemory, cudaImage, videoSource, cudaStreamCreate, cudaStreamDestroy, cudaStreamSynchronize,
                cudaDeviceSynchronize, cudaCrop, cudaMemcpy):  # fmt: skip
        one.__module__ = "jetson_utils"
        setattr(module, one.__name__, one)
    return module


def without_extension() -> types.ModuleType:
    """What ``import jetson_utils`` gives where the C extension failed to load: no error, no videoSource."""
    module = types.ModuleType("jetson_utils")
    module.HAS_JETSON_UTILS_EXT = False  # type: ignore[attr-defined]
    return module


def strangers() -> types.ModuleType:
    """The package of that name on the Python package index: it asks the shell for serial numbers and temperatures."""
    module = types.ModuleType("jetson_utils")
    module.get_serial_number = lambda: "not asked here"  # type: ignore[attr-defined]
    return module
