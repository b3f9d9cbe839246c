"""What was left on trial is decided: by health, after a killed doer, after a power cut, and told whatever is cut."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.box.store import Generation, Store
from appliance.clock import VirtualClock
from appliance.config import load
from appliance.config.load import PROJECT
from appliance.paths import Paths
from appliance.wiring.settle import ConfigurationOnTrial, Wanted, decide, settle
from appliance.wiring.store import essentials_of
from tests.box.cuts import Disk
from tests.box.test_health import seen
from tests.wiring.test_store import Box, set_to

S = 10**9
ASLEEP_NS = 7 * S  # the machine slept: CLOCK_BOOTTIME is ahead
ALL = {"again-reject", "again-inspect", "again-report"}


class Trial:
    """A box with one good generation and another on trial; the three processes are a file."""

    def __init__(self, folder: Path, first: bool = False) -> None:
        """``first``: there is no good one before it."""
        self.clock, self.boot = VirtualClock(100 * S), "boot-1"
        self.paths = Paths(folder / "r", folder / "d").make()
        self.box = Box(folder)
        self.box.store = self.store = Store(folder / "config", lambda: self.boot, lambda: self.clock.now_ns() + ASLEEP_NS)
        self.old: Generation | None = None
        if not first:
            self.old = self.box.put()
            self.store.begin_trial(self.old, 10**15)
            self.store.mark_good(essentials_of(load(self.old.file)))
        self.new = self.box.put(set_to("alarms", "consecutive_rejects", to=9))
        self.store.begin_trial(self.new, self.clock.now_ns() + ASLEEP_NS + 60 * S)
        self.runs = self.new.digest
        self.changes: dict[str, Any] = {}

    @property
    def thing(self) -> ConfigurationOnTrial:
        return ConfigurationOnTrial(self.store, self.paths.run, self.paths.data, self.clock)

    def wait(self, duration_ns: int) -> None:
        self.clock.advance_to(self.clock.now_ns() + duration_ns)
        self.write()

    def write(self) -> None:
        told = seen(self.clock.now_ns(), digest=self.runs, **self.changes)
        self.paths.state_file.write_text(json.dumps(told))

    def decide(self) -> str:
        self.write()
        return decide(self.thing, self.paths.run, self.clock, self.wait, lambda: self.clock.now_ns() + ASLEEP_NS)

    def asked(self) -> set[str]:
        return {name for name in os.listdir(self.paths.run) if name.startswith(("again-", "same-"))}

    def events(self) -> list[dict[str, Any]]:
        folder = self.paths.spool_dir
        return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


def test_a_healthy_one_is_kept_and_told(trial: Trial) -> None:
    assert trial.decide() == ""
    assert trial.store.good == trial.new and trial.store.trial is None
    assert (trial.store.essentials() or {})["digest"] == trial.new.digest
    (event,) = trial.events()
    assert event["kind"] == "configuration_applied" and event["data"]["who"] == "settle" and event["data"]["at_boot"]
    assert event["data"]["old"]["generation"] == 1 and event["data"]["new"]["generation"] == 2 and event["data"]["why"] == "test"
    assert trial.asked() == set(), "who runs well is not disturbed"


def test_one_that_is_not_healthy_in_time_is_given_up_and_its_processes_begin_anew(trial: Trial) -> None:
    trial.changes = {"inspect_state": "fault", "inspect_reason": "golden vector 3 differs"}
    assert "golden vector 3 differs" in trial.decide()
    assert trial.clock.now_ns() == 160 * S, "its time in a clock that does not count sleep"
    assert trial.store.good == trial.old and trial.store.trial is None
    assert trial.asked() == {"again-reject", "again-report", "same-inspect"}, "the change concerned rejectd's alarms"
    assert trial.paths.same_file("inspect").read_text() == trial.old.digest  # type: ignore[union-attr]
    (event,) = trial.events()
    assert event["kind"] == "configuration_returned" and "golden vector 3" in event["data"]["text"]
    assert event["data"]["new"]["generation"] == 1


def test_the_first_one_that_fails_leaves_none_and_all_begin_anew(tmp_path: Path) -> None:
    trial = Trial(tmp_path, first=True)
    trial.changes = {"reject": None}
    assert trial.decide() and trial.store.good is None and trial.asked() == ALL
    assert "every part is rejected" in trial.events()[0]["data"]["text"]


def test_after_a_power_cut_the_old_one_runs_already_and_nobody_is_disturbed(trial: Trial) -> None:
    trial.boot, trial.runs = "boot-2", trial.old.digest  # type: ignore[union-attr]
    assert "restarted" in trial.decide()
    assert trial.store.trial is None and trial.asked() == set()
    assert [event["kind"] for event in trial.events()] == ["configuration_returned"]


def test_a_killed_doers_trial_whose_time_is_over_is_given_up_and_begun_anew(trial: Trial) -> None:
    trial.clock.advance_to(200 * S)
    assert "time is over" in trial.decide()
    assert "again-reject" in trial.asked() and trial.store.good == trial.old


def test_an_engine_that_is_built_extends_the_trial_itself(trial: Trial) -> None:
    begun_ns = trial.clock.now_ns()

    def wait(duration_ns: int) -> None:
        done = min(1.0, round((trial.clock.now_ns() - begun_ns) / (300 * S), 2))
        trial.changes = {"inspect_state": "building" if done < 1 else "ready", "inspect_progress": done}
        trial.wait(duration_ns)
        assert trial.store.trial_holds(), "who crashes now starts with the new one again"

    trial.changes = {"inspect_state": "building", "inspect_progress": 0.0}
    trial.write()
    why = decide(trial.thing, trial.paths.run, trial.clock, wait, lambda: trial.clock.now_ns() + ASLEEP_NS)
    assert why == "" and trial.store.good == trial.new


def test_nothing_on_trial_is_nothing_to_do(trial: Trial) -> None:
    trial.store.give_up()
    assert trial.decide() == "" and trial.events() == [] and trial.asked() == set()


def test_what_somebody_else_decided_meanwhile_is_left_as_it_is(trial: Trial) -> None:
    thing = trial.thing
    trial.decide()
    thing.keep()
    thing.give_up("too late")
    assert trial.store.good == trial.new and len(trial.events()) == 1


def test_a_good_one_whose_file_rotted_before_it_was_kept_is_given_up(trial: Trial) -> None:
    trial.new.file.write_text("{")
    trial.decide()
    assert trial.store.good == trial.old and trial.events()[0]["kind"] == "configuration_returned"
    assert trial.asked() == ALL


def test_essentials_of_another_generation_are_written_anew(trial: Trial) -> None:
    trial.decide()
    trial.store.write_essentials({"digest": "sha256:old", "station": "x"})
    trial.thing.refresh()
    assert (trial.store.essentials() or {})["digest"] == trial.new.digest
    trial.new.file.write_text("{")
    trial.store.write_essentials({"digest": "sha256:old", "station": "x"})
    trial.thing.refresh()
    assert trial.store.essentials() == {"digest": "sha256:old", "station": "x"}, "better those than none"


@pytest.mark.parametrize("healthy", [True, False], ids=["kept", "given up"])
@pytest.mark.parametrize("power", [True, False], ids=["the power goes", "the doer is killed"])
def test_a_decision_that_is_cut_anywhere_is_made_once_and_told_once(
    tmp_path: Path, healthy: bool, power: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it, ``settle`` at the next boot (or at once) makes of it one decision, its essentials, its restarts, its history."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    outcomes = set()
    for number in itertools.count():
        folder = tmp_path / f"{number}"
        folder.mkdir()
        trial = Trial(folder)
        with Disk(folder, cut_at=number) as disk:
            trial.thing.keep() if healthy else trial.thing.give_up("not healthy")
        if not disk.cut:
            break
        if power:
            disk.after_the_cut(names_lost=True)
            trial.boot = "boot-2"
            for name in trial.asked():
                (trial.paths.run / name).unlink()
        trial.runs = trial.store.choose().generation.digest if power else trial.new.digest  # type: ignore[union-attr]
        trial.changes = {} if healthy else {"inspect_state": "fault"}
        trial.thing.refresh()
        trial.decide()
        good = trial.store.good
        assert good is not None and trial.store.trial is None and trial.store.owed is None, disk.told
        assert (trial.store.essentials() or {})["digest"] == good.digest, disk.told
        told = {(event["id"], event["kind"]) for event in trial.events()}
        wanted = "configuration_applied" if good == trial.new else "configuration_returned"
        assert [kind for _, kind in told] == [wanted], disk.told
        if power:
            assert trial.asked() == set(), f"who started since the cut chose rightly: {disk.told}"
        elif good == trial.old:
            assert "again-reject" in trial.asked(), f"who runs the new one must begin anew: {disk.told}"
        outcomes.add(good == trial.new)
        shutil.rmtree(folder)
    assert number > 10 and outcomes == ({True, False} if healthy and power else {healthy})


class Failing:
    """A thing whose disk fails, and one that waits behind it."""

    name = "failing"

    def __init__(self) -> None:
        self.told: list[str] = []

    def left_over(self) -> str:
        raise OSError(5, "Input/output error")

    def wanted(self) -> Wanted | None:
        return None

    def extend(self, until_ns: int) -> None:
        self.told.append("extend")

    def keep(self) -> None:
        self.told.append("keep")

    def give_up(self, why: str) -> None:
        self.told.append("give up")


def test_a_disk_that_fails_is_exit_2(trial: Trial) -> None:
    failing = Failing()
    assert settle([failing], trial.paths.run, trial.clock, trial.wait) == 2 and failing.told == []


def test_the_verb_settles_a_store(tmp_path: Path) -> None:
    """As the unit calls it at boot: the trial of another boot is given up, exit 0."""
    trial = Trial(tmp_path)
    paths = ["--store", str(trial.store.root), "--run-dir", str(trial.paths.run), "--data-dir", str(trial.paths.data)]
    command = [sys.executable, "-m", "appliance", "settle", *paths]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0 and "restarted" in ended.stderr, ended.stderr
    assert trial.store.trial is None and trial.store.good == trial.old and len(trial.events()) == 1
    assert subprocess.run(command, cwd=PROJECT, timeout=60).returncode == 0
    assert len(trial.events()) == 1
