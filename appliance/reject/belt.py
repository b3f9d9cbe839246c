"""The belt: where it stands at an instant, and when it will stand somewhere. Pure; positions in mm only grow."""

from __future__ import annotations

from typing import Protocol

NS_PER_S = 1_000_000_000


class Belt(Protocol):
    """What the gate's arithmetic asks. Positions are mm of travel since the process started."""

    def position_mm(self, time_ns: int) -> float:
        """Travel at an instant, now or before."""
        ...

    def time_at(self, position_mm: float, now_ns: int) -> int:
        """When the belt reaches (or reached) a position, as far as is known at ``now_ns``."""
        ...


class ConstantBelt:
    """A belt that is said to run at one speed for ever; whether it stands is not seen."""

    def __init__(self, speed_mm_s: float) -> None:
        if speed_mm_s <= 0:
            raise ValueError(f"speed_mm_s is {speed_mm_s}; a constant belt needs more than 0")
        self._mm_per_ns = speed_mm_s / NS_PER_S
        self._ns_per_mm = NS_PER_S / speed_mm_s

    def position_mm(self, time_ns: int) -> float:
        return time_ns * self._mm_per_ns

    def time_at(self, position_mm: float, now_ns: int) -> int:
        return round(position_mm * self._ns_per_mm)
