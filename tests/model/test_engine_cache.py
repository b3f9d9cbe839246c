"""Engines on disk: what was stored comes back, and nothing else does, whatever happened to the files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.model import engine_cache
from appliance.model.engine_cache import (
    BuildFigures,
    EngineCache,
    EngineCacheError,
    EngineKey,
    power_mode_warning,
    slower_than_built,
)

KEY = EngineKey(
    model_digest="sha256:" + "ab" * 32, tensorrt="10.3.0.30", module="p3767-0005", multiprocessors=8, capability="8.7",
    l4t="36.4.3", precision="int8", flags=("FP16", "INT8"), workspace_bytes=1 << 30,
)  # fmt: skip
FIGURES = BuildFigures(p50_ms=1.5, p99_ms=1.75, build_s=212.0, power_mode="25W")
PLAN = bytes(range(256)) * 40
OTHERS: dict[str, Any] = {
    "model_digest": "sha256:" + "cd" * 32, "tensorrt": "10.16.2.10", "module": "p3701-0005", "multiprocessors": 16,
    "capability": "11.0", "l4t": "36.5.0", "precision": "float16", "flags": ("FP16",), "workspace_bytes": 1 << 28,
}  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def plan_of(cache: EngineCache, precision: str = "int8") -> Path:
    (found,) = cache.folder_of(KEY.model_digest).glob(f"{precision}-*.plan")
    return found


def names(cache: EngineCache) -> list[str]:
    return sorted(one.name for one in cache.folder_of(KEY.model_digest).iterdir())


def test_what_was_stored_comes_back(cache: EngineCache) -> None:
    stored = cache.store(KEY, PLAN, b"timings", FIGURES)
    assert cache.find(KEY) == stored
    assert (stored.plan, stored.figures, stored.digest) == (PLAN, FIGURES, engine_cache.digest_of(PLAN))


def test_nothing_stored_is_nothing_found(cache: EngineCache) -> None:
    assert cache.find(KEY) is None and cache.timing_cache(KEY) == b""


def test_the_table_of_other_keys_names_every_field() -> None:
    assert list(OTHERS) == [one.name for one in engine_cache.fields(EngineKey)]


@pytest.mark.parametrize("field", OTHERS)
def test_an_engine_of_another_key_is_never_handed_out(cache: EngineCache, field: str) -> None:
    cache.store(KEY, PLAN, b"", FIGURES)
    wanted = replace(KEY, **{field: OTHERS[field]})
    if field in ("model_digest", "precision"):  # another place
        assert cache.find(wanted) is None
        return
    with pytest.raises(EngineCacheError, match=rf"built for another {field} \(.* there, .* here\); it is built anew"):
        cache.find(wanted)


@pytest.mark.parametrize("field", OTHERS)
def test_files_brought_from_another_place_are_refused_by_the_key_inside(cache: EngineCache, field: str) -> None:
    """A folder or file renamed to where another engine is looked for."""
    wanted = replace(KEY, **{field: OTHERS[field]})
    cache.store(KEY, PLAN, b"", FIGURES)
    there, here = cache.folder_of(KEY.model_digest), cache.folder_of(wanted.model_digest)
    there.rename(here)
    (here / f"{KEY.precision}.json").rename(here / f"{wanted.precision}.json")
    with pytest.raises(EngineCacheError, match=field):
        cache.find(wanted)


def test_another_workspace_serves_where_it_is_named_and_nothing_else_is_forgiven(cache: EngineCache) -> None:
    stored = cache.store(KEY, PLAN, b"", FIGURES)
    smaller = replace(KEY, workspace_bytes=1 << 28)
    assert cache.find(smaller, (1 << 30, 1 << 28)) == stored and stored.key.workspace_bytes == 1 << 30
    with pytest.raises(EngineCacheError, match="workspace_bytes"):
        cache.find(smaller, (1 << 28, 1 << 27))
    with pytest.raises(EngineCacheError, match=r"another l4t \(36.4.3 there, 36.5.0 here\); it"):
        cache.find(replace(smaller, l4t="36.5.0"), (1 << 30, 1 << 28))


@pytest.mark.parametrize("left", [0, 1, 4096, len(PLAN) - 1])
def test_a_cut_plan_is_refused(cache: EngineCache, left: int) -> None:
    cache.store(KEY, PLAN, b"", FIGURES)
    os.truncate(plan_of(cache), left)
    with pytest.raises(EngineCacheError, match="cut or altered"):
        cache.find(KEY)


def test_one_altered_byte_is_refused(cache: EngineCache) -> None:
    cache.store(KEY, PLAN, b"", FIGURES)
    plan_of(cache).write_bytes(PLAN[:-1] + b"x")
    with pytest.raises(EngineCacheError, match="cut or altered"):
        cache.find(KEY)


def test_a_plan_that_is_gone_is_refused_and_can_be_stored_again(cache: EngineCache) -> None:
    cache.store(KEY, PLAN, b"", FIGURES)
    plan_of(cache).unlink()
    with pytest.raises(EngineCacheError, match="cannot be read"):
        cache.find(KEY)
    cache.store(KEY, PLAN, b"", FIGURES)
    assert cache.find(KEY) is not None


def rewrite(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, 0),
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: os.truncate(path, path.stat().st_size - 3),
        lambda path: path.write_bytes(b"\xff\xfe" * 50),
        lambda path: path.write_text("[" * 30_000),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text('{"schema": 1, "padding": "' + "x" * 100_000 + '"}'),
        rewrite(lambda content: content.update(schema=2)),
        rewrite(lambda content: content.pop("key")),
        rewrite(lambda content: content["key"].pop("l4t")),
        rewrite(lambda content: content["key"].update(more=1)),
        rewrite(lambda content: content["figures"].update(p50_ms="fast")),
        rewrite(lambda content: content.update(plan=None)),
        rewrite(lambda content: content["plan"].update(file="../../elsewhere.plan")),
        rewrite(lambda content: content["plan"].update(sha256="sha256:" + "0" * 64)),
    ],
)
def test_a_damaged_description_is_refused_in_words(cache: EngineCache, damage: Callable[[Path], None]) -> None:
    cache.store(KEY, PLAN, b"", FIGURES)
    damage(cache.folder_of(KEY.model_digest) / "int8.json")
    with pytest.raises(EngineCacheError, match="anew"):
        cache.find(KEY)


def test_a_plan_outside_the_folder_is_never_read(cache: EngineCache, tmp_path: Path) -> None:
    """A description that names a foreign file by its right digest: vendor code would be handed what we did not write."""
    cache.store(KEY, PLAN, b"", FIGURES)
    (tmp_path / "foreign.plan").write_bytes(b"foreign")
    told = {"file": str(tmp_path / "foreign.plan"), "sha256": engine_cache.digest_of(b"foreign"), "bytes": 7}
    rewrite(lambda content: content.update(plan=told))(cache.folder_of(KEY.model_digest) / "int8.json")
    with pytest.raises(EngineCacheError, match="outside its folder"):
        cache.find(KEY)


@pytest.mark.parametrize("step", ["plan", "description"])
def test_power_lost_while_storing_leaves_the_old_engine(cache: EngineCache, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    old = cache.store(KEY, PLAN, b"", FIGURES)
    real, calls = os.replace, []

    def dies(source: str, target: Path) -> None:
        calls.append(Path(target).suffix)
        if Path(target).suffix == {"plan": ".plan", "description": ".json"}[step]:
            raise KeyboardInterrupt  # as good as a kill: nothing after it runs
        real(source, target)

    monkeypatch.setattr(engine_cache.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        cache.store(KEY, PLAN + b"newer", b"", FIGURES)
    monkeypatch.undo()
    assert cache.find(KEY) == old
    assert calls[-1] == {"plan": ".plan", "description": ".json"}[step]


def test_the_description_is_written_after_the_plan(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = os.replace
    monkeypatch.setattr(engine_cache.os, "replace", lambda one, two: (order.append(Path(two).suffix), real(one, two)))
    cache.store(KEY, PLAN, b"timings", FIGURES)
    assert order == [".timing", ".plan", ".json"]


def test_half_written_files_of_a_killed_build_are_removed(cache: EngineCache) -> None:
    folder = cache.folder_of(KEY.model_digest)
    folder.mkdir(parents=True)
    (folder / ".partial-int8-abc.plan-x1").write_bytes(PLAN[:100])
    assert cache.find(KEY) is None
    cache.store(KEY, PLAN, b"", FIGURES)
    assert names(cache) == [plan_of(cache).name, "int8.json"]


def test_a_newer_engine_takes_the_place_of_the_older_and_leaves_other_precisions(cache: EngineCache) -> None:
    cache.store(replace(KEY, precision="float16"), PLAN, b"", FIGURES)
    for tensorrt in ("10.3.0.30", "10.16.2.10", "11.4.1.0"):
        cache.store(replace(KEY, tensorrt=tensorrt), PLAN + tensorrt.encode(), b"", FIGURES)
    assert len(names(cache)) == 4  # a plan and a description for each precision
    assert cache.find(replace(KEY, precision="float16")) is not None
    assert cache.find(replace(KEY, tensorrt="11.4.1.0")) is not None


def test_the_disk_is_bounded_over_any_number_of_models(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_cache, "_MOST_MODELS", 3)
    keys = [replace(KEY, model_digest="sha256:" + f"{index:02x}" * 32) for index in range(6)]
    for index, key in enumerate(keys):
        cache.store(key, PLAN, b"", FIGURES)
        os.utime(cache.folder_of(key.model_digest), ns=(index, index))
    assert [cache.find(key) is not None for key in keys] == [False, False, False, True, True, True]


def test_models_no_longer_used_are_forgotten(cache: EngineCache) -> None:
    other = replace(KEY, model_digest=OTHERS["model_digest"])
    cache.store(KEY, PLAN, b"timings", FIGURES)
    cache.store(other, PLAN, b"", FIGURES)
    assert cache.forget_models_but({KEY.model_digest}) == 1
    assert cache.find(KEY) is not None and cache.find(other) is None and cache.timing_cache(KEY) == b"timings"


@pytest.mark.parametrize("field", ["precision", "model_digest", "workspace_bytes"])
def test_timings_serve_every_engine_of_this_machine(cache: EngineCache, field: str) -> None:
    cache.store(KEY, PLAN, b"timings", FIGURES)
    assert cache.timing_cache(replace(KEY, **{field: OTHERS[field]})) == b"timings"


@pytest.mark.parametrize("field", ["tensorrt", "module", "l4t"])
def test_timings_of_another_machine_are_not_used_and_do_not_pile_up(cache: EngineCache, field: str) -> None:
    other = replace(KEY, **{field: OTHERS[field]})
    cache.store(KEY, PLAN, b"timings", FIGURES)
    assert cache.timing_cache(other) == b""
    cache.store(other, PLAN, b"others", FIGURES)
    assert cache.timing_cache(other) == b"others" and cache.timing_cache(KEY) == b""


def test_cut_timings_are_not_used(cache: EngineCache, tmp_path: Path) -> None:
    cache.store(KEY, PLAN, b"timings" * 100, FIGURES)
    (path,) = (tmp_path / "engines").glob("*.timing")
    os.truncate(path, 200)
    assert cache.timing_cache(KEY) == b""


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("a file where a folder should be")
    with pytest.raises(EngineCacheError, match="cannot be stored"):
        EngineCache(tmp_path / "engines").store(KEY, PLAN, b"", FIGURES)


def test_an_empty_plan_is_no_engine(cache: EngineCache) -> None:
    with pytest.raises(EngineCacheError, match="empty"):
        cache.store(KEY, b"", b"", FIGURES)


def test_only_its_own_user_may_write_where_plans_are_believed(cache: EngineCache, tmp_path: Path) -> None:
    cache.store(KEY, PLAN, b"", FIGURES)
    for folder in (tmp_path / "engines", cache.folder_of(KEY.model_digest)):
        assert folder.stat().st_mode & 0o077 == 0


def test_another_power_mode_is_a_warning_and_no_refusal(cache: EngineCache) -> None:
    cache.store(KEY, PLAN, b"", FIGURES)
    stored = cache.find(KEY)
    assert stored is not None
    assert power_mode_warning(stored, "25W") is None
    assert "power mode 25W and runs in 7W" in (power_mode_warning(stored, "7W") or "")


@pytest.mark.parametrize(
    ("built_ms", "now_ms", "slower"),
    [(4.0, 4.0, False), (4.0, 4.9, False), (4.0, 5.1, True), (0.3, 0.45, False), (0.3, 0.6, True), (4.0, 1.0, False)],
)
def test_an_engine_slower_than_at_its_build_is_told(built_ms: float, now_ms: float, slower: bool) -> None:
    assert (slower_than_built(built_ms, now_ms) is not None) is slower
