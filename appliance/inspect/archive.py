"""Kept images: eight slots made at start, copied into after the verdict was sent, written by a thread of their own."""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from appliance.messages import Stored
from appliance.model.pixels import channels
from appliance.ports import Frame

log = logging.getLogger("appliance.archive")

SLOTS = 8
_JPEG_QUALITY = 92
_QUOTA_EVERY = 50  # stored images between two looks at the quota


@dataclass
class Slot:
    """One kept frame, copied; made at start and used again."""

    pixels: np.ndarray
    part: int = 0
    camera: str = ""
    size: tuple[int, int] = (0, 0)
    pitch: int = 0
    pixel: str = ""
    wall_us: int = 0
    used: int = 0


class Archive:
    """Never waited for: no free slot = dropped and counted; a full disk = counted and told."""

    def __init__(self, folder: Path, slot_bytes: int, quota_bytes: int, told: Callable[[Stored], None]) -> None:
        self._folder = folder
        self._quota_bytes = quota_bytes
        self._told = told
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for _ in range(SLOTS):
            self._free.put(Slot(np.empty(slot_bytes, np.uint8)))
        self._full: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self.counts = {"archive_copies": 0, "stored": 0, "dropped": 0, "failed": 0}
        self._thread = threading.Thread(target=self._run, name="archive", daemon=True)
        self._thread.start()

    def copy(self, part: int, camera: str, frame: Frame, wall_us: int) -> Slot | None:
        """A frame into a free slot, to be stored or forgotten later; None and counted when no slot is free."""
        try:
            slot = self._free.get_nowait()
        except queue.Empty:
            self.counts["dropped"] += 1
            return None
        used = len(frame.memory)
        if used > len(slot.pixels):
            slot.pixels = np.empty(used, np.uint8)
        slot.pixels[:used] = frame.memory
        slot.part, slot.camera, slot.size, slot.pitch = part, camera, frame.size, frame.pitch_bytes
        slot.pixel, slot.wall_us, slot.used = frame.pixel, wall_us, used
        self.counts["archive_copies"] += 1
        return slot

    def store(self, slot: Slot) -> None:
        """Let the thread write it; the slot comes back by itself."""
        self._full.put(slot)

    def forget(self, slot: Slot) -> None:
        """It is not wanted after all."""
        self._free.put(slot)

    @property
    def free_slots(self) -> int:
        return self._free.qsize()

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what waits, then end."""
        self._full.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (slot := self._full.get()) is not None:
            stored = self._store(slot)
            self._free.put(slot)
            self._told(stored)
            if self.counts["stored"] % _QUOTA_EVERY == 1:
                self._keep_quota()

    def _store(self, slot: Slot) -> Stored:
        day = datetime.fromtimestamp(slot.wall_us / 1e6, timezone.utc).strftime("%Y/%m/%d")
        name = f"{day}/{slot.part}-{slot.camera}.jpg"
        try:
            encoded = self._encode(slot)
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part")
            partial.write_bytes(encoded)
            os.replace(partial, path)
        except (OSError, ValueError, cv2.error) as why:
            self.counts["failed"] += 1
            log.warning("image %s is not kept: %s; check free disk space and storage.images.quota_gb", name, why)
            return Stored(slot.part, slot.camera, "", "", dropped=True)
        self.counts["stored"] += 1
        return Stored(slot.part, slot.camera, name, hashlib.sha256(encoded).hexdigest())

    def _encode(self, slot: Slot) -> bytes:
        if slot.pixel == "mjpeg":
            return slot.pixels[: slot.used].tobytes()
        image: Any = channels(slot.pixels[: slot.used], slot.size, slot.pitch, slot.pixel)
        if image.dtype == np.uint16:
            image = (image >> 8).astype(np.uint8)
        if image.ndim == 3:
            image = np.ascontiguousarray(image[:, :, ::-1])
        ok, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        if not ok:
            raise ValueError("it could not be encoded")
        return encoded.tobytes()

    def _keep_quota(self) -> None:
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._folder.rglob("*.jpg"))
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self._quota_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size
