"""What rejectd must know of a station, as plain numbers; wiring makes it from the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

MS = 1_000_000  # ns


@dataclass(frozen=True)
class GatePlan:
    """One rejector. ``kind`` hold may stay in reject for ever, pulse may not."""

    kind: Literal["hold", "pulse"]
    energised_means: Literal["accept", "reject"]
    distance_mm: float
    pulse_ms: float
    response_ms: float

    @property
    def reject_level(self) -> bool:
        """Level of the output that rejects."""
        return self.energised_means == "reject"

    @property
    def fails_to_reject(self) -> bool:
        """Held in reject for as long as needed, also by a dead box."""
        return self.kind == "hold" and self.energised_means == "accept"

    @property
    def longest_on_ms(self) -> int | None:
        """How long the output may stand energised: a pusher must not; a held gate may."""
        return max(1000, round(10 * self.pulse_ms)) if self.kind == "pulse" else None


@dataclass(frozen=True)
class EncoderPlan:
    """One pulse is ``mm_per_pulse`` of belt; the second channel tells the way."""

    mm_per_pulse: float
    two_channels: bool


@dataclass(frozen=True)
class Window:
    """An alarm over the last ``of_last`` parts: raised from ``count`` on."""

    count: int
    of_last: int


@dataclass(frozen=True)
class AlarmPlan:
    """Limits of the part alarms; ``reject_rate`` as (share over, of the last n)."""

    consecutive_rejects: int = 5
    reject_rate: tuple[float, int] = (0.20, 200)
    missed: Window = Window(3, 100)
    blind: Window = Window(3, 100)
    late: Window = Window(2, 500)
    unconfirmed: int = 1
    unexpected: int = 1
    stops_line: frozenset[str] = field(
        default_factory=lambda: frozenset({"unconfirmed", "unexpected", "consecutive_rejects"})
    )


@dataclass(frozen=True)
class Plan:
    """Lengths in mm, times in ms, speed in mm/s; names as in the configuration."""

    speed_mm_s: float
    part_mm: float
    gate: GatePlan
    deadline_ms: float
    purge_mm: float
    on_late: Literal["reject", "stop", "accept"] = "reject"
    on_review: Literal["reject", "accept", "divert"] = "reject"
    trigger: Literal["input", "frame"] = "input"
    rising: bool = True
    debounce_ms: float = 2.0
    min_pitch_mm: float = 30.0
    max_part_mm: float = 60.0
    blocked_mm: float = 200.0
    frame_period_ms: float = 0.0
    recipe: str = ""
    recipe_number: int = 0
    alarms: AlarmPlan = AlarmPlan()
    line_stop_output: bool = False
    divert: GatePlan | None = None
    encoder: EncoderPlan | None = None
    """None: the belt runs at ``speed_mm_s``."""
    running_contact: bool = False
    stopped_after_ms: float = 200.0
    confirm_within_ms: float | None = None
    gate_eye: bool = False

    def purge_distance_mm(self, gate: GatePlan) -> float:
        """Law 6: how far the belt must move before this gate opens."""
        return max(self.purge_mm, gate.distance_mm + self.part_mm)

    @property
    def gates(self) -> dict[str, GatePlan]:
        """By output's role, in the order in which a part passes them."""
        return {"gate": self.gate, "divert": self.divert} if self.divert else {"gate": self.gate}

    @property
    def fails_to_reject(self) -> bool:
        """Every gate is held by itself, also by a dead box."""
        return all(gate.fails_to_reject for gate in self.gates.values())
