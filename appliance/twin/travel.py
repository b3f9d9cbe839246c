"""How the twin's belt really moved: stretches of one speed each, forward, back or standing. Pure.

A profile plays stops, creeping, reversals and ramps; while the drive is stopped from outside, the profile waits.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

_MS = 1_000_000
_KEPT = 2000  # stretches: minutes of ramps


@dataclass
class Stretch:
    """From ``start_ns`` at ``start_mm`` with one speed; ``high_mm``: the farthest the belt had been by then."""

    start_ns: int
    start_mm: float
    mm_per_ns: float
    high_mm: float


def profile(name: str, seed: int) -> Iterator[tuple[int, float]]:
    """(ns, share of the speed) for ever. ``stops``: stop, restart, creep, run back; ``ramp``: between 60 and 140 %."""
    rng = random.Random(f"{name} {seed}")
    while name == "stops":
        yield rng.randrange(20_000, 60_000) * _MS, 1.0
        for _ in range(rng.randrange(1, 4)):
            yield rng.randrange(100, 2000) * _MS, 0.0
            what = rng.random()
            if what < 0.4:
                yield rng.randrange(40, 250) * _MS, -0.3
                yield rng.randrange(50, 400) * _MS, 0.0
            elif what < 0.8:
                yield rng.randrange(300, 3000) * _MS, 0.1
            for tenth in range(1, 10):  # the drive's own ramp
                yield 20 * _MS, tenth / 10
    while name == "ramp":
        steps, low, high = rng.randrange(40, 120), rng.uniform(0.6, 0.9), rng.uniform(1.1, 1.4)
        for step in [*range(steps), *range(steps, 0, -1)]:
            yield 100 * _MS, low + (high - low) * step / steps
    while True:
        yield 3600 * 10**9, 1.0


class Travel:
    """``runs``: the drive is on. Positions in mm, forward is more."""

    def __init__(self, now_ns: int, speed_mm_s: float, runs: bool, stretches: Iterator[tuple[int, float]]) -> None:
        self._speed = speed_mm_s / 1e9
        self._profile = stretches
        self.runs = runs
        left_ns, share = next(stretches)
        self._share, self._left_ns = share, left_ns
        self.now = Stretch(now_ns, 0.0, self._speed * share if runs else 0.0, 0.0)
        """The stretch under way."""
        self._stretches = [self.now]
        self._starts = [now_ns]
        self.switch_ns = now_ns + left_ns if runs else None
        """When the profile changes the speed, if nobody stops the drive before."""

    def switch(self) -> None:
        """The profile's next stretch begins."""
        at_ns = self.switch_ns
        assert at_ns is not None
        self._left_ns, self._share = next(self._profile)
        self._begin(at_ns, self._speed * self._share)

    def drive(self, runs: bool, at_ns: int) -> None:
        """The drive is stopped or started from outside."""
        if runs == self.runs:
            return
        if self.runs:
            self._left_ns = max(0, self._left_ns - (at_ns - self.now.start_ns))
        self.runs = runs
        self._begin(at_ns, self._speed * self._share if runs else 0.0)

    def _begin(self, at_ns: int, mm_per_ns: float) -> None:
        at_mm = self.position_mm(at_ns)
        self.now = Stretch(at_ns, at_mm, mm_per_ns, max(self.now.high_mm, at_mm))
        self.switch_ns = at_ns + self._left_ns if self.runs else None
        self._stretches.append(self.now)
        self._starts.append(at_ns)
        if len(self._starts) > 2 * _KEPT:
            del self._stretches[:_KEPT], self._starts[:_KEPT]

    def position_mm(self, time_ns: int) -> float:
        """Where the belt stood, or will stand if its speed stays."""
        stretch = self.now
        if time_ns < stretch.start_ns:
            stretch = self._stretches[max(0, bisect_right(self._starts, time_ns) - 1)]
        return stretch.start_mm + max(0, time_ns - stretch.start_ns) * stretch.mm_per_ns

    def crossing_ns(self, at_mm: float) -> int | None:
        """When the stretch under way comes to a place that lies ahead of it, either way; None: it stands."""
        stretch = self.now
        if not stretch.mm_per_ns:
            return None
        return stretch.start_ns + max(0, round((at_mm - stretch.start_mm) / stretch.mm_per_ns))

    def first_ns(self, at_mm: float) -> int | None:
        """When the belt first came to a place (or will, if its speed stays); None: not yet, and standing or going back."""
        stretches = self._stretches
        at = len(stretches) - 1
        while at > 0 and stretches[at].high_mm >= at_mm:
            at -= 1
        stretch = stretches[at]
        if stretch.mm_per_ns <= 0:
            return stretch.start_ns if stretch.high_mm >= at_mm else None
        return stretch.start_ns + round((at_mm - stretch.start_mm) / stretch.mm_per_ns)

    def range_mm(self, from_ns: int, to_ns: int) -> tuple[float, float]:
        """The least and the farthest place between two instants."""
        places = [self.position_mm(from_ns), self.position_mm(to_ns)]
        at = bisect_right(self._starts, from_ns)
        while at < len(self._starts) and self._starts[at] < to_ns:
            places.append(self._stretches[at].start_mm)
            at += 1
        return min(places), max(places)
