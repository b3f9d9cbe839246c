"""Input ``modbus://HOST:PORT/discrete/N`` (or ``coil/N``): polled by the coupler's process, which sends the edges."""

from __future__ import annotations

from typing import Any, Protocol

from appliance.clock import now_ns
from appliance.messages import Edge, decode
from appliance.ports import InputLost


class Process(Protocol):
    """What is asked of the ModbusIo of this coupler."""

    def open_input(self, name: str, address: Any) -> Any: ...

    def doubt(self, line: Any, at_ns: int) -> str: ...


class ModbusInput:
    """ports.Input by polling. Raises InputLost at construction where this place is known not to answer.

    An edge is stamped at the middle of the reading that first showed it; a level that stands for less than a poll
    (5 ms, or the coupler's round trip where that is longer) is not seen at all. Sequence 0 is the level at opening."""

    def __init__(self, name: str, address: Any, process: Process) -> None:
        self.name, self._address, self._process = name, address.text, process
        self._level = False
        self._line = process.open_input(name, address)
        self._socket = self._line.edges

    @property
    def uncertainty_ns(self) -> int:
        """An edge happened at most this far from its stamp, nearly always before it; 0 until it was polled."""
        return int(self._line.uncertainty_ns)

    def fileno(self) -> int:
        """Readable when there are edges, or when the process is gone."""
        return int(self._socket.fileno())

    def read(self) -> list[Edge]:
        """Raises InputLost when the coupler has not answered for 1 s, or its process is gone."""
        edges: list[Edge] = []
        while True:
            try:
                data = self._socket.recv(4096)
            except BlockingIOError:
                break
            except OSError as why:
                raise self._lost(str(why)) from why
            if not data:
                if edges:
                    return edges
                raise self._lost(self._process.doubt(self._line, now_ns()) or "its process gave it up")
            message = decode(data)
            if isinstance(message, Edge):
                self._level = message.level
                edges.append(message)
        why_not = self._process.doubt(self._line, now_ns())
        if why_not and not edges:
            raise self._lost(why_not)
        return edges

    def level(self) -> bool:
        return self._level

    def close(self) -> None:
        self._socket.close()

    def _lost(self, why: str) -> InputLost:
        return InputLost(f"input {self.name} at {self._address}: {why}")
