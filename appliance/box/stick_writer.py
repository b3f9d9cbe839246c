"""Writes to a stick: its RESULT.txt, and what was asked for beside it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from appliance.box.stick import CHUNK, LIMITS, Limits, Source, at_hand, in_child
from appliance.ports import Clock

RESULT = "RESULT.txt"
_RESULT_ELSE = "APPLIANCE-RESULT.txt"  # where a folder stands in its place


def write_stick(source: Source, result: bytes, files: list[Path], clock: Clock, limits: Limits = LIMITS) -> str:
    """RESULT.txt, then ``files`` beside it; returns what could not be written, in words, "" = all was. Raises StickDead."""

    def work(moved: Callable[[], None]) -> Any:
        with at_hand(source, writable=True):
            return _write_all(source.place, result, files, moved)

    return str(in_child(source, work, clock, limits))


def _write_all(place: Path, result: bytes, files: list[Path], moved: Callable[[], None]) -> str:
    """What could not be written, in words. Raises OSError where the place itself is gone."""
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        told = [_write_result(folder, result)]
        for path in files:
            told.append(_write_file(folder, path, moved))
        os.fsync(folder)
    finally:
        os.close(folder)
    return "; ".join(filter(None, told))


def _write_result(folder: int, result: bytes) -> str:
    """In the old one's place: a result of another day must not stand there. On a full stick as much of it as fits."""
    for name in (RESULT, _RESULT_ELSE):
        try:
            _make_room(folder, name)
        except OSError as why:
            if why.errno in (errno.EISDIR, errno.EPERM):  # a folder of that name; unlink(2) says EPERM on FAT
                continue
            return f"{name} cannot be written ({why.strerror})"
        return _whole(folder, name, lambda: iter([result]))
    return f"{RESULT} and {_RESULT_ELSE} are both folders; remove them"


def _write_file(folder: int, path: Path, moved: Callable[[], None]) -> str:
    def chunks() -> Iterator[bytes]:
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
                moved()

    room = os.fstatvfs(folder)
    if room.f_bavail * room.f_frsize < path.stat().st_size:
        return f"{path.name} was not written: it has {path.stat().st_size} bytes and the stick has less left"
    try:
        _make_room(folder, path.name)
    except OSError as why:
        return f"{path.name} was not written ({why.strerror})"
    told = _whole(folder, path.name, chunks)
    if told:
        _make_room(folder, path.name)  # half an archive is none
    return told


def _make_room(folder: int, name: str) -> None:
    """Raises OSError."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return


def _whole(folder: int, name: str, chunks: Callable[[], Iterator[bytes]]) -> str:
    """Write a file that is not there; what went wrong, in words."""
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o644, dir_fd=folder)
        try:
            for chunk in chunks():
                while chunk:
                    chunk = chunk[os.write(descriptor, chunk) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as why:
        return f"{name} was not written whole ({why.strerror})"
    return ""
