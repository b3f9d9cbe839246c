"""The one definition of preprocess, in plain numpy: colour, ROI, halving, bilinear, normalise (contract).

``prepare`` holds the order of the steps; ``NumpySteps`` is the reference of each, preprocess_cv2 the fast stand-in.
What the contract leaves open and every path (also the GPU's) must share:
- words of 10-16 bits are halved as words, and scaled to 0..255 after it;
- a colour picture for a network of one channel becomes luma before halving: (9798 R + 19235 G + 3735 B + 16384) >> 15;
- white balance multiplies before the ROI's statistics are taken, by gains in 1/65536, rounds halves up, and stops at
  the word's top;
- bilinear positions are worked out in float64, their fractions and the pixels are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from appliance.model import pixels
from appliance.model.bundle import InputSpec
from appliance.model.pixels import U8, Box, Image, Size

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Gains = tuple[float, float, float]
T = TypeVar("T")
PAD = 114.0
NO_GAINS: Gains = (1.0, 1.0, 1.0)
_GREYS = np.arange(256, dtype=np.int64)
_LUMA = (9798, 19235, 3735)  # BT.601 in 1/32768, the integers of cv2.COLOR_RGB2GRAY


@dataclass(frozen=True)
class Prepared:
    """``tensor`` float32 (C, H, W). Of the ROI as delivered (luma for colour): ``histogram`` int64 (256,) of the upper
    eight bits, ``total`` the 64-bit sum of its words; ``laplacian_variance`` of the last halved image, on 0..255.

    The statistics may be worked out when they are asked for: ask while the frame is yours, and before the next one."""

    tensor: F32
    counted: Callable[[], tuple[I64, int]]
    sharpness: Callable[[], float]

    @property
    def histogram(self) -> I64:
        return self.counted()[0]

    @property
    def total(self) -> int:
        return self.counted()[1]

    @property
    def laplacian_variance(self) -> float:
        return self.sharpness()

    @property
    def probe(self) -> bytes:
        return self.tensor[:, self.tensor.shape[1] // 2].tobytes()


class When(Protocol):
    """When work is done that the tensor does not wait for. What it gives back gives the result, as often as one likes."""

    def __call__(self, work: Callable[[], T], /) -> Callable[[], T]: ...


def at_once(work: Callable[[], T]) -> Callable[[], T]:
    """Before the call is over."""
    result = work()
    return lambda: result


def when_asked(work: Callable[[], T]) -> Callable[[], T]:
    """At the first asking; never, if nobody asks."""
    done: list[T] = []

    def result() -> T:
        if not done:
            done.append(work())
        return done[0]

    return result


class Steps(Protocol):
    """The costly steps. Arrays given back may be used again at the next frame."""

    def channels(self, memory: U8, size: Size, pitch: int, pixel: str, roi: Box) -> Image: ...
    def balance(self, image: Image, gains: Gains) -> Image: ...
    def luma(self, image: Image) -> Image: ...
    def histogram(self, grey: Image) -> I64: ...
    def halve(self, image: Image) -> Image: ...
    def laplacian_variance(self, grey: Image) -> float: ...
    def to_float(self, image: Image) -> F32: ...
    def bilinear(self, values: F32, size: Size) -> F32: ...
    def normalise(self, values: F32, spec: InputSpec) -> F32: ...


class NumpySteps:
    """The reference."""

    def channels(self, memory: U8, size: Size, pitch: int, pixel: str, roi: Box) -> Image:
        return pixels.channels(memory, size, pitch, pixel, roi)

    def balance(self, image: Image, gains: Gains) -> Image:
        return balance(image, gains)

    def luma(self, image: Image) -> Image:
        return luma(image)

    def histogram(self, grey: Image) -> I64:
        return histogram(grey)

    def halve(self, image: Image) -> Image:
        return halve(image)

    def laplacian_variance(self, grey: Image) -> float:
        return laplacian_variance(grey)

    def to_float(self, image: Image) -> F32:
        return to_float(image)

    def bilinear(self, values: F32, size: Size) -> F32:
        return bilinear(values, size)

    def normalise(self, values: F32, spec: InputSpec) -> F32:
        return normalise(values, spec)


_REFERENCE = NumpySteps()


def prepare(
    memory: U8, size: Size, pitch: int, pixel: str, roi: Box | None, spec: InputSpec,
    gains: Gains = NO_GAINS, steps: Steps = _REFERENCE, when: When = at_once,
) -> Prepared:  # fmt: skip
    """A frame's ROI as the network wants it. ``memory``: bytes, 1-D; ``size``: width, height; ``pitch``: bytes a row.

    Raises ValueError in words for a format, size or ROI that does not fit."""
    box = roi or (0, 0, *size)
    target = content_box(box[2], box[3], spec)[2:]
    if pixels.is_bayer(pixel) and _halves((box[3], box[2]), target):
        image = pixels.quads(memory, size, pitch, pixel, box)
    else:
        image = steps.channels(memory, size, pitch, pixel, box)
    if image.ndim == 3 and tuple(gains) != NO_GAINS:
        image = steps.balance(image, gains)
    if spec.channels == 1:
        image = steps.luma(image)
    counted = when(partial(_counted, steps, image))
    while _halves(image.shape, target):
        image = steps.halve(image)
    sharpness = when(partial(_sharpness, steps, image))
    values = steps.to_float(image)
    if (values.shape[1], values.shape[0]) != target:
        values = steps.bilinear(values, target)
    return Prepared(steps.normalise(letterbox(values, spec), spec), counted, sharpness)


def _counted(steps: Steps, image: Image) -> tuple[I64, int]:
    grey = steps.luma(image)
    counts = steps.histogram(grey)
    return counts, total_of(grey, counts)


def _sharpness(steps: Steps, image: Image) -> float:
    return steps.laplacian_variance(steps.luma(image))


def _halves(shape: tuple[int, ...], target: Size) -> bool:
    return shape[1] >= 2 * target[0] and shape[0] >= 2 * target[1]


def content_box(width: int, height: int, spec: InputSpec) -> Box:
    """Where a picture of ``width`` x ``height`` lies inside the input: all of it, or centred with its aspect kept."""
    input_width, input_height = spec.size
    if spec.fit == "stretch":
        return 0, 0, input_width, input_height
    if input_width * height <= input_height * width:  # the width decides
        fitted = input_width, max(1, (2 * height * input_width + width) // (2 * width))
    else:
        fitted = max(1, (2 * width * input_height + height) // (2 * height)), input_height
    return (input_width - fitted[0]) // 2, (input_height - fitted[1]) // 2, *fitted


def balance(image: Image, gains: Gains) -> Image:
    """Colour by its gains (red, green, blue), rounded to nearest, at most the word's top."""
    gained = (image.astype(np.uint64) * np.array(fixed_gains(gains), np.uint64) + np.uint64(32768)) >> np.uint64(16)
    result: Image = np.minimum(gained, np.uint64(np.iinfo(image.dtype).max)).astype(image.dtype)
    return result


def fixed_gains(gains: Gains) -> tuple[int, int, int]:
    """In 1/65536: whole numbers, for the same bits on every path; below 0 and from 32768 on as the nearest that can be."""
    red, green, blue = (min(max(int(gain * 65536 + 0.5), 0), 2**31 - 1) for gain in gains)
    return red, green, blue


def luma(image: Image) -> Image:
    """(h, w) of the same kind; mono as it is."""
    if image.ndim == 2:
        return image
    wide = image.astype(np.uint32)
    weighted = _LUMA[0] * wide[:, :, 0] + _LUMA[1] * wide[:, :, 1] + _LUMA[2] * wide[:, :, 2]
    return ((weighted + 16384) >> 15).astype(image.dtype)


def histogram(grey: Image) -> I64:
    """How often each value 0..255 stands there; of words the upper byte counts."""
    values = grey >> 8 if grey.dtype == np.uint16 else grey
    return np.bincount(values.ravel(), minlength=256).astype(np.int64)


def total_of(grey: Image, counts: I64) -> int:
    """64-bit sum of the words as delivered; of bytes the histogram has it."""
    return int(counts @ _GREYS) if grey.dtype == np.uint8 else int(grey.sum(dtype=np.int64))


def halve(image: Image) -> Image:
    """(a + b + c + d + 2) >> 2; an odd last row or column is left out."""
    rows, columns = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    wide = image[:rows, :columns].astype(np.uint32)
    total = wide[0::2, 0::2] + wide[1::2, 0::2] + wide[0::2, 1::2] + wide[1::2, 1::2]
    return ((total + 2) >> 2).astype(image.dtype)


def laplacian_variance(grey: Image) -> float:
    """Variance of the 4-neighbour Laplacian over the inner pixels, on 0..255."""
    if min(grey.shape) < 3:
        return 0.0
    values = grey.astype(np.float64) * scale_of(grey)
    sides = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return float((sides - 4 * values[1:-1, 1:-1]).var())


def scale_of(image: Image) -> float:
    """What brings a word to 0..255."""
    return scale_of_word(image.dtype == np.uint16)


def scale_of_word(words: bool) -> float:
    """Of 16-bit words, or bytes."""
    return 255 / 65535 if words else 1.0


def to_float(image: Image) -> F32:
    """float32 on 0..255."""
    return np.asarray(image.astype(np.float32) * np.float32(scale_of(image)), np.float32)


def bilinear(image: F32, size: Size) -> F32:
    """To (width, height): half-pixel centres, edges repeated, float32."""
    rows, row_share = bilinear_places(image.shape[0], size[1])
    columns, column_share = bilinear_places(image.shape[1], size[0])
    row_share = row_share.reshape(-1, *[1] * (image.ndim - 1))
    column_share = column_share.reshape(1, -1, *[1] * (image.ndim - 2))
    last_row, last_column = image.shape[0] - 1, image.shape[1] - 1
    upper = image[np.clip(rows, 0, last_row)] * (1 - row_share) + image[np.clip(rows + 1, 0, last_row)] * row_share
    left, right = np.clip(columns, 0, last_column), np.clip(columns + 1, 0, last_column)
    across = upper[:, left] * (1 - column_share) + upper[:, right] * column_share
    return np.asarray(across, np.float32)


def bilinear_places(length: int, wanted: int) -> tuple[I64, F32]:
    """For each of ``wanted`` places over ``length``: its lower neighbour (-1: before the first) and the upper one's share."""
    at = (np.arange(wanted, dtype=np.float64) + 0.5) * (length / wanted) - 0.5
    floor = np.floor(at)
    return floor.astype(np.int64), (at - floor).astype(np.float32)


def letterbox(values: F32, spec: InputSpec) -> F32:
    """Centred on the pad grey, where the aspect was kept."""
    height, width = values.shape[:2]
    if (width, height) == spec.size:
        return values
    padded = np.full((spec.size[1], spec.size[0], *values.shape[2:]), PAD, np.float32)
    left, top = (spec.size[0] - width) // 2, (spec.size[1] - height) // 2
    padded[top : top + height, left : left + width] = values
    return padded


def normalise(values: F32, spec: InputSpec) -> F32:
    """(v/255 - mean)/std, channels first, RGB; mono stands alike in every channel."""
    planes = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    mean = np.array(spec.mean, np.float32).reshape(-1, 1, 1)
    std = np.array(spec.std, np.float32).reshape(-1, 1, 1)
    return np.ascontiguousarray((planes / np.float32(255) - mean) / std, dtype=np.float32)
