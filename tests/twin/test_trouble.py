"""Faults from the command line."""

from __future__ import annotations

import pytest

from appliance.twin.trouble import FAULTS, Trouble, parse


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("kill-inspectd@10s", Trouble("kill-inspectd", 10, 0)),
        ("broker-down@5s+30s", Trouble("broker-down", 5, 30)),
        ("drop-frame@1.5", Trouble("drop-frame", 1.5, 0)),
    ],
)
def test_a_fault_has_a_name_a_time_and_maybe_a_duration(text: str, wanted: Trouble) -> None:
    assert parse(text) == wanted


@pytest.mark.parametrize("text", ["kill-inspectd", "melt@3s", "kill-inspectd@soon", "", "@3s", "drop-frame@3s+"])
def test_what_is_no_fault_is_refused_with_all_there_are(text: str) -> None:
    with pytest.raises(ValueError, match="NAME@SECONDS") as refused:
        parse(text)
    assert all(name in str(refused.value) for name in FAULTS)
