"""Work that may hang or run wild, in a child process under limits: a dead stick keeps a read in the kernel for ever.

The child is forked, does one thing and tells its result through a pipe. What cannot be killed (it waits in the kernel for a
device) is left behind: the parent goes on and says so."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from appliance.box import mount
from appliance.ports import Clock

_KILL_WAIT_MS = 2000  # a process that can be killed is gone within milliseconds
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_MOST_ANSWER = 64 << 20  # bytes; what 1 MiB of configuration can be wrong in fills 12 of them
_NANO = 1_000_000_000


class ChildFailed(Exception):
    """The child brought no result: why, in words. ``stuck``: it cannot even be killed, so its device is not touched again."""

    def __init__(self, text: str, stuck: bool = False) -> None:
        super().__init__(text)
        self.stuck = stuck


def run_limited(
    work: Callable[[Callable[[], None]], Any], clock: Clock, whole_s: float, stall_s: float | None = None,
    cpu_s: int | None = None, memory_bytes: int | None = None, mounts: bool = False,
) -> Any:  # fmt: skip
    """What ``work`` returns (plain JSON), made in a child within ``whole_s`` seconds; ``work`` is given a function to call
    when it got on, and ``stall_s`` seconds without such a call end it too. ``cpu_s`` and ``memory_bytes`` (address space) are
    the kernel's limits; ``mounts``: it keeps the right to mount, which who reads a stranger's bytes does without. An OSError or
    ValueError of ``work`` is raised here again. Raises ChildFailed otherwise."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    libc, parent = ctypes.CDLL(None), os.getpid()  # before the fork: loading takes locks
    pid = os.fork()
    if pid == 0:
        # What it inherited, the stick's lock among it, nobody may hold whose parent was ended.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        os.close(reading)
        _child(work, writing, cpu_s, memory_bytes, mounts)
    os.close(writing)
    process = os.pidfd_open(pid)
    try:
        answer = _answer(reading, clock, whole_s, stall_s)
        return _result(answer, _ended(process, pid))
    finally:
        os.close(reading)
        _end(process, pid)
        os.close(process)


def _child(
    work: Callable[[Callable[[], None]], Any], writing: int, cpu_s: int | None, memory_bytes: int | None, mounts: bool
) -> NoReturn:  # fmt: skip
    """Never returns."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        if not mounts:
            _mount_no_more()
        if cpu_s is not None:  # SIGXCPU first, which says why; who catches that gets SIGKILL
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
        if memory_bytes is not None:
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _write(writing, b"\n" + json.dumps(_done(work, writing)).encode())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # no clean-up of the parent's: its files, threads and exit functions are not ours


def _mount_no_more() -> None:
    """A stick has to be read all the same where the right cannot be given up; the journal has it."""
    try:
        mount.mount_no_more()
    except OSError as why:
        sys.stderr.write(f"a child keeps the right to mount: {why}\n")
        sys.stderr.flush()


def _done(work: Callable[[Callable[[], None]], Any], writing: int) -> dict[str, Any]:
    """What came of it, as JSON."""
    try:
        return {"result": work(lambda: _write(writing, b"."))}
    except OSError as why:
        return {"oserror": [str(why)] if why.errno is None else [why.errno, why.strerror, why.filename]}
    except ValueError as why:
        return {"valueerror": str(why)}
    except MemoryError:
        return {"memory": True}
    except Exception as why:
        traceback.print_exc()
        return {"failed": f"{type(why).__name__}: {why}"}


def _write(writing: int, data: bytes) -> None:
    while data:
        data = data[os.write(writing, data) :]


def _answer(reading: int, clock: Clock, whole_s: float, stall_s: float | None) -> bytes:
    """All that the child wrote. Raises ChildFailed when its time is over."""
    end_ns = clock.now_ns() + int(whole_s * _NANO)
    got = bytearray()
    moved_ns = clock.now_ns()
    while True:
        now_ns = clock.now_ns()
        until_ns = end_ns if stall_s is None else min(end_ns, moved_ns + int(stall_s * _NANO))
        if now_ns >= until_ns:
            raise ChildFailed(f"it took longer than {whole_s:g} s" if until_ns == end_ns else f"nothing moved for {stall_s:g} s")
        if not select.select([reading], [], [], (until_ns - now_ns) / _NANO)[0]:
            continue
        part = os.read(reading, 1 << 16)
        if not part:
            return bytes(got)
        moved_ns = clock.now_ns()
        got += part
        if len(got) > _MOST_ANSWER:
            raise ChildFailed("it had more to tell than anybody reads")


def _ended(process: int, pid: int) -> int | None:
    """Its status; None while it still runs."""
    if not _gone(process, _KILL_WAIT_MS):
        return None
    with contextlib.suppress(ChildProcessError):  # reaped by whoever set SIGCHLD to be ignored
        return os.waitpid(pid, 0)[1]
    return 0


def _result(answer: bytes, status: int | None) -> Any:
    body = answer.partition(b"\n")[2]
    if not body:
        signalled = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else 0
        if signalled == signal.SIGXCPU:
            raise ChildFailed("it took more processor time than it may")
        if signalled == signal.SIGKILL:
            raise ChildFailed("it was killed, most likely because the memory that its unit may take was used up")
        raise ChildFailed(f"it ended without a result (status {status})")
    told = json.loads(body)
    if "oserror" in told:
        raise OSError(*told["oserror"])
    if "valueerror" in told:
        raise ValueError(told["valueerror"])
    if "memory" in told:
        raise ChildFailed("it took more memory than it may")
    if "failed" in told:
        raise ChildFailed(f"it failed ({told['failed']})")
    return told["result"]


def _gone(process: int, wait_ms: int) -> bool:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(wait_ms))


def _end(process: int, pid: int) -> None:
    """Kill what still runs. Raises ChildFailed when it cannot be killed."""
    if not _gone(process, 0):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if not _gone(process, _KILL_WAIT_MS):
            raise ChildFailed("the device does not answer, and who waits for it cannot be ended; pull the stick", stuck=True)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
