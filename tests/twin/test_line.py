"""The line's physics against a slow and plain reckoning of which parts the gate hit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.twin.line import Line, LineShape

MS = 1_000_000
SHAPE = LineShape(
    speed_mm_s=500, pitch_mm=50, part_mm=28, gate_mm=420, response_ms=12, reject_level=False, obeys_line_stop=False, settle_ms=5
)


def drive(line: Line, parts: int, moves: list[tuple[int, bool]]) -> tuple[list, list]:
    """Feed parts, move the gate at its times; returns (edges, fates)."""
    line.feed(parts, 0)
    edges, fates = [], []
    waiting = sorted(moves)
    now = 0
    while not line.done:
        now += 5 * MS
        while waiting and waiting[0][0] <= now:
            at_ns, level = waiting.pop(0)
            line.set_output("gate", level, at_ns)
        edges += [one for one in line.advance(now) if not one.where]
        fates += line.fates(now)
        assert now < 100_000 * MS
    return edges, fates


@given(
    cuts=st.lists(st.integers(900, 2200), min_size=2, max_size=8, unique=True),
    seed=st.integers(0, 1000),
)
def test_a_part_is_rejected_when_any_of_it_meets_the_gate_in_reject(cuts: list[int], seed: int) -> None:
    line = Line(SHAPE, seed)
    moves = [(1 * MS, True)] + [(cut * MS, bool(index % 2)) for index, cut in enumerate(sorted(cuts))]
    _, fates = drive(line, 20, moves)
    assert len(fates) == 20
    times = [at for at, _ in moves[1:]] + [10**15]
    levels = [level for _, level in moves[1:]]
    for fate in fates:
        certain = possible = False
        for index, level in enumerate(levels):
            if level:
                continue
            opened, closed = times[index] + 12 * MS, times[index + 1] + 2 * MS
            # The valve repeats to some tenths of a millisecond: between the two, either is right.
            certain |= fate.arrive_ns < closed - MS and fate.leave_ns > opened + MS and closed - opened > 2 * MS
            possible |= fate.arrive_ns < closed + MS and fate.leave_ns > opened - MS
        assert certain <= (fate.bin == "reject") <= possible


def test_a_gate_whose_driver_is_gone_rejects() -> None:
    line = Line(SHAPE, 1)
    _, fates = drive(line, 10, [(1 * MS, True), (1400 * MS, False)])
    bins = [fate.bin for fate in fates]
    assert "good" in bins and "reject" in bins
    assert bins == sorted(bins), "good until the driver went, reject ever after"


def test_the_same_seed_lays_the_same_parts() -> None:
    first, second, other = (drive(Line(SHAPE, seed), 8, [])[0] for seed in (3, 3, 4))
    assert first == second != other


def test_a_stopped_line_lets_nothing_pass() -> None:
    line = Line(LineShape(**{**SHAPE.__dict__, "obeys_line_stop": True}), 1)
    line.feed(5, 0)
    assert line.advance(5000 * MS) == [] and not line.runs
    line.set_output("line_stop", True, 5000 * MS)
    assert line.advance(5200 * MS) and line.runs
