"""An output and an input without anything behind them: they behave, remember, and can be cut off."""

from __future__ import annotations

import os

from appliance.messages import Edge
from appliance.ports import Clock, InputLost, OutputLost


class MockOutput:
    """ports.Output. ``moves``: (instant, level) of all that it did; ``cut``: it cannot be moved."""

    lead_ns = 0

    def __init__(
        self, name: str, start: bool, failure: bool, longest_on_ms: int | None, clock: Clock
    ) -> None:  # fmt: skip
        self.name, self.start, self.failure, self.longest_on_ms = name, start, failure, longest_on_ms
        self.moves: list[tuple[int, bool]] = [(clock.now_ns(), start)]
        self.cut = False
        self._clock = clock

    def set(self, energised: bool, now_ns: int) -> int:
        if self.cut:
            raise OutputLost(f"mock output {self.name} was cut off by the test")
        self.moves.append((self._clock.now_ns(), energised))
        return self.moves[-1][0]

    def check(self, now_ns: int) -> None:
        if self.cut:
            raise OutputLost(f"mock output {self.name} was cut off by the test")

    def close(self) -> None:
        self.moves.append((self._clock.now_ns(), self.failure))


class MockInput:
    """ports.Input. ``turn`` is the world's hand on the contact; ``cut``: it gives no more edges."""

    def __init__(self, name: str, level: bool, clock: Clock) -> None:
        self.name, self._level, self._clock = name, level, clock
        self._reader, self._writer = os.pipe()
        self._waiting: list[Edge] = []
        self._sequence = 0
        self.cut = False
        self.turn(level)

    def turn(self, level: bool) -> int:
        """The instant of the edge."""
        at_ns = self._clock.now_ns()
        self._waiting.append(Edge(self.name, level, at_ns, self._sequence))
        self._sequence += 1
        os.write(self._writer, b"1")
        return at_ns

    def fileno(self) -> int:
        return self._reader

    def read(self) -> list[Edge]:
        if self.cut:
            raise InputLost(f"mock input {self.name} was cut off by the test")
        edges, self._waiting = self._waiting, []
        if edges:
            os.read(self._reader, len(edges))
            self._level = edges[-1].level
        return edges

    def level(self) -> bool:
        return self._level

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)
