"""The ledger: chained, counted, dedup'd, verified; and what leaves for the broker."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.messages import Detail, Event, PartClosed, Stored
from appliance.report.ledger import Ledger, LedgerError
from appliance.report.outbox import WINDOW, Outbox
from appliance.report.record import canonical
from appliance.report.reporter import WAIT_FOR_DETAIL_NS, Reporter
from appliance.report.verify import export, show, verify, verify_verb

MODEL = {"name": "m", "digest": "sha256:1", "precision": "int8", "engine": "e"}


def closed(n: int, verdict: str = "pass", run: str = "r1", answered: bool = False) -> PartClosed:
    return PartClosed(
        n, n, run, n * 10**9, 1_767_225_600_000_000 + n, "synced", verdict, None, 0.123456, 0.5, -1, "accept", "verdict", False,
        "unwatched", answered, 1.0, 0.2, 1.5, 0.1, 12.34567, 808.0, 795.65433, 828.0, None, "r", 1,
    )  # fmt: skip


def filled(path: Path, parts: int = 10) -> None:
    ledger = Ledger(path, "a/b", True)
    for n in range(1, parts + 1):
        ledger.append_part("j", closed(n, "fail" if n % 3 == 0 else "pass"), None, [])
    ledger.append_event("j", Event(parts + 1, "alarm_raised", 0, 0, "synced", {"code": "late"}, "r1"))
    ledger.commit()
    ledger.close()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8)
        | st.floats(-1e6, 1e6).map(lambda value: round(value, 4)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=12,
    )
)  # fmt: skip
def test_canonical_json_is_what_any_language_gives(value) -> None:
    wanted = json.dumps({"v": value}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert json.loads(canonical({"v": value})) == json.loads(wanted)
    if "\\u" not in wanted and "\x7f" not in wanted:
        assert canonical({"v": value}).decode() == wanted


def test_a_whole_ledger_verifies_and_exports_and_shows(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    filled(path)
    assert verify(path)[0] and "11 entries" in verify(path)[1]
    out = io.StringIO()
    export(path, out, "jsonl")
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [row["seq"] for row in rows] == list(range(1, 12)) and rows[1]["prev"] == rows[0]["hash"]
    out = io.StringIO()
    export(path, out, "csv")
    assert len(out.getvalue().splitlines()) == 11
    out = io.StringIO()
    assert show(path, 3, out) == 0 and "fail" in out.getvalue()
    assert show(path, 99, out) == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("UPDATE entries SET body = replace(body, '\"fail\"', '\"pass\"') WHERE seq = 6", "seq 6 (part 6)"),
        ("UPDATE entries SET hash = 'f' || substr(hash, 2) WHERE seq = 4", "seq 4 (part 4)"),
        ("UPDATE entries SET verdict = 'pass' WHERE seq = 3", "seq 3 (part 3)"),
        ("UPDATE entries SET part = 70 WHERE seq = 7", "seq 7"),
        ("DELETE FROM entries WHERE seq = 5", "entries 5 to 5 are missing"),
        ("UPDATE entries SET seq = CASE seq WHEN 4 THEN 105 WHEN 5 THEN 4 END WHERE seq IN (4, 5)", "seq 4"),
    ],
)
def test_every_alteration_names_its_record(tmp_path: Path, change: str, named: str) -> None:
    path = tmp_path / "ledger.sqlite"
    filled(path)
    database = sqlite3.connect(path)
    database.execute(change)
    database.commit()
    database.close()
    out = io.StringIO()
    assert verify_verb(path, out) == 4
    assert named in out.getvalue()


def test_one_byte_edited_in_the_file_names_the_record(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    filled(path)
    raw = path.read_bytes()
    at = raw.index(b'"part":8,')
    path.write_bytes(raw[: at + 7] + b"9" + raw[at + 8 :])
    out = io.StringIO()
    assert verify_verb(path, out) == 4
    assert "(part 8)" in out.getvalue()


def test_no_ledger_there_is_told_apart_from_a_broken_one(tmp_path: Path) -> None:
    assert verify_verb(tmp_path / "none.sqlite", io.StringIO()) == 2
    (tmp_path / "not.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(LedgerError, match="move it away"):
        Ledger(tmp_path / "not.sqlite", "a", True)


def test_nothing_is_acknowledged_before_it_is_on_disk_and_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite", "a", True)
    reporter = Reporter(ledger)
    ledger._db.execute("PRAGMA max_page_count = 12")
    for n in range(1, 200):
        reporter.on_message(closed(n), "j", n)
    reporter.join(0)
    assert reporter.flush() == {} and ledger.trouble and ledger.waiting == 199
    assert ledger.counts["triggers"] == 0
    assert json.loads(reporter.retained["alarm/ledger_disk_full"])["raised"]
    ledger._db.execute("PRAGMA max_page_count = 100000")
    assert reporter.flush() == {"j": 199} and ledger.trouble is None
    assert ledger.counts["triggers"] == 199 == ledger.counts["pass"]
    assert not json.loads(reporter.retained["alarm/ledger_disk_full"])["raised"]
    ledger.close()
    assert verify(tmp_path / "l.sqlite")[0]


def test_what_comes_again_after_a_restart_is_booked_once(tmp_path: Path) -> None:
    for _ in range(2):
        ledger = Ledger(tmp_path / "l.sqlite", "a", True)
        reporter = Reporter(ledger)
        for n in range(1, 6):
            reporter.on_message(closed(n), "j", 0)
            reporter.on_message(closed(n), "j", 0)
        reporter.drain(0)
        assert ledger.counts["triggers"] == 5 and ledger.highest_part() == 5
        ledger.close()


def test_counters_are_of_the_run_and_published_only_when_committed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite", "a", True)
    reporter = Reporter(ledger)
    reporter.on_message(closed(1, "fail", "r1"), "j", 0)
    reporter.join(0)
    assert "counters" not in reporter.retained
    reporter.flush()
    assert json.loads(reporter.retained["counters"])["fail"] == 1
    reporter.on_message(closed(2, "pass", "r2"), "j", 0)
    reporter.drain(0)
    told = json.loads(reporter.retained["counters"])
    assert (told["run"], told["triggers"], told["pass"], told["fail"]) == ("r2", 1, 1, 0)


def test_a_record_waits_half_a_second_for_its_images_and_later_ones_are_events(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite", "a", True)
    reporter = Reporter(ledger)
    reporter.on_message(Detail(1, "r", 1, "sha256:2", MODEL, (), 1), "i", 0)
    reporter.on_message(closed(1, answered=True), "j", 0)
    reporter.on_message(closed(2), "j", 0)
    reporter.join(WAIT_FOR_DETAIL_NS - 1)
    assert ledger.waiting == 0, "seq follows the order of closing: part 2 waits behind part 1"
    reporter.join(WAIT_FOR_DETAIL_NS)
    assert ledger.waiting == 2
    reporter.on_message(Stored(1, "top", "f.jpg", "aa"), "i", 0)
    (late,) = reporter.take_late_images()
    assert late.kind == "image" and late.data["part"] == 1
    reporter.on_message(Detail(3, "r", 1, "sha256:2", MODEL, (), 1), "i", 0)
    reporter.on_message(Stored(3, "top", "g.jpg", "bb"), "i", 0)
    reporter.on_message(closed(3, answered=True), "j", 0)
    reporter.drain(0)
    body = json.loads(ledger.after(2, 1)[0][2])
    assert body["images"] == [{"camera": "top", "file": "g.jpg", "sha256": "bb"}] and body["model"] == MODEL


class Wire:
    """A publisher that takes what it is given; the test acknowledges."""

    def __init__(self) -> None:
        self.sent: deque[tuple[int, dict]] = deque()
        self.count = 0
        self.up = True

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> int | None:
        if not self.up:
            return None
        self.count += 1
        self.sent.append((self.count, json.loads(payload)))
        return self.count


@given(cuts=st.lists(st.integers(0, 90), max_size=6))
def test_every_entry_arrives_in_order_and_none_again_after_its_acknowledgement(tmp_path_factory, cuts: list[int]) -> None:
    folder = tmp_path_factory.mktemp("outbox")
    filled(folder / "l.sqlite", 150)
    ledger = Ledger(folder / "l.sqlite", "a/b", True)
    outbox, wire = Outbox(ledger, "a/b"), Wire()
    acked: list[int] = []
    for cut in [*cuts, 10**9]:
        outbox.send(wire)
        assert len(wire.sent) <= WINDOW
        while wire.sent and cut:
            mid, entry = wire.sent.popleft()
            assert entry["seq"] == len(acked) + 1
            acked.append(entry["seq"])
            outbox.acknowledged(mid)
            outbox.send(wire)
            cut -= 1
        wire.sent.clear()
        outbox.connection_lost()
    assert acked == list(range(1, 152)) and outbox.backlog == 0
    ledger.close()
    shutil.rmtree(folder)


def test_what_is_not_committed_never_leaves(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite", "a", True)
    outbox, wire = Outbox(ledger, "a"), Wire()
    ledger.append_part("j", closed(1), None, [])
    outbox.send(wire)
    assert not wire.sent
    ledger.commit()
    outbox.send(wire)
    assert len(wire.sent) == 1
