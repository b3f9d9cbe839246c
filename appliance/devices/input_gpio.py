"""Input ``gpio://LINE``: edges stamped by the kernel's interrupt handler, read straight from the line's buffer."""

from __future__ import annotations

from typing import Any, Protocol

from appliance.clock import now_ns
from appliance.messages import Edge
from appliance.ports import InputLost


class Lines(Protocol):
    """What is asked of the one GpiodFactory of this process."""

    def open_input(self, address: Any, debounce_ms: float, consumer: str) -> Any: ...

    def release(self, held: Any) -> None: ...


class GpioInput:
    """ports.Input on a GPIO line. Raises InputLost at construction where the line cannot be had.

    Levels are logical: ``active=low`` is turned round by the kernel. ``Edge.sequence`` 0 is the level at opening, told
    once by the first ``read``; ``fileno`` does not announce it, so read once after opening, as rejectd does each turn.
    From then on it follows the kernel's line_seqno: a gap is edges the kernel dropped, counted in ``lost_edges``.

    ``debounce_ms``: in the kernel, 0 for none. It makes each stamp late by as much, and reject/eye.py tells bounces
    from parts by itself: give 0 to a photo-eye, and a period to a push button."""

    def __init__(self, name: str, address: Any, debounce_ms: float, lines: Lines) -> None:
        self.name = name
        self._lines = lines
        self._sequence = 0
        self._told = False
        self.lost_edges = 0
        self._opened_ns = now_ns()  # before the request: no edge can be older
        try:
            held = lines.open_input(address, debounce_ms, name)
        except OSError as why:
            raise InputLost(f"input {name}: {why}") from why
        self._held: Any = held
        self._words = f"input {name}, line {held.line}"
        self._read_events, self._rising, self._fd = held.request.read_edge_events, held.rising, held.request.fd
        try:
            self._level = held.request.get_value(held.offset) is held.active
        except OSError as why:
            self.close()
            raise InputLost(f"{self._words}: {why.strerror}") from why
        self._looked_ns = now_ns()

    def fileno(self) -> int:
        """Readable when there are edges, or when the line is lost. The level at opening does not make it so."""
        return self._fd

    def read(self) -> list[Edge]:
        """At most one kernel buffer (256 edges); what is left keeps ``fileno`` readable. Raises InputLost."""
        if self._held is None:
            raise InputLost(f"{self._words} is closed")
        try:
            events = self._read_events()
        except BlockingIOError:
            if self._told:
                return []
            events = []
        except OSError as why:
            raise InputLost(f"{self._words} gives no more edges ({why.strerror}); is its chip still there?") from why
        edges = [] if self._told else [self._opening(events)]
        for event in events:
            step = (event.line_seqno - self._sequence) & 0xFFFFFFFF  # the kernel counts in 32 bits
            self.lost_edges += step - 1
            self._sequence += step
            self._level = event.event_type is self._rising
            edges.append(Edge(self.name, self._level, event.timestamp_ns, self._sequence))
        return edges

    def level(self) -> bool:
        return self._level

    def close(self) -> None:
        """Give the line back; twice is once."""
        if self._held is not None:
            self._lines.release(self._held)
            self._held = None

    def _opening(self, events: list[Any]) -> Edge:
        self._told = True
        # An edge between the request and the look at the level is already in that level.
        if events and events[0].timestamp_ns <= self._looked_ns:
            self._level = events[0].event_type is not self._rising
        return Edge(self.name, self._level, self._opened_ns, 0)
