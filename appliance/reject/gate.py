"""A gate's timetable: windows in which it stands in reject, merged, and which parts they hit. Pure.

A window is commanded when its part is ``response_ms`` away, as the belt then runs, and takes effect ``response_ms``
later; it ends when its pulse is over *and* its part has left. A part is hit when any of it stands at the gate while a
window is in effect (contract, "Place"). Holds (purge, held, fault) are windows without an end of their own.
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
_TOUCH_NS = 2 * MS  # no valve goes there and back in this time: windows so close are one


@dataclass(eq=False)
class RejectWindow:
    """One stretch in reject. ``arrive_mm``: belt position as its part's front reaches the gate; ``length_mm``: how
    much of the belt must go.

    ``edge_ns``: when the output had to move, final once it is open; ``opened_ns``/``error_ns``: when the pin really
    moved for it, None while it has not; ``effect_ns``: when the gate stood there; ``opens_mm``/``closes_mm``: the
    stretch of belt in which it was in effect."""

    reason: Reason
    part: int
    arrive_mm: float
    edge_ns: int
    length_mm: float = 0.0
    pulse_end_ns: int = 0
    effect_ns: int = 0
    opens_mm: float = _FAR_MM
    closes_mm: float = _FAR_MM
    opened_ns: int | None = None
    error_ns: int | None = None
    closed: bool = False


class Gate:
    """Windows in the order of their parts; at any instant the gate rejects when one of them is open."""

    def __init__(self, belt: Belt, pulse_ms: float, response_ms: float) -> None:
        self._belt = belt
        self._pulse_ns = round(pulse_ms * MS)
        self._response_ns = round(response_ms * MS)
        self._waiting: deque[RejectWindow] = deque()
        self._open: list[RejectWindow] = []
        self._past: deque[RejectWindow] = deque()
        self._on_its_way: list[RejectWindow] = []
        self._hold: RejectWindow | None = None
        self.lead_ns = 0
        """How long before its due time the output's driver wants to know of an edge."""
        self._told = False
        """The output was told to reject and its driver has not said since when it does."""
        self.rejecting = True
        """What the output should show now."""

    @property
    def held(self) -> Reason | None:
        """Why the gate is held in reject as a whole, if it is."""
        return self._hold.reason if self._hold else None

    def edge_ns(self, arrive_mm: float, now_ns: int) -> int:
        """When the output must move for a part that arrives at ``arrive_mm``, as far as the belt is known."""
        return self._belt.time_at(arrive_mm, now_ns) - self._response_ns

    def plan(self, part: int, arrive_mm: float, length_mm: float, now_ns: int) -> RejectWindow:
        """Commit a reject for a part: it will be hit; when, the belt says until then."""
        window = RejectWindow("part", part, arrive_mm, self.edge_ns(arrive_mm, now_ns), length_mm)
        at = len(self._waiting)
        while at and self._waiting[at - 1].arrive_mm > arrive_mm:
            at -= 1
        self._waiting.insert(at, window)
        return window

    def hold(self, reason: HoldReason, now_ns: int) -> None:
        """Stand in reject from now until release; a change of reason begins a new stretch."""
        if self._hold and self._hold.reason == reason:
            return
        seamless = self._hold is not None
        self.release(now_ns)
        self._hold = RejectWindow(reason, 0, self._belt.position_mm(now_ns), now_ns, opened_ns=now_ns)
        self._past.append(self._hold)
        self._takes_effect(self._hold, now_ns if seamless else now_ns + self._response_ns)

    def release(self, now_ns: int) -> None:
        """End the hold, if there is one."""
        if self._hold:
            self._hold.closes_mm = self._belt.position_mm(now_ns)
            self._hold.closed = True
            self._hold = None

    def step(self, now_ns: int) -> int | None:
        """Open and end windows up to now. Returns the due time of the output's change, or None when it stands right."""
        due_ns: int | None = None
        for window in [one for one in self._on_its_way if one.effect_ns <= now_ns]:
            window.opens_mm = self._belt.position_mm(window.effect_ns)
            self._on_its_way.remove(window)
        while self._waiting and (edge_ns := self.edge_ns(self._waiting[0].arrive_mm, now_ns)) - self.lead_ns <= now_ns:
            if self._ends_before(edge_ns, now_ns) is not None:
                break  # told now, the gate would not come back between the two
            window = self._waiting.popleft()
            window.edge_ns, window.pulse_end_ns = edge_ns, edge_ns + self._pulse_ns
            self._past.append(window)
            self._open.append(window)
            due_ns = edge_ns if due_ns is None else due_ns
        ended_ns = self._end_windows(now_ns) if self._open else None
        rejecting = bool(self._open) or self._hold is not None
        if rejecting == self.rejecting:
            if not self._told:
                self._already_there()
            return None
        self.rejecting = self._told = rejecting
        return (due_ns or now_ns) if rejecting else (ended_ns or now_ns)

    def moved(self, at_ns: int, due_ns: int) -> None:
        """The pin stood in reject from ``at_ns``: tell the windows that waited for it."""
        self._told = False
        for window in self._open:
            if window.opened_ns is None:
                window.opened_ns = at_ns
                self._takes_effect(window, at_ns + self._response_ns)
                window.error_ns = at_ns - window.edge_ns if window.edge_ns == due_ns else None

    def end_ns(self, window: RejectWindow, now_ns: int) -> int:
        """When a window ends, as far as the belt is known."""
        if window.closed:
            return window.pulse_end_ns
        return max(window.pulse_end_ns, self._belt.time_at(window.arrive_mm + window.length_mm, now_ns))

    def next_due_ns(self, now_ns: int) -> int | None:
        """The next instant at which ``step`` has something to do."""
        due: int | None = None
        if self._waiting:
            edge_ns = self.edge_ns(self._waiting[0].arrive_mm, now_ns)
            due = max(edge_ns - self.lead_ns, self._ends_before(edge_ns, now_ns) or 0)
        for window in self._open:
            end_ns = self.end_ns(window, now_ns)
            due = end_ns if due is None or end_ns < due else due
        return due

    def _ends_before(self, edge_ns: int, now_ns: int) -> int | None:
        """When the gate comes home before the next window's edge; None: it need not be waited for."""
        if not self.lead_ns or not self._open or edge_ns <= now_ns:
            return None
        end_ns = max(self.end_ns(window, now_ns) for window in self._open)
        return end_ns if edge_ns - end_ns >= _TOUCH_NS else None

    def hit_by(self, arrive_mm: float, length_mm: float, own: RejectWindow | None) -> RejectWindow | None:
        """The window that hit a part as it stood at the gate: a hold before its own, its own before a neighbour's."""
        leave_mm = arrive_mm + length_mm
        neighbour: RejectWindow | None = None
        for window in self._past:
            if window.opened_ns is None or window.opens_mm >= leave_mm or window.closes_mm <= arrive_mm:
                continue
            if window.opens_mm >= window.closes_mm:
                continue  # taken back before the gate had got there
            if window.reason != "part":
                return window
            if window is not own:
                neighbour = neighbour or window
        if own is not None and own.opened_ns is not None and own.opens_mm < leave_mm:
            return own
        return neighbour

    def forget_before(self, arrive_mm: float) -> None:
        """No part that arrives before this position is open any more: drop the windows that lie behind it."""
        # Behind a hold that stands for days too: what is open or ahead stays, and that is little.
        self._past = deque(one for one in self._past if not one.closed or one.closes_mm > arrive_mm)

    def _already_there(self) -> None:
        # The gate stood in reject before these windows opened: no edge was needed.
        for window in self._open:
            if window.opened_ns is None:
                window.opened_ns = window.edge_ns
                self._takes_effect(window, window.edge_ns + self._response_ns)

    def _takes_effect(self, window: RejectWindow, effect_ns: int) -> None:
        """Where the belt will stand then is not known before."""
        window.effect_ns = effect_ns
        self._on_its_way.append(window)

    def _end_windows(self, now_ns: int) -> int | None:
        last_ns: int | None = None
        for window in list(self._open):
            end_ns = self.end_ns(window, now_ns)
            if end_ns > now_ns:
                continue
            if len(self._open) == 1 and self._waiting:
                next_ns = self.edge_ns(self._waiting[0].arrive_mm, now_ns)
                if next_ns - end_ns < _TOUCH_NS:
                    window.pulse_end_ns = next_ns  # it lasts until the next one takes over
                    continue
            window.closed = True
            window.closes_mm = self._belt.position_mm(end_ns)
            self._open.remove(window)
            last_ns = end_ns if last_ns is None else max(last_ns, end_ns)
        return last_ns
