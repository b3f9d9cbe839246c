"""The same preprocess with OpenCV for the costly steps: halving and luma bit for bit, the tensor within 1e-5 (tested)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from appliance.model import pixels, preprocess
from appliance.model.bundle import InputSpec
from appliance.model.pixels import U8, Box, Image, Size
from appliance.model.preprocess import F32, I64, NO_GAINS, Gains, Prepared, when_asked

_AS_IT_LIES = ("mono8", "rgb8", "bgr8")
_MOST_BUFFERS = 64  # photographs of many sizes would fill the memory with buffers never used again


class CvSteps:
    """The costly steps by OpenCV, into buffers made at the first frame of a size and used again at the next."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], npt.NDArray[Any]] = {}
        self._blue_first = False  # of the frame in hand: turning every pixel round would cost a pass of its own
        self._checked: tuple[Any, ...] = ()

    def channels(self, memory: U8, size: Size, pitch: int, pixel: str, roi: Box) -> Image:
        """As preprocess; a bgr8 frame stays as it lies, and the steps after this one know it."""
        self._blue_first = pixel == "bgr8"
        if pixel == "mjpeg":
            return decode_jpeg(memory, size, roi)
        place = (memory.size, memory.strides, size, pitch, pixel, roi)
        if place == self._checked and pixel in _AS_IT_LIES and memory.strides == (1,):  # it fits as the frame before did
            x, y, w, h = roi
            shape, strides = ((h, w), (pitch, 1)) if pixel == "mono8" else ((h, w, 3), (pitch, 3, 1))
            return np.ndarray(shape, np.uint8, memory, y * pitch + x * strides[1], strides)  # type: ignore[no-any-return]
        image = pixels.channels(memory, size, pitch, "rgb8" if self._blue_first else pixel, roi)
        self._checked = place
        return image

    def balance(self, image: Image, gains: Gains) -> Image:
        gains = gains[::-1] if self._blue_first else gains
        if image.dtype != np.uint8:
            return preprocess.balance(image, gains)
        every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3)
        return cv2.LUT(image, preprocess.balance(every, gains))

    def luma(self, image: Image) -> Image:
        if image.ndim == 2:
            return image
        code = cv2.COLOR_BGR2GRAY if self._blue_first else cv2.COLOR_RGB2GRAY
        return cv2.cvtColor(image, code, dst=self._buffer("luma", image.shape[:2], image.dtype))

    def histogram(self, grey: Image) -> I64:
        top = 65536 if grey.dtype == np.uint16 else 256
        # OpenCV counts in float32, exact up to 2**24 pixels.
        if grey.size >= 1 << 24:
            return preprocess.histogram(grey)
        return cv2.calcHist([grey], [0], None, [256], [0, top]).ravel().astype(np.int64)

    def halve(self, image: Image) -> Image:
        """INTER_AREA at exactly a half is (a + b + c + d + 2) >> 2 for whole numbers."""
        rows, columns = image.shape[0] // 2, image.shape[1] // 2
        half = self._buffer("half", (rows, columns, *image.shape[2:]), image.dtype)
        return cv2.resize(image[: 2 * rows, : 2 * columns], (columns, rows), dst=half, interpolation=cv2.INTER_AREA)

    def laplacian_variance(self, grey: Image) -> float:
        if min(grey.shape) < 3:
            return 0.0
        # Of bytes the Laplacian fits int16, and whole numbers are summed at a quarter of the price.
        depth, kind = (cv2.CV_16S, np.int16) if grey.dtype == np.uint8 else (cv2.CV_32F, np.float32)
        edges = cv2.Laplacian(grey, depth, dst=self._buffer("edges", grey.shape, kind), ksize=1)[1:-1, 1:-1]
        if grey.dtype != np.uint8:
            _, deviation = cv2.meanStdDev(edges)
            return float((deviation[0, 0] * preprocess.scale_of(grey)) ** 2)
        mean = cv2.sumElems(edges)[0] / edges.size
        return max(0.0, cv2.norm(edges, cv2.NORM_L2SQR) / edges.size - mean * mean)

    def to_float(self, image: Image) -> F32:
        values: F32 = self._buffer("float", image.shape, np.float32)
        if image.dtype == np.uint8:  # its scale is 1
            np.copyto(values, image)
        else:
            np.multiply(image, np.float32(preprocess.scale_of(image)), out=values, dtype=np.float32)
        return values

    def bilinear(self, values: F32, size: Size) -> F32:
        """INTER_LINEAR on float32 has half-pixel centres and repeats edges."""
        resized = self._buffer("bilinear", (size[1], size[0], *values.shape[2:]), np.float32)
        return cv2.resize(values, size, dst=resized, interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]

    def normalise(self, values: F32, spec: InputSpec) -> F32:
        """One multiplication and one addition a pixel, into the tensor."""
        tensor: F32 = self._buffer("tensor", (spec.channels, spec.size[1], spec.size[0]), np.float32)
        for channel, plane in enumerate(tensor):
            place = 2 - channel if self._blue_first else channel
            source = values if values.ndim == 2 else values[:, :, place]  # cv2.split writes past the cache: slower
            np.multiply(source, np.float32(1 / (255 * spec.std[channel])), out=plane)
            np.subtract(plane, np.float32(spec.mean[channel] / spec.std[channel]), out=plane)
        return tensor

    def _buffer(self, role: str, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        key = (role, shape, np.dtype(dtype))
        found = self._buffers.get(key)
        if found is None:
            if len(self._buffers) >= _MOST_BUFFERS:
                self._buffers.clear()
            found = self._buffers[key] = np.empty(shape, dtype)
        return found


def prepare_cv2(
    memory: U8, size: Size, pitch: int, pixel: str, roi: Box | None, spec: InputSpec, gains: Gains = NO_GAINS
) -> Prepared:
    """As preprocess.prepare, and ``mjpeg``; arrays are the caller's to keep."""
    return preprocess.prepare(memory, size, pitch, pixel, roi, spec, gains, CvSteps())


class FastPreprocess:
    """As ``prepare_cv2`` for one camera and bundle. The tensor is valid until the next call, and the statistics are worked
    out when they are asked for, until then too: a histogram takes as long as a small network (0.7 ms), and a verdict
    seldom hangs on it."""

    def __init__(self, spec: InputSpec, gains: Gains = NO_GAINS) -> None:
        self._spec, self._gains, self._steps = spec, gains, CvSteps()

    def __call__(self, memory: U8, size: Size, pitch: int, pixel: str, roi: Box | None) -> Prepared:
        return preprocess.prepare(memory, size, pitch, pixel, roi, self._spec, self._gains, self._steps, when_asked)


def decode_jpeg(memory: U8, size: Size, roi: Box) -> Image:
    """One MJPEG picture's ROI as RGB, or (h, w) for a grey one. Raises ValueError in words, also for one cut short."""
    # A driver's buffer is longer than the picture; OpenCV fills what is missing with grey and says nothing.
    if cut_short(memory):
        raise ValueError("the camera's JPEG picture ends before its end mark; check the cable, or lower fps or size")
    try:
        image = cv2.imdecode(memory, cv2.IMREAD_ANYCOLOR)
    except cv2.error as why:
        raise ValueError(f"the camera's JPEG picture cannot be read ({str(why).strip().splitlines()[-1]})") from why
    if image is None:
        raise ValueError("the camera's picture is not a JPEG; set pixel to what the camera gives")
    if (image.shape[1], image.shape[0]) != tuple(size):
        raise ValueError(f"the camera's JPEG has {image.shape[1]} x {image.shape[0]} pixels, not {size[0]} x {size[1]}")
    x, y, w, h = roi
    if min(x, y) < 0 or min(w, h) < 1 or x + w > size[0] or y + h > size[1]:
        raise ValueError(f"roi {[x, y, w, h]} reaches beyond the frame's {size[0]} x {size[1]}; keep it within")
    cut = image[y : y + h, x : x + w]
    return cut if cut.ndim == 2 else cv2.cvtColor(cut, cv2.COLOR_BGR2RGB)


def cut_short(jpeg: U8 | bytes) -> bool:
    """Whether a JPEG's scans end before the end mark. Walks the segments: thumbnails have end marks of their own."""
    data = bytes(jpeg)
    if data[:2] != b"\xff\xd8":
        return False  # not a JPEG: for the decoder to say
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return True
        marker = data[at + 1]
        if marker == 0xD9:
            return False
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 2
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            at = _scan_end(data, at)
    return data[at : at + 2] != b"\xff\xd9"


def _scan_end(data: bytes, at: int) -> int:
    """Where the marker after a scan's coded bytes stands: 0xFF not stuffed (00) and no restart (D0-D7)."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            return len(data)
        if data[at + 1] != 0 and not 0xD0 <= data[at + 1] <= 0xD7:
            return at
        at += 2
