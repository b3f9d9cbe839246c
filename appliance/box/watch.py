"""The reader thread beside reportd: a look every 5 s in its own rhythm, so that a driver that hangs hangs nobody else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from appliance.box import derate
from appliance.box.durable import boot_id, read_json, write_json
from appliance.box.sensors import Reading, as_health, read
from appliance.box.sysfs import Files
from appliance.ports import BoxTold, Clock

log = logging.getLogger("appliance.box")

PERIOD_NS = 5_000_000_000
SILENT_NS = 3 * PERIOD_NS  # a look takes milliseconds: after this it hangs, and what was read is old
_MOST_HUNG = 4  # files left alone one after another; with more of them the kernel itself is ill

_NOTHING = BoxTold({}, None, 0, True, {})


class BoxWatch:
    """A ports.BoxSensors. One thread reads; all else happens in the caller's: ``told`` never waits."""

    codes = derate.CODES | {"sensors_silent"}

    def __init__(
        self, clock: Clock, data_dir: Path, root: Path = Path("/"), period_ns: int = PERIOD_NS, silent_ns: int = SILENT_NS
    ) -> None:  # fmt: skip
        self._clock, self._root, self._period_ns, self._silent_ns = clock, root, period_ns, silent_ns
        self._disks = (data_dir, root)
        self._watch = derate.Watch()
        self._stop = threading.Event()
        self._hung: dict[str, Files] = {}
        """Files left alone, and by whose look each was found; whoever comes back from one takes it out."""
        self._forgiven: set[str] = set()
        self._newest: tuple[Reading, Reading | None] | None = None  # replaced whole: the one thing both threads touch
        self._seen: Reading | None = None
        self._told: BoxTold | None = None
        self._boot = _Boot(data_dir / "box.json")
        self._heard_ns = clock.now_ns()
        self._files = Files(root)
        self._read_on()

    def told(self, inspect: Mapping[str, Any], now_ns: int) -> BoxTold | None:
        """How it stands; the same object until there is a new look, or none for too long. None before the first."""
        newest = self._newest
        if newest is not None and newest[0] is not self._seen:
            self._seen, before = newest
            self._heard_ns = now_ns
            self._told = self._judge(newest[0], before, inspect)
        elif now_ns - self._heard_ns > self._silent_ns:
            self._heard_ns = now_ns
            self._told = self._silent()
        return self._told

    def close(self) -> None:
        """The thread ends after its look; one that hangs goes with the process."""
        self._stop.set()

    # --- the thread ------------------------------------------------------------------------------------------

    def _read_on(self) -> None:
        self._files = Files(self._root, self._hung)
        threading.Thread(target=self._looks, args=(self._files,), name="box-sensors", daemon=True).start()

    def _looks(self, files: Files) -> None:
        """Looks until ``close``, or until another thread was begun in place of this one."""
        before: Reading | None = None
        due_ns = self._clock.now_ns()
        while not self._stop.is_set():
            try:
                reading = read(files, self._clock.now_ns(), self._disks, self._clock.quality())
            except Exception:  # the edge of a thread: dead without a word, it would leave the box unwatched for good
                log.exception("a look at the machine")
            else:
                if files is not self._files:
                    self._forgive(files)
                    return  # what it read is old
                self._newest = (reading, before)
                before = reading
            due_ns = max(due_ns + self._period_ns, self._clock.now_ns())
            self._stop.wait((due_ns - self._clock.now_ns()) / 1e9)
            files.forget()

    def _forgive(self, files: Files) -> None:
        """It came back after all: a machine that stood still for a while. A file that does it twice stays left alone."""
        for name in [name for name, by in list(self._hung.items()) if by is files and name not in self._forgiven]:
            self._forgiven.add(name)
            del self._hung[name]

    # --- the caller --------------------------------------------------------------------------------------------

    def _judge(self, reading: Reading, before: Reading | None, inspect: Mapping[str, Any]) -> BoxTold:
        self._boot.note(self._root, reading)
        modes, hottest = derate.engine_modes(inspect), reading.hottest
        condition = self._watch.step(reading, modes, self._boot.watchdog_proven(reading))
        health = as_health(reading, before)
        more = {"boots": self._boot.count, "highest_ppm": derate.highest_rate(derate.judge_ms(inspect))}
        health.update({name: value for name, value in more.items() if value is not None})
        health["derated"] = list(condition.measures)
        alarms = dict(condition.alarms)
        if self._hung:
            alarms["sensors_silent"] = f"reading {', '.join(list(self._hung))} does not end; the other sensors are read on"
        celsius = None if hottest is None else hottest.celsius
        return BoxTold(alarms, celsius, condition.flags, condition.keep_passes, health)

    def _silent(self) -> BoxTold:
        """The look does not end. The file it hangs at is left alone from now on, by a thread that begins anew. What stood
        stands on, for nobody knows better; a temperature that is old is none."""
        at = self._files.at
        what = f"reading {at} does not end" if at else "no look at the machine came to its end; see the log of reportd"
        old = self._told or _NOTHING
        if old.alarms.get("sensors_silent") != what:
            log.warning("%s", what)
        if at and len(self._hung) < _MOST_HUNG:
            self._hung[at] = self._files
            self._read_on()
        alarms, health = {**old.alarms, "sensors_silent": what}, {**old.health, "stale": what}
        return replace(old, alarms=alarms, temperature_c=None, health=health)


class _Boot:
    """How often this machine was booted under our eyes, and whether its watchdog was ever seen to reset it. Kept in the
    data folder; a disk that cannot be written costs the count, nothing else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.count: int | None = None
        self._proven: Any = None
        self._noted = False

    def note(self, root: Path, reading: Reading) -> None:
        """Once, with the first look: is this a new boot, and did the watchdog bring it about?"""
        if self._noted:
            return
        self._noted = True
        try:
            kept = read_json(self._path)
            kept = kept if isinstance(kept, dict) else {}
            count, boot = kept.get("boots"), boot_id(root)
            self.count = count if type(count) is int and count > 0 else 0
            self._proven = kept.get("watchdog_proven")
            fired = reading.watchdog_fired and self._proven != _driver(reading)
            if fired:
                self._proven = _driver(reading)
            if boot != kept.get("boot_id") or fired:
                self.count += boot != kept.get("boot_id")
                write_json(self._path, {"boot_id": boot, "boots": self.count, "watchdog_proven": self._proven})
        except OSError as why:
            log.warning("%s: boots are not counted (%s)", self._path, why)

    def watchdog_proven(self, reading: Reading) -> bool:
        """Whether this driver was seen to reset this machine."""
        return self._proven is not None and self._proven == _driver(reading)


def _driver(reading: Reading) -> str | None:
    """The watchdog's driver and the kernel it came with: what one of them proved says nothing of the next."""
    return f"{reading.watchdog.identity} of {reading.kernel}" if reading.watchdog else None
