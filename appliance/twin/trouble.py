"""Trouble made on purpose: ``--fault NAME@T[+DURATION]`` read, put in the order of time, and done."""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

log = logging.getLogger("appliance.twin")

_NS_PER_S = 1_000_000_000


@dataclass(frozen=True)
class Kind:
    """One fault that can be made. ``lasts_s`` None: it is over at once and takes no duration."""

    says: str
    lasts_s: float | None = None
    process: str | None = None  # the role whose process is killed or stopped


KINDS: dict[str, Kind] = {
    "kill-inspectd": Kind("inspectd is killed (SIGKILL)", process="inspect"),
    "kill-reportd": Kind("reportd is killed (SIGKILL)", process="report"),
    "kill-rejectd": Kind("rejectd is killed (SIGKILL)", process="reject"),
    "broker-down": Kind("the broker refuses and cuts connections", lasts_s=10.0),
    # Stopped by signal: neither its engine nor anything else of it runs, while its sockets stay open.
    "slow-engine": Kind("inspectd stands still (SIGSTOP, then SIGCONT)", lasts_s=2.0, process="inspect"),
    "drop-frame": Kind("one frame is lost"),
    "double-frame": Kind("one frame comes twice"),
    "delay-frame": Kind("one frame comes a pitch late"),
    "freeze-camera": Kind("the camera repeats one picture", lasts_s=1.0),
    "double-trigger": Kind("the photo-eye sees a second edge on one part"),
}
_WRITTEN = re.compile(r"([a-z-]+)@([0-9.]+)(ms|s|m)?(?:\+([0-9.]+)(ms|s|m)?)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}


class FaultUnknown(ValueError):
    """A ``--fault`` that cannot be done, and what to write instead."""


@dataclass(frozen=True)
class Fault:
    """One fault: seconds count from the first part's feeding."""

    name: str
    at_s: float
    lasts_s: float

    def __str__(self) -> str:
        return f"{self.name}@{self.at_s:g}s" + (f"+{self.lasts_s:g}s" if self.lasts_s else "")


def parse_fault(text: str) -> Fault:
    """``kill-inspectd@10s``, ``broker-down@5s+30s``. Raises FaultUnknown."""
    match = _WRITTEN.fullmatch(text.strip())
    name = match[1] if match else text.partition("@")[0].strip()
    if name not in KINDS:
        raise FaultUnknown(f"--fault {text}: there is no fault {name!r}; the faults are {', '.join(KINDS)}")
    if match is None:
        raise FaultUnknown(f"--fault {text}: write {name}@T or {name}@T+DURATION with times such as 10s or 500ms")
    kind = KINDS[name]
    try:
        at_s = float(match[2]) * _UNIT_S[match[3]]
        lasts_s = float(match[4]) * _UNIT_S[match[5]] if match[4] else kind.lasts_s or 0.0
    except ValueError as why:
        raise FaultUnknown(f"--fault {text}: {why}; write times such as 10s, 2.5s or 500ms") from why
    if match[4] and kind.lasts_s is None:
        raise FaultUnknown(f"--fault {text}: {name} is over at once; write {name}@{match[2]}{match[3] or 's'}")
    return Fault(name, at_s, lasts_s)


@dataclass(frozen=True)
class FaultWindow:
    """When a fault really stood, monotonic."""

    name: str
    from_ns: int
    to_ns: int


@dataclass(frozen=True)
class Hands:
    """What trouble is made with. ``pid``: of a role's process, None while it is not there; ``broker``: up or down;
    ``tell_twin``: a physical fault (name, seconds) for the twin's world."""

    pid: Callable[[str], Optional[int]]
    broker: Callable[[bool], None]
    tell_twin: Callable[[str, float], None]


class Trouble:
    """The faults of one rehearsal, each begun and ended when its time has come."""

    def __init__(self, faults: list[Fault], hands: Hands) -> None:
        self._hands = hands
        self._to_begin = sorted(faults, key=lambda fault: fault.at_s)
        self._to_end: list[tuple[int, Fault, int | None]] = []
        self.windows: list[FaultWindow] = []

    @property
    def over(self) -> bool:
        """Everything is done and mended."""
        return not self._to_begin and not self._to_end

    def step(self, since_ns: int, now_ns: int) -> list[str]:
        """Begin and end what is due; ``since_ns``: the instant from which faults count. Returns what was done, in words."""
        told: list[str] = []
        for due_ns, fault, pid in [one for one in self._to_end if one[0] <= now_ns]:
            self._to_end.remove((due_ns, fault, pid))
            self._end(fault, pid)
            told.append(f"{fault.name} is over")
        while self._to_begin and since_ns + round(self._to_begin[0].at_s * _NS_PER_S) <= now_ns:
            fault = self._to_begin.pop(0)
            end_ns = now_ns + round(fault.lasts_s * _NS_PER_S)
            pid = self._begin(fault)
            self.windows.append(FaultWindow(fault.name, now_ns, end_ns))
            if fault.lasts_s:
                self._to_end.append((end_ns, fault, pid))
            told.append(f"{fault}: {KINDS[fault.name].says}")
        return told

    def mend(self) -> None:
        """End what still stands: a rehearsal that gives up leaves nobody stopped."""
        for _, fault, pid in self._to_end:
            self._end(fault, pid)
        self._to_end.clear()

    def _begin(self, fault: Fault) -> int | None:
        kind = KINDS[fault.name]
        if kind.process:
            pid = self._hands.pid(kind.process)
            signal_process(pid, signal.SIGSTOP if fault.name == "slow-engine" else signal.SIGKILL, fault.name)
            return pid
        if fault.name == "broker-down":
            self._hands.broker(False)
        else:
            self._hands.tell_twin(fault.name, fault.lasts_s)
        return None

    def _end(self, fault: Fault, pid: int | None) -> None:
        if fault.name == "slow-engine":
            signal_process(pid, signal.SIGCONT, fault.name)
        elif fault.name == "broker-down":
            self._hands.broker(True)


def signal_process(pid: int | None, number: signal.Signals, why: str) -> None:
    """Signal a process that may be gone already."""
    if pid is None:
        log.warning("%s: the process is not there", why)
        return
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        log.warning("%s: process %d is gone already", why, pid)
