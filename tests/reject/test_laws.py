"""The laws of the belt and the gate, each by a line of parts on a virtual clock."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.messages import InspectState, PartClosed
from appliance.reject.books import PART, Books
from appliance.reject.plan import AlarmPlan, GatePlan

sys.path.insert(0, str(Path(__file__).parent))
from line_of_parts import CALM, MS, PLAN, SLOTS, Line, verdict  # noqa: E402


def one_part(answer, plan=PLAN):
    line = Line(plan=plan, answer=lambda part: answer)
    line.run_in()
    at = line.part(100)
    line.finish()
    (record,) = line.records
    return line, at, record


# --- law 2: the trigger sets the time -----------------------------------------------------------------------


@pytest.mark.parametrize("answered_ms", [5.0, 300.0, 800.0])
def test_the_gate_moves_at_the_triggers_time_whenever_the_verdict_came(answered_ms: float) -> None:
    line, at, record = one_part(("fail", answered_ms))
    due = at + 828 * MS
    assert (due, True) in line.gate_rejecting()
    assert record.due_ms == pytest.approx(828) and record.error_us == 0 and record.fired


def test_the_gate_takes_the_part_that_failed_and_neither_neighbour() -> None:
    line = Line(answer=lambda part: ("fail" if part == 2 else "pass", 30.0))
    line.run_in()
    times = [line.part(100) for _ in range(3)]
    line.finish()
    assert [record.disposition for record in line.records] == ["accept", "reject", "accept"]
    opened, closed = (at for at, _ in line.gate_rejecting()[-2:])
    assert opened == times[1] + 828 * MS
    arrive, leave = times[1] + 840 * MS, times[1] + 896 * MS
    assert opened < arrive and leave <= closed < times[2] + 840 * MS


# --- law 3: no verdict, no pass -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "judged", "disposition", "by"),
    [
        (("pass", 20.0), "pass", "accept", "verdict"),
        (("fail", 20.0), "fail", "reject", "verdict"),
        (("review", 20.0), "review", "reject", "on_review"),
        (("blind", 20.0), "blind", "reject", "on_late"),
        (("missed", 20.0), "missed", "reject", "on_late"),
        (None, "late", "reject", "on_late"),
        (("pass", 809.0), "late", "reject", "on_late"),
    ],
)
def test_what_is_done_with_each_verdict(answer, judged: str, disposition: str, by: str) -> None:
    _, _, record = one_part(answer)
    assert (record.verdict, record.disposition, record.disposed_by) == (judged, disposition, by)


def test_accept_must_be_written_and_never_holds_for_a_fail() -> None:
    plan = dataclasses.replace(PLAN, on_late="accept", on_review="accept")
    assert one_part(None, plan)[2].disposition == "accept"
    assert one_part(("review", 20.0), plan)[2].disposition == "accept"
    assert one_part(("fail", 20.0), plan)[2].disposition == "reject"


def test_a_verdict_after_the_deadline_changes_nothing_and_is_counted() -> None:
    line = Line(answer=lambda part: None)
    line.run_in()
    line.part(100)
    line.until(line.now + 780 * MS)
    line.late(verdict(1, "pass"))
    line.finish()
    (record,) = line.records
    assert (record.verdict, record.disposition) == ("late", "reject")
    assert line.rejector.counts["late_verdict"] == 1


def test_a_late_verdict_never_fires_on_the_next_part() -> None:
    line = Line(answer=lambda part: ("fail", 815.0) if part == 1 else ("pass", 20.0))
    line.run_in()
    line.part(100)
    line.part(100)
    line.finish()
    assert [(one.verdict, one.disposition) for one in line.records] == [("late", "reject"), ("pass", "accept")]


def test_without_inspectd_every_part_is_rejected_and_afterwards_none() -> None:
    line = Line()
    line.run_in()
    line.rejector.on_inspect(None, line.now)
    line.part(50)
    line.part(100)
    assert line.rejector.state == "held"
    line.finish()
    line.rejector.on_inspect(InspectState("ready", "", 1.0, "r", 1, "d", {}), line.now)
    line.until(line.now + 10 * MS)
    line.part(100)
    line.finish()
    assert [one.disposition for one in line.records] == ["reject", "reject", "accept"]
    assert [one.verdict for one in line.records] == ["late", "late", "pass"]


# --- law 6: unknown is rejected ---------------------------------------------------------------------------------


def test_after_start_the_gate_rejects_until_the_belt_has_moved() -> None:
    line = Line()
    line.part(0)
    line.finish()
    assert line.rejector.state == "running"
    opened = next(at for at, rejecting in line.gate_rejecting() if not rejecting)
    assert opened >= 1_000 * MS + 600 / 500 * 1_000 * MS
    assert (line.records[0].disposition, line.records[0].disposed_by) == ("reject", "purge")


def test_an_eye_that_stays_covered_holds_the_gate_and_purges_afterwards() -> None:
    line = Line()
    line.run_in()
    line.part(100, length_mm=400)
    assert line.rejector.alarms.raised("trigger_lost") and line.rejector.state == "held"
    line.until(line.now + 200 * MS)
    assert line.rejector.state == "purging"
    line.finish()
    assert line.rejector.state == "running" and not line.rejector.alarms.raised("trigger_lost")


def test_a_line_stop_is_latched_until_a_person_clears_and_the_belt_has_moved_again() -> None:
    alarms = AlarmPlan(consecutive_rejects=2, stops_line=frozenset({"consecutive_rejects"}))
    line = Line(plan=dataclasses.replace(PLAN, alarms=alarms), answer=lambda part: ("fail", 20.0))
    line.run_in()
    for _ in range(3):
        line.part(100)
    line.finish()
    assert line.rejector.state == "held" and line.status is not None and line.status.line_stop
    assert ("line_stop", False) == [(name, level) for _, name, level in line.moves if name == "line_stop"][-1]
    assert line.command("clear")
    assert line.rejector.state == "purging"
    line.finish()
    assert line.rejector.state == "running"


def test_a_gate_that_cannot_be_held_stops_the_line_until_a_person_clears() -> None:
    gate = GatePlan("pulse", "reject", 420, 40, 12)
    line = Line(plan=dataclasses.replace(PLAN, gate=gate, line_stop_output=True))
    line.until(line.now + 3_000 * MS)
    assert line.rejector.state == "fault" and line.status is not None and line.status.line_stop
    line.command("clear")
    line.finish()
    assert line.rejector.state == "running"


# --- edges that are no parts ---------------------------------------------------------------------------------------


def test_an_edge_too_close_makes_no_part_and_touching_parts_are_blind() -> None:
    line = Line()
    line.run_in()
    line.part(100, length_mm=4)
    line.part(0.1, length_mm=4)
    line.part(100, length_mm=50)
    line.finish()
    assert len(line.records) == 2 and line.rejector.counts["double"] >= 1
    assert (line.records[1].verdict, line.records[1].cause) == ("blind", "double")


def test_two_parts_closer_than_the_debounce_are_seen_as_touching() -> None:
    line = Line()
    line.run_in()
    line.part(100, length_mm=28)
    line.part(1, length_mm=28)
    line.finish()
    assert [(one.verdict, one.cause) for one in line.records] == [("blind", "double")]
    assert line.rejector.counts["bounce"] == 1


# --- law 1: the books close ------------------------------------------------------------------------------------------

ANSWERS = st.sampled_from(
    [("pass", 20.0), ("fail", 40.0), ("review", 10.0), ("blind", 5.0), ("missed", 200.0), None, ("fail", 850.0)]
)


@given(answers=st.lists(ANSWERS, min_size=1, max_size=14), gaps=st.lists(st.integers(0, 120), min_size=14, max_size=14))
def test_every_trigger_has_one_record_and_no_part_is_hit_that_the_windows_spare(answers, gaps) -> None:
    line = Line(answer=lambda part: answers[(part - 1) % len(answers)])
    line.run_in()
    times = [line.part(gap) for _, gap in zip(answers, gaps)]
    line.finish()
    made = {trigger.part: trigger.time_ns for trigger in line.triggers}
    assert [record.part for record in line.records] == sorted(made)
    assert line.rejector.in_flight == 0
    assert set(made.values()) <= set(times)
    own = {part: answers[(part - 1) % len(answers)] for part in made}
    wanted = {part for part, given_ in own.items() if given_ is None or given_[0] != "pass" or given_[1] > 808}
    # The oracle: parts as intervals at the gate, windows as intervals, nothing else.
    windows = [(made[part] + 840 * MS, made[part] + 896 * MS) for part in wanted]
    for record in line.records:
        arrive, leave = made[record.part] + 840 * MS, made[record.part] + 896 * MS
        hit = any(arrive < end and leave > begin for begin, end in windows)
        assert (record.disposition == "reject") == hit
        if record.part not in wanted and hit:
            assert record.disposed_by == "neighbour"


@given(answers=st.lists(ANSWERS, min_size=3, max_size=8), kill_ms=st.integers(1, 1500))
def test_a_kill_at_any_instant_loses_no_part_and_uses_no_number_twice(answers, kill_ms: int) -> None:
    line = Line(answer=lambda part: answers[(part - 1) % len(answers)], acknowledge=False)
    line.run_in()
    begun = line.now
    for _ in answers:
        line.part(60)
    line.until(max(line.now, begun + kill_ms * MS))
    made = {trigger.part for trigger in line.triggers}
    told_before = {record.part: record for record in line.records}
    run = line.status.run if line.status else ""
    line.now += 50 * MS
    line.boot()  # a new process on the same memory; the old one said nothing more
    line.run_in()
    line.part(60)
    line.finish()
    numbers = [record.part for record in line.records]
    assert sorted(numbers) == sorted({*made, max(made) + 1}) and len(set(numbers)) == len(numbers)
    assert all(record.run == run for record in line.records)
    # reportd acknowledged nothing: all of it must still be there to be told.
    waiting = [one.part for one in line.rejector.journal.values() if isinstance(one, PartClosed)]
    assert sorted(waiting) == sorted(numbers)
    for record in line.records:
        if record.part in made and record.part not in told_before:
            assert (record.disposition, record.disposed_by) == ("reject", "purge")
    start = [event for event in line.events if event.kind == "start"][-1]
    assert start.data["crashed"] and start.data["blind_ms"] >= 0


def test_a_kill_between_record_and_release_of_the_slot_books_the_part_once() -> None:
    line = Line(acknowledge=False)
    line.run_in()
    line.part(100)
    books = Books(line.buffer, SLOTS)
    kept = books.load()[0][1]
    line.finish()
    books = Books(line.buffer, SLOTS)
    books.load()
    books.put(PART, 1, kept)  # as if the slot had not been released yet
    line.boot()
    waiting = [one.part for one in line.rejector.journal.values() if isinstance(one, PartClosed)]
    assert waiting == [1] and line.rejector.in_flight == 1


def test_a_clean_stop_closes_every_part_and_begins_a_new_run() -> None:
    line = Line(acknowledge=False)
    line.run_in()
    line.part(100)
    effects = line.rejector.stop(line.now)
    assert any(getattr(one, "part", 0) == 1 for one in effects.journalled)
    assert [move.energised for move in effects.moves if move.output == "line_stop"] == [False]
    first = line.status.run if line.status else ""
    line.boot()
    line.until(line.now + 500 * MS)
    assert line.status is not None and line.status.run != first


def test_unacknowledged_records_stay_and_are_told_again_in_order() -> None:
    line = Line(acknowledge=False)
    line.run_in()
    for _ in range(5):
        line.part(60)
    line.finish()
    numbers = list(line.rejector.journal)
    assert numbers == sorted(numbers) and line.rejector.in_flight == 5
    line.rejector.on_ack(numbers[-1])
    assert line.rejector.in_flight == 0 and not line.rejector.journal


def test_full_books_hold_the_gate_and_tell_what_was_not_recorded() -> None:
    line = Line(acknowledge=False, plan=dataclasses.replace(PLAN, alarms=CALM))
    line.run_in()
    for _ in range(420):
        line.part(3)
    assert line.rejector.alarms.raised("books_full") and line.rejector.state == "fault"
    line.acknowledge = True
    line.rejector.on_ack(max(line.rejector.journal))
    line.finish()
    unrecorded = [event for event in line.events if event.kind == "unrecorded"]
    assert len(unrecorded) == 1 and unrecorded[0].data["count"] > 0
    recorded = {record.part for record in line.records}
    gone = range(unrecorded[0].data["first"], unrecorded[0].data["last"] + 1)
    assert recorded.isdisjoint(gone)
