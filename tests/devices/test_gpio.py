"""GPIO on a behaving stand-in of libgpiod 2: finding lines, edges, levels, gpiozero's devices, and every refusal."""

from __future__ import annotations

import errno
import gc
import inspect
import queue
import re
import select
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import gpiozero
import pytest

from appliance.clock import VirtualClock, now_ns
from appliance.config.addresses import LINE, Address, parse
from appliance.devices.gpio import EVENT_BUFFER, GpiodFactory, LineRefused, LineUnknown, load_gpiod
from appliance.devices.input_gpio import GpioInput
from appliance.devices.output_gpio import GpioOutput
from appliance.messages import Edge
from appliance.ports import InputLost, OutputLost
from tests.devices import fake_gpiod
from tests.devices.fake_gpiod import FakeChip, line

WAIT_S = 10.0  # a deadline for another thread, never a pause
MS = 1_000_000


@pytest.fixture
def main_chip(tmp_path: Path) -> Iterator[FakeChip]:
    yield fake_gpiod.plug(tmp_path / "gpiochip0", "tegra234-gpio", ["PQ.04", "PQ.05", "PQ.06", "PZ.05", ""])
    fake_gpiod.unplug_all()
    gc.collect()


@pytest.fixture
def factory(main_chip: FakeChip, tmp_path: Path) -> Iterator[GpiodFactory]:
    made = GpiodFactory(fake_gpiod, tmp_path)
    yield made
    made.close()


def address(text: str) -> Address:
    return parse(f"gpio://{text}", "digital line", LINE)


def an_input(factory: GpiodFactory, text: str = "PQ.05", debounce_ms: float = 0) -> GpioInput:
    return GpioInput("trigger", address(text), debounce_ms, factory)


def an_output(factory: GpiodFactory, text: str = "PZ.05", start: bool = False, failure: bool = False) -> GpioOutput:
    return GpioOutput("gate", address(text), start, failure, None, VirtualClock(5_000), factory)


# --- finding lines ----------------------------------------------------------------------------------------


def test_a_line_is_found_by_name_and_by_label_and_offset_wherever_its_chip_stands(tmp_path: Path, main_chip: FakeChip) -> None:
    fake_gpiod.plug(tmp_path / "gpiochip3", "tegra234-gpio-aon", ["PAA.00", "PBB.01"])
    factory = GpiodFactory(fake_gpiod, tmp_path)
    assert factory.find("PBB.01") == factory.find("tegra234-gpio-aon/1")
    assert factory.find("PBB.01").path == str(tmp_path / "gpiochip3")
    assert factory.find("tegra234-gpio/4").name == ""


def test_a_chip_that_comes_later_is_found(factory: GpiodFactory, tmp_path: Path) -> None:
    with pytest.raises(LineUnknown, match="no line X1 on tegra234-gpio;"):
        factory.find("X1")
    fake_gpiod.plug(tmp_path / "gpiochip9", "expander", ["X0", "X1"])
    assert factory.find("X1").place == "expander/1"


def test_an_unknown_line_is_refused_with_the_likely_spelling(factory: GpiodFactory) -> None:
    with pytest.raises(LineUnknown, match=r"there is no line PZ.5 on tegra234-gpio; did you mean PZ.05\?"):
        factory.pin("PZ.5")
    assert issubclass(LineUnknown, gpiozero.PinInvalidPin)


@pytest.mark.parametrize("number", [5, "105", "gpiochip0/1", "tegra234-gpio/99"])
def test_numbers_of_chips_and_lines_are_no_names(factory: GpiodFactory, number: Any) -> None:
    with pytest.raises(LineUnknown):
        factory.find(number)


def test_a_machine_without_chips_says_so(tmp_path: Path) -> None:
    with pytest.raises(LineUnknown, match=f"no GPIO chip at {tmp_path}/gpiochip"):
        GpiodFactory(fake_gpiod, tmp_path).find("PQ.05")


def test_a_name_on_two_chips_is_ambiguous_and_the_offset_is_not(factory: GpiodFactory, tmp_path: Path) -> None:
    fake_gpiod.plug(tmp_path / "gpiochip1", "expander", ["PQ.05"])
    with pytest.raises(LineRefused, match="PQ.05 is ambiguous: tegra234-gpio/1 at .* and expander/0 at "):
        factory.find("PQ.05")
    assert factory.find("expander/0").label == "expander"
    assert [info.name for _, info in factory.board_info.find_pin("expander/0")] == ["expander/0"]


def test_two_chips_of_one_label_are_told_apart_by_line_names_only(factory: GpiodFactory, tmp_path: Path) -> None:
    for number, name in enumerate(("LEFT", "RIGHT")):
        fake_gpiod.plug(tmp_path / f"gpiochip{number + 1}", "expander", [name])
    with pytest.raises(LineRefused, match="expander/0 is ambiguous"):
        factory.find("expander/0")
    assert factory.find("RIGHT").path.endswith("gpiochip2")


def test_a_link_to_a_chip_is_not_a_second_chip(factory: GpiodFactory, tmp_path: Path) -> None:
    (tmp_path / "gpiochip4").symlink_to(tmp_path / "gpiochip0")
    assert factory.find("PQ.05").path == str(tmp_path / "gpiochip0")


def test_a_chip_renumbered_since_the_scan_is_not_driven_by_mistake(
    factory: GpiodFactory, main_chip: FakeChip, tmp_path: Path
) -> None:
    stale = factory.find("PZ.05")
    fake_gpiod.unplug(main_chip)
    other = fake_gpiod.plug(tmp_path / "gpiochip0", "expander", ["A", "B", "C", "D"])
    moved = fake_gpiod.plug(tmp_path / "gpiochip1", "tegra234-gpio", ["PQ.04", "PQ.05", "PQ.06", "PZ.05"])
    with pytest.raises(LineRefused, match="is another one now"):
        factory.request(stale, factory.settings(direction="OUTPUT"), "test")
    an_output(factory, start=True)
    assert moved["PZ.05"].levels == [1] and all(not one.levels for one in other.lines)


# --- refusals ---------------------------------------------------------------------------------------------


def test_no_permission_names_the_group(factory: GpiodFactory, main_chip: FakeChip) -> None:
    main_chip.denied = True
    with pytest.raises(InputLost, match="no permission to open .*gpiochip0; give the device to the group gpio by a udev rule"):
        an_input(factory)


def test_permission_that_is_taken_away_later_names_the_group_too(factory: GpiodFactory, main_chip: FakeChip) -> None:
    factory.find("PZ.05")
    main_chip.denied = True
    with pytest.raises(OutputLost, match=r"line PZ.05 \(tegra234-gpio/3\): no permission to open .* group gpio"):
        an_output(factory)


def test_a_line_in_use_names_its_user(factory: GpiodFactory, main_chip: FakeChip) -> None:
    other = fake_gpiod.request_lines(main_chip.path, {"PZ.05": None}, consumer="sysfs")
    with pytest.raises(OutputLost, match=r"output gate: line PZ.05 \(tegra234-gpio/3\) is in use by sysfs; stop that"):
        an_output(factory)
    other.release()
    an_output(factory)
    assert main_chip["PZ.05"].consumer == "appliance gate"


def test_settings_that_a_chip_does_not_take_are_told(
    factory: GpiodFactory, main_chip: FakeChip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_longer_than_255_ms(settings: fake_gpiod.LineSettings) -> None:
        if settings.debounce_period > timedelta(milliseconds=255):
            raise ValueError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(main_chip["PQ.05"], "check", no_longer_than_255_ms)
    with pytest.raises(InputLost, match=r"\(INPUT, bias AS_IS, drive PUSH_PULL, debounce 300 ms\): Invalid argument$"):
        an_input(factory, debounce_ms=300)
    an_input(factory, debounce_ms=255)


def test_the_distributions_libgpiod_1_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("gpiod")
    old.__file__ = "/usr/lib/python3/dist-packages/gpiod.so"
    monkeypatch.setitem(sys.modules, "gpiod", old)
    with pytest.raises(gpiozero.BadPinFactory, match="gpiod at /usr/lib/.*/gpiod.so is libgpiod 1.x") as refused:
        GpiodFactory()
    assert "pip install gpiod" in str(refused.value) and "python3-libgpiod" in str(refused.value)


def test_a_missing_libgpiod_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gpiod", None)
    with pytest.raises(ImportError, match="libgpiod's Python module is missing .* pip install gpiod"):
        load_gpiod()


# --- input ------------------------------------------------------------------------------------------------


def test_the_level_at_opening_is_told_once_by_the_first_read(factory: GpiodFactory, main_chip: FakeChip) -> None:
    main_chip["PQ.05"].outside = 1
    before_ns = now_ns()
    trigger = an_input(factory)
    (opening,) = trigger.read()
    assert (opening.line, opening.level, opening.sequence) == ("trigger", True, 0)
    assert before_ns <= opening.time_ns <= now_ns()
    assert trigger.read() == [] and trigger.level()


def test_edges_carry_the_kernels_stamps_and_numbers(factory: GpiodFactory, main_chip: FakeChip) -> None:
    trigger = an_input(factory)
    trigger.read()
    at_ns = now_ns() + 7
    main_chip["PQ.05"].drive(1, at_ns)
    main_chip["PQ.05"].drive(0, at_ns + 40 * MS)
    assert trigger.read() == [Edge("trigger", True, at_ns, 1), Edge("trigger", False, at_ns + 40 * MS, 2)]
    assert trigger.read() == [] and not trigger.level() and trigger.lost_edges == 0
    assert main_chip["PQ.05"].settings.event_clock is line.Clock.MONOTONIC


def test_fileno_is_readable_while_there_are_edges(factory: GpiodFactory, main_chip: FakeChip) -> None:
    trigger = an_input(factory)
    trigger.read()
    assert select.select([trigger], [], [], 0)[0] == []
    main_chip["PQ.05"].drive(1, now_ns())
    assert select.select([trigger], [], [], 0)[0] == [trigger]
    trigger.read()
    assert select.select([trigger], [], [], 0)[0] == []


def test_active_low_levels_are_logical(factory: GpiodFactory, main_chip: FakeChip) -> None:
    main_chip["PQ.05"].outside = 1
    trigger = an_input(factory, "PQ.05?active=low&bias=pull-up")
    main_chip["PQ.05"].drive(0, now_ns() + MS)
    assert [edge.level for edge in trigger.read()] == [False, True]
    assert main_chip["PQ.05"].settings.bias is line.Bias.PULL_UP


@pytest.mark.parametrize(("query", "bias"), [("", "PULL_DOWN"), ("?bias=none", "DISABLED"), ("?bias=pull-up", "PULL_UP")])
def test_bias_is_set_or_left_to_the_pinmux(factory: GpiodFactory, main_chip: FakeChip, query: str, bias: str) -> None:
    held = factory.open_input(address("PQ.05" + query), 0, "trigger")
    assert main_chip["PQ.05"].settings.bias.name == bias
    factory.release(held)


def test_a_full_buffer_drops_the_oldest_and_the_gap_shows(factory: GpiodFactory, main_chip: FakeChip) -> None:
    trigger = an_input(factory)
    trigger.read()
    start_ns = now_ns()
    for number in range(EVENT_BUFFER + 3):
        main_chip["PQ.05"].drive((number + 1) % 2, start_ns + number)
    edges = trigger.read()
    assert [edge.sequence for edge in edges] == list(range(4, EVENT_BUFFER + 4))  # 1, 2, 3 are gone
    assert trigger.lost_edges == 3


def test_the_kernels_32_bit_count_may_wrap(factory: GpiodFactory, main_chip: FakeChip) -> None:
    trigger = an_input(factory)
    trigger.read()
    trigger._sequence = main_chip["PQ.05"].seqno = 2**32 - 1
    main_chip["PQ.05"].drive(1, now_ns())
    assert [edge.sequence for edge in trigger.read()] == [2**32]
    assert trigger.lost_edges == 0


def test_an_edge_while_opening_is_not_in_the_level_before_it(factory: GpiodFactory, main_chip: FakeChip) -> None:
    pad = main_chip["PQ.05"]
    open_input = factory.open_input

    def an_edge_comes_at_once(*given: Any) -> Any:
        held = open_input(*given)
        pad.drive(1, now_ns())
        return held

    factory.open_input = an_edge_comes_at_once  # type: ignore[method-assign]
    assert [(edge.level, edge.sequence) for edge in an_input(factory).read()] == [(False, 0), (True, 1)]


def test_the_kernel_debounces_and_stamps_the_end_of_the_period(factory: GpiodFactory, main_chip: FakeChip) -> None:
    pad, trigger = main_chip["PQ.05"], an_input(factory, debounce_ms=2)
    trigger.read()
    start_ns = now_ns()
    for level, after_us in ((1, 0), (0, 300), (1, 500)):
        pad.drive(level, start_ns + after_us * 1000)
    assert trigger.read() == []
    pad.settle(start_ns + 3 * MS)
    assert trigger.read() == [Edge("trigger", True, start_ns + 2_500_000, 1)]


def test_a_chip_that_goes_is_an_input_lost_in_words(factory: GpiodFactory, main_chip: FakeChip) -> None:
    trigger = an_input(factory)
    trigger.read()
    fake_gpiod.unplug(main_chip)
    assert select.select([trigger], [], [], 0)[0] == [trigger]
    with pytest.raises(InputLost, match=r"line PQ.05 \(tegra234-gpio/1\) gives no more edges \(No such device\)"):
        trigger.read()


def test_an_input_that_comes_back_begins_anew(factory: GpiodFactory, main_chip: FakeChip, tmp_path: Path) -> None:
    trigger = an_input(factory)
    fake_gpiod.unplug(main_chip)
    trigger.close()
    with pytest.raises(InputLost, match="cannot be opened"):
        an_input(factory)
    with pytest.raises(InputLost, match="no GPIO chip at"):
        an_input(factory)
    again = fake_gpiod.plug(tmp_path / "gpiochip7", "tegra234-gpio", ["PQ.05"])
    trigger = an_input(factory)
    again["PQ.05"].drive(1, now_ns() + 1)
    assert [edge.sequence for edge in trigger.read()] == [0, 1]


def test_a_closed_input_gives_its_line_back(factory: GpiodFactory, main_chip: FakeChip) -> None:
    trigger = an_input(factory)
    trigger.close()
    trigger.close()
    assert main_chip["PQ.05"].consumer is None
    with pytest.raises(InputLost, match="closed"):
        trigger.read()


# --- output -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [False, True])
def test_the_request_itself_carries_the_start_level(factory: GpiodFactory, main_chip: FakeChip, start: bool) -> None:
    an_output(factory, start=start)
    assert main_chip["PZ.05"].levels == [int(start)]  # not one level before it


def test_set_moves_the_pin_in_one_call_and_tells_when(
    factory: GpiodFactory, main_chip: FakeChip, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real = fake_gpiod.LineRequest.set_value
    monkeypatch.setattr(fake_gpiod.LineRequest, "set_value", lambda *given: (calls.append("set_value"), real(*given)))
    gate = an_output(factory)
    monkeypatch.setattr(gate._clock, "now_ns", lambda: calls.append("now_ns") or 6_000)
    assert gate.set(True, 1) == 6_000
    assert calls == ["set_value", "now_ns"] and main_chip["PZ.05"].levels == [0, 1]


def test_active_low_and_open_drain(factory: GpiodFactory, main_chip: FakeChip) -> None:
    pad = main_chip["PZ.05"]
    gate = an_output(factory, "PZ.05?active=low&drive=open-drain", start=False)
    pad.outside = 0  # a resistor to ground: an open drain does not drive high
    assert pad.settings.drive is line.Drive.OPEN_DRAIN and pad.levels == [1] and pad.level() == 0
    gate.set(True, 0)
    assert pad.levels == [1, 0]


def test_close_leaves_the_failure_level_and_holds_the_line(factory: GpiodFactory, main_chip: FakeChip) -> None:
    gate = an_output(factory, start=True, failure=False)
    gate.close()
    del gate
    gc.collect()
    assert main_chip["PZ.05"].levels == [1, 0] and main_chip["PZ.05"].released == 0


def test_a_chip_that_goes_is_an_output_lost_in_words_until_it_is_back(
    factory: GpiodFactory, main_chip: FakeChip, tmp_path: Path
) -> None:
    gate = an_output(factory)
    fake_gpiod.unplug(main_chip)
    with pytest.raises(OutputLost, match=r"output gate, line PZ.05 \(tegra234-gpio/3\) cannot be set \(No such device\)"):
        gate.set(True, 0)
    with pytest.raises(OutputLost, match="output gate: "):
        gate.set(True, 0)
    again = fake_gpiod.plug(tmp_path / "gpiochip5", "tegra234-gpio", ["PZ.05"])
    assert gate.set(True, 0) == 5_000
    assert set(again["PZ.05"].levels) == {1}  # back at the level that was asked for, and at no other before


def test_an_error_that_is_not_the_end_keeps_the_line(
    factory: GpiodFactory, main_chip: FakeChip, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = an_output(factory)

    def fails(_value: fake_gpiod.Value) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(main_chip["PZ.05"], "put", fails)
        with pytest.raises(OutputLost, match="Input/output error"):
            gate.set(True, 0)
        gate.close()
    gate.set(True, 0)
    assert main_chip["PZ.05"].levels == [0, 1] and main_chip["PZ.05"].released == 0


# --- gpiozero ---------------------------------------------------------------------------------------------


def test_an_led_blinks(factory: GpiodFactory, main_chip: FakeChip) -> None:
    with gpiozero.LED("PQ.06", pin_factory=factory) as led:
        led.blink(on_time=0, off_time=0, n=3, background=False)
        led.on()
    assert main_chip["PQ.06"].levels == [0, 1, 0, 1, 0, 1, 0, 1, 0]  # the last by closing: the level at opening


def test_an_active_low_led_is_off_from_the_first_moment_and_at_the_end(factory: GpiodFactory, main_chip: FakeChip) -> None:
    led = gpiozero.LED("PQ.06", active_high=False, pin_factory=factory)
    led.on()
    led.close()
    assert main_chip["PQ.06"].levels == [1, 0, 1] and main_chip["PQ.06"].released == 0


def test_an_output_left_as_found(factory: GpiodFactory, main_chip: FakeChip) -> None:
    main_chip["PQ.06"].outside = 1
    device = gpiozero.DigitalOutputDevice("PQ.06", initial_value=None, pin_factory=factory)
    assert device.value == 1 and main_chip["PQ.06"].levels == [1]


def test_a_button_sees_press_and_release(factory: GpiodFactory, main_chip: FakeChip) -> None:
    pressed, released = threading.Event(), threading.Event()
    with gpiozero.Button("PQ.05", bounce_time=None, pin_factory=factory) as button:
        button.when_pressed, button.when_released = pressed.set, released.set
        assert not button.is_pressed and main_chip["PQ.05"].settings.bias is line.Bias.PULL_UP
        main_chip["PQ.05"].drive(0, now_ns())
        assert pressed.wait(WAIT_S) and button.wait_for_press(WAIT_S) and button.is_pressed
        main_chip["PQ.05"].drive(None, now_ns())
        assert released.wait(WAIT_S) and not button.is_pressed
    assert main_chip["PQ.05"].settings.edge_detection is line.Edge.NONE and main_chip["PQ.05"].released == 0


def test_bounce_time_is_the_kernels_debounce(factory: GpiodFactory, main_chip: FakeChip) -> None:
    gpiozero.Button("PQ.05", bounce_time=0.02, pin_factory=factory).close()
    assert main_chip["PQ.05"].settings.debounce_period == timedelta(milliseconds=20)


def test_handlers_get_the_kernels_stamp_and_gaps_are_counted(factory: GpiodFactory, main_chip: FakeChip) -> None:
    told: queue.Queue[tuple[int, int]] = queue.Queue()

    def changed(ticks: int, state: int) -> None:
        told.put((ticks, state))

    pin, pad = factory.pin("PQ.05"), main_chip["PQ.05"]
    pin.input_with_pull("down")
    pin.when_changed = changed
    at_ns = now_ns() + 5
    pad.drive(1, at_ns)
    assert told.get(timeout=WAIT_S) == (at_ns, 1)
    pad.seqno += 2  # two the kernel dropped
    pad.drive(0, at_ns + MS)
    assert told.get(timeout=WAIT_S) == (at_ns + MS, 0)
    assert pin.lost_edges == 2 and factory.ticks_diff(at_ns + MS, at_ns) == 0.001


def test_a_handler_that_raises_does_not_silence_the_others(
    factory: GpiodFactory, main_chip: FakeChip, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(threading, "excepthook", lambda given: shown.put(str(given.exc_value)))

    def broken(_ticks: int, _state: int) -> None:
        raise RuntimeError("a handler's own fault")

    pin = factory.pin("PQ.05")
    pin.function = "input"
    pin.when_changed = broken
    with gpiozero.Button("PQ.06", pin_factory=factory) as button:
        for level in (1, 0):
            main_chip["PQ.05"].drive(level, now_ns())
        assert [shown.get(timeout=WAIT_S) for _ in range(2)] == ["a handler's own fault"] * 2
        main_chip["PQ.06"].drive(0, now_ns())
        assert button.wait_for_press(WAIT_S)


def test_a_chip_that_goes_ends_the_edges_of_its_pins(
    factory: GpiodFactory, main_chip: FakeChip, caplog: pytest.LogCaptureFixture
) -> None:
    factory.reader._start = lambda: None  # type: ignore[method-assign]  # the turns are this test's
    button = gpiozero.Button("PQ.05", pin_factory=factory)
    fake_gpiod.unplug(main_chip)
    factory.reader.turn()
    assert "line PQ.05 (tegra234-gpio/1) gives no more edges" in caplog.text
    held = factory.pin("PQ.05")._held
    assert held and not factory.reader.watches(held.request.fd)
    button.close()
    assert "stays as it is" in caplog.text


def test_one_line_is_one_pin_by_each_of_its_names(factory: GpiodFactory) -> None:
    assert factory.pin("PQ.05") is factory.pin("tegra234-gpio/1") is factory.pin("PQ.05")
    first = gpiozero.LED("PQ.05", pin_factory=factory)
    with pytest.raises(gpiozero.GPIOPinInUse):
        gpiozero.LED("tegra234-gpio/1", pin_factory=factory)
    pin = first.pin
    first.close()
    with gpiozero.Button("PQ.05", pin_factory=factory) as button:  # the held line is configured anew
        assert button.pin is pin and pin.function == "input"


def test_edges_of_a_device_before_are_not_those_of_the_next(factory: GpiodFactory, main_chip: FakeChip) -> None:
    factory.reader._start = lambda: None  # type: ignore[method-assign]
    gpiozero.Button("PQ.05", pin_factory=factory)._pin.when_changed = None
    held = factory.pin("PQ.05")._held
    assert held
    held.request._event(main_chip["PQ.05"], True, 1)  # it came before the edges were switched off
    factory.pin("PQ.05").when_changed = print
    assert not held.request._events


def test_the_board_knows_each_line_as_a_gpio_pin(factory: GpiodFactory) -> None:
    board = factory.board_info
    ((header, info),) = board.find_pin("PQ.05")
    assert header.name == "tegra234-gpio" and info == factory.pin("PQ.05").info
    assert (info.number, info.name, info.names, info.pull) == (2, "PQ.05", {"PQ.05", "tegra234-gpio/1"}, "")
    assert "gpio" in info.interfaces and board.to_gpio("tegra234-gpio/1") == "PQ.05"
    assert [pin.name for _, pin in board.find_pin("tegra234-gpio/4")] == ["tegra234-gpio/4"]
    assert "tegra234-gpio" in f"{board:mono full}"


@pytest.mark.parametrize(
    ("do", "error"),
    [
        (lambda pin: setattr(pin, "function", "pwm"), gpiozero.PinInvalidFunction),
        (lambda pin: setattr(pin, "pull", "sideways"), gpiozero.PinInvalidPull),
        (lambda pin: setattr(pin, "edges", "some"), gpiozero.PinInvalidEdges),
        (lambda pin: setattr(pin, "bounce", "long"), gpiozero.PinInvalidBounce),
        (lambda pin: setattr(pin, "bounce", -1), gpiozero.PinInvalidBounce),
        (lambda pin: setattr(pin, "state", 1), gpiozero.PinSetInput),
        (lambda pin: setattr(pin, "frequency", 100), gpiozero.PinPWMUnsupported),
        (lambda pin: pin.output_with_state(0.5), gpiozero.PinInvalidState),
    ],
)
def test_what_a_pin_cannot_do_raises_gpiozeros_own_errors(factory: GpiodFactory, do: Any, error: type[Exception]) -> None:
    pin = factory.pin("PQ.05")
    pin.function = "input"
    with pytest.raises(error):
        do(pin)


def test_an_output_takes_no_pull(factory: GpiodFactory) -> None:
    pin = factory.pin("PQ.05")
    pin.output_with_state(0)
    with pytest.raises(gpiozero.PinFixedPull):
        pin.pull = "up"


def test_gpiozero_finds_the_factory_by_its_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    section = re.search(r"^\[project\.entry-points\.gpiozero_pin_factories\]\n((?:\w.*\n)+)", text, re.MULTILINE)
    assert section
    installed = tmp_path / "appliance-0.1.0.dist-info"  # as an installed package would say it
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: appliance\nVersion: 0.1.0\n")
    (installed / "entry_points.txt").write_text("[gpiozero_pin_factories]\n" + section[1].replace('"', ""))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("GPIOZERO_PIN_FACTORY", "gpiod")
    monkeypatch.setitem(sys.modules, "gpiod", fake_gpiod)
    assert isinstance(gpiozero.Device._default_pin_factory(), GpiodFactory)


# --- the stand-in against the real module --------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Any:
    try:
        return load_gpiod()
    except gpiozero.BadPinFactory as why:
        pytest.skip(f"no libgpiod 2 to compare the stand-in with: {why}")


CALLS = [
    "request_lines", "is_gpiochip_device",
    *(f"Chip.{name}" for name in ("__init__", "close", "get_info", "line_offset_from_id", "get_line_info", "request_lines")),
    *(
        f"LineRequest.{name}"
        for name in (
            "__init__", "release", "get_value", "get_values", "set_value", "set_values", "reconfigure_lines",
            "wait_edge_events", "read_edge_events", "fileno",
        )
    ),
    "LineSettings.__init__", "LineInfo.__init__", "EdgeEvent.__init__", "ChipInfo.__init__",
    "ChipClosedError.__init__", "RequestReleasedError.__init__",
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_the_stand_in_is_called_as_the_real_one(real: Any, call: str) -> None:
    def parameters(module: Any) -> list[tuple[str, Any, Any]]:
        found = module
        for name in call.split("."):
            found = getattr(found, name)
        return [(one.name, one.kind, _plain(one.default)) for one in inspect.signature(found).parameters.values()]

    assert parameters(fake_gpiod) == parameters(real)


def _plain(default: Any) -> Any:
    return (type(default).__name__, default.name) if isinstance(getattr(default, "name", None), str) else default


@pytest.mark.parametrize("kind", ["Value", "Direction", "Bias", "Drive", "Edge", "Clock"])
def test_the_stand_in_has_the_real_words(real: Any, kind: str) -> None:
    def members(module: Any) -> dict[str, int]:
        return {one.name: one.value for one in getattr(module.line, kind)}

    assert members(fake_gpiod) == members(real)


@pytest.mark.parametrize("kind", ["LineSettings", "LineInfo", "EdgeEvent", "ChipInfo"])
def test_the_stand_in_has_the_real_fields(real: Any, kind: str) -> None:
    assert [one.name for one in fields(getattr(fake_gpiod, kind))] == [one.name for one in fields(getattr(real, kind))]


def test_every_public_name_of_the_stand_ins_classes_is_a_real_one(real: Any) -> None:
    for kind in ("Chip", "LineRequest", "EdgeEvent", "LineInfo", "ChipInfo", "LineSettings"):
        assert {one for one in dir(getattr(fake_gpiod, kind)) if not one.startswith("_")} <= set(dir(getattr(real, kind)))
    assert [one.value for one in fake_gpiod.EdgeEvent.Type] == [one.value for one in real.EdgeEvent.Type]


def test_the_stand_in_refuses_as_the_real_one(real: Any, tmp_path: Path) -> None:
    for path in ("/dev/null", str(tmp_path / "gpiochip1")):
        answers = []
        for module in (fake_gpiod, real):
            with pytest.raises(OSError) as refused:
                module.Chip(path)
            answers.append((type(refused.value), refused.value.args))
            assert not module.is_gpiochip_device(path)
        assert answers[0] == answers[1]
    for kind in ("ChipClosedError", "RequestReleasedError"):
        assert str(getattr(fake_gpiod, kind)()) == str(getattr(real, kind)())


def test_the_factory_builds_its_settings_with_the_real_module(real: Any, tmp_path: Path) -> None:
    factory = GpiodFactory(real, tmp_path)
    settings = factory.settings(direction="INPUT", bias="PULL_UP", edge_detection="BOTH", debounce_period=timedelta())
    assert settings == real.LineSettings(
        direction=real.line.Direction.INPUT, bias=real.line.Bias.PULL_UP, edge_detection=real.line.Edge.BOTH
    )
    with pytest.raises(LineUnknown):
        factory.pin("PQ.05")
