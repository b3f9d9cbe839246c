"""The reject bench tells what it promises; how good the figures are is no test's business."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.bench_reject import MS, SECOND_NS, Slice, due_times, edge_errors, judge, row, within

ROOT = Path(__file__).resolve().parents[2]
US = 1_000
FIRINGS = 300


def test_a_short_run_counts_every_firing_and_tells_it_in_table_and_json(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.bench.bench_reject", "--firings", str(FIRINGS), "--json", str(file)]
    # A group of its own: when the time is over, what the bench started goes with it.
    bench = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        printed, _ = bench.communicate(timeout=60)
    finally:
        if bench.poll() is None:
            os.killpg(bench.pid, signal.SIGKILL)
            bench.wait()
    result = json.loads(file.read_text())
    rows = {one["what"]: one for one in result["rows"]}
    assert bench.returncode == {True: 0, False: 1, None: 3}[result["passed"]]
    assert list(rows) == ["rejectd, judged slices", "rejectd, whole run", "thread, judged slices", "thread, whole run"]
    for who in ("rejectd", "thread"):
        assert rows[f"{who}, whole run"]["n"] == FIRINGS
        assert rows[f"{who}, judged slices"]["n"] <= FIRINGS
    # A machine that stands still for a moment merges a few; a reject loop that never moved the gate misses all.
    assert rows["rejectd, whole run"]["missed"] < FIRINGS / 2
    assert all(what in printed for what in rows)
    assert set(result["privilege"]) == {"fifo", "locked", "core", "lost"}
    assert all(f"rejectd lost: {sentence}" in printed for sentence in result["privilege"]["lost"])


def test_an_edge_is_held_against_the_due_time_of_its_level() -> None:
    dues = due_times(0, 4)
    edges = [(due + (number + 1) * US, number % 2 == 0) for number, due in enumerate(dues)]
    assert edge_errors(dues, edges) == ([1 * US, 2 * US, 3 * US, 4 * US], 0)


def test_an_early_edge_is_no_answer_to_its_due_time() -> None:
    dues = due_times(0, 2)
    assert edge_errors(dues, [(dues[0] - 2 * US, True), (dues[1], False)]) == ([None, 0], 1)


def test_a_merged_window_is_late_by_the_time_to_the_next_edge() -> None:
    dues = due_times(0, 4)
    errors, shared = edge_errors(dues, [(dues[0], True), (dues[3], False)])  # the gate stayed in reject between
    assert errors == [0, dues[3] - dues[1], None, 0] and shared == 2


def test_figures_are_nearest_ranks_and_a_firing_that_never_came_is_the_worst() -> None:
    whole = row("all", [number * US for number in range(1, 1001)])
    assert (whole.n, whole.p50, whole.p99, whole.p99_9, whole.most) == (1000, 500.0, 990.0, 999.0, 1000.0)
    holed = row("holed", [US] * 98 + [2 * MS, None])
    assert (holed.p50, holed.p99, holed.most, holed.over_1_ms, holed.missed) == (1.0, 2000.0, None, 2, 1)


def test_only_firings_of_the_clean_slices_are_judged() -> None:
    dues, errors = [0, 10, 20, 30, 40], [1, 2, 3, 4, 5]
    assert within(dues, errors, [Slice(0, 20, 0), Slice(40, 50, 0)]) == [1, 2, 5]


@pytest.mark.parametrize(
    ("stolen", "late_ns", "passed"),
    [
        (0, 10 * US, True),
        (1, 10 * US, True),
        (2, 10 * US, None),
        (0, 11 * US, False),
        (3, 10 * US, None),
    ],
)
def test_a_run_is_judged_while_at_most_a_third_of_its_slices_was_stolen(stolen: int, late_ns: int, passed: object) -> None:
    dues = [at * SECOND_NS for at in range(3)]
    slices = [Slice(due, due + SECOND_NS, int(at < stolen)) for at, due in enumerate(dues)]
    clean = [one for one in slices if one.steal == 0]
    assert judge(dues, [late_ns] * 3, [MS] * 3, slices, clean)["passed"] is passed


def test_an_unknown_bench_is_refused_in_one_sentence() -> None:
    done = subprocess.run([str(ROOT / "build.sh"), "bench", "nonesuch"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "nonesuch" in done.stderr and "reject" in done.stderr
