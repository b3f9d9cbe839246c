"""reportd against real brokers: the embedded one and Debian's mosquitto, by the same tests."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from appliance.clock import SystemClock, now_ns
from appliance.devices.broker_embedded import start as start_embedded
from appliance.devices.publisher_mqtt import Broker, MqttPublisher
from appliance.messages import PartClosed
from appliance.paths import Paths
from appliance.report.daemon import ReportBuild, Reportd
from appliance.report.outbox import WINDOW
from appliance.twin.mes import Mes, Network

STATION = "acme/test"
MOSQUITTO = shutil.which("mosquitto") or ("/usr/sbin/mosquitto" if Path("/usr/sbin/mosquitto").exists() else None)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    end = now_ns() + 20 * 10**9
    while now_ns() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 0.5).close()
            return
        except OSError:
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"the broker ended with {process.returncode}") from None
    raise AssertionError("the broker does not answer")


def start_mosquitto(port: int, *more: str) -> subprocess.Popen[bytes]:
    if MOSQUITTO is None:
        pytest.skip("mosquitto not installed")
    folder = Path(tempfile.mkdtemp(prefix="mosq-"))
    lines = more or ("allow_anonymous true",)
    (folder / "conf").write_text("\n".join([f"listener {port} 127.0.0.1", "max_queued_messages 0", *lines, ""]))
    return subprocess.Popen([MOSQUITTO, "-c", str(folder / "conf")], stderr=subprocess.DEVNULL)


@pytest.fixture(params=["embedded", "mosquitto"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    number = free_port()
    process = start_embedded(number) if request.param == "embedded" else start_mosquitto(number)
    wait_for_port(number, process)
    yield number
    process.terminate()
    process.wait(5)


@pytest.fixture
def paths() -> Iterator[Paths]:
    folder = Path(tempfile.mkdtemp(prefix="rep-"))
    yield Paths(folder / "r", folder / "d").make()
    shutil.rmtree(folder, ignore_errors=True)


def reportd(paths: Paths, broker: Broker, commands: tuple[str, ...] = ()) -> Reportd:
    topics = [f"{STATION}/cmd/{verb}" for verb in commands]
    make = partial(MqttPublisher, broker, "reportd", STATION, topics)
    return Reportd(ReportBuild(STATION, True, make, frozenset(commands), "sha256:0"), paths, SystemClock())


def turn_until(daemon: Reportd, what: Callable[[], Any], seconds: float = 15.0) -> None:
    end = now_ns() + round(seconds * 1e9)
    while not what():
        assert now_ns() < end, "it did not come about"
        daemon._wait()
        daemon.turn(now_ns())


def book(daemon: Reportd, first: int, last: int) -> None:
    for n in range(first, last + 1):
        part = PartClosed(
            n, n, "r1", n, 1_767_225_600_000_000 + n, "synced", "pass", None, 0.1, 0.5, -1, "accept", "verdict", False,
            "unwatched", False, 1.0, 0.2, 1.5, 0.1, 12.0, 808.0, 796.0, 828.0, None, "r", 1,
        )  # fmt: skip
        daemon.reporter.on_message(part, "j", now_ns())


def test_every_record_arrives_in_order_and_once_through_a_broker_that_goes_away(port: int, paths: Paths) -> None:
    network, mes = Network(port), Mes(port, STATION)
    daemon = reportd(paths, Broker("127.0.0.1", network.port))
    book(daemon, 1, 100)
    turn_until(daemon, lambda: len(mes.order) >= 100)
    network.cut(True)
    turn_until(daemon, lambda: not daemon._broker.connected)
    book(daemon, 101, 400)
    turn_until(daemon, lambda: daemon.ledger.committed_seq >= 400)
    network.cut(False)
    turn_until(daemon, lambda: daemon.outbox.backlog == 0, 25)
    assert mes.wait_for(lambda m: len(m.order) == daemon.ledger.committed_seq, 10)
    assert mes.order == sorted(mes.order)
    # What was under way as the line was cut may come a second time, unchanged; nothing that was acknowledged does.
    assert mes.repeats <= WINDOW and mes.altered == 0
    assert mes.retained["counters"]["triggers"] == 400
    daemon.close()
    assert mes.wait_for(lambda m: m.retained.get("available") == "stopped", 5)
    mes.close()
    network.close()


def test_retained_topics_are_there_for_who_comes_later_and_the_will_says_offline(port: int, paths: Paths) -> None:
    network = Network(port)
    daemon = reportd(paths, Broker("127.0.0.1", network.port))
    book(daemon, 1, 3)
    turn_until(daemon, lambda: daemon.outbox.backlog == 0 and daemon.ledger.committed_seq >= 4)
    mes = Mes(port, STATION)
    assert mes.wait_for(lambda m: {"available", "counters", "health"} <= set(m.retained), 5)
    assert mes.retained["available"] == "online" and mes.retained["counters"]["pass"] == 3
    network.cut(True)  # the firmware is gone without a word
    assert mes.wait_for(lambda m: m.retained["available"] == "offline", 40)
    daemon.close()
    mes.close()
    network.close()


def test_a_command_needs_an_id_and_its_repeat_gets_the_old_reply(port: int, paths: Paths) -> None:
    daemon = reportd(paths, Broker("127.0.0.1", port), ("clear",))
    turn_until(daemon, lambda: daemon._broker.connected)
    mes = Mes(port, STATION)
    assert mes.wait_for(lambda m: "available" in m.retained, 5)
    mes.command("clear", "7")
    turn_until(daemon, lambda: "reply" in mes.retained)
    assert mes.retained["reply"] == {"id": "7", "ok": False, "text": "rejectd does not answer; try again"}
    first = dict(daemon._replies)
    del mes.retained["reply"]
    mes.command("clear", "7")
    turn_until(daemon, lambda: "reply" in mes.retained)
    assert dict(daemon._replies) == first
    mes._client.publish(f"{STATION}/cmd/clear", json.dumps({"no": "id"}), qos=1)
    mes._client.publish(f"{STATION}/cmd/recipe", json.dumps({"id": "8"}), qos=1)
    mes.command("clear", "9")
    turn_until(daemon, lambda: "9" in daemon._replies)
    assert list(daemon._replies) == ["7", "9"]
    daemon.close()
    mes.close()


def test_a_refused_password_is_told_and_costs_nothing(paths: Paths) -> None:
    number = free_port()
    process = start_mosquitto(number, "allow_anonymous false")
    wait_for_port(number, process)
    daemon = reportd(paths, Broker("127.0.0.1", number, username="u", password="wrong"))
    book(daemon, 1, 5)
    turn_until(daemon, lambda: "authori" in daemon._broker.reason.lower() and daemon.ledger.committed_seq >= 6)
    assert daemon.outbox.backlog == daemon.ledger.committed_seq
    daemon.close()
    process.terminate()
    process.wait(5)
