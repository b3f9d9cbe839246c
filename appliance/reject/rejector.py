"""The heart of rejectd: from edges and verdicts to gate movements and accounts. No clock, no I/O: time is passed in.

Order within ``step``: verdicts and edges were handed in before; then parts are committed, the gate moves, parts
close, and only then alarms and state are looked at. So a verdict that lay in the socket before the deadline counts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from appliance.faults import FAULTS, sentence
from appliance.messages import (
    Command,
    Edge,
    Event,
    FrameSeen,
    Heard,
    InspectState,
    Message,
    PartClosed,
    Reply,
    StateName,
    Status,
    Trigger,
    Verdict,
    decode,
    encode,
)
from appliance.ports import Clock
from appliance.reject.alarms import Alarms
from appliance.reject.belt import Belt
from appliance.reject.books import JOURNAL, PART, Books, BooksFull
from appliance.reject.eye import Eye, Seen
from appliance.reject.gate import Gate, HoldReason
from appliance.reject.part import OpenPart, closed, decode_kept, dispose, final_verdict, what_happened
from appliance.reject.plan import MS, Plan

TICK_NS = 100 * MS  # heartbeat, alarms, state
STATUS_TICKS = 2
_RESERVE = 64  # slots kept back for events and for changes of parts that are already open


@dataclass
class Move:
    """Set an output (gate, ready, fault, line_stop, heartbeat). ``due_ns``: when it should have been."""

    output: str
    energised: bool
    due_ns: int


@dataclass
class Effects:
    """What a step wants done, in this order."""

    moves: list[Move] = field(default_factory=list)
    to_inspect: list[Message] = field(default_factory=list)
    journalled: list[PartClosed | Event] = field(default_factory=list)
    to_report: list[Message] = field(default_factory=list)


class Rejector:
    """Owns part numbers, open parts, the gate's timetable, alarms and state."""

    def __init__(self, plan: Plan, belt: Belt, books: Books, clock: Clock) -> None:
        self.plan = plan
        self.journal: dict[int, PartClosed | Event] = {}
        self.counts: dict[str, int] = {}
        self.alarms = Alarms(plan.alarms)
        self._belt = belt
        self._books = books
        self._clock = clock
        gate = plan.gate
        self._gate = Gate(belt, gate.distance_mm, plan.part_mm, gate.pulse_ms, gate.response_ms)
        self._eye = Eye(plan, belt)
        self._open: deque[OpenPart] = deque()
        self._uncommitted: deque[OpenPart] = deque()
        self._by_number: dict[int, OpenPart] = {}
        self._effects = Effects()
        self._state: StateName = "starting"
        self._reason = ""
        self._since_us = 0
        self._told: tuple[StateName, str] = ("starting", "")
        self._purge_until_mm: float | None = None
        self._inspect: InspectState | None = None
        self._trigger_lost: str | None = None
        self._person_hold: str | None = None
        self._last_frame_ns: int | None = None
        self._next_tick_ns = 0
        self._ticks = 0
        self._levels: dict[str, bool] = {}
        self._alarm_wall_us: dict[str, int] = {}
        self._unacknowledged_parts = 0
        self._last_closed = 0
        self._unrecorded: list[int] = []
        self._deadline_ns = round(plan.deadline_ms * MS)

    # --- life ---------------------------------------------------------------------------------------------

    def start(self, now_ns: int, new_run: str, new_journal: str, first_part: int) -> None:
        """Take over what the books hold; the gate rejects until the belt has moved (law 6).

        ``first_part`` is used when the books hold no state: one above the ceiling that reportd keeps on disk."""
        parts, journal = self._books.load()
        header = self._books.header
        fresh = not header.journal
        crashed = not fresh and not header.clean
        blind_ms = None if fresh else max(0, now_ns - header.alive_ns) // MS
        if fresh:
            header.journal, header.next_part = new_journal, max(1, first_part)
        if not crashed:
            header.run = new_run
        header.next_n = max([header.next_n, *(n + 1 for n in journal)])
        header.next_part = max([header.next_part, *(number + 1 for number in parts)])
        header.clean, header.alive_ns = False, now_ns
        self._books.write_header()
        for n in sorted(journal):
            message = decode(journal[n])
            if isinstance(message, (PartClosed, Event)):
                self._restore(message)
        already = {message.part for message in self.journal.values() if isinstance(message, PartClosed)}
        recovered = self._close_recovered(parts, already)
        data = {"crashed": crashed, "blind_ms": blind_ms, "recovered": recovered, "first_part": header.next_part}
        self._event("start", data, now_ns)
        if fresh and first_part > 1:
            self._event("number_gap", {"first_part": first_part, "why": "no state was left in memory"}, now_ns)
        self._unknown_on_belt("start", now_ns)
        self._next_tick_ns = now_ns
        self._look(now_ns)

    def stop(self, now_ns: int) -> Effects:
        """SIGTERM: gate to reject, every open part closed, books clean."""
        for name in ("ready", "line_stop"):
            self._output(name, False, now_ns)
        self._gate.hold("held", now_ns)
        self._move_gate(now_ns)
        for part in list(self._open):
            if not part.committed:
                self._judge(part, now_ns)
            self._close(part, "reject", "held", None)
        self._event("stop", {}, now_ns)
        self._state, self._reason, self._since_us = "stopped", "stopped", self._clock.wall_us(now_ns)
        self._books.header.clean = True
        self._books.write_header()
        self._status(now_ns)
        return self._take()

    # --- what comes in --------------------------------------------------------------------------------------

    def on_edge(self, edge: Edge, now_ns: int) -> None:
        """An edge of the trigger's input."""
        seen = self._eye.edge(edge)
        if seen is Seen.PART:
            self._new_part(edge.time_ns, now_ns)
        elif seen is Seen.TOUCHING:
            self._two_parts_touch()
        elif seen is Seen.LOST_EDGES:
            self._count("edges_lost")
            self._unknown_on_belt("edges of the photo-eye were lost", now_ns)
        elif seen is not Seen.NOTHING:
            self._count(seen.value)

    def on_frame_seen(self, frame: FrameSeen, now_ns: int) -> None:
        """``trigger: frame``: each frame is a part, at the middle of its exposure."""
        self._last_frame_ns = now_ns
        if self._trigger_lost:
            self._trigger_back(now_ns)
        if self._eye.mark(self._belt.position_mm(frame.time_ns)) is Seen.PART:
            self._new_part(frame.time_ns, now_ns)
        else:
            self._count(Seen.DOUBLE.value)

    def on_verdict(self, verdict: Verdict, now_ns: int) -> None:
        """inspectd's answer. After the commit it changes nothing and is counted."""
        self._effects.to_inspect.append(Heard(verdict.part))
        part = self._by_number.get(verdict.part)
        if part is None or part.committed:
            self._count("late_verdict")
            return
        if part.verdict is not None and verdict.verdict != "fail":
            self._count("repeated_verdict")
            return
        part.verdict, part.heard_ns = verdict, now_ns
        self._books.put(PART, part.part, encode(part.kept()))

    def on_inspect(self, state: InspectState | None, now_ns: int) -> None:
        """inspectd told its state, or (None) its link broke."""
        self._inspect = state
        if state is None:
            self.alarms.raise_("inspect_away", "", now_ns)
        elif state.state == "ready":
            self.alarms.over("inspect_away", now_ns)
        self._look(now_ns)

    def on_report(self, connected: bool, now_ns: int) -> None:
        """reportd came or went; records wait in memory meanwhile."""
        if connected:
            self.alarms.over("report_away", now_ns)
        else:
            self.alarms.raise_("report_away", "", now_ns)

    def on_ack(self, n: int) -> None:
        """reportd has everything up to ``n`` on disk."""
        while self.journal and (first := next(iter(self.journal))) <= n:
            message = self.journal.pop(first)
            self._unacknowledged_parts -= isinstance(message, PartClosed)
            self._books.drop(JOURNAL, first)

    def on_command(self, command: Command, now_ns: int) -> Reply:
        """A person's or PLC's wish; each is an event in the ledger."""
        ok, text = self._obey(command, now_ns)
        data = {"verb": command.verb, "source": command.source, "id": command.id, "ok": ok, "text": text}
        self._event("command", data, now_ns)
        self._look(now_ns)
        return Reply(command.id, ok, text)

    def on_trigger_lost(self, why: str, now_ns: int) -> None:
        """The trigger's input is gone (law 6)."""
        if self._trigger_lost is None:
            self._trigger_lost = why
            self.alarms.raise_("trigger_lost", why, now_ns)
            self._look(now_ns)

    def on_trigger_back(self, now_ns: int) -> None:
        """The trigger's input answers again; the belt must move on before the gate opens."""
        if self._trigger_lost:
            self._trigger_back(now_ns)

    def on_output_lost(self, name: str, why: str, now_ns: int) -> None:
        """An output cannot be moved any more."""
        self.alarms.raise_("output_lost", f"{name}: {why}", now_ns)
        self._look(now_ns)

    def on_outputs_back(self, now_ns: int) -> None:
        """All outputs can be moved again; a person must still clear."""
        self.alarms.settle("output_lost")
        self._levels.clear()
        self._look(now_ns)

    def on_longest_on(self, name: str, now_ns: int) -> None:
        """An output stood energised longer than it may: line stop and fault, never accept."""
        self.alarms.raise_("longest_on", name, now_ns)
        self._look(now_ns)

    def moved(self, move: Move, at_ns: int) -> None:
        """The driver moved an output at ``at_ns``."""
        if move.output == "gate" and self._gate.rejecting:
            self._gate.moved(at_ns, move.due_ns)

    # --- time -------------------------------------------------------------------------------------------------

    def step(self, now_ns: int) -> Effects:
        """Do all that is due by ``now_ns``."""
        while self._uncommitted and self._commit_ns(self._uncommitted[0], now_ns) <= now_ns:
            self._commit(self._uncommitted.popleft(), now_ns)
        self._move_gate(now_ns)
        while self._open and self._open[0].committed and self._close_ns(self._open[0], now_ns) <= now_ns:
            self._close_at_gate(self._open[0], now_ns)
        if self._purge_over(now_ns):
            self._look(now_ns)
        if now_ns >= self._next_tick_ns:
            self._tick(now_ns)
        return self._take()

    def next_due_ns(self, now_ns: int) -> int:
        """When ``step`` must be called again at the latest."""
        due = self._next_tick_ns
        if self._uncommitted:
            due = min(due, self._commit_ns(self._uncommitted[0], now_ns))
        if self._open and self._open[0].committed:
            due = min(due, self._close_ns(self._open[0], now_ns))
        gate_ns = self._gate.next_due_ns(now_ns)
        return due if gate_ns is None else min(due, gate_ns)

    def next_edge_ns(self, now_ns: int) -> int | None:
        """When the gate's output must move next: the instant worth spinning for."""
        return self._gate.next_due_ns(now_ns)

    @property
    def state(self) -> StateName:
        return self._state

    @property
    def in_flight(self) -> int:
        """Parts numbered whose record is not yet acknowledged as committed."""
        return len(self._open) + self._unacknowledged_parts

    # --- parts ------------------------------------------------------------------------------------------------

    def _new_part(self, trigger_ns: int, now_ns: int) -> None:
        header = self._books.header
        number = header.next_part
        header.next_part += 1
        # Once full, one unbroken stretch of numbers is told as unrecorded, until there is room again.
        if self._unrecorded or self._books.free <= _RESERVE + 2 * len(self._open):
            self._unrecorded.append(number)
            self.alarms.raise_("books_full", f"part {number}", now_ns)
            self._look(now_ns)
            return
        part = OpenPart(
            part=number,
            trigger_ns=trigger_ns,
            trigger_mm=self._belt.position_mm(trigger_ns),
            wall_us=self._clock.wall_us(trigger_ns),
            clock=self._clock.quality(),
            recipe=self.plan.recipe,
            recipe_number=self.plan.recipe_number,
        )
        part.deadline_ns = self._commit_ns(part, now_ns)
        self._books.write_header()
        self._books.put(PART, number, encode(part.kept()))
        self._open.append(part)
        self._uncommitted.append(part)
        self._by_number[number] = part
        if self._inspect is not None:
            self._effects.to_inspect.append(Trigger(number, trigger_ns, part.deadline_ns, part.recipe))

    def _commit_ns(self, part: OpenPart, now_ns: int) -> int:
        return self._gate.edge_ns(part.trigger_mm, now_ns) - self._deadline_ns

    def _commit(self, part: OpenPart, now_ns: int) -> None:
        self._judge(part, now_ns)
        held = self._gate.held
        if part.planned == "accept" and self._state != "running" and held is None:
            # A gate that cannot be held rejects each part by itself in every state but running (law 3).
            part.planned, part.reason = "reject", self._hold_reason()
        if part.planned == "reject":
            part.window = self._gate.plan(part.part, part.trigger_mm, now_ns)
        if part.judged in ("late", "blind", "missed") and self.plan.on_late == "stop":
            self.alarms.raise_("on_late_stop", f"part {part.part} is {part.judged}", now_ns)

    def _judge(self, part: OpenPart, now_ns: int) -> None:
        part.committed = True
        part.judged, part.cause = final_verdict(part)
        part.planned, part.reason = dispose(part.judged, self.plan)
        part.deadline_ns = self._commit_ns(part, now_ns)
        part.due_ns = part.deadline_ns + self._deadline_ns

    def _close_ns(self, part: OpenPart, now_ns: int) -> int:
        leave_ns = self._belt.time_at(self._gate.leave_mm(part.trigger_mm), now_ns)
        return max(leave_ns, self._gate.end_ns(part.window, now_ns)) if part.window else leave_ns

    def _close_at_gate(self, part: OpenPart, now_ns: int) -> None:
        hit = self._gate.hit_by(part.trigger_mm, part.window)
        disposition, disposed_by = what_happened(part, hit)
        if disposition == "accept" and part.planned == "reject":
            self.alarms.raise_("reject_failed", f"part {part.part}", now_ns)
        error_ns = hit.error_ns if hit is not None and hit is part.window else None
        account = self._close(part, disposition, disposed_by, error_ns)
        self.alarms.count_part(account, now_ns)
        if self._open:
            self._gate.forget_before(self._open[0].trigger_mm)

    def _close(self, part: OpenPart, disposition: Any, disposed_by: Any, error_ns: int | None) -> PartClosed:
        header = self._books.header
        account = closed(part, header.next_n, header.run, disposition, disposed_by, error_ns)
        self._keep(account)
        self._books.drop(PART, part.part)
        self._by_number.pop(part.part, None)
        if self._open and self._open[0] is part:
            self._open.popleft()
        elif part in self._open:
            self._open.remove(part)
        if self._uncommitted and self._uncommitted[0] is part:
            self._uncommitted.popleft()
        self._last_closed = part.part
        return account

    def _two_parts_touch(self) -> None:
        self._count(Seen.DOUBLE.value)
        if self._open and not self._open[-1].committed:
            self._open[-1].forced = "double"

    def _close_recovered(self, parts: dict[int, bytes], already: set[int]) -> int:
        """Parts found in the memory of a killed process: verdict kept, else late; rejected, by the purge."""
        count = 0
        for number in sorted(parts):
            kept = decode_kept(parts[number])
            if number in already:
                self._books.drop(PART, number)
                continue
            part = OpenPart(
                kept.part, kept.trigger_ns, self._belt.position_mm(kept.trigger_ns), kept.wall_us, kept.clock,
                kept.recipe, kept.recipe_number, kept.verdict, kept.heard_ns,
            )  # fmt: skip
            self._judge(part, kept.trigger_ns)
            self._close(part, "reject", "purge", None)
            count += 1
        return count

    # --- journal -------------------------------------------------------------------------------------------------

    def _keep(self, message: PartClosed | Event) -> None:
        header = self._books.header
        header.next_n = message.n + 1
        self._books.put(JOURNAL, message.n, encode(message))
        self._books.write_header()
        self._restore(message)
        self._effects.journalled.append(message)

    def _restore(self, message: PartClosed | Event) -> None:
        self.journal[message.n] = message
        self._unacknowledged_parts += isinstance(message, PartClosed)

    def _event(self, kind: str, data: dict[str, Any], now_ns: int) -> None:
        header = self._books.header
        wall_us, quality = self._clock.wall_us(now_ns), self._clock.quality()
        try:
            self._keep(Event(header.next_n, kind, now_ns, wall_us, quality, data, header.run))
        except BooksFull:
            self._count("events_lost")  # told in the status; parts keep the last slots

    # --- state -----------------------------------------------------------------------------------------------------

    def _unknown_on_belt(self, why: str, now_ns: int) -> None:
        """Law 6: what lies between camera and gate is not known."""
        self._event("purge", {"why": why, "distance_mm": self.plan.purge_distance_mm}, now_ns)
        if self.plan.gate.fails_to_reject:
            self._purge_until_mm = self._belt.position_mm(now_ns) + self.plan.purge_distance_mm
        else:  # it cannot be held, or not by a dead box: a person clears the belt
            self.alarms.raise_("purge_line_stop", why, now_ns)
            self.alarms.settle("purge_line_stop")
        self._look(now_ns)

    def _purge_over(self, now_ns: int) -> bool:
        if self._purge_until_mm is None or self._belt.position_mm(now_ns) < self._purge_until_mm:
            return False
        if self.alarms.stops_line or self._trigger_lost:
            return False  # the belt is told to stand, or parts pass unseen: it begins anew afterwards
        self._purge_until_mm = None
        return True

    def _judge_state(self) -> tuple[StateName, str]:
        if code := self.alarms.fault:
            return "fault", sentence(code)
        if codes := self.alarms.stops_line:
            return "held", "the line is stopped until a person clears: " + ", ".join(codes)
        if self._trigger_lost:
            return "held", sentence("trigger_lost", self._trigger_lost)
        if self._purge_until_mm is not None:
            return "purging", "what lies between camera and gate is unknown and is rejected"
        if self._inspect is None:
            return "held", FAULTS["inspect_away"].says
        if self._inspect.state == "building":
            return "building", self._inspect.reason
        if self._inspect.state != "ready":
            return "held", f"inspectd: {self._inspect.reason or self._inspect.state}"
        if self._person_hold:
            return "held", self._person_hold
        return "running", ""

    def _hold_reason(self) -> HoldReason:
        return "fault" if self._state == "fault" else "purge" if self._state == "purging" else "held"

    def _look(self, now_ns: int) -> None:
        """Work out the state; hold or free the gate; tell outputs and reportd what changed."""
        was_stopped = bool(self._levels) and not self._levels.get("line_stop", True)
        self._state, self._reason = self._judge_state()
        may_run = not self.alarms.stops_line
        if was_stopped and may_run and self.plan.gate.fails_to_reject:
            # The belt stood while we could not see it: positions are void, a purge under way begins anew.
            self._levels["line_stop"] = True
            self._effects.moves.append(Move("line_stop", True, now_ns))
            self._unknown_on_belt("the line was stopped", now_ns)
            return
        if self._state == "running":
            self._gate.release(now_ns)
        elif self.plan.gate.kind == "hold":
            self._gate.hold(self._hold_reason(), now_ns)
        self._output("ready", self._state == "running", now_ns)
        self._output("fault", self._state != "fault", now_ns)
        self._output("line_stop", may_run, now_ns)
        self._move_gate(now_ns)
        self._tell_alarms()
        if (self._state, self._reason) != self._told:
            self._told = (self._state, self._reason)
            self._since_us = self._clock.wall_us(now_ns)
            self._status(now_ns)

    def _move_gate(self, now_ns: int) -> None:
        due_ns = self._gate.step(now_ns)
        level = self._gate.rejecting == self.plan.gate.reject_level
        if due_ns is not None or self._levels.get("gate") is None:
            self._levels["gate"] = level
            self._effects.moves.append(Move("gate", level, now_ns if due_ns is None else due_ns))

    def _output(self, name: str, energised: bool, now_ns: int) -> None:
        if self._levels.get(name) != energised:
            self._levels[name] = energised
            self._effects.moves.append(Move(name, energised, now_ns))

    def _tick(self, now_ns: int) -> None:
        self._next_tick_ns += TICK_NS
        if self._next_tick_ns <= now_ns:  # the process was held up: do not catch up beat by beat
            self._next_tick_ns = now_ns + TICK_NS
        self._ticks += 1
        self._books.header.alive_ns = now_ns
        self._books.write_header()
        self._output("heartbeat", not self._levels.get("heartbeat", False), now_ns)
        self._watch_trigger(now_ns)
        self._watch_books(now_ns)
        self._look(now_ns)
        if self._ticks % STATUS_TICKS == 0:
            self._status(now_ns)

    def _watch_trigger(self, now_ns: int) -> None:
        if self._eye.touching(now_ns):
            self._two_parts_touch()
        if self.plan.trigger == "frame":
            self._watch_frames(now_ns)
        elif self._eye.blocked(now_ns):
            self.on_trigger_lost("covered", now_ns)
        elif self._trigger_lost == "covered":
            self._trigger_back(now_ns)

    def _watch_frames(self, now_ns: int) -> None:
        ready = self._inspect is not None and self._inspect.state == "ready"
        if not ready or self._last_frame_ns is None:
            self._last_frame_ns = now_ns if ready else None
        elif now_ns - self._last_frame_ns > 3 * self.plan.frame_period_ms * MS + TICK_NS:
            self.on_trigger_lost("no frame for three frame times", now_ns)

    def _trigger_back(self, now_ns: int) -> None:
        self._trigger_lost = None
        self.alarms.over("trigger_lost", now_ns)
        self._unknown_on_belt("the trigger was lost", now_ns)

    def _watch_books(self, now_ns: int) -> None:
        if self._books.half_full:
            self.alarms.raise_("books_waiting", f"{len(self.journal)} records", now_ns)
            return
        self.alarms.over("books_waiting", now_ns)
        if self._unrecorded:
            first, last, count = self._unrecorded[0], self._unrecorded[-1], len(self._unrecorded)
            self._unrecorded.clear()
            self._event("unrecorded", {"first": first, "last": last, "count": count}, now_ns)
            self.alarms.settle("books_full")

    def _obey(self, command: Command, now_ns: int) -> tuple[bool, str]:
        if command.verb == "clear":
            gone = self.alarms.clear(now_ns)
            left = ", ".join(self.alarms.stops_line)
            return not left, f"cleared: {', '.join(gone) or 'nothing'}" + (f"; still standing: {left}" if left else "")
        if command.verb == "hold":
            self._person_hold = f"held by {command.source}"
            return True, "held: the gate rejects"
        if command.verb == "release":
            self._person_hold = None
            return True, "released"
        return False, f"{command.verb}: not known here; use clear, hold or release"

    def _tell_alarms(self) -> None:
        changes, self.alarms.changes = self.alarms.changes, []
        for code, raised, text, latched, at_ns in changes:
            if raised:
                self._alarm_wall_us[code] = self._clock.wall_us(at_ns)
            data = {"code": code, "text": text, "latched": latched}
            self._event("alarm_raised" if raised else "alarm_cleared", data, at_ns)

    def _status(self, now_ns: int) -> None:
        self._effects.to_report.append(
            Status(
                state=self._state,
                reason=self._reason,
                since_us=self._since_us,
                progress=self._inspect.progress if self._inspect else 0.0,
                run=self._books.header.run,
                alive_ns=now_ns,
                in_flight=self.in_flight,
                next_part=self._books.header.next_part,
                last_closed=self._last_closed,
                alarms=self.alarms.as_messages(self._alarm_wall_us),
                counts={**self.counts, "consecutive_fails": self.alarms.consecutive_fails},
                line_stop=bool(self.alarms.stops_line),
            )
        )

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    def _take(self) -> Effects:
        effects, self._effects = self._effects, Effects()
        return effects
