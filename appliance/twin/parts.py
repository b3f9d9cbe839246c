"""The parts of the simulated line: good ones in their natural variety, and seven kinds of defect of graded size.

Sizes are fractions of the part's diameter, contrasts grey levels over the surroundings. ``PROMISED`` is the smallest
the shipped bundle answers for; ``hard`` parts lie below it, down to barely visible.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DIAMETER_PX = 280.0
DIAMETER_MM = 28.0


@dataclass(frozen=True)
class Kind:
    """One kind of defect: its smallest and largest size in the promised regime, and the least contrast.

    ``size`` is the diameter (spot, stain, dent), the length (scratch, crack), the depth (chip) or the missing arc as
    a fraction of the print's ring (misprint)."""

    smallest: float
    largest: float
    grey: float


PROMISED: dict[str, Kind] = {
    "spot": Kind(0.04, 0.09, 25.0),
    "scratch": Kind(0.15, 0.35, 25.0),
    "chip": Kind(0.05, 0.12, 25.0),
    "crack": Kind(0.18, 0.40, 30.0),
    "stain": Kind(0.12, 0.25, 25.0),
    "misprint": Kind(0.12, 0.50, 35.0),
    "dent": Kind(0.09, 0.18, 30.0),
}
KINDS: tuple[str, ...] = tuple(PROMISED)
SCRATCH_WIDTH = 0.015
CRACK_WIDTH = 0.012
# How far below the promise `hard` goes, as steps a table can name: size and contrast shrink together.
HARD_STEPS: tuple[float, ...] = (0.85, 0.7, 0.5, 0.35)


@dataclass(frozen=True)
class Part:
    """One part. ``step`` is 1 within the promise, else a step of HARD_STEPS; ``seed`` fixes its looks."""

    seed: int
    kind: str | None
    size: float
    grey: float
    step: float

    @property
    def defective(self) -> bool:
        return self.kind is not None


def draw_part(rng: np.random.Generator, *, defective: bool, hard: bool = False, kind: str | None = None) -> Part:
    """A part at random: good, or with one defect of a random (or given) kind and size."""
    seed = int(rng.integers(2**62))
    if not defective:
        return Part(seed, None, 0.0, 0.0, 1.0)
    name = kind or KINDS[int(rng.integers(len(KINDS)))]
    promised = PROMISED[name]
    step = HARD_STEPS[int(rng.integers(len(HARD_STEPS)))] if hard else 1.0
    # Small ones are the hard ones and the ones that matter: squaring draws towards the smallest.
    share = float(rng.random()) ** 2
    size = promised.smallest + share * (promised.largest - promised.smallest)
    grey = promised.grey * (1.0 + 1.2 * float(rng.random()) ** 2)
    if hard:
        size, grey = promised.smallest * step, promised.grey * step
    return Part(seed, name, size, grey, step)
