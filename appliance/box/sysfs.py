"""Small files of the kernel: absent is normal, nonsense is told, and each read says where it is before it may hang."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection
from pathlib import Path

_MOST_BYTES = 64 * 1024
_NUMBER = re.compile(r"-?[0-9]{1,19}")
# A path that is not there, or a device that left between two looks. All else is a sensor that does not do its work.
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO})


class Files:
    """One look at the files below ``root``; never raises. ``at``: the file being read now, "" = none. ``unreadable``:
    file -> why, for those that are there and give nothing that can be believed. ``skip``: files that are left alone, as it
    stands when each would be read."""

    def __init__(self, root: Path = Path("/"), skip: Collection[str] = ()) -> None:
        self.root = root
        self._skip = skip
        self.at = ""
        self.unreadable: dict[str, str] = {}
        self._hwmon: list[tuple[str, Path]] | None = None

    def forget(self) -> None:
        """Begin a new look."""
        self.unreadable = {}
        self._hwmon = None

    def begin(self, name: str) -> bool:
        """Say that ``name`` is read now, unless it is left alone."""
        if name in self._skip:
            self.unreadable[name] = "it hung when it was read, and is left alone"
            return False
        self.at = name
        return True

    def data(self, path: Path) -> bytes | None:
        """The first 64 KiB; None where there is nothing to read."""
        name = self._name(path)
        if not self.begin(name):
            return None
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(descriptor, _MOST_BYTES)
            finally:
                os.close(descriptor)
        except OSError as why:  # EAGAIN, EIO: a block that is switched off
            if why.errno not in _ABSENT:
                self.unreadable[name] = why.strerror or str(why)
            return None
        finally:
            self.at = ""

    def text(self, path: Path) -> str | None:
        """Its text without white space and NULs at the ends; None where there is none."""
        raw = self.data(path)
        return None if raw is None else raw.decode("utf-8", "replace").strip("\x00 \t\r\n") or None

    def number(self, path: Path, lowest: int, highest: int, quiet: bool = False) -> int | None:
        """Its whole number, if it lies in lowest..highest: what no such device can measure is no measurement. ``quiet``:
        one beyond is an ordinary way to say "none"."""
        raw = self.data(path)
        if raw is None:
            return None
        text = raw.decode("utf-8", "replace").strip("\x00 \t\r\n")
        value = int(text) if _NUMBER.fullmatch(text) else None
        if value is None:
            self.refuse(path, f"reads {text[:40]!r}, which is no number" if text else "reads nothing")
        elif not lowest <= value <= highest:
            if not quiet:
                self.refuse(path, f"reads {value}; only {lowest} to {highest} can be")
            return None
        return value

    def refuse(self, path: Path, why: str) -> None:
        """What was read there is not believed."""
        self.unreadable[self._name(path)] = why

    def names(self, folder: Path) -> list[str]:
        """What lies in a folder, sorted; empty where there is none."""
        try:
            return sorted(os.listdir(folder))
        except OSError:  # no such folder on this machine
            return []

    def hwmon(self) -> list[tuple[str, Path]]:
        """(name, folder) of each hwmon: the name is what it is, its number is chance."""
        if self._hwmon is None:
            parent = self.root / "sys/class/hwmon"
            folders = [parent / one for one in self.names(parent)]
            named = [(self.text(one / "name") or self.text(one / "device/name"), one) for one in folders]
            self._hwmon = [(name, folder) for name, folder in named if name]
        return self._hwmon

    def _name(self, path: Path) -> str:
        return "/" + os.path.relpath(path, self.root)
