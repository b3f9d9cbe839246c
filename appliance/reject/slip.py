"""The photo-eye at the gate: how far parts have slipped on the belt since their trigger. Pure.

It sees each part's front arrive. The slip of the parts it saw last is taken for those still on their way; a part that
it saw itself stands where it was seen. An edge that is near no part, or a part that it did not see, is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from appliance.messages import Edge
from appliance.reject.part import OpenPart

_TRUST = 0.5  # of the newest slip: one part may have been laid badly, two in a row are the belt


class GateEyeSaw(Enum):
    """What an edge of the gate's eye meant."""

    NOTHING = "nothing"
    PART = "part"
    STRANGER = "gate_eye_stray"


class Slip:
    """``mm``: what is taken for parts not seen yet; more than 0 = they come later than the belt says."""

    def __init__(self, within_mm: float) -> None:
        self._within_mm = within_mm
        self.mm = 0.0

    def on_edge(
        self, edge: Edge, at_mm: float, parts: Iterable[OpenPart]
    ) -> tuple[GateEyeSaw, OpenPart | None, float]:
        """A front at the gate with the belt at ``at_mm``; ``parts`` as they are expected there.

        Returns what it was, whose, and how many mm later than expected."""
        if not edge.level or edge.sequence == 0:
            return GateEyeSaw.NOTHING, None, 0.0
        near = [part for part in parts if not part.seen_at_gate and abs(part.arrive_mm - at_mm) <= self._within_mm]
        if not near:
            return GateEyeSaw.STRANGER, None, 0.0
        part = min(near, key=lambda one: abs(one.arrive_mm - at_mm))
        off_mm = at_mm - part.arrive_mm
        self.mm += self.share(off_mm)
        return GateEyeSaw.PART, part, off_mm

    def share(self, off_mm: float) -> float:
        """What of one part's slip is taken for those behind it."""
        return _TRUST * off_mm
