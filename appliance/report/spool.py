"""Events of processes that come and go (stick, update, settling): read from the spool folder, each into the ledger once.

A file goes only when its entry is on disk; the ledger's links know what is in the chain already, so a cut between the two
repeats nothing. That a stick was pulled is told by an empty file of the run folder, whose time says when: whatever state the
box's disk and Python are in, the stick's unit can still make one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.messages import Event
from appliance.report.ledger import Ledger

log = logging.getLogger("appliance.report")

LOOK_NS = 500_000_000
_JOURNAL = "spool-"
_PULLED = "pulled-"  # and the link's name, as the stick's unit writes it
_LINKS = "/dev/appliance/stick"  # where udev keeps them: one for each plugging-in
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

    def __init__(self, folder: Path, ledger: Ledger, run_dir: Path, quality: Callable[[], str]) -> None:
        """``run_dir``: where units tell of pulled sticks; ``quality``: the wall clock's, now."""
        self._folder, self._ledger, self._run_dir, self._quality = folder, ledger, run_dir, quality
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
            for one, path in self._found():
                if self._is_new(one, path):
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

    def _found(self) -> list[tuple[Spooled, Path]]:
        """All that lies there in its order; a pulled stick by its time among them. Raises OSError."""
        found = [(one, path) for path in sorted(self._folder.glob("*.json")) if (one := self._read(path)) is not None]
        for path in sorted(self._run_dir.glob(f"{_PULLED}*")):
            time_ns, link = path.stat().st_mtime_ns, path.name.removeprefix(_PULLED)
            who = f"stick {link.partition('.')[0]}"
            data = {"who": who, "device": f"{_LINKS}/{link}", "text": f"{who} was pulled"}
            one = Spooled(f"{path.name}-{time_ns}", "stick_removed", data, time_ns // 1000, self._quality())
            at = next((at for at, (other, _) in enumerate(found) if other.wall_us > one.wall_us), len(found))
            found.insert(at, (one, path))
        return found

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
