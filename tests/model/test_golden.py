"""A planted difference is named by the first stage that shows it; what cannot be believed is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from appliance.model.bundle import Bundle, BundleError, load_bundle
from appliance.model.golden import GoldenError, frame_of, load_golden, part_score, replay, replay_all
from appliance.model.preprocess_cv2 import prepare_cv2
from appliance.ports import Counted, Findings, Frame
from appliance.wiring.models import cpu_network
from tests.model.tiny import classifier, frames, tiny_bundle


def altered(bundle: Bundle, old: str, new: str) -> Bundle:
    path = bundle.folder / "model.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return load_bundle(bundle.folder)


def with_file(bundle: Bundle, name: str, content: bytes) -> Bundle:
    (bundle.folder / name).write_bytes(content)
    return altered(bundle, bundle.files[name], "sha256:" + hashlib.sha256(content).hexdigest())


def with_golden(bundle: Bundle, **changes: Any) -> Bundle:
    """golden.npz with some arrays changed or left out (None)."""
    with np.load(bundle.golden) as stored:
        arrays = {**stored, **changes}
    np.savez(bundle.folder / "made.npz", **{name: value for name, value in arrays.items() if value is not None})
    raw = (bundle.folder / "made.npz").read_bytes()
    return with_file(bundle, "golden.npz", raw)


@pytest.mark.parametrize(("task", "channels"), [("classify", 1), ("classify", 3), ("anomaly", 1)])
def test_a_sound_bundle_reproduces_its_vectors(tmp_path: Path, task: str, channels: int) -> None:
    made = tiny_bundle(tmp_path / "b", task, channels)
    golden = replay_all(cpu_network(made), made)
    assert len(golden) == 8 and golden.scores.min() < 0.4 < 0.6 < golden.scores.max()
    assert 0.01 <= golden.tolerance <= 0.05


def test_a_wrong_mean_is_named_input(bundle: Bundle) -> None:
    wrong = altered(bundle, "  mean:\n  - 0.5", "  mean:\n  - 0.45")
    with pytest.raises(GoldenError, match="golden vector 0: input: preprocess as model.yaml says differs by 0.05") as caught:
        replay_all(cpu_network(wrong), wrong)
    assert caught.value.stage == "input" and caught.value.index == 0


def test_swapped_red_and_blue_are_named_input(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "b", "classify", 3)
    network = cpu_network(made)

    def swapped(memory: Any, size: Any, pitch: int, pixel: str, roi: Any) -> Any:
        return prepare_cv2(memory, size, pitch, "bgr8", roi, made.input)

    network._prepare = swapped  # the fault of a device that reads its camera's bytes the wrong way round
    with pytest.raises(GoldenError, match="input: this engine's preprocess differs") as caught:
        replay_all(network, made)
    assert caught.value.stage == "input"


def test_a_wrong_pixel_format_of_the_vectors_is_named_input(tmp_path: Path) -> None:
    made = with_golden(tiny_bundle(tmp_path / "b", "classify", 3), pixel=np.array("bgr8"))
    with pytest.raises(GoldenError) as caught:
        replay_all(cpu_network(made), made)
    assert caught.value.stage == "input"


def test_a_changed_weight_is_named_output(bundle: Bundle) -> None:
    wrong = with_file(bundle, "model.onnx", classifier(weight=12.0).SerializeToString())
    with pytest.raises(GoldenError, match="output: the engine's scores differs by .*; weights or engine; the score is") as caught:
        replay_all(cpu_network(wrong), wrong)
    assert caught.value.stage == "output"


def test_a_wrong_activation_is_named_score(bundle: Bundle) -> None:
    wrong = altered(bundle, "activation: softmax", "activation: sigmoid")
    with pytest.raises(GoldenError, match="score: the engine's scores agrees") as caught:
        replay_all(cpu_network(wrong), wrong)
    assert caught.value.stage == "score"


def test_a_wrong_mapping_of_anomaly_scores_is_named_score(tmp_path: Path) -> None:
    wrong = altered(tiny_bundle(tmp_path / "b", "anomaly"), "high: 1.0", "high: 2.0")
    with pytest.raises(GoldenError) as caught:
        replay_all(cpu_network(wrong), wrong)
    assert caught.value.stage == "score"


class Broken:
    """A network that answers with what is no number."""

    last_input = None
    last_outputs: dict[str, Any] = {}

    def submit(self, frame: Frame, roi: Any) -> int:
        return 1

    def wait(self, ticket: int, deadline_ns: int) -> Findings | None:
        nothing = np.full(3, np.nan, np.float32)
        return Findings("classify", nothing, None, None, Counted(np.zeros(256, np.int64), 0, 0.0), 0.0, 0.0)


def test_scores_that_are_no_numbers_are_no_agreement(bundle: Bundle) -> None:
    with pytest.raises(GoldenError):
        replay_all(Broken(), bundle)


def test_one_vector_at_a_time_for_the_running_check(bundle: Bundle) -> None:
    network, golden = cpu_network(bundle), load_golden(bundle)
    for index in (3, 0, 7):
        replay(network, bundle, golden, index)
    network._decode = lambda outputs: (np.zeros(3, np.float32), None)
    with pytest.raises(GoldenError, match="golden vector 7"):
        replay(network, bundle, golden, 7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tolerance": np.array(0.06)}, "tolerance 0.06, at most 0.05 is believed"),
        ({"tolerance": np.array(0.0)}, "tolerance 0.0"),
        ({"tolerance": np.array(np.nan)}, "tolerance nan"),
        ({"score": None}, "cannot be read as golden vectors"),
        ({"score": np.zeros(5, np.float32)}, "not equally many"),
        ({"frame": np.zeros((7, 64, 64), np.uint8)}, "7 cases, at least 8"),
        ({"input": np.zeros((8, 1, 16, 16), np.float32)}, r"inputs are \(1, 16, 16\), model.yaml says \(1, 32, 32\)"),
        ({"score": np.full(8, np.nan, np.float32)}, "no numbers"),
    ],
)
def test_vectors_that_cannot_be_believed_are_refused(bundle: Bundle, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BundleError, match=said):
        load_golden(with_golden(bundle, **changes))


def test_a_golden_file_that_is_none_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="cannot be read as golden vectors"):
        load_golden(with_file(bundle, "golden.npz", b"PK\x03\x04 no archive"))


def test_vectors_without_an_output_tolerance_are_read(bundle: Bundle) -> None:
    made = with_golden(bundle, output_tolerance=None)
    replay_all(cpu_network(made), made)


def test_part_score_leaves_good_classes_out(bundle: Bundle) -> None:
    nothing = Counted(np.zeros(256, np.int64), 0, 0)
    found = Findings("classify", np.array([0.9, 0.04, 0.06], np.float32), None, None, nothing, 0, 0)
    assert part_score(found, bundle) == pytest.approx(0.06)


def test_frame_of_words_has_their_pitch() -> None:
    frame = frame_of(np.zeros((4, 6), np.uint16), "mono16")  # type: ignore[arg-type]
    assert (frame.size, frame.pitch_bytes, len(frame.memory)) == ((6, 4), 12, 48)


# --- writing bundles ---------------------------------------------------------------------------------------


def test_int8_too_far_from_float_is_refused_and_leaves_no_bundle(tmp_path: Path) -> None:
    coarse = classifier()
    for one in coarse.graph.initializer:
        if one.name == "image_8_scale":
            one.CopyFrom(onnx.numpy_helper.from_array(np.array(0.3, np.float32), one.name))
    with pytest.raises(BundleError, match=r"INT8 differs from float by 0\.\d+ on a golden frame, at most 0.05"):
        tiny_bundle(tmp_path / "b", graph=coarse)
    assert not (tmp_path / "b").exists()


def test_a_graph_that_breaks_the_rules_makes_no_bundle(tmp_path: Path) -> None:
    graph = classifier()
    graph.opset_import[0].version = 16
    with pytest.raises(BundleError, match="breaks the bundle's rules: opset 16"):
        tiny_bundle(tmp_path / "b", graph=graph)


@pytest.mark.parametrize(
    ("given", "pixel", "said"),
    [
        (frames()[:7], "mono8", "7 golden frames, at least 8"),
        ([*frames(), frames(side=50)[0]], "mono8", "not all uint8 of one size"),
        (frames(3), "mono8", "do not have the channels of mono8"),
        (frames(), "bayer_rggb8", "give them as mono8, rgb8 or bgr8"),
    ],
)
def test_golden_frames_that_do_not_fit_make_no_bundle(tmp_path: Path, given: Any, pixel: str, said: str) -> None:
    from appliance.wiring.models import write_bundle
    from tests.model.tiny import meta

    with pytest.raises(BundleError, match=said):
        write_bundle(tmp_path / "b", classifier(), meta(), given, pixel)


def test_meta_that_is_not_valid_is_told_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="taught_on"):
        tiny_bundle(tmp_path / "b", taught_on="hearsay")


def test_a_bundle_written_twice_holds_only_its_three_files(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "b")
    tiny_bundle(tmp_path / "b", metrics={"held_out": {"recall": np.float64(0.5)}})
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["golden.npz", "model.onnx", "model.yaml"]
    assert load_bundle(tmp_path / "b").metrics["held_out"]["recall"] == 0.5


def test_onnx_own_evaluator_makes_the_same_scores_as_onnxruntime(tmp_path: Path) -> None:
    from appliance.inspect.decode import decode
    from appliance.model import make_bundle
    from tests.model.tiny import meta

    slow = make_bundle.write_bundle(tmp_path / "slow", classifier(), meta(), frames(), "mono8", decode)
    quick = tiny_bundle(tmp_path / "quick")
    assert np.allclose(load_golden(slow).scores, load_golden(quick).scores, atol=1e-5)
    replay_all(cpu_network(slow), slow)
