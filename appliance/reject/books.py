"""The books in memory: parts in flight and what reportd has not acknowledged, in a file mapped under ``/run``.

A killed process loses nothing and never waits for a disk. Fixed size; every slot carries its key, a version and a
checksum that is written last; a change goes to a fresh slot before the old one is freed, so at each instant one
whole copy lies there. The header is kept twice and written in turn.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections import deque
from dataclasses import dataclass
from pathlib import Path

SLOTS = 50_000
SLOT_BYTES = 512
_MAGIC = b"PARTS1\0\0"
_SLOT = struct.Struct("<IBxHIQ")  # crc, kind (0 = free), length, version, key
_HEADER = struct.Struct("<I8sIQQQ?16s32s")  # crc, magic, version, next_part, next_n, alive_ns, clean, journal, run
_HEADER_BYTES = 512
ROOM = SLOT_BYTES - _SLOT.size
PART, JOURNAL = 1, 2


@dataclass
class Header:
    """What survives a kill beside the slots. ``clean``: the last process closed its books itself."""

    next_part: int = 1
    next_n: int = 1
    alive_ns: int = 0
    clean: bool = True
    journal: str = ""
    run: str = ""


class BooksFull(Exception):
    """No slot is free."""


class BooksBroken(Exception):
    """The file cannot be used as it is, and why."""


class Books:
    """Slots by (kind, key) over any writable buffer; ``open_books`` gives one over a file."""

    def __init__(self, buffer: mmap.mmap | bytearray, slots: int = SLOTS) -> None:
        self._buffer = buffer
        self._slots = slots
        self._where: dict[tuple[int, int], int] = {}
        self._version = 0
        self._header_version = 0
        self._free: deque[int] = deque()
        self.header = Header()

    @staticmethod
    def bytes_for(slots: int) -> int:
        """Size of the buffer for so many slots."""
        return 2 * _HEADER_BYTES + slots * SLOT_BYTES

    def load(self) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """Read what lies there: (open parts by number, journalled messages by n). Torn slots are taken as free."""
        self._load_header()
        newest: dict[tuple[int, int], tuple[int, int]] = {}
        used = bytearray(self._slots)
        stale: list[int] = []
        for index in range(self._slots):
            if not self._buffer[self._at(index) + 4]:
                continue
            stale.append(index)
            found = self._read(index)
            if found is None:
                continue
            key, version, _ = found
            self._version = max(self._version, version)
            if key not in newest or version > newest[key][0]:
                newest[key] = (version, index)
        for key, (_, index) in newest.items():
            self._where[key] = index
            used[index] = 1
        self._free = deque(index for index in range(self._slots) if not used[index])
        for index in stale:  # only pages that were written: the rest of the file stays unallocated
            if not used[index]:
                self._buffer[self._at(index) + 4] = 0
        parts = {key[1]: self._payload(index) for key, index in self._where.items() if key[0] == PART}
        journal = {key[1]: self._payload(index) for key, index in self._where.items() if key[0] == JOURNAL}
        return parts, journal

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def half_full(self) -> bool:
        return len(self._free) * 2 < self._slots

    def put(self, kind: int, key: int, payload: bytes) -> None:
        """Keep ``payload`` (at most ROOM bytes) under (kind, key), in place of what was there. Raises BooksFull."""
        if len(payload) > ROOM:
            raise ValueError(f"a message of {len(payload)} bytes does not fit a slot of {ROOM}")
        if not self._free:
            raise BooksFull(f"all {self._slots} slots are in use")
        index = self._free.popleft()
        at = self._at(index)
        self._version += 1
        start = at + _SLOT.size
        self._buffer[start : start + len(payload)] = payload
        head = _SLOT.pack(0, kind, len(payload), self._version & 0xFFFFFFFF, key)
        crc = zlib.crc32(payload, zlib.crc32(head[4:]))
        # The checksum makes the slot valid: head and payload lie there before it does.
        self._buffer[at + 4 : at + _SLOT.size] = head[4:]
        self._buffer[at : at + 4] = crc.to_bytes(4, "little")
        old = self._where.get((kind, key))
        self._where[kind, key] = index
        if old is not None:
            self._release(old)

    def drop(self, kind: int, key: int) -> None:
        """Forget (kind, key), if it is there."""
        index = self._where.pop((kind, key), None)
        if index is not None:
            self._release(index)

    def write_header(self) -> None:
        """Put ``header`` down, into the copy that is not the newest."""
        self._header_version += 1
        one = self.header
        body = _HEADER.pack(
            0, _MAGIC, self._header_version, one.next_part, one.next_n, one.alive_ns, one.clean,
            one.journal.encode(), one.run.encode(),
        )  # fmt: skip
        at = (self._header_version & 1) * _HEADER_BYTES
        self._buffer[at + 4 : at + _HEADER.size] = body[4:]
        self._buffer[at : at + 4] = zlib.crc32(body[4:]).to_bytes(4, "little")

    def _load_header(self) -> None:
        for at in (0, _HEADER_BYTES):
            raw = bytes(self._buffer[at : at + _HEADER.size])
            crc, magic, version, next_part, next_n, alive_ns, clean, journal, run = _HEADER.unpack(raw)
            if magic != _MAGIC or crc != zlib.crc32(raw[4:]) or version <= self._header_version:
                continue
            self._header_version = version
            self.header = Header(
                next_part, next_n, alive_ns, clean, journal.rstrip(b"\0").decode(), run.rstrip(b"\0").decode()
            )

    def _at(self, index: int) -> int:
        return 2 * _HEADER_BYTES + index * SLOT_BYTES

    def _read(self, index: int) -> tuple[tuple[int, int], int, int] | None:
        at = self._at(index)
        head = bytes(self._buffer[at : at + _SLOT.size])
        crc, kind, length, version, key = _SLOT.unpack(head)
        if not kind or length > ROOM:
            return None
        payload = self._buffer[at + _SLOT.size : at + _SLOT.size + length]
        if crc != zlib.crc32(payload, zlib.crc32(head[4:])):
            return None
        return (kind, key), version, length

    def _payload(self, index: int) -> bytes:
        at = self._at(index)
        length = _SLOT.unpack_from(self._buffer, at)[2]
        return bytes(self._buffer[at + _SLOT.size : at + _SLOT.size + length])

    def _release(self, index: int) -> None:
        self._buffer[self._at(index) + 4] = 0
        self._free.append(index)


def open_books(path: Path, slots: int = SLOTS) -> Books:
    """The books over ``path``; made with zeros when absent. Raises BooksBroken when the file has another size."""
    wanted = Books.bytes_for(slots)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size not in (0, wanted):
            raise BooksBroken(f"{path}: {size} bytes, not {wanted}: of another version; move it away to start anew")
        if not size:
            os.ftruncate(descriptor, wanted)
        return Books(mmap.mmap(descriptor, wanted), slots)
    finally:
        os.close(descriptor)
