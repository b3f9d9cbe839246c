"""Camera ``gige://SERIAL``: GigE Vision through Aravis 0.8, whose thread writes the packets into buffers the GPU reads.

Aravis notices a dead camera after six seconds, and every register it then asks for costs 2.5 s. So whether the camera is
there is asked beside it, by two packets of the GigE Vision control protocol: who are you, and who controls you.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from appliance.ports import CameraLost, Clock, Frame, FrameBuffer, FrameMemory, MemoryRefused

log = logging.getLogger("appliance.camera")

_MOST_HELD = 2
_BUFFERS = 12  # so ten at least lie with Aravis: at 1,000 frames a second it had none left after 12 ms of a busy machine
_SILENT_NS = 500_000_000  # from here on the control channel is asked, as often again
_SILENT_FRAMES = 10
_FIRST_FRAME_NS = 2_000_000_000  # a sensor may take its time to start
_FIGURES_NS = 1_000_000_000
_HEARTBEAT_NS = 3_100_000_000  # a camera lets go of a controller that was silent for three seconds
_LOST_ADDRESS_TRIES = 8  # at 0.25 s: then the camera is looked for everywhere, which takes Aravis a second

# GenICam's name -> (our word, how far its words of 16 bits are shifted up to be top-aligned).
_FORMATS: dict[str, tuple[str, int]] = {
    "Mono8": ("mono8", 0), "Mono10": ("mono10", 6), "Mono12": ("mono12", 4), "Mono16": ("mono16", 0),
    "RGB8": ("rgb8", 0), "RGB8Packed": ("rgb8", 0), "BGR8": ("bgr8", 0), "BGR8Packed": ("bgr8", 0),
    "YUV422_8": ("yuyv", 0), "YUYVPacked": ("yuyv", 0), "YUV422_YUYV_Packed": ("yuyv", 0), "YCbCr422_8": ("yuyv", 0),
    "YUV422_8_UYVY": ("uyvy", 0), "YUV422Packed": ("uyvy", 0), "YCbCr422_8_CbYCrY": ("uyvy", 0),
    "YCbCr601_422_8": ("yuyv/limited", 0), "YCbCr601_422_8_CbYCrY": ("uyvy/limited", 0),
    **{
        f"Bayer{theirs}{bits}": (f"bayer_{ours}{bits}", 0 if bits == 8 else 16 - bits)
        for theirs, ours in (("RG", "rggb"), ("BG", "bggr"), ("GR", "grbg"), ("GB", "gbrg")) for bits in (8, 10, 12)
    },
}  # fmt: skip
_STREAM_FIGURES = (
    "n_underruns", "n_missing_frames", "n_missing_packets", "n_resend_requests", "n_resent_packets", "n_duplicated_packets",
)  # fmt: skip


# --- the control protocol, two questions ------------------------------------------------------------------------

_PORT, _KEY, _WANTS_ANSWER = 3956, 0x42, 0x01
_DISCOVERY, _READ_REGISTER = 0x0002, 0x0080
_PRIVILEGE_REGISTER, _CONTROLLED = 0x0A00, 0x3  # exclusive or control access is taken
_TRIES, _ANSWER_S = 4, 0.075  # a camera answers within a millisecond; so long a packet may be lost three times


@dataclass(frozen=True)
class Identity:
    """Who answers at an address."""

    vendor: str
    model: str
    serial: str
    user_name: str

    def called(self, name: str) -> bool:
        """Whether ``name`` means this camera: serial, name given by the user, or vendor-model-serial as Aravis has it."""
        return name in (self.serial, self.user_name, f"{self.vendor}-{self.model}-{self.serial}", f"{self.vendor}-{self.serial}")


def ask_identity(address: str) -> Identity | None:
    """None: nobody answers there (0.3 s at most)."""
    answer = _ask(address, _DISCOVERY, b"")
    if answer is None or len(answer) < 248:
        return None
    words = [answer[start : start + length] for start, length in ((72, 32), (104, 32), (216, 16), (232, 16))]
    return Identity(*(word.split(b"\0")[0].decode("ascii", "replace").strip() for word in words))


def ask_controlled(address: str) -> bool | None:
    """Whether anyone controls the camera there; None: it does not answer (0.3 s at most)."""
    answer = _ask(address, _READ_REGISTER, struct.pack(">I", _PRIVILEGE_REGISTER))
    return bool(answer[3] & _CONTROLLED) if answer is not None and len(answer) == 4 else None


def _ask(address: str, command: int, question: bytes) -> bytes | None:
    """The answer without its header. Answers carry the command's number plus one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_ANSWER_S)
        for number in range(1, _TRIES + 1):
            try:
                sock.connect((address, _PORT))
                sock.send(struct.pack(">BBHHH", _KEY, _WANTS_ANSWER, command, len(question), number) + question)
                answer = sock.recv(1024)
            except OSError:  # silence, or the port is refused: ask again
                continue
            if len(answer) >= 8 and answer[:4] == struct.pack(">HH", 0, command + 1):
                return answer[8:]
    return None


def _own_address(towards: str) -> str:
    """The address of ours from which packets go to a camera."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((towards, _PORT))
        return str(sock.getsockname()[0])


# --- numbers of frames ------------------------------------------------------------------------------------------


class FrameNumbers:
    """Distances between a camera's frame numbers: 1 to 65535 and again 1, or, with extended numbers, 64 bits."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._older: int | None = None
        self._extended = False
        self.restarts = 0

    def step(self, number: int) -> int:
        """How many frames further than the last one: 1 = the next, more = a gap, 0 = the same again, below = an older one."""
        self._extended |= number > 0xFFFF
        if self._last is None:
            self._last = number
            return 1
        ahead = number - self._last
        if not self._extended and abs(ahead) > 0x7FFF:
            ahead += 0xFFFF if ahead < 0 else -0xFFFF  # 0 is left out
        if ahead < 0 and self._older is not None and number == self._older + 1:
            self.restarts += 1  # two older ones in a row: the camera counts anew
            ahead = 1
        self._older = number if ahead < 0 else None
        if ahead > 0:
            self._last = number
        return ahead


# --- the camera ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GigeOptions:
    """What the address may add.

    ``packet_bytes`` 0: the largest that gets through; ``packet_delay_ns``: pause between packets, where several cameras
    share a wire; ``stamp``: what the camera's time stamp marks of the exposure; ``packet_socket``: let Aravis read past
    the UDP stack where it has CAP_NET_RAW."""

    trigger_line: str = "Line1"
    packet_bytes: int = 0
    packet_delay_ns: int = 0
    stamp: Literal["start", "middle", "end"] = "start"
    packet_socket: bool = True

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> GigeOptions:
        """From ``?trigger=Line1&packet_delay_us=5&packet_bytes=1500&stamp=start&packet_socket=0``. Raises ValueError."""
        stamp = query.get("stamp", "start")
        if stamp not in ("start", "middle", "end"):
            raise ValueError(f"stamp={stamp} is no part of an exposure; write start, middle or end")
        return cls(
            query.get("trigger", "Line1"), round(_number(query, "packet_bytes")), round(1000 * _number(query, "packet_delay_us")),
            cast(Literal["start", "middle", "end"], stamp), query.get("packet_socket") != "0",
        )  # fmt: skip


def _number(query: Mapping[str, str], key: str) -> float:
    text = query.get(key, "0")
    try:
        return float(text)
    except ValueError as why:
        raise ValueError(f"{key}={text} is no number") from why


@dataclass(frozen=True)
class _Library:
    aravis: Any
    gio: Any
    error: type[Exception]
    """GLib.Error"""


@dataclass
class _Session:
    """From open to close. ``close`` empties it: whoever still holds it (a traceback does) keeps no camera alive."""

    number: int
    address: str
    device: Any = None
    camera: Any = None
    stream: Any = None
    buffers: list[Any] = field(default_factory=list)
    index: dict[Any, int] = field(default_factory=dict)
    format: str = ""
    code: int = 0
    pixel: str = ""
    shift: int = 0
    row_bytes: int = 0
    payload: int = 0
    stamp_shift_ns: int = 0
    silent_ns: int = 0
    numbers: FrameNumbers = field(default_factory=FrameNumbers)
    alive: bool = True
    heard_ns: int = 0
    begun_ns: int = 0
    ask_ns: int = 0
    figures_ns: int = 0
    figures_frames: int = 0
    any_frame: bool = False
    unnumbered: int = 0
    """Incomplete ones since the last whole frame."""


class GigeCamera:
    """One GigE Vision camera. Its stamps are of its own clock; a frame's number goes on over wrap and re-opening."""

    def __init__(
        self, name: str, serial: str, size: tuple[int, int], fps: float, pixel: str, exposure_us: float | Literal["auto"],
        gain: float, hardware_trigger: bool, options: GigeOptions, clock: Clock,
    ) -> None:  # fmt: skip
        """``serial``: serial number, IPv4 address, or the name given to the camera; ``pixel``: a word or ``auto``."""
        self.name = name
        self.frame_copies = 0
        self._serial, self._size, self._fps, self._pixel = serial, size, fps, pixel
        self._exposure_us, self._gain, self._hardware = exposure_us, gain, hardware_trigger
        self._options, self._clock = options, clock
        self._lock = threading.Lock()  # a frame is released by the judge's thread
        self._library: _Library | None = None
        self._session: _Session | None = None
        self._sessions = 0
        self._address = str(serial) if _is_address(serial) else ""
        self._silent_tries = 0
        self._packet_bytes = options.packet_bytes
        self._memory: list[FrameBuffer] = []
        self._memory_from: FrameMemory | None = None
        self._held: set[int] = set()
        self._sequence = 0
        self._lost_ns = 0
        self._taken_until_ns = 0
        kinds = ("frames", "gaps", "incomplete", "no_buffer", "duplicates", "older", "unread", "losses", "outage_ms")
        self._counts = dict.fromkeys(kinds, 0)
        self._incomplete: dict[str, int] = {}
        self._figures: dict[str, Any] = {}
        self._told: list[str] = []

    # --- open -----------------------------------------------------------------------------------------------------

    def open(self, memory: FrameMemory) -> None:
        """Find the camera, take control, set it up, start. Raises CameraLost with the reason in words."""
        fault = self._try_open(memory)
        if fault:
            self.close()
            raise CameraLost(fault)

    def _try_open(self, memory: FrameMemory) -> str:
        """What went wrong, as words: an exception would carry this call's frame, and with it the camera, to the judge."""
        library = self._library = self._library or load_library()
        try:
            self._sessions += 1
            self._told = []
            session = self._session = _Session(self._sessions, self._find(library))
            self._take_control(session, library)
            self._set_up(session, library)
            self._start_stream(session, library, memory)
        except (CameraLost, MemoryRefused) as why:
            return str(why)
        except library.error as why:
            return f"GigE camera {self._serial}: {_words(why)}"
        for difference in self._told:
            log.warning("camera %s: %s", self.name, difference)
        return ""

    def _find(self, library: _Library) -> str:
        """Where the camera is; the place known from before first. Raises CameraLost."""
        if self._address:
            found = ask_identity(self._address)
            if found and (_is_address(self._serial) or found.called(self._serial)):
                self._silent_tries = 0
                return self._address
            self._silent_tries += 1
            if _is_address(self._serial):
                raise CameraLost(f"no GigE camera answers at {self._serial}; check its power, cable and address")
            if found is None and self._silent_tries < _LOST_ADDRESS_TRIES:
                raise CameraLost(f"GigE camera {self._serial} does not answer at {self._address}; check its power and cable")
        self._silent_tries = 0
        self._address = self._discover(library)
        return self._address

    def _discover(self, library: _Library) -> str:
        """Ask on every network (one second). Raises CameraLost, which names what was found instead."""
        aravis = library.aravis
        aravis.update_device_list()
        there = []
        for number in range(aravis.get_n_devices()):
            if aravis.get_device_protocol(number) != "GigEVision":
                continue
            address = aravis.get_device_address(number)
            if self._serial in (aravis.get_device_serial_nbr(number), aravis.get_device_physical_id(number)):
                return str(address)
            identity = ask_identity(address)
            if identity and identity.called(self._serial):
                return str(address)
            there.append(f"{aravis.get_device_serial_nbr(number)} ({address})")
        instead = f"found {', '.join(there)}" if there else "none was found: check power, cable, and that its network is ours"
        raise CameraLost(f"no GigE camera answers to {self._serial}; {instead}")

    def _take_control(self, session: _Session, library: _Library) -> None:
        # Aravis would open a controlled camera all the same and fail at its first setting. Not asked again too soon: some
        # cameras (Aravis's own fake is one) take the question for a sign of life of whoever held them and crashed.
        now_ns = self._clock.now_ns()
        if now_ns >= self._taken_until_ns and ask_controlled(session.address):
            self._taken_until_ns = now_ns + _HEARTBEAT_NS
        if now_ns < self._taken_until_ns:
            raise CameraLost(
                f"GigE camera {self._serial} is controlled by another program; end that one"
                " (after a crash the camera lets go within its heartbeat, three seconds)"
            )
        place = library.gio.InetAddress.new_from_string
        session.device = library.aravis.GvDevice.new(place(_own_address(session.address)), place(session.address))
        session.camera = library.aravis.Camera.new_with_device(session.device)
        if not session.device.is_controller():
            raise CameraLost(f"GigE camera {self._serial} does not let itself be controlled; end the program that does")

    # --- settings ---------------------------------------------------------------------------------------------------

    def _set_up(self, session: _Session, library: _Library) -> None:
        """Exposure first: the frame rate's bounds follow from it. Each value is read back. Raises CameraLost."""
        session.camera.stop_acquisition()
        session.camera.set_acquisition_mode(library.aravis.AcquisitionMode.CONTINUOUS)
        if session.camera.is_feature_available("ChunkModeActive"):
            session.camera.set_boolean("ChunkModeActive", False)  # what chunks add lies behind the image
        exposure_us = self._set_exposure(session, library)
        self._set_gain(session, library)
        self._set_pixel(session)
        self._set_region(session)
        frame_s = self._set_rate_and_trigger(session)
        self._set_network(session, library)
        half = {"start": 0.5, "middle": 0.0, "end": -0.5}[self._options.stamp]
        session.stamp_shift_ns = round(exposure_us * 1000 * half)
        session.silent_ns = max(_SILENT_NS, round(_SILENT_FRAMES * frame_s * 1e9))

    def _set_exposure(self, session: _Session, library: _Library) -> float:
        """The exposure in µs; 0 where the camera chooses it."""
        camera, auto = session.camera, library.aravis.Auto
        if self._exposure_us == "auto":
            if not camera.is_exposure_auto_available():
                raise CameraLost(f"camera {self.name} has no automatic exposure; write cameras.{self.name}.exposure_us")
            camera.set_exposure_time_auto(auto.CONTINUOUS)
            return 0.0
        if camera.is_exposure_auto_available():
            camera.set_exposure_time_auto(auto.OFF)
        return self._set_number(
            "exposure_us", float(self._exposure_us), camera.get_exposure_time_bounds(),
            camera.set_exposure_time, camera.get_exposure_time,
        )  # fmt: skip

    def _set_gain(self, session: _Session, library: _Library) -> None:
        camera = session.camera
        if camera.is_gain_auto_available():
            camera.set_gain_auto(library.aravis.Auto.OFF)
        if not camera.is_gain_available():
            self._told.append(f"gain {self._gain:g} was not set: the camera has none")
            return
        self._set_number("gain", self._gain, camera.get_gain_bounds(), camera.set_gain, camera.get_gain)

    def _set_number(
        self, key: str, wished: float, bounds: Any, set_it: Callable[[float], None], read_it: Callable[[], float]
    ) -> float:  # fmt: skip
        """What the camera made of it. Beyond its bounds is refused: it would be another brightness. Raises CameraLost."""
        low, high = float(bounds[0]), float(bounds[1])
        if not low <= wished <= high:
            where = f"cameras.{self.name}.{key}"
            raise CameraLost(f"camera {self.name} has {key} from {low:g} to {high:g}; correct {where}, which says {wished:g}")
        set_it(wished)
        got = float(read_it())
        if abs(got - wished) > 0.01 * wished:
            self._told.append(f"{key} is {got:g}, the configuration says {wished:g}; the camera has {low:g} to {high:g} in steps")
        return got

    def _set_pixel(self, session: _Session) -> None:
        offered = list(session.camera.dup_available_pixel_formats_as_strings())
        chosen = choose_format(self._pixel, session.camera.get_pixel_format_as_string(), offered)
        if not chosen:
            raise CameraLost(
                f"camera {self.name} does not give pixel: {self._pixel}; it offers {', '.join(offered)}."
                f" Write one of {', '.join(_our_words(offered)) or 'another camera'} in cameras.{self.name}.pixel"
            )
        session.camera.set_pixel_format_from_string(chosen)
        session.format, session.code = session.camera.get_pixel_format_as_string(), session.camera.get_pixel_format()
        if session.format != chosen:
            raise CameraLost(f"camera {self.name} was set to {chosen} and stands at {session.format}")
        session.pixel, session.shift = _FORMATS[chosen]
        session.row_bytes = self._size[0] * _pixel_bytes(session.pixel)
        self.frame_copies = 1 if session.shift else 0

    def _set_region(self, session: _Session) -> None:
        """The middle of the sensor; offsets even, so that a Bayer pattern begins with the colour it is named for."""
        camera, (width, height) = session.camera, self._size
        camera.set_region(0, 0, width, height)  # else the old offset may leave no room
        whole = camera.get_sensor_size()
        x, y = (max(0, side - own) // 2 for side, own in zip((whole[0], whole[1]), self._size))
        if camera.is_feature_available("OffsetX") and camera.is_feature_available("OffsetY"):
            across, down = max(2, camera.get_x_offset_increment()), max(2, camera.get_y_offset_increment())
            camera.set_region(x // across * across, y // down * down, width, height)
        region = camera.get_region()
        if (region[2], region[3]) != self._size or width > whole[0] or height > whole[1]:
            bounds = f"{whole[0]} x {whole[1]} pixels, in steps of {camera.get_width_increment()}"
            raise CameraLost(
                f"camera {self.name} cannot give {width} x {height}; it has {bounds} and {camera.get_height_increment()}:"
                f" correct cameras.{self.name}.size"
            )

    def _set_rate_and_trigger(self, session: _Session) -> float:
        """Seconds between frames at the highest rate; the trigger last, since Aravis clears it with the rate."""
        camera = session.camera
        if self._hardware:
            if camera.is_feature_available("AcquisitionFrameRateEnable"):
                camera.set_boolean("AcquisitionFrameRateEnable", False)  # a rate of its own would swallow triggers
            self._set_trigger(session)
            return 1 / self._fps
        camera.clear_triggers()
        if not camera.is_frame_rate_available():
            self._told.append(f"fps {self._fps:g} was not set: the camera has no such setting")
            return 1 / self._fps
        bounds = camera.get_frame_rate_bounds()
        camera.set_frame_rate(min(max(self._fps, bounds[0]), bounds[1]))
        got = float(camera.get_frame_rate())
        if abs(got - self._fps) > 0.01 * self._fps:
            text = f"it gives {got:.1f} frames a second, the configuration says {self._fps:g}"
            self._told.append(f"{text}; at this size and exposure the camera has {bounds[0]:g} to {bounds[1]:g}")
        return 1 / got if got > 0 else 1 / self._fps

    def _set_trigger(self, session: _Session) -> None:
        sources = list(session.camera.dup_available_trigger_sources())
        line = self._options.trigger_line
        if line not in sources:
            raise CameraLost(f"camera {self.name} cannot be triggered by {line}; it has {', '.join(sources) or 'no triggers'}")
        session.camera.set_trigger(line)
        got = session.camera.get_trigger_source()
        if got != line:
            raise CameraLost(f"camera {self.name} was set to be triggered by {line} and stands at {got}")

    def _set_network(self, session: _Session, library: _Library) -> None:
        """Packet size as large as gets through (found once: it takes time), pause between packets, packet socket."""
        camera, flags = session.camera, library.aravis.GvStreamOption
        if self._packet_bytes:
            camera.gv_set_packet_size(self._packet_bytes)
        else:
            camera.gv_auto_packet_size()
        self._packet_bytes = int(camera.gv_get_packet_size())
        if self._options.packet_delay_ns:
            camera.gv_set_packet_delay(self._options.packet_delay_ns)
            got = int(camera.gv_get_packet_delay())
            if abs(got - self._options.packet_delay_ns) > 0.1 * self._options.packet_delay_ns:
                self._told.append(f"packet_delay_ns is {got}, the address says {self._options.packet_delay_ns}")
        camera.gv_set_stream_options(flags.NONE if self._options.packet_socket else flags.PACKET_SOCKET_DISABLED)

    # --- stream -----------------------------------------------------------------------------------------------------

    def _start_stream(self, session: _Session, library: _Library, memory: FrameMemory) -> None:
        payload = session.payload = int(session.camera.get_payload())
        if payload < session.row_bytes * self._size[1]:
            raise CameraLost(f"camera {self.name} sends {payload} bytes a frame, {session.format} of {self._size} has more")
        if memory is not self._memory_from or len(self._memory[0].memory) < payload:
            self._memory, self._memory_from = memory.allocate(payload, _BUFFERS), memory
        session.stream = session.camera.create_stream(None, None)
        self._set_socket_buffer(session, library, payload)
        session.buffers = [library.aravis.Buffer.new(payload, _address_of(one.memory)) for one in self._memory]
        session.index = {buffer: number for number, buffer in enumerate(session.buffers)}
        with self._lock:
            # The judge may still read one of the last session: it is the last to be filled again.
            for number in sorted(range(_BUFFERS), key=lambda one: one in self._held):
                session.stream.push_buffer(session.buffers[number])
            self._held.clear()
        session.camera.start_acquisition()
        session.begun_ns = session.heard_ns = session.figures_ns = self._clock.now_ns()
        session.figures_frames = self._counts["frames"]
        if self._lost_ns:
            self._counts["outage_ms"] += (session.begun_ns - self._lost_ns) // 1_000_000
            self._lost_ns = 0
        self._describe(session)

    def _set_socket_buffer(self, session: _Session, library: _Library, payload: int) -> None:
        """Room for two frames in the kernel, as far as it lets us."""
        session.stream.set_property("socket-buffer", library.aravis.GvStreamSocketBuffer.FIXED)
        session.stream.set_property("socket-buffer-size", 2 * payload)
        most = _most_socket_bytes()
        if most < 2 * payload:
            self._told.append(
                f"the kernel holds {most} bytes of packets, two frames have {2 * payload}: frames may be incomplete;"
                f" set net.core.rmem_max to {2 * payload}"
            )

    def _describe(self, session: _Session) -> None:
        reach = "where the GPU reads them" if self._memory[0].address else "in plain memory"
        text = f"Aravis puts the packets together {reach}, {_BUFFERS} buffers"
        if session.shift:
            text += f"; {session.format} is low-aligned: the CPU shifts each frame in place (counted as a copy); Mono16 spares it"
        resend = session.stream.get_property("packet-resend")
        self._figures = {
            "memory": text, "pixel": f"{session.pixel} ({session.format})", "packet_bytes": self._packet_bytes,
            "packet_resend": resend.value_nick, "address": session.address, "fps": 0.0,
        }  # fmt: skip

    # --- frames -----------------------------------------------------------------------------------------------------

    def next_frame(self, timeout_s: float) -> Frame | None:
        """The next whole frame. Raises CameraLost: no answer, no control, or a free-running camera gone silent."""
        session = self._session
        assert session is not None
        until_ns = self._clock.now_ns() + round(timeout_s * 1e9)
        while True:
            left_ns = until_ns - self._clock.now_ns()
            buffer = session.stream.timeout_pop_buffer(max(0, min(left_ns, _SILENT_NS // 4)) // 1000)
            now_ns = self._clock.now_ns()
            self._refresh_figures(session, now_ns)
            if buffer is not None:
                session.heard_ns = now_ns
                frame = self._take(session, buffer, now_ns)
                if frame is not None:
                    return frame
            else:
                self._supervise(session, now_ns)
            if now_ns >= until_ns:
                return None

    def _take(self, session: _Session, buffer: Any, now_ns: int) -> Frame | None:
        """A buffer's frame; None, counted and given back when it is not whole or not new. Raises CameraLost."""
        if not self._account(session, buffer) or not self._room():
            session.stream.push_buffer(buffer)
            return None
        width, height = buffer.get_image_width(), buffer.get_image_height()
        if (width, height) != self._size or buffer.get_image_pixel_format() != session.code:
            raise CameraLost(
                f"camera {self.name} sent {width} x {height}, format {buffer.get_image_pixel_format():#x}, where"
                f" {self._size[0]} x {self._size[1]} {session.format} was set; did another program change it?"
            )
        index = session.index[buffer]
        pitch = session.row_bytes + self._padding(session, buffer)
        memory = self._memory[index].memory[: pitch * height]
        if session.shift:
            words = np.frombuffer(memory[: len(memory) // 2 * 2], "<u2")
            np.left_shift(words, session.shift, out=words)
        with self._lock:
            self._held.add(index)
        self._counts["frames"] += 1
        stamp_ns = buffer.get_timestamp()
        return Frame(
            memory, self._memory[index].address, pitch, self._size, session.pixel, self._sequence,
            stamp_ns + session.stamp_shift_ns if stamp_ns else now_ns, now_ns,
            functools.partial(self._give_back, session.number, index), "driver" if stamp_ns else "none",
        )  # fmt: skip

    def _padding(self, session: _Session, buffer: Any) -> int:
        """Bytes between rows. JetPack 6 has Aravis 0.8.20, which does not tell them: rows are then an equal share each."""
        if hasattr(buffer, "get_image_padding"):
            return int(buffer.get_image_padding()[0])
        share, rest = divmod(session.payload, self._size[1])
        return 0 if rest else share - session.row_bytes

    def _room(self) -> bool:
        """Whether the judge may hold one more; a frame for which there is no room is counted."""
        room = len(self._held) < _MOST_HELD
        self._counts["no_buffer"] += not room
        return room

    def _account(self, session: _Session, buffer: Any) -> bool:
        """Every number is counted once: in a gap, incomplete, or by who asked. Whether this is a whole frame, and a new one."""
        status = buffer.get_status().value_nick
        if status != "success":
            # Its number is not read: where the leader was lost it is that of the buffer's last use. The next whole frame tells.
            session.unnumbered += 1
            self._counts["incomplete"] += 1
            self._incomplete[status] = self._incomplete.get(status, 0) + 1
            return False
        step = session.numbers.step(buffer.get_frame_id())
        if step <= 0:
            self._counts["older" if step else "duplicates"] += 1
            return False
        if not session.any_frame:
            step += session.unnumbered
        self._counts["gaps"] += max(0, step - 1 - session.unnumbered)
        self._sequence += step
        session.any_frame, session.unnumbered = True, 0
        return True

    def _give_back(self, session_number: int, index: int) -> None:
        with self._lock:
            session = self._session
            if session is None or session.number != session_number or session.stream is None:
                return  # void: the camera was opened anew, and has all buffers
            if index in self._held:  # twice in Aravis's queue, and two frames would be written into one buffer
                self._held.discard(index)
                session.stream.push_buffer(session.buffers[index])

    # --- is it still there ------------------------------------------------------------------------------------------

    def _supervise(self, session: _Session, now_ns: int) -> None:
        """No frame came. Raises CameraLost."""
        silent_ns = now_ns - session.heard_ns
        if silent_ns < _SILENT_NS:
            return
        if not session.device.is_controller():
            self._lost(session, "lost control of the camera; another program took it, or its network failed for seconds")
        if now_ns >= session.ask_ns:
            session.ask_ns = now_ns + _SILENT_NS
            controlled = ask_controlled(session.address)
            if controlled is None:
                self._lost(session, f"it does not answer at {session.address}; check its power and cable")
            if not controlled:
                self._lost(session, "it answers and knows no controller: it was restarted")
        longest_ns = session.silent_ns if session.any_frame else max(session.silent_ns, _FIRST_FRAME_NS)
        if not self._hardware and silent_ns >= longest_ns:
            text = "it answers on the control channel; check firewall, rp_filter, packet size (MTU) and that it runs free"
            self._lost(session, f"no frame for {silent_ns / 1e9:.1f} s, but {text}", answers=True)

    def _lost(self, session: _Session, why: str, answers: bool = False) -> None:
        session.alive = answers
        self._counts["losses"] += 1
        self._lost_ns = session.heard_ns
        self._packet_bytes = self._options.packet_bytes  # what got through before may not get through any more
        raise CameraLost(f"GigE camera {self._serial}: {why}")

    # --- end --------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop, count what was not fetched, let go of control. A dead camera costs Aravis seconds here, a live one 30 ms."""
        with self._lock:
            session, self._session = self._session, None
        if session is None:
            return
        assert self._library is not None
        if session.stream is not None:
            try:
                if session.alive:
                    session.camera.stop_acquisition()
            except self._library.error as why:
                log.warning("camera %s did not stop: %s", self.name, _words(why))
            self._drain(session)
        # In this order, and each by its last reference: the stream ends its thread, the device gives control back.
        session.index.clear()
        session.buffers.clear()
        session.stream = None
        session.camera = None
        session.device = None

    def _drain(self, session: _Session) -> None:
        """Frames nobody fetched."""
        while (buffer := session.stream.try_pop_buffer()) is not None:
            if self._account(session, buffer):
                self._counts["unread"] += 1
        self._refresh_figures(session, session.figures_ns + _FIGURES_NS)

    def statistics(self) -> dict[str, Any]:
        """``gaps``: numbers that never came; ``no_buffer``: whole, but the judge held two; ``unread``: whole, thrown away at
        closing; ``outage_ms``: without a camera, where nobody numbers frames; ``stream``: Aravis's figures."""
        return {
            **self._counts, "incomplete_by": dict(self._incomplete), "held": len(self._held), **self._figures,
            "told": list(self._told),
        }  # fmt: skip

    def _refresh_figures(self, session: _Session, now_ns: int) -> None:
        """Once a second, in the camera's own thread."""
        passed_ns = now_ns - session.figures_ns
        if passed_ns < _FIGURES_NS:
            return
        stream = {name: session.stream.get_info_uint64_by_name(name) for name in _STREAM_FIGURES}
        fps = (self._counts["frames"] - session.figures_frames) * 1e9 / passed_ns
        self._figures = {**self._figures, "fps": round(fps, 1), "stream": stream, "numbering_restarts": session.numbers.restarts}
        session.figures_ns, session.figures_frames = now_ns, self._counts["frames"]


def load_library() -> _Library:
    """Aravis through GObject introspection. Raises CameraLost: which package is missing."""
    try:
        import gi  # type: ignore[import-not-found]
    except ImportError as why:
        raise CameraLost(
            "gige:// needs the distribution's python3-gi, which this Python does not see: apt install python3-gi"
            " gir1.2-aravis-0.8, and make the environment from the distribution's Python with --system-site-packages"
        ) from why
    try:
        gi.require_version("Aravis", "0.8")
    except ValueError as why:
        raise CameraLost("gige:// needs Aravis 0.8: apt install gir1.2-aravis-0.8") from why
    from gi.repository import Aravis, Gio, GLib  # type: ignore[import-not-found]

    return _Library(Aravis, Gio, GLib.Error)


def choose_format(wished: str, standing: str, offered: list[str]) -> str:
    """GenICam's name for a word of ours; "" when the camera has none. ``auto``: what it stands at, if we can read that
    without shifting, else the first it offers of which that is true."""
    if wished != "auto":
        return next((name for name in offered if _FORMATS.get(name, ("",))[0].removesuffix("/limited") == wished), "")
    ready = [name for name in (standing, *_FORMATS) if name in offered and name in _FORMATS and not _FORMATS[name][1]]
    return ready[0] if ready else ""


def _our_words(offered: list[str]) -> list[str]:
    return sorted({_FORMATS[name][0].removesuffix("/limited") for name in offered if name in _FORMATS})


def _pixel_bytes(pixel: str) -> int:
    if pixel in ("rgb8", "bgr8"):
        return 3
    return 1 if pixel == "mono8" or (pixel.startswith("bayer_") and pixel.endswith("8")) else 2


def _address_of(memory: memoryview) -> int:
    """Where the CPU finds a buffer's first byte."""
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def _is_address(name: str) -> bool:
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True


def _most_socket_bytes() -> int:
    try:
        return int(Path("/proc/sys/net/core/rmem_max").read_text())
    except (OSError, ValueError):
        return 1 << 62  # not Linux: nothing known, nothing said


def _words(why: BaseException) -> str:
    """GLib.Error has its text in ``message``."""
    return str(getattr(why, "message", why))[:200]
