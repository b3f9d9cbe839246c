"""The ledger: one append-only, hash-chained SQLite table of all parts and events, with group commit.

Nothing is acknowledged before it is on disk. When the disk refuses, what waits stays in memory and is tried again.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any

from appliance.messages import VERDICTS, Detail, Event, PartClosed, Stored
from appliance.report.record import GENESIS, canonical, chained, event_record, part_record, payload

log = logging.getLogger("appliance.ledger")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
  seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, part INTEGER, run TEXT NOT NULL, verdict TEXT,
  body TEXT NOT NULL, hash TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS entries_part ON entries (part) WHERE part IS NOT NULL;
CREATE TABLE IF NOT EXISTS links (journal TEXT PRIMARY KEY, n INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS cursors (name TEXT PRIMARY KEY, seq INTEGER NOT NULL);
"""


class LedgerError(Exception):
    """The ledger cannot be opened, and what to do."""


class Ledger:
    """Appends in memory, commits in groups. ``counts``: of the current run, committed entries only."""

    def __init__(self, path: Path, station: str, simulated: bool) -> None:
        self.station, self._simulated = station, simulated
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
            last = self._db.execute("SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
        except sqlite3.Error as why:
            raise LedgerError(f"{path}: cannot be used as a ledger ({why}); move it away to begin a new one") from why
        self._seq, self._head = last or (0, GENESIS)
        self._links: dict[str, int] = dict(self._db.execute("SELECT journal, n FROM links"))
        self._pending: list[tuple[int, str, int | None, str, str | None, str, str]] = []
        self._pending_links: dict[str, int] = {}
        self._cursors: dict[str, int] = dict(self._db.execute("SELECT name, seq FROM cursors"))
        self._pending_cursors: dict[str, int] = {}
        self.committed_seq = self._seq
        self.trouble: str | None = None
        self.run = ""
        self.counts: dict[str, int] = {}
        self.since = ""
        run = self._db.execute("SELECT run FROM entries WHERE run != '' ORDER BY seq DESC LIMIT 1").fetchone()
        self._begin_run(run[0] if run else "")

    # --- appending ------------------------------------------------------------------------------------------

    def seen(self, journal: str, n: int) -> bool:
        """Whether message ``n`` of a journal is here already (committed, or waiting to be)."""
        return n <= max(self._links.get(journal, 0), self._pending_links.get(journal, 0))

    def append_part(self, journal: str, part: PartClosed, detail: Detail | None, images: list[Stored]) -> int:
        """A part's record; counted when committed. Returns its ``seq``."""
        record = part_record(part, detail, images, self.station, self._simulated)
        self._append(record, "part", part.part, part.run, part.verdict)
        self._pending_links[journal] = part.n
        return self._seq

    def append_event(self, journal: str | None, event: Event) -> None:
        """An event; ``journal`` None for reportd's own."""
        self._append(event_record(event, self.station, self._simulated), "event", None, event.run or self.run, None)
        if journal is not None:
            self._pending_links[journal] = event.n

    def _append(self, record: dict[str, Any], kind: str, part: int | None, run: str, verdict: str | None) -> None:
        self._seq += 1
        record["seq"], record["prev"] = self._seq, self._head
        record["run"] = run
        body = canonical(record)
        self._head = chained(body)
        self._pending.append((self._seq, kind, part, run, verdict, body.decode(), self._head))

    # --- committing -----------------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Entries appended and not on disk."""
        return len(self._pending)

    def commit(self) -> dict[str, int]:
        """Put what waits on disk; returns journal -> highest n now durable. Empty when the disk refuses (see trouble)."""
        if not (self._pending or self._pending_cursors):
            return {}
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)", self._pending)
            self._db.executemany("INSERT OR REPLACE INTO links VALUES (?, ?)", self._pending_links.items())
            self._db.executemany("INSERT OR REPLACE INTO cursors VALUES (?, ?)", self._pending_cursors.items())
            self._db.execute("COMMIT")
        except sqlite3.Error as why:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if self.trouble is None:
                log.error("the ledger cannot be written (%s): %d entries wait; free disk space", why, len(self._pending))
            self.trouble = str(why)
            return {}
        self.trouble = None
        durable, self._pending_links = self._pending_links, {}
        self._links.update(durable)
        self._cursors.update(self._pending_cursors)
        self._pending_cursors = {}
        for _, kind, _, run, verdict, _, _ in self._pending:
            if run and run != self.run:
                self._begin_run(run)
            if kind == "part" and verdict is not None:
                self.counts[verdict] += 1
                self.counts["triggers"] += 1
        self.committed_seq = self._seq
        self._pending = []
        return durable

    # --- reading --------------------------------------------------------------------------------------------

    @property
    def head(self) -> str:
        """Hash of the newest entry."""
        return self._head

    def cursor(self, name: str) -> int:
        return self._pending_cursors.get(name, self._cursors.get(name, 0))

    def set_cursor(self, name: str, seq: int) -> None:
        """Remembered with the next commit."""
        self._pending_cursors[name] = seq

    def after(self, seq: int, limit: int) -> list[tuple[int, str, bytes]]:
        """(seq, kind, payload) of committed entries above ``seq``."""
        rows = self._db.execute(
            "SELECT seq, kind, body, hash FROM entries WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit)
        )
        return [(row[0], row[1], payload(row[2].encode(), row[3])) for row in rows]

    def highest_part(self) -> int:
        """The highest part number ever recorded."""
        return int(self._db.execute("SELECT coalesce(max(part), 0) FROM entries").fetchone()[0])

    def close(self) -> None:
        self.commit()
        self._db.close()

    def _begin_run(self, run: str) -> None:
        self.run = run
        self.counts = {name: 0 for name in (*VERDICTS, "triggers", "unconfirmed")}
        if not run:
            return
        rows = self._db.execute("SELECT verdict, count(*) FROM entries WHERE run = ? AND part NOT NULL GROUP BY 1", (run,))
        pending = {row[0] for row in self._pending}
        if pending:
            rows = self._db.execute(
                "SELECT verdict, count(*) FROM entries WHERE run = ? AND part NOT NULL AND seq < ? GROUP BY 1",
                (run, min(pending)),
            )
        for verdict, count in rows:
            self.counts[verdict] += count
            self.counts["triggers"] += count
