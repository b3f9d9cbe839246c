"""From a camera's bytes to channels: every pixel format of the configuration, row by row at its pitch. numpy only.

Whatever reads pixels elsewhere (the GPU's kernels, the archive) is held to these integers bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
Image = npt.NDArray[Any]  # uint8 or uint16; (h, w) or (h, w, 3) = RGB
Box = tuple[int, int, int, int]
Size = tuple[int, int]

_RED, _GREEN, _BLUE = 0, 1, 2
# Colours of a quad's corners: upper left, upper right, lower left, lower right.
_BAYER = {
    "rggb": (_RED, _GREEN, _GREEN, _BLUE),
    "bggr": (_BLUE, _GREEN, _GREEN, _RED),
    "grbg": (_GREEN, _RED, _BLUE, _GREEN),
    "gbrg": (_GREEN, _BLUE, _RED, _GREEN),
}
_WORDS = ("mono10", "mono12", "mono16")  # 16-bit words, top-aligned
# BT.601 in 1/65536: luma, V in red, U and V in green, U in blue. Full range as JPEG has it: 1.402, 0.344136, 0.714136,
# 1.772; limited range has luma in 16..235 and chroma in 16..240, so 255/219 and 255/224 times that.
_FULL_RANGE = (0, 65536, 91881, 22554, 46802, 116130)
_LIMITED_RANGE = (16, 76309, 104597, 25675, 53279, 132201)
_YUV = ("nv12", "yuyv", "uyvy")
LIMITED = "/limited"
FORMATS = (
    "mono8", *_WORDS, "rgb8", "bgr8", "nv12", "yuyv", "uyvy",
    *(f"bayer_{order}{bits}" for order in _BAYER for bits in (8, 10, 12)),
    *(f"{pixel}{LIMITED}" for pixel in _YUV),
)  # fmt: skip


def is_bayer(pixel: str) -> bool:
    """One colour a pixel, in quads."""
    return pixel.startswith("bayer_")


def is_words(pixel: str) -> bool:
    """16-bit words."""
    return pixel in _WORDS or (is_bayer(pixel) and not pixel.endswith("8"))


def layout(pixel: str) -> str:
    """Where the bytes stand, whatever range they use."""
    return pixel.removesuffix(LIMITED)


def yuv_constants(pixel: str) -> tuple[int, int, int, int, int, int]:
    """Black, then in 1/65536: luma, V in red, U and V in green, U in blue; see ``_rgb``."""
    return _LIMITED_RANGE if pixel.endswith(LIMITED) else _FULL_RANGE


def bytes_per_row(pixel: str, width: int) -> int:
    """Bytes of one row without padding (of the first plane)."""
    if pixel in ("rgb8", "bgr8"):
        return 3 * width
    return 2 * width if layout(pixel) in ("yuyv", "uyvy") or is_words(pixel) else width


def frame_bytes(pixel: str, width: int, height: int, pitch: int | None = None) -> int:
    """Bytes of a whole frame; the last row counts with its padding."""
    pitch = pitch or bytes_per_row(pixel, width)
    return pitch * height * 3 // 2 if layout(pixel) == "nv12" else pitch * height


def channels(memory: U8, size: Size, pitch: int, pixel: str, roi: Box | None = None) -> Image:
    """The ROI as (h, w) or (h, w, 3 = RGB): uint8, or uint16 for words of 10-16 bits. May be a view of ``memory``.

    ``memory``: the frame's bytes, 1-D; ``size``: width, height. A Bayer frame comes by bilinear interpolation; see
    ``quads``. Raises ValueError in words for a format, size, pitch or ROI that does not fit."""
    box = roi or (0, 0, *size)
    rows = checked_rows(memory, size, pitch, pixel, box)
    x, y, w, h = box
    if pixel == "mono8":
        return rows[y : y + h, x : x + w]
    if pixel in _WORDS:
        return _words(rows[y : y + h, 2 * x : 2 * (x + w)])
    if pixel in ("rgb8", "bgr8"):
        colour = _thirds(rows, box)
        return colour if pixel == "rgb8" else colour[:, :, ::-1]
    if layout(pixel) in ("yuyv", "uyvy"):
        return _packed_yuv(rows, box, pixel)
    if layout(pixel) == "nv12":
        return _nv12(rows, size[1], box, pixel)
    return _demosaic(rows, size, pixel, box)


def quads(memory: U8, size: Size, pitch: int, pixel: str, roi: Box) -> Image:
    """A Bayer ROI at half size, one RGB pixel a quad (h // 2, w // 2, 3). Raises ValueError as ``channels``.

    Quads are counted from the ROI's corner: any 2 x 2 pixels hold one red, two greens and one blue."""
    rows = checked_rows(memory, size, pitch, pixel, roi)
    x, y, w, h = roi
    plane = _plane(rows, (x, y, w // 2 * 2, h // 2 * 2), pixel)
    corners = (plane[0::2, 0::2], plane[0::2, 1::2], plane[1::2, 0::2], plane[1::2, 1::2])
    colours = quad_colours(pixel, x, y)
    first, second = (corner for corner, colour in zip(corners, colours) if colour == _GREEN)
    result = np.empty((*corners[0].shape, 3), plane.dtype)
    result[:, :, 0] = corners[colours.index(_RED)]
    result[:, :, 1] = (first.astype(np.uint32) + second + 1) >> 1
    result[:, :, 2] = corners[colours.index(_BLUE)]
    return result


def checked_rows(memory: U8, size: Size, pitch: int, pixel: str, roi: Box) -> U8:
    """The frame as (rows, bytes of a row), padding cut off. Raises ValueError when anything does not fit."""
    width, height = size
    x, y, w, h = roi
    if pixel not in FORMATS:
        raise ValueError(f"pixel format {pixel} cannot be judged; set the camera to one of {', '.join(FORMATS[:9])} or Bayer")
    if min(x, y) < 0 or min(w, h) < 1 or x + w > width or y + h > height:
        raise ValueError(f"roi {[x, y, w, h]} reaches beyond the frame's {width} x {height}; keep it within")
    if (layout(pixel) in _YUV and width % 2) or (layout(pixel) == "nv12" and height % 2):
        raise ValueError(f"a {pixel} frame of {width} x {height} cannot be; its sides are even")
    if pitch < bytes_per_row(pixel, width):
        raise ValueError(f"{pitch} bytes a row cannot hold {width} pixels of {pixel}")
    count = height * 3 // 2 if layout(pixel) == "nv12" else height
    needed = pitch * (count - 1) + bytes_per_row(pixel, width)  # the last row may come without its padding
    if memory.size < needed:
        raise ValueError(f"the frame has {memory.size} bytes; {width} x {height} of {pixel} at {pitch} a row needs {needed}")
    memory = np.ascontiguousarray(memory).reshape(-1)
    return np.lib.stride_tricks.as_strided(memory, (count, bytes_per_row(pixel, width)), (pitch, 1), writeable=False)


def _words(rows: U8) -> Image:
    return np.ascontiguousarray(rows).view("<u2")


def _thirds(rows: U8, box: Box) -> Image:
    """Rows of three bytes a pixel as (h, w, 3), without a copy."""
    x, y, w, h = box
    pitch = rows.strides[0]
    return np.lib.stride_tricks.as_strided(rows[y:, 3 * x :], (h, w, 3), (pitch, 3, 1), writeable=False)


def _plane(rows: U8, box: Box, pixel: str) -> Image:
    x, y, w, h = box
    if is_words(pixel):
        return _words(rows[y : y + h, 2 * x : 2 * (x + w)])
    return rows[y : y + h, x : x + w]


def _rgb(y: Image, u: Image, v: Image, pixel: str) -> U8:
    """BT.601, rounded to nearest; integers, so that every path gives the same bits."""
    black, light, red_v, green_u, green_v, blue_u = yuv_constants(pixel)
    luma = (y.astype(np.int32) - black) * light + 32768
    blueness, redness = u.astype(np.int32) - 128, v.astype(np.int32) - 128
    result = np.empty((*luma.shape, 3), np.uint8)
    result[:, :, 0] = np.clip((luma + red_v * redness) >> 16, 0, 255)
    result[:, :, 1] = np.clip((luma - green_u * blueness - green_v * redness) >> 16, 0, 255)
    result[:, :, 2] = np.clip((luma + blue_u * blueness) >> 16, 0, 255)
    return result


def _packed_yuv(rows: U8, box: Box, pixel: str) -> U8:
    """Two pixels share one U and one V: cut at whole pairs, convert, cut to the ROI."""
    x, y, w, h = box
    left, right = x // 2 * 2, (x + w + 1) // 2 * 2
    cut = rows[y : y + h, 2 * left : 2 * right]
    first = 0 if layout(pixel) == "yuyv" else 1
    chroma = cut[:, 1 - first :: 2]
    u, v = chroma[:, 0::2].repeat(2, 1), chroma[:, 1::2].repeat(2, 1)
    inner = slice(x - left, x - left + w)
    return _rgb(cut[:, first::2][:, inner], u[:, inner], v[:, inner], pixel)


def _nv12(rows: U8, height: int, box: Box, pixel: str) -> U8:
    """Four pixels share one U and one V, which stand in turn below the luma."""
    x, y, w, h = box
    left, top, right, bottom = x // 2 * 2, y // 2, (x + w + 1) // 2 * 2, (y + h + 1) // 2
    chroma = rows[height + top : height + bottom, left:right].repeat(2, 0)[y - 2 * top : y - 2 * top + h]
    inner = slice(x - left, x - left + w)
    u, v = chroma[:, 0::2].repeat(2, 1)[:, inner], chroma[:, 1::2].repeat(2, 1)[:, inner]
    return _rgb(rows[y : y + h, x : x + w], u, v, pixel)


def quad_colours(pixel: str, x: int, y: int) -> tuple[int, ...]:
    """Colours of the quad whose corner is (x, y)."""
    order = _BAYER[pixel[6:10]]
    return tuple(order[(y + row) % 2 * 2 + (x + column) % 2] for row in (0, 1) for column in (0, 1))


def _demosaic(rows: U8, size: Size, pixel: str, box: Box) -> Image:
    """Bilinear: each missing colour is the mean of its nearest neighbours of that colour, halves rounded up.

    Neighbours beyond the ROI count where the frame has them."""
    x, y, w, h = box
    left, top, right, bottom = max(0, x - 1), max(0, y - 1), min(size[0], x + w + 1), min(size[1], y + h + 1)
    plane = _plane(rows, (left, top, right - left, bottom - top), pixel)
    colours = quad_colours(pixel, left, top)
    result = np.empty((*plane.shape, 3), plane.dtype)
    for colour in (_RED, _GREEN, _BLUE):
        mask = np.zeros(plane.shape, np.uint32)
        for corner, place in enumerate(colours):
            if place == colour:
                mask[corner // 2 :: 2, corner % 2 :: 2] = 1
        near, weight = _spread(plane * mask), np.maximum(_spread(mask), 1)
        result[:, :, colour] = np.where(mask > 0, plane, (2 * near + weight) // (2 * weight))
    return result[y - top : y - top + h, x - left : x - left + w]


def _spread(values: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Sum over 3 x 3 with weights 1 2 1 each way: direct neighbours count before diagonal ones."""
    padded = np.pad(values, 1)
    across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    total: npt.NDArray[np.uint32] = across[:-2] + 2 * across[1:-1] + across[2:]
    return total
