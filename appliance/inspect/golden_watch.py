"""Golden vectors while running: one at a time, between frames, all of them every ``golden_every_h``."""

from __future__ import annotations

from appliance.model.bundle import Bundle
from appliance.model.golden import Golden, Replayable, replay


class GoldenWatch:
    """Spreads one bundle's vectors evenly over the interval. ``last_good_part``: newest part at the last full round."""

    def __init__(self, network: Replayable, bundle: Bundle, golden: Golden, every_h: float) -> None:
        self._network, self._bundle, self._golden = network, bundle, golden
        self._period_ns = round(every_h * 3.6e12 / len(golden))
        self._next_ns: int | None = None
        self._index = 0
        self.last_good_part = 0

    def step(self, now_ns: int, newest_part: int) -> None:
        """Replay the next vector if it is due. Raises GoldenError."""
        if self._next_ns is None:
            self._next_ns = now_ns + self._period_ns
        if now_ns < self._next_ns:
            return
        self._next_ns += self._period_ns
        replay(self._network, self._bundle, self._golden, self._index, definition=False)
        self._index = (self._index + 1) % len(self._golden)
        if self._index == 0:
            self.last_good_part = newest_part
