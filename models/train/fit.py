"""The fitting itself: one-cycle Adam on cross-entropy, seeded, on the CPU. Nothing here knows where images are from."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.train.net import PartNet

log = logging.getLogger("models.train")

MEAN, STD = 0.5, 0.25
Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 (N, H, W) -> float32 (N, 1, H, W) as the bundle's ``input`` says."""
    return ((images.float() / 255.0 - MEAN) / STD).unsqueeze(1)


def turn_and_flip(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Quarter turns of the whole batch: what lies on a belt has no upright."""
    turns = int(torch.randint(4, (1,), generator=generator))
    return torch.rot90(batch, turns, (2, 3))


def fit(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    classes: int,
    *,
    epochs: int,
    seed: int,
    batch: int = 48,
    peak_rate: float = 3e-3,
    augment: Augment = turn_and_flip,
) -> PartNet:
    """A trained PartNet in eval mode. images uint8 (N, H, W), labels int64 (N,)."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = PartNet(classes).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=1e-4)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak_rate, total_steps=max(2, steps + 1), pct_start=0.2)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.002)
    pixels, targets = torch.from_numpy(images), torch.from_numpy(labels)
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        total, wrong = 0.0, 0
        for first in range(0, len(order) - batch + 1, batch):
            chosen = order[first : first + batch]
            logits = model(augment(normalise(pixels[chosen]), generator))
            loss = loss_of(logits, targets[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
            wrong += int(((logits.argmax(1) == 0) != (targets[chosen] == 0)).sum())
        log.info("epoch %d/%d: loss %.4f, good/bad confused %d of %d", epoch + 1, epochs, total / len(order), wrong, len(order))
    return model.eval()
