"""From looks at the machine to warnings: limits, hysteresis, what is spared, and that nothing else is touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.box import derate
from appliance.box.derate import CODES, FLAGS, SECOND_NS, Condition, Watch, highest_rate, throttle_told
from appliance.box.sensors import Disk, Fan, Rail, Reading, Watchdog, Zone
from appliance.faults import FAULTS, sentence
from appliance.messages import Detail, PartClosed, Region, Stored
from appliance.report.ledger import Ledger

ORIN = Reading(0, chip="tegra234", power_mode="25W", watchdog=Watchdog("Tegra WDT", "active", 30), clock="synced")
CPU = Zone("cpu-thermal", 50.0, 99.0, 104.5, True)


class Line:
    """A watch and readings 5 s apart."""

    def __init__(self, **usual: Any) -> None:
        self.watch, self.usual, self.at_ns = Watch(), usual, 0
        self.modes: frozenset[str] = frozenset()
        self.proven = False

    def reads(self, times: int = 1, **changes: Any) -> Condition:
        """``times`` looks; the last one's condition."""
        self.usual |= changes
        for _ in range(times):
            self.at_ns += 5 * SECOND_NS
            told = self.watch.step(replace(ORIN, at_ns=self.at_ns, **self.usual), self.modes, self.proven)
        return told


def hot(celsius: float, zone: Zone = CPU) -> tuple[Zone, ...]:
    return (replace(zone, celsius=celsius),)


def test_every_alarm_has_its_row_and_warns_only() -> None:
    rows = {code: FAULTS[code] for code in CODES | {"sensors_silent"}}
    assert {one.effect for one in rows.values()} == {"warn"}
    assert len({one.number for one in FAULTS.values()}) == len(FAULTS)
    assert all(len(sentence(code, "what")) < 200 for code in rows)


# --- heat ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "limit"),
    [
        (CPU, 99.0),
        (Zone("tj-thermal", 50.0, None, 104.5, True), 99.0),
        (Zone("gpu-thermal", 50.0, None, None, True), 95.0),
        (Zone("nvme", 50.0, 83.85, 89.85), 83.85),
    ],
)
def test_near_the_zones_own_limit_is_too_hot_and_clears_far_below_after_a_minute(zone: Zone, limit: float) -> None:
    line = Line()
    assert "too_hot" not in line.reads(5, zones=hot(limit - 5.1, zone)).alarms
    assert zone.name in line.reads(zones=hot(limit - 5.0, zone)).alarms["too_hot"]
    assert "too_hot" in line.reads(50, zones=hot(limit - 9.9, zone)).alarms, "between the limits it stays as it was"
    assert "too_hot" in line.reads(11, zones=hot(limit - 10.0, zone)).alarms
    assert "too_hot" not in line.reads(1).alarms


def test_a_zone_of_which_nobody_knows_the_limit_is_not_judged() -> None:
    assert Line().reads(5, zones=hot(120.0, Zone("iwlwifi_1", 0.0))).alarms == {}


def test_heat_that_breathes_around_the_limit_raises_once() -> None:
    line, raised = Line(), []
    for turn in range(60):
        raised.append("too_hot" in line.reads(2, zones=hot(94.2 if turn % 2 else 88.5)).alarms)
    assert raised == [False] + [True] * 59


def test_a_hot_zone_that_tells_no_more_is_not_well() -> None:
    line = Line()
    line.reads(zones=hot(97.0))
    assert "too_hot" in line.reads(100, zones=()).alarms
    assert "too_hot" not in line.reads(12, zones=hot(50.0)).alarms


def test_a_hot_zone_that_tells_no_more_is_not_well_beside_a_cool_one() -> None:
    line = Line()
    line.reads(zones=hot(98.0, Zone("gpu-thermal", 0.0, silicon=True)))
    assert "gpu-thermal" in line.reads(100, zones=hot(60.0)).alarms["too_hot"]
    both = (*hot(60.0), *hot(60.0, Zone("gpu-thermal", 0.0, silicon=True)))
    assert "too_hot" not in line.reads(12, zones=both).alarms


def test_throttling_is_told_by_the_cooling_device_or_by_the_trip() -> None:
    assert Line().reads(throttling=("gpu-throttle-alert",)).alarms["throttled"] == "gpu-throttle-alert"
    assert "cpu-thermal 99" in Line().reads(zones=hot(99.0)).alarms["throttled"]
    assert "throttled" not in Line().reads(zones=hot(98.9)).alarms


# --- power ----------------------------------------------------------------------------------------------------------


def test_under_voltage_is_a_difference_and_stands_ten_minutes() -> None:
    line = Line()
    assert line.reads(events={"oc1": 7, "oc2": 0, "oc3": 0}).alarms == {}, "the first look says nothing"
    assert line.reads(events={"oc1": 9, "oc2": 0, "oc3": 0}).alarms["under_voltage"] == "2 times in the last seconds"
    assert "under_voltage" in line.reads(119).alarms
    assert line.reads(1).alarms == {}


def test_current_peaks_are_normal_and_an_average_is_not() -> None:
    line = Line(events={"oc1": 0, "oc2": 0, "oc3": 0})
    line.reads()
    assert line.reads(events={"oc1": 0, "oc2": 0, "oc3": 5000}).alarms == {}
    assert "cut 1 times" in line.reads(events={"oc1": 0, "oc2": 1, "oc3": 9000}).alarms["over_current"]


def test_a_counter_that_began_anew_counts_from_nought() -> None:
    line = Line(events={"oc1": 9})
    line.reads()
    assert line.reads(events={"oc1": 2}).alarms["under_voltage"].startswith("2 times")


def test_a_counter_that_comes_late_or_comes_back_is_no_event() -> None:
    line = Line(events={})
    line.reads()
    assert line.reads(events={"oc1": 4}).alarms == {}
    assert line.reads(events={}).alarms == {} and line.reads(events={"oc1": 4}).alarms == {}


def test_counters_of_another_chip_are_told_raw() -> None:
    line = Line(chip="tegra194", events={"oc1": 0, "oc3": 0})
    line.reads()
    told = line.reads(events={"oc1": 2, "oc3": 1}).alarms
    assert set(told) == {"throttled"} and told["throttled"] == "oc1 2 times, oc3 1 times"


def test_a_rail_above_its_limit_is_told_when_it_stays() -> None:
    line = Line(rails=(Rail("VDD_IN", 19.0, 2.0, ("crit",)),))
    assert line.reads(2).alarms == {}
    assert line.reads(1).alarms == {"over_current": "VDD_IN above its crit limit"}
    blinking = Line()
    for _ in range(20):
        blinking.reads(2, rails=(Rail("VDD_IN", 19.0, 2.0, ("crit",)),))
        assert blinking.reads(rails=(Rail("VDD_IN", 19.0, 2.0),)).alarms == {}


def test_another_power_mode_than_at_the_engines_build() -> None:
    line = Line()
    line.modes = frozenset({"MAXN_SUPER"})
    assert line.reads().alarms["power_mode"] == "25W now, MAXN_SUPER when the engine was built"
    assert line.reads(power_mode="MAXN_SUPER").alarms == {}, "a person has set it: nothing to wait for"
    assert line.reads(power_mode=None).alarms == {}
    line.modes = frozenset()
    assert line.reads(power_mode="7W").alarms == {}, "no engine of a GPU, nothing to compare"


# --- fan, disk, clock, watchdog ---------------------------------------------------------------------------------------


def test_a_fan_is_stopped_when_it_is_asked_to_turn_for_some_looks() -> None:
    line = Line()
    assert line.reads(2, fans=(Fan("pwmfan", 0, 0.8),)).alarms == {}, "it may be starting"
    assert line.reads().alarms == {"fan_stopped": "pwmfan"}
    assert Line().reads(9, fans=(Fan("pwmfan", 0, 0.1),)).alarms == {}, "asked for so little it need not turn"
    assert Line().reads(9, fans=(Fan("pwmfan", None, 1.0), Fan("tach", 0, None))).alarms == {}


@pytest.mark.parametrize(
    ("total_gb", "raises_gb", "stays_gb", "clears_gb"), [(16, 0.79, 1.1, 1.21), (500, 1.9, 2.9, 3.1)]
)  # fmt: skip
def test_a_disk_that_is_nearly_full(total_gb: float, raises_gb: float, stays_gb: float, clears_gb: float) -> None:
    def disk(free_gb: float) -> tuple[Disk, ...]:
        return (Disk("/roomy", 10**12, 10**11), Disk("/var/lib/appliance", round(total_gb * 1e9), round(free_gb * 1e9)))

    line = Line()
    assert line.reads(disks=disk(clears_gb)).alarms == {}
    assert "/var/lib/appliance" in line.reads(disks=disk(raises_gb)).alarms["disk_nearly_full"]
    assert "disk_nearly_full" in line.reads(30, disks=disk(stays_gb)).alarms
    assert line.reads(13, disks=disk(clears_gb)).alarms == {}


def test_what_is_free_when_the_disk_is_told_is_room_for_a_million_parts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", "acme/plant1/packing/line3/inspect-a", False)
    digest, parts = "sha256:" + "0" * 64, 500
    model = {"name": "cap-28mm", "digest": digest, "precision": "int8", "engine": "tensorrt-10.3.0/sm87"}
    region = Region("top", "scratch", 0.97, (412, 300, 38, 12), 211)
    for n in range(1, parts + 1):
        part = PartClosed(
            n, 10**6 + n, "01JD7" + "X" * 21, n, 1_767_225_600_000_000 + n, "synced", "fail", "scratch", 0.97, 0.6, 2, "reject",
            "verdict", True, "yes", True, 1.0, 0.2, 1.5, 0.1, 12.0, 808.0, 796.0, 828.0, 41, "cap-28mm", 1,
        )  # fmt: skip
        image = Stored(n, "top", f"2026/11/23/{n}-top.jpg", "0" * 64)
        ledger.append_part("j", part, Detail(n, "cap-28mm", 1, digest, model, (region,), 1), [image])
    ledger.commit()
    ledger.close()
    taken = sum(file.stat().st_size for file in tmp_path.iterdir()) / parts
    assert 500 < taken < derate.DISK_BYTES / 1e6, f"{taken:.0f} bytes a part"


def test_a_clock_that_was_never_set_is_told_after_a_minute() -> None:
    line = Line(clock="unset")
    assert line.reads(11).alarms == {} and set(line.reads(1).alarms) == {"clock_unset"}
    assert line.reads(clock="holdover").alarms == {}


@pytest.mark.parametrize(
    ("watchdog", "proven", "doubt"),
    [
        (None, False, "none"),
        (Watchdog("Tegra WDT", "inactive", 120), True, "nobody feeds it"),
        (Watchdog("NVIDIA Tegra186 WDT", "active", 30), False, "never fires"),
        (Watchdog("NVIDIA Tegra186 WDT", "active", 30), True, ""),
        (Watchdog("Tegra WDT", "active", 30), False, ""),
    ],
)
def test_a_watchdog_is_believed_once_it_was_seen_to_fire_or_is_not_the_one_that_feeds_itself(
    watchdog: Watchdog | None, proven: bool, doubt: str
) -> None:
    line = Line(watchdog=watchdog)
    line.proven = proven
    told = line.reads().alarms
    assert (doubt in told["watchdog_unproven"]) if doubt else told == {}


def test_a_laptop_needs_no_watchdog() -> None:
    assert Line(chip=None, watchdog=None).reads().alarms == {}


# --- what is spared ------------------------------------------------------------------------------------------------


def test_heat_spares_the_images_of_passed_parts_and_says_so() -> None:
    line = Line()
    assert line.reads(zones=hot(60.0)).keep_passes
    told = line.reads(zones=hot(95.0))
    assert not told.keep_passes and "images of passed parts are not kept while too_hot stands" in told.measures[0]
    assert line.reads(12, zones=hot(60.0)).keep_passes


@pytest.mark.parametrize("code", sorted(CODES))
def test_only_heat_and_power_spare_anything(code: str) -> None:
    spares = {"too_hot", "throttled", "under_voltage", "over_current"}
    assert bool(derate.measures({code: ""})) == (code in spares)


@pytest.mark.parametrize(("taken", "rate"), [(20.0, 3000), (33.4, 1796), (0.0, None), (None, None), (float("nan"), None)])
def test_the_highest_rate_that_a_judge_serves(taken: float | None, rate: int | None) -> None:
    assert highest_rate(taken) == rate


def test_flags_tell_now_and_once() -> None:
    line = Line()
    assert line.reads(zones=hot(60.0)).flags == 0
    assert line.reads(zones=hot(95.0)).flags == FLAGS["too_hot"] | FLAGS["too_hot"] << 8
    assert line.reads(12, zones=hot(60.0)).flags == FLAGS["too_hot"] << 8
    assert max(FLAGS.values()) < 1 << 8 and len(set(FLAGS.values())) == len(FLAGS)


# --- in words -----------------------------------------------------------------------------------------------------------


def test_under_voltage_names_the_supply_and_peaks_do_not_alarm() -> None:
    before = {"oc1": 1, "oc2": 0, "oc3": 100}
    assert throttle_told(before, before, "tegra234") is None
    told = throttle_told(before, {**before, "oc1": 3}, "tegra234")
    assert told == "under-voltage 2 times: check the supply and its cable"
    assert "normal" in (throttle_told(before, {**before, "oc3": 140}, "tegra234") or "")


def test_codes_of_another_chip_are_told_raw() -> None:
    told = throttle_told({"oc1": 0, "oc3": 0}, {"oc1": 2, "oc3": 1}, "tegra194")
    assert told == "throttle events since the last look: oc1 2, oc3 1"


@pytest.mark.parametrize("figures", [{}, {"judge_ms": None}, {"judge_ms": {"p99": "x"}}, {"engine_power_modes": "25W"}])
def test_figures_of_inspectd_that_are_none_are_not_known(figures: dict[str, Any]) -> None:
    assert derate.judge_ms(figures) is None and derate.engine_modes(figures) == frozenset()


ANY_READING = st.builds(
    Reading, at_ns=st.just(0), chip=st.sampled_from([None, "tegra234", "tegra194"]),
    zones=st.lists(st.builds(
        Zone, st.sampled_from(["tj-thermal", "x"]), st.floats(-60, 150), st.none() | st.floats(0, 150),
        st.none() | st.floats(0, 150), st.booleans(),
    ), max_size=3).map(tuple),
    events=st.dictionaries(st.sampled_from(["oc1", "oc2", "oc3"]), st.integers(0, 2**63 - 1)),
    fans=st.lists(st.builds(Fan, st.just("f"), st.none() | st.integers(0, 30000), st.none() | st.floats(0, 1))).map(tuple),
    disks=st.lists(st.builds(Disk, st.just("/"), st.integers(1, 2**60), st.integers(0, 2**60)), max_size=2).map(tuple),
    power_mode=st.none() | st.sampled_from(["15W", "25W"]), clock=st.sampled_from([None, "unset", "synced"]),
)  # fmt: skip


@given(st.lists(ANY_READING, max_size=12))
def test_whatever_is_read_the_watch_tells_known_codes_and_spares_only_passes(readings: list[Reading]) -> None:
    watch = Watch()
    for at, reading in enumerate(readings):
        told = watch.step(replace(reading, at_ns=at * 5 * SECOND_NS), frozenset({"25W"}), False)
        assert told.alarms.keys() <= CODES and all(len(sentence(code, what)) < 500 for code, what in told.alarms.items())
        assert told.keep_passes == (not told.alarms.keys() & {"too_hot", "throttled", "under_voltage", "over_current"})
        assert 0 <= told.flags <= 0xFFFF and told.flags & 0xFF == told.flags & 0xFF & (told.flags >> 8)
