"""reportd: hears rejectd and inspectd, writes the ledger, tells the broker. Nobody waits for it."""

from __future__ import annotations

import json
import logging
import os
import secrets
import select
import shutil
import signal
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from appliance.faults import sentence
from appliance.link import Listener, SocketLink, connect
from appliance.messages import Ack, Command, Event, Hello, InspectState, Message, PartClosed, Reply, Status
from appliance.notify import Notifier
from appliance.paths import Paths
from appliance.ports import BoxSensors, BoxTold, Clock, LinkClosed, Publisher
from appliance.report.dialogue import remembered
from appliance.report.ledger import Ledger
from appliance.report.outbox import Outbox
from appliance.report.plc import PlcMap
from appliance.report.plc_commands import PLC_ID
from appliance.report.record import wall
from appliance.report.reporter import Reporter
from appliance.report.spool import Spool

log = logging.getLogger("appliance.report")

RETRY_NS = 100_000_000
HEALTH_NS = 5_000_000_000
CEILING_AHEAD = 100_000
_GOODBYE_NS = 1_200_000_000
STANDING_NS = 500_000_000  # state.json is written anew at least so often
HUNG_NS = 1_000_000_000  # rejectd tells its status five times a second
LAMP_ID = "lamp"  # of the command with which rejectd is told of it; its answer is for nobody
STICK_ALARMS = ("stick_refused", "stick_unreadable")
_REPLIES_KEPT = 200
_OPENING_S = 300.0  # SQLite takes over what a power cut left in its log: minutes on a slow disk


class BrokerLink(Publisher, Protocol):
    """A Publisher with a life: what devices/publisher_mqtt gives."""

    connected: bool
    reason: str

    def fileno(self) -> int: ...
    def step(self, now_ns: int) -> list[tuple[str, Any]]: ...
    def subscribe(self) -> None: ...
    def reply(self, topic: str, payload: bytes, correlation: bytes | None) -> None: ...
    def close(self) -> None: ...


class PlcServing(Protocol):
    """The PLC's server with a life: what devices/plc_server gives. ``reason``: why it does not listen, "" = it does."""

    reason: str

    def close(self) -> None: ...


@dataclass(frozen=True)
class ReportBuild:
    """What wiring hands over. ``broker`` None: no MQTT. ``commands``: verbs accepted over it. ``plc`` None: no Modbus.

    ``version``: of the program; ``revision``, ``generation``: of the configuration (None: of no store); ``fallback``: why it
    is not the one that was chosen; ``safe``: why there is none that can be used. "" both: all is as it should be."""

    station: str
    simulated: bool
    broker: Callable[[], BrokerLink] | None
    commands: frozenset[str]
    config_digest: str
    config_crc32: int = 0
    plc: Callable[[PlcMap], PlcServing] | None = None
    version: str = ""
    revision: int = 0
    generation: int | None = None
    fallback: str = ""
    safe: str = ""
    box: Callable[[Path], BoxSensors] | None = None
    """The machine's sensors, given the data folder; None: they are not looked at."""


class Reportd:
    """One reportd: sockets, broker and disk around a Reporter."""

    def __init__(self, build: ReportBuild, paths: Paths, clock: Clock, notifier: Notifier | None = None) -> None:
        self._build, self._paths, self._clock = build, paths, clock
        self._notifier = notifier or Notifier({}, 0)
        self._notifier.extend(_OPENING_S)
        self._notifier.status("opening the ledger")
        self.ledger = Ledger(paths.ledger_file, build.station, build.simulated)
        self.reporter = Reporter(self.ledger)
        self.outbox = Outbox(self.ledger, build.station)
        self._listener = Listener(paths.report_socket)
        self._links: dict[SocketLink, str] = {}
        self._reject: SocketLink | None = None
        self._reject_journal = ""
        self._broker = build.broker() if build.broker else None
        self._plc_map = PlcMap(simulated=build.simulated, config_crc32=build.config_crc32)
        self._plc_map.on_counts(self.ledger.counts)
        self._run_before = self.ledger.run if self.ledger.counts["triggers"] else ""
        self._plc = build.plc(self._plc_map) if build.plc else None
        self._box = build.box(paths.data) if build.box else None
        self._box_told: BoxTold | None = None
        self._warnings: list[str] = []
        self._spared: tuple[SocketLink, bool] | None = None
        self._retry_ns = self._health_ns = 0
        self._ceiling = 0
        self._replies: OrderedDict[str, bytes] = OrderedDict()
        self._asked: dict[str, tuple[str, bytes | None]] = {}
        self._wall_check: int | None = None
        self._spool = Spool(paths.spool_dir, self.ledger, paths.run, clock.quality)
        self._dialogue = remembered(read_json(paths.stick_file))
        self._lamp_told: tuple[SocketLink, str] | None = None
        self._inspect: tuple[SocketLink, InspectState] | None = None
        self._standing: dict[str, Any] = {}
        self._standing_ns = self._again_ns = 0
        self.stopping = False
        if highest := self.ledger.highest_part():  # a box that never ran begins at part 1, not above a ceiling
            self._raise_ceiling(highest)
        self.reporter.put("available", "online")
        self.reporter.put_counters()
        self._own_event("report_start", {"configuration": build.config_digest, "generation": build.generation})
        if build.fallback or build.safe:
            kind = "safe_mode" if build.safe else "configuration_fallback"
            self._own_event(kind, {"why": build.safe or build.fallback})
        fallback = sentence("configuration_fallback", build.fallback) if build.fallback else ""
        self.reporter.own_alarm("configuration_fallback", bool(build.fallback), fallback)
        self._tell_dialogue()

    def run(self) -> None:
        """Until ``stopping``."""
        while not self.stopping:
            self._wait()
            self.turn(self._clock.now_ns())
            self._notifier.alive(self._clock.now_ns())

    def turn(self, now_ns: int) -> None:
        """One turn of the loop."""
        self._connect(now_ns)
        self._read(now_ns)
        self._broker_step(now_ns)
        for event in self.reporter.take_late_images():
            self._own_event("image", event.data)
        self._read_spool(now_ns)
        self._acknowledge(self.reporter.step(now_ns))
        self._plc_step(now_ns)
        self._box_step(now_ns)
        self._watch_wall_clock(now_ns)
        self._hear_of_configurations(now_ns)
        self._light_lamp()
        self._tell_standing(now_ns)
        self._health(now_ns)
        self._publish()

    def close(self) -> None:
        """What is there is written and, if the broker takes it within a second, published."""
        self._notifier.stopping()
        end_ns = self._clock.now_ns() + _GOODBYE_NS
        while self._reject and self._clock.now_ns() < end_ns:  # rejectd says its last words before us
            select.select([self._reject], [], [], 0.05)
            self._read(self._clock.now_ns())
            self._acknowledge(self.reporter.step(self._clock.now_ns()))
        self._acknowledge(self.reporter.drain(self._clock.now_ns()))
        if self._plc:
            self._plc.close()
        if self._box:
            self._box.close()
        while self._broker and self._broker.connected and self.outbox.backlog and self._clock.now_ns() < end_ns:
            self._publish()
            select.select([self._broker], [], [], 0.05)
            self._broker_step(self._clock.now_ns())
        self.reporter.put("available", "stopped")
        self.reporter.put("state", {"state": "stopped", "reason": "stopped", "since": None, "progress": 0.0})
        self._publish()
        if self._broker:
            self._broker.close()
        self.ledger.close()
        for link in self._links:
            link.close()
        self._listener.close()

    # --- links -----------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        readers: list[Any] = [self._listener, *self._links]
        if self._broker:
            readers.append(self._broker)
        busy = self.ledger.waiting or self.reporter.waiting
        select.select(readers, [], [], 0.02 if busy else 0.1)

    def _connect(self, now_ns: int) -> None:
        while (link := self._listener.accept()) is not None:
            self._links[link] = ""
        if self._reject is not None or now_ns < self._retry_ns:
            return
        self._retry_ns = now_ns + RETRY_NS
        self._reject = connect(self._paths.reject_socket, Hello("report", secrets.token_hex(4), os.getpid()))
        if self._reject:
            self._links[self._reject] = ""

    def _read(self, now_ns: int) -> None:
        for link in list(self._links):
            try:
                messages = link.receive()
            except LinkClosed:
                self._lost(link)
                continue
            for message in messages:
                if isinstance(message, Hello):
                    self._links[link] = message.journal
                    if link is not self._reject:
                        link.send(Hello("report", "", os.getpid()))
                else:
                    self._hear(link, message, now_ns)

    def _hear(self, link: SocketLink, message: Message, now_ns: int) -> None:
        if isinstance(message, Reply):
            if message.id == LAMP_ID:
                return
            if message.id.startswith(PLC_ID):
                self._plc_map.on_reply(message)
            else:
                self._answer(message.id, message.ok, message.text)
            return
        journal = self._links[link]
        if isinstance(message, (PartClosed, Event)) and self.ledger.seen(journal, message.n):
            link.send(Ack(message.n))  # it came again because our acknowledgement was lost
            return
        if isinstance(message, Status):
            self._raise_ceiling(message.next_part)
            self._plc_status(message)
        elif isinstance(message, InspectState):
            self._plc_map.on_inspect(message)
            self._inspect = (link, message)
        self.reporter.on_message(message, journal, now_ns)

    def _lost(self, link: SocketLink) -> None:
        del self._links[link]
        link.close()
        if self._inspect and link is self._inspect[0]:
            self._inspect = None
        if link is self._reject:
            log.warning("rejectd is gone")
            self._reject = None
            self.reporter.rejectd_gone()
            self._plc_map.on_rejectd_gone()

    def _acknowledge(self, durable: dict[str, int]) -> None:
        for link, journal in list(self._links.items()):
            if journal in durable:
                try:
                    link.send(Ack(durable[journal]))
                except LinkClosed:
                    continue  # the next read finds it closed
        self._spool.committed(durable)

    # --- broker ----------------------------------------------------------------------------------------------

    def _broker_step(self, now_ns: int) -> None:
        if self._broker is None:
            return
        for what, value in self._broker.step(now_ns):
            if what == "connected":
                self.outbox.connection_lost()
                self._broker.subscribe()
                self.reporter.changed.extendleft(reversed(self.reporter.retained))
            elif what == "lost":
                self.outbox.connection_lost()
            elif what == "acked":
                self.outbox.acknowledged(value)
            elif what == "arrived":
                self._command(value)

    def _publish(self) -> None:
        broker, changed = self._broker, self.reporter.changed
        if broker is None or not broker.connected:
            changed.clear()  # all that is retained is told at the next connect
            return
        told: set[str] = set()
        while changed:  # state, counters and alarms never wait for the backlog
            topic = changed.popleft()
            if topic in told:
                continue
            told.add(topic)
            qos = 0 if topic == "health" else 1
            broker.publish(f"{self._build.station}/{topic}", self.reporter.retained[topic], qos=qos, retain=True)
        self.outbox.send(broker)

    def _command(self, arrived: Any) -> None:
        """A command: not retained, named in mqtt.commands, with an id; a repeat gets the old answer."""
        verb = arrived.topic.rsplit("/", 1)[-1]
        if arrived.retain or verb not in self._build.commands:
            return
        reply_topic = arrived.response_topic or f"{self._build.station}/reply"
        try:
            body = json.loads(arrived.payload)
            command_id = str(body["id"])[:100]
        except (ValueError, KeyError, TypeError):
            log.warning("a command %s without an id was ignored; send {\"id\": \"…\"}", verb)
            return
        if command_id in self._replies and self._broker:
            self._broker.reply(reply_topic, self._replies[command_id], arrived.correlation)
            return
        if command_id in self._asked:
            return
        self._asked[command_id] = (reply_topic, arrived.correlation)
        arguments = {key: value for key, value in body.items() if key != "id"}
        if command_id.startswith(PLC_ID) or command_id == LAMP_ID:
            self._answer(command_id, False, f"ids that begin with {PLC_ID} are the PLC's, {LAMP_ID} is the lamp's; take another")
        elif not self._tell_rejectd(Command(command_id, verb, arguments, "mqtt")):
            self._answer(command_id, False, "rejectd does not answer; try again")

    def _tell_rejectd(self, command: Command) -> bool:
        """Whether it was handed over."""
        try:
            return self._reject is not None and self._reject.send(command)
        except LinkClosed:
            return False  # the next read finds it closed

    def _answer(self, command_id: str, ok: bool, text: str) -> None:
        topic, correlation = self._asked.pop(command_id, (f"{self._build.station}/reply", None))
        body = json.dumps({"id": command_id, "ok": ok, "text": text}).encode()
        self._replies[command_id] = body
        while len(self._replies) > _REPLIES_KEPT:
            self._replies.popitem(last=False)
        if self._broker:
            self._broker.reply(topic, body, correlation)

    # --- PLC ---------------------------------------------------------------------------------------------------

    def _plc_status(self, status: Status) -> None:
        if status.run == self._run_before:
            self._plc_map.on_results_lost()  # we were away within this run
        self._run_before = ""
        self._plc_map.on_status(status)

    def _plc_step(self, now_ns: int) -> None:
        """The map follows the disk: a PLC never reads what a power cut could take back."""
        committed = self.reporter.take_committed()
        if self._plc is None:
            return
        if committed:
            self._plc_map.on_counts(self.ledger.counts)
            for seq, part in committed:
                self._plc_map.on_record(seq, part)
        self._plc_map.step(now_ns, self._clock.quality())
        self.reporter.own_alarm("plc_lost", self._plc_map.plc_lost, "")
        for command in self._plc_map.commands(now_ns):
            if not self._tell_rejectd(command):
                self._plc_map.not_sent(command.id)

    # --- the box -------------------------------------------------------------------------------------------------

    def _box_step(self, now_ns: int) -> None:
        """Warnings of the machine under the station, each change of one in the chain; and what is spared when it is hot."""
        if self._box is None:
            return
        told = self._box.told(self.reporter.told_by("inspect"), now_ns)
        if told is None:
            return
        self._spare(told.keep_passes)
        if told is self._box_told:
            return
        first, self._box_told = self._box_told is None, told
        for code in sorted(self._box.codes):
            raised = code in told.alarms
            text = sentence(code, told.alarms[code]) if raised else ""
            if self.reporter.own_alarm(code, raised, text):
                (self._warnings.append if raised else self._warnings.remove)(code)
                self._own_event("alarm_raised" if raised else "alarm_cleared", {"code": code, "text": text, "latched": False})
            elif first:
                self.reporter.not_raised(code)
        self._plc_map.on_box(told.temperature_c, told.throttle_flags, self._warnings)

    def _spare(self, keep_passes: bool) -> None:
        """inspectd keeps no images of passed parts meanwhile; one that begins anew keeps them until it hears of it."""
        link = self._inspect[0] if self._inspect else None
        if link is None or self._spared == (link, keep_passes) or (keep_passes and self._spared is None):
            return
        try:
            if link.send(Command("box", "spare", {"passes": not keep_passes}, "report")):
                self._spared = (link, keep_passes)
        except LinkClosed:
            return  # the next read finds it closed

    # --- configurations --------------------------------------------------------------------------------------

    def _hear_of_configurations(self, now_ns: int) -> None:
        """Another one was chosen: begin anew with it."""
        if now_ns < self._again_ns:
            return
        self._again_ns = now_ns + RETRY_NS
        if self._paths.again_file("report").exists():
            self.stopping = True

    def _read_spool(self, now_ns: int) -> None:
        new = self._spool.take(now_ns)
        for one in new:
            self._dialogue = self._dialogue.heard(one.kind, one.data, wall(one.wall_us))
        if new:
            write_rename(self._paths.stick_file, json.dumps(self._dialogue.as_json()))
            self._tell_dialogue()

    def _tell_dialogue(self) -> None:
        told, build = self._dialogue, self._build
        runs = {"digest": build.config_digest, "revision": build.revision, "generation": build.generation}
        self.reporter.put("configuration", {**runs, "result": told.result, "text": told.text, "at": told.at})
        for code in STICK_ALARMS:
            self.reporter.own_alarm(code, False, "")  # a second stick's reason takes the first one's place
            if code in told.alarms:
                self.reporter.own_alarm(code, True, sentence(code, told.alarms[code]))

    def _light_lamp(self) -> None:
        """rejectd owns the pin: told once on each link, and at each change."""
        link, pattern = self._reject, self._dialogue.lamp
        if link is not None and self._lamp_told != (link, pattern):
            if self._tell_rejectd(Command(LAMP_ID, "lamp", {"pattern": pattern}, "report")):
                self._lamp_told = (link, pattern)

    def _tell_standing(self, now_ns: int) -> None:
        """run/state.json: how all three stand, for sticks, updates and the boot's settling."""
        build, status, inspect = self._build, self.reporter.status, self._inspect[1] if self._inspect else None
        if status is not None and now_ns - status.alive_ns > HUNG_NS:
            status = None
        standing: dict[str, Any] = {
            "reject": _told_of(status),
            "inspect": _told_of(inspect),
            "report": {"configuration": build.config_digest, "version": build.version},
        }
        if standing == self._standing and now_ns - self._standing_ns < STANDING_NS:
            return
        self._standing, self._standing_ns = standing, now_ns
        write_rename(self._paths.state_file, json.dumps({"written_ns": now_ns, **standing}))

    # --- own duties --------------------------------------------------------------------------------------------

    def _own_event(self, kind: str, data: dict[str, Any]) -> None:
        now_ns = self._clock.now_ns()
        self.reporter.own_event(kind, data, now_ns, self._clock.wall_us(now_ns), self._clock.quality())

    def _raise_ceiling(self, highest: int) -> None:
        """Part numbers up to here may be used: rejectd begins above it when its memory is gone."""
        if highest + CEILING_AHEAD // 2 < self._ceiling:
            return
        self._ceiling = (highest // CEILING_AHEAD + 1) * CEILING_AHEAD
        write_whole(self._paths.part_ceiling, f"{self._ceiling}\n")

    def _watch_wall_clock(self, now_ns: int) -> None:
        difference_us = self._clock.wall_us(now_ns) - now_ns // 1000
        if self._wall_check is not None and abs(difference_us - self._wall_check) > 1_000_000:
            old, new = self._wall_check + now_ns // 1000, self._clock.wall_us(now_ns)
            self._own_event("clock_step", {"old_us": old, "new_us": new})
        self._wall_check = difference_us

    def _health(self, now_ns: int) -> None:
        if now_ns < self._health_ns:
            return
        self._health_ns = now_ns + HEALTH_NS
        disk = shutil.disk_usage(self._paths.data)
        own: dict[str, Any] = {
            "disk_free_gb": round(disk.free / 1e9, 2), "load_1min": round(os.getloadavg()[0], 2),
            "mqtt_backlog": self.outbox.backlog, "ledger_waiting": self.ledger.waiting,
            "broker": self._broker.reason if self._broker else "none",
            "modbus": self._plc.reason if self._plc else "none", "clock": self._clock.quality(),
        }  # fmt: skip
        if self._box_told:
            own["box"] = self._box_told.health
        self.reporter.put("health", self.reporter.health(own))
        self._notifier.status(f"recording; {self.outbox.backlog} entries wait for the broker ({own['broker']})")


def _told_of(state: Status | InspectState | None) -> dict[str, Any] | None:
    """What state.json says of a process."""
    if state is None:
        return None
    told = {
        "state": state.state, "reason": state.reason, "progress": state.progress, "configuration": state.configuration,
        "version": state.version,
    }  # fmt: skip
    return {**told, "inputs_lost": state.inputs_lost} if isinstance(state, Status) else told


def read_json(path: Path) -> Any:
    """None where there is none. Raises OSError."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def write_rename(path: Path, text: str) -> None:
    """Whole, and not forced to disk: for files that vanish with the power. Raises OSError."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_whole(path: Path, text: str) -> None:
    """Atomically, and on disk when it returns. Raises OSError."""
    partial = path.with_suffix(".part")
    with open(partial, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def main(build: ReportBuild, paths: Paths, clock: Clock, notifier: Notifier | None = None) -> int:
    """Run reportd until SIGTERM or SIGINT. Raises LedgerError, OSError at start."""
    notifier = notifier or Notifier({}, 0)
    daemon = Reportd(build, paths, clock, notifier)

    def stop(_signal: int, _frame: object) -> None:
        daemon.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    notifier.ready("recording")
    try:
        daemon.run()
    finally:
        daemon.close()
    return 0
