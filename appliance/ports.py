"""The roles: what rooms ask of clocks, cameras, networks, pins and links. Structural types, no behaviour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

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


class FrameMemory(Protocol):
    """Gives buffers that camera and network both reach: numpy on a laptop, CUDA-mapped on the box."""

    def allocate(self, nbytes: int, count: int) -> list[memoryview]:
        """``count`` writable buffers of ``nbytes`` bytes, alive until close."""
        ...

    def close(self) -> None:
        """Free them."""
        ...


@dataclass(frozen=True)
class Frame:
    """One image where the camera put it. Rows begin every ``pitch_bytes``; valid until ``release``.

    ``memory``: the buffer (1-D, u8); ``address``: its start for a device; ``size``: (width, height);
    ``pixel``: a word of the configuration's list, never ``auto``; ``time_ns``: middle of exposure, monotonic."""

    memory: memoryview
    address: int
    pitch_bytes: int
    size: tuple[int, int]
    pixel: str
    sequence: int
    time_ns: int
    arrived_ns: int
    release: Callable[[], None]


class Camera(Protocol):
    """A source of frames; one thread of inspectd each."""

    name: str
    frame_copies: int
    """Copies made per frame after the kernel handed it over (law 9)."""

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
        """Figures for health: frames, gaps, duplicates, fps."""
        ...


class CameraLost(Exception):
    """A camera stopped, and why."""


@dataclass(frozen=True)
class Findings:
    """What a network found, in one fixed layout per task; arrays are valid until the next ``submit``.

    classify: ``scores`` float32 (classes,), 0..1. anomaly: ``scores`` float32 (1,), 0..1 after the bundle's
    mapping, and ``score_map`` uint8 (height, width) at network size, 255 = score 1.
    detect: ``candidates`` float32 (K, 6): x, y, width, height (network pixels), score, class.
    ``histogram``: int64 (256,) of the ROI as delivered (luma for colour); ``total``: its 64-bit sum;
    ``laplacian_variance``: of the last halved image."""

    task: str
    scores: npt.NDArray[np.float32]
    score_map: npt.NDArray[np.uint8] | None
    candidates: npt.NDArray[np.float32] | None
    histogram: npt.NDArray[np.int64]
    total: int
    laplacian_variance: float
    preprocess_ms: float
    infer_ms: float


class Network(Protocol):
    """Frame in, findings out; preprocess, engine and reducers are its inside."""

    identity: dict[str, str]
    """name, digest, precision, engine: as in the ledger record's ``model``."""

    def submit(self, frame: Frame, roi: tuple[int, int, int, int] | None) -> int:
        """Start on a frame; returns a ticket. ``roi`` x, y, width, height; None = the whole frame."""
        ...

    def wait(self, ticket: int, deadline_ns: int) -> Findings | None:
        """Findings, or None when ``deadline_ns`` passed first. Raises EngineError."""
        ...

    def close(self) -> None:
        """Free the engine."""
        ...


class EngineError(Exception):
    """An engine failed, and why."""


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
