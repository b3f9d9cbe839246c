"""The guest's root: a Debian by mmdebstrap with the test's agent in it, and on that the appliance's package installed.

Two images, each kept by its inputs: the base (packages of Debian), and the base with the .deb, which is installed by dpkg in
the running guest, as on a clean machine. A machine never writes to an image: it boots a copy-on-write file on it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.box.vm.cache import HERE, ROOT, cached, digest, file_digest, needs, run_tool
from tests.box.vm.kernel import kernel

PACKAGES = "mmdebstrap e2fsprogs uidmap fakeroot"
SUITE, _PYTHON = "bookworm", "3.11"
_PACKAGED = ("appliance", "models", "systemd", "udev", "calibration/package")
_SIZE = "3G"  # sparse
_DEBIAN = "systemd-sysv udev dbus python3 mosquitto kmod e2fsprogs dosfstools dmsetup"
_GUEST_FILES = ("agent.py", "vm-agent.service")
# no network to wait for, no terminals to serve, no clock to set
_MASKED = "systemd-networkd-wait-online.service getty@tty1.service serial-getty@ttyS0.service console-getty.service " \
          "systemd-timesyncd.service apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer"  # fmt: skip


def base_image(more_packages: tuple[str, ...] = ()) -> Path:
    """An ext4 image with Debian and the agent. Raises NotHere, RuntimeError."""
    needs(("mmdebstrap", "mkfs.ext4", *(() if os.geteuid() == 0 else ("fakeroot", "newuidmap"))), PACKAGES)
    packages = " ".join([_DEBIAN, *more_packages])
    files = [(HERE / "guest" / name).read_bytes() for name in _GUEST_FILES]
    key = digest(packages, _MASKED, _SIZE, Path(__file__).read_bytes(), *files)
    return cached("base", key, lambda scratch: _build_base(packages, scratch))


def _build_base(packages: str, scratch: Path) -> Path:
    image = scratch / "disk"
    guest = HERE / "guest"
    in_root = 'chroot "$1" '
    hooks = [
        'mkdir -p "$1/usr/local/lib/vm" "$1/host"',
        f'cp "{guest}/agent.py" "$1/usr/local/lib/vm/" && cp "{guest}/vm-agent.service" "$1/etc/systemd/system/"',
        in_root + "systemctl enable vm-agent.service",
        in_root + f"systemctl mask {_MASKED}",
        in_root + "systemctl disable mosquitto.service",
        in_root + "systemctl set-default multi-user.target",
        ': > "$1/etc/fstab"',
        'echo box > "$1/etc/hostname" && : > "$1/etc/machine-id" && echo "127.0.0.1 localhost box" > "$1/etc/hosts"',
        'rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/usr/share/doc/* "$1"/usr/share/locale/*',
    ]
    tar, root = scratch / "root.tar", scratch / "root"
    run_tool(
        ["nice", "mmdebstrap", "--variant=minbase", f"--include={','.join(packages.split())}",
         *(f"--customize-hook={hook}" for hook in hooks), SUITE, tar],
        scratch / "log",
    )  # fmt: skip
    unpack = 'mkdir "$2" && tar -C "$2" --exclude=./dev/* -xf "$1" && mkfs.ext4 -q -F -L root -d "$2" "$3" "$4" && rm -rf "$2"'
    as_root = [] if os.geteuid() == 0 else ["fakeroot"]  # files of root and of others, made by nobody in particular
    run_tool([*as_root, "sh", "-c", unpack, "sh", tar, root, image, _SIZE], scratch / "log")
    return image


def appliance_deb() -> Path:
    """This tree's package for this guest. Raises RuntimeError."""
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    files = [path for room in _PACKAGED for path in sorted((ROOT / room).rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    key = digest(commit, *(part for path in files for part in (str(path.relative_to(ROOT)), path.read_bytes())))
    return cached("deb", key, _build_deb)


def _build_deb(scratch: Path) -> Path:
    out = scratch / "out"
    command: list[str | Path] = [sys.executable, "-m", "calibration.package", "--no-bundle", "-o", out]
    command += ["--arch", "amd64", "--python", _PYTHON]
    run_tool(command, scratch / "log", folder=ROOT)
    (deb,) = out.glob("*.deb")
    return deb


def box_image(deb: Path) -> Path:
    """The base with ``deb`` installed in the running guest, powered off in order. Raises NotHere, RuntimeError."""
    needs(("dpkg-deb",), "dpkg")
    base = base_image(_depends(deb))
    key = digest(base.name, file_digest(deb), kernel().name)
    return cached("box", key, lambda scratch: _install(base, deb, scratch))


def _depends(deb: Path) -> tuple[str, ...]:
    """Debian's packages that it asks for, the first of each alternative."""
    text = subprocess.run(["dpkg-deb", "-f", deb, "Depends"], capture_output=True, text=True, check=True).stdout
    names = [one.partition("|")[0].partition("(")[0].strip() for one in text.replace("\n", " ").split(",")]
    return tuple(sorted({name.partition(":")[0] for name in names if name}))


def _install(base: Path, deb: Path, scratch: Path) -> Path:
    from tests.box.vm.machine import Machine

    image = copy_image(base, scratch / "disk")
    with Machine(image, scratch / "machine", copy_on_write=False) as machine:
        shutil.copy(deb, machine.shared / "appliance.deb")
        machine.check("dpkg --force-unsafe-io -i /host/appliance.deb && rm -f /var/log/dpkg.log", deadline_s=300)
        machine.stop()
    return image


def copy_image(source: Path, target: Path) -> Path:
    """A sparse copy."""
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", os.fspath(source), os.fspath(target)], check=True)
    return target
