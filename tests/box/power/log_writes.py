"""Crash states from the log of the kernel's dm-log-writes target.

A disk with a volatile cache promises one thing: what was written before a flush that completed is there after a cut, and so
is a write that asked for FUA. Of everything else any part may be there, in any order. The log holds each write in the order
of its promises (Documentation/admin-guide/device-mapper/log-writes.rst; layout: drivers/md/dm-log-writes.c), so a state
after a cut is: all up to the last flush before it, and any subset of what came after.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")


class LogBroken(Exception):
    """This is no log of dm-log-writes, or it ends in the middle."""


@dataclass(frozen=True)
class Entry:
    """One write (``offset`` and ``length`` in bytes of the disk, ``at`` where its data lie in the log), flush, discard or
    mark (``text``)."""

    index: int
    flags: int
    offset: int
    length: int
    at: int
    text: str = ""


@dataclass(frozen=True)
class Cut:
    """A cut after entry ``index``: ``durable`` = all up to here is on the disk, ``kept`` = what of the rest is, too."""

    index: int
    durable: int
    kept: frozenset[int]


def read_log(log: BinaryIO) -> list[Entry]:
    """The log's entries in order. Raises LogBroken."""
    head = log.read(_SUPER.size)
    if len(head) < _SUPER.size:
        raise LogBroken("the log is shorter than its first block")
    magic, version, count, sector = _SUPER.unpack(head)
    if magic != MAGIC or version != 1 or sector not in (512, 1024, 2048, 4096):
        raise LogBroken(f"no log of dm-log-writes: magic {magic:#x}, version {version}, sector {sector}")
    entries, at = [], sector
    for index in range(count):
        log.seek(at)
        block = log.read(sector)
        if len(block) < sector:
            raise LogBroken(f"entry {index} of {count} is cut off")
        first, sectors, flags, text_bytes = _ENTRY.unpack_from(block)
        at += sector
        text = block[_ENTRY.size : _ENTRY.size + text_bytes].rstrip(b"\0").decode("utf-8", "replace") if flags & MARK else ""
        entries.append(Entry(index, flags, first * sector, sectors * sector, at, text))
        if not flags & (DISCARD | MARK):
            at += sectors * sector
    return entries


def cut_at(entries: list[Entry], index: int, chance: random.Random) -> Cut:
    """One state after a cut that came when ``index`` entries were in the log."""
    # A flush that carries data promises what came before it, not its own data, unless it asks for FUA as well.
    flushes = [one for one in entries[:index] if one.flags & FLUSH]
    durable = max((one.index + (not one.length or bool(one.flags & FUA)) for one in flushes), default=0)
    after = entries[durable:index]
    share = chance.random()  # from a cache that wrote hardly anything to one that wrote nearly all
    kept = {one.index for one in after if one.flags & FUA or chance.random() < share}
    return Cut(index, durable, frozenset(kept))


def cuts(entries: list[Entry], count: int, seed: int, first: int = 0) -> Iterator[Cut]:
    """``count`` cuts at random places from entry ``first`` on."""
    chance = random.Random(seed)
    for _ in range(count):
        yield cut_at(entries, chance.randint(first, len(entries)), chance)


def replay(log: BinaryIO, entries: list[Entry], cut: Cut, disk: Path) -> None:
    """Write into ``disk``, which holds what was there before the log began, what is there after ``cut``."""
    with open(disk, "r+b") as target:
        for one in entries[: cut.index]:
            if one.index >= cut.durable and one.index not in cut.kept:
                continue
            if one.flags & MARK or not one.length:
                continue
            target.seek(one.offset)
            if one.flags & DISCARD:  # a discarded block may read as anything: zeros are the unkindest that is common
                target.write(bytes(one.length))
            else:
                log.seek(one.at)
                target.write(log.read(one.length))


def marks(entries: list[Entry], cut: Cut) -> list[str]:
    """What had been promised when the power went."""
    return [one.text for one in entries[: cut.index] if one.flags & MARK]
