"""An output that is opened when it can be: at boot a pin's node may not be there yet, or not ours yet.

A rejectd that ended instead would let go of the pins that it holds already, and nobody would hear why."""

from __future__ import annotations

from collections.abc import Callable

from appliance.ports import Output, OutputLost


class OpenedLater:
    """ports.Output around ``opener``, which raises OutputLost as often as the output cannot be had."""

    def __init__(self, name: str, start: bool, failure: bool, longest_on_ms: int | None, opener: Callable[[], Output]) -> None:
        self.name, self.start, self.failure, self.longest_on_ms = name, start, failure, longest_on_ms
        self._opener = opener
        self._output: Output | None = None

    @property
    def lead_ns(self) -> int:
        return self._output.lead_ns if self._output else 0

    def set(self, energised: bool, now_ns: int) -> int:
        """Opens it first, at its start level. Raises OutputLost."""
        if self._output is None:
            self._output = self._opener()
        return self._output.set(energised, now_ns)

    def check(self, now_ns: int) -> None:
        """Raises OutputLost."""
        if self._output is None:
            raise OutputLost(f"output {self.name} is not open yet")
        self._output.check(now_ns)

    def close(self) -> None:
        if self._output:
            self._output.close()
