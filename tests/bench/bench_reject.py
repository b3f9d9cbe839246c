"""How far a gate's output edge lies from its due time: the real rejectd, on cores that inference keeps busy.

    ./build.sh bench reject [--firings N] [--json FILE] [--core CORE]

The subject is a whole `Rejectd` in a process of its own: photo-eye edges come in through a descriptor, triggers go out
to a stand-in for inspectd, verdicts and acknowledgements come back, each part is rejected, and the gate moves twice per
part, one edge every 2 ms. The stand-in for the pin is one write to an eventfd; the edge is the instant after it.

Beside it, at the same instants and in the same run, a thread of a busy process fires. That process is one of those that
keep the cores busy, one per core, and it may run on any of them: it waits for nobody but rejectd, whose SCHED_FIFO
takes what it needs from whoever runs there. So both at once is no unfairness to the thread beyond the one to be seen.

Exit: 0 the bounds are kept, 1 they are not, 2 wrong call, 3 the run cannot be judged: the hypervisor stole time in more
than a third of its seconds, or a process of the bench ended.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import math
import multiprocessing
import os
import platform
import select
import signal
import sys
import tempfile
import threading
import time
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event as ProcessEvent
from pathlib import Path

from appliance.clock import SystemClock, become_real_time, now_ns
from appliance.link import SocketLink, connect
from appliance.messages import Ack, Command, Edge, Event, Hello, InspectState, Message, PartClosed, Status, Trigger, Verdict
from appliance.paths import Paths
from appliance.ports import LinkClosed
from appliance.reject.belt import ConstantBelt
from appliance.reject.daemon import RejectBuild, Rejectd
from appliance.reject.plan import AlarmPlan, GatePlan, Plan

MS = 1_000_000
SECOND_NS = 1_000_000_000
MODEL = Path(__file__).resolve().parents[2] / "models/cap-28mm/model.onnx"

P50_BOUND_US = 10.0
P99_BOUND_US = 150.0
LEFT_OUT_AT_MOST = 1 / 3

PERIOD_NS = 4 * MS  # a part; its reject and its accept edge make two firings
# At 1000 mm/s a mm is a ms. 1.9, not 2: the gate takes windows less than 2 ms apart for one.
# Trigger and commit fall between the firings: distance and deadline are no multiples of the period.
SPEED_MM_S, PART_MM, DISTANCE_MM, DEADLINE_MS = 1000.0, 1.9, 30.9, 5.2
CALM = AlarmPlan(consecutive_rejects=1_000_000_000, reject_rate=(1.0, 200), stops_line=frozenset())
PLAN = Plan(
    speed_mm_s=SPEED_MM_S,
    part_mm=PART_MM,
    gate=GatePlan("hold", "accept", DISTANCE_MM, PART_MM, 0.0),
    deadline_ms=DEADLINE_MS,
    purge_mm=DISTANCE_MM,
    debounce_ms=0.0,
    min_pitch_mm=1.0,
    recipe="bench",
    recipe_number=1,
    alarms=CALM,
)
ON_NS = round(DISTANCE_MM / SPEED_MM_S * SECOND_NS)
OFF_NS = round((DISTANCE_MM + PART_MM) / SPEED_MM_S * SECOND_NS)

SETTLE_NS = 4 * SECOND_NS  # rejectd imports, starts and purges before the first part, on busy cores
_EARLY_NS = 1_000  # belt positions are floats: a due time is rounded by a few ns
_READY = InspectState("ready", "", 1.0, "bench", 1, "sha256:0", {})

_TFD_TIMER_ABSTIME = 1  # timerfd_create(2); Python has it from 3.13 on


# --- the schedule ---------------------------------------------------------------------------------------------------


def due_times(first_ns: int, firings: int) -> list[int]:
    """When each firing is due (monotonic ns): even ones to reject, odd ones back to accept."""
    return [first_ns + at // 2 * PERIOD_NS + (OFF_NS if at % 2 else ON_NS) for at in range(firings)]


def edge_errors(dues: Sequence[int], edges: Sequence[tuple[int, bool]]) -> tuple[list[int | None], int]:
    """Per firing: ns from its due time to the first edge to its level from then on, None if none came; and how many
    firings had no edge of their own. ``edges``: (ns, reject), in the order of time. An early edge counts for nothing."""
    at_ns = {level: [one for one, reject in edges if reject is level] for level in (True, False)}
    used: set[tuple[bool, int]] = set()
    errors: list[int | None] = []
    shared = 0
    for number, due_ns in enumerate(dues):
        level = number % 2 == 0
        at = bisect_left(at_ns[level], due_ns - _EARLY_NS)
        if at == len(at_ns[level]):
            errors.append(None)
            shared += 1
            continue
        shared += (level, at) in used
        used.add((level, at))
        errors.append(abs(at_ns[level][at] - due_ns))
    return errors, shared


# --- the subject ----------------------------------------------------------------------------------------------------


class _Pin:
    """An output that is one system call, as a GPIO line is; it remembers when it moved."""

    name = "gate"
    start = False
    failure = False
    longest_on_ms: int | None = None
    lead_ns = 0

    def __init__(self, room: int) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.at_ns = array("q", bytes(8 * room))  # no growing in the loop: that would be the bench's own delay
        self.levels = bytearray(room)
        self.count = 0

    def set(self, energised: bool, now_ns: int) -> int:
        os.eventfd_write(self._fd, 1)
        at_ns = time.monotonic_ns()
        if self.count < len(self.levels):
            self.at_ns[self.count] = at_ns
            self.levels[self.count] = energised
            self.count += 1
        return at_ns

    def check(self, now_ns: int) -> None:
        """Nothing can be lost here."""

    def close(self) -> None:
        os.close(self._fd)


class _Beam:
    """A photo-eye whose parts come by the clock; a timer makes its descriptor readable, as the kernel's edges do."""

    name = "eye"

    def __init__(self, first_ns: int, parts: int) -> None:
        self._first_ns = first_ns
        self._edges = 2 * parts
        self._next = 0
        self._opened = False
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        half_ns = PERIOD_NS // 2
        when = (ctypes.c_long * 4)(0, half_ns, first_ns // SECOND_NS, first_ns % SECOND_NS)
        if self._fd < 0 or libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, when, None) != 0:
            raise OSError(ctypes.get_errno(), "no timer for the photo-eye")

    def fileno(self) -> int:
        return self._fd

    def read(self) -> list[Edge]:
        now = time.monotonic_ns()
        edges: list[Edge] = []
        if not self._opened:
            self._opened = True
            edges.append(Edge(self.name, False, now, 0))
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
        while self._next < self._edges and (at_ns := self._time_ns()) <= now:
            edges.append(Edge(self.name, self._next % 2 == 0, at_ns, self._next + 1))
            self._next += 1
        return edges

    def level(self) -> bool:
        return self._next % 2 == 1

    def close(self) -> None:
        os.close(self._fd)

    def _time_ns(self) -> int:
        return self._first_ns + self._next * (PERIOD_NS // 2)


def rejectd(folder: Path, first_ns: int, firings: int, core: int | None) -> None:
    """The process under test; leaves its edges in ``folder``. Ends on SIGTERM."""
    pin = _Pin(2 * firings + 1000)
    build = RejectBuild(
        plan=PLAN,
        belt=ConstantBelt(SPEED_MM_S),
        outputs={"gate": pin},
        inputs={"trigger": lambda: _Beam(first_ns, (firings + 1) // 2)},
        core=core,
    )
    daemon = Rejectd(build, Paths(folder, folder), SystemClock())

    def stop(_signal: int, _frame: object) -> None:
        daemon.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    daemon.start()
    real_time = become_real_time(core=core)
    try:
        daemon.run()
    finally:
        daemon.close()
    (folder / "edges").write_bytes(pin.at_ns[: pin.count].tobytes())
    (folder / "levels").write_bytes(bytes(pin.levels[: pin.count]))
    (folder / "privilege").write_text(json.dumps(asdict(real_time)))


def neighbours(folder: Path, end: ProcessEvent) -> None:
    """inspectd and reportd as rejectd sees them: each trigger gets a verdict, each record is acknowledged.

    A fault is cleared as a person would: a loop held up for longer than a window misses its part and latches
    `reject_failed`, and one such moment must not decide the rest of the run. What was raised is left in ``folder``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    alarms: list[str] = []
    try:
        _talk(folder, end, alarms)
    except LinkClosed:
        pass
    finally:
        (folder / "alarms").write_text(json.dumps(alarms))


def _talk(folder: Path, end: ProcessEvent, alarms: list[str]) -> None:
    door = Paths(folder, folder).reject_socket
    links: dict[str, SocketLink] = {}
    waiting: dict[str, deque[Message]] = {"inspect": deque([_READY]), "report": deque()}
    while not end.is_set():
        for role in ("inspect", "report"):
            if role not in links and (link := connect(door, Hello(role, "", os.getpid()))) is not None:
                links[role] = link
        select.select(list(links.values()), [], [], 0.05)
        for role, link in links.items():
            messages = link.receive()
            alarms += [str(one.data["text"]) for one in messages if isinstance(one, Event) and one.kind == "alarm_raised"]
            waiting[role].extend(_answers(messages))
            while waiting[role] and link.send(waiting[role][0]):
                waiting[role].popleft()


def _answers(messages: Sequence[Message]) -> list[Message]:
    answers: list[Message] = []
    for one in messages:
        if isinstance(one, Trigger):
            answers.append(Verdict(one.part, "fail", "bench", 0.9, 0.5, 1, 1.0, 0.2, 2.0, 0.1))
        elif isinstance(one, (PartClosed, Event)):
            answers.append(Ack(one.n))
        elif isinstance(one, Status) and one.state in ("fault", "held"):
            answers.append(Command("", "clear", {}, "bench"))
    return answers


# --- the load, and the thread beside it -------------------------------------------------------------------------------


def inference_load(core: int, ready: ProcessEvent, end: ProcessEvent) -> None:
    """One core kept busy by inference, at normal priority."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.sched_setaffinity(0, {core})
    turn = _Inference()
    turn()
    ready.set()
    while not end.is_set():
        turn()


def busy_process(folder: Path, firings: int, ready: ProcessEvent, go: ProcessEvent, end: ProcessEvent) -> None:
    """The other load: inference and Python's own work, and the thread that fires. Leaves the edges in ``folder``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    turn = _Inference()
    turn()
    ready.set()
    at_ns = array("q", bytes(8 * firings))
    thread = threading.Thread(target=_fire, args=(folder, go, at_ns), name="firing")
    thread.start()
    while not end.is_set():
        turn()
        _python_work()
    thread.join()
    (folder / "thread").write_bytes(at_ns.tobytes())


def _fire(folder: Path, go: ProcessEvent, at_ns: array[int]) -> None:
    """Sleep to each due time and write; one that is overdue is fired at once. Absolute deadlines, as rejectd has."""
    go.wait()
    dues = due_times(int((folder / "first").read_text()), len(at_ns))
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    for number, due_ns in enumerate(dues):
        while (left_ns := due_ns - time.monotonic_ns()) > 0:
            time.sleep(left_ns / SECOND_NS)
        os.eventfd_write(fd, 1)
        at_ns[number] = time.monotonic_ns()
    os.close(fd)


def _python_work() -> None:
    words: dict[str, int] = {}
    for number in range(2_000):
        key = f"part-{number % 97}"
        words[key] = words.get(key, 0) + number


class _Inference:
    """One run of the INT8 bundle per call, on one thread, as inspectd runs it."""

    def __init__(self) -> None:
        import numpy as np

        from appliance.devices.network_cpu import Engine

        self._engine = Engine(MODEL.read_bytes(), str(MODEL))
        ((self._name, shape),) = self._engine.inputs.items()
        sizes = [one if isinstance(one, int) else 1 for one in shape]
        self._tensor = np.random.default_rng(1).random(sizes, dtype=np.float32)

    def __call__(self) -> None:
        self._engine.run(self._name, self._tensor)


# --- steal ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slice:
    """One second of the run, as it really lasted. ``steal``: ticks the hypervisor took, all cores together."""

    from_ns: int
    to_ns: int
    steal: int


def read_steal() -> int:
    """Ticks stolen since boot (the eighth figure of /proc/stat's first line; 0 where the kernel tells none)."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return int(fields[8]) if len(fields) > 8 else 0


def watch_steal(from_ns: int, to_ns: int, watched: Sequence[BaseProcess]) -> list[Slice]:
    """One slice per second until ``to_ns``. Raises RuntimeError when a process of ``watched`` ended before."""
    _sleep_until(from_ns)
    slices: list[Slice] = []
    before_ns, before = now_ns(), read_steal()
    for at in range(1, -(-(to_ns - from_ns) // SECOND_NS) + 1):
        _sleep_until(min(from_ns + at * SECOND_NS, to_ns))
        at_ns, steal = now_ns(), read_steal()
        slices.append(Slice(before_ns, at_ns, steal - before))
        before_ns, before = at_ns, steal
        for one in watched:
            if not one.is_alive():
                raise RuntimeError(f"{one.name} ended in the middle of the run (its own words are above)")
    return slices


def _sleep_until(due_ns: int) -> None:
    while (left_ns := due_ns - now_ns()) > 0:
        time.sleep(left_ns / SECOND_NS)


# --- figures ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Errors of one kind of firing, in µs. ``over_1_ms``: how many of ``n``; ``missed``: firings that never came."""

    what: str
    n: int
    p50: float | None
    p99: float | None
    p99_9: float | None
    most: float | None
    over_1_ms: int
    missed: int


def row(what: str, errors: Sequence[int | None]) -> Row:
    """Figures over ns; a firing that never came counts as over 1 ms and as worse than each that came."""
    came = sorted(one for one in errors if one is not None)
    missed = len(errors) - len(came)

    def at(share: float) -> float | None:
        rank = max(1, math.ceil(share * len(errors))) - 1
        return came[rank] / 1000 if rank < len(came) else None

    over = sum(one > MS for one in came) + missed
    return Row(what, len(errors), at(0.5), at(0.99), at(0.999), at(1.0), over, missed)


def within(dues: Sequence[int], errors: Sequence[int | None], slices: Sequence[Slice]) -> list[int | None]:
    """The errors of the firings that were due in one of ``slices``."""
    chosen: list[int | None] = []
    for one in slices:
        chosen += errors[bisect_left(dues, one.from_ns) : bisect_right(dues, one.to_ns - 1)]
    return chosen


# --- one run --------------------------------------------------------------------------------------------------------------


def measure(firings: int, core: int | None) -> dict[str, object]:
    """Run it once; rows, ratios, privilege, slices and verdict as plain data. Raises RuntimeError when a part fails."""
    processes = multiprocessing.get_context("spawn")
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        go, end = processes.Event(), processes.Event()
        cores = sorted(os.sched_getaffinity(0))
        readies = [processes.Event() for _ in cores]
        loads = [
            processes.Process(target=inference_load, args=(one, ready, end), name=f"inference on core {one}", daemon=True)
            for one, ready in zip(cores[1:], readies[1:])
        ]
        busy = processes.Process(
            target=busy_process, args=(folder, firings, readies[0], go, end), name="the busy process", daemon=True
        )
        beside = processes.Process(target=neighbours, args=(folder, end), name="neighbours", daemon=True)
        started: list[BaseProcess] = [busy, *loads, beside]
        try:
            for one in started:
                one.start()
            for ready, one in zip(readies, started):
                if not ready.wait(60):
                    raise RuntimeError(f"{one.name} did not start within 60 s")
            first_ns = now_ns() + SETTLE_NS
            (folder / "first").write_text(str(first_ns))
            subject = processes.Process(target=rejectd, args=(folder, first_ns, firings, core), name="rejectd", daemon=True)
            started.append(subject)
            subject.start()
            go.set()
            dues = due_times(first_ns, firings)
            slices = watch_steal(dues[0] - MS, dues[-1] + MS // 2, [busy, *loads, beside, subject])
            _sleep_until(dues[-1] + 300 * MS)  # an edge that is late is still seen
            os.kill(subject.pid or 0, signal.SIGTERM)
            subject.join(10)
            end.set()
            busy.join(60)
            if subject.exitcode != 0 or busy.exitcode != 0:
                raise RuntimeError(f"rejectd ended with {subject.exitcode}, the busy process with {busy.exitcode}")
        finally:
            end.set()
            go.set()
            for one in started:
                if one.is_alive():
                    one.join(5)
                if one.is_alive():
                    one.kill()
                    one.join()
        edges = list(zip(_times(folder / "edges"), ((level == 0) for level in (folder / "levels").read_bytes())))
        threads = _times(folder / "thread")
        privilege = json.loads((folder / "privilege").read_text())
        alarms = json.loads((folder / "alarms").read_text())
    errors, shared = edge_errors(dues, edges)
    thread_errors: list[int | None] = [at - due for at, due in zip(threads, dues)]
    clean = [one for one in slices if one.steal == 0]
    result = judge(dues, errors, thread_errors, slices, clean)
    result.update(
        firings=firings,
        without_own_edge=shared,
        alarms=alarms,
        privilege=privilege,
        machine={
            "cores": len(cores),
            "python": platform.python_version(),
            "load_before": load_before,
            "load_after": os.getloadavg(),
        },
    )
    return result


def judge(
    dues: Sequence[int],
    errors: Sequence[int | None],
    thread_errors: Sequence[int | None],
    slices: Sequence[Slice],
    clean: Sequence[Slice],
) -> dict[str, object]:
    """Rows and the verdict: ``passed`` True, False, or None where more than a third was stolen."""
    judged = row("rejectd, judged slices", within(dues, errors, clean))
    beside = row("thread, judged slices", within(dues, thread_errors, clean))
    rows = [judged, row("rejectd, whole run", errors), beside, row("thread, whole run", thread_errors)]
    left_out = len(slices) - len(clean)
    passed: bool | None = None
    if slices and left_out <= LEFT_OUT_AT_MOST * len(slices) and judged.n:
        p50, p99 = judged.p50, judged.p99
        passed = p50 is not None and p99 is not None and p50 <= P50_BOUND_US and p99 <= P99_BOUND_US
    return {
        "rows": [asdict(one) for one in rows],
        "ratio": {name: _ratio(getattr(beside, name), getattr(judged, name)) for name in ("p50", "p99", "p99_9")},
        "slices": {"all": len(slices), "left_out": left_out, "steal_ticks": sum(one.steal for one in slices)},
        "bounds_us": {"p50": P50_BOUND_US, "p99": P99_BOUND_US},
        "passed": passed,
    }


def _ratio(thread: float | None, reject: float | None) -> float | None:
    return thread / reject if thread is not None and reject else None


def _times(path: Path) -> array[int]:
    times = array("q")
    times.frombytes(path.read_bytes())
    return times


# --- telling it -------------------------------------------------------------------------------------------------------------


def table(result: dict) -> str:
    """The figures in words and columns; times in µs."""
    machine, slices, ratio = result["machine"], result["slices"], result["ratio"]
    head = f"{'error, µs':<24}{'n':>8}{'p50':>10}{'p99':>10}{'p99.9':>10}{'max':>11}{'>1 ms':>8}{'missed':>8}"
    lines = [head]
    for one in result["rows"]:
        figures = "".join(_figure(one[name], width) for name, width in (("p50", 10), ("p99", 10), ("p99_9", 10), ("most", 11)))
        lines.append(f"{one['what']:<24}{one['n']:>8}{figures}{one['over_1_ms']:>8}{one['missed']:>8}")
    lines.append(f"{'thread / rejectd, times':<24}{'':>8}" + "".join(_figure(ratio[one], 10) for one in ("p50", "p99", "p99_9")))
    lines += [
        "",
        f"1 s slices: {slices['all']}, left out for steal: {slices['left_out']} ({slices['steal_ticks']} ticks of steal in all)",
        f"firings without an edge of their own: {result['without_own_edge']} (a held-up loop merges windows; late all the same)",
        *_alarms(result["alarms"]),
        f"machine: {machine['cores']} cores, Python {machine['python']}, load average "
        f"{machine['load_before'][0]:.1f} before and {machine['load_after'][0]:.1f} after",
        *_privilege(result["privilege"]),
        _verdict(result),
    ]
    return "\n".join(lines)


def _figure(value: float | None, width: int) -> str:
    return f"{'never' if value is None else f'{value:,.1f}':>{width}}"


def _alarms(alarms: list) -> list[str]:
    told = "; ".join(alarms[:1]) + ("; …" if len(alarms) > 1 else "")
    return [f"alarms of rejectd, cleared as they came: {len(alarms)} ({told})"] if alarms else []


def _privilege(privilege: dict) -> list[str]:
    core = privilege["core"]
    got = [
        "SCHED_FIFO" if privilege["fifo"] else "",
        "locked memory" if privilege["locked"] else "",
        "" if core is None else f"core {core}",
        "frozen collector",
    ]
    return [f"rejectd had: {', '.join(one for one in got if one)}", *(f"rejectd lost: {one}" for one in privilege["lost"])]


def _verdict(result: dict) -> str:
    bounds = f"p50 at most {P50_BOUND_US:.0f} µs, p99 at most {P99_BOUND_US:.0f} µs, over the slices without steal"
    if result["passed"] is None:
        return f"not judged: more than a third of the slices had steal ({bounds}); run it again on a quieter machine"
    return f"{'passed' if result['passed'] else 'FAILED'}: {bounds}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, return the exit status (0, 1, 3; a wrong call ends with 2)."""
    parser = argparse.ArgumentParser(prog="bench reject", description="error between due time and output edge of rejectd")
    parser.add_argument("--firings", type=int, default=60_000, help="one every 2 ms (default 60000: two minutes)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--core", type=int, help="bind rejectd to this core, as the configuration can (default: none)")
    asked = parser.parse_args(arguments)
    if asked.firings < 2:
        parser.error("--firings must be 2 or more")
    try:
        result = measure(asked.firings, asked.core)
    except RuntimeError as why:
        print(f"bench reject: {why}", file=sys.stderr)
        return 3
    print(table(result))
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=2) + "\n")
    return 3 if result["passed"] is None else 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
