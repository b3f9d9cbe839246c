"""What machine this is: lines as boards give them, and folders laid out as theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.box.jetson import (
    Board,
    board_of,
    l4t_release,
    memory_available,
    power_mode,
    power_modes,
    read_facts,
)

ORIN_NANO_MODES = """
# default
< PARAM TYPE=FILE NAME=CPU_ONLINE >
< POWER_MODEL ID=0 NAME=15W >
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< POWER_MODEL ID=3 NAME=7W >
"""
ORIN_NX_MODES = "< POWER_MODEL ID=0 NAME=MAXN_SUPER >\n< POWER_MODEL ID=1 NAME=10W >\n"


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    """The files of an Orin Nano under JetPack 6.2."""
    write(tmp_path / "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    write(tmp_path / "etc/nvpmodel.conf", ORIN_NANO_MODES)
    write(tmp_path / "var/lib/nvpmodel/status", "pmode:0002\n")
    write(tmp_path / "proc/device-tree/model", b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\x00")
    compatible = b"nvidia,p3768-0000+p3767-0005-super\x00nvidia,p3767-0005\x00nvidia,tegra234\x00"
    write(tmp_path / "proc/device-tree/compatible", compatible)
    return tmp_path


def test_an_orin_nano_tells_what_it_is(orin: Path) -> None:
    facts = read_facts(orin)
    assert (facts.l4t, facts.module, facts.power_mode) == ("36.4.3", "p3767-0005", "MAXN_SUPER")
    assert facts.board == Board("p3767-0005", "p3768-0000", "tegra234", super_modes=True)
    assert facts.model == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"


def test_a_laptop_is_no_jetson_and_no_error(tmp_path: Path) -> None:
    facts = read_facts(tmp_path)
    assert (facts.l4t, facts.model, facts.module, facts.power_mode) == (None,) * 4


@pytest.mark.parametrize(
    ("line", "release"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic", "36.4.3"),
        ("# R35 (release), REVISION: 6.0, GCID: 1", "35.6.0"),
        ("# R39 (release), REVISION: 2.1, GCID: 1, KERNEL_VARIANT: oot", "39.2.1"),
        ("# R36 (release), REVISION: 5, GCID: 1", "36.5"),
        ("", None),
        ("Ubuntu 22.04", None),
    ],
)
def test_the_release_is_read_from_its_first_line(line: str, release: str | None) -> None:
    assert l4t_release(line) == release


@pytest.mark.parametrize(
    ("compatible", "board"),
    [
        (b"nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0", Board("p3701-0005", "p3737-0000", "tegra234")),
        (b"nvidia,p4071-0000+p3834-0008\0nvidia,tegra264\0", Board("p3834-0008", "p4071-0000", "tegra264")),
        (b"acme,line-box\0nvidia,p3767-0000\0nvidia,tegra234\0", Board("p3767-0000", None, "tegra234")),
        (b"acme,p3509-0000+p3767-0001\0nvidia,tegra234\0", Board("p3767-0001", "p3509-0000", "tegra234")),
        (b"raspberrypi,4-model-b\0brcm,bcm2711\0", Board()),
        (b"", Board()),
    ],
)
def test_the_module_is_told_from_its_carrier(compatible: bytes, board: Board) -> None:
    assert board_of(compatible) == board


def test_the_same_number_is_another_power_mode_on_another_board() -> None:
    assert power_mode("pmode:0002", power_modes(ORIN_NANO_MODES)) == "MAXN_SUPER"
    assert power_mode("pmode:0000", power_modes(ORIN_NX_MODES)) == "MAXN_SUPER"
    assert power_mode("pmode:0002", power_modes(ORIN_NX_MODES)) == "unnamed mode 2"
    assert power_mode("", power_modes(ORIN_NX_MODES)) is None


def test_memory_that_only_caches_files_counts_as_free(tmp_path: Path) -> None:
    assert memory_available(tmp_path) is None
    write(tmp_path / "proc/meminfo", "MemTotal:  7802584 kB\nMemFree:  211040 kB\nMemAvailable:  4126712 kB\n")
    assert memory_available(tmp_path) == 4126712 * 1024
