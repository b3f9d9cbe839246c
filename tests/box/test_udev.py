"""The udev rules: read by a small reader of our own that plays devices to them, and by udevadm where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

RULES = Path(__file__).resolve().parents[2] / "udev/61-appliance.rules"
# udev's own file that finds what a key of ours asks for; ours must sort behind it
FOUND_BY = {"ID_PATH": "60-persistent-v4l.rules", "ID_V4L_CAPABILITIES": "60-persistent-v4l.rules",
            "ID_FS_TYPE": "60-persistent-storage.rules", "ID_PART_ENTRY_TYPE": "60-persistent-storage.rules"}  # fmt: skip
MATCHES = {"ACTION", "SUBSYSTEM", "SUBSYSTEMS", "KERNEL", "ENV", "ATTR", "ATTRS", "TEST"}
SETS = {"GROUP", "MODE", "SYMLINK", "ENV", "TAG", "GOTO", "LABEL"}
_TERM = re.compile(r'([A-Z]+)(?:\{([^}]+)\})?(==|!=|\+=|=)"([^"]*)"')


@dataclass
class Device:
    """As udev sees one when our file's turn comes. ``parents``: the nearest first, each (subsystem, attributes);
    ``files``: what lies in its folder of /sys."""

    subsystem: str
    kernel: str
    env: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    parents: tuple[tuple[str, dict[str, str]], ...] = ()
    files: tuple[str, ...] = ()
    action: str = "add"


@dataclass
class Outcome:
    """What the rules made of it."""

    env: dict[str, str]
    links: list[str] = field(default_factory=list)
    wants: list[str] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    group: str = ""


def terms(text: str) -> list[list[tuple[str, str, str, str]]]:
    """Each rule's (key, name, operator, value). Raises ValueError for what is no rule."""
    rules = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _TERM.findall(line)
        again = [f'{key}{f"{{{name}}}" if name else ""}{operator}"{value}"' for key, name, operator, value in found]
        if ", ".join(again) != line:
            raise ValueError(f"line {number} is no rule: {line}")
        rules.append(found)
    return rules


def play(text: str, device: Device) -> Outcome:
    """The rules, from top to bottom, with GOTO; of udev only what our file uses."""
    out = Outcome(dict(device.env))
    goto = ""
    for rule in terms(text):
        if goto:
            goto = "" if ("LABEL", "", "=", goto) in rule else goto
            continue
        if not all(_holds(term, device, out) for term in rule if term[2] in ("==", "!=")):
            continue
        for key, name, operator, value in rule:
            value = _filled(value, device, out)
            if operator in ("==", "!="):
                continue
            if key == "GOTO":
                goto = value
            elif key == "SYMLINK":
                out.links.append(value)
            elif key == "TAG":
                out.tags.add(value)
            elif key == "GROUP":
                out.group = value
            elif key == "ENV" and name == "SYSTEMD_WANTS":
                out.wants.append(value)
            elif key == "ENV":
                out.env[name] = value
    assert not goto, f"no label {goto}"
    return out


def _holds(term: tuple[str, str, str, str], device: Device, out: Outcome) -> bool:
    key, name, operator, value = term
    chain = ((device.subsystem, device.attributes), *device.parents)
    seen = {
        "ACTION": [device.action], "SUBSYSTEM": [device.subsystem], "KERNEL": [device.kernel],
        "ENV": [out.env.get(name, "")], "ATTR": [device.attributes[name]] if name in device.attributes else [],
        "ATTRS": [attributes[name] for _, attributes in chain if name in attributes],
        "SUBSYSTEMS": [subsystem for subsystem, _ in chain], "TEST": list(device.files),
    }[key]  # fmt: skip
    hit = any(fnmatchcase(one, pattern) for one in seen for pattern in value.split("|"))
    return hit == (operator == "==")


def _filled(value: str, device: Device, out: Outcome) -> str:
    value = re.sub(r"\$env\{(\w+)\}", lambda found: out.env.get(found[1], ""), value)
    value = re.sub(r"\$attr\{(\w+)\}", lambda found: device.attributes.get(found[1], ""), value)
    return value.replace("%k", device.kernel)


# --- devices ------------------------------------------------------------------------------------------------


def stick(kernel: str, file_system: str = "", removable: str = "1", size: str = "1000", **env: str) -> Device:
    """A partition (sda1) or disk (sda) behind a USB hub whose own attribute is called removable too."""
    disk = ("block", {"removable": removable, "size": size})
    above = (("scsi", {}), ("usb", {"removable": "removable"}), ("usb", {"removable": "fixed"}))
    whole = not kernel[-1].isdigit()
    attributes = disk[1] if whole else {"size": size, "partition": kernel[3:]}
    env = {"DISKSEQ": "17", **env} | ({"ID_FS_TYPE": file_system} if file_system else {})
    return Device("block", kernel, env, attributes, above if whole else (disk, *above))


READABLE = [stick("sda1", "vfat"), stick("sdb1", "exfat"), stick("sdaa12", "vfat"), stick("sdc", "vfat")]
UNREADABLE = [
    stick("sda1", "ext4"), stick("sda1", "ntfs"), stick("sda1"), stick("sdb"), stick("sdb", "iso9660"),
    stick("sdb", ID_PART_TABLE_TYPE="dos"), stick("sda1", "crypto_LUKS"), stick("sda1", "hfsplus"),
]  # fmt: skip
SILENT = {
    "a disk in a USB case": stick("sda1", "vfat", removable="0"),
    "the same, without a file system": stick("sda", removable="0"),
    "the box's own NVMe": Device("block", "nvme0n1p1", {"ID_FS_TYPE": "vfat"}, {"size": "9"}, (("nvme", {}),)),
    "a SATA disk": Device("block", "sda1", {"ID_FS_TYPE": "vfat"}, {"size": "9"}, (("block", {"removable": "1"}), ("ata", {}))),
    "a CD drive on USB": Device("block", "sr0", {}, {"size": "9", "removable": "1"}, (("usb", {}),)),
    "the SD card of the module": Device("block", "mmcblk0p1", {"ID_FS_TYPE": "vfat"}, {"size": "9"}, (("mmc", {}),)),
    "a reader without a card": stick("sdc", size="0"),
    "EFI's own partition": stick("sda1", "vfat", ID_PART_ENTRY_TYPE="c12a7328-f81f-11d2-ba4b-00c04fc93ec9"),
    "Microsoft's reserved": stick("sda1", ID_PART_ENTRY_TYPE="e3c9e316-0b5c-4db8-817d-f92df00215ae"),
    "an extended partition": stick("sda2", ID_PART_ENTRY_TYPE="0xf"),
    "a disk whose partitions speak for themselves": replace(stick("sda"), files=("size", "sda1/partition")),
    "a mouse": Device("input", "event3", {}, {}, (("usb", {}),)),
    "a loop device": Device("block", "loop0", {"ID_FS_TYPE": "vfat"}, {"size": "9", "removable": "1"}),
}


@pytest.mark.parametrize("device", READABLE, ids=lambda one: one.kernel)
def test_a_stick_starts_its_own_unit(device: Device) -> None:
    out = play(RULES.read_text(), device)
    assert out.wants == [f"appliance-usb@{device.kernel}.17.service"] and out.links == [f"appliance/stick/{device.kernel}.17"]
    assert "systemd" in out.tags and out.env["UDISKS_AUTO"] == "0" and out.group == "appliance"


@pytest.mark.parametrize("device", UNREADABLE, ids=lambda one: f"{one.kernel} {one.env.get('ID_FS_TYPE', 'nothing')}")
def test_a_stick_that_cannot_be_read_is_told_of(device: Device) -> None:
    out = play(RULES.read_text(), device)
    assert out.wants == [f"appliance-usb-unreadable@{device.kernel}.17.service"] and "systemd" in out.tags


@pytest.mark.parametrize("what", SILENT)
def test_what_is_no_stick_starts_nothing(what: str) -> None:
    assert play(RULES.read_text(), SILENT[what]).wants == []


def test_a_kernel_that_counts_no_disks_gets_one_name_for_all_of_them() -> None:
    out = play(RULES.read_text(), stick("sda1", "vfat", DISKSEQ=""))
    assert (out.wants, out.links) == (["appliance-usb@sda1.0.service"], ["appliance/stick/sda1.0"])


def test_a_card_that_is_taken_out_of_its_reader_ends_what_was_begun_for_it() -> None:
    """The reader stays: there is no event of its removal."""
    assert play(RULES.read_text(), stick("sdc", size="0")).env["SYSTEMD_READY"] == "0"
    assert "SYSTEMD_READY" not in play(RULES.read_text(), stick("sdc", "vfat")).env


def test_a_stick_that_is_pulled_starts_nothing() -> None:
    device = stick("sda1", "vfat")
    device.action = "remove"
    assert play(RULES.read_text(), device).wants == []


def test_a_camera_is_named_by_its_port_and_a_node_without_pictures_is_not() -> None:
    where = {"ID_PATH": "platform-3610000.usb-usb-0:2.1:1.0"}
    camera = Device("video4linux", "video0", {**where, "ID_V4L_CAPABILITIES": ":capture:"}, {"index": "0"})
    out = play(RULES.read_text(), camera)
    assert out.links == ["appliance/camera-platform-3610000.usb-usb-0:2.1:1.0-0"] and out.group == "video"
    metadata = Device("video4linux", "video1", {**where, "ID_V4L_CAPABILITIES": ":"}, {"index": "1"})
    assert play(RULES.read_text(), metadata).links == []


def test_pins_belong_to_their_group() -> None:
    assert play(RULES.read_text(), Device("gpio", "gpiochip0")).group == "gpio"
    assert play(RULES.read_text(), Device("gpio", "gpio433")).group == ""


# --- the file itself ----------------------------------------------------------------------------------------


def faults(name: str, text: str) -> list[str]:
    """What must not stand in a rules file of ours."""
    found = []
    for rule in terms(text):
        for key, key_name, operator, _value in rule:
            if key not in (MATCHES if operator in ("==", "!=") else SETS):
                found.append(f"{key}{operator}: not of the keys that are used here; programs and shells least of all")
            before = FOUND_BY.get(key_name) if operator in ("==", "!=") else None
            if before and name < before:
                found.append(f"{key_name} is found by {before}, which is read after {name}")
        if any(key == "ENV" and name == "SYSTEMD_WANTS" and operator == "=" for key, name, operator, _ in rule):
            found.append("SYSTEMD_WANTS= takes away what others asked for; write +=")
    return found


def test_the_rules_run_no_program_and_ask_for_nothing_that_is_not_there_yet() -> None:
    assert faults(RULES.name, RULES.read_text()) == []


@pytest.mark.parametrize(
    ("name", "line", "complaint"),
    [
        (RULES.name, 'KERNEL=="sd*", RUN+="/bin/sh -c true"', "RUN"),
        (RULES.name, 'KERNEL=="sd*", PROGRAM="/bin/true"', "PROGRAM"),
        (RULES.name, 'KERNEL=="sd*", IMPORT{program}="blkid"', "IMPORT"),
        (RULES.name, 'KERNEL=="sd*", ENV{SYSTEMD_WANTS}="x.service"', "write +="),
        ("60-appliance.rules", 'ENV{ID_FS_TYPE}=="vfat", TAG+="systemd"', "read after"),
    ],
)
def test_a_planted_fault_is_found(name: str, line: str, complaint: str) -> None:
    assert complaint in " ".join(faults(name, line))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('ATTRS{removable}=="1"', 'ATTRS{removable}=="?*"'),
        ('SUBSYSTEMS=="usb"', 'SUBSYSTEM=="block"'),
        ('ATTR{size}=="0"', 'ATTR{size}=="-1"'),
        ('KERNEL!="sd*"', 'KERNEL!="*"'),
        ('TEST=="*/partition"', 'TEST=="*/nothing"'),
        ("0xf|", ""),
        ("c12a7328-f81f-11d2-ba4b-00c04fc93ec9|", ""),
    ],
)
def test_without_one_of_its_conditions_something_else_is_taken_for_a_stick(old: str, new: str) -> None:
    text = RULES.read_text()
    assert old in text
    assert any(play(text.replace(old, new), device).wants for device in SILENT.values())


def test_udev_itself_understands_every_line(tmp_path: Path) -> None:
    if not shutil.which("udevadm"):
        pytest.skip("no udevadm here")
    verify = subprocess.run(["udevadm", "verify", "--no-summary", str(RULES)], capture_output=True, text=True)
    if "nknown command" in verify.stderr or "Unknown" in verify.stderr:
        pytest.skip(f"this udevadm cannot verify rules: {verify.stderr.strip()}; test_units_booted.py asks it otherwise")
    assert verify.returncode == 0, verify.stdout + verify.stderr
