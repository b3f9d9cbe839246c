"""The PLC's register map (contract, "Modbus TCP server"): what the station tells and takes. Pure: time is passed in."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Final

from appliance.faults import FAULTS, Effect
from appliance.messages import VERDICTS, ClockQuality, Command, InspectState, PartClosed, Reply, StateName, Status
from appliance.report.plc_commands import BAD_VALUE, CLEAR_LATCHED, NOT_NOW, RESULT_ACK, PlcCommands

MAP_VERSION = 1 << 8 | 0
INPUTS, HOLDINGS = 200, 100
BAD_ADDRESS = 2  # Modbus exception; the others are plc_commands'
RING = 64  # results behind the shown one: half a minute at 120 parts/min
ALIVE_NS = 300_000_000
BEAT_NS = 100_000_000
SHORTEST_TIMEOUT_MS = 200  # reportd looks ten times a second: a shorter PLC heartbeat cannot be watched
REJECT_AWAY = 30  # fault code while rejectd is not seen; no row of faults.py, for nobody is there to raise it

STATES: Final[tuple[StateName, ...]] = ("starting", "building", "purging", "running", "held", "fault", "stopped")
CLOCKS: Final[tuple[ClockQuality, ...]] = ("unset", "holdover", "synced")
UNKNOWN_SIGNED = 0x8000  # margin of a part without a verdict, temperature of a box without a sensor
NO_TIME = NO_CLASS = 0xFFFF

# Bits of the status word (INPUT 2, DISCRETE 0-15). Bit 2, trigger_ack, comes with the PLC's trigger.
READY, BUSY, RESULT_VALID, OVERRUN, RECIPE_OK = 1 << 0, 1 << 1, 1 << 3, 1 << 10, 1 << 11
LINE_STOP, UNCONFIRMED, WARNING, FAULT = 1 << 12, 1 << 13, 1 << 14, 1 << 15
FIRST_VERDICT_BIT = 4

# HOLDING registers
_COMMAND, _HEARTBEAT, _LABEL, _OPERATOR, _ACK, _TIMEOUT = 0, 1, 4, 7, 8, 9
_FIRST_RESERVED = 10


class PlcMap:
    """Called by two threads, reportd's loop and the Modbus server's: each public method is one step under one lock,
    so a request sees a result and the counters whole."""

    def __init__(self, *, simulated: bool, config_crc32: int) -> None:
        self._lock = Lock()
        self._simulated, self._config_crc32, self._overrun = simulated, config_crc32, False
        self._commands = PlcCommands()
        self._holding = [0] * HOLDINGS
        self._status: Status | None = None
        self._inspect: InspectState | None = None
        self._counts: Mapping[str, int] = {}
        self._quality: ClockQuality = "unset"
        self._shown: tuple[int, PartClosed] | None = None
        self._ring: deque[tuple[int, PartClosed]] = deque()
        self._heartbeat = 0
        self._beat_ns = 0
        self._plc_seen_ns = 0
        self._plc_lost = False
        self._temperature_c: float | None = None
        self._throttle_flags = 0
        self._warnings: tuple[str, ...] = ()

    # --- reportd's side -------------------------------------------------------------------------------------------

    def on_status(self, status: Status) -> None:
        """How the station stands, of rejectd."""
        with self._lock:
            self._count_beats(status.alive_ns)
            if not self._alive(status.alive_ns):  # the heartbeat stood still meanwhile: those beats are not made up for
                self._beat_ns = status.alive_ns
            self._status = status
            self._commands.on_status(status)

    def on_inspect(self, state: InspectState) -> None:
        """What inspectd can do, and with which recipe."""
        with self._lock:
            self._inspect = state

    def on_record(self, seq: int, part: PartClosed) -> None:
        """A part's record is on disk, as number ``seq`` of the ledger."""
        with self._lock:
            if len(self._ring) >= RING:
                self._ring.popleft()  # the oldest that waits; the shown one never changes under the PLC's eyes
                self._overrun = True
            self._ring.append((seq, part))
            self._show_next()

    def on_counts(self, counts: Mapping[str, int]) -> None:
        """The ledger's counts of committed parts: the six verdicts, triggers, unconfirmed."""
        with self._lock:
            self._counts = dict(counts)

    def on_results_lost(self) -> None:
        """Results of this run were never shown: reportd was away."""
        with self._lock:
            self._overrun = True

    def on_rejectd_gone(self) -> None:
        """The link to rejectd broke."""
        with self._lock:
            self._status = None
            self._commands.on_rejectd_gone()

    def on_reply(self, reply: Reply) -> None:
        """rejectd's answer to one of ``commands``; others are not ours and are ignored."""
        with self._lock:
            self._commands.on_reply(reply)

    def not_sent(self, command_id: str) -> None:
        """One of ``commands`` could not be handed to rejectd."""
        with self._lock:
            self._commands.not_sent(command_id)

    def on_box(self, temperature_c: float | None, throttle_flags: int, warnings: Sequence[str]) -> None:
        """How the machine under the station stands. ``warnings``: codes of reportd's own alarms, the oldest first."""
        with self._lock:
            self._temperature_c, self._throttle_flags, self._warnings = temperature_c, throttle_flags, tuple(warnings)

    def step(self, now_ns: int, quality: ClockQuality) -> None:
        """Look at the PLC's heartbeat; call it at every turn of the loop."""
        with self._lock:
            self._quality = quality
            timeout_ms = self._holding[_TIMEOUT]
            self._plc_lost = timeout_ms > 0 and now_ns - self._plc_seen_ns > timeout_ms * 1_000_000

    def commands(self, now_ns: int) -> list[Command]:
        """What rejectd is to be told now: each is answered by ``on_reply``, or handed back by ``not_sent``."""
        with self._lock:
            return self._commands.take(now_ns)

    @property
    def plc_lost(self) -> bool:
        """Whether alarm ``plc_lost`` stands; the inspection goes on."""
        return self._plc_lost

    # --- the PLC's side: reading ----------------------------------------------------------------------------------

    def inputs(self, now_ns: int) -> list[int]:
        """INPUT 0-199, also at HOLDING 1000-1199."""
        with self._lock:
            return self._inputs(now_ns)

    def holding(self) -> list[int]:
        """HOLDING 0-99, as the PLC wrote them."""
        with self._lock:
            return [self._commands.level, *self._holding[1:]]

    def discretes(self, now_ns: int) -> tuple[int, int]:
        """DISCRETE 0-15 (the status word) and 16-31 (the done bits)."""
        with self._lock:
            return self._status_word(now_ns), self._commands.done

    def coils(self) -> int:
        """COILS 0-15: the command bits."""
        with self._lock:
            return self._commands.level

    # --- the PLC's side: writing ----------------------------------------------------------------------------------

    def write_holding(self, address: int, values: Sequence[int], now_ns: int) -> int:
        """Take HOLDING registers, all or none; returns 0 or the Modbus exception."""
        if address < 0 or address + len(values) > HOLDINGS:
            return BAD_ADDRESS
        with self._lock:
            written = dict(enumerate(values, start=address))
            refused = self._refusal(written, now_ns)
            if refused:
                return refused
            self._take_heartbeat(written, now_ns)
            for register, value in written.items():
                self._holding[register] = value
            if _COMMAND in written:
                self._take_bits(written[_COMMAND], 0xFFFF)
            if _ACK in written and self._shown is not None and self._shown[0] & 0xFFFF == written[_ACK]:
                self._release()
        return 0

    def write_coils(self, address: int, bits: Sequence[bool], now_ns: int) -> int:
        """Take coils, all or none; returns 0 or the Modbus exception."""
        if address < 0 or address + len(bits) > 16:
            return BAD_ADDRESS
        mask = ((1 << len(bits)) - 1) << address
        word = sum(1 << bit for bit, on in enumerate(bits, start=address) if on)
        with self._lock:
            refused = self._commands.refusal(word, mask, self._alive(now_ns))
            if not refused:
                self._take_bits(word, mask)
        return refused

    def _refusal(self, written: Mapping[int, int], now_ns: int) -> int:
        if any(value and register >= _FIRST_RESERVED for register, value in written.items()):
            return BAD_VALUE  # reserved: zeros only, so that nothing is taken and ignored
        if 0 < written.get(_TIMEOUT, 0) < SHORTEST_TIMEOUT_MS:
            return BAD_VALUE
        refused = 0
        if _COMMAND in written:
            refused = self._commands.refusal(written[_COMMAND], 0xFFFF, self._alive(now_ns))
        if not refused and any(written.get(register) for register in range(_LABEL, _OPERATOR + 1)):
            return NOT_NOW  # label, lot and operator come with the PLC's trigger
        return refused

    def _take_heartbeat(self, written: Mapping[int, int], now_ns: int) -> None:
        """A beat, or a new timeout, begins the time anew."""
        for register in (_HEARTBEAT, _TIMEOUT):
            if written.get(register, self._holding[register]) != self._holding[register]:
                self._plc_seen_ns = now_ns

    def _take_bits(self, word: int, mask: int) -> None:
        rising = self._commands.write(word, mask)
        if rising & RESULT_ACK and self._shown is not None:
            self._release()
        if rising & CLEAR_LATCHED:
            self._overrun = False
        self._show_next()  # result_ack may have fallen

    # --- results --------------------------------------------------------------------------------------------------

    def _release(self) -> None:
        self._shown = None
        self._show_next()

    def _show_next(self) -> None:
        if self._shown is None and self._ring and not self._commands.level & RESULT_ACK:
            self._shown = self._ring.popleft()

    def _put_result(self, registers: list[int]) -> None:
        if self._shown is None:
            return
        seq, part = self._shown
        registers[10:14] = [*_u32(seq), *_u32(part.part)]
        registers[14] = VERDICTS.index(part.verdict) + 1
        registers[15] = part.class_id if 0 <= part.class_id < NO_CLASS else NO_CLASS
        registers[16] = _scaled(part.score, 10_000)
        registers[17] = _scaled(part.threshold, 10_000)
        registers[18] = NO_TIME if part.verdict_ms is None else _scaled(part.verdict_ms, 10)
        registers[19] = UNKNOWN_SIGNED if part.margin_ms is None else _signed(part.margin_ms, 10)

    # --- the station ----------------------------------------------------------------------------------------------

    def _inputs(self, now_ns: int) -> list[int]:
        self._count_beats(now_ns)
        status = self._status
        registers = [0] * INPUTS
        registers[0:4] = [MAP_VERSION, self._heartbeat, self._status_word(now_ns), self._commands.done]
        registers[4] = STATES.index(status.state) + 1 if status else 0
        registers[5] = self._inspect.recipe_number & 0xFFFF if self._inspect else 0
        registers[6:8] = _u32(self._config_crc32)
        registers[8:10] = [self._fault_code(now_ns), self._code("warn")]
        self._put_result(registers)
        for place, name in enumerate(("triggers", *VERDICTS, "unconfirmed")):
            registers[20 + 2 * place : 22 + 2 * place] = _u32(self._counts.get(name, 0))
        registers[36:38] = _u32(status.counts.get("consecutive_fails", 0) if status else 0)
        registers[38:40] = _u32(len(self._ring) + (self._shown is not None))
        celsius = UNKNOWN_SIGNED if self._temperature_c is None else _signed(self._temperature_c, 10)
        registers[40:44] = [CLOCKS.index(self._quality), celsius, self._throttle_flags & 0xFFFF, int(self._simulated)]
        registers[44:46] = _u32(status.in_flight if status else 0)
        registers[60:65] = [0x1234, 0x1234, 0x5678, *struct.unpack(">HH", struct.pack(">f", 1.5))]
        return registers

    def _status_word(self, now_ns: int) -> int:
        status, alive = self._status, self._alive(now_ns)
        word = 0
        if self._shown is not None:
            word |= RESULT_VALID | 1 << FIRST_VERDICT_BIT + VERDICTS.index(self._shown[1].verdict)
        if status is not None:
            word |= READY if alive and status.state == "running" else 0
            word |= BUSY if status.in_flight else 0
            word |= UNCONFIRMED if any(one.code == "unconfirmed" for one in status.alarms) else 0
        word |= LINE_STOP if status is None or not alive or status.line_stop else 0  # its interlock has fallen
        word |= OVERRUN if self._overrun else 0
        word |= RECIPE_OK if self._inspect is not None and self._inspect.state == "ready" else 0
        word |= WARNING if self._code("warn") else 0
        word |= FAULT if self._fault_code(now_ns) else 0
        return word

    def _fault_code(self, now_ns: int) -> int:
        if not self._alive(now_ns):
            return REJECT_AWAY
        return self._code("fault") or self._code("hold")

    def _code(self, effect: Effect) -> int:
        """The number of the alarm of that effect which stands longest, rejectd's before reportd's own; 0 = none."""
        alarms = self._status.alarms if self._status else ()
        standing = [one for one in alarms if one.code in FAULTS and FAULTS[one.code].effect == effect]
        if standing:
            return FAULTS[min(standing, key=lambda one: one.since_us).code].number
        own = (("plc_lost",) if self._plc_lost else ()) + self._warnings
        return next((FAULTS[code].number for code in own if FAULTS[code].effect == effect), 0)

    def _alive(self, now_ns: int) -> bool:
        return self._status is not None and now_ns - self._status.alive_ns <= ALIVE_NS

    def _count_beats(self, now_ns: int) -> None:
        """One per 100 ms in which rejectd's loop was known to run; never 0 after the first."""
        if self._status is None:
            return
        until_ns = min(now_ns, self._status.alive_ns + ALIVE_NS)
        beats = max(0, (until_ns - self._beat_ns) // BEAT_NS)
        self._beat_ns += beats * BEAT_NS
        self._heartbeat = (self._heartbeat + beats - 1) % 0xFFFF + 1 if self._heartbeat or beats else 0


def _u32(value: int) -> list[int]:
    """High word first."""
    return [value >> 16 & 0xFFFF, value & 0xFFFF]


def _scaled(value: float | None, factor: int) -> int:
    return 0 if value is None else min(max(round(value * factor), 0), 0xFFFF)


def _signed(value: float, factor: int) -> int:
    """Two's complement; saturates one above UNKNOWN_SIGNED."""
    return min(max(round(value * factor), -0x7FFF), 0x7FFF) & 0xFFFF
