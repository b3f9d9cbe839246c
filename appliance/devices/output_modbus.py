"""Output ``modbus://HOST:PORT/coil/N``: commands go to the coupler's process with their due time; nothing here waits."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

from appliance.ports import Clock, OutputLost

MS = 1_000_000


class Process(Protocol):
    """What is asked of the ModbusIo of this coupler."""

    def open_output(self, address: Any, start: bool, failure: bool) -> Any: ...

    def command(self, line: Any, level: bool, due_ns: int) -> None: ...

    def doubt(self, line: Any, at_ns: int) -> str: ...


class ModbusOutput:
    """ports.Output on a coil of a coupler. Raises ValueError at construction where the address says no watchdog_ms.

    ``start`` is written as soon as the process is connected; ``failure`` when it is closed or rejectd dies, and by the
    coupler's own watchdog in every case. Not proved for ``watchdog_ms`` is lost; the first 3 s are for the start."""

    def __init__(
        self, name: str, address: Any, start: bool, failure: bool, longest_on_ms: int | None, clock: Clock, process: Process
    ) -> None:  # fmt: skip
        self.name, self.start, self.failure, self.longest_on_ms = name, start, failure, longest_on_ms
        self._clock, self._process, self._address = clock, process, address.text
        self._line = process.open_output(address, start, failure)

    @property
    def latency_ns(self) -> int:
        """By how much the process fires ahead: half the median round trip of recent writes; 0 until one was measured."""
        return int(self._line.round_trip_ns) // 2

    @property
    def lead_ns(self) -> int:
        """Call ``set`` this long before the coil is to move: so long take the process's firing ahead and an exchange
        that is under way (2 round trips), and the handing over (1 ms)."""
        return 2 * int(self._line.round_trip_ns) + MS

    def set(self, energised: bool, now_ns: int) -> int:
        """Hand the move over. ``now_ns``: when the coil is to move, now or later; a move that is due then or later and
        was handed over before is forgotten.

        Returns the monotonic ns when it is expected to move: ``now_ns``, or ``latency_ns`` from now where that is later.
        Raises OutputLost, also for a line that was not proved lately: the move is handed over all the same, and made
        when the coupler is back."""
        self._hand_over(energised, now_ns)
        at_ns = self._clock.now_ns()
        self.check(at_ns)
        return max(now_ns, at_ns + self.latency_ns)

    def check(self, now_ns: int) -> None:
        """Call it every 100 ms or so: a coil may be lost while nothing moves. Raises OutputLost."""
        why = self._process.doubt(self._line, now_ns)
        if why:
            raise OutputLost(f"output {self.name} at {self._address} is not proved: {why}")

    def close(self) -> None:
        """Hand over ``failure``. The process goes on writing it until rejectd ends."""
        with contextlib.suppress(OutputLost):
            self._hand_over(self.failure, self._clock.now_ns())

    def _hand_over(self, level: bool, due_ns: int) -> None:
        try:
            self._process.command(self._line, level, due_ns)
        except OutputLost as why:
            raise OutputLost(f"output {self.name} at {self._address} cannot be moved: {why}") from why
