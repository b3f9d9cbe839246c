"""What sticks and updates leave for the ledger: appended once whatever is cut, told by topic, alarms and lamp."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.box.spool import spool_event
from appliance.clock import SystemClock, VirtualClock, now_ns
from appliance.link import Listener, SocketLink, connect
from appliance.messages import Command, Hello, InspectState, Reply, Status
from appliance.paths import Paths
from appliance.report.daemon import LAMP_ID, ReportBuild, Reportd
from appliance.report.dialogue import Dialogue, remembered
from appliance.report.ledger import Ledger
from appliance.report.spool import LOOK_NS, Spool
from appliance.report.verify import verify

AT = "2026-01-01T00:00:00.000000Z"


@pytest.fixture
def paths() -> Iterator[Paths]:
    folder = Path(tempfile.mkdtemp(prefix="spool-"))
    yield Paths(folder / "r", folder / "d").make()
    shutil.rmtree(folder, ignore_errors=True)


def files(paths: Paths) -> list[str]:
    return sorted(os.listdir(paths.spool_dir)) if paths.spool_dir.is_dir() else []


def kinds(paths: Paths) -> list[str]:
    database = sqlite3.connect(paths.ledger_file)
    bodies = [json.loads(body) for (body,) in database.execute("SELECT body FROM entries ORDER BY seq")]
    database.close()
    return [body["event"] for body in bodies]


# --- each once ----------------------------------------------------------------------------------------------


def spool_of(paths: Paths, ledger: Ledger) -> Spool:
    return Spool(paths.spool_dir, ledger, paths.run, lambda: "synced")


def test_events_come_in_their_order_also_when_the_clock_is_set_back(paths: Paths) -> None:
    clock = VirtualClock(wall_us=1_800_000_000_000_000)
    early = VirtualClock(wall_us=1_700_000_000_000_000)
    for number in range(12):
        spool_event(paths.data, f"kind_{number}", {"text": "t"}, clock if number % 2 else early)
    ledger = Ledger(paths.ledger_file, "a/b", False)
    new = spool_of(paths, ledger).take(LOOK_NS)
    assert [one.kind for one in new] == [f"kind_{number}" for number in range(12)]
    assert len(files(paths)) == 12, "nothing goes before it is on disk"
    ledger.commit()
    ledger.close()
    assert kinds(paths) == [f"kind_{number}" for number in range(12)] and verify(paths.ledger_file)[0]


@pytest.mark.parametrize("cut", ["before the commit", "after the commit", "after one file"])
def test_a_cut_repeats_nothing_and_loses_nothing(paths: Paths, cut: str) -> None:
    for number in range(3):
        spool_event(paths.data, f"kind_{number}", {})
    ledger = Ledger(paths.ledger_file, "a/b", False)
    spool = spool_of(paths, ledger)
    assert len(spool.take(LOOK_NS)) == 3
    assert spool.take(3 * LOOK_NS) == [], "they are under way"
    if cut != "before the commit":
        durable = ledger.commit()
        assert len(durable) == 3 and files(paths)
        if cut == "after one file":
            spool.committed(dict([next(iter(durable.items()))]))
            assert len(files(paths)) == 2
    del ledger  # killed: nothing is closed
    again = Ledger(paths.ledger_file, "a/b", False)
    spool = spool_of(paths, again)
    assert len(spool.take(LOOK_NS)) == (3 if cut == "before the commit" else 0)
    spool.committed(again.commit())
    assert files(paths) == []
    again.close()
    assert kinds(paths) == ["kind_0", "kind_1", "kind_2"] and verify(paths.ledger_file)[0]


def test_the_folder_is_looked_at_twice_a_second_at_most(paths: Paths) -> None:
    spool = spool_of(paths, Ledger(paths.ledger_file, "a/b", False))
    assert spool.take(0) == [], "no folder is no event"
    spool_event(paths.data, "kind", {})
    assert spool.take(LOOK_NS - 1) == []
    assert len(spool.take(LOOK_NS)) == 1


NO_EVENTS = [
    b"",
    b"{",
    b"[]",
    b"\xff",
    b'{"id": "x"}',
    b'{"id":"","kind":"k","data":{},"wall_us":1,"clock":"synced"}',
    b'{"id":"1","kind":"k","data":{},"wall_us":1,"clock":"sundial"}',
]


@pytest.mark.parametrize("body", NO_EVENTS)
def test_what_is_no_event_is_kept_beside_and_stops_no_other(paths: Paths, body: bytes) -> None:
    paths.spool_dir.mkdir()
    (paths.spool_dir / "000000-x.json").write_bytes(body)
    spool_event(paths.data, "kind", {})
    spool = spool_of(paths, Ledger(paths.ledger_file, "a/b", False))
    assert [one.kind for one in spool.take(LOOK_NS)] == ["kind"]
    assert "000000-x.json.unreadable" in files(paths) and "000000-x.json" not in files(paths)


def test_a_disk_that_refuses_is_told_and_tried_again(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    spool_event(paths.data, "kind", {})
    ledger = Ledger(paths.ledger_file, "a/b", False)
    spool = spool_of(paths, ledger)
    spool.take(LOOK_NS)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)
    spool.committed(ledger.commit())
    assert "Read-only" in spool.trouble and len(files(paths)) == 1
    assert spool.take(2 * LOOK_NS) == [] and "Read-only" in spool.trouble
    monkeypatch.undo()
    assert spool.take(3 * LOOK_NS) == [] and spool.trouble == "" and files(paths) == []


# --- what a person is told ----------------------------------------------------------------------------------


def told(*kinds: str, **data: Any) -> Dialogue:
    dialogue = Dialogue()
    for kind in kinds:
        dialogue = dialogue.heard(kind, {"text": f"text of {kind}", **data}, AT)
    return dialogue


@pytest.mark.parametrize(
    ("kinds", "lamp", "alarms", "result"),
    [
        (["configuration_offered"], "on", [], "offered"),
        (["configuration_offered", "configuration_applied"], "slow", [], "applied"),
        (["configuration_offered", "configuration_refused"], "fast", ["stick_refused"], "refused"),
        (["configuration_applied", "configuration_returned"], "fast", ["stick_refused"], "returned"),
        (["stick_unreadable"], "fast", ["stick_unreadable"], "stick_unreadable"),
        (["configuration_refused", "stick_removed"], "off", [], "refused"),
        (["configuration_refused", "configuration_offered"], "on", [], "offered"),
        (["configuration_refused", "stick_unreadable"], "fast", ["stick_unreadable"], "stick_unreadable"),
        (["configuration_applied", "keys_enrolled", "ledger_whatever"], "slow", [], "applied"),
        (["stick_inserted", "update_offered", "update_refused"], "fast", ["stick_refused"], ""),
        (["stick_inserted", "update_offered", "update_applied"], "slow", [], ""),
        (["update_offered", "update_refused"], "off", [], ""),
        (["stick_inserted", "stick_served"], "slow", [], ""),
        (["stick_inserted", "configuration_unchanged"], "slow", [], "unchanged"),
    ],
)
def test_lamp_and_alarms_stand_until_the_stick_is_pulled(kinds: list[str], lamp: str, alarms: list[str], result: str) -> None:
    dialogue = told(*kinds)
    assert (dialogue.lamp, list(dialogue.alarms), dialogue.result) == (lamp, alarms, result)
    assert all(text.startswith("text of ") for text in dialogue.alarms.values())
    assert remembered(json.loads(json.dumps(dialogue.as_json()))) == dialogue


def test_what_is_settled_at_boot_waits_for_no_stick() -> None:
    dialogue = told("configuration_returned", at_boot=True)
    assert (dialogue.lamp, dialogue.alarms, dialogue.result) == ("off", {}, "returned")


@pytest.mark.parametrize("value", [None, [], {"lamp": "on"}, {**Dialogue().as_json(), "more": 1}])
def test_what_is_no_dialogue_is_an_empty_one(value: Any) -> None:
    assert remembered(value) == Dialogue()


# --- the daemon ---------------------------------------------------------------------------------------------


class Neighbour:
    """A rejectd or inspectd as reportd sees it: what it hears, what it says."""

    def __init__(self, paths: Paths) -> None:
        self._listener = Listener(paths.reject_socket)
        self.link: SocketLink | None = None
        self.lamps: list[str] = []

    def step(self) -> None:
        link = self._listener.accept()
        if link is not None:
            self.link = link
            link.send(Hello("reject", "journal", 1))
        for message in self.link.receive() if self.link else ():
            if isinstance(message, Command):
                assert message.verb == "lamp"
                self.lamps.append(message.arguments["pattern"])
                self.link.send(Reply(message.id, True, "lamp"))

    def say(self, message: Any) -> None:
        assert self.link and self.link.send(message)

    def close(self) -> None:
        if self.link:
            self.link.close()
        self._listener.close()


def reportd(paths: Paths, **more: Any) -> Reportd:
    return Reportd(ReportBuild("a/b", False, None, frozenset(), "sha256:7", **more), paths, SystemClock())


def turn_until(daemon: Reportd, what: Callable[[], Any], neighbour: Neighbour | None = None, seconds: float = 10.0) -> None:
    end = now_ns() + round(seconds * 1e9)
    while not what():
        assert now_ns() < end, "it did not come about"
        daemon._wait()
        daemon.turn(now_ns())
        if neighbour:
            neighbour.step()


def standing(paths: Paths) -> Any:
    return json.loads(paths.state_file.read_text()) if paths.state_file.exists() else {}


def status(alive_ns: int, state: str = "running") -> Status:
    return Status(state, "", 0, 0.0, "r1", alive_ns, 0, 1, 0, (), {}, False, "sha256:7", "2 b")  # type: ignore[arg-type]


def test_a_refused_stick_is_told_by_lamp_alarm_topic_and_ledger_until_it_is_pulled(paths: Paths) -> None:
    neighbour = Neighbour(paths)
    daemon = reportd(paths, revision=3, generation=12)
    topic = json.loads(daemon.reporter.retained["configuration"])
    assert topic == {"digest": "sha256:7", "revision": 3, "generation": 12, "result": "", "text": "", "at": None}
    turn_until(daemon, lambda: neighbour.lamps == ["off"], neighbour)
    spool_event(paths.data, "configuration_refused", {"text": "appliance.yaml:3:1: active: no recipe cap", "who": "stick"})
    turn_until(daemon, lambda: neighbour.lamps == ["off", "fast"] and not files(paths), neighbour)
    topic = json.loads(daemon.reporter.retained["configuration"])
    assert topic["result"] == "refused" and "no recipe cap" in topic["text"] and topic["at"].endswith("Z")
    alarm = json.loads(daemon.reporter.retained["alarm/stick_refused"])
    assert alarm["raised"] and "no recipe cap" in alarm["text"] and "RESULT.txt" in alarm["text"]
    spool_event(paths.data, "stick_removed", {})
    turn_until(daemon, lambda: neighbour.lamps == ["off", "fast", "off"], neighbour)
    assert json.loads(daemon.reporter.retained["alarm/stick_refused"])["raised"] is False
    neighbour.close()
    daemon.close()
    assert kinds(paths)[1:3] == ["configuration_refused", "stick_removed"]


def test_a_stick_that_its_unit_tells_to_be_pulled_puts_out_lamp_and_alarm_once(paths: Paths) -> None:
    daemon = reportd(paths)
    spool_event(paths.data, "configuration_refused", {"text": "no", "who": "stick", "device": "/dev/appliance/stick/sda1.17"})
    turn_until(daemon, lambda: "stick_refused" in daemon._dialogue.alarms)
    pulled = paths.run / "pulled-sda1.17"
    pulled.touch()
    turn_until(daemon, lambda: daemon._dialogue.lamp == "off" and not pulled.exists())
    daemon.close()
    assert kinds(paths).count("stick_removed") == 1


def test_units_of_a_package_before_name_the_stick_by_its_node(paths: Paths) -> None:
    """The program comes with an update, the units with the package: here the older."""
    told = Dialogue().heard("stick_inserted", {"device": "/dev/sda1"}, AT)
    (paths.run / "pulled-sda1").touch()
    (pulled,) = spool_of(paths, Ledger(paths.ledger_file, "a/b", False)).take(LOOK_NS)
    assert told.heard(pulled.kind, pulled.data, AT).lamp == "off"


def test_of_what_happened_while_reportd_was_away_a_pulled_stick_takes_its_place_by_its_time(paths: Paths) -> None:
    spool_event(paths.data, "stick_inserted", {"who": "a", "device": "/dev/appliance/stick/sda1.17"})
    first = next(paths.spool_dir.glob("*.json"))
    wall_ns = json.loads(first.read_bytes())["wall_us"] * 1000
    pulled = paths.run / "pulled-sda1.17"
    pulled.touch()
    os.utime(pulled, ns=(wall_ns + 10**6, wall_ns + 10**6))
    later = json.loads(first.read_bytes()) | {"id": "LATER", "kind": "stick_unreadable", "wall_us": wall_ns // 1000 + 2000}
    (paths.spool_dir / "000002-LATER.json").write_text(json.dumps(later))
    new = spool_of(paths, Ledger(paths.ledger_file, "a/b", False)).take(LOOK_NS)
    assert [one.kind for one in new] == ["stick_inserted", "stick_removed", "stick_unreadable"]
    assert new[1].data["device"] == "/dev/appliance/stick/sda1.17" and new[1].clock == "synced"
    assert new[1].data["text"] == "stick sda1 was pulled"


def test_a_second_sticks_reason_takes_the_place_of_the_firsts(paths: Paths) -> None:
    daemon = reportd(paths)
    for text in ("first", "second"):
        spool_event(paths.data, "configuration_refused", {"text": text})
        turn_until(daemon, lambda text=text: text in daemon.reporter.retained.get("alarm/stick_refused", b"").decode())
    daemon.close()


def test_lamp_and_alarms_stand_over_a_restart_of_reportd_and_of_rejectd(paths: Paths) -> None:
    neighbour, daemon = Neighbour(paths), reportd(paths)
    spool_event(paths.data, "stick_unreadable", {"text": "no file system"})
    turn_until(daemon, lambda: "fast" in neighbour.lamps, neighbour)
    neighbour.close()  # rejectd was killed
    neighbour = Neighbour(paths)
    turn_until(daemon, lambda: neighbour.lamps == ["fast"], neighbour)
    neighbour.close()
    daemon.close()
    neighbour, daemon = Neighbour(paths), reportd(paths)
    assert json.loads(daemon.reporter.retained["alarm/stick_unreadable"])["raised"]
    turn_until(daemon, lambda: neighbour.lamps == ["fast"], neighbour)
    neighbour.close()
    daemon.close()


def test_the_lamps_answer_is_for_nobody_and_its_id_for_no_one_else(paths: Paths) -> None:
    daemon = reportd(paths)
    answered: list[Any] = []
    daemon._answer = lambda *what: answered.append(what)  # type: ignore[method-assign]
    link = daemon._listener  # any key: only its message counts
    daemon._hear(link, Reply(LAMP_ID, True, "lamp fast"), 0)  # type: ignore[arg-type]
    assert answered == []
    daemon._hear(link, Reply("7", True, "cleared"), 0)  # type: ignore[arg-type]
    assert answered == [("7", True, "cleared")]
    daemon.close()


def test_state_json_says_how_all_three_stand(paths: Paths) -> None:
    neighbour = Neighbour(paths)
    daemon = reportd(paths, version="2 b")
    turn_until(daemon, lambda: neighbour.link, neighbour)
    assert standing(paths)["reject"] is None and standing(paths)["inspect"] is None
    assert standing(paths)["report"] == {"configuration": "sha256:7", "version": "2 b"}
    neighbour.say(status(now_ns()))
    inspect = InspectState("building", "float16", 0.25, "r", 1, "sha256:0", {}, "sha256:7", "2 b")
    link = connect(paths.report_socket, Hello("inspect", "i", 1))
    assert link and link.send(inspect)
    turn_until(daemon, lambda: standing(paths)["reject"] and standing(paths)["inspect"], neighbour)
    seen = standing(paths)
    told = {"state": "running", "reason": "", "progress": 0.0, "configuration": "sha256:7", "version": "2 b", "inputs_lost": {}}
    assert seen["reject"] == told
    assert seen["inspect"]["state"] == "building" and seen["inspect"]["progress"] == 0.25
    assert abs(now_ns() - seen["written_ns"]) < 2e9
    turn_until(daemon, lambda: standing(paths)["reject"] is None, neighbour)  # hung: its link stands, it says nothing
    assert standing(paths)["inspect"] is not None
    link.close()
    turn_until(daemon, lambda: standing(paths)["inspect"] is None, neighbour)
    first = standing(paths)["written_ns"]
    turn_until(daemon, lambda: standing(paths)["written_ns"] > first, neighbour, 1.5)
    neighbour.close()
    daemon.close()


def test_reportd_begins_anew_when_asked(paths: Paths) -> None:
    daemon = reportd(paths)
    daemon.turn(now_ns())
    assert not daemon.stopping
    paths.again_file("report").touch()
    turn_until(daemon, lambda: daemon.stopping)
    daemon.close()


@pytest.mark.parametrize("safe", [True, False])
def test_what_could_not_be_used_is_an_event_and_an_alarm(paths: Paths, safe: bool) -> None:
    why = "generation 7 cannot be used: appliance.yaml:3:1: active: no recipe cap; write one of a, b"
    daemon = reportd(paths, **({"safe": why} if safe else {"fallback": why}))
    alarm = daemon.reporter.retained.get("alarm/configuration_fallback")
    daemon.close()
    assert kinds(paths)[1] == ("safe_mode" if safe else "configuration_fallback")
    assert safe == (alarm is None)
    if alarm:
        assert json.loads(alarm)["raised"] and "no recipe cap" in json.loads(alarm)["text"]
