"""What systemd is told: read off a socket as systemd's, from the Notifier itself and from the three daemons."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance.inspect.daemon import BUILD_STILL_NS, InspectBuild, Inspectd, Loaded
from appliance.link import Listener
from appliance.messages import Level, TwinHello
from appliance.notify import Notifier
from appliance.paths import Paths
from appliance.ports import EngineError, LinkClosed

PROJECT = Path(__file__).resolve().parents[1]
SHIPPED = PROJECT / "appliance/twin/station.yaml"
# A process whose loop hangs and which lives on all the same, its other threads too: SIGUSR1 is ours in a test, and the
# interpreter reads this file at its start.
HANGS = "import signal\n\ndef hang(*_):\n    while True:\n        pass\n\nsignal.signal(signal.SIGUSR1, hang)\n"


class Manager:
    """systemd's end of the socket."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)
        self.heard: list[tuple[float, str]] = []

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[str]:
        """What came since the last reading."""
        new = []
        while True:
            try:
                new.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                self.heard += [(time.monotonic(), one) for one in new]
                return new

    def wait_for(self, words: str, limit_s: float = 60.0) -> float:
        """When a message with ``words`` was heard from now on."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            select.select([self], [], [], end - time.monotonic())
            if any(words in one for one in self.read()):
                return time.monotonic()
        raise AssertionError(f"no {words} in {limit_s} s; heard {self.heard[-5:]}")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Manager, str]]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@appliance-test-{os.getpid()}"
    one = Manager(address)
    yield one, address
    one.close()


def test_ready_status_watchdog_and_more_time_are_systemds_words(manager: tuple[Manager, str]) -> None:
    heard, address = manager
    told = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "7"}, 7)
    told.ready("running")
    told.status("running")  # the same again is nothing new
    told.status("two\nlines")
    told.extend(300)
    told.alive(10**9)
    told.alive(10**9 + 999_999_999)  # sooner than half of it
    told.alive(2 * 10**9)
    told.watchdog(180.0)
    told.stopping()
    assert heard.read() == [
        "READY=1\nSTATUS=running", "STATUS=two lines", "EXTEND_TIMEOUT_USEC=300000000", "WATCHDOG=1", "WATCHDOG=1",
        "WATCHDOG_USEC=180000000\nWATCHDOG=1", "STOPPING=1",
    ]  # fmt: skip


def test_a_watchdog_that_became_narrow_again_is_fed_at_once(tmp_path: Path) -> None:
    """Fed for 180 s in the middle of a build, inspectd would otherwise be silent for ninety while 20 are asked for."""
    heard = Manager(str(tmp_path / "notify"))
    told = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000000"}, 7)
    told.watchdog(180.0)
    told.alive(10**9)
    told.watchdog(20.0)
    heard.read()
    told.alive(2 * 10**9)
    told.alive(11 * 10**9)
    told.alive(12 * 10**9)
    assert heard.read() == ["WATCHDOG=1", "WATCHDOG=1"]
    heard.close()


@pytest.mark.parametrize("whose", ["8", "123456"])
def test_another_process_watchdog_is_not_fed(tmp_path: Path, whose: str) -> None:
    heard = Manager(str(tmp_path / "notify"))
    told = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": whose}, 7)
    told.alive(10**9)
    told.watchdog(5.0)
    assert told.watchdog_s is None and heard.read() == []
    heard.close()


def test_without_a_manager_nothing_is_told_and_nothing_fails() -> None:
    told = Notifier({}, 7)
    told.ready("x")
    told.status("y")
    told.alive(10**9)
    told.watchdog(5.0)
    told.stopping()
    assert told.watchdog_s is None


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [({"NOTIFY_SOCKET": "vsock:2:1"}, "no path"), ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "soon"}, "write microseconds")],
)
def test_what_systemd_never_writes_is_refused_in_words(environment: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Notifier(environment, 7)


def test_a_full_socket_costs_no_time_and_ready_is_told_once_there_is_room(tmp_path: Path) -> None:
    heard = Manager(str(tmp_path / "notify"))
    told = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}, 7)
    fillers = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(8)]  # each has a limit of its own too
    for filler in fillers:
        filler.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                filler.sendto(b"X=1", str(tmp_path / "notify"))
    begun = time.monotonic()
    told.ready("up")
    told.alive(10**9)
    assert time.monotonic() - begun < 0.5
    heard.read()
    told.alive(10**9)
    assert heard.read() == ["READY=1\nSTATUS=up", "WATCHDOG=1"]
    for filler in fillers:
        filler.close()
    heard.close()


def test_another_limit_is_told_until_the_manager_has_it(tmp_path: Path) -> None:
    heard = Manager(str(tmp_path / "notify"))
    told = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}, 7)
    fillers = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(8)]
    for filler in fillers:
        filler.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                filler.sendto(b"X=1", str(tmp_path / "notify"))
    told.watchdog(180.0)
    told.watchdog(20.0)
    heard.read()
    told.alive(10**9)
    assert heard.read() == ["WATCHDOG_USEC=20000000\nWATCHDOG=1", "WATCHDOG=1"], "the newest limit, and no older one"
    for filler in fillers:
        filler.close()
    heard.close()


def test_a_manager_that_is_gone_costs_nothing(tmp_path: Path) -> None:
    Manager(str(tmp_path / "notify")).close()
    told = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000"}, 7)
    told.ready("up")
    told.alive(10**9)


# --- inspectd while it builds -------------------------------------------------------------------------------


@dataclass
class Hours:
    """A clock that the build moves."""

    at_ns: int = 10**12

    def now_ns(self) -> int:
        return self.at_ns

    def wall_us(self, at_ns: int) -> int:
        return at_ns // 1000

    def quality(self) -> str:
        return "synced"


def building(tmp_path: Path, steps: Callable[[Callable[[str, float], None], Hours], None]) -> tuple[list[str], Hours]:
    """What the manager hears of an inspectd whose load is ``steps``."""
    heard, clock = Manager(str(tmp_path / "notify")), Hours()
    told = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "180000000"}, 7)

    words: list[str] = []

    def load(progress: Callable[[str, float], None]) -> Loaded:
        def tell(what: str, share: float) -> None:
            progress(what, share)
            words.extend(heard.read())

        steps(tell, clock)
        raise EngineError("ended here")

    build = InspectBuild(load, {}, {}, {}, 16, 10**6, None)
    daemon = Inspectd(build, Paths(tmp_path / "run", tmp_path / "data").make(), clock, told)  # type: ignore[arg-type]
    daemon.load()
    daemon.close()
    heard.close()
    return words, clock


def test_an_hour_of_building_is_told_step_by_step_and_keeps_the_watchdog_quiet(tmp_path: Path) -> None:
    def an_hour(progress: Callable[[str, float], None], clock: Hours) -> None:
        for second in range(3600):
            clock.at_ns += 10**9
            progress("building the float16 engine", second / 3600)

    words, _ = building(tmp_path, an_hour)
    assert words.count("WATCHDOG=1") >= 3600 / 90 - 1
    assert "STATUS=building 50%: building the float16 engine" in words


def test_a_build_that_stands_still_is_fed_no_longer_than_its_own_watch_bears_it(tmp_path: Path) -> None:
    def stuck(progress: Callable[[str, float], None], clock: Hours) -> None:
        for _ in range(2 * BUILD_STILL_NS // 10**9):  # engines.py goes on telling the same while its child is silent
            clock.at_ns += 10**9
            progress("building the float16 engine", 0.25)

    words, _ = building(tmp_path, stuck)
    fed = words.count("WATCHDOG=1")
    assert BUILD_STILL_NS // (90 * 10**9) - 1 <= fed <= BUILD_STILL_NS // (90 * 10**9) + 1


# --- the daemons themselves ---------------------------------------------------------------------------------


@dataclass
class Line:
    """The physical world as far as rejectd's outputs go: whoever connects, and each level with its time."""

    door: Listener
    links: list = field(default_factory=list)
    levels: list[tuple[float, str, bool]] = field(default_factory=list)

    def read(self) -> None:
        while (link := self.door.accept()) is not None:
            self.links.append(link)
        for link in list(self.links):
            try:
                messages = link.receive()
            except LinkClosed:
                self.links.remove(link)
                continue
            for message in messages:
                if isinstance(message, Level):
                    self.levels.append((time.monotonic(), message.line, message.level))
                assert isinstance(message, (Level, TwinHello))

    def waits(self) -> list:
        return [self.door, *self.links]


@contextmanager
def daemon(role: str, folder: Path, manager: Manager, watchdog_s: float) -> Iterator[subprocess.Popen[bytes]]:
    """One daemon of the shipped station as systemd starts it."""
    (folder / "hook").mkdir(exist_ok=True)
    (folder / "hook/sitecustomize.py").write_text(HANGS)
    environment = {
        **os.environ, "NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": str(round(watchdog_s * 1e6)),
        "PYTHONPATH": f"{folder / 'hook'}:{PROJECT}",
    }  # fmt: skip
    environment.pop("WATCHDOG_PID", None)
    child = subprocess.Popen(
        [sys.executable, "-m", "appliance", "run", "-c", str(SHIPPED), "--only", role,
         "--run-dir", str(folder / "run"), "--data-dir", str(folder / "data")],
        env=environment, cwd=folder, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield child
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[Manager, Line, Path]]:
    Paths(tmp_path / "run", tmp_path / "data").make()
    manager, line = Manager(str(tmp_path / "notify")), Line(Listener(tmp_path / "run/twin.sock"))
    yield manager, line, tmp_path
    line.door.close()
    manager.close()


def wait_ready(manager: Manager, line: Line, limit_s: float = 60.0) -> tuple[float, list[tuple[float, str, bool]]]:
    """When READY came, and the levels that were set before it."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        select.select([manager, *line.waits()], [], [], 0.5)
        line.read()
        if any("READY=1" in one for one in manager.read()):
            return time.monotonic(), list(line.levels)
    raise AssertionError(f"not ready in {limit_s} s; heard {manager.heard}")


def test_rejectd_is_ready_only_after_every_output_stands_in_reject(world: tuple[Manager, Line, Path]) -> None:
    manager, line, folder = world
    with daemon("reject", folder, manager, 2.0):
        _, before = wait_ready(manager, line)
    first: dict[str, bool] = {}
    for _, name, level in before:
        first.setdefault(name, level)
    assert first == {"gate": False, "ready": False, "fault": False, "line_stop": False, "heartbeat": False}


def test_rejectd_puts_its_outputs_in_reject_before_it_opens_its_books(world: tuple[Manager, Line, Path]) -> None:
    manager, line, folder = world
    (folder / "run/parts.state").write_bytes(b"of another version")  # rejectd refuses to go on with these
    with daemon("reject", folder, manager, 2.0) as child:
        end = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < end:
            select.select(line.waits(), [], [], 0.1)
            line.read()
        line.read()
        assert child.returncode == 2
    assert {name for _, name, _ in line.levels} == {"gate", "ready", "fault", "line_stop", "heartbeat"}
    assert not any(level for _, _, level in line.levels)
    assert not any("READY=1" in one for one in manager.read())


def test_an_output_that_comes_late_is_waited_for_while_the_others_stand(tmp_path: Path) -> None:
    """The twin's door opens a second after rejectd is up, as udev gives a pin its group after we asked for it."""
    Paths(tmp_path / "run", tmp_path / "data").make()
    manager = Manager(str(tmp_path / "notify"))
    with daemon("reject", tmp_path, manager, 2.0) as child:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            select.select([manager], [], [], max(0.0, end - time.monotonic()))
            assert not any("READY=1" in one for one in manager.read())
        line = Line(Listener(tmp_path / "run/twin.sock"))
        _, before = wait_ready(manager, line)
        assert {name for _, name, _ in before} >= {"gate", "line_stop"} and child.poll() is None
    line.door.close()
    manager.close()


@pytest.mark.parametrize(("role", "pulse_s"), [("reject", 1.0), ("inspect", 2.0), ("report", 1.0)])
def test_the_watchdog_is_fed_until_the_loop_hangs(world: tuple[Manager, Line, Path], role: str, pulse_s: float) -> None:
    """Inspectd's own pulse ends it after five seconds without a turn, so its time here is longer than one look of that."""
    manager, line, folder = world
    with daemon(role, folder, manager, 2 * pulse_s) as child:
        wait_ready(manager, line)
        if role == "inspect":
            manager.wait_for("STATUS=ready")  # and with it the watchdog's time is that of the loop again
        for _ in range(3):
            manager.wait_for("WATCHDOG=1", 3 * pulse_s)
        child.send_signal(signal.SIGUSR1)
        end = time.monotonic() + 0.3  # what was under way
        while time.monotonic() < end:
            select.select([manager], [], [], max(0.0, end - time.monotonic()))
            manager.read()
        silent_until = time.monotonic() + 2 * pulse_s
        while time.monotonic() < silent_until:
            select.select([manager], [], [], max(0.0, silent_until - time.monotonic()))
            assert not any("WATCHDOG=1" in one for one in manager.read())
        assert child.poll() is None, "it hangs, and lives"


@pytest.mark.parametrize("role", ["reject", "inspect", "report"])
def test_a_stop_is_told(world: tuple[Manager, Line, Path], role: str) -> None:
    manager, line, folder = world
    with daemon(role, folder, manager, 20.0) as child:
        wait_ready(manager, line)
        if role == "inspect":
            manager.wait_for("STATUS=ready")
        child.send_signal(signal.SIGTERM)
        end = time.monotonic() + 10
        while child.poll() is None and time.monotonic() < end:
            select.select(line.waits(), [], [], 0.05)
            line.read()
        assert child.returncode == 0
        manager.read()
        assert any("STOPPING=1" in one for _, one in manager.heard)


def test_twenty_kills_in_ten_seconds_and_each_time_the_outputs_are_in_reject(
    world: tuple[Manager, Line, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A runner that starts it again at once, as RestartSec=0 does."""
    manager, line, folder = world
    spans_ms = []
    begun = time.monotonic()
    for _ in range(20):
        line.levels.clear()
        started = time.monotonic()
        with daemon("reject", folder, manager, 2.0) as child:
            end = started + 10
            while time.monotonic() < end and not any(name == "gate" for _, name, _ in line.levels):
                select.select(line.waits(), [], [], 0.1)
                line.read()
            gates = [(at, level) for at, name, level in line.levels if name == "gate"]
            assert gates and not gates[0][1] and child.poll() is None
            spans_ms.append((gates[0][0] - started) * 1e3)
    took = time.monotonic() - begun
    with daemon("reject", folder, manager, 2.0):
        wait_ready(manager, line)
    spans_ms.sort()
    with capsys.disabled():
        print(f"\nexec to gate in reject, 20 kills in {took:.1f} s: median {spans_ms[10]:.0f} ms, longest {spans_ms[-1]:.0f} ms")
    assert took < 40, "20 in 10 s on a machine of its own; this one may be shared"
