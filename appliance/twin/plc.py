"""The PLC of a rehearsal: polls the station over real Modbus TCP, takes each result, checks the sums every time."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from pymodbus.client import ModbusTcpClient
from pymodbus.exceptions import ModbusException

from appliance.ports import Clock

POLL_NS = 50_000_000  # a PLC of the plain kind
TIMEOUT_S = 0.3
_PROBLEMS_KEPT = 20
_RESULTS_PER_POLL = 8
_READ = 65  # INPUT 0-64 in one request: what is read together belongs together
_ACK = 8
_ENABLE = 1
_RESULT_VALID = 1 << 3
_VERDICTS = ("none", "pass", "fail", "review", "blind", "late", "missed")


@dataclass
class Figures:
    """What the PLC saw. ``errors``: polls without an answer, refused, or with registers that contradict each other;
    ``contradictions``: the last of these alone, which no fault excuses."""

    polls: int = 0
    errors: int = 0
    contradictions: int = 0
    problems: list[str] = field(default_factory=list)
    results: dict[int, tuple[int, str]] = field(default_factory=dict)
    """sequence -> (part, verdict)"""
    counts: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, int]:
        """The contract's ``modbus``."""
        return {"polls": self.polls, "errors": self.errors}


class PlcFailure(Exception):
    """A poll that was refused."""


class Contradiction(PlcFailure):
    """Registers that cannot all be true."""


class Plc:
    """A thread that polls until ``close``; ``changed`` is notified after every poll."""

    def __init__(self, port: int, clock: Clock, host: str = "127.0.0.1") -> None:
        self.figures = Figures()
        self.changed = threading.Condition()
        self._clock = clock
        self._client = ModbusTcpClient(host, port=port, timeout=TIMEOUT_S, retries=0)
        self._beat = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plc", daemon=True)

    def wait_for(self, counts: Mapping[str, int], timeout_s: float) -> bool:
        """Whether the registers came to show these counts in time."""
        with self.changed:
            return self.changed.wait_for(lambda: all(counts.get(key) == n for key, n in self.figures.counts.items()), timeout_s)

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def close(self) -> Figures:
        """Stop polling; the figures are final."""
        self._end.set()
        self._thread.join(5)
        self._client.close()  # type: ignore[no-untyped-call]
        return self.figures

    def _run(self) -> None:
        due_ns = self._clock.now_ns()
        while not self._end.is_set():
            self.poll()
            due_ns = max(due_ns + POLL_NS, self._clock.now_ns())
            self._end.wait((due_ns - self._clock.now_ns()) / 1e9)

    def poll(self) -> None:
        """One cycle: say that we live, read, check, take the result."""
        with self.changed:
            self.figures.polls += 1
            try:
                self._talk()
                for _ in range(_RESULTS_PER_POLL):
                    registers = self._read()
                    self._check(registers)
                    if not self._take_result(registers):
                        break
            except Contradiction as why:
                self.figures.contradictions += 1
                self._note(str(why))
            except PlcFailure as why:
                self._note(str(why))
            except (ModbusException, OSError) as why:
                self._client.close()  # type: ignore[no-untyped-call]  # the next poll connects anew
                self._note(f"no answer: {why}")
            self.changed.notify_all()

    def _note(self, problem: str) -> None:
        self.figures.errors += 1
        if len(self.figures.problems) < _PROBLEMS_KEPT:
            self.figures.problems.append(f"poll {self.figures.polls}: {problem}")

    def _talk(self) -> None:
        self._beat = self._beat % 0xFFFF + 1
        self._write(0, [_ENABLE, self._beat])

    def _read(self) -> list[int]:
        answer = self._client.read_input_registers(0, count=_READ)
        if answer.isError():
            raise PlcFailure(f"reading was refused: {answer}")
        return list(answer.registers)

    def _write(self, address: int, values: list[int]) -> None:
        answer = self._client.write_registers(address, values)
        if answer.isError():
            raise PlcFailure(f"writing {values} to {address} was refused: {answer}")

    def _check(self, registers: list[int]) -> None:
        if registers[60:63] != [0x1234, 0x1234, 0x5678]:
            raise Contradiction(f"the byte-order test reads {registers[60:63]}")
        triggers, *verdicts = (_u32(registers, at) for at in range(20, 34, 2))
        self.figures.counts = dict(zip(("triggers", *_VERDICTS[1:]), (triggers, *verdicts)))
        if triggers != sum(verdicts):
            raise Contradiction(f"the sums do not hold: {self.figures.counts}")

    def _take_result(self, registers: list[int]) -> bool:
        """Each shown result once; acknowledged by its sequence, so that the next is shown. False: there was none."""
        if not registers[2] & _RESULT_VALID:
            return False
        sequence, part, number = _u32(registers, 10), _u32(registers, 12), registers[14]
        if not 1 <= number < len(_VERDICTS):
            raise Contradiction(f"result {sequence} has verdict number {number}")
        verdict = _VERDICTS[number]
        if self.figures.results.setdefault(sequence, (part, verdict)) != (part, verdict):
            raise Contradiction(f"result {sequence} changed from {self.figures.results[sequence]} to {(part, verdict)}")
        self._write(_ACK, [sequence & 0xFFFF])
        return True


def _u32(registers: list[int], at: int) -> int:
    return registers[at] << 16 | registers[at + 1]
