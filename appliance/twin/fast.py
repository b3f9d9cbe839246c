"""``rehearse --fast``: the same belt, deadlines, ledger, hashes and outbox under a virtual clock, seeded.

Only the judge's answers are drawn (from a bank of real ones, see bank.py) and their latencies (from a stored
distribution): everything else is the firmware's own code, stepped by an event heap.
"""

from __future__ import annotations

import gc
import heapq
import random
import tempfile
from bisect import bisect_left
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from appliance.clock import VirtualClock, now_ns
from appliance.config import load
from appliance.identity import new_ulid
from appliance.messages import Command, Detail, Edge, InspectState, PartClosed, Trigger, Verdict
from appliance.reject.books import Books
from appliance.reject.rejector import Effects, Rejector
from appliance.twin.bank import Answer, Bank, bank_of
from appliance.twin.derive import derive, faster, pitch_and_speed
from appliance.twin.fast_books import FastBooks
from appliance.twin.line import Line
from appliance.twin.rehearse import Options
from appliance.twin.result import Result, settle
from appliance.twin.scenarios import SCENARIOS, gate_times, shape_of
from appliance.twin.score import Truth, percentiles
from appliance.twin.supply import DEFECTIVE_SHARE
from appliance.wiring.station import belt_of, inputs_of, plan_of

# Trigger to verdict in ms at these shares of parts, as measured on a laptop-class machine with the shipped bundle.
_LATENCY = ((0.0, 14.0), (0.5, 21.0), (0.9, 26.0), (0.99, 45.0), (1.0, 90.0))
_COMMIT_EVERY = 400  # entries a group commit takes along: what 50 ms of real time bring at this speed
_SLOTS = 4000
_NO_FRAME = Answer(None, 0.0, 1.0, "missed", None, None, None, -1)  # a part that the firmware saw and that is not there


class _Shift:
    """One shift in virtual time."""

    def __init__(self, options: Options, station: Any, bank: Bank, pitch_mm: float, speed_mm_s: float, folder: Path) -> None:
        self._options, self._bank = options, bank
        self._scenario = SCENARIOS[options.scenario]
        plan = plan_of(station)
        self._wired = set(inputs_of(station))
        self._clock = VirtualClock(start_ns=1_000_000_000)
        self._random = random.Random(f"fast {options.seed}")
        self._rejector = Rejector(plan, belt_of(station), Books(bytearray(Books.bytes_for(_SLOTS)), _SLOTS), self._clock)
        shape = replace(shape_of(station, self._scenario, pitch_mm, speed_mm_s), settle_ms=50.0)
        self._line = Line(shape, options.seed, self._clock.now_ns())
        self._covered_level = station.trigger.edge == "rising"
        self.ledger_file = folder / "ledger.sqlite"
        self.books = FastBooks(self.ledger_file, station.station)
        self._detail = (station.active, station.recipe.number, bank.identity)
        self._heap: list[tuple[int, int, Any]] = []
        self._order = self._edges = 0
        self.published = 0
        self._sequences: dict[str, int] = {}
        self._answers: dict[int, Answer] = {}
        self._next_photograph: deque[Answer] = deque()
        self._item_of: dict[int, Answer] = {}
        self._framed: dict[int, Answer] = {}  # by the instant at which the eye saw the part
        self._clearing = False
        self.truths: list[Truth] = []
        self.records: list[dict[str, Any]] = []
        self.latencies_ms: list[float] = []
        self.errors_us: list[float] = []
        self.excused: list[tuple[int, int]] = []

    def run(self, progress: TextIO) -> None:
        """Until every part fed has its fate and its record."""
        clock, rejector, line = self._clock, self._rejector, self._line
        start_ns = clock.now_ns()
        rejector.start(start_ns, new_ulid(clock.wall_us(start_ns), self._random.randbytes(10)), f"{self._options.seed:016x}", 1)
        name, number, identity = self._detail
        rejector.on_inspect(InspectState("ready", "", 1.0, name, number, identity["digest"], {}), start_ns)
        rejector.on_edge(Edge("eye", not self._covered_level, start_ns, 0), start_ns)
        for role in self._wired - {"trigger", "encoder", "encoder_b"}:
            rejector.on_input(role, Edge(role, line.level(role), start_ns, 0), start_ns)
        fed = False
        while not (fed and line.done and not rejector.in_flight):
            now, due = self._next_instant()
            clock.advance_to(now)
            self._answer_due(now)
            if not self._advance(now) and now < due:
                continue  # a pulse, or an answer that nothing waits for: what is due is asked anew
            closed = self._do(rejector.step(now), now)
            if closed or line.laid:  # a part's fate is asked for as a later one closes
                self._write_fates(now, progress)
            if rejector.state != "running":
                self._operator(now)
            elif not fed:
                fed = True
                line.feed(self._options.parts, now)
            if fed and line.done:
                rejector.on_ack(self.books.settle())
        self._do(rejector.stop(clock.now_ns()), clock.now_ns())
        rejector.on_ack(self.books.settle())
        told = self.books.close()
        self.counters = {**told["counts"], "in_flight": rejector.in_flight, "run": told["run"]}
        self.published = told["taken"]

    def _write_fates(self, now: int, progress: TextIO) -> None:
        for fate in self._line.fates(now):
            item = self._item_of.pop(fate.part)
            self.truths.append(Truth(fate.edge_ns, item.kind, item.size, item.step, fate.bin, fate.arrive_ns, fate.leave_ns))
            if len(self.truths) % 20_000 == 0:
                progress.write(f"\r  {len(self.truths)} parts")
                progress.flush()

    def _next_instant(self) -> tuple[int, int]:
        """(when something happens next, when rejectd has something to do)."""
        now = self._clock.now_ns()
        due = next_ns = self._rejector.next_due_ns(now)
        if self._heap and self._heap[0][0] < next_ns:
            next_ns = self._heap[0][0]
        line_ns = self._line.next_ns()
        if line_ns is not None and line_ns < next_ns:
            next_ns = line_ns
        return (next_ns if next_ns > now else now), due

    def _advance(self, now: int) -> bool:
        """Let the line move on; False when what came of it can wait until something is due: pulses, ends of parts."""
        told = False
        for happened in self._line.advance(now):
            if happened.where == "encoder":
                self._rejector.on_pulse(happened.time_ns, happened.covered)
            elif happened.where:
                told |= happened.where != "gate_eye"
                if happened.where in self._wired:
                    self._tell(happened, now)
            else:
                told |= happened.covered
                self._at_eye(happened, now)
        return told

    def _tell(self, happened: Any, now: int) -> None:
        self._sequences[happened.where] = self._sequences.get(happened.where, 0) + 1
        edge = Edge(happened.where, happened.covered, happened.time_ns, self._sequences[happened.where])
        self._rejector.on_input(happened.where, edge, now)

    def _answer_due(self, now: int) -> None:
        while self._heap and self._heap[0][0] <= now:
            _, _, what = heapq.heappop(self._heap)
            if isinstance(what, Verdict):
                self._rejector.on_verdict(what, now)
                name, number, identity = self._detail
                detail = Detail(what.part, name, number, identity["digest"], identity, (), 0)
                self.books.on_message(detail, "inspect", now)
            else:
                self._clearing = False
                self._rejector.on_command(what, now)

    def _at_eye(self, happened: Any, now: int) -> None:
        if happened.part >= 0:
            item = self._draw()
            self._item_of[happened.part] = item
            self._framed[happened.time_ns] = item
        self._edges += 1
        self._rejector.on_edge(Edge("eye", happened.covered == self._covered_level, happened.time_ns, self._edges), now)

    def _draw(self) -> Answer:
        bank = self._bank
        if bank.photographs:
            if not self._next_photograph:
                mixed = list(bank.photographs)
                self._random.shuffle(mixed)
                self._next_photograph.extend(mixed)
            return self._next_photograph.popleft()
        if self._random.random() < DEFECTIVE_SHARE:
            return bank.bad[int(self._random.random() * len(bank.bad))]
        if self._scenario.review_share and self._random.random() < self._scenario.review_share:
            good = bank.good[int(self._random.random() * len(bank.good))]
            return replace(good, verdict="review", cause=None)
        return bank.good[int(self._random.random() * len(bank.good))]

    def _do(self, effects: Effects, now: int) -> bool:
        """True when a part or event was journalled."""
        for move in effects.moves:
            if move.output in ("gate", "divert", "line_stop"):
                self._line.set_output(move.output, move.energised, now)
            self._rejector.moved(move, now)
        for message in effects.to_inspect:
            if isinstance(message, Trigger):
                self._judge(message, now)
        for record in effects.journalled:
            self.books.on_message(record, "reject", now)
            self.books.entries += 1
            if isinstance(record, PartClosed):
                self._remember(record)
        if effects.journalled:
            self.books.join(now)
            if self.books.entries >= _COMMIT_EVERY:
                self._rejector.on_ack(self.books.commit())
        return bool(effects.journalled)

    def _judge(self, trigger: Trigger, now: int) -> None:
        answer = self._framed.pop(trigger.time_ns, _NO_FRAME)
        latency_ms = self._latency()
        verdict = Verdict(
            trigger.part, answer.verdict, answer.cause, answer.score, answer.threshold, answer.class_id,  # type: ignore[arg-type]
            latency_ms * 0.5, 0.3, 4.0, 0.1,
        )  # fmt: skip
        self._order += 1
        heapq.heappush(self._heap, (trigger.time_ns + round(latency_ms * 1e6), self._order, verdict))

    def _latency(self) -> float:
        share = self._random.random()
        at = max(1, bisect_left(_LATENCY, (share,)))
        (low, low_ms), (high, high_ms) = _LATENCY[at - 1], _LATENCY[at]
        return low_ms + (share - low) / (high - low) * (high_ms - low_ms)

    def _remember(self, part: PartClosed) -> None:
        self.records.append(
            {
                "part": part.part, "run": part.run, "monotonic_ns": part.trigger_ns, "verdict": part.verdict,
                "disposed_by": part.disposed_by, "disposition": part.disposition, "score": part.score,
            }
        )  # fmt: skip
        if part.verdict_ms is not None:
            self.latencies_ms.append(part.verdict_ms)
        if part.error_us is not None:
            self.errors_us.append(float(abs(part.error_us)))

    def _operator(self, now: int) -> None:
        if self._clearing or not self._rejector.alarms.stops_line:
            return
        self._clearing = True
        self._order += 1
        wait_ns = round(self._options.operator_s * 1e9)
        self.excused.append((now - 10**9, now + wait_ns + 5 * 10**9))
        command = Command(f"operator-{self._order}", "clear", {}, "twin")
        heapq.heappush(self._heap, (now + wait_ns, self._order, command))


def rehearse_fast(options: Options, out: TextIO) -> Result:
    """A shift in seconds. Raises ConfigError, ValueError, BundleError."""
    if options.faults:
        raise ValueError("--fault plays in real time: leave out --fast")
    original = load(options.file, built_only=False)
    scenario = SCENARIOS[options.scenario]
    pitch_mm, speed_mm_s, raised = pitch_and_speed(original, options.ppm)
    pitch_mm = scenario.pitch_mm or pitch_mm
    if raised:
        out.write(faster(speed_mm_s, options.ppm))
    out.write(f"line: {options.scenario}: {scenario.says}\n")
    with tempfile.TemporaryDirectory(prefix="appl-") as scratch:
        folder = options.keep or Path(scratch)
        file = derive(
            options.file, folder, broker="mqtt://127.0.0.1:1883", speed_mm_s=speed_mm_s if raised else None,
            photographs=options.good is not None, scenario=scenario,
        )  # fmt: skip
        station = load(file)
        bank = bank_of(station, options.hard, options.good, options.bad, out)
        begun = now_ns()
        shift = _Shift(options, station, bank, pitch_mm, speed_mm_s, folder)
        gc.collect()
        gc.disable()  # as rejectd does; a million truths that live on would be looked through again and again
        try:
            shift.run(out)
        finally:
            gc.enable()
        ran = now_ns()
        half_pitch_ns = round(pitch_mm / speed_mm_s * 5e8)
        shift.records.sort(key=lambda record: int(record["monotonic_ns"]))
        result = settle(shift.truths, shift.records, half_pitch_ns, shift.excused, shift.counters, gate_times(station))
        whole, told = shift.books.verified()  # in its own process, while the score was worked out
        if not whole:
            result.problems.append(told)
        if not bank.model_rehearsed:
            out.write("belt, gate and books rehearsed; the model was not\n")
        entries = int(told.split(": ")[1].split()[0]) if whole else 0
        result.mqtt = {
            "published": entries, "received": shift.published, "lost": max(0, entries - shift.published),
            "duplicates": max(0, shift.published - entries),
        }  # fmt: skip
        result.ledger_head = told.rsplit(" ", 1)[-1]
        result.seed, result.hard, result.photographs = options.seed, options.hard, options.bad is not None
        result.latency_ms = percentiles(shift.latencies_ms)
        result.actuation_error_us = percentiles(shift.errors_us)
        edges = [truth.edge_ns for truth in shift.truths]
        span_s = (max(edges) - min(edges)) / 1e9 if len(edges) > 1 else 0.0
        result.throughput_ppm = round((len(edges) - 1) / span_s * 60, 1) if span_s else 0.0
        result.wall_s = {"shift": round((ran - begun) / 1e9, 2), "verify_and_score": round((now_ns() - ran) / 1e9, 2)}
        out.write(f"\r  {len(edges)} parts in {result.wall_s['shift']} s, verified in {result.wall_s['verify_and_score']} s\n")
        return result
