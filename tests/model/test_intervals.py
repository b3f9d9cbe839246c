"""Exact intervals against values known from tables."""

from __future__ import annotations

import pytest

from appliance.model.intervals import interval, told


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [
        (0, 10, 0.0, 0.30850),
        (10, 10, 0.69150, 1.0),
        (5, 10, 0.18709, 0.81291),
        (1, 100, 0.00025, 0.05446),
        (0, 300, 0.0, 0.01222),
    ],
)
def test_clopper_pearson_as_tabulated(hits: int, of: int, low: float, high: float) -> None:
    assert interval(hits, of) == (pytest.approx(low, abs=2e-5), pytest.approx(high, abs=2e-5))


def test_nothing_tried_says_nothing() -> None:
    assert interval(0, 0) == (0.0, 1.0) and told(0, 0)["value"] is None
