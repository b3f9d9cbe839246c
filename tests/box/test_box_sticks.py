"""Sticks in the virtual machine: real udev, real units, a real FAT on a real USB bus (dummy_hcd), while parts go by.

The kinds and their ends are those of ``sticks.py``. A stick is slow here: its unit may have 40 % of the one
processor that the station is busy on. A plain run plugs in one of each sort; ``./build.sh box --all`` all that a FAT can hold."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.box import sticks
from tests.box.sticks import KINDS, Kind, Maker
from tests.box.vm import line
from tests.box.vm.machine import Machine

pytestmark = [pytest.mark.machine, pytest.mark.timeout(3600)]
SOME = ("wrong station", "half a model", "60,000 nested brackets", "size claimed: 4 GiB", "boot sector dead", "collect only")
_STATE = "/var/lib/appliance/config/state.json"
_FAILED = "journalctl -b -o cat -u 'appliance-usb*' | grep 'Failed with result' || true"
_UNITS = "'appliance-usb@*' --plain --no-legend"  # those of sticks that are in, or whose unit still ends
_TOLD = {
    "refused": "configuration_refused", "unreadable": "stick_unreadable", "applied": "configuration_applied", "served": "",
}  # fmt: skip


def _kinds() -> list[Kind]:
    if os.environ.get("APPLIANCE_BOX") == "all":
        return [kind for kind in KINDS.values() if kind.fat and not kind.signed and kind.ends not in ("applied", "unchanged")]
    return [KINDS[name] for name in SOME]


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """A good stick brings the line's configuration, one revision ahead."""
    if sticks.missing_tools():
        pytest.skip(f"{', '.join(sticks.missing_tools())} not found: sudo apt-get install dosfstools mtools")
    bundle = line.tiny(tmp_path_factory.mktemp("maker") / "tiny")
    return Maker(line.YAML.replace("revision: 1\n", "revision: 2\n"), bundle)


@pytest.fixture(scope="module")
def station(box_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A box that runs, and parts going by."""
    folder = tmp_path_factory.mktemp("box")
    with Machine(box_image, folder / "vm", memory_mb=1536) as machine:
        line.set_up(machine, line.tiny(folder / "tiny"))
        machine.stop()
        machine.boot(120)
        machine.wait_until(line.RUNNING, 180, 0.3)
        yield machine


def test_each_stick_ends_as_it_must_and_inspection_goes_on(station: Machine, maker: Maker, tmp_path: Path) -> None:
    stands = before = _how_it_stands(station)
    alternating = [number % 3 == 0 for number in range(3000)]
    job = line.start_parts(station, alternating, pitch_s=0.4, name="sticks", deadline_s=3500)
    faults: list[str] = []
    seconds: list[float] = []
    for kind in _kinds():
        began = time.monotonic()
        wrong = _plug(station, kind, maker, tmp_path / f"{len(seconds)}.img")
        seconds.append(time.monotonic() - began)
        now = _how_it_stands(station)
        if not wrong and now != stands:
            wrong = f"configuration or a daemon changed by it: {now} after {stands}"
        stands = now
        if wrong:
            faults.append(f"{kind.name}: {wrong}")
            print(f"\nfault {faults[-1]}", flush=True)
    (station.shared / "sticks.stop").touch()
    made = line.account(station, job, "sticks", deadline_s=120)
    assert faults == []
    assert stands == before, "configuration or a daemon changed by sticks that were refused"
    by_time = sorted(made.records, key=lambda one: one["monotonic_ns"])
    assert len(by_time) == len(made.parts), f"{len(made.parts) - len(by_time)} edges without a record"
    escapes = [one for part, one in zip(made.parts, by_time) if part["bad"] and one["disposition"] != "reject"]
    assert escapes == []
    judged = sum(one["verdict"] in ("pass", "fail") for one in by_time)
    assert judged >= len(by_time) / 2, "inspection went on"
    assert "complete, unaltered" in line.verify(station)
    print(f"\n{len(seconds)} sticks, {sum(seconds) / len(seconds):.1f} s each, {max(seconds):.1f} s the longest; meanwhile "
          f"{len(by_time)} parts, {judged} judged, 0 escapes")  # fmt: skip


def test_a_good_stick_is_applied_and_stays_over_a_boot(station: Machine, maker: Maker, tmp_path: Path) -> None:
    kind = KINDS["good with a bundle"]
    assert _plug(station, kind, maker, tmp_path / "good.img") == ""
    assert _revision(station) == 2
    station.stop()
    station.boot(120)
    station.wait_until(line.RUNNING, 180, 0.3)
    assert "complete, unaltered" in line.verify(station)


def test_a_stick_pulled_in_the_middle_changes_nothing(station: Machine, maker: Maker, tmp_path: Path) -> None:
    later = Maker(maker.yaml.replace("revision: 2\n", "revision: 3\n"), maker.bundle)
    image = tmp_path / "pulled.img"
    sticks.make_image(KINDS["good with a bundle"], image, later)
    state = station.check(f"cat {_STATE}")
    station.plug(image)
    station.wait_until(f"systemctl list-units --state=activating {_UNITS} | grep -q .", 30, 0.02)
    station.unplug()
    station.wait_until(f"! test -e /dev/sda && ! systemctl list-units {_UNITS} | grep .", 60)
    station.wait_until(line.RUNNING, 60, 0.3)
    assert station.check(f"cat {_STATE}") == state
    assert station.check(_FAILED) == ""


def test_a_stick_plugged_in_while_the_one_before_is_on_trial_waits_and_each_gets_its_own_answer(
    station: Machine, maker: Maker, tmp_path: Path
) -> None:
    """Both are /dev/sda: under one name the second's unit would not begin, and the first's answer would be on the second."""
    later = Maker(maker.yaml.replace("revision: 2\n", "revision: 3\n"), maker.bundle)
    first, second = tmp_path / "first.img", tmp_path / "second.img"
    sticks.make_image(KINDS["good with a bundle"], first, later)
    sticks.make_image(KINDS["wrong station"], second, later)
    station.plug(first)
    station.wait_until(f"""grep -q '"trial": [^n]' {_STATE}""", 120, 0.02)
    station.unplug()
    ending = station.wait_until(f"systemctl list-units --state=deactivating {_UNITS} | grep -o '^[^ ]*'", 30, 0.02).strip()
    station.check(f"systemctl kill --kill-who=main --signal=STOP {ending}")  # it takes its time
    station.wait_until("! test -e /dev/sda", 30)
    last = _last(station)
    station.plug(second)
    station.wait_until(_events_after(last, "stick_inserted") + " | grep 'waits: what the one before it began'", 120, 0.1)
    units = station.check(f"systemctl list-units {_UNITS}")
    assert "deactivating" in units and len(units.splitlines()) == 2, f"the first one's trial goes on meanwhile: {units}"
    station.check(f"systemctl kill --kill-who=main --signal=CONT {ending}")
    station.wait_until(f"test $(systemctl list-units {_UNITS} | wc -l) = 1", 240, 0.3)
    assert _revision(station) == 3, "pulled in the middle of its trial, it was kept"
    station.wait_until(_events_after(last, "stick_answered"), 120, 0.3)
    station.unplug()
    station.wait_until(f"! test -e /dev/sda && ! systemctl list-units {_UNITS} | grep .", 60, 0.3)
    assert "acme/elsewhere/line9" in _result(station.stick(second.name))
    names = _result(station.stick(first.name))
    assert "appliance.yaml" in names and "RESULT.txt" not in names
    station.wait_until(line.RUNNING, 60, 0.3)
    assert station.check("ls /run/appliance-stick; ls -d /var/lib/appliance/stick 2> /dev/null || true") == ""
    assert station.check(_FAILED) == ""
    assert "complete, unaltered" in line.verify(station)


def test_a_stick_with_a_partition_table_is_one_stick(station: Machine, maker: Maker, tmp_path: Path) -> None:
    """Disk and partition are two devices: of the disk nothing is said."""
    last = _last(station)
    assert _plug(station, KINDS["wrong station"], maker, tmp_path / "table.img", partition=True) == ""
    told = station.check(_events_after(last, "stick_inserted"))
    assert told.count("stick_inserted") == 1 and "/dev/appliance/stick/sda1." in told
    assert station.run(_events_after(last, "stick_unreadable")).out == ""


def _plug(machine: Machine, kind: Kind, maker: Maker, image: Path, partition: bool = False) -> str:
    """Plugged, told, pulled; what was wrong, in words."""
    sticks.make_image(kind, image, maker)
    if partition:
        sticks.in_a_partition(image)
    last = _last(machine)
    machine.plug(image)
    wanted = _TOLD[kind.ends]
    if "or unreadable" in kind.tags:
        wanted = "configuration_refused stick_unreadable"
    answered = "stick_answered stick_not_written stick_unreadable"  # whichever: from then on it may be pulled
    wrong = ""
    if wanted:
        told = machine.run_until(_events_after(last, wanted), 180, 0.3)
        if told.rc:
            events = machine.run(_query(f"select body from entries where seq > {last} and part is null")).out
            wrong = f"nobody was told {wanted} of it in 180 s; events: {events[-600:]}"
        elif kind.ends == "unreadable" and not any(word in told.out for word in kind.words):
            wrong = f"the event does not say {kind.words}: {told.out[-400:]}"
    if machine.run_until(_events_after(last, answered), 180, 0.3).rc and not wrong:
        wrong = "it was not answered in 180 s"
    machine.unplug()
    machine.wait_until("! test -e /dev/sda", 30)
    inside = machine.stick(image.name)
    if not wrong and kind.ends != "unreadable":
        text = _result(inside, "@@1M" if partition else "")
        if not any(word in text for word in kind.words) and "or unreadable" not in kind.tags:
            wrong = f"RESULT.txt does not say {kind.words}: {text[:400]!r}"
    inside.unlink()
    image.unlink(missing_ok=True)
    return wrong


def _revision(machine: Machine) -> int:
    """Of the configuration that is kept."""
    number = json.loads(machine.check(f"cat {_STATE}"))["good"]
    meta = json.loads(machine.check(f"cat /var/lib/appliance/config/generations/{number:06}/meta.json"))
    return int(meta["meta"]["revision"])


def _last(machine: Machine) -> int:
    """Where the ledger stands."""
    return int(machine.check(_query("select max(seq) from entries")).strip())


def _result(image: Path, at: str = "") -> str:
    """RESULT.txt of a stick, or its other name where that one is taken; then the names of what lies on it. ``at``: where its
    file system begins, as mtools reads it."""
    names = ("RESULT.txt", "APPLIANCE-RESULT.txt")
    asked = [*(["mtype", "-i", f"{image}{at}", f"::{name}"] for name in names), ["mdir", "-b", "-i", f"{image}{at}", "::"]]
    lax = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    return "".join(subprocess.run(one, capture_output=True, env=lax).stdout.decode(errors="replace") for one in asked)


def _query(sql: str) -> str:
    return (
        f"""python3 -c 'import sqlite3\nfor one in sqlite3.connect("file:{line.LEDGER}?mode=ro", uri=True)"""
        f""".execute("{sql}"): print(one[0])'"""
    )


def _events_after(seq: int, kinds: str) -> str:
    wanted = kinds.replace(" ", "|")
    return _query(f"select body from entries where seq > {seq} and part is null") + f" | grep -E '\"({wanted})\"'"


def _how_it_stands(machine: Machine) -> dict[str, Any]:
    restarts = machine.check("for one in rejectd inspectd reportd; do systemctl show -P NRestarts $one; done; "
                             "for one in rejectd inspectd reportd; do systemctl show -P MainPID $one; done")  # fmt: skip
    stored = machine.check("ls /var/lib/appliance/config/generations")
    return {"processes": restarts.split(), "state": machine.check(f"cat {_STATE}"), "stored": stored.split()}
