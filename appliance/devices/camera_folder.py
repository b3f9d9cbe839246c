"""Camera ``folder:///path?fps=20``: photographs as frames, at that rate, for ever (or ``once=1``)."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from appliance.ports import CameraLost, Clock, Frame, FrameMemory

log = logging.getLogger("appliance.camera")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


class UnreadableImage(Exception):
    """A file that is no whole image, and why."""


def read_image(path: Path) -> tuple[np.ndarray, str]:
    """(uint8 (h, w) or (h, w, 3 BGR), pixel format). A truncated JPEG is refused: OpenCV would fill it with grey.

    Raises UnreadableImage."""
    try:
        raw = path.read_bytes()
    except OSError as why:
        raise UnreadableImage(f"{path}: {why.strerror}") from why
    if raw[:2] == b"\xff\xd8" and b"\xff\xd9" not in raw[-64:]:
        raise UnreadableImage(f"{path}: the JPEG is cut off ({len(raw)} bytes, no end marker); copy it anew")
    image = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED) if raw else None
    if image is None or image.dtype != np.uint8:
        raise UnreadableImage(f"{path}: not an image of 8 bits that can be read")
    if image.ndim == 3 and image.shape[2] == 4:
        image = image[:, :, :3]
    if image.ndim == 2:
        return np.ascontiguousarray(image), "mono8"
    return np.ascontiguousarray(image), "bgr8"


def image_files(folder: Path) -> list[Path]:
    """The images below a folder, by name. Raises CameraLost in words when there are none."""
    if not folder.is_dir():
        raise CameraLost(f"{folder} is no folder; write folder:///path of one with images")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise CameraLost(f"{folder} holds no images; put {', '.join(SUFFIXES)} files there")
    return found


class FolderCamera:
    """Frames on the grid start + i / fps; the file is read ahead of its instant."""

    frame_copies = 0

    def __init__(self, name: str, folder: Path, fps: float, once: bool, clock: Clock) -> None:
        self.name = name
        self._folder, self._period_ns, self._once, self._clock = folder, round(1e9 / fps), once, clock
        self._files: list[Path] = []
        self._index = 0
        self._next_ns = 0
        self._sequence = 0
        self._counts = {"frames": 0, "unreadable": 0}
        self._pause = threading.Event()

    def open(self, memory: FrameMemory) -> None:
        """Raises CameraLost: no such folder, no images."""
        self._files = image_files(self._folder)
        self._next_ns = self._clock.now_ns() + self._period_ns

    def next_frame(self, timeout_s: float) -> Frame | None:
        """The next image at its instant; unreadable ones are told, counted and skipped. Raises CameraLost."""
        if self._index >= len(self._files):
            if self._once:
                self._pause.wait(timeout_s)
                return None
            self._index = 0
        path = self._files[self._index]
        self._index += 1
        try:
            image, pixel = read_image(path)
        except UnreadableImage as why:
            self._counts["unreadable"] += 1
            log.warning("%s", why)
            if self._counts["unreadable"] >= len(self._files) and not self._counts["frames"]:
                raise CameraLost(f"{self._folder}: none of {len(self._files)} images can be read") from why
            return None
        self._pause.wait(max(0.0, (self._next_ns - self._clock.now_ns()) / 1e9))
        at_ns = self._next_ns
        self._next_ns = max(at_ns + self._period_ns, self._clock.now_ns())
        self._sequence += 1
        self._counts["frames"] += 1
        height, width = image.shape[:2]
        flat: Any = memoryview(image.reshape(-1))
        return Frame(
            flat, 0, image.strides[0], (width, height), pixel, self._sequence, at_ns,
            self._clock.now_ns(), lambda: None,
        )  # fmt: skip

    def close(self) -> None:
        """Nothing is held."""

    def statistics(self) -> dict[str, Any]:
        return dict(self._counts)
