"""Lines that are harder than the shipped one: what of the station changes for them, and how their belt behaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from appliance.config import Station
from appliance.twin.line import GateShape, LineShape
from appliance.twin.score import GateTimes


@dataclass(frozen=True)
class Scenario:
    """``changes``: settings of the station by path, in place of what stands there; ``review_share``: of the good parts,
    drawn as borderline; ``pitch_mm``: in place of what ``--ppm`` asks for."""

    says: str
    changes: dict[str, Any] = field(default_factory=dict)
    profile: str = "steady"
    slip_mm: float = 0.0
    review_share: float = 0.0
    pitch_mm: float | None = None


_ENCODER = {
    "transport.speed_mm_s": None,
    "transport.encoder": {"input": "twin://encoder", "input_b": "twin://encoder_b", "mm_per_pulse": 15.0},
    "trigger.min_pitch_mm": 30,
    "transport.running": "twin://running",
    "transport.stopped_after_ms": 500,  # creeping, a pulse takes 200 ms
    "transport.max_speed_mm_s": 800,
}
SCENARIOS = {
    "steady": Scenario("one speed, parts well apart"),
    "stops": Scenario("encoder; stops, restarts, creeping and running back", _ENCODER, "stops"),
    "ramp": Scenario("encoder; the speed runs between 60 and 140 %", _ENCODER, "ramp"),
    "close": Scenario(
        "parts follow closer than the gate's window is long: neighbours go too",
        {"reject.pulse_ms": 90},
        pitch_mm=38.0,
    ),
    "divert": Scenario(
        "a second gate takes what is borderline",
        {
            "reject.on_review": "divert",
            "divert": {"output": "twin://divert", "distance_mm": 700, "pulse_ms": 40, "response_ms": 15},
        },
        review_share=0.05,
    ),
    "slip": Scenario(
        "encoder; parts slide on the belt further than they lie apart; the gate's eye finds them",
        {**_ENCODER, "reject.gate_eye": "twin://gate_eye", "reject.confirm": {"input": "twin://confirm", "within_ms": 150}},
        slip_mm=40.0,
    ),
}


def shape_of(station: Station, scenario: Scenario, pitch_mm: float, speed_mm_s: float) -> LineShape:
    """The twin's line for a station: what is wired there stands on the line."""
    reject, divert, encoder = station.reject, station.divert, station.transport.encoder
    second = GateShape(divert.distance_mm, divert.response_ms, divert.energised_means == "reject") if divert else None
    return LineShape(
        speed_mm_s=speed_mm_s, pitch_mm=pitch_mm, part_mm=station.part_mm, gate_mm=reject.distance_mm,
        response_ms=reject.response_ms, reject_level=reject.energised_means == "reject",
        obeys_line_stop=station.outputs.line_stop is not None, profile=scenario.profile,
        encoder_mm=encoder.mm_per_pulse if encoder else 0.0, divert=second, confirm=reject.confirm is not None,
        gate_eye=reject.gate_eye is not None, slip_mm=scenario.slip_mm,
    )  # fmt: skip


def gate_times(station: Station) -> GateTimes:
    """What the score needs of the gate."""
    return GateTimes(round(station.reject.pulse_ms * 1e6), round(station.reject.response_ms * 1e6))


def apply(document: dict[str, Any], scenario: Scenario) -> None:
    """Put a scenario's changes into a station's document; None takes a setting out."""
    for path, value in scenario.changes.items():
        *sections, last = path.split(".")
        section = document
        for name in sections:
            section = section.setdefault(name, {})
        if value is None:
            section.pop(last, None)
        else:
            section[last] = value
