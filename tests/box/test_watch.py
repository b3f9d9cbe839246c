"""The reader thread: it tells what is new, it hangs alone, and it goes on without the file it hung at."""

from __future__ import annotations

import json
import os
import select
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from appliance.box import watch as module
from appliance.box.watch import BoxWatch
from appliance.clock import SystemClock, now_ns
from appliance.messages import ClockQuality
from appliance.ports import BoxTold
from tests.box.trees import agx_orin, boot, lay, orin_nano, watchdog

PERIOD_NS = 20_000_000
SILENT_NS = 300_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return lay(tmp_path / "root", orin_nano())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def begin(root: Path, data: Path) -> Iterator[Callable[..., BoxWatch]]:
    made: list[BoxWatch] = []

    def _begin(silent_ns: int = 10**10) -> BoxWatch:
        made.append(BoxWatch(SystemClock(), data, root, PERIOD_NS, silent_ns))
        return made[-1]

    yield _begin
    for one in made:
        one.close()


def until(box: BoxWatch, what: Callable[[BoxTold], object], **inspect: object) -> BoxTold:
    """The first thing told that is so; looks every 5 ms, for 20 s at most."""
    end_ns = now_ns() + 20 * 10**9
    while (told := box.told(inspect, now_ns())) is None or not what(told):
        assert now_ns() < end_ns, told
        select.select([], [], [], 0.005)
    return told


def hang(path: Path) -> Callable[[], None]:
    """A read of ``path`` hangs from now on, until what is returned is called: a pipe nobody writes into."""
    path.unlink()
    os.mkfifo(path)

    def _let_go() -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))

    return _let_go


def mend(path: Path) -> None:
    """What hangs at ``path`` ends, and whoever reads it next finds 47 degrees."""
    path.rename(path.with_name("pipe"))
    path.write_text("47000\n")
    os.close(os.open(path.with_name("pipe"), os.O_WRONLY | os.O_NONBLOCK))


def test_a_look_is_told_once_and_the_next_one_when_it_is_there(begin: Callable[..., BoxWatch], root: Path) -> None:
    box = begin()
    told = until(box, lambda told: told.health)
    assert told.temperature_c == 52.125 and told.keep_passes and set(told.alarms) == {"watchdog_unproven"}
    assert told.health["power_mode"] == "MAXN_SUPER" and told.health["boots"] == 1 and "highest_ppm" not in told.health
    (root / "sys/class/thermal/thermal_zone3/temp").write_text("97000\n")
    hot = until(box, lambda told: "too_hot" in told.alarms)
    assert not hot.keep_passes and hot.throttle_flags == 0x0101 and "images of passed parts" in hot.health["derated"][0]
    assert hot.alarms.keys() <= box.codes


def test_what_inspectd_says_is_weighed(begin: Callable[..., BoxWatch]) -> None:
    told = until(begin(), lambda told: told.health, judge_ms={"p99": 25.0}, engine_power_modes=["15W"])
    assert told.health["highest_ppm"] == 2400 and "15W" in told.alarms["power_mode"]


def test_a_read_that_hangs_is_named_left_alone_and_the_others_go_on(begin: Callable[..., BoxWatch], root: Path) -> None:
    zone = root / "sys/class/thermal/thermal_zone0/temp"
    let_go = hang(zone)
    begun_ns, others = now_ns(), set(threading.enumerate())
    box = begin(SILENT_NS)
    silent = until(box, lambda told: "sensors_silent" in told.alarms)
    assert silent.alarms["sensors_silent"] == "reading /sys/class/thermal/thermal_zone0/temp does not end"
    assert silent.temperature_c is None and now_ns() - begun_ns >= SILENT_NS
    told = until(box, lambda told: told.temperature_c is not None)
    assert "thermal_zone0" in told.alarms["sensors_silent"] and told.health["temperatures_c"]["tj-thermal"] == 52.1
    assert "gpu-thermal" not in told.health["temperatures_c"]
    hanging = set(threading.enumerate()) - others
    assert len(hanging) == 2, "one hangs, one reads"
    let_go()
    (root / "sys/class/thermal/thermal_zone3/temp").write_text("60000\n")
    until(box, lambda told: told.health["temperatures_c"]["cpu-thermal"] == 60.0)
    end_ns = now_ns() + 10 * 10**9
    while sum(one.is_alive() for one in hanging) > 1:
        assert now_ns() < end_ns, "the thread that hung has nothing to tell any more"
        select.select([], [], [], 0.005)


def test_a_file_that_comes_back_is_read_again(begin: Callable[..., BoxWatch], root: Path) -> None:
    zone = root / "sys/class/thermal/thermal_zone0/temp"
    hang(zone)
    box = begin(SILENT_NS)
    until(box, lambda told: "sensors_silent" in told.alarms and told.temperature_c is not None)
    mend(zone)
    until(box, lambda told: "sensors_silent" not in told.alarms)
    until(box, lambda told: told.health["temperatures_c"].get("gpu-thermal") == 47.0)


def test_a_file_that_hangs_a_second_time_is_left_alone_for_good(begin: Callable[..., BoxWatch], root: Path) -> None:
    zone = root / "sys/class/thermal/thermal_zone0/temp"
    let_go = hang(zone)
    box = begin(SILENT_NS)
    until(box, lambda told: "sensors_silent" in told.alarms and told.temperature_c is not None)
    let_go()
    until(box, lambda told: told.temperature_c is None)  # read again, it hung again
    until(box, lambda told: told.temperature_c is not None)
    mend(zone)
    for _ in range(5):
        told = until(box, partial(lambda before, told: told is not before, box.told({}, now_ns())))
    assert "thermal_zone0" in told.alarms["sensors_silent"] and told.temperature_c is not None
    assert "gpu-thermal" not in told.health["temperatures_c"]


def test_asking_never_waits_for_a_read_that_hangs(begin: Callable[..., BoxWatch], root: Path) -> None:
    let_go = hang(root / "proc/meminfo")
    box = begin()
    end_ns = now_ns() + 10 * 10**9
    while box._files.at != "/proc/meminfo":
        assert now_ns() < end_ns
    assert all(box.told({}, box._heard_ns) is None for _ in range(200)), "each of them would have hung too"
    let_go()


def test_more_hung_files_than_a_kernel_can_have_are_told_and_no_thread_is_begun_for_them(
    begin: Callable[..., BoxWatch], root: Path
) -> None:
    zones = [root / f"sys/class/thermal/thermal_zone{at}/temp" for at in (0, 1, 3, 5, 7)]
    let_go = [hang(one) for one in zones]
    others = set(threading.enumerate())
    box = begin(SILENT_NS)
    until(box, lambda told: "thermal_zone7" in told.alarms.get("sensors_silent", ""))
    assert len(box._hung) == module._MOST_HUNG == 4
    for _ in range(3):
        until(box, partial(lambda before, told: told is not before, box.told({}, now_ns())))
    assert len(set(threading.enumerate()) - others) == 5
    for one in let_go:
        one()


class Broken(SystemClock):
    """A clock that fails until it is mended."""

    mended = False

    def quality(self) -> ClockQuality:
        if not self.mended:
            raise ZeroDivisionError("nobody foresaw it")
        return super().quality()


def test_a_look_that_fails_in_a_way_nobody_foresaw_is_told_and_the_next_one_is_tried(root: Path, data: Path) -> None:
    clock = Broken()
    box = BoxWatch(clock, data, root, PERIOD_NS, SILENT_NS)
    assert "see the log" in until(box, lambda told: "sensors_silent" in told.alarms).alarms["sensors_silent"]
    clock.mended = True
    assert "sensors_silent" not in until(box, lambda told: told.temperature_c is not None).alarms
    box.close()


# --- boots and the watchdog ---------------------------------------------------------------------------------------


def test_boots_are_counted_once_each(begin: Callable[..., BoxWatch], root: Path, data: Path) -> None:
    assert until(begin(), lambda told: told.health).health["boots"] == 1
    assert until(begin(), lambda told: told.health).health["boots"] == 1
    lay(root, boot("5.15.148-tegra", "another"))
    assert until(begin(), lambda told: told.health).health["boots"] == 2
    (data / "box.json").write_text('{"boots": "many"')
    assert until(begin(), lambda told: told.health).health["boots"] == 1


def test_a_watchdog_that_was_seen_to_fire_is_proven_for_this_driver_and_kernel(
    begin: Callable[..., BoxWatch], root: Path, data: Path
) -> None:
    reason = root / "sys/devices/platform/bus@0/c360000.pmc/reset_reason"
    assert "watchdog_unproven" in until(begin(), lambda told: told.health).alarms
    reason.write_text("BCCPLEXWDT\n")
    assert "watchdog_unproven" not in until(begin(), lambda told: told.health).alarms
    reason.write_text("MAINSWRST\n")
    lay(root, boot("5.15.148-tegra", "a later boot"))
    assert "watchdog_unproven" not in until(begin(), lambda told: told.health).alarms, "it is remembered"
    lay(root, boot("6.8.12-tegra", "of another kernel"))
    assert "watchdog_unproven" in until(begin(), lambda told: told.health).alarms
    assert json.loads((data / "box.json").read_text())["boots"] == 3


def test_a_disk_that_cannot_be_written_costs_the_count_alone(root: Path, tmp_path: Path) -> None:
    lay(root, {**agx_orin(), **watchdog("Tegra WDT")})
    (tmp_path / "file").write_text("no folder")
    box = BoxWatch(SystemClock(), tmp_path / "file", root, PERIOD_NS)
    told = until(box, lambda told: told.health)
    box.close()
    assert told.temperature_c == 61.5 and "boots" not in told.health
