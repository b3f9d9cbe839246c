"""rejectd and inspectd by another configuration: no part is sent there (law 8); and rejectd hears of new ones by files."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from appliance.clock import SystemClock
from appliance.paths import Paths
from appliance.reject.belt import ConstantBelt
from appliance.reject.daemon import RETRY_NS, RejectBuild, Rejectd
from tests.reject.line_of_parts import MS, PLAN, READY, Line

MINE, OTHER = "sha256:mine", "sha256:other"


def line_with(inspect: str, mine: str = MINE) -> Line:
    line = Line()
    line.rejector.configuration = mine
    line.rejector.on_inspect(msgspec.structs.replace(READY, configuration=inspect), line.now)
    return line


def test_an_inspectd_of_another_configuration_gets_no_part_and_the_gate_is_held() -> None:
    line = line_with(OTHER)
    line.until(line.now + 1_500 * MS)
    assert line.rejector.state == "held" and line.status and "another configuration" in line.status.reason
    for _ in range(3):
        line.part(200)
    line.finish()
    assert line.triggers == [] and {one.verdict for one in line.records} == {"late"}
    assert all(one.disposition == "reject" for one in line.records)
    assert not any(energised for _, energised in line.levels("gate")), "it never let go"


def test_it_gets_parts_from_the_moment_that_both_run_the_same() -> None:
    line = line_with(OTHER)
    line.until(line.now + 1_500 * MS)
    line.part(50)
    line.rejector.on_inspect(msgspec.structs.replace(READY, configuration=MINE), line.now)
    line.until(line.now + 1_300 * MS)
    assert line.rejector.state == "running"
    line.part(50)
    line.finish()
    assert [one.part for one in line.triggers] == [2]
    assert [(one.part, one.verdict, one.disposition) for one in line.records] == [(1, "late", "reject"), (2, "pass", "accept")]


@pytest.mark.parametrize(("inspect", "mine"), [("", MINE), (OTHER, ""), ("", ""), (MINE, MINE)])
def test_who_names_none_or_the_same_is_no_stranger(inspect: str, mine: str) -> None:
    line = line_with(inspect, mine)
    line.run_in()


def test_a_part_on_its_way_when_the_name_changes_is_not_let_go_unjudged() -> None:
    """rejectd goes by the new name already, inspectd does not yet: what was triggered before is held, not passed."""
    line = line_with(MINE)
    line.run_in()
    line.answer = lambda part: ("pass", 300.0)
    line.part(50)
    line.rejector.configuration = OTHER
    line.finish()
    (one,) = line.records
    assert one.disposition == "reject" and one.disposed_by == "held"


def test_status_says_by_which_configuration_and_version() -> None:
    line = Line()
    line.rejector.configuration = MINE
    line.until(line.now + 500 * MS)
    assert line.status and line.status.configuration == MINE and line.status.version == ""


@pytest.fixture
def daemon(tmp_path: Path) -> Rejectd:
    build = RejectBuild(PLAN, ConstantBelt(500), {}, {}, configuration=MINE)
    return Rejectd(build, Paths(tmp_path, tmp_path), SystemClock())


def test_rejectd_stops_in_order_when_it_is_asked_to_begin_anew(daemon: Rejectd) -> None:
    daemon.start()
    daemon._supervise(10 * RETRY_NS)
    assert not daemon.stopping
    daemon._paths.again_file("inspect").touch()
    daemon._supervise(20 * RETRY_NS)
    assert not daemon.stopping, "another was meant"
    daemon._paths.again_file("reject").touch()
    daemon._supervise(20 * RETRY_NS + 1)
    assert not daemon.stopping, "ten times a second"
    daemon._supervise(30 * RETRY_NS)
    assert daemon.stopping
    daemon.close()


def test_rejectd_goes_by_another_name_where_nothing_changes_for_it(daemon: Rejectd) -> None:
    daemon.start()
    daemon._paths.same_file("reject").write_text(OTHER)
    daemon._supervise(10 * RETRY_NS)
    assert daemon._rejector.configuration == OTHER and not daemon.stopping
    assert not daemon._paths.same_file("reject").exists()
    daemon.close()
