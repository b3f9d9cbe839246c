"""reportd and the machine under the station: health, alarms, the chain, the PLC's registers, what inspectd is told."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from appliance.box.watch import BoxWatch
from appliance.clock import SystemClock, now_ns
from appliance.faults import FAULTS
from appliance.link import SocketLink, connect
from appliance.messages import Alarm, Command, Health, Hello, InspectState, Message, Status
from appliance.paths import Paths
from appliance.ports import BoxSensors, BoxTold
from appliance.report.daemon import ReportBuild, Reportd
from appliance.report.plc import PlcMap
from appliance.report.status import as_text
from tests.box.trees import lay, orin_nano

COOL = BoxTold({}, 52.1, 0, True, {"temperatures_c": {"tj-thermal": 52.1}})
HOT = BoxTold({"too_hot": "tj-thermal 97 °C", "disk_nearly_full": "/: 1 GB"}, 97.04, 0x0101, False, {"derated": ["images"]})


class Sensors:
    """Tells what it is given; ``asked``: what it was asked with."""

    codes = frozenset({"too_hot", "disk_nearly_full", "sensors_silent"})

    def __init__(self) -> None:
        self.now: BoxTold | None = None
        self.asked: dict[str, Any] = {}
        self.closed = 0

    def told(self, inspect: Mapping[str, Any], now_ns: int) -> BoxTold | None:
        self.asked = dict(inspect)
        return self.now

    def close(self) -> None:
        self.closed += 1


class NoServer:
    reason = ""

    def close(self) -> None: ...


@pytest.fixture
def paths() -> Iterator[Paths]:
    folder = Path(tempfile.mkdtemp(prefix="box-"))
    yield Paths(folder / "r", folder / "d").make()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def begin(paths: Paths) -> Iterator[Callable[[BoxSensors], Reportd]]:
    made: list[Reportd] = []

    def _begin(sensors: BoxSensors) -> Reportd:
        build = ReportBuild(
            "acme/test", True, None, frozenset(), "sha256:0", plc=lambda registers: NoServer(), box=lambda data: sensors
        )
        made.append(Reportd(build, paths, SystemClock()))
        return made[-1]

    yield _begin
    for one in made:
        one.close()


class Inspectd:
    """inspectd's end of its link."""

    def __init__(self, daemon: Reportd, paths: Paths) -> None:
        link = connect(paths.report_socket, Hello("inspect", "j", 1))
        assert link is not None
        self.link: SocketLink = link
        self.heard: list[Message] = []
        self.link.send(InspectState("ready", "", 1.0, "r", 1, "sha256:1", {}))
        self.until(daemon, lambda: daemon._inspect is not None)

    def until(self, daemon: Reportd, what: Callable[[], object]) -> None:
        """Turns of reportd until it is so, ten seconds at most."""
        end_ns = now_ns() + 10**10
        while not what():
            assert now_ns() < end_ns, self.heard
            daemon._wait()
            daemon.turn(now_ns())
            self.heard += self.link.receive()

    @property
    def spared(self) -> list[bool]:
        return [one.arguments["passes"] for one in self.heard if isinstance(one, Command) and one.verb == "spare"]


def alarm(daemon: Reportd, code: str) -> dict[str, Any]:
    return dict(json.loads(daemon.reporter.retained[f"alarm/{code}"]))


def alarms_in_the_chain(daemon: Reportd) -> list[tuple[str, str]]:
    daemon.reporter.flush()
    database = sqlite3.connect(daemon._paths.ledger_file)
    told = [json.loads(body) for (body,) in database.execute("SELECT body FROM entries ORDER BY seq")]
    database.close()
    return [(one["event"], one["data"]["code"]) for one in told if one["event"].startswith("alarm_")]


def registers(daemon: Reportd) -> list[int]:
    return daemon._plc_map.inputs(now_ns())


def test_a_hot_box_is_told_everywhere_and_so_is_a_cool_one(begin: Callable[[BoxSensors], Reportd]) -> None:
    sensors = Sensors()
    daemon = begin(sensors)
    daemon.turn(now_ns())
    assert registers(daemon)[41:43] == [0x8000, 0] and "alarm/too_hot" not in daemon.reporter.retained, "not looked at yet"
    sensors.now = COOL
    daemon.turn(now_ns())
    assert registers(daemon)[41:43] == [521, 0] and registers(daemon)[9] == 0
    assert alarm(daemon, "too_hot")["raised"] is False, "said at the start: the broker may hold another word of before"
    sensors.now = HOT
    daemon.turn(now_ns())
    assert registers(daemon)[41:43] == [970, 0x0101]
    assert registers(daemon)[9] == FAULTS["disk_nearly_full"].number and registers(daemon)[2] & 1 << 14
    assert alarm(daemon, "too_hot")["raised"] and "tj-thermal 97 °C" in alarm(daemon, "too_hot")["text"]
    daemon._health_ns = 0
    daemon.turn(now_ns())
    assert json.loads(daemon.reporter.retained["health"])["report"]["box"] == {"derated": ["images"]}
    sensors.now = COOL
    daemon.turn(now_ns())
    assert alarm(daemon, "too_hot")["raised"] is False and registers(daemon)[9] == 0
    raised = [("alarm_raised", "disk_nearly_full"), ("alarm_raised", "too_hot")]
    cleared = [("alarm_cleared", "disk_nearly_full"), ("alarm_cleared", "too_hot")]
    assert alarms_in_the_chain(daemon) == raised + cleared


def test_a_box_without_a_sensor_has_no_temperature(begin: Callable[[BoxSensors], Reportd]) -> None:
    sensors = Sensors()
    sensors.now = BoxTold({}, None, 0, True, {})
    daemon = begin(sensors)
    daemon.turn(now_ns())
    assert registers(daemon)[41:43] == [0x8000, 0]


@pytest.mark.parametrize(("celsius", "register"), [(-12.34, 0x10000 - 123), (0.0, 0), (0.04, 0), (104.5, 1045)])
def test_the_temperature_is_tenths_of_a_degree_and_signed(celsius: float, register: int) -> None:
    plc = PlcMap(simulated=False, config_crc32=0)
    plc.on_box(celsius, 0, ())
    assert plc.inputs(0)[41] == register


def test_rejectds_warning_goes_before_the_boxs_and_a_plc_that_is_lost_too() -> None:
    plc = PlcMap(simulated=False, config_crc32=0)
    plc.on_box(None, 0, ("too_hot", "clock_unset"))
    assert plc.inputs(0)[9] == FAULTS["too_hot"].number
    standing = (Alarm("late", True, False, "", 5),)
    plc.on_status(Status("running", "", 0, 0.0, "r", 0, 0, 1, 0, standing, {}, False))
    assert plc.inputs(0)[9] == FAULTS["late"].number
    plc.on_rejectd_gone()
    plc.write_holding(9, [500], 0)
    plc.step(10**9, "synced")
    assert plc.inputs(10**9)[9] == FAULTS["plc_lost"].number


def test_inspectd_hears_once_of_heat_and_once_of_its_end_and_anew_when_it_begins_anew(
    begin: Callable[[BoxSensors], Reportd], paths: Paths
) -> None:
    sensors = Sensors()
    daemon = begin(sensors)
    inspectd = Inspectd(daemon, paths)
    inspectd.link.send(Health("inspect", {"judge_ms": {"p99": 20.0}}))
    inspectd.until(daemon, lambda: sensors.asked == {"judge_ms": {"p99": 20.0}})
    assert inspectd.spared == [], "a cool box has nothing to say"
    sensors.now = HOT
    inspectd.until(daemon, lambda: inspectd.spared == [True])
    inspectd.link.close()
    end_ns = now_ns() + 10**10
    while daemon._inspect is not None:
        assert now_ns() < end_ns
        daemon._wait()
        daemon.turn(now_ns())
    successor = Inspectd(daemon, paths)
    successor.until(daemon, lambda: successor.spared == [True])
    sensors.now = COOL
    successor.until(daemon, lambda: successor.spared == [True, False])
    for _ in range(3):
        daemon.turn(now_ns())
    assert successor.link.receive() == []
    successor.link.close()


def test_the_sensors_of_a_real_tree_reach_the_registers(
    begin: Callable[[BoxSensors], Reportd], paths: Paths, tmp_path: Path
) -> None:
    root = lay(tmp_path, orin_nano())
    daemon = begin(BoxWatch(SystemClock(), paths.data, root, 20_000_000))
    end_ns = now_ns() + 10**10
    while registers(daemon)[41] != 521:
        assert now_ns() < end_ns
        daemon._wait()
        daemon.turn(now_ns())
    assert registers(daemon)[9] == FAULTS["watchdog_unproven"].number
    assert (paths.data / "box.json").exists()


def test_the_end_of_reportd_ends_the_looks(paths: Paths) -> None:
    sensors = Sensors()
    build = ReportBuild("acme/test", True, None, frozenset(), "sha256:0", box=lambda data: sensors)
    Reportd(build, paths, SystemClock()).close()
    assert sensors.closed == 1


def test_the_terminal_shows_the_box_in_a_line() -> None:
    box = {
        "temperatures_c": {"cpu-thermal": 50.2, "tj-thermal": 96.6}, "power_mode": "25W", "highest_ppm": 2400,
        "fans": {"pwmfan": {"rpm": 2311}, "other": {"duty": 0.3}}, "derated": ["no images of passed parts"],
    }  # fmt: skip
    told = as_text("acme/test", {"health": json.dumps({"report": {"box": box}}).encode()}).splitlines()
    assert told[-2:] == [
        "  box 97 °C (tj-thermal), power mode 25W, pwmfan 2311 rpm, the judge serves up to 2400 parts/min",
        "  derated: no images of passed parts",
    ]
    assert "box" not in as_text("acme/test", {"health": b'{"report": {}}'})
