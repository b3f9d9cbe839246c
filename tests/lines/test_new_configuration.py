"""A configuration is changed while parts flow, in real time: a part keeps the one it was triggered under (law 8)."""

from __future__ import annotations

import io
import itertools
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.box.again import begin_anew
from appliance.box.store import Generation, Meta, Store
from appliance.clock import SystemClock, boottime_ns
from appliance.config import load
from appliance.supervisor import Supervisor
from appliance.twin import rehearse
from appliance.twin.result import Result, read_ledger
from appliance.twin.trouble import Trouble
from appliance.wiring.settle import ConfigurationOnTrial, decide, wait_a_while
from appliance.wiring.store import changed_roles, essentials_of

S = 10**9
TRIAL_NS = 60 * S
pytestmark = pytest.mark.timeout(240)  # one rehearsal of 48 s for all of them
Change = Callable[[dict[str, Any]], object]


@dataclass
class Applied:
    """One application of a configuration: whom it concerned, and what came of it ("" = kept)."""

    roles: frozenset[str] = frozenset()
    why: str = "not decided"
    generation: Generation | None = None


@dataclass
class Line:
    """What came of a rehearsal in which configurations were changed."""

    result: Result
    records: list[dict[str, Any]]
    events: list[dict[str, Any]]
    applied: list[Applied]
    store: Store
    whole: bool


class Changing(rehearse._Rehearsal):
    """A rehearsal whose station runs from a store; trouble ``apply-N`` is the N-th change, as a stick would make it."""

    def __init__(self, options: rehearse.Options, folder: Path, changes: list[tuple[Change, float]]) -> None:
        super().__init__(options, folder, io.StringIO())
        self.store = Store(self._paths.data / "config")
        self.applied = [Applied() for _ in changes]
        self._changes = changes
        self._doers: list[threading.Thread] = []
        self._document: dict[str, Any] = {}

    def supervisor(self, file: Path, paths: Any, verbose: bool = False) -> Supervisor:
        """In place of the file that the rehearsal made: a store in which it is the good one."""
        self._document = yaml.safe_load(file.read_text())
        one = self._put(lambda document: None)
        self.store.begin_trial(one, boottime_ns() + TRIAL_NS)
        self.store.mark_good(essentials_of(load(one.file)))
        return Supervisor(self.store.root, paths, verbose=verbose)

    def _put(self, change: Change) -> Generation:
        change(self._document)
        source = self._folder / "stick"
        source.mkdir(exist_ok=True)
        (source / "appliance.yaml").write_text(yaml.safe_dump(self._document, sort_keys=False))
        return self.store.put(source, Meta("stick", "test", 1, "acme", 0, "unset"))

    def _provoke(self, trouble: Trouble, *more: Any) -> None:
        number = int(trouble.name[6:])
        change, trial_s = self._changes[number]
        now_ns = self._clock.now_ns()
        self._excused.append((now_ns - S, now_ns + round((trial_s + 8) * S)))
        doer = threading.Thread(target=self._apply, args=(self.applied[number], change, trial_s), name=trouble.name)
        doer.start()
        self._doers.append(doer)

    def _apply(self, applied: Applied, change: Change, trial_s: float) -> None:
        old = self.store.good
        assert old is not None
        before = {**self._document}
        new = applied.generation = self._put(change)
        applied.roles = changed_roles(load(old.file), load(new.file))
        self.store.begin_trial(new, boottime_ns() + round(trial_s * S))
        begin_anew(self._paths.run, applied.roles, new.digest)
        trial = ConfigurationOnTrial(self.store, self._paths.run, self._paths.data, SystemClock(), "stick", at_boot=False)
        applied.why = decide(trial, self._paths.run, SystemClock(), wait_a_while)
        if applied.why:
            self._document = before

    def _wait_settled(self, *what: Any) -> None:
        for doer in self._doers:
            doer.join(60)
            assert not doer.is_alive(), doer.name
        super()._wait_settled(*what)


def fail_at(share: float) -> Change:
    def change(document: dict[str, Any]) -> None:
        (recipe,) = document["recipes"].values()
        recipe["inspect"][0] = {**recipe["inspect"][0], "fail_at": share}

    return change


def all_is_new(document: dict[str, Any]) -> None:
    """Recipe, threshold, deadline and alarms: every process begins anew."""
    fail_at(0.62)(document)
    (recipe,) = document["recipes"].values()
    document["recipes"] = {"second": {**recipe, "number": 2}}
    document["active"] = "second"
    document["reject"] = {**document["reject"], "deadline_ms": 30}
    document["alarms"] = {**document["alarms"], "consecutive_rejects": 9}


def camera_that_is_not_there(document: dict[str, Any]) -> None:
    document["cameras"] = {"top": {**document["cameras"]["top"], "source": "twin://nobody"}}


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    folder = Path(tempfile.mkdtemp(prefix="new-"))
    changes: list[tuple[Change, float]] = [(fail_at(0.58), 40.0), (all_is_new, 40.0), (camera_that_is_not_there, 12.0)]
    troubles = [Trouble("apply-0", 3.0, 0.0), Trouble("apply-1", 13.0, 0.0), Trouble("apply-2", 25.0, 0.0)]
    rehearsal = Changing(rehearse.Options(parts=480, seed=21, faults=troubles), folder, changes)
    patch = pytest.MonkeyPatch()
    patch.setattr(rehearse, "Supervisor", rehearsal.supervisor)
    try:
        result = rehearsal.run()
        records, events, _, whole, _ = read_ledger(rehearsal._paths.ledger_file)
        yield Line(result, records, events, rehearsal.applied, rehearsal.store, whole)
    finally:
        patch.undo()
        shutil.rmtree(folder, ignore_errors=True)


def test_nothing_escapes_and_the_books_close_while_configurations_change(line: Line) -> None:
    assert line.result.failures() == [] and line.whole
    assert len(line.records) == 480 == len({record["part"] for record in line.records})
    assert {record["run"] for record in line.records} and len(line.records) == sum(line.result.ledger.values())


def test_a_part_keeps_the_configuration_it_was_triggered_under(line: Line) -> None:
    """By trigger time the recipes, deadlines and thresholds follow one another, each never again after the next began."""
    recipes = [(one["recipe"]["name"], one["recipe"]["number"], round(one["times_ms"]["deadline"])) for one in line.records]
    assert [key for key, _ in itertools.groupby(recipes)] == [("cap-28mm", 1, 808), ("second", 2, 798)]
    judged = [one for one in line.records if one["threshold"] is not None and one["verdict"] in ("pass", "fail", "review")]
    thresholds = [one["threshold"] for one in judged]
    shipped = thresholds[0]
    assert shipped not in (0.58, 0.62)
    assert [key for key, _ in itertools.groupby(thresholds)] == [shipped, 0.58, 0.62]
    assert all((one["recipe"]["number"] == 2) == (one["threshold"] == 0.62) for one in judged)
    assert thresholds.count(0.62) > 100, "after the camera that was not there the good one judges again"


def test_each_process_that_is_concerned_begins_anew_and_no_other(line: Line) -> None:
    assert [one.roles for one in line.applied[:2]] == [{"inspect", "report"}, {"reject", "inspect", "report"}]
    starts = [event["data"] for event in line.events if event["event"] == "start"]
    assert len(starts) == 2 and not any(start["crashed"] for start in starts), "rejectd: once at first, once for the second"


def test_a_configuration_that_does_not_prove_itself_is_returned(line: Line) -> None:
    kept, other, returned = line.applied
    assert kept.why == other.why == ""
    assert "camera" in returned.why and line.store.good == other.generation and line.store.trial is None


def test_the_ledger_holds_old_new_who_and_why(line: Line) -> None:
    history = [event for event in line.events if event["event"].startswith("configuration_")]
    assert [event["event"][14:] for event in history] == ["applied", "applied", "returned"]
    told = [(event["data"]["old"]["generation"], event["data"]["new"]["generation"]) for event in history]
    assert told == [(1, 2), (2, 3), (4, 3)]
    assert all(event["data"]["who"] == "stick" and event["data"]["why"] and event["data"]["text"] for event in history)
    assert history[2]["data"]["old"]["digest"] == line.applied[2].generation.digest  # type: ignore[union-attr]
