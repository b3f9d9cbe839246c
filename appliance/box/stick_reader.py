"""Reads a stick: what is ours is copied under limits, and believed in nothing."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from appliance.box import stick
from appliance.box.stick import BUNDLES, ENROL, LIMITS, SYSTEM, UPDATE, Calls, Found, Limits, Source, shown
from appliance.ports import Clock

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # of a bundle, as the configuration's
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 _.()+,=@-]{0,99}(?<![ .])")  # in a bundle
_DROPPINGS = {"thumbs.db", "desktop.ini", "system volume information", "$recycle.bin"}  # of who wrote the stick
_MOST_LISTED = 20_000  # names looked at in one folder; a FAT's folder may claim 65,536
_MOST_PROBLEMS = 30
_HINTS = 5


def read_stick(
    source: Source, staging: Path, clock: Clock, limits: Limits = LIMITS, calls: Calls = SYSTEM,
    refused: Callable[[Found], bool] = lambda _found: False,
) -> Found:  # fmt: skip
    """Copy what is ours into ``staging`` (made anew). ``refused``: asked with configuration, signature and keys at hand whether
    update and bundles can change nothing any more; they are a gigabyte and a half. Raises StickDead, OSError of ``staging``."""
    if staging.exists():
        shutil.rmtree(staging)
    staging.mkdir(parents=True)

    def work(moved: Callable[[], None]) -> Any:
        with stick.at_hand(source, writable=False) as kind:
            found = _Copy(source.place, staging, limits, calls, moved).all(refused)
        found.file_system = kind
        return asdict(found)

    return Found(**stick.in_child(source, work, clock, limits))


class _Left(Exception):
    """One thing that is not taken, and why: in words."""


class _Copy:
    """One pass over a stick, all mistakes at once; a failing read ends it."""

    def __init__(self, place: Path, staging: Path, limits: Limits, calls: Calls, moved: Callable[[], None]) -> None:
        self._place, self._staging, self._limits, self._calls, self._moved = place, staging, limits, calls, moved
        self._found = Found()
        self._bytes = self._bundle_bytes = self._files = 0
        self._room = max(0, calls.free(staging) - limits.reserve_bytes) // 2  # here, and once more in the store

    def all(self, refused: Callable[[Found], bool]) -> Found:
        """Raises OSError where the stick's root cannot be read."""
        root = os.open(self._place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._root(root, refused)
        finally:
            os.close(root)
        return self._found

    def _root(self, root: int, refused: Callable[[Found], bool]) -> None:
        try:
            if self._take(root, stick.CONFIGURATION, self._limits.yaml_bytes):
                for name in stick.SIGNATURES:
                    self._take(root, name, self._limits.small_bytes)
            else:
                self._found.near = _near(self._names(root, "the stick"))
            self._found.collect = self._asks_collect(root)
            self._each(root, ENROL, self._key)
            large = [name for name in (UPDATE, BUNDLES) if self._kind(root, name) is not None]
            if large and refused(self._found):
                self._found.notes.append(f"{' and '.join(large)} not read: nothing in there changes that this is refused")
            else:
                self._each(root, UPDATE, self._update)
                self._each(root, BUNDLES, self._bundle)
        except _Left as why:  # not even its names, or no room: there is no use in going on
            self._found.problems.append(str(why))

    # --- what is where -----------------------------------------------------------------------------------

    def _each(self, root: int, name: str, one: Callable[[int, str], None]) -> None:
        """``one`` for each name in a folder of the root, if that is there."""
        kind = self._kind(root, name)
        if kind is None:
            return
        if not stat.S_ISDIR(kind.st_mode):
            self._wrong(f"{name} is {_what(kind.st_mode)}; it has to be a folder")
            return
        folder = self._open(root, name, name, os.O_DIRECTORY)
        try:
            for entry in self._names(folder, name):
                if not _dropping(entry):
                    one(folder, entry)
        finally:
            os.close(folder)

    def _key(self, folder: int, name: str) -> None:
        if not name.endswith(".pub"):
            self._found.notes.append(f"{ENROL}/{shown(name)} was left out: keys end in .pub")
        elif not _NAME.fullmatch(name):
            self._wrong(f"{ENROL}/{shown(name)}: name it with letters, digits, . _ - only")
        elif len(self._found.keys) >= self._limits.keys:
            raise _Left(f"{ENROL} holds more than {self._limits.keys} keys; take some out")
        elif self._take(folder, name, self._limits.small_bytes, ENROL):
            self._found.keys.append(name)

    def _update(self, folder: int, name: str) -> None:
        if not name.endswith(".bundle"):
            if not name.endswith((".bundle.sig", ".bundle.minisig")):
                self._found.notes.append(f"{UPDATE}/{shown(name)} was left out: updates are called NAME.bundle")
        elif not _FILE.fullmatch(name):
            self._wrong(f"{UPDATE}/{shown(name)}: name it with plain letters, digits and . _ - only")
        elif self._found.update:
            raise _Left(f"{UPDATE} holds {self._found.update} and {name}; leave one of them")
        elif self._take(folder, name, self._limits.update_bytes, UPDATE):
            self._found.update = name
            for ending in (".sig", ".minisig"):
                self._take(folder, name + ending, self._limits.small_bytes, UPDATE)

    def _bundle(self, folder: int, name: str) -> None:
        where = f"{BUNDLES}/{shown(name)}"
        kind = self._kind(folder, name)
        if kind is not None and stat.S_ISREG(kind.st_mode):
            self._found.notes.append(f"{where} was left out: a bundle is a folder")
        elif not _NAME.fullmatch(name):
            self._wrong(f"{where}: name the bundle with letters, digits, . _ - only")
        else:
            self._tree(folder, name, f"{BUNDLES}/{name}", 1)

    def _tree(self, above: int, name: str, where: str, depth: int) -> None:
        kind = self._kind(above, name)
        if kind is None or not stat.S_ISDIR(kind.st_mode):
            what = _what(kind.st_mode) if kind else "gone"
            self._wrong(f"{where} is {what}; put a folder of plain files there")
            return
        if depth > self._limits.depth:
            self._wrong(f"{where} lies deeper than {self._limits.depth} folders; bundles are flat")
            return
        folder = self._open(above, name, where, os.O_DIRECTORY)
        try:
            seen: dict[str, str] = {}
            for entry in self._names(folder, where):
                if not _dropping(entry):
                    self._in_bundle(folder, entry, where, depth, seen)
        finally:
            os.close(folder)

    def _in_bundle(self, folder: int, name: str, where: str, depth: int, seen: dict[str, str]) -> None:
        inside = f"{where}/{shown(name)}"
        if not _FILE.fullmatch(name):
            self._wrong(f"{inside}: name it with plain letters, digits, spaces and . _ - ( ) + , = @ only")
            return
        if name.casefold() in seen:
            self._wrong(f"{inside}: {seen[name.casefold()]} is there too; names must differ by more than case")
            return
        seen[name.casefold()] = name
        self._files += 1  # folders too: empty ones without end are no bundle either
        if self._files > self._limits.bundle_files:
            raise _Left(f"{BUNDLES} holds more than {self._limits.bundle_files} files; take out what no model needs")
        kind = self._kind(folder, name)
        if kind is not None and stat.S_ISDIR(kind.st_mode):
            self._tree(folder, name, f"{where}/{name}", depth + 1)
            return
        left = self._limits.bundle_bytes - self._bundle_bytes
        self._take(folder, name, left, where, f"with it {BUNDLES} holds more than {self._limits.bundle_bytes >> 20} MiB in all")
        self._bundle_bytes += self._found.sizes.get(f"{where}/{name}", 0)

    def _asks_collect(self, root: int) -> bool:
        kind = self._kind(root, stick.COLLECT)
        if kind is not None and not stat.S_ISREG(kind.st_mode):
            self._wrong(f"{stick.COLLECT} is {_what(kind.st_mode)}; make it an empty file")
            return False
        return kind is not None

    def _wrong(self, text: str) -> None:
        """Raises _Left when enough was wrong."""
        self._found.problems.append(text)
        if len(self._found.problems) >= _MOST_PROBLEMS:
            raise _Left("more was not looked at")

    # --- one thing ---------------------------------------------------------------------------------------

    def _take(self, folder: int, name: str, most: int, where: str = "", too_many: str = "") -> bool:
        """Copy one plain file; whether it was there. What is wrong with it is told. Raises _Left when the stick fails."""
        path = f"{where}/{name}" if where else name
        kind = self._kind(folder, name)
        if kind is None:
            return False
        if not stat.S_ISREG(kind.st_mode):
            self._wrong(f"{path} is {_what(kind.st_mode)}; put the file itself there")
            return True
        if kind.st_size > most:
            self._wrong(f"{path} has {kind.st_size} bytes; {too_many or f'at most {most} are read'}")
            return True
        if self._bytes + kind.st_size > self._room:
            raise _Left(f"{path}: the box's disk has no room for it; free some, images take most")
        descriptor = self._open(folder, name, path)
        try:
            size = self._pour(descriptor, path, os.fstat(descriptor), kind.st_size)
        finally:
            os.close(descriptor)
        if size is not None:
            self._found.sizes[path] = size
            self._bytes += size
        return True

    def _pour(self, descriptor: int, path: str, kind: os.stat_result, told: int) -> int | None:
        """The bytes copied; None where the file is not what its folder says."""
        if not stat.S_ISREG(kind.st_mode) or kind.st_size != told:
            self._wrong(f"{path} changed while it was read; leave the stick alone until its lamp blinks")
            return None
        try:
            got = self._copied(descriptor, path, told)
        except OSError as why:  # the stick's own became _Left
            (self._staging / path).unlink(missing_ok=True)  # the ledger needs the room
            raise _Left(f"the box's disk did not take {path} ({why.strerror}); free some room, images take most") from why
        if got != told:
            more = "more" if got > told else f"only {got}"
            self._wrong(f"{path} is said to have {told} bytes and gives {more}: the stick is damaged; copy it anew")
            return None
        return got

    def _copied(self, descriptor: int, path: str, told: int) -> int:
        """How much it gave, at most a byte more than ``told``. Raises _Left where the stick fails, OSError of the box's disk."""
        target = self._staging / path
        target.parent.mkdir(parents=True, exist_ok=True)
        got = 0
        with open(target, "xb") as out:
            while got <= told:
                try:
                    part = self._calls.read(descriptor, min(stick.CHUNK, told + 1 - got))
                except OSError as why:
                    raise _Left(f"{path} cannot be read to its end ({why.strerror}): the stick fails, or was pulled") from why
                if not part:
                    break
                out.write(part)
                got += len(part)
                self._moved()
        return got

    def _kind(self, folder: int, name: str) -> os.stat_result | None:
        """What stands there, a link as such; None: nothing does. Raises _Left when the stick fails."""
        try:
            return os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as why:
            raise _Left(f"{shown(name)} cannot be looked at ({why.strerror}): the stick fails, or was pulled") from why

    def _open(self, folder: int, name: str, path: str, more: int = 0) -> int:
        """Raises _Left."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | more
        try:
            return self._calls.open(name, flags, dir_fd=folder)
        except OSError as why:
            raise _Left(f"{path} cannot be opened ({why.strerror}): the stick fails, or was pulled") from why

    def _names(self, folder: int, where: str) -> list[str]:
        """Sorted. Raises _Left."""
        names: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    names.append(entry.name)
                    if len(names) % 256 == 0:
                        self._moved()
                    if len(names) >= _MOST_LISTED:
                        raise _Left(f"{where} holds {_MOST_LISTED} names or more; take out what is not for the box")
        except OSError as why:
            raise _Left(f"{where} cannot be listed ({why.strerror}): the stick fails, or was pulled") from why
        return sorted(names)


def _dropping(name: str) -> bool:
    """What operating systems leave behind."""
    return name.startswith(".") or name.casefold() in _DROPPINGS


def _near(names: list[str]) -> list[str]:
    """Names that were meant to be appliance.yaml."""
    wanted = ("appliance.yaml", "appliance.yml", "appliance.txt", "appliance.yaml.txt", "appliance.yml.txt", "station.yaml")
    found = [name for name in names if name.casefold() in wanted or re.fullmatch(r"appliance.*\.ya?ml(\.txt)?", name.casefold())]
    return [shown(name) for name in found[:_HINTS]]


def _what(mode: int) -> str:
    kinds = ((stat.S_ISLNK, "a link"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
             (stat.S_ISREG, "a file"))  # fmt: skip
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")
