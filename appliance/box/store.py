"""The configuration store: numbered generations, one of them good, at most one on trial.

``root/generations/NNNNNN/`` holds appliance.yaml, bundles/ and meta.json, whole and on disk before ``root/state.json``
names it. What runs is chosen by reading alone, so whoever starts after a power cut or a killed doer chooses rightly."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance.box.durable import (
    Trial,
    as_json,
    boot_id,
    fsync_folder,
    make_folder,
    put_folder,
    read_json,
    trial_of,
    write_json,
)
from appliance.clock import boottime_ns

log = logging.getLogger("appliance.store")

KEPT = 5  # generations, beside the good one
CONFIGURATION = "appliance.yaml"
BUNDLES = "bundles"
_COPY_BYTES = 1 << 20


class StoreError(Exception):
    """The store cannot do that now: what, and what to do."""


@dataclass(frozen=True)
class Meta:
    """Who put a generation there, and why. ``who``: ``stick SERIAL``, a person, a key's name; ``wall_us``, ``clock``: when,
    and how far that can be believed; ``revision`` and ``station`` as the configuration has them."""

    who: str
    why: str
    revision: int
    station: str
    wall_us: int
    clock: str


@dataclass(frozen=True)
class Generation:
    """One complete configuration. ``digest``: ``sha256:`` of appliance.yaml's bytes; ``bundles``: of all files of bundles/,
    "" where there are none."""

    number: int
    folder: Path
    digest: str
    bundles: str
    meta: Meta

    @property
    def name(self) -> str:
        """As its folder is called and as a trial names it."""
        return name_of(self.number)

    @property
    def file(self) -> Path:
        """Its appliance.yaml."""
        return self.folder / CONFIGURATION

    def told(self) -> dict[str, Any]:
        """For events and RESULT.txt: which one this is."""
        return {"generation": self.number, "digest": self.digest, "revision": self.meta.revision, "bundles": self.bundles}


@dataclass(frozen=True)
class Choice:
    """``generation``: what is to run, None: nothing ever was good; ``fallbacks``: what to run if it cannot be loaded, best
    first; ``why``: in words."""

    generation: Generation | None
    fallbacks: tuple[Generation, ...]
    why: str


@dataclass(frozen=True)
class _State:
    good: int | None
    trial: Trial | None
    owed: dict[str, Any] | None = None


class Store:
    """The store in ``root``. ``boot`` and ``now_ns`` (CLOCK_BOOTTIME) are the machine's own unless told."""

    def __init__(self, root: Path, boot: Callable[[], str] = boot_id, now_ns: Callable[[], int] = boottime_ns) -> None:
        self.root = root
        self._boot, self._now_ns = boot, now_ns
        self._generations = root / "generations"

    # --- reading --------------------------------------------------------------------------------------------

    @property
    def good(self) -> Generation | None:
        """The last one that proved itself. Raises OSError."""
        return self._numbered(self._state().good)

    @property
    def trial(self) -> Trial | None:
        """Whatever was begun and neither marked good nor given up; it may be over. Raises OSError."""
        return self._state().trial

    @property
    def owed(self) -> dict[str, Any] | None:
        """What ``mark_good`` or ``give_up`` was told to tell the ledger, until ``paid``: a cut between the two loses no
        history. Raises OSError."""
        return self._state().owed

    @property
    def tried(self) -> Generation | None:
        """What that trial is of. Raises OSError."""
        return self._named(self.trial.what) if self.trial else None

    def trial_holds(self) -> bool:
        """Whether whoever starts now runs what is on trial. Raises OSError."""
        trial = self.trial
        return trial is not None and trial.holds(self._boot(), self._now_ns())

    def boot_id(self) -> str:
        """Of this boot, as trials name it. Raises OSError."""
        return self._boot()

    def choose(self) -> Choice:
        """What is to run now. Only reads. Raises OSError."""
        state = self._state()
        good, trial = self._numbered(state.good), state.trial
        kept = (good,) if good else ()
        if trial is not None:
            tried = self._named(trial.what)
            if tried is not None and trial.holds(self._boot(), self._now_ns()):
                return Choice(tried, kept, f"generation {tried.number} is on trial")
            over = "its time is over" if trial.boot_id == self._boot() else "the box was restarted meanwhile"
            if good:
                return Choice(good, (), f"generation {good.number}: that of {trial.what} was not kept, {over}")
            return Choice(None, (), f"generation {trial.what} did not prove itself ({over}) and there was none before it")
        if good:
            return Choice(good, (), f"generation {good.number} is the last good one")
        return Choice(None, (), "no configuration yet: plug in a stick with an appliance.yaml")

    def generations(self) -> list[Generation]:
        """All that are complete, oldest first. Raises OSError."""
        if not self._generations.is_dir():
            return []
        numbers = sorted(int(entry.name) for entry in self._generations.iterdir() if _is_name(entry.name))
        return [one for one in map(self._numbered, numbers) if one is not None]

    def essentials(self) -> dict[str, Any] | None:
        """What ``mark_good`` was given last; None where there is nothing that can be believed. Raises OSError."""
        return _read_twice(self.root / "essentials.json")

    # --- writing --------------------------------------------------------------------------------------------

    def put(self, folder: Path, meta: Meta) -> Generation:
        """``folder``'s appliance.yaml and bundles/ as a generation, on disk when this returns; the one that holds the same
        already, if there is one. Nothing chooses it yet. Raises OSError, StoreError (a link, a device: no plain file)."""
        with self._locked():
            digest, bundles = file_digest(folder / CONFIGURATION), tree_digest(folder / BUNDLES)
            for one in reversed(self.generations()):
                if (one.digest, one.bundles) == (digest, bundles) and self.intact(one):
                    return one
            taken = [int(entry.name[:6]) for entry in self._generations.iterdir() if _is_name(entry.name[:6])]
            number = max(taken, default=0) + 1
            place = self._generations / name_of(number)
            try:
                put_folder(place, lambda partial: _fill(partial, folder, meta, digest, bundles))
            except (OSError, StoreError):
                shutil.rmtree(place.with_name(place.name + ".part"), ignore_errors=True)  # room for the next try
                raise
            made = self._numbered(number)
            if made is None or not self.intact(made):
                raise StoreError(f"{place}: what was written is not what is read back; the disk is failing")
            return made

    def intact(self, generation: Generation) -> bool:
        """Whether its files are still those that were put there. Reads them all. Raises OSError, StoreError."""
        whole = (file_digest(generation.file), tree_digest(generation.folder / BUNDLES))
        return whole == (generation.digest, generation.bundles)

    def begin_trial(self, new: Generation, until_ns: int) -> None:
        """``new`` is chosen from now on, until ``until_ns`` (CLOCK_BOOTTIME) and in this boot. Raises StoreError while another
        one is on trial, OSError."""
        with self._locked():
            state = self._state()
            if state.trial and state.trial.what != new.name and state.trial.holds(self._boot(), self._now_ns()):
                raise StoreError(f"generation {state.trial.what} is on trial; wait until that is decided")
            before = name_of(state.good) if state.good is not None else None
            self._write(_State(state.good, Trial(new.name, before, self._boot(), until_ns), state.owed))

    def extend_trial(self, until_ns: int) -> None:
        """More time for what is on trial (an engine is being built). Raises StoreError when it is over, OSError."""
        with self._locked():
            trial, state = self._still_on_trial(), self._state()
            self._write(_State(state.good, Trial(trial.what, trial.before, trial.boot_id, until_ns), state.owed))

    def mark_good(self, essentials: dict[str, Any], owed: dict[str, Any] | None = None) -> None:
        """What is on trial is the last good one. ``essentials``: all that safe mode may know. Raises StoreError when the
        trial is over (whoever started since runs the old one), OSError."""
        with self._locked():
            trial = self._still_on_trial()
            self._write(_State(int(trial.what), None, owed or self._state().owed))
            self._write_essentials(essentials)

    def write_essentials(self, essentials: dict[str, Any]) -> None:
        """Anew: after a cut between the two steps of ``mark_good``. Raises OSError."""
        with self._locked():
            self._write_essentials(essentials)

    def give_up(self, owed: dict[str, Any] | None = None) -> Generation | None:
        """The trial is over; returns what is chosen now. Raises OSError."""
        with self._locked():
            state = self._state()
            if state.trial is not None:
                self._write(_State(state.good, None, owed or state.owed))
            return self._numbered(state.good)

    def paid(self) -> None:
        """What was owed is told. Raises OSError."""
        with self._locked():
            state = self._state()
            self._write(_State(state.good, state.trial))

    def prune(self) -> None:
        """Remove all but the newest KEPT, the good one and what is on trial. What cannot be removed is told in the log,
        and undoes nothing of what was decided."""
        try:
            self._prune()
        except OSError as why:
            log.warning("old configurations could not be cleared away: %s", why)

    # --- inside ---------------------------------------------------------------------------------------------

    def _prune(self) -> None:
        """Raises OSError."""
        with self._locked():
            state = self._state()
            kept = {state.good, int(state.trial.what) if state.trial else None}
            numbers = sorted(int(entry.name) for entry in self._generations.iterdir() if _is_name(entry.name))
            for number in numbers[:-KEPT]:
                if number not in kept:
                    place = self._generations / name_of(number)
                    os.rename(place, place.with_name(place.name + ".gone"))  # never a half one under a number
            fsync_folder(self._generations)
            for entry in list(self._generations.iterdir()):
                if not _is_name(entry.name):
                    shutil.rmtree(entry)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time: a stick, an update and the boot's settling may come together."""
        make_folder(self._generations)
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _still_on_trial(self) -> Trial:
        trial = self._state().trial
        if trial is None or not trial.holds(self._boot(), self._now_ns()):
            raise StoreError("the trial is over, and the last good configuration is chosen again; apply the new one anew")
        return trial

    def _state(self) -> _State:
        value = _read_twice(self.root / "state.json") or {}
        good, trial = value.get("good"), trial_of(value.get("trial"))
        if trial is not None and not _is_name(trial.what):
            trial = None
        owed = value.get("owed")
        return _State(good if type(good) is int else None, trial, owed if isinstance(owed, dict) else None)

    def _write(self, state: _State) -> None:
        _write_twice(self.root / "state.json", {"good": state.good, "trial": as_json(state.trial), "owed": state.owed})

    def _write_essentials(self, essentials: dict[str, Any]) -> None:
        _write_twice(self.root / "essentials.json", essentials)

    def _named(self, name: str) -> Generation | None:
        return self._numbered(int(name)) if _is_name(name) else None

    def _numbered(self, number: int | None) -> Generation | None:
        """The complete generation of that number. Raises OSError where the disk fails."""
        if number is None:
            return None
        folder = self._generations / name_of(number)
        value = read_json(folder / "meta.json")
        try:
            return Generation(number, folder, str(value["digest"]), str(value["bundles"]), Meta(**value["meta"]))
        except (TypeError, KeyError):  # none there, or meta.json is none of ours
            return None


def name_of(number: int) -> str:
    """The folder's name of a generation."""
    return f"{number:06d}"


def file_digest(path: Path) -> str:
    """``sha256:`` of one plain file. Raises OSError, StoreError."""
    taken = hashlib.sha256()
    with open(_open_plain(path), "rb") as stream:
        while chunk := stream.read(_COPY_BYTES):
            taken.update(chunk)
    return "sha256:" + taken.hexdigest()


def tree_digest(folder: Path) -> str:
    """``sha256:`` over the digests and names of all files below, in the order of their names; "" where there are none.
    Raises OSError, StoreError (a link, a device)."""
    lines = [f"{file_digest(path)[7:]}  {path.relative_to(folder).as_posix()}\n" for path in _plain_files(folder)]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest() if lines else ""


def _plain_files(folder: Path) -> list[Path]:
    """Files below ``folder``, sorted. Raises StoreError for a link or device, OSError."""
    if folder.is_symlink():
        raise StoreError(f"{folder} is a link; put the files themselves there")
    found = []
    for entry in folder.rglob("*") if folder.is_dir() else ():
        if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
            raise StoreError(f"{entry} is no plain file; put the file itself there")
        if entry.is_file():
            found.append(entry)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _open_plain(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not os.path.isfile(f"/proc/self/fd/{descriptor}"):
        os.close(descriptor)
        raise StoreError(f"{path} is no plain file; put the file itself there")
    return descriptor


def _fill(place: Path, source: Path, meta: Meta, digest: str, bundles: str) -> None:
    """Copies with modes and owners of our own."""
    _copy(source / CONFIGURATION, place / CONFIGURATION)
    for path in _plain_files(source / BUNDLES):
        target = place / BUNDLES / path.relative_to(source / BUNDLES)
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(path, target)
    write_json(place / "meta.json", {"digest": digest, "bundles": bundles, "meta": asdict(meta)})


def _copy(source: Path, target: Path) -> None:
    with open(_open_plain(source), "rb") as reading, open(target, "xb") as writing:
        shutil.copyfileobj(reading, writing, _COPY_BYTES)


def _is_name(name: str) -> bool:
    return len(name) == 6 and name.isascii() and name.isdigit()


# --- the few files on which everything hangs, twice and each with its checksum -------------------------------


def _sealed(value: dict[str, Any]) -> str:
    body = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(body.encode()).hexdigest()


def _copies(path: Path) -> tuple[Path, Path]:
    return path, path.with_name(path.stem + ".copy" + path.suffix)


def _write_twice(path: Path, value: dict[str, Any]) -> None:
    """The copy last: the first that can be believed counts. Raises OSError."""
    for place in _copies(path):
        write_json(place, {**value, "checksum": _sealed(value)})


def _read_twice(path: Path) -> dict[str, Any] | None:
    """Raises OSError where the disk refuses both."""
    failed: OSError | None = None
    for place in _copies(path):
        try:
            value = read_json(place)
        except OSError as why:  # a bad block; the copy lies elsewhere
            failed = why
            continue
        if isinstance(value, dict) and value.pop("checksum", None) == _sealed(value):
            return value
    if failed is not None:
        raise failed
    return None
