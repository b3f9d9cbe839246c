"""The simulated line of a show goes on while nothing of it changed, and begins anew when something did."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config.load import load_bytes
from appliance.paths import Paths
from appliance.twin.show import Played, scenario_of
from tests.box.stick_rig import SHIPPED

PLACE = Paths(Path("/run/x"), Path("/data/x"))


def is_over_after(old: str, new: str) -> bool:
    """Asked twice, as each second does: the answer must not be forgotten, nor come too early."""
    texts = {"first": SHIPPED, "second": SHIPPED.replace(old, new, 1)}
    assert texts["second"] != SHIPPED
    chosen = "first"

    def scenario() -> dict[str, object]:
        return scenario_of(load_bytes(texts[chosen].encode(), Path("/nowhere/appliance.yaml")), PLACE, 60, 1)

    played = Played(scenario(), "first", lambda _seen: chosen, scenario)
    assert not played.is_over()
    chosen = "second"
    return played.is_over()


@pytest.mark.parametrize(("old", "new"), [("revision: 1", "revision: 2"), ("deadline_ms: 20", "deadline_ms: 30")])
def test_a_line_goes_on_where_only_the_box_changed(old: str, new: str) -> None:
    assert not is_over_after(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [("speed_mm_s: 500", "speed_mm_s: 400"), ("source: twin://top", "source: folder:///pictures"), ("twin://top", "twin://side")],
)
def test_another_line_ends_it(old: str, new: str) -> None:
    assert is_over_after(old, new)
