"""What is put together is taken apart again: a recipe that is refused leaves nothing on the GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance import wiring
from appliance.model import golden
from appliance.model.golden import GoldenError
from appliance.ports import EngineError
from appliance.wiring_machine import GpuMachine
from tests.kernels.host_library import host_library
from tests.model.tiny import tiny_bundle
from tests.test_engines import OLD, Box, stand_ins


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
        monkeypatch.setattr("appliance.wiring_machine.machine_of", lambda *_: GpuMachine(box.data, site, box.build))
        with pytest.raises(type(why)):
            wiring.load_recipe(station(tmp_path / "station.yaml"), box.data, lambda doing, share: None)
        assert replayed and gpu.live() == 0 and gpu.live_handles() == 0 and gpu.left_pushed() == []
