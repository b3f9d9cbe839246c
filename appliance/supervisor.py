"""The three daemons as children on a laptop; on the box systemd does this. Restarts what dies, stops in order."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

from appliance.clock import now_ns
from appliance.paths import Paths

log = logging.getLogger("appliance.run")

ROLES = ("report", "inspect", "reject")
_RESTART_NS = {"reject": 0, "inspect": 200_000_000, "report": 200_000_000}


class Supervisor:
    """``roles`` as child processes of this one. rejectd and inspectd stop first, so that reportd hears their last words."""

    def __init__(self, file: Path, paths: Paths, roles: tuple[str, ...] = ROLES, verbose: bool = False) -> None:
        self._file, self._paths, self._roles, self._verbose = file, paths, roles, verbose
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._again_ns: dict[str, int] = {}
        self.restarts = 0

    def start(self) -> None:
        for role in self._roles:
            self._spawn(role)

    def pid(self, role: str) -> int:
        return self._children[role].pid

    def poll(self) -> None:
        """Start again what has died."""
        for role, child in list(self._children.items()):
            if child.poll() is None:
                continue
            again_ns = self._again_ns.setdefault(role, now_ns() + _RESTART_NS[role])
            if now_ns() >= again_ns:
                ended = log.info if child.returncode == 0 else log.warning  # 0: it was asked to begin anew
                ended("%sd ended with %s and is started again", role, child.returncode)
                self.restarts += 1
                self._spawn(role)

    def stop(self, timeout_s: float = 4.0) -> None:
        """SIGTERM in order; what does not end within its time is killed."""
        for role in ("reject", "inspect", "report"):
            child = self._children.pop(role, None)
            if child is None:
                continue
            if child.poll() is None:
                child.send_signal(signal.SIGCONT)
                child.terminate()
            if role == "reject" and "inspect" in self._children:
                continue_role = self._children["inspect"]
                if continue_role.poll() is None:
                    continue_role.send_signal(signal.SIGCONT)
                    continue_role.terminate()
            try:
                child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                log.error("%sd does not end and is killed", role)
                child.kill()
                child.wait()

    def _spawn(self, role: str) -> None:
        self._again_ns.pop(role, None)
        command = [
            sys.executable, "-m", "appliance", "run", "-c", str(self._file), "--only", role,
            "--run-dir", str(self._paths.run), "--data-dir", str(self._paths.data),
        ]  # fmt: skip
        if self._verbose:
            command.insert(3, "-v")
        self._children[role] = subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ})
