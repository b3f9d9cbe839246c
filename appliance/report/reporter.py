"""reportd's heart: joins accounts with details, keeps the ledger, says what is retained. No sockets: time is passed in."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from appliance.messages import Detail, Event, Health, InspectState, Message, PartClosed, Status, Stored
from appliance.report.ledger import Ledger
from appliance.report.record import image_entry, wall

COMMIT_NS = 40_000_000  # group commit: at most 50 ms from arrival to disk
WAIT_FOR_DETAIL_NS = 500_000_000


@dataclass
class _Told:
    """What inspectd said of one part."""

    detail: Detail | None = None
    images: list[Stored] = field(default_factory=list)
    closed: bool = False

    @property
    def whole(self) -> bool:
        return self.detail is not None and len(self.images) >= self.detail.images


class Reporter:
    """``retained``: topic (below the station's name) -> payload, what must stand on the broker at every connect."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.status: Status | None = None
        self.retained: dict[str, bytes] = {}
        self.changed: deque[str] = deque()
        self._queue: deque[tuple[str, PartClosed | Event, int]] = deque()
        self._told: dict[int, _Told] = {}
        self._commit_ns = 0
        self._health: dict[str, dict[str, Any]] = {}
        self._late_images: deque[Event] = deque()
        self._recorded: deque[tuple[int, PartClosed]] = deque()
        self._alarms: set[str] = set()

    def on_message(self, message: Message, journal: str, now_ns: int) -> None:
        """A message of rejectd or inspectd; ``journal`` is its link's."""
        if isinstance(message, (PartClosed, Event)):
            queued = any(one is message for _, one, _ in self._queue)
            if not queued and not self._already(journal, message.n):
                self._queue.append((journal, message, now_ns))
        elif isinstance(message, Detail):
            self._told.setdefault(message.part, _Told()).detail = message
        elif isinstance(message, Stored):
            self._image(message, now_ns)
        elif isinstance(message, Status):
            self._on_status(message)
        elif isinstance(message, InspectState):
            self._on_inspect(message)
        elif isinstance(message, Health):
            self._health[message.source] = message.values

    def step(self, now_ns: int) -> dict[str, int]:
        """Append what is whole (or has waited long enough), commit when due. Returns acknowledgements by journal."""
        self.join(now_ns)
        if now_ns < self._commit_ns:
            return {}
        self._commit_ns = now_ns + COMMIT_NS
        return self.flush()

    def join(self, now_ns: int) -> None:
        """Append what is whole, in the order in which it closed."""
        while self._queue and self._ready(self._queue[0], now_ns):
            self._append(*self._queue.popleft())

    def flush(self) -> dict[str, int]:
        """Commit now; counters are published after, never before."""
        before = self.ledger.counts.get("triggers"), self.ledger.run
        durable = self.ledger.commit()
        if durable and (self.ledger.counts.get("triggers"), self.ledger.run) != before:
            self.put_counters()
        self.own_alarm("ledger_disk_full", bool(self.ledger.trouble), self.ledger.trouble or "")
        return durable

    def drain(self, now_ns: int) -> dict[str, int]:
        """At the end: nothing waits for details any more."""
        while self._queue:
            self._append(*self._queue.popleft())
        return self.flush()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def own_event(self, kind: str, data: dict[str, Any], now_ns: int, wall_us: int, quality: Any) -> None:
        """An event of reportd's own, straight into the chain."""
        self.ledger.append_event(None, Event(0, kind, now_ns, wall_us, quality, data))

    def put(self, topic: str, value: Any) -> None:
        """Set a retained topic; told when it changed."""
        body = value.encode() if isinstance(value, str) else json.dumps(value, separators=(",", ":")).encode()
        if self.retained.get(topic) != body:
            self.retained[topic] = body
            self.changed.append(topic)

    def put_counters(self) -> None:
        """Committed counts, and beside them what is in flight: the sums hold at every instant."""
        in_flight = self.status.in_flight if self.status else 0
        self.put("counters", {**self.ledger.counts, "in_flight": in_flight, "run": self.ledger.run})

    def rejectd_gone(self) -> None:
        """Nobody tells the state any more."""
        self.status = None
        self.put("state", {"state": "fault", "reason": "rejectd does not answer", "since": None, "progress": 0.0})

    def own_alarm(self, code: str, raised: bool, what: str) -> bool:
        """An alarm of reportd's own, told when it changes. Returns whether it did."""
        if raised == (code in self._alarms):
            return False
        (self._alarms.add if raised else self._alarms.discard)(code)
        self.put(f"alarm/{code}", {"raised": raised, "latched": False, "text": what, "since": None})
        return True

    def not_raised(self, code: str) -> None:
        """Say so at the start: the broker may still hold what the process before us raised."""
        if code not in self._alarms:
            self.put(f"alarm/{code}", {"raised": False, "latched": False, "text": "", "since": None})

    def told_by(self, source: str) -> dict[str, Any]:
        """A process's own figures of the health topic."""
        return self._health.get(source, {})

    def health(self, own: dict[str, Any]) -> dict[str, Any]:
        """The health topic's payload."""
        return {**self._health, "report": own}

    # --- joining --------------------------------------------------------------------------------------------

    def _already(self, journal: str, n: int) -> bool:
        return self.ledger.seen(journal, n) or any(j == journal and one.n >= n for j, one, _ in self._queue)

    def _ready(self, entry: tuple[str, PartClosed | Event, int], now_ns: int) -> bool:
        _, message, arrived_ns = entry
        if not isinstance(message, PartClosed) or not message.answered:
            return True
        told = self._told.get(message.part)
        return (told is not None and told.whole) or now_ns - arrived_ns >= WAIT_FOR_DETAIL_NS

    def _append(self, journal: str, message: PartClosed | Event, _arrived_ns: int) -> None:
        if isinstance(message, Event):
            self.ledger.append_event(journal, message)
            return
        told = self._told.pop(message.part, None) or _Told()
        self._recorded.append((self.ledger.append_part(journal, message, told.detail, told.images), message))
        if told.detail is not None and not told.whole:
            told.closed = True
            self._told[message.part] = told
        while len(self._told) > 2000:  # details of parts that never close (rejectd was killed)
            self._told.pop(next(iter(self._told)))

    def _image(self, stored: Stored, now_ns: int) -> None:
        told = self._told.setdefault(stored.part, _Told())
        told.images.append(stored)
        if told.closed:
            event = Event(0, "image", now_ns, 0, "unset", {"part": stored.part, "image": image_entry(stored)})
            self._late_images.append(event)
            if told.whole:
                del self._told[stored.part]

    def take_late_images(self) -> list[Event]:
        """Images that came after their record: events to be stamped and appended."""
        events = list(self._late_images)
        self._late_images.clear()
        return events

    def take_committed(self) -> list[tuple[int, PartClosed]]:
        """(seq, part) of the records that came on disk since the last call."""
        committed = []
        while self._recorded and self._recorded[0][0] <= self.ledger.committed_seq:
            committed.append(self._recorded.popleft())
        return committed

    # --- topics ----------------------------------------------------------------------------------------------

    def _on_status(self, status: Status) -> None:
        self.status = status
        state = {"state": status.state, "reason": status.reason, "since": wall(status.since_us), "progress": status.progress}
        self.put("state", state)
        raised = {alarm.code: alarm for alarm in status.alarms}
        for code, alarm in raised.items():
            body = {"raised": True, "latched": alarm.latched, "text": alarm.text, "since": wall(alarm.since_us)}
            self.put(f"alarm/{code}", body)
        for topic in [topic for topic in self.retained if topic.startswith("alarm/")]:
            code = topic[6:]
            if code not in raised and code not in self._alarms:
                self.put(topic, {"raised": False, "latched": False, "text": "", "since": None})
        self.put_counters()

    def _on_inspect(self, state: InspectState) -> None:
        recipe = {"name": state.recipe, "number": state.recipe_number, "digest": state.recipe_digest}
        self.put("recipe", {**recipe, "state": state.state, "reason": state.reason, "models": state.models})
