"""Output ``twin://NAME``: tells the twin's process each level; when this socket closes, the output is de-energised."""

from __future__ import annotations

import socket
from pathlib import Path

from appliance.messages import Level, TwinHello, encode
from appliance.ports import Clock, OutputLost


class TwinOutput:
    """ports.Output over RUN/twin.sock. A twin that is not there (yet) is an output that cannot be moved."""

    lead_ns = 0

    def __init__(
        self, name: str, path: Path, twin_name: str, start: bool, failure: bool, longest_on_ms: int | None, clock: Clock
    ) -> None:  # fmt: skip
        self.name, self.start, self.failure, self.longest_on_ms = name, start, failure, longest_on_ms
        self._path, self._twin_name, self._clock = path, twin_name, clock
        self._socket: socket.socket | None = None

    def set(self, energised: bool, now_ns: int) -> int:
        """Raises OutputLost."""
        try:
            if self._socket is None:
                self._socket = self._connect()
            at_ns = self._clock.now_ns()
            self._socket.send(encode(Level(self._twin_name, energised, at_ns)))
        except OSError as why:
            if self._socket:
                self._socket.close()
                self._socket = None
            raise OutputLost(f"twin output {self._twin_name} does not answer ({why}); is the twin running?") from why
        return at_ns

    def check(self, now_ns: int) -> None:
        """A pin stands as it was set."""

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        try:
            sock.connect(str(self._path))
            sock.send(encode(TwinHello("output", self._twin_name)))
        except OSError:
            sock.close()
            raise
        return sock
