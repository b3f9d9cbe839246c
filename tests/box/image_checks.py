"""What must hold of a finished root file system, whatever processor it is for. Read from its files, not from our steps."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.box.stand_in_l4t import HOLDABLE


def password_fields(rootfs: Path) -> dict[str, str]:
    """Account -> what stands in its password field, of shadow and of its backup."""
    found = {}
    for name in ("shadow", "shadow-"):
        file = rootfs / "etc" / name
        if file.exists():
            found.update({f"{name}:{line.split(':')[0]}": line.split(":")[1] for line in file.read_text().splitlines()})
    return found


def nobody_gets_in(rootfs: Path) -> None:
    """No password, no login without being asked, no shell for persons, no root by ssh, no shared keys."""
    fields = password_fields(rootfs)
    assert "shadow:root" in fields and "shadow:nvidia" in fields
    assert {name: field for name, field in fields.items() if not re.fullmatch(r"[*!]+", field)} == {}
    rows = [line.split(":") for line in (rootfs / "etc/passwd").read_text().splitlines()]
    assert [row[0] for row in rows if int(row[2]) >= 1000 and not row[6].endswith(("nologin", "false"))] == []
    assert [row[0] for row in rows if row[1] not in ("x", "*", "!")] == []
    assert [str(one) for one in (rootfs / "etc/systemd/system").rglob("*.conf") if "autologin" in one.read_text()] == []
    assert list((rootfs / "etc/ssh").glob("ssh_host_*")) == []
    assert (rootfs / "etc/machine-id").read_text() == ""


def quiet(rootfs: Path) -> None:
    """What a camera box does not need does not start; what it needs was left alone."""
    links = rootfs / "etc/systemd/system"
    for unit in ("gdm.service", "snapd.service", "snapd.socket", "whoopsie.path", "ModemManager.service", "docker.service",
                 "nv-oem-config.service", "nv-oobe.service", "nv-l4t-usb-device-mode.service", "display-manager.service",
                 "apt-daily.timer"):  # fmt: skip
        assert os.readlink(links / unit) == "/dev/null", unit
    for unit in ("nv_update_verifier.service", "nvargus-daemon.service", "nvpmodel.service"):
        assert (links / "multi-user.target.wants" / unit).is_symlink() and not (links / unit).exists(), unit
    assert not (links / "bluetooth.service").exists() or os.readlink(links / "bluetooth.service") == "/dev/null"
    assert os.readlink(links / "default.target").endswith("/multi-user.target")
    assert os.readlink(rootfs / "etc/localtime") == "/usr/share/zoneinfo/Etc/UTC"
    assert not starts_by_itself(rootfs, "ssh.service") and not starts_by_itself(rootfs, "ssh.socket")


def held(rootfs: Path) -> None:
    """Every package of NVIDIA's is held, and nothing else."""
    status = (rootfs / "var/lib/dpkg/status").read_text()
    wanted = dict(re.findall(r"^Package: (\S+)\n(?:.+\n)*?Status: (\S+) ok installed$", status, re.MULTILINE))
    assert {name for name, word in wanted.items() if word == "hold"} == set(HOLDABLE)


def starts_by_itself(rootfs: Path, unit: str) -> bool:
    """Whether a boot into multi-user.target starts the unit by a link of its own."""
    # Not by glob: it passes over a link whose target is not there, and in another root none is.
    return any((folder / unit).is_symlink() for folder in (rootfs / "etc/systemd/system").glob("*.wants"))
