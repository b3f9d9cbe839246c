"""The parts between trigger and last gate: numbered, committed once, taken or spared, accounted for. Pure.

A part goes through three queues, in the order of its number: *uncommitted* (its verdict still counts), *before the
gate*, *behind the gate* (waiting for its proof, or on its way to the second gate).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from appliance.messages import (
    WORST_FIRST,
    Confirmed,
    DisposedBy,
    Disposition,
    Message,
    PartClosed,
    Trigger,
    Verdict,
    encode,
)
from appliance.ports import Clock
from appliance.reject.belt import Belt
from appliance.reject.books import PART, Books
from appliance.reject.gate import Gate, HoldReason
from appliance.reject.journal import Journal
from appliance.reject.part import OpenPart, closed, decode_kept, dispose, final_verdict, what_happened
from appliance.reject.plan import MS, Plan
from appliance.reject.proof import Proof

_RESERVE = 64  # slots kept back for events and for changes of parts that are already open


class Pipeline:
    """``account``: told of each part that closed at the gates; ``gates`` by output's role, in the order of passing."""

    def __init__(
        self, plan: Plan, belt: Belt, books: Books, journal: Journal, clock: Clock,
        account: Callable[[PartClosed, OpenPart, int], None],
    ) -> None:  # fmt: skip
        self._plan, self._belt, self._books, self._journal, self._clock = plan, belt, books, journal, clock
        self._account = account
        self.gates = {name: Gate(belt, gate.pulse_ms, gate.response_ms) for name, gate in plan.gates.items()}
        self._first = self.gates["gate"]
        self._divert = self.gates.get("divert")
        self._divert_mm = plan.divert.distance_mm - plan.gate.distance_mm if plan.divert else 0.0
        self._deadline_ns = round(plan.deadline_ms * MS)
        self.proof = Proof(plan.confirm_within_ms) if plan.confirm_within_ms is not None else None
        self.open: deque[OpenPart] = deque()
        self._uncommitted: deque[OpenPart] = deque()
        self._before: deque[OpenPart] = deque()
        self._behind: deque[OpenPart] = deque()
        self._by_number: dict[int, OpenPart] = {}
        self.unrecorded: tuple[int, int] | None = None
        """First and last of the numbers for which no memory was left."""
        self.last_closed = 0

    def lead(self, gate: str, lead_ns: int) -> None:
        """A gate's driver wants to know its edges so long before they are due; parts are settled in time for it."""
        self.gates[gate].lead_ns = lead_ns
        self._deadline_ns = max(round(self._plan.deadline_ms * MS), *(one.lead_ns for one in self.gates.values()), 0)

    # --- what comes in -------------------------------------------------------------------------------------------

    @property
    def before_gate(self) -> Iterable[OpenPart]:
        """Parts that have not passed the first gate, oldest first."""
        return self._before

    def admit(self, trigger_ns: int, slip_mm: float, now_ns: int) -> OpenPart | None:
        """A part at the trigger gets its number; None: no memory is left for its record, its number is told later."""
        header = self._books.header
        number = header.next_part
        header.next_part += 1
        # Once full, one unbroken stretch of numbers is told as unrecorded, until there is room again.
        if self.unrecorded or self._books.free <= _RESERVE + 2 * len(self.open):
            self.unrecorded = (self.unrecorded[0] if self.unrecorded else number, number)
            return None
        trigger_mm = self._belt.position_mm(trigger_ns)
        part = OpenPart(
            part=number,
            trigger_ns=trigger_ns,
            trigger_mm=trigger_mm,
            wall_us=self._clock.wall_us(trigger_ns),
            clock=self._clock.quality(),
            recipe=self._plan.recipe,
            recipe_number=self._plan.recipe_number,
            arrive_mm=trigger_mm + self._plan.gate.distance_mm + slip_mm,
            length_mm=self._plan.part_mm,
        )
        part.deadline_ns = self._commit_ns(part, now_ns)
        self._books.write_header()
        self._books.put(PART, number, encode(part.kept()))
        self.open.append(part)
        self._uncommitted.append(part)
        self._before.append(part)
        self._by_number[number] = part
        return part

    def place(self, part: OpenPart) -> None:
        """The belt knows better where it stood at the part's trigger: a pulse came since."""
        trigger_mm = self._belt.position_mm(part.trigger_ns)
        self.shift(part, trigger_mm - part.trigger_mm)
        part.trigger_mm = trigger_mm

    def shift(self, part: OpenPart, by_mm: float) -> None:
        """It will arrive that much later."""
        part.arrive_mm += by_mm
        if part.window is not None:
            part.window.arrive_mm += by_mm
        if part.divert_window is not None:
            part.divert_window.arrive_mm += by_mm

    def verdict(self, verdict: Verdict, now_ns: int) -> str | None:
        """Take inspectd's answer; returns what to count when it changes nothing."""
        part = self._by_number.get(verdict.part)
        if part is None or part.committed or verdict.verdict not in WORST_FIRST:
            return "late_verdict"
        if part.verdict is not None and verdict.verdict != "fail":
            return "repeated_verdict"
        if verdict.cause is not None:  # a slot has room for so much
            verdict = msgspec.structs.replace(verdict, cause=verdict.cause.encode()[:80].decode(errors="ignore"))
        part.verdict, part.heard_ns = verdict, now_ns
        if self._books.free:
            self._books.put(PART, part.part, encode(part.kept()))
        return None

    def at_gate_since_ns(self, now_ns: int) -> int:
        """From when on an edge of the proof may belong to a part that has not passed yet."""
        return self._first.edge_ns(self._before[0].arrive_mm, now_ns) if self._before else now_ns

    def touch(self, touching: bool) -> None:
        """More than one part came where the newest was seen; ``touching``: it cannot be judged."""
        if not self.open:
            return
        self.open[-1].many = True
        if touching and not self.open[-1].committed:
            self.open[-1].forced = "double"

    def lengthen(self, length_mm: float) -> None:
        """Where the newest part was seen, the beam stayed covered for so long: all of that goes where it goes."""
        if not self.open:
            return
        part = self.open[-1]
        part.length_mm = max(part.length_mm, length_mm)
        for window in (part.window, part.divert_window):
            if window is not None:
                window.length_mm = part.length_mm

    def trigger_of(self, part: OpenPart) -> Message:
        """What inspectd is told."""
        return Trigger(part.part, part.trigger_ns, part.deadline_ns, part.recipe)

    # --- time --------------------------------------------------------------------------------------------------------

    def commit_due(self, now_ns: int, hold: HoldReason | None) -> list[OpenPart]:
        """Settle what is due. ``hold``: the state in which each part is rejected by itself where a gate cannot be held."""
        done = []
        while self._uncommitted and self._commit_ns(self._uncommitted[0], now_ns) <= now_ns:
            part = self._uncommitted.popleft()
            self._judge(part, now_ns)
            if hold is not None and part.planned != "reject" and self._first.held is None:
                part.planned, part.reason = "reject", hold
            if part.planned == "reject":
                part.window = self._first.plan(part.part, part.arrive_mm, part.length_mm, now_ns)
            elif part.planned == "divert" and self._divert is not None:
                at_mm = part.arrive_mm + self._divert_mm
                part.divert_window = self._divert.plan(part.part, at_mm, part.length_mm, now_ns)
            done.append(part)
        return done

    def close_due(self, now_ns: int) -> None:
        """Parts that have passed the first gate, then those whose account is whole."""
        while self._before and self._before[0].committed and self._pass_ns(self._before[0], now_ns) <= now_ns:
            self._pass(self._before.popleft(), now_ns)
        while self._behind and self._close_ns(self._behind[0], now_ns) <= now_ns:
            self._close_at_gate(self._behind.popleft(), now_ns)

    def next_due_ns(self, now_ns: int) -> int | None:
        """When something here is due next."""
        due: int | None = None
        if self._uncommitted:
            due = self._commit_ns(self._uncommitted[0], now_ns)
        if self._before and self._before[0].committed:
            pass_ns = self._pass_ns(self._before[0], now_ns)
            due = pass_ns if due is None or pass_ns < due else due
        if self._behind:
            close_ns = self._close_ns(self._behind[0], now_ns)
            due = close_ns if due is None or close_ns < due else due
        return due

    def _commit_ns(self, part: OpenPart, now_ns: int) -> int:
        return self._first.edge_ns(part.arrive_mm, now_ns) - self._deadline_ns

    def _judge(self, part: OpenPart, now_ns: int) -> None:
        part.committed = True
        part.judged, part.cause = final_verdict(part)
        part.planned, part.reason = dispose(part.judged, self._plan)
        part.deadline_ns = self._commit_ns(part, now_ns)
        part.due_ns = part.deadline_ns + self._deadline_ns

    def _pass_ns(self, part: OpenPart, now_ns: int) -> int:
        leave_ns = self._belt.time_at(part.arrive_mm + part.length_mm, now_ns)
        return max(leave_ns, self._first.end_ns(part.window, now_ns)) if part.window else leave_ns

    def _pass(self, part: OpenPart, now_ns: int) -> None:
        part.hit = self._first.hit_by(part.arrive_mm, part.length_mm, part.window)
        if part.window is not None:
            part.due_ns = part.window.edge_ns
        if part.hit is not None and self.proof is not None:
            from_ns = part.window.edge_ns if part.window else self._first.edge_ns(part.arrive_mm, now_ns)
            self.proof.expect(part.part, from_ns, part.many)
        self._first.forget_before(min(part.arrive_mm, self._before[0].arrive_mm) if self._before else part.arrive_mm)
        self._behind.append(part)

    def _close_ns(self, part: OpenPart, now_ns: int) -> int:
        proved_ns = self.proof.over_ns(part.part) if self.proof else 0
        if self._divert is None:
            return proved_ns
        leave_ns = self._belt.time_at(part.arrive_mm + self._divert_mm + part.length_mm, now_ns)
        if part.divert_window:
            leave_ns = max(leave_ns, self._divert.end_ns(part.divert_window, now_ns))
        return max(proved_ns, leave_ns)

    def _close_at_gate(self, part: OpenPart, now_ns: int) -> None:
        diverted = None
        if part.hit is None and self._divert is not None:
            diverted = self._divert.hit_by(part.arrive_mm + self._divert_mm, part.length_mm, part.divert_window)
        if self._divert is not None:
            first_mm = min(part.arrive_mm, self._behind[0].arrive_mm) if self._behind else part.arrive_mm
            self._divert.forget_before(first_mm + self._divert_mm)
        disposition, disposed_by = what_happened(part, part.hit, diverted)
        hit = part.hit or diverted
        own = hit is not None and hit in (part.window, part.divert_window)
        account = self._close(part, disposition, disposed_by, hit.error_ns if own and hit else None)
        self._account(account, part, now_ns)

    def _close(self, part: OpenPart, disposition: Disposition, disposed_by: DisposedBy, error_ns: int | None) -> PartClosed:
        confirmed: Confirmed = "unwatched"
        if self.proof and self.proof.over_ns(part.part):
            seen, part.stuck = self.proof.take(part.part)
            confirmed = "yes" if seen else "no"
        run = self._books.header.run
        account = closed(part, self._journal.next_n, run, disposition, disposed_by, error_ns, confirmed)
        if not self._books.free:
            self._books.drop(PART, part.part)  # its own slot takes its record
        self._journal.keep(account)
        self._books.drop(PART, part.part)
        self._by_number.pop(part.part, None)
        for queue in (self.open, self._uncommitted, self._before, self._behind):
            if queue and queue[0] is part:
                queue.popleft()
            elif part in queue:
                queue.remove(part)
        self.last_closed = part.part
        return account

    # --- life ----------------------------------------------------------------------------------------------------------

    def close_all(self, now_ns: int) -> None:
        """A clean stop: what is still on its way is rejected, the gates being held."""
        for part in list(self.open):
            if not part.committed:
                self._judge(part, now_ns)
            if part in self._behind and part.hit is not None:
                self._close(part, *what_happened(part, part.hit, None), None)
            elif part in self._behind and self._divert is None:
                self._close(part, *what_happened(part, None, None), None)
            elif part in self._behind:
                self._close(part, "divert", "held", None)
            else:
                self._close(part, "reject", "held", None)

    def close_recovered(self, kept_parts: dict[int, bytes], already: set[int]) -> int:
        """Parts found in the memory of a killed process: verdict kept, else late; rejected, by the purge."""
        count = 0
        for number in sorted(kept_parts):
            if number in already:
                self._books.drop(PART, number)
                continue
            kept = decode_kept(kept_parts[number])
            part = OpenPart(
                kept.part, kept.trigger_ns, self._belt.position_mm(kept.trigger_ns), kept.wall_us, kept.clock,
                kept.recipe, kept.recipe_number, kept.verdict, kept.heard_ns,
            )  # fmt: skip
            part.arrive_mm = part.trigger_mm + self._plan.gate.distance_mm
            part.length_mm = self._plan.part_mm
            self._judge(part, kept.trigger_ns)
            self._close(part, "reject", "purge", None)
            count += 1
        return count
