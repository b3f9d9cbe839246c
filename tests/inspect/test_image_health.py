"""What makes a frame blind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from appliance.inspect.image_health import HealthLimits, ImageHealth
from appliance.model.bundle import InputSpec
from appliance.model.preprocess import prepare
from appliance.ports import Findings
from tests.model.tiny import meta

SPEC = InputSpec.model_validate(meta()["input"])


def findings(image: np.ndarray) -> Findings:
    """Statistics as a network gives them."""
    made = prepare(image.ravel(), (image.shape[1], image.shape[0]), image.shape[1], "mono8", None, SPEC)
    nothing = np.zeros(3, np.float32)
    return Findings("classify", nothing, None, None, made, 0, 0)


def noisy(level: float, seed: int, spread: float = 10.0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(level, spread, (64, 64)), 0, 255).astype(np.uint8)


def test_two_identical_frames_are_frozen_and_the_next_live_one_is_not() -> None:
    health = ImageHealth(HealthLimits())
    causes = [health.cause(findings(noisy(120, seed))) for seed in (1, 1, 1, 2, 1)]
    assert causes == [None, "frozen", "frozen", None, None]


def test_the_same_part_in_new_noise_is_not_frozen() -> None:
    health = ImageHealth(HealthLimits())
    assert [health.cause(findings(noisy(120, seed, 1.0))) for seed in range(6)] == [None] * 6


def test_frozen_may_be_left_unwatched() -> None:
    health = ImageHealth(HealthLimits(frozen=False))
    assert [health.cause(findings(noisy(120, 1))) for _ in range(2)] == [None, None]


@pytest.mark.parametrize(
    ("limits", "level", "cause"),
    [
        (HealthLimits(brightness=(60, 190)), 30, "dark"),
        (HealthLimits(brightness=(60, 190)), 220, "bright"),
        (HealthLimits(brightness=(60, 190)), 120, None),
        (HealthLimits(saturated_max=0.02), 250, "saturated"),
        (HealthLimits(saturated_max=0.02), 120, None),
        (HealthLimits(), 3, None),
    ],
)
def test_brightness_and_saturation(limits: HealthLimits, level: float, cause: str | None) -> None:
    assert ImageHealth(limits).cause(findings(noisy(level, 1))) == cause


def test_a_flat_picture_is_blurred_and_its_edges_are_not() -> None:
    limits = HealthLimits(sharpness_min=5.0)
    stripes = np.tile(np.repeat([40, 200], 8).astype(np.uint8), (64, 4))
    assert ImageHealth(limits).cause(findings(np.full((64, 64), 120, np.uint8))) == "blurred"
    assert ImageHealth(limits).cause(findings(stripes)) is None


def test_figures_are_kept_for_health_also_of_blind_frames() -> None:
    health = ImageHealth(HealthLimits(brightness=(60, 190)))
    image = noisy(30, 1)
    health.cause(findings(image))
    assert health.figures["brightness"] == pytest.approx(image.mean())
    assert set(health.figures) == {"brightness", "sharpness", "saturated"}


class Counting:
    """Statistics that tell what of them was asked for."""

    def __init__(self, image: np.ndarray) -> None:
        self._made, self.asked = findings(image).statistics, list[str]()

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        return getattr(self._made, name)


def test_a_picture_as_sharp_as_the_last_one_but_brighter_is_not_frozen() -> None:
    health = ImageHealth(HealthLimits())
    image = noisy(120, 1, 5.0)
    assert [health.cause(findings(one)) for one in (image, image + 1, image + 1)] == [None, None, "frozen"]


def test_before_the_verdict_only_what_decides_is_asked_for() -> None:
    health = ImageHealth(HealthLimits())
    for seed in range(3):
        counting = Counting(noisy(120, seed))
        assert health.early(replace(findings(noisy(120, seed)), statistics=counting)) is None
        assert set(counting.asked) <= {"probe"}, "a live picture is told by its probe"
        health.settle()
        assert "histogram" in counting.asked and set(health.figures) == {"brightness", "sharpness", "saturated"}
    assert health.early(findings(noisy(120, 2))) == "frozen"


def test_pictures_whose_probes_are_alike_are_frozen_only_if_all_else_is() -> None:
    health, image = ImageHealth(HealthLimits()), noisy(120, 1)
    image[24:40] = 120  # the rows of the probe
    moved = image.copy()
    moved[:8] = moved[:8, ::-1] // 2
    assert findings(image).statistics.probe == findings(moved).statistics.probe
    assert [health.cause(findings(one)) for one in (image, moved, moved)] == [None, None, "frozen"]


def test_a_frame_that_was_never_settled_is_not_passed_over() -> None:
    health = ImageHealth(HealthLimits())
    health.early(findings(noisy(120, 1)))
    with pytest.raises(AssertionError, match="settle must follow"):
        health.early(findings(noisy(120, 2)))
