"""A stick: what lies on it by which name, what of it is taken at most, what was found; and the child that touches it.

Whatever touches the stick (``stick_reader``, ``stick_writer``) runs in a child process (``child.py``) with its own mount: a stick
that hangs, lies about sizes or is pulled costs that process and a sentence in words."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.box import mount
from appliance.box.child import ChildFailed, run_limited
from appliance.ports import Clock

CONFIGURATION, BUNDLES, COLLECT, ENROL, UPDATE = "appliance.yaml", "bundles", "collect", "enrol", "update"
SIGNATURES = ("appliance.yaml.sig", "appliance.yaml.minisig")
CHUNK = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What is taken at most. ``reserve_bytes``: room that the box's disk keeps for the ledger; ``stall_s``: a device that
    gave nothing for so long is dead (the kernel tries again for about 30 s); ``whole_s``: all of the reading."""

    yaml_bytes: int = 1 << 20
    small_bytes: int = 4096
    bundle_bytes: int = 512 << 20
    bundle_files: int = 200
    depth: int = 6
    keys: int = 16
    update_bytes: int = 1 << 30
    reserve_bytes: int = 256 << 20
    stall_s: float = 45.0
    whole_s: float = 600.0


@dataclass(frozen=True)
class Source:
    """``place``: the folder, or where ``device`` is mounted meanwhile. ``name``: as people call it; ``file_systems``: those
    that are tried."""

    place: Path
    device: Path | None = None
    name: str = ""
    file_systems: tuple[str, ...] = mount.FILE_SYSTEMS


@dataclass
class Found:
    """What a stick held. ``problems``: why nothing of it is taken; ``notes``: what was left out; ``sizes``: bytes by path of
    what was copied; ``near``: names that look like a misspelt appliance.yaml; ``update``: the application bundle's name."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    near: list[str] = field(default_factory=list)
    update: str = ""
    collect: bool = False
    file_system: str = ""

    @property
    def signature(self) -> str:
        """The signature's file, "" = none."""
        return next((name for name in SIGNATURES if name in self.sizes), "")


class StickDead(Exception):
    """It cannot be read (or written) at all: why, in words. ``stuck``: who waits for it cannot be ended either."""

    def __init__(self, text: str, stuck: bool = False) -> None:
        super().__init__(text)
        self.stuck = stuck


@dataclass(frozen=True)
class Calls:
    """The system's own, or a stand-in that fails as sticks do."""

    open: Callable[..., int] = os.open
    read: Callable[[int, int], bytes] = os.read
    free: Callable[[Path], int] = lambda place: shutil.disk_usage(place).free


LIMITS, SYSTEM = Limits(), Calls()


@contextmanager
def at_hand(source: Source, writable: bool) -> Iterator[str]:
    """The mount, where there is a device; "" = a plain folder. Raises OSError."""
    if source.device is None:
        yield ""
        return
    mount.own_namespace()
    with mount.mounted(source.device, source.place, writable=writable, file_systems=source.file_systems) as kind:
        yield kind


def in_child(source: Source, work: Callable[[Callable[[], None]], Any], clock: Clock, limits: Limits) -> Any:
    """What ``work`` returns, made in a child that may mount where there is a device. Raises StickDead, ValueError of ``work``."""
    try:
        return run_limited(work, clock, limits.whole_s, limits.stall_s, mounts=source.device is not None)
    except ChildFailed as why:
        raise StickDead(f"the stick does not answer: {why}", why.stuck) from why
    except OSError as why:
        more = looks_like(source.device, clock, limits.stall_s) if source.device and why.errno == errno.EINVAL else ""
        raise StickDead("; ".join(filter(None, (why.strerror or str(why), more)))) from why


def looks_like(device: Path, clock: Clock, within_s: float = LIMITS.stall_s) -> str:
    """What a stick that cannot be mounted may be, in words; "" = its first sectors cannot be read or say nothing."""
    try:
        return str(run_limited(lambda _moved: mount.what_it_is(device), clock, within_s))
    except (ChildFailed, OSError):
        return ""


def name_of_device(device: Path, root: Path = Path("/")) -> str:
    """As udev's links call it: its maker and serial number, its label, its volume's number; else its node's name."""
    found = []
    for folder in ("by-id", "by-label", "by-uuid"):
        links = root / "dev/disk" / folder
        names = sorted(link.name for link in links.iterdir() if link.resolve() == device.resolve()) if links.is_dir() else []
        found += names[:1]
    return shown(" ".join(dict.fromkeys(found)) or device.name.partition(".")[0])  # of sda1.17, see 61-appliance.rules


def shown(name: str) -> str:
    """A name as it can be printed anywhere."""
    return name if name.isascii() and name.isprintable() else ascii(name)
