"""reportd's part of ``--fast`` in a process of its own, as on the box: the real joining, ledger, hashes and outbox.

Batches go there and acknowledgements come back one batch behind, at instants that only the count of entries decides:
which process was quicker changes nothing, so the same seed gives the same ``ledger_head``.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from appliance.messages import Message, decode, encode
from appliance.report.ledger import Ledger
from appliance.report.outbox import Outbox
from appliance.report.reporter import Reporter
from appliance.report.verify import verify

JOIN = "join"  # a batch's mark: append what is whole by now


class _Broker:
    """Takes everything at once and remembers what came, in order."""

    def __init__(self) -> None:
        self.taken = 0
        self.acks: deque[int] = deque()

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> int | None:
        self.taken += 1
        self.acks.append(self.taken)
        return self.taken


class FastBooks:
    """The near side. ``acknowledged`` is what rejectd's journal may let go of."""

    def __init__(self, file: Path, station: str) -> None:
        near, far = multiprocessing.get_context("spawn").Pipe()
        self._link: Connection = near
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_keep, args=(far, file, station), daemon=True)
        self._process.start()
        far.close()
        self._batch: list[tuple[str, bytes, int]] = []
        self._under_way = 0
        self.entries = 0
        """Entries handed over since the last commit."""

    def on_message(self, message: Message, journal: str, now_ns: int) -> None:
        """As reportd would hear it."""
        self._batch.append((journal, encode(message), now_ns))

    def join(self, now_ns: int) -> None:
        """Append what is whole by now."""
        self._batch.append((JOIN, b"", now_ns))

    def commit(self) -> int:
        """Hand the batch over to be put on disk; returns what the batch before it made durable, 0 = nothing yet."""
        self._link.send(self._batch)
        self._batch, self.entries = [], 0
        self._under_way += 1
        return self._receive() if self._under_way > 1 else 0

    def settle(self) -> int:
        """As ``commit``, and waits until all is on disk."""
        durable = self.commit()
        while self._under_way:
            durable = max(durable, self._receive())
        return durable

    def close(self) -> dict[str, Any]:
        """All is on disk: the ledger's counts, its run, and how many messages the broker took. It verifies the chain now."""
        self.settle()
        self._link.send(None)
        told: dict[str, Any] = self._link.recv()
        return told

    def verified(self) -> tuple[bool, str]:
        """What `ledger verify` says of the file; waits for it. Call it once, after ``close``."""
        whole, told = self._link.recv()
        self._process.join()
        return bool(whole), str(told)

    def _receive(self) -> int:
        self._under_way -= 1
        return int(self._link.recv())


def _keep(link: Connection, file: Path, station: str) -> None:
    """The far side."""
    gc.disable()
    ledger = Ledger(file, station, True)
    reporter, outbox, broker = Reporter(ledger), Outbox(ledger, station), _Broker()
    now_ns = 0
    while (batch := link.recv()) is not None:
        for journal, payload, now_ns in batch:
            if journal == JOIN:
                reporter.join(now_ns)
            else:
                reporter.on_message(decode(payload), journal, now_ns)
        durable = reporter.flush()
        reporter.take_committed()
        _publish(outbox, broker)
        reporter.changed.clear()
        link.send(durable.get("reject", 0))
    reporter.drain(now_ns)
    _publish(outbox, broker)
    told = {"counts": ledger.counts, "run": ledger.run, "taken": broker.taken}
    ledger.close()
    link.send(told)
    link.send(verify(file))


def _publish(outbox: Outbox, broker: _Broker) -> None:
    outbox.send(broker)
    while broker.acks:
        while broker.acks:
            outbox.acknowledged(broker.acks.popleft())
        outbox.send(broker)
