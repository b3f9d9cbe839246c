"""FLASH.txt: how the finished tree gets onto a module, in NVIDIA's own commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calibration.image.jetpack import JetPack
from calibration.image.rootfs import ImageError

DEFAULT_BOARD = "jetson-orin-nano-devkit-super"
_NVME, _NVME_AB = "tools/kernel_flash/flash_l4t_t234_nvme.xml", "tools/kernel_flash/flash_l4t_t234_nvme_rootfs_ab.xml"
_QSPI = "bootloader/generic/cfg/flash_t234_qspi.xml"
_LEGACY, _UNIFIED = "tools/kernel_flash/l4t_initrd_flash.sh", "l4t_initrd_flash.sh"
# The modules without storage of their own; AGX Orin has eMMC, and its QSPI needs no layout named.
_WITHOUT_STORAGE = ("jetson-orin-nano-devkit", "jetson-orin-nano-devkit-super")


@dataclass(frozen=True)
class Flash:
    """``settings``: environment variables before the command; ``files``: what it names of the tree."""

    settings: tuple[str, ...]
    command: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def line(self) -> str:
        """What is typed in Linux_for_Tegra."""
        return " ".join(["sudo", *self.settings, *(f'"{word}"' if " " in word else word for word in self.command)])


def flash(jetpack: JetPack, board: str, ab: bool) -> Flash:
    """NVMe and QSPI. 6.2: "Flashing with initrd" and README_initrd_flash.txt of R36.4; 7.2: the unified flow of R39.2,
    whose script stands at the top of the tree and takes its layout by the board's name."""
    settings = ("ROOTFS_AB=1", "ROOTFS_RETRY_COUNT_MAX=3") if ab else ()
    if jetpack.name == "7.2":
        return Flash(settings, (f"./{_UNIFIED}", "--erase-all", board, "internal"), (_UNIFIED, f"{board}.conf"))
    device, layout = ("nvme0n1", _NVME_AB) if ab else ("nvme0n1p1", _NVME)
    small = board in _WITHOUT_STORAGE
    # From the module with eMMC the box boots its NVMe only when the root device is `external`.
    command = (
        f"./{_LEGACY}", "--external-device", device, "-c", layout, *(("-p", f"-c {_QSPI}") if small else ()),
        "--erase-all", "--showlogs", "--network", "usb0", board, "internal" if small else "external",
    )  # fmt: skip
    return Flash(settings, command, (_LEGACY, layout, *((_QSPI,) if small else ()), f"{board}.conf"))


def check_files(l4t: Path, chosen: Flash) -> None:
    """Raises ImageError when the tree lacks what the command names: it is of another release, or not whole."""
    missing = [one for one in chosen.files if not (l4t / one).is_file()]
    if missing:
        boards = sorted(path.stem for path in l4t.glob("jetson-*.conf"))
        told = f" Boards it knows: {', '.join(boards)}." if boards and any(one.endswith(".conf") for one in missing) else ""
        raise ImageError(f"{l4t} lacks {', '.join(missing)}, which the flash command names: whole, and of that release?{told}")


def flash_text(jetpack: JetPack, release: str, chosen: Flash, about: list[str]) -> str:
    """FLASH.txt. ``about``: what the image holds, a line each."""
    ab = "ROOTFS_AB=1" in chosen.settings
    return "\n".join(
        [
            f"Flashing this box: JetPack {jetpack.name}, L4T {release}",
            "",
            "1. On the computer with this tree, once:   sudo ./tools/l4t_flash_prerequisites.sh",
            "2. The module in recovery mode, its USB-C port on that computer; lsusb shows one \"NVIDIA Corp. APX\".",
            "3. In this folder:",
            "",
            f"   {chosen.line}",
            "",
            "   It erases the NVMe and the module's QSPI. What was flashed so is never raised by apt afterwards.",
            "4. Take the recovery jumper off, start the box, plug in the stick with appliance.yaml.",
            "",
            "What is in it:",
            *(f"  - {one}" for one in about),
            "",
            "Two root file systems: " + (
                "yes (ROOTFS_AB=1; three boots without success go back to the other). nv_update_verifier.service tells the\n"
                "  loader that a boot went well; it is NVIDIA's and was left as it is. Our own updates do not switch these slots."
                if ab else "no; --ab asks for them (they halve the disk)."
            ),
            "NVIDIA's licence was shown to whoever downloaded Linux_for_Tegra: the box asks nothing at its first boot.",
            "Not burned: any fuse. Secure boot and disk encryption are not part of this image, and NVIDIA's test keys are none.",
            "",
        ]
    )  # fmt: skip
