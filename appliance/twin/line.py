"""The line's physics: belt, photo-eye, gate with its lag, and where each part ends. Pure: no clock, no I/O.

All places are belt travel in mm: a part's ``eye_mm`` is where the belt stands as the part's front reaches the eye.
Who drives the line (the twin's process in real time, ``rehearse --fast`` on a virtual clock) calls ``set_output`` when
an output moved, ``advance`` when time has come, and ``fates`` for parts that are far enough behind the gate.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Literal, NamedTuple

MS = 1_000_000  # ns
Bin = Literal["good", "reject", "belt"]
_PITCH_JITTER = 0.03  # of the pitch, either way: parts laid by a feeder, not by a screw
_RESPONSE_JITTER_MS = 0.3  # a 5/2-way valve repeats to some tenths of a millisecond
_BACK_MS = 2.0  # the gate is spring-loaded: the way back is short
# A level is stamped when the driver moved it but may be read later; no part's fate is looked at before this is over.
SETTLE_MS = 300.0


class CameraPlace(NamedTuple):
    """A camera fired by the photo-eye: ``at_mm`` behind it, middle of the exposure ``offset_ns`` after arrival."""

    name: str
    at_mm: float
    offset_ns: int


@dataclass(frozen=True)
class LineShape:
    """The line as built. ``reject_level``: level of the gate's output that rejects (de-energised is False);
    ``obeys_line_stop``: the drive hangs on the station's ``line_stop`` output, and stands until it is energised."""

    speed_mm_s: float
    pitch_mm: float
    part_mm: float
    gate_mm: float
    response_ms: float
    reject_level: bool
    obeys_line_stop: bool = False
    cameras: tuple[CameraPlace, ...] = ()
    settle_ms: float = SETTLE_MS


class Happened(NamedTuple):
    """Something at the line at ``time_ns``: the eye was covered or freed (``camera`` empty), or a camera exposed.

    ``part`` is the twin's own number from 0 on, -1 where no part began it (a glint, a touching part)."""

    time_ns: int
    part: int
    covered: bool
    camera: str = ""


class Fate(NamedTuple):
    """Where a part ended. ``gate_ns``: (opened, closed) of the stretch in reject that hit it; closed 0 = still open.

    ``arrive_ns``/``leave_ns``: while it stood at the gate; 0 where the belt never took it there."""

    part: int
    edge_ns: int
    arrive_ns: int
    leave_ns: int
    bin: Bin
    gate_ns: tuple[int, int] | None


class _Stretch(NamedTuple):
    """The belt from ``start_ns`` on: standing at ``start_mm``, or running from there."""

    start_ns: int
    start_mm: float
    runs: bool


class Line:
    """One line. The seed fixes the parts' places and the valve's jitter."""

    def __init__(self, shape: LineShape, seed: int, now_ns: int = 0) -> None:
        self.shape = shape
        self._pitch_random = random.Random(f"pitch {seed}")
        self._valve_random = random.Random(f"valve {seed}")
        self._mm_per_ns = shape.speed_mm_s / 1e9
        self._ns_per_mm = 1e9 / shape.speed_mm_s
        self._belt = [_Stretch(now_ns, 0.0, not shape.obeys_line_stop)]
        self._last_ns = now_ns
        self._parts_left = 0
        self._next_part = 0
        self._first_mm = 0.0
        self._next_mm = 0.0
        self._at_eye: deque[float] = deque()  # where each covering part will have left the eye
        self._glints: deque[tuple[float, bool]] = deque()
        self._glint_wanted = False
        self._exposures: list[deque[tuple[float, int]]] = [deque() for _ in shape.cameras]
        self._to_gate: deque[tuple[int, float, int]] = deque()  # (part, eye_mm, edge_ns)
        # Stretches in reject as [opened_ns, closed_ns or None]; the de-energised side holds from the beginning.
        self._rejects: deque[list[int | None]] = deque()
        if not shape.reject_level:
            self._rejects.append([now_ns, None])
        self._gate_level = False

    # --- what the outputs do --------------------------------------------------------------------------------

    def set_output(self, role: str, energised: bool, time_ns: int) -> None:
        """The output ``gate`` or ``line_stop`` moved (or fell, its driver being gone) at ``time_ns``."""
        if role == "gate":
            self._move_gate(energised, time_ns)
        elif role == "line_stop" and self.shape.obeys_line_stop:
            self._drive(energised, time_ns)

    def _move_gate(self, energised: bool, time_ns: int) -> None:
        if energised == self._gate_level:
            return
        self._gate_level = energised
        if energised == self.shape.reject_level:
            jitter_ms = self._valve_random.uniform(-_RESPONSE_JITTER_MS, _RESPONSE_JITTER_MS)
            self._open_gate(time_ns + round(max(0.0, self.shape.response_ms + jitter_ms) * MS))
        else:
            self._close_gate(time_ns + round(_BACK_MS * MS))

    def _open_gate(self, at_ns: int) -> None:
        last = self._rejects[-1] if self._rejects else None
        if last is not None and last[1] is not None and last[1] >= at_ns:
            last[1] = None  # it was on its way back and never left
        else:
            self._rejects.append([at_ns, None])

    def _close_gate(self, at_ns: int) -> None:
        last = self._rejects[-1]
        if last[0] is not None and last[0] >= at_ns:
            self._rejects.pop()  # told back before it had arrived
        else:
            last[1] = at_ns

    def _drive(self, runs: bool, time_ns: int) -> None:
        belt = self._belt[-1]
        if runs == belt.runs:
            return
        # What has already happened at the eye stays so: the brake takes hold after it.
        at_ns = max(time_ns, self._last_ns, belt.start_ns)
        self._belt.append(_Stretch(at_ns, self.position_mm(at_ns), runs))

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
        self._next_mm = self._first_mm + (self._next_part + jitter) * pitch_mm

    @property
    def done(self) -> bool:
        """Every part that was fed has its fate."""
        return not self._parts_left and not self._to_gate

    @property
    def runs(self) -> bool:
        """The belt moves."""
        return self._belt[-1].runs

    @property
    def rejecting(self) -> bool:
        """What the gate was last told: it stands in reject, or is on its way there."""
        return self._gate_level == self.shape.reject_level

    def covered(self) -> bool:
        """The eye's beam is covered now (as of the last ``advance``)."""
        return bool(self._at_eye)

    # --- time -------------------------------------------------------------------------------------------------

    def next_ns(self) -> int | None:
        """When something happens at the eye or a camera next; None while nothing will."""
        next_mm = self._next_eye_mm()
        due_ns = None if next_mm is None else self._when(next_mm)
        for camera, waiting in zip(self.shape.cameras, self._exposures):
            if waiting and (exposure_ns := self._exposure_ns(camera, waiting[0][0])) is not None:
                due_ns = exposure_ns if due_ns is None else min(due_ns, exposure_ns)
        return due_ns

    def advance(self, now_ns: int) -> list[Happened]:
        """All that happened since the last call, up to ``now_ns``, in the order of time."""
        happened: list[Happened] = []
        while (next_mm := self._next_eye_mm()) is not None:
            time_ns = self._when(next_mm)
            if time_ns is None or time_ns > now_ns:
                break
            self._last_ns = max(self._last_ns, time_ns)
            self._at_the_eye(next_mm, self._last_ns, happened)
        if self.shape.cameras:
            self._expose(now_ns, happened)
        return happened

    def _next_eye_mm(self) -> float | None:
        next_mm = self._next_mm if self._parts_left else None
        if self._at_eye and (next_mm is None or self._at_eye[0] <= next_mm):
            next_mm = self._at_eye[0]
        if self._glints and (next_mm is None or self._glints[0][0] <= next_mm):
            next_mm = self._glints[0][0]
        return next_mm

    def _at_the_eye(self, at_mm: float, time_ns: int, happened: list[Happened]) -> None:
        if self._glints and self._glints[0][0] == at_mm:
            happened.append(Happened(time_ns, -1, self._glints.popleft()[1]))
            return
        if self._at_eye and self._at_eye[0] == at_mm:
            self._at_eye.popleft()
            if not self._at_eye:
                happened.append(Happened(time_ns, -1, False))
            return
        touching = bool(self._at_eye)
        part = self._next_part
        self._at_eye.append(at_mm + self.shape.part_mm)
        self._to_gate.append((part, at_mm, time_ns))
        for waiting in self._exposures:
            waiting.append((at_mm, part))
        if not touching:
            happened.append(Happened(time_ns, part, True))
        if self._glint_wanted:
            self._glint_wanted = False
            self._glints.append((at_mm + 0.3 * self.shape.part_mm, False))
            self._glints.append((at_mm + 0.6 * self.shape.part_mm, True))
        self._next_part += 1
        self._parts_left -= 1
        if self._parts_left:
            self._place_next()

    def _exposure_ns(self, camera: CameraPlace, eye_mm: float) -> int | None:
        """When the camera exposes a part; None while the belt stands before it."""
        arrive_ns = self._when(eye_mm + camera.at_mm)
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

    def position_mm(self, time_ns: int) -> float:
        """Travel of the belt at an instant, now or before."""
        stretch = self._belt[-1]
        if stretch.start_ns > time_ns:
            stretch = next((one for one in reversed(self._belt) if one.start_ns <= time_ns), self._belt[0])
        if not stretch.runs:
            return stretch.start_mm
        return stretch.start_mm + (time_ns - stretch.start_ns) * self._mm_per_ns

    def time_at(self, position_mm: float) -> int:
        """When the belt reached (or, running on, will reach) a position."""
        stretch = self._belt[-1]
        if stretch.start_mm > position_mm or not stretch.runs:
            running = (one for one in reversed(self._belt) if one.runs and one.start_mm <= position_mm)
            stretch = next(running, self._belt[0])
        return stretch.start_ns + round((position_mm - stretch.start_mm) * self._ns_per_mm)

    def _when(self, position_mm: float) -> int | None:
        """As ``time_at``; None for a place that a standing belt has not reached."""
        last = self._belt[-1]
        if not last.runs and last.start_mm < position_mm:
            return None
        return self.time_at(position_mm)

    # --- bins -------------------------------------------------------------------------------------------------

    def fates(self, now_ns: int) -> list[Fate]:
        """Parts that have left the gate for ``settle_ms``, in their order; each is told once."""
        decided: list[Fate] = []
        if not self._to_gate:
            return decided
        behind_mm = self.position_mm(now_ns - round(self.shape.settle_ms * MS)) - self.shape.gate_mm
        behind_mm -= self.shape.part_mm
        while self._to_gate and self._to_gate[0][1] <= behind_mm:
            decided.append(self._fate(*self._to_gate.popleft()))
        return decided

    def still_on_belt(self) -> list[Fate]:
        """What lies on the belt as it is switched off: parts without a fate."""
        left = [Fate(part, edge_ns, 0, 0, "belt", None) for part, _, edge_ns in self._to_gate]
        self._to_gate.clear()
        return left

    def _fate(self, part: int, eye_mm: float, edge_ns: int) -> Fate:
        arrive_mm = eye_mm + self.shape.gate_mm
        leave_mm = arrive_mm + self.shape.part_mm
        arrive_ns, leave_ns = self.time_at(arrive_mm), self.time_at(leave_mm)
        hit = self._hit_by(arrive_mm, leave_mm)
        return Fate(part, edge_ns, arrive_ns, leave_ns, "reject" if hit else "good", hit)

    def _hit_by(self, arrive_mm: float, leave_mm: float) -> tuple[int, int] | None:
        rejects = self._rejects
        while rejects:
            opened_ns, closed_ns = rejects[0]
            assert opened_ns is not None
            if closed_ns is not None and self.position_mm(closed_ns) <= arrive_mm:
                rejects.popleft()  # behind this part and so behind all that follow
                continue
            return (opened_ns, closed_ns or 0) if self.position_mm(opened_ns) < leave_mm else None
        return None
