"""From looks at the machine to warnings with hysteresis, and what the station does by itself when it is hot. Pure.

Nothing here changes a verdict, a deadline or what the gate does. What is spared when the box is hot is the keeping of
images of *passed* parts (copying, developing, JPEG, disk): they show nothing that was rejected. Golden vectors are replayed
as ever: eight inferences in hours warm nothing, and a hot GPU is the one to be watched (law 7). Engines are built and
benched at a person's word alone, so there is nothing in the background to put off."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.box.jetson import ORIN
from appliance.box.sensors import Reading, Zone

SECOND_NS = 1_000_000_000

WARN_BELOW_C = 5.0  # told before the clocks fall: at the trip itself the parts are late already
CLEAR_BELOW_C = 10.0  # as far again, or a box at its limit raises and clears with every breath of the fan
# tegra234's device tree: cpu, gpu and soc zones throttle at 99.0 and shut down at 104.5; tj has the shutdown alone.
THROTTLE_BELOW_SHUTDOWN_C = 5.5
# A place inside the chip that tells no trip: four degrees more careful than Orin's own 99.
DEFAULT_THROTTLE_C = 95.0

WELL_NS = 60 * SECOND_NS  # of well readings before a state clears: longer than a fan takes to turn up and down once
EVENT_NS = 600 * SECOND_NS  # an event is over as it is counted; it stands this long, or nobody sees it
STANDING = 3  # readings in a row before a state is told: a fan that starts, a peak of current, are none
CLOCK_READINGS = 12  # a minute: time synchronisation needs some of it after each boot

FAN_DUTY = 0.3  # below it many fans do not turn, and need not
# 5 % is what ext4 keeps for root by default. 2 GB are more than a million parts in the ledger (tests/box/test_derate.py
# measures it), a week of 100 parts/min: time to look at it.
DISK_SHARE, DISK_BYTES = 0.05, 2e9
DISK_CLEAR = 1.5  # times as much free before it clears

MAINLINE_WATCHDOG = "NVIDIA Tegra186 WDT"

# The PLC's register 42; the same shifted by 8: it stood once since reportd's start.
FLAGS = {"too_hot": 1 << 0, "throttled": 1 << 1, "under_voltage": 1 << 2, "over_current": 1 << 3, "fan_stopped": 1 << 4}
SPARE_FOR = frozenset({"too_hot", "throttled", "under_voltage", "over_current"})
CODES = frozenset({*FLAGS, "power_mode", "disk_nearly_full", "clock_unset", "watchdog_unproven"})


@dataclass(frozen=True)
class Finding:
    """One state in one look. ``bad`` None: between the limits or not known, so it stays as it was."""

    bad: bool | None
    what: str = ""
    where: str = ""
    """The part of the machine that it is about, where another may be well."""


@dataclass
class _Standing:
    """One alarm's memory."""

    readings: int = 0
    raised: bool = False
    what: str = ""
    where: str = ""
    bad_ns: int = 0


@dataclass(frozen=True)
class Condition:
    """How the machine stands. ``alarms``: code -> particulars; ``flags``: register 42; ``measures``: what was derated."""

    alarms: Mapping[str, str]
    flags: int
    measures: tuple[str, ...]

    @property
    def keep_passes(self) -> bool:
        """Whether images of passed parts are kept as the configuration says."""
        return not self.measures


class Watch:
    """Hears one Reading after another; remembers what stands."""

    def __init__(self) -> None:
        self._before: Reading | None = None
        self._standing = {code: _Standing() for code in CODES}
        self._flags_once = 0

    def step(self, reading: Reading, engine_modes: frozenset[str], watchdog_proven: bool) -> Condition:
        """One look. ``engine_modes``: power modes in which the engines that run were built; empty = not known or no GPU.
        ``watchdog_proven``: it was seen to reset this machine."""
        before, self._before = self._before, reading
        events = since(before, reading)
        for code, finding, readings, well_ns in (
            ("too_hot", too_hot(reading, self._standing["too_hot"].where), 1, WELL_NS),
            ("throttled", throttled(reading, events), 1, WELL_NS),
            ("under_voltage", under_voltage(reading, events), 1, EVENT_NS),
            ("over_current", over_current(reading, events), 1 if events.get("oc2") else STANDING, EVENT_NS),
            ("power_mode", power_mode(reading, engine_modes), 1, 0),
            ("fan_stopped", fan_stopped(reading), STANDING, WELL_NS),
            ("disk_nearly_full", disk_nearly_full(reading), 1, WELL_NS),
            ("clock_unset", clock_unset(reading), CLOCK_READINGS, 0),
            ("watchdog_unproven", watchdog_unproven(reading, watchdog_proven), 1, 0),
        ):
            self._judge(self._standing[code], finding, reading.at_ns, readings, well_ns)
        alarms = {code: self._standing[code].what for code in sorted(CODES) if self._standing[code].raised}
        flags = sum(bit for code, bit in FLAGS.items() if code in alarms)
        self._flags_once |= flags << 8
        return Condition(alarms, flags | self._flags_once, measures(alarms))

    def _judge(self, one: _Standing, finding: Finding, at_ns: int, readings: int, well_ns: int) -> None:
        if finding.bad:
            one.readings += 1
            one.bad_ns = at_ns
            if one.raised or one.readings >= readings:
                one.raised, one.what, one.where = True, finding.what, finding.where
        elif finding.bad is False:
            one.readings = 0
            if one.raised and at_ns - one.bad_ns >= well_ns:
                one.raised, one.what, one.where = False, "", ""
        else:
            one.bad_ns = at_ns if one.raised else one.bad_ns  # what is not known is not well


def measures(alarms: Mapping[str, str]) -> tuple[str, ...]:
    """What the station spares while these alarms stand, in words."""
    causes = sorted(SPARE_FOR & alarms.keys())
    if not causes:
        return ()
    return (f"images of passed parts are not kept while {' and '.join(causes)} stands; verdicts and all else go on as ever",)


def highest_rate(judge_ms: float | None) -> int | None:
    """Parts a minute that one judge can serve who takes ``judge_ms`` for a part (the slowest of a hundred); None: not
    known. Line, gate and camera have limits of their own."""
    if judge_ms is None or not math.isfinite(judge_ms) or judge_ms <= 0:
        return None
    return math.floor(60_000 / judge_ms)


# --- heat ---------------------------------------------------------------------------------------------------


def limit_of(zone: Zone) -> tuple[float, str] | None:
    """From where on this zone makes the chip slower, and whose word that is; None: nobody knows, so it is not judged."""
    if zone.throttles_at is not None:
        return zone.throttles_at, "its own limit"
    if zone.shuts_down_at is not None:
        return zone.shuts_down_at - THROTTLE_BELOW_SHUTDOWN_C, f"it shuts down at {zone.shuts_down_at:g}"
    return (DEFAULT_THROTTLE_C, "taken for a chip that tells no limit") if zone.silicon else None


def too_hot(reading: Reading, raised: str) -> Finding:
    """Near the limit of any zone; well only when far below all of them. ``raised``: the zone that was too hot, "" = none;
    one that tells no more is not well, however cool the others are."""
    limits = [(zone, limit_of(zone)) for zone in reading.zones]
    judged = [(zone, *limit) for zone, limit in limits if limit is not None]
    if not judged:
        return Finding(None)
    zone, degrees, whose = max(judged, key=lambda one: one[0].celsius - one[1])
    if zone.celsius >= degrees - WARN_BELOW_C:
        return Finding(True, f"{zone.name} {zone.celsius:.0f} °C, slower from {degrees:.0f} °C on ({whose})", zone.name)
    if raised and (zone.celsius > degrees - CLEAR_BELOW_C or raised not in {one.name for one, *_ in judged}):
        return Finding(None)
    return Finding(False)


def throttled(reading: Reading, events: Mapping[str, int]) -> Finding:
    """Clocks are held back for heat; on chips whose counters nobody explains, also when any of them moved."""
    told = list(reading.throttling)
    told += [f"{zone.name} {zone.celsius:.0f} °C" for zone in reading.zones if _at_its_trip(zone)]
    if reading.chip != ORIN:
        told += [f"{name} {count} times" for name, count in events.items() if count]
    return Finding(bool(told), ", ".join(told)[:200])


def _at_its_trip(zone: Zone) -> bool:
    return zone.throttles_at is not None and zone.celsius >= zone.throttles_at


# --- power --------------------------------------------------------------------------------------------------


def since(before: Reading | None, now: Reading) -> dict[str, int]:
    """How far each throttle counter moved between two looks. The first look says nothing; a counter that fell began anew."""
    if before is None:
        return {}
    old = before.events
    return {name: count - old[name] if count >= old[name] else count for name, count in now.events.items() if name in old}


def under_voltage(reading: Reading, events: Mapping[str, int]) -> Finding:
    """Orin's first counter: the supply sagged. What it means on other chips is not known here."""
    count = events.get("oc1", 0) if reading.chip == ORIN else 0
    return Finding(count > 0, f"{count} times in the last seconds")


def over_current(reading: Reading, events: Mapping[str, int]) -> Finding:
    """Orin's second counter (average current), or a rail that stays above a limit. The third counts peaks: those are
    cut many times a minute in the highest power mode, and harm nothing."""
    count = events.get("oc2", 0) if reading.chip == ORIN else 0
    over = [f"{rail.name} above its {kind} limit" for rail in reading.rails for kind in rail.over]
    told = ([f"average current cut {count} times"] if count else []) + over
    return Finding(bool(told), ", ".join(told)[:200])


def power_mode(reading: Reading, engine_modes: frozenset[str]) -> Finding:
    """Another power mode than the engines were built and measured in."""
    now = reading.power_mode
    if now is None or not engine_modes:
        return Finding(False)
    built = ", ".join(sorted(engine_modes))
    return Finding(engine_modes != {now}, f"{now} now, {built} when the engine was built")


def fan_stopped(reading: Reading) -> Finding:
    """Asked to turn and standing still. A fan that tells no turns, or is not asked, is not judged."""
    still = [fan.name for fan in reading.fans if fan.rpm == 0 and fan.duty is not None and fan.duty >= FAN_DUTY]
    return Finding(bool(still), ", ".join(still))


# --- the rest -----------------------------------------------------------------------------------------------


def disk_nearly_full(reading: Reading) -> Finding:
    """Less free than 5 % or 2 GB, whichever is less: large disks need no 5 %, small ones cannot have 2 GB."""
    least, what = math.inf, ""
    for disk in reading.disks:
        share = disk.free / min(DISK_SHARE * disk.total, DISK_BYTES)
        if share < least:
            least, what = share, f"{disk.path}: {disk.free / 1e9:.1f} of {disk.total / 1e9:.0f} GB free"
    if not reading.disks or 1 <= least < DISK_CLEAR:
        return Finding(None)
    return Finding(least < 1, what)


def clock_unset(reading: Reading) -> Finding:
    """Wall time was never set: records carry no time that can be believed."""
    return Finding(None if reading.clock is None else reading.clock == "unset")


def watchdog_unproven(reading: Reading, proven: bool) -> Finding:
    """Whether a frozen box would be reset. Only Tegra modules are judged: a laptop needs none."""
    if reading.chip is None:
        return Finding(False)
    watchdog = reading.watchdog
    if watchdog is None:
        return Finding(True, "there is none")
    if watchdog.state is not None and watchdog.state != "active":
        return Finding(True, f"{watchdog.identity}: {watchdog.state}, nobody feeds it: RuntimeWatchdogSec= in systemd")
    if watchdog.identity == MAINLINE_WATCHDOG and not proven:
        return Finding(True, f"{watchdog.identity}: some kernels feed this one themselves, so that it never fires")
    return Finding(False)


def throttle_told(before: Mapping[str, int], now: Mapping[str, int], chip: str | None) -> str | None:
    """What the counters counted between two looks, in words; None when nothing."""
    moved = {name: count for name, count in since(Reading(0, events=before), Reading(0, events=now)).items() if count}
    if not moved:
        return None
    if chip != ORIN:  # the codes mean other things there
        return "throttle events since the last look: " + ", ".join(f"{name} {count}" for name, count in sorted(moved.items()))
    words = {
        "oc1": "under-voltage {} times: check the supply and its cable",
        "oc2": "average current over its limit {} times: take a lower power mode",
        "oc3": "current peaks cut {} times, which is normal in the highest power mode",
    }
    return "; ".join(words.get(name, f"{name} {{}} times").format(count) for name, count in sorted(moved.items()))


def judge_ms(inspect: Mapping[str, Any]) -> float | None:
    """How long inspectd takes for a part (p99), out of its figures of the health topic; None: not told yet."""
    told = inspect.get("judge_ms")
    value = told.get("p99") if isinstance(told, Mapping) else None
    return float(value) if isinstance(value, (int, float)) else None


def engine_modes(inspect: Mapping[str, Any]) -> frozenset[str]:
    """The power modes in which inspectd's engines were built, out of the same figures."""
    told = inspect.get("engine_power_modes")
    return frozenset(str(one) for one in told) if isinstance(told, (list, tuple)) else frozenset()
