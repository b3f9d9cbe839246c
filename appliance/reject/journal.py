"""What rejectd has said and nobody has acknowledged: numbered, kept in the books, told again after a kill. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.messages import Event, PartClosed, decode, encode
from appliance.ports import Clock
from appliance.reject.books import JOURNAL, ROOM, Books, BooksFull


class Journal:
    """``waiting``: by number, oldest first; ``parts_waiting``: how many of these are parts; ``fresh``: not yet handed out.

    ``events_lost``: events for which no slot was left: parts keep the last ones."""

    def __init__(self, books: Books, clock: Clock) -> None:
        self._books, self._clock = books, clock
        self.waiting: dict[int, PartClosed | Event] = {}
        self.parts_waiting = 0
        self.events_lost = 0
        self.fresh: list[PartClosed | Event] = []

    def restore(self, kept: dict[int, bytes]) -> None:
        """Take over what the books hold."""
        for n in sorted(kept):
            message = decode(kept[n])
            if isinstance(message, (PartClosed, Event)):
                self._add(message)

    @property
    def next_n(self) -> int:
        return self._books.header.next_n

    def keep(self, message: PartClosed | Event) -> None:
        """Say it, until it is acknowledged. Raises BooksFull."""
        header = self._books.header
        header.next_n = message.n + 1
        self._books.put(JOURNAL, message.n, encode(message))
        self._books.write_header()
        self._add(message)
        self.fresh.append(message)

    def event(self, kind: str, data: dict[str, Any], now_ns: int) -> None:
        """Say that something happened."""
        wall_us, quality = self._clock.wall_us(now_ns), self._clock.quality()
        event = Event(self.next_n, kind, now_ns, wall_us, quality, data, self._books.header.run)
        if len(encode(event)) > ROOM:  # somebody's long words: their beginning is enough
            event = msgspec.structs.replace(event, data={key: _short(value) for key, value in data.items()})
        try:
            self.keep(event)
        except BooksFull:
            self.events_lost += 1

    def acknowledged(self, n: int) -> None:
        """Everything up to ``n`` is on disk."""
        while self.waiting and (first := next(iter(self.waiting))) <= n:
            message = self.waiting.pop(first)
            self.parts_waiting -= isinstance(message, PartClosed)
            self._books.drop(JOURNAL, first)

    def _add(self, message: PartClosed | Event) -> None:
        self.waiting[message.n] = message
        self.parts_waiting += isinstance(message, PartClosed)


def _short(value: Any) -> Any:
    return value.encode()[:60].decode(errors="ignore") if isinstance(value, str) else value
