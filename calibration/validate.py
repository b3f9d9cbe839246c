"""The held-out report of a bundle: every image through the product's own path, shares with exact intervals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from appliance.inspect.judge import Judgement, judge, limits_of
from appliance.model.bundle import Bundle
from appliance.model.golden import frame_of, part_score
from appliance.model.intervals import told
from appliance.wiring.models import cpu_network


@dataclass
class Report:
    """What came of each image: (class it is, verdict, score)."""

    rows: list[tuple[str, str, float]] = field(default_factory=list)

    def figures(self, good: tuple[str, ...]) -> dict[str, Any]:
        """Counts and shares; a part that does not pass is rejected. Review counts as rejected, and is told."""
        bad = [row for row in self.rows if row[0] not in good]
        fine = [row for row in self.rows if row[0] in good]
        caught = sum(row[1] != "pass" for row in bad)
        lost = sum(row[1] == "fail" for row in fine)
        review = sum(row[1] == "review" for row in fine)
        rejected_good = lost + review
        kinds = sorted({row[0] for row in bad})
        return {
            "images": len(self.rows), "good": len(fine), "bad": len(bad),
            "recall": told(caught, len(bad)),
            "precision": told(caught, caught + rejected_good),
            "false_reject_rate": told(lost, len(fine)),
            "review_rate_of_good": told(review, len(fine)),
            "recall_per_kind": {
                kind: told(sum(row[1] != "pass" for row in bad if row[0] == kind), sum(row[0] == kind for row in bad))
                for kind in kinds
            },
        }  # fmt: skip


def inspect_images(bundle: Bundle, images: Iterable[tuple[npt.NDArray[np.uint8], str]], pixel: str) -> Report:
    """``images``: (uint8 at ROI size, class). Same preprocess, engine, decode and judge as on the box."""
    network = cpu_network(bundle)
    limits = limits_of(bundle, None, None, {})
    report = Report()
    for pixels, name in images:
        frame = frame_of(pixels, pixel)
        findings = network.wait(network.submit(frame, None), 2**62)
        assert findings is not None
        judgement: Judgement = judge(findings, bundle, limits, "held-out", (0, 0, *frame.size))
        report.rows.append((name, judgement.verdict, part_score(findings, bundle)))
    return report


def operating_point(report: Report, good: tuple[str, ...], false_reject: float) -> dict[str, Any]:
    """The lowest fail_at whose false rejects stay within the target, with what is known of it."""
    fine = np.sort([row[2] for row in report.rows if row[0] in good])
    bad = np.array([row[2] for row in report.rows if row[0] not in good])
    allowed = int(false_reject * len(fine))
    at = float(np.nextafter(fine[len(fine) - 1 - allowed], 2)) if len(fine) else 1.0
    return {
        "fail_at": round(min(1.0, at), 6),
        "false_reject_rate": told(int((fine >= at).sum()), len(fine)),
        "recall": told(int((bad >= at).sum()), len(bad)),
    }
