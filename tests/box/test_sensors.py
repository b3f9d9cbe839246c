"""What the machine tells of itself: boards laid out as folders, files that are missing, garbled, beyond what can be."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.box.sensors import Fan, Rail, Reading, Zone, as_health, cpu_load, read
from appliance.box.sysfs import Files
from tests.box.trees import BOARDS, hwmon, lay, orin_nano, rail, zone


def look(root: Path, *disks: Path) -> Reading:
    return read(Files(root), 1, disks)


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    return lay(tmp_path, orin_nano())


def zones(reading: Reading) -> dict[str, float]:
    return {one.name: one.celsius for one in reading.zones}


# --- each board ------------------------------------------------------------------------------------------------


def test_an_orin_nano_tells_everything_by_name(orin: Path) -> None:
    found = look(orin)
    assert found.chip == "tegra234" and found.power_mode == "MAXN_SUPER" and found.kernel == "5.15.148-tegra"
    assert zones(found) == {
        "cpu-thermal": 51.25, "gpu-thermal": 48.0, "soc2-thermal": 49.5, "tj-thermal": 52.125, "nvme": 43.85,
    }  # fmt: skip
    assert found.hottest == Zone("tj-thermal", 52.125, None, 104.5, True)
    assert {one.name: (one.throttles_at, one.shuts_down_at) for one in found.zones}["cpu-thermal"] == (99.0, 104.5)
    assert found.events == {"oc1": 0, "oc2": 3, "oc3": 41} and found.throttling == ()
    assert [one.name for one in found.rails] == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]
    assert found.rails[0].watts == pytest.approx(10.296) and found.rails[0].over == ()
    assert found.gpu is not None and (found.gpu.load, found.gpu.mhz, found.gpu.max_mhz) == (0.731, 1020.0, 1020.0)
    assert found.cpu is not None and found.cpu.online == 6
    assert found.cpu.mhz == {"policy0": 1728.0, "policy4": 729.6} and found.cpu.max_mhz["policy4"] == 1728.0
    assert found.fans == (Fan("pwmfan", 2311, 102 / 255),)
    assert found.memory is not None and found.memory.available == 4126712 * 1024
    assert [(one.name, one.worn) for one in found.storage] == [("nvme0n1", None)] and "root" in found.storage[0].why
    assert found.watchdog is not None and found.watchdog.identity == "NVIDIA Tegra186 WDT" and found.watchdog.timeout_s == 30
    assert found.reset_reason == "MAINSWRST" and not found.watchdog_fired
    assert list(found.unreadable) == ["/sys/class/thermal/thermal_zone1/temp"], "cv0 sleeps at -256"


def test_an_agx_orin_has_two_monitors_an_emmc_and_was_reset_by_its_watchdog(tmp_path: Path) -> None:
    found = look(lay(tmp_path, BOARDS["agx_orin"]()))
    assert [one.name for one in found.rails] == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]
    assert found.rails[2].over == ("max",)
    assert [(one.name, one.worn) for one in found.storage] == [("mmcblk0", 0.2)], "the more worn of both kinds of cells"
    assert found.watchdog_fired and found.power_mode == "MODE_50W" and found.fans == (Fan("tegra_pwmfan", 4100, 1.0),)
    assert found.gpu is not None and found.gpu.load == 0.0


def test_thor_has_no_load_and_no_counters(tmp_path: Path) -> None:
    found = look(lay(tmp_path, BOARDS["thor"]()))
    assert found.chip == "tegra264" and found.events == {} and found.rails == ()
    assert found.gpu is not None and (found.gpu.load, found.gpu.mhz) == (None, 1575.0)
    assert found.fans == (Fan("f75308", 1700, 90 / 255),) and found.unreadable == {}


def test_xavier_spells_in_capitals_and_counts_interrupts(tmp_path: Path) -> None:
    found = look(lay(tmp_path, BOARDS["xavier"]()))
    assert zones(found) == {"cpu-therm": 41.5, "gpu-therm": 40.0, "thermal-fan-est": 40.75}, "PMIC-Die measures nothing"
    assert found.events == {"oc1": 0, "oc2": 0, "oc3": 4} and found.fans == (Fan("tegra-pwmfan", None, 0.0),)
    assert found.hottest is not None and found.hottest.name == "cpu-therm"


def test_jetpack_seven_moves_the_modes_and_nothing_else(tmp_path: Path) -> None:
    found = look(lay(tmp_path, BOARDS["orin_on_seven"]()))
    assert found.power_mode == "15W" and found.events["oc3"] == 41


def test_a_plain_computer_has_little_and_that_is_no_fault(tmp_path: Path) -> None:
    found = look(lay(tmp_path, BOARDS["plain_pc"]()))
    assert found.chip is None and found.rails == () and found.fans == () and found.throttling == ()
    assert found.unreadable == {}, "a trip at 0 or -274 says that none is set"
    assert {one.name: one.throttles_at for one in found.zones}["x86_pkg_temp"] is None


def test_this_very_machine_is_read_and_told(tmp_path: Path) -> None:
    found = look(Path("/"), tmp_path, Path("/"))
    assert found.memory is not None and found.cpu is not None and found.cpu.online == os.cpu_count()
    assert 1 <= len(found.disks) <= 2 and found.disks[0].free > 0
    assert json.loads(json.dumps(as_health(found)))["memory_mb"]["total"] > 0


def test_nothing_at_all_is_a_reading_too(tmp_path: Path) -> None:
    assert look(tmp_path) == Reading(1)
    assert as_health(Reading(1)) == {}


# --- by name, never by number --------------------------------------------------------------------------------------


@pytest.mark.parametrize("board", BOARDS)
def test_other_numbers_of_the_same_devices_change_nothing(tmp_path: Path, board: str) -> None:
    before = look(lay(tmp_path / "one", BOARDS[board]()))
    renumbered = {
        re.sub(r"(hwmon|thermal_zone|cooling_device)(\d+)/", lambda found: f"{found[1]}{90 - int(found[2])}/", name): content
        for name, content in BOARDS[board]().items()
    }
    after = look(lay(tmp_path / "two", renumbered))
    assert after.hottest == before.hottest and zones(after) == zones(before) and after.events == before.events
    assert sorted(map(repr, after.rails)) == sorted(map(repr, before.rails)) and after.fans == before.fans
    assert after.throttling == before.throttling and after.gpu == before.gpu


def test_zones_of_one_type_give_the_hottest_and_the_lowest_trip(orin: Path) -> None:
    lay(orin, zone(30, "gpu-thermal", -5000, ("passive", 90000)))
    found = {one.name: one for one in look(orin).zones}["gpu-thermal"]
    assert (found.celsius, found.throttles_at) == (48.0, 90.0)


def test_an_active_trip_turns_a_fan_and_is_no_limit(orin: Path) -> None:
    assert {one.name: one.throttles_at for one in look(orin).zones}["tj-thermal"] is None


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        ("gpu-throttle-alert", True), ("cpufreq-cpu0", True), ("thermal-cpufreq-0", True), ("devfreq-17000000.gpu", True),
        ("pwm-fan", False), ("hot-surface-alert", False), ("TCC Offset", False), ("intel_powerclamp", False),
    ],
)  # fmt: skip
def test_a_cooling_device_that_makes_slower_is_throttling_and_a_fan_is_not(orin: Path, kind: str, counts: bool) -> None:
    folder = orin / "sys/class/thermal/cooling_device4"
    (folder / "type").write_text(kind)
    (folder / "cur_state").write_text("1\n")
    assert look(orin).throttling == ((kind,) if counts else ())


# --- what cannot be believed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["-274000", "1000000000", "150001", "-60001", "", "abc", "51.25", "0x20", "9" * 30, "5 1"])
def test_a_temperature_that_cannot_be_is_told_as_unreadable(orin: Path, value: str) -> None:
    (orin / "sys/class/thermal/thermal_zone3/temp").write_text(value)
    found = look(orin)
    assert "cpu-thermal" not in zones(found) and found.hottest is not None and found.hottest.name == "tj-thermal"
    assert value[:20] in found.unreadable["/sys/class/thermal/thermal_zone3/temp"]


@pytest.mark.parametrize(
    ("file", "value", "seen"),
    [
        ("sys/class/devfreq/17000000.gpu/device/load", "1001", lambda found: found.gpu.load),
        ("sys/class/devfreq/17000000.gpu/cur_freq", "1020", lambda found: found.gpu.mhz),
        ("sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "-1", lambda found: found.cpu.mhz.get("policy0")),
        ("sys/class/hwmon/hwmon1/in1_input", "19800000", lambda found: found.rails[0].watts),
        ("sys/class/hwmon/hwmon1/curr1_input", "-5", lambda found: found.rails[0].watts),
        ("sys/class/hwmon/hwmon4/pwm1", "256", lambda found: [one.duty for one in found.fans if one.duty is not None] or None),
        ("sys/class/hwmon/hwmon0/rpm", "1000000", lambda found: found.fans[0].rpm),
        ("sys/class/hwmon/hwmon6/oc1_event_cnt", "-1", lambda found: found.events.get("oc1")),
        ("sys/class/watchdog/watchdog0/timeout", "many", lambda found: found.watchdog.timeout_s),
    ],
)
def test_no_number_is_taken_beyond_what_its_device_can_tell(orin: Path, file: str, value: str, seen: object) -> None:
    (orin / file).write_text(value)
    found = look(orin)
    assert seen(found) is None, found  # type: ignore[operator]
    assert "/" + file in found.unreadable


def test_a_counter_that_cannot_be_read_is_no_zero(orin: Path) -> None:
    (orin / "sys/class/hwmon/hwmon6/oc1_event_cnt").unlink()
    assert look(orin).events == {"oc2": 3, "oc3": 41}


def test_a_read_that_fails_is_told_with_the_kernels_word_and_the_others_are_read(orin: Path) -> None:
    temp = orin / "sys/class/thermal/thermal_zone3/temp"
    temp.unlink()
    temp.symlink_to("/proc/self/mem")  # a real EIO, as of a block that is switched off
    found = look(orin)
    assert found.unreadable["/sys/class/thermal/thermal_zone3/temp"] == "Input/output error"
    assert "cpu-thermal" not in zones(found) and zones(found)["tj-thermal"] == 52.125


def test_a_switched_off_rail_shows_no_watts_and_no_sum_is_a_rail(orin: Path) -> None:
    (orin / "sys/class/hwmon/hwmon1/curr2_input").unlink()
    found = {one.name: one for one in look(orin).rails}
    assert found["VDD_CPU_GPU_CV"] == Rail("VDD_CPU_GPU_CV", 19.8, None) and found["VDD_CPU_GPU_CV"].watts is None
    assert "VDD_CPU_GPU_CV" not in as_health(look(orin))["rails_w"] and len(found) == 3


@pytest.mark.parametrize(("text", "cores"), [("0-5", 6), ("0,2-3", 3), ("0", 1), ("5-0", None), ("all", None), ("", None)])
def test_cores_are_counted(orin: Path, text: str, cores: int | None) -> None:
    (orin / "sys/devices/system/cpu/online").write_text(text + "\n")
    found = look(orin).cpu
    assert found is not None and found.online == cores


def test_load_is_the_share_between_two_looks(orin: Path) -> None:
    before = look(orin)
    (orin / "proc/stat").write_text("cpu  1060 0 520 8100 310 0 110 0 0 0\n")
    assert cpu_load(before, look(orin)) == 0.45  # 90 busy of 200
    assert cpu_load(look(orin), before) is None and cpu_load(None, before) is None, "a counter that went back says nothing"


def test_a_guests_time_is_counted_once(orin: Path) -> None:
    before = look(orin)
    (orin / "proc/stat").write_text("cpu  1060 0 500 8040 300 0 100 0 60 0\n")  # the 60 of the user are the guest's
    assert cpu_load(before, look(orin)) == 0.6


def test_more_memory_than_there_is_is_no_memory(orin: Path) -> None:
    (orin / "proc/meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 1001 kB\n")
    assert look(orin).memory is None and "/proc/meminfo" in look(orin).unreadable


@pytest.mark.parametrize(("text", "worn"), [("0x00 0x00", None), ("0x0B 0x01", 1.1), ("garbage", None), ("0xff 0x01", 0.1)])
def test_the_wear_of_an_emmc(tmp_path: Path, text: str, worn: float | None) -> None:
    lay(tmp_path, {"sys/block/mmcblk1/device/life_time": text + "\n", "sys/block/loop0/device/life_time": "0x01 0x01"})
    assert [one.worn for one in look(tmp_path).storage] == ([worn] if worn else [])


def test_a_file_that_hung_once_is_left_alone_and_told(orin: Path) -> None:
    name = "/sys/class/thermal/thermal_zone0/temp"
    found = read(Files(orin, [name]), 1)
    assert "gpu-thermal" not in zones(found) and "left alone" in found.unreadable[name]


def test_two_fans_stay_two(tmp_path: Path) -> None:
    lay(tmp_path, {**hwmon(0, "pwmfan", pwm1=255, fan1_input=0), **hwmon(1, "f75308", pwm1=128, fan1_input=900)})
    assert look(tmp_path).fans == (Fan("f75308", 900, 128 / 255), Fan("pwmfan", 0, 1.0))


def test_a_monitor_of_another_make_is_no_power_monitor(tmp_path: Path) -> None:
    assert look(lay(tmp_path, hwmon(0, "ina219", **rail(1, "VDD_IN", 5000, 1)))).rails == ()


# --- anything at all ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


NONSENSE = st.one_of(
    st.binary(max_size=40),
    st.integers(-(2**70), 2**70).map(lambda value: str(value).encode()),
    st.sampled_from([b"", b"\0", b"\n", b"-", b"0x", b"nan", b"1e9", b"-274000", b"0-9999", b"\xff\xfe", b"1 2 3"]),
)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=40)
def test_missing_and_garbled_files_never_raise_and_never_give_a_number_that_cannot_be(fuzzed: Path, data: st.DataObject) -> None:
    tree = BOARDS[data.draw(st.sampled_from(sorted(BOARDS)))]()
    names = st.lists(st.sampled_from(sorted(tree)), max_size=12, unique=True)
    for name in data.draw(names):
        del tree[name]
    for name in data.draw(names):
        tree[name] = data.draw(NONSENSE)
    with tempfile.TemporaryDirectory(dir=fuzzed) as folder:
        found = read(Files(lay(Path(folder), tree)), 1)
    json.dumps(as_health(found))
    assert all(-60 <= one.celsius <= 150 for one in found.zones)
    assert all(0 < trip <= 150 for one in found.zones for trip in (one.throttles_at, one.shuts_down_at) if trip is not None)
    assert all(0 <= (one.volts or 0) <= 100 and 0 <= (one.amperes or 0) <= 100 for one in found.rails)
    assert found.gpu is None or (0 <= (found.gpu.load or 0) <= 1 and 1 <= (found.gpu.mhz or 1) <= 10_000)
    assert found.cpu is None or all(1 <= one <= 10_000 for one in (*found.cpu.mhz.values(), *found.cpu.max_mhz.values()))
    assert all(0 <= (one.rpm or 0) <= 30_000 and 0 <= (one.duty or 0) <= 1 for one in found.fans)
    assert all(count >= 0 for count in found.events.values())
    assert found.memory is None or 0 <= found.memory.available <= found.memory.total


@given(st.sampled_from(sorted(BOARDS)), st.integers(-(10**6), 10**6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
def test_a_number_that_is_taken_is_the_files_own_in_the_unit_of_its_name(fuzzed: Path, board: str, milli: int) -> None:
    with tempfile.TemporaryDirectory(dir=fuzzed) as folder:
        found = read(Files(lay(Path(folder), {**BOARDS[board](), **zone(77, "fuzz-thermal", milli)})), 1)
    assert zones(found).get("fuzz-thermal") == (milli / 1000 if -60_000 <= milli <= 150_000 else None)
