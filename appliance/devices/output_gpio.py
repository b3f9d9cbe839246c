"""Output ``gpio://LINE``: one call into the kernel a move, and a line that is never let go while the process lives."""

from __future__ import annotations

import errno
import logging
from typing import Any, Protocol

from appliance.ports import Clock, OutputLost

log = logging.getLogger("appliance.gpio")


class Lines(Protocol):
    """What is asked of the one GpiodFactory of this process."""

    def open_output(self, address: Any, start: bool, consumer: str) -> Any: ...

    def release(self, held: Any) -> None: ...


class GpioOutput:
    """ports.Output on a GPIO line. Raises OutputLost at construction where the line cannot be had.

    The request itself carries ``start``: the line is never an output at another level before. ``energised`` is
    logical (``active=low`` is turned round by the kernel). The factory holds the line until the process ends.

    ``failure`` is what ``close`` leaves. What the pad does after a kill is the kernel's and the wiring's: a resistor
    or a relay must make it ``failure``."""

    lead_ns = 0

    def __init__(
        self, name: str, address: Any, start: bool, failure: bool, longest_on_ms: int | None, clock: Clock, lines: Lines
    ) -> None:  # fmt: skip
        self.name, self.start, self.failure, self.longest_on_ms = name, start, failure, longest_on_ms
        self._address, self._clock, self._lines = address, clock, lines
        self._held: Any = None
        self._open(start)

    def set(self, energised: bool, now_ns: int) -> int:
        """Monotonic ns read after the kernel moved the pin. Raises OutputLost; the next call tries again."""
        if self._held is None:
            self._open(energised)
        try:
            self._set_value(self._offset, self._active if energised else self._inactive)
        except OSError as why:
            raise self._lost(why) from why
        return self._clock.now_ns()

    def check(self, now_ns: int) -> None:
        """A pin stands as it was set."""

    def close(self) -> None:
        """Set ``failure``. The line stays held: given back, it would float (JetPack 6.2.1) or change its function."""
        if self._held is None:
            return
        try:
            self._set_value(self._offset, self._active if self.failure else self._inactive)
        except OSError as why:
            log.error("%s", self._lost(why))

    def _open(self, level: bool) -> None:
        try:
            held = self._lines.open_output(self._address, level, self.name)
        except OSError as why:
            raise OutputLost(f"output {self.name}: {why}") from why
        self._held = held
        self._set_value, self._offset = held.request.set_value, held.offset
        self._active, self._inactive = held.active, held.inactive

    def _lost(self, why: OSError) -> OutputLost:
        words = f"output {self.name}, line {self._held.line} cannot be set ({why.strerror}); is its chip still there?"
        if why.errno == errno.ENODEV:  # the request died with its chip; any other request is worth keeping
            self._lines.release(self._held)
            self._held = None
        return OutputLost(words)
