"""What is trained on: twin images drawn by seed, or folders of photographs, all through the product's preprocess."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from appliance.twin.parts import KINDS, PROMISED, draw_part
from appliance.twin.scene import render

Images = npt.NDArray[np.uint8]
TWIN_ROI = (160, 80, 320, 320)
TWIN_CLASSES = ("good", *KINDS)
PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Labelled:
    """``images`` uint8 (N, H, W) at ROI size, ``labels`` int64 (N,), index into ``classes``; digest of the pixels."""

    images: Images
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]

    @property
    def digest(self) -> str:
        return "sha256:" + hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()


def twin_frames(seed: int, count: int, defective: float) -> Iterator[tuple[Images, int]]:
    """(ROI of a frame, class) of ``count`` parts, a share of them defective, kinds even; lamp drifts ± 6 %."""
    rng = np.random.default_rng(seed)
    x, y, width, height = TWIN_ROI
    for index in range(count):
        bad = bool(rng.random() < defective)
        kind = KINDS[index % len(KINDS)] if bad else None
        part = draw_part(rng, defective=bad, kind=kind)
        frame = render(part, lamp=float(rng.uniform(0.94, 1.06)), frame_rng=rng)
        yield frame[y : y + height, x : x + width], KINDS.index(kind) + 1 if kind else 0


def teaching_frames(seed: int, count: int) -> Iterator[tuple[Images, int]]:
    """As ``twin_frames``, made harder: the faint kinds come twice as often, a third of all lie 12 % below the promise."""
    rng = np.random.default_rng(seed)
    kinds = (*KINDS, "spot", "scratch", "scratch", "spot")
    x, y, width, height = TWIN_ROI
    for index in range(count):
        kind = kinds[index % len(kinds)] if rng.random() < 0.68 else None
        part = draw_part(rng, defective=kind is not None, kind=kind)
        if kind and rng.random() < 0.33:
            part = replace(part, size=PROMISED[kind].smallest * 0.88, grey=PROMISED[kind].grey * 0.88)
        frame = render(part, lamp=float(rng.uniform(0.94, 1.06)), frame_rng=rng)
        yield frame[y : y + height, x : x + width], KINDS.index(kind) + 1 if kind else 0


def halve(image: Images) -> Images:
    """One exact halving of the contract's preprocess: (a + b + c + d + 2) >> 2."""
    a = image.astype(np.uint16)
    return ((a[0::2, 0::2] + a[1::2, 0::2] + a[0::2, 1::2] + a[1::2, 1::2] + 2) >> 2).astype(np.uint8)


def twin_set(seed: int, count: int, defective: float | None = 0.6) -> Labelled:
    """Network-size images of the twin; ``defective`` None: as taught on."""
    source = teaching_frames(seed, count) if defective is None else twin_frames(seed, count, defective)
    images = np.empty((count, TWIN_ROI[3] // 2, TWIN_ROI[2] // 2), np.uint8)
    labels = np.empty(count, np.int64)
    for index, (roi, label) in enumerate(source):
        images[index], labels[index] = halve(roi), label
    return Labelled(images, labels, TWIN_CLASSES)


def photographs(folder: Path) -> list[Path]:
    """All photographs below a folder, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTOGRAPHS)


def read_grey(path: Path) -> Images:
    """A photograph as uint8 (H, W). Raises ValueError in words."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise ValueError(f"{path} is not an image that can be read; take it out of the folder")
    return image
