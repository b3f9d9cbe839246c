"""What is built for virtual machines is built once, and is not touched while machines run on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.box.vm.cache import cached


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APPLIANCE_BOX_CACHE", str(tmp_path))
    return tmp_path


def make(kind: str, key: str, built: list[str]) -> Path:
    def build(scratch: Path) -> Path:
        built.append(key)
        (scratch / "new").write_text(key)
        return scratch / "new"

    return cached(kind, key, build)


def test_it_is_built_once_and_its_time_stays(folder: Path) -> None:
    built: list[str] = []
    first = make("box", "a", built)
    before = first.stat().st_mtime_ns
    assert make("box", "a", built) == first and built == ["a"]
    assert first.stat().st_mtime_ns == before, "a machine on it would not boot again"


def test_the_three_that_were_used_last_are_kept(folder: Path) -> None:
    built: list[str] = []
    for key in ("a", "b", "c", "a", "d"):
        make("box", key, built)
    assert {one.name for one in folder.glob("box-*")} == {"box-a", "box-c", "box-d"} and built == ["a", "b", "c", "d"]
    assert not list(folder.glob(".box-b*"))
