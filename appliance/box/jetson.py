"""What machine this is: L4T release, module, power mode. What it feels is in sensors.py. Absent files are normal.

Nothing is found by number: power mode 2 is another one on the next board (and release)."""

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


@dataclass(frozen=True)
class Board:
    """``module`` is what an engine is tied to ("p3767-0005"), ``carrier`` what it sits on; ``super_modes``: flashed so
    that the higher power modes exist; ``chip``: "tegra234" = Orin."""

    module: str | None = None
    carrier: str | None = None
    chip: str | None = None
    super_modes: bool = False


@dataclass(frozen=True)
class JetsonFacts:
    """One look at the machine. None = this machine has no such thing, or does not tell."""

    l4t: str | None
    model: str | None
    board: Board
    power_mode: str | None

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


def memory_available(root: Path = Path("/")) -> int | None:
    """Bytes that programs can still get, files in memory that can be dropped included; None where nobody says."""
    found = _AVAILABLE.search(_text(root / "proc/meminfo") or "")
    return int(found[1]) * 1024 if found else None


def _text(path: Path) -> str | None:
    raw = _bytes(path)
    return None if raw is None else raw.decode("utf-8", "replace")


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:  # not a Jetson, an older release, or a sensor that sleeps: the caller says None
        return None
