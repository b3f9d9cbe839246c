"""Can this frame be judged at all? Frozen, dark, bright, saturated, blurred: causes of ``blind``. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from appliance.ports import Findings

_GREYS = np.arange(256, dtype=np.int64)


@dataclass(frozen=True)
class HealthLimits:
    """None = not watched. brightness: mean grey 0..255; sharpness_min: variance of the Laplacian; saturated_max: share
    of pixels at 255."""

    frozen: bool = True
    brightness: tuple[float, float] | None = None
    sharpness_min: float | None = None
    saturated_max: float | None = None


class ImageHealth:
    """Watches one camera; remembers the last frame's statistics to find a frozen picture."""

    def __init__(self, limits: HealthLimits) -> None:
        self._limits = limits
        self._last: tuple[bytes, int, float] | None = None
        self.figures: dict[str, float] = {}

    def cause(self, findings: Findings) -> str | None:
        """Why this frame is blind, or None. Frozen: histogram, sum and sharpness are those of the frame before.

        A sensor's noise never repeats the histogram of thousands of pixels exactly."""
        pixels = max(1, int(findings.histogram.sum()))
        brightness = float(findings.histogram @ _GREYS) / pixels
        saturated = float(findings.histogram[255]) / pixels
        self.figures = {"brightness": brightness, "sharpness": findings.laplacian_variance, "saturated": saturated}
        fingerprint = (findings.histogram.tobytes(), findings.total, findings.laplacian_variance)
        same, self._last = fingerprint == self._last, fingerprint
        limits = self._limits
        if limits.frozen and same:
            return "frozen"
        if limits.brightness and not limits.brightness[0] <= brightness <= limits.brightness[1]:
            return "dark" if brightness < limits.brightness[0] else "bright"
        if limits.saturated_max is not None and saturated > limits.saturated_max:
            return "saturated"
        if limits.sharpness_min is not None and findings.laplacian_variance < limits.sharpness_min:
            return "blurred"
        return None
