"""Where a verb called by hand finds the box."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.paths import box_folders


def test_a_verb_called_by_hand_finds_the_installed_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    box = (tmp_path / "data", tmp_path / "run")
    assert box_folders(None, None, box) == tuple(tmp_path / f"home/.local/state/appliance/box/{one}" for one in ("data", "run"))
    box[0].mkdir()
    assert box_folders(None, None, box) == box
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/other")
    assert box_folders(None, None, box) == (box[0], Path("/run/other"))
    assert box_folders(Path("/d"), Path("/r"), box) == (Path("/d"), Path("/r"))
