"""Raw outputs to scores 0..1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from appliance.inspect.decode import decode, decode_reduced
from appliance.model.bundle import Bundle
from tests.model.tiny import meta

DIGESTS = {"files": {}, "schema": 1, "precision": "int8"}


def bundle(task: str, **output: Any) -> Bundle:
    return Bundle.model_validate({**meta(task), **DIGESTS, "output": output})


def raw(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


@pytest.mark.parametrize(
    ("activation", "given", "wanted"),
    [
        ("softmax", (1.0, 1.0, 1.0), (1 / 3, 1 / 3, 1 / 3)),
        ("softmax", (1000.0, 0.0, -1000.0), (1, 0, 0)),
        ("sigmoid", (0.0, 100.0, -100.0), (0.5, 1, 0)),
        ("none", (0.25, 1.5, -0.5), (0.25, 1, 0)),
    ],
)
def test_classify_activations(activation: str, given: tuple[float, ...], wanted: tuple[float, ...]) -> None:
    scores, score_map = decode({"scores": raw(*given)}, bundle("classify", tensor="scores", activation=activation))
    assert scores.tolist() == pytest.approx(wanted, abs=1e-6) and scores.dtype == np.float32
    assert score_map is None


def test_outputs_of_more_dimensions_are_classes_in_a_row() -> None:
    scores, _ = decode({"scores": raw(1, 2, 3).reshape(1, 3, 1, 1)}, bundle("classify", tensor="scores", activation="softmax"))
    assert scores.shape == (3,)


def test_what_is_no_number_stays_none() -> None:
    scores, _ = decode({"scores": raw(np.nan, 0, 0)}, bundle("classify", tensor="scores", activation="softmax"))
    assert np.isnan(scores).all()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("broken", [np.inf, -np.inf, np.nan])
def test_what_ran_over_is_no_number_either(activation: str, broken: float) -> None:
    """float16 ends at 65504: clipped, an infinite value were a sure answer that nobody gave."""
    scores, _ = decode({"scores": raw(0.2, broken, 0.1)}, bundle("classify", tensor="scores", activation=activation))
    assert np.isnan(scores).all()


@pytest.mark.parametrize("broken", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("output", [{"map": "map"}, {"score": "score"}])
def test_a_map_that_ran_over_gives_no_score(broken: float, low: float, high: float, output: dict[str, str]) -> None:
    """On the good side too: 0.0 would be a pass."""
    outputs = {"map": np.full((1, 1, 2, 2), 0.5, np.float32), "score": raw(broken)}
    outputs["map"][0, 0, 1, 1] = broken
    scores, _ = decode(outputs, bundle("anomaly", **output, low=low, high=high))
    assert np.isnan(scores).all()


def test_an_anomaly_map_is_mapped_linearly_and_clipped() -> None:
    shape = bundle("anomaly", map="map", low=2.0, high=12.0)
    scores, score_map = decode({"map": np.array([[[[0, 2], [7, 22]]]], np.float32)}, shape)
    assert score_map is not None and score_map.tolist() == [[0, 0], [128, 255]]
    assert scores.tolist() == [1.0]


def test_an_anomaly_score_of_its_own_goes_before_the_maps_highest() -> None:
    shape = bundle("anomaly", map="map", score="score", low=0.0, high=10.0)
    scores, score_map = decode({"map": np.full((1, 1, 2, 2), 9, np.float32), "score": raw(3)}, shape)
    assert scores.tolist() == pytest.approx([0.3]) and score_map is not None and score_map.max() == 230


def test_an_anomaly_score_alone_has_no_map() -> None:
    scores, score_map = decode({"score": raw(5)}, bundle("anomaly", score="score", low=0.0, high=10.0))
    assert scores.tolist() == [0.5] and score_map is None


def test_a_scale_that_runs_downward_takes_the_lowest_raw_as_worst() -> None:
    scores, _ = decode({"map": np.array([[[[1, 9]]]], np.float32)}, bundle("anomaly", map="map", low=10.0, high=0.0))
    assert scores.tolist() == pytest.approx([0.9])


def test_an_output_that_is_not_there_is_named() -> None:
    with pytest.raises(KeyError, match="scores"):
        decode({"other": raw(1)}, bundle("classify", tensor="scores"))


# --- what a GPU's reducers leave ------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_reduced_classes_are_decoded_alike(activation: str) -> None:
    outputs, made = {"scores": raw(0.3, -2.0, 1.7)}, bundle("classify", tensor="scores", activation=activation)
    np.testing.assert_array_equal(decode_reduced(outputs, 0.0, None, made)[0], decode(outputs, made)[0])
    assert decode_reduced(outputs, 0.0, None, made)[1] is None


@pytest.mark.parametrize("output", [{"map": "map"}, {"map": "map", "score": "score"}, {"score": "score"}])
@pytest.mark.parametrize(("low", "high"), [(0.1, 0.8), (0.8, 0.1)])
@pytest.mark.parametrize("broken", [False, True])
def test_a_reduced_map_is_decoded_alike(output: dict[str, str], low: float, high: float, broken: bool) -> None:
    made = bundle("anomaly", **output, low=low, high=high)
    score_map = np.random.default_rng(4).random((1, 1, 5, 7), np.float32)
    if broken:
        score_map[0, 0, 2, 3] = np.nan
    outputs = {"map": score_map, "score": raw(0.42)}
    scores, shares = decode(outputs, made)
    worst = float(score_map.max() if low < high else score_map.min())
    whole = {name: outputs[name] for name in output.values() if name != "map"}
    got, given_back = decode_reduced(whole, worst, shares, made)
    np.testing.assert_array_equal(got, scores)
    assert got.dtype == np.float32 and got.shape == (1,) and given_back is shares


def test_a_reduced_anomaly_without_score_or_map_is_an_error() -> None:
    made = bundle("anomaly", map="map")
    without = made.model_copy(update={"output": made.output.model_copy(update={"map": None})})
    with pytest.raises(KeyError):
        decode_reduced({}, 0.0, None, without)
