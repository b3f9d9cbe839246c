"""Photographs for training: folders to labelled arrays, and the changes a camera's and a part's day bring."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as functional

from models.train.data import Labelled, photographs, read_grey
from models.train.fit import MEAN, STD


def load_folders(good: Path, bad: Path, size: tuple[int, int]) -> Labelled:
    """uint8 (N, H, W) at network size. Sub-folders of ``bad`` are classes, else one class ``defect``. Raises ValueError."""
    fine, wrong = photographs(good), photographs(bad)
    for folder, found in ((good, fine), (bad, wrong)):
        if len(found) < 20:
            raise ValueError(f"{folder}: {len(found)} photographs; at least 20 of each are needed")
    names = sorted({path.relative_to(bad).parts[0] for path in wrong if path.parent != bad}) or ["defect"]
    classes = ("good", *names)
    images, labels = [], []
    for path in (*fine, *wrong):
        images.append(cv2.resize(read_grey(path), size, interpolation=cv2.INTER_AREA))
        below = path.relative_to(bad).parts if path in wrong and path.is_relative_to(bad) else ()
        labels.append(0 if path in fine else classes.index(below[0]) if len(below) > 1 else 1)
    return Labelled(np.stack(images), np.array(labels, np.int64), classes)


def augment_photograph(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turn by any angle, mirror, move, zoom, brightness, contrast, gamma, noise: each image its own.

    Wide on purpose: photographs of one day know few lamps and few parts, the line will bring others."""
    count = len(batch)

    def draw(low: float, high: float) -> torch.Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    angle, zoom = draw(0, 2 * np.pi), draw(0.85, 1.15)
    mirror = torch.sign(draw(-1, 1))
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    first = torch.stack([cosine * mirror, -sine, draw(-0.05, 0.05)], 1)
    second = torch.stack([sine * mirror, cosine, draw(-0.05, 0.05)], 1)
    rows = torch.stack([first, second], 1)
    grid = functional.affine_grid(rows, list(batch.shape), align_corners=False)
    moved = functional.grid_sample(batch, grid, padding_mode="reflection", align_corners=False)
    shares = ((moved * STD + MEAN).clamp(1e-3, 1) ** draw(0.6, 1.6).view(-1, 1, 1, 1) - MEAN) / STD
    shares = shares * draw(0.6, 1.4).view(-1, 1, 1, 1) + draw(-0.7, 0.7).view(-1, 1, 1, 1)
    return shares + torch.randn(shares.shape, generator=generator) * 0.05
