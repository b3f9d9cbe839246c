"""What leaves for the broker: committed entries in seq order, a window at a time; the cursor moves with the acks. Pure.

At least once: what was not acknowledged when a connection broke is sent again on the next one, unchanged.
"""

from __future__ import annotations

from collections import deque

from appliance.ports import Publisher
from appliance.report.ledger import Ledger

WINDOW = 64
CURSOR = "mqtt"


class Outbox:
    """A window of entries under way. ``acked``: everything up to it was acknowledged."""

    def __init__(self, ledger: Ledger, prefix: str) -> None:
        self._ledger, self._prefix = ledger, prefix
        self.acked = ledger.cursor(CURSOR)
        self._sent = self.acked
        self._under_way: deque[tuple[int, int]] = deque()
        self._done: set[int] = set()

    @property
    def backlog(self) -> int:
        """Committed entries not yet acknowledged."""
        return self._ledger.committed_seq - self.acked

    def connection_lost(self) -> None:
        """Begin again behind the last acknowledged entry."""
        self._under_way.clear()
        self._done.clear()
        self._sent = self.acked

    def send(self, publisher: Publisher) -> None:
        """Fill the window."""
        room = WINDOW - len(self._under_way)
        if room <= 0 or self._ledger.committed_seq <= self._sent:
            return
        for seq, kind, body in self._ledger.after(self._sent, room):
            topic = f"{self._prefix}/{'verdict' if kind == 'part' else 'event'}"
            mid = publisher.publish(topic, body, qos=1, retain=False)
            if mid is None:
                return
            self._under_way.append((seq, mid))
            self._sent = seq

    def acknowledged(self, mid: int) -> None:
        """The broker has message ``mid``."""
        self._done.add(mid)
        while self._under_way and self._under_way[0][1] in self._done:
            seq, first = self._under_way.popleft()
            self._done.discard(first)
            self.acked = seq
            self._ledger.set_cursor(CURSOR, seq)
