"""The one definition of preprocess, in plain numpy: colour, ROI, halving, bilinear, normalise (contract)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import numpy as np
import numpy.typing as npt

from appliance.model.bundle import InputSpec
from appliance.model.pixels import U8, Box, channels, quads

F32 = npt.NDArray[np.float32]
Any2D = npt.NDArray[np.generic]
_PAD = 114.0
_LUMA = (77, 150, 29)  # BT.601 weights of 256, integer so that every path counts alike


@dataclass(frozen=True)
class Prepared:
    """``tensor`` float32 (C, H, W); statistics of the ROI as delivered: histogram int64 (256,), its sum,
    and the variance of the Laplacian of the last halved image (sharpness)."""

    tensor: F32
    histogram: npt.NDArray[np.int64]
    total: int
    laplacian_variance: float


def prepare(
    memory: U8, size: tuple[int, int], pitch: int, pixel: str, roi: Box | None, spec: InputSpec,
    halve_by: Callable[[Any2D], Any2D] | None = None, resize_by: Callable[[F32, tuple[int, int]], F32] | None = None,
) -> Prepared:  # fmt: skip
    """A frame's ROI as the network wants it. Raises ValueError for formats and ROIs that do not fit.

    ``halve_by`` and ``resize_by`` replace the two costly steps (preprocess_cv2); the order of steps is here only."""
    halve_by, resize_by = halve_by or halve, resize_by or bilinear
    roi = roi or (0, 0, *size)
    target = fitted_size(roi[2], roi[3], spec)
    image: Any2D | None = None
    if roi[2] >= 2 * target[0] and roi[3] >= 2 * target[1]:
        image = quads(memory, size, pitch, pixel, roi)
    if image is None:
        image = channels(memory, size, pitch, pixel, roi)
    histogram, total = statistics(image)
    image = as_channels(image, spec.channels)
    while image.shape[1] >= 2 * target[0] and image.shape[0] >= 2 * target[1]:
        image = halve_by(image)
    sharpness = laplacian_variance(image)
    values = image.astype(np.float32)
    if image.dtype == np.uint16:
        values *= np.float32(255 / 65535)
    if (values.shape[1], values.shape[0]) != target:
        values = resize_by(values, target)
    return Prepared(normalise(letterbox(values, spec), spec), histogram, total, sharpness)


def fitted_size(width: int, height: int, spec: InputSpec) -> tuple[int, int]:
    """(width, height) inside the input: all of it, or with the aspect kept."""
    if spec.fit == "stretch":
        return spec.size
    scale = min(spec.size[0] / width, spec.size[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def statistics(image: Any2D) -> tuple[npt.NDArray[np.int64], int]:
    """Histogram (256,) and 64-bit sum of the luma."""
    grey = image
    if image.ndim == 3:
        wide = image.astype(np.uint32)
        grey = (_LUMA[0] * wide[:, :, 0] + _LUMA[1] * wide[:, :, 1] + _LUMA[2] * wide[:, :, 2] + 128) >> 8
    if image.dtype == np.uint16:
        grey = grey >> 8
    histogram = np.bincount(grey.ravel(), minlength=256).astype(np.int64)
    return histogram, int(histogram @ np.arange(256))


def as_channels(image: Any2D, count: int) -> Any2D:
    """Mono where the network wants one channel, three alike where it wants three."""
    if count == 1 and image.ndim == 3:
        wide = image.astype(np.uint32)
        grey = (_LUMA[0] * wide[:, :, 0] + _LUMA[1] * wide[:, :, 1] + _LUMA[2] * wide[:, :, 2] + 128) >> 8
        return grey.astype(image.dtype)
    if count == 3 and image.ndim == 2:
        return np.repeat(image[:, :, None], 3, 2)
    return image


def halve(image: Any2D) -> Any2D:
    """(a + b + c + d + 2) >> 2; an odd last row or column is left out."""
    rows, columns = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    wide = image[:rows, :columns].astype(np.uint32)
    total = wide[0::2, 0::2] + wide[1::2, 0::2] + wide[0::2, 1::2] + wide[1::2, 1::2]
    return ((total + 2) >> 2).astype(image.dtype)


def bilinear(image: F32, size: tuple[int, int]) -> F32:
    """To (width, height): half-pixel centres, edges repeated, float32."""
    rows, row_share = _places(image.shape[0], size[1])
    columns, column_share = _places(image.shape[1], size[0])
    row_share = row_share.reshape(-1, *[1] * (image.ndim - 1))
    column_share = column_share.reshape(1, -1, *[1] * (image.ndim - 2))
    last_row, last_column = image.shape[0] - 1, image.shape[1] - 1
    upper = image[np.clip(rows, 0, last_row)] * (1 - row_share) + image[np.clip(rows + 1, 0, last_row)] * row_share
    left, right = np.clip(columns, 0, last_column), np.clip(columns + 1, 0, last_column)
    return (upper[:, left] * (1 - column_share) + upper[:, right] * column_share).astype(np.float32)


def _places(length: int, wanted: int) -> tuple[npt.NDArray[np.int64], F32]:
    at = (np.arange(wanted, dtype=np.float64) + 0.5) * (length / wanted) - 0.5
    floor = np.floor(at)
    return floor.astype(np.int64), (at - floor).astype(np.float32)


def letterbox(values: F32, spec: InputSpec) -> F32:
    """Centred on the pad grey, where the aspect was kept."""
    if (values.shape[1], values.shape[0]) == spec.size:
        return values
    padded = np.full((spec.size[1], spec.size[0], *values.shape[2:]), _PAD, np.float32)
    top, left = (spec.size[1] - values.shape[0]) // 2, (spec.size[0] - values.shape[1]) // 2
    padded[top : top + values.shape[0], left : left + values.shape[1]] = values
    return padded


def normalise(values: F32, spec: InputSpec) -> F32:
    """(v/255 - mean)/std, channels first."""
    planes = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    mean = np.array(spec.mean, np.float32).reshape(-1, 1, 1)
    std = np.array(spec.std, np.float32).reshape(-1, 1, 1)
    return np.ascontiguousarray((planes / np.float32(255) - mean) / std, dtype=np.float32)


def laplacian_variance(image: Any2D) -> float:
    """Variance of the 4-neighbour Laplacian over the inner pixels of the (first) channel."""
    grey = (image if image.ndim == 2 else image[:, :, image.shape[2] // 2]).astype(np.float32)
    if min(grey.shape) < 3:
        return 0.0
    inner = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(inner.var())
