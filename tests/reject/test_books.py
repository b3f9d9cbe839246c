"""The books in mapped memory: whole at every byte of a write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.reject.books import JOURNAL, PART, ROOM, Books, BooksBroken, BooksFull, open_books

SLOTS = 6


class Dying(bytearray):
    """Memory of a process that is killed after so many bytes were written."""

    left = 10**9

    def __setitem__(self, key, value):
        if isinstance(key, slice) and isinstance(value, (bytes, bytearray, memoryview)):
            take = min(self.left, len(value))
            start = key.start or 0
            super().__setitem__(slice(start, start + take), value[:take])
            self.left -= take
            if take < len(value):
                raise SystemExit
            return
        if not self.left:
            raise SystemExit
        self.left -= 1
        super().__setitem__(key, value)


def fresh() -> Dying:
    return Dying(Books.bytes_for(SLOTS))


@pytest.mark.parametrize("written", range(0, 200))
def test_a_kill_at_any_byte_leaves_the_old_or_the_new_copy_whole(written: int) -> None:
    memory = fresh()
    books = Books(memory, SLOTS)
    books.load()
    books.put(PART, 7, b"old" * 10)
    books.header.journal, books.header.next_part = "j", 8
    books.write_header()
    memory.left = written
    try:
        books.put(PART, 7, b"new" * 10)
        books.header.next_part = 9
        books.write_header()
    except SystemExit:
        pass
    memory.left = 10**9
    again = Books(memory, SLOTS)
    parts, _ = again.load()
    assert parts[7] in (b"old" * 10, b"new" * 10)
    assert again.header.next_part in (8, 9) and again.header.journal == "j"
    assert again.free == SLOTS - 1


def test_full_books_say_so_and_an_oversized_message_is_refused() -> None:
    books = Books(fresh(), SLOTS)
    books.load()
    for key in range(SLOTS):
        books.put(JOURNAL, key, b"x")
    with pytest.raises(BooksFull):
        books.put(PART, 1, b"x")
    books.drop(JOURNAL, 0)
    with pytest.raises(ValueError, match="does not fit"):
        books.put(PART, 1, b"x" * (ROOM + 1))


@given(st.lists(st.tuples(st.sampled_from([PART, JOURNAL]), st.integers(1, 4), st.binary(min_size=1, max_size=60)), max_size=30))
def test_what_is_put_is_what_is_loaded(steps) -> None:
    memory = fresh()
    books = Books(memory, SLOTS)
    books.load()
    wanted: dict[tuple[int, int], bytes] = {}
    for kind, key, payload in steps:
        if payload[0] % 3 == 0:
            books.drop(kind, key)
            wanted.pop((kind, key), None)
        elif (kind, key) in wanted or len(wanted) < SLOTS - 1:
            books.put(kind, key, payload)
            wanted[kind, key] = payload
    parts, journal = Books(memory, SLOTS).load()
    assert {**{(PART, k): v for k, v in parts.items()}, **{(JOURNAL, k): v for k, v in journal.items()}} == wanted


def test_a_file_of_another_size_is_refused_with_what_to_do(tmp_path) -> None:
    path = tmp_path / "parts.state"
    path.write_bytes(b"x" * 100)
    with pytest.raises(BooksBroken, match="move it away"):
        open_books(path, SLOTS)
    path.unlink()
    assert open_books(path, SLOTS).load() == ({}, {})
