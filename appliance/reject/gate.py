"""The gate's timetable: windows in which it stands in reject, merged, and which parts they hit. Pure.

A window is commanded at ``edge_ns`` and takes effect ``response_ms`` later; it ends when its pulse is over *and* its
part has left. A part is hit when any of it stands at the gate while a window is in effect (contract, "Place").
Holds (purge, held, fault) are windows without an end of their own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from appliance.reject.belt import Belt
from appliance.reject.plan import MS

HoldReason = Literal["purge", "held", "fault"]
Reason = Literal["part", "purge", "held", "fault"]
_FAR_MM = float("inf")


@dataclass
class RejectWindow:
    """One stretch in reject. ``opened_ns``/``error_ns``: when the pin really moved for it, None while it has not."""

    reason: Reason
    part: int
    edge_ns: int
    pulse_end_ns: int
    leave_mm: float
    opens_mm: float
    closes_mm: float = _FAR_MM
    opened_ns: int | None = None
    error_ns: int | None = None
    closed: bool = False


class Gate:
    """Windows in the order of their edges; at any instant the gate rejects when one of them is open."""

    def __init__(self, belt: Belt, distance_mm: float, part_mm: float, pulse_ms: float, response_ms: float) -> None:
        self._belt = belt
        self._distance_mm = distance_mm
        self._part_mm = part_mm
        self._pulse_ns = round(pulse_ms * MS)
        self._response_ns = round(response_ms * MS)
        self._waiting: deque[RejectWindow] = deque()
        self._open: list[RejectWindow] = []
        self._past: deque[RejectWindow] = deque()
        self._hold: RejectWindow | None = None
        self.rejecting = True
        """What the output should show now."""

    @property
    def held(self) -> Reason | None:
        """Why the gate is held in reject as a whole, if it is."""
        return self._hold.reason if self._hold else None

    def edge_ns(self, trigger_mm: float, now_ns: int) -> int:
        """When the output must move for a part, as far as the belt is known."""
        return self._belt.time_at(trigger_mm + self._distance_mm, now_ns) - self._response_ns

    def leave_mm(self, trigger_mm: float) -> float:
        """Belt position at which the part has left the gate."""
        return trigger_mm + self._distance_mm + self._part_mm

    def plan(self, part: int, trigger_mm: float, now_ns: int) -> RejectWindow:
        """Commit a reject for a part: its window, for good."""
        edge_ns = self.edge_ns(trigger_mm, now_ns)
        window = RejectWindow(
            reason="part",
            part=part,
            edge_ns=edge_ns,
            pulse_end_ns=edge_ns + self._pulse_ns,
            leave_mm=self.leave_mm(trigger_mm),
            opens_mm=trigger_mm + self._distance_mm,
        )
        at = len(self._waiting)
        while at and self._waiting[at - 1].edge_ns > edge_ns:
            at -= 1
        self._waiting.insert(at, window)
        return window

    def hold(self, reason: HoldReason, now_ns: int) -> None:
        """Stand in reject from now until release; a change of reason begins a new stretch."""
        if self._hold and self._hold.reason == reason:
            return
        seamless = self._hold is not None
        self.release(now_ns)
        effect_ns = now_ns if seamless else now_ns + self._response_ns
        opens_mm = self._belt.position_mm(effect_ns)
        self._hold = RejectWindow(reason, 0, now_ns, now_ns, 0.0, opens_mm, opened_ns=now_ns)
        self._past.append(self._hold)

    def release(self, now_ns: int) -> None:
        """End the hold, if there is one."""
        if self._hold:
            self._hold.closes_mm = self._belt.position_mm(now_ns)
            self._hold.closed = True
            self._hold = None

    def step(self, now_ns: int) -> int | None:
        """Open and end windows up to now. Returns the due time of the output's change, or None when it stands right."""
        due_ns: int | None = None
        while self._waiting and self._waiting[0].edge_ns <= now_ns:
            window = self._waiting.popleft()
            self._past.append(window)
            self._open.append(window)
            due_ns = window.edge_ns if due_ns is None else due_ns
        ended_ns = self._end_windows(now_ns) if self._open else None
        rejecting = bool(self._open) or self._hold is not None
        if rejecting == self.rejecting:
            self._already_there()
            return None
        self.rejecting = rejecting
        return (due_ns or now_ns) if rejecting else (ended_ns or now_ns)

    def moved(self, at_ns: int, due_ns: int) -> None:
        """The pin stood in reject from ``at_ns``: tell the windows that waited for it."""
        for window in self._open:
            if window.opened_ns is None:
                window.opened_ns = at_ns
                window.opens_mm = self._belt.position_mm(at_ns + self._response_ns)
                window.error_ns = at_ns - window.edge_ns if window.edge_ns == due_ns else None

    def end_ns(self, window: RejectWindow, now_ns: int) -> int:
        """When a window ends, as far as the belt is known."""
        return max(window.pulse_end_ns, self._belt.time_at(window.leave_mm, now_ns))

    def next_due_ns(self, now_ns: int) -> int | None:
        """The next instant at which ``step`` has something to do."""
        due = [self.end_ns(window, now_ns) for window in self._open]
        if self._waiting:
            due.append(self._waiting[0].edge_ns)
        return min(due) if due else None

    def hit_by(self, trigger_mm: float, own: RejectWindow | None) -> RejectWindow | None:
        """The window that hit a part as it stood at the gate: a hold before its own, its own before a neighbour's."""
        arrive_mm = trigger_mm + self._distance_mm
        leave_mm = arrive_mm + self._part_mm
        neighbour: RejectWindow | None = None
        for window in self._past:
            if window.opened_ns is None or window.opens_mm >= leave_mm or window.closes_mm <= arrive_mm:
                continue
            if window.reason != "part":
                return window
            if window is not own:
                neighbour = neighbour or window
        if own is not None and own.opened_ns is not None and own.opens_mm < leave_mm:
            return own
        return neighbour

    def forget_before(self, trigger_mm: float) -> None:
        """No part before this trigger position is open any more: drop the windows that lie behind it."""
        arrive_mm = trigger_mm + self._distance_mm
        while self._past and self._past[0].closed and self._past[0].closes_mm <= arrive_mm:
            self._past.popleft()

    def _already_there(self) -> None:
        # The gate stood in reject before these windows opened: no edge was needed.
        for window in self._open:
            if window.opened_ns is None:
                window.opened_ns = window.edge_ns

    def _end_windows(self, now_ns: int) -> int | None:
        last_ns: int | None = None
        for window in list(self._open):
            end_ns = self.end_ns(window, now_ns)
            if end_ns > now_ns:
                continue
            window.closed = True
            window.closes_mm = self._belt.position_mm(end_ns)
            self._open.remove(window)
            last_ns = end_ns if last_ns is None else max(last_ns, end_ns)
        return last_ns
