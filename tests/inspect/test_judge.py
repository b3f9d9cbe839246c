"""Thresholds, review band, cause, regions, several cameras: tables of cases from the contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.inspect.judge import Judgement, blind, judge, limits_of, worst
from appliance.inspect.regions import MOST_REGIONS, regions_of, standing_score
from appliance.messages import WORST_FIRST
from appliance.model.bundle import Bundle, BundleError, InputSpec
from appliance.ports import Counted, Findings
from tests.model.tiny import meta

ROI = (100, 50, 64, 64)


def bundle(task: str = "classify", **changes: Any) -> Bundle:
    return Bundle.model_validate({**meta(task), "files": {}, "schema": 1, "precision": "int8", **changes})


def scores(*values: float) -> Findings:
    return Findings("classify", np.array(values, np.float32), None, None, Counted(np.zeros(256, np.int64), 0, 0), 0, 0)


def mapped(score_map: np.ndarray, score: float | None = None) -> Findings:
    score = float(score_map.max()) / 255 if score is None else score
    return Findings("anomaly", np.array([score], np.float32), score_map, None, Counted(np.zeros(256, np.int64), 0, 0), 0, 0)


def verdict_of(
    found: Findings, of: Bundle, review: float | None = None, fail: float | None = None, **classes: Any
) -> Judgement:
    return judge(found, of, limits_of(of, review, fail, classes), "top", ROI)


# --- thresholds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "verdict", "cause"),
    [
        ((0.9, 0.05, 0.05), "pass", None),
        ((0.0, 0.39, 0.0), "pass", None),
        ((0.6, 0.40, 0.0), "review", "dark"),
        ((0.0, 0.0, 0.59), "review", "bright"),
        ((0.0, 0.0, 0.75), "fail", "bright"),
        ((1.0, 0.75, 0.8), "fail", "bright"),  # a good class never fails a part, nor hides what does
    ],
)
def test_pass_review_fail(given: tuple[float, ...], verdict: str, cause: str | None) -> None:
    made = verdict_of(scores(*given), bundle())
    assert (made.verdict, made.cause) == (verdict, cause)


@pytest.mark.parametrize("fail", [0.6, 0.7, 0.85])
def test_a_score_equal_to_its_threshold_reaches_it(fail: float) -> None:
    """Also where float32 lies a hair below the number written: the record's score and verdict must agree."""
    made = verdict_of(scores(0, fail, 0), bundle(), fail=fail)
    assert (made.verdict, made.score) == ("fail", fail)
    assert verdict_of(scores(0, fail - 1e-5, 0), bundle(), fail=fail).verdict == "review"


@pytest.mark.parametrize(
    ("recipe_fail", "recipe_class", "bundle_class", "wanted"),
    [
        (None, None, None, 0.6),
        (0.7, None, None, 0.7),
        (None, None, 0.5, 0.5),
        (0.7, None, 0.5, 0.5),
        (0.7, 0.8, 0.5, 0.8),
        (None, 0.8, None, 0.8),
    ],
)
def test_threshold_is_the_classes_own_else_the_recipes_else_the_bundles(
    recipe_fail: float | None, recipe_class: float | None, bundle_class: float | None, wanted: float
) -> None:
    thresholds: dict[str, Any] = {"review_at": 0.4, "fail_at": 0.6}
    if bundle_class is not None:
        thresholds["classes"] = {"dark": {"fail_at": bundle_class}}
    classes = {"dark": (recipe_class, None)} if recipe_class is not None else {}
    made = verdict_of(scores(0, 0.45, 0), bundle(thresholds=thresholds), fail=recipe_fail, **classes)
    assert made.threshold == wanted


def test_the_class_furthest_above_its_own_threshold_is_score_and_cause() -> None:
    made = verdict_of(scores(0, 0.80, 0.85), bundle(), dark=(0.5, None), bright=(0.8, None))
    assert (made.verdict, made.cause, made.score, made.threshold, made.class_id) == ("fail", "dark", pytest.approx(0.8), 0.5, 1)


def test_one_above_its_threshold_goes_before_a_higher_score_below_its_own() -> None:
    made = verdict_of(scores(0, 0.55, 0.85), bundle(), dark=(0.5, None), bright=(0.9, None))
    assert (made.verdict, made.cause) == ("fail", "dark")


def test_with_none_above_the_highest_score_speaks() -> None:
    made = verdict_of(scores(0, 0.45, 0.55), bundle(), dark=(0.5, None), bright=(0.9, None))
    assert (made.verdict, made.cause, made.threshold) == ("review", "bright", 0.9)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), st.floats(0, 1), st.floats(0, 1))
def test_a_part_fails_exactly_when_a_class_that_is_not_good_reaches_its_threshold(
    given: list[float], dark: float, bright: float
) -> None:
    of = bundle(thresholds={"review_at": 0.0, "fail_at": 0.6})
    made = verdict_of(scores(*given), of, dark=(dark, None), bright=(bright, None))
    assert (made.verdict == "fail") == (round(given[1], 6) >= dark or round(given[2], 6) >= bright)


def test_scores_that_are_no_numbers_are_blind() -> None:
    made = verdict_of(scores(0, float("nan"), 0), bundle())
    assert (made.verdict, made.cause, made.score) == ("blind", "engine", None)


# --- recipe against bundle ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0.7, None, {}), "review_at 0.7 lies above dark's fail_at 0.6"),
        ((None, None, {"bright": (0.3, None)}), "review_at 0.4 lies above bright's fail_at 0.3"),
        ((None, None, {"scratch": (0.5, None)}), "no class scratch that can fail; write one of dark, bright"),
        ((None, None, {"good": (0.5, None)}), "no class good that can fail"),
        ((None, None, {"dark": (None, 12)}), "finds no regions, so min_area_px of dark means nothing"),
    ],
)
def test_a_recipe_that_does_not_fit_its_bundle_is_refused(arguments: Any, said: str) -> None:
    with pytest.raises(BundleError, match=said):
        limits_of(bundle(), *arguments)


# --- regions --------------------------------------------------------------------------------------------------


def spot(y: int, x: int, height: int, width: int, value: int = 255, base: int = 0) -> np.ndarray:
    made = np.full((32, 32), base, np.uint8)
    made[y : y + height, x : x + width] = value
    return made


def test_a_region_is_told_in_camera_pixels_of_the_whole_frame() -> None:
    made = verdict_of(mapped(spot(4, 8, 2, 3)), bundle("anomaly"))
    assert made.verdict == "fail" and made.cause == "anomaly" and made.class_id == 1
    (region,) = made.regions
    assert (region.camera, region.name, region.score) == ("top", "anomaly", 1.0)
    assert region.box == (100 + 16, 50 + 8, 6, 4) and region.area_px == 24


def test_a_map_coarser_than_the_input_and_a_roi_wider_than_high() -> None:
    grid = np.zeros((8, 8), np.uint8)
    grid[1, 2] = 255
    spec = InputSpec.model_validate(meta("anomaly")["input"])
    ((score, box, area),) = regions_of(grid, 0.5, (10, 20, 320, 160), spec)
    assert (score, box, area) == (1.0, (10 + 80, 20 + 20, 40, 20), 800)


def test_letterbox_pad_is_cut_off_and_places_lie_where_they_are() -> None:
    """A ROI of 64 x 32 in a 32 x 32 input: rows 8..23 are picture, one map pixel is 2 x 2 camera pixels."""
    spec = InputSpec.model_validate({**meta("anomaly")["input"], "fit": "letterbox"})
    grid = np.zeros((32, 32), np.uint8)
    grid[0:4] = 255  # the pad's own anomaly is nobody's
    grid[8, 0] = grid[23, 31] = 255
    found = regions_of(grid, 0.5, (100, 50, 64, 32), spec)
    assert sorted(box for _, box, _ in found) == [(100, 50, 2, 2), (162, 80, 2, 2)]


def test_touching_corners_are_one_region_and_the_largest_comes_first() -> None:
    grid = spot(0, 0, 1, 1) | spot(1, 1, 1, 1) | spot(10, 10, 3, 3)
    spec = InputSpec.model_validate(meta("anomaly")["input"])
    assert [area for _, _, area in regions_of(grid, 0.5, ROI, spec)] == [36, 8]


def test_regions_are_capped() -> None:
    grid = np.zeros((32, 32), np.uint8)
    grid[::2, ::2] = 255
    made = verdict_of(mapped(grid), bundle("anomaly"))
    assert len(made.regions) == MOST_REGIONS


def test_a_failed_part_shows_what_failed_and_a_review_what_made_it_so() -> None:
    both = spot(2, 2, 3, 3, 120) | spot(20, 20, 4, 4, 200)
    assert [region.area_px for region in verdict_of(mapped(both), bundle("anomaly")).regions] == [64]
    only = verdict_of(mapped(spot(2, 2, 3, 3, 120)), bundle("anomaly"))
    assert only.verdict == "review" and [region.area_px for region in only.regions] == [36]
    assert verdict_of(mapped(spot(2, 2, 3, 3, 60)), bundle("anomaly")).regions == ()


def test_a_place_smaller_than_min_area_px_does_not_fail_the_part() -> None:
    """Four camera pixels a map pixel: 12 camera pixels are three of the map's."""
    one = verdict_of(mapped(spot(5, 5, 1, 2)), bundle("anomaly"), anomaly=(None, 12))
    assert (one.verdict, one.score, one.regions) == ("pass", 0.0, ())
    three = verdict_of(mapped(spot(5, 5, 1, 3)), bundle("anomaly"), anomaly=(None, 12))
    assert (three.verdict, three.score) == ("fail", 1.0) and three.regions[0].area_px == 12


def test_a_hot_core_too_small_in_a_wide_mild_place_is_judged_by_the_place() -> None:
    grid = spot(4, 4, 8, 8, 120) | spot(7, 7, 1, 1, 255)
    made = verdict_of(mapped(grid), bundle("anomaly"), anomaly=(None, 100))
    assert made.verdict == "review" and made.score == pytest.approx(120 / 255)
    assert made.score is not None and made.threshold is not None and made.score < made.threshold
    assert [region.area_px for region in made.regions] == [256]


def test_standing_score_is_the_highest_level_with_a_place_large_enough() -> None:
    rng = np.random.default_rng(3)
    spec = InputSpec.model_validate(meta("anomaly")["input"])
    grid = rng.integers(0, 256, (32, 32)).astype(np.uint8)
    for least in (1, 8, 40, 400):
        level = round(standing_score(grid, ROI, spec, least) * 255)
        assert regions_of(grid, level / 255, ROI, spec, least)
        assert level == 255 or not regions_of(grid, (level + 1) / 255, ROI, spec, least)


def test_a_map_that_disagrees_with_a_score_of_its_own_fails_without_regions() -> None:
    made = verdict_of(mapped(np.zeros((32, 32), np.uint8), 0.9), bundle("anomaly"))
    assert made.verdict == "fail" and made.regions == ()


# --- several cameras ---------------------------------------------------------------------------------------------


def test_the_worst_camera_speaks_for_the_part_in_the_contracts_order() -> None:
    told = {name: Judgement(name, name, 0.5, 0.6, 1) for name in WORST_FIRST}
    for index, name in enumerate(WORST_FIRST):
        assert worst([told[other] for other in reversed(WORST_FIRST[index:])]).verdict == name


def test_of_two_fails_the_one_furthest_above_speaks_and_all_regions_stay() -> None:
    left = verdict_of(mapped(spot(1, 1, 2, 2, 200)), bundle("anomaly"), anomaly=(0.5, None))
    right = verdict_of(mapped(spot(5, 5, 2, 2, 210)), bundle("anomaly"), anomaly=(0.8, None))
    made = worst([right, left])
    assert made.score == left.score and len(made.regions) == 2


def test_blind_has_no_score() -> None:
    assert worst([blind("frozen"), Judgement("review", "dark", 0.5, 0.6, 1)]) == blind("frozen")
