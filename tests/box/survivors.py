"""What a disk may hold after the power was cut, from what was forced to it and what was not.

    with Power(root, cut_at=17) as power:
        act()
    power.survive(root, Everything()), NothingUnforced(), or Mixed(seed)

Stricter than cuts.py in one thing: also removals that were not forced may come back, and each name and each file's bytes
may be lost or kept for itself. A step is an opening for writing, a name made, moved or removed, a forcing to disk; the cut
comes before it, and nothing happens after. Real calls on a real folder: audit events count them, ``os.fsync`` is noted."""

from __future__ import annotations

import os
import random
import shutil
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import pytest

Policy = Literal["everything", "nothing unforced", "mixed"]


class PowerCut(BaseException):
    """No handler of the product runs for it."""


@dataclass
class _Image:
    """A folder by inode: what each file holds and each folder names."""

    content: dict[int, tuple[bytes, int]] = field(default_factory=dict)  # bytes, mode
    names: dict[int, dict[str, int]] = field(default_factory=dict)


_active: list[Power] = []
_hooked: list[bool] = []


class Power:
    """``root`` while steps are counted. ``cut``: whether the power went; ``told``: the steps, in words."""

    def __init__(self, root: Path, cut_at: int | None = None) -> None:
        self.root, self._cut_at = root, cut_at
        self.cut = False
        self.told: list[str] = []
        self._forced, self._now, self._held = _Image(), _Image(), list[int]()
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Power:
        if not _hooked:
            sys.addaudithook(_heard)  # cannot be taken out again: it does nothing while nobody is active
            _hooked.append(True)
        self._top = self.root.stat().st_ino
        self._note_tree(self._forced, self.root)
        self._patch.setattr(os, "fsync", self._fsync)
        _active.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, _what: BaseException | None, _where: TracebackType | None) -> bool:
        _active.clear()
        self._patch.undo()
        self._note_tree(self._now, self.root)
        for descriptor in self._held:
            os.close(descriptor)
        return kind is PowerCut

    def survive(self, policy: Policy, seed: int = 0) -> None:
        """Make of ``root`` what is found when the power is back. May be asked once."""
        chosen = random.Random(seed)
        made = self.root.with_name(self.root.name + ".survived")
        self._rebuild(self._top, made, policy, chosen)
        shutil.rmtree(self.root)
        made.rename(self.root)

    # --- noting ---------------------------------------------------------------------------------------------

    def _note_tree(self, image: _Image, folder: Path) -> None:
        self._note_folder(image, folder)
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                self._note_folder(image, path)
            elif path.is_file() and not path.is_symlink():
                self._note_file(image, path)

    def _note_folder(self, image: _Image, folder: Path) -> None:
        inode = self._hold(folder)
        image.names[inode] = {entry.name: entry.inode() for entry in os.scandir(folder)}

    def _note_file(self, image: _Image, path: Path) -> None:
        inode = self._hold(path)
        image.content[inode] = (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))

    def _hold(self, path: Path) -> int:
        """An inode's number is not given to another file while somebody holds it."""
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        self._held.append(descriptor)
        return os.fstat(descriptor).st_ino

    def _rebuild(self, inode: int, place: Path, policy: Policy, chosen: random.Random) -> None:
        place.mkdir()
        now = self._now
        before, after = self._forced.names.get(inode, {}), now.names.get(inode, {})
        for name in sorted({**before, **after}):
            one = {"everything": after, "nothing unforced": before, "mixed": chosen.choice([before, after])}[policy].get(name)
            if one is None:
                continue
            if one in now.names or one in self._forced.names:
                self._rebuild(one, place / name, policy, chosen)
                continue
            forced = self._forced.content.get(one, (b"", 0o644))
            kept = now.content.get(one, forced)  # removed meanwhile: it is as it was
            torn = kept if kept == forced else (kept[0][: len(kept[0]) // 2], kept[1])
            content, mode = {"everything": kept, "nothing unforced": forced, "mixed": chosen.choice([forced, kept, torn])}[policy]
            (place / name).write_bytes(content)
            (place / name).chmod(mode)

    # --- hearing --------------------------------------------------------------------------------------------

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Before the kernel does it."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes, os.PathLike)) and flags & (os.O_WRONLY | os.O_RDWR):
                self._step(event, Path(os.fsdecode(path)))
        elif event == "os.rename":
            self._step(event, Path(os.fsdecode(arguments[1])))
        elif event in ("os.mkdir", "os.chmod"):
            if not isinstance(arguments[0], int):
                self._step(event, Path(os.fsdecode(arguments[0])))
        elif event in ("os.remove", "os.rmdir"):
            folder = arguments[1]  # rmtree's names are relative to a folder that it holds open
            above = Path(os.readlink(f"/proc/self/fd/{folder}")) if isinstance(folder, int) and folder >= 0 else Path()
            self._step(event, above / os.fsdecode(arguments[0]))

    def _fsync(self, descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if self._step("fsync", place):
            if place.is_dir():
                self._note_folder(self._forced, place)
            else:
                self._note_file(self._forced, place)

    def _step(self, what: str, path: Path) -> bool:
        if path != self.root and self.root not in path.parents:
            return False
        if len(self.told) == self._cut_at:
            self.cut = True
        if self.cut:
            raise PowerCut(f"{what} {path.name}")
        self.told.append(f"{what} {path.relative_to(self.root)}")
        return True


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in ("open", "os.rename", "os.mkdir", "os.chmod", "os.remove", "os.rmdir"):
        return
    for power in list(_active):
        _active.clear()  # what it does itself is no step
        try:
            power.heard(event, arguments)
        finally:
            _active.append(power)
