"""A folder whose power is cut at any step: what was written and not forced to disk is torn, what was named is lost.

    for number in itertools.count():
        with Disk(root, cut_at=number) as disk:
            act()
        if not disk.cut: break      # it went through
        disk.after_the_cut(names_lost=True)
        # root looks as a disk might after the power came back

A step is an opening for writing, a name made, moved or removed, and a forcing to disk. Renames are atomic; all else that
was not forced is lost in the worst way: file contents are cut in half, and (``names_lost``) names go back to where they were."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest


class PowerCut(BaseException):
    """No handler of the product runs for it."""


_active: list[Disk] = []
_hooked: list[bool] = []


class Disk:
    """``root`` while steps are counted. ``cut``: whether the power went."""

    def __init__(self, root: Path, cut_at: int | None = None) -> None:
        self.root, self._cut_at = root, cut_at
        self.steps = 0
        self.cut = False
        self.told: list[str] = []
        self._dirty: set[int] = set()  # inodes with bytes that were not forced
        self._opened: list[Path] = []
        self._undo: list[tuple[Path, Callable[[], None]]] = []  # by the folder whose forcing makes it last
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Disk:
        if not _hooked:
            sys.addaudithook(_heard)  # cannot be taken out again: it does nothing while no Disk is active
            _hooked.append(True)
        self._patch.setattr(os, "fsync", self._fsync)
        _active.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, _what: BaseException | None, _where: TracebackType | None) -> bool:
        _active.remove(self)
        self._patch.undo()
        return kind is PowerCut

    def after_the_cut(self, names_lost: bool) -> None:
        """Make of ``root`` what may be found when the power is back."""
        for path in [path for path in self.root.rglob("*") if path.is_file() and path.stat().st_ino in self._dirty]:
            os.truncate(path, path.stat().st_size // 2)
        if names_lost:
            for _, undo in reversed(self._undo):
                undo()

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Before the kernel does it."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes, os.PathLike)) and flags & (os.O_WRONLY | os.O_RDWR):
                self._writing(Path(os.fsdecode(path)))
        elif event == "os.rename":
            self._renaming(Path(os.fsdecode(arguments[0])), Path(os.fsdecode(arguments[1])))
        elif event == "os.mkdir":
            path = Path(os.fsdecode(arguments[0]))
            if self._ours(path) and not path.exists():
                self._step(f"mkdir {path.name}")
                self._undo.append((path.parent, lambda: shutil.rmtree(path, ignore_errors=True)))
        elif event in ("os.remove", "os.rmdir"):
            # A relative name is rmtree's, below a folder that it holds open.
            if self._ours(Path(os.fsdecode(arguments[0]))) or arguments[1] not in (-1, None):
                self._step(f"{event} {arguments[0]}")

    def _writing(self, path: Path) -> None:
        if not self._ours(path):
            return
        self._step(f"write {path.name}")
        self._opened.append(path)
        if not path.exists():
            self._undo.append((path.parent, lambda: path.unlink(missing_ok=True)))

    def _renaming(self, source: Path, target: Path) -> None:
        if not self._ours(target):
            return
        self._step(f"rename {source.name} {target.name}")
        before = target.read_bytes() if target.is_file() else None
        inode = target.stat().st_ino if before is not None else 0
        forced = inode not in self._dirty

        def undo() -> None:
            if target.exists():
                os.rename(target, source)
            if before is not None:
                target.write_bytes(before if forced else before[: len(before) // 2])

        self._undo.append((target.parent, undo))

    def _fsync(self, descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if self._ours(place):
            self._step(f"fsync {place.name}")
            self._dirty.discard(os.fstat(descriptor).st_ino)
            self._undo = [one for one in self._undo if one[0] != place]

    def _step(self, what: str) -> None:
        for path in self._opened:  # there only now, after what was the last step
            if path.exists():
                self._dirty.add(path.stat().st_ino)
        self._opened.clear()
        if self.steps == self._cut_at:
            self.cut = True
            raise PowerCut(what)
        self.steps += 1
        self.told.append(what)

    def _ours(self, path: Path) -> bool:
        return self.root in path.parents or path == self.root


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    for disk in _active:
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            _active.remove(disk)  # what it does itself is no step
            try:
                disk.heard(event, arguments)
            finally:
                _active.append(disk)
