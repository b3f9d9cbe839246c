"""What a hostile reader found: each as it was shown, so that it stays mended."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from appliance.messages import Command, FrameSeen, InspectState, Verdict
from appliance.reject.plan import AlarmPlan, EncoderPlan, GatePlan

sys.path.insert(0, str(Path(__file__).parent))
from line_of_parts import CALM, MS, PLAN, READY, Line, verdict  # noqa: E402

PULSE = dataclasses.replace(PLAN, gate=GatePlan("pulse", "reject", 420, 40, 12), line_stop_output=True)
COUNTED = dataclasses.replace(PLAN, speed_mm_s=800, encoder=EncoderPlan(2.0, True))
FRAMED = dataclasses.replace(PLAN, trigger="frame", frame_period_ms=20.0)


def running(plan=PLAN, **kwargs) -> Line:
    line = Line(plan=plan, **kwargs)
    line.run_in()
    return line


# --- nothing that comes in brings it down ------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["clear", "confirm", "gate_eye", "air_ok", "running", "encoder_b", "trigger"])
def test_any_input_may_be_lost_and_come_back(role: str) -> None:
    line = running()
    line.rejector.on_input_lost(role, "unplugged", line.now)
    line.until(line.now + 500 * MS)
    line.rejector.on_input_back(role, line.now)
    line.until(line.now + 500 * MS)
    assert not line.rejector.alarms.raised("input_lost")


def test_two_inputs_lost_and_one_back_is_still_a_loss() -> None:
    line = running()
    for role in ("clear", "confirm"):
        line.rejector.on_input_lost(role, "unplugged", line.now)
    line.rejector.on_input_back("clear", line.now)
    assert line.rejector.alarms.raised("input_lost")


@pytest.mark.parametrize("role", ["trigger", "encoder", "confirm"])
def test_an_input_that_is_gone_is_named_in_the_status_until_it_is_back(role: str) -> None:
    line = running()
    line.rejector.on_input_lost(role, "unplugged", line.now)
    line.until(line.now + 500 * MS)
    assert line.status and line.status.inputs_lost == {role: "unplugged"}
    line.rejector.on_input_back(role, line.now)
    line.until(line.now + 500 * MS)
    assert line.status and line.status.inputs_lost == {}


def test_full_books_take_verdicts_close_parts_and_restart() -> None:
    line = running(COUNTED, answer=lambda part: None, acknowledge=False)
    for _ in range(3):
        line.part(60)
    line.run_at(0)
    for _ in range(500):
        line.command("release")
        line.until(line.now + 60 * MS)
    line.late(verdict(1, "fail"))
    line.run_at(500)
    line.until(line.now + 3000 * MS)
    assert [one.part for one in line.records] == [1, 2, 3]
    line.boot()
    assert line.rejector.in_flight >= 3


@pytest.mark.parametrize("longest", [500, 100_000])
def test_words_of_any_length_find_room(longest: int) -> None:
    line = running()
    line.part(100)
    line.rejector.on_command(Command("i" * longest, "clear", {}, "mqtt"), line.now)
    line.rejector.on_output_lost("ready", "w" * longest, line.now)
    line.late(Verdict(1, "fail", "ü" * longest, 0.9, 0.5, 1, 5.0, 0.2, 2.0, 0.1))
    line.finish()
    assert line.records[0].verdict == "fail" and len(line.records[0].cause or "") <= 80


def test_a_verdict_that_nobody_may_give_is_counted() -> None:
    line = running(answer=lambda part: None)
    line.part(100, length_mm=50)
    line.late(verdict(1, "late"))
    line.finish()
    assert line.records[0].verdict == "late" and line.rejector.counts["late_verdict"] == 1


def test_a_counted_belt_that_stops_just_before_a_place_is_not_asked_without_a_pause() -> None:
    line = running(COUNTED, answer=lambda part: ("fail", 20.0))
    line.part(100)
    line.until(line.now + 700 * MS)
    line.run_at(0)
    steps, end = 0, line.now + 250 * MS
    while (due := line.rejector.next_due_ns(line.now)) <= end:
        steps += 1
        line.now = max(line.now, due)
        line.clock.advance_to(line.now)
        line._apply(line.rejector.step(line.now))
    assert steps < 3000


# --- nothing passes that nobody judged ---------------------------------------------------------------------------------


def frames(line: Line, count: int) -> None:
    for _ in range(count):
        line.until(line.now + 20 * MS)
        line.rejector.on_frame_seen(FrameSeen("top", 0, line.now), line.now)
        line._apply(line.rejector.step(line.now))


def test_frames_that_were_not_announced_keep_the_gate_in_reject() -> None:
    line = Line(plan=FRAMED)
    line.until(line.now + 10_000 * MS)
    assert line.rejector.state == "held", "no frame was ever seen"
    frames(line, 100)
    assert line.rejector.state == "running"
    line.rejector.on_inspect(InspectState("building", "", 0.5, "r", 1, "d", {}), line.now)
    line.until(line.now + 2000 * MS)
    line.rejector.on_inspect(READY, line.now)
    line.until(line.now + 30 * MS)
    assert line.rejector.state != "running" and line.gate_rejecting()[-1][1]


@pytest.mark.parametrize("lost", ["trigger", "encoder"])
def test_a_gate_that_cannot_be_held_stops_the_line_while_parts_come_unseen(lost: str) -> None:
    plan = dataclasses.replace(PULSE, encoder=COUNTED.encoder, speed_mm_s=800)
    line = Line(plan=plan)
    line.until(line.now + 500 * MS)
    line.command("clear")
    line.until(line.now + 1500 * MS)
    assert line.rejector.state == "running"
    line.rejector.on_input_back(lost, line.now)
    line.rejector.on_input_lost(lost, "unplugged", line.now)
    line.until(line.now + 200 * MS)
    assert line.levels("line_stop")[-1][1] is False
    line.command("clear")
    line.until(line.now + 1000 * MS)
    assert line.levels("line_stop")[-1][1] is False, "cleared while it is still away"
    assert line.status is not None and line.status.line_stop


def test_a_held_gate_purges_after_a_line_stop_also_beside_a_gate_that_cannot_be_held() -> None:
    alarms = AlarmPlan(consecutive_rejects=1, stops_line=frozenset({"consecutive_rejects"}))
    plan = dataclasses.replace(PLAN, divert=GatePlan("pulse", "reject", 700, 60, 12), line_stop_output=True, alarms=alarms)
    line = Line(plan=plan, answer=lambda part: ("fail", 20.0))
    line.until(line.now + 500 * MS)
    line.command("clear")
    line.until(line.now + 3000 * MS)
    line.part(10)
    line.until(line.now + 2500 * MS)
    assert line.rejector.state == "held"
    line.command("clear")
    assert line.rejector.state == "purging" and line.rejector._gates["gate"].held


def test_a_second_part_too_close_goes_with_the_first_unjudged() -> None:
    line = running(dataclasses.replace(PLAN, min_pitch_mm=40, part_mm=20, max_part_mm=35))
    at = line.part(100, length_mm=20)
    line.part(10, length_mm=20)  # its front 25 mm behind the first one's
    line.finish()
    (record,) = line.records
    assert (record.verdict, record.cause, record.disposition) == ("blind", "double", "reject")
    assert line.gate_rejecting()[-1][0] >= at + (840 + 90) * MS


def test_a_trigger_that_was_never_seen_keeps_the_gate_in_reject() -> None:
    """Its input opened, and told no level: a coupler that is trusted at first, and dead."""
    line = Line(eye=False)
    line.rejector.on_input_back("trigger", line.now)
    line.until(line.now + 10_000 * MS)
    assert line.rejector.state == "purging" and line.gate_rejecting()[-1][1]
    line._edge(False, line.now)
    line.until(line.now + 1100 * MS)
    assert line.rejector.state == "purging", "the way to the gate counts from there"
    line.until(line.now + 300 * MS)
    assert line.rejector.state == "running"


def test_rejects_booked_while_a_remote_gate_hung_unnoticed_are_named() -> None:
    line = running(answer=lambda part: ("fail" if part > 1 else "pass", 20.0))
    for _ in range(3):
        line.part(100)
    line.until(line.now + 850 * MS)
    line.rejector.on_output_lost("gate", "not proved for 500 ms", line.now)
    line.until(line.now + 200 * MS)
    (event,) = [event for event in line.events if event.kind == "suspect_parts"]
    assert (event.data["first"], event.data["last"]) == (2, 3)


# --- what is booked is what was done -------------------------------------------------------------------------------------


def test_a_gate_that_came_too_late_is_an_escape_also_when_a_tick_falls_between() -> None:
    line = running(answer=lambda part: ("fail", 20.0))
    at = line.part(100)
    line.until(at + 815 * MS)
    line.now = at + 900 * MS  # held up: the part has left when the pin moves
    line.clock.advance_to(line.now)
    line.rejector.on_inspect(READY, line.now)
    line._apply(line.rejector.step(line.now))
    line.finish()
    assert (line.records[0].disposition, line.records[0].disposed_by) == ("accept", "fault")
    assert line.rejector.alarms.raised("reject_failed")


def test_a_gate_told_early_still_comes_home_for_the_part_between() -> None:
    line = running(dataclasses.replace(PLAN, alarms=CALM), answer=lambda part: ("pass" if part == 2 else "fail", 20.0))
    line.rejector.on_lead("gate", 150 * MS)
    times = [line.part(100 if number == 0 else 44) for number in range(3)]
    line.finish()
    assert times[1] - times[0] == 100 * MS
    home = [at for at, rejecting in line.gate_rejecting() if not rejecting]
    assert any(times[0] + 890 * MS < at < times[1] + 840 * MS + 2 * MS for at in home), "it let the second one pass"
    assert [one.disposition for one in line.records] == ["reject", "accept", "reject"]


def test_a_slow_part_at_the_gate_is_proved_by_its_own_edge() -> None:
    plan = dataclasses.replace(COUNTED, confirm_within_ms=150.0)
    line = Line(plan=plan, answer=lambda part: ("fail", 20.0), speed=100.0)
    line.input("confirm", False)
    line.until(line.now + 7000 * MS)
    at = line.part(100)
    line.until(at + (4200 - 12 + 60) * MS)
    line.input("confirm", True)
    line.input("confirm", False)
    line.finish()
    assert line.records[0].confirmed == "yes" and not line.rejector.alarms.raised("unexpected")


def test_a_clean_stop_tells_what_was_not_recorded_and_what_had_passed() -> None:
    plan = dataclasses.replace(PLAN, divert=GatePlan("hold", "accept", 2000, 60, 12), on_review="divert")
    line = running(plan)
    line.until(line.now + 4000 * MS)
    line.part(100)
    line.until(line.now + 1500 * MS)
    line.rejector._parts.unrecorded = (7, 9)
    effects = line.rejector.stop(line.now)
    events = [one for one in effects.journalled if getattr(one, "kind", "") == "unrecorded"]
    assert events[0].data == {"first": 7, "last": 9, "count": 3}
    (record,) = [one for one in effects.journalled if hasattr(one, "disposition")]
    assert (record.disposition, record.disposed_by) == ("divert", "held")


# --- nothing grows, nothing hangs ------------------------------------------------------------------------------------------


def test_windows_behind_every_part_are_forgotten() -> None:
    line = running(answer=lambda part: ("fail", 20.0))
    for _ in range(40):
        line.part(1500)
    line.finish()
    assert len(line.rejector._gates["gate"]._past) < 4
    line.rejector.on_inspect(None, line.now)
    for _ in range(40):
        line.part(50)
    line.finish()
    assert len(line.rejector._gates["gate"]._past) < 12


def test_a_belt_that_ran_far_back_can_be_cleared() -> None:
    line = running(COUNTED)
    line.run_at(-400)
    line.until(line.now + 2500 * MS)
    assert line.rejector.alarms.raised("encoder_lost")
    line.run_at(500)
    assert line.command("clear")
    line.until(line.now + 1500 * MS)
    assert line.rejector.state == "running"
