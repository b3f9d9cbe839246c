"""The line's physics: belt, photo-eyes, encoder, gates, bins, and where each part ends. Pure: no clock, no I/O.

All places are belt travel in mm: a part's ``eye_mm`` is where the belt stands as the part's front reaches the eye.
Who drives the line (the twin's process in real time, ``rehearse --fast`` on a virtual clock) calls ``set_output`` when
an output moved, ``advance`` when time has come, and ``fates`` for parts that are far enough behind the gates.
"""

from __future__ import annotations

import math
import random
from bisect import insort
from collections import deque
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal, NamedTuple

from appliance.twin.flap import Flap
from appliance.twin.travel import Travel, profile

MS = 1_000_000  # ns
_NEVER = 1 << 62
_KINDS = ("mark", "glint", "gate_eye", "step")
_by_time = itemgetter(1)
Bin = Literal["good", "reject", "divert", "belt"]
_PITCH_JITTER = 0.03  # of the pitch, either way: parts laid by a feeder, not by a screw
_FALL_MS = 25.0  # from gate to the sensor in the bin
_SEEN_MS = 10.0  # how long it sees a part
# A level is stamped when the driver moved it but may be read later; no part's fate is looked at before this is over.
SETTLE_MS = 300.0


class CameraPlace(NamedTuple):
    """A camera fired by the photo-eye: ``at_mm`` behind it, middle of the exposure ``offset_ns`` after arrival."""

    name: str
    at_mm: float
    offset_ns: int


class GateShape(NamedTuple):
    """A second gate, as built."""

    gate_mm: float
    response_ms: float
    reject_level: bool


@dataclass(frozen=True)
class LineShape:
    """The line as built. ``reject_level``: level of the gate's output that rejects (de-energised is False);
    ``obeys_line_stop``: the drive hangs on the station's ``line_stop`` output, and stands until it is energised;
    ``encoder_mm``: belt per pulse, 0 = no encoder; ``quarters``: both channels are told, edge by edge, not the pulse;
    ``slip_mm``: how far parts slide on the belt before the gate, to and fro over some hundred parts."""

    speed_mm_s: float
    pitch_mm: float
    part_mm: float
    gate_mm: float
    response_ms: float
    reject_level: bool
    obeys_line_stop: bool = False
    cameras: tuple[CameraPlace, ...] = ()
    settle_ms: float = SETTLE_MS
    profile: str = "steady"
    encoder_mm: float = 0.0
    quarters: bool = False
    divert: GateShape | None = None
    confirm: bool = False
    gate_eye: bool = False
    slip_mm: float = 0.0


class Happened(NamedTuple):
    """Something at the line at ``time_ns``. ``where``: "" the eye was covered or freed; a camera's name: it exposed;
    ``encoder``: a pulse forward (True) or back, ``encoder_a``/``encoder_b``: a channel's level; ``gate_eye``,
    ``confirm``, ``running``: their level. ``part`` is the twin's own number from 0 on, -1 where none began it."""

    time_ns: int
    part: int
    covered: bool
    where: str = ""


SENSORS = ("encoder", "encoder_a", "encoder_b", "gate_eye", "confirm", "running")


class Fate(NamedTuple):
    """Where a part ended. ``gate_ns``: (opened, closed) of the stretch in reject that hit it; closed 0 = still open.

    ``arrive_ns``/``leave_ns``: while it stood at the first gate; 0 where the belt never took it there."""

    part: int
    edge_ns: int
    arrive_ns: int
    leave_ns: int
    bin: Bin
    gate_ns: tuple[int, int] | None


@dataclass
class _Part:
    number: int
    eye_mm: float
    edge_ns: int
    arrive_mm: float
    told_at_gate: int = 0
    proved: bool = False


class Line:
    """One line. The seed fixes the parts' places, the belt's moods and the valves' jitter."""

    def __init__(self, shape: LineShape, seed: int, now_ns: int = 0) -> None:
        self.shape = shape
        self._pitch_random = random.Random(f"pitch {seed}")
        self._travel = Travel(now_ns, shape.speed_mm_s, not shape.obeys_line_stop, profile(shape.profile, seed))
        valve = random.Random(f"valve {seed}")
        self._gate = Flap(self._travel, shape.response_ms, shape.reject_level, valve, now_ns)
        self._divert = None
        if shape.divert:
            second = random.Random(f"second valve {seed}")
            self._divert = Flap(self._travel, shape.divert.response_ms, shape.divert.reject_level, second, now_ns)
        self._last_ns = now_ns
        self._parts_left = 0
        self._next_part = 0
        self._first_mm = 0.0
        # The eye's beam: fronts and ends of parts in the order of their places, and how many of them have passed it.
        self._marks: list[tuple[float, bool, int]] = []
        self._passed = 0
        self._covering = 0
        self._glints: deque[tuple[float, bool]] = deque()
        self._glint_wanted = False
        self._exposures: list[deque[tuple[float, int]]] = [deque() for _ in shape.cameras]
        self._to_gate: deque[_Part] = deque()
        self._at_gate_eye: deque[_Part] = deque()
        self._to_prove: deque[_Part] = deque()
        self._prove_ns = 0
        self._soon: list[Happened] = []
        self._step_mm = shape.encoder_mm / 4 if shape.quarters else shape.encoder_mm
        self._steps = 0
        self._ahead: dict[str, int] = {}
        self._next: tuple[str, int] = ("", _NEVER)
        self._stale: tuple[str, ...] | None = ()  # what must be looked at anew; () = everything, None = nothing

    # --- what the outputs do --------------------------------------------------------------------------------

    def set_output(self, role: str, energised: bool, time_ns: int) -> None:
        """The output ``gate``, ``divert`` or ``line_stop`` moved (or fell, its driver being gone) at ``time_ns``."""
        if role == "gate":
            self._gate.move(energised, time_ns)
        elif role == "divert" and self._divert is not None:
            self._divert.move(energised, time_ns)
        elif role == "line_stop" and self.shape.obeys_line_stop and energised != self._travel.runs:
            # What has already happened at the eye stays so: the brake takes hold after it.
            at_ns = max(time_ns, self._last_ns, self._travel.now.start_ns)
            before = self.advance(at_ns)  # what happened before it, if nobody has asked yet
            self._soon += before
            moved = bool(self._travel.now.mm_per_ns)
            self._travel.drive(energised, at_ns)
            self._stale = ()
            moves = bool(self._travel.now.mm_per_ns)
            if moves != moved:
                self._soon.append(Happened(at_ns, -1, moves, "running"))

    # --- parts ------------------------------------------------------------------------------------------------

    def feed(self, parts: int, now_ns: int) -> None:
        """Lay ``parts`` more on the belt, the first one pitch ahead of the eye."""
        if not self._parts_left:
            self._first_mm = self.position_mm(now_ns) + self.shape.pitch_mm - self._next_part * self.shape.pitch_mm
            self._parts_left = parts
            self._place_next()
        else:
            self._parts_left += parts

    def glint_next(self) -> None:
        """The next part throws a reflection into the eye: a second rising edge before it has passed."""
        self._glint_wanted = True

    def _place_next(self) -> None:
        pitch_mm = self.shape.pitch_mm
        jitter = self._pitch_random.uniform(-_PITCH_JITTER, _PITCH_JITTER)
        eye_mm = self._first_mm + (self._next_part + jitter) * pitch_mm
        self._stale = ()
        insort(self._marks, (eye_mm, True, self._next_part))
        insort(self._marks, (eye_mm + self.shape.part_mm, False, self._next_part))
        if self._passed > 400:
            del self._marks[:200]
            self._passed -= 200

    @property
    def done(self) -> bool:
        """Every part that was fed has its fate."""
        return not self._parts_left and not self._to_gate

    @property
    def laid(self) -> bool:
        """Nothing more comes to the eye."""
        return not self._parts_left

    @property
    def runs(self) -> bool:
        """The drive is on."""
        return self._travel.runs

    @property
    def rejecting(self) -> bool:
        """What the gate was last told: it stands in reject, or is on its way there."""
        return self._gate.rejecting

    def covered(self) -> bool:
        """The eye's beam is covered now (as of the last ``advance``)."""
        return self._covering > 0

    def level(self, where: str) -> bool:
        """A sensor's level now, for a device that opens it."""
        if where == "encoder_a":
            return self._steps % 4 in (1, 2)
        if where == "encoder_b":
            return self._steps % 4 in (2, 3)
        if where == "running":
            return bool(self._travel.now.mm_per_ns)
        return where in ("air_ok", "bin_full", "gate_home")

    # --- time -------------------------------------------------------------------------------------------------

    def next_ns(self) -> int | None:
        """When something happens next; None while nothing will."""
        if self._stale is not None:
            self._look_ahead()
        due_ns = self._next[1] if self._next[1] < _NEVER else None
        switch_ns = self._travel.switch_ns
        if switch_ns is not None and (due_ns is None or switch_ns < due_ns):
            due_ns = switch_ns
        if self._soon:
            soon_ns = min(one.time_ns for one in self._soon)
            due_ns = soon_ns if due_ns is None else min(due_ns, soon_ns)
        for camera, waiting in zip(self.shape.cameras, self._exposures):
            if waiting and (exposure_ns := self._exposure_ns(camera, waiting[0][0])) is not None:
                due_ns = exposure_ns if due_ns is None else min(due_ns, exposure_ns)
        return due_ns

    def advance(self, now_ns: int) -> list[Happened]:
        """All that happened since the last call, up to ``now_ns``, in the order of time."""
        happened: list[Happened] = []
        while True:
            if self._stale is not None:
                self._look_ahead()
            what, time_ns = self._next
            switch_ns = self._travel.switch_ns
            if switch_ns is not None and switch_ns <= now_ns and switch_ns < time_ns:
                self._last_ns = max(self._last_ns, switch_ns)
                moved = bool(self._travel.now.mm_per_ns)
                self._travel.switch()
                self._stale = ()
                moves = bool(self._travel.now.mm_per_ns)
                if moves != moved:
                    happened.append(Happened(switch_ns, -1, moves, "running"))
                continue
            if time_ns > now_ns:
                break
            self._last_ns = max(self._last_ns, time_ns)
            self._stale = (what,) if what != "mark" else _KINDS
            self._cross(what, self._last_ns, happened)
        if self.shape.cameras:
            self._expose(now_ns, happened)
        if self._to_prove and (self._gate.rejecting or now_ns >= self._prove_ns):
            self._prove(now_ns)
            self._prove_ns = now_ns + 20 * MS  # before a gate that lets parts pass there is no hurry
        if self._soon:
            self._tell_soon(now_ns, happened)
        return happened

    def _look_ahead(self) -> None:
        """When the stretch under way comes to each kind of thing; asked anew only for what changed."""
        for what in self._stale or _KINDS:
            self._ahead[what] = self._ahead_of(what)
        self._stale = None
        self._next = min(self._ahead.items(), key=_by_time)

    def _ahead_of(self, what: str) -> int:
        speed, crossing_ns = self._travel.now.mm_per_ns, self._travel.crossing_ns
        at_ns: int | None = None
        if not speed:
            return _NEVER
        if what == "mark":
            if speed > 0 and self._passed < len(self._marks):
                at_ns = crossing_ns(self._marks[self._passed][0])
            elif speed < 0 and self._passed:
                at_ns = crossing_ns(self._marks[self._passed - 1][0])
        elif what == "step":
            if self._step_mm:
                at_ns = crossing_ns((self._steps + 1 if speed > 0 else self._steps) * self._step_mm)
        elif speed > 0 and what == "glint" and self._glints:
            at_ns = crossing_ns(self._glints[0][0])
        elif speed > 0 and what == "gate_eye" and self._at_gate_eye:
            one = self._at_gate_eye[0]
            at_ns = crossing_ns(one.arrive_mm + (self.shape.part_mm if one.told_at_gate else 0.0))
        return _NEVER if at_ns is None else at_ns

    def _cross(self, what: str, time_ns: int, happened: list[Happened]) -> None:
        forward = self._travel.now.mm_per_ns > 0
        if what == "step":
            self._pulse(forward, time_ns, happened)
        elif what == "glint":
            happened.append(Happened(time_ns, -1, self._glints.popleft()[1]))
        elif what == "gate_eye":
            one = self._at_gate_eye[0]
            happened.append(Happened(time_ns, -1, not one.told_at_gate, "gate_eye"))
            if one.told_at_gate:
                self._at_gate_eye.popleft()
            one.told_at_gate += 1
        else:
            self._at_the_eye(forward, time_ns, happened)

    def _pulse(self, forward: bool, time_ns: int, happened: list[Happened]) -> None:
        before = self._steps
        self._steps += 1 if forward else -1
        if not self.shape.quarters:
            happened.append(Happened(time_ns, -1, forward, "encoder"))
            return
        channel = "encoder_a" if (before if forward else self._steps) % 2 == 0 else "encoder_b"
        happened.append(Happened(time_ns, -1, self.level(channel), channel))

    def _at_the_eye(self, forward: bool, time_ns: int, happened: list[Happened]) -> None:
        at = self._passed if forward else self._passed - 1
        at_mm, front, number = self._marks[at]
        self._passed += 1 if forward else -1
        covers = front == forward
        was_covered = self._covering > 0
        self._covering += 1 if covers else -1
        changed = was_covered != (self._covering > 0)
        new = forward and front and number == self._next_part
        if new:
            self._new_part(number, at_mm, time_ns)
        if changed:
            happened.append(Happened(time_ns, number if new else -1, covers))

    def _new_part(self, number: int, eye_mm: float, time_ns: int) -> None:
        slip_mm = self.shape.slip_mm
        slid_mm = slip_mm * math.sin(number / 90.0) * math.cos(number / 37.0) if slip_mm else 0.0
        part = _Part(number, eye_mm, time_ns, eye_mm + self.shape.gate_mm + slid_mm)
        self._to_gate.append(part)
        if self.shape.gate_eye:
            self._at_gate_eye.append(part)
        if self.shape.confirm:
            self._to_prove.append(part)
        for waiting in self._exposures:
            waiting.append((eye_mm, number))
        if self._glint_wanted:
            self._glint_wanted = False
            self._glints.append((eye_mm + 0.3 * self.shape.part_mm, False))
            self._glints.append((eye_mm + 0.6 * self.shape.part_mm, True))
        self._next_part += 1
        self._parts_left -= 1
        if self._parts_left:
            self._place_next()

    def _exposure_ns(self, camera: CameraPlace, eye_mm: float) -> int | None:
        """When the camera exposes a part; None while the belt stands before it."""
        arrive_ns = self._travel.first_ns(eye_mm + camera.at_mm)
        return None if arrive_ns is None else arrive_ns + camera.offset_ns

    def _expose(self, now_ns: int, happened: list[Happened]) -> None:
        before = len(happened)
        for camera, waiting in zip(self.shape.cameras, self._exposures):
            while waiting:
                exposure_ns = self._exposure_ns(camera, waiting[0][0])
                if exposure_ns is None or exposure_ns > now_ns:
                    break
                happened.append(Happened(exposure_ns, waiting.popleft()[1], True, camera.name))
        if len(happened) > before:
            happened.sort(key=lambda one: one.time_ns)

    def _prove(self, now_ns: int) -> None:
        """Parts that a flap has taken fall past the sensor in the bin."""
        while self._to_prove:
            part = self._to_prove[0]
            at_mm = max(self._travel.now.high_mm, self._travel.position_mm(now_ns))
            if at_mm < part.arrive_mm or (at_mm < part.arrive_mm + self.shape.part_mm and not self._gate.rejecting):
                return  # not there, or standing before a gate that lets it pass: seen again when it has left
            arrive_ns = self._travel.first_ns(part.arrive_mm)
            if arrive_ns is None or arrive_ns > now_ns:
                return
            leave_ns = self._travel.first_ns(part.arrive_mm + self.shape.part_mm)
            until_ns = now_ns if leave_ns is None else min(now_ns, leave_ns)
            hit = self._gate.hit(part.arrive_mm, part.arrive_mm + self.shape.part_mm, arrive_ns, until_ns)
            if hit is None and (leave_ns is None or leave_ns + round(5 * MS) > now_ns):
                return
            self._to_prove.popleft()
            if hit is not None:
                seen_ns = max(hit[0], arrive_ns) + round(_FALL_MS * MS)
                self._soon.append(Happened(seen_ns, -1, True, "confirm"))
                self._soon.append(Happened(seen_ns + round(_SEEN_MS * MS), -1, False, "confirm"))

    def _tell_soon(self, now_ns: int, happened: list[Happened]) -> None:
        due = [one for one in self._soon if one.time_ns <= now_ns]
        if due:
            self._soon = [one for one in self._soon if one.time_ns > now_ns]
            happened += due
            happened.sort(key=lambda one: one.time_ns)

    def position_mm(self, time_ns: int) -> float:
        """Travel of the belt at an instant, now or before."""
        return self._travel.position_mm(time_ns)

    # --- bins -------------------------------------------------------------------------------------------------

    def fates(self, now_ns: int) -> list[Fate]:
        """Parts that have left the gates for ``settle_ms``, in their order; each is told once."""
        decided: list[Fate] = []
        if not self._to_gate:
            return decided
        last_mm = self.shape.divert.gate_mm - self.shape.gate_mm if self.shape.divert else 0.0
        behind_mm = self.position_mm(now_ns - round(self.shape.settle_ms * MS)) - self.shape.part_mm - last_mm
        while self._to_gate and self._to_gate[0].arrive_mm <= behind_mm:
            decided.append(self._fate(self._to_gate.popleft()))
        return decided

    def still_on_belt(self) -> list[Fate]:
        """What lies on the belt as it is switched off: parts without a fate."""
        left = [Fate(part.number, part.edge_ns, 0, 0, "belt", None) for part in self._to_gate]
        self._to_gate.clear()
        return left

    def _fate(self, part: _Part) -> Fate:
        arrive_ns, leave_ns, hit = self._meets(self._gate, part.arrive_mm)
        if hit:
            return Fate(part.number, part.edge_ns, arrive_ns, leave_ns, "reject", hit)
        if self._divert is not None and self.shape.divert is not None:
            further_mm = self.shape.divert.gate_mm - self.shape.gate_mm
            *_, hit = self._meets(self._divert, part.arrive_mm + further_mm)
        return Fate(part.number, part.edge_ns, arrive_ns, leave_ns, "divert" if hit else "good", hit)

    def _meets(self, flap: Flap, arrive_mm: float) -> tuple[int, int, tuple[int, int] | None]:
        leave_mm = arrive_mm + self.shape.part_mm
        arrive_ns, leave_ns = self._travel.first_ns(arrive_mm), self._travel.first_ns(leave_mm)
        assert arrive_ns is not None and leave_ns is not None  # it lies behind the gate
        flap.forget_before(arrive_ns)
        return arrive_ns, leave_ns, flap.hit(arrive_mm, leave_mm, arrive_ns, leave_ns)
