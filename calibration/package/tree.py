"""Files as a package holds them: sorted, with modes that no umask touched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from calibration.package.target import PackageError

FILE, PROGRAM = 0o644, 0o755


@dataclass(frozen=True)
class Entry:
    """One file: ``path`` without a leading slash, its bytes and mode; or, with ``link``, a symbolic link to that."""

    path: str
    data: bytes = b""
    mode: int = FILE
    link: str = ""

    def under(self, folder: str) -> Entry:
        """The same, in ``folder``."""
        return Entry(f"{folder}/{self.path}", self.data, self.mode, self.link)


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """By path, each once. Raises PackageError where two bring the same file with other bytes."""
    found: dict[str, Entry] = {}
    for one in entries:
        there = found.setdefault(one.path, one)
        if there != one:
            raise PackageError(f"/{one.path}: two bring that file, and they differ")
    return [found[path] for path in sorted(found)]


def folders(entries: Iterable[Entry]) -> list[str]:
    """Every folder above them, parents first."""
    above: set[str] = set()
    for one in entries:
        parts = one.path.split("/")[:-1]
        above.update("/".join(parts[:count]) for count in range(1, len(parts) + 1))
    return sorted(above)
