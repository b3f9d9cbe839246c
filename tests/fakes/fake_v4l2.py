"""A V4L2 driver that behaves and bites, behind the few calls a camera makes; real bytes both ways, of its own reckoning.

What it punishes: a buffer queued twice or on no page; a format changed under buffers; exposure set while it is automatic;
a frame read after it was given back (its memory is poisoned at once); buffers kept until none is left for the driver.
Time is a clock's: a virtual one is moved on by ``poll``, with the real one ``poll`` waits.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import select
import struct
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from appliance.clock import VirtualClock
from appliance.ports import Clock

POISON = 0xA5
PADDING = 0xEE
MONOTONIC, START_OF_EXPOSURE = 0x2000, 0x10000
INTEGER, BOOLEAN, MENU, INTEGER64, INTEGER_MENU = 1, 2, 3, 5, 9
_MMAP, _USERPTR = 1, 2
_BITS = {"GREY": 8, "Y10 ": 16, "Y12 ": 16, "Y16 ": 16, "RG10": 16, "RGGB": 8, "YUYV": 16, "UYVY": 16, "NV12": 8, "RGB3": 24}
_BITS |= {"BGR3": 24, "MJPG": 0, "H264": 0}
_MAGIC = 0xFEEDCAFE


@dataclass
class Control:
    """One control. ``follows``: another's number and the value it must have for this one to take effect."""

    number: int
    name: str
    kind: int
    low: int
    high: int
    value: int
    step: int = 1
    default: int = 0
    flags: int = 0
    follows: tuple[int, int] | None = None


@dataclass
class FakeCamera:
    """What stands behind one node, with its faults; numbers in the sets are frames since the start of the stream."""

    driver: str
    modes: dict[str, dict[tuple[int, int], list[float]]]  # V4L2's name of the format -> size -> rates; empty = any
    controls: list[Control] = field(default_factory=list)
    userptr: str = "taken"  # taken, none, "refused" (offered, and refused when a buffer comes)
    mmap: bool = True
    most_buffers: int = 32
    sets_rate: bool = True
    colorspace: int = 8  # sRGB, what a UVC camera says
    quantization: int = 0
    padding: int = 0  # bytes behind every row
    exposure_ns: int = 250_000
    readout_ns: int = 4_000_000
    stamp_flags: int = MONOTONIC | START_OF_EXPOSURE
    stamp: Callable[[int, int], int] = lambda middle_ns, exposure_ns: middle_ns - exposure_ns // 2
    slower: float = 1.0  # what it really gives: the period times this
    changes: tuple[str, int, int] | None = None  # what S_FMT makes of any wish
    rate_becomes: float | None = None
    forgets: bool = False  # controls go back to their defaults when the stream starts
    capabilities: int = 0x84200001
    device_caps: int = 0x04200001
    lost: set[int] = field(default_factory=set)
    flagged: set[int] = field(default_factory=set)
    short: set[int] = field(default_factory=set)
    first_sequence: int = 0
    sequence: Callable[[int], int] = lambda number: number
    waits_for_trigger: tuple[int, int] | None = None  # number and value of a control
    start_ns: int = 0  # from STREAMON to the first frame
    fails: dict[int, int] = field(default_factory=dict)  # request -> errno

    def of(self, number: int) -> Control:
        return next(one for one in self.controls if one.number == number)


EXPOSURE_MODE, EXPOSURE, PRIORITY, WHITE_BALANCE, KELVIN, GAIN = 0x9A0901, 0x9A0902, 0x9A0903, 0x98090C, 0x98091A, 0x980913
T_GAIN, T_EXPOSURE, T_RATE, T_BYPASS, T_OVERRIDE = 0x9A2009, 0x9A200A, 0x9A200B, 0x9A2064, 0x9A2065
TRIGGER = 0x9A3001


def usb(**changed: Any) -> FakeCamera:
    """A UVC camera: takes USERPTR, YUYV and MJPEG, everything automatic when plugged in."""
    controls = [
        Control(WHITE_BALANCE, "White Balance, Automatic", BOOLEAN, 0, 1, 1, default=1),
        Control(GAIN, "Gain", INTEGER, 0, 100, 17),
        Control(KELVIN, "White Balance Temperature", INTEGER, 2800, 6500, 3111, 10, 4600, follows=(WHITE_BALANCE, 0)),
        Control(0x98091C, "Backlight Compensation", INTEGER, 0, 2, 1),
        Control(EXPOSURE_MODE, "Auto Exposure", MENU, 0, 3, 3, default=3),
        Control(EXPOSURE, "Exposure Time, Absolute", INTEGER, 1, 5000, 157, follows=(EXPOSURE_MODE, 1)),
        Control(PRIORITY, "Exposure, Dynamic Framerate", BOOLEAN, 0, 1, 1),
    ]
    rates = [60.0, 30.0, 15.0]
    modes = {"MJPG": {(640, 480): rates, (1280, 960): rates}, "YUYV": {(64, 48): rates, (640, 480): rates, (1280, 960): [9.0]}}
    return FakeCamera(**{"driver": "uvcvideo", "modes": modes, "controls": controls, **changed})


def tegra(**changed: Any) -> FakeCamera:
    """Tegra's capture: USERPTR offered and refused, MMAP; stamps of a hardware counter, flagged monotonic; rate by control."""
    controls = [
        Control(T_GAIN, "Gain", INTEGER64, 16, 356, 16),
        Control(T_EXPOSURE, "Exposure", INTEGER64, 13, 683_709, 2495),
        Control(T_RATE, "Frame Rate", INTEGER64, 2_000_000, 120_000_000, 30_000_000),
        Control(T_BYPASS, "Bypass Mode", INTEGER_MENU, 0, 1, 1),
        Control(T_OVERRIDE, "Override Enable", INTEGER_MENU, 0, 1, 0),
        Control(TRIGGER, "Trigger Mode", INTEGER, 0, 2, 0),
    ]
    usual = {
        "driver": "tegra-video", "modes": {"RG10": {(64, 48): [], (1280, 960): []}}, "controls": controls, "userptr": "refused",
        "sets_rate": False, "stamp_flags": MONOTONIC, "waits_for_trigger": (TRIGGER, 1),
        "stamp": lambda middle_ns, exposure_ns: middle_ns + exposure_ns // 2 - 3_600_000_000_000,
    }  # fmt: skip
    return FakeCamera(**{**usual, **changed})


def vivid(**changed: Any) -> FakeCamera:
    """The kernel's test driver: many formats, no exposure."""
    sizes = {(320, 180): [60.0, 30.0], (640, 360): [60.0, 30.0]}
    modes = {name: sizes for name in ("YUYV", "UYVY", "NV12", "GREY", "Y10 ", "Y16 ", "RGB3", "BGR3", "RGGB")}
    return FakeCamera(**{"driver": "vivid", "modes": modes, "stamp_flags": MONOTONIC, **changed})


@dataclass
class _Buffer:
    memory: Any = None  # a ctypes array: ours (MMAP) or at the address we were given
    state: str = "dequeued"
    number: int = 0
    sequence: int = 0
    used: int = 0
    flags: int = 0
    stamp_ns: int = 0
    userptr: int = 0
    mapped: int = 0


class _Node:
    """One opened node: format, buffers, stream."""

    def __init__(self, camera: FakeCamera, clock: Clock) -> None:
        self.camera, self._clock = camera, clock
        self.name, self.width, self.height, self.fps = next(iter(camera.modes)), 0, 0, 30.0
        self.buffers: list[_Buffer] = []
        self.memory_kind = 0
        self.streaming = False
        self.unplugged = False
        self.incoming: list[int] = []
        self.done: list[int] = []
        self.started_ns = self.next_number = 0
        self.fired: list[int] = []
        self.starved = 0
        self.middles: dict[int, int] = {}  # sequence -> truth

    # --- geometry -------------------------------------------------------------------------------------------------

    @property
    def row(self) -> int:
        return self.width * _BITS[self.name] // 8

    @property
    def pitch(self) -> int:
        return self.row + self.camera.padding if self.row else 0

    @property
    def rows(self) -> int:
        return self.height * 3 // 2 if self.name == "NV12" else self.height

    @property
    def size_image(self) -> int:
        return self.pitch * self.rows or self.width * self.height * 2

    def picture(self, number: int) -> bytes:
        """Frame ``number`` as it lies in memory."""
        if not self.row:
            return b"\xff\xd8" + bytes([number & 0x7F]) * 64 + b"\xff\xd9"
        return picture(number, self.row, self.rows, self.pitch)

    # --- time -----------------------------------------------------------------------------------------------------

    @property
    def _period_ns(self) -> int:
        return round(1e9 / self.fps * self.camera.slower)

    @property
    def triggered(self) -> bool:
        wait = self.camera.waits_for_trigger
        return wait is not None and self.camera.of(wait[0]).value == wait[1]

    def middle_of(self, number: int) -> int | None:
        if self.triggered:
            return self.fired[number] if number < len(self.fired) else None
        return self.started_ns + self.camera.start_ns + (number + 1) * self._period_ns

    def next_arrival(self) -> int | None:
        if not self.streaming or self.unplugged or (middle_ns := self.middle_of(self.next_number)) is None:
            return None
        return middle_ns + self.camera.exposure_ns // 2 + self.camera.readout_ns

    def run(self) -> None:
        """All that the hardware did until now."""
        while (arrival_ns := self.next_arrival()) is not None and arrival_ns <= self._clock.now_ns():
            number, self.next_number = self.next_number, self.next_number + 1
            middle_ns = self.middle_of(number)
            assert middle_ns is not None
            if number in self.camera.lost:
                continue
            if not self.incoming:
                self.starved += 1
                continue
            self._fill(self.incoming.pop(0), number, middle_ns)

    def _fill(self, index: int, number: int, middle_ns: int) -> None:
        buffer, content = self.buffers[index], self.picture(number)
        if number in self.camera.short:
            content = content[: len(content) // 2]
        ctypes.memmove(buffer.memory, content, len(content))
        buffer.number, buffer.used, buffer.state = number, len(content), "done"
        buffer.sequence = (self.camera.first_sequence + self.camera.sequence(number)) & 0xFFFFFFFF
        buffer.flags = self.camera.stamp_flags | (0x40 if number in self.camera.flagged else 0)
        buffer.stamp_ns = self.camera.stamp(middle_ns, self.camera.exposure_ns)
        self.middles[number] = middle_ns
        self.done.append(index)


def picture(number: int, row: int, rows: int, pitch: int) -> bytes:
    """Rows that differ from frame to frame and from each other, padding between them."""
    image = np.full((rows, pitch), PADDING, np.uint8)
    image[:, :row] = ((number * 13 + 1 + 7 * np.arange(rows)) % 160).astype(np.uint8)[:, None]  # never the poison
    return image.tobytes()


class FakeKernel:
    """``System`` of v4l2_driver: nodes by path. ``calls`` lists (path, request number, errno or 0)."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = threading.Condition(threading.RLock())
        self._plugged: dict[str, FakeCamera] = {}
        self._files: dict[int, _Node] = {}
        self._next_fd = 1000
        self.nodes: list[_Node] = []
        self.mappings = 0
        self.calls: list[tuple[int, int]] = []

    # --- the test's end -------------------------------------------------------------------------------------------

    def plug(self, path: str, camera: FakeCamera) -> FakeCamera:
        with self._changed:
            self._plugged[path] = camera
        return camera

    def unplug(self, path: str) -> None:
        """Every open file of it is dead from now on."""
        with self._changed:
            camera = self._plugged.pop(path)
            for node in self._files.values():
                node.unplugged |= node.camera is camera
            self._changed.notify_all()

    def fire(self, path: str, at_ns: int) -> None:
        """The photo-eye's edge reaches the camera, whose exposure lies around ``at_ns``."""
        with self._changed:
            for node in self._files.values():
                if node.camera is self._plugged[path]:
                    node.fired.append(at_ns)
            self._changed.notify_all()

    @property
    def node(self) -> _Node:
        """The one opened last."""
        return self.nodes[-1]

    def queued(self) -> int:
        with self._changed:
            return sum(one.state == "queued" for one in self.node.buffers)

    def open_files(self) -> int:
        return len(self._files)

    # --- System ---------------------------------------------------------------------------------------------------

    def open(self, path: str) -> int:
        with self._changed:
            if path not in self._plugged:
                raise OSError(errno.ENOENT, "no such file")
            self._next_fd += 1
            self._files[self._next_fd] = _Node(self._plugged[path], self._clock)
            self.nodes.append(self._files[self._next_fd])
            return self._next_fd

    def close(self, fd: int) -> None:
        with self._changed:
            self._files.pop(fd).streaming = False

    def poll(self, fd: int, timeout_ms: int) -> int:
        end_ns = self._clock.now_ns() + timeout_ms * 1_000_000
        with self._changed:
            node = self._files[fd]
            while True:
                node.run()
                if node.unplugged or not node.streaming:
                    return select.POLLERR | select.POLLHUP
                if node.done:
                    return select.POLLIN
                now_ns = self._clock.now_ns()
                if now_ns >= end_ns:
                    return 0
                self._wait(min(node.next_arrival() or end_ns, end_ns), now_ns)

    def _wait(self, until_ns: int, now_ns: int) -> None:
        if isinstance(self._clock, VirtualClock):
            self._clock.advance_to(until_ns)
        else:
            self._changed.wait(max(0.0001, (until_ns - now_ns) / 1e9))

    def mmap(self, fd: int, length: int, offset: int) -> memoryview:
        with self._changed:
            buffer = self._files[fd].buffers[offset // 0x1000000]
            mapping = (ctypes.c_uint8 * length).from_buffer(buffer.memory)
            buffer.mapped += 1
            self.mappings += 1
            weakref.finalize(mapping, self._unmap, buffer)
            return memoryview(mapping).cast("B")

    def _unmap(self, buffer: _Buffer) -> None:
        buffer.mapped -= 1
        self.mappings -= 1

    def ioctl(self, fd: int, request: int, argument: Any) -> None:
        with self._changed:
            node, number = self._files[fd], request & 0xFF
            raw = (ctypes.c_char * ctypes.sizeof(argument)).from_buffer(argument)
            assert request >> 16 & 0x3FFF == len(raw), "the size in the request is not that of its argument"
            node.run()
            try:
                if node.unplugged:
                    raise OSError(errno.ENODEV, "no such device")
                if number in node.camera.fails:
                    raise OSError(node.camera.fails[number], "a planted failure")
                raw[:] = _CALLS[number](node, bytes(raw))
            except OSError as why:
                self.calls.append((number, why.errno or 0))
                raise
            self.calls.append((number, 0))


# --- the calls: bytes in, bytes out --------------------------------------------------------------------------------------


def _refuse(number: int = errno.EINVAL) -> OSError:
    return OSError(number, errno.errorcode[number])


def _querycap(node: _Node, raw: bytes) -> bytes:
    camera = node.camera
    names = (camera.driver.encode(), b"a camera", b"bus")
    return struct.pack("<16s32s32sIII12x", *names, 0x050F00, camera.capabilities, camera.device_caps)


def _enum_fmt(node: _Node, raw: bytes) -> bytes:
    index, kind = struct.unpack_from("<II", raw)
    names = list(node.camera.modes)
    if kind != 1 or index >= len(names):
        raise _refuse()
    return struct.pack("<III32s4sI12x", index, kind, 0, b"", names[index].encode(), 0)


def _s_fmt(node: _Node, raw: bytes) -> bytes:
    kind, width, height, name, _, _, _, _, priv = struct.unpack_from("<I4xII4sIIIII", raw)
    if kind != 1:
        raise _refuse()
    if node.buffers:
        raise _refuse(errno.EBUSY)
    camera, word = node.camera, name.decode()
    if word not in camera.modes:
        word = next(iter(camera.modes))
    sizes = camera.modes[word]
    if (width, height) not in sizes:
        width, height = min(sizes, key=lambda one: abs(one[0] - width) + abs(one[1] - height))
    if camera.changes:
        word, width, height = camera.changes
    node.name, node.width, node.height = word, width, height
    pix = (width, height, word.encode(), 1, node.pitch, node.size_image, camera.colorspace)
    return struct.pack("<I4xII4sIIIIIIIII152x", kind, *pix, _MAGIC, 0, 0, camera.quantization if priv == _MAGIC else 0, 0)


def _reqbufs(node: _Node, raw: bytes) -> bytes:
    count, kind, memory = struct.unpack_from("<III", raw)
    camera = node.camera
    if node.streaming or any(one.mapped for one in node.buffers):  # so did kernels before 4.20
        raise _refuse(errno.EBUSY)
    if kind != 1 or (memory == _USERPTR and camera.userptr == "none") or (memory == _MMAP and not camera.mmap):
        raise _refuse()
    node.memory_kind = memory
    count = min(count, camera.most_buffers)
    pages = -(-node.size_image // mmap.PAGESIZE) * mmap.PAGESIZE
    node.buffers = [_Buffer(_pages_of_the_driver(pages) if memory == _MMAP else None) for _ in range(count)]
    node.incoming, node.done = [], []
    return struct.pack("<IIIIB3x", count, kind, memory, 0x33, 0)


def _pages_of_the_driver(nbytes: int) -> Any:
    """Whole pages that can be mapped again, as a device may want to."""
    return (ctypes.c_uint8 * nbytes).from_buffer(mmap.mmap(-1, nbytes))


def _buffer_bytes(node: _Node, index: int) -> bytes:
    one = node.buffers[index]
    states = {"queued": 0x2, "done": 0x4}.get(one.state, 0)
    length, place = (len(one.memory) if one.memory is not None else 0), one.userptr
    if node.memory_kind == _MMAP:
        place = index * 0x1000000
    seconds, rest = divmod(one.stamp_ns, 1_000_000_000)
    return struct.pack(
        "<IIIII4xqq16sIIQIIi4x", index, 1, one.used, one.flags | states, 1, seconds, rest // 1000, b"", one.sequence,
        node.memory_kind, place, length, 0, 0,
    )  # fmt: skip


def _querybuf(node: _Node, raw: bytes) -> bytes:
    index, kind = struct.unpack_from("<II", raw)
    if kind != 1 or index >= len(node.buffers):
        raise _refuse()
    return _buffer_bytes(node, index)


def _qbuf(node: _Node, raw: bytes) -> bytes:
    index, kind = struct.unpack_from("<II", raw)
    memory, place, length, request = struct.unpack_from("<IQII", raw, 60)
    if kind != 1 or memory != node.memory_kind or index >= len(node.buffers) or node.buffers[index].state != "dequeued":
        raise _refuse()
    one = node.buffers[index]
    if memory == _USERPTR:
        if node.camera.userptr == "refused" or place % mmap.PAGESIZE or length < node.size_image:
            raise _refuse()
        one.userptr, one.memory = place, (ctypes.c_uint8 * length).from_address(place)
    ctypes.memset(one.memory, POISON, len(one.memory))
    one.state = "queued"
    node.incoming.append(index)
    return _buffer_bytes(node, index)


def _dqbuf(node: _Node, raw: bytes) -> bytes:
    kind, memory = struct.unpack_from("<I", raw, 4)[0], struct.unpack_from("<I", raw, 60)[0]
    if kind != 1 or memory != node.memory_kind or not node.streaming:
        raise _refuse()
    if not node.done:
        raise _refuse(errno.EAGAIN)
    index = node.done.pop(0)
    node.buffers[index].state = "dequeued"
    return _buffer_bytes(node, index)


def _streamon(node: _Node, raw: bytes) -> bytes:
    if not node.incoming:
        raise _refuse()
    if node.camera.forgets:
        for control in node.camera.controls:
            control.value = control.default
    node.streaming, node.next_number, node.fired = True, 0, []
    node.started_ns = node._clock.now_ns()
    return raw


def _streamoff(node: _Node, raw: bytes) -> bytes:
    node.streaming = False
    node.incoming, node.done = [], []
    for one in node.buffers:
        one.state = "dequeued"
    return raw


def _g_parm(node: _Node, raw: bytes) -> bytes:
    if not node.camera.sets_rate:
        raise _refuse(errno.ENOTTY)
    ratio = Fraction(node.fps).limit_denominator(10_000)
    return struct.pack("<IIIIIII176x", 1, 0x1000, 0, ratio.denominator, ratio.numerator, 0, 0)


def _s_parm(node: _Node, raw: bytes) -> bytes:
    if not node.camera.sets_rate:
        raise _refuse(errno.ENOTTY)
    numerator, denominator = struct.unpack_from("<II", raw, 12)
    rates = node.camera.modes[node.name][node.width, node.height]
    asked = denominator / numerator
    node.fps = node.camera.rate_becomes or (min(rates, key=lambda rate: abs(rate - asked)) if rates else asked)
    return _g_parm(node, raw)


def _controls_of(node: _Node, raw: bytes) -> list[tuple[int, Control, int]]:
    which, count, _, _, _, place = struct.unpack("<IIIiI4xQ", raw)
    if which != 0:
        raise _refuse()
    found = []
    for one in range(count):
        number, _, _, value = struct.unpack("<IIIq", ctypes.string_at(place + 20 * one, 20))
        control = next((control for control in node.camera.controls if control.number == number), None)
        if control is None:
            raise _refuse()
        found.append((place + 20 * one, control, value))
    return found


def _g_ctrls(node: _Node, raw: bytes) -> bytes:
    for place, control, _ in _controls_of(node, raw):
        whole = "<IIIq" if control.kind == INTEGER64 else "<IIIi"
        packed = struct.pack(whole, control.number, 0, 0, control.value)
        ctypes.memmove(place, packed, len(packed))
    return raw


def _s_ctrls(node: _Node, raw: bytes) -> bytes:
    for _, control, given in _controls_of(node, raw):
        value = given if control.kind == INTEGER64 else ctypes.c_int32(given & 0xFFFFFFFF).value
        if not control.low <= value <= control.high:
            raise _refuse(errno.ERANGE)
        if control.follows and node.camera.of(control.follows[0]).value != control.follows[1]:
            continue  # an automatic goes on and sets what it likes
        control.value = value
        if control.number in (EXPOSURE, T_EXPOSURE):
            node.camera.exposure_ns = value * (100_000 if control.number == EXPOSURE else 1000)
        if control.number == T_RATE:
            node.fps = value / 1_000_000
    return raw


def _query_ctrl(node: _Node, raw: bytes) -> bytes:
    (asked,) = struct.unpack_from("<I", raw)
    later = sorted((one for one in node.camera.controls if one.number > asked & 0x7FFFFFFF), key=lambda one: one.number)
    if not asked & 0x80000000 or not later:
        raise _refuse()
    one = later[0]
    limits = (one.low, one.high, one.step, one.default)
    head = struct.pack("<II32sqqQqI", one.number, one.kind, one.name.encode(), *limits, one.flags)
    return head.ljust(232, b"\0")


def _sizes(node: _Node, raw: bytes) -> bytes:
    index, name = struct.unpack_from("<I4s", raw)
    sizes = list(node.camera.modes.get(name.decode(), {}))
    if index >= len(sizes):
        raise _refuse()
    return struct.pack("<I4sIII16x8x", index, name, 1, *sizes[index])


def _intervals(node: _Node, raw: bytes) -> bytes:
    index, name, width, height = struct.unpack_from("<I4sII", raw)
    rates = node.camera.modes.get(name.decode(), {}).get((width, height), [])
    if index >= len(rates):
        raise _refuse()
    ratio = Fraction(rates[index]).limit_denominator(10_000)
    return struct.pack("<I4sIIIII16x8x", index, name, width, height, 1, ratio.denominator, ratio.numerator)


_CALLS: dict[int, Callable[[_Node, bytes], bytes]] = {
    0: _querycap, 2: _enum_fmt, 5: _s_fmt, 8: _reqbufs, 9: _querybuf, 15: _qbuf, 17: _dqbuf, 18: _streamon, 19: _streamoff,
    21: _g_parm, 22: _s_parm, 71: _g_ctrls, 72: _s_ctrls, 74: _sizes, 75: _intervals, 103: _query_ctrl,
}  # fmt: skip
