"""The only file that asks the machine for the time, waits for it, or makes a process real-time."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from dataclasses import dataclass

from appliance.messages import ClockQuality

SPIN_NS = 300_000  # a SCHED_FIFO wake-up is late by 0.02-0.13 ms at p99 (measured); the rest is spun
_TIME_ERROR = 5  # adjtimex(2): clock not synchronised
_STA_UNSYNC = 0x0040
# A wall clock before this was never set: no record can be older than the product.
_PRODUCT_EPOCH_US = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z


class _Timex(ctypes.Structure):
    # struct timex, see adjtimex(2); only modes and status are read, the tail is room for the rest.
    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("tail", ctypes.c_long * 32),
    ]


def now_ns() -> int:
    """CLOCK_MONOTONIC, for measuring how long something took."""
    return time.monotonic_ns()


def boottime_ns() -> int:
    """CLOCK_BOOTTIME: nanoseconds since this boot, sleep included. What trials end by."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class SystemClock:
    """CLOCK_MONOTONIC, with wall time read beside it."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._was_synced = False

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def wall_us(self, at_ns: int) -> int:
        return (time.time_ns() - (time.monotonic_ns() - at_ns)) // 1000

    def quality(self) -> ClockQuality:
        """`synced` while the kernel is disciplined, `holdover` after it was, `unset` before."""
        timex = _Timex()
        state = self._libc.adjtimex(ctypes.byref(timex))
        if state >= 0 and state != _TIME_ERROR and not timex.status & _STA_UNSYNC:
            self._was_synced = True
            return "synced"
        if self._was_synced or time.time_ns() // 1000 > _PRODUCT_EPOCH_US:
            return "holdover"
        return "unset"


class VirtualClock:
    """A clock that a test or ``rehearse --fast`` moves by hand."""

    def __init__(self, start_ns: int = 0, wall_us: int = _PRODUCT_EPOCH_US) -> None:
        self._now_ns = start_ns
        self._offset_us = wall_us - start_ns // 1000

    def now_ns(self) -> int:
        return self._now_ns

    def advance_to(self, now_ns: int) -> None:
        """Move forward; time never goes back. Raises ValueError."""
        if now_ns < self._now_ns:
            raise ValueError(f"virtual time would go back from {self._now_ns} to {now_ns}")
        self._now_ns = now_ns

    def wall_us(self, at_ns: int) -> int:
        return at_ns // 1000 + self._offset_us

    def quality(self) -> ClockQuality:
        return "synced"


def spin_until(due_ns: int) -> int:
    """Burn the last stretch; returns the time it ended."""
    now = time.monotonic_ns()
    while now < due_ns:
        now = time.monotonic_ns()
    return now


@dataclass(frozen=True)
class RealTime:
    """What the process got, and in words what it did not."""

    fifo: bool
    locked: bool
    core: int | None
    lost: tuple[str, ...]


def become_real_time(priority: int = 50, core: int | None = None) -> RealTime:
    """SCHED_FIFO, locked memory, own core, collector off. Works without the privilege and says what it lost."""
    lost: list[str] = []
    fifo = locked = False
    got_core: int | None = None
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        fifo = True
    except PermissionError:
        lost.append("no SCHED_FIFO (needs CAP_SYS_NICE): output edges may be late by milliseconds on a busy machine")
    if core is not None:
        try:
            os.sched_setaffinity(0, {core})
            got_core = core
        except OSError as why:
            lost.append(f"no own core {core}: {why.strerror}")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(3) == 0:  # MCL_CURRENT | MCL_FUTURE
        locked = True
    else:
        lost.append("memory not locked (needs CAP_IPC_LOCK): a page fault may delay an edge")
    gc.collect()
    gc.freeze()
    gc.disable()
    return RealTime(fifo, locked, got_core, tuple(lost))
