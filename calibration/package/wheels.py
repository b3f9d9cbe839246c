"""The vendored packages: fetched for the target by the lock's digests, once; unpacked without what a box never runs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from calibration.package import elf
from calibration.package.lock import LEFT_OUT, Pin, holds
from calibration.package.target import PackageError, Target
from calibration.package.tree import Entry

_PIP_S = 900
_READY = "ready"
# A wheel's tests, and what only a compiler, a type checker or pip reads. numpy.testing imports one file of its tests.
_UNUSED_FOLDERS = {"tests", "test"}
_KEPT = ("numpy/_core/tests/__init__.py", "numpy/_core/tests/_natype.py")
_UNUSED_ENDS = (".pyi", ".pyx", ".pxd", ".h", ".hpp", ".c", ".a", ".pyc", ".dist-info/RECORD", ".dist-info/INSTALLER")


@dataclass(frozen=True)
class Wheel:
    """One wheel as it lies on this disk. ``digest``: SHA-256 of the file, one of the lock's."""

    name: str
    version: str
    file: Path
    digest: str
    metadata: Message

    def requires(self, target: Target, extras: Iterable[str] = ()) -> list[Requirement]:
        """What it needs there, by its own words, if it is asked for with ``extras``."""
        told = (Requirement(line) for line in self.metadata.get_all("Requires-Dist", []))
        return [one for one in told if holds(one, target, extras)]


def fetch(pins: Sequence[Pin], target: Target, cache: Path) -> list[Wheel]:
    """A wheel for each of ``pins``, kept in ``cache`` under the target's name; the index is asked only when the pins
    changed or a file did. Raises PackageError."""
    folder = cache / target.tag
    lines = "\n".join(pin.line() for pin in pins) + "\n"
    asked = hashlib.sha256("\n".join([lines, *target.pip_arguments()]).encode()).hexdigest()
    if not _is_ready(folder, asked):
        _download(lines, target, folder)
        names = sorted(path.name for path in folder.glob("*.whl"))
        listed = [f"{_digest(folder / name)}  {name}" for name in names]
        (folder / _READY).write_text("\n".join([asked, *listed]) + "\n", encoding="utf-8")
    return _matched(pins, folder)


def _is_ready(folder: Path, asked: str) -> bool:
    ready = folder / _READY
    if not ready.is_file():
        return False
    first, *listed = ready.read_text(encoding="utf-8").splitlines()
    rows = [line.split("  ", 1) for line in listed]
    return first == asked and all((folder / name).is_file() and _digest(folder / name) == digest for digest, name in rows)


def _download(lines: str, target: Target, folder: Path) -> None:
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    wanted = partial / "wanted.txt"
    wanted.write_text(lines, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps",
               "--require-hashes", *target.pip_arguments(), "--dest", str(partial), "-r", str(wanted)]  # fmt: skip
    try:
        done = subprocess.run(command, env={**os.environ, "PIP_USER": "0"}, timeout=_PIP_S)
        if done.returncode:
            raise PackageError(f"the wheels for {target.tag} could not be fetched (pip's own words are above); nothing was kept")
        wanted.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except subprocess.TimeoutExpired as why:
        raise PackageError(f"the wheels for {target.tag} did not come within {_PIP_S} s; is there a way to the index?") from why
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _matched(pins: Sequence[Pin], folder: Path) -> list[Wheel]:
    by_digest = {_digest(path): path for path in sorted(folder.glob("*.whl"))}
    found: list[Wheel] = []
    for pin in pins:
        digest = next((one for one in pin.digests if one in by_digest), None)
        if digest is None:
            raise PackageError(f"{folder}: no wheel of {pin.name} {pin.version} with a digest of the lock; remove that folder")
        file = by_digest.pop(digest)
        name, version, _build, _tags = parse_wheel_filename(file.name)
        if (name, str(version)) != (pin.name, pin.version):
            raise PackageError(f"{file}: carries the digest of {pin.name} {pin.version}; the lock is wrong")
        found.append(Wheel(pin.name, pin.version, file, digest, _metadata(file)))
    if by_digest:
        strangers = ", ".join(path.name for path in by_digest.values())
        raise PackageError(f"{folder}: {strangers}: not asked for; remove that folder")
    return found


def _metadata(file: Path) -> Message:
    with zipfile.ZipFile(file) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA") and one.count("/") == 1)
        return BytesParser().parsebytes(archive.read(name))


def closure(wheels: Sequence[Wheel], dependencies: Iterable[str], target: Target) -> list[Wheel]:
    """Those that are needed by the wheels' own words, beginning at ``dependencies``. Raises PackageError where one is
    needed that is not there."""
    by_name = {wheel.name: wheel for wheel in wheels}
    waiting = [(Requirement(one), "pyproject.toml") for one in dependencies]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        what, whose = waiting.pop()
        name: str = canonicalize_name(what.name)
        asked = (name, frozenset(what.extras))  # its extras bring more, also where it is needed without them already
        if asked in seen or name in LEFT_OUT:
            continue
        if name not in by_name:
            raise PackageError(f"requirements.lock: {whose} needs {name} on {target.tag}, and the lock has none; make it anew")
        seen.add(asked)
        waiting += [(one, name) for one in by_name[name].requires(target, what.extras)]
    needed = {name for name, _extras in seen}
    return [wheel for wheel in wheels if wheel.name in needed]


def unpacked(wheel: Wheel, target: Target) -> Iterator[Entry]:
    """Its files as they stand in the folder of packages. Raises PackageError for a library of another processor and for a
    name that leads elsewhere."""
    with zipfile.ZipFile(wheel.file) as archive:
        for info in archive.infolist():
            place = None if info.is_dir() else _place(info.filename, wheel)
            if place is None:
                continue
            data = archive.read(info)
            _check_processor(data, f"{wheel.file.name}: {info.filename}", target)
            yield Entry(place, data)


def _place(name: str, wheel: Wheel) -> str | None:
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\\" in name:
        raise PackageError(f"{wheel.file.name}: {name!r} leads out of its folder")
    if parts[0].endswith(".data"):  # scripts, headers and manual pages of a wheel are not for a box
        if parts[1] not in ("purelib", "platlib"):
            return None
        parts = parts[2:]
    place = "/".join(parts)
    if place in _KEPT:
        return place
    if place.endswith(_UNUSED_ENDS) or _UNUSED_FOLDERS & set(parts[:-1]):
        return None
    return place


def _check_processor(data: bytes, what: str, target: Target) -> None:
    if data[:4] != elf.MAGIC:
        return
    found = elf.machine(data)
    if found != target.elf_machine:
        raise PackageError(f"{what}: is for ELF machine {found}, and {target.arch} is {target.elf_machine}")


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
