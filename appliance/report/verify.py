"""Is the ledger complete and unaltered? And: export it, show one part's card. Reads only, also while reportd writes."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from appliance.report.record import GENESIS, canonical, chained, payload

Row = tuple[int, str, "int | None", str, "str | None", str, str]


def verify(path: Path) -> tuple[bool, str]:
    """(whole, told in words). The first broken entry is named. Raises OSError, sqlite3.Error."""
    expected, count, seq = GENESIS, 0, 0
    for row in _rows(path):
        broken = _broken(row, seq + 1, expected)
        if broken:
            return False, broken
        seq, expected = row[0], row[6]
        count += 1
    if not count:
        return True, "complete, unaltered: the ledger is empty"
    return True, f"complete, unaltered: {count} entries, last seq {seq}, head {expected}"


def _broken(row: Row, wanted_seq: int, prev: str) -> str | None:
    seq, kind, part, run, verdict, body, hash_ = row
    name = f"seq {seq}" + (f" (part {part})" if part is not None else f" ({kind})")
    if seq != wanted_seq:
        return f"broken: entries {wanted_seq} to {seq - 1} are missing before {name}"
    try:
        entry = json.loads(body)
    except ValueError:
        return f"broken: {name}: its text is no longer JSON"
    if not isinstance(entry, dict) or chained(body.encode()) != hash_:
        return f"broken: {name}: its text does not give its hash, it was altered"
    if canonical(entry) != body.encode():
        return f"broken: {name}: its text is not canonical"
    if entry.get("prev") != prev:
        return f"broken: {name}: it does not follow the entry before it"
    told = "part" if "part" in entry else "event"
    columns = (entry.get("seq"), told, entry.get("part"), entry.get("run"), entry.get("verdict"))
    if columns != (seq, kind, part, run, verdict):
        return f"broken: {name}: a column differs from its text"
    return None


def verify_verb(path: Path, out: TextIO) -> int:
    """Exit 0, 4 = broken, 2 = cannot be read."""
    try:
        whole, text = verify(path)
    except (OSError, sqlite3.Error, UnicodeDecodeError) as why:
        out.write(f"{path}: cannot be read as a ledger: {why}\n")
        return 4 if isinstance(why, (sqlite3.DatabaseError, UnicodeDecodeError)) and path.exists() else 2
    out.write(f"{path}: {text}\n")
    return 0 if whole else 4


def export(path: Path, out: TextIO, form: str) -> int:
    """All entries as JSON lines, or the parts as CSV."""
    if form == "jsonl":
        for row in _rows(path):
            out.write(payload(row[5].encode(), row[6]).decode() + "\n")
        return 0
    names = ("seq", "part", "time", "verdict", "cause", "score", "threshold", "disposition", "disposed_by", "fired", "hash")
    writer = csv.writer(out)
    writer.writerow(names)
    for row in _rows(path):
        if row[1] == "part":
            entry = {**json.loads(row[5]), "hash": row[6]}
            writer.writerow([entry[name] for name in names])
    return 0


def show(path: Path, part: int, out: TextIO) -> int:
    """One part's card, in words."""
    for row in _rows(path, "WHERE part = ?", (part,)):
        entry: dict[str, Any] = json.loads(row[5])
        for name in ("time", "verdict", "cause", "score", "threshold", "disposition", "disposed_by", "fired"):
            out.write(f"{name:>14}: {entry[name]}\n")
        for name in ("times_ms", "actuation", "recipe", "model", "regions", "images"):
            out.write(f"{name:>14}: {json.dumps(entry[name])}\n")
        out.write(f"{'hash':>14}: {row[6]}\n")
        return 0
    out.write(f"{path}: no part {part}\n")
    return 2


def _rows(path: Path, where: str = "", arguments: tuple[Any, ...] = ()) -> Iterator[Row]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no ledger there; name a ledger.sqlite")
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        yield from database.execute(
            f"SELECT seq, kind, part, run, verdict, body, hash FROM entries {where} ORDER BY seq", arguments
        )
    finally:
        database.close()
