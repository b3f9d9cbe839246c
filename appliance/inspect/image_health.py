"""Can this frame be judged at all? Frozen, dark, bright, saturated, blurred: causes of ``blind``. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from appliance.ports import Findings


@dataclass(frozen=True)
class HealthLimits:
    """None = not watched. brightness: mean grey; sharpness: variance of the Laplacian; saturated: share at 255."""

    frozen: bool = True
    brightness: tuple[float, float] | None = None
    sharpness_min: float | None = None
    saturated_max: float | None = None


class ImageHealth:
    """Watches one camera; remembers the last frame's statistics to find a frozen picture."""

    def __init__(self, limits: HealthLimits) -> None:
        self._limits = limits
        self._last: bytes | None = None
        self.figures: dict[str, float] = {}

    def cause(self, findings: Findings) -> str | None:
        """Why this frame is blind, or None. A sensor's noise never repeats a histogram of 10,000s of pixels exactly."""
        pixels = int(findings.histogram.sum())
        mean = findings.total / max(1, pixels)
        saturated = float(findings.histogram[255]) / max(1, pixels)
        self.figures = {"brightness": mean, "sharpness": findings.laplacian_variance, "saturated": saturated}
        fingerprint = findings.histogram.tobytes() + np.float64(findings.laplacian_variance).tobytes()
        same, self._last = fingerprint == self._last, fingerprint
        limits = self._limits
        if limits.frozen and same:
            return "frozen"
        if limits.brightness and not limits.brightness[0] <= mean <= limits.brightness[1]:
            return "dark" if mean < limits.brightness[0] else "bright"
        if limits.saturated_max is not None and saturated > limits.saturated_max:
            return "saturated"
        if limits.sharpness_min is not None and findings.laplacian_variance < limits.sharpness_min:
            return "blurred"
        return None
