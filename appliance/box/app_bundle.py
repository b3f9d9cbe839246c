"""The application's bundle: one file that fills one slot. A tar, plain or xz, whose first member says what the others are.

``manifest.json`` comes first: name, version, arch, python, l4t (where it matters) and every file's sha256, size and mode.
With it read, every further byte of the tar is known but for the files' contents: members come in the manifest's order, with
the headers that ``write`` gives them, and anything else is refused. So nothing in a header is ever believed, a link or a
device cannot be said, and a bomb ends at the size that was told before. A signature is made over the manifest's exact
bytes and lies beside the bundle (``X.bundle.sig``), so signing changes no bundle. Nothing of a bundle runs before all of
it was read and held against its manifest."""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

SUFFIX = ".bundle"
MANIFEST = "manifest.json"
STAMP = "complete"  # the slot's own file, see slots.py
APPLICATION = "appliance/__main__.py"
NAME = "appliance"
MAX_MANIFEST_BYTES = 8 << 20  # the shipped package has a few thousand files of 150 bytes each in it
MAX_FILES = 50_000
MAX_BYTES = 4 << 30
_XZ_MEMORY = 80 << 20  # what xz -9 needs to unpack is 65 MiB; an 8 GB module has that beside a running station
_BLOCK = 512
_CHUNK = 1 << 20
_XZ_MAGIC = b"\xfd7zXZ\x00"
_PATH = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,255}")  # printable ASCII without the backslash
_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+~-]{0,63}")
_PYTHON = re.compile(r"3\.[0-9]{1,2}")
_ARCHITECTURES = ("amd64", "arm64")
_FIELDS = {"name", "version", "arch", "python", "l4t", "files"}


class BundleRefused(Exception):
    """A bundle that is not taken: what is wrong with it, and what to do."""


@dataclass(frozen=True)
class Entry:
    """One file: ``path`` below the slot with slashes, ``mode`` 0o644 or 0o755, ``size`` in bytes, ``sha256`` in hex."""

    path: str
    sha256: str
    size: int
    mode: int


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself. ``arch`` as dpkg names it, ``python`` "3.10", ``l4t`` "36.4" = that release and its
    updates, None = any; ``raw`` the exact bytes, which a signature is over."""

    version: str
    arch: str
    python: str
    l4t: str | None
    files: tuple[Entry, ...]
    raw: bytes

    @property
    def digest(self) -> str:
        """``sha256:`` of the manifest's bytes: names the whole content."""
        return "sha256:" + hashlib.sha256(self.raw).hexdigest()

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(entry.size for entry in self.files)

    def room(self, block: int = 4096) -> int:
        """Bytes on a disk with blocks of that size."""
        return sum(-(-entry.size // block) * block for entry in self.files)


# --- writing -----------------------------------------------------------------------------------------------


def write(folder: Path, out: Path, version: str, arch: str, python: str, l4t: str | None = None, xz: bool = False) -> Manifest:
    """All files below ``folder`` (but __pycache__) as the bundle ``out``: the same files give the same bytes. Raises OSError,
    BundleRefused (a link, a device, a name that does not fit)."""
    files: dict[str, Any] = {}
    for path in _files_below(folder):
        mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
        files[path.relative_to(folder).as_posix()] = {"sha256": _digest(path), "size": path.stat().st_size, "mode": mode}
    told = {"name": NAME, "version": version, "arch": arch, "python": python, "files": files, **({"l4t": l4t} if l4t else {})}
    manifest = read_manifest(json.dumps(told, sort_keys=True, separators=(",", ":")).encode())
    compressor = lzma.LZMACompressor(preset=6) if xz else None
    partial = out.with_name(out.name + ".part")
    with partial.open("wb") as stream:
        for chunk in _tar_of(folder, manifest):
            stream.write(compressor.compress(chunk) if compressor else chunk)
        stream.write(compressor.flush() if compressor else b"")
    os.replace(partial, out)
    return manifest


def _files_below(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in [*names, *folders]:
            path = Path(place, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise BundleRefused(f"{path} is no plain file; a bundle holds files only: put the file itself there")
        found += [Path(place, name) for name in names]
    return found


def _digest(path: Path) -> str:
    taken = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            taken.update(chunk)
    return taken.hexdigest()


def _tar_of(folder: Path, manifest: Manifest) -> Iterator[bytes]:
    yield _header(MANIFEST, len(manifest.raw), 0o644) + manifest.raw + _padding(len(manifest.raw))
    for entry in manifest.files:
        yield _header(entry.path, entry.size, entry.mode)
        with (folder / entry.path).open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
        yield _padding(entry.size)
    yield bytes(2 * _BLOCK)


def _header(path: str, size: int, mode: int) -> bytes:
    """One member of a ustar archive, of nobody, of 1970. tarfile's own bytes differ between Python versions."""
    prefix, name = _split(path)
    head = b"".join([
        name.encode().ljust(100, b"\0"), b"%07o\0" % mode, b"0000000\0", b"0000000\0", b"%011o\0" % size, b"%011o\0" % 0,
        b" " * 8, b"0", bytes(100), b"ustar\x0000", bytes(64), b"0000000\0", b"0000000\0", prefix.encode().ljust(155, b"\0"),
    ]).ljust(_BLOCK, b"\0")  # fmt: skip
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def _split(path: str) -> tuple[str, str]:
    """ustar's prefix (155 bytes) and name (100). Raises BundleRefused."""
    if len(path) <= 100:
        return "", path
    for index, letter in enumerate(path):
        if letter == "/" and len(path) - index - 1 <= 100 and index <= 155:
            return path[:index], path[index + 1 :]
    raise BundleRefused(f"{path!r}: the name is too long for a bundle (100 characters below 155 of folders); shorten it")


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


# --- the manifest ------------------------------------------------------------------------------------------


def read_manifest(raw: bytes) -> Manifest:
    """From its bytes, nothing believed. Raises BundleRefused."""
    try:
        told = json.loads(raw, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as why:
        raise BundleRefused(f"the bundle's manifest is no JSON ({why}); build the bundle anew") from why
    if not isinstance(told, dict) or set(told) | {"l4t"} != _FIELDS:
        raise BundleRefused(f"the bundle's manifest must hold {', '.join(sorted(_FIELDS))} (l4t may be left out) and no more")
    if told["name"] != NAME:
        raise BundleRefused(f"the bundle is of {str(told['name'])[:40]!r}; this box takes {NAME!r}")
    version, arch, python, l4t = told["version"], told["arch"], told["python"], told.get("l4t")
    if not (isinstance(version, str) and _VERSION.fullmatch(version)):
        raise BundleRefused("the bundle's version is none: a digit, then digits, letters and . + ~ -, at most 64 in all")
    if arch not in _ARCHITECTURES:
        raise BundleRefused(f"the bundle's arch is none of {', '.join(_ARCHITECTURES)}")
    if not (isinstance(python, str) and _PYTHON.fullmatch(python)):
        raise BundleRefused('the bundle\'s python is none: write "3.10"')
    if not (l4t is None or isinstance(l4t, str) and re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}", l4t)):
        raise BundleRefused('the bundle\'s l4t is none: write "36.4" or leave it out')
    return Manifest(version, arch, python, l4t, _entries(told["files"]), raw)


def _entries(files: Any) -> tuple[Entry, ...]:
    if not isinstance(files, dict) or not 0 < len(files) <= MAX_FILES:
        raise BundleRefused(f"the bundle's manifest must name 1 to {MAX_FILES} files")
    entries = tuple(_entry(path, files[path]) for path in sorted(files))
    total = sum(entry.size for entry in entries)
    if total > MAX_BYTES:
        raise BundleRefused(f"the bundle unpacks to {total >> 20} MiB; at most {MAX_BYTES >> 20} MiB are taken")
    folders = {folder for entry in entries for folder in _folders_of(entry.path)}
    both = next((entry.path for entry in entries if entry.path in folders), None)
    if both:
        raise BundleRefused(f"{both!r} is a file and a folder in the bundle's manifest")
    if APPLICATION not in files:
        raise BundleRefused(f"the bundle holds no {APPLICATION}: it is no application; build it with ./build.sh deb")
    return entries


def _entry(path: str, told: Any) -> Entry:
    steps = path.split("/")
    if not _PATH.fullmatch(path) or any(step in ("", ".", "..") for step in steps):
        raise BundleRefused(f"{path[:80]!r} is no path below a slot; write printable ASCII, no .. and no leading /")
    if steps[0] in (MANIFEST, STAMP, STAMP + ".part") or "__pycache__" in steps:
        raise BundleRefused(f"{path!r} is a name that the box itself gives in a slot; leave it out")
    _split(path)
    if not isinstance(told, dict) or set(told) != {"sha256", "size", "mode"}:
        raise BundleRefused(f"{path!r}: the manifest must tell sha256, size and mode, and no more")
    digest, size, mode = told["sha256"], told["size"], told["mode"]
    if not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
        raise BundleRefused(f"{path!r}: sha256 must be 64 hexadecimal digits")
    if type(size) is not int or not 0 <= size <= MAX_BYTES:
        raise BundleRefused(f"{path!r}: size must lie between 0 and {MAX_BYTES}")
    if type(mode) is not int or mode not in (0o644, 0o755):
        raise BundleRefused(f"{path!r}: mode must be 420 (rw-r--r--) or 493 (rwxr-xr-x)")
    return Entry(path, digest, size, mode)


def _folders_of(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


# --- reading -----------------------------------------------------------------------------------------------


def manifest_of(path: Path) -> Manifest:
    """Only the manifest of the bundle at ``path``; none of its files is looked at. Raises OSError, BundleRefused."""
    with _open(path) as stream:
        return _manifest(_Tar(stream))


def verify(path: Path) -> Manifest:
    """Read all of it and hold every file against the manifest. Raises OSError, BundleRefused."""
    return _walk(path, lambda _entry: None)


def unpack(path: Path, place: Path, verified: Manifest) -> None:
    """Its files into ``place``, which is there and empty, each held against ``verified`` (the bundle may have been changed
    since). The manifest goes with them. Nothing is forced to disk. Raises OSError, BundleRefused; then ``place`` is half full
    and must go."""

    def make(entry: Entry) -> BinaryIO:
        target = place / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        return open(_create(target, entry.mode), "wb")

    again = _walk(path, make, verified.digest)
    with open(_create(place / MANIFEST, 0o644), "wb") as stream:
        stream.write(again.raw)


def altered(place: Path, manifest: Manifest) -> str | None:
    """The first file below ``place`` that is not what the manifest says; None where all are. Raises OSError."""
    for entry in manifest.files:
        path = place / entry.path
        if path.is_symlink() or not path.is_file() or path.stat().st_size != entry.size or _digest(path) != entry.sha256:
            return entry.path
    return None


def _create(path: Path, mode: int) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    os.fchmod(descriptor, mode)  # whatever the caller's umask
    return descriptor


def _walk(path: Path, target: Callable[[Entry], BinaryIO | None], digest: str | None = None) -> Manifest:
    with _open(path) as stream:
        tar = _Tar(stream)
        manifest = _manifest(tar)
        if digest is not None and manifest.digest != digest:
            raise BundleRefused(f"{path} was changed while it was read; copy it anew")
        for entry in manifest.files:
            tar.expect(_header(entry.path, entry.size, entry.mode), f"the header of {entry.path!r}")
            writing = target(entry)
            try:
                found = tar.copy(entry.size, writing)
            finally:
                if writing is not None:
                    writing.close()
            if found != entry.sha256:
                raise BundleRefused(f"{entry.path!r} is not what the bundle's manifest says; copy the bundle anew")
            tar.expect(_padding(entry.size), f"the padding of {entry.path!r}")
        tar.expect(bytes(2 * _BLOCK), "its end")
        tar.must_end()
        return manifest


def _open(path: Path) -> BinaryIO:
    """O_NONBLOCK: a FIFO of that name must not hold us up. Raises OSError, BundleRefused."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleRefused(f"{path} is no plain file; name the bundle itself")
    return open(descriptor, "rb")


def _manifest(tar: _Tar) -> Manifest:
    head = tar.read(_BLOCK)
    size = int(head[124:135], 8) if re.fullmatch(rb"[0-7]{11}", head[124:135]) else -1
    if not 0 < size <= MAX_MANIFEST_BYTES or head != _header(MANIFEST, size, 0o644):
        raise BundleRefused(f"no bundle of this application: it does not begin with {MANIFEST}; build it with ./build.sh deb")
    raw = tar.read(size)
    tar.expect(_padding(size), f"the padding of {MANIFEST}")
    return read_manifest(raw)


class _Tar:
    """The archive's bytes in order, unpacked where they are xz, never more at once than was asked for."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        packed = stream.read(len(_XZ_MAGIC)) == _XZ_MAGIC
        stream.seek(0)
        self._xz = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY) if packed else None

    def read(self, count: int) -> bytes:
        """Exactly so many. Raises BundleRefused, OSError."""
        parts = []
        while count:
            part = self._some(count)
            if not part:
                raise BundleRefused("the bundle ends too early: it was not copied whole; copy it anew")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def copy(self, count: int, writing: BinaryIO | None) -> str:
        """So many on, into ``writing``; returns their sha256 in hex."""
        taken = hashlib.sha256()
        while count:
            part = self.read(min(count, _CHUNK))
            taken.update(part)
            if writing is not None:
                writing.write(part)
            count -= len(part)
        return taken.hexdigest()

    def expect(self, wanted: bytes, what: str) -> None:
        """Raises BundleRefused where the next bytes are others."""
        if self.read(len(wanted)) != wanted:
            raise BundleRefused(f"the bundle is damaged, or not made by ./build.sh deb: {what} is not as its manifest says")

    def must_end(self) -> None:
        """Raises BundleRefused where something follows, or is missing."""
        if self._some(1) or (self._xz is not None and (self._xz.unused_data or self._stream.read(1))):
            raise BundleRefused("something follows the bundle's end; build it anew")
        if self._xz is not None and not self._xz.eof:
            raise BundleRefused("the bundle ends too early: it was not copied whole; copy it anew")

    def _some(self, count: int) -> bytes:
        if self._xz is None:
            return self._stream.read(count)
        try:
            while not self._xz.eof:
                packed = self._stream.read(_CHUNK) if self._xz.needs_input else b""
                if self._xz.needs_input and not packed:
                    return b""
                part = self._xz.decompress(packed, count)
                if part:
                    return part
        except lzma.LZMAError as why:
            raise BundleRefused(f"the bundle cannot be unpacked ({why}); copy it anew") from why
        return b""


def main(arguments: list[str] | None = None) -> int:
    """For build.sh: a folder to a bundle. Exit 2 where it cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m appliance.box.app_bundle", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="what a slot shall hold: appliance/ models/ packages/ …")
    parser.add_argument("-o", dest="out", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--arch", required=True, choices=_ARCHITECTURES)
    parser.add_argument("--python", required=True, help="3.10")
    parser.add_argument("--l4t", help="36.4: only for that release and its updates; left out: for any")
    parser.add_argument("--xz", action="store_true", help="smaller, and minutes slower to make")
    options = parser.parse_args(arguments)
    try:
        made = write(options.folder, options.out, options.version, options.arch, options.python, options.l4t, options.xz)
    except (OSError, BundleRefused) as why:
        sys.stderr.write(f"{why}\n")
        return 2
    sys.stdout.write(f"{options.out}: {len(made.files)} files, {made.bytes >> 20} MiB, {made.digest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
