"""What the tests of the kernels share: frames, one run of a plan on the CPU, and which bytes of a frame it needs."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from appliance.model import pixels
from appliance.model.bundle import InputSpec
from appliance.model.kernel_plan import FrameStruct, KernelPlan, SumsStruct, kernel_plan
from appliance.model.pixels import Box, Size
from appliance.model.preprocess import NO_GAINS, Gains, halve, luma, prepare
from appliance.model.preprocess import balance as balanced

U8 = npt.NDArray[np.uint8]
GUARD = 64  # bytes around a frame that belong to somebody else


class Ran:
    """What gather and sample left of a frame, and what they read: ``times`` each byte of ``memory``."""

    def __init__(
        self, host: ctypes.CDLL, plan: KernelPlan, memory: U8, pitch: int, blocks: int = 3, threads: int = 1,
        last_first: bool = False, start: int = 0,
    ) -> None:  # fmt: skip
        self.halved = np.zeros(plan.halved_bytes, np.uint8)
        spec = plan.struct
        self.tensor = np.full((spec.channels, spec.target_height, spec.target_width), np.nan, np.float32)
        self.sums, self.times = SumsStruct(), np.zeros(memory.size, np.uint8)
        frame = FrameStruct(memory.ctypes.data + start, pitch)
        host.set_threads(threads, int(last_first))
        host.count_each_byte(at(self.times), at(memory), memory.size)
        host.take_bytes_read()
        assert host.run_gather(
            plan.gather.encode(), blocks, ctypes.byref(frame), ctypes.byref(spec), at(self.halved), ctypes.byref(self.sums)
        ) == 0  # fmt: skip
        self.bytes_read = host.take_bytes_read()
        host.count_each_byte(None, None, 0)
        host.run_sample(
            int(plan.words), blocks, ctypes.byref(spec), plan.halved_channels, at(self.halved), at(plan.rows),
            at(plan.row_shares), at(plan.columns), at(plan.column_shares), at(self.tensor), ctypes.byref(self.sums),
        )  # fmt: skip
        host.set_threads(1, 0)

    @property
    def left(self) -> tuple[bytes, bytes, bytes]:
        """Everything, to be compared."""
        return self.halved.tobytes(), self.tensor.tobytes(), bytes(self.sums)


def at(array: npt.NDArray[Any]) -> Any:
    return array.ctypes.data_as(ctypes.c_void_p)


def spec_of(size: Size, channels: int = 3, fit: str = "stretch") -> InputSpec:
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if channels == 3 else ((0.5,), (0.25,))
    return InputSpec(tensor="input", size=size, channels=channels, fit=fit, mean=mean, std=std)  # type: ignore[arg-type]


def frame_of(pixel: str, size: Size, pitch: int, seed: int = 0) -> U8:
    rng = np.random.default_rng(seed)
    memory = rng.integers(0, 256, pixels.frame_bytes(pixel, *size, pitch), dtype=np.uint8)
    smooth = np.linspace(0, 200, memory.size).astype(np.uint8)  # some of it not noise
    return np.where(rng.random(memory.size) < 0.5, memory, smooth).astype(np.uint8)


def hold(
    host: ctypes.CDLL, pixel: str, size: Size, pitch: int, roi: Box | None, spec: InputSpec, gains: Gains = NO_GAINS, *,
    blocks: int = 3, threads: int = 1, last_first: bool = False, start: int = 0,
) -> Ran:  # fmt: skip
    """Run both and compare; returns what the kernels left. ``start``: where in memory the frame begins."""
    memory = np.concatenate([np.full(start, 77, np.uint8), frame_of(pixel, size, pitch), np.full(GUARD, 77, np.uint8)])
    frame = memory[start : memory.size - GUARD]
    wanted = prepare(frame, size, pitch, pixel, roi, spec, gains)
    plan = kernel_plan(size, pixel, roi, spec, gains)
    ran = Ran(host, plan, memory, pitch, blocks, threads, last_first, start)
    np.testing.assert_array_equal(np.array(ran.sums.histogram, np.int64), wanted.histogram)
    assert ran.sums.total == wanted.total
    np.testing.assert_array_equal(halved_of(plan, ran), reference_halved(plan, frame, size, pitch, pixel, roi, spec, gains))
    np.testing.assert_allclose(ran.tensor, wanted.tensor, rtol=0, atol=1e-5)
    assert plan.laplacian_variance(ran.sums) == pytest.approx(wanted.laplacian_variance, rel=1e-9, abs=1e-9)
    return ran


def halved_of(plan: KernelPlan, ran: Ran) -> npt.NDArray[Any]:
    """(channels, height, width)."""
    words = ran.halved.view("<u2" if plan.words else np.uint8)
    return words.reshape(plan.halved_channels, plan.halved_size[1], plan.halved_size[0])


def reference_halved(
    plan: KernelPlan, frame: U8, size: Size, pitch: int, pixel: str, roi: Box | None, spec: InputSpec, gains: Gains
) -> npt.NDArray[Any]:  # fmt: skip
    """What the reference scales, step by step."""
    box = roi or (0, 0, *size)
    read = pixels.quads if plan.gather.startswith("quads") else pixels.channels
    image = read(frame, size, pitch, pixel, box)
    if image.ndim == 3 and gains != NO_GAINS:
        image = balanced(image, gains)
    if spec.channels == 1:
        image = luma(image)
    for _ in range(plan.struct.halvings):
        image = halve(image)
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def needed(plan: KernelPlan, pixel: str, size: Size, pitch: int, roi: Box) -> U8:
    """Of each byte of a frame 1 where the ROI needs it: as delivered, whole pairs of YUV, whole quads; of a Bayer picture
    that is not halved also the pixels around it."""
    rows = np.zeros((size[1] * 3 // 2, pitch), np.uint8)
    x, y, w, h = roi
    word = 2 if pixels.is_words(pixel) else 1
    even, end = x // 2 * 2, (x + w + 1) // 2 * 2
    if plan.gather in ("yuyv", "uyvy"):
        rows[y : y + h, 2 * even : 2 * end] = 1
    elif plan.gather.startswith("quads"):
        rows[y : y + h // 2 * 2, word * x : word * (x + w // 2 * 2)] = 1
    elif plan.gather.startswith("bayer"):
        rows[max(0, y - 1) : min(size[1], y + h + 1), word * max(0, x - 1) : word * min(size[0], x + w + 1)] = 1
    else:
        each = 3 if plan.gather in ("rgb8", "bgr8") else word
        rows[y : y + h, each * x : each * (x + w)] = 1
    if plan.gather == "nv12":
        rows[size[1] + y // 2 : size[1] + (y + h + 1) // 2, even:end] = 1
    return rows.ravel()[: pixels.frame_bytes(pixel, *size, pitch)]
