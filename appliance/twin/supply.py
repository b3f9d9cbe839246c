"""What lies on the belt: drawn parts or the user's photographs, each with its truth; seeded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from appliance.devices.camera_folder import SUFFIXES, read_image
from appliance.twin.parts import draw_part
from appliance.twin.scene import render

DEFECTIVE_SHARE = 0.08


@dataclass(frozen=True)
class Item:
    """One part and its frame. ``kind`` None = good; ``step`` below 1: fainter than promised."""

    kind: str | None
    size: float
    step: float
    frame: np.ndarray
    pixel: str


def drawn(seed: int, hard: bool) -> Iterator[Item]:
    """Parts for ever: lamp drifting slowly, DEFECTIVE_SHARE of them bad (half of those hard, if ``hard``)."""
    rng = np.random.default_rng(seed)
    lamp = 1.0
    while True:
        lamp = float(np.clip(lamp + rng.normal(0, 0.002), 0.95, 1.05))
        faint = hard and bool(rng.random() < 0.5)
        part = draw_part(rng, defective=bool(rng.random() < DEFECTIVE_SHARE), hard=faint)
        yield Item(part.kind, round(part.size, 4), part.step, render(part, lamp=lamp, frame_rng=rng), "mono8")


def photographed(good: Path, bad: Path, seed: int) -> Iterator[Item]:
    """Each photograph once before any twice, mixed by seed. Raises ValueError when a folder holds none."""
    files = [(path, None) for path in images(good)] + [(path, path.parent.name) for path in images(bad)]
    shuffle = random.Random(seed)
    while True:
        shuffle.shuffle(files)
        for path, kind in files:
            image, pixel = read_image(path)
            yield Item(kind, 0.0, 1.0, image, pixel)


def images(folder: Path) -> list[Path]:
    """The photographs below a folder. Raises ValueError in words."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not found:
        raise ValueError(f"{folder} holds no photographs; name a folder with {', '.join(SUFFIXES)} files")
    return found


def supply(seed: int, hard: bool, good: str | None, bad: str | None) -> Iterator[Item]:
    """The one that the options ask for."""
    return photographed(Path(good), Path(bad), seed) if good and bad else drawn(seed, hard)


def scenario(**values: Any) -> dict[str, Any]:
    """Options of the twin's process, as it reads them from its file."""
    return values
