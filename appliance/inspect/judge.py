"""From findings to a verdict: thresholds, review band, cause, regions; several cameras to one part. Pure.

Threshold of a class: its own, else the recipe's, else the bundle's; compared with >=. A part's score and cause are
those of the class furthest above its own threshold, else of the highest score. Good classes never fail a part.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from appliance.messages import WORST_FIRST, Region, VerdictName
from appliance.model.bundle import Bundle
from appliance.ports import Findings

_MOST_REGIONS = 32
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Limits:
    """How strictly one camera's look is judged. ``minimum_px``: least area of a region by class, camera pixels."""

    review_at: float
    fail_at: float
    class_fail_at: dict[str, float]
    minimum_px: dict[str, int]


@dataclass(frozen=True)
class Judgement:
    """What one camera says of a part."""

    verdict: VerdictName
    cause: str | None
    score: float | None
    threshold: float | None
    class_id: int
    regions: tuple[Region, ...] = ()


def limits_of(bundle: Bundle, review_at: float | None, fail_at: float | None, classes: dict[str, tuple[float | None, int | None]]) -> Limits:
    """The recipe's limits over the bundle's. ``classes``: name -> (fail_at, min_area_px)."""
    own = {name: one.fail_at for name, one in bundle.thresholds.classes.items()} if fail_at is None else {}
    own |= {name: at for name, (at, _) in classes.items() if at is not None}
    return Limits(
        review_at=bundle.thresholds.review_at if review_at is None else review_at,
        fail_at=bundle.thresholds.fail_at if fail_at is None else fail_at,
        class_fail_at=own,
        minimum_px={name: area for name, (_, area) in classes.items() if area is not None},
    )


def judge(findings: Findings, bundle: Bundle, limits: Limits, camera: str, roi: Box) -> Judgement:
    """The verdict of one camera: pass, review or fail."""
    if not np.isfinite(findings.scores).all():
        return blind("engine: scores are not finite")
    if findings.task == "anomaly":
        return _judge_anomaly(findings, bundle, limits, camera, roi)
    best: tuple[float, float, int] | None = None
    for index, name in enumerate(bundle.classes):
        if name in bundle.good:
            continue
        score = float(findings.scores[index])
        above = score - limits.class_fail_at.get(name, limits.fail_at)
        rank = (above if above >= 0 else score - 2.0, score, index)
        best = rank if best is None or rank > best else best
    if best is None:
        return Judgement("pass", None, 0.0, limits.fail_at, -1)
    above, score, index = best
    return _verdict(bundle, limits, score, index, ())


def blind(cause: str) -> Judgement:
    """A frame came and cannot be judged."""
    return Judgement("blind", cause, None, None, -1)


def worst(judgements: list[Judgement]) -> Judgement:
    """Several cameras: fail, missed, blind, review, pass; regions of all."""
    first = min(judgements, key=lambda one: (WORST_FIRST.index(one.verdict), -(one.score or 0.0)))
    regions = tuple(region for one in judgements for region in one.regions)
    return Judgement(first.verdict, first.cause, first.score, first.threshold, first.class_id, regions)


def _verdict(bundle: Bundle, limits: Limits, score: float, index: int, regions: tuple[Region, ...]) -> Judgement:
    name = bundle.classes[index]
    threshold = limits.class_fail_at.get(name, limits.fail_at)
    verdict: VerdictName = "fail" if score >= threshold else "review" if score >= limits.review_at else "pass"
    return Judgement(verdict, None if verdict == "pass" else name, score, threshold, index, regions)


def _judge_anomaly(findings: Findings, bundle: Bundle, limits: Limits, camera: str, roi: Box) -> Judgement:
    index = next(i for i, name in enumerate(bundle.classes) if name not in bundle.good)
    name = bundle.classes[index]
    score = float(findings.scores[0])
    threshold = limits.class_fail_at.get(name, limits.fail_at)
    regions: tuple[Region, ...] = ()
    if findings.score_map is not None and score >= limits.review_at:
        # Before the verdict: with min_area_px, what is too small to count does not fail the part.
        regions = _regions(findings.score_map, min(threshold, score), camera, name, roi, limits.minimum_px.get(name, 1))
        if not regions and name in limits.minimum_px:
            return Judgement("pass", None, score, threshold, index)
    return _verdict(bundle, limits, score, index, regions)


def _regions(score_map: np.ndarray, at: float, camera: str, name: str, roi: Box, least_px: int) -> tuple[Region, ...]:
    """Connected places of the map at or above ``at``, in camera pixels, largest first."""
    mask = (score_map >= max(1, int(np.floor(at * 255)))).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    scale_x, scale_y = roi[2] / score_map.shape[1], roi[3] / score_map.shape[0]
    found = []
    for label in range(1, count):
        x, y, width, height, area = (int(value) for value in stats[label])
        area_px = round(area * scale_x * scale_y)
        if area_px < least_px:
            continue
        top = float(score_map[labels == label].max()) / 255
        box = (round(roi[0] + x * scale_x), round(roi[1] + y * scale_y), round(width * scale_x), round(height * scale_y))
        found.append(Region(camera, name, round(top, 4), box, area_px))
    return tuple(sorted(found, key=lambda region: -region.area_px)[:_MOST_REGIONS])
