"""Digital output ``twin://NAME``: levels over a socket to the twin's process; a closed socket de-energises."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from appliance.messages import Level, TwinHello, encode
from appliance.ports import Clock, OutputLost


class TwinOutput:
    """One output of the twin. Lost, it connects again at the next ``set``; it never waits for the twin."""

    failure = False  # the twin's outputs fall to de-energised with their socket

    def __init__(
        self, name: str, path: Path, twin_name: str, clock: Clock, start: bool = False, longest_on_ms: int | None = None
    ) -> None:
        self.name = name
        self.start = start
        self.longest_on_ms = longest_on_ms
        self.level = start
        self._path, self._twin_name, self._clock = path, twin_name, clock
        self._socket: socket.socket | None = None
        with contextlib.suppress(OutputLost):  # the first ``set`` tells, where somebody listens
            self._send()

    def set(self, energised: bool, now_ns: int) -> int:
        """The stamp is this moment's, not ``now_ns``: the pin moves now. Raises OutputLost."""
        self.level = energised
        if self._socket is not None:
            try:
                return self._send()
            except OutputLost:
                pass  # the twin may have been restarted: once more on a new socket
        return self._send()

    def close(self) -> None:
        """The twin's pin falls."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self) -> int:
        if self._socket is None:
            self._socket = self._connect()
        at_ns = self._clock.now_ns()
        try:
            self._socket.send(encode(Level(self._twin_name, self.level, at_ns)))
        except OSError as why:
            self.close()
            raise OutputLost(f"the twin's output {self._twin_name} does not take levels: {why.strerror}") from why
        return at_ns

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        try:
            sock.connect(str(self._path))
            sock.send(encode(TwinHello("output", self._twin_name)))
        except OSError as why:
            sock.close()
            raise OutputLost(f"the twin's output {self._twin_name} does not answer ({why.strerror})") from why
        return sock
