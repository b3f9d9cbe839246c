"""python -m calibration.package [--arch amd64|arm64] [--python 3.X] [-o DIR]: the package, its parts list, its bundle."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import parse_wheel_filename

from appliance.box.app_bundle import BundleRefused, write
from appliance.model.kernel_images import SOURCES_FILE, sources_digest
from calibration.package.content import HOME, NAME, control, depends, documents, program, system_files
from calibration.package.deb import write_deb
from calibration.package.lock import read_lock, run_time_pins
from calibration.package.sbom import licence_words, parts_list
from calibration.package.source import Source, read_source
from calibration.package.target import MACHINES, SYSTEMS, PackageError, Target, target
from calibration.package.tree import Entry, in_order
from calibration.package.wheels import Wheel, closure, fetch, unpacked

_VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1], encoding="utf-8").read())
sys.exit(f"{wrong}" if wrong else 0)
"""
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Made:
    """What one build left, and with which wheels."""

    deb: Path
    parts_list: Path
    bundle: Path | None
    wheels: tuple[Wheel, ...]


def vendored(source: Source, to: Target, cache: Path) -> tuple[list[Wheel], dict[str, list[Entry]]]:
    """The wheels that the firmware needs there, and each one's files. Raises PackageError."""
    dependencies = source.project["dependencies"]
    pins = read_lock((source.root / "appliance/requirements.lock").read_text(encoding="utf-8"))
    wheels = closure(fetch(run_time_pins(pins, dependencies, to), to, cache), dependencies, to)
    return wheels, {wheel.name: [one.under("packages") for one in unpacked(wheel, to)] for wheel in wheels}


def build(root: Path, to: Target, out: Path, cache: Path, with_bundle: bool) -> Made:
    """All files for one target into ``out``. Raises PackageError, BundleRefused, OSError."""
    source = read_source(root)
    wheels, by_wheel = vendored(source, to, cache)
    packages = in_order(one for files in by_wheel.values() for one in files)
    own = in_order([*program(source, kernel_images(root, to)), *packages])
    parts = parts_list(source, to, wheels, by_wheel, own, source.project["dependencies"])
    licences = {f"{wheel.name} {wheel.version}": licence_words(wheel.metadata) for wheel in wheels}
    data = in_order([*(one.under(HOME) for one in own), *system_files(source), *documents(source, parts, licences)])
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{NAME}_{source.version}_{to.tag}"
    relations = depends(to, packages, max(_glibc(wheel) for wheel in wheels))
    write_deb(out / f"{stem}.deb", control(source, to, data, relations), data, source.epoch)
    (out / f"{stem}.cdx.json").write_bytes(parts)
    bundle = out / f"{stem}.bundle" if with_bundle else None
    if bundle is not None:
        with tempfile.TemporaryDirectory(dir=out, prefix=".bundle-") as folder:
            _lay_out(own, Path(folder))
            write(Path(folder), bundle, source.version, to.arch, to.python)
    return Made(out / f"{stem}.deb", out / f"{stem}.cdx.json", bundle, tuple(wheels))


def kernel_images(root: Path, to: Target) -> Path | None:
    """Where ./build.sh kernels left images of these very sources; None for a processor that no Jetson has. Raises
    PackageError."""
    if to.arch != "arm64":
        return None
    folder = root / "build" / "kernels"
    made_of = folder / SOURCES_FILE
    if not made_of.is_file() or made_of.read_text(encoding="ascii").strip() != sources_digest(root / "appliance/kernels"):
        raise PackageError(f"{folder}: no GPU kernels of these sources; ./build.sh kernels makes them")
    return folder


def _glibc(wheel: Wheel) -> int:
    """The oldest 2.X that a wheel's tags allow; manylinux2014 is 2.17."""
    _name, _version, _build, tags = parse_wheel_filename(wheel.file.name)
    told = [re.match(r"manylinux_2_(\d+)_", tag.platform) for tag in tags]
    return min((int(one[1]) for one in told if one), default=17)


def _lay_out(entries: list[Entry], folder: Path) -> None:
    for one in entries:
        place = folder / one.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(one.data)
        place.chmod(one.mode)


def validate(document: Path, library: Path) -> None:
    """Hold the parts list against CycloneDX's own schema; ``library``: the folder of its validator. Raises PackageError."""
    command = [sys.executable, "-c", _VALIDATE, str(document)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(library)}, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise PackageError(f"{document} is no CycloneDX 1.6: {done.stderr.strip()[-2000:]}")


def main(arguments: list[str] | None = None) -> int:
    """Exit 0; 2 where it cannot be made."""
    parser = argparse.ArgumentParser(prog="./build.sh deb", description=__doc__)
    parser.add_argument("--arch", choices=tuple(MACHINES), help="default: this computer's")
    parser.add_argument("--python", choices=tuple(SYSTEMS), help="default: this one's; JetPack 6.2 has 3.10, 7.2 has 3.12")
    parser.add_argument("-o", dest="out", type=Path, default=ROOT / "build" / "deb")
    parser.add_argument("--wheels", type=Path, default=ROOT / "build" / "wheels", help="where fetched wheels are kept")
    parser.add_argument("--no-bundle", action="store_true", help="only the package and its parts list")
    parser.add_argument("--validate", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)  # build.sh fetched it there
    options = parser.parse_args(arguments)
    try:
        to = target(options.arch, options.python)
        made = build(ROOT, to, options.out, options.wheels, not options.no_bundle)
        if options.validate:
            validate(made.parts_list, options.validate)
    except (PackageError, BundleRefused, OSError) as why:
        sys.stderr.write(f"build.sh deb: {why}\n")
        return 2
    _tell(made, to)
    return 0


def _tell(made: Made, to: Target) -> None:
    if ".dirty" in made.deb.name:
        sys.stderr.write("build.sh deb: this tree differs from its commit, so the version ends in .dirty\n")
    sys.stdout.write(f"for {to.system} ({to.arch}, Python {to.python}), {len(made.wheels)} packages vendored\n")
    for path in filter(None, (made.deb, made.parts_list, made.bundle)):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        sys.stdout.write(f"{digest}  {path} ({path.stat().st_size / 1e6:.1f} MB)\n")


if __name__ == "__main__":
    sys.exit(main())
