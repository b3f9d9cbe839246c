"""The virtual machine itself: what all other tests of the box in it stand on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.box.vm.machine import CommandFailed, Machine

pytestmark = pytest.mark.machine
Make = Callable[..., Machine]


def test_debian_boots_with_gpio_camera_and_stick(base_image: Path, machine_of: Make, tmp_path: Path) -> None:
    machine = machine_of(base_image)
    machine.boot()
    assert machine.check("systemctl is-system-running --wait").strip() == "running"
    assert machine.run("echo out; echo err >&2; exit 3").__dict__ == {"rc": 3, "out": "out\nerr\n"}
    assert machine.run("exec cat /dev/zero > /dev/null", deadline_s=0.5).rc == 124

    machine.make_gpio("tegra234-gpio", ["PAC.06", "PQ.05"])
    machine.pull("PAC.06", True)
    assert machine.level("PAC.06") and not machine.level("PQ.05")
    assert machine.check("ls /dev/gpiochip*").strip() == "/dev/gpiochip0"

    camera = machine.check("readlink -f /dev/v4l/by-path/platform-vivid.0-video-index0").strip()
    assert camera == "/dev/video0"

    machine.plug(stick(tmp_path / "stick.img", "config.yaml", b"version: 1\n"))
    machine.wait_until("test -b /dev/sda")
    machine.check("mkdir -p /mnt/stick && mount -o ro /dev/sda /mnt/stick && grep -q 'version: 1' /mnt/stick/config.yaml")
    machine.check("mount -o remount,rw,sync /mnt/stick && echo done > /mnt/stick/RESULT.txt && umount /mnt/stick")
    machine.unplug()
    machine.wait_until("test ! -e /dev/sda")
    assert read_stick(machine.stick("stick.img"), "RESULT.txt") == b"done\n"
    machine.stop()
    assert not machine.alive()


def test_two_boots_are_two_boots_and_the_disk_stays(base_image: Path, machine_of: Make) -> None:
    machine = machine_of(base_image)
    machine.boot()
    machine.check("echo kept > /root/kept; sync; echo lost > /dev/shm/lost")
    first = machine.boot_id
    machine.cut_power()
    machine.boot()
    assert machine.boot_id != first
    assert machine.check("cat /root/kept; ls /dev/shm").split() == ["kept"]


def test_what_fails_says_why(base_image: Path, machine_of: Make) -> None:
    machine = machine_of(base_image)
    machine.boot()
    with pytest.raises(CommandFailed, match="No such file"):
        machine.check("cat /nowhere")
    with pytest.raises(CommandFailed, match="until test -e /nowhere"):
        machine.wait_until("test -e /nowhere", 1)


def stick(image: Path, name: str, content: bytes) -> Path:
    """A FAT stick with one file."""
    with image.open("wb") as stream:
        stream.truncate(16 << 20)
    subprocess.run(["mkfs.vfat", "-n", "STICK", image], check=True, capture_output=True)
    subprocess.run(["mcopy", "-i", image, "-", f"::{name}"], input=content, check=True)
    return image


def read_stick(image: Path, name: str) -> bytes:
    """A file of a stick that was unplugged."""
    return subprocess.run(["mtype", "-i", image, f"::{name}"], capture_output=True, check=True).stdout
