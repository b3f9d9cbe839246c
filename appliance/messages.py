"""Everything that flows between processes: frozen, typed, one encoding for every link.

Times that steer anything are monotonic nanoseconds and end in ``_ns``; wall time appears only as
``wall_us`` (microseconds since 1970, UTC) beside its quality ``clock``. Scores are 0..1, higher is worse.
A message is one SEQPACKET datagram: MessagePack, fields in the order written here, tag first.
"""

from __future__ import annotations

from typing import Any, Literal, Union

import msgspec

VerdictName = Literal["pass", "fail", "review", "blind", "late", "missed"]
Disposition = Literal["accept", "reject", "divert", "unknown"]
DisposedBy = Literal["verdict", "on_late", "on_review", "neighbour", "purge", "held", "unwritten", "fault"]
Confirmed = Literal["yes", "no", "unwatched"]
ClockQuality = Literal["synced", "holdover", "unset"]
StateName = Literal["starting", "building", "purging", "running", "held", "fault", "stopped"]
Role = Literal["reject", "inspect", "report"]

VERDICTS: tuple[VerdictName, ...] = ("pass", "fail", "review", "blind", "late", "missed")
# Worst first: what a part of several cameras becomes (contract, "Several cameras").
WORST_FIRST: tuple[VerdictName, ...] = ("fail", "missed", "blind", "review", "pass")


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages; never sent itself."""


# --- on every link -----------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """First message of whoever connects. ``journal`` names the numbering of its journalled messages
    (fields ``n``): the receiver drops what it has committed of that journal already."""

    role: Role
    journal: str
    pid: int


class Ack(Message, frozen=True):
    """The receiver has everything of the sender's journal up to and including ``n`` (on disk, if reportd)."""

    n: int


# --- photo-eye and other digital inputs (device -> rejectd) -------------------------------------------


class Edge(Message, frozen=True):
    """A digital input changed. ``sequence`` grows by one per edge of that line: a gap is lost edges."""

    line: str
    level: bool
    time_ns: int
    sequence: int


# --- rejectd <-> inspectd -----------------------------------------------------------------------------


class Trigger(Message, frozen=True):
    """A part stands at the trigger point. No frame is started once ``deadline_ns`` is past."""

    part: int
    time_ns: int
    deadline_ns: int
    recipe: str


class FrameSeen(Message, frozen=True):
    """``trigger: frame``: inspectd announces each frame (middle of exposure); rejectd makes a part of it."""

    camera: str
    sequence: int
    time_ns: int


class Verdict(Message, frozen=True):
    """inspectd's answer for one part; kept there until ``Heard``. ``class_id`` -1: no class.

    ``*_ms``: durations; frame_ms is trigger -> frame in memory. ``score``/``threshold`` None: not judged."""

    part: int
    verdict: VerdictName
    cause: str | None
    score: float | None
    threshold: float | None
    class_id: int
    frame_ms: float
    preprocess_ms: float
    infer_ms: float
    decide_ms: float


class Heard(Message, frozen=True):
    """rejectd has the verdict of ``part`` (used or too late): inspectd may forget it."""

    part: int


class InspectState(Message, frozen=True):
    """What inspectd can do now; sent to rejectd and reportd at connect and at each change.

    Only ``ready`` lets rejectd run. ``model``: name, digest, precision, engine, as in the ledger record.
    ``configuration``: digest of what it was started with; ``version``: of the program's slot."""

    state: Literal["starting", "building", "ready", "fault"]
    reason: str
    progress: float
    recipe: str
    recipe_number: int
    recipe_digest: str
    models: dict[str, dict[str, str]]
    configuration: str = ""
    version: str = ""


# --- inspectd -> reportd ------------------------------------------------------------------------------


class Region(Message, frozen=True):
    """A place on the part; box is x, y, width, height in camera pixels of the whole frame."""

    camera: str
    name: str
    score: float
    box: tuple[int, int, int, int]
    area_px: int


class Detail(Message, frozen=True):
    """What the ledger wants beside the verdict; follows it at once. ``images`` = how many ``Stored`` come."""

    part: int
    recipe: str
    recipe_number: int
    recipe_digest: str
    model: dict[str, str]
    regions: tuple[Region, ...]
    images: int


class Stored(Message, frozen=True):
    """One kept image is on disk (``file`` relative to the image folder), or was dropped (no archive slot)."""

    part: int
    camera: str
    file: str
    sha256: str
    dropped: bool = False


class Health(Message, frozen=True):
    """Figures of one process for the health topic; newest wins, may be lost."""

    source: Role
    values: dict[str, Any]


# --- journalled: rejectd (or inspectd) -> reportd, kept by the sender until Ack -------------------------


class PartClosed(Message, frozen=True):
    """One part's account, final. ``answered``: a verdict came, so a Detail is on its way or there."""

    n: int
    part: int
    run: str
    trigger_ns: int
    wall_us: int
    clock: ClockQuality
    verdict: VerdictName
    cause: str | None
    score: float | None
    threshold: float | None
    class_id: int
    disposition: Disposition
    disposed_by: DisposedBy
    fired: bool
    confirmed: Confirmed
    answered: bool
    frame_ms: float | None
    preprocess_ms: float | None
    infer_ms: float | None
    decide_ms: float | None
    verdict_ms: float | None
    deadline_ms: float
    margin_ms: float | None
    due_ms: float
    error_us: int | None
    recipe: str
    recipe_number: int
    label: str | None = None
    lot: int | None = None
    operator: int | None = None
    challenge: bool = False


class Event(Message, frozen=True):
    """Something other than a part that belongs in the chain: start, stop, alarm, purge, command …"""

    n: int
    kind: str
    time_ns: int
    wall_us: int
    clock: ClockQuality
    data: dict[str, Any]
    run: str = ""


# --- rejectd -> reportd, not journalled: newest wins ----------------------------------------------------


class Alarm(Message, frozen=True):
    """One alarm as it stands; ``text`` from faults.py, in words."""

    code: str
    raised: bool
    latched: bool
    text: str
    since_us: int


class Status(Message, frozen=True):
    """How the station stands, every 200 ms and at each change. ``in_flight`` = parts numbered and not yet
    handed to reportd as PartClosed; ``alive_ns`` = when rejectd's loop last ran; ``configuration``, ``version`` as in
    InspectState; ``inputs_lost``: role -> why, of inputs that give no edges now."""

    state: StateName
    reason: str
    since_us: int
    progress: float
    run: str
    alive_ns: int
    in_flight: int
    next_part: int
    last_closed: int
    alarms: tuple[Alarm, ...]
    counts: dict[str, int]
    line_stop: bool
    configuration: str = ""
    version: str = ""
    inputs_lost: dict[str, str] = {}  # noqa: RUF012  msgspec copies it


# --- reportd -> rejectd, inspectd -------------------------------------------------------------------------


class Command(Message, frozen=True):
    """A person's or PLC's wish: verb ``clear`` (latched alarms), ``recipe`` … ``id`` comes back in Reply."""

    id: str
    verb: str
    arguments: dict[str, Any]
    source: str


class Reply(Message, frozen=True):
    """Answer to a Command: ``text`` in words."""

    id: str
    ok: bool
    text: str


# --- the twin's wire (devices/*_twin <-> the twin process) --------------------------------------------------


class TwinHello(Message, frozen=True):
    """A twin device connects: which kind, which name of ``twin://NAME``."""

    kind: Literal["input", "output", "camera", "control"]
    name: str


class Level(Message, frozen=True):
    """An output's pin moved at ``time_ns``."""

    line: str
    level: bool
    time_ns: int


class TwinFrame(Message, frozen=True):
    """Header of a frame on a camera's stream socket; ``size`` bytes of pixels follow. ``exposure_ns`` = middle."""

    camera: str
    sequence: int
    exposure_ns: int
    width: int
    height: int
    pixel: str
    size: int


class TwinControl(Message, frozen=True):
    """rehearse -> twin: ``feed`` (let parts come), ``stop``, ``fault`` with arguments; the twin answers in kind."""

    verb: str
    arguments: dict[str, Any]


AnyMessage = Union[
    Hello, Ack, Edge, Trigger, FrameSeen, Verdict, Heard, InspectState, Detail, Stored, Health, PartClosed,
    Event, Status, Command, Reply, TwinHello, Level, TwinFrame, TwinControl,
]  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message) -> bytes:
    """Bytes of one message."""
    return _encoder.encode(message)


def decode(data: bytes | memoryview) -> AnyMessage:
    """Message from its bytes. Raises msgspec.DecodeError on anything else."""
    return _decoder.decode(data)
