"""What the machine tells of itself: heat, power, clocks, fan, memory, disks, watchdog. By name, never by number.

What is not there is None or left out: boards and releases differ, and a laptop has none of it. What is there and tells
what cannot be is in ``Reading.unreadable``, with the reason."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.box.jetson import board_of, power_mode, power_modes
from appliance.box.sysfs import Files

# What a device of that kind can measure, in the unit of its file; beyond it the file is told as unreadable.
_MILLICELSIUS = (-60_000, 150_000)  # silicon works from -40 to 125
_TRIP_MILLICELSIUS = (1, 150_000)  # 0 and below, and what nothing survives: no trip is set
_MILLIVOLT, _MILLIAMPERE = (0, 100_000), (0, 100_000)
_COUNT = (0, 2**63 - 1)
_PERMILLE = (0, 1000)
_HERTZ, _KILOHERTZ = (1_000_000, 10_000_000_000), (1_000, 10_000_000)
_RPM, _PWM = (0, 30_000), (0, 255)
_SECONDS = (0, 10_000_000)

_GPU_NODES = frozenset({"gv11b", "gp10b", "ga10b", "gb10b", "gpu"})
_THOR_GPU = "gpu-gpc-0"
_OVERCURRENT = "soctherm_oc"
_EVENT_COUNT = re.compile(r"(oc[1-9])_(?:event|irq)_cnt")  # event: JetPack 5 and later; irq: before
_POWER_MONITOR = "ina3221"
_NO_RAIL = frozenset({"nc", "sum of shunt voltages"})
_FANS = frozenset({"pwmfan", "pwm-fan", "pwm_fan", "tegra_pwmfan", "tegra-pwmfan", "f75308"})
# Cooling devices that are at work only when something is made slower for its heat; fans are cooling devices too.
_THROTTLING = re.compile(r"(?i)[\w-]*throttle-alert|(thermal-)?(cpufreq|devfreq)[\w.-]*|processor")
# A fixed 100 degrees on every module that has it: a zone that measures nothing.
_NOT_MEASURED = frozenset({"pmic-die"})
# Where no zone says the hottest place by itself: those inside the processor's silicon.
_SILICON = re.compile(r"(tj|cpu|gpu|aux|soc\d*|cv\d*|ao|bcpu|mcpu|x86_pkg|acpi)[\w-]*")
_DISK = re.compile(r"(mmcblk\d+|nvme\d+n\d+)")
_MOST_TOLD = 20  # unreadable files in the health topic
_PROCESSOR_WATCHDOG = re.compile(r"[BLM]?CCPLEXWDT|TOP\d?WDT", re.IGNORECASE)


@dataclass(frozen=True)
class Zone:
    """One thermal zone, by its type in lower case. Degrees Celsius; ``throttles_at`` and ``shuts_down_at`` are its own
    trips, None = it does not tell. ``silicon``: a place inside the processor."""

    name: str
    celsius: float
    throttles_at: float | None = None
    shuts_down_at: float | None = None
    silicon: bool = False


@dataclass(frozen=True)
class Rail:
    """One power rail of an ina3221. ``over``: its alarms that stand ("max": average, "crit": peak)."""

    name: str
    volts: float | None
    amperes: float | None
    over: tuple[str, ...] = ()

    @property
    def watts(self) -> float | None:
        """None where voltage or current is not told."""
        return None if self.volts is None or self.amperes is None else self.volts * self.amperes


@dataclass(frozen=True)
class Gpu:
    """``load`` 0..1 (None: not told, as on Thor), clocks in MHz."""

    load: float | None
    mhz: float | None
    max_mhz: float | None


@dataclass(frozen=True)
class Cpu:
    """``online``: cores; ``mhz`` by cpufreq policy; ``busy`` and ``all_time``: ticks since boot, only differences say
    anything."""

    online: int | None
    mhz: Mapping[str, float]
    max_mhz: Mapping[str, float]
    busy: int | None = None
    all_time: int | None = None


@dataclass(frozen=True)
class Fan:
    """``rpm``: measured; ``duty`` 0..1: asked for. None = no such wire."""

    name: str
    rpm: int | None
    duty: float | None


@dataclass(frozen=True)
class Memory:
    """Bytes. ``available``: what programs can still get."""

    total: int
    available: int
    swap_free: int | None = None


@dataclass(frozen=True)
class Disk:
    """A file system that the station writes to. Bytes; ``free``: what an ordinary user may still write."""

    path: str
    total: int
    free: int


@dataclass(frozen=True)
class Storage:
    """A device's own word on its wear: ``worn`` 0..1.1 of its promised life, in steps of 0.1, or None and ``why``."""

    name: str
    worn: float | None
    why: str = ""


@dataclass(frozen=True)
class Watchdog:
    """The first hardware watchdog. ``state``: "active" once somebody feeds it."""

    identity: str | None
    state: str | None
    timeout_s: int | None


@dataclass(frozen=True)
class Reading:
    """One look at the machine, taken at ``at_ns`` (monotonic). ``events``: throttle counters by name, as they stand;
    ``throttling``: cooling devices at work; ``reset_reason``: why the chip began anew last time, in its own word."""

    at_ns: int
    chip: str | None = None
    kernel: str | None = None
    zones: tuple[Zone, ...] = ()
    events: Mapping[str, int] = field(default_factory=dict)
    throttling: tuple[str, ...] = ()
    rails: tuple[Rail, ...] = ()
    power_mode: str | None = None
    gpu: Gpu | None = None
    cpu: Cpu | None = None
    fans: tuple[Fan, ...] = ()
    memory: Memory | None = None
    disks: tuple[Disk, ...] = ()
    storage: tuple[Storage, ...] = ()
    watchdog: Watchdog | None = None
    reset_reason: str | None = None
    clock: str | None = None
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def hottest(self) -> Zone | None:
        """The zone that is the chip's hottest place by its own word (tj), else the hottest inside the chip, else any."""
        for kind in (
            [zone for zone in self.zones if zone.name.startswith("tj")],
            [zone for zone in self.zones if zone.silicon],
            list(self.zones),
        ):
            if kind:
                return max(kind, key=lambda zone: zone.celsius)
        return None

    @property
    def watchdog_fired(self) -> bool:
        """Whether it was the processor's watchdog that began this boot."""
        return bool(self.reset_reason and _PROCESSOR_WATCHDOG.fullmatch(self.reset_reason))


def read(files: Files, at_ns: int, disks: Sequence[Path] = (), clock: str | None = None) -> Reading:
    """Everything at once; never raises. ``disks``: folders on the file systems to be watched (as they are, not below
    ``files.root``); ``clock``: how far wall time can be believed. May hang where a driver does: ``files.at`` says where."""
    chip = board_of(files.data(files.root / "proc/device-tree/compatible") or b"").chip
    return Reading(
        at_ns=at_ns,
        chip=chip,
        kernel=files.text(files.root / "proc/sys/kernel/osrelease"),
        zones=_zones(files),
        events=_events(files),
        throttling=_throttling(files),
        rails=_rails(files),
        power_mode=_power_mode(files),
        gpu=_gpu(files),
        cpu=_cpu(files),
        fans=_fans(files),
        memory=_memory(files),
        disks=_disks(files, disks),
        storage=_storage(files),
        watchdog=_watchdog(files),
        reset_reason=_reset_reason(files),
        clock=clock,
        unreadable=dict(files.unreadable),
    )


# --- heat ---------------------------------------------------------------------------------------------------


def _zones(files: Files) -> tuple[Zone, ...]:
    """Zones of one type become one: the hottest, with the lowest trips of them all."""
    found: dict[str, Zone] = {}
    parent = files.root / "sys/class/thermal"
    for one in files.names(parent):
        folder = parent / one
        name = (files.text(folder / "type") or "").lower() if one.startswith("thermal_zone") else ""
        if not name or name in _NOT_MEASURED:
            continue
        value = files.number(folder / "temp", *_MILLICELSIUS)
        if value is not None:
            throttles, shuts_down = _trips(files, folder)
            _put(found, Zone(name, value / 1000, throttles, shuts_down, bool(_SILICON.fullmatch(name))))
    for name, folder in files.hwmon():
        if name == "nvme":  # a disk that is too hot makes itself slower, at its own "max"
            value = files.number(folder / "temp1_input", *_MILLICELSIUS)
            if value is not None:
                limits = [files.number(folder / f"temp1_{kind}", *_TRIP_MILLICELSIUS, quiet=True) for kind in ("max", "crit")]
                throttles, shuts_down = (None if limit is None else limit / 1000 for limit in limits)
                _put(found, Zone(name, value / 1000, throttles, shuts_down))
    return tuple(found.values())


def _put(found: dict[str, Zone], zone: Zone) -> None:
    old = found.get(zone.name, zone)
    found[zone.name] = Zone(
        zone.name, max(old.celsius, zone.celsius), _lowest(old.throttles_at, zone.throttles_at),
        _lowest(old.shuts_down_at, zone.shuts_down_at), zone.silicon,
    )  # fmt: skip


def _lowest(*values: float | None) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _trips(files: Files, zone: Path) -> tuple[float | None, float | None]:
    """(slower from here on, off from here on) in degrees Celsius; an "active" trip only turns a fan."""
    throttles: list[float] = []
    shuts_down: list[float] = []
    for one in files.names(zone):
        if not re.fullmatch(r"trip_point_\d+_type", one):
            continue
        kind = files.text(zone / one)
        if kind in ("passive", "hot", "critical"):
            value = files.number(zone / one.replace("_type", "_temp"), *_TRIP_MILLICELSIUS, quiet=True)
            if value is not None:
                (shuts_down if kind == "critical" else throttles).append(value / 1000)
    return min(throttles, default=None), min(shuts_down, default=None)


def _throttling(files: Files) -> tuple[str, ...]:
    parent = files.root / "sys/class/thermal"
    found = set()
    for one in files.names(parent):
        kind = files.text(parent / one / "type") if one.startswith("cooling_device") else None
        if kind and _THROTTLING.fullmatch(kind) and files.number(parent / one / "cur_state", *_COUNT):
            found.add(kind)
    return tuple(sorted(found))


def _events(files: Files) -> dict[str, int]:
    """Throttle counters since boot, by name; one that cannot be read is left out, not 0."""
    found: dict[str, int] = {}
    for name, folder in files.hwmon():
        for one in files.names(folder) if name == _OVERCURRENT else ():
            if match := _EVENT_COUNT.fullmatch(one):
                count = files.number(folder / one, *_COUNT)
                if count is not None:
                    found[match[1]] = count
    return found


# --- power and clocks -----------------------------------------------------------------------------------------


def _rails(files: Files) -> tuple[Rail, ...]:
    found = []
    for name, folder in files.hwmon():
        for one in files.names(folder) if name == _POWER_MONITOR else ():
            match = re.fullmatch(r"in(\d+)_label", one)
            label = files.text(folder / one) if match else None
            if match is None or label is None or label.lower() in _NO_RAIL:
                continue
            millivolt = files.number(folder / f"in{match[1]}_input", *_MILLIVOLT)
            milliampere = files.number(folder / f"curr{match[1]}_input", *_MILLIAMPERE)
            over = tuple(kind for kind in ("max", "crit") if files.number(folder / f"curr{match[1]}_{kind}_alarm", 0, 1))
            if millivolt is not None or milliampere is not None:
                found.append(Rail(label, _thousandth(millivolt), _thousandth(milliampere), over))
    return tuple(found)


def _thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1000


def _power_mode(files: Files) -> str | None:
    status = files.text(files.root / "var/lib/nvpmodel/status") or ""
    return power_mode(status, power_modes(files.text(files.root / "etc/nvpmodel.conf") or ""))


def _gpu(files: Files) -> Gpu | None:
    parent = files.root / "sys/class/devfreq"
    for one in files.names(parent):
        folder = parent / one
        if one != _THOR_GPU and files.text(folder / "device/of_node/name") not in _GPU_NODES:
            continue
        load = files.number(folder / "device/load", *_PERMILLE)
        hertz, highest = (files.number(folder / name, *_HERTZ) for name in ("cur_freq", "max_freq"))
        return Gpu(_thousandth(load), _millionth(hertz), _millionth(highest))
    return None


def _millionth(value: int | None) -> float | None:
    return None if value is None else value / 1_000_000


def _cpu(files: Files) -> Cpu | None:
    folder = files.root / "sys/devices/system/cpu"
    mhz: dict[str, float] = {}
    most: dict[str, float] = {}
    for one in files.names(folder / "cpufreq"):
        if not one.startswith("policy"):
            continue
        for found, name in ((mhz, "scaling_cur_freq"), (most, "cpuinfo_max_freq")):
            kilohertz = files.number(folder / "cpufreq" / one / name, *_KILOHERTZ)
            if kilohertz is not None:
                found[one] = kilohertz / 1000
    online = _cores(files.text(folder / "online") or "")
    busy, all_time = _ticks(files.text(files.root / "proc/stat") or "")
    return None if online is None and all_time is None and not mhz else Cpu(online, mhz, most, busy, all_time)


def _cores(ranges: str) -> int | None:
    """"0-3,6" -> 5; None where that is no list of cores."""
    if not re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", ranges):
        return None
    ends = [[int(end) for end in one.split("-")] for one in ranges.split(",")]
    return sum(one[-1] - one[0] + 1 for one in ends) if all(one[-1] >= one[0] for one in ends) else None


def _ticks(stat: str) -> tuple[int | None, int | None]:
    """(busy, all) ticks of all cores since boot."""
    match = re.match(r"cpu ((?: +\d{1,19}){5,10})", stat)
    if match is None:
        return None, None
    ticks = [int(one) for one in match[1].split()][:8]  # a guest's ticks are among the user's already
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # idle and waiting for a disk


def _fans(files: Files) -> tuple[Fan, ...]:
    """The one that turns the fan and the one that counts its turns are two devices on most boards."""
    found: dict[str, dict[str, int]] = {}
    for name, folder in files.hwmon():
        if name not in _FANS and "tach" not in name:
            continue
        for kind, file, (lowest, highest) in (("rpm", "rpm", _RPM), ("rpm", "fan1_input", _RPM), ("pwm", "pwm1", _PWM)):
            value = files.number(folder / file, lowest, highest)
            if value is not None:
                found.setdefault(kind, {})[name] = value
    turns, duties = found.get("rpm", {}), found.get("pwm", {})
    if len(turns) == len(duties) == 1:  # one fan, in one device or two
        name = next(iter(duties))
        turns = {name: next(iter(turns.values()))}
    return tuple(
        Fan(name, turns.get(name), None if (pwm := duties.get(name)) is None else pwm / 255)
        for name in sorted({*turns, *duties})
    )


# --- memory and disks -----------------------------------------------------------------------------------------


def _memory(files: Files) -> Memory | None:
    text = files.text(files.root / "proc/meminfo") or ""
    found = {name: int(value) * 1024 for name, value in re.findall(r"(?m)^(\w+):\s+(\d{1,15}) kB$", text)}
    if "MemTotal" not in found or "MemAvailable" not in found:
        return None
    if found["MemAvailable"] > found["MemTotal"]:
        files.refuse(files.root / "proc/meminfo", "more memory is available than there is")
        return None
    return Memory(found["MemTotal"], found["MemAvailable"], found.get("SwapFree"))


def _disks(files: Files, folders: Sequence[Path]) -> tuple[Disk, ...]:
    found: dict[int, Disk] = {}
    for folder in folders:
        if not files.begin(str(folder)):
            continue
        try:
            device, room = os.stat(folder).st_dev, os.statvfs(folder)
        except OSError as why:
            files.unreadable[str(folder)] = why.strerror or str(why)
            continue
        finally:
            files.at = ""
        if room.f_blocks:
            found.setdefault(device, Disk(str(folder), room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize))
    return tuple(found.values())


def _storage(files: Files) -> tuple[Storage, ...]:
    found = []
    parent = files.root / "sys/block"
    for one in files.names(parent):
        if not _DISK.fullmatch(one):
            continue
        if one.startswith("nvme"):
            found.append(Storage(one, None, "its wear is told to root alone: smartctl -A"))
            continue
        text = files.text(parent / one / "device/life_time")  # two kinds of cells, in tenths of their life: "0x01 0x02"
        if text is None:
            continue  # an SD card, or an eMMC older than 5.0
        tenths = [int(word, 16) for word in text.split() if re.fullmatch(r"0x[0-9a-fA-F]{1,2}", word)]
        told = [value for value in tenths if 1 <= value <= 11]  # 0: not told
        if told:
            found.append(Storage(one, max(told) / 10))
        else:
            files.refuse(parent / one / "device/life_time", f"reads {text[:40]!r}, which is no wear")
    return tuple(found)


# --- watchdog and boot ------------------------------------------------------------------------------------------


def _watchdog(files: Files) -> Watchdog | None:
    """The one that systemd takes: /dev/watchdog is the first."""
    folder = files.root / "sys/class/watchdog/watchdog0"
    identity, state = files.text(folder / "identity"), files.text(folder / "state")
    timeout_s = files.number(folder / "timeout", *_SECONDS)
    return None if identity is None and state is None and timeout_s is None else Watchdog(identity, state, timeout_s)


def _reset_reason(files: Files) -> str | None:
    """The power management controller's word, wherever the release hangs its device."""
    platform = files.root / "sys/devices/platform"
    for parent in (platform, platform / "bus@0"):
        for one in files.names(parent):
            if one.endswith(".pmc") or one == "pmc":
                word = files.text(parent / one / "reset_reason")
                if word is not None and re.fullmatch(r"[\w ]{1,40}", word):
                    return word
    return None


# --- telling ----------------------------------------------------------------------------------------------------


def as_health(reading: Reading, before: Reading | None = None) -> dict[str, Any]:
    """For the health topic: what is known, in the units that the names say. ``before``: the look before, for loads."""
    gpu, cpu, memory, watchdog = reading.gpu, reading.cpu, reading.memory, reading.watchdog
    return _known(
        power_mode=reading.power_mode,
        temperatures_c={zone.name: round(zone.celsius, 1) for zone in reading.zones},
        throttling=list(reading.throttling),
        throttle_events=dict(reading.events),
        rails_w={rail.name: round(rail.watts, 2) for rail in reading.rails if rail.watts is not None},
        over_limit=[f"{rail.name} {kind}" for rail in reading.rails for kind in rail.over],
        gpu=_known(load=gpu.load, mhz=_whole(gpu.mhz), max_mhz=_whole(gpu.max_mhz)) if gpu else None,
        cpu=_known(
            load=cpu_load(before, reading), online=cpu.online, mhz={name: round(one) for name, one in cpu.mhz.items()},
            max_mhz={name: round(one) for name, one in cpu.max_mhz.items()},
        ) if cpu else None,
        fans={fan.name: _known(rpm=fan.rpm, duty=None if fan.duty is None else round(fan.duty, 2)) for fan in reading.fans},
        memory_mb=_known(
            total=memory.total >> 20, available=memory.available >> 20,
            swap_free=None if memory.swap_free is None else memory.swap_free >> 20,
        ) if memory else None,
        disks_gb={
            disk.path: {"total": round(disk.total / 1e9, 1), "free": round(disk.free / 1e9, 2)} for disk in reading.disks
        },
        storage_worn={one.name: one.why if one.worn is None else one.worn for one in reading.storage},
        watchdog=_known(identity=watchdog.identity, state=watchdog.state, timeout_s=watchdog.timeout_s) if watchdog else None,
        reset_reason=reading.reset_reason,
        unreadable=dict(list(reading.unreadable.items())[:_MOST_TOLD]),
    )  # fmt: skip


def cpu_load(before: Reading | None, now: Reading) -> float | None:
    """Share of all cores' time that was used between two looks, 0..1; None where that is not known."""
    if before is None or before.cpu is None or now.cpu is None:
        return None
    old, new = before.cpu, now.cpu
    if old.busy is None or old.all_time is None or new.busy is None or new.all_time is None:
        return None
    busy, all_time = new.busy - old.busy, new.all_time - old.all_time
    return round(busy / all_time, 3) if 0 <= busy <= all_time and all_time else None


def _known(**values: Any) -> dict[str, Any]:
    """What is told at all: a key that is missing says that this machine has no such thing."""
    return {name: value for name, value in values.items() if value not in (None, [], {})}


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
