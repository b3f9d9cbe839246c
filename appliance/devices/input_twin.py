"""Digital input ``twin://NAME``: edges over a socket from the twin's process, stamped where they happened."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec

from appliance.messages import Edge, TwinHello, decode, encode
from appliance.ports import InputLost

_EDGE_BYTES = 4096


class TwinInput:
    """One input line of the twin. Opening fails while the twin is not there: the owner tries again."""

    def __init__(self, name: str, path: Path, twin_name: str) -> None:
        self.name = name
        self._twin_name = twin_name
        self._level = False
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        try:
            sock.connect(str(path))
            sock.send(encode(TwinHello("input", twin_name)))
        except OSError as why:
            sock.close()
            raise InputLost(f"the twin's input {twin_name} does not answer ({why.strerror}); is the twin running?") from why
        self._socket = sock

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[Edge]:
        """Edges since the last call; sequence 0 tells the level at opening. Raises InputLost."""
        edges: list[Edge] = []
        try:
            while data := self._socket.recv(_EDGE_BYTES):
                edge = decode(data)
                if isinstance(edge, Edge):
                    self._level = edge.level
                    edges.append(edge)
        except BlockingIOError:
            return edges
        except (OSError, msgspec.MsgspecError) as why:
            raise InputLost(f"the twin's input {self._twin_name}: {why}") from why
        if edges:
            return edges  # what came before the end; the next call raises
        raise InputLost(f"the twin's input {self._twin_name} closed")

    def level(self) -> bool:
        return self._level

    def close(self) -> None:
        self._socket.close()
