"""The belt's motion and what it makes the sensors see, against a plain reckoning in small steps."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.twin.line import Line, LineShape
from appliance.twin.travel import Travel, profile

MS = 1_000_000
SHAPE = LineShape(
    speed_mm_s=500, pitch_mm=50, part_mm=28, gate_mm=420, response_ms=12, reject_level=False, obeys_line_stop=True,
    profile="stops", encoder_mm=2.0, settle_ms=5, gate_eye=True,
)  # fmt: skip


@pytest.mark.parametrize("name", ["stops", "ramp", "steady"])
def test_a_position_is_first_reached_where_it_says(name: str) -> None:
    travel = Travel(0, 500, True, profile(name, 5))
    while travel.now.start_ns < 300_000 * MS:
        travel.switch()
    until = travel.now.start_ns
    for at_mm in range(10, int(travel.position_mm(until)) - 10, 997):
        first = travel.first_ns(at_mm)
        assert first is not None and travel.position_mm(first) == pytest.approx(at_mm, abs=1e-3)
        assert travel.range_mm(0, first)[1] <= at_mm + 1e-3


@given(halts=st.lists(st.tuples(st.integers(20, 3000), st.integers(1, 400)), max_size=6), seed=st.integers(0, 99))
def test_no_pulse_is_lost_or_made_up_however_the_line_is_stopped(halts: list[tuple[int, int]], seed: int) -> None:
    """The drive may be stopped at an instant that nobody has asked for yet: what happened before it still happened."""
    line = Line(SHAPE, seed)
    line.set_output("line_stop", True, MS)
    line.feed(20, MS)
    told, now = [], MS
    for after_ms, still_ms in halts:
        for level, wait_ms in ((False, after_ms), (True, still_ms)):
            now += wait_ms * MS
            line.set_output("line_stop", level, now)
        told += line.advance(now + 3 * MS)
    told += line.advance(now + 2_000 * MS)
    assert [one.time_ns for one in told] == sorted(one.time_ns for one in told)
    net = sum(1 if one.covered else -1 for one in told if one.where == "encoder")
    assert net == int(line.position_mm(now + 2_000 * MS) // 2.0)


def test_both_channels_count_what_the_one_does() -> None:
    from appliance.reject.belt import Quadrature

    one, both = Line(SHAPE, 3), Line(dataclasses.replace(SHAPE, quarters=True), 3)
    counts = []
    for line in (one, both):
        line.set_output("line_stop", True, 0)
        told = line.advance(400_000 * MS)
        if line is one:
            counts.append(sum(1 if edge.covered else -1 for edge in told if edge.where == "encoder"))
            continue
        decoder = Quadrature(True)
        decoder.edge("a", False), decoder.edge("b", False)
        steps = [decoder.edge(edge.where[-1], edge.covered) for edge in told if edge.where.startswith("encoder_")]
        counts.append(sum(steps))
        assert -1 in steps and decoder.lost == 0, "the belt ran back meanwhile"
    assert abs(counts[0] - counts[1]) <= 1
