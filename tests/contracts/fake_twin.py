"""The twin's side of its lines: takes levels, tells edges, and goes away when it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

from appliance.messages import Edge, Level, TwinHello, decode, encode


class FakeTwin:
    """Listens on ``path`` in a thread. An output whose socket closes is de-energised, as at the real twin."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._levels: dict[str, tuple[bool, int]] = {}
        self._contacts: dict[str, bool] = {}
        self._inputs: dict[str, tuple[socket.socket, int]] = {}
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []
        self.start()

    def start(self) -> None:
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self._path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), name="twin", daemon=True).start()

    def stop(self) -> None:
        """The twin's process is gone."""
        assert self._listener is not None
        for sock in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._open.clear()
        self._path.unlink(missing_ok=True)

    def turn(self, name: str, level: bool) -> int:
        """The instant at which the contact changed."""
        with self._changed:
            at_ns = time.monotonic_ns()
            self._contacts[name] = level
            if name in self._inputs:
                sock, sequence = self._inputs[name]
                self._inputs[name] = (sock, sequence + 1)
                sock.send(encode(Edge(name, level, at_ns, sequence)))
            return at_ns

    def wait_level(self, name: str, level: bool, within_s: float = 5.0) -> int:
        """The instant at which the output took ``level``."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._levels.get(name, (False, 0))[0] == level, within_s)
            assert done, f"twin output {name} did not become {level} in {within_s} s"
            return self._levels.get(name, (False, 0))[1]

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            self._open.append(sock)
            threading.Thread(target=self._serve, args=(sock,), name="twin-line", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        hello = decode(sock.recv(4096))
        assert isinstance(hello, TwinHello)
        if hello.kind == "input":
            with self._changed:
                self._inputs[hello.name] = (sock, 0)
            self.turn(hello.name, self._contacts.get(hello.name, False))
            return
        with contextlib.suppress(OSError):
            while data := sock.recv(4096):
                message = decode(data)
                assert isinstance(message, Level)
                self._put(hello.name, message.level, message.time_ns)
        self._put(hello.name, False, time.monotonic_ns())

    def _put(self, name: str, level: bool, at_ns: int) -> None:
        with self._changed:
            if self._levels.get(name, (None, 0))[0] != level:
                self._levels[name] = (level, at_ns)
            self._changed.notify_all()
