"""One rig for each kind of line: opens it, sees or turns what is behind it, takes the far side away, brings it back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from appliance.clock import SystemClock
from appliance.config.addresses import LINE, Address, parse
from appliance.devices.gpio import GpiodFactory
from appliance.devices.input_gpio import GpioInput
from appliance.devices.input_modbus import ModbusInput
from appliance.devices.input_twin import TwinInput
from appliance.devices.modbus_io import ModbusIo
from appliance.devices.output_gpio import GpioOutput
from appliance.devices.output_modbus import ModbusOutput
from appliance.devices.output_twin import TwinOutput
from appliance.ports import Input, InputLost, Output
from tests.contracts.coupler import Coupler
from tests.contracts.fake_twin import FakeTwin
from tests.contracts.mock_io import MockInput, MockOutput
from tests.devices import fake_gpiod

CLOCK = SystemClock()
WATCHDOG_MS = 500
_Found = TypeVar("_Found")


def until(condition: Callable[[], _Found], within_s: float = 10.0) -> _Found:
    """What ``condition`` returns as soon as it is something; fails after ``within_s``."""
    end, pause = time.monotonic() + within_s, threading.Event()
    while not (found := condition()):
        assert time.monotonic() < end, f"not within {within_s} s"
        pause.wait(0.005)
    return found


class Rig(Protocol):
    """The far side of one output and one input. ``word`` stands in every complaint about them."""

    word: str

    def output(self, start: bool, failure: bool) -> Output: ...

    def wait_level(self, level: bool) -> int:
        """The instant at which the pin took ``level``."""
        ...

    def input(self) -> Input:
        """Raises InputLost."""
        ...

    def turn(self, level: bool) -> int:
        """The instant at which the contact changed."""
        ...

    def lose(self, how: str) -> None: ...

    def restore(self) -> None: ...

    def close(self) -> None: ...


class MockRig:
    """Nothing behind it."""

    word = "mock"

    def __init__(self, folder: Path) -> None:
        self._level = self._cut = False
        self._output: MockOutput | None = None
        self._input: MockInput | None = None

    def output(self, start: bool, failure: bool) -> Output:
        self._output = MockOutput("gate", start, failure, 1000, CLOCK)
        return self._output

    def wait_level(self, level: bool) -> int:
        assert self._output and self._output.moves[-1][1] == level
        return self._output.moves[-1][0]

    def input(self) -> Input:
        if self._cut:
            raise InputLost("mock input eye was cut off by the test")
        self._input = MockInput("eye", self._level, CLOCK)
        return self._input

    def turn(self, level: bool) -> int:
        self._level = level
        return self._input.turn(level) if self._input else CLOCK.now_ns()

    def lose(self, how: str) -> None:
        self._put(True)

    def restore(self) -> None:
        self._put(False)

    def close(self) -> None:
        pass

    def _put(self, cut: bool) -> None:
        self._cut = cut
        for line in (self._output, self._input):
            if line:
                line.cut = cut


class TwinRig:
    """A listener where the twin would be."""

    word = "twin"

    def __init__(self, folder: Path) -> None:
        self._path = folder / "twin.sock"
        self._twin = FakeTwin(self._path)

    def output(self, start: bool, failure: bool) -> Output:
        return TwinOutput("gate", self._path, "gate", start, failure, 1000, CLOCK)

    def wait_level(self, level: bool) -> int:
        return self._twin.wait_level("gate", level)

    def input(self) -> Input:
        return TwinInput("eye", self._path, "eye")

    def turn(self, level: bool) -> int:
        return self._twin.turn("eye", level)

    def lose(self, how: str) -> None:
        self._twin.stop()

    def restore(self) -> None:
        self._twin.start()

    def close(self) -> None:
        self._twin.stop()


class ModbusRig:
    """A coupler in a process of its own, and the process that talks to it. Coil 2 is the output, discrete 5 the input."""

    def __init__(self, folder: Path, watchdog_ms: int = WATCHDOG_MS) -> None:
        self.coupler = Coupler(watchdog_ms)
        self._watchdog_ms, self._port = watchdog_ms, self.coupler.port
        self.word = f"127.0.0.1:{self._port}"
        self.process = ModbusIo(self.word, CLOCK)

    def address(self, place: str) -> Address:
        return parse(f"modbus://{self.word}/{place}?unit=1&watchdog_ms={self._watchdog_ms}", "digital line", LINE)

    def output(self, start: bool, failure: bool) -> ModbusOutput:
        return ModbusOutput("gate", self.address("coil/2"), start, failure, 1000, CLOCK, self.process)

    def wait_level(self, level: bool) -> int:
        return self.coupler.wait_coil(2, level)

    def input(self) -> ModbusInput:
        return ModbusInput("eye", self.address("discrete/5"), self.process)

    def turn(self, level: bool) -> int:
        return self.coupler.contact(5, level)

    def lose(self, how: str) -> None:
        if how == "unplugged":
            self.coupler.kill()
        elif how in ("killed", "hung"):
            pid = until(lambda: self.process.pid)
            os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        else:
            self.coupler.mode(how)
        self._how = how

    def restore(self) -> None:
        if self._how == "unplugged":
            self.coupler = Coupler(self._watchdog_ms, self._port)
        elif self._how == "hung":
            os.kill(until(lambda: self.process.pid), signal.SIGCONT)
        elif self._how != "killed":
            self.coupler.mode("normal")

    def close(self) -> None:
        if getattr(self, "_how", "") == "hung" and self.process.pid:
            os.kill(self.process.pid, signal.SIGCONT)
        assert self.process.close(timeout_s=5.0), "the process did not end"
        self.coupler.kill()


class GpioRig:
    """A pad of the stand-in of libgpiod: PZ.05 is the output, PQ.05 the input."""

    word = "tegra234-gpio"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._outside = 0
        self._plug()
        self._factory = GpiodFactory(fake_gpiod, folder)

    def _plug(self) -> None:
        self._chip = fake_gpiod.plug(self._folder / "gpiochip0", self.word, ["PQ.05", "PZ.05"])
        self._chip["PQ.05"].outside = self._outside

    def output(self, start: bool, failure: bool) -> Output:
        return GpioOutput("gate", parse("gpio://PZ.05", "digital line", LINE), start, failure, 1000, CLOCK, self._factory)

    def wait_level(self, level: bool) -> int:
        assert self._chip["PZ.05"].levels[-1] == level
        return CLOCK.now_ns()

    def input(self) -> Input:
        return GpioInput("eye", parse("gpio://PQ.05", "digital line", LINE), 0, self._factory)

    def turn(self, level: bool) -> int:
        self._outside = int(level)
        at_ns = CLOCK.now_ns()
        self._chip["PQ.05"].drive(self._outside, at_ns)
        return at_ns

    def lose(self, how: str) -> None:
        fake_gpiod.unplug(self._chip)

    def restore(self) -> None:
        self._plug()

    def close(self) -> None:
        self._factory.close()
        fake_gpiod.unplug_all()


RIGS = {"mock": MockRig, "twin": TwinRig, "modbus": ModbusRig, "gpio": GpioRig}
