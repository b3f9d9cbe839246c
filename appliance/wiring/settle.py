"""``appliance settle``: decides what was left on trial, at boot or after whoever began it was killed.

Each thing on trial speaks the same small protocol; the configuration's is here. Health is told from run/state.json."""

from __future__ import annotations

import logging
import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from appliance.box.again import ROLES, begin_anew
from appliance.box.health import read_state, wait_healthy
from appliance.box.spool import new_id, spool_event
from appliance.box.store import Generation, Store, StoreError
from appliance.clock import boottime_ns
from appliance.config import ConfigError, Station, load
from appliance.ports import Clock
from appliance.wiring.store import changed_roles, essentials_of

log = logging.getLogger("appliance.settle")


@dataclass(frozen=True)
class Wanted:
    """What has to be healthy for a trial to be won: ``digest`` of the configuration, ``version`` of the program (None:
    whatever), until ``until_ns`` (CLOCK_BOOTTIME)."""

    digest: str | None
    version: str | None
    until_ns: int


class OnTrial(Protocol):
    """Something that may be on probation."""

    name: str

    def left_over(self) -> str:
        """Why a trial that was begun is lost already (its time is over, the box was restarted), "" = none is. Raises OSError."""
        ...

    def wanted(self) -> Wanted | None:
        """What a trial that still holds waits for; None: nothing is on trial. Raises OSError."""
        ...

    def extend(self, until_ns: int) -> None:
        """It may take longer: an engine is built. Raises OSError."""
        ...

    def keep(self) -> None:
        """It has proved itself. Raises OSError."""
        ...

    def give_up(self, why: str) -> None:
        """It has not, in words; what was there before runs again. Raises OSError."""
        ...


class ConfigurationOnTrial:
    """The store's. ``who``: on whose behalf it is decided, for the history; ``at_boot``: no stick waits for an answer."""

    name = "configuration"

    def __init__(self, store: Store, run_dir: Path, data_dir: Path, clock: Clock, who: str = "settle", at_boot: bool = True):
        self._store, self._run, self._data, self._clock = store, run_dir, data_dir, clock
        self._who, self._at_boot = who, at_boot

    def left_over(self) -> str:
        return "" if self._store.trial is None or self._store.trial_holds() else self._store.choose().why

    def wanted(self) -> Wanted | None:
        trial, tried = self._store.trial, self._store.tried
        if trial is None or tried is None or not self._store.trial_holds():
            return None
        return Wanted(tried.digest, None, trial.until_ns)

    def extend(self, until_ns: int) -> None:
        try:
            self._store.extend_trial(until_ns)
        except StoreError as why:  # decided by somebody else meanwhile, or over: the next look says which
            log.warning("%s", why)

    def keep(self) -> None:
        self.pay()
        new, old = self._store.tried, self._store.good
        if new is None:
            return
        text = f"generation {new.number} (revision {new.meta.revision}) runs and is kept"
        try:
            owed = self._event("configuration_applied", old, new, new.meta.why, text)
            self._store.mark_good(essentials_of(self._load(new)), owed)
        except (ConfigError, StoreError) as why:
            self.give_up(str(why))
            return
        self.pay()
        self._store.prune()

    def give_up(self, why: str) -> None:
        self.pay()
        trial, new, old = self._store.trial, self._store.tried, self._store.good
        back = f"generation {old.number} runs again" if old else "there is none to go back to: every part is rejected"
        text = f"generation {new.number if new else '?'} was not kept: {why}; {back}"
        owed = self._event("configuration_returned", new, old, why, text)
        if trial is not None and trial.boot_id == self._store.boot_id():  # else who started since the power cut chose rightly
            again = {"boot_id": trial.boot_id, "roles": sorted(self._concerned(new, old)), "digest": old.digest if old else ""}
            owed["again"] = again
        self._store.give_up(owed)
        self.pay()

    def _concerned(self, new: Generation | None, old: Generation | None) -> frozenset[str]:
        """Who has to begin anew; all, where one of the two cannot be read."""
        if new is None or old is None:
            return frozenset(ROLES)
        try:
            return changed_roles(self._load(new), self._load(old), self._data)
        except ConfigError:
            return frozenset(ROLES)

    def _load(self, one: Generation) -> Station:
        return load(one.file, data_dir=self._data)

    def _event(self, kind: str, old: Generation | None, new: Generation | None, why: str, text: str) -> dict[str, Any]:
        data: dict[str, Any] = {"old": old.told() if old else None, "new": new.told() if new else None}
        data |= {"who": self._who, "why": why, "text": text, "at_boot": self._at_boot}
        return {"id": new_id(self._clock), "kind": kind, "data": data}

    def pay(self) -> None:
        """What is owed since the last decision: that processes begin anew, and that the ledger hears of it. Raises OSError."""
        owed = self._store.owed
        if owed is not None:
            again = owed.get("again")
            if again and again["boot_id"] == self._store.boot_id() and self._run.is_dir():
                begin_anew(self._run, again["roles"], str(again["digest"]))
            spool_event(self._data, str(owed["kind"]), dict(owed["data"]), self._clock, identity=str(owed["id"]))
            self._store.paid()

    def refresh(self) -> None:
        """What a cut left half done: a decision that was not told, essentials that are not of the good generation.
        Raises OSError."""
        self.pay()
        good = self._store.good
        if good is None or (self._store.essentials() or {}).get("digest") == good.digest:
            return
        try:
            self._store.write_essentials(essentials_of(self._load(good)))
        except ConfigError as why:  # then they stay those of the one before: better than none
            log.error("the essentials are not of generation %d, which cannot be used: %s", good.number, why)


def decide(
    thing: OnTrial, run_dir: Path, clock: Clock, wait: Callable[[int], None], now_boot_ns: Callable[[], int] = boottime_ns
) -> str:  # fmt: skip
    """See a trial through: "" where it was kept or there is none, else in words why not. Raises OSError."""
    why = thing.left_over()
    wanted = None if why else thing.wanted()
    if wanted is None:
        if why:
            thing.give_up(why)
        return why
    apart_ns = now_boot_ns() - clock.now_ns()  # CLOCK_BOOTTIME runs on while a box sleeps; ours do not
    why = wait_healthy(
        lambda: read_state(run_dir), wanted.digest, wanted.version, wanted.until_ns - apart_ns, clock, wait,
        lambda deadline_ns: thing.extend(deadline_ns + apart_ns + _MARGIN_NS),
    )  # fmt: skip
    if why:
        thing.give_up(why)
    else:
        thing.keep()
    return why


_MARGIN_NS = 1_000_000_000  # between the last look and the decision the trial must still hold


def wait_a_while(duration_ns: int) -> None:
    """The machine's own waiting."""
    select.select([], [], [], duration_ns / 1e9)


def settle(things: Sequence[OnTrial], run_dir: Path, clock: Clock, wait: Callable[[int], None] = wait_a_while) -> int:
    """One after the other. Exit 0: everything is decided, whichever way; 2: the disk fails."""
    for thing in things:
        try:
            why = decide(thing, run_dir, clock, wait)
        except OSError as failed:
            log.error("%s: what is on trial cannot be decided: %s", thing.name, failed)
            return 2
        if why:
            log.error("%s: returned to the one before: %s", thing.name, why)
    return 0
