"""libgpiod 2's Python module on chips that a test plugs in: the same classes, signatures and errors, real descriptors.

It stands where ``gpiod`` stands (``sys.modules["gpiod"] = fake_gpiod``). Below the library's own names are the chips:
``plug`` one, ``drive`` its lines at a given kernel time, ``unplug`` it. test_gpio.py holds it to the real module.
"""

from __future__ import annotations

import errno
import os
import threading
import warnings
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from pathlib import Path
from select import select
from types import SimpleNamespace

__version__ = "2.5.0"
api_version = "2.3"
_KERNEL_BUFFER, _KERNEL_BUFFER_MOST, _LIBRARY_BUFFER = 16, 1024, 64  # events per line; the kernel's most; libgpiod's own


# --- gpiod.line ------------------------------------------------------------------------------------------


class Value(Enum):
    INACTIVE = 0
    ACTIVE = 1

    def __bool__(self) -> bool:
        return self == self.ACTIVE


class Direction(Enum):
    AS_IS = 1
    INPUT = 2
    OUTPUT = 3


class Bias(Enum):
    AS_IS = 1
    UNKNOWN = 2
    DISABLED = 3
    PULL_UP = 4
    PULL_DOWN = 5


class Drive(Enum):
    PUSH_PULL = 1
    OPEN_DRAIN = 2
    OPEN_SOURCE = 3


class Edge(Enum):
    NONE = 1
    RISING = 2
    FALLING = 3
    BOTH = 4


class Clock(Enum):
    MONOTONIC = 1
    REALTIME = 2
    HTE = 3


line = SimpleNamespace(Value=Value, Direction=Direction, Bias=Bias, Drive=Drive, Edge=Edge, Clock=Clock)


# --- the library's records and errors ----------------------------------------------------------------------


class ChipClosedError(Exception):
    def __init__(self) -> None:
        super().__init__("I/O operation on closed chip")


class RequestReleasedError(Exception):
    def __init__(self) -> None:
        super().__init__("GPIO lines have been released")


@dataclass(frozen=True, repr=False)
class ChipInfo:
    name: str
    label: str
    num_lines: int


@dataclass(repr=False)
class LineSettings:
    direction: Direction = Direction.AS_IS
    edge_detection: Edge = Edge.NONE
    bias: Bias = Bias.AS_IS
    drive: Drive = Drive.PUSH_PULL
    active_low: bool = False
    debounce_period: timedelta = timedelta()
    event_clock: Clock = Clock.MONOTONIC
    output_value: Value = Value.INACTIVE


@dataclass(frozen=True, init=False, repr=False)
class LineInfo:
    offset: int
    name: str
    used: bool
    consumer: str
    direction: Direction
    active_low: bool
    bias: Bias
    drive: Drive
    edge_detection: Edge
    event_clock: Clock
    debounced: bool
    debounce_period: timedelta

    def __init__(
        self,
        offset: int,
        name: str,
        used: bool,
        consumer: str,
        direction: int,
        active_low: bool,
        bias: int,
        drive: int,
        edge_detection: int,
        event_clock: int,
        debounced: bool,
        debounce_period_us: int,
    ) -> None:
        given = {
            "offset": offset, "name": name, "used": used, "consumer": consumer, "direction": Direction(direction),
            "active_low": active_low, "bias": Bias(bias), "drive": Drive(drive), "edge_detection": Edge(edge_detection),
            "event_clock": Clock(event_clock), "debounced": debounced,
            "debounce_period": timedelta(microseconds=debounce_period_us),
        }  # fmt: skip
        for key, value in given.items():
            object.__setattr__(self, key, value)


@dataclass(frozen=True, init=False, repr=False)
class EdgeEvent:
    class Type(Enum):
        RISING_EDGE = 1
        FALLING_EDGE = 2

    event_type: Type
    timestamp_ns: int
    line_offset: int
    global_seqno: int
    line_seqno: int

    def __init__(self, event_type: int, timestamp_ns: int, line_offset: int, global_seqno: int, line_seqno: int) -> None:
        object.__setattr__(self, "event_type", EdgeEvent.Type(event_type))
        object.__setattr__(self, "timestamp_ns", timestamp_ns)
        object.__setattr__(self, "line_offset", line_offset)
        object.__setattr__(self, "global_seqno", global_seqno)
        object.__setattr__(self, "line_seqno", line_seqno)


# --- the library's classes ----------------------------------------------------------------------------------


def is_gpiochip_device(path: str) -> bool:
    return os.path.realpath(path) in _chips


def request_lines(
    path: str,
    config: dict[Iterable[int | str] | int | str, LineSettings | None],
    consumer: str | None = None,
    event_buffer_size: int | None = None,
    output_values: dict[int | str, Value] | None = None,
) -> LineRequest:
    with Chip(path) as chip:
        return chip.request_lines(config, consumer, event_buffer_size, output_values)


class Chip:
    def __init__(self, path: str) -> None:
        chip = _chips.get(os.path.realpath(path))
        if chip is None:
            raise _error(errno.ENODEV if os.path.exists(path) else errno.ENOENT)
        if chip.denied:
            raise _error(errno.EACCES)
        self._chip: FakeChip | None = chip

    def __bool__(self) -> bool:
        return self._chip is not None

    def __enter__(self) -> Chip:
        self._open()
        return self

    def __exit__(self, exc_type, exc_value, traceback) -> None:  # type: ignore[no-untyped-def]
        self.close()

    def close(self) -> None:
        self._chip = None

    def get_info(self) -> ChipInfo:
        chip = self._open()
        return ChipInfo(Path(chip.path).name, chip.label, len(chip.lines))

    def line_offset_from_id(self, id: str | int) -> int:
        chip = self._open()
        if isinstance(id, int):
            offset = id
        else:
            named = [one.offset for one in chip.lines if one.name == id]
            if named:
                return named[0]
            if not id.isdecimal():
                raise _error(errno.ENOENT)
            offset = int(id)
        if offset >= len(chip.lines):
            raise ValueError("line offset of out range")
        return offset

    def get_line_info(self, line: int | str) -> LineInfo:
        return self._open().lines[self.line_offset_from_id(line)].info()

    def request_lines(
        self,
        config: dict[Iterable[int | str] | int | str, LineSettings | None],
        consumer: str | None = None,
        event_buffer_size: int | None = None,
        output_values: dict[int | str, Value] | None = None,
    ) -> LineRequest:
        chip = self._open()
        forced = {self.line_offset_from_id(key): value for key, value in (output_values or {}).items()}
        wanted: dict[int, LineSettings] = {}
        names: dict[str, int] = {}
        for key, settings in _each(config):
            offset = self.line_offset_from_id(key)
            if offset in wanted:
                raise ValueError(f"line must be configured exactly once - offset {offset} repeats")
            wanted[offset] = settings or LineSettings()
            names[key if isinstance(key, str) else chip.lines[offset].name] = offset
        for offset, settings in wanted.items():
            chip.lines[offset].check(settings)
        if any(chip.lines[offset].consumer is not None for offset in wanted):
            raise _error(errno.EBUSY)
        request = LineRequest(chip)
        request._begin(wanted, names, consumer or "?", event_buffer_size, forced)
        return request

    @property
    def path(self) -> str:
        return self._open().path

    def _open(self) -> FakeChip:
        if self._chip is None:
            raise ChipClosedError
        return self._chip


class LineRequest:
    def __init__(self, req: FakeChip) -> None:
        self._chip = req
        self._live = False

    def _begin(
        self, wanted: dict[int, LineSettings], names: dict[str, int], consumer: str, size: int | None, forced: dict[int, Value]
    ) -> None:  # fmt: skip
        self._lines = {offset: self._chip.lines[offset] for offset in wanted}
        self._names = names
        self._events: deque[EdgeEvent] = deque(maxlen=min(size or _KERNEL_BUFFER * len(wanted), _KERNEL_BUFFER_MOST))
        self._at_once = size or _LIBRARY_BUFFER
        self._global_seqno = 0
        self._lock = threading.Lock()
        self._fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._live = True
        for offset, one in self._lines.items():
            one.consumer, one.request, one.seqno = consumer, self, 0
            one.configure(wanted[offset], forced.get(offset))

    def __bool__(self) -> bool:
        return self._live

    def __enter__(self) -> LineRequest:
        self._check()
        return self

    def __exit__(self, exc_type, exc_value, traceback) -> None:  # type: ignore[no-untyped-def]
        self.release()

    def __del__(self) -> None:
        self.release()  # the real one's memory goes with its descriptor, and the kernel frees the line

    def release(self) -> None:
        if not self._live:
            return
        self._live = False
        os.close(self._fd)
        for one in self._lines.values():
            one.free()

    def get_value(self, line: int | str) -> Value:
        return self.get_values([line])[0]

    def get_values(self, lines: Iterable[int | str] | None = None) -> list[Value]:
        self._check()
        wanted = [self._offset(one) for one in lines] if lines else list(self._lines)
        self._kernel(wanted)
        return [Value(self._lines[one].logical()) for one in wanted]

    def set_value(self, line: int | str, value: Value) -> None:
        self.set_values({line: value})

    def set_values(self, values: dict[int | str, Value]) -> None:
        self._check()
        mapped = {self._offset(one): value for one, value in values.items()}
        self._kernel(mapped)
        for offset, value in mapped.items():
            self._lines[offset].put(value)

    def reconfigure_lines(self, config: dict[Iterable[int | str] | int | str, LineSettings | None]) -> None:
        self._check()
        given: dict[int, LineSettings | None] = {}
        for key, settings in _each(config):
            offset = self._names.get(key) if isinstance(key, str) else key
            if offset not in self._lines:
                what = "name" if isinstance(key, str) else "offset"
                warnings.warn(f"Line {what} '{key}' was not included in original request.", stacklevel=2)
            else:
                given[offset] = settings
        self._kernel(given)
        for offset, one in self._lines.items():
            settings = given.get(offset) or LineSettings()
            one.check(settings)
            one.configure(settings, None)

    def wait_edge_events(self, timeout: timedelta | float | None = None) -> bool:
        self._check()
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        return bool(select([self._fd], [], [], seconds)[0])

    def read_edge_events(self, max_events: int | None = None) -> list[EdgeEvent]:
        self._check()
        os.read(self._fd, 8)  # waits, or raises BlockingIOError, as the descriptor was told to
        with self._lock:
            if self._chip.gone:
                os.eventfd_write(self._fd, 1)
                raise _error(errno.ENODEV)
            count = min(max_events or self._at_once, self._at_once, len(self._events))
            taken = [self._events.popleft() for _ in range(count)]
            if self._events:
                os.eventfd_write(self._fd, 1)
        return taken

    def fileno(self) -> int:
        return self.fd

    @property
    def chip_name(self) -> str:
        self._check()
        return Path(self._chip.path).name

    @property
    def num_lines(self) -> int:
        return len(self.offsets)

    @property
    def offsets(self) -> list[int]:
        self._check()
        return list(self._lines)

    @property
    def lines(self) -> list[int | str]:
        self._check()
        return list(self._lines)

    @property
    def fd(self) -> int:
        self._check()
        return self._fd

    def _check(self) -> None:
        if not self._live:
            raise RequestReleasedError

    def _offset(self, line: int | str) -> int:
        if isinstance(line, int):
            return line
        if line not in self._names:
            raise ValueError(f"unknown line name: {line}")
        return self._names[line]

    def _kernel(self, offsets: Iterable[int]) -> None:
        if self._chip.gone:
            raise _error(errno.ENODEV)
        if any(one not in self._lines for one in offsets):
            raise _error(errno.EINVAL)

    def _event(self, one: FakeLine, rising: bool, at_ns: int) -> None:
        with self._lock:
            one.seqno = (one.seqno + 1) & 0xFFFFFFFF
            self._global_seqno += 1
            if not self._events:
                os.eventfd_write(self._fd, 1)
            kind = EdgeEvent.Type.RISING_EDGE if rising else EdgeEvent.Type.FALLING_EDGE
            self._events.append(EdgeEvent(kind.value, at_ns, one.offset, self._global_seqno, one.seqno))

    def _hang_up(self) -> None:
        os.eventfd_write(self._fd, 1)  # the real one polls as hung up, which select calls readable


# --- the chips ------------------------------------------------------------------------------------------------


@dataclass
class FakeLine:
    """One pad. ``outside``: the level something outside puts on it, None for nothing. ``levels``: what it drove."""

    offset: int
    name: str
    outside: int | None = None
    consumer: str | None = None
    request: LineRequest | None = None
    settings: LineSettings = field(default_factory=lambda: LineSettings(direction=Direction.INPUT, bias=Bias.PULL_DOWN))
    levels: list[int] = field(default_factory=list)
    released: int = 0
    seqno: int = 0
    _seen: int = 0
    _since_ns: int | None = None

    def level(self) -> int:
        """Physical."""
        if self.settings.direction is Direction.OUTPUT:
            if self.settings.drive is Drive.OPEN_DRAIN and self.levels[-1]:
                return 1 if self.outside is None else self.outside
            return self.levels[-1]
        if self.outside is not None:
            return self.outside
        return int(self.settings.bias is Bias.PULL_UP)

    def logical(self) -> int:
        level = self._seen if self._debounced() else self.level()
        return level ^ self.settings.active_low

    def check(self, settings: LineSettings) -> None:
        """What the kernel answers with EINVAL."""
        edges = settings.edge_detection is not Edge.NONE
        if edges and settings.direction is Direction.OUTPUT:
            raise _error(errno.EINVAL)
        if settings.debounce_period and settings.direction is not Direction.INPUT:
            raise _error(errno.EINVAL)

    def configure(self, settings: LineSettings, forced: Value | None) -> None:
        direction = self.settings.direction if settings.direction is Direction.AS_IS else settings.direction
        bias = self.settings.bias if settings.bias is Bias.AS_IS else settings.bias
        before = self.level()
        self.settings = LineSettings(**{**vars(settings), "direction": direction, "bias": bias})
        if settings.direction is Direction.OUTPUT:
            self.put(forced or settings.output_value)
        elif direction is Direction.OUTPUT:
            self.levels.append(before)
        self._seen, self._since_ns = self.level(), None

    def put(self, value: Value) -> None:
        if self.settings.direction is not Direction.OUTPUT:
            raise _error(errno.EPERM)
        self.levels.append(value.value ^ self.settings.active_low)

    def drive(self, level: int | None, at_ns: int) -> None:
        """Something outside puts a level on the pad (None: lets go) at a kernel time."""
        self.settle(at_ns)
        before, self.outside = self.level(), level
        if self.level() == before:
            return
        if self._debounced():
            self._since_ns = at_ns
        else:
            self._tell(at_ns)

    def settle(self, at_ns: int) -> None:
        """The debouncer's work at ``at_ns``: a level that stood still for the period counts, stamped at its end."""
        if self._since_ns is None:
            return
        due_ns = self._since_ns + round(self.settings.debounce_period.total_seconds() * 1e9)
        if at_ns >= due_ns:
            self._since_ns = None
            if self.level() != self._seen:
                self._tell(due_ns)

    def free(self) -> None:
        self.consumer, self.request = None, None
        self.released += 1

    def info(self) -> LineInfo:
        used, period = self.settings, self.settings.debounce_period
        return LineInfo(
            self.offset, self.name, self.consumer is not None, self.consumer or "", used.direction.value, used.active_low,
            used.bias.value, used.drive.value, used.edge_detection.value, used.event_clock.value, bool(period),
            round(period.total_seconds() * 1e6),
        )  # fmt: skip

    def _debounced(self) -> bool:
        return bool(self.settings.debounce_period)

    def _tell(self, at_ns: int) -> None:
        self._seen = self.level()
        rising = bool(self.level() ^ self.settings.active_low)
        wanted = {Edge.BOTH: True, Edge.RISING: rising, Edge.FALLING: not rising, Edge.NONE: False}
        if self.request and wanted[self.settings.edge_detection]:
            self.request._event(self, rising, at_ns)


class FakeChip:
    """A chip at a path of the test's own folder."""

    def __init__(self, path: Path, label: str, names: Iterable[str]) -> None:
        self.path, self.label, self.denied, self.gone = str(path), label, False, False
        self.lines = [FakeLine(offset, name) for offset, name in enumerate(names)]

    def __getitem__(self, name: str) -> FakeLine:
        (found,) = [one for one in self.lines if one.name == name]
        return found


_chips: dict[str, FakeChip] = {}


def plug(path: Path, label: str, names: Iterable[str]) -> FakeChip:
    """A chip appears at ``path``."""
    path = path.resolve()
    path.touch()
    _chips[str(path)] = FakeChip(path, label, names)
    return _chips[str(path)]


def unplug(chip: FakeChip) -> None:
    """The chip is gone: its node too, and each request on it is dead but still open."""
    Path(chip.path).unlink()
    del _chips[chip.path]
    chip.gone = True
    for one in chip.lines:
        if one.request:
            one.request._hang_up()


def unplug_all() -> None:
    for chip in list(_chips.values()):
        unplug(chip)


def _each(
    config: dict[Iterable[int | str] | int | str, LineSettings | None],
) -> Iterable[tuple[int | str, LineSettings | None]]:
    for key, settings in config.items():
        for one in [key] if isinstance(key, (int, str)) else key:
            yield one, settings


def _error(number: int) -> Exception:
    """The exception that libgpiod's bindings make of an errno (bindings/python/gpiod/ext/common.c)."""
    kinds = {errno.EINVAL: ValueError, errno.EOPNOTSUPP: NotImplementedError}
    return kinds.get(number, OSError)(number, os.strerror(number))
