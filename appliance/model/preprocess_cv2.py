"""The same preprocess with OpenCV for the two costly steps; tests hold it within 1e-5 of the reference."""

from __future__ import annotations

import cv2
import numpy as np

from appliance.model.bundle import InputSpec
from appliance.model.pixels import U8, Box
from appliance.model.preprocess import F32, Any2D, Prepared, prepare


def prepare_cv2(memory: U8, size: tuple[int, int], pitch: int, pixel: str, roi: Box | None, spec: InputSpec) -> Prepared:
    """As preprocess.prepare."""
    return prepare(memory, size, pitch, pixel, roi, spec, halve_cv2, resize_cv2)


def halve_cv2(image: Any2D) -> Any2D:
    """INTER_AREA at exactly a half is (a + b + c + d + 2) >> 2 for integers: equal bit for bit (tested)."""
    rows, columns = image.shape[0] // 2, image.shape[1] // 2
    even = np.ascontiguousarray(image[: 2 * rows, : 2 * columns])
    return cv2.resize(even, (columns, rows), interpolation=cv2.INTER_AREA)


def resize_cv2(image: F32, size: tuple[int, int]) -> F32:
    """INTER_LINEAR on float32 has half-pixel centres and repeats edges."""
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
