"""A root file system of another machine, looked at and changed from outside; nothing of it is run here.

A path in it is followed as the box itself would follow it: a link to /etc/passwd is the rootfs's own, never this
computer's. That is why everything here goes through ``Rootfs.path``."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.box.jetson import l4t_release

UNIT_FOLDERS = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
_LINKS = 40  # as the kernel's own limit
_MACHINES = {183: "aarch64", 62: "x86_64"}  # e_machine of ELF


class ImageError(Exception):
    """The image cannot be made so: what, where, and what to do instead."""


@dataclass(frozen=True)
class Package:
    """One paragraph of dpkg's status. ``wanted``: "install" or "hold"; ``state``: "installed" when it is whole."""

    name: str
    version: str
    wanted: str
    state: str
    architecture: str


class Rootfs:
    """``root``: the folder that is / on the box."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, inside: str, follow: bool = True) -> Path:
        """Where ``inside`` ("etc/localtime") lies on this computer. Without ``follow`` the last part may be a link.
        Raises ImageError for links that turn in a circle."""
        parts, at, links = inside.strip("/").split("/"), self.root, 0
        while parts:
            part = parts.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                at = at if at == self.root else at.parent
                continue
            at = at / part
            if at.is_symlink() and (parts or follow):
                links += 1
                if links > _LINKS:
                    raise ImageError(f"{self.root}: the links of {inside} turn in a circle")
                target = os.readlink(at)
                at = self.root if target.startswith("/") else at.parent
                parts = target.strip("/").split("/") + parts
        return at

    def text(self, inside: str) -> str | None:
        """A file's text, None where there is none."""
        path = self.path(inside)
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        """The whole file anew, by renaming: a link that stood there is replaced, not written through. Owner and mode of
        a file that was there stay."""
        path = self.path(inside, follow=False)
        before = path.lstat() if path.exists() and not path.is_symlink() else None
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.write_text(text, encoding="utf-8")
        new.chmod(stat.S_IMODE(before.st_mode) if before else mode)
        if before:
            os.chown(new, before.st_uid, before.st_gid)
        os.replace(new, path)

    def link(self, inside: str, target: str) -> None:
        """A symbolic link, in place of whatever file or link stood there."""
        path = self.path(inside, follow=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        os.replace(new, path)

    def link_target(self, inside: str) -> str | None:
        """Where a link points, in the rootfs's own words; None where there is no link."""
        path = self.path(inside, follow=False)
        return os.readlink(path) if path.is_symlink() else None

    def machine(self) -> str:
        """What its programs are made for, as ``uname -m`` says it. Raises ImageError when there is no program."""
        for program in ("usr/bin/dpkg", "bin/sh", "usr/bin/env"):
            path = self.path(program)
            if path.is_file():
                with path.open("rb") as file:
                    head = file.read(20)
                if head[:4] == b"\x7fELF":
                    number = int.from_bytes(head[18:20], "little")
                    return _MACHINES.get(number, f"ELF machine {number}")
        raise ImageError(f"{self.root} holds no root file system (no /bin/sh); unpack NVIDIA's sample there first")

    def python(self) -> str:
        """The version of its own Python, "3.10". Raises ImageError when there is none."""
        name = self.path("usr/bin/python3").name
        if not name.startswith("python3.") or not self.path("usr/bin/python3").is_file():
            raise ImageError(f"{self.root} has no /usr/bin/python3; the package runs on the distribution's own Python")
        return name[len("python") :]

    def l4t(self) -> str | None:
        """ "36.4.3"; None before NVIDIA's apply_binaries.sh has run."""
        return l4t_release(self.text("etc/nv_tegra_release") or "")

    def packages(self) -> dict[str, Package]:
        """All that dpkg knows, by name; a package that was removed is not there."""
        found = {}
        for paragraph in (self.text("var/lib/dpkg/status") or "").split("\n\n"):
            fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and not line.startswith(" "))
            wanted, _, state = (fields.get("Status", "") + "  ").split(" ")[:3]
            if "Package" in fields and state not in ("", "not-installed", "config-files"):
                name = fields["Package"]
                found[name] = Package(name, fields.get("Version", ""), wanted, state, fields.get("Architecture", ""))
        return found

    def package_files(self, name: str) -> list[str]:
        """What dpkg put there for a package, without the leading /."""
        return [line.strip("/") for line in (self.text(f"var/lib/dpkg/info/{name}.list") or "").splitlines() if line.strip("/")]

    def unit(self, name: str) -> str | None:
        """A unit's text by its name; None where there is no such unit, or it is masked."""
        for folder in UNIT_FOLDERS:
            if self.link_target(f"{folder}/{name}") == "/dev/null":
                return None
            text = self.text(f"{folder}/{name}")
            if text is not None:
                return text
        return None

    def has_unit(self, name: str) -> bool:
        """Whether there is such a unit, masked or not."""
        return any(self.path(f"{folder}/{name}").is_file() for folder in UNIT_FOLDERS if not self._masks(f"{folder}/{name}"))

    def _masks(self, inside: str) -> bool:
        return self.link_target(inside) == "/dev/null"


def tree_digest(root: Path, times: bool = True) -> str:
    """One digest of everything below: names, kinds, modes, owners, contents, links, and, with ``times``, when changed."""
    whole = hashlib.sha256()
    for path in _everything(root):
        about = path.lstat()
        changed_ns = about.st_mtime_ns if times else 0
        line = f"{path.relative_to(root)}\0{about.st_mode:o}\0{about.st_uid}:{about.st_gid}\0{changed_ns}\0"
        whole.update(line.encode("utf-8", "surrogateescape"))
        if stat.S_ISLNK(about.st_mode):
            whole.update(os.readlink(path).encode("utf-8", "surrogateescape"))
        elif stat.S_ISREG(about.st_mode):
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    whole.update(block)
    return f"sha256:{whole.hexdigest()}"


def _everything(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _everything(path)
