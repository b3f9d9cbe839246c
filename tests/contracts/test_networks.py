"""What inspectd may rely on, of every engine: onnxruntime, OpenVINO, TensorRT of three generations, jetson-inference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.clock import now_ns
from appliance.model import pixels
from appliance.model.bundle import Bundle
from appliance.model.golden import load_golden, part_score, replay
from appliance.model.preprocess import prepare
from appliance.ports import EngineError, Frame
from tests.contracts.network_rigs import RIGS, NetworkRig
from tests.model.tiny import classifier, tiny_bundle

NEVER_NS, SIZE, ROI = 2**62, (96, 64), (8, 6, 66, 50)
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
EVERY = pytest.mark.parametrize("rig", list(RIGS), indirect=True)
LEVELS = (20, 70, 120, 200)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    given = {"tensor": "image", "size": [32, 32], "channels": 3, "fit": "stretch", **IMAGENET}
    return tiny_bundle(tmp_path_factory.mktemp("tiny"), "classify", 3, classifier(3, int8=False, weight=1.5), input=given)


@pytest.fixture
def rig(request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path) -> Iterator[NetworkRig]:
    with RIGS[request.param](bundle, tmp_path) as made:
        yield made


def shot(rig: NetworkRig, pixel: str = "rgb8", level: int = 120, padding: int = 0, seed: int = 1) -> Frame:
    """A frame of a camera: noise around a level, padding behind each row."""
    pitch = pixels.bytes_per_row(pixel, SIZE[0]) + padding
    noise = np.random.default_rng(seed).normal(level, 9, pixels.frame_bytes(pixel, *SIZE, pitch))
    memory, address = rig.place(np.clip(noise, 0, 255).astype(np.uint8))
    return Frame(memory, address, pitch, SIZE, pixel, seed, now_ns(), now_ns(), lambda: None)


def asked(rig: NetworkRig, frame: Frame, roi: Any = None) -> tuple[np.ndarray, Any]:
    found = rig.network.wait(rig.network.submit(frame, roi), NEVER_NS)
    assert found is not None
    return found.scores.copy(), found


def wanted(rig: NetworkRig, bundle: Bundle, frame: Frame, roi: Any) -> np.ndarray:
    """Of the reference's tensor, by the float graph's own definition (tests/model/tiny.py)."""
    made = prepare(np.frombuffer(frame.memory, np.uint8), frame.size, frame.pitch_bytes, frame.pixel, roi, bundle.input)
    middle = 1.5 * float(made.tensor.mean())
    logits = np.array([0.0, -middle - 2, middle - 2])
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum(), np.float32)


@EVERY
def test_scores_are_those_of_the_reference_whatever_roi_padding_and_format(rig: NetworkRig, bundle: Bundle) -> None:
    for pixel in rig.pixels:
        for number, roi in enumerate((None, ROI)):
            frame = shot(rig, pixel, LEVELS[number], padding=32 * number, seed=number + 3)
            scores, found = asked(rig, frame, roi)
            assert found.task == "classify" and scores.dtype == np.float32 and scores.shape == (3,)
            np.testing.assert_allclose(scores, wanted(rig, bundle, frame, roi), atol=0.02, err_msg=f"{pixel} {roi}")


@EVERY
def test_statistics_are_those_of_the_roi_as_delivered(rig: NetworkRig, bundle: Bundle) -> None:
    for number in range(3):
        frame = shot(rig, level=LEVELS[number], padding=16, seed=number + 1)
        _, found = asked(rig, frame, ROI)
        made = prepare(np.frombuffer(frame.memory, np.uint8), SIZE, frame.pitch_bytes, "rgb8", ROI, bundle.input)
        np.testing.assert_array_equal(found.statistics.histogram, made.histogram)
        assert found.statistics.total == made.total
        assert found.statistics.laplacian_variance == pytest.approx(made.laplacian_variance, rel=1e-6)


@EVERY
def test_no_answer_is_of_the_frame_before(rig: NetworkRig, bundle: Bundle) -> None:
    frames = [shot(rig, level=level, seed=level) for level in LEVELS]
    alone = [asked(rig, frame)[0] for frame in frames]
    for turn in range(12):
        number = turn * 7 % len(frames)
        np.testing.assert_allclose(asked(rig, frames[number])[0], alone[number], atol=1e-6)
    assert len({tuple(scores.round(3)) for scores in alone}) == len(frames)


@EVERY
def test_a_ticket_is_answered_once_and_only_the_newest(rig: NetworkRig) -> None:
    old = rig.network.submit(shot(rig, seed=1), None)
    new = rig.network.submit(shot(rig, seed=2), None)
    with pytest.raises(EngineError, match="not the one that waits"):
        rig.network.wait(old, NEVER_NS)
    assert rig.network.wait(new, NEVER_NS) is not None
    with pytest.raises(EngineError, match="not the one that waits"):
        rig.network.wait(new, NEVER_NS)


@EVERY
def test_a_frame_that_does_not_fit_is_refused_in_words_and_the_next_is_judged(rig: NetworkRig) -> None:
    good, _ = asked(rig, shot(rig))
    for wrong, roi in ((shot(rig), (0, 0, 97, 64)), (shot(rig), (90, 60, 20, 20))):
        with pytest.raises(EngineError) as refused:
            asked(rig, wrong, roi)
        assert len(str(refused.value).split()) > 4
    np.testing.assert_allclose(asked(rig, shot(rig))[0], good, atol=1e-6)


@EVERY
def test_a_deadline_that_is_past_gives_no_answer_or_a_whole_one(rig: NetworkRig, bundle: Bundle) -> None:
    frame = shot(rig)
    found = rig.network.wait(rig.network.submit(frame, None), 1)
    assert found is None or np.allclose(found.scores, wanted(rig, bundle, frame, None), atol=0.02)
    np.testing.assert_allclose(asked(rig, frame)[0], wanted(rig, bundle, frame, None), atol=0.02)


@EVERY
def test_golden_vectors_are_reproduced_before_and_between_frames(rig: NetworkRig, bundle: Bundle) -> None:
    golden = load_golden(bundle)
    if "rgb8" != golden.pixel:
        pytest.fail("the contract's vectors are rgb8")
    for index in range(len(golden)):
        replay(rig.network, bundle, golden, index)
        asked(rig, shot(rig, level=LEVELS[index % 4]))


@EVERY
def test_warming_is_no_frame_of_a_camera(rig: NetworkRig) -> None:
    copies = rig.network.frame_copies
    blank = Frame(memoryview(bytearray(96 * 64 * 3)), 0, 96 * 3, SIZE, "rgb8", 0, 0, 0, lambda: None)
    rig.network.warm(blank, ROI)
    asked(rig, shot(rig), ROI)
    assert rig.network.frame_copies == copies, "frames are read where they lie"


@EVERY
def test_it_says_what_it_is_and_how_it_does(rig: NetworkRig, bundle: Bundle) -> None:
    told = rig.network.identity
    assert told["name"] == bundle.name and told["digest"] == bundle.digest
    assert told["precision"] in ("int8", "float16", "float32") and len(told["engine"]) > 5
    scores, found = asked(rig, shot(rig))
    assert isinstance(rig.network.statistics(), dict) and found.preprocess_ms >= 0 and found.infer_ms >= 0
    assert 0 <= part_score(found, bundle) <= 1 and scores.sum() == pytest.approx(1, abs=0.01)
