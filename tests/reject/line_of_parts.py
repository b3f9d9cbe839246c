"""A rejectd without sockets: a Rejector on a virtual clock, driven from instant to instant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.clock import VirtualClock
from appliance.messages import Command, Edge, Event, Heard, InspectState, PartClosed, Status, Trigger, Verdict, VerdictName
from appliance.reject.belt import Belt, ConstantBelt, EncoderBelt
from appliance.reject.books import Books
from appliance.reject.plan import AlarmPlan, GatePlan, Plan
from appliance.reject.rejector import Rejector

MS = 1_000_000
SLOTS = 400
GATE = GatePlan("hold", "accept", 420, 40, 12)
CALM = AlarmPlan(consecutive_rejects=10_000, reject_rate=(1.0, 200), stops_line=frozenset())
PLAN = Plan(500, 28, GATE, 20, 600, min_pitch_mm=10, max_part_mm=40, recipe="r", recipe_number=1, alarms=CALM)
READY = InspectState("ready", "", 1.0, "r", 1, "sha256:0", {})


def verdict(part: int, name: VerdictName, cause: str | None = None) -> Verdict:
    return Verdict(part, name, cause, 0.5, 0.5, 1, 5.0, 0.2, 2.0, 0.1)


@dataclass
class Line:
    """``answer(part number) -> verdict name and ms after the trigger``, or None for silence."""

    plan: Plan = PLAN
    buffer: bytearray = field(default_factory=lambda: bytearray(Books.bytes_for(SLOTS)))
    answer: Callable[[int], tuple[VerdictName, float] | None] = lambda part: ("pass", 20.0)
    acknowledge: bool = True
    now: int = 1_000 * MS
    ready: bool = True
    eye: bool = True
    speed: float = 500.0
    """mm/s that an encoder sees; a belt without one runs as the plan says."""

    def __post_init__(self) -> None:
        self.place_mm = 0.0
        self._place_ns = self.now
        self.records: list[PartClosed] = []
        self.events: list[Event] = []
        self.triggers: list[Trigger] = []
        self.moves: list[tuple[int, str, bool]] = []
        self.heard: list[int] = []
        self.status: Status | None = None
        self._answers: list[tuple[int, Verdict]] = []
        self._sequences: dict[str, int] = {}
        self._edges = 0
        self.boot()

    def boot(self) -> None:
        """Start (again) on what the books hold."""
        self.clock = VirtualClock(self.now)
        self.rejector = Rejector(self.plan, self._belt(), Books(self.buffer, SLOTS), self.clock)
        self.rejector.start(self.now, f"run-{self.now}", "journal", 1)
        self._edges = 0
        self._answers.clear()
        for message in list(self.rejector.journal.values()):
            self._journalled(message)
        self._apply(self.rejector.step(self.now), seen=True)
        if self.eye:
            self.rejector.on_edge(Edge("eye", False, self.now, 0), self.now)
        if self.ready:
            self.rejector.on_inspect(READY, self.now)

    def _belt(self) -> Belt:
        encoder = self.plan.encoder
        if encoder is None:
            return ConstantBelt(self.plan.speed_mm_s)
        return EncoderBelt(encoder.mm_per_pulse, self.plan.speed_mm_s, self.plan.stopped_after_ms)

    def run_at(self, speed: float) -> None:
        """The belt runs so fast from now on; less than 0 = back."""
        self._travel(self.now)
        self.speed = speed

    def _travel(self, now: int) -> None:
        self.place_mm += (now - self._place_ns) / 1e9 * self.speed
        self._place_ns = now

    def _next_pulse_ns(self) -> int:
        """When the belt passes the next whole pulse."""
        if self.plan.encoder is None or not self.speed:
            return 1 << 62
        mm = self.plan.encoder.mm_per_pulse
        ahead_mm = mm - self.place_mm % mm if self.speed > 0 else self.place_mm % mm or mm
        return self._place_ns + max(1, round(ahead_mm / abs(self.speed) * 1e9))

    def until(self, now: int) -> None:
        """Let time pass, answering as the plan says."""
        while True:
            due = self.rejector.next_due_ns(self.now)
            pulse = self._next_pulse_ns()
            due = min([due, pulse, *(at for at, _ in self._answers)])
            if due > now:
                break
            self.now = max(self.now, due)
            self.clock.advance_to(self.now)
            if self.now >= pulse:
                self._travel(self.now)
                self.rejector.on_pulse(self.now, self.speed > 0)
            for at, one in [pair for pair in self._answers if pair[0] <= self.now]:
                self._answers.remove((at, one))
                self.rejector.on_verdict(one, self.now)
            self._apply(self.rejector.step(self.now))
        self.now = now
        self.clock.advance_to(now)

    def run_in(self) -> None:
        """Until the purge after start is over."""
        self.until(self.now + 1_300 * MS)
        assert self.rejector.state == "running", (self.rejector.state, self.status)

    def part(self, after_ms: float, length_mm: float = 28) -> int:
        """A part at the eye, ``after_ms`` from now; returns its instant."""
        self.until(self.now + round(after_ms * MS))
        at = self.now
        self._edge(True, at)
        self._apply(self.rejector.step(at))
        speed = self.speed if self.plan.encoder else self.plan.speed_mm_s
        self.until(at + round(length_mm / speed * 1e9))
        self._edge(False, self.now)
        return at

    def _edge(self, level: bool, at: int) -> None:
        self._edges += 1
        self.rejector.on_edge(Edge("eye", level, at, self._edges), at)

    def input(self, role: str, level: bool, at: int | None = None) -> None:
        """An edge of another input than the trigger's."""
        self._sequences[role] = self._sequences.get(role, -1) + 1
        self.rejector.on_input(role, Edge(role, level, self.now if at is None else at, self._sequences[role]), self.now)
        self._apply(self.rejector.step(self.now))

    def levels(self, output: str) -> list[tuple[int, bool]]:
        """(instant, energised) of each movement of an output."""
        return [(at, energised) for at, name, energised in self.moves if name == output]

    def finish(self) -> None:
        self.until(self.now + 3_000 * MS)

    def command(self, verb: str) -> bool:
        reply = self.rejector.on_command(Command("1", verb, {}, "test"), self.now)
        self._apply(self.rejector.step(self.now))
        return reply.ok

    def late(self, one: Verdict) -> None:
        self.rejector.on_verdict(one, self.now)

    def _apply(self, effects, seen: bool = False) -> None:
        for move in effects.moves:
            self.moves.append((self.now, move.output, move.energised))
            self.rejector.moved(move, max(self.now, move.due_ns))  # a driver that was told early moves when it is due
        for message in effects.to_inspect:
            if isinstance(message, Trigger):
                self.triggers.append(message)
                given = self.answer(message.part)
                if given:
                    self._answers.append((message.time_ns + round(given[1] * MS), verdict(message.part, given[0])))
            elif isinstance(message, Heard):
                self.heard.append(message.part)
        for message in [] if seen else effects.journalled:
            self._journalled(message)
        for message in effects.to_report:
            if isinstance(message, Status):
                self.status = message

    def _journalled(self, message: PartClosed | Event) -> None:
        if isinstance(message, PartClosed):
            if all(one.part != message.part for one in self.records):
                self.records.append(message)
        else:
            self.events.append(message)
        if self.acknowledge:
            self.rejector.on_ack(message.n)

    def gate_rejecting(self) -> list[tuple[int, bool]]:
        """(instant, rejecting) of each movement of the gate's output."""
        level = self.plan.gate.reject_level
        return [(at, energised == level) for at, output, energised in self.moves if output == "gate"]
