"""From a camera's bytes to channels: every pixel format of the configuration, row by row at its pitch. numpy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
_BAYER = {"rggb": (0, 1, 1, 2), "bggr": (2, 1, 1, 0), "grbg": (1, 0, 2, 1), "gbrg": (1, 2, 0, 1)}


def bytes_per_row(pixel: str, width: int) -> int:
    """Bytes of one row without padding (of the first plane)."""
    if pixel in ("rgb8", "bgr8"):
        return 3 * width
    if pixel in ("yuyv", "uyvy") or pixel in ("mono10", "mono12", "mono16") or pixel.endswith(("10", "12")):
        return 2 * width
    return width


def frame_bytes(pixel: str, width: int, height: int, pitch: int | None = None) -> int:
    """Bytes of a whole frame."""
    pitch = pitch or bytes_per_row(pixel, width)
    return pitch * height * 3 // 2 if pixel == "nv12" else pitch * height


def channels(memory: U8, size: tuple[int, int], pitch: int, pixel: str, roi: Box | None = None) -> npt.NDArray[np.generic]:
    """The ROI as (h, w) or (h, w, 3 = RGB): uint8, or uint16 for words of 10-16 bits. Raises ValueError.

    ``memory``: the frame's bytes, 1-D. A Bayer frame comes as (h, w, 3) by bilinear interpolation; see ``quads``."""
    width, height = size
    x, y, w, h = roi or (0, 0, width, height)
    if x + w > width or y + h > height:
        raise ValueError(f"roi {[x, y, w, h]} reaches beyond the frame's {width} x {height}")
    if pixel == "nv12":
        return _nv12(memory, size, pitch)[y : y + h, x : x + w]
    rows = memory[: pitch * height].reshape(height, pitch)[:, : bytes_per_row(pixel, width)]
    if pixel == "mono8":
        return rows[y : y + h, x : x + w]
    if pixel in ("mono10", "mono12", "mono16"):
        return _words(rows)[y : y + h, x : x + w]
    if pixel in ("rgb8", "bgr8"):
        colour = rows.reshape(height, width, 3)[y : y + h, x : x + w]
        return colour if pixel == "rgb8" else colour[:, :, ::-1]
    if pixel in ("yuyv", "uyvy"):
        return _packed_yuv(rows, width, pixel)[y : y + h, x : x + w]
    if pixel.startswith("bayer_"):
        plane = rows if pixel.endswith("8") else _words(rows)
        return _demosaic(plane, pixel[6:10])[y : y + h, x : x + w]
    raise ValueError(f"pixel format {pixel} cannot be judged; mjpeg is decoded by the camera")


def quads(memory: U8, size: tuple[int, int], pitch: int, pixel: str, roi: Box) -> npt.NDArray[np.generic] | None:
    """A Bayer ROI at half size, one RGB pixel per quad (h/2, w/2, 3); None where the ROI splits quads."""
    x, y, w, h = roi
    if x % 2 or y % 2 or not pixel.startswith("bayer_"):
        return None
    rows = memory[: pitch * size[1]].reshape(size[1], pitch)[:, : bytes_per_row(pixel, size[0])]
    plane = (rows if pixel.endswith("8") else _words(rows))[y : y + h // 2 * 2, x : x + w // 2 * 2]
    corners = (plane[0::2, 0::2], plane[0::2, 1::2], plane[1::2, 0::2], plane[1::2, 1::2])
    places = _BAYER[pixel[6:10]]
    red, blue = corners[places.index(0)], corners[places.index(2)]
    greens = [corner for corner, place in zip(corners, places) if place == 1]
    green = (greens[0].astype(np.uint32) + greens[1] + 1) >> 1
    return np.stack([red, green.astype(plane.dtype), blue], 2)


def _words(rows: U8) -> npt.NDArray[np.uint16]:
    return np.ascontiguousarray(rows).view("<u2")


def _rgb(y: npt.NDArray[np.float32], u: npt.NDArray[np.float32], v: npt.NDArray[np.float32]) -> U8:
    """BT.601, full range."""
    red = y + np.float32(1.402) * v
    green = y - np.float32(0.344136) * u - np.float32(0.714136) * v
    blue = y + np.float32(1.772) * u
    return np.clip(np.rint(np.stack([red, green, blue], 2)), 0, 255).astype(np.uint8)


def _packed_yuv(rows: U8, width: int, pixel: str) -> U8:
    first = 0 if pixel == "yuyv" else 1
    y = rows[:, first::2].astype(np.float32)
    chroma = rows[:, 1 - first :: 2].astype(np.float32) - 128
    return _rgb(y, chroma[:, 0::2].repeat(2, 1)[:, :width], chroma[:, 1::2].repeat(2, 1)[:, :width])


def _nv12(memory: U8, size: tuple[int, int], pitch: int) -> U8:
    width, height = size
    rows = memory[: pitch * height * 3 // 2].reshape(height * 3 // 2, pitch)[:, :width]
    chroma = (rows[height:].astype(np.float32) - 128).repeat(2, 0)
    return _rgb(rows[:height].astype(np.float32), chroma[:, 0::2].repeat(2, 1), chroma[:, 1::2].repeat(2, 1))


def _demosaic(plane: npt.NDArray[np.generic], order: str) -> npt.NDArray[np.generic]:
    """Bilinear: each missing colour is the mean of its nearest neighbours of that colour."""
    height, width = plane.shape
    planes = []
    for colour in range(3):
        mask = np.zeros((height, width), np.float32)
        for corner, place in enumerate(_BAYER[order]):
            if place == colour:
                mask[corner // 2 :: 2, corner % 2 :: 2] = 1
        near, weights = _spread(plane.astype(np.float32) * mask), _spread(mask)
        planes.append(np.where(mask > 0, plane, np.rint(near / weights)))
    return np.stack(planes, 2).astype(plane.dtype)


def _spread(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    padded = np.pad(values, 1)
    across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    return across[:-2] + 2 * across[1:-1] + across[2:]
