"""The photo-eye's edges become parts; bounces, edges too close, touching parts, an eye that stays covered. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from appliance.messages import Edge
from appliance.reject.belt import Belt
from appliance.reject.plan import MS, Plan


class Seen(Enum):
    """What an edge meant."""

    NOTHING = "nothing"
    PART = "part"
    BOUNCE = "bounce"
    TREMBLED = "trembled"
    DOUBLE = "double"
    TOUCHING = "touching"
    LOST_EDGES = "lost edges"
    BEHIND = "behind"


@dataclass
class Eye:
    """State of the trigger's beam. ``covered_mm``: belt position since which it is covered, None when free."""

    plan: Plan
    belt: Belt
    covered_mm: float | None = None
    last_part_mm: float = float("-inf")
    last_edge_ns: int = -(10**18)
    sequence: int = -1
    touching_told: bool = False
    _covered_before_mm: float | None = None
    _freed_at: int | None = None
    covering_mm: float = 0.0
    """How much of the belt the last covering took that was longer than one part."""

    def edge(self, edge: Edge) -> Seen:
        """One edge, in the order of their time stamps."""
        lost = self.sequence >= 0 and edge.sequence > self.sequence + 1
        self.sequence = edge.sequence
        active = edge.level == self.plan.rising
        position_mm = self.belt.position_mm(edge.time_ns)
        if edge.sequence == 0:  # the level at opening: no part began here
            self.covered_mm = position_mm if active else None
            return Seen.NOTHING
        bounce = edge.time_ns - self.last_edge_ns < self.plan.debounce_ms * MS
        self.last_edge_ns = edge.time_ns
        if not active:
            touching = self._too_long(position_mm)
            if self.touching_told and self.covered_mm is not None:
                self.covering_mm = position_mm - self.covered_mm
            self._covered_before_mm, self.covered_mm = self.covered_mm, None
            self._freed_at = None if self.belt.behind else self.belt.counted
            return Seen.LOST_EDGES if lost else Seen.TOUCHING if touching else Seen.NOTHING
        trembled = self._freed_at is not None and self._freed_at == self.belt.counted and not self.belt.behind
        if (bounce or trembled) and not lost:
            # The beam was never really free: what follows lengthens the same covering (and may prove two parts).
            self.covered_mm = position_mm if self._covered_before_mm is None else self._covered_before_mm
            return Seen.BOUNCE if bounce else Seen.TREMBLED
        if self.covered_mm is None:
            self.covered_mm = position_mm
            self.touching_told = False
        if lost:
            return Seen.LOST_EDGES
        if self.belt.behind:
            return Seen.BEHIND  # it was a part when it passed for the first time
        return self.mark(position_mm)

    def mark(self, position_mm: float) -> Seen:
        """A part edge at a belt position: a part, unless it comes too close behind the last one."""
        if position_mm - self.last_part_mm < self.plan.min_pitch_mm:
            return Seen.DOUBLE
        self.last_part_mm = position_mm
        return Seen.PART

    def touching(self, now_ns: int) -> bool:
        """True once per covering, when it grows longer than one part can be."""
        return self._too_long(self.belt.position_mm(now_ns))

    def blocked(self, now_ns: int) -> bool:
        """The beam is covered for so long that parts may pass unseen."""
        if self.covered_mm is None:
            return False
        return self.belt.position_mm(now_ns) - self.covered_mm > self.plan.blocked_mm

    def _too_long(self, position_mm: float) -> bool:
        if self.covered_mm is None or self.touching_told:
            return False
        self.touching_told = position_mm - self.covered_mm > self.plan.max_part_mm + self.belt.resolution_mm
        return self.touching_told
