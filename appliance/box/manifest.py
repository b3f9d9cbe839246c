"""The digests of bundle files that stand in a configuration (``integrity``): a signature over it covers the models too."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

BUNDLES = "bundles"
_CHUNK = 1 << 20


def digests(name: str, folder: Path) -> dict[str, str]:
    """``bundles/NAME/FILE`` -> ``sha256:…`` of every file in a bundle's folder, by name. Raises OSError."""
    return {f"{BUNDLES}/{name}/{path.relative_to(folder).as_posix()}": _digest(path) for path in _files(folder)}


def as_yaml(found: Mapping[str, str]) -> str:
    """The section to write into appliance.yaml."""
    return "integrity:\n" + "".join(f"  {path}: {digest}\n" for path, digest in sorted(found.items()))


def broken(integrity: Mapping[str, str], folders: Mapping[str, Path], whole: bool) -> list[tuple[str, str, str]]:
    """(path, what is wrong, what to do) of each file that is not as ``integrity`` has it. ``folders``: the bundles that the
    station uses, by name; ``whole``: every one of their files has to be named. Raises OSError."""
    have = {path: digest for name, folder in sorted(folders.items()) for path, digest in digests(name, folder).items()}
    found: list[tuple[str, str, str]] = []
    for path, digest in integrity.items():
        if path not in have:
            found.append((path, "no such file came with it", "copy the bundle anew, or take the line out"))
        elif have[path] != digest:
            found.append((path, f"the file's digest is {have[path]}", "copy the bundle anew, or make the list anew and sign it"))
    if whole:
        for path in sorted(have.keys() - integrity.keys()):
            found.append((path, "is not named, so nothing signs it", "add it: `appliance usb manifest` prints the whole list"))
    return found


def _files(folder: Path) -> list[Path]:
    """Plain files below, sorted. Raises OSError for anything else."""
    found: list[Path] = []
    for place, _folders, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if not stat.S_ISREG(path.lstat().st_mode):
                raise OSError(f"{path} is no plain file")
            found.append(path)
    return sorted(found)


def _digest(path: Path) -> str:
    taken = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            taken.update(chunk)
    return "sha256:" + taken.hexdigest()
