"""Connected places of an anomaly map, told in camera pixels of the whole frame. Pure."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from appliance.model.bundle import InputSpec
from appliance.model.preprocess import content_box

U8 = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
Place = tuple[float, Box, int]  # highest score, box (x, y, width, height), area in pixels
MOST_REGIONS = 64  # a record stays readable, and a message within its datagram


def regions_of(score_map: U8, at: float, roi: Box, spec: InputSpec, least_px: int = 1) -> list[Place]:
    """Places at or above score ``at`` (0..1) of at least ``least_px`` camera pixels, largest first, 64 at most.

    ``score_map`` (h, w), 255 = score 1, covers the network's whole input; ``roi`` is what went into it."""
    inner, scale_x, scale_y = _content(score_map, roi, spec)
    mask = (inner >= _grey(at)).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    found: list[tuple[int, int, int]] = []
    for label in range(1, len(stats)):
        area_px = max(1, round(int(stats[label, cv2.CC_STAT_AREA]) * scale_x * scale_y))
        if area_px >= least_px:
            found.append((-area_px, label, area_px))
    places = []
    for _, label, area_px in sorted(found)[:MOST_REGIONS]:
        x, y, width, height = (int(value) for value in stats[label, :4])
        top = int(inner[y : y + height, x : x + width][labels[y : y + height, x : x + width] == label].max())
        left, upper = roi[0] + int(x * scale_x), roi[1] + int(y * scale_y)
        right = min(roi[0] + roi[2], roi[0] + int(np.ceil((x + width) * scale_x)))
        lower = min(roi[1] + roi[3], roi[1] + int(np.ceil((y + height) * scale_y)))
        places.append((round(top / 255, 4), (left, upper, right - left, lower - upper), area_px))
    return places


def standing_score(score_map: U8, roi: Box, spec: InputSpec, least_px: int) -> float:
    """The highest score at which a place of at least ``least_px`` camera pixels stands; 0.0 if none does at all."""
    inner, scale_x, scale_y = _content(score_map, roi, spec)
    low, high = 0, 255  # places only grow as the level falls, so the level can be halved in on
    while low < high:
        middle = (low + high + 1) // 2
        _, _, stats, _ = cv2.connectedComponentsWithStats((inner >= middle).astype(np.uint8), connectivity=8)
        areas = stats[1:, cv2.CC_STAT_AREA]
        if areas.size and round(int(areas.max()) * scale_x * scale_y) >= least_px:
            low = middle
        else:
            high = middle - 1
    return low / 255


def _grey(at: float) -> int:
    """The map's value from which on a score of ``at`` is reached (maps are rounded to nearest); 0 is no place."""
    return max(1, round(at * 255))


def _content(score_map: U8, roi: Box, spec: InputSpec) -> tuple[U8, float, float]:
    """The map without the letterbox's pad, and camera pixels for one of its pixels, across and down."""
    height, width = score_map.shape
    left, top, inner_width, inner_height = content_box(roi[2], roi[3], spec)
    across, down = width / spec.size[0], height / spec.size[1]  # a map may be coarser than the input
    columns = slice(round(left * across), max(round(left * across) + 1, round((left + inner_width) * across)))
    rows = slice(round(top * down), max(round(top * down) + 1, round((top + inner_height) * down)))
    inner = score_map[rows, columns]
    return inner, roi[2] / inner.shape[1], roi[3] / inner.shape[0]
