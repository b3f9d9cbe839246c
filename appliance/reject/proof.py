"""Proof of reject: does the sensor in the bin see what the gate took, and nothing else? Pure.

A part that a gate took off must pass the sensor within ``within_ms`` after the output's edge (or, where the gate stood
there already, after the instant at which the edge would have been due). A sensor that was on before and gives no edge
proves nothing: ``no``, and alarm ``confirm_stuck``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from appliance.messages import Edge
from appliance.reject.plan import MS


@dataclass
class Expected:
    """One part that must be seen. ``stuck``: the sensor was on as it began; ``many``: it may be two that touch."""

    part: int
    from_ns: int
    until_ns: int
    many: bool
    seen: bool = False
    stuck: bool = False

    def explains(self, at_ns: int) -> bool:
        return (self.many or not self.seen) and self.from_ns <= at_ns <= self.until_ns


class Proof:
    """``unexpected``: edges that belong to no part, as instants, until they are taken."""

    def __init__(self, within_ms: float) -> None:
        self.within_ns = round(within_ms * MS)
        self._expected: dict[int, Expected] = {}
        self._stray: deque[int] = deque()
        self._on_since_ns: int | None = None
        self._was_on: deque[tuple[int, int]] = deque(maxlen=32)

    def expect(self, part: int, from_ns: int, many: bool = False) -> None:
        """The gate took this part; the output's edge was (due) at ``from_ns``. Its edge may have come already."""
        one = Expected(part, from_ns, from_ns + self.within_ns, many)
        one.stuck = (self._on_since_ns is not None and self._on_since_ns < from_ns) or any(
            on_ns < from_ns < off_ns for on_ns, off_ns in self._was_on
        )
        for at_ns in [at for at in self._stray if one.from_ns <= at <= one.until_ns]:
            if one.explains(at_ns):
                self._stray.remove(at_ns)
                one.seen = True
        self._expected[part] = one

    def on_edge(self, edge: Edge) -> None:
        """An edge of the sensor; sequence 0 is the level at opening."""
        if not edge.level:
            if self._on_since_ns is not None:
                self._was_on.append((self._on_since_ns, edge.time_ns))
            self._on_since_ns = None
            return
        if self._on_since_ns is None:
            self._on_since_ns = edge.time_ns
        if edge.sequence == 0:
            return
        fits = [one for one in self._expected.values() if one.explains(edge.time_ns)]
        if fits:
            min(fits, key=lambda one: (one.seen, one.until_ns)).seen = True
        else:
            self._stray.append(edge.time_ns)

    def over_ns(self, part: int) -> int:
        """When the part's window is over; 0 for a part that is not expected."""
        one = self._expected.get(part)
        return one.until_ns if one else 0

    def take(self, part: int) -> tuple[bool, bool]:
        """(seen, stuck) of a part whose window is over."""
        one = self._expected.pop(part)
        return one.seen, one.stuck and not one.seen

    def take_unexpected(self, now_ns: int, before_ns: int) -> list[int]:
        """Instants of edges that no part explains, once none can any more."""
        told = []
        while self._stray and self._stray[0] < before_ns and now_ns - self._stray[0] > self.within_ns:
            told.append(self._stray.popleft())
        return told
