"""rejectd on a belt that is counted, with a second gate, a proof, an eye at the gate and contacts; virtual time."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from appliance.messages import Edge
from appliance.reject.alarms import ALWAYS_LATCHED
from appliance.reject.plan import AlarmPlan, EncoderPlan, GatePlan

sys.path.insert(0, str(Path(__file__).parent))
from line_of_parts import MS, PLAN, Line  # noqa: E402

COUNTED = dataclasses.replace(PLAN, speed_mm_s=800, encoder=EncoderPlan(2.0, True))
CONTACT = dataclasses.replace(COUNTED, running_contact=True)
DIVERT = dataclasses.replace(PLAN, divert=GatePlan("hold", "accept", 700, 60, 12), on_review="divert")
PROVED = dataclasses.replace(PLAN, confirm_within_ms=150.0)
EYED = dataclasses.replace(COUNTED, gate_eye=True)


def running(plan, answer=lambda part: ("pass", 20.0), **kwargs) -> Line:
    line = Line(plan=plan, answer=answer, **kwargs)
    line.run_in()
    return line


# --- law 2 on a counted belt ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("speeds", [[500.0], [250.0, 700.0], [700.0, 300.0, 500.0], [500.0, 0.0, 500.0], [40.0, 500.0]])
def test_the_gate_moves_where_the_part_is_however_the_belt_ran(speeds: list[float]) -> None:
    line = running(COUNTED, lambda part: ("fail", 20.0) if part == 2 else ("pass", 20.0))
    line.part(100)
    line.part(100)
    trigger_mm = line.place_mm - 28
    line.part(100)
    for speed in speeds:
        line.run_at(speed)
        line.until(line.now + 150 * MS)
    line.run_at(500)
    while len(line.records) < 3:
        line.until(line.now + 10 * MS)
    opened_ns = [at for at, rejecting in line.gate_rejecting() if rejecting][-1]
    assert [one.disposition for one in line.records] == ["accept", "reject", "accept"]
    # Where the belt stood as the output moved: response_ms before the gate, at the speed of that moment, to a pulse.
    line.until(line.now + 1000 * MS)
    off_mm = line.rejector._belt.position_mm(line.now) - line.place_mm
    stood_mm = line.rejector._belt.position_mm(opened_ns) - off_mm
    assert trigger_mm + 420 - 12e-3 * 700 - 4 < stood_mm < trigger_mm + 422


def test_a_belt_that_stands_holds_the_deadline_open() -> None:
    line = Line(plan=COUNTED, answer=lambda part: ("pass", 3000.0))
    line.run_in()
    line.part(100)
    line.run_at(0)
    line.until(line.now + 5000 * MS)
    line.run_at(500)
    line.finish()
    assert [(one.verdict, one.disposition) for one in line.records] == [("pass", "accept")]


def test_a_belt_that_quickens_commits_what_is_past_its_deadline_at_once() -> None:
    line = Line(plan=COUNTED, answer=lambda part: ("pass", 900.0), speed=200.0)
    line.until(line.now + 4000 * MS)
    line.part(100)
    line.until(line.now + 200 * MS)
    line.run_at(790)
    line.finish()
    assert [(one.verdict, one.disposition) for one in line.records] == [("late", "reject")]


def test_a_belt_that_runs_back_makes_no_part_twice() -> None:
    line = running(COUNTED)
    line.part(100)
    line.until(line.now + 40 * MS)
    line.run_at(-200)
    line.until(line.now + 150 * MS)  # 30 mm back: the part's end, then its front come to the eye again
    line._edge(True, line.now)
    line.until(line.now + 60 * MS)
    line._edge(False, line.now)
    line.run_at(200)
    line.until(line.now + 60 * MS)
    line._edge(True, line.now)
    line.until(line.now + 140 * MS)
    line._edge(False, line.now)
    line.run_at(500)
    line.finish()
    assert len(line.records) == 1 and line.rejector.counts["behind"] == 2


# --- law 6 on a counted belt -----------------------------------------------------------------------------------------


def test_a_drive_that_runs_without_pulses_is_a_lost_encoder_until_a_person_clears() -> None:
    line = running(CONTACT)
    line.input("running", True)
    line.until(line.now + 1000 * MS)
    assert line.rejector.state == "running"
    line.run_at(0)
    line.until(line.now + 350 * MS)
    assert line.rejector.state == "held" and line.levels("line_stop")[-1][1] is False
    assert line.gate_rejecting()[-1][1], "law 6: the gate rejects"
    line.until(line.now + 5000 * MS)
    assert line.command("clear") and line.rejector.state == "purging"
    line.run_at(500)
    line.until(line.now + 1100 * MS)
    assert line.rejector.state == "purging", "600 mm are not over"
    line.until(line.now + 200 * MS)
    assert line.rejector.state == "running"


def test_a_drive_that_stands_is_no_lost_encoder() -> None:
    line = running(CONTACT)
    line.input("running", True)
    line.input("running", False)
    line.run_at(0)
    line.until(line.now + 5000 * MS)
    assert line.rejector.state == "running"


def test_two_triggers_without_a_pulse_between_are_a_lost_encoder() -> None:
    line = running(COUNTED)
    line.part(100)
    line.run_at(0)
    line.until(line.now + 50 * MS)
    for level in (True, False, True, False):
        line.until(line.now + 60 * MS)
        line._edge(level, line.now)
    line.until(line.now + 100 * MS)
    assert line.rejector.alarms.raised("encoder_lost") and line.rejector.state == "held"


def test_a_standing_belt_does_not_purge() -> None:
    line = Line(plan=COUNTED, speed=0.0)
    line.until(line.now + 60_000 * MS)
    assert line.rejector.state == "purging"
    line.run_at(500)
    line.until(line.now + 1300 * MS)
    assert line.rejector.state == "running"


def test_edges_of_the_encoder_that_were_not_read_lose_the_belt() -> None:
    line = running(COUNTED)
    for number, level in ((0, False), (1, True), (7, False)):
        line.rejector.on_input("encoder", Edge("encoder", level, line.now, number), line.now)
    assert line.rejector.alarms.raised("encoder_lost")
    line.until(line.now + 100 * MS)
    assert line.rejector.counts["encoder_edges_lost"] == 5


def test_a_constant_belt_whose_contact_falls_is_unknown() -> None:
    line = running(dataclasses.replace(PLAN, running_contact=True))
    line.input("running", True)
    line.part(100)
    line.input("running", False)
    assert line.rejector.state == "purging"
    line.until(line.now + 60_000 * MS)
    assert line.rejector.state == "purging" and line.records == []
    line.input("running", True)
    line.finish()
    assert line.rejector.state == "running"
    assert [(one.disposition, one.disposed_by) for one in line.records] == [("reject", "purge")]


def test_inputs_of_the_belt_that_come_late_at_the_start_need_no_person() -> None:
    line = Line(plan=COUNTED)
    line.rejector.on_input_lost("encoder", "not there", line.now)
    line.until(line.now + 3000 * MS)
    assert line.rejector.state == "held" and not line.rejector.alarms.stops_line
    line.rejector.on_input_back("encoder", line.now)
    line.until(line.now + 1300 * MS)
    assert line.rejector.state == "running"
    line.rejector.on_input_lost("encoder", "gone", line.now)
    assert line.rejector.alarms.stops_line == ("encoder_lost",)


# --- the second gate ----------------------------------------------------------------------------------------------------


def test_what_is_borderline_goes_at_the_second_gate_and_nothing_else() -> None:
    names = {1: "review", 3: "fail", 5: "review"}
    line = running(DIVERT, lambda part: (names.get(part, "pass"), 20.0))
    times = [line.part(100) for _ in range(6)]
    line.finish()
    assert [one.disposition for one in line.records] == ["divert", "accept", "reject", "accept", "divert", "accept"]
    assert [one.disposed_by for one in line.records] == ["on_review", "verdict", "verdict", "verdict", "on_review", "verdict"]
    rejects = [at for at, level in line.levels("divert") if not level]
    assert times[0] + 1388 * MS in rejects and times[4] + 1388 * MS in rejects


def test_unknown_parts_are_held_at_both_gates_each_for_its_own_way() -> None:
    line = Line(plan=dataclasses.replace(DIVERT, purge_mm=100.0))
    line.until(line.now + 3000 * MS)
    opened = {name: line.levels(name)[1][0] - 1_000 * MS for name in ("gate", "divert")}
    for name, way_mm in (("gate", 448), ("divert", 728)):
        assert way_mm / 500 * 1e9 <= opened[name] <= way_mm / 500 * 1e9 + 100 * MS, "looked at ten times a second"


def test_a_second_gate_that_cannot_be_held_needs_a_person_after_start() -> None:
    line = Line(plan=dataclasses.replace(DIVERT, divert=GatePlan("pulse", "reject", 700, 60, 12), line_stop_output=True))
    line.until(line.now + 3000 * MS)
    assert line.rejector.state == "fault"
    line.command("clear")
    line.finish()
    assert line.rejector.state == "running"


# --- pulses ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap_ms", [59, 60, 68, 69, 70, 71])
def test_windows_that_overlap_or_touch_are_one_and_never_chatter(gap_ms: int) -> None:
    line = running(dataclasses.replace(PLAN, min_pitch_mm=5), lambda part: ("fail", 20.0))
    for _ in range(3):
        line.part(gap_ms - 56)
    line.finish()
    moves = [at for at, _ in line.gate_rejecting()]
    assert len(line.records) == 3 and all(later - sooner >= 2 * MS for sooner, later in zip(moves, moves[1:]))
    assert all(one.disposition == "reject" for one in line.records)


def test_a_second_part_that_touches_the_first_goes_with_it() -> None:
    """It has no number of its own, and nobody judged it: the gate stays until the end of what covered the eye."""
    line = running(PLAN, lambda part: ("pass", 20.0))
    at = line.part(100, length_mm=57)
    line.part(100)
    line.finish()
    opened, closed = [one for one, _ in line.gate_rejecting()][-2:]
    assert opened == at + 828 * MS and closed == pytest.approx(at + (840 + 57 * 2) * MS, abs=MS)
    assert [(one.verdict, one.disposition) for one in line.records] == [("blind", "reject"), ("pass", "accept")]


def test_a_driver_that_wants_to_know_early_is_told_early_and_the_part_is_settled_before() -> None:
    line = running(PLAN, lambda part: ("fail", 780.0))
    line.rejector.on_lead("gate", 100 * MS)
    at = line.part(100)
    line.finish()
    told = [one for one, rejecting in line.gate_rejecting() if rejecting][-1]
    assert told == at + 728 * MS
    assert line.records[0].verdict == "late" and line.records[0].deadline_ms == pytest.approx(728)


# --- proof ------------------------------------------------------------------------------------------------------------------


def prove(line: Line, *edges: tuple[int, bool]) -> None:
    for at, level in edges:
        line.until(at)
        line.input("confirm", level)


@pytest.mark.parametrize(
    ("edges_ms", "confirmed", "alarms"),
    [
        ([(60, True), (80, False)], "yes", []),
        ([], "no", ["unconfirmed"]),
        ([(170, True), (190, False)], "no", ["unconfirmed", "unexpected"]),
        ([(-300, True)], "no", ["unconfirmed", "confirm_stuck", "unexpected"]),
    ],
)
def test_a_reject_is_proved_by_an_edge_in_its_window(edges_ms, confirmed: str, alarms: list[str]) -> None:
    line = running(PROVED, lambda part: ("fail", 20.0))
    prove(line, (line.now, False))
    at = line.part(100)
    prove(line, *[(at + (828 + after) * MS, level) for after, level in edges_ms])
    line.finish()
    assert [one.confirmed for one in line.records] == [confirmed]
    raised = [event.data["code"] for event in line.events if event.kind == "alarm_raised"]
    assert sorted(raised) == sorted(alarms)


def test_what_falls_into_the_bin_unasked_is_told_and_a_purge_explains_its_own() -> None:
    line = Line(plan=PROVED)
    prove(line, (line.now, False), (line.now + 300 * MS, True), (line.now + 320 * MS, False))
    line.finish()
    assert not line.rejector.alarms.raised("unexpected"), "an unknown part of the purge"
    line.part(100)
    prove(line, (line.now + 300 * MS, True), (line.now + 320 * MS, False))
    line.finish()
    assert line.rejector.alarms.raised("unexpected") and line.records[0].confirmed == "unwatched"


def test_a_neighbour_that_was_taken_must_be_seen_too() -> None:
    plan = dataclasses.replace(PROVED, gate=GatePlan("hold", "accept", 420, 120, 12))
    line = running(plan, lambda part: ("fail" if part == 1 else "pass", 20.0))
    prove(line, (line.now, False))
    at = line.part(100)
    line.part(14)
    prove(line, *[(at + (828 + after) * MS, on) for after, on in ((60, True), (70, False), (130, True), (140, False))])
    line.finish()
    assert [(one.disposed_by, one.confirmed) for one in line.records] == [("verdict", "yes"), ("neighbour", "yes")]
    assert not line.rejector.alarms.raised("unexpected")


# --- the eye at the gate ---------------------------------------------------------------------------------------------------


def test_the_eye_at_the_gate_finds_a_part_that_slipped_and_those_behind_it() -> None:
    line = running(EYED, lambda part: ("fail" if part == 3 else "pass", 20.0))
    line.input("gate_eye", False)
    times = [line.part(100) for _ in range(3)]
    for at in times:  # each arrives 4 mm (8 ms) later than the belt says
        line.until(at + 848 * MS)
        line.input("gate_eye", True)
        line.until(line.now + 20 * MS)
        line.input("gate_eye", False)
    line.finish()
    opened = [at for at, rejecting in line.gate_rejecting() if rejecting][-1]
    assert opened - times[2] == pytest.approx((828 + 6) * MS, abs=MS), "three quarters of 8 ms were known by then"
    assert [one.disposition for one in line.records] == ["accept", "accept", "reject"]


def test_an_eye_at_the_gate_that_sees_nothing_any_more_is_told() -> None:
    line = running(EYED)
    line.input("gate_eye", False)
    for _ in range(3):
        line.part(100)
    line.finish()
    assert line.rejector.alarms.raised("gate_eye_lost") and line.rejector.counts["gate_eye_missed"] == 3


# --- contacts -----------------------------------------------------------------------------------------------------------------


def test_a_person_clears_with_the_button_and_it_is_in_the_ledger() -> None:
    alarms = AlarmPlan(consecutive_rejects=1, stops_line=frozenset({"consecutive_rejects"}))
    line = running(dataclasses.replace(PLAN, alarms=alarms), lambda part: ("fail", 20.0))
    line.input("clear", False)
    line.part(100)
    line.finish()
    assert line.rejector.state == "held"
    line.input("clear", True)
    assert line.rejector.state == "purging"
    (event,) = [event for event in line.events if event.kind == "command"]
    assert event.data["verb"] == "clear" and event.data["source"] == "input clear" and event.data["ok"]


def test_air_that_fails_stops_the_line_and_a_clear_without_air_does_not_start_it() -> None:
    line = running(PLAN)
    line.input("air_ok", True)
    line.input("air_ok", False)
    line.until(line.now + 200 * MS)
    assert line.rejector.state == "held" and line.levels("line_stop")[-1][1] is False
    assert not line.command("clear")
    line.until(line.now + 200 * MS)
    assert line.rejector.state == "held"
    line.input("air_ok", True)
    line.until(line.now + 200 * MS)
    assert line.command("clear")
    line.finish()
    assert line.rejector.state == "running"


@pytest.mark.parametrize("code", sorted(ALWAYS_LATCHED - {"air_ok", "bin_full", "gate_home", "books_full", "output_lost"}))
def test_what_is_over_as_it_is_told_can_be_cleared(code: str) -> None:
    line = running(PLAN)
    line.rejector._happened(code, "x", line.now)
    line.until(line.now + 200 * MS)
    assert line.rejector.state in ("held", "fault")
    assert line.command("clear")
    line.finish()
    assert line.rejector.state == "running"


def test_a_reject_that_came_too_late_is_told_and_a_person_can_go_on() -> None:
    line = running(PLAN, lambda part: ("fail", 20.0))
    line.part(100)
    line.now += 3000 * MS  # the process was held up past the part's window
    line.clock.advance_to(line.now)
    line._apply(line.rejector.step(line.now))
    line.until(line.now + 300 * MS)
    assert [(one.disposition, one.disposed_by) for one in line.records] == [("accept", "fault")]
    assert line.rejector.state == "fault"
    assert line.command("clear")
    line.finish()
    assert line.rejector.state == "running"
