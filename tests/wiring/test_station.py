"""What is put together is taken apart again: a recipe that is refused leaves nothing on the GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.config import load
from appliance.model import golden
from appliance.model.golden import GoldenError
from appliance.ports import EngineError, Frame
from appliance.wiring import station as wiring
from appliance.wiring.machine import GpuMachine
from tests.box.trees import lay
from tests.kernels.host_library import host_library
from tests.model.tiny import tiny_bundle
from tests.wiring.test_engines import OLD, Box, stand_ins

SHIPPED = Path(__file__).resolve().parents[2] / "appliance/twin/station.yaml"


def station(file: Path) -> Any:
    """Two looks of one bundle; what follows after the networks is not reached."""
    look = SimpleNamespace(bundle="tiny", camera="top", roi=None)
    camera = SimpleNamespace(white_balance=(1.0, 1.0, 1.0), pixel="auto")
    return SimpleNamespace(engine="cuda", file=str(file), cameras={"top": camera}, recipe=SimpleNamespace(inspect=[look, look]))


@pytest.mark.parametrize("why", [GoldenError("vector 3 differs"), EngineError("the engine failed")])
def test_a_recipe_that_is_refused_gives_networks_memory_and_gpu_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: Exception
) -> None:
    """A context that stays pushed aborts the process at its end, and the engines of a refused recipe take the memory."""
    box, bundle = Box(tmp_path), tiny_bundle(tmp_path / "tiny")
    replayed: list[int] = []

    def refused(network: Any, bundle: Any) -> None:
        replayed.append(1)
        raise why

    monkeypatch.setattr(wiring, "find_bundle", lambda *_: bundle.folder)
    monkeypatch.setattr(golden, "replay_all", refused)
    with stand_ins(OLD, host_library()) as gpu:
        site = box.open(gpu)
        monkeypatch.setattr("appliance.wiring.machine.machine_of", lambda *_: GpuMachine(box.data, site, box.build))
        with pytest.raises(type(why)):
            wiring.load_recipe(station(tmp_path / "station.yaml"), box.data, lambda doing, share: None)
        assert replayed and gpu.live() == 0 and gpu.live_handles() == 0 and gpu.left_pushed() == []


def test_the_power_mode_of_the_engines_build_travels_with_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """reportd warns when the box runs in another one: also one that was chosen after the engines were loaded."""
    box, bundle = Box(tmp_path), tiny_bundle(tmp_path / "tiny")
    lay(box.root(), {"etc/nvpmodel.conf": "< POWER_MODEL ID=3 NAME=7W >\n", "var/lib/nvpmodel/status": "pmode:0003\n"})
    monkeypatch.setattr(wiring, "find_bundle", lambda *_: bundle.folder)
    given = load(SHIPPED, built_only=False)
    assert wiring.load_recipe(given, box.data, lambda doing, share: None).power_modes == (), "the processor judges"
    with stand_ins(OLD, host_library()) as gpu:
        site = box.open(gpu)
        monkeypatch.setattr("appliance.wiring.machine.machine_of", lambda *_: GpuMachine(box.data, site, box.build))
        loaded = wiring.load_recipe(given, box.data, lambda doing, share: None)
        assert loaded.power_modes == ("7W",)
        loaded.close()


@pytest.mark.parametrize(("fps", "pitch_mm"), [(30, 200), (120, 100), (120, 30)])
def test_a_camera_that_runs_by_itself_shows_each_part_one_frame(tmp_path: Path, fps: int, pitch_mm: int) -> None:
    """A quarter of the pitch would take in several frames, and each part were ambiguous."""
    text = SHIPPED.read_text().replace("    fps: 60\n", f"    fps: {fps}\n    trigger: free-run\n")
    file = tmp_path / "station.yaml"
    file.write_text(text.replace("min_pitch_mm: 20", f"min_pitch_mm: {pitch_mm}"))
    station = load(file, built_only=False)
    matcher, period_ns, found = wiring.matcher_of(station, "top"), 1e9 / fps, []
    every_ns = round(max(pitch_mm / 500, 2 / fps) * 1e9)  # at 500 mm/s, at most every other frame shows one
    parts = {number: 10**9 + number * every_ns for number in range(1, 60)}
    waiting = sorted(parts.items())
    for number in range(round(60 * every_ns / period_ns)):
        middle_ns = round(10**9 + number * period_ns)
        while waiting and waiting[0][1] <= middle_ns + 4_000_000:
            part, at_ns = waiting.pop(0)
            matcher.trigger(part, at_ns, at_ns + 10**9)
        matcher.frame(Frame(memoryview(b""), 0, 0, (1, 1), "mono8", number, middle_ns, middle_ns + 4_000_000, lambda: None))
        found += matcher.due(middle_ns + 4_000_000)
    found += matcher.due(2**62)
    kinds = [match.kind for match in found]
    assert kinds.count("frame") >= 0.9 * len(parts), kinds
    assert "ambiguous" not in kinds
