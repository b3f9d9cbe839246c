"""Unix SEQPACKET links between the processes: whole messages, non-blocking, gone means LinkClosed."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from appliance.messages import AnyMessage, Hello, Message, decode, encode
from appliance.ports import LinkClosed

MAX_MESSAGE_BYTES = 128 * 1024  # below Linux's default socket buffer, so one message always fits an empty one
_PATH_LIMIT = 107  # sockaddr_un.sun_path less its NUL


class SocketLink:
    """One connected end. ``waiting`` holds nothing: what cannot be sent stays with the caller."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.peer: Hello | None = None

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message) -> bool:
        """False when the far side's buffer is full. Raises LinkClosed."""
        try:
            self._socket.send(encode(message))
        except BlockingIOError:
            return False
        except OSError as why:
            raise LinkClosed(str(why)) from why
        return True

    def receive(self, at_most: int = 64) -> list[AnyMessage]:
        """What is there now, at most ``at_most`` (so that one talker cannot keep the loop). Raises LinkClosed."""
        messages: list[AnyMessage] = []
        while len(messages) < at_most:
            try:
                data = self._socket.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                break
            except OSError as why:
                raise LinkClosed(str(why)) from why
            if not data:
                if messages:
                    break  # hand over what came before the end; the next call raises
                raise LinkClosed("the far side closed")
            message = decode(data)
            if isinstance(message, Hello):
                self.peer = message
            messages.append(message)
        return messages

    def close(self) -> None:
        self._socket.close()


class Listener:
    """A process's own door: binds ``path`` (an old socket file is replaced), accepts without waiting."""

    def __init__(self, path: Path) -> None:
        check_path(path)
        self.path = path
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._socket.bind(str(path))
        self._socket.listen(64)

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> SocketLink | None:
        try:
            connection, _ = self._socket.accept()
        except BlockingIOError:
            return None
        return SocketLink(connection)

    def close(self) -> None:
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def connect(path: Path, hello: Hello) -> SocketLink | None:
    """A link to ``path`` with ``hello`` said, or None while nobody listens there."""
    check_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
        sock.close()
        return None
    link = SocketLink(sock)
    try:
        link.send(hello)
    except LinkClosed:
        link.close()
        return None
    return link


def check_path(path: Path) -> None:
    """Raises ValueError with what to do when the path is too long for a Unix socket."""
    if len(os.fsencode(path)) > _PATH_LIMIT:
        raise ValueError(f"{path}: too long for a Unix socket ({_PATH_LIMIT} bytes); give a shorter --run-dir")
