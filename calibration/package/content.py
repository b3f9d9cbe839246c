"""Where everything lies on a box, and what the package says of itself."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from calibration.package import elf
from calibration.package.deb import installed_kib, md5sums
from calibration.package.source import Source
from calibration.package.target import PackageError, Target
from calibration.package.tree import PROGRAM, Entry

NAME = "appliance"
HOME = "usr/lib/appliance"
DOCUMENTS = "usr/share/doc/appliance"
_UNITS = "usr/lib/systemd/system"
SCRIPTS = Path(__file__).parent / "debian"
EXAMPLE = "usr/share/appliance/station.yaml"
# What of systemd/ goes where: by the folder it lies in, units by their kind.
_UNIT_KINDS = (".service", ".target", ".socket", ".timer", ".path", ".slice", ".mount")
_SYSTEMD_FOLDERS = {"journald.conf.d": "usr/lib/systemd", "system.conf.d": "usr/lib/systemd",
                    "system-preset": "usr/lib/systemd", "sysusers.d": "usr/lib", "tmpfiles.d": "usr/lib",
                    "modules-load.d": "usr/lib", "sysctl.d": "usr/lib"}  # fmt: skip
# Which Debian package brings what the vendored libraries need and do not bring; the versions are of their names.
_SYSTEM_LIBRARIES = {
    **{name: "libc6" for name in ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1")},
    "ld-linux-x86-64.so.2": "libc6",
    "ld-linux-aarch64.so.1": "libc6",
    "libstdc++.so.6": "libstdc++6",
    "libgcc_s.so.1": "libgcc-s1",
    "libz.so.1": "zlib1g",
}
_OLDEST_SYSTEMD = 249


def program(source: Source, kernels: Path | None) -> Iterator[Entry]:
    """The firmware itself, as the package and an application bundle hold it: appliance/, models/, VERSION, bin/.
    ``kernels``: where ./build.sh kernels left its images."""
    for name, file in source.below("appliance"):
        yield Entry(f"appliance/{name}", file.read_bytes())
    shipped = {name.removesuffix("/model.yaml") for name, _file in source.below("models") if name.endswith("/model.yaml")}
    for name, file in source.below("models"):
        if name.split("/")[0] in shipped:
            yield Entry(f"models/{name}", file.read_bytes())
    yield Entry("VERSION", f"{source.version}\n".encode())
    yield Entry("bin/appliance", (source.root / "appliance/box/launch.py").read_bytes(), PROGRAM)
    for file in sorted(kernels.iterdir()) if kernels else ():
        yield Entry(f"appliance/kernels/images/{file.name}", file.read_bytes())


def system_files(source: Source) -> Iterator[Entry]:
    """Units, rules and what stands around them."""
    yield Entry("usr/bin/appliance", link="../lib/appliance/bin/appliance")
    for name, file in source.below("systemd"):
        place = _systemd_place(PurePosixPath(name))
        if place is not None:
            yield Entry(place, file.read_bytes())
    for name, file in source.below("udev"):
        if name.endswith(".rules"):
            yield Entry(f"usr/lib/udev/rules.d/{name}", file.read_bytes())


def _systemd_place(path: PurePosixPath) -> str | None:
    if path.suffix == ".md":
        return None
    top = path.parts[0]
    if top in _SYSTEMD_FOLDERS and len(path.parts) == 2:
        return f"{_SYSTEMD_FOLDERS[top]}/{path}"
    if top.endswith(_UNIT_KINDS) or (top.endswith(".d") and top.removesuffix(".d").endswith(_UNIT_KINDS)):
        return f"{_UNITS}/{path}"
    raise PackageError(f"systemd/{path}: nobody knows where that goes; name it in calibration/package/content.py")


def documents(source: Source, parts_list: bytes, licences: Mapping[str, str]) -> Iterator[Entry]:
    """What a person reads on the box. ``licences``: of each vendored package."""
    yield Entry(f"{DOCUMENTS}/copyright", _copyright(licences))
    yield Entry(f"{DOCUMENTS}/changelog.gz", _gzipped(_changelog(source)))
    yield Entry(f"{DOCUMENTS}/appliance.cdx.json", parts_list)
    for name in ("README.md", "SECURITY.md", "jetpack-requirements.txt"):
        if name in source.files:
            yield Entry(f"{DOCUMENTS}/{name}", (source.root / name).read_bytes())
    yield Entry(EXAMPLE, (source.root / "appliance/twin/station.yaml").read_bytes())


def _copyright(licences: Mapping[str, str]) -> bytes:
    own = (
        "The inspection appliance\nCopyright © 2026 its authors\nLicence: Apache-2.0\n\n"
        "On Debian systems the text of that licence is /usr/share/common-licenses/Apache-2.0.\n\n"
        "The Python packages in /usr/lib/appliance/packages are copyright of their authors. The licence of each lies in its\n"
        ".dist-info folder; by its own words it is:\n\n"
    )
    return (own + "".join(f"  {name}: {licence}\n" for name, licence in licences.items())).encode()


def _changelog(source: Source) -> bytes:
    when = f"{source.date:%a, %d %b %Y %H:%M:%S} +0000"
    what = f"commit {source.commit}" if source.commit else "a tree without its history"
    return f"{NAME} ({source.version}) unstable; urgency=medium\n\n  * Built of {what}.\n\n -- {maintainer()}  {when}\n".encode()


def _gzipped(data: bytes) -> bytes:
    """Not gzip.compress: of its header Python 3.11 and 3.12 make another byte than 3.10 and 3.13."""
    packed = io.BytesIO()
    with gzip.GzipFile("", "wb", 9, packed, mtime=0) as stream:
        stream.write(data)
    return packed.getvalue()


def maintainer() -> str:
    """Nobody's name: whoever sells the box puts theirs here."""
    return "Vendor of this box <security@vendor.invalid>"


def depends(target: Target, packages: Sequence[Entry], glibc: int) -> str:
    """The field of that name: the target's Python, the libraries that the vendored ones need, systemd and udev.
    ``glibc``: the newest 2.X that a vendored wheel was built for. Raises PackageError."""
    minor = int(target.python.split(".")[1])
    libraries = system_libraries(packages)
    versions = {"libc6": f" (>= 2.{glibc})"}
    named = [f"python3 (>= 3.{minor})", f"python3 (<< 3.{minor + 1})"]
    named += [name + versions.get(name, "") for name in sorted(libraries | {"libc6"})]
    return ", ".join([*named, f"systemd (>= {_OLDEST_SYSTEMD})", "udev"])


def system_libraries(packages: Sequence[Entry]) -> set[str]:
    """Debian packages whose libraries the vendored ones need. Raises PackageError for one that nobody brings."""
    brought = {PurePosixPath(one.path).name for one in packages}
    found: set[str] = set()
    for one in packages:
        if one.data[:4] != elf.MAGIC:
            continue
        for name in elf.needed(one.data):
            if name in brought:
                continue
            if name not in _SYSTEM_LIBRARIES:
                raise PackageError(f"{one.path} needs {name}, which neither a wheel nor Debian's base brings; see content.py")
            found.add(_SYSTEM_LIBRARIES[name])
    return found


def control(source: Source, target: Target, data: Sequence[Entry], relations: str) -> list[Entry]:
    """The package's control files."""
    fields = {
        "Package": NAME,
        "Version": source.version,
        "Architecture": target.arch,
        "Maintainer": maintainer(),
        "Installed-Size": str(installed_kib(data)),
        "Depends": relations,
        "Suggests": "mosquitto, python3-gi, gir1.2-aravis-0.8",
        "Section": "misc",
        "Priority": "optional",
        "Description": _description(target),
    }
    text = "".join(f"{name}: {value}\n" for name, value in fields.items())
    units = sorted(PurePosixPath(one.path).name for one in data if one.path.startswith(f"{_UNITS}/"))
    words = {"@PYTHON@": f"/usr/bin/python{target.python}", "@UNITS@": " ".join(one for one in units if "@" not in one)}
    scripts = [Entry(path.name, _script(path, words), PROGRAM) for path in sorted(SCRIPTS.iterdir())]
    return [Entry("control", text.encode()), Entry("md5sums", md5sums(data)), *scripts]


def _description(target: Target) -> str:
    lines = [
        "optical inspection on a production line: one trigger, one verdict, one record",
        "The firmware of an inspection camera box: rejectd, inspectd and reportd,",
        "their units and udev rules, and the Python packages they need,",
        f"for {target.system} (Python {target.python}). CUDA, TensorRT, PyCUDA and",
        "jetson-utils come from JetPack and are no part of it.",
        "A quality device, not a safety component.",
    ]
    return "\n ".join(lines)


def _script(path: Path, words: Mapping[str, str]) -> bytes:
    text = path.read_text(encoding="utf-8")
    for name, value in words.items():
        text = text.replace(name, value)
    return text.encode()
