"""A stand-in of NVIDIA's Linux_for_Tegra: a real Debian as root file system, recording stand-ins of NVIDIA's scripts.

What its apply_binaries.sh leaves is what NVIDIA's leaves, as far as the image cares: the release, packages nvidia-l4t-*,
services, a first boot that asks questions, a list of packages with a placeholder. The root file system also holds what
must not stay: a default user with a password who is logged in without one, host keys, a machine id."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

RELEASES = {"6.2": ("R36", "4.7"), "7.2": ("R39", "2.1")}
HOLDABLE = (
    "nvidia-l4t-core", "nvidia-l4t-kernel", "nvidia-l4t-cuda", "nvidia-l4t-bootloader", "libnvinfer10", "libnvonnxparsers10",
    "cuda-cudart-12-6", "libcurand-12-6", "libnpp-12-6", "libcudnn9-cuda-12",
)  # fmt: skip
PRESENT = (
    "gdm.service", "snapd.service", "snapd.socket", "ModemManager.service", "whoopsie.path", "cups.service", "docker.service",
    "nv-oem-config.service", "nv-oem-config-gui.service", "nv-oobe.service", "nv_update_verifier.service",
    "nvargus-daemon.service", "nvpmodel.service",
)  # fmt: skip
# The hash of "nvidia", as `openssl passwd -6 nvidia` writes it.
_HASH = "$6$2nQd7kQ0YpQ6d1wL$N0xJrQyVY7mY2gXb0o6Y5mZ0yWl1sYk2r4l6G3m6Hc1o0hQ9Jb3g8tKq2W5Zt0x9nQkX1b6fW2C1Yt7r8u9vW."
_RECORDER = '#!/bin/sh\necho "$(basename "$0") $*" >> "$(dirname "$(readlink -f "$0")")/{up}calls.log"\n'
_APPLY = r"""#!/bin/sh
set -e
cd "$(dirname "$(readlink -f "$0")")"
echo "apply_binaries.sh $*" >> calls.log
root=rootfs
chroot "$root" dpkg --print-architecture >> calls.log
echo "# {major} (release), REVISION: {minor}, GCID: 1, BOARD: generic, EABI: aarch64, DATE: Thu Sep 18 22:54:44 UTC 2025" \
  > "$root/etc/nv_tegra_release"
echo "< POWER_MODEL ID=0 NAME=15W >" > "$root/etc/nvpmodel.conf"
for package in {packages}; do
  printf 'Package: %s\nStatus: install ok installed\nMaintainer: N\nArchitecture: %s\nVersion: {minor}\nDescription: one\n\n' \
    "$package" {architecture} >> "$root/var/lib/dpkg/status"
  : > "$root/var/lib/dpkg/info/$package.list"
done
mkdir -p "$root/etc/apt/sources.list.d" "$root/etc/systemd/system/multi-user.target.wants"
echo "deb https://repo.download.nvidia.com/jetson/<SOC> r36.4 main" > "$root/etc/apt/sources.list.d/nvidia-l4t-apt-source.list"
for unit in {units}; do
  printf '[Unit]\nDescription=stand-in of %s\n[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n' "$unit" \
    > "$root/usr/lib/systemd/system/$unit"
  ln -sf "/usr/lib/systemd/system/$unit" "$root/etc/systemd/system/multi-user.target.wants/$unit"
done
# Two names that stand in /etc as links already: NVIDIA's into /opt, and the desktop's alias.
usb=opt/nvidia/l4t-usb-device-mode/nv-l4t-usb-device-mode.service
mkdir -p "$root/${{usb%/*}}"
printf '[Unit]\nDescription=a login at the USB-C port\n[Service]\nExecStart=/bin/true\n' > "$root/$usb"
ln -sf "/$usb" "$root/etc/systemd/system/nv-l4t-usb-device-mode.service"
ln -sf "/$usb" "$root/etc/systemd/system/multi-user.target.wants/nv-l4t-usb-device-mode.service"
ln -sf /lib/systemd/system/gdm.service "$root/etc/systemd/system/display-manager.service"
printf '[Unit]\nDescription=first boot\n' > "$root/usr/lib/systemd/system/nv-oem-config.target"
ln -sf /lib/systemd/system/nv-oem-config.target "$root/etc/systemd/system/default.target"
"""


def make(folder: Path, rootfs: Path, jetpack: str, architecture: str = "arm64") -> Path:
    """Linux_for_Tegra in ``folder``, with a copy of the tree in ``rootfs``; before apply_binaries.sh was run."""
    l4t = folder / "Linux_for_Tegra"
    l4t.mkdir(parents=True)
    subprocess.run(["cp", "-a", "--reflink=auto", str(rootfs), str(l4t / "rootfs")], check=True)
    major, minor = RELEASES[jetpack]
    _script(l4t / "apply_binaries.sh", _APPLY.format(
        major=major, minor=minor, packages=" ".join(HOLDABLE), units=" ".join(PRESENT), architecture=architecture))  # fmt: skip
    _script(l4t / "tools/kernel_flash/l4t_initrd_flash.sh", _RECORDER.format(up="../../"))
    _script(l4t / "tools/l4t_create_default_user.sh", _RECORDER.format(up="../"))
    _script(l4t / "tools/l4t_flash_prerequisites.sh", _RECORDER.format(up="../"))
    if jetpack == "7.2":
        _script(l4t / "l4t_initrd_flash.sh", _RECORDER.format(up=""))
    for name in ("flash_l4t_t234_nvme.xml", "flash_l4t_t234_nvme_rootfs_ab.xml"):
        (l4t / "tools/kernel_flash" / name).write_text("<partition_layout/>\n")
    qspi = l4t / "bootloader/generic/cfg/flash_t234_qspi.xml"
    qspi.parent.mkdir(parents=True)
    qspi.write_text("<partition_layout/>\n")
    for board in ("jetson-orin-nano-devkit", "jetson-orin-nano-devkit-super", "jetson-agx-orin-devkit"):
        (l4t / f"{board}.conf").write_text("# a board\n")
    leave_a_user(l4t / "rootfs")
    return l4t


def leave_a_user(rootfs: Path) -> None:
    """Somebody ran l4t_create_default_user.sh -u nvidia -p nvidia -a, and gave root a password and the tree host keys."""
    _append(rootfs / "etc/passwd", "nvidia:x:1000:1000:,,,:/home/nvidia:/bin/bash\n")
    _append(rootfs / "etc/group", "nvidia:x:1000:\n")
    _append(rootfs / "etc/shadow", f"nvidia:{_HASH}:20000:0:99999:7:::\nempty::20000:0:99999:7:::\n")
    shadow = rootfs / "etc/shadow"
    shadow.write_text("".join(f"root:{_HASH}:20000:0:99999:7:::\n" if line.startswith("root:") else line
                              for line in shadow.read_text().splitlines(keepends=True)))  # fmt: skip
    shutil.copy2(shadow, rootfs / "etc/shadow-")
    for unit in ("getty@tty1.service.d", "serial-getty@ttyTCU0.service.d"):
        drop_in = rootfs / "etc/systemd/system" / unit / "autologin.conf"
        drop_in.parent.mkdir(parents=True, exist_ok=True)
        drop_in.write_text("[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin nvidia --noclear %I $TERM\n")
    (rootfs / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (rootfs / "etc/ssh").mkdir(exist_ok=True)
    (rootfs / "etc/ssh/ssh_host_ed25519_key").write_text("everybody's\n")


def _append(file: Path, text: str) -> None:
    with file.open("a") as stream:
        stream.write(text)


def _script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def gpio_station(folder: Path) -> Path:
    """The shipped station with its eye, gate and one output on pins of the developer kit."""
    text = (Path(__file__).resolve().parents[2] / "appliance/twin/station.yaml").read_text()
    for twin, pin in (("eye", "PAC.06?active=high&bias=none"), ("gate", "PZ.05?drive=push-pull"), ("fault", "tegra234-gpio/53")):
        text = text.replace(f"twin://{twin}", f"gpio://{pin}")
    file = folder / "station.yaml"
    file.write_text(text)
    return file
