"""Events of processes that come and go (stick, update, settling): read from the spool folder, each into the ledger once.

A file goes only when its entry is on disk; the ledger's links know what is in the chain already, so a cut between the two
repeats nothing."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.messages import Event
from appliance.report.ledger import Ledger

log = logging.getLogger("appliance.report")

LOOK_NS = 500_000_000
_JOURNAL = "spool-"
_CLOCKS = ("synced", "holdover", "unset")


@dataclass(frozen=True)
class Spooled:
    """One event as it was left there; ``data``: ``text`` in it is what the operator reads."""

    id: str
    kind: str
    data: dict[str, Any]
    wall_us: int
    clock: Any


class Spool:
    """The folder, seen by reportd. A disk that hangs is reportd's to wait for."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self._folder, self._ledger = folder, ledger
        self._look_ns = 0
        self._waiting: dict[str, Path] = {}
        self.trouble = ""
        """Why the folder cannot be read or emptied, "" = it can; tried again at every look."""

    def take(self, now_ns: int) -> list[Spooled]:
        """Append what is new, at most twice a second; returns it, oldest first."""
        if now_ns < self._look_ns:
            return []
        self._look_ns = now_ns + LOOK_NS
        new: list[Spooled] = []
        try:
            for path in sorted(self._folder.glob("*.json")):
                one = self._read(path)
                if one is not None and self._is_new(one, path):
                    self._ledger.append_event(_JOURNAL + one.id, Event(1, one.kind, now_ns, one.wall_us, one.clock, one.data))
                    self._waiting[_JOURNAL + one.id] = path
                    new.append(one)
            self.trouble = ""
        except OSError as why:
            self._failed(why)
        return new

    def committed(self, durable: dict[str, int]) -> None:
        """Entries of these journals are on disk: their files go."""
        for journal in durable.keys() & self._waiting.keys():
            try:
                self._waiting.pop(journal).unlink(missing_ok=True)
            except OSError as why:
                self._failed(why)  # the next look finds it in the chain already

    def _is_new(self, one: Spooled, path: Path) -> bool:
        """Raises OSError."""
        if _JOURNAL + one.id in self._waiting:
            return False  # appended, and not yet on disk
        if self._ledger.seen(_JOURNAL + one.id, 1):
            path.unlink()  # a cut came between its entry and this
            return False
        return True

    def _failed(self, why: OSError) -> None:
        if str(why) != self.trouble:
            self.trouble = str(why)
            log.error("events of stick and update wait in %s: %s", self._folder, why)

    def _read(self, path: Path) -> Spooled | None:
        """None for what is none of ours: it is kept beside, told, and not read again."""
        try:
            told = json.loads(path.read_bytes())
            one = Spooled(str(told["id"]), str(told["kind"]), dict(told["data"]), int(told["wall_us"]), told["clock"])
            if not one.id or one.clock not in _CLOCKS:
                raise ValueError(f"id {one.id!r}, clock {one.clock!r}")
        except (ValueError, KeyError, TypeError) as why:
            log.error("%s is no event (%s); it is kept as %s.unreadable", path, why, path.name)
            path.rename(path.with_name(path.name + ".unreadable"))
            return None
        return one
