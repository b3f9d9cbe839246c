"""The real rejectd with its gate, and once its photo-eye too, on remote I/O: what it does, says and books as the I/O goes.

rejectd runs in a thread here, the coupler and the process that talks to it are processes of their own. Instants at the
gate are the coupler's own; how far they lie from the due time is told (`pytest -rP`), and bounded only loosely.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import pytest

from appliance.devices.output_modbus import ModbusOutput
from appliance.link import SocketLink, connect
from appliance.messages import (
    Ack,
    Command,
    Edge,
    Event,
    Hello,
    InspectState,
    Message,
    PartClosed,
    Reply,
    Status,
    Trigger,
    Verdict,
    VerdictName,
)
from appliance.paths import Paths
from appliance.ports import Input, LinkClosed
from appliance.reject.belt import ConstantBelt
from appliance.reject.daemon import RejectBuild, Rejectd
from appliance.reject.plan import GatePlan, Plan
from tests.contracts.mock_io import MockInput
from tests.contracts.rigs import CLOCK, WATCHDOG_MS, ModbusRig, until

MS = 1_000_000
SPEED_MM_S, PURGE_MM, DEADLINE_MS = 500.0, 600.0, 20.0
GATE = GatePlan("hold", "accept", distance_mm=420.0, pulse_ms=40.0, response_ms=12.0)
# A contact that a test turns there and back may stand for longer than a part takes.
PLAN = Plan(
    speed_mm_s=SPEED_MM_S, part_mm=28.0, gate=GATE, deadline_ms=DEADLINE_MS, purge_mm=PURGE_MM, recipe="caps", recipe_number=1,
    max_part_mm=400.0, blocked_mm=500.0,
)  # fmt: skip
DUE_MS = GATE.distance_mm / SPEED_MM_S * 1000 - GATE.response_ms
PURGE_NS = round(PURGE_MM / SPEED_MM_S * 1e9)
EARLY_NS, LATE_NS = 50 * MS, 150 * MS  # the machine is shared; the bench is where edges are measured
UNATTENDED_MS = 60_000  # a watchdog that cannot be what moved the coil
GATE_COIL = 2


class Neighbours:
    """inspectd and reportd as rejectd sees them: each trigger gets ``verdict``, each record is acknowledged and kept."""

    def __init__(self, door: Path) -> None:
        self.verdict: VerdictName = "pass"
        self.ended = False
        self.triggers: list[int] = []
        self.records: dict[int, PartClosed] = {}
        self.events: list[Event] = []
        self.statuses: list[Status] = []
        self._replies: dict[str, Reply] = {}
        self._door = door
        self._asked = 0
        self._links: dict[str, SocketLink] = {}
        self._waiting: dict[str, deque[Message]] = {"inspect": deque(), "report": deque()}

    def run(self) -> None:
        """Until ``ended``."""
        while not self.ended:
            for role in ("inspect", "report"):
                if role not in self._links:
                    self._connect(role)
            select.select(list(self._links.values()), [], [], 0.01)
            for role in list(self._links):
                try:
                    self._talk(role)
                except LinkClosed:
                    self._links.pop(role).close()
        for link in self._links.values():
            link.close()

    def ask(self, verb: str) -> Reply:
        """Send a command and wait for its answer."""
        self._asked += 1
        number = str(self._asked)
        self._waiting["report"].append(Command(number, verb, {}, "test"))
        return until(lambda: self._replies.get(number))

    def _connect(self, role: str) -> None:
        link = connect(self._door, Hello(role, "", os.getpid()))
        if link is not None:
            self._links[role] = link
            if role == "inspect":
                self._waiting[role] = deque([InspectState("ready", "", 1.0, "caps", 1, "sha256:0", {})])

    def _talk(self, role: str) -> None:
        link, waiting = self._links[role], self._waiting[role]
        for message in link.receive():
            if isinstance(message, Trigger):
                self.triggers.append(message.part)
                waiting.append(Verdict(message.part, self.verdict, None, 0.5, 0.5, 1, 1.0, 0.2, 2.0, 0.1))
            elif isinstance(message, Status):
                self.statuses.append(message)
            elif isinstance(message, Reply):
                self._replies[message.id] = message
            elif isinstance(message, (PartClosed, Event)):
                waiting.append(Ack(message.n))
                if isinstance(message, PartClosed):
                    assert message.part not in self.records, f"part {message.part} was booked twice"
                    self.records[message.part] = message
                else:
                    self.events.append(message)
        while waiting and link.send(waiting[0]):
            waiting.popleft()


class Station:
    """rejectd and its neighbours, running. ``started_ns``: no later than its start."""

    def __init__(self, folder: Path, rig: ModbusRig, trigger: Callable[[], Input]) -> None:
        gate = ModbusOutput(
            "gate", rig.address(f"coil/{GATE_COIL}"), GATE.reject_level, False, GATE.longest_on_ms, CLOCK, rig.process
        )  # fmt: skip
        build = RejectBuild(PLAN, ConstantBelt(SPEED_MM_S), {"gate": gate}, {"trigger": trigger})
        paths = Paths(folder, folder)
        self._daemon = Rejectd(build, paths, CLOCK)
        self.neighbours = Neighbours(paths.reject_socket)
        self._threads = ThreadPoolExecutor(2)
        self.started_ns = CLOCK.now_ns()
        self._lives = self._threads.submit(self._live)
        self._talks = self._threads.submit(self.neighbours.run)

    def _live(self) -> None:
        self._daemon.start()
        try:
            self._daemon.run()
        finally:
            self._daemon.close()

    def close(self) -> None:
        """Stops rejectd as its main does, and raises what went wrong in a thread."""
        self._daemon.stopping = True
        try:
            self._lives.result(10.0)
        finally:
            self.neighbours.ended = True
            self._talks.result(10.0)
            self._threads.shutdown()

    def stands_at(self, state: str) -> Status:
        """The newest status, as soon as it is of that state."""
        return until(lambda: next((one for one in self.neighbours.statuses[-1:] if one.state == state), None))

    def turns_to(self, state: str, since: int) -> Status:
        """The first status of that state, from a status on."""
        return until(lambda: next((one for one in self.neighbours.statuses[since:] if one.state == state), None))

    def path(self, since: int) -> list[str]:
        """The states one after the other, from a status on."""
        return [state for state, _ in groupby(one.state for one in self.neighbours.statuses[since:])]

    def hears(self, more: int) -> list[Status]:
        """The next statuses."""
        seen = len(self.neighbours.statuses)
        until(lambda: len(self.neighbours.statuses) >= seen + more)
        return self.neighbours.statuses[seen:]

    def booked(self, part: int) -> PartClosed:
        """The part's record, once nothing of it is open any more."""
        record = until(lambda: self.neighbours.records.get(part))
        until(lambda: (last := self.neighbours.statuses[-1]).last_closed == part and last.in_flight == 0)
        return record


class Eye(MockInput):
    """A photo-eye that is not on the coupler. The mock is not made for two threads."""

    def __init__(self) -> None:
        self._hand = threading.Lock()
        super().__init__("eye", False, CLOCK)

    def turn(self, level: bool) -> int:
        with self._hand:
            return super().turn(level)

    def read(self) -> list[Edge]:
        with self._hand:
            return super().read()

    def pass_by(self) -> None:
        """A part goes through the beam."""
        self.turn(True)
        self.turn(False)


@pytest.fixture
def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ModbusRig]:
    made = ModbusRig(tmp_path, getattr(request, "param", WATCHDOG_MS))
    yield made
    made.close()


@pytest.fixture
def far(tmp_path: Path) -> Iterator[ModbusRig]:
    """A second coupler, for the trigger alone."""
    made = ModbusRig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def eye() -> Eye:
    return Eye()


@pytest.fixture
def run(tmp_path: Path, rig: ModbusRig, far: ModbusRig) -> Iterator[Callable[[Callable[[], Input]], Station]]:
    """Starts a station with the trigger that is given; no coupler goes before it has stopped."""
    made: list[Station] = []

    def start(trigger: Callable[[], Input]) -> Station:
        made.append(Station(tmp_path, rig, trigger))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def station(run: Callable[[Callable[[], Input]], Station], eye: Eye) -> Station:
    return run(lambda: eye)


def text_of(status: Status, code: str) -> str:
    """What an alarm says, or nothing where it is not raised."""
    return next((one.text for one in status.alarms if one.code == code), "")


def loses(station: Station, rig: ModbusRig, how: str) -> int:
    """The gate's coil is out of reach, and rejectd says so in time. Returns how many statuses were heard before."""
    before, lost_ns = len(station.neighbours.statuses), CLOCK.now_ns()
    rig.lose(how)
    status = station.turns_to("fault", before)
    words = text_of(status, "output_lost")
    print(f"{how}: fault after {(status.alive_ns - lost_ns) / MS:.0f} ms: {words}")
    assert status.alive_ns - lost_ns < (WATCHDOG_MS + 1000) * MS
    assert rig.address(f"coil/{GATE_COIL}").text in words and len(words.split()) > 8
    assert status.line_stop
    return before


def is_cleared(station: Station) -> int:
    """A person clears as soon as that helps. Returns the instant before."""

    def clear() -> int:
        at_ns = CLOCK.now_ns()
        reply = station.neighbours.ask("clear")
        assert reply.ok or "output_lost" in reply.text, reply.text
        return at_ns if reply.ok else 0

    return until(clear)


def runs_again(station: Station, rig: ModbusRig, before: int) -> None:
    """The coil is in reach again: a person must clear, the belt must move on, and only then the gate opens."""
    first_ns = rig.coupler.wait_writes(GATE_COIL, 3)[0]
    assert rig.wait_level(False) <= first_ns, "the gate was open in between"
    assert {one.state for one in station.hears(3)} == {"fault"}
    assert rig.wait_level(False) <= first_ns, "the gate opened before anybody cleared"
    cleared_ns = is_cleared(station)
    assert rig.wait_level(True) > cleared_ns + PURGE_NS - EARLY_NS
    assert not station.stands_at("running").alarms
    assert station.path(before) == ["running", "fault", "purging", "running"]


# --- the gate on a coupler ------------------------------------------------------------------------------------------


def test_the_gate_opens_after_the_purge_and_goes_once_for_a_part_that_fails(
    rig: ModbusRig, eye: Eye, station: Station
) -> None:  # fmt: skip
    station.stands_at("purging")
    first_ns = rig.coupler.wait_writes(GATE_COIL, 3)[0]
    assert rig.wait_level(False) < first_ns
    opened_ns = rig.wait_level(True)
    assert opened_ns > station.started_ns + PURGE_NS - EARLY_NS
    station.stands_at("running")

    eye.pass_by()
    record = station.booked(1)
    assert (record.disposition, record.disposed_by, record.fired) == ("accept", "verdict", False)
    assert rig.wait_level(True) == opened_ns, "the gate moved for a part that passed"

    station.neighbours.verdict = "fail"
    eye.pass_by()
    off_ns, on_ns = rig.wait_level(False), rig.wait_level(True)
    record = station.booked(2)
    assert (record.verdict, record.disposition, record.disposed_by, record.fired) == ("fail", "reject", "verdict", True)
    assert record.due_ms == pytest.approx(DUE_MS, abs=0.01)
    due_ns = record.trigger_ns + round(record.due_ms * MS)
    print(f"off {(off_ns - due_ns) / MS:+.2f} ms from its due time, for {(on_ns - off_ns) / MS:.1f} ms")
    assert -EARLY_NS < off_ns - due_ns < LATE_NS

    station.neighbours.verdict = "pass"
    eye.pass_by()
    assert station.booked(3).disposition == "accept"
    assert rig.wait_level(True) == on_ns, "the gate went more than once"
    assert not station.neighbours.statuses[-1].alarms


@pytest.mark.parametrize("how", ["unplugged", "killed"])
def test_a_lost_coil_is_a_fault_until_a_person_clears(how: str, rig: ModbusRig, eye: Eye, station: Station) -> None:
    station.stands_at("running")
    rig.wait_level(True)
    process = rig.process.pid
    before = loses(station, rig, how)
    eye.pass_by()
    if how == "unplugged":
        reply = station.neighbours.ask("clear")
        assert not reply.ok and "output_lost" in reply.text
    record = station.booked(1)
    assert (record.verdict, record.disposition, record.disposed_by, record.fired) == ("pass", "reject", "fault", True)
    rig.restore()
    runs_again(station, rig, before)
    assert (rig.process.pid != process) is (how == "killed")
    eye.pass_by()
    assert station.booked(2).disposition == "accept"


@pytest.mark.parametrize("rig", [UNATTENDED_MS], indirect=True)
def test_a_rejectd_that_stops_leaves_the_gate_at_reject(rig: ModbusRig, eye: Eye, station: Station) -> None:
    station.stands_at("running")
    rig.wait_level(True)
    eye.pass_by()
    until(lambda: station.neighbours.triggers)
    stopped_ns = CLOCK.now_ns()
    station.close()
    assert rig.wait_level(False) > stopped_ns
    record = station.neighbours.records[1]
    assert (record.disposition, record.disposed_by) == ("reject", "held")
    assert [one.kind for one in station.neighbours.events][-1] == "stop"
    first_ns = rig.coupler.wait_writes(GATE_COIL, 3)[0]
    assert rig.wait_level(False) < first_ns, "the gate opened once more"


# --- the trigger on a coupler ---------------------------------------------------------------------------------------


def passes_by(station: Station, rig: ModbusRig) -> int:
    """A part goes through a beam whose contact is polled. Returns the instant of its edge."""
    seen = len(station.neighbours.triggers)
    turned_ns = rig.turn(True)
    until(lambda: len(station.neighbours.triggers) > seen)
    rig.turn(False)
    return turned_ns


@pytest.mark.parametrize("rig", [UNATTENDED_MS], indirect=True)
def test_a_trigger_on_remote_io_makes_parts_and_without_it_the_gate_rejects(
    rig: ModbusRig, far: ModbusRig, run: Callable[[Callable[[], Input]], Station]
) -> None:  # fmt: skip
    station = run(far.input)
    station.stands_at("running")
    rig.wait_level(True)
    turned_ns = passes_by(station, far)
    record = station.booked(1)
    print(f"the edge was stamped {(record.trigger_ns - turned_ns) / MS:+.2f} ms from when the contact turned")
    assert (record.disposition, record.disposed_by) == ("accept", "verdict")
    assert -EARLY_NS < record.trigger_ns - turned_ns < LATE_NS

    before, lost_ns = len(station.neighbours.statuses), CLOCK.now_ns()
    far.lose("unplugged")
    status = station.turns_to("held", before)
    assert far.address("discrete/5").text in text_of(status, "trigger_lost")
    assert rig.wait_level(False) > lost_ns
    back_ns = CLOCK.now_ns()
    far.restore()
    assert rig.wait_level(True) > back_ns + PURGE_NS - EARLY_NS
    station.stands_at("running")
    assert station.path(before) == ["running", "held", "purging", "running"]
    passes_by(station, far)
    assert station.booked(2).disposition == "accept"


def test_trigger_and_gate_on_one_coupler_go_and_come_back_together(
    rig: ModbusRig, run: Callable[[Callable[[], Input]], Station]
) -> None:  # fmt: skip
    station = run(rig.input)
    station.stands_at("running")
    rig.wait_level(True)
    before = loses(station, rig, "silent")
    until(lambda: text_of(station.neighbours.statuses[-1], "trigger_lost"))
    rig.wait_level(False)
    rig.restore()
    runs_again(station, rig, before)
    passes_by(station, rig)
    assert station.booked(1).disposition == "accept"
