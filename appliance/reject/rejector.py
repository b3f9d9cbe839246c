"""The heart of rejectd: from edges and verdicts to gate movements and accounts. No clock, no I/O: time is passed in.

Order within ``step``: verdicts and edges were handed in before; then parts are committed, the gates move, parts
close, and only then alarms and state are looked at. So a verdict that lay in the socket before the deadline counts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

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
    Verdict,
)
from appliance.ports import Clock
from appliance.reject.alarms import Alarms
from appliance.reject.belt import Belt, EncoderBelt
from appliance.reject.belt_watch import BELT_INPUTS, BeltWatch
from appliance.reject.books import Books
from appliance.reject.eye import Eye, Seen
from appliance.reject.gate import HoldReason
from appliance.reject.guard import Guard
from appliance.reject.journal import Journal
from appliance.reject.lamp import LAMP, known, lit
from appliance.reject.part import OpenPart
from appliance.reject.pipeline import Pipeline
from appliance.reject.plan import MS, Plan
from appliance.reject.slip import GateEyeSaw, Slip

TICK_NS = 100 * MS  # heartbeat, alarms, state
STATUS_TICKS = 2
_CLICKED_NS = 50 * MS  # shorter contacts of the clear button are not a person's
_UNSEEN_LIMIT = 3
_DOUBT_NS = 3000 * MS  # longer than any coupler's watchdog should be


@dataclass
class Move:
    """Set an output (gate, divert, ready, fault, line_stop, heartbeat, stick). ``due_ns``: when it should have been."""

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
    """Owns trigger, belt, gates' holds, alarms and state; the parts are its pipeline's.

    ``configuration``: digest of that which ``plan`` is of; ``version``: of the program; ``safe``: why there is none that can
    be used, "" = there is one. Then nothing ever lets a gate go."""

    def __init__(
        self, plan: Plan, belt: Belt, books: Books, clock: Clock, configuration: str = "", version: str = "", safe: str = ""
    ) -> None:
        self.plan = plan
        self.configuration = configuration
        self._version, self._safe = version, safe
        self.counts: dict[str, int] = {}
        self.alarms = Alarms(plan.alarms)
        self._belt = belt
        self._books = books
        self._clock = clock
        self._journal = Journal(books, clock)
        self._parts = Pipeline(plan, belt, books, self._journal, clock, self._account)
        self._gates = self._parts.gates
        self._eye = Eye(plan, belt)
        self._watch = BeltWatch(plan, belt, self._belt_lost)
        self._slip = Slip(plan.min_pitch_mm / 2) if plan.gate_eye else None
        self._unseen = 0
        self._guard = Guard(self.alarms)
        self._unplaced: list[OpenPart] = []
        self._clicked_ns = 0
        self._home_since_ns: int | None = None
        self._effects = Effects()
        self._state: StateName = "starting"
        self._reason = ""
        self._since_us = 0
        self._told: tuple[StateName, str] = ("starting", "")
        self._purge_until_mm: dict[str, float] = {}
        self._held_until_ns = 0
        self._inspect: InspectState | None = None
        self._trigger_lost: str | None = None
        self._inputs_lost: dict[str, str] = {}
        self._missing: set[str] = set()
        self._eye_opened = plan.trigger != "input"
        """The photo-eye has told its level: before that parts pass unseen."""
        self._fired: deque[tuple[int, int]] = deque(maxlen=200)  # (due_ns, part) of rejects that are booked
        self._person_hold: str | None = None
        self._last_frame_ns: int | None = None
        self._next_tick_ns = 0
        self._ticks = 0
        self._levels: dict[str, bool] = {}
        self._alarm_wall_us: dict[str, int] = {}
        self._lamp: str | None = None

    @property
    def journal(self) -> dict[int, PartClosed | Event]:
        """What reportd has not acknowledged, by number."""
        return self._journal.waiting

    # --- life ---------------------------------------------------------------------------------------------

    def start(self, now_ns: int, new_run: str, new_journal: str, first_part: int) -> None:
        """Take over what the books hold; the gates reject until the belt has moved (law 6).

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
        self._journal.restore(journal)
        already = {message.part for message in self.journal.values() if isinstance(message, PartClosed)}
        recovered = self._parts.close_recovered(parts, already)
        data = {"crashed": crashed, "blind_ms": blind_ms, "recovered": recovered, "first_part": header.next_part}
        self._journal.event("start", data, now_ns)
        if fresh and first_part > 1:
            why = {"first_part": first_part, "why": "no state was left in memory"}
            self._journal.event("number_gap", why, now_ns)
        if self._safe:
            self.alarms.raise_("safe_mode", self._safe, now_ns)
        if self.plan.trigger == "frame":
            self._trigger_lost = "no frame yet"
        self._unknown_on_belt("start", now_ns)
        self._next_tick_ns = now_ns
        self._look(now_ns)

    def stop(self, now_ns: int) -> Effects:
        """SIGTERM: gates to reject, every open part closed, books clean."""
        for name in ("ready", "line_stop"):
            self._output(name, False, now_ns)
        for gate in self._gates.values():
            gate.hold("held", now_ns)
        self._move_gates(now_ns)
        self._parts.close_all(now_ns)
        self._tell_unrecorded(now_ns)
        self._journal.event("stop", {}, now_ns)
        self._state, self._reason, self._since_us = "stopped", "stopped", self._clock.wall_us(now_ns)
        self._books.header.clean = True
        self._books.write_header()
        self._status(now_ns)
        return self._take()

    # --- edges ----------------------------------------------------------------------------------------------

    def on_input(self, role: str, edge: Edge, now_ns: int) -> None:
        """An edge of any input, in the order of their time stamps over all inputs."""
        if role == "trigger":
            self.on_edge(edge, now_ns)
        elif role in ("encoder", "encoder_b"):
            step = self._watch.encoder_edge(role, edge, now_ns)
            if step:
                self.on_pulse(edge.time_ns, step > 0)
        elif role == "running":
            if self._watch.running(edge):
                self._unknown_on_belt("the belt stopped", now_ns)
        elif role == "confirm":
            if self._parts.proof:
                self._parts.proof.on_edge(edge)
        elif role == "gate_eye":
            self._on_gate_eye(edge, now_ns)
        elif role == "clear":
            self._on_clear(edge, now_ns)
        else:
            self._guard.on_edge(role, edge)

    def on_input_lost(self, role: str, why: str, now_ns: int) -> None:
        """An input gives no more edges."""
        self._inputs_lost[role] = why
        if role == "trigger":
            self.on_trigger_lost(why, now_ns)
        elif role in BELT_INPUTS:
            self._watch.input_lost(role, why, now_ns)
            self._look(now_ns)
        else:
            self._guard.lost(role, now_ns)
            self._missing.add(role)
            self.alarms.raise_("input_lost", f"{role}: {why}", now_ns)
            self._look(now_ns)

    def on_input_back(self, role: str, now_ns: int) -> None:
        """An input answers, for the first time or again."""
        self._inputs_lost.pop(role, None)
        if role == "trigger":
            self.on_trigger_back(now_ns)
        elif role in BELT_INPUTS:
            self._watch.input_back(role)
            self._believe_belt(now_ns)
        else:
            self._missing.discard(role)
            if not self._missing:
                self.alarms.over("input_lost", now_ns)

    def on_edge(self, edge: Edge, now_ns: int) -> None:
        """An edge of the trigger's input."""
        if not self._eye_opened:  # until now parts passed it unseen: the way to the gates counts from here
            self._eye_opened = True
            self._restart_purge(now_ns)
        seen = self._eye.edge(edge)
        if seen in (Seen.PART, Seen.DOUBLE, Seen.TREMBLED):
            self._watch.trigger(edge.time_ns, now_ns)
        if seen is Seen.PART:
            self._new_part(edge.time_ns, now_ns)
        elif seen is Seen.TOUCHING:
            self._two_parts_touch()
        elif seen is Seen.LOST_EDGES:
            self._count("edges_lost")
            self._unknown_on_belt("edges of the photo-eye were lost", now_ns)
        elif seen is not Seen.NOTHING:
            self._count(seen.value)
            if seen is Seen.DOUBLE:
                behind_mm = self._belt.position_mm(edge.time_ns) - self._eye.last_part_mm
                # Beyond the part's own length it is no glint of it but another part, which nobody will judge.
                self._parts.touch(touching=behind_mm >= self.plan.part_mm)
                self._parts.lengthen(behind_mm + self.plan.part_mm)
        if self._eye.covering_mm:
            self._parts.lengthen(self._eye.covering_mm)
            self._eye.covering_mm = 0.0

    def on_frame_seen(self, frame: FrameSeen, now_ns: int) -> None:
        """``trigger: frame``: each frame is a part, at the middle of its exposure."""
        self._last_frame_ns = now_ns
        if self._trigger_lost:
            self._trigger_back(now_ns)
        if self._eye.mark(self._belt.position_mm(frame.time_ns)) is Seen.PART:
            self._new_part(frame.time_ns, now_ns)
        else:
            self._count(Seen.DOUBLE.value)

    def on_pulse(self, time_ns: int, forward: bool = True) -> None:
        """The encoder's belt moved on by one pulse, or back."""
        belt = self._belt
        assert isinstance(belt, EncoderBelt)
        belt.pulse(time_ns, forward)
        if self._unplaced:
            for part in self._unplaced:
                self._parts.place(part)
            self._unplaced.clear()

    def _on_gate_eye(self, edge: Edge, now_ns: int) -> None:
        if self._slip is None:
            return
        saw, part, off_mm = self._slip.on_edge(edge, self._belt.position_mm(edge.time_ns), self._parts.before_gate)
        if saw is GateEyeSaw.STRANGER:
            self._count(saw.value)
        if part is None:
            return
        part.seen_at_gate = True
        self._parts.shift(part, off_mm)
        for other in self._parts.before_gate:
            if not other.seen_at_gate and other.part > part.part:
                self._parts.shift(other, self._slip.share(off_mm))
        self._unseen = 0
        self.alarms.over("gate_eye_lost", now_ns)

    def _on_clear(self, edge: Edge, now_ns: int) -> None:
        pressed = edge.level and edge.sequence > 0 and edge.time_ns - self._clicked_ns > _CLICKED_NS
        self._clicked_ns = edge.time_ns
        if pressed:
            self.on_command(Command("", "clear", {}, "input clear"), now_ns)

    # --- messages ---------------------------------------------------------------------------------------------

    def on_verdict(self, verdict: Verdict, now_ns: int) -> None:
        """inspectd's answer. After the commit it changes nothing and is counted."""
        self._effects.to_inspect.append(Heard(verdict.part))
        if unused := self._parts.verdict(verdict, now_ns):
            self._count(unused)

    def on_inspect(self, state: InspectState | None, now_ns: int) -> None:
        """inspectd told its state, or (None) its link broke."""
        self._inspect = state
        if self.plan.trigger == "frame" and (state is None or state.state != "ready"):
            self.on_trigger_lost("inspectd announces no frames", now_ns)
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
        self._journal.acknowledged(n)

    def on_command(self, command: Command, now_ns: int) -> Reply:
        """A person's or PLC's wish; each is an event in the ledger. ``lamp`` is reportd's own and none."""
        if command.verb == "lamp":
            pattern = str(command.arguments.get("pattern"))
            self._lamp = pattern if known(pattern) else self._lamp
            return Reply(command.id, known(pattern), f"lamp {pattern}")
        ok, text = self._obey(command, now_ns)
        data = {"verb": command.verb, "source": command.source, "id": command.id, "ok": ok, "text": text}
        self._journal.event("command", data, now_ns)
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

    def on_lead(self, name: str, lead_ns: int) -> None:
        """How long before its due time an output wants to know of an edge."""
        if name in self._gates:
            self._parts.lead(name, lead_ns)

    def on_output_lost(self, name: str, why: str, now_ns: int) -> None:
        """An output cannot be moved any more. A remote one may have hung unnoticed for as long as its watchdog bears:
        rejects that were booked meanwhile are named as suspect."""
        if name == LAMP:  # no part depends on it
            self.alarms.raise_("stick_lamp_lost", why, now_ns)
            self._tell_alarms()
            return
        suspect = [part for due_ns, part in self._fired if now_ns - due_ns < _DOUBT_NS]
        if name in self._gates and suspect:
            data = {"why": f"output {name} was lost", "first": suspect[0], "last": suspect[-1], "count": len(suspect)}
            self._journal.event("suspect_parts", data, now_ns)
            self._fired.clear()
        self.alarms.raise_("output_lost", f"{name}: {why}", now_ns)
        self._look(now_ns)

    def on_outputs_back(self, now_ns: int) -> None:
        """All outputs can be moved again; a person must still clear."""
        self.alarms.settle("output_lost")
        self.alarms.over("stick_lamp_lost", now_ns)
        self._levels.clear()
        self._look(now_ns)

    def on_longest_on(self, name: str, now_ns: int) -> None:
        """An output stood energised longer than it may: line stop and fault, never accept."""
        self._happened("longest_on", name, now_ns)
        self._look(now_ns)

    def moved(self, move: Move, at_ns: int) -> None:
        """The driver moved an output at ``at_ns``."""
        gate = self._gates.get(move.output)
        if gate is not None and gate.rejecting:
            gate.moved(at_ns, move.due_ns)

    # --- time -------------------------------------------------------------------------------------------------

    def step(self, now_ns: int) -> Effects:
        """Do all that is due by ``now_ns``."""
        hold = None if self._state == "running" else self._hold_reason()
        for part in self._parts.commit_due(now_ns, hold):
            if part.judged in ("late", "blind", "missed") and self.plan.on_late == "stop":
                self._happened("on_late_stop", f"part {part.part} is {part.judged}", now_ns)
        self._move_gates(now_ns)
        self._parts.close_due(now_ns)
        if self._purge_until_mm and self._purge_over(now_ns):
            self._look(now_ns)
        if now_ns >= self._next_tick_ns:
            self._tick(now_ns)
        return self._take()

    def next_due_ns(self, now_ns: int) -> int:
        """When ``step`` must be called again at the latest."""
        due = self._next_tick_ns
        parts_ns = self._parts.next_due_ns(now_ns)
        if parts_ns is not None and parts_ns < due:
            due = parts_ns
        edge_ns = self.next_edge_ns(now_ns)
        return due if edge_ns is None else min(due, edge_ns)

    def next_edge_ns(self, now_ns: int) -> int | None:
        """When a gate's output must move next: the instant worth spinning for."""
        due: int | None = None
        for gate in self._gates.values():
            edge_ns = gate.next_due_ns(now_ns)
            if edge_ns is not None and (due is None or edge_ns < due):
                due = edge_ns
        return due

    @property
    def state(self) -> StateName:
        return self._state

    @property
    def in_flight(self) -> int:
        """Parts numbered whose record is not yet acknowledged as committed."""
        return len(self._parts.open) + self._journal.parts_waiting

    # --- parts ------------------------------------------------------------------------------------------------

    def _new_part(self, trigger_ns: int, now_ns: int) -> None:
        part = self._parts.admit(trigger_ns, self._slip.mm if self._slip else 0.0, now_ns)
        if part is None:
            self.alarms.raise_("books_full", "parts are counted and cannot be recorded", now_ns)
            self._look(now_ns)
            return
        if isinstance(self._belt, EncoderBelt):
            if trigger_ns >= self._belt.newest_ns:
                self._unplaced.append(part)
        if self._inspect is not None and not self._stranger:
            self._effects.to_inspect.append(self._parts.trigger_of(part))

    def _two_parts_touch(self) -> None:
        self._count(Seen.DOUBLE.value)
        self._parts.touch(touching=True)

    def _account(self, account: PartClosed, part: OpenPart, now_ns: int) -> None:
        """A part closed at the gates."""
        if account.disposition == "accept" and account.disposed_by == "fault":
            self._happened("reject_failed", f"part {account.part}", now_ns)
        self.alarms.count_part(account, now_ns)
        if account.fired:
            self._fired.append((part.due_ns, part.part))
        if part.stuck:
            self.alarms.raise_("confirm_stuck", f"part {account.part}", now_ns)
        if self._slip is not None and not part.seen_at_gate:
            self._unseen += 1
            self._count("gate_eye_missed")
            if self._unseen >= _UNSEEN_LIMIT:
                self.alarms.raise_("gate_eye_lost", f"{self._unseen} parts in a row", now_ns)

    # --- state -----------------------------------------------------------------------------------------------------

    def _unknown_on_belt(self, why: str, now_ns: int, stop: bool = True) -> None:
        """Law 6: what lies between camera and gates is not known."""
        first = self.plan.purge_distance_mm(self.plan.gate)
        self._journal.event("purge", {"why": why, "distance_mm": first}, now_ns)
        self._restart_purge(now_ns)
        if stop and not self.plan.fails_to_reject:  # one cannot be held, or not by a dead box: a person clears the belt
            self._happened("purge_line_stop", why, now_ns)
        self._look(now_ns)

    def _restart_purge(self, now_ns: int) -> None:
        position_mm = self._belt.position_mm(now_ns)
        for name, gate in self.plan.gates.items():
            if gate.fails_to_reject:
                self._purge_until_mm[name] = position_mm + self.plan.purge_distance_mm(gate)

    def _purge_over(self, now_ns: int) -> bool:
        """Whether a gate's purge ended. While the belt is told to stand, or parts pass unseen, none does."""
        if self.alarms.stops_line or self._trigger_lost or self._watch.lost or not self._eye_opened:
            return False
        position_mm = self._belt.position_mm(now_ns)
        over = [name for name, until_mm in self._purge_until_mm.items() if position_mm >= until_mm]
        for name in over:
            del self._purge_until_mm[name]
        return bool(over)

    @property
    def _stranger(self) -> bool:
        """inspectd judges by another configuration: a part keeps the one it was triggered under (law 8)."""
        theirs = self._inspect.configuration if self._inspect else ""
        return bool(theirs and self.configuration) and theirs != self.configuration

    def _judge_state(self) -> tuple[StateName, str]:
        if self._safe:
            return "fault", sentence("safe_mode", self._safe)
        if code := self.alarms.fault:
            return "fault", sentence(code)
        if codes := self.alarms.stops_line:
            return "held", "the line is stopped until a person clears: " + ", ".join(codes)
        if self._trigger_lost:
            return "held", sentence("trigger_lost", self._trigger_lost)
        if self._watch.lost:
            return "held", sentence("encoder_lost", self._watch.lost)
        if "gate" in self._purge_until_mm:
            return "purging", "what lies between camera and gate is unknown and is rejected"
        if self._inspect is None:
            return "held", FAULTS["inspect_away"].says
        if self._stranger:
            return "held", "inspectd runs another configuration than rejectd; it begins anew with the right one"
        if self._inspect.state == "building":
            return "building", self._inspect.reason
        if self._inspect.state != "ready":
            return "held", f"inspectd: {self._inspect.reason or self._inspect.state}"
        if self._person_hold:
            return "held", self._person_hold
        return "running", ""

    @property
    def _may_run(self) -> bool:
        """Law 6: where the gate cannot be held the line stands while parts may pass unseen or unplaced."""
        return not self.alarms.stops_line and (self.plan.fails_to_reject or not (self._trigger_lost or self._watch.lost))

    def _hold_reason(self) -> HoldReason:
        return "fault" if self._state == "fault" else "purge" if self._state == "purging" else "held"

    def _look(self, now_ns: int) -> None:
        """Work out the state; hold or free the gates; tell outputs and reportd what changed."""
        was_stopped = bool(self._levels) and not self._levels.get("line_stop", True)
        self._state, self._reason = self._judge_state()
        may_run = self._may_run
        held_gates = any(gate.fails_to_reject for gate in self.plan.gates.values())
        if was_stopped and may_run and held_gates and not isinstance(self._belt, EncoderBelt):
            # The belt stood while we could not see it: positions are void, a purge under way begins anew.
            self._levels["line_stop"] = True
            self._effects.moves.append(Move("line_stop", True, now_ns))
            self._unknown_on_belt("the line was stopped", now_ns, stop=False)
            return
        self._hold_gates(now_ns)
        self._output("ready", self._state == "running", now_ns)
        self._output("fault", self._state != "fault", now_ns)
        self._output("line_stop", may_run, now_ns)
        self._move_gates(now_ns)
        self._tell_alarms()
        if (self._state, self._reason) != self._told:
            self._told = (self._state, self._reason)
            self._since_us = self._clock.wall_us(now_ns)
            self._status(now_ns)

    def _hold_gates(self, now_ns: int) -> None:
        if self._gates["gate"].held:
            self._held_until_ns = now_ns
        for name, gate in self._gates.items():
            can_be_held = self.plan.gates[name].kind == "hold"
            if self._state != "running" and can_be_held:
                gate.hold(self._hold_reason(), now_ns)
            elif name in self._purge_until_mm and can_be_held:
                gate.hold("purge", now_ns)
            else:
                gate.release(now_ns)

    def _move_gates(self, now_ns: int) -> None:
        for name, gate in self._gates.items():
            due_ns = gate.step(now_ns)
            if due_ns is not None or self._levels.get(name) is None:
                level = gate.rejecting == self.plan.gates[name].reject_level
                self._levels[name] = level
                self._effects.moves.append(Move(name, level, now_ns if due_ns is None else due_ns))
                if name == "gate":
                    self._home_since_ns = None if gate.rejecting else now_ns

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
        self._watch_belt(now_ns)
        self._watch_proof(now_ns)
        self._watch_books(now_ns)
        self._guard.step(now_ns, self._home_since_ns)
        if self._lamp is not None:
            self._output(LAMP, lit(self._lamp, self._ticks), now_ns)
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

    def _watch_belt(self, now_ns: int) -> None:
        self.counts.update(self._watch.step(now_ns))
        if self._watch.noisy:
            self.alarms.raise_("encoder_noise", "missing or made up", now_ns)
        else:
            self.alarms.over("encoder_noise", now_ns)

    def _belt_lost(self, why: str, now_ns: int) -> None:
        self._happened("encoder_lost", why, now_ns)
        self._unknown_on_belt(f"encoder lost: {why}", now_ns)

    def _believe_belt(self, now_ns: int) -> None:
        """If its inputs are there and a person has cleared; what lies on it is unknown all the same, from here on."""
        if self._watch.lost and self._watch.complete and not self.alarms.raised("encoder_lost"):
            self._watch.believe(now_ns)
            self._unknown_on_belt("the encoder was lost", now_ns)

    def _watch_proof(self, now_ns: int) -> None:
        proof = self._parts.proof
        if proof is None:
            return
        for at_ns in proof.take_unexpected(now_ns, self._parts.at_gate_since_ns(now_ns)):
            held = self._gates["gate"].held is not None or at_ns - self._held_until_ns < 2 * proof.within_ns
            if not held:  # else it may be one of the parts that nobody knows
                self._count("unexpected")
                self.alarms.count_unexpected(now_ns)

    def _watch_books(self, now_ns: int) -> None:
        if self._books.half_full:
            self.alarms.raise_("books_waiting", f"{len(self.journal)} records", now_ns)
            return
        self.alarms.over("books_waiting", now_ns)
        if self._parts.unrecorded:
            self._tell_unrecorded(now_ns)
            self.alarms.settle("books_full")

    def _tell_unrecorded(self, now_ns: int) -> None:
        if self._parts.unrecorded:
            first, last = self._parts.unrecorded
            self._parts.unrecorded = None
            self._journal.event("unrecorded", {"first": first, "last": last, "count": last - first + 1}, now_ns)

    def _obey(self, command: Command, now_ns: int) -> tuple[bool, str]:
        if command.verb == "clear":
            gone = self.alarms.clear(now_ns)
            self._believe_belt(now_ns)
            left = ", ".join(self.alarms.stops_line)
            return not left, f"cleared: {', '.join(gone) or 'nothing'}" + (f"; still standing: {left}" if left else "")
        if command.verb == "hold":
            self._person_hold = f"held by {command.source}"
            return True, "held: the gate rejects"
        if command.verb == "release":
            self._person_hold = None
            return True, "released"
        return False, f"{command.verb}: not known here; use clear, hold or release"

    def _happened(self, code: str, what: str, now_ns: int) -> None:
        """An alarm for something that is over as it is told: a person can clear it at once."""
        self.alarms.raise_(code, what, now_ns)
        self.alarms.settle(code)

    def _tell_alarms(self) -> None:
        changes, self.alarms.changes = self.alarms.changes, []
        for code, raised, text, latched, at_ns in changes:
            if raised:
                self._alarm_wall_us[code] = self._clock.wall_us(at_ns)
            data = {"code": code, "text": text, "latched": latched}
            self._journal.event("alarm_raised" if raised else "alarm_cleared", data, at_ns)

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
                last_closed=self._parts.last_closed,
                alarms=self.alarms.as_messages(self._alarm_wall_us),
                counts={**self.counts, "consecutive_fails": self.alarms.consecutive_fails},
                line_stop=not self._may_run,
                configuration=self.configuration,
                version=self._version,
                inputs_lost=dict(self._inputs_lost),
            )
        )

    def _count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def _take(self) -> Effects:
        effects, self._effects = self._effects, Effects()
        effects.journalled, self._journal.fresh = self._journal.fresh, []
        return effects
