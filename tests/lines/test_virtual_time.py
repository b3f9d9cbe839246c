"""A shift in virtual time: seeded, the real belt and books, the judge from its bank."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def shift(rehearse):
    return rehearse("--fast", "--parts", "3000", "--seed", "7")


def test_a_shift_has_no_escape_and_closed_books(shift) -> None:
    assert shift.exit == 0, shift.text[-2000:]
    assert shift.figures["parts"] == 3000 == sum(shift.figures["ledger"].values())
    assert shift.figures["escapes"] == 0 and shift.figures["good_lost"] == 0 and shift.figures["books_closed"]


def test_the_same_seed_gives_the_same_ledger_head(shift, appliance, tmp_path) -> None:
    again = tmp_path / "again.json"
    other = tmp_path / "other.json"
    for seed, path in (("7", again), ("8", other)):
        ended = appliance("rehearse", "--fast", "--parts", "3000", "--seed", seed, "--json", str(path))
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert shift.figures["ledger_head"] in again.read_text()
    assert shift.figures["ledger_head"] not in other.read_text()


def test_a_pitch_below_the_gates_window_takes_neighbours_and_says_so(rehearse) -> None:
    run = rehearse("--fast", "--parts", "400", "--ppm", "1800", "--seed", "9")
    assert "belt set to" in run.text
    assert run.exit == 0 and run.figures["good_lost"] == 0


def test_hard_defects_are_told_per_kind_and_do_not_fail(rehearse) -> None:
    run = rehearse("--fast", "--parts", "1500", "--seed", "10", "--hard")
    assert run.exit == 0, run.text[-2000:]
    assert any(" 0.35" in name for name in run.figures["recall_per_kind"])


def test_faults_and_half_a_pair_of_folders_are_refused_in_words(appliance) -> None:
    assert "leave out --fast" in appliance("rehearse", "--fast", "--fault", "kill-rejectd@1s").stderr
    assert "kill-inspectd" in appliance("rehearse", "--fault", "kill-it@1s").stderr
    assert "go together" in appliance("rehearse", "--good", "x").stderr
