"""A bundle is read whole, or refused with the file, the line and what to do."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from appliance.model.bundle import Bundle, BundleError, load_bundle
from appliance.wiring.models import cpu_network
from tests.model.tiny import tiny_bundle


def change(bundle: Bundle, old: str, new: str) -> None:
    path = bundle.folder / "model.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def replace_file(bundle: Bundle, name: str, content: bytes) -> None:
    """Another file under its right digest: only its content is wrong."""
    (bundle.folder / name).write_bytes(content)
    change(bundle, bundle.files[name], "sha256:" + hashlib.sha256(content).hexdigest())


def test_a_good_bundle_tells_all_that_model_yaml_says(bundle: Bundle) -> None:
    raw = (bundle.folder / "model.yaml").read_bytes()
    assert bundle.digest == "sha256:" + hashlib.sha256(raw).hexdigest()
    assert (bundle.name, bundle.task, bundle.taught_on, bundle.precision) == ("tiny", "classify", "photographs", "int8")
    assert bundle.classes == ("good", "dark", "bright") and bundle.good == ("good",) and bundle.defects == (1, 2)
    assert bundle.input.size == (32, 32) and bundle.thresholds.fail_at == 0.6
    assert not bundle.has_regions


def test_a_bundle_is_frozen(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="frozen"):
        bundle.name = "other"  # type: ignore[misc]


def test_a_missing_folder_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle there .*name a folder with model.yaml"):
        load_bundle(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("task: classify", "task: clasify", r"model.yaml:\d+:\d+: task: .*'classify' or 'anomaly'"),
        ("revision: 1", "revision: 1\nmystery: 2", r"model.yaml:5:\d+: mystery: .*not permitted"),
        ("name: tiny", "name: [", r"model.yaml:\d+:\d+: this is not YAML"),
        ("name: tiny", "name: &a tiny", "anchors"),
        ("review_at: 0.4", "review_at: 0.7", "review_at 0.7 lies above fail_at 0.6"),
        ("fail_at: 0.6", "fail_at: 60", "thresholds.fail_at: Input should be less than or equal to 1"),
        ("- bright", "- dark", "classes names one twice"),
        ("good:\n- good", "good:\n- fine", "good names fine; write some of good, dark, bright"),
        ("good:\n- good", "good:\n- good\n- dark\n- bright", "every class is good"),
        ("  tensor: scores\n", "", "output.tensor is missing"),
        ("  mean:\n  - 0.5", "  mean:\n  - 0.5\n  - 0.5", "mean and std need 1 number"),
        ("  - 1.0", "  - 0.0", "input.std.0: Input should be greater than 0"),
        ("schema: 1", "schema: 2", "schema: Input should be 1"),
        ("model.onnx:", "../model.onnx:", "files does not name model.onnx"),
        ("model.onnx: ", "../away.onnx: sha256:" + "0" * 64 + "\n  model.onnx: ", "only files inside the bundle's folder"),
    ],
)
def test_each_mistake_in_model_yaml_is_named(bundle: Bundle, old: str, new: str, said: str) -> None:
    change(bundle, old, new)
    with pytest.raises(BundleError, match=said):
        load_bundle(bundle.folder)


def test_several_mistakes_are_told_at_once(bundle: Bundle) -> None:
    change(bundle, "task: classify", "task: guess")
    change(bundle, "revision: 1", "revision: one")
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle.folder)
    assert "task" in str(caught.value) and "revision" in str(caught.value)


def test_a_changed_weight_file_is_refused_by_its_digest(bundle: Bundle) -> None:
    raw = bytearray(bundle.onnx.read_bytes())
    raw[-1] ^= 1
    bundle.onnx.write_bytes(raw)
    with pytest.raises(BundleError, match="model.onnx: its digest is sha256:.* model.yaml says .*copy the bundle anew"):
        load_bundle(bundle.folder)


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_a_missing_file_is_named(bundle: Bundle, name: str) -> None:
    (bundle.folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: cannot be read"):
        load_bundle(bundle.folder)


def test_a_model_yaml_beyond_its_limit_is_not_read(bundle: Bundle) -> None:
    (bundle.folder / "model.yaml").write_bytes(b"#" * 1_100_000)
    with pytest.raises(BundleError, match="at most 1048576"):
        load_bundle(bundle.folder)


def test_an_onnx_that_is_none_is_refused_when_the_engine_is_made(bundle: Bundle) -> None:
    replace_file(bundle, "model.onnx", b"this is no model")
    with pytest.raises(BundleError, match="model.onnx is not a model that can be run"):
        cpu_network(load_bundle(bundle.folder))


def test_an_input_of_another_size_than_model_yaml_says_is_refused(bundle: Bundle) -> None:
    change(bundle, "  size:\n  - 32\n  - 32", "  size:\n  - 64\n  - 32")
    with pytest.raises(BundleError, match=r"takes image \[1, 1, 32, 32\]; model.yaml says image \[1, 1, 32, 64\]"):
        cpu_network(load_bundle(bundle.folder))


def test_more_classes_than_the_network_has_are_refused(bundle: Bundle) -> None:
    change(bundle, "- bright", "- bright\n- more")
    with pytest.raises(BundleError, match=r"scores is \[1, 3\], model.yaml has 4 classes"):
        cpu_network(load_bundle(bundle.folder))


def test_an_output_the_network_has_not_is_refused(bundle: Bundle) -> None:
    change(bundle, "tensor: scores", "tensor: verdicts")
    with pytest.raises(BundleError, match="no output verdicts, only scores"):
        cpu_network(load_bundle(bundle.folder))


def test_a_written_model_yaml_has_no_anchors_though_a_list_stands_twice(tmp_path: Path) -> None:
    twice = [1, 2]
    made = tiny_bundle(tmp_path / "b", promise={"a": twice, "b": twice})
    assert yaml.safe_load((made.folder / "model.yaml").read_text())["promise"] == {"a": [1, 2], "b": [1, 2]}
