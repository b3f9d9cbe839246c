"""Remote I/O over Modbus TCP: rejectd's handle, and the small process that does the talking (one for each HOST:PORT).

rejectd never waits for a coupler: it hands over commands with their due time through a socket pair, and hears what was
proved. The process (``python -m appliance.devices.modbus_io``) owns the one connection. It writes each coil ahead of
its due time by half the round trip it has measured, reads it back, rewrites it at least every 100 ms, polls the inputs
every 5 ms, and reconnects with back-off. A coupler that answers more slowly than all this takes gets it one after the
other, the longest overdue first.

When rejectd dies its socket closes: the process writes every failure level once and ends. That is a courtesy. Only the
coupler's own watchdog, set to fall to reject after ``watchdog_ms`` without a write, holds when this machine, this
process or the cable is gone.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import sys
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Any, Protocol, TypeVar, Union

import msgspec

from appliance.clock import SPIN_NS, become_real_time, now_ns, spin_until
from appliance.messages import Edge, encode
from appliance.ports import Clock, InputLost, OutputLost

log = logging.getLogger("appliance.modbus")

MS = 1_000_000
REFRESH_NS = 100 * MS  # no coil stands unwritten for longer, while the coupler answers
_REFRESH_EARLY_NS = 75 * MS  # so that a poll under way does not make the rewriting late
_POLL_NS = 5 * MS
_AGAIN_NS = 20 * MS  # after a refusal or a wrong read-back: couplers work in cycles of up to 10 ms
_TOLD_NS = 100 * MS  # how often the parent hears that inputs answer
_TIMEOUT_S = 0.15
_FIRST_PAUSE_NS, _LONGEST_PAUSE_NS = 100 * MS, 2_000 * MS
_HANDOVER_NS = 1 * MS  # a message over the socket pair takes 0.04 ms, 0.3 ms at p99
_SILENT_NS = 1_000 * MS  # an input whose coupler does not answer for longer gives no more edges
_START_NS = 3_000 * MS  # a new process imports its library and connects before anything can be proved
_AGAIN_START_NS = 1_000 * MS
_PRIORITY = 40  # below rejectd, above everything else
_TRIPS = 15
_EDGES_KEPT = 256  # for a parent that does not read; the oldest is dropped then, and the sequence shows it
_MESSAGE_BYTES = 4096
_MESSAGES_PER_TURN = 512
_CONTROL_FD = 3


# --- between the two -------------------------------------------------------------------------------------------


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of what passes between rejectd and the process. ``line``: the handle's number of a line."""


class OpenOutput(Message, frozen=True):
    """From now on the coil is written, at ``start`` until a Command is due."""

    line: int
    unit: int
    coil: int
    start: bool
    failure: bool


class OpenInput(Message, frozen=True):
    """From now on ``table`` (coil or discrete) is polled; edges go to the socket that comes along, if one does."""

    line: int
    name: str
    unit: int
    table: str
    number: int


class Command(Message, frozen=True):
    """The coil is to move at ``due_ns``. It replaces all of the line's that are due then or later."""

    line: int
    level: bool
    due_ns: int
    sequence: int


class Proved(Message, frozen=True):
    """Written, acknowledged, and read back at ``at_ns`` (monotonic, start of the reading). ``sequence``: of the last
    Command in it. ``round_trip_ns``: median of the recent writes."""

    line: int
    sequence: int
    at_ns: int
    round_trip_ns: int


class Answered(Message, frozen=True):
    """An input was read at ``at_ns``. An edge happened at most ``uncertainty_ns`` away from its stamp."""

    line: int
    at_ns: int
    uncertainty_ns: int


class Trouble(Message, frozen=True):
    """Why a line cannot be proved or read, in words."""

    line: int
    text: str


_encoder = msgspec.msgpack.Encoder()
_to_process: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Union[OpenOutput, OpenInput, Command])
_to_parent: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Union[Proved, Answered, Trouble])


# --- rejectd's side --------------------------------------------------------------------------------------------


class LineAddress(Protocol):
    """``modbus://HOST:PORT/coil/N?unit=1&watchdog_ms=500`` or ``…/discrete/N``, read by the configuration."""

    @property
    def host(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def text(self) -> str: ...

    def option(self, key: str, default: str = "") -> str: ...


@dataclass
class OutputLine:
    """What is known of one output. ``good_until_ns``: proved, or not to be proved yet. ``round_trip_ns``: of a write."""

    opening: OpenOutput
    watchdog_ns: int
    good_until_ns: int
    round_trip_ns: int = 0
    sequence: int = 0
    waiting: deque[Command] = field(default_factory=deque)
    trouble: str = ""

    def proved(self, message: Proved) -> None:
        """A reading of before the last due command proves nothing."""
        while self.waiting and self.waiting[0].sequence <= message.sequence:
            self.waiting.popleft()
        self.round_trip_ns = message.round_trip_ns
        if not (self.waiting and self.waiting[0].due_ns <= message.at_ns):
            self.good_until_ns = message.at_ns + self.watchdog_ns
            self.trouble = ""


@dataclass
class InputLine:
    """What is known of one input. ``edges``: where they come, None where it was never opened."""

    opening: OpenInput
    good_until_ns: int
    edges: socket.socket | None = None
    uncertainty_ns: int = 0
    trouble: str = ""


class ModbusIo:
    """The handle on one coupler's process. No method waits; starting the process takes about a millisecond.

    ``address``: HOST:PORT (port 502 if none). Raises ValueError. The process is started with the first line, and again,
    at most once a second, by the next ``command`` or ``open_input`` after it ended. Outputs then begin at their start
    level, and a line is lost until it is proved. Call ``doubt`` of one line at least every second, or what the process
    has to say fills its socket."""

    def __init__(self, address: str, clock: Clock) -> None:
        host, _, port = address.partition(":")
        if not host or not (port or "502").isdecimal():
            raise ValueError(f"{address!r} is no coupler; write HOST:PORT, for example 192.168.0.20:502")
        self.address, self._clock = address, clock
        self._host, self._port = host, port or "502"
        self._socket: socket.socket | None = None
        self._pid: int | None = None
        self._ended: set[int] = set()
        self._start_again_ns = 0
        self._closed = False
        self._outputs: dict[int, OutputLine] = {}
        self._inputs: dict[int, InputLine] = {}

    @property
    def pid(self) -> int | None:
        """The process, None while there is none."""
        return self._pid

    def open_output(self, address: LineAddress, start: bool, failure: bool) -> OutputLine:
        """Raises ValueError where the address is no coil or says no ``watchdog_ms``."""
        unit, table, number = place_of(address)
        watchdog_ms = address.option("watchdog_ms")
        if table != "coil":
            raise ValueError(f"{address.text}: {table} cannot be written; write …/coil/{number}")
        if not watchdog_ms.isdecimal() or int(watchdog_ms) <= REFRESH_NS // MS:
            raise ValueError(
                f"{address.text}: write watchdog_ms=, as set in the coupler (more than {REFRESH_NS // MS}), and let it "
                "fall to reject there"
            )
        opening = OpenOutput(len(self._outputs), unit, number, start, failure)
        line = OutputLine(opening, int(watchdog_ms) * MS, self._clock.now_ns() + _START_NS)
        self._outputs[opening.line] = line
        if not self._send(opening):
            self._is_there()  # a process that is started is told of all lines
        return line

    def open_input(self, name: str, address: LineAddress) -> InputLine:
        """Raises ValueError where the address is none; InputLost where this place is known not to answer."""
        unit, table, number = place_of(address)
        is_there = self._is_there()
        self.receive()
        now = self._clock.now_ns()
        for line in self._inputs.values():
            if (line.opening.name, line.opening.unit, line.opening.table, line.opening.number) == (name, unit, table, number):
                break
        else:
            opening = OpenInput(-1 - len(self._inputs), name, unit, table, number)
            line = InputLine(opening, now + _START_NS)
            self._inputs[opening.line] = line
        if not is_there or now > line.good_until_ns:
            raise InputLost(f"input {name} at {address.text}: {self._words(line)}")
        if line.edges:
            line.edges.close()
        line.edges, theirs = _socket_pair()
        self._send(line.opening, theirs)
        theirs.close()
        return line

    def command(self, line: OutputLine, level: bool, due_ns: int) -> None:
        """Hand over a move. Raises OutputLost while there is no process, or while it takes nothing."""
        if not self._is_there():
            raise OutputLost(self._words(line))
        line.sequence += 1
        command = Command(line.opening.line, level, due_ns, line.sequence)
        if not self._send(command):
            raise OutputLost(self._words(line))
        while line.waiting and line.waiting[-1].due_ns >= due_ns:
            line.waiting.pop()
        line.waiting.append(command)
        now_ns = self._clock.now_ns()
        while len(line.waiting) > 1 and line.waiting[1].due_ns <= now_ns:
            line.waiting.popleft()  # overtaken: of what is due only the newest is to be proved

    def doubt(self, line: OutputLine | InputLine, at_ns: int) -> str:
        """Why the line is not to be trusted at ``at_ns``, in words, or nothing."""
        self.receive()
        return self._words(line) if at_ns > line.good_until_ns else ""

    def receive(self) -> None:
        """Take in what the process says."""
        for _ in range(_MESSAGES_PER_TURN):
            if self._socket is None:
                return
            try:
                data = self._socket.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._gone()
                return
            self._heard(_to_parent.decode(data))

    def close(self, timeout_s: float = 0.5) -> bool:
        """The failure levels are written and the process ends, for good. True if it did within ``timeout_s``."""
        self._closed = True
        pid, self._pid = self._pid, None
        if self._socket:
            self._socket.close()
            self._socket = None
        for line in self._inputs.values():
            if line.edges:
                line.edges.close()
        if pid is None:
            return True
        self._ended.add(pid)
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        select.select([handle], [], [], timeout_s)
        os.close(handle)
        self._reap()
        return pid not in self._ended

    def _heard(self, message: Proved | Answered | Trouble) -> None:
        if isinstance(message, Proved):
            self._outputs[message.line].proved(message)
        elif isinstance(message, Answered):
            line = self._inputs[message.line]
            line.good_until_ns, line.uncertainty_ns, line.trouble = message.at_ns + _SILENT_NS, message.uncertainty_ns, ""
        else:
            one = self._outputs.get(message.line) or self._inputs[message.line]
            one.trouble = message.text

    def _words(self, line: OutputLine | InputLine) -> str:
        if self._closed:
            return f"{self.address} was closed"
        if self._socket is None:
            return f"the process that talks to {self.address} ended; it is started again"
        return line.trouble or f"no word from the process that talks to {self.address}"

    def _send(self, message: Message, give: socket.socket | None = None) -> bool:
        if self._socket is None:
            return False
        data = _encoder.encode(message)
        try:
            if give is None:
                self._socket.send(data)
            else:
                socket.send_fds(self._socket, [data], [give.fileno()])
        except BlockingIOError:
            return False
        except OSError:
            self._gone()
            return False
        return True

    def _is_there(self) -> bool:
        """Starts the process where there is none, at most once a second."""
        self.receive()
        now = self._clock.now_ns()
        if self._socket is None and now >= self._start_again_ns and not self._closed:
            self._start_again_ns = now + _AGAIN_START_NS
            self._start()
        return self._socket is not None

    def _start(self) -> None:
        self._reap()
        self._socket, theirs = _socket_pair()
        command = [sys.executable, "-m", "appliance.devices.modbus_io", str(_CONTROL_FD), self._host, self._port]
        tree = str(Path(__file__).resolve().parents[2])
        search = os.pathsep.join(filter(None, (tree, os.environ.get("PYTHONPATH"))))
        # posix_spawn, for its scheduler: what a real-time rejectd starts would run at rejectd's own priority until it
        # has imported its library.
        self._pid = os.posix_spawn(
            sys.executable, command, {**os.environ, "PYTHONPATH": search},
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), _CONTROL_FD)],
            scheduler=(os.SCHED_OTHER, os.sched_param(0)),
        )  # fmt: skip
        theirs.close()
        for output in self._outputs.values():
            self._send(output.opening)
        for one in self._inputs.values():
            self._send(one.opening)

    def _gone(self) -> None:
        if self._socket:
            self._socket.close()
        self._socket = None
        if self._pid is not None:
            log.error("the process %d that talks to %s ended", self._pid, self.address)
            self._ended.add(self._pid)
        self._pid = None
        for output in self._outputs.values():
            output.good_until_ns = 0
            output.waiting.clear()
        for one in self._inputs.values():
            one.good_until_ns = 0
        self._reap()

    def _reap(self) -> None:
        for pid in list(self._ended):
            try:
                ended = os.waitpid(pid, os.WNOHANG)[0]
            except ChildProcessError:
                ended = pid
            if ended:
                self._ended.discard(pid)


def place_of(address: LineAddress) -> tuple[int, str, int]:
    """Unit, table (coil or discrete) and number (0-based, as on the wire). Raises ValueError."""
    parts, unit = address.path.strip("/").split("/"), address.option("unit", "1")
    if len(parts) != 2 or parts[0] not in ("coil", "discrete") or not parts[1].isdecimal() or int(parts[1]) > 0xFFFF:
        raise ValueError(f"{address.text} names no coil; write modbus://HOST:PORT/coil/0 or …/discrete/0 (to 65535)")
    if not unit.isdecimal() or int(unit) > 255:
        raise ValueError(f"{address.text}: unit={unit} is none; write 0 to 255")
    return int(unit), parts[0], int(parts[1])


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


# --- the process: the wire ---------------------------------------------------------------------------------------


class CouplerTrouble(Exception):
    """The coupler did not do what was asked, in words."""


class Coupler:
    """The one connection. Each call waits for at most about 0.3 s and raises CouplerTrouble.

    After silence the connection is closed: an answer that comes late must not be taken for the next one's."""

    def __init__(self, host: str, port: int) -> None:
        # rejectd imports this file for ModbusIo and must not pull in pymodbus.
        from pymodbus.client import ModbusTcpClient
        from pymodbus.exceptions import ConnectionException, ModbusException

        self._name = f"{host}:{port}"
        self._closed = (ConnectionException, OSError)  # a reset comes as a plain OSError
        self._silent = ModbusException
        self._client: Any = ModbusTcpClient(host, port=port, timeout=_TIMEOUT_S, retries=0)
        self._pause_ns = _FIRST_PAUSE_NS
        self.retry_ns = 0

    @property
    def connected(self) -> bool:
        return bool(self._client.connected)

    def connect(self) -> None:
        if not self._client.connect():
            self._pause()
            raise CouplerTrouble(f"{self._name} takes no connection; check its supply, its cable and the address")
        self._client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def write(self, unit: int, first: int, levels: Sequence[bool]) -> None:
        """Coils ``first`` and following; returns when the coupler has acknowledged."""
        if len(levels) == 1:
            self._ask(5, lambda: self._client.write_coil(first, levels[0], device_id=unit))
        else:
            self._ask(15, lambda: self._client.write_coils(first, list(levels), device_id=unit))

    def read(self, unit: int, table: str, first: int, count: int) -> list[bool]:
        """Levels of ``first`` and following."""
        if table == "coil":
            answer = self._ask(1, lambda: self._client.read_coils(first, count=count, device_id=unit))
        else:
            answer = self._ask(2, lambda: self._client.read_discrete_inputs(first, count=count, device_id=unit))
        if len(answer.bits) < count:
            raise CouplerTrouble(f"{self._name} answers with {len(answer.bits)} levels of {count}")
        return list(answer.bits[:count])

    def close(self) -> None:
        self._client.close()

    def _ask(self, function: int, ask: Callable[[], Any]) -> Any:
        try:
            answer = ask()
        except self._closed as why:
            self._break()
            raise CouplerTrouble(f"{self._name} closed the connection; check what else is connected to it") from why
        except self._silent as why:
            self._break()
            raise CouplerTrouble(
                f"{self._name} gave no proper answer within {_TIMEOUT_S} s; check its supply and its cable"
            ) from why
        self._pause_ns = _FIRST_PAUSE_NS
        if answer.isError():
            raise CouplerTrouble(
                f"{self._name} refuses function {function} with exception {answer.exception_code}; "
                "check unit and number in the address, and the coupler's rights"
            )
        if answer.function_code != function:
            raise CouplerTrouble(f"{self._name} answers function {function} with {answer.function_code}")
        return answer

    def _break(self) -> None:
        self._client.close()
        self._pause()

    def _pause(self) -> None:
        self.retry_ns = now_ns() + self._pause_ns
        self._pause_ns = min(2 * self._pause_ns, _LONGEST_PAUSE_NS)


# --- the process: what to do next ----------------------------------------------------------------------------------


@dataclass
class _Coil:
    opening: OpenOutput
    wanted: bool
    sequence: int = 0
    queue: list[Command] = field(default_factory=list)
    trips: deque[int] = field(default_factory=lambda: deque(maxlen=_TRIPS))
    round_trip_ns: int = 0
    told: str = ""

    @property
    def number(self) -> int:
        return self.opening.coil

    @property
    def fire_ns(self) -> int:
        """When the write is to be sent, so that the coil moves when the first in the queue is due."""
        return self.queue[0].due_ns - self.round_trip_ns // 2

    def took(self, trip_ns: int) -> None:
        self.trips.append(trip_ns)
        self.round_trip_ns = round(median(self.trips))


@dataclass
class _Contact:
    opening: OpenInput
    socket: socket.socket | None = None
    level: bool | None = None
    sequence: int = 0
    waiting: deque[Edge] = field(default_factory=lambda: deque(maxlen=_EDGES_KEPT))
    told: str = ""

    @property
    def number(self) -> int:
        return self.opening.number


@dataclass
class _Coils:
    """Neighbouring coils, written and read at one go."""

    lines: list[_Coil]
    refresh_ns: int = 0
    prove_ns: int | None = None

    @property
    def proves_first(self) -> bool:
        return self.prove_ns is not None and self.prove_ns <= self.refresh_ns

    @property
    def due_ns(self) -> int:
        return self.prove_ns if self.prove_ns is not None and self.proves_first else self.refresh_ns


@dataclass
class _Contacts:
    """Neighbouring inputs, read at one go."""

    lines: list[_Contact]
    due_ns: int = 0
    sent_ns: int = 0
    told_ns: int = 0
    uncertainty_ns: int = 0


@dataclass(frozen=True)
class _Task:
    due_ns: int
    do: Callable[[], None]
    early_ns: int = 0


class Rounds:
    """The process's loop: one exchange with the coupler at a time, between two looks at what rejectd says."""

    def __init__(self, control: socket.socket, coupler: Coupler) -> None:
        control.setblocking(False)
        self._control, self._coupler = control, coupler
        self._outputs: dict[int, _Coil] = {}
        self._inputs: dict[int, _Contact] = {}
        self._coils: list[_Coils] = []
        self._contacts: list[_Contacts] = []
        self._turn_ns = 0

    def run(self) -> None:
        """Until rejectd's end of the socket is closed."""
        while self._listen():
            task = self._next(now_ns())
            if task.due_ns - task.early_ns <= now_ns():
                spin_until(task.due_ns)
                task.do()
        self._leave()

    # --- rejectd ---

    def _listen(self) -> bool:
        now = now_ns()
        task = self._next(now)
        select.select([self._control], [], [], max(0.0, (task.due_ns - task.early_ns - now) / 1e9))
        while True:
            try:
                data, given, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, 1)
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False
            if not data:
                return False
            self._heard(_to_process.decode(data), [socket.socket(fileno=one) for one in given])

    def _heard(self, message: OpenOutput | OpenInput | Command, given: list[socket.socket]) -> None:
        if isinstance(message, Command):
            queue = self._outputs[message.line].queue
            queue[:] = [one for one in queue if one.due_ns < message.due_ns]
            insort(queue, message, key=attrgetter("due_ns"))
        elif isinstance(message, OpenOutput):
            self._outputs[message.line] = _Coil(message, message.start)
            ordered = sorted(self._outputs.values(), key=lambda line: (line.opening.unit, line.number))
            self._coils = [_Coils(lines) for lines in _neighbours(ordered)]
        else:
            known = self._inputs.get(message.line)
            self._inputs[message.line] = _Contact(message, given[0] if given else None, told=known.told if known else "")
            places = sorted(self._inputs.values(), key=lambda line: (line.opening.unit, line.opening.table, line.number))
            self._contacts = [_Contacts(lines) for lines in _neighbours(places)]

    def _tell(self, message: Message) -> None:
        # Full: rejectd does not look. What was said is old by the time it does, and more comes. Closed: the next look
        # at the socket finds out.
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._control.send(_encoder.encode(message))

    def _complain(self, lines: Sequence[_Coil | _Contact], text: str) -> None:
        for line in lines:
            if line.told != text:
                line.told = text
                self._tell(Trouble(line.opening.line, text))

    # --- what is next ---

    def _next(self, now: int) -> _Task:
        everything: list[_Coils | _Contacts] = [*self._coils, *self._contacts]
        if not everything:
            return _Task(now + _LONGEST_PAUSE_NS, lambda: None)
        if not self._coupler.connected:
            return _Task(self._coupler.retry_ns, self._connect)
        first = min(everything, key=attrgetter("due_ns"))
        moves = [(bank, line) for bank in self._coils for line in bank.lines if line.queue]
        if moves:
            bank, line = min(moves, key=lambda move: move[1].fire_ns)
            # Nothing is begun that may still be under way when a coil is to move; but where moves follow each other so
            # closely that nothing else ever has its turn, no coil would be proved and no input read.
            ends_ns = max(now, first.due_ns) + line.round_trip_ns * 3 // 2 + _HANDOVER_NS // 2
            starved = now - self._turn_ns > max(REFRESH_NS, 4 * line.round_trip_ns)
            if line.fire_ns <= now or (line.fire_ns <= ends_ns and not starved):
                return _Task(line.fire_ns, lambda: self._fire(bank, line), SPIN_NS)
        return _Task(first.due_ns, lambda: self._turn(first))

    def _connect(self) -> None:
        now = now_ns()
        for bank in self._coils:
            for line in bank.lines:
                while line.queue and line.queue[0].due_ns <= now:
                    _take(line)  # what came due meanwhile does not pile up while there is nobody to tell
        try:
            self._coupler.connect()
        except CouplerTrouble as why:
            self._complain([*self._outputs.values(), *self._inputs.values()], str(why))
            return
        now = now_ns()
        for bank in self._coils:
            bank.refresh_ns, bank.prove_ns = now, None

    def _turn(self, bank: _Coils | _Contacts) -> None:
        self._turn_ns = now_ns()
        if isinstance(bank, _Contacts):
            self._poll(bank)
        elif bank.proves_first:
            self._prove(bank)
        else:
            self._write(bank, bank.lines)

    # --- outputs ---

    def _fire(self, bank: _Coils, line: _Coil) -> None:
        _take(line)
        self._write(bank, [line])

    def _write(self, bank: _Coils, lines: list[_Coil]) -> None:
        sent = now_ns()
        bank.prove_ns = None
        try:
            self._coupler.write(lines[0].opening.unit, lines[0].number, [line.wanted for line in lines])
        except CouplerTrouble as why:
            self._complain(self._concerned(lines), str(why))
            bank.refresh_ns = now_ns() + _AGAIN_NS
            return
        answered = now_ns()
        for line in lines:
            line.took(answered - sent)
        bank.prove_ns = answered
        if len(lines) == len(bank.lines):
            bank.refresh_ns = sent + _REFRESH_EARLY_NS

    def _prove(self, bank: _Coils) -> None:
        sent, first = now_ns(), bank.lines[0]
        bank.prove_ns = None
        try:
            levels = self._coupler.read(first.opening.unit, "coil", first.number, len(bank.lines))
        except CouplerTrouble as why:
            self._complain(self._concerned(bank.lines), str(why))
            bank.refresh_ns = now_ns() + _AGAIN_NS
            return
        for line, level in zip(bank.lines, levels):
            if level == line.wanted:
                line.told = ""
                self._tell(Proved(line.opening.line, line.sequence, sent, line.round_trip_ns))
            else:
                words = f"coil {line.number} reads {level:d} after {line.wanted:d} was written; does another master write it?"
                self._complain([line], words)
                bank.prove_ns = now_ns() + _AGAIN_NS

    def _concerned(self, lines: Sequence[_Coil | _Contact]) -> Sequence[_Coil | _Contact]:
        """A refusal is these lines' own; a connection that broke is everybody's."""
        return lines if self._coupler.connected else [*self._outputs.values(), *self._inputs.values()]

    def _leave(self) -> None:
        for bank in self._coils:
            for _ in range(2):  # the connection may have been broken long since: one new one
                try:
                    if not self._coupler.connected:
                        self._coupler.connect()
                    first, levels = bank.lines[0], [line.opening.failure for line in bank.lines]
                    self._coupler.write(first.opening.unit, first.number, levels)
                    break
                except CouplerTrouble as why:
                    log.warning("the failure level is left to the coupler's watchdog: %s", why)
        self._coupler.close()

    # --- inputs ---

    def _poll(self, bank: _Contacts) -> None:
        sent, first = now_ns(), bank.lines[0].opening
        bank.due_ns = sent + _POLL_NS
        try:
            levels = self._coupler.read(first.unit, first.table, first.number, len(bank.lines))
        except CouplerTrouble as why:
            self._complain(self._concerned(bank.lines), str(why))
            bank.due_ns = now_ns() + _AGAIN_NS
            return
        received = now_ns()
        middle = (sent + received) // 2
        # The level changed after the last poll was sent and before this one was answered.
        bank.uncertainty_ns = max(bank.uncertainty_ns, middle - (bank.sent_ns or sent - _POLL_NS), received - middle)
        bank.sent_ns = sent
        for line, level in zip(bank.lines, levels):
            line.told = ""
            if line.level is not level:
                line.waiting.append(Edge(line.opening.name, level, middle, line.sequence))
                line.level, line.sequence = level, line.sequence + 1
            _hand_over(line)
        if sent >= bank.told_ns + _TOLD_NS:
            bank.told_ns = sent
            for line in bank.lines:
                self._tell(Answered(line.opening.line, sent, bank.uncertainty_ns))
            bank.uncertainty_ns = 0


def _take(line: _Coil) -> None:
    command = line.queue.pop(0)
    line.wanted, line.sequence = command.level, command.sequence


def _hand_over(line: _Contact) -> None:
    while line.waiting:
        if line.socket is None:
            line.waiting.clear()
            return
        try:
            line.socket.send(encode(line.waiting[0]))
        except BlockingIOError:
            return
        except OSError:  # this reader is gone; another may be given
            line.socket.close()
            line.socket = None
            continue
        line.waiting.popleft()


_Line = TypeVar("_Line", _Coil, _Contact)


def _neighbours(ordered: list[_Line]) -> list[list[_Line]]:
    """Runs without a gap: a coupler refuses a range that has a hole."""
    runs: list[list[_Line]] = []
    for line in ordered:
        last = runs[-1][-1] if runs else None
        if last is not None and line.number == last.number + 1 and _range_of(line) == _range_of(last):
            runs[-1].append(line)
        else:
            runs.append([line])
    return runs


def _range_of(line: _Coil | _Contact) -> tuple[int, str]:
    return line.opening.unit, line.opening.table if isinstance(line.opening, OpenInput) else "coil"


def main(control_fd: int, host: str, port: int) -> int:
    """Run until rejectd's end is closed. Signals are rejectd's to answer: it stops first, and this process by it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)  # every trouble is told to rejectd in words
    control = socket.socket(fileno=control_fd)
    coupler = Coupler(host, port)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # rejectd's own core is rejectd's
    become_real_time(priority=_PRIORITY)
    gc.enable()  # pymodbus makes rings on every failed request; what is collected is small
    Rounds(control, coupler).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
