"""An output that leads nowhere: the gate of a station that judges photographs from a folder, where no line is."""

from __future__ import annotations

from appliance.ports import Clock


class NowhereOutput:
    """ports.Output that remembers its level and nothing else; wiring uses it only where no camera sees a line."""

    lead_ns = 0

    def __init__(self, name: str, start: bool, longest_on_ms: int | None, clock: Clock) -> None:
        self.name, self.start, self.failure, self.longest_on_ms = name, start, False, longest_on_ms
        self._clock = clock
        self.energised = start

    def set(self, energised: bool, now_ns: int) -> int:
        self.energised = energised
        return self._clock.now_ns()

    def check(self, now_ns: int) -> None:
        """A pin stands as it was set."""

    def close(self) -> None:
        self.energised = self.failure
