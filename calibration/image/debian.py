"""Our package: what it says of itself, and how it gets into the root file system."""

from __future__ import annotations

import io
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from calibration.image.emulation import SHARED, Inside
from calibration.image.rootfs import ImageError, Rootfs

_AR = b"!<arch>\n"
# NVIDIA's list says <SOC> until the first boot; apt stops at it. The lists without it are enough for what we need.
PLACEHOLDER = "<SOC>"


@dataclass(frozen=True)
class DebFile:
    """``md5sums``: of all its files, as dpkg keeps them once it is installed."""

    path: Path
    name: str
    version: str
    architecture: str
    md5sums: str


def read_deb(path: Path) -> DebFile:
    """Raises ImageError when the file is no Debian package."""
    try:
        with tarfile.open(fileobj=io.BytesIO(_member(path, "control.tar"))) as control:
            texts = {one.name.removeprefix("./"): _text(control, one) for one in control.getmembers() if one.isfile()}
        fields = dict(line.split(": ", 1) for line in texts["control"].splitlines() if ": " in line and not line.startswith(" "))
        return DebFile(path, fields["Package"], fields["Version"], fields["Architecture"], texts["md5sums"])
    except (OSError, KeyError, ValueError, tarfile.TarError) as why:
        raise ImageError(f"{path} is no Debian package that can be read ({why}); ./build.sh deb makes one") from why


def find_deb(folder: Path, architecture: str, python: str) -> Path:
    """The newest package for that processor and Python. Raises ImageError with the command that makes one."""
    tag = f"{architecture}_py{python.replace('.', '')}"
    found = sorted(folder.glob(f"appliance_*_{tag}.deb"), key=lambda one: one.stat().st_mtime_ns)
    if not found:
        raise ImageError(f"no package for {tag} in {folder}: ./build.sh deb --arch {architecture} --python {python}")
    return found[-1]


def install(inside: Inside, rootfs: Rootfs, deb: DebFile) -> None:
    """With what it depends on, from the distribution's own lists."""
    if deb.architecture not in ("all", (rootfs.packages().get("dpkg") or rootfs.packages()["libc6"]).architecture):
        raise ImageError(f"{deb.path.name} is for {deb.architecture}, which the root file system is not")
    shutil.copyfile(deb.path, inside.share / deb.path.name)
    options = readable_lists(rootfs, inside.share)
    command = ["apt-get", *options, "install", "--yes", "--no-install-recommends", "--allow-downgrades", "--reinstall",
               f"{SHARED}/{deb.path.name}"]  # fmt: skip
    inside.must(["dpkg", "--configure", "-a"])  # nothing to do, unless a run was cut short in the middle
    if inside.run(command).code:  # most likely its lists are as old as its image, or not there
        inside.must(["apt-get", *options, "update"])
        inside.must(command)
    inside.must(["apt-get", "clean"])


def nvidia_lists(rootfs: Rootfs, soc: str) -> dict[str, str]:
    """Every list of sources.list.d, with the placeholder filled in as NVIDIA's first boot fills it."""
    folder = rootfs.path("etc/apt/sources.list.d")
    names = sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []
    return {name: (rootfs.text(f"etc/apt/sources.list.d/{name}") or "").replace(PLACEHOLDER, soc) for name in names}


def readable_lists(rootfs: Rootfs, share: Path) -> list[str]:
    """Options that leave out lists which cannot be read yet: the others are copied to the shared folder."""
    folder = rootfs.path("etc/apt/sources.list.d")
    names = sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []
    texts = {name: rootfs.text(f"etc/apt/sources.list.d/{name}") or "" for name in names}
    if not any(PLACEHOLDER in text for text in texts.values()):
        return []
    (share / "lists").mkdir(exist_ok=True)
    for name, text in texts.items():
        if PLACEHOLDER not in text:
            (share / "lists" / name).write_text(text, encoding="utf-8")
    return ["-o", f"Dir::Etc::sourceparts={SHARED}/lists"]


def _member(path: Path, begins: str) -> bytes:
    """One file of an ar archive: a global header, then 60 bytes of header before each file, each at an even place."""
    with path.open("rb") as file:
        if file.read(len(_AR)) != _AR:
            raise ValueError("it does not begin as one")
        while head := file.read(60):
            name, size = head[:16].decode().strip().rstrip("/"), int(head[48:58])
            if name.startswith(begins):
                return file.read(size)
            file.seek(size + size % 2, 1)
    raise ValueError(f"no {begins} in it")


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = archive.extractfile(member)
    return file.read().decode("utf-8", "replace") if file else ""
