"""Power pulled at random while the box runs, takes a configuration, takes an update: it always comes back, with the old or
the new and nothing between, and the ledger holds all that had left over MQTT.

The data lie on dm-log-writes. Each scenario runs once; of its log, states after a cut are made (tests/box/power), and each
is booted. APPLIANCE_CUTS says how many of each scenario; a number in the environment, so that one test is the whole row."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.box import app_bundle
from tests.box.power.log_writes import Entry, cut_at, marks, read_log, replay
from tests.box.vm.machine import CommandFailed, Machine
from tests.box.vm.rootfs import appliance_deb, copy_image

pytestmark = [pytest.mark.machine, pytest.mark.timeout(7200)]
HERE = Path(__file__).resolve().parent
STATION = HERE.parents[1] / "appliance" / "twin" / "station.yaml"
CUTS = int(os.environ.get("APPLIANCE_CUTS", "2"))
SEED = int(os.environ.get("APPLIANCE_SEED", "20261124"))
DATA = "/var/lib/appliance"
_DATA_MB, _LOG_MB = 1600, 4096  # sparse
NEWER = "99.0.0"
_WHAT_IS = "cat /run/appliance/state.json; ls -R /var/lib/appliance/config | head -50; journalctl -b --no-pager | tail -50"


class Power:
    """One scenario: a machine whose data are logged, and what its cuts leave."""

    def __init__(self, image: Path, folder: Path, make: Callable[..., Machine]) -> None:
        self.image, self.folder, self.make = image, folder, make
        self.start, self.disk, self.log = folder / "start", folder / "disk", folder / "log"
        for path, mb in ((self.start, _DATA_MB), (self.log, _LOG_MB)):
            with path.open("wb") as stream:
                stream.truncate(mb << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", self.start], check=True)
        copy_image(self.start, self.disk)
        self.machine = make(image, disks=[self.disk, self.log], memory_mb=1536)
        self.machine.boot()
        self.machine.check(
            'systemctl stop appliance.target rejectd inspectd reportd; set -e;'
            'dmsetup create data --table "0 $(blockdev --getsz /dev/ubdb) log-writes /dev/ubdb /dev/ubdc";'
            f"mount /dev/mapper/data {DATA}; chown appliance: {DATA}; chmod 750 {DATA}; systemctl start mosquitto"
        )
        (self.machine.shared / "first").mkdir()
        configuration(self.machine.shared / "first", revision=1)
        told(self.machine, apply("first"))
        start(self.machine)
        running(self.machine)
        self.heard = self.machine.script(
            HERE / "power" / "promises.py", "data", "acme/demo/line1/inspect-a",
            python="PYTHONPATH=/usr/lib/appliance/packages python3", deadline_s=3600,
        )  # fmt: skip
        self.mark("begun")

    def mark(self, text: str) -> None:
        self.machine.check(f"dmsetup message data 0 mark {text}")

    def over(self) -> list[Entry]:
        """Everything of the scenario is done: no more power. The log."""
        self.machine.check("sync")
        assert not self.heard.done(), f"nobody heard what was promised: {self.heard.wait(0).out}"
        self.machine.cut_power()
        with self.log.open("rb") as log:
            return read_log(log)

    def after_a_cut(self, entries: list[Entry], number: int) -> tuple[Machine, list[str]]:
        """The box booted with what cut ``number`` left on its disk, and what had been promised by then."""
        chance = random.Random(SEED * 1000 + number)
        first = next(one.index for one in entries if one.text == "begun")
        # Most writes of an update fill a slot; what decides is among the last. Every second cut is taken there.
        earliest = max(first + 1, len(entries) - len(entries) // 50) if number % 2 else first + 1
        cut = cut_at(entries, chance.randint(earliest, len(entries)), chance)
        print(f"cut {number}: after write {cut.index} of {len(entries)}, {cut.index - cut.durable} not flushed, "
              f"{len(cut.kept)} of them kept; promised: {marks(entries, cut)[-1]}", flush=True)  # fmt: skip
        disk = copy_image(self.start, self.folder / f"cut{number}")
        with self.log.open("rb") as log:
            replay(log, entries, cut, disk)
        machine = self.make(self.image, disks=[disk], memory_mb=1536)
        machine.boot()
        # As an entry of fstab would: before anything of ours starts.
        machine.check(f"systemctl stop appliance.target rejectd inspectd reportd; mount /dev/ubdb {DATA};"
                      "systemctl start mosquitto")  # fmt: skip
        start(machine)
        return machine, marks(entries, cut)

    def drop(self, machine: Machine, number: int) -> None:
        machine.cut_power()
        (self.folder / f"cut{number}").unlink()


def start(machine: Machine) -> None:
    """The line first: a twin that comes up late, as on a busy computer, is an output lost, which a person would clear."""
    place = "/run/systemd/system/appliance-twin.service.d"
    machine.check(f"mkdir -p {place}; printf '[Service]\\nTimeoutStartSec=240\\n' > {place}/slow.conf; systemctl daemon-reload;"
                  "systemctl start appliance-twin && systemctl start --no-block appliance.target", 300)  # fmt: skip


def configuration(folder: Path, revision: int) -> None:
    """The shipped station at this revision, with a broker of its own, on a slow belt: this machine may stand still for half a
    second, and a gate that is told too late stops the line until a person comes."""
    text = STATION.read_text()
    for old, new in (
        ("broker: embedded", "broker: mqtt://127.0.0.1:1883"), ("revision: 1", f"revision: {revision}"),
        ("fps: 60", f"fps: {20 + revision % 2}"), ("speed_mm_s: 500", "speed_mm_s: 100"),
        ("deadline_ms: 20", "deadline_ms: 1000"),
    ):  # fmt: skip
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "appliance.yaml").write_text(text)


def apply(name: str) -> str:
    return f"cp -r /host/{name} /tmp/ && chown -R appliance: /tmp/{name} && appliance usb apply /tmp/{name}"


def told(machine: Machine, command: str, deadline_s: float = 240) -> str:
    return machine.check(command, deadline_s)


def look(machine: Machine, *question: str) -> str:
    """The command that asks in the guest; see power/look.py."""
    (machine.shared / "look.py").write_text((HERE / "power" / "look.py").read_text())
    return " ".join(["python3 /host/look.py", *question, "2>&1"])


def running(machine: Machine, deadline_s: float = 120) -> dict[str, Any]:
    """state.json, once all three run the same configuration and inspectd judges."""
    try:
        state: dict[str, Any] = json.loads(machine.wait_until(look(machine, "running"), deadline_s, 0.5))
    except CommandFailed as why:
        raise AssertionError(f"{why}\n{machine.check(_WHAT_IS)}") from why
    return state


def books_hold(machine: Machine, promised: list[str]) -> int:
    """The ledger verifies and has all that had left; the highest seq that had."""
    verdict = machine.check(f"appliance ledger verify {DATA}/ledger.sqlite")
    assert "complete, unaltered" in verdict, verdict
    found = re.search(r"last seq (\d+)", verdict)
    assert found, verdict
    left = max((int(one[4:]) for one in promised if one.startswith("seq-")), default=0)
    assert int(found[1]) >= left, f"seq {left} had left over MQTT, the ledger ends at {found[1]}"
    return left


@pytest.fixture
def power(box_image: Path, machine_of: Callable[..., Machine], tmp_path: Path) -> Power:
    return Power(box_image, tmp_path, machine_of)


@pytest.fixture
def update_bundle(tmp_path: Path) -> Path:
    """What the package installs, as a bundle of a higher version."""
    tree, update = tmp_path / "tree", tmp_path / "update.bundle"
    subprocess.run(["dpkg-deb", "-x", appliance_deb(), tree], check=True)
    app_bundle.write(tree / "usr/lib/appliance", update, NEWER, "amd64", "3.11")
    shutil.rmtree(tree)
    return update


def test_cut_while_it_runs(power: Power) -> None:
    power.machine.wait_until(look(power.machine, "seq 40"), 120)
    power.machine.check("systemctl kill --signal=KILL reportd")  # recovery of a killed reportd is cut too
    power.machine.wait_until(look(power.machine, "seq 80"), 120)
    entries = power.over()
    highest = 0
    for number in range(CUTS):
        machine, promised = power.after_a_cut(entries, number)
        running(machine)
        highest = max(highest, books_hold(machine, promised))
        power.drop(machine, number)
    assert highest > 0, "nothing had left before any of the cuts: they show nothing"


def test_cut_while_configurations_are_applied(power: Power) -> None:
    revisions = range(2, 5)
    for revision in revisions:
        name = f"stick{revision}"
        (power.machine.shared / name).mkdir()
        configuration(power.machine.shared / name, revision)
        power.mark(f"offered-{revision}")
        assert "Result: APPLIED" in told(power.machine, f"{apply(name)}; cat /tmp/{name}/RESULT.txt")
        power.mark(f"applied-{revision}")
    entries = power.over()
    seen = set()
    for number in range(CUTS):
        machine, promised = power.after_a_cut(entries, number)
        done = max((int(one[8:]) for one in promised if one.startswith("applied-")), default=1)
        offered = max((int(one[8:]) for one in promised if one.startswith("offered-")), default=1)
        running(machine)
        runs = int(machine.check(look(machine, "revision")))
        assert done <= runs <= offered, f"revision {runs} runs; {done} was applied, {offered} offered"
        seen.add(runs)
        books_hold(machine, promised)
        power.drop(machine, number)
    print(f"revisions that ran after the cuts: {sorted(seen)}")


def test_cut_while_an_update_is_installed(power: Power, update_bundle: Path) -> None:
    shutil.copy(update_bundle, power.machine.shared / "update.bundle")
    power.mark("offered")
    told(power.machine, "appliance update install /host/update.bundle", 1200)
    power.mark("applied")
    begun = int(power.machine.check(look(power.machine, "seq -1")))
    power.machine.wait_until(look(power.machine, f"seq {begun + 40}"), 120)
    entries = power.over()
    seen = set()
    for number in range(CUTS):
        machine, promised = power.after_a_cut(entries, number)
        version = str(running(machine)["report"]["version"])
        new = version.startswith(NEWER)
        assert new or "applied" not in promised, f"{version} runs, and {NEWER} had been applied"
        seen.add("new" if new else "old")
        books_hold(machine, promised)
        power.drop(machine, number)
    print(f"what ran after the cuts: {sorted(seen)}")
