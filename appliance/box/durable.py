"""Files that survive a power cut, and trials: something new on probation that falls back by itself.

Whatever is written here is written beside its place, forced to disk, renamed, and the folder forced to disk: after a cut
the old or the new stands there, whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_BOOT_ID = "proc/sys/kernel/random/boot_id"


@dataclass(frozen=True)
class Trial:
    """``what`` runs on probation in place of ``before`` (None: of nothing), in this boot only and until ``until_ns`` of
    CLOCK_BOOTTIME. Whoever starts reads it and decides by itself, so a cut needs nobody to tidy up. Who runs as a doer
    is killed runs on: settle ends that."""

    what: str
    before: str | None
    boot_id: str
    until_ns: int

    def holds(self, boot_id: str, now_ns: int) -> bool:
        """Whether ``what`` may still run. ``now_ns``: CLOCK_BOOTTIME."""
        return self.boot_id == boot_id and now_ns < self.until_ns


def trial_of(value: Any) -> Trial | None:
    """A trial from its JSON; None where there is none, or none that can be believed."""
    if not isinstance(value, dict):
        return None
    what, before, boot, until_ns = (value.get(name) for name in ("what", "before", "boot_id", "until_ns"))
    if not (isinstance(what, str) and isinstance(boot, str) and type(until_ns) is int):
        return None
    if before is not None and not isinstance(before, str):
        return None
    return Trial(what, before, boot, until_ns)


def as_json(trial: Trial | None) -> dict[str, Any] | None:
    """The other way round."""
    return asdict(trial) if trial else None


def boot_id(root: Path = Path("/")) -> str:
    """The kernel's name for this boot. Raises OSError."""
    return (root / _BOOT_ID).read_text(encoding="ascii").strip()


def write_whole(path: Path, data: bytes, mode: int = 0o644) -> None:
    """``data`` at ``path``, whole and on disk when this returns. Raises OSError; then the old content stands."""
    partial = path.with_name(path.name + ".part")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
    fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """``write_whole`` of ``value`` as JSON."""
    write_whole(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:
    """The JSON at ``path``; None where there is no file, or none that is JSON. Raises OSError where the disk fails."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # ValueError: JSON and UTF-8 alike; what stands there is none of ours
        return None


def fsync_folder(folder: Path) -> None:
    """Names made, renamed or removed in ``folder`` are on disk when this returns. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """``folder`` and what is missing above it, each with its name on disk when this returns. Raises OSError."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


def fsync_tree(folder: Path) -> None:
    """Every file and folder below, and ``folder`` itself. Raises OSError."""
    for place, _folders, files in os.walk(folder, topdown=False):
        for name in files:
            descriptor = os.open(Path(place, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_folder(Path(place))


def put_folder(place: Path, fill: Callable[[Path], None]) -> None:
    """A folder at ``place`` (which is not there yet), made by ``fill`` in another one, on disk before it has its name.
    Raises OSError and what ``fill`` raises; then nothing stands at ``place``."""
    partial = place.with_name(place.name + ".part")
    if partial.exists():  # of a cut
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    fill(partial)
    fsync_tree(partial)
    os.rename(partial, place)
    fsync_folder(place.parent)
