"""The reader of dm-log-writes' log, on logs written by hand after the kernel's layout."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest

from tests.box.power.log_writes import (
    _ENTRY,
    _SUPER,
    DISCARD,
    FLUSH,
    FUA,
    MAGIC,
    MARK,
    LogBroken,
    cut_at,
    cuts,
    marks,
    read_log,
    replay,
)  # fmt: skip

S = 512


def a_log(*entries: tuple[int, int, bytes | str]) -> io.BytesIO:
    """(flags, sector, data of whole sectors, or a mark's text)."""
    out = _SUPER.pack(MAGIC, 1, len(entries), S).ljust(S, b"\0")
    for flags, sector, data in entries:
        if isinstance(data, str):
            out += (_ENTRY.pack(sector, 0, flags, len(data) + 1) + data.encode() + b"\0").ljust(S, b"\0")
            continue
        out += _ENTRY.pack(sector, len(data) // S, flags, 0).ljust(S, b"\0")
        out += b"" if flags & DISCARD else data
    return io.BytesIO(out)


def block(letter: str) -> bytes:
    return letter.encode() * S


LOG = [
    (0, 0, block("a")), (0, 1, block("b")), (FLUSH, 0, b""), (MARK, 0, "acked 1"),
    (0, 0, block("c")), (FUA, 2, block("d")), (0, 3, block("e") * 2), (DISCARD, 1, block("x")), (FLUSH, 0, b""),
]  # fmt: skip


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(block("-") * 8)
    return path


def after(index: int, disk: Path, seed: int) -> str:
    log = a_log(*LOG)
    entries = read_log(log)
    disk.write_bytes(block("-") * 8)
    replay(log, entries, cut_at(entries, index, random.Random(seed)), disk)
    return disk.read_bytes()[::S].decode().replace("\0", "0")


def test_what_was_flushed_is_there_and_of_the_rest_any_part(disk: Path) -> None:
    assert {after(3, disk, seed) for seed in range(50)} == {"ab------"}
    assert {after(9, disk, seed) for seed in range(50)} == {"c0dee---"}
    seen = {after(8, disk, seed) for seed in range(300)}
    assert seen == {first + second + "d" + third + "---" for first in "ac" for second in "b0" for third in ("--", "ee")}


def test_nothing_is_promised_before_the_first_flush(disk: Path) -> None:
    assert {after(2, disk, seed) for seed in range(100)} == {"--------", "a-------", "-b------", "ab------"}


def test_a_flush_that_carries_data_does_not_promise_its_own(disk: Path) -> None:
    log = a_log((0, 0, block("a")), (FLUSH, 1, block("b")), (FLUSH | FUA, 2, block("c")))
    entries = read_log(log)
    seen = set()
    for seed in range(50):
        disk.write_bytes(block("-") * 4)
        replay(log, entries, cut_at(entries, 2, random.Random(seed)), disk)
        seen.add(disk.read_bytes()[::S].decode())
    assert seen == {"a---", "ab--"}
    assert cut_at(entries, 3, random.Random(1)).durable == 3


def test_marks_tell_what_had_been_promised() -> None:
    entries = read_log(a_log(*LOG))
    assert marks(entries, cut_at(entries, 4, random.Random(1))) == ["acked 1"]
    assert marks(entries, cut_at(entries, 3, random.Random(1))) == []
    assert all(cut.durable <= cut.index <= len(entries) for cut in cuts(entries, 200, seed=3))


def test_something_else_or_half_a_log_is_refused() -> None:
    with pytest.raises(LogBroken, match="magic"):
        read_log(io.BytesIO(bytes(4096)))
    with pytest.raises(LogBroken, match="entry 8 of 9 is cut off"):
        read_log(io.BytesIO(a_log(*LOG).getvalue()[:-1]))
