"""The kernel's V4L2 interface: structs and numbers of linux/videodev2.h, the few system calls, a node and its controls.

One device in two files with ``camera_v4l2``, which makes a camera of it; nobody else knows this one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import math
import mmap
import os
import re
import select
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from appliance.ports import CameraLost

_TEXT = 600  # characters of what a camera offers, in an error

# --- linux/videodev2.h, 64 bit: a test compares every size, offset and number with the header -----------------------------

CAPTURE = 1
MEMORY_MMAP, MEMORY_USERPTR = 1, 2
CAP_CAPTURE, CAP_STREAMING, CAP_DEVICE = 0x1, 0x4000000, 0x80000000
CAP_RATE = 0x1000
FLAG_ERROR, STAMP_MASK, STAMP_MONOTONIC, SOURCE_MASK, SOURCE_START = 0x40, 0xE000, 0x2000, 0x70000, 0x10000
PRIV_MAGIC = 0xFEEDCAFE  # without it the kernel hides the quantisation
COLORSPACE_JPEG, QUANTIZATION_LIMITED = 7, 2
NEXT_CONTROL = 0x80000000
CONTROL_UNUSABLE = 0x1 | 0x4  # disabled, read-only
INTEGER, BOOLEAN, MENU, INTEGER64, INTEGER_MENU = 1, 2, 3, 5, 9
AUTO_WHITE_BALANCE, AUTOGAIN, GAIN, WHITE_BALANCE_K = 0x98090C, 0x980912, 0x980913, 0x98091A
EXPOSURE_MODE, EXPOSURE_100US, EXPOSURE_PRIORITY = 0x9A0901, 0x9A0902, 0x9A0903
ANALOGUE_GAIN = 0x9E0903
MANUAL, APERTURE_PRIORITY, AUTO = 1, 3, 0  # of the exposure mode

_u8, _u32, _i32, _u64, _i64 = ctypes.c_uint8, ctypes.c_uint32, ctypes.c_int32, ctypes.c_uint64, ctypes.c_int64


class Capability(ctypes.Structure):
    """struct v4l2_capability."""

    _fields_ = [("driver", ctypes.c_char * 16), ("card", ctypes.c_char * 32), ("bus", ctypes.c_char * 32),
                ("version", _u32), ("capabilities", _u32), ("device_caps", _u32), ("reserved", _u32 * 3)]  # fmt: skip


class FormatOffer(ctypes.Structure):
    """struct v4l2_fmtdesc."""

    _fields_ = [("index", _u32), ("type", _u32), ("flags", _u32), ("description", ctypes.c_char * 32),
                ("pixelformat", _u32), ("mbus_code", _u32), ("reserved", _u32 * 3)]  # fmt: skip


class Format(ctypes.Structure):
    """struct v4l2_format with its v4l2_pix_format."""

    _fields_ = [("type", _u32), ("gap", _u32), ("width", _u32), ("height", _u32), ("pixelformat", _u32), ("field", _u32),
                ("bytesperline", _u32), ("sizeimage", _u32), ("colorspace", _u32), ("priv", _u32), ("flags", _u32),
                ("ycbcr_enc", _u32), ("quantization", _u32), ("xfer_func", _u32), ("rest", _u8 * 152)]  # fmt: skip


class SizeOffer(ctypes.Structure):
    """struct v4l2_frmsizeenum; ``numbers``: width, height, or least, most, step of each."""

    _fields_ = [("index", _u32), ("pixel_format", _u32), ("type", _u32), ("numbers", _u32 * 6), ("reserved", _u32 * 2)]


class IntervalOffer(ctypes.Structure):
    """struct v4l2_frmivalenum; ``numbers``: one fraction, or shortest, longest and step."""

    _fields_ = [("index", _u32), ("pixel_format", _u32), ("width", _u32), ("height", _u32), ("type", _u32),
                ("numbers", _u32 * 6), ("reserved", _u32 * 2)]  # fmt: skip


class StreamParameters(ctypes.Structure):
    """struct v4l2_streamparm with its v4l2_captureparm."""

    _fields_ = [("type", _u32), ("capability", _u32), ("capturemode", _u32), ("numerator", _u32), ("denominator", _u32),
                ("extendedmode", _u32), ("readbuffers", _u32), ("rest", _u8 * 176)]  # fmt: skip


class BufferRequest(ctypes.Structure):
    """struct v4l2_requestbuffers."""

    _fields_ = [("count", _u32), ("type", _u32), ("memory", _u32), ("capabilities", _u32), ("flags", _u8),
                ("reserved", _u8 * 3)]  # fmt: skip


class Buffer(ctypes.Structure):
    """struct v4l2_buffer; ``place`` is m.offset (MMAP) or m.userptr."""

    _fields_ = [("index", _u32), ("type", _u32), ("bytesused", _u32), ("flags", _u32), ("field", _u32), ("seconds", _i64),
                ("microseconds", _i64), ("timecode", _u8 * 16), ("sequence", _u32), ("memory", _u32), ("place", _u64),
                ("length", _u32), ("reserved2", _u32), ("request_fd", _i32)]  # fmt: skip


class ControlOffer(ctypes.Structure):
    """struct v4l2_query_ext_ctrl."""

    _fields_ = [("id", _u32), ("type", _u32), ("name", ctypes.c_char * 32), ("minimum", _i64), ("maximum", _i64),
                ("step", _u64), ("default_value", _i64), ("flags", _u32), ("elem_size", _u32), ("elems", _u32),
                ("nr_of_dims", _u32), ("dims", _u32 * 4), ("reserved", _u32 * 32)]  # fmt: skip


class ControlValue(ctypes.Structure):
    """struct v4l2_ext_control: packed; 32-bit values stand in the lower half of ``value``."""

    _pack_ = 1
    _fields_ = [("id", _u32), ("size", _u32), ("reserved2", _u32), ("value", _i64)]


class ControlValues(ctypes.Structure):
    """struct v4l2_ext_controls."""

    _fields_ = [("which", _u32), ("count", _u32), ("error_index", _u32), ("request_fd", _i32), ("reserved", _u32),
                ("controls", ctypes.POINTER(ControlValue))]  # fmt: skip


def _code(direction: int, number: int, argument: type[Any]) -> int:
    return direction << 30 | ctypes.sizeof(argument) << 16 | ord("V") << 8 | number


_READ, _WRITE = 2, 1
QUERYCAP = _code(_READ, 0, Capability)
ENUM_FMT = _code(_READ | _WRITE, 2, FormatOffer)
S_FMT = _code(_READ | _WRITE, 5, Format)
REQBUFS = _code(_READ | _WRITE, 8, BufferRequest)
QUERYBUF = _code(_READ | _WRITE, 9, Buffer)
QBUF = _code(_READ | _WRITE, 15, Buffer)
DQBUF = _code(_READ | _WRITE, 17, Buffer)
STREAMON = _code(_WRITE, 18, ctypes.c_int)
STREAMOFF = _code(_WRITE, 19, ctypes.c_int)
G_PARM = _code(_READ | _WRITE, 21, StreamParameters)
S_PARM = _code(_READ | _WRITE, 22, StreamParameters)
G_EXT_CTRLS = _code(_READ | _WRITE, 71, ControlValues)
S_EXT_CTRLS = _code(_READ | _WRITE, 72, ControlValues)
ENUM_FRAMESIZES = _code(_READ | _WRITE, 74, SizeOffer)
ENUM_FRAMEINTERVALS = _code(_READ | _WRITE, 75, IntervalOffer)
QUERY_EXT_CTRL = _code(_READ | _WRITE, 103, ControlOffer)

_BAYER = {"rggb": ("RGGB", "RG"), "grbg": ("GRBG", "BA"), "gbrg": ("GBRG", "GB"), "bggr": ("BA81", "BG")}
FOURCC = {
    "mono8": "GREY", **{f"bayer_{order}8": eight for order, (eight, _) in _BAYER.items()},
    "mono16": "Y16 ", "mono12": "Y12 ", "mono10": "Y10 ",
    **{f"bayer_{order}{bits}": f"{words}{bits}" for bits in (12, 10) for order, (_, words) in _BAYER.items()},
    "rgb8": "RGB3", "bgr8": "BGR3", "uyvy": "UYVY", "yuyv": "YUYV", "nv12": "NV12", "mjpeg": "MJPG",
}  # fmt: skip
"""Words of the configuration and V4L2's names for them, in the order in which ``auto`` prefers them."""


def fourcc(text: str) -> int:
    """V4L2's number of a pixel format."""
    return int.from_bytes(text.encode(), "little")


# --- the kernel ---------------------------------------------------------------------------------------------------------


class System(Protocol):
    """The few calls into the kernel. All raise OSError."""

    def open(self, path: str) -> int: ...

    def ioctl(self, fd: int, request: int, argument: Any) -> None:
        """``argument``: a ctypes object, read and written in place."""
        ...

    def mmap(self, fd: int, length: int, offset: int) -> memoryview:
        """A mapping (1-D, u8) that stays until the last view of it is gone, and does not keep ``fd`` open."""
        ...

    def poll(self, fd: int, timeout_ms: int) -> int:
        """Events, 0 when none came in time."""
        ...

    def close(self, fd: int) -> None: ...


class Kernel:
    """The real one."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def ioctl(self, fd: int, request: int, argument: Any) -> None:
        while True:
            try:
                fcntl.ioctl(fd, request, argument, True)
                return
            except InterruptedError:
                continue

    def mmap(self, fd: int, length: int, offset: int) -> memoryview:
        """Not Python's mmap: that keeps a second descriptor, and with it the driver's queue, as long as a frame is held."""
        place = self._libc.mmap(None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, offset)
        if place is None or place == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "mmap")
        mapping = (ctypes.c_uint8 * length).from_address(place)
        weakref.finalize(mapping, self._libc.munmap, place, length).atexit = False
        return memoryview(mapping).cast("B")

    def poll(self, fd: int, timeout_ms: int) -> int:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        found = poller.poll(timeout_ms)
        return found[0][1] if found else 0

    def close(self, fd: int) -> None:
        os.close(fd)


def words(why: OSError) -> str:
    """What an error of a driver means for a person."""
    return {
        errno.ENOENT: "there is no such device: it is unplugged, or stands at another port",
        errno.ENODEV: "it is gone: unplugged, or its driver gave up; check plug, cable and supply",
        errno.ENXIO: "it is gone: unplugged, or its driver gave up; check plug, cable and supply",
        errno.EIO: "its driver reports a failed transfer; check cable, hub and supply",
        errno.EBUSY: "another program uses it; end that one",
        errno.EACCES: "this user may not open it; add the user to the group video",
    }.get(why.errno or 0, f"{why.strerror or why}")


GONE = (errno.ENODEV, errno.ENXIO, errno.EIO)


class Device:
    """An open node: calls on it, and what it offers."""

    def __init__(self, system: System, path: str) -> None:
        self.system, self.fd = system, system.open(path)

    def call(self, request: int, argument: Any) -> Any:
        """The argument, as the driver left it. Raises OSError."""
        self.system.ioctl(self.fd, request, argument)
        return argument

    def each(self, request: int, make: Callable[[int], Any]) -> Iterator[Any]:
        """What an enumeration gives, until the driver says that there is no more."""
        for index in range(1000):
            try:
                yield self.call(request, make(index))
            except OSError as why:
                if why.errno in GONE:
                    raise
                return

    def formats(self) -> list[int]:
        return [one.pixelformat for one in self.each(ENUM_FMT, lambda index: FormatOffer(index=index, type=CAPTURE))]

    def rates(self, pixelformat: int, width: int, height: int) -> list[float]:
        """Frames per second on offer, of a range its fastest; empty when the driver does not say."""
        found = []
        size = {"pixel_format": pixelformat, "width": width, "height": height}
        for one in self.each(ENUM_FRAMEINTERVALS, lambda index: IntervalOffer(index=index, **size)):
            found.append(round(one.numbers[1] / max(1, one.numbers[0]), 3))
            if one.type != 1:
                break
        return found

    def offers(self) -> str:
        """Formats, sizes and rates, in words."""
        known = {fourcc(name): word for word, name in FOURCC.items()}
        told = []
        for pixelformat in self.formats():
            sizes = []
            for one in self.each(ENUM_FRAMESIZES, lambda index: SizeOffer(index=index, pixel_format=pixelformat)):  # noqa: B023
                if one.type != 1:
                    sizes.append("{0}x{3} to {1}x{4}".format(*one.numbers))
                    break
                rates = ", ".join(f"{rate:g}" for rate in self.rates(pixelformat, one.numbers[0], one.numbers[1])[:8])
                sizes.append(f"{one.numbers[0]}x{one.numbers[1]}" + (f" at {rates} fps" if rates else ""))
            name = known.get(pixelformat, pixelformat.to_bytes(4, "little").decode("latin1").strip())
            told.append(f"{name} " + ", ".join(sizes))
        text = "; ".join(told) or "nothing"
        return text if len(text) <= _TEXT else text[:_TEXT] + " …"


# --- controls -----------------------------------------------------------------------------------------------------------


def control_name(text: str) -> str:
    """As v4l2-ctl prints it: ``Exposure Time, Absolute`` is exposure_time_absolute."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


class Controls:
    """A camera's controls by number and by name; what was set is kept and can be compared again."""

    def __init__(self, device: Device, camera: str) -> None:
        self._device, self._camera = device, camera
        self._by_id: dict[int, ControlOffer] = {}
        self._set: dict[int, int] = {}
        self.notes: list[str] = []
        last = [0]
        for one in device.each(QUERY_EXT_CTRL, lambda _: ControlOffer(id=last[0] | NEXT_CONTROL)):
            last[0] = one.id
            if not one.flags & CONTROL_UNUSABLE:
                self._by_id[one.id] = one

    def find(self, *keys: int | str) -> ControlOffer | None:
        """The first there is of some numbers and names."""
        named = {control_name(one.name.decode("latin1")): one for one in self._by_id.values()}
        return next((one for key in keys if (one := self._by_id.get(key) if isinstance(key, int) else named.get(key))), None)

    def naming(self, part: str) -> list[str]:
        """Names that have ``part`` in them, of controls that take a value."""
        kinds = (INTEGER, BOOLEAN, MENU, INTEGER64, INTEGER_MENU)
        names = (control_name(one.name.decode("latin1")) for one in self._by_id.values() if one.type in kinds)
        return [name for name in names if part in name]

    def put(self, control: ControlOffer, value: float, setting: str) -> int:
        """The value as the camera's steps allow it, read back. Raises CameraLost when it cannot be held."""
        name, low, high = control_name(control.name.decode("latin1")), control.minimum, control.maximum
        if not low <= value <= high:
            raise CameraLost(
                f"camera {self._camera}: {setting} means {name} = {value:g}, which runs from {low} to {high}; correct {setting}"
            )
        step = max(1, control.step)
        whole = min(high, low + math.floor((value - low) / step + 0.5) * step)
        try:
            self._write(control, whole)
        except OSError as why:
            raise CameraLost(
                f"camera {self._camera} refuses {name} = {whole} ({words(why)}), which {setting} needs; correct {setting}"
            ) from why
        self._compare(control.id, whole)
        self._set[control.id] = whole
        self.notes.append(f"{name} = {whole}")
        return int(whole)

    def put_if_there(self, value: float, *keys: int | str) -> bool:
        """Set a control where the camera has it; one that is refused is told, and not a loss."""
        control = self.find(*keys)
        if control is None:
            return False
        try:
            self.put(control, value, "locking the camera")
        except CameraLost as why:
            self.notes.append(str(why))
        return True

    def compare(self) -> None:
        """Some cameras forget at the start of the stream. Raises CameraLost."""
        for number, value in self._set.items():
            self._compare(number, value)

    def _compare(self, number: int, value: int) -> None:
        control = self._by_id[number]
        got = self._read(control)
        if got != value:
            name = control_name(control.name.decode("latin1"))
            raise CameraLost(f"camera {self._camera} holds {name} = {got} where {value} was set; another program may set it")

    def _write(self, control: ControlOffer, value: int) -> None:
        one = ControlValue(id=control.id, value=value if control.type == INTEGER64 else value & 0xFFFFFFFF)
        self._device.call(S_EXT_CTRLS, ControlValues(count=1, controls=ctypes.pointer(one)))

    def _read(self, control: ControlOffer) -> int:
        one = ControlValue(id=control.id)
        self._device.call(G_EXT_CTRLS, ControlValues(count=1, controls=ctypes.pointer(one)))
        return int(one.value) if control.type == INTEGER64 else ctypes.c_int32(one.value & 0xFFFFFFFF).value
