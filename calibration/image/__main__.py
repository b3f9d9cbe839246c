"""./build.sh image --l4t DIR --jetpack 6.2|7.2: a Linux_for_Tegra tree that flashes a camera box.

Changes the tree's root file system until every step of the list is done, and writes DIR/appliance/FLASH.txt and
PINMUX.txt. A second run changes nothing. --dry-run only tells."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from appliance.config import reader
from appliance.config.load import ConfigError, load
from calibration.image import accounts, jetson_utils
from calibration.image.cuda import Gpu, gpu_steps, missing_for_the_gpu
from calibration.image.debian import DebFile, find_deb, read_deb
from calibration.image.emulation import Inside
from calibration.image.flash import DEFAULT_BOARD, check_files, flash, flash_text
from calibration.image.jetpack import JETPACKS, check_release
from calibration.image.pins import Pad, pads, pinmux_text
from calibration.image.rootfs import ImageError, Rootfs
from calibration.image.step import carry_out
from calibration.image.steps import Wanted, binaries_step, package_units, plan, remarks

ROOT = Path(__file__).resolve().parents[2]
_ARCHITECTURE = {"aarch64": "arm64", "x86_64": "amd64"}


def main(arguments: list[str] | None = None) -> int:
    """Exit 0; 2 where the tree, the package or the computer is not fit for it."""
    options = _options(arguments)
    os.umask(0o022)  # what is written is the box's; a strict one of whoever types this would shut its users out
    try:
        with tempfile.TemporaryDirectory(prefix="appliance-image-") as share:
            _make(options, Path(share))
    except (ImageError, OSError) as why:
        sys.stderr.write(f"build.sh image: {why}\n")
        return 2
    except ConfigError as why:
        sys.stderr.write(f"build.sh image: --station cannot be read:\n{why}\n")
        return 2
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./build.sh image", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--l4t", type=Path, required=True, help="the unpacked Linux_for_Tegra, with its rootfs/")
    parser.add_argument("--jetpack", choices=tuple(JETPACKS), required=True)
    parser.add_argument("--board", default=DEFAULT_BOARD, help=f"whose .conf flashes it (default {DEFAULT_BOARD})")
    parser.add_argument("--ab", action="store_true", help="two root file systems (ROOTFS_AB=1)")
    parser.add_argument("--deb", type=Path, help="our package (default: the newest fitting one in build/deb)")
    parser.add_argument("--station", type=Path, help="whose gpio:// lines PINMUX.txt lists (it is not put into the image)")
    parser.add_argument("--ssh-key", type=Path, help="a .pub file: user 'service' gets in by it; without it sshd is off")
    parser.add_argument("--with-pycuda", action="store_true", help="JetPack's CUDA and TensorRT, and PyCUDA built on them")
    parser.add_argument("--with-jetson-utils", action="store_true", help="6.2: jetson-utils and jetson-inference too (csi://, rtsp://)")
    parser.add_argument("--pycuda-from-wheels", action="store_true", help="PyCUDA by CUDA's headers from the package index")
    parser.add_argument("--any-python", action="store_true", help="a root file system that is not Ubuntu's: a stand-in's")
    parser.add_argument("--dry-run", action="store_true", help="only tell")
    return parser.parse_args(arguments)


def _make(options: argparse.Namespace, share: Path) -> None:
    jetpack, l4t = JETPACKS[options.jetpack], options.l4t.resolve()
    rootfs = Rootfs(l4t / "rootfs")
    if not rootfs.root.is_dir():
        raise ImageError(f"{l4t} has no rootfs/; --l4t names the unpacked Linux_for_Tegra")
    machine = rootfs.machine()
    inside: Callable[[], Inside] = cache(lambda: Inside(rootfs.root, machine, share))
    _say(f"{l4t}: JetPack {jetpack.name}, {machine}")
    changed = carry_out([binaries_step(l4t, rootfs, inside)], _say, options.dry_run)
    release = rootfs.l4t()
    if release is None:  # only a dry run gets here
        _say("the rest of the list is known once that has run")
        return
    python = rootfs.python()
    check_release(jetpack, release, python, options.any_python)
    deb = read_deb(options.deb or find_deb(ROOT / "build" / "deb", _ARCHITECTURE.get(machine, machine), python))
    chosen = flash(jetpack, options.board, options.ab)
    check_files(l4t, chosen)
    found = _pads(options.station)
    key = accounts.public_key(options.ssh_key.read_text(encoding="utf-8"), str(options.ssh_key)) if options.ssh_key else ""
    steps = plan(rootfs, Wanted(deb, key), inside)
    gpu = Gpu(options.board, options.with_pycuda, options.with_jetson_utils, options.pycuda_from_wheels)
    changed += carry_out([*steps[:1], *gpu_steps(jetpack, rootfs, inside, gpu), *steps[1:]], _say, options.dry_run)
    told = list(remarks(rootfs))
    for line in told:
        _say(f"  note     {line}")
    texts = {
        "FLASH.txt": flash_text(jetpack, release, chosen, _about(rootfs, deb, key) + told),
        "PINMUX.txt": pinmux_text(str(options.station.name) if options.station else "", found, options.board, release),
    }
    changed += _write(l4t / "appliance", texts, options.dry_run)
    _say("nothing to do: the image is as it is wanted" if not changed else f"{changed} {'to do' if options.dry_run else 'done'}")
    _say(f"flash it (in {l4t}): {chosen.line}")


def _pads(station: Path | None) -> list[Pad]:
    if station is None:
        return []
    load(station, built_only=False)
    return pads(reader.read(station.read_bytes()).data)


def _about(rootfs: Rootfs, deb: DebFile, key: str) -> list[str]:
    units = ", ".join(package_units(rootfs))
    lacking = missing_for_the_gpu(rootfs)
    return [
        f"the package {deb.name} {deb.version} ({deb.architecture}), started at boot: {units}",
        "no password anywhere; " + (f"sshd on, user {accounts.SERVICE} by key" if key else "sshd off, nobody can log in"),
        f"no {', no '.join(lacking)}: only engine: cpu inspects (--with-pycuda adds them)" if lacking else "TensorRT and PyCUDA",
        "time zone UTC; machine id and SSH host keys are made at the first boot",
        "jetson-utils and jetson-inference: csi:// and rtsp:// open" if jetson_utils.is_there(rootfs)
        else "neither jetson-utils nor jetson-inference: csi:// and rtsp:// do not open",
    ]  # fmt: skip


def _write(folder: Path, texts: dict[str, str], dry_run: bool) -> int:
    changed = 0
    for name, text in texts.items():
        path = folder / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            _say(f"  ok       {path.name}")
            continue
        changed += 1
        _say(f"  {'would write' if dry_run else 'writing '} {path}")
        if not dry_run:
            folder.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return changed


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
