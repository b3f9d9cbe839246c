"""The bundle that ships: whole, small, lawful, and with its proof."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from appliance.model.bundle import BundleError, load_bundle
from appliance.model.golden import GoldenError, replay_all
from appliance.model.graph import float_model, lint, quantised
from appliance.twin.parts import KINDS
from appliance.wiring.models import cpu_network

FOLDER = Path(__file__).resolve().parents[2] / "models/cap-28mm"


def test_it_is_whole_small_and_within_the_contracts_rules() -> None:
    bundle = load_bundle(FOLDER)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4 * 1024 * 1024
    model = onnx.load(str(bundle.onnx))
    assert quantised(model) and not lint(model)
    assert not quantised(float_model(model))


def test_it_reproduces_its_golden_vectors() -> None:
    bundle = load_bundle(FOLDER)
    assert len(replay_all(cpu_network(bundle), bundle)) >= 8


def test_its_promise_and_proof_stand_in_it() -> None:
    bundle = load_bundle(FOLDER)
    held_out = bundle.metrics["held_out"]
    assert set(bundle.promise["defects"]) == set(KINDS) == set(held_out["recall_per_kind"])
    assert held_out["false_reject_rate"]["interval_95"][1] < 0.01
    assert held_out["recall"]["interval_95"][0] > 0.99
    seeds = [bundle.data[name]["seed"] for name in ("train", "calibration", "held_out")]
    assert len(set(seeds)) == 3


def test_one_changed_weight_is_refused_by_digest_and_by_golden_vectors(tmp_path: Path) -> None:
    folder = tmp_path / "cap-28mm"
    shutil.copytree(FOLDER, folder)
    model = onnx.load(str(folder / "model.onnx"))
    weights = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    weights.raw_data = bytes(len(weights.raw_data))
    onnx.save(model, str(folder / "model.onnx"))
    with pytest.raises(BundleError, match="digest"):
        load_bundle(folder)
    from appliance.model.bundle import file_digest

    text = (folder / "model.yaml").read_text()
    original = load_bundle(FOLDER).files["model.onnx"]
    (folder / "model.yaml").write_text(text.replace(original, file_digest(folder / "model.onnx")))
    bundle = load_bundle(folder)
    with pytest.raises(GoldenError, match="golden vector"):
        replay_all(cpu_network(bundle), bundle)
