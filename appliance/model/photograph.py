"""One photograph from a file, whole, or in words why not. OpenCV alone fills a cut file with grey and says nothing."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from appliance.model.preprocess_cv2 import cut_short

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
_MOST_BYTES = 256 * 1024 * 1024


class PhotographError(Exception):
    """A file that is no picture, or not all of one."""


def read_photograph(path: Path) -> tuple[npt.NDArray[Any], str]:
    """(pixels, pixel format): (h, w) as mono8 or mono16, or (h, w, 3) as bgr8, as the file has it. Raises PhotographError."""
    raw = _bytes(path)
    if cut_short(raw) or _png_cut_short(raw) or _bmp_cut_short(raw):
        raise PhotographError(f"{path}: the picture is cut short; copy it anew")
    try:
        image = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as why:
        raise PhotographError(f"{path}: cannot be read as a picture ({str(why).strip().splitlines()[-1]})") from why
    if image is None:
        raise PhotographError(f"{path}: is not a picture, or not all of one; copy it anew ({', '.join(SUFFIXES)})")
    if image.dtype == np.uint16 and image.ndim == 2:
        return image, "mono16"
    if image.dtype == np.uint16:  # no camera format has words of three colours: to bytes, rounded
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.dtype != np.uint8:
        raise PhotographError(f"{path}: its pixels are {image.dtype}; save it with 8 or 16 bits a channel")
    return image, "bgr8" if image.ndim == 3 else "mono8"


def photographs_in(path: Path) -> list[Path]:
    """The pictures below a folder in the order of their names, or the file itself. Raises PhotographError."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise PhotographError(f"{path}: no such file or folder; check the spelling")
    found = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file())
    if not found:
        raise PhotographError(f"{path}: no pictures in this folder; name one with {', '.join(SUFFIXES)} files")
    return found


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise PhotographError(f"{path}: {path.stat().st_size} bytes; a photograph has at most {_MOST_BYTES}")
        raw = path.read_bytes()
    except OSError as why:
        raise PhotographError(f"{path}: cannot be read ({why.strerror})") from why
    if not raw:
        raise PhotographError(f"{path}: the file is empty; copy it anew")
    return raw


def _png_cut_short(raw: bytes) -> bool:
    """Whether a PNG ends before its IEND chunk."""
    if raw[:8] != b"\x89PNG\r\n\x1a\n":
        return False
    at = 8
    while at + 12 <= len(raw):
        length, kind = struct.unpack(">I4s", raw[at : at + 8])
        if kind == b"IEND":
            return False
        at += 12 + length
    return True


def _bmp_cut_short(raw: bytes) -> bool:
    """Whether an uncompressed BMP has fewer bytes than its own size says."""
    if raw[:2] != b"BM" or len(raw) < 54:
        return False
    start, _, width, height, _, bits, compression = struct.unpack("<IIiiHHI", raw[10:34])
    return bool(compression == 0 and len(raw) < start + (width * bits + 31) // 32 * 4 * abs(height))
