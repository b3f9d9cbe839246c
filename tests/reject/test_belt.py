"""The belt against a plain oracle: a belt that really moves, in small steps, and an encoder that sees it."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from appliance.reject.belt import FAR_NS, ConstantBelt, EncoderBelt, Quadrature

MS = 1_000_000
STEP_NS = 1 * MS
MM = 2.0  # per pulse
MAX = 800.0


class EncoderAgainstTheTruth(RuleBasedStateMachine):
    """The oracle keeps each instant's true place; the belt hears only when a whole number of pulses is passed."""

    @initialize()
    def begin(self) -> None:
        self.belt = EncoderBelt(MM, MAX, 200)
        self.now = 1000 * MS
        self.at = 0.0
        self.farthest = 0.0
        self.count = 0
        self.pulse_times: list[int] = []
        self.told_at: list[tuple[int, float]] = []  # (instant, true place) while the belt was at its farthest

    @rule(speed=st.sampled_from([0.0, 20.0, 100.0, 333.0, 500.0, 790.0, -60.0, -200.0]), steps=st.integers(1, 60))
    def run(self, speed: float, steps: int) -> None:
        for _ in range(steps):
            self.now += STEP_NS
            before, self.at = self.at, self.at + speed * STEP_NS / 1e9
            crossed = int(self.at // MM) - int(before // MM)
            if crossed:
                edge = (int(self.at // MM) if crossed > 0 else int(before // MM)) * MM
                share = (edge - before) / (self.at - before)
                at_ns = self.now - STEP_NS + round(share * STEP_NS)
                self.belt.pulse(at_ns, crossed > 0)
                self.count += crossed
                if crossed > 0 and self.count * MM >= self.farthest - MM:
                    self.pulse_times.append(at_ns)
            self.farthest = max(self.farthest, self.at)
            if self.at >= self.farthest:
                self.told_at.append((self.now, self.at))

    @invariant()
    def the_register_is_the_farthest_place_to_a_pulse(self) -> None:
        assert self.belt.position_mm(self.now) == pytest.approx(self.farthest, abs=MM + 1e-6)
        assert self.belt.behind == (int(self.at // MM) < int(self.farthest // MM))
        assert self.belt.noise == 0

    @invariant()
    def what_was_passed_is_known_better_afterwards(self) -> None:
        for at_ns, true_mm in self.told_at[-300::37]:
            if self.pulse_times and self.pulse_times[0] <= at_ns <= self.belt.newest_ns:
                assert self.belt.position_mm(at_ns) == pytest.approx(true_mm, abs=MM + 1e-6)

    @invariant()
    def a_place_that_was_passed_has_its_time_and_one_ahead_a_later_one(self) -> None:
        high = self.belt.position_mm(self.belt.newest_ns)
        if high >= 10 * MM and len(self.pulse_times) > 12:
            assert self.belt.time_at(high - 3 * MM, self.now) <= self.now
        ahead = [self.belt.time_at(high + far, self.now) for far in (1.5 * MM, 5 * MM, 50 * MM)]
        assert ahead == sorted(ahead)

    @invariant()
    def a_belt_that_stands_or_runs_back_reaches_nothing(self) -> None:
        far = self.belt.position_mm(self.belt.newest_ns) + 3 * MM
        since = self.belt.newest_ns if self.belt.pulse_ns is None else max(self.belt.newest_ns, self.belt.pulse_ns)
        if self.belt.behind or self.now - since > 200 * MS:
            assert self.belt.time_at(far, self.now) >= self.now + FAR_NS - 1


TestEncoderAgainstTheTruth = EncoderAgainstTheTruth.TestCase


class QuadratureAgainstTheTruth(RuleBasedStateMachine):
    """Quarter steps to and fro; the count is the true number of A's rises with B low, whatever trembles."""

    @initialize()
    def begin(self) -> None:
        self.decoder = Quadrature(True)
        self.quarter = 0
        self.count = 0
        self.decoder.edge("a", False)
        self.decoder.edge("b", False)

    @rule(steps=st.lists(st.sampled_from([1, -1]), min_size=1, max_size=8))
    def move(self, steps: list[int]) -> None:
        for step in steps:
            before = self.levels()
            self.quarter += step
            after = self.levels()
            channel = "a" if before[0] != after[0] else "b"
            self.count += self.decoder.edge(channel, after[0] if channel == "a" else after[1])

    def levels(self) -> tuple[bool, bool]:
        return self.quarter % 4 in (1, 2), self.quarter % 4 in (2, 3)

    @invariant()
    def no_step_is_lost_or_made_up(self) -> None:
        assert self.count == (self.quarter + 3) // 4 and self.decoder.lost == 0


TestQuadratureAgainstTheTruth = QuadratureAgainstTheTruth.TestCase


def steady(belt: EncoderBelt, pulses: int, every_ms: float = 4.0, begin_ms: float = 0.0) -> int:
    """So many pulses forward; returns when the last one came."""
    at = 0
    for number in range(pulses):
        at = round((begin_ms + number * every_ms) * MS)
        belt.pulse(at)
    return at


def test_between_pulses_the_place_is_interpolated() -> None:
    belt = EncoderBelt(MM, MAX, 200)
    last = steady(belt, 100)
    assert belt.position_mm(last) == 200.0
    assert belt.position_mm(last + 1 * MS) == pytest.approx(200.5)
    assert belt.position_mm(last - 6 * MS) == pytest.approx(197.0)
    assert belt.time_at(210.0, last) == last + 20 * MS
    assert belt.time_at(150.0, last) == pytest.approx(last - 100 * MS)


def test_an_overdue_pulse_slows_the_prediction_and_never_lets_the_place_run_ahead() -> None:
    belt = EncoderBelt(MM, MAX, 200)
    last = steady(belt, 50)
    foreseen = [belt.time_at(140.0, last + wait * MS) - last for wait in (0, 4, 20, 100, 199)]
    assert foreseen == sorted(foreseen) and foreseen[0] == 80 * MS and foreseen[-1] > 3000 * MS
    assert belt.position_mm(last + 3600_000 * MS) == 102.0


def test_missing_and_noisy_pulses_are_told() -> None:
    belt = EncoderBelt(MM, MAX, 200)
    last = steady(belt, 20)
    belt.pulse(last + 8 * MS)  # one between them was not there
    belt.pulse(last + 12 * MS)
    assert (belt.missing, belt.noise) == (1, 0)
    belt.pulse(last + 13 * MS)  # 2 mm in 1 ms: no belt of 800 mm/s
    assert belt.noise == 1 and belt.position_mm(last + 13 * MS) < 46


def test_a_slowing_or_quickening_belt_has_no_missing_pulses() -> None:
    belt = EncoderBelt(MM, MAX, 200)
    at = 0.0
    for every in [4.0] * 5 + [4 * 1.15**n for n in range(20)] + [60 * 0.85**n for n in range(18)]:
        at += every
        belt.pulse(round(at * MS))
    assert belt.missing == belt.noise == 0


def test_a_constant_belt_stands_while_its_contact_says_so() -> None:
    belt = ConstantBelt(500)
    belt.run(False, 1000 * MS)
    assert belt.position_mm(5000 * MS) == 500.0 and belt.time_at(501.0, 5000 * MS) >= FAR_NS
    belt.run(True, 6000 * MS)
    assert belt.position_mm(6100 * MS) == 550.0 and belt.time_at(600.0, 6100 * MS) == 6200 * MS
    assert belt.position_mm(800 * MS) == 400.0 and belt.time_at(250.0, 6100 * MS) == 500 * MS


@pytest.mark.parametrize("speed", [0.0, -1.0])
def test_a_belt_without_speed_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="more than 0"):
        ConstantBelt(speed)
    with pytest.raises(ValueError, match="more than 0"):
        EncoderBelt(speed, 500, 200)
