"""Truth against books: each kind of outcome, one by one."""

from __future__ import annotations

import pytest

from appliance.twin.score import Truth, books_closed, percentiles, score

HALF_PITCH_NS = 50_000_000
SECOND = 1_000_000_000


def record(part: int, verdict: str, disposition: str, disposed_by: str = "verdict", at_ns: int | None = None) -> dict:
    return {
        "part": part, "run": "r", "monotonic_ns": part * SECOND if at_ns is None else at_ns, "verdict": verdict,
        "disposition": disposition, "disposed_by": disposed_by, "score": 0.1,
    }  # fmt: skip


def truth(part: int, kind: str | None, bin_: str, step: float = 1.0) -> Truth:
    return Truth(part * SECOND + 1000, kind, 0.05, step, bin_, part * SECOND + SECOND // 2)


@pytest.mark.parametrize(
    ("one", "booked", "counted"),
    [
        (truth(1, "spot", "reject"), record(1, "fail", "reject"), {}),
        (truth(1, "spot", "good"), record(1, "fail", "reject"), {"escapes_gate": 1}),
        (truth(1, "spot", "good"), record(1, "pass", "accept"), {"escapes_judge": 1}),
        (truth(1, "spot", "good", 0.5), record(1, "pass", "accept"), {"escapes_faint": 1}),
        (truth(1, "spot", "good"), record(1, "late", "accept", "on_late"), {"escapes_gate": 1}),
        (truth(1, "spot", "good"), None, {"escapes_gate": 1, "untracked": 1}),
        (truth(1, None, "good"), record(1, "pass", "accept"), {}),
        (truth(1, None, "reject"), record(1, "fail", "reject"), {"false_rejects": 1}),
        (truth(1, None, "reject"), record(1, "pass", "reject", "neighbour"), {"good_lost": 1, "good_lost_outside": 1}),
        (truth(1, None, "reject"), record(1, "fail", "reject", "purge"), {"good_lost": 1, "good_lost_outside": 1}),
        (truth(1, "spot", "reject"), record(1, "pass", "reject", "purge"), {}),
    ],
)
def test_each_outcome_is_counted_where_it_belongs(one, booked, counted) -> None:
    result = score([one], [booked] if booked else [], HALF_PITCH_NS, [])
    names = ("escapes_gate", "escapes_judge", "escapes_faint", "false_rejects", "good_lost", "good_lost_outside", "untracked")
    assert {name: getattr(result, name) for name in names if getattr(result, name)} == counted


def test_a_good_part_lost_near_a_fault_is_excused_and_still_counted() -> None:
    result = score([truth(1, None, "reject")], [record(1, "late", "reject", "held")], HALF_PITCH_NS, [(0, 3 * SECOND)])
    assert (result.good_lost, result.good_lost_outside) == (1, 0)


def test_a_part_still_on_the_belt_has_no_outcome() -> None:
    assert score([truth(1, "spot", "belt")], [], HALF_PITCH_NS, []).parts == 0


def test_a_record_half_a_pitch_away_is_not_the_parts() -> None:
    result = score([truth(1, None, "good")], [record(1, "pass", "accept", at_ns=SECOND + 60_000_000)], HALF_PITCH_NS, [])
    assert (result.untracked, result.unexplained) == (1, 1)


def test_books_are_open_when_a_part_has_two_records_or_the_counters_differ() -> None:
    one = [record(1, "pass", "accept"), record(2, "fail", "reject")]
    counters = {"run": "r", "pass": 1, "fail": 1, "review": 0, "blind": 0, "late": 0, "missed": 0, "triggers": 2, "in_flight": 0}
    assert books_closed(one, counters)[0]
    assert not books_closed([*one, record(2, "pass", "accept")], None)[0]
    assert not books_closed(one, {**counters, "pass": 2})[0]
    assert not books_closed(one, {**counters, "triggers": 3})[0]
    assert not books_closed(one, {**counters, "in_flight": 1})[0]


def test_percentiles_of_nothing_are_none_and_of_one_are_that_one() -> None:
    assert percentiles([])["p50"] is None
    assert percentiles([4.0]) == {"p50": 4.0, "p99": 4.0, "p999": 4.0, "max": 4.0}
