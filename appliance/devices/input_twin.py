"""Input ``twin://NAME``: edges stamped by the twin at the instant they happened."""

from __future__ import annotations

import socket
from pathlib import Path

from appliance.messages import Edge, TwinHello, decode, encode
from appliance.ports import InputLost


class TwinInput:
    """ports.Input over RUN/twin.sock. Raises InputLost at construction while the twin is not there."""

    def __init__(self, name: str, path: Path, twin_name: str) -> None:
        self.name = name
        self._twin_name = twin_name
        self._level = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        try:
            self._socket.connect(str(path))
            self._socket.send(encode(TwinHello("input", twin_name)))
        except OSError as why:
            self._socket.close()
            raise InputLost(f"twin input {twin_name} does not answer ({why}); is the twin running?") from why

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[Edge]:
        """Raises InputLost when the twin is gone."""
        edges: list[Edge] = []
        while True:
            try:
                data = self._socket.recv(4096)
            except BlockingIOError:
                return edges
            except OSError as why:
                raise InputLost(f"twin input {self._twin_name}: {why}") from why
            if not data:
                if edges:
                    return edges
                raise InputLost(f"twin input {self._twin_name} closed")
            message = decode(data)
            if isinstance(message, Edge):
                self._level = message.level
                edges.append(message)

    def level(self) -> bool:
        return self._level

    def close(self) -> None:
        self._socket.close()
