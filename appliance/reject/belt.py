"""The belt: where it stands at an instant, and when it will stand somewhere. Pure; time and pulses are passed in.

Positions are mm of travel since the process started and only grow: a belt that runs back is behind its own
high-water mark until it has come forward again, and what it carries past the eye meanwhile was seen before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import Protocol

NS_PER_S = 1_000_000_000
MS = 1_000_000
_PAUSE_NS = 100_000
FAR_NS = 3600 * NS_PER_S  # "not as long as the belt stands": asked again at every turn


class Belt(Protocol):
    """What eye, gate and purge ask."""

    def position_mm(self, time_ns: int) -> float:
        """Travel at an instant, now or before."""
        ...

    def time_at(self, position_mm: float, now_ns: int) -> int:
        """When the belt reaches (or reached) a position, as far as is known at ``now_ns``; FAR_NS ahead: it stands."""
        ...

    @property
    def behind(self) -> bool:
        """The belt has run back and not yet come forward again: what the eye sees was seen before."""
        ...

    @property
    def resolution_mm(self) -> float:
        """How far a place may be off between two pulses of a belt that stops; 0: not counted."""
        ...

    @property
    def counted(self) -> int | None:
        """Pulses up to the farthest place; the same number twice = the belt has not moved on by one. None: not counted."""
        ...


class ConstantBelt:
    """A belt that is said to run at one speed. Its stops are seen where ``run`` is told by the drive's contact."""

    behind = False
    counted = None
    resolution_mm = 0.0

    def __init__(self, speed_mm_s: float) -> None:
        if speed_mm_s <= 0:
            raise ValueError(f"speed_mm_s is {speed_mm_s}; a constant belt needs more than 0")
        self._mm_per_ns = speed_mm_s / NS_PER_S
        self._ns_per_mm = NS_PER_S / speed_mm_s
        self._runs = True
        self._since_ns = 0
        self._since_mm = 0.0
        self._stretches: deque[tuple[int, float, bool]] = deque(maxlen=16)

    def run(self, runs: bool, time_ns: int) -> None:
        """The drive started or stopped at ``time_ns``."""
        if runs == self._runs:
            return
        self._stretches.append((self._since_ns, self._since_mm, self._runs))
        self._since_mm = self.position_mm(time_ns)
        self._since_ns = time_ns
        self._runs = runs

    def position_mm(self, time_ns: int) -> float:
        if time_ns < self._since_ns and self._stretches:
            return self._before(time_ns)
        return self._since_mm + (time_ns - self._since_ns) * self._mm_per_ns if self._runs else self._since_mm

    def time_at(self, position_mm: float, now_ns: int) -> int:
        if position_mm < self._since_mm:
            for since_ns, since_mm, runs in reversed(self._stretches):
                if runs and since_mm <= position_mm:
                    return since_ns + round((position_mm - since_mm) * self._ns_per_mm)
        if not self._runs:
            return self._since_ns if position_mm <= self._since_mm else now_ns + FAR_NS
        return self._since_ns + round((position_mm - self._since_mm) * self._ns_per_mm)

    def _before(self, time_ns: int) -> float:
        for since_ns, since_mm, runs in reversed(self._stretches):
            if since_ns <= time_ns:
                return since_mm + (time_ns - since_ns) * self._mm_per_ns if runs else since_mm
        return self._stretches[0][1]


class EncoderBelt:
    """A belt that is counted. Between pulses the place is interpolated, ahead of the newest at the last speed and at
    most one pulse far; a pulse that is overdue slows the prediction, so a stopped belt holds everything open.

    ``missing``/``noise``: pulses that were not there, or came faster than the belt can run; both are told, and
    neither moves the register: what is not known is not made up."""

    def __init__(self, mm_per_pulse: float, max_speed_mm_s: float, stopped_after_ms: float) -> None:
        if mm_per_pulse <= 0 or max_speed_mm_s <= 0:
            raise ValueError(f"{mm_per_pulse} mm per pulse at {max_speed_mm_s} mm/s: both must be more than 0")
        self._mm = self.resolution_mm = mm_per_pulse
        self._shortest_ns = round(mm_per_pulse / max_speed_mm_s * NS_PER_S)
        self._stop_ns = round(stopped_after_ms * MS)
        self._interval_ns = float(self._shortest_ns)  # until the first two pulses: as if at full speed
        self._intervals: deque[int] = deque(maxlen=4)
        self._raw = self._high = 0
        self._forward = True
        self._last_ns = 0
        self._halted_ns: int | None = None
        self._idle_ns = 0  # for how long the drive stood since the newest pulse
        self._history_ns: deque[int] = deque([0], maxlen=512)
        self._history_pulse: deque[int] = deque([0], maxlen=512)
        self.pulse_ns: int | None = None
        """When the newest pulse came, either way; None before the first."""
        self.pulses = self.missing = self.noise = 0

    def run(self, runs: bool, time_ns: int) -> None:
        """The drive's contact: while it is off the belt is not thought to move on from its last pulse."""
        if not runs and self._halted_ns is None:
            self._halted_ns = time_ns
        elif runs and self._halted_ns is not None:
            self._idle_ns += max(0, time_ns - max(self._halted_ns, self._last_ns))
            self._halted_ns = None

    def pulse(self, time_ns: int, forward: bool = True) -> None:
        """One pulse at ``time_ns``, in the order of time."""
        straight = self.pulse_ns is not None and forward and self._forward
        since_ns = time_ns - self.pulse_ns if self.pulse_ns is not None else 0
        if straight and 2 * since_ns < self._shortest_ns:
            self.noise += 1
            return
        self.pulses += 1
        self.pulse_ns, self._forward = time_ns, forward
        if not forward:
            self._raw -= 1
            self._intervals.clear()
            return
        if straight and since_ns <= self._stop_ns:
            self._learn(since_ns)
        else:
            self._intervals.clear()  # a stop lay between: the speed before it is the best guess until two pulses tell
        self._raw += 1
        if self._raw >= self._high:
            self._high = self._raw
            self._last_ns, self._idle_ns = time_ns, 0
            self._history_ns.append(time_ns)
            self._history_pulse.append(self._high)

    def begin_anew(self) -> None:
        """What ran back need not come forward again: all that lies there is unknown."""
        self._raw = self._high

    @property
    def behind(self) -> bool:
        return self._raw < self._high

    @property
    def counted(self) -> int:
        return self._high

    @property
    def newest_ns(self) -> int:
        """When the register last moved: what lies before is interpolated, what comes after is a guess."""
        return self._last_ns

    @property
    def behind_mm(self) -> float:
        """How far the belt has run back."""
        return (self._high - self._raw) * self._mm

    def position_mm(self, time_ns: int) -> float:
        if time_ns < self._last_ns:
            return self._before(time_ns)
        if self._raw < self._high:
            return self._high * self._mm
        return (self._high + min(1.0, self._moved_ns(time_ns) / self._interval_ns)) * self._mm

    def time_at(self, position_mm: float, now_ns: int) -> int:
        ahead = position_mm / self._mm - self._high
        if ahead <= 0:
            return self._when(position_mm / self._mm)
        if self._raw < self._high:
            return now_ns + FAR_NS  # it must come forward first; each pulse on the way asks again
        if self._halted_ns is None and not self._idle_ns:
            moved_ns = now_ns - self._last_ns
        else:
            moved_ns = self._moved_ns(now_ns)
            if ahead <= 1 and ahead * self._interval_ns <= moved_ns:
                return self._last_ns + round(ahead * self._interval_ns)
            if self._halted_ns is not None:
                return now_ns + FAR_NS
        if ahead <= 1 or moved_ns <= self._interval_ns:
            return now_ns - moved_ns + round(ahead * self._interval_ns)
        if moved_ns >= self._stop_ns:
            return now_ns + FAR_NS
        # Just beyond the pulse that is overdue: asked again soon, but not without a pause.
        return now_ns + max(_PAUSE_NS, round((ahead - 1) * moved_ns))

    def _moved_ns(self, time_ns: int) -> int:
        """For how long the belt has run since its newest pulse."""
        if self._halted_ns is not None and time_ns > self._halted_ns:
            time_ns = max(self._halted_ns, self._last_ns)
        return max(0, time_ns - self._last_ns - self._idle_ns)

    def _learn(self, since_ns: int) -> None:
        """The newest interval; one that is whole times its neighbours on both sides had pulses missing."""
        intervals = self._intervals
        if len(intervals) >= 2:
            before, between = intervals[-2], intervals[-1]
            if between > 1.7 * before and abs(since_ns - before) < 0.2 * before:
                self.missing += round(between / before) - 1
                intervals.pop()
        intervals.append(since_ns)
        self._interval_ns = sum(intervals) / len(intervals)

    def _before(self, time_ns: int) -> float:
        times, pulses = self._history_ns, self._history_pulse
        at = bisect_right(times, time_ns)
        if at == 0:
            return pulses[0] * self._mm
        if at == len(times):
            return pulses[-1] * self._mm
        earlier, later = times[at - 1], times[at]
        share = (time_ns - earlier) / (later - earlier) if later > earlier else 0.0
        return (pulses[at - 1] + share * (pulses[at] - pulses[at - 1])) * self._mm

    def _when(self, pulse: float) -> int:
        times, pulses = self._history_ns, self._history_pulse
        at = bisect_right(pulses, pulse)
        if at == 0:
            return times[0]
        if at == len(pulses):
            return times[-1]
        step = pulses[at] - pulses[at - 1]
        return times[at - 1] + round((pulse - pulses[at - 1]) / step * (times[at] - times[at - 1]))


class Quadrature:
    """Two channels to pulses: A's edges while B is low, so that a belt trembling on an edge counts to and fro.

    ``lost``: edges that cannot follow each other, so at least one between them was not seen. With one channel every
    rise of A is a pulse forward."""

    def __init__(self, two_channels: bool) -> None:
        self.two_channels = two_channels
        self._sequence: dict[str, int] = {}
        self._a: bool | None = None
        self._b: bool | None = None
        self.lost = 0

    def gap(self, channel: str, sequence: int) -> int:
        """Edges of a channel that were not read since the last one; 0 as it should be. Sequence 0 begins anew."""
        before = self._sequence.get(channel)
        self._sequence[channel] = sequence
        return 0 if before is None or sequence == 0 else max(0, sequence - before - 1)

    def edge(self, channel: str, level: bool) -> int:
        """+1 or -1 for a pulse, 0 for none. ``channel``: "a" or "b"."""
        before = self._a if channel == "a" else self._b
        if before is not None and before == level:
            self.lost += 1
            if channel == "a" and not self.two_channels and level:
                return 1  # its fall was not seen; the rise is one all the same
            return 0
        if channel == "b":
            self._b = level
            return 0
        self._a = level
        if before is None:
            return 0  # the level at opening
        if not self.two_channels:
            return 1 if level else 0
        return 0 if self._b else 1 if level else -1
