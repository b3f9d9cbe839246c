"""Ends a process whose loop has stopped turning: a GPU that hangs never lets its caller go, and no exception comes of it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

log = logging.getLogger("appliance.inspect")

LOOK_S = 1.0
LOOKS = 5  # a part's frame takes milliseconds, and rejectd answers for those that wait


class Pulse(threading.Thread):
    """``turns`` gives how often the loop has turned so far. Looks are counted, not time: a stopped process that goes on
    is no hung one."""

    def __init__(self, turns: Callable[[], int], end: Callable[[int], None] = os._exit, look_s: float = LOOK_S) -> None:
        super().__init__(name="pulse", daemon=True)
        self._turns, self._end, self._look_s = turns, end, look_s
        self.over = threading.Event()

    def run(self) -> None:
        """Exit 1, so that the supervisor begins anew: parts were late until then, and rejected."""
        seen, still = -1, 0
        while not self.over.wait(self._look_s):
            turns = self._turns()
            still = still + 1 if turns == seen else 0
            seen = turns
            if still >= LOOKS:
                log.critical("the loop did not turn for %g s; this process ends, the next begins anew", still * self._look_s)
                self._end(1)
                return
