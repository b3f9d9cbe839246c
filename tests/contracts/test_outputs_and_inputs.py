"""What rejectd may rely on, of every output and every input: mock, twin, and Modbus with a real server on loopback."""

from __future__ import annotations

import os
import select
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from appliance.config.addresses import LINE, parse
from appliance.devices.modbus_io import REFRESH_NS, ModbusIo
from appliance.devices.output_modbus import ModbusOutput
from appliance.messages import Edge
from appliance.ports import Input, InputLost, Output, OutputLost
from tests.contracts.coupler import ROOT, SLOW_S
from tests.contracts.rigs import CLOCK, RIGS, WATCHDOG_MS, ModbusRig, Rig, until

MS = 1_000_000
NOT_WAITING_NS = 100 * MS  # a few hundred microseconds, on a machine that others use too
EVERY = pytest.mark.parametrize("rig", list(RIGS), indirect=True)
BAD_COUPLER = ["silent", "refuse", "half", "unplugged"]
LOSSES = [("mock", "cut"), ("twin", "gone"), ("gpio", "unplugged")]
LOSSES += [("modbus", how) for how in (*BAD_COUPLER, "killed", "hung")]


@pytest.fixture
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    made = RIGS[request.param](tmp_path)
    yield made
    made.close()


@pytest.fixture
def modbus(tmp_path: Path) -> Iterator[ModbusRig]:
    made = ModbusRig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[ModbusRig]:
    """Its watchdog bears what a busy machine does to a slow coupler."""
    made = ModbusRig(tmp_path, watchdog_ms=3000)
    yield made
    made.close()


def words_of(lost: Callable[[], object], kind: type[Exception]) -> str:
    """What the loss says, or nothing while there is none."""
    try:
        lost()
    except kind as why:
        assert str(why)
        return str(why)
    return ""


def move(output: Output, level: bool) -> int:
    return output.set(level, CLOCK.now_ns())


def moves(output: Output, level: bool) -> bool:
    return not words_of(lambda: move(output, level), OutputLost)


def edges_of(one: Input, count: int, within_s: float = 5.0) -> list[Edge]:
    edges = one.read()  # the level at opening need not be announced
    end_ns = CLOCK.now_ns() + round(within_s * 1e9)
    while len(edges) < count:
        ready, _, _ = select.select([one], [], [], max(0.0, (end_ns - CLOCK.now_ns()) / 1e9))
        assert ready, f"{len(edges)} of {count} edges in {within_s} s"
        edges += one.read()
    return edges


# --- every output ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rig", "start"),
    [("mock", True), ("mock", False), ("twin", False), ("modbus", True), ("modbus", False), ("gpio", True), ("gpio", False)],
    indirect=["rig"],
)
def test_the_start_level_stands_after_opening(rig: Rig, start: bool) -> None:
    output = rig.output(start, failure=False)
    rig.wait_level(start)
    assert (output.name, output.start, output.failure, output.longest_on_ms) == ("gate", start, False, 1000)


@EVERY
def test_set_moves_the_pin_and_says_when(rig: Rig) -> None:
    output = rig.output(start=False, failure=False)
    rig.wait_level(False)
    for level in (True, False, True):
        before_ns = CLOCK.now_ns()
        said_ns = move(output, level)
        assert before_ns <= said_ns <= CLOCK.now_ns() + 500 * MS
        assert rig.wait_level(level) >= before_ns


@pytest.mark.parametrize(
    ("rig", "how"), [*LOSSES, ("modbus", "normal"), ("modbus", "slow"), ("modbus", "stuck")], indirect=["rig"]
)
def test_set_never_waits(rig: Rig, how: str) -> None:
    output = rig.output(start=False, failure=False)
    until(lambda: moves(output, True))
    rig.wait_level(True)
    rig.lose(how)
    for number in range(30):
        before_ns = CLOCK.now_ns()
        moves(output, number % 2 == 0)
        assert CLOCK.now_ns() - before_ns < NOT_WAITING_NS


@pytest.mark.parametrize(("rig", "how"), [*LOSSES, ("modbus", "stuck")], indirect=["rig"])
def test_a_lost_output_says_so_in_words_and_comes_back(rig: Rig, how: str) -> None:
    output = rig.output(start=False, failure=False)
    until(lambda: moves(output, True))
    rig.wait_level(True)
    rig.lose(how)
    why = until(lambda: words_of(lambda: move(output, False), OutputLost))
    assert rig.word in why and len(why.split()) > 3
    rig.restore()
    until(lambda: moves(output, True))
    rig.wait_level(True)
    until(lambda: moves(output, False))
    rig.wait_level(False)


@pytest.mark.parametrize(
    ("rig", "failure"),
    [("mock", True), ("mock", False), ("twin", False), ("modbus", True), ("modbus", False), ("gpio", True), ("gpio", False)],
    indirect=["rig"],
)  # fmt: skip
def test_close_leaves_the_failure_level(rig: Rig, failure: bool) -> None:
    output = rig.output(start=not failure, failure=failure)
    until(lambda: moves(output, not failure))
    rig.wait_level(not failure)
    output.close()
    rig.wait_level(failure)


# --- every input ----------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("level", [False, True])
def test_the_first_edge_is_the_level_at_opening(rig: Rig, level: bool) -> None:
    rig.turn(level)
    one = rig.input()
    (edge,) = edges_of(one, 1)
    assert (edge.line, edge.level, edge.sequence) == ("eye", level, 0)
    assert one.level() is level and one.read() == []
    one.close()


@EVERY
def test_edges_come_in_order_and_with_their_time(rig: Rig) -> None:
    one = rig.input()
    last = edges_of(one, 1)[0]
    for number in range(1, 11):
        turned_ns = rig.turn(number % 2 == 1)
        (edge,) = edges_of(one, 1)
        assert (edge.level, edge.sequence) == (number % 2 == 1, number)
        assert last.time_ns < edge.time_ns and abs(edge.time_ns - turned_ns) < 500 * MS
        assert one.level() is edge.level
        last = edge
    one.close()


@pytest.mark.parametrize(("rig", "how"), LOSSES, indirect=["rig"])
def test_a_lost_input_says_so_in_words_never_waits_and_comes_back(rig: Rig, how: str) -> None:
    one = rig.input()
    edges_of(one, 1)
    rig.lose(how)
    why = until(lambda: not_waiting(lambda: words_of(one.read, InputLost)))
    assert rig.word in why and len(why.split()) > 3
    one.close()
    if how != "killed":  # its process is started again by the first attempt, and may be there by the second
        assert words_of(rig.input, InputLost), "a far side that is known to be gone is not taken for a good one"
    rig.restore()
    again = until(lambda: opened(rig))
    assert edges_of(again, 1)[0].sequence == 0
    rig.turn(True)
    assert edges_of(again, 1)[0].sequence == 1
    again.close()


def opened(rig: Rig) -> Input | None:
    try:
        return rig.input()
    except InputLost:
        return None


def not_waiting(do: Callable[[], str]) -> str:
    before_ns = CLOCK.now_ns()
    done = do()
    assert CLOCK.now_ns() - before_ns < NOT_WAITING_NS
    return done


# --- Modbus alone ---------------------------------------------------------------------------------------------------


def lost_words(output: ModbusOutput) -> str:
    return words_of(lambda: output.check(CLOCK.now_ns()), OutputLost)


def proved(rig: ModbusRig, start: bool = True, failure: bool = False) -> ModbusOutput:
    """An output whose round trip is measured."""
    output = rig.output(start, failure)
    until(lambda: not lost_words(output) and output.latency_ns)
    return output


def test_a_coil_is_rewritten_at_least_every_100_ms(modbus: ModbusRig) -> None:
    proved(modbus)
    modbus.input()
    writes = modbus.coupler.wait_writes(2, 20)
    gaps = [after - before for before, after in pairwise(writes)]
    # The median: single gaps are the machine's, and all of them lie below the watchdog.
    assert statistics.median(gaps) <= REFRESH_NS and max(gaps) < WATCHDOG_MS * MS


def test_neighbours_are_written_together_and_each_is_moved_alone(modbus: ModbusRig) -> None:
    gate = proved(modbus, start=True)
    ready = ModbusOutput("ready", modbus.address("coil/3"), False, False, None, CLOCK, modbus.process)
    far = ModbusOutput("fault", modbus.address("coil/9"), True, True, None, CLOCK, modbus.process)
    modbus.coupler.wait_coil(9, True)
    move(ready, True)
    modbus.coupler.wait_coil(3, True)
    move(gate, False)
    modbus.coupler.wait_coil(2, False)
    modbus.coupler.wait_writes(3, 3)
    modbus.coupler.wait_coil(3, True)
    assert not any(lost_words(output) for output in (gate, ready, far))


def test_a_slow_coupler_is_fired_ahead_of_time(patient: ModbusRig) -> None:
    output = proved(patient)
    patient.input()
    patient.coupler.mode("slow")
    until(lambda: not lost_words(output) and output.latency_ns > SLOW_S / 2 * 0.9e9)
    late: list[int] = []
    for number in range(7):
        due_ns = CLOCK.now_ns() + output.lead_ns + 200 * MS
        assert output.set(number % 2 == 1, due_ns) == due_ns
        late.append(patient.coupler.wait_coil(2, number % 2 == 1) - due_ns)
    # Without the lead the coil would move SLOW_S / 2 late at the least, and later where a poll is under way.
    assert abs(statistics.median(late)) < SLOW_S / 4 * 1e9, late


def test_moves_that_leave_no_room_do_not_keep_the_coil_from_being_proved(patient: ModbusRig) -> None:
    output = proved(patient)
    patient.coupler.mode("slow")
    until(lambda: not lost_words(output) and output.latency_ns > SLOW_S / 2 * 0.9e9)
    for number in range(40):
        output.set(number % 2 == 1, CLOCK.now_ns() + output.lead_ns)  # raises what fails this test
        patient.coupler.wait_coil(2, number % 2 == 1)


def test_moves_are_made_in_their_order_at_their_time(modbus: ModbusRig) -> None:
    output = proved(modbus, start=False)
    now_ns = CLOCK.now_ns()
    output.set(True, now_ns + 100 * MS)
    output.set(False, now_ns + 250 * MS)
    assert modbus.coupler.wait_coil(2, True) >= now_ns + 90 * MS
    assert modbus.coupler.wait_coil(2, False) >= now_ns + 240 * MS


def test_a_later_word_replaces_what_is_due_after_it(modbus: ModbusRig) -> None:
    output = proved(modbus, start=True)
    output.set(False, CLOCK.now_ns() + 200 * MS)
    move(output, True)
    since_ns = modbus.coupler.wait_coil(2, True)
    modbus.coupler.wait_writes(2, 6)
    assert modbus.coupler.wait_coil(2, True) == since_ns, "the gate opened after it had been told to stay at reject"


def test_a_wrong_read_back_is_a_loss_within_the_watchdog(modbus: ModbusRig) -> None:
    output = proved(modbus, start=True)
    modbus.coupler.mode("stuck")
    asked_ns = move(output, False)
    why = until(lambda: lost_words(output))
    assert CLOCK.now_ns() - asked_ns < (WATCHDOG_MS + 250) * MS
    assert "reads 1 after 0 was written" in why


def test_a_killed_process_is_a_loss_and_the_coupler_lets_go(modbus: ModbusRig) -> None:
    output = proved(modbus, start=True, failure=True)
    modbus.wait_level(True)
    modbus.lose("killed")
    assert "ended" in until(lambda: lost_words(output))
    modbus.coupler.wait_coil(2, False)
    assert lost_words(output)


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_rejectd_leaves_the_failure_level(tmp_path: Path, way: signal.Signals) -> None:
    rig = ModbusRig(tmp_path, watchdog_ms=60_000)
    script = (
        "import sys, select\n"
        "from tests.contracts.rigs import CLOCK, LINE, ModbusIo, ModbusOutput, parse\n"
        "address = parse(sys.argv[1], 'digital line', LINE)\n"
        "output = ModbusOutput('gate', address, False, True, None, CLOCK, ModbusIo(address.host, CLOCK))\n"
        "print(output._process.pid, flush=True)\n"
        "select.select([], [], [], 60)\n"
    )
    place = rig.address("coil/2").text
    parent = subprocess.Popen([sys.executable, "-c", script, place], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    process = os.pidfd_open(int(parent.stdout.readline()))
    rig.coupler.wait_writes(2, 1)
    rig.coupler.wait_coil(2, False)
    parent.send_signal(way)
    parent.wait(10)
    parent.stdout.close()
    rig.coupler.wait_coil(2, True)
    assert select.select([process], [], [], 5.0)[0], "the process outlived rejectd"
    os.close(process)
    rig.close()


def test_a_closed_handle_stays_closed(modbus: ModbusRig) -> None:
    output = proved(modbus, start=False, failure=True)
    assert modbus.process.close(timeout_s=5.0)
    modbus.wait_level(True)
    assert "closed" in words_of(lambda: move(output, False), OutputLost)
    assert modbus.process.pid is None


def test_edges_know_how_far_they_may_be_off(modbus: ModbusRig) -> None:
    one = modbus.input()
    edges_of(one, 1)
    until(lambda: one.read() == [] and one.uncertainty_ns)
    off_ns = []
    for number in range(1, 10):
        turned_ns = modbus.turn(number % 2 == 1)
        off_ns.append(edges_of(one, 1)[0].time_ns - turned_ns)
    assert statistics.median(off_ns) < 50 * MS and 1 * MS < one.uncertainty_ns < 500 * MS


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("modbus://h:502/coil/1", "watchdog_ms"),
        ("modbus://h:502/coil/1?watchdog_ms=50", "watchdog_ms"),
        ("modbus://h:502/discrete/1?watchdog_ms=500", "coil/1"),
        ("modbus://h:502/coil/one?watchdog_ms=500", "coil/0"),
        ("modbus://h:502/coil/70000?watchdog_ms=500", "65535"),
        ("modbus://h:502/coil/1?watchdog_ms=500&unit=300", "255"),
    ],
)
def test_an_address_that_cannot_be_an_output_is_refused(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ModbusOutput("gate", parse(text, "digital line", LINE), False, False, None, CLOCK, ModbusIo("h:502", CLOCK))


def test_rejectd_does_not_load_pymodbus() -> None:
    script = (
        "import sys, appliance.devices.modbus_io, appliance.devices.output_modbus, appliance.devices.input_modbus\n"
        "sys.exit('pymodbus' in sys.modules or 'numpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
