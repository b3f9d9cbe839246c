"""Camera ``v4l2:///dev/v4l/by-path/…``: frames where the driver put them, through the kernel's own calls.

A buffer is the network's memory handed to the driver (USERPTR, what USB cameras take), or the driver's memory made
reachable for the network (MMAP, what Tegra's capture has: it offers USERPTR and refuses it), or, where neither works, the
driver's memory and one counted copy. Which one is tried at open and told in ``statistics``. The kernel's interface itself is
in ``v4l2_driver``.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import math
import select
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import appliance.devices.v4l2_driver as v4l2
from appliance.ports import CameraLost, Clock, Frame, FrameBuffer, FrameMemory, MemoryRefused

log = logging.getLogger("appliance.camera")

_BUFFERS = 6  # the judge holds two, the driver fills one, and the others stand in line behind it
_MOST_HELD = 2
_LEAST_QUEUED = 2  # below, a driver drops every other frame
_SILENT_NS, _SILENT_FRAMES = 1_000_000_000, 10  # free-run: no frame for so long is a loss
_FIRST_NS = 3_000_000_000  # a USB camera may take seconds from its start to its first frame
_SETTLING = 5  # frames after the start that say nothing about the rate
_RATE_FRAMES, _RATE_NS = 20, 1_000_000_000  # over which it is measured
_SLOW = 0.95  # of the rate asked for
_S, _US = 1_000_000_000, 1000
_YUV = ("uyvy", "yuyv", "nv12")
# Tegra's capture puts 10 and 12 bits at the top of 16-bit words, as the network reads them; V4L2's own definition of these
# formats, and every other driver, has them at the bottom: a picture of a 64th of its brightness.
_TOP_ALIGNED = ("tegra-video",)


# --- buffers ------------------------------------------------------------------------------------------------------------


@dataclass
class _Slot:
    """One buffer of the driver. ``place``: its m.offset or m.userptr; ``registered``: to be unregistered at the end."""

    buffer: FrameBuffer
    place: int
    registered: bool = False


@dataclass(frozen=True)
class _Layout:
    """What was agreed with the driver."""

    pixel: str
    pitch: int
    size_image: int
    least: int  # bytes that a whole frame has

    @property
    def compressed(self) -> bool:
        return self.pixel == "mjpeg"


def _address_of(memory: memoryview) -> int:
    """Where the CPU finds it: what USERPTR takes, whatever the device's address is."""
    return ctypes.addressof(ctypes.c_uint8.from_buffer(memory))


_Meaning = Literal["start", "middle", "end"]
_FRESH = {"frames": 0, "gaps": 0, "error_flagged": 0, "short": 0, "no_buffer": 0, "stale_releases": 0, "opened": 0}
OPTIONS = ("serial", "trigger", "stamp", "align", "gain_unit", "exposure_unit_us")
"""What may stand behind the address: ``serial`` of a USB camera (found wherever it is plugged in), ``trigger`` =
CONTROL:VALUE, ``stamp`` = start, middle or end (of exposure), ``align`` = top where words of 10 to 16 bits are top-aligned,
``gain_unit`` = the control's value for gain 1.0, ``exposure_unit_us`` = microseconds of one step."""


class V4l2Camera:
    """One camera behind a video node."""

    def __init__(
        self,
        name: str,
        path: str,
        size: tuple[int, int],
        fps: float,
        pixel: str,
        exposure_us: float | Literal["auto"],
        gain: float,
        hardware_trigger: bool,
        options: Mapping[str, str],
        clock: Clock,
        system: v4l2.System | None = None,
        by_id: Path = Path("/dev/v4l/by-id"),
    ) -> None:
        self.name, self.frame_copies = name, 0
        self._path, self._size, self._fps, self._pixel = path, size, fps, pixel
        self._exposure_us, self._gain, self._hardware, self._options = exposure_us, gain, hardware_trigger, options
        self._clock, self._system, self._by_id = clock, system or v4l2.Kernel(), by_id
        self._lock = threading.Lock()  # the judge gives buffers back while this camera's thread takes others
        self._device: v4l2.Device | None = None
        self._memory: FrameMemory | None = None
        self._kept: list[FrameBuffer] = []  # allocated once: the memory cannot take them back
        self._slots: list[_Slot] = []
        self._held: dict[int, int] = {}  # serial of a frame -> slot (or copy) it lies in
        self._left: dict[int, tuple[FrameMemory, FrameBuffer]] = {}  # registered, and held when the camera was closed
        self._copies: list[FrameBuffer] = []
        self._serial = 0
        self._failure = ""
        self._layout = _Layout("", 0, 0, 0)
        self._memory_kind = v4l2.MEMORY_MMAP
        self._counts = dict(_FRESH)
        self._told: dict[str, Any] = {}
        self._arrivals: deque[int] = deque(maxlen=64)
        self._forget()

    def _forget(self) -> None:
        self._exposure_ns = 0
        self._meaning: _Meaning = "middle"
        self._sequence = -1
        self._raw_sequence: int | None = None
        self._rate_from: tuple[int, int] | None = None
        self._rate_known = False
        self._alive_ns = 0
        self._seen_frames = 0

    # --- opening ------------------------------------------------------------------------------------------------------

    def open(self, memory: FrameMemory) -> None:
        """Format, rate, controls, buffers, start. Raises CameraLost."""
        self.close()
        self._give_up_left()
        self._forget()
        self._told = {}
        if self._options.get("stamp", "middle") not in ("start", "middle", "end"):
            raise CameraLost(f"camera {self.name}: stamp={self._options['stamp']} is not known; write start, middle or end")
        path = self._find()
        try:
            self._device = v4l2.Device(self._system, path)
            self._start(self._device, memory)
        except (OSError, MemoryRefused) as why:
            self.close()
            words = v4l2.words(why) if isinstance(why, OSError) else str(why)
            raise CameraLost(f"camera {self.name} at {path}: {words}") from why
        except CameraLost:
            self.close()
            raise
        self._counts["opened"] += 1
        self._alive_ns = self._clock.now_ns() + max(0, _FIRST_NS - self._longest_silence())
        log.info("camera %s: %s", self.name, self._told)

    def _find(self) -> str:
        """The node now: a replugged camera stands at its port's path, or has its serial in its name."""
        serial = self._options.get("serial")
        if not serial:
            return self._path
        names = sorted(one.name for one in self._by_id.iterdir()) if self._by_id.is_dir() else []
        found = [name for name in names if name.endswith(f"_{serial}-video-index0")]
        if len(found) != 1:
            there = ", ".join(names) or "none"
            raise CameraLost(f"camera {self.name}: no camera with serial {serial} is plugged in; there are: {there}")
        return str(self._by_id / found[0])

    def _start(self, device: v4l2.Device, memory: FrameMemory) -> None:
        capability = device.call(v4l2.QUERYCAP, v4l2.Capability())
        flags = capability.device_caps if capability.capabilities & v4l2.CAP_DEVICE else capability.capabilities
        if not flags & v4l2.CAP_CAPTURE or not flags & v4l2.CAP_STREAMING:
            raise CameraLost(f"camera {self.name}: {self._path} gives no frames (a metadata node?); take its video-index0")
        driver = capability.driver.decode("latin1")
        self._layout = self._choose(device, driver)
        rate = self._set_rate(device)
        controls = v4l2.Controls(device, self.name)
        self._lock_controls(controls, rate)
        self._told |= {
            "driver": driver, "pixel": self._layout.pixel, "pitch_bytes": self._layout.pitch, "controls": controls.notes,
            "asked_fps": self._fps,
        }  # fmt: skip
        self._memory = memory
        self._told["memory"] = self._arm(device, memory)
        controls.compare()

    def _choose(self, device: v4l2.Device, driver: str) -> _Layout:
        """The format asked for, or the first that is lossless, readable and fast enough."""
        offered = device.formats()
        wanted = [word for word in v4l2.FOURCC if word != "mjpeg"] if self._pixel == "auto" else [self._pixel]
        refused = []
        for word in wanted:
            if v4l2.fourcc(v4l2.FOURCC[word]) not in offered:
                continue
            if _is_words(word) and driver not in _TOP_ALIGNED and self._options.get("align") != "top":
                refused.append(
                    f"{word} has its bits at the bottom of 16-bit words, which the network reads from the top: take another"
                    f" format, or write ?align=top where the camera's maker says so"
                )
                continue
            layout = self._try(device, word, refused)
            if layout:
                return layout
        asked = f"{self._pixel} {self._size[0]}x{self._size[1]} at {self._fps:g} fps"
        why = f" ({'; '.join(refused)})" if refused else ""
        raise CameraLost(
            f"camera {self.name} does not give {asked}{why}; it offers {device.offers()}; correct cameras.{self.name}"
        )

    def _try(self, device: v4l2.Device, word: str, refused: list[str]) -> _Layout | None:
        width, height = self._size
        number = v4l2.fourcc(v4l2.FOURCC[word])
        got = device.call(
            v4l2.S_FMT,
            v4l2.Format(type=v4l2.CAPTURE, width=width, height=height, pixelformat=number, field=1, priv=v4l2.PRIV_MAGIC),
        )
        if (got.pixelformat, got.width, got.height) != (number, width, height):
            name = got.pixelformat.to_bytes(4, "little").decode("latin1").strip()
            refused.append(f"asked for {word}, the driver makes it {name} {got.width}x{got.height}")
            return None
        rates = device.rates(number, width, height)
        if rates and max(rates) < self._fps * 0.99:
            refused.append(f"{word} of this size comes at {max(rates):g} fps at most")
            return None
        return self._layout_of(word, got)

    def _layout_of(self, word: str, got: v4l2.Format) -> _Layout:
        if word == "mjpeg":
            return _Layout(word, 0, got.sizeimage, 1)
        row = _row_bytes(word, got.width)
        rows = got.height * 3 // 2 if word == "nv12" else got.height
        pitch = got.bytesperline or row
        least = pitch * (rows - 1) + row  # the last row may come without its padding
        if pitch < row or got.sizeimage < least:
            raise CameraLost(
                f"camera {self.name}: {pitch} bytes a row and {got.sizeimage} a frame cannot hold {got.width} x {got.height} of"
                f" {word}; the driver contradicts itself, take another pixel format"
            )
        return _Layout(word + ("/limited" if word in _YUV and _is_limited(got) else ""), pitch, got.sizeimage, least)

    def _set_rate(self, device: v4l2.Device) -> bool:
        """False: the driver sets no rate this way."""
        parameters = v4l2.StreamParameters(type=v4l2.CAPTURE)
        try:
            device.call(v4l2.G_PARM, parameters)
        except OSError as why:
            if why.errno in v4l2.GONE:
                raise
            return False
        if not parameters.capability & v4l2.CAP_RATE:
            return False
        asked = v4l2.StreamParameters(type=v4l2.CAPTURE, numerator=1000, denominator=round(self._fps * 1000))
        got = device.call(v4l2.S_PARM, asked)
        fps = got.denominator / max(1, got.numerator)
        if fps < self._fps * 0.99 or (fps > self._fps * 1.01 and not self._hardware):
            raise CameraLost(
                f"camera {self.name} makes {fps:g} of {self._fps:g} fps; it offers {device.offers()};"
                f" correct cameras.{self.name}.fps"
            )
        return True

    # --- controls -----------------------------------------------------------------------------------------------------

    def _lock_controls(self, controls: v4l2.Controls, rate_is_set: bool) -> None:
        """What would move by itself is held still, manual before the values: a camera ignores them otherwise."""
        controls.put_if_there(0, "bypass_mode")  # 1: frames go to the ISP and never come here
        controls.put_if_there(1, "override_enable")  # Tegra: without it exposure and gain are only remembered
        self._exposure_mode(controls)
        controls.put_if_there(0, v4l2.EXPOSURE_PRIORITY)  # a camera in the dark would lower its rate
        controls.put_if_there(0, v4l2.AUTO_WHITE_BALANCE)
        kelvin = controls.find(v4l2.WHITE_BALANCE_K)
        if kelvin:  # else it stays where it happened to be, and a restart changes the colours
            controls.put_if_there(kelvin.default_value, v4l2.WHITE_BALANCE_K)
        frame_rate = controls.find("frame_rate")
        if frame_rate and not rate_is_set:
            unit = 1_000_000 if frame_rate.maximum >= 1_000_000 else 1  # Tegra counts in millionths
            controls.put(frame_rate, self._fps * unit, f"cameras.{self.name}.fps")
        if self._exposure_us != "auto":
            self._exposure(controls, self._exposure_us)
            self._put_gain(controls)
        self._trigger(controls)

    def _exposure_mode(self, controls: v4l2.Controls) -> None:
        mode = controls.find(v4l2.EXPOSURE_MODE)
        if self._exposure_us != "auto":
            if mode:
                controls.put(mode, v4l2.MANUAL, f"cameras.{self.name}.exposure_us")
            controls.put_if_there(0, v4l2.AUTOGAIN)
        elif mode and not self._auto_exposure(controls, mode):
            raise CameraLost(f"camera {self.name} has no automatic exposure; write a number to cameras.{self.name}.exposure_us")

    def _auto_exposure(self, controls: v4l2.Controls, mode: v4l2.ControlOffer) -> bool:
        for value in (v4l2.APERTURE_PRIORITY, v4l2.AUTO):
            try:
                controls.put(mode, value, "exposure_us: auto")
                return True
            except CameraLost:
                continue  # the other of the two is tried; a camera with neither is told by the caller
        return False

    def _exposure(self, controls: v4l2.Controls, exposure_us: float) -> None:
        setting = f"cameras.{self.name}.exposure_us"
        unit_us = self._number("exposure_unit_us", 0)
        control = controls.find(v4l2.EXPOSURE_100US) if not unit_us else None
        if control:
            unit_us = 100.0
        else:
            control = controls.find("exposure", "exposure_time", "exposure_time_absolute")
            unit_us = unit_us or (1.0 if control and control.type == v4l2.INTEGER64 else 0.0)
        if control is None:
            raise CameraLost(f"camera {self.name} has no control of its exposure; write {setting}: auto")
        if not unit_us:
            raise CameraLost(
                f"camera {self.name} counts its exposure in steps of unknown length (mostly lines); write how many"
                " microseconds one is: ?exposure_unit_us=… behind the camera's address"
            )
        got_us = controls.put(control, exposure_us / unit_us, setting) * unit_us
        self._exposure_ns = round(got_us * _US)
        if abs(got_us - exposure_us) > 0.01 * exposure_us:
            controls.notes.append(f"exposure is {got_us:g} us where {exposure_us:g} was asked: its steps are {unit_us:g} us")

    def _put_gain(self, controls: v4l2.Controls) -> None:
        control = controls.find(v4l2.GAIN, v4l2.ANALOGUE_GAIN, "gain", "analogue_gain")
        if control is None:
            controls.notes.append("no control of the gain: it stays as the camera has it")
            return
        unit = self._number("gain_unit", 1)
        setting = f"cameras.{self.name}.gain (or ?gain_unit=…, the control's value for gain 1.0)"
        controls.put(control, self._gain * unit, setting)

    def _trigger(self, controls: v4l2.Controls) -> None:
        """The photo-eye fires the camera, or nothing does; a camera left waiting for an eye gives no frames."""
        named = self._options.get("trigger", "").rpartition(":")[0]
        names = controls.naming("trigger")
        name = v4l2.control_name(named) if named else next((one for one in ("trigger_mode", "trigger") if one in names), "")
        if not name and len(names) == 1:
            name = names[0]
        control = controls.find(name) if name else None
        if control and not self._hardware:
            controls.put_if_there(control.default_value if named else 0, name)
        elif control:
            controls.put(control, self._number("trigger", 0) if named else 1, f"cameras.{self.name}.trigger: hardware")
        elif self._hardware:
            found = f"controls named so: {', '.join(names)}" if names else "no control of it is named trigger"
            raise CameraLost(
                f"camera {self.name} shows no way to be fired by the photo-eye ({found}); write ?trigger=CONTROL:VALUE behind"
                " its address, or trigger: free-run"
            )

    def _number(self, option: str, default: float) -> float:
        """What stands behind an option, or behind its last colon. Raises CameraLost."""
        if option not in self._options:
            return default
        text = self._options[option].rpartition(":")[2]
        try:
            return float(text)
        except ValueError:
            raise CameraLost(f"camera {self.name}: {option}={self._options[option]} is no number; correct its address") from None

    # --- buffers ------------------------------------------------------------------------------------------------------

    def _arm(self, device: v4l2.Device, memory: FrameMemory) -> str:
        """Buffers made and queued, the stream begun; in words, how they are shared."""
        try:
            self._memory_kind, self.frame_copies = v4l2.MEMORY_USERPTR, 0
            self._slots = self._user_slots(device, memory)
            self._stream(device)
            return "USERPTR: the camera writes where the network reads; no copy"
        except (OSError, MemoryRefused) as why:
            if isinstance(why, OSError) and why.errno in v4l2.GONE:
                raise
            refused = v4l2.words(why) if isinstance(why, OSError) else str(why)
            self._disarm(device)
        self._memory_kind = v4l2.MEMORY_MMAP
        self._slots = self._mapped_slots(device)
        text = f"MMAP: the network reads where the camera writes; no copy (USERPTR refused: {refused})"
        try:
            self._register(memory)
        except MemoryRefused as why:
            self._copies = self._allocated(memory, _MOST_HELD)
            self.frame_copies = 1
            text = f"MMAP and one copy: {why} (USERPTR refused: {refused})"
        self._stream(device)
        return text

    def _user_slots(self, device: v4l2.Device, memory: FrameMemory) -> list[_Slot]:
        count = device.call(v4l2.REQBUFS, v4l2.BufferRequest(count=_BUFFERS, type=v4l2.CAPTURE, memory=v4l2.MEMORY_USERPTR)).count
        return [_Slot(buffer, _address_of(buffer.memory)) for buffer in self._allocated(memory, self._enough(count))]

    def _mapped_slots(self, device: v4l2.Device) -> list[_Slot]:
        count = device.call(v4l2.REQBUFS, v4l2.BufferRequest(count=_BUFFERS, type=v4l2.CAPTURE, memory=v4l2.MEMORY_MMAP)).count
        slots = []
        for index in range(self._enough(count)):
            one = device.call(v4l2.QUERYBUF, v4l2.Buffer(index=index, type=v4l2.CAPTURE, memory=v4l2.MEMORY_MMAP))
            mapping = self._system.mmap(device.fd, one.length, one.place)
            slots.append(_Slot(FrameBuffer(mapping, 0), one.place))
        return slots

    def _enough(self, count: int) -> int:
        if count < _MOST_HELD + _LEAST_QUEUED:
            raise CameraLost(
                f"camera {self.name}: its driver has {count} buffers, {_MOST_HELD + _LEAST_QUEUED} are needed; lower its size"
            )
        return min(count, _BUFFERS)

    def _allocated(self, memory: FrameMemory, count: int) -> list[FrameBuffer]:
        """Buffers of this camera for good: opening it a hundred times allocates once."""
        size = self._layout.size_image
        if len(self._kept) < count or any(len(one.memory) < size for one in self._kept[:count]):
            self._kept = memory.allocate(size, max(count, len(self._kept)))
        return self._kept[:count]

    def _register(self, memory: FrameMemory) -> None:
        try:
            for slot in self._slots:
                slot.buffer, slot.registered = memory.register(slot.buffer.memory), True
        except MemoryRefused:
            for slot in self._slots:
                self._unregister(slot)
            raise

    def _unregister(self, slot: _Slot) -> None:
        if slot.registered and self._memory:
            self._memory.unregister(slot.buffer)
            slot.buffer, slot.registered = FrameBuffer(slot.buffer.memory, 0), False

    def _stream(self, device: v4l2.Device) -> None:
        for index in range(len(self._slots)):
            self._queue(device, index)
        device.call(v4l2.STREAMON, ctypes.c_int(v4l2.CAPTURE))

    def _queue(self, device: v4l2.Device, index: int) -> None:
        slot = self._slots[index]
        one = v4l2.Buffer(index=index, type=v4l2.CAPTURE, memory=self._memory_kind)
        if self._memory_kind == v4l2.MEMORY_USERPTR:
            one.place, one.length = slot.place, len(slot.buffer.memory)
        device.call(v4l2.QBUF, one)

    def _disarm(self, device: v4l2.Device) -> None:
        """Back to before ``_arm``: mappings are let go before the driver is asked to free what lies behind them."""
        self._tell(device, v4l2.STREAMOFF, ctypes.c_int(v4l2.CAPTURE))
        holders = {} if self._copies else {index: serial for serial, index in self._held.items()}
        for index, slot in enumerate(self._slots):
            if index in holders and slot.registered and self._memory:  # the network may be reading it this moment
                self._left[holders[index]] = (self._memory, slot.buffer)
            else:
                self._unregister(slot)
        self._slots, self._copies = [], []
        self._held.clear()
        self._tell(device, v4l2.REQBUFS, v4l2.BufferRequest(count=0, type=v4l2.CAPTURE, memory=self._memory_kind))

    def _tell(self, device: v4l2.Device, request: int, argument: Any) -> None:
        """A driver that is gone does not answer, and needs not."""
        try:
            device.call(request, argument)
        except OSError as why:
            log.info("camera %s at its end: %s", self.name, v4l2.words(why))

    # --- frames -------------------------------------------------------------------------------------------------------

    def next_frame(self, timeout_s: float) -> Frame | None:
        """The next whole frame, or None. Raises CameraLost: gone, failed, or silent while it runs by itself."""
        device = self._device
        if device is None:
            raise CameraLost(f"camera {self.name} is closed")
        deadline_ns = self._clock.now_ns() + round(timeout_s * _S)
        while True:
            left_ns = deadline_ns - self._clock.now_ns()
            frame = self._take(device) if self._ready(device, max(0, left_ns)) else None
            if frame is not None:
                return frame
            self._check_silence()
            if left_ns <= 0:
                return None

    def _ready(self, device: v4l2.Device, wait_ns: int) -> bool:
        if self._failure:
            raise CameraLost(self._failure)
        try:
            events = self._system.poll(device.fd, math.ceil(wait_ns / 1e6))
        except OSError as why:
            raise CameraLost(f"camera {self.name}: {v4l2.words(why)}") from why
        if events & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
            raise CameraLost(f"camera {self.name}: it is gone or its stream failed; check plug, cable and supply")
        return bool(events)

    def _take(self, device: v4l2.Device) -> Frame | None:
        """What the driver has filled: a frame, or None where it is none that can be judged."""
        with self._lock:
            try:
                one = device.call(v4l2.DQBUF, v4l2.Buffer(type=v4l2.CAPTURE, memory=self._memory_kind))
            except OSError as why:
                if why.errno == errno.EAGAIN:
                    return None
                raise CameraLost(f"camera {self.name}: {v4l2.words(why)}") from why
            arrived_ns = self._clock.now_ns()
            self._count(one.sequence, arrived_ns)
            frame = None
            if one.flags & v4l2.FLAG_ERROR:
                self._counts["error_flagged"] += 1
            elif one.bytesused < self._layout.least:
                self._counts["short"] += 1
            else:
                self._alive_ns = arrived_ns
                frame = self._hand_over(one, arrived_ns)
            if frame is None or self._copies:
                self._give_to_driver(device, one.index)
            return frame

    def _count(self, raw: int, arrived_ns: int) -> None:
        """The driver's number, which begins anywhere and has 32 bits, as one that only grows."""
        step = 1 if self._raw_sequence is None else (raw - self._raw_sequence) & 0xFFFFFFFF
        if step == 0 or step >= 0x80000000:  # it stands still or went back: it counts nothing
            self._told["sequence"] = "the driver's frame numbers do not count; gaps are not seen"
            step = 1
        self._counts["gaps"] += step - 1
        self._raw_sequence, self._sequence = raw, self._sequence + step
        self._arrivals.append(arrived_ns)
        self._seen_frames += 1
        self._judge_rate(arrived_ns)

    def _hand_over(self, one: v4l2.Buffer, arrived_ns: int) -> Frame | None:
        """The frame, or None where the judge holds as many as it may. Called with the lock."""
        if len(self._held) >= _MOST_HELD:
            self._counts["no_buffer"] += 1
            return None
        buffer, place = self._slots[one.index].buffer, one.index
        length = min(one.bytesused if self._layout.compressed else self._layout.size_image, len(buffer.memory))
        if self._copies:
            place = next(index for index in range(len(self._copies)) if index not in self._held.values())
            target = self._copies[place]
            target.memory[:length] = buffer.memory[:length]
            buffer = target
        self._serial += 1
        self._held[self._serial] = place
        self._counts["frames"] += 1
        time_ns, clock = self._stamp(one, arrived_ns)
        return Frame(
            buffer.memory[:length], buffer.address, self._layout.pitch, self._size, self._layout.pixel, self._sequence,
            time_ns, arrived_ns, partial(self._release, self._serial), clock,
        )  # fmt: skip

    def _stamp(self, one: v4l2.Buffer, arrived_ns: int) -> tuple[int, Literal["driver", "none"]]:
        """Middle of exposure as far as the driver says; on which clock it counts is for others to prove."""
        stamp_ns = one.seconds * _S + one.microseconds * _US
        if one.flags & v4l2.STAMP_MASK != v4l2.STAMP_MONOTONIC or not stamp_ns:
            self._told["stamp"] = "none that could be used"
            return arrived_ns, "none"
        given = self._options.get("stamp")
        meaning = given or ("start" if one.flags & v4l2.SOURCE_MASK == v4l2.SOURCE_START else "end")
        self._told["stamp"] = f"{meaning} of exposure, {'as configured' if given else 'as the driver flags it'}"
        half_ns = self._exposure_ns // 2
        return stamp_ns + {"start": half_ns, "middle": 0, "end": -half_ns}[meaning], "driver"

    def _release(self, serial: int) -> None:
        """Any thread. Twice, or after the camera was closed, it does nothing (but end a registration that waited for it)."""
        with self._lock:
            index = self._held.pop(serial, None)
            left = self._left.pop(serial, None)
            if index is None:
                self._counts["stale_releases"] += left is None
            elif self._device and not self._copies:
                self._give_to_driver(self._device, index)
        if left:
            left[0].unregister(left[1])

    def _give_to_driver(self, device: v4l2.Device, index: int) -> None:
        """Called with the lock; what fails here is told by the camera's own thread."""
        try:
            self._queue(device, index)
        except OSError as why:
            self._failure = self._failure or f"camera {self.name} takes no buffer back: {v4l2.words(why)}"

    def _longest_silence(self) -> int:
        return max(_SILENT_NS, round(_SILENT_FRAMES * _S / self._fps))

    def _check_silence(self) -> None:
        """An idle line is normal where the photo-eye fires the camera."""
        silent_ns = self._clock.now_ns() - self._alive_ns
        if self._hardware or silent_ns <= self._longest_silence():
            return
        broken = self._counts["error_flagged"] + self._counts["short"]
        raise CameraLost(
            f"camera {self.name} gave no whole frame for {self._longest_silence() / _S:.1f} s ({broken} broken ones so far);"
            " check cable and supply, and that it is not left waiting for a trigger"
        )

    def _judge_rate(self, arrived_ns: int) -> None:
        """Free-run: what the camera really gives, by its numbers, over its first frames."""
        if self._hardware or self._rate_known or self._seen_frames <= _SETTLING:
            return
        if self._rate_from is None:
            self._rate_from = (self._sequence, arrived_ns)
            return
        frames, span_ns = self._sequence - self._rate_from[0], arrived_ns - self._rate_from[1]
        if frames < _RATE_FRAMES or span_ns < _RATE_NS:
            return
        self._rate_known = True
        fps = frames * _S / span_ns
        self._told["rate"] = f"{fps:.1f} fps where {self._fps:g} were asked"
        if fps < self._fps * _SLOW:
            self._told["rate"] = f"too slow: {self._told['rate']}; shorten exposure_us, lower fps, or use a faster port"
            log.warning("camera %s is %s", self.name, self._told["rate"])

    # --- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop and give the node back; a mapping stays readable as long as somebody holds a view of it."""
        with self._lock:
            device, self._device = self._device, None
            if device is None:
                return
            self._failure = ""
            self._disarm(device)
            self._system.close(device.fd)

    def _give_up_left(self) -> None:
        """Registrations whose frames were never released: whoever held them has forgotten them since the loss."""
        with self._lock:
            left, self._left = list(self._left.values()), {}
        for memory, buffer in left:
            memory.unregister(buffer)

    def statistics(self) -> dict[str, Any]:
        """Counts, the measured rate, and in words what was agreed with the driver."""
        with self._lock:
            arrivals = list(self._arrivals)
            told = dict(self._told)
            figures = {**self._counts, "held": len(self._held), "buffers": len(self._slots), "frame_copies": self.frame_copies}
        span_ns = arrivals[-1] - arrivals[0] if len(arrivals) > 1 else 0
        return {**figures, "fps": round((len(arrivals) - 1) * _S / span_ns, 2) if span_ns else 0.0, **told}


def _is_words(pixel: str) -> bool:
    return pixel.startswith("mono1") or (pixel.startswith("bayer_") and not pixel.endswith("8"))


def _row_bytes(pixel: str, width: int) -> int:
    if pixel in ("rgb8", "bgr8"):
        return 3 * width
    return 2 * width if pixel in ("yuyv", "uyvy") or _is_words(pixel) else width


def _is_limited(got: v4l2.Format) -> bool:
    """The kernel's rule: what a driver leaves open is limited for YUV, except in JPEG's colours."""
    if got.priv == v4l2.PRIV_MAGIC and got.quantization:
        return bool(got.quantization == v4l2.QUANTIZATION_LIMITED)
    return bool(got.colorspace != v4l2.COLORSPACE_JPEG)
