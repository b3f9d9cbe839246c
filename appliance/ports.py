"""The roles: what rooms ask of clocks, cameras, networks, pins and links. Structural types, no behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from appliance.messages import ClockQuality, Edge, Message

if TYPE_CHECKING:  # rejectd imports this file and must not pull in numpy
    import numpy as np
    import numpy.typing as npt


class Clock(Protocol):
    """Time is passed in; only the edge of a process asks a Clock."""

    def now_ns(self) -> int:
        """Monotonic nanoseconds (CLOCK_MONOTONIC, the clock of the kernel's edge time stamps)."""
        ...

    def wall_us(self, at_ns: int) -> int:
        """Microseconds since 1970 UTC of a monotonic instant near now."""
        ...

    def quality(self) -> ClockQuality:
        """How far wall time can be believed."""
        ...


# --- pins -------------------------------------------------------------------------------------------


class Output(Protocol):
    """One digital output. The three levels are declared before the first ``set`` and cannot be forgotten.

    ``start``: level from open on; ``failure``: level the wiring or far side falls to when this process dies;
    ``longest_on_ms``: None, or how long it may stay energised before line stop and ``fault``; ``lead_ns``: how long
    before its due time a command wants to be handed over, 0 for a pin that moves at once."""

    name: str
    start: bool
    failure: bool
    longest_on_ms: int | None

    @property
    def lead_ns(self) -> int: ...

    def set(self, energised: bool, now_ns: int) -> int:
        """Move the pin; returns the monotonic ns when it moved. With a lead, ``now_ns`` is the instant at which it is to
        move, and what is returned the instant at which it will. Raises OutputLost."""
        ...

    def check(self, now_ns: int) -> None:
        """Raises OutputLost when what was last set is no longer proved to stand."""
        ...

    def close(self) -> None:
        """Leave the pin at ``failure``."""
        ...


class Input(Protocol):
    """One digital input with edges stamped at the source."""

    name: str

    def fileno(self) -> int:
        """Readable when ``read`` has something; the level at opening alone need not make it so: read once after opening."""
        ...

    def read(self) -> list[Edge]:
        """Edges since the last call, oldest first; never waits. Raises InputLost."""
        ...

    def level(self) -> bool:
        """Level after the last edge read."""
        ...

    def close(self) -> None:
        """Give the line back."""
        ...


class OutputLost(Exception):
    """An output cannot be moved any more."""


class InputLost(Exception):
    """An input gives no more edges."""


# --- frames and networks ------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrameBuffer:
    """``memory``: 1-D, u8, writable; ``address``: where a device finds its first byte, 0 = no device reaches it."""

    memory: memoryview
    address: int


class FrameMemory(Protocol):
    """Buffers that camera and network both reach: numpy on a laptop, CUDA-mapped on the box. Any thread may call."""

    def allocate(self, nbytes: int, count: int) -> list[FrameBuffer]:
        """``count`` buffers of at least ``nbytes`` bytes, zeroed, alive until close. Each begins on a page and holds
        whole pages, so that a driver can be handed it (V4L2 USERPTR). Raises MemoryRefused."""
        ...

    def register(self, memory: memoryview) -> FrameBuffer:
        """A driver's own mapping (V4L2 MMAP) made reachable where it lies. Raises MemoryRefused: then copy."""
        ...

    def unregister(self, buffer: FrameBuffer) -> None:
        """Before that mapping goes away. Only what ``register`` gave."""
        ...

    def close(self) -> None:
        """Free them."""
        ...


class MemoryRefused(Exception):
    """A device cannot reach that memory, or there is none left; and why."""


@dataclass(frozen=True)
class Frame:
    """One image where the camera put it. Rows begin every ``pitch_bytes``; valid until ``release``, called once.

    ``memory``: the buffer (1-D, u8); ``address``: where a device finds its first byte, 0 = no device reaches it (a
    network on the GPU then copies, and counts that); ``size``: (width, height); ``pixel``: a word of the configuration's
    list, never ``auto``; YUV of limited range has ``/limited`` behind it (``yuyv/limited``).

    ``time_ns``: middle of exposure. ``clock`` says on which clock: ``monotonic`` = known to be the monotonic one;
    ``driver`` = the driver's stamp, whose clock is still to be proved; ``none`` = no usable stamp, take ``arrived_ns``."""

    memory: memoryview
    address: int
    pitch_bytes: int
    size: tuple[int, int]
    pixel: str
    sequence: int
    time_ns: int
    arrived_ns: int  # 0: it never came from a camera (a golden vector, a picture from a disk)
    release: Callable[[], None]
    clock: Literal["monotonic", "driver", "none"] = "monotonic"


class Camera(Protocol):
    """A source of frames; one thread of inspectd each calls open, next_frame and close; release comes from another."""

    name: str
    frame_copies: int
    """Copies made per frame after the kernel handed it over (law 9); known once open."""

    def open(self, memory: FrameMemory) -> None:
        """Start. Raises CameraLost with the reason in words."""
        ...

    def next_frame(self, timeout_s: float) -> Frame | None:
        """The next frame, or None after ``timeout_s`` (an idle line is normal). Raises CameraLost."""
        ...

    def close(self) -> None:
        """Stop; frames not released are void."""
        ...

    def statistics(self) -> dict[str, Any]:
        """Figures for health, any thread: frames, gaps, fps, buffers held, how the memory is shared, in words."""
        ...


class CameraLost(Exception):
    """A camera stopped, and why."""


class Statistics(Protocol):
    """Of the ROI as delivered (luma for colour). May be worked out when it is asked for: ask while the frame is held."""

    @property
    def histogram(self) -> npt.NDArray[np.int64]:
        """(256,), of the upper eight bits."""
        ...

    @property
    def total(self) -> int:
        """64-bit sum."""
        ...

    @property
    def laplacian_variance(self) -> float:
        """Of the last halved image."""
        ...

    @property
    def probe(self) -> bytes:
        """The cheapest there is that two pictures alike have alike; two that differ have it alike seldom."""
        ...


@dataclass(frozen=True)
class Counted:
    """Statistics that are there."""

    histogram: npt.NDArray[np.int64]
    total: int
    laplacian_variance: float

    @property
    def probe(self) -> bytes:
        return self.total.to_bytes(8, "little")


@dataclass(frozen=True)
class Findings:
    """What a network found, in one fixed layout per task; arrays are valid until the next ``submit``.

    classify: ``scores`` float32 (classes,), 0..1. anomaly: ``scores`` float32 (1,), 0..1 after the bundle's
    mapping, and ``score_map`` uint8 (height, width) at network size, 255 = score 1.
    detect: ``candidates`` float32 (K, 6): x, y, width, height (network pixels), score, class."""

    task: str
    scores: npt.NDArray[np.float32]
    score_map: npt.NDArray[np.uint8] | None
    candidates: npt.NDArray[np.float32] | None
    statistics: Statistics
    preprocess_ms: float
    infer_ms: float


class Network(Protocol):
    """Frame in, findings out; preprocess, engine and reducers are its inside."""

    identity: dict[str, str]
    """name, digest, precision, engine: as in the ledger record's ``model``."""
    frame_copies: int
    """How many cameras' frames were copied so far because the engine could not read them where they lay."""

    def submit(self, frame: Frame, roi: tuple[int, int, int, int] | None) -> int:
        """Start on a frame; returns a ticket. ``roi`` x, y, width, height; None = the whole frame."""
        ...

    def wait(self, ticket: int, deadline_ns: int) -> Findings | None:
        """Findings, or None when ``deadline_ns`` passed first. Raises EngineError."""
        ...

    def warm(self, frame: Frame, roi: tuple[int, int, int, int] | None) -> None:
        """Make all that frames like this one need, so that the first part is as fast as the next. Its content does not
        matter, it came from no camera (``arrived_ns`` 0), and it is not counted. Raises EngineError."""
        ...

    def statistics(self) -> dict[str, Any]:
        """Figures for health: what it runs on and why, launches, copies."""
        ...

    def close(self) -> None:
        """Free the engine."""
        ...


class EngineError(Exception):
    """An engine failed, and why."""


class EngineLost(EngineError):
    """It failed in a way that stays until the process ends (a GPU's fault): only a new process judges again."""


class DeviceEngine(Protocol):
    """A ready engine on the GPU: static shapes, batch 1, float32 in and out; one thread, one stream.

    ``inputs`` and ``outputs``: shapes by tensor name. ``version``: as in the ledger record, ``tensorrt-10.3.0/sm87``."""

    version: str
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]

    def bind(self, name: str, address: int) -> None:
        """Where a tensor lies on the device; every tensor once, before the first ``enqueue``. Raises EngineError."""
        ...

    def enqueue(self, stream: int) -> None:
        """Put one inference on the stream (a handle) and return. After one plain call it can be captured into a graph,
        and then neither allocates nor synchronises. Raises EngineError."""
        ...

    def close(self) -> None:
        """Free the engine; nothing of it is on the stream any more."""
        ...


# --- links and publishing ------------------------------------------------------------------------------


class Link(Protocol):
    """One end of a SEQPACKET connection. Nothing waits."""

    def fileno(self) -> int: ...

    def send(self, message: Message) -> bool:
        """False: the far side is not reading, keep it and try later. Raises LinkClosed."""
        ...

    def receive(self) -> Sequence[Message]:
        """All that is there now. Raises LinkClosed."""
        ...

    def close(self) -> None: ...


class LinkClosed(Exception):
    """The far side is gone."""


class Publisher(Protocol):
    """Where records leave the box (MQTT). Never waits."""

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> int | None:
        """A message number acknowledged later, or None when it cannot be taken now."""
        ...


# --- the box ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BoxTold:
    """What the machine under the station tells. ``alarms``: codes of faults.py that stand, with particulars;
    ``temperature_c``: of its hottest place, None = no sensor; ``throttle_flags``: the PLC's register 42; ``keep_passes``:
    False while images of passed parts are not kept, to spare heat; ``health``: for the health topic."""

    alarms: Mapping[str, str]
    temperature_c: float | None
    throttle_flags: int
    keep_passes: bool
    health: Mapping[str, Any]


class BoxSensors(Protocol):
    """Heat, power, disks and clocks of this machine; what hangs in there hangs nobody else."""

    codes: frozenset[str]
    """Every alarm that ``told`` may raise."""

    def told(self, inspect: Mapping[str, Any], now_ns: int) -> BoxTold | None:
        """How it stands; the same object until something is new, None before the first look. ``inspect``: inspectd's
        figures of the health topic."""
        ...

    def close(self) -> None:
        """No more looks; returns at once."""
        ...
