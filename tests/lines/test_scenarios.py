"""The five hard lines in virtual time, and that each would show what it is there for."""

from __future__ import annotations

import dataclasses
import io

import pytest

from appliance.twin import fast, scenarios
from appliance.twin.rehearse import Options
from appliance.twin.result import Result

HARD = ("stops", "ramp", "close", "divert", "slip")


def shift(name: str, seed: int = 5, parts: int = 3000) -> Result:
    return fast.rehearse_fast(Options(parts=parts, seed=seed, scenario=name), io.StringIO())


@pytest.mark.parametrize("name", HARD)
def test_nothing_escapes_and_nothing_is_hit_that_could_be_spared(name: str) -> None:
    result = shift(name)
    assert result.failures() == [] and result.closed
    score = result.score
    assert (score.parts, score.untracked, score.escapes_gate, score.good_lost_outside) == (3000, 0, 0, 0)
    if name == "close":
        assert score.unsparable > 0, "parts lie closer than the window is long"
    else:
        assert score.unsparable == 0
    if name == "divert":
        assert result.ledger["review"] > 50


def without(name: str, monkeypatch: pytest.MonkeyPatch, *settings: str, **changes: object) -> Result:
    """The same line, with the station lacking what it is there for."""
    scenario = scenarios.SCENARIOS[name]
    left = {path: value for path, value in scenario.changes.items() if path not in settings}
    poorer = dataclasses.replace(scenario, changes={**left, **changes})
    monkeypatch.setitem(scenarios.SCENARIOS, name, poorer)
    return shift(name, parts=2500)


def test_a_slipping_belt_without_the_eye_at_the_gate_hits_the_wrong_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    score = without("slip", monkeypatch, "reject.gate_eye", "reject.confirm").score
    assert score.escapes_gate > 0 and score.good_lost_outside > 0


@pytest.mark.parametrize("name", ["stops", "ramp"])
def test_a_belt_that_changes_its_speed_cannot_be_timed_by_the_clock(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = {"transport.speed_mm_s": 500}
    result = without(
        name, monkeypatch, "transport.speed_mm_s", "transport.encoder", "transport.running", "transport.stopped_after_ms", **timed
    )
    assert result.score.escapes_gate + result.score.good_lost_outside > 10


def test_the_same_seed_gives_the_same_ledger_on_every_line() -> None:
    for name in HARD:
        assert shift(name, parts=300).ledger_head == shift(name, parts=300).ledger_head
