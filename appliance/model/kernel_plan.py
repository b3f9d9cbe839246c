"""What the preprocess kernels (appliance/kernels/preprocess.cu) are told: structures, tables and which kernel to launch.

Field for field the structs of the source; tests/kernels holds their sizes and everything they bring about to the
reference in preprocess.py.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from appliance.model import pixels
from appliance.model.bundle import InputSpec
from appliance.model.pixels import Box, Size
from appliance.model.preprocess import NO_GAINS, PAD, Gains, bilinear_places, content_box, fixed_gains, scale_of_word

MOST_HALVINGS = 6  # a Bayer quad counts as the first
# Shared memory of gather (preprocess.cu): the raw tile, and its first and second halving.
_RAW_BYTES, _FIRST_BYTES = 16384, 8192
# A tile is cut no taller once it has so many bytes: small tiles spread over many multiprocessors.
_ENOUGH_BYTES = 4096
# Rows that two tiles need (around Bayer's, NV12's chroma under an odd ROI) are read again where a block begins: so rarely.
_LEAST_ROWS_SHARED = 16
_THREADS, _BLOCKS_A_MULTIPROCESSOR = 256, 4
_MONO = {"mono8": "mono8", "mono10": "mono16", "mono12": "mono16", "mono16": "mono16"}


class FrameStruct(ctypes.Structure):
    """Where the next frame lies; filled before each launch."""

    _fields_ = [("data", ctypes.c_uint64), ("pitch", ctypes.c_int64)]


class PlanStruct(ctypes.Structure):
    """One camera's and recipe's constants."""

    _fields_ = [
        *((name, ctypes.c_int) for name in (
            "frame_width", "frame_height", "x", "y", "width", "height", "image_width", "image_height", "halvings",
            "out_width", "out_height", "channels",
        )),
        ("colours", ctypes.c_int * 4), ("balanced", ctypes.c_int), ("gains", ctypes.c_int * 3),
        *((name, ctypes.c_int) for name in (
            "target_width", "target_height", "left", "top", "content_width", "content_height",
        )),
        ("pad", ctypes.c_float), ("scale", ctypes.c_float), ("mean", ctypes.c_float * 3), ("deviation", ctypes.c_float * 3),
        ("yuv", ctypes.c_int * 6), ("tile_columns", ctypes.c_int), ("tile_rows", ctypes.c_int),
    ]  # fmt: skip


class SumsStruct(ctypes.Structure):
    """What a launch leaves beside the tensor; zeroed before each."""

    _fields_ = [
        ("histogram", ctypes.c_uint32 * 256), ("total", ctypes.c_uint64), ("laplacian", ctypes.c_int64),
        ("laplacian_squared", ctypes.c_uint64),
    ]  # fmt: skip


class ExtremesStruct(ctypes.Structure):
    """What reduce_map saw of a raw map; floats as whole numbers of the same order, the lowest one's complemented."""

    _fields_ = [("nan_seen", ctypes.c_uint32), ("highest", ctypes.c_uint32), ("lowest_complement", ctypes.c_uint32)]

    def clear(self) -> None:
        """Before each launch."""
        ctypes.memset(ctypes.addressof(self), 0, ctypes.sizeof(self))

    def extreme(self, highest_is_worst: bool) -> float:
        """The raw map's maximum, or its minimum where ``low`` > ``high``; not a number as soon as one in the map is none, or
        infinite on either side."""
        highest, lowest = _float_of(self.highest), _float_of(~self.lowest_complement & 0xFFFFFFFF)
        if self.nan_seen or not (math.isfinite(highest) and math.isfinite(lowest)):
            return math.nan
        return highest if highest_is_worst else lowest


def _float_of(order: int) -> float:
    """Of a whole number that stands in the order of floats."""
    bits = order ^ 0x80000000 if order & 0x80000000 else ~order & 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))


@dataclass(frozen=True)
class KernelPlan:
    """``gather``/``words``: which kernels; ``halved_channels`` x ``halved_size`` (width, height) of u8 or u16 between them;
    rows, columns: int32 upper/left neighbour of each content row/column, float32 share of the other one."""

    gather: str
    words: bool
    struct: PlanStruct
    halved_channels: int
    halved_size: Size
    rows: npt.NDArray[np.int32]
    row_shares: npt.NDArray[np.float32]
    columns: npt.NDArray[np.int32]
    column_shares: npt.NDArray[np.float32]

    @property
    def halved_bytes(self) -> int:
        return self.halved_channels * self.halved_size[0] * self.halved_size[1] * (2 if self.words else 1)

    @property
    def tiles(self) -> Size:
        """Across and down: what gather's blocks share out among themselves."""
        struct = self.struct
        return -(-struct.image_width // struct.tile_columns), -(-struct.image_height // struct.tile_rows)

    def gather_launch(self, multiprocessors: int) -> tuple[int, int]:
        """(blocks, threads of each). As many as can be there at once; a block more would only add its histogram."""
        across, down = self.tiles
        return min(across * down, _BLOCKS_A_MULTIPROCESSOR * multiprocessors), _THREADS

    def sample_launch(self, multiprocessors: int) -> tuple[int, int]:
        """(blocks, threads of each): a value of the tensor a thread, or several."""
        values = self.struct.channels * self.struct.target_width * self.struct.target_height
        return min(-(-values // _THREADS), _BLOCKS_A_MULTIPROCESSOR * multiprocessors), _THREADS

    def laplacian_variance(self, sums: SumsStruct) -> float:
        """On 0..255, as the reference has it; exact sums of whole numbers until here."""
        count = (self.halved_size[0] - 2) * (self.halved_size[1] - 2)
        if min(self.halved_size) < 3:
            return 0.0
        mean = sums.laplacian / count
        return float((sums.laplacian_squared / count - mean * mean) * self.struct.scale**2)


def kernel_plan(size: Size, pixel: str, roi: Box | None, spec: InputSpec, gains: Gains = NO_GAINS) -> KernelPlan:
    """For frames of ``size`` (width, height) in format ``pixel``. Raises ValueError for a format no kernel reads."""
    if pixel not in pixels.FORMATS:
        raise ValueError(f"pixel format {pixel} is read by no kernel; decode it first")
    box = roi or (0, 0, *size)
    left, top, content_width, content_height = content_box(box[2], box[3], spec)
    image_width, image_height = box[2], box[3]
    bayer, words = pixels.is_bayer(pixel), pixels.is_words(pixel)
    quads = bayer and image_width >= 2 * content_width and image_height >= 2 * content_height
    if quads:
        image_width, image_height = image_width // 2, image_height // 2
    halvings, out_width, out_height = 0, image_width, image_height
    while out_width >= 2 * content_width and out_height >= 2 * content_height:
        halvings, out_width, out_height = halvings + 1, out_width // 2, out_height // 2
    if halvings + quads > MOST_HALVINGS:
        text = f"a picture of {box[2]} x {box[3]} is halved {halvings + quads} times"
        raise ValueError(f"{text}; {MOST_HALVINGS} can be, take a smaller roi")
    rows, row_shares = bilinear_places(out_height, content_height)
    columns, column_shares = bilinear_places(out_width, content_width)
    colour = pixel not in _MONO
    name = _MONO.get(pixel) or (f"{'quads' if quads else 'bayer'}{16 if words else 8}" if bayer else pixels.layout(pixel))
    halved_channels = 3 if colour and spec.channels == 3 else 1
    tile_columns, tile_rows = _tile(name, box, (image_width, image_height), halvings, halved_channels)
    struct = PlanStruct(
        frame_width=size[0], frame_height=size[1], x=box[0], y=box[1], width=box[2], height=box[3],
        image_width=image_width, image_height=image_height, halvings=halvings, out_width=out_width, out_height=out_height,
        channels=spec.channels, colours=(ctypes.c_int * 4)(*(pixels.quad_colours(pixel, box[0], box[1]) if bayer else (0,) * 4)),
        balanced=colour and tuple(gains) != NO_GAINS, gains=(ctypes.c_int * 3)(*fixed_gains(gains)),
        target_width=spec.size[0], target_height=spec.size[1], left=left, top=top, content_width=content_width,
        content_height=content_height, pad=PAD, scale=scale_of_word(words),
        mean=(ctypes.c_float * 3)(*_three(spec.mean)), deviation=(ctypes.c_float * 3)(*_three(spec.std)),
        yuv=(ctypes.c_int * 6)(*pixels.yuv_constants(pixel)), tile_columns=tile_columns, tile_rows=tile_rows,
    )  # fmt: skip
    return KernelPlan(
        name, words, struct, halved_channels, (out_width, out_height), rows.astype(np.int32), row_shares,
        columns.astype(np.int32), column_shares,
    )  # fmt: skip


def _tile(kernel: str, roi: Box, image: Size, halvings: int, channels: int) -> Size:
    """Columns and rows of the image: as wide as shared memory holds, best whole rows, which no other tile shares."""
    side = 1 << halvings
    across = -(-image[0] // side)
    shares_rows = kernel.startswith("bayer") or (kernel == "nv12" and roi[1] % 2 == 1)
    step = rows = max(side, _LEAST_ROWS_SHARED if shares_rows else 2 if kernel == "nv12" else 1)
    cuts = 1
    while not _fits(kernel, -(-across // cuts) * side, rows, halvings, channels):
        cuts += 1
    columns = -(-across // cuts) * side
    while rows < image[1] and _staged_bytes(kernel, columns, rows + step) <= _ENOUGH_BYTES:
        rows += step
    return columns, rows


def _fits(kernel: str, columns: int, rows: int, halvings: int, channels: int) -> bool:
    word = 2 if kernel.endswith("16") else 1
    first_bytes = channels * word * (columns // 2) * (rows // 2) if halvings > 1 else 0
    return _staged_bytes(kernel, columns, rows) <= _RAW_BYTES and first_bytes <= _FIRST_BYTES


def _staged_bytes(kernel: str, columns: int, rows: int) -> int:
    """At most: each line with its address's place between two multiples of 16, as the kernel's Staged has it."""
    word = 2 if kernel.endswith("16") else 1
    widest, lines = {
        "rgb8": (3 * columns, rows), "bgr8": (3 * columns, rows),
        "yuyv": (2 * columns + 4, rows), "uyvy": (2 * columns + 4, rows), "nv12": (columns + 2, rows + rows // 2 + 1),
        "quads8": (2 * columns, 2 * rows), "quads16": (4 * columns, 2 * rows),
        "bayer8": (columns + 2, rows + 2), "bayer16": (2 * columns + 4, rows + 2),
    }.get(kernel, (word * columns, rows))  # fmt: skip
    return (widest + 30) // 16 * 16 * lines


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    return (*values, *values, *values)[:3] if len(values) < 3 else values[:3]  # type: ignore[return-value]
