"""What a process tells systemd of itself, sd_notify(3) in a few lines: ready, its status, that its loop turns.

Never waits: what the manager's socket does not take at once is told again (READY, another limit) or newer the next time.
Without NOTIFY_SOCKET, as on a laptop, nothing is told and nothing fails."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger("appliance.notify")

_ALIVE = b"WATCHDOG=1"  # made before the loop begins: rejectd makes nothing while it runs
_STOPPING = b"STOPPING=1"
_STATUS_CHARACTERS = 240


class Notifier:
    """One process's voice. ``environment``: where systemd wrote whom to tell; ``pid``: whose watchdog it is."""

    def __init__(self, environment: Mapping[str, str], pid: int) -> None:
        """Raises ValueError where NOTIFY_SOCKET or WATCHDOG_USEC is not what systemd writes."""
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.watchdog_s = _watchdog_s(environment, pid) if self._socket else None
        """How long the manager waits for a sign of life; None: nobody watches."""
        self._next_ns = 0
        self._owed: dict[str, bytes] = {}
        """Words that the manager has to have: told again until it took them."""
        self._status = ""
        self._failed = 0
        """errno of the last refusal, so that each is logged once."""

    def ready(self, status: str) -> None:
        """The unit is up. Told until the manager has it."""
        self._status = _one_line(status)
        self._owe("READY", f"READY=1\nSTATUS={self._status}")

    def status(self, text: str) -> None:
        """For `systemctl status`, in words, when it changed."""
        text = _one_line(text)
        if text != self._status and self._tell(f"STATUS={text}".encode()):
            self._status = text

    def alive(self, now_ns: int) -> None:
        """The loop that matters has turned. Monotonic ``now_ns``; cheap, and silent until half of the watchdog's time is over."""
        if self._owed:
            self._pay()
        if self.watchdog_s is None or now_ns < self._next_ns:
            return
        if self._tell(_ALIVE):
            self._next_ns = now_ns + round(self.watchdog_s * 0.5e9)

    def watchdog(self, limit_s: float | None) -> None:
        """From now on the manager waits so long for a sign of life. Nothing where nobody watches."""
        if self.watchdog_s is None or limit_s is None:
            return
        self.watchdog_s = limit_s
        self._next_ns = 0
        self._owe("WATCHDOG_USEC", f"WATCHDOG_USEC={round(limit_s * 1e6)}\nWATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """A start or stop may take so much longer, from now."""
        self._tell(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}".encode())

    def stopping(self) -> None:
        """The process is on its way out, of its own or as it was told."""
        self._tell(_STOPPING)

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None

    def _owe(self, name: str, words: str) -> None:
        self._owed[name] = words.encode()
        self._pay()

    def _pay(self) -> None:
        for name, words in list(self._owed.items()):
            if self._tell(words):
                del self._owed[name]

    def _tell(self, words: bytes) -> bool:
        """Whether it was taken, or there is nobody."""
        if self._socket is None:
            return True
        try:
            self._socket.sendto(words, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address)
        except OSError as why:
            if why.errno != self._failed:
                log.warning("the service manager was not told %s: %s", words.decode(), why.strerror)
            self._failed = why.errno or 0
            return False
        self._failed = 0
        return True


def of_this_process() -> Notifier:
    """By the environment in which it was started. Raises ValueError."""
    return Notifier(os.environ, os.getpid())


def _address(name: str) -> str | bytes:
    """`@name` is Linux's abstract name space, whose names begin with a zero."""
    if name.startswith("@"):
        return b"\0" + os.fsencode(name[1:])
    if name and not name.startswith("/"):  # vsock: is of virtual machines' managers
        raise ValueError(f"NOTIFY_SOCKET={name}: no path and no abstract name; a service manager writes /… or @…")
    return name


def _watchdog_s(environment: Mapping[str, str], pid: int) -> float | None:
    limit_us = environment.get("WATCHDOG_USEC", "")
    whose = environment.get("WATCHDOG_PID", "")
    if not limit_us or (whose and whose != str(pid)):
        return None
    if not limit_us.isdecimal() or int(limit_us) == 0:
        raise ValueError(f"WATCHDOG_USEC={limit_us}: write microseconds, a whole number above 0")
    return int(limit_us) / 1e6


def _one_line(text: str) -> str:
    """Another line would be another message to the manager."""
    return " ".join(text.split())[:_STATUS_CHARACTERS]
