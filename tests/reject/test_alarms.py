"""The alarms against a plain oracle that looks through the whole history at every question."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from appliance.messages import Edge, PartClosed
from appliance.reject.alarms import Alarms
from appliance.reject.guard import Guard
from appliance.reject.plan import AlarmPlan, Window

sys.path.insert(0, str(Path(__file__).parent))
from accounts import account  # noqa: E402

MS = 1_000_000
PLAN = AlarmPlan(
    consecutive_rejects=3, reject_rate=(0.4, 10), missed=Window(2, 6), blind=Window(3, 8), late=Window(1, 4),
    unconfirmed=2, unexpected=2, stops_line=frozenset({"unconfirmed", "consecutive_rejects", "blind"}),
)  # fmt: skip
COUNTED_BY = ("verdict", "on_late", "on_review")


class AlarmsAgainstTheHistory(RuleBasedStateMachine):
    """``history``: what happened since the last clear. An alarm that latches stands if it ever stood since then."""

    @initialize()
    def begin(self) -> None:
        self.alarms = Alarms(PLAN)
        self.history: list[PartClosed | str] = []
        self.ever: set[str] = set()
        self.now = 0
        self.number = 0

    @rule(
        verdict=st.sampled_from(["pass", "fail", "fail", "review", "blind", "late", "missed"]),
        by=st.sampled_from(["verdict", "verdict", "on_late", "neighbour", "purge", "held", "fault"]),
        confirmed=st.sampled_from(["unwatched", "yes", "no"]),
        challenge=st.sampled_from([False, False, False, True]),
    )
    def a_part_closes(self, verdict: str, by: str, confirmed: str, challenge: bool) -> None:
        self.number += 1
        part = account(self.number, verdict=verdict, disposed_by=by, confirmed=confirmed, challenge=challenge)
        self.alarms.count_part(part, self.now)
        self.history.append(part)
        self.ever |= self.standing()

    @rule()
    def something_falls_into_the_bin(self) -> None:
        self.alarms.count_unexpected(self.now)
        self.history.append("unexpected")
        self.ever |= self.standing()

    @rule()
    def a_person_clears(self) -> None:
        self.alarms.clear(self.now)
        self.history.clear()
        self.ever.clear()

    def standing(self) -> set[str]:
        """What stands by the contract's words, latches aside."""
        parts = [one for one in self.history if isinstance(one, PartClosed) and not one.challenge]
        counted = [one for one in parts if one.disposed_by in COUNTED_BY]
        found = set()
        tail = 0
        for one in reversed(counted):
            if one.verdict != "fail":
                break
            tail += 1
        if tail >= 3:
            found.add("consecutive_rejects")
        last = counted[-10:]
        if len(last) == 10 and sum(one.verdict == "fail" for one in last) > 4:
            found.add("reject_rate")
        for name, count, of_last in (("missed", 2, 6), ("blind", 3, 8), ("late", 1, 4)):
            if sum(one.verdict == name for one in counted[-of_last:]) >= count:
                found.add(name)
        # What the bin did not see is told of every part: also of a challenge, a purge, a neighbour.
        closed = [one for one in self.history if isinstance(one, PartClosed)]
        proofs = [one.confirmed for one in closed if one.confirmed != "unwatched"]
        since_yes = proofs[len(proofs) - proofs[::-1].index("yes") :] if "yes" in proofs else proofs
        if "unconfirmed" in self.ever or len(since_yes) >= 2:
            found.add("unconfirmed")
        if self.history.count("unexpected") >= 2:
            found.add("unexpected")
        return found

    @invariant()
    def the_same_alarms_stand(self) -> None:
        latched = {code for code in self.ever if code in PLAN.stops_line}
        codes = ("consecutive_rejects", "reject_rate", "missed", "blind", "late", "unconfirmed", "unexpected")
        assert {code for code in codes if self.alarms.raised(code)} == self.standing() | latched
        assert set(self.alarms.stops_line) == latched

    @invariant()
    def each_change_is_told_once(self) -> None:
        stood: set[str] = set()
        for code, raised, *_ in self.alarms.changes:
            assert (code in stood) != raised
            (stood.add if raised else stood.discard)(code)
        assert stood == {code for code in stood if self.alarms.raised(code)}


TestAlarmsAgainstTheHistory = AlarmsAgainstTheHistory.TestCase


def guarded() -> tuple[Alarms, Guard]:
    alarms = Alarms(PLAN)
    guard = Guard(alarms)
    for name in ("air_ok", "bin_full", "gate_home"):
        guard.on_edge(name, Edge(name, True, 0, 0))
    return alarms, guard


def test_a_supervised_input_that_falls_stops_the_line_and_comes_back_while_its_cause_stands() -> None:
    alarms, guard = guarded()
    guard.on_edge("air_ok", Edge("air_ok", False, 1000 * MS, 1))
    guard.step(1010 * MS, None)
    assert not alarms.raised("air_ok"), "a contact bounces"
    guard.step(1100 * MS, None)
    assert alarms.stops_line == ("air_ok",)
    alarms.clear(1200 * MS)
    guard.step(1300 * MS, None)
    assert alarms.stops_line == ("air_ok",), "cleared while it stands: latched again at once"
    guard.on_edge("air_ok", Edge("air_ok", True, 2000 * MS, 2))
    guard.step(2100 * MS, None)
    assert alarms.stops_line == ("air_ok",), "a person clears, not the air"
    alarms.clear(2200 * MS)
    guard.step(2300 * MS, None)
    assert alarms.stops_line == ()


def test_a_gate_is_expected_at_home_only_when_it_was_sent_there() -> None:
    alarms, guard = guarded()
    guard.on_edge("gate_home", Edge("gate_home", False, 1000 * MS, 1))
    guard.step(5000 * MS, None)
    assert not alarms.raised("gate_home"), "it is rejecting"
    guard.step(5100 * MS, 5000 * MS)
    assert not alarms.raised("gate_home"), "it is on its way"
    guard.step(5400 * MS, 5000 * MS)
    assert alarms.raised("gate_home")


def test_an_input_that_is_lost_is_as_bad_as_one_that_fell() -> None:
    alarms, guard = guarded()
    for again in range(5):
        guard.lost("bin_full", (1000 + 100 * again) * MS)
        guard.step((1000 + 100 * again) * MS, None)
    assert alarms.raised("bin_full")
