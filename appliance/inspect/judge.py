"""From findings to a verdict: thresholds, review band, cause; several cameras to one part. Pure.

Threshold of a class: its own (the recipe's for it, else the bundle's for it), else the recipe's, else the bundle's;
compared with >=. A part's score and cause are those of the class furthest above its own threshold, else of the highest
score. Good classes never fail a part. With ``min_area_px`` a place of the map counts only from that size on: the score
is then the highest level at which so large a place still stands, and the thresholds hold for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from appliance.inspect.regions import regions_of, standing_score
from appliance.messages import WORST_FIRST, Region, VerdictName
from appliance.model.bundle import Bundle, BundleError
from appliance.ports import Findings

Box = tuple[int, int, int, int]
NO_CLASS = -1
_DIGITS = 6  # a float32 has no more; what is compared is what the record says, so that 0.7 reaches 0.7


@dataclass(frozen=True)
class Limits:
    """How strictly one camera's look is judged. ``minimum_px``: least area of a region by class, camera pixels."""

    review_at: float
    fail_at: float
    class_fail_at: dict[str, float]
    minimum_px: dict[str, int]

    def threshold(self, name: str) -> float:
        """From which score on a class fails a part."""
        return self.class_fail_at.get(name, self.fail_at)


@dataclass(frozen=True)
class Judgement:
    """What one camera says of a part."""

    verdict: VerdictName
    cause: str | None
    score: float | None
    threshold: float | None
    class_id: int
    regions: tuple[Region, ...] = ()


def limits_of(
    bundle: Bundle, review_at: float | None, fail_at: float | None, classes: dict[str, tuple[float | None, int | None]]
) -> Limits:
    """The recipe's limits over the bundle's. ``classes``: name -> (fail_at, min_area_px).

    Raises BundleError where recipe and bundle do not fit: unknown class, review above fail, an area without regions."""
    unknown = sorted(set(classes) - {bundle.classes[index] for index in bundle.defects})
    if unknown:
        known = ", ".join(bundle.classes[index] for index in bundle.defects)
        raise BundleError(f"bundle {bundle.name} has no class {', '.join(unknown)} that can fail; write one of {known}")
    own = {name: one.fail_at for name, one in bundle.thresholds.classes.items()}
    own |= {name: at for name, (at, _) in classes.items() if at is not None}
    areas = {name: area for name, (_, area) in classes.items() if area is not None}
    if areas and not bundle.has_regions:
        told = f"bundle {bundle.name} finds no regions, so min_area_px of {', '.join(areas)} means nothing"
        raise BundleError(f"{told}; take it out")
    limits = Limits(
        review_at=bundle.thresholds.review_at if review_at is None else review_at,
        fail_at=bundle.thresholds.fail_at if fail_at is None else fail_at,
        class_fail_at=own, minimum_px=areas,
    )  # fmt: skip
    for index in bundle.defects:
        name = bundle.classes[index]
        if limits.review_at > limits.threshold(name):
            raise BundleError(
                f"review_at {limits.review_at} lies above {name}'s fail_at {limits.threshold(name)} (bundle {bundle.name}); "
                f"write review_at at most {limits.threshold(name)}"
            )
    return limits


def judge(findings: Findings, bundle: Bundle, limits: Limits, camera: str, roi: Box) -> Judgement:
    """The verdict of one camera: pass, review, fail, or blind where the engine's scores are no numbers."""
    scores: list[float] = findings.scores.tolist()  # a handful: Python's own numbers are quicker than an array's
    if not all(map(isfinite, scores)):
        return blind("engine")
    rounded = [round(score, _DIGITS) for score in scores]
    if findings.task == "anomaly":
        return _judge_anomaly(findings, bundle, limits, camera, roi, rounded[0])
    index = _worst_class(rounded, bundle, limits)
    return _verdict(bundle, limits, rounded[index], index)


def blind(cause: str) -> Judgement:
    """A frame came and cannot be judged."""
    return Judgement("blind", cause, None, None, NO_CLASS)


def worst(judgements: list[Judgement]) -> Judgement:
    """Several cameras: fail, missed, blind, review, pass; of equals the one furthest above its threshold; all regions."""
    first = min(judgements, key=lambda one: (WORST_FIRST.index(one.verdict), -_above(one)))
    regions = tuple(region for one in judgements for region in one.regions)
    return Judgement(first.verdict, first.cause, first.score, first.threshold, first.class_id, regions)


def _above(one: Judgement) -> float:
    if one.verdict == "fail":
        return (one.score or 0.0) - (one.threshold or 0.0)
    return one.score or 0.0


def _worst_class(scores: list[float], bundle: Bundle, limits: Limits) -> int:
    """The class furthest above its own threshold, else of the highest score; of equals the first."""

    def rank(index: int) -> tuple[bool, float, float]:
        score = scores[index]
        above = score - limits.threshold(bundle.classes[index])
        return (True, above, score) if above >= 0 else (False, score, 0.0)

    return max(bundle.defects, key=rank)


def _verdict(bundle: Bundle, limits: Limits, score: float, index: int, regions: tuple[Region, ...] = ()) -> Judgement:
    name = bundle.classes[index]
    threshold = limits.threshold(name)
    verdict: VerdictName = "fail" if score >= threshold else "review" if score >= limits.review_at else "pass"
    return Judgement(verdict, None if verdict == "pass" else name, score, threshold, index, regions)


def _judge_anomaly(
    findings: Findings, bundle: Bundle, limits: Limits, camera: str, roi: Box, score: float
) -> Judgement:  # fmt: skip
    index = bundle.defects[0]
    name = bundle.classes[index]
    least_px = limits.minimum_px.get(name, 1)
    if findings.score_map is None or score < limits.review_at:
        return _verdict(bundle, limits, score, index)
    if least_px > 1:
        score = min(score, round(standing_score(findings.score_map, roi, bundle.input, least_px), _DIGITS))
    level = limits.threshold(name) if score >= limits.threshold(name) else limits.review_at
    if score < level:
        return _verdict(bundle, limits, score, index)
    found = regions_of(findings.score_map, min(level, score), roi, bundle.input, least_px)
    return _verdict(bundle, limits, score, index, tuple(Region(camera, name, top, box, area) for top, box, area in found))
