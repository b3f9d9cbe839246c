"""rejectd: the loop that reads the photo-eye, hears verdicts and moves the gate when the trigger said so.

Nothing here waits for anyone: sockets do not block, no disk is written, nothing is imported or built after the start.
"""

from __future__ import annotations

import logging
import secrets
import select
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Union

from appliance.clock import SPIN_NS, become_real_time, spin_until
from appliance.identity import new_ulid
from appliance.link import Listener, SocketLink
from appliance.messages import Ack, Command, Edge, Event, FrameSeen, Hello, InspectState, Message, PartClosed, Verdict
from appliance.notify import Notifier
from appliance.paths import Paths
from appliance.ports import Clock, Input, InputLost, LinkClosed, Output, OutputLost
from appliance.reject.belt import Belt
from appliance.reject.books import open_books
from appliance.reject.plan import MS, Plan
from appliance.reject.rejector import Effects, Move, Rejector

log = logging.getLogger("appliance.reject")

RETRY_NS = 100 * MS
_MOST_TO_INSPECT = 2000
OUTPUTS_WAIT_NS = 5_000 * MS  # at boot udev gives a pin its group, and a coupler takes its connection, after we are up
_OUTPUTS_LOOK_S = 0.05
_SENDS_PER_TURN = 16  # a reconnecting reportd gets its backlog in slices: the gate comes first
_STOP_NS = 1_500 * MS  # how long a stopping rejectd stays for the last records to be acknowledged


@dataclass(frozen=True)
class RejectBuild:
    """What wiring hands over. ``outputs`` by role: gate, and where there are: divert, ready, fault, line_stop, heartbeat,
    stick. ``configuration``, ``version``, ``safe`` as Rejector has them.

    ``inputs``: how each is opened, by role: trigger (absent where each frame is a part), encoder, encoder_b, running,
    confirm, gate_eye, clear, air_ok, bin_full, gate_home."""

    plan: Plan
    belt: Belt
    outputs: dict[str, Output]
    inputs: dict[str, Callable[[], Input]]
    core: int | None = None
    configuration: str = ""
    version: str = ""
    safe: str = ""


class Rejectd:
    """One rejectd: sockets and pins around a Rejector."""

    def __init__(self, build: RejectBuild, paths: Paths, clock: Clock, notifier: Notifier | None = None) -> None:
        """The outputs stand in reject before anything is read or opened. Raises BooksBroken, OSError."""
        self._build = build
        self._paths = paths
        self._clock = clock
        self._notifier = notifier or Notifier({}, 0)
        self._outputs = build.outputs
        self._lost: dict[str, bool] = {}
        self._energised_ns: dict[str, int] = {}
        self._outputs_first()
        self._inputs: dict[str, Input] = {}
        self._listener = Listener(paths.reject_socket)
        self._strangers: list[SocketLink] = []
        self._inspect: SocketLink | None = None
        self._report: SocketLink | None = None
        self._to_inspect: deque[Message] = deque(maxlen=_MOST_TO_INSPECT)  # a hung inspectd loses the stale ones
        self._to_report: deque[PartClosed | Event] = deque()
        self._retry_ns = 0
        self.stopping = False
        self._books = open_books(paths.parts_file)
        self._rejector = Rejector(
            build.plan, build.belt, self._books, clock, build.configuration, build.version, build.safe
        )  # fmt: skip

    def start(self) -> None:
        """Take over the books; then the service manager may know that the outputs stand in reject."""
        now_ns = self._clock.now_ns()
        new_run = new_ulid(self._clock.wall_us(now_ns), secrets.token_bytes(10))
        first_part = read_ceiling(self._paths) + 1
        self._rejector.start(now_ns, new_run, secrets.token_hex(8), first_part)
        self._open_inputs(now_ns)
        self._to_report.extend(self._rejector.journal.values())
        self._apply(self._rejector.step(self._clock.now_ns()), journal_known=True)
        self._notifier.ready(self._rejector.state)

    def run(self) -> None:
        """Until ``stopping``: wait, read, step, act."""
        while not self.stopping:
            self._wait()
            self._read()
            self._apply(self._rejector.step(self._clock.now_ns()))
            self._send()
            self._supervise(self._clock.now_ns())

    def close(self) -> None:
        """Gate to reject, open parts closed, the last records handed over if reportd listens."""
        self._notifier.stopping()
        self._apply(self._rejector.stop(self._clock.now_ns()))
        end_ns = self._clock.now_ns() + _STOP_NS
        while self._report and self._rejector.journal and self._clock.now_ns() < end_ns:
            self._notifier.alive(self._clock.now_ns())
            self._send()
            if self._report is None:
                break
            select.select([self._report], [], [], 0.02)
            self._read_report()
        for output in self._outputs.values():
            output.close()
        for one in self._inputs.values():
            one.close()
        for link in (self._inspect, self._report, *self._strangers):
            if link:
                link.close()
        self._listener.close()

    def _outputs_first(self) -> None:
        """Each output to its start level. One that is away is waited for, the others stand meanwhile; the first effects tell
        of one that stays away."""
        end_ns = self._clock.now_ns() + OUTPUTS_WAIT_NS
        away = dict.fromkeys(self._outputs, "")
        while away:
            for name in list(away):
                try:
                    self._outputs[name].set(self._outputs[name].start, self._clock.now_ns())
                    del away[name]
                except OutputLost as why:
                    away[name] = str(why)
            if self._clock.now_ns() >= end_ns:
                break
            select.select([], [], [], _OUTPUTS_LOOK_S if away else 0.0)
        for name, text in away.items():
            log.warning("output %s is not in its start level yet: %s", name, text)

    # --- waiting and reading --------------------------------------------------------------------------------

    def _wait(self) -> None:
        now_ns = self._clock.now_ns()
        due_ns = self._rejector.next_due_ns(now_ns)
        edge_ns = self._rejector.next_edge_ns(now_ns)
        spins = edge_ns is not None and edge_ns <= due_ns
        until_ns = due_ns - SPIN_NS if spins else due_ns
        if self._to_inspect or self._to_report:
            until_ns = min(until_ns, now_ns + 1 * MS)
        readers: list[Union[SocketLink, Listener, Input]] = [self._listener, *self._strangers]
        readers += self._inputs.values()
        readers += [one for one in (self._inspect, self._report) if one is not None]
        # select, not poll: its wait is not rounded up to a whole millisecond.
        select.select(readers, [], [], max(0.0, (until_ns - now_ns) / 1e9))
        if spins and 0 < due_ns - self._clock.now_ns() <= SPIN_NS:
            effects = self._rejector.step(due_ns)  # worked out before the spin: it takes longer than an edge may be late
            spin_until(due_ns)
            self._apply(effects)  # the edge first, the reading after it

    def _read(self) -> None:
        self._read_inputs()
        self._accept()
        self._read_inspect()
        self._read_report()

    def _read_inputs(self) -> None:
        """Edges of all inputs in the order in which they happened: a trigger's place is that of the pulses before it."""
        edges: list[tuple[int, str, Edge]] = []
        for role, one in list(self._inputs.items()):
            try:
                edges += [(edge.time_ns, role, edge) for edge in one.read()]
            except InputLost as why:
                log.warning("input %s is gone: %s", role, why)
                one.close()
                del self._inputs[role]
                self._rejector.on_input_lost(role, str(why), self._clock.now_ns())
        if len(edges) > 1:
            edges.sort(key=itemgetter(0))
        for _, role, edge in edges:
            self._rejector.on_input(role, edge, self._clock.now_ns())

    def _accept(self) -> None:
        while (link := self._listener.accept()) is not None:
            self._strangers.append(link)
        for link in list(self._strangers):
            try:
                messages = link.receive(at_most=1)
            except LinkClosed:
                self._strangers.remove(link)
                link.close()
                continue
            if messages:
                self._strangers.remove(link)
                self._welcome(link, messages[0])

    def _welcome(self, link: SocketLink, hello: Message) -> None:
        if not isinstance(hello, Hello) or hello.role not in ("inspect", "report"):
            link.close()
            return
        try:
            link.send(Hello("reject", self._books.header.journal, 0))
        except LinkClosed:
            link.close()
            return
        log.info("%s connected (process %d)", hello.role, hello.pid)
        if hello.role == "inspect":
            if self._inspect:
                self._inspect.close()
            self._inspect = link
            self._to_inspect.clear()
            return
        if self._report:
            self._report.close()
        self._report = link
        self._to_report = deque(self._rejector.journal.values())
        self._rejector.on_report(True, self._clock.now_ns())

    def _read_inspect(self) -> None:
        if self._inspect is None:
            return
        try:
            messages = self._inspect.receive()
        except LinkClosed:
            log.warning("inspectd is gone: every part is rejected until it is back")
            self._inspect.close()
            self._inspect = None
            self._to_inspect.clear()
            self._rejector.on_inspect(None, self._clock.now_ns())
            return
        now_ns = self._clock.now_ns()
        for message in messages:
            if isinstance(message, Verdict):
                self._rejector.on_verdict(message, now_ns)
            elif isinstance(message, FrameSeen):
                self._rejector.on_frame_seen(message, now_ns)
            elif isinstance(message, InspectState):
                self._rejector.on_inspect(message, now_ns)

    def _read_report(self) -> None:
        if self._report is None:
            return
        try:
            messages = self._report.receive()
        except LinkClosed:
            log.warning("reportd is gone: records wait in memory")
            self._drop_report()
            return
        for message in messages:
            if isinstance(message, Ack):
                self._rejector.on_ack(message.n)
            elif isinstance(message, Command):
                reply = self._rejector.on_command(message, self._clock.now_ns())
                self._tell_report(reply)

    def _drop_report(self) -> None:
        if self._report:
            self._report.close()
        self._report = None
        self._rejector.on_report(False, self._clock.now_ns())

    # --- acting ----------------------------------------------------------------------------------------------

    def _apply(self, effects: Effects, journal_known: bool = False) -> None:
        for move in effects.moves:
            self._move(move)
        if self._inspect:
            self._to_inspect.extend(effects.to_inspect)
        if not journal_known:
            self._to_report.extend(effects.journalled)
        for message in effects.to_report:
            self._tell_report(message)

    def _move(self, move: Move) -> None:
        output = self._outputs.get(move.output)
        if output is None:
            return
        try:
            now_ns = self._clock.now_ns()
            at_ns = output.set(move.energised, max(now_ns, move.due_ns) if output.lead_ns else now_ns)
        except OutputLost as why:
            if move.output not in self._lost:  # the heartbeat asks ten times a second
                log.error("output %s cannot be moved: %s", move.output, why)
            self._lost[move.output] = move.energised
            self._rejector.on_output_lost(move.output, str(why), self._clock.now_ns())
            return
        if move.energised:
            self._energised_ns.setdefault(move.output, at_ns)
        else:
            self._energised_ns.pop(move.output, None)
        self._rejector.moved(move, at_ns)

    def _tell_report(self, message: Message) -> None:
        if self._report is None:
            return
        try:
            self._report.send(message)  # status and replies: newest wins, a full socket may lose one
        except LinkClosed:
            self._drop_report()

    def _send(self) -> None:
        try:
            for _ in range(_SENDS_PER_TURN):
                if not (self._inspect and self._to_inspect and self._inspect.send(self._to_inspect[0])):
                    break
                self._to_inspect.popleft()
        except LinkClosed:
            self._to_inspect.clear()  # the next read finds the link closed and says so
        if self._report is None:
            self._to_report.clear()  # the journal keeps it all; a new link begins with the journal
            return
        try:
            for _ in range(_SENDS_PER_TURN):
                if not (self._to_report and self._report.send(self._to_report[0])):
                    break
                self._to_report.popleft()
        except LinkClosed:
            self._drop_report()

    # --- watching over pins ------------------------------------------------------------------------------------

    def _open_inputs(self, now_ns: int) -> None:
        for role, opener in self._build.inputs.items():
            if role in self._inputs:
                continue
            try:
                self._inputs[role] = opener()
            except InputLost as why:
                self._rejector.on_input_lost(role, str(why), now_ns)
                continue
            self._rejector.on_input_back(role, now_ns)

    def _supervise(self, now_ns: int) -> None:
        if now_ns < self._retry_ns:
            return
        self._retry_ns = now_ns + RETRY_NS
        self._notifier.alive(now_ns)
        self._notifier.status(self._rejector.state)
        self._hear_of_configurations()
        self._open_inputs(now_ns)
        for name, since_ns in self._energised_ns.items():
            longest_ms = self._outputs[name].longest_on_ms
            if longest_ms is not None and now_ns - since_ns > longest_ms * MS:
                self._rejector.on_longest_on(name, now_ns)
        for name, output in self._outputs.items():
            self._rejector.on_lead(name, output.lead_ns)
            self._check_output(name, output, now_ns)
        if self._lost:
            self._retry_outputs(now_ns)

    def _hear_of_configurations(self) -> None:
        """Another one was chosen: begin anew with it, or where it changes nothing here go by its name. Files in memory."""
        if self._paths.again_file("reject").exists():
            self.stopping = True
        same = self._paths.same_file("reject")
        if same.exists():
            self._rejector.configuration = same.read_text(encoding="ascii")
            same.unlink()

    def _check_output(self, name: str, output: Output, now_ns: int) -> None:
        try:
            output.check(now_ns)
        except OutputLost as why:
            if name not in self._lost:
                log.error("output %s: %s", name, why)
                self._lost[name] = name in self._energised_ns
                self._rejector.on_output_lost(name, str(why), now_ns)

    def _retry_outputs(self, now_ns: int) -> None:
        for name, energised in list(self._lost.items()):
            try:
                self._outputs[name].set(energised, now_ns)
            except OutputLost:
                continue
            del self._lost[name]
        if not self._lost:
            self._rejector.on_outputs_back(now_ns)


def read_ceiling(paths: Paths) -> int:
    """The highest part number that may have been used (reportd keeps it on disk), 0 where there is none."""
    try:
        return int(paths.part_ceiling.read_text().strip() or 0)
    except FileNotFoundError:
        return 0
    except ValueError:
        log.error("%s does not hold a number; part numbers begin anew above what the ledger knows", paths.part_ceiling)
        return 0


def main(build: RejectBuild, paths: Paths, clock: Clock, notifier: Notifier | None = None) -> int:
    """Run rejectd until SIGTERM or SIGINT. Raises BooksBroken, OSError at start only."""
    daemon = Rejectd(build, paths, clock, notifier)

    def stop(_signal: int, _frame: object) -> None:
        daemon.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    daemon.start()
    real_time = become_real_time(core=build.core)
    for lost in real_time.lost:
        log.warning("%s", lost)
    log.info("rejectd runs, state %s", daemon._rejector.state)
    try:
        daemon.run()
    finally:
        daemon.close()
    return 0
