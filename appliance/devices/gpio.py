"""GPIO lines through libgpiod v2: a gpiozero pin factory, and the requests that GpioInput and GpioOutput are built on.

gpiozero's own factories refuse all but a Raspberry Pi. With this one its devices run on a Jetson:
``LED("PQ.05", pin_factory=GpiodFactory())``, or GPIOZERO_PIN_FACTORY=gpiod where the package is installed.

A line is named by its kernel name (``PQ.05``) or as ``chip-label/offset`` (``tegra234-gpio/105``), never by a chip
number: those shift between kernels. Lines that were requested stay held while the factory lives: build one a process
and keep it. On Tegra a line given back floats or returns to another function (JetPack 6.2.1: 3.3 V at the pad).

What no software sees: a pad that the pinmux has not made a GPIO takes every request and reads back what was written,
with nothing at the connector; and Tegra's driver ignores ``bias``, so a pull belongs into the pinmux or the wiring.
"""

from __future__ import annotations

import difflib
import errno
import logging
import os
import select
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any, Protocol
from weakref import WeakMethod, ref

from gpiozero import (
    BadPinFactory,
    BoardInfo,
    Factory,
    HeaderInfo,
    Pin,
    PinError,
    PinFixedPull,
    PinInfo,
    PinInvalidBounce,
    PinInvalidEdges,
    PinInvalidFunction,
    PinInvalidPin,
    PinInvalidPull,
    PinInvalidState,
    PinSetInput,
)
from gpiozero.compat import frozendict

from appliance.clock import now_ns

log = logging.getLogger("appliance.gpio")

# Edges the kernel keeps for a reader that is late; the oldest is dropped then, and line_seqno shows it. A photo-eye at
# 1000 parts a minute makes 33 edges a second: seven seconds. The kernel's own default is 16.
EVENT_BUFFER = 256
_CONSUMER_BYTES = 31  # GPIO_MAX_NAME_SIZE of the kernel, without its zero

_BIAS = {"": "AS_IS", "none": "DISABLED", "pull-up": "PULL_UP", "pull-down": "PULL_DOWN"}
_DRIVE = {"push-pull": "PUSH_PULL", "open-drain": "OPEN_DRAIN"}
_PULL = {"floating": "DISABLED", "up": "PULL_UP", "down": "PULL_DOWN"}
_EDGES = {"none": "NONE", "rising": "RISING", "falling": "FALLING", "both": "BOTH"}


class LineRefused(PinError, OSError):
    """A line cannot be had; the text says which, why, and what to do."""


class LineUnknown(LineRefused, PinInvalidPin):
    """No chip has a line of that name."""


class LineAddress(Protocol):
    """``gpio://NAME?active=…&bias=…&drive=…``, read and checked by the configuration."""

    @property
    def name(self) -> str: ...

    def option(self, key: str, default: str = "") -> str: ...


@dataclass(frozen=True)
class Line:
    """One line as a scan found it. ``name`` is empty where the kernel has none."""

    path: str
    label: str
    offset: int
    name: str

    @property
    def place(self) -> str:
        return f"{self.label}/{self.offset}"

    def __str__(self) -> str:
        return f"{self.name} ({self.place})" if self.name else self.place


@dataclass(frozen=True, eq=False)
class HeldLine:
    """A requested line. ``active``, ``inactive``, ``rising`` are the library's own words, looked up once."""

    line: Line
    request: Any
    active: Any
    inactive: Any
    rising: Any

    @property
    def offset(self) -> int:
        return self.line.offset


def load_gpiod() -> ModuleType:
    """libgpiod's Python module, version 2. Raises BadPinFactory (an ImportError) with what to do.

    Imported only here: which module answers to ``gpiod`` is known when it is asked.
    """
    try:
        import gpiod as module
    except ImportError as why:
        raise BadPinFactory(f"libgpiod's Python module is missing ({why}): pip install gpiod into this environment") from why
    if not hasattr(module, "request_lines"):
        raise BadPinFactory(
            f"the module gpiod at {getattr(module, '__file__', None) or 'an unknown place'} is libgpiod 1.x, as the "
            "distribution's python3-libgpiod brings it, and has no request_lines: pip install gpiod (2.x) into this "
            "environment, where it stands before the distribution's, or remove python3-libgpiod"
        )
    return module


class GpiodFactory(Factory):
    """All GPIO lines of this machine. Opens nothing until a line is asked for.

    ``gpiod``: the library, found if None (raises BadPinFactory); ``folder``: where the ``gpiochip*`` devices stand."""

    def __init__(self, gpiod: Any = None, folder: Path = Path("/dev")) -> None:
        super().__init__()
        self._gpiod = load_gpiod() if gpiod is None else gpiod
        self._folder = folder
        self._lines: list[Line] = []
        self._closed_chips: list[tuple[str, OSError]] = []
        self._board: BoardInfo | None = None
        self._pins: dict[Line, GpiodPin] = {}
        self._held: list[HeldLine] = []
        self._reader = EdgeReader()

    # --- lines for the appliance ----------------------------------------------------------------------------

    def open_input(self, address: LineAddress, debounce_ms: float, consumer: str) -> HeldLine:
        """Both edges, stamped in CLOCK_MONOTONIC; ``read_edge_events`` raises BlockingIOError when there are none.

        ``debounce_ms`` 0: none. The kernel stamps a debounced edge when the level has stood still that long, so each
        stamp is late by as much; a Tegra's chips take 255 ms at most. Raises LineRefused."""
        words = self._gpiod.line
        settings = self._gpiod.LineSettings(
            direction=words.Direction.INPUT,
            edge_detection=words.Edge.BOTH,
            bias=getattr(words.Bias, _BIAS[address.option("bias")]),
            active_low=address.option("active") == "low",
            debounce_period=timedelta(milliseconds=debounce_ms),
            event_clock=words.Clock.MONOTONIC,
        )
        return self.request(self.find(address.name), settings, consumer)

    def open_output(self, address: LineAddress, start: bool, consumer: str) -> HeldLine:
        """The line drives ``start`` (logical) from its first moment as an output. Raises LineRefused."""
        words = self._gpiod.line
        settings = self._gpiod.LineSettings(
            direction=words.Direction.OUTPUT,
            bias=getattr(words.Bias, _BIAS[address.option("bias")]),
            drive=getattr(words.Drive, _DRIVE[address.option("drive", "push-pull")]),
            active_low=address.option("active") == "low",
            output_value=words.Value.ACTIVE if start else words.Value.INACTIVE,
        )
        return self.request(self.find(address.name), settings, consumer)

    def request(self, line: Line, settings: Any, consumer: str) -> HeldLine:
        """Take a line and hold it. Raises LineRefused: in use (by whom), no permission, settings not taken, gone."""
        try:
            with self._gpiod.Chip(line.path) as chip:
                if chip.get_info().label != line.label:
                    self._lines = []
                    raise LineRefused(f"line {line}: its chip is gone and {line.path} is another one now; try again")
                request = self._request(chip, line, settings, f"appliance {consumer}"[:_CONSUMER_BYTES])
        except LineRefused:
            raise
        except PermissionError as why:
            raise LineRefused(_no_permission(f"line {line}", line.path)) from why
        except OSError as why:
            self._lines = []
            raise LineRefused(f"line {line}: its chip {line.path} cannot be opened ({why.strerror})") from why
        os.set_blocking(request.fd, False)  # or reading an empty buffer waits
        words = self._gpiod.line.Value
        held = HeldLine(line, request, words.ACTIVE, words.INACTIVE, self._gpiod.EdgeEvent.Type.RISING_EDGE)
        self._held.append(held)
        return held

    def _request(self, chip: Any, line: Line, settings: Any, consumer: str) -> Any:
        try:
            return chip.request_lines({line.offset: settings}, consumer=consumer, event_buffer_size=EVENT_BUFFER)
        except (ValueError, NotImplementedError) as why:
            raise LineRefused(_not_taken(line, settings, why)) from why
        except OSError as why:
            if why.errno == errno.EBUSY:
                user = chip.get_line_info(line.offset).consumer or "the kernel"
                raise LineRefused(f"line {line} is in use by {user}; stop that, or choose another line") from why
            raise LineRefused(_not_taken(line, settings, why)) from why

    def release(self, held: HeldLine) -> None:
        """Give a line back: an input that is closed, or a line whose chip is gone. An output would float."""
        if held in self._held:
            self._held.remove(held)
            held.request.release()

    # --- finding lines --------------------------------------------------------------------------------------

    def find(self, name: str | int) -> Line:
        """The one line of that name. Raises LineUnknown, LineRefused."""
        if not isinstance(name, str):
            raise LineUnknown(f"{name!r} names no line; write a kernel line name such as PQ.05, or chip-label/offset")
        found = self._matching(name)
        if not found:
            self._scan()
            found = self._matching(name)
        if not found:
            raise self._unknown(name)
        if len(found) > 1:
            places = " and ".join(f"{line.place} at {line.path}" for line in found)
            raise LineRefused(f"line name {name} is ambiguous: {places} both answer to it; write what only one answers to")
        return found[0]

    def _matching(self, name: str) -> list[Line]:
        return [line for line in self._lines if line.name == name] or [line for line in self._lines if line.place == name]

    def _scan(self) -> None:
        self._lines, self._closed_chips, self._board = [], [], None
        for path in sorted({str(one.resolve()) for one in self._folder.glob("gpiochip*")}):
            if not self._gpiod.is_gpiochip_device(path):
                continue
            try:
                with self._gpiod.Chip(path) as chip:
                    info = chip.get_info()
                    offsets = range(info.num_lines)
                    self._lines += [Line(path, info.label, one, chip.get_line_info(one).name or "") for one in offsets]
            except OSError as why:
                self._closed_chips.append((path, why))

    def _unknown(self, name: str) -> LineRefused:
        denied = [path for path, why in self._closed_chips if isinstance(why, PermissionError)]
        if denied:
            return LineRefused(_no_permission(f"line {name} was looked for", ", ".join(denied)))
        broken = "".join(f"; {path} cannot be opened ({why.strerror})" for path, why in self._closed_chips)
        labels = sorted({line.label for line in self._lines})
        if not labels:
            return LineUnknown(f"there is no line {name}: no GPIO chip at {self._folder}/gpiochip*{broken}")
        names = sorted({one for line in self._lines for one in (line.name, line.place) if one})
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else "`gpioinfo` lists the names"
        return LineUnknown(f"there is no line {name} on {', '.join(labels)}{broken}; {hint}")

    # --- gpiozero's side ------------------------------------------------------------------------------------

    def pin(self, name: str | int) -> GpiodPin:
        """The same object for the same line, whichever of its names is used. Raises LineUnknown, LineRefused."""
        line = self.find(name)
        if line not in self._pins:
            self._pins[line] = GpiodPin(self, line, _pin_info(line, self._lines))
        return self._pins[line]

    def ticks(self) -> int:
        """Monotonic nanoseconds, the clock of the kernel's edge stamps."""
        return now_ns()

    def ticks_diff(self, later: int, earlier: int) -> float:
        """Seconds."""
        return (later - earlier) / 1e9

    def close(self) -> None:
        """Pins go back to their levels at opening, and are told no more edges; lines stay held."""
        for pin in self._pins.values():
            pin.close()
        self._reader.close()

    def _get_board_info(self) -> BoardInfo:
        if self._board is None:
            if not self._lines:
                self._scan()
            self._board = _board_info(self._lines)
        return self._board

    def settings(self, **given: Any) -> Any:
        """LineSettings by the library's own words: ``direction="INPUT"``."""
        words = self._gpiod.line
        kinds = {"direction": words.Direction, "bias": words.Bias, "edge_detection": words.Edge, "output_value": words.Value}
        named = {key: getattr(kinds[key], value) if key in kinds else value for key, value in given.items()}
        return self._gpiod.LineSettings(event_clock=words.Clock.MONOTONIC, **named)

    def drives(self, line: Line) -> bool:
        """Is the line an output now, whoever made it one? Raises LineRefused."""
        try:
            with self._gpiod.Chip(line.path) as chip:
                return bool(chip.get_line_info(line.offset).direction == self._gpiod.line.Direction.OUTPUT)
        except OSError as why:
            raise LineRefused(f"line {line}: its chip {line.path} cannot be opened ({why.strerror})") from why

    @property
    def reader(self) -> EdgeReader:
        return self._reader


class GpiodPin(Pin):
    """One line as gpiozero sees it: physical levels, 0 low and 1 high. ``lost_edges`` counts gaps in line_seqno.

    The line is requested when its function is first set, and held from then on."""

    def __init__(self, factory: GpiodFactory, line: Line, info: PinInfo) -> None:
        super().__init__()
        self._factory, self.line, self._info = factory, line, info
        self._held: HeldLine | None = None
        self._function = "output" if factory.drives(line) else "input"
        self._pull, self._edges = "floating", "both"
        self._bounce: float | None = None
        self._resting: bool | None = None
        self._handler: Any = None  # weak, as gpiozero's devices expect: a strong one would keep a dropped device alive
        self._lock = threading.RLock()
        self._seqno = 0
        self.lost_edges = 0

    def __repr__(self) -> str:
        return str(self._info.name)

    def close(self) -> None:
        """No more edges; an output goes to the level it was opened with. The line stays held, or it would float."""
        try:
            self.when_changed = None
            if self._held and self._function == "output" and self._resting is not None:
                self.state = self._resting
        except OSError as why:
            log.warning("line %s stays as it is: %s", self.line, why)

    def output_with_state(self, state: float) -> None:
        """An output whose first level is ``state``. Raises PinInvalidState, LineRefused."""
        self._resting = _level(state)
        self._function = "output"
        self._apply(self._factory.settings(direction="OUTPUT", output_value=_VALUES[self._resting]))

    def input_with_pull(self, pull: str) -> None:
        """Raises PinInvalidPull, LineRefused."""
        self._pull = _known(pull, _PULL, PinInvalidPull, "pull")
        self._function = "input"
        self._apply_input()

    def _get_info(self) -> PinInfo:
        return self._info

    def _get_function(self) -> str:
        return self._function

    def _set_function(self, value: str) -> None:
        if value not in ("input", "output"):
            raise PinInvalidFunction(f"a GPIO line is input or output, not {value!r}")
        if value == "input":
            self._function = value
            self._apply_input()
            return
        if self._held is None:
            self._apply(self._factory.settings(direction="AS_IS"))
        self.output_with_state(self._get_state())  # in whatever level it is found

    def _get_state(self) -> int:
        if self._held is None:
            self._apply(self._factory.settings(direction="AS_IS"))
        assert self._held
        return int(self._held.request.get_value(self._held.offset) is self._held.active)

    def _set_state(self, value: float) -> None:
        if self._function != "output" or self._held is None:
            raise PinSetInput(f"line {self.line} is no output")
        held = self._held
        held.request.set_value(held.offset, held.active if _level(value) else held.inactive)

    def _get_pull(self) -> str:
        return self._pull

    def _set_pull(self, value: str) -> None:
        if self._function != "input":
            raise PinFixedPull(f"line {self.line} is an output and takes no pull")
        self.input_with_pull(value)

    def _get_bounce(self) -> float | None:
        return self._bounce

    def _set_bounce(self, value: float | None) -> None:
        """Seconds; the kernel debounces."""
        if value is not None and not (isinstance(value, (int, float)) and value >= 0):
            raise PinInvalidBounce(f"bounce is None or seconds, not {value!r}")
        self._bounce = value
        self._apply_input()

    def _get_edges(self) -> str:
        return self._edges

    def _set_edges(self, value: str) -> None:
        self._edges = _known(value, _EDGES, PinInvalidEdges, "edges")
        self._apply_input()

    def _get_when_changed(self) -> Any:
        return self._handler and self._handler()

    def _set_when_changed(self, value: Any) -> None:
        with self._lock:
            before = self._handler
            if value is None:
                self._handler = None
            else:
                self._handler = WeakMethod(value) if isinstance(value, MethodType) else ref(value)
            if (before is None) != (value is None):
                self._apply_input()

    def _apply_input(self) -> None:
        if self._function != "input":
            return
        self._apply(
            self._factory.settings(
                direction="INPUT",
                bias=_PULL[self._pull],
                edge_detection=_EDGES[self._edges] if self._handler else "NONE",
                debounce_period=timedelta(seconds=self._bounce or 0),
            )
        )

    def _apply(self, settings: Any) -> None:
        """Raises LineRefused."""
        with self._lock:
            if self._held is None:
                self._held = self._factory.request(self.line, settings, "gpiozero")
            else:
                self._reconfigure(self._held, settings)
            fd, reader = self._held.request.fd, self._factory.reader
            if self._function != "input" or not self._handler:
                reader.unwatch(fd)
            elif not reader.watches(fd):
                self.take_edges(EVENT_BUFFER)  # what an earlier device left in the buffer is not this one's
                reader.watch(fd, self)

    def _reconfigure(self, held: HeldLine, settings: Any) -> None:
        try:
            held.request.reconfigure_lines({held.offset: settings})
        except (ValueError, NotImplementedError, OSError) as why:
            raise LineRefused(_not_taken(self.line, settings, why)) from why

    def take_edges(self, most: int) -> list[Any]:
        """The oldest edges the kernel has. Raises OSError when the chip is gone."""
        held = self._held
        if held is None:
            return []
        try:
            events: list[Any] = held.request.read_edge_events(most)
        except BlockingIOError:
            return []
        for event in events:
            self.lost_edges += (event.line_seqno - self._seqno - 1) & 0xFFFFFFFF
            self._seqno = event.line_seqno
        return events

    def tell(self, events: list[Any]) -> None:
        """Call the handler with the kernel's stamp (ticks) and the level after each edge."""
        for event in events:
            handler = self.when_changed
            if handler is None:  # its device was dropped
                self.when_changed = None
                return
            assert self._held
            handler(event.timestamp_ns, int(event.event_type is self._held.rising))


class EdgeReader:
    """The one thread that tells gpiozero's devices of their edges; it starts with the first that listens."""

    def __init__(self) -> None:
        self._pins: dict[int, GpiodPin] = {}
        self._epoll: select.epoll | None = None
        self._wake = -1
        self._thread: threading.Thread | None = None
        self._stopping = False

    def watch(self, fd: int, pin: GpiodPin) -> None:
        if self._epoll is None:
            self._epoll, self._wake, self._stopping = select.epoll(), os.eventfd(0, os.EFD_CLOEXEC), False
            self._epoll.register(self._wake, select.EPOLLIN)
            self._start()
        self._pins[fd] = pin
        self._epoll.register(fd, select.EPOLLIN)

    def watches(self, fd: int) -> bool:
        return fd in self._pins

    def unwatch(self, fd: int) -> None:
        if self._pins.pop(fd, None) and self._epoll:
            self._epoll.unregister(fd)

    def turn(self) -> None:
        """Wait for edges, tell them."""
        assert self._epoll
        for fd, _ in self._epoll.poll():
            pin = self._pins.get(fd)
            if pin is None:
                continue
            try:
                events = pin.take_edges(1)  # a handler that raises takes no other edge with it
            except OSError as why:
                self.unwatch(fd)
                log.error("line %s gives no more edges: %s", pin.line, why)
                continue
            pin.tell(events)

    def close(self) -> None:
        """Ends and joins the thread; a later ``watch`` starts another."""
        if self._epoll is None:
            return
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()
        self._epoll.close()
        os.close(self._wake)
        self._epoll, self._thread = None, None
        self._pins.clear()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="gpio edges", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self.turn()
        finally:
            # A handler raised: threading.excepthook shows it, and the other pins' edges go on in a new thread.
            if not self._stopping:
                self._start()


_VALUES = {False: "INACTIVE", True: "ACTIVE"}


def _level(state: float) -> bool:
    if state not in (0, 1):
        raise PinInvalidState(f"a GPIO line is 0 or 1, not {state!r}")
    return bool(state)


def _known(value: str, words: dict[str, str], error: type[PinError], what: str) -> str:
    if value not in words:
        raise error(f"{what} is one of {', '.join(words)}, not {value!r}")
    return value


def _not_taken(line: Line, settings: Any, why: Exception) -> str:
    """libgpiod raises EINVAL as ValueError and EOPNOTSUPP as NotImplementedError, the reason last."""
    asked = f"{settings.direction.name}, bias {settings.bias.name}, drive {settings.drive.name}"
    debounce_ms = settings.debounce_period / timedelta(milliseconds=1)
    asked += f", debounce {debounce_ms:g} ms" if debounce_ms else ""
    return f"line {line}: its chip does not take what was asked for ({asked}): {why.args[-1]}"


def _no_permission(what: str, where: str) -> str:
    return (
        f"{what}: no permission to open {where}; give the device to the group gpio by a udev rule "
        '(SUBSYSTEM=="gpio", GROUP="gpio", MODE="0660") and run this as a member of that group'
    )


def _pin_info(line: Line, lines: list[Line]) -> PinInfo:
    """Names that another line also answers to are left out. Hashable, because gpiozero keeps reservations by it."""
    names = [one for one in (line.name, line.place) if one and sum(one in (other.name, other.place) for other in lines) == 1]
    name = names[0] if names else line.place
    interfaces = frozendict({"gpio": name})
    return PinInfo(line.offset + 1, name, frozenset(names), "", line.offset + 1, 1, interfaces)


def _board_info(lines: list[Line]) -> BoardInfo:
    """Each chip is a header, each line a pin of it (numbered from 1). What a chip cannot know is empty or 0."""
    headers = {}
    for path in dict.fromkeys(line.path for line in lines):
        own = [line for line in lines if line.path == path]
        name = own[0].label if own[0].label not in headers else f"{own[0].label} at {path}"
        pins = frozendict({line.offset + 1: _pin_info(line, lines) for line in own})
        headers[name] = HeaderInfo(name, len(own), 1, pins)
    return BoardInfo(
        revision="", model="libgpiod", pcb_revision="", released="", soc=", ".join(headers), manufacturer="", memory=0,
        storage="", usb=0, usb3=0, ethernet=0, eth_speed=0, wifi=False, bluetooth=False, csi=0, dsi=0,
        headers=frozendict(headers), board="",
    )  # fmt: skip
