"""``appliance usb apply|unreadable|manifest`` and ``appliance keys enrol|list``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TextIO

from appliance.box import manifest, stick
from appliance.box.owner import become_owner
from appliance.box.signature import SignatureError, enrolled
from appliance.box.stick import Source
from appliance.box.store import Store
from appliance.clock import SystemClock
from appliance.paths import box_folders
from appliance.wiring import stick as dialogue
from appliance.wiring.stick_box import Box

_NO_FILE_SYSTEM = "it has no FAT or exFAT file system"


def usb(options: Namespace, out: TextIO, err: TextIO) -> int:
    """Exit 0, or 2: refused, unreadable, or the box's own disk fails."""
    try:
        if options.action == "manifest":
            return _manifest(_place(options, "the folder that holds bundles/"), out)
        box = box_of(options)
        if options.action == "unreadable":
            more = stick.looks_like(options.device, box.clock) if options.device else ""
            why = options.why or "; ".join(filter(None, (_NO_FILE_SYSTEM, more)))
            return dialogue.unreadable(box, _called(options), why, out, options.device)
        return dialogue.serve(_source(options), box, out)
    except (OSError, ValueError) as why:
        err.write(f"{why}\n")
        return 2


def keys(options: Namespace, out: TextIO, err: TextIO) -> int:
    """Exit 0, or 2: refused."""
    try:
        box = box_of(options)
        if options.action == "enrol":
            return dialogue.serve(_source(options), box, out, only_keys=True)
        for key in enrolled(box.keys_dir):
            out.write(f"{key}\n")
        return 0
    except (OSError, ValueError, SignatureError) as why:
        err.write(f"{why}\n")
        return 2


def box_of(options: Namespace) -> Box:
    """The box's folders: as told, as systemd names them, or in the user's home. Raises OSError."""
    data, run = box_folders(options.data_dir, options.run_dir)
    data.mkdir(parents=True, exist_ok=True)
    if options.device is None:  # a mount needs the rights that its unit gives to that very user
        become_owner(data)
    return Box(Store(options.store or data / "config"), run, data, SystemClock())


def _source(options: Namespace) -> Source:
    """Raises ValueError."""
    place = _place(options, "where the stick is, or is to be mounted")
    return Source(place, options.device, stick.name_of_device(options.device) if options.device else "")


def _place(options: Namespace, what: str) -> Path:
    """Raises ValueError."""
    if options.place is None:
        raise ValueError(f"name {what}")
    place: Path = options.place
    return place


def _called(options: Namespace) -> str:
    device = options.device or options.place
    return f"stick {stick.name_of_device(device)}" if device else "stick"


def _manifest(folder: Path, out: TextIO) -> int:
    """What to write into appliance.yaml before it is signed. Raises OSError, ValueError."""
    bundles = sorted(one for one in (folder / stick.BUNDLES).iterdir() if one.is_dir())
    if not bundles:
        raise ValueError(f"{folder / stick.BUNDLES} holds no bundle; put bundles/NAME/ there")
    out.write(manifest.as_yaml({path: digest for one in bundles for path, digest in manifest.digests(one.name, one).items()}))
    return 0
