"""Any order of anything, with every input and both gates: no exception, no spin, no open gate, no part lost, no dead end."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.messages import Edge, InspectState
from appliance.reject.books import Books
from appliance.reject.plan import AlarmPlan, EncoderPlan, GatePlan, Plan

sys.path.insert(0, str(Path(__file__).parent))
from line_of_parts import MS, PLAN, READY, SLOTS, Line, verdict  # noqa: E402

INPUTS = ("trigger", "encoder", "encoder_b", "running", "confirm", "gate_eye", "clear", "air_ok", "bin_full", "gate_home")
HELD = dataclasses.replace(
    PLAN, speed_mm_s=800, encoder=EncoderPlan(2.0, True), running_contact=True, confirm_within_ms=150.0, gate_eye=True,
    divert=GatePlan("hold", "accept", 700, 60, 12), on_review="divert", alarms=AlarmPlan(), line_stop_output=True,
)  # fmt: skip
PUSHED = dataclasses.replace(HELD, gate=GatePlan("pulse", "reject", 420, 40, 12), encoder=None, speed_mm_s=500)
NAMES = ("pass", "pass", "fail", "review", "blind", "missed")
OPERATION = st.one_of(
    st.tuples(st.just("part"), st.integers(0, 150), st.sampled_from([4, 28, 28, 28, 50, 250])),
    st.tuples(st.just("wait"), st.integers(1, 2500), st.just(0)),
    st.tuples(st.just("stall"), st.integers(1, 1200), st.just(0)),
    st.tuples(st.just("speed"), st.sampled_from([0, 50, 500, 790, -100]), st.just(0)),
    st.tuples(st.just("input"), st.sampled_from(INPUTS[3:]), st.booleans()),
    st.tuples(st.just("lost"), st.sampled_from(INPUTS), st.booleans()),
    st.tuples(st.just("command"), st.sampled_from(["clear", "hold", "release", "nonsense"]), st.just(0)),
    st.tuples(st.just("inspect"), st.sampled_from(["ready", "building", "away"]), st.just(0)),
    st.tuples(st.just("late"), st.integers(1, 30), st.sampled_from(NAMES)),
    st.tuples(st.just("lead"), st.sampled_from([0, 5, 150]), st.just(0)),
    st.tuples(st.just("output"), st.booleans(), st.just(0)),
    st.tuples(st.just("kill"), st.integers(1, 400), st.just(0)),
)


class Turmoil(Line):
    """A line whose steps are watched."""

    def until(self, now: int) -> None:
        at, steps = self.now, 0
        while (due := min([self.rejector.next_due_ns(self.now), self._next_pulse_ns(), *(at for at, _ in self._answers)])) <= now:
            steps = steps + 1 if max(due, self.now) == at else 0
            assert steps <= 6, "it spins"
            at = max(due, self.now)
            super().until(at)
            self.watch()
        super().until(now)
        self.watch()

    def watch(self) -> None:
        rejector = self.rejector
        for name, gate in rejector._gates.items():
            if rejector.state != "running" and self.plan.gates[name].kind == "hold":
                assert gate.rejecting, f"{name} is open in state {rejector.state}"

    def do(self, what: str, first, second) -> None:
        rejector, now = self.rejector, self.now
        if what == "part":
            self.part(first, min(second, 60) if self.plan.encoder and abs(self.speed) < 100 else second)
        elif what == "wait":
            self.until(now + first * MS)
        elif what == "stall":  # the process was held up
            self._travel(now + first * MS)
            self.now = now + first * MS
            self.clock.advance_to(self.now)
            self._apply(rejector.step(self.now))
        elif what == "speed":
            self.run_at(float(first))
        elif what == "input":
            self.input(first, second)
        elif what == "lost":
            (rejector.on_input_back if second else lambda role, at: rejector.on_input_lost(role, "x", at))(first, now)
        elif what == "command":
            self.command(first)
        elif what == "inspect":
            state = {"ready": READY, "building": InspectState("building", "", 0.5, "r", 1, "d", {}), "away": None}[first]
            rejector.on_inspect(state, now)
        elif what == "late":
            self.late(verdict(first, second))
        elif what == "lead":
            rejector.on_lead("gate", first * MS)
        elif what == "output":
            rejector.on_outputs_back(now) if first else rejector.on_output_lost("gate", "x", now)
        elif what == "kill":
            self.now = now + first * MS
            self._travel(self.now)
            self.boot()

    def part(self, after_ms: float, length_mm: float = 28) -> int:
        if self.plan.encoder and self.speed <= 0:
            return self.now  # nothing new comes to the eye
        return super().part(after_ms, length_mm)

    def calm(self) -> None:
        """Everything is mended, and a person clears as often as a person would."""
        rejector = self.rejector
        self._edge(False, self.now)
        self.run_at(500.0)
        for role in INPUTS:
            rejector.on_input_back(role, self.now)
        for role in ("running", "air_ok", "bin_full", "gate_home"):
            self.input(role, True)
        for role in ("confirm", "gate_eye", "clear"):
            self.input(role, False)
        rejector.on_outputs_back(self.now)
        rejector.on_lead("gate", 0)
        rejector.on_inspect(READY, self.now)
        self.command("release")
        for _ in range(4):
            self.until(self.now + 4000 * MS)
            self.command("clear")
        self.until(self.now + 4000 * MS)


@pytest.mark.parametrize("plan", [HELD, PUSHED], ids=["held", "pushed"])
@given(operations=st.lists(OPERATION, max_size=25))
def test_it_stands_whatever_comes(plan: Plan, operations: list) -> None:
    line = Turmoil(plan=plan, answer=lambda part: None if part % 7 == 0 else (NAMES[part % 6], 20.0 + part % 5 * 180))
    line.rejector.on_input("encoder", Edge("encoder", False, line.now, 0), line.now)
    for operation in operations:
        line.do(*operation)
    line.calm()
    assert line.rejector.state == "running", line.rejector._judge_state()
    numbers = sorted(record.part for record in line.records)
    unrecorded = [event.data for event in line.events if event.kind == "unrecorded"]
    assert len(set(numbers)) == len(numbers) and not unrecorded
    assert numbers == list(range(1, line.rejector._books.header.next_part))
    assert line.rejector.in_flight == 0 and Books(line.buffer, SLOTS).load()[0] == {}
