"""Truth against books: escapes, false rejects, lost good parts, and whether the books close. Pure."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

VERDICTS = ("pass", "fail", "review", "blind", "late", "missed")


@dataclass(frozen=True)
class Truth:
    """One part as the twin knows it; ``bin`` is good, reject, divert or belt (never reached the gate).

    ``arrive_ns`` to ``leave_ns``: while it stood at the first gate."""

    edge_ns: int
    kind: str | None
    size: float
    step: float
    bin: str
    arrive_ns: int
    leave_ns: int = 0


@dataclass(frozen=True)
class GateTimes:
    """What a gate needs for one part: a neighbour inside that cannot be spared."""

    pulse_ns: int
    response_ns: int

    def takes(self, taken: Truth, neighbour: Truth) -> bool:
        """Whether the window of one part must take another: the valve's own slack is 2 ms back and 1 ms of repeatability."""
        closes_ns = max(taken.arrive_ns - self.response_ns + self.pulse_ns, taken.leave_ns) + 3_000_000
        return neighbour.arrive_ns < closes_ns and neighbour.leave_ns > taken.arrive_ns - 1_000_000


@dataclass
class Score:
    """What came of a rehearsal."""

    parts: int = 0
    defective: int = 0
    escapes_gate: int = 0
    escapes_judge: int = 0
    escapes_faint: int = 0
    false_rejects: int = 0
    good: int = 0
    good_lost: int = 0
    good_lost_outside: int = 0
    unsparable: int = 0
    """Of the lost good parts: inside the window that a neighbour's reject needs, the valve's way back included."""
    untracked: int = 0
    untracked_outside: int = 0
    """Parts at the eye without a record, outside of faults: law 1."""
    unexplained: int = 0
    per_kind: dict[str, list[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def score(
    truths: list[Truth],
    records: list[dict[str, Any]],
    half_pitch_ns: int,
    excused: list[tuple[int, int]],
    gate: GateTimes | None = None,
) -> Score:
    """Join by the trigger's instant. ``excused``: (from, to) ns of faults plus 5 s and a purge, when good parts may go."""
    result = Score()
    times = [record["monotonic_ns"] for record in records]
    used: set[int] = set()
    for at, truth in enumerate(truths):
        if truth.bin == "belt":
            continue
        result.parts += 1
        record = _nearest(truth.edge_ns, times, records, half_pitch_ns, used)
        if record is None:
            result.untracked += 1
            excuse = any(begin <= truth.edge_ns <= end for begin, end in excused)
            result.untracked_outside += not excuse
        beside = [*truths[max(0, at - 3) : at], *truths[at + 1 : at + 4]] if truth.bin != "good" else []
        spared_nowhere = gate is not None and any(one.bin == truth.bin and gate.takes(one, truth) for one in beside)
        _one(result, truth, record, excused, spared_nowhere)
    result.unexplained = len(records) - len(used)
    return result


def _nearest(
    edge_ns: int, times: list[int], records: list[dict[str, Any]], within_ns: int, used: set[int]
) -> dict[str, Any] | None:
    at = bisect_left(times, edge_ns)
    best = min((i for i in (at - 1, at) if 0 <= i < len(times)), key=lambda i: abs(times[i] - edge_ns), default=None)
    if best is None or abs(times[best] - edge_ns) > within_ns:
        return None
    used.add(best)
    return records[best]


def _one(
    result: Score, truth: Truth, record: dict[str, Any] | None, excused: list[tuple[int, int]], spared_nowhere: bool
) -> None:  # fmt: skip
    verdict = record["verdict"] if record else None
    if truth.kind is None:
        result.good += 1
        if truth.bin == "good":
            return
        by = record["disposed_by"] if record is not None else None
        if verdict == "fail" and by == "verdict":
            result.false_rejects += 1
            return
        if truth.bin == "divert" and by == "on_review":
            return  # where it was to go
        result.good_lost += 1
        if spared_nowhere:
            result.unsparable += 1
        elif not any(begin <= truth.edge_ns <= end or begin <= truth.arrive_ns <= end for begin, end in excused):
            result.good_lost_outside += 1
            result.notes.append(f"a good part was lost: {verdict}, {record['disposed_by'] if record else 'untracked'}")
        return
    result.defective += 1
    caught = truth.bin != "good"
    name = f"{truth.kind} {truth.step:g}" if truth.step < 1 else truth.kind
    tally = result.per_kind.setdefault(name, [0, 0])
    tally[0] += caught
    tally[1] += 1
    if caught:
        return
    if record is not None and verdict in ("pass", "review") and record["disposition"] == "accept":
        if truth.step < 1:
            result.escapes_faint += 1
        else:
            result.escapes_judge += 1
            result.notes.append(f"escape by the judge: part {record['part']}, {truth.kind} {truth.size}, score {record['score']}")
    else:
        result.escapes_gate += 1
        booked = (record["part"], verdict, record["disposed_by"]) if record else "none"
        result.notes.append(f"escape by the gate: {truth.kind}, record {booked}")


def books_closed(records: list[dict[str, Any]], counters: dict[str, Any] | None) -> tuple[bool, str]:
    """Every part once, sums equal, and the counters topic says the same of the last run."""
    numbers = [record["part"] for record in records]
    if len(set(numbers)) != len(numbers):
        return False, "a part has two records"
    runs = {record["run"] for record in records}
    if counters is not None and records:
        last = [record for record in records if record["run"] == counters.get("run")]
        counted = {name: sum(record["verdict"] == name for record in last) for name in VERDICTS}
        told = {name: counters.get(name) for name in VERDICTS}
        if counted != told or counters.get("triggers") != sum(counted.values()) or counters.get("in_flight"):
            return False, f"counters tell {told}, in flight {counters.get('in_flight')}; the ledger has {counted}"
    return True, f"{len(numbers)} records, {len(runs)} run(s)"


def percentiles(values: list[float]) -> dict[str, float | None]:
    """p50, p99, p999, max; None where there is nothing."""
    if not values:
        return {"p50": None, "p99": None, "p999": None, "max": None}
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)

    return {"p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": round(ordered[-1], 3)}
