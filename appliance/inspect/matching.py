"""Which frame shows which part: by time, never by counting. Pure.

A frame belongs to the trigger whose time + travel + offset lies within ± match of the middle of its exposure. A part
is answered when its window is over, so that a second candidate is seen (`ambiguous`), and is `missed` as soon as the camera
is past it: the next parts' frames would fill the camera's buffers meanwhile, and theirs be lost too; a frame that fits no part is
`stray`; the same frame again is a `duplicate`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from appliance.ports import Frame

_KEEP_NS = 400_000_000  # how long a frame waits for a trigger that is still under way


@dataclass(frozen=True)
class Match:
    """What became of a part at one camera."""

    part: int
    kind: Literal["frame", "missed", "ambiguous"]
    frame: Frame | None


@dataclass
class _Waiting:
    part: int
    expected_ns: int
    give_up_ns: int
    frame: Frame | None = None
    ambiguous: bool = False
    """A second frame fitted: both went back to the camera at once, which needs its buffers."""

    def take(self, frame: Frame) -> None:
        """A frame that fits."""
        if self.frame is None and not self.ambiguous:
            self.frame = frame
            return
        self.ambiguous = True
        for one in (self.frame, frame):
            if one is not None:
                one.release()
        self.frame = None


class Matcher:
    """One camera's frames against the parts' triggers. ``shift_ns``: travel to the camera plus offset.

    ``most_waiting``: frames that fit no part yet and may wait for their trigger; the camera needs its other buffers. One
    is enough where an edge makes the part: its trigger is read before the next frame is. Where the frame itself makes
    it, a second may come while the first is announced."""

    def __init__(
        self, shift_ns: int, match_ns: int, allowance_ns: int, wait_for_second: bool = True, most_waiting: int = 1
    ) -> None:  # fmt: skip
        self._shift_ns = shift_ns
        self._match_ns = match_ns
        self._allowance_ns = allowance_ns
        self._wait_for_second = wait_for_second
        self._most_waiting = most_waiting
        self._parts: deque[_Waiting] = deque()
        self._frames: deque[Frame] = deque()
        self._last: tuple[int, int] | None = None
        self.counts = {"frames": 0, "stray": 0, "duplicate": 0, "gap": 0, "ambiguous": 0, "missed": 0}

    def trigger(self, part: int, time_ns: int, deadline_ns: int) -> None:
        """A part to find the frame of."""
        expected_ns = time_ns + self._shift_ns
        give_up_ns = min(expected_ns + self._match_ns + self._allowance_ns, max(deadline_ns - 20_000_000, expected_ns))
        waiting = _Waiting(part, expected_ns, give_up_ns)
        self._parts.append(waiting)
        for frame in list(self._frames):
            if self._fits(frame, waiting):
                self._frames.remove(frame)
                waiting.take(frame)

    def frame(self, frame: Frame) -> bool:
        """A frame came. False: it is not wanted (a duplicate, or nothing waits that long), release it."""
        self.counts["frames"] += 1
        if self._last is not None:
            sequence, time_ns = self._last
            if frame.sequence == sequence or frame.time_ns == time_ns:
                self.counts["duplicate"] += 1
                return False
            self.counts["gap"] += max(0, frame.sequence - sequence - 1)
        self._last = (frame.sequence, frame.time_ns)
        waiting = next((one for one in self._parts if self._fits(frame, one)), None)
        if waiting is None:
            self._frames.append(frame)
        else:
            waiting.take(frame)
        while len(self._frames) > (self._most_waiting if waiting is None else self._most_waiting - 1):
            self._frames.popleft().release()
            self.counts["stray"] += 1
        return True

    def due(self, now_ns: int) -> list[Match]:
        """Parts that can be answered now, in the order of their triggers; old frames are given back."""
        found = []
        while self._parts and self._ready(self._parts[0], now_ns):
            found.append(self._answer(self._parts.popleft()))
        while self._frames and now_ns - self._frames[0].time_ns >= _KEEP_NS:
            self._frames.popleft().release()
            self.counts["stray"] += 1
        return found

    def next_due_ns(self) -> int | None:
        """When ``due`` has something to say at the earliest."""
        if not self._parts:
            return self._frames[0].time_ns + _KEEP_NS if self._frames else None
        first = self._parts[0]
        if first.frame is not None or first.ambiguous:
            return self._window_end(first)
        return 0 if self._past(first) else first.give_up_ns

    def forget(self) -> None:
        """The camera is gone: its frames are void, and given back so that nobody keeps them."""
        for frame in [*self._frames, *(waiting.frame for waiting in self._parts)]:
            if frame is not None:
                frame.release()
        self._frames.clear()
        for waiting in self._parts:
            waiting.frame = None
        self._last = None

    def _fits(self, frame: Frame, waiting: _Waiting) -> bool:
        return abs(frame.time_ns - waiting.expected_ns) <= self._match_ns

    def _past(self, waiting: _Waiting) -> bool:
        """The camera gave a frame of a later time already; they come in order."""
        return self._last is not None and self._last[1] > waiting.expected_ns + self._match_ns

    def _window_end(self, waiting: _Waiting) -> int:
        """When a second candidate would have arrived, were there one: it travels as long as the first did."""
        if not self._wait_for_second or waiting.frame is None:
            return 0
        travelled_ns = waiting.frame.arrived_ns - waiting.frame.time_ns
        return waiting.expected_ns + self._match_ns + max(0, min(travelled_ns, self._match_ns))

    def _ready(self, waiting: _Waiting, now_ns: int) -> bool:
        if waiting.frame is None and not waiting.ambiguous:
            return now_ns >= waiting.give_up_ns or self._past(waiting)
        return now_ns >= self._window_end(waiting)

    def _answer(self, waiting: _Waiting) -> Match:
        if waiting.ambiguous:
            self.counts["ambiguous"] += 1
            return Match(waiting.part, "ambiguous", None)
        if waiting.frame is None:
            self.counts["missed"] += 1
            return Match(waiting.part, "missed", None)
        return Match(waiting.part, "frame", waiting.frame)
