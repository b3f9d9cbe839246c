"""The whole product in real time: three processes, the twin, a broker; plain and in trouble."""

from __future__ import annotations

import pytest

PLAIN = ("--parts", "110", "--seed", "11")


def assert_nothing_escaped(run) -> None:
    assert run.exit == 0, run.text[-3000:]
    assert run.figures["escapes"] == 0 and run.figures["books_closed"]
    assert run.figures["mqtt"]["lost"] == 0
    assert run.figures["modbus"]["polls"] > 0
    parts = [record["part"] for record in run.records]
    assert len(set(parts)) == len(parts)
    assert sum(run.figures["ledger"].values()) == len(parts)


def test_a_plain_line_loses_nothing_and_repeats_nothing(rehearse) -> None:
    run = rehearse(*PLAIN)
    assert_nothing_escaped(run)
    assert run.figures["parts"] == 110 == len(run.records)
    assert run.figures["good_lost"] == 0 and run.figures["mqtt"]["duplicates"] == 0
    assert run.figures["modbus"]["errors"] == 0
    assert run.figures["ledger"]["late"] == run.figures["ledger"]["missed"] == 0
    assert all(record["simulated"] for record in run.records)


def test_every_defect_is_taken_off_by_its_own_verdict(rehearse) -> None:
    run = rehearse(*PLAIN)
    failed = [record for record in run.records if record["verdict"] == "fail"]
    assert len(failed) == run.figures["defective"] > 0
    assert all(record["fired"] and record["disposition"] == "reject" for record in failed)
    assert all(abs(record["actuation"]["due_ms"] - 828.0) < 0.01 for record in failed)


@pytest.mark.parametrize("role", ["inspectd", "reportd", "rejectd"])
def test_a_killed_process_costs_no_escape_and_no_record(rehearse, role: str) -> None:
    run = rehearse("--parts", "130", "--seed", "12", "--fault", f"kill-{role}@3s")
    assert_nothing_escaped(run)
    assert run.figures["good_lost_outside_faults"] == 0
    assert run.figures["parts"] == 130
    if role != "rejectd":
        assert len(run.records) == 130
    late = [record for record in run.records if record["verdict"] == "late"]
    assert all(record["disposition"] == "reject" for record in late)
    if role == "inspectd":
        times = [record["monotonic_ns"] for record in run.records]
        unanswered = [r["monotonic_ns"] for r in run.records if r["verdict"] in ("late", "missed")]
        assert unanswered, "a part under way was unanswered"
        assert max(unanswered) - min(unanswered) < 5e9 < max(times) - min(unanswered)
    if role == "rejectd":
        starts = [event["data"] for event in run.events if event["event"] == "start"]
        assert [start["crashed"] for start in starts] == [False, True]
        assert len({record["run"] for record in run.records}) == 1


def test_a_frame_dropped_doubled_or_late_changes_no_other_part(rehearse) -> None:
    plain = rehearse("--parts", "80", "--seed", "13")
    trouble = ("--fault", "drop-frame@2s", "--fault", "double-frame@3.5s", "--fault", "delay-frame@5s")
    run = rehearse("--parts", "80", "--seed", "13", *trouble)
    assert_nothing_escaped(run)
    changed = {part: verdict for part, verdict in run.verdicts.items() if plain.verdicts[part] != verdict}
    assert list(changed.values()) == ["missed"]


def test_a_broker_that_is_away_gets_every_record_in_order_and_none_twice(rehearse) -> None:
    run = rehearse("--parts", "110", "--seed", "14", "--fault", "broker-down@2s+5s")
    assert_nothing_escaped(run)
    assert run.figures["good_lost"] == 0
    mqtt = run.figures["mqtt"]
    assert mqtt["published"] == mqtt["received"] and mqtt["duplicates"] == 0


def test_a_glint_makes_no_part(rehearse) -> None:
    run = rehearse("--parts", "40", "--seed", "15", "--fault", "double-trigger@1s", "--fault", "freeze-camera@2.5s+0.3s")
    assert_nothing_escaped(run)
    assert run.figures["parts"] == len(run.records) == 40
    frozen = [record for record in run.records if record["verdict"] == "blind"]
    assert frozen and {record["cause"] for record in frozen} == {"frozen"}


def test_an_encoder_an_eye_at_the_gate_and_a_proof_in_real_time(rehearse) -> None:
    run = rehearse("--parts", "70", "--seed", "17", "--line", "slip")
    assert_nothing_escaped(run)
    assert run.figures["parts"] == 70 == len(run.records) and run.figures["untracked"] == 0
    confirmed = {record["part"]: record["confirmed"] for record in run.records}
    assert {confirmed[part] for part, verdict in run.verdicts.items() if verdict == "fail"} == {"yes"}
    assert {confirmed[part] for part, verdict in run.verdicts.items() if verdict == "pass"} == {"unwatched"}


def test_a_kill_of_rejectd_on_a_counted_belt_with_a_second_gate(rehearse) -> None:
    run = rehearse("--parts", "90", "--seed", "18", "--line", "divert", "--fault", "kill-rejectd@3s")
    assert_nothing_escaped(run)
    assert run.figures["good_lost_outside_faults"] == 0
