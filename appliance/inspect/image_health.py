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
        self._last: tuple[bytes, float, int, bytes] | None = None
        self._unsettled: Findings | None = None
        self.figures: dict[str, float] = {}

    def cause(self, findings: Findings) -> str | None:
        """Why this frame is blind, or None. Frozen: histogram, sum and sharpness are those of the frame before.

        A sensor's noise never repeats the histogram of thousands of pixels exactly."""
        found = self.early(findings)
        self.settle()
        return found

    def early(self, findings: Findings) -> str | None:
        """As ``cause``, but only what decides is asked for, which costs where findings are worked out when asked.

        ``settle`` must follow while the frame is held: it works out the rest."""
        assert self._unsettled is None, "settle must follow early"
        self._unsettled = findings
        limits = self._limits
        if limits.frozen and self._frozen(findings):
            return "frozen"
        if limits.brightness and not limits.brightness[0] <= (brightness := _brightness(findings)) <= limits.brightness[1]:
            return "dark" if brightness < limits.brightness[0] else "bright"
        if limits.saturated_max is not None and _saturated(findings) > limits.saturated_max:
            return "saturated"
        if limits.sharpness_min is not None and findings.statistics.laplacian_variance < limits.sharpness_min:
            return "blurred"
        return None

    def settle(self) -> None:
        """Figures and memory of the frame that was looked at last, if that is still to be done."""
        if (findings := self._unsettled) is None:
            return
        self._unsettled = None
        told = findings.statistics
        self._last = (told.probe, told.laplacian_variance, told.total, told.histogram.tobytes())
        self.figures = {
            "brightness": _brightness(findings), "sharpness": told.laplacian_variance, "saturated": _saturated(findings),
        }  # fmt: skip

    def _frozen(self, findings: Findings) -> bool:
        """The cheapest first: a live picture differs in its probe already."""
        told, last = findings.statistics, self._last
        if last is None or told.probe != last[0] or told.laplacian_variance != last[1]:
            return False
        return (told.total, told.histogram.tobytes()) == last[2:]


def _brightness(findings: Findings) -> float:
    return float(findings.statistics.histogram @ _GREYS) / max(1, int(findings.statistics.histogram.sum()))


def _saturated(findings: Findings) -> float:
    return float(findings.statistics.histogram[255]) / max(1, int(findings.statistics.histogram.sum()))
