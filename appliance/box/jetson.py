"""What machine this is: L4T release, module, power mode, throttle counters, temperatures. Absent files are normal.

Nothing is found by number: hwmon3, thermal_zone2 and power mode 2 are other things on the next board (and release)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ORIN = "tegra234"
_RELEASE = re.compile(r"^#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
_BOARD = re.compile(r"^[\w-]+,(?:(?P<carrier>p\d{4}-\d{4})\+)?(?P<module>p\d{4}-\d{4})(?P<super>-super)?(?:-[\w-]+)?$")
_CHIP = re.compile(r"^nvidia,(tegra\d+)$")
_POWER_MODEL = re.compile(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")
_POWER_STATUS = re.compile(r"^pmode:(\d+)")
_AVAILABLE = re.compile(r"^MemAvailable:\s+(\d+) kB", re.MULTILINE)
_OVERCURRENT = "soctherm_oc"  # the hwmon's name; Orin has it, Xavier's codes mean other things, Thor's is not known


@dataclass(frozen=True)
class Board:
    """``module`` is what an engine is tied to ("p3767-0005"), ``carrier`` what it sits on; ``super_modes``: flashed so
    that the higher power modes exist; ``chip``: "tegra234" = Orin."""

    module: str | None = None
    carrier: str | None = None
    chip: str | None = None
    super_modes: bool = False


@dataclass(frozen=True)
class ThrottleCounts:
    """Events since boot, as the counters stand; only a difference says anything."""

    oc1: int
    oc2: int
    oc3: int


@dataclass(frozen=True)
class Temperatures:
    """Degrees Celsius by zone type, lower case. ``unreadable``: zones whose block is switched off, or that failed."""

    celsius: Mapping[str, float]
    unreadable: int = 0


@dataclass(frozen=True)
class JetsonFacts:
    """One look at the machine. None = this machine has no such thing, or does not tell."""

    l4t: str | None
    model: str | None
    board: Board
    power_mode: str | None
    throttle: ThrottleCounts | None
    temperatures: Temperatures

    @property
    def module(self) -> str | None:
        """The module an engine is tied to."""
        return self.board.module


def read_facts(root: Path = Path("/")) -> JetsonFacts:
    """Everything at once; ``root`` is / on a box and a folder in a test. Never raises."""
    return JetsonFacts(
        l4t=l4t_release(_text(root / "etc/nv_tegra_release") or ""),
        model=(_text(root / "proc/device-tree/model") or "").strip("\x00 \n") or None,
        board=board_of(_bytes(root / "proc/device-tree/compatible") or b""),
        power_mode=read_power_mode(root),
        throttle=read_throttle(root),
        temperatures=read_temperatures(root),
    )


def l4t_release(text: str) -> str | None:
    """``# R36 (release), REVISION: 4.3, …`` -> "36.4.3"."""
    found = _RELEASE.match(text)
    return f"{found[1]}.{found[2].rstrip('.')}" if found else None


def board_of(compatible: bytes) -> Board:
    """The device tree's ``compatible``: NUL-separated, most exact first, the entry with carrier and module before others."""
    words = [one for one in compatible.decode("ascii", "replace").split("\x00") if one]
    boards = [found for word in words if (found := _BOARD.match(word))]
    chip = next((found[1] for word in words if (found := _CHIP.match(word))), None)
    if not boards:
        return Board(chip=chip)
    best = next((one for one in boards if one["carrier"]), boards[0])
    return Board(best["module"], best["carrier"], chip, any(one["super"] for one in boards))


def power_modes(text: str) -> dict[int, str]:
    """nvpmodel.conf: names by id. Ids differ per board and release, names are what can be compared."""
    return {int(found[1]): found[2] for line in text.splitlines() if (found := _POWER_MODEL.match(line))}


def power_mode(status: str, modes: Mapping[int, str]) -> str | None:
    """``pmode:0002`` -> the mode's name; its number in words where nvpmodel.conf does not name it."""
    found = _POWER_STATUS.match(status.strip())
    return modes.get(int(found[1]), f"unnamed mode {int(found[1])}") if found else None


def read_power_mode(root: Path = Path("/")) -> str | None:
    """The power mode's name now."""
    return power_mode(_text(root / "var/lib/nvpmodel/status") or "", power_modes(_text(root / "etc/nvpmodel.conf") or ""))


def read_throttle(root: Path = Path("/")) -> ThrottleCounts | None:
    """The over-current and under-voltage counters, found by the hwmon's name."""
    for name in sorted((root / "sys/class/hwmon").glob("hwmon*/name")):
        if (_text(name) or "").strip() == _OVERCURRENT:
            counts = [_number(name.parent / f"oc{index}_event_cnt") for index in (1, 2, 3)]
            return None if None in counts else ThrottleCounts(*(count or 0 for count in counts))
    return None


def throttle_told(before: ThrottleCounts, now: ThrottleCounts, chip: str | None) -> str | None:
    """What happened between two looks, in words; None when nothing did. A counter that fell began anew at a boot."""
    since = [one if one < old else one - old for old, one in zip(_three(before), _three(now))]
    if not any(since):
        return None
    if chip != ORIN:  # the codes mean other things there
        return "throttle events since the last look: " + ", ".join(f"oc{at} {one}" for at, one in enumerate(since, 1) if one)
    told = (
        f"under-voltage {since[0]} times: check the supply and its cable" if since[0] else "",
        f"average current over its limit {since[1]} times: take a lower power mode" if since[1] else "",
        f"current peaks cut {since[2]} times, which is normal in the highest power mode" if since[2] else "",
    )
    return "; ".join(filter(None, told))


def read_temperatures(root: Path = Path("/")) -> Temperatures:
    """All zones by type. A zone whose block is switched off gives an error instead of a number: counted, left out."""
    celsius: dict[str, float] = {}
    unreadable = 0
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name, thousandths = (_text(zone / "type") or "").strip().lower(), _number(zone / "temp")
        if not name or thousandths is None:
            unreadable += 1
        else:
            celsius[name] = max(thousandths / 1000, celsius.get(name, -273.15))
    return Temperatures(celsius, unreadable)


def memory_available(root: Path = Path("/")) -> int | None:
    """Bytes that programs can still get, files in memory that can be dropped included; None where nobody says."""
    found = _AVAILABLE.search(_text(root / "proc/meminfo") or "")
    return int(found[1]) * 1024 if found else None


def _three(counts: ThrottleCounts) -> tuple[int, int, int]:
    return counts.oc1, counts.oc2, counts.oc3


def _number(path: Path) -> int | None:
    text = (_text(path) or "").strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _text(path: Path) -> str | None:
    raw = _bytes(path)
    return None if raw is None else raw.decode("utf-8", "replace")


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:  # not a Jetson, an older release, or a sensor that sleeps: the caller says None
        return None
