"""What a stick brings, on trial: kept when the station is healthy with it, else given up and the one before runs again.

From the moment that a trial begins, pulling the stick or stopping this process changes nothing of what comes of it."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from appliance.box import stick
from appliance.box.again import begin_anew
from appliance.box.health import read_state, wait_healthy
from appliance.box.slots_doer import application_on_trial
from appliance.box.stick import Found
from appliance.box.store import Generation, Meta, StoreError
from appliance.clock import boottime_ns
from appliance.config import ConfigError, Station, load
from appliance.wiring import update
from appliance.wiring.settle import ConfigurationOnTrial, decide
from appliance.wiring.stick_box import EVENT_LINES, Box, Refused, Told, tell
from appliance.wiring.stick_judge import Judgement
from appliance.wiring.stick_rights import enrol_new
from appliance.wiring.store import changed_roles, essentials_of

log = logging.getLogger("appliance.stick")

_SEEN_NS = 20_000_000_000  # reportd writes its state every second, but for while it begins anew


def apply_configuration(
    box: Box, told: Told, judged: Judgement, running: Station | None, is_box: bool, keys: dict[str, bytes]
) -> None:
    """On trial, then kept or given up; ``keys``: enrolled with it. Raises Refused, OSError, Stopped."""
    now_ns = box.clock.now_ns()
    why = judged.reason or "applied by a stick"
    meta = Meta(told.by, why, judged.revision, judged.station, box.clock.wall_us(now_ns), box.clock.quality())
    try:
        new = box.store.put(box.staging, meta)
        station = load(new.file, data_dir=box.data_dir)
        if keys:  # last of all that may be refused
            enrol_new(keys, box, told)
    except (StoreError, ConfigError) as failed:
        raise Refused(f"it could not be stored: {failed}") from failed
    except OSError as failed:
        raise Refused(f"the box's disk did not take it ({failed.strerror}); free some room, images take most") from failed
    if is_box or _station_runs(box):
        with _to_its_end(box) as wait:
            _on_trial(replace(box, wait=wait), told, new, station, running)
    else:
        _kept_unseen(box, told, new, station)


def _station_runs(box: Box) -> bool:
    """Raises OSError."""
    state = read_state(box.run_dir)
    written_ns = state.get("written_ns") if isinstance(state, dict) else None
    return type(written_ns) is int and 0 <= box.clock.now_ns() - written_ns < _SEEN_NS


class Stopped(Exception):
    """This process was asked to end in the middle of a trial, and the station is not there: the box goes down, or the stick was
    pulled while reportd was. What ran before runs again after either."""

    def __init__(self) -> None:
        super().__init__("the stick was pulled, or the box switched off, while the station did not answer")


@contextmanager
def _to_its_end(box: Box) -> Iterator[Callable[[int], None]]:
    """A trial that began goes on to its end, whoever pulls the stick: SIGTERM waits meanwhile. Yields how to wait; that raises
    Stopped once this process was asked to end and the station is gone too, as when the box is switched off."""
    asked: list[int] = []
    before: dict[signal.Signals, Any] = {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        with contextlib.suppress(ValueError):  # not the main thread, which no signal reaches either
            before[number] = signal.signal(number, lambda number, _frame: asked.append(number))

    def wait(duration_ns: int) -> None:
        box.wait(duration_ns)
        if asked and not _station_runs(box):
            raise Stopped

    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kept_unseen(box: Box, told: Told, new: Generation, station: Station) -> None:
    """Where no station runs there is no health to wait for: a laptop, or a store that is prepared. Raises OSError."""
    old = box.store.good
    box.store.begin_trial(new, boottime_ns() + box.trial_ns)
    box.store.mark_good(essentials_of(station))
    box.store.prune()
    told.outcome, told.head = "applied", "KEPT - it will run when the station is started; no station is running here"
    told.text = f"revision {new.meta.revision} is kept as generation {new.number}; nothing runs here, so its health was not seen"
    tell(box, "configuration_applied", {
        "who": told.by, "old": old.told() if old else None, "new": new.told(), "why": new.meta.why, "text": told.text,
        "changed": told.changed[:EVENT_LINES],
    })  # fmt: skip


def _on_trial(box: Box, told: Told, new: Generation, station: Station, running: Station | None) -> None:
    """Raises Refused, OSError, Stopped."""
    before = box.store.good
    roles = changed_roles(running, station, box.data_dir)
    try:
        box.run_dir.mkdir(parents=True, exist_ok=True)
        box.store.begin_trial(new, boottime_ns() + box.trial_ns)
        # Each side writes its trial and then looks: of two that begin at once, none is judged by the other's health.
        if busy := application_on_trial(box.data_dir / "slots"):
            box.store.give_up()
            raise Refused(busy)
        begin_anew(box.run_dir, roles, new.digest)
    except StoreError as why:
        raise Refused(str(why)) from why
    except OSError as why:
        box.store.give_up()
        raise Refused(f"the processes could not be asked to begin anew ({why.strerror}); restart the box and try again") from why
    log.info("generation %d is on trial; %s begin anew", new.number, ", ".join(sorted(roles)))
    trial = ConfigurationOnTrial(box.store, box.run_dir, box.data_dir, box.clock, who=told.by, at_boot=False)
    try:
        why_not = decide(trial, box.run_dir, box.clock, box.wait)
    except (Stopped, OSError) as why:
        trial.give_up(str(why))
        _returned(told, before, str(why))
        raise
    after = box.store.good
    if after is not None and after.number == new.number:
        told.outcome = "applied"
        told.text = f"revision {new.meta.revision} runs as generation {new.number} and is kept"
        return
    _returned(told, before, why_not or "the trial was over before it was decided")
    if before is not None and (amiss := _not_back(box, before)):
        told.text += f", but not well yet: {amiss}"


def _returned(told: Told, before: Generation | None, why: str) -> None:
    told.outcome, told.wrong = "returned", [f"on trial: {why}"]
    told.text = "it was not kept, and there is none to go back to: every part is rejected until a configuration works"
    if before is not None:
        told.text = f"it was not kept; generation {before.number} (revision {before.meta.revision}) runs again"


def _not_back(box: Box, before: Generation) -> str:
    """What is amiss with it once it had time to come back, "" = nothing. Raises OSError, Stopped."""
    until_ns = box.clock.now_ns() + box.back_ns
    return wait_healthy(lambda: read_state(box.run_dir), before.digest, None, until_ns, box.clock, box.wait)


# --- an update of the program -------------------------------------------------------------------------------


def apply_update(found: Found, box: Box, told: Told) -> None:
    """After the configuration, which is settled by now. The update's own events are its room's; what came of it is told. Raises
    OSError, Stopped."""
    name = f"{stick.UPDATE}/{found.update}"
    with _to_its_end(box) as wait:
        install = box.install or partial(_installed, box)
        try:
            went = install(box.staging / name, told.by, wait)
        except Stopped as why:
            told.wrong.append(f"{name} was not kept: {why}")
            told.text, told.head = f"{told.text}; the update was not kept", ""
            told.outcome = "returned"
            raise
    told.notes.append(f"update: {went.text}")
    if went.result == "unchanged":  # a stick that was left in
        return
    if went.result == "applied":
        told.head = "APPLIED - the new version of the program is running; see below"
        return
    told.wrong.append(f"{name}: {went.text}")
    told.text = f"{told.text}; the update was {'refused' if went.result == 'refused' else 'not kept'}"
    if told.outcome in ("served", "unchanged"):
        told.outcome, told.head = went.result, ""
    else:
        told.head = "PARTLY - the configuration is running, the update of the program is not; see below"


def _installed(box: Box, path: Path, who: str, wait: Callable[[int], None]) -> update.Outcome:
    try:
        site = replace(update.site_of(box.data_dir, box.run_dir), clock=box.clock, wait=wait)
        return update.install(site, path, who, "update by stick")
    except OSError as why:
        return update.Outcome("refused", f"{path.name}: the update could not be made: {why}")
