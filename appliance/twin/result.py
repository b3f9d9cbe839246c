"""What a rehearsal gives: figures, the table, the JSON, the exit code. One shape for real and virtual time."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from appliance.report.verify import verify
from appliance.twin.score import VERDICTS, GateTimes, Score, Truth, books_closed, score

MOST_FALSE_REJECTS = 0.01


@dataclass
class Result:
    """A finished rehearsal."""

    score: Score
    ledger: dict[str, int]
    closed: bool
    closed_told: str
    problems: list[str] = field(default_factory=list)
    latency_ms: dict[str, Any] = field(default_factory=dict)
    actuation_error_us: dict[str, Any] = field(default_factory=dict)
    throughput_ppm: float = 0.0
    mqtt: dict[str, int] = field(default_factory=lambda: {"published": 0, "received": 0, "lost": 0, "duplicates": 0})
    modbus: dict[str, int] = field(default_factory=lambda: {"polls": 0, "errors": 0})
    ledger_head: str = ""
    seed: int = 0
    hard: bool = False
    photographs: bool = False
    steal_s: float | None = None
    wall_s: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The contract's keys, and what the table tells beside them."""
        one = self.score
        return {
            "parts": one.parts, "defective": one.defective,
            "escapes": one.escapes_gate + one.escapes_judge + one.escapes_faint,
            "escapes_by": {"gate": one.escapes_gate, "judge": one.escapes_judge + one.escapes_faint},
            "false_rejects": one.false_rejects, "good_lost": one.good_lost, "ledger": self.ledger,
            "books_closed": self.closed, "latency_ms": self.latency_ms, "actuation_error_us": self.actuation_error_us,
            "throughput_ppm": self.throughput_ppm, "mqtt": self.mqtt, "modbus": self.modbus,
            "ledger_head": self.ledger_head, "seed": self.seed, "simulated": True,
            "good_lost_outside_faults": one.good_lost_outside, "good_lost_unsparable": one.unsparable, "untracked": one.untracked,
            "recall_per_kind": {name: {"caught": caught, "of": of} for name, (caught, of) in sorted(one.per_kind.items())},
            "problems": self.failures(), "wall_s": self.wall_s, "steal_s": self.steal_s,
        }  # fmt: skip

    def failures(self) -> list[str]:
        """Why this rehearsal did not pass; empty = it did."""
        one, told = self.score, list(self.problems)
        if one.escapes_gate:
            told.append(f"{one.escapes_gate} escaped by the gate")
        if one.escapes_judge and not (self.hard or self.photographs):
            told.append(f"{one.escapes_judge} escaped by the judge")
        if not self.closed:
            told.append(f"the books are open: {self.closed_told}")
        if self.mqtt["lost"]:
            told.append(f"{self.mqtt['lost']} MQTT messages lost")
        if one.good and one.false_rejects > MOST_FALSE_REJECTS * one.good:
            told.append(f"{one.false_rejects} of {one.good} good parts falsely rejected: over 1 %")
        if one.untracked_outside:
            told.append(f"{one.untracked_outside} parts at the eye have no record")
        if one.good_lost_outside:
            told.append(f"{one.good_lost_outside} good parts lost outside of faults")
        return told

    def _steal(self) -> str:
        return "" if self.steal_s is None else f"; the machine lost {self.steal_s:.2f} s to steal"

    def print_table(self, out: TextIO) -> None:
        """For a person."""
        one = self.score
        judge = one.escapes_judge + one.escapes_faint
        rows = [
            ("parts", f"{one.parts}, {one.defective} defective, {self.throughput_ppm:g} parts/min"),
            ("escapes", f"{one.escapes_gate + judge}  (gate {one.escapes_gate}, judge {judge})"),
            ("false rejects", f"{one.false_rejects} of {one.good} good ({100 * one.false_rejects / max(1, one.good):.2f} %)"),
            ("good lost", f"{one.good_lost}  ({one.good_lost_outside} outside of faults, {one.unsparable} beside a reject)"),
            ("ledger", "  ".join(f"{name} {count}" for name, count in self.ledger.items())),
            ("books", ("closed, " if self.closed else "OPEN: ") + self.closed_told),
            ("MQTT", "  ".join(f"{name} {count}" for name, count in self.mqtt.items())),
            ("PLC", "  ".join(f"{name} {count}" for name, count in self.modbus.items())),
            ("trigger→verdict", _told(self.latency_ms, "ms") + self._steal()),
            ("gate, due→edge", _told(self.actuation_error_us, "µs")),
            ("ledger head", self.ledger_head),
        ]
        for name, text in rows:
            out.write(f"  {name:>16}  {text}\n")
        if self.hard or len(one.per_kind) and self.photographs:
            for name, (caught, of) in sorted(one.per_kind.items()):
                out.write(f"  {name:>16}  recall {caught} of {of}\n")
        for note in one.notes[:12]:
            out.write(f"  note: {note}\n")
        told = self.failures()
        out.write("  simulated: yes\n" + ("PASSED\n" if not told else "".join(f"FAILED: {line}\n" for line in told)))


def _told(values: dict[str, Any], unit: str) -> str:
    if values.get("p50") is None:
        return "nothing measured"
    return f"p50 {values['p50']:.1f} {unit}, p99 {values['p99']:.1f} {unit}, max {values['max']:.1f} {unit}"


def settle(
    truths: list[Truth], records: list[dict[str, Any]], half_pitch_ns: int, excused: list[tuple[int, int]],
    counters: dict[str, Any] | None, gate: GateTimes | None = None,
) -> Result:  # fmt: skip
    """Score and books."""
    closed, told = books_closed(records, counters)
    ledger = {name: sum(record["verdict"] == name for record in records) for name in VERDICTS}
    return Result(score(truths, records, half_pitch_ns, excused, gate), ledger, closed, told)


def read_truth(path: Path) -> list[Truth]:
    """The twin's own account, in the order of edges."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: row["edge_ns"])
    return [
        Truth(row["edge_ns"], row["kind"], row["size"], row["step"], row["bin"], row["arrive_ns"], row["leave_ns"])
        for row in rows
    ]


def read_ledger(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], str, bool, str]:
    """(records by trigger time, events, head, whole, told)."""
    whole, told = verify(path)
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        rows = database.execute("SELECT kind, body, hash FROM entries ORDER BY seq").fetchall()
    finally:
        database.close()
    entries = [(kind, json.loads(body)) for kind, body, _ in rows]
    records = sorted((entry for kind, entry in entries if kind == "part"), key=lambda entry: int(entry["monotonic_ns"]))
    return records, [entry for kind, entry in entries if kind == "event"], rows[-1][2] if rows else "", whole, told
