"""Healthy-with-digest: a pure fold over what reportd writes, and the waiting for it on a virtual clock."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.box.again import begin_anew
from appliance.box.health import FRESH_NS, LONGEST_BUILD_NS, PATIENCE_NS, STEADY_NS, read_state, wait_healthy
from appliance.clock import VirtualClock
from appliance.paths import Paths

S = 10**9
NEW, OLD = "sha256:new", "sha256:old"


def seen(now_ns: int, digest: str = NEW, **changes: Any) -> dict[str, Any]:
    told = {"reason": "", "progress": 1.0, "configuration": digest, "version": "2 b"}
    state = {
        "written_ns": now_ns, "again": [], "reject": {"state": "running", **told}, "inspect": {"state": "ready", **told},
        "report": {"configuration": digest, "version": "2 b"},
    }  # fmt: skip
    for path, value in changes.items():
        role, _, key = path.partition("_")
        if key:
            state[role][key] = value
        else:
            state[role] = value
    return state


def waited(
    read: Callable[[int], Any], seconds: float = 60, version: str | None = None, extended: list[int] | None = None
) -> tuple[str, float]:  # fmt: skip
    """(why, how long it took)."""
    clock = VirtualClock(5 * S)
    told = extended if extended is not None else []
    why = wait_healthy(
        lambda: read(clock.now_ns()), NEW, version, clock.now_ns() + round(seconds * S), clock,
        lambda duration_ns: clock.advance_to(clock.now_ns() + duration_ns), told.append,
    )  # fmt: skip
    return why, (clock.now_ns() - 5 * S) / S


def test_all_well_for_three_seconds_is_healthy() -> None:
    why, took_s = waited(seen)
    assert why == "" and STEADY_NS / S <= took_s <= STEADY_NS / S + 0.3
    assert waited(seen, version="2 b")[0] == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reject": None}, "rejectd does not answer"),
        ({"inspect": None}, "inspectd does not answer"),
        ({"report": None}, "reportd does not answer"),
        ({"reject_configuration": OLD}, "rejectd runs another configuration"),
        ({"inspect_configuration": OLD}, "inspectd runs another configuration"),
        ({"report_configuration": OLD}, "reportd runs another configuration"),
        ({"inspect_version": "1 a"}, "inspectd runs another version (1 a)"),
        ({"inspect_state": "fault", "inspect_reason": "golden vector 3 differs"}, "inspectd is fault: golden vector 3 differs"),
        ({"inspect_state": "starting", "inspect_reason": "camera top: lost"}, "camera top: lost"),
        ({"reject_state": "fault", "reject_reason": "an output is lost"}, "state fault: an output is lost"),
        ({"reject_state": "building"}, "state building"),
        ({"again": ["reject", "inspect"]}, "rejectd, inspectd did not begin anew yet"),
    ],
)
def test_what_is_amiss_is_told_when_the_time_is_over(changes: dict[str, Any], words: str) -> None:
    why, took_s = waited(lambda now_ns: seen(now_ns, **changes), version="2 b")
    assert words in why and took_s == 60


@pytest.mark.parametrize("state", ["running", "purging", "held"])
def test_a_line_that_stands_or_purges_is_well(state: str) -> None:
    assert waited(lambda now_ns: seen(now_ns, reject_state=state))[0] == ""


def test_a_line_that_is_held_for_a_photo_eye_that_is_not_there_is_not_well() -> None:
    why, took_s = waited(lambda now_ns: seen(now_ns, reject_state="held", reject_inputs_lost={"trigger": "no line PQ.99"}))
    assert why == "the input trigger gives no edges: no line PQ.99" and took_s == 60
    assert waited(lambda now_ns: seen(now_ns, reject_state="held", reject_inputs_lost={}))[0] == ""


@pytest.mark.parametrize("nothing", [None, [], "x", {"written_ns": "soon"}, {}])
def test_what_is_no_state_is_nobody(nothing: Any) -> None:
    assert waited(lambda now_ns: nothing)[0] == "reportd does not answer"


def test_a_file_that_nobody_writes_any_more_is_not_believed() -> None:
    why, _ = waited(lambda now_ns: seen(min(now_ns, 6 * S)))
    assert why == "reportd does not answer"
    assert waited(lambda now_ns: seen(now_ns // S * S))[0] == "", "it is written once a second"
    assert waited(lambda now_ns: seen(now_ns - FRESH_NS))[0] == ""
    assert waited(lambda now_ns: seen(now_ns - FRESH_NS - 1))[0] == "reportd does not answer"


def test_two_seconds_between_crashes_are_not_health() -> None:
    def crashing(now_ns: int) -> Any:
        return seen(now_ns) if now_ns // S % 3 else seen(now_ns, inspect=None)

    assert waited(crashing)[0] != ""


def test_the_last_moment_counts_only_if_it_was_long_enough() -> None:
    why, _ = waited(lambda now_ns: seen(now_ns, inspect=None) if now_ns < 63 * S else seen(now_ns))
    assert "less than 3 s" in why


def test_the_old_one_still_running_is_not_the_new_one() -> None:
    """In the first moments all three are well, with the configuration of before."""
    why, took_s = waited(lambda now_ns: seen(now_ns, digest=OLD if now_ns < 15 * S else NEW))
    assert why == "" and took_s >= 13


def test_an_engine_that_is_built_gets_its_time_while_it_gets_on() -> None:
    extended: list[int] = []

    def building(now_ns: int) -> Any:
        done = min(1.0, (now_ns - 5 * S) / (900 * S))
        state = "building" if done < 1 else "ready"
        return seen(now_ns, inspect_state=state, inspect_progress=round(done, 2), inspect_reason="float16")

    why, took_s = waited(building, extended=extended)
    assert why == "" and 900 < took_s < 905
    assert extended == sorted(extended) and extended[-1] >= 900 * S


def test_an_engine_that_hangs_ends_the_trial() -> None:
    why, took_s = waited(lambda now_ns: seen(now_ns, inspect_state="building", inspect_progress=0.4))
    assert "inspectd is building" in why and took_s == PATIENCE_NS / S


def test_an_engine_that_begins_anew_for_ever_ends_the_trial() -> None:
    def again_and_again(now_ns: int) -> Any:
        return seen(now_ns, inspect_state="building", inspect_progress=round(now_ns / S % 100 / 100, 2))

    _, took_s = waited(again_and_again)
    assert took_s == LONGEST_BUILD_NS / S


def test_whoever_was_asked_to_begin_anew_is_seen_in_the_run_folder(tmp_path: Path) -> None:
    paths = Paths(tmp_path, tmp_path)
    assert read_state(tmp_path) is None
    paths.state_file.write_text(json.dumps(seen(1)))
    begin_anew(tmp_path, ["inspect"], NEW)
    assert read_state(tmp_path)["again"] == ["inspect"]
    assert paths.same_file("reject").read_text() == NEW and not paths.same_file("inspect").exists()
    paths.begin(["inspect", "reject"])
    assert read_state(tmp_path)["again"] == [] and not paths.same_file("reject").exists()
    paths.state_file.write_text("{")
    assert read_state(tmp_path) is None
