"""Safe mode: nothing lets a gate go, the reason is told, and a stick's configuration ends it. Real daemons on the twin's wire."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymodbus.client import ModbusTcpClient

from appliance.box.again import begin_anew
from appliance.box.health import read_state
from appliance.box.spool import spool_event
from appliance.box.store import Store
from appliance.clock import VirtualClock, boottime_ns, now_ns
from appliance.config import load
from appliance.config.load import PROJECT
from appliance.faults import FAULTS
from appliance.link import Listener, SocketLink
from appliance.messages import Command, Edge, InspectState, Level, Status, TwinHello, Verdict
from appliance.paths import Paths
from appliance.ports import LinkClosed
from appliance.reject.books import Books
from appliance.reject.lamp import LAMP, known, lit
from appliance.reject.rejector import Rejector
from appliance.reject.safe import FixedOutput, safe_build
from appliance.report.plc import FAULT, LINE_STOP, STATES
from appliance.report.plc import READY as READY_BIT
from appliance.report.verify import verify
from appliance.twin.mes import Mes
from appliance.wiring.store import essentials_of
from tests.report.test_mqtt import free_port, start_embedded, wait_for_port
from tests.wiring.test_store import Box, set_to

MS = 1_000_000
READY = InspectState("ready", "", 1.0, "r", 1, "sha256:0", {})
PROCESSES = {**os.environ, "PYTHONPATH": str(PROJECT)}


class Pin:
    """An output that remembers each level it was set to."""

    longest_on_ms = None
    lead_ns = 0

    def __init__(self, name: str, start: bool = False) -> None:
        self.name, self.start, self.failure = name, start, False
        self.levels: list[bool] = []

    def set(self, energised: bool, now: int) -> int:
        self.levels.append(energised)
        return now

    def check(self, now: int) -> None:
        pass

    def close(self) -> None:
        pass


# --- without sockets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [True, False])
def test_an_output_in_safe_mode_stands_at_its_level_whatever_it_is_told(level: bool) -> None:
    pin = Pin("gate")
    output = FixedOutput(pin, level)
    for energised in (True, False, True):
        output.set(energised, 0)
    assert pin.levels == [level] * 3 and output.start is level and output.longest_on_ms is None


def safe_rejector(roles: dict[str, bool]) -> tuple[Rejector, dict[str, Pin], dict[str, Any], VirtualClock]:
    pins = {role: Pin(role) for role in roles}
    build = safe_build({role: (pins[role], level) for role, level in roles.items()}, "no configuration yet")
    clock = VirtualClock(10**9)
    rejector = Rejector(build.plan, build.belt, Books(bytearray(Books.bytes_for(50)), 50), clock, safe=build.safe)
    rejector.start(clock.now_ns(), "run", "journal", 1)
    return rejector, pins, build.outputs, clock


def test_nothing_that_can_happen_lets_a_gate_go_or_the_line_run() -> None:
    """Ready inspectd, verdicts, a person who clears and releases, time: the pins stay, and the state is fault."""
    roles = {"gate": False, "divert": True, "line_stop": False, "ready": False, "fault": False, "heartbeat": False, LAMP: False}
    rejector, pins, outputs, clock = safe_rejector(roles)
    statuses: list[Status] = []
    for turn in range(400):
        now = clock.now_ns()
        if turn == 50:
            rejector.on_inspect(READY, now)
        if turn % 7 == 0:
            rejector.on_verdict(Verdict(turn, "pass", None, 0.1, 0.5, -1, 1.0, 0.1, 1.0, 0.1), now)
        if turn % 11 == 0:
            for verb in ("clear", "release", "hold", "release"):
                reply = rejector.on_command(Command(f"{turn}", verb, {}, "test"), now)
                assert verb != "clear" or (not reply.ok and "safe_mode" in reply.text)
        effects = rejector.step(now)
        for move in effects.moves:
            outputs[move.output].set(move.energised, now)
        statuses += [one for one in effects.to_report if isinstance(one, Status)]
        clock.advance_to(now + 50 * MS)
    for role, level in roles.items():
        assert role == LAMP or set(pins[role].levels) == {level}, role
    assert {one.state for one in statuses} == {"fault"} and all(one.line_stop for one in statuses)
    assert all("no configuration yet" in one.reason for one in statuses)
    assert any(alarm.code == "safe_mode" for alarm in statuses[-1].alarms)
    assert not pins[LAMP].levels, "nobody told it of a stick"


def test_the_lamp_works_in_safe_mode_too() -> None:
    rejector, pins, outputs, clock = safe_rejector({"gate": False, LAMP: False})
    rejector.on_command(Command("lamp", "lamp", {"pattern": "fast"}, "report"), clock.now_ns())
    for _ in range(12):
        for move in rejector.step(clock.now_ns()).moves:
            if move.output in outputs:
                outputs[move.output].set(move.energised, clock.now_ns())
        clock.advance_to(clock.now_ns() + 100 * MS)
    assert pins[LAMP].levels.count(True) >= 2 and set(pins["gate"].levels) == {False}


# --- the lamp -----------------------------------------------------------------------------------------------


def test_slow_and_fast_can_be_told_apart_by_a_person() -> None:
    def changes_in_ten_seconds(pattern: str) -> int:
        levels = [lit(pattern, tick) for tick in range(101)]
        return sum(1 for one, other in zip(levels, levels[1:]) if one != other)

    assert changes_in_ten_seconds("off") == changes_in_ten_seconds("on") == 0
    assert lit("on", 5) and not lit("off", 5)
    assert changes_in_ten_seconds("slow") == 10 and changes_in_ten_seconds("fast") == 50
    assert not known("disco")


def test_an_unknown_pattern_changes_nothing_and_no_lamp_is_an_event() -> None:
    rejector, *_, clock = safe_rejector({"gate": False, LAMP: False})
    rejector.step(clock.now_ns())
    before = len(rejector.journal)
    assert rejector.on_command(Command("lamp", "lamp", {"pattern": "on"}, "report"), clock.now_ns()).ok
    assert not rejector.on_command(Command("lamp", "lamp", {"pattern": "disco"}, "report"), clock.now_ns()).ok
    clock.advance_to(clock.now_ns() + 200 * MS)
    assert any(move.output == LAMP and move.energised for move in rejector.step(clock.now_ns()).moves)
    assert len(rejector.journal) == before


def test_a_lamp_that_cannot_be_moved_holds_up_nothing() -> None:
    rejector, *_, clock = safe_rejector({"gate": False, LAMP: False})
    rejector.on_output_lost(LAMP, "no such line", clock.now_ns())
    assert rejector.alarms.raised("stick_lamp_lost") and not rejector.alarms.raised("output_lost")
    rejector.on_outputs_back(clock.now_ns())
    assert not rejector.alarms.raised("stick_lamp_lost")
    rejector.on_output_lost("gate", "no such line", clock.now_ns())
    assert rejector.alarms.raised("output_lost")


# --- real processes -----------------------------------------------------------------------------------------


class Wires:
    """The twin's socket, held by the test: what each output was set to, with the time."""

    def __init__(self, paths: Paths) -> None:
        self._listener = Listener(paths.twin_socket)
        self._links: dict[SocketLink, str] = {}
        self.levels: dict[str, list[bool]] = {}
        self.open: set[str] = set()

    def step(self) -> None:
        while (link := self._listener.accept()) is not None:
            self._links[link] = ""
        for link in list(self._links):
            try:
                for message in link.receive():
                    if isinstance(message, TwinHello):
                        self._links[link] = message.name
                        self.open.add(message.name)
                        if message.kind == "input":
                            link.send(Edge(message.name, False, now_ns(), 0))
                    elif isinstance(message, Level):
                        self.levels.setdefault(message.line, []).append(message.level)
            except LinkClosed:
                self.open.discard(self._links.pop(link))
                link.close()

    def close(self) -> None:
        for link in self._links:
            link.close()
        self._listener.close()


class Running:
    """``appliance run -c STORE`` as a child, its twin's wires, its state.json."""

    def __init__(self, box: Box, paths: Paths) -> None:
        self.box, self.paths, self.wires = box, paths, Wires(paths)
        command = [sys.executable, "-m", "appliance", "run", "-c", str(box.store.root), "--run-dir", str(paths.run)]
        self.log = open(paths.data / "log", "w+")
        self.process = subprocess.Popen([*command, "--data-dir", str(paths.data)], env=PROCESSES, stderr=self.log)

    def until(self, what: Callable[[], Any], seconds: float = 40.0) -> Any:
        end = now_ns() + round(seconds * 1e9)
        while not (value := what()):
            assert now_ns() < end, f"it did not come about: {read_state(self.paths.run)}\n{self.told()}"
            self.wires.step()
            assert self.process.poll() is None, self.told()
            try:
                self.process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
        return value

    def told(self) -> str:
        self.log.seek(0)
        return self.log.read()[-3000:]

    def state(self, role: str = "reject") -> dict[str, Any]:
        return (read_state(self.paths.run) or {}).get(role) or {}

    def close(self) -> int:
        self.process.terminate()
        end = now_ns() + 15 * 10**9
        while self.process.poll() is None and now_ns() < end:
            self.wires.step()
            try:
                self.process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        self.wires.close()
        self.log.close()
        return self.process.wait(1)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="safe-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[[Box], Running]]:
    running: list[Running] = []

    def begin(box: Box) -> Running:
        running.append(Running(box, Paths(folder / "r", folder / "d").make()))
        return running[-1]

    yield begin
    for one in running:
        if one.process.poll() is None:
            one.close()


def quiet(document: dict[str, Any]) -> None:
    """Without broker and PLC, and with the lamp."""
    document.pop("mqtt")
    document.pop("modbus")
    document["outputs"][LAMP] = "twin://lamp"


def real_box(folder: Path) -> Box:
    """A store on the machine's own clock and boot."""
    box = Box(folder)
    box.store = Store(folder / "config")
    return box


def make_good(box: Box, change: Callable[[dict[str, Any]], object]) -> Any:
    one = box.put(change)
    box.store.begin_trial(one, boottime_ns() + 3600 * 10**9)
    box.store.mark_good(essentials_of(load(one.file)))
    return one


def test_a_rotten_configuration_holds_every_output_in_fault_and_says_why(folder: Path, start: Callable[[Box], Running]) -> None:
    box = real_box(folder)
    one = make_good(box, quiet)
    one.file.write_text("version: 1\nstation: [")
    station = start(box)
    reason = station.until(lambda: station.state().get("state") == "fault" and station.state()["reason"])
    assert "generation 1 cannot be used" in reason and "plug in a stick" in reason
    assert station.state("inspect") == {} and station.state("report")["configuration"] == ""
    station.until(lambda: {"gate", "ready", "fault", "line_stop", "heartbeat"} <= set(station.wires.levels))
    beats = station.state()
    station.until(lambda: (read_state(station.paths.run) or {})["written_ns"] > now_ns() - 10**9 and beats)
    spool_event(station.paths.data, "stick_unreadable", {"text": "no file system"})
    station.until(lambda: station.wires.levels.get("lamp", []).count(True) >= 3)
    for role in ("gate", "ready", "fault", "line_stop", "heartbeat"):
        assert set(station.wires.levels[role]) == {False}, role
    assert station.close() == 0


def test_a_configuration_ends_safe_mode_without_a_restart_of_the_box(folder: Path, start: Callable[[Box], Running]) -> None:
    """Nothing was ever configured; then a stick is applied, all three begin anew, and the books hold both."""
    box = real_box(folder)
    station = start(box)
    assert "no configuration yet" in station.until(lambda: station.state().get("reason"))
    assert station.wires.open == set(), "no outputs are known"
    new = box.put(quiet)
    box.store.begin_trial(new, boottime_ns() + 600 * 10**9)
    begin_anew(station.paths.run, ["reject", "inspect", "report"], new.digest)
    station.until(lambda: station.state().get("configuration") == new.digest)
    station.until(lambda: station.state("inspect").get("configuration") == new.digest)
    assert station.state("report")["configuration"] == new.digest
    assert {"gate", "lamp", "eye"} <= station.wires.open
    assert station.close() == 0
    assert verify(station.paths.ledger_file)[0]


def test_strict_start_ends_with_exit_2_and_says_why(folder: Path) -> None:
    box = real_box(folder)
    make_good(box, lambda document: (quiet(document), set_to("strict_start", to=True)(document))).file.write_text("version: 2")
    paths = Paths(folder / "r", folder / "d").make()
    for only in ([], ["--only", "reject"], ["--only", "report"], ["--only", "inspect"]):
        where = ["-c", str(box.store.root), "--run-dir", str(paths.run), "--data-dir", str(paths.data)]
        command = [sys.executable, "-m", "appliance", "run", *where, *only]
        ended = subprocess.run(command, env=PROCESSES, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 2, ended.stderr
        assert "appliance.yaml:1:1: file: it is not what was put there" in ended.stderr


def test_safe_mode_is_told_over_the_last_good_stations_broker_and_plc(folder: Path, start: Callable[[Box], Running]) -> None:
    port, plc_port = free_port(), free_port()
    broker = start_embedded(port)
    wait_for_port(port, broker)
    mes = Mes(port, "acme/demo/line1/inspect-a")
    try:
        box = real_box(folder)

        def told(document: dict[str, Any]) -> None:
            quiet(document)
            document["mqtt"] = {"broker": f"mqtt://127.0.0.1:{port}"}
            document["modbus"] = {"listen": f"127.0.0.1:{plc_port}"}

        make_good(box, told).file.write_text("{")
        station = start(box)
        station.until(lambda: (mes.retained.get("state") or {}).get("state") == "fault")
        assert "generation 1 cannot be used" in mes.retained["state"]["reason"]
        assert mes.retained["configuration"]["digest"] == "" and mes.retained["configuration"]["generation"] is None
        station.until(lambda: (mes.retained.get("alarm/safe_mode") or {}).get("raised"))
        station.until(lambda: any(one.get("event") == "safe_mode" for one in mes.entries.values()))
        assert all(one["simulated"] for one in mes.entries.values())
        plc = ModbusTcpClient("127.0.0.1", port=plc_port, timeout=2, retries=0)
        assert plc.connect()
        told = plc.read_input_registers(0, count=16).registers
        plc.close()
        assert told[2] & FAULT and told[2] & LINE_STOP and not told[2] & READY_BIT
        assert STATES[told[4] - 1] == "fault" and told[8] == FAULTS["safe_mode"].number and told[6:8] == [0, 0]
        assert station.close() == 0
    finally:
        mes.close()
        broker.terminate()
        broker.wait(5)


def test_a_killed_rejectd_is_back_in_safe_mode_each_time(folder: Path, start: Callable[[Box], Running]) -> None:
    box = real_box(folder)
    make_good(box, quiet).file.write_text("{")
    station = start(box)
    station.until(lambda: station.state().get("state") == "fault")
    for _ in range(3):
        station.until(lambda: "gate" in station.wires.open)
        pid = child_of(station.process.pid, "reject")
        os.kill(pid, 9)
        station.until(lambda pid=pid: child_of(station.process.pid, "reject") not in (0, pid))
    station.until(lambda: "gate" in station.wires.open and station.state().get("state") == "fault")
    assert set(station.wires.levels["gate"]) == {False}
    assert station.close() == 0


def child_of(parent: int, role: str) -> int:
    """Process number of that child, 0 while there is none."""
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:  # ended meanwhile
            continue
        if role.encode() in words:
            return int(pid)
    return 0
