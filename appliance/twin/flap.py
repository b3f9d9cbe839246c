"""A gate of the twin: told by its output, there after its lag, back by its spring. Pure."""

from __future__ import annotations

import random
from collections import deque

from appliance.twin.travel import Travel

_MS = 1_000_000
_RESPONSE_JITTER_MS = 0.3  # a 5/2-way valve repeats to some tenths of a millisecond
_BACK_MS = 2.0  # the gate is spring-loaded: the way back is short


class Flap:
    """Stretches in reject as [opened_ns, closed_ns or None]; the de-energised side holds from the beginning."""

    def __init__(self, travel: Travel, response_ms: float, reject_level: bool, rng: random.Random, now_ns: int) -> None:
        self._travel, self._response_ms, self._reject_level, self._random = travel, response_ms, reject_level, rng
        self._level = False
        self._rejects: deque[list[int | None]] = deque()
        if not reject_level:
            self._rejects.append([now_ns, None])

    @property
    def rejecting(self) -> bool:
        """What it was last told: it stands in reject, or is on its way there."""
        return self._level == self._reject_level

    def move(self, energised: bool, time_ns: int) -> None:
        """Its output moved (or fell, its driver being gone) at ``time_ns``."""
        if energised == self._level:
            return
        self._level = energised
        if energised == self._reject_level:
            jitter_ms = self._random.uniform(-_RESPONSE_JITTER_MS, _RESPONSE_JITTER_MS)
            self._open(time_ns + round(max(0.0, self._response_ms + jitter_ms) * _MS))
        else:
            self._close(time_ns + round(_BACK_MS * _MS))

    def _open(self, at_ns: int) -> None:
        last = self._rejects[-1] if self._rejects else None
        if last is not None and last[1] is not None and last[1] >= at_ns:
            last[1] = None  # it was on its way back and never left
        else:
            self._rejects.append([at_ns, None])

    def _close(self, at_ns: int) -> None:
        last = self._rejects[-1]
        if last[0] is not None and last[0] >= at_ns:
            self._rejects.pop()  # told back before it had arrived
        else:
            last[1] = at_ns

    def forget_before(self, arrive_ns: int) -> None:
        """Every part that is still asked for arrived later."""
        rejects = self._rejects
        while rejects and (closed_ns := rejects[0][1]) is not None and closed_ns <= arrive_ns:
            rejects.popleft()

    def hit(self, arrive_mm: float, leave_mm: float, arrive_ns: int, leave_ns: int) -> tuple[int, int] | None:
        """(opened, closed) of the stretch in reject in which any of a part stood at the gate; closed 0 = still open."""
        for opened, closed_ns in self._rejects:
            opened_ns = opened or 0
            if opened_ns >= leave_ns:
                return None
            from_ns, to_ns = max(opened_ns, arrive_ns), leave_ns if closed_ns is None else min(closed_ns, leave_ns)
            if to_ns <= from_ns:
                continue
            least_mm, most_mm = self._travel.range_mm(from_ns, to_ns)
            if least_mm < leave_mm and most_mm > arrive_mm:
                return opened_ns, closed_ns or 0
        return None
