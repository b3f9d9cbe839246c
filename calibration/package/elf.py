"""What a shared library says of itself: its processor and which other libraries it needs. A reader of ELF64, no more."""

from __future__ import annotations

import struct
from collections.abc import Iterator

MAGIC = b"\x7fELF"
_PT_LOAD, _PT_DYNAMIC, _DT_NEEDED, _DT_STRTAB = 1, 2, 1, 5


def machine(data: bytes) -> int:
    """e_machine. Raises ValueError for what is no 64-bit little-endian ELF."""
    if data[:4] != MAGIC or data[4:6] != b"\x02\x01":
        raise ValueError("no 64-bit little-endian ELF")
    return int.from_bytes(data[18:20], "little")


def needed(data: bytes) -> list[str]:
    """The sonames of DT_NEEDED. Raises ValueError."""
    machine(data)
    try:
        headers = list(_program_headers(data))
        dynamic = next((data[offset : offset + size] for kind, offset, _address, size in headers if kind == _PT_DYNAMIC), b"")
        tags = list(struct.iter_unpack("<qQ", dynamic[: len(dynamic) // 16 * 16]))
        table = next((value for tag, value in tags if tag == _DT_STRTAB), None)
        if table is None:
            return []
        start = next(table - address + offset for kind, offset, address, size in headers
                     if kind == _PT_LOAD and address <= table < address + size)  # fmt: skip
        return [_text(data, start + value) for tag, value in tags if tag == _DT_NEEDED]
    except (struct.error, StopIteration) as why:
        raise ValueError(f"a broken ELF: {why}") from why


def _program_headers(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(type, offset in the file, address, bytes in the file) of each segment."""
    (first,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for index in range(count):
        kind, _flags, offset, address, _physical, length = struct.unpack_from("<IIQQQQ", data, first + index * size)
        yield kind, offset, address, length


def _text(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode("ascii")
