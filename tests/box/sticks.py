"""Sticks of every kind, good, wrong, half-written and hostile: name -> how to make it, as a folder or as a FAT image.

What each must end in stands beside it, so that whoever plugs it in (a test on a folder, the virtual machine on a block device)
asks the same. Images are made by mkfs.vfat and mtools, without a mount; the damaged ones are patched byte by byte."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.box.manifest import as_yaml, digests

Ends = Literal["applied", "unchanged", "served", "refused", "unreadable"]
_SECTOR = 512
TOOLS = ("mkfs.vfat", "mcopy", "mmd")


@dataclass(frozen=True)
class Maker:
    """What good sticks are made of. ``yaml``: a valid configuration of the station under test, one revision ahead of what it
    runs; ``bundle``: one that it names; ``key``: enrolled there, None: it runs ``signature: off`` or ``warn``."""

    yaml: str
    bundle: Path
    key: Ed25519PrivateKey | None = None

    def write(self, folder: Path, yaml: str | None = None, bundle: bool = False, sign: bool = True) -> None:
        """A good stick; with the bundle its digests stand in the configuration."""
        text = self.yaml if yaml is None else yaml
        if bundle:
            shutil.copytree(self.bundle, folder / "bundles" / self.bundle.name)
            text += as_yaml(digests(self.bundle.name, self.bundle))
        self.put(folder, text.encode(), sign)

    def put(self, folder: Path, raw: bytes, sign: bool = True) -> None:
        """These bytes, signed where there is a key."""
        (folder / "appliance.yaml").write_bytes(raw)
        if self.key and sign:
            (folder / "appliance.yaml.sig").write_bytes(self.key.sign(raw))

    def line(self, old: str, new: str) -> str:
        """The configuration with one line changed."""
        assert old in self.yaml, old
        return self.yaml.replace(old, new, 1)


Fill = Callable[[Path, Maker], None]
Damage = Callable[[Path], None]


@dataclass(frozen=True)
class Kind:
    """``fill``: puts it into an empty folder; ``damage``: done to the FAT image made of that, or of ``fat_fill``. ``ends``: what
    has to come of it; ``words``: RESULT.txt (of an unreadable one: the event) says one of them. ``fat``: a FAT can hold it;
    ``folder``: a plain folder can; ``root``: making it needs that; ``signed``: only a station with ``signature: require`` refuses
    it; ``tags``: ``or unreadable`` where kernels differ."""

    name: str
    ends: Ends
    words: tuple[str, ...]
    fill: Fill
    damage: Damage | None = None
    fat_fill: Fill | None = None
    fat: bool = True
    folder: bool = True
    root: bool = False
    signed: bool = False
    tags: frozenset[str] = field(default_factory=frozenset)


def missing_tools() -> list[str]:
    """What images are made with and is not installed (dosfstools, mtools)."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def make_folder(kind: Kind, folder: Path, maker: Maker) -> None:
    """The stick as a plain folder."""
    folder.mkdir(parents=True)
    kind.fill(folder, maker)


def make_image(kind: Kind, image: Path, maker: Maker, mebibytes: int = 64) -> None:
    """The stick as a FAT32 image without a partition table."""
    folder = image.with_name(image.name + ".folder")
    make_folder(replace(kind, fill=kind.fat_fill or kind.fill), folder, maker)
    fat_image(image, folder, mebibytes)
    shutil.rmtree(folder)
    if kind.damage:
        kind.damage(image)


def fat_image(image: Path, folder: Path, mebibytes: int = 64, label: str = "CONFIG") -> None:
    """``folder``'s content as a FAT32 file system."""
    with image.open("wb") as stream:
        stream.truncate(mebibytes << 20)
    run("mkfs.vfat", "-F", "32", "-s", "1", "-n", label, "-i", "1234ABCD", str(image))
    entries = sorted(str(one) for one in folder.iterdir())
    if entries:
        run("mcopy", "-s", "-Q", "-i", str(image), *entries, "::/")


def in_a_partition(image: Path) -> None:
    """What the image held, behind the table and the gap that most sticks are sold with."""
    inside = image.read_bytes()
    entry = b"\0\xfe\xff\xff\x0c\xfe\xff\xff" + (2048).to_bytes(4, "little") + (len(inside) // _SECTOR).to_bytes(4, "little")
    table = bytes(446) + entry.ljust(64, b"\0") + b"\x55\xaa"
    image.write_bytes(table.ljust(1 << 20, b"\0") + inside)


def run(*words: str) -> None:
    """Raises CalledProcessError with what the tool said."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    found = shutil.which(words[0], path=path) or words[0]
    subprocess.run([found, *words[1:]], check=True, capture_output=True, env={**os.environ, "MTOOLS_SKIP_CHECK": "1"})


# --- good ---------------------------------------------------------------------------------------------------


def _good(folder: Path, maker: Maker) -> None:
    maker.write(folder)


def _good_bundle(folder: Path, maker: Maker) -> None:
    maker.write(folder, bundle=True)


def _droppings(folder: Path, maker: Maker) -> None:
    """As Windows, macOS and a person leave a stick."""
    maker.write(folder, bundle=True)
    (folder / "System Volume Information").mkdir()
    (folder / "System Volume Information" / "IndexerVolumeGuid").write_bytes(b"{\0}\0")
    (folder / ".Trashes").mkdir()
    (folder / "._appliance.yaml").write_bytes(b"\0\5\x16\7")
    (folder / "bundles" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "bundles" / maker.bundle.name / "._model.onnx").write_bytes(b"\0\5\x16\7")
    (folder / "holiday.jpg").write_bytes(b"\xff\xd8" * 500)


def _ten_thousand_files(folder: Path, maker: Maker) -> None:
    maker.write(folder)
    for at in range(10_000):
        (folder / f"IMG_{at:05d}.JPG").touch()


def _collect(folder: Path, _maker: Maker) -> None:
    (folder / "collect").touch()


# --- wrong --------------------------------------------------------------------------------------------------


def _yaml(change: Callable[[Maker], str], **how: bool) -> Fill:
    return lambda folder, maker: maker.write(folder, yaml=change(maker), **how)


def _misspelt(maker: Maker) -> str:
    return maker.yaml.replace("deadline_ms:", "deadlin_ms:", 1).replace("distance_mm:", "distanse_mm:", 1)


def _other_station(maker: Maker) -> str:
    return _top(maker, "station", "acme/elsewhere/line9")


def _old_revision(maker: Maker) -> str:
    return _top(maker, "revision", "1")


def _top(maker: Maker, name: str, value: str) -> str:
    """One setting of the first level anew."""
    lines = maker.yaml.splitlines(keepends=True)
    return "".join(f"{name}: {value}\n" if line.startswith(f"{name}:") else line for line in lines)


def _altered_after_signing(folder: Path, maker: Maker) -> None:
    maker.write(folder)
    raw = (folder / "appliance.yaml").read_bytes()
    (folder / "appliance.yaml").write_bytes(raw + b"# one more line\n")


def _stranger(folder: Path, maker: Maker) -> None:
    replace(maker, key=Ed25519PrivateKey.generate()).write(folder)


def _misnamed(folder: Path, maker: Maker) -> None:
    maker.write(folder)
    (folder / "appliance.yaml").rename(folder / "appliance.yaml.txt")


def _empty(_folder: Path, _maker: Maker) -> None:
    return None


def _stranger_enrols(folder: Path, maker: Maker) -> None:
    maker.write(folder)
    public = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "enrol").mkdir()
    (folder / "enrol" / "mallory.pub").write_bytes(public)


def _weak_key(folder: Path, maker: Maker) -> None:
    """The neutral point: with it a signature over anything can be made up."""
    maker.write(folder)
    (folder / "enrol").mkdir()
    (folder / "enrol" / "zero.pub").write_bytes(base64.b64encode(b"\1" + bytes(31)))


# --- half-written -------------------------------------------------------------------------------------------


def _half_yaml(folder: Path, maker: Maker) -> None:
    """Cut inside a line, as a copy that was interrupted; what was signed is the whole."""
    maker.write(folder)
    raw = (folder / "appliance.yaml").read_bytes()
    (folder / "appliance.yaml").write_bytes(raw[: raw.index(b"recipes:") + 3])


def _half_model(folder: Path, maker: Maker) -> None:
    maker.write(folder, bundle=True)
    path = folder / "bundles" / maker.bundle.name / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1000])


def _model_missing(folder: Path, maker: Maker) -> None:
    maker.write(folder, bundle=True)
    (folder / "bundles" / maker.bundle.name / "model.onnx").unlink()


def _sectors_zeroed(folder: Path, maker: Maker) -> None:
    maker.write(folder)
    raw = bytearray((folder / "appliance.yaml").read_bytes())
    raw[_SECTOR : 2 * _SECTOR] = bytes(_SECTOR)
    (folder / "appliance.yaml").write_bytes(bytes(raw))


def _other_model(folder: Path, maker: Maker) -> None:
    """A model exchanged behind the signature, whole in itself."""
    maker.write(folder, bundle=True)
    place = folder / "bundles" / maker.bundle.name
    old = hashlib.sha256((place / "model.onnx").read_bytes()).hexdigest()
    with (place / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    new = hashlib.sha256((place / "model.onnx").read_bytes()).hexdigest()
    text = (place / "model.yaml").read_text().replace(old, new)
    (place / "model.yaml").write_text(text)


def _unnamed_model(folder: Path, maker: Maker) -> None:
    """Signed, and the bundle is not named in what is signed."""
    shutil.copytree(maker.bundle, folder / "bundles" / maker.bundle.name)
    maker.put(folder, maker.yaml.encode())


# --- hostile content ----------------------------------------------------------------------------------------


def _raw(content: Callable[[Maker], bytes]) -> Fill:
    return lambda folder, maker: maker.put(folder, content(maker))


def _plus(more: bytes) -> Fill:
    """A good configuration, and this behind it."""
    return _raw(lambda maker: maker.yaml.encode() + more)


def _only(content: bytes) -> Fill:
    return _raw(lambda _maker: content)


def _alias_bomb(_maker: Maker) -> bytes:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"] + [f"a{at}: &a{at} [{','.join([f'*a{at - 1}'] * 10)}]" for at in range(1, 12)]
    return "\n".join(lines).encode()


def _many_values(maker: Maker) -> bytes:
    return maker.yaml.encode() + b"alarms:\n  stops_line: [" + b"a," * ((1 << 19) - 4000) + b"]\n"


def _lookalike(folder: Path, maker: Maker) -> None:
    maker.put(folder, maker.yaml.replace("part_mm", "p\u0430rt_mm", 1).encode())


def _twice(folder: Path, maker: Maker) -> None:
    maker.put(folder, maker.yaml.encode() + b"---\n" + maker.yaml.encode())


# --- hostile names and kinds of file --------------------------------------------------------------------------


def _folder_for_file(folder: Path, _maker: Maker) -> None:
    (folder / "appliance.yaml").mkdir()
    (folder / "appliance.yaml" / "appliance.yaml").write_text("version: 1\n")


def _file_for_folder(folder: Path, maker: Maker) -> None:
    maker.write(folder)
    (folder / "bundles").write_bytes(b"x")


def _collect_folder(folder: Path, maker: Maker) -> None:
    maker.write(folder)
    (folder / "collect").mkdir()


def _deep(folder: Path, maker: Maker) -> None:
    maker.write(folder, bundle=True)
    place = folder / "bundles" / maker.bundle.name
    for _ in range(20):
        place = place / "d"
    place.mkdir(parents=True)
    (place / "deep.bin").write_bytes(b"x")


def _many_in_bundle(folder: Path, maker: Maker) -> None:
    maker.write(folder, bundle=True)
    for at in range(10_000):
        (folder / "bundles" / maker.bundle.name / f"f{at}").touch()


def _many_folders(folder: Path, maker: Maker) -> None:
    maker.write(folder, bundle=True)
    for at in range(300):
        (folder / "bundles" / maker.bundle.name / f"f{at}").mkdir()


def _huge_yaml(folder: Path, maker: Maker) -> None:
    maker.put(folder, maker.yaml.encode() + b"#" * (40 << 20), sign=False)


def _huge_bundle(folder: Path, maker: Maker) -> None:
    maker.write(folder, bundle=True)
    with (folder / "bundles" / maker.bundle.name / "model.onnx").open("r+b") as stream:
        stream.truncate((512 << 20) + 1)


def _named(*names: str | bytes) -> Fill:
    """Files of these names in a bundle."""

    def fill(folder: Path, maker: Maker) -> None:
        maker.write(folder, bundle=True)
        place = os.fsencode(folder / "bundles" / maker.bundle.name)
        for name in names:
            with open(os.path.join(place, os.fsencode(name)), "wb") as stream:
                stream.write(b"x")

    return fill


def _bundle_called(name: str) -> Fill:
    def fill(folder: Path, maker: Maker) -> None:
        maker.write(folder)
        shutil.copytree(maker.bundle, folder / "bundles" / name)

    return fill


def _link(target: str, *place: str) -> Fill:
    """A link instead of a file that is there."""

    def fill(folder: Path, maker: Maker) -> None:
        maker.write(folder, bundle=True)
        path = folder.joinpath(*(maker.bundle.name if one == "BUNDLE" else one for one in place))
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.symlink_to(target)

    return fill


def _pipe(*place: str) -> Fill:
    def fill(folder: Path, maker: Maker) -> None:
        maker.write(folder, bundle=True)
        path = folder.joinpath(*(maker.bundle.name if one == "BUNDLE" else one for one in place))
        path.unlink(missing_ok=True)
        os.mkfifo(path)

    return fill


def _socket(folder: Path, maker: Maker) -> None:
    maker.write(folder)
    (folder / "appliance.yaml").unlink()
    here = os.getcwd()
    os.chdir(folder)  # its path may be longer than a socket's may be
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind("appliance.yaml")
    finally:
        os.chdir(here)


def _device(folder: Path, maker: Maker) -> None:
    maker.write(folder)
    (folder / "appliance.yaml").unlink()
    os.mknod(folder / "appliance.yaml", 0o020666, os.makedev(1, 5))  # /dev/zero: it never ends


def _result_folder(folder: Path, maker: Maker) -> None:
    maker.write(folder)
    (folder / "RESULT.txt").mkdir()
    (folder / "RESULT.txt" / "x").write_bytes(b"x")


def _result_link(folder: Path, maker: Maker) -> None:
    """What it points to must stay as it is: see ``outside``."""
    maker.write(folder)
    outside(folder).write_text("untouched\n")
    (folder / "RESULT.txt").symlink_to(outside(folder))


def outside(folder: Path) -> Path:
    """A file beside the stick's folder that nobody may touch."""
    return folder.with_name(folder.name + ".outside")


# --- damaged file systems -----------------------------------------------------------------------------------


def _boot_sector_dead(image: Path) -> None:
    _patch(image, 0, random.Random(5).randbytes(_SECTOR))
    _patch(image, 6 * _SECTOR, random.Random(6).randbytes(_SECTOR))  # its copy


def _all_zero(image: Path) -> None:
    _patch(image, 0, bytes(1 << 20))


def _foreign(image: Path) -> None:
    size = image.stat().st_size
    with image.open("wb") as stream:
        stream.truncate(size)
    run("mkfs.ext4", "-q", "-F", str(image))


def _ntfs_like(image: Path) -> None:
    """Its first sector says NTFS, nothing behind it does."""
    _patch(image, 0, b"\xeb\x52\x90NTFS    " + bytes(_SECTOR - 13) + b"\x55\xaa")


def _size_claimed(size: int) -> Damage:
    """The directory's entry of appliance.yaml says so many bytes."""

    def damage(image: Path) -> None:
        at = entry_at(image, "appliance.yaml")
        _patch(image, at + 28, size.to_bytes(4, "little"))

    return damage


def _first_cluster(name: str, cluster: int) -> Damage:
    """A file or folder of the root that begins elsewhere."""

    def damage(image: Path) -> None:
        at = entry_at(image, name)
        _patch(image, at + 20, (cluster >> 16).to_bytes(2, "little"))
        _patch(image, at + 26, (cluster & 0xFFFF).to_bytes(2, "little"))

    return damage


def _fat_noise(image: Path) -> None:
    """Both tables overwritten: chains lead anywhere."""
    reserved, tables, sectors = _geometry(image)
    for table in range(tables):
        noise = random.Random(7).randbytes(sectors * _SECTOR - 64)
        _patch(image, (reserved + table * sectors) * _SECTOR + 64, noise)


def _chain_loops(image: Path) -> None:
    """The file's first cluster leads back to itself, not to the next."""
    reserved, tables, sectors = _geometry(image)
    at = entry_at(image, "appliance.yaml")
    raw = image.read_bytes()[at : at + 32]
    first = int.from_bytes(raw[20:22], "little") << 16 | int.from_bytes(raw[26:28], "little")
    for table in range(tables):
        place = (reserved + table * sectors) * _SECTOR
        _patch(image, place + 4 * first, first.to_bytes(4, "little"))


def _root_of_ten_thousand(image: Path) -> None:
    """Empty files, written into the directory itself: mtools takes minutes for so many."""
    reserved, tables, sectors = _geometry(image)
    data = (reserved + tables * sectors) * _SECTOR  # of cluster 2, where the root begins
    last = _chain(image, 2)[-1]
    first = sectors * _SECTOR // 4 - 1000 - 16  # near the end of the table, where nothing is yet
    entries = [f"IMG{at:05d}JPG".encode() + b"\x20" + bytes(20) for at in range(10_000)]
    for at in range(0, len(entries), 16):
        cluster = first + at // 16
        _patch(image, data + (cluster - 2) * _SECTOR, b"".join(entries[at : at + 16]).ljust(_SECTOR, b"\0"))
        _link_cluster(image, last, cluster)
        last = cluster
    _link_cluster(image, last, 0x0FFFFFFF)
    _close_gap(image, data)


def _close_gap(image: Path, root: int) -> None:
    """An entry of zeros ends a directory: what is free in the root's first clusters is marked as deleted instead."""
    for cluster in _chain(image, 2):
        place = root + (cluster - 2) * _SECTOR
        raw = bytearray(image.read_bytes()[place : place + _SECTOR])
        for at in range(0, _SECTOR, 32):
            raw[at] = raw[at] or 0xE5
        _patch(image, place, bytes(raw))


def _chain(image: Path, cluster: int) -> list[int]:
    reserved, _tables, _sectors = _geometry(image)
    with image.open("rb") as stream:
        found = [cluster]
        while True:
            stream.seek(reserved * _SECTOR + 4 * found[-1])
            following = int.from_bytes(stream.read(4), "little") & 0x0FFFFFFF
            if following >= 0x0FFFFFF8:
                return found
            found.append(following)


def _link_cluster(image: Path, cluster: int, following: int) -> None:
    """In each of the tables."""
    reserved, tables, sectors = _geometry(image)
    for table in range(tables):
        _patch(image, (reserved + table * sectors) * _SECTOR + 4 * cluster, following.to_bytes(4, "little"))


def entry_at(image: Path, name: str) -> int:
    """Where the root directory's short entry of a long-named file lies, in bytes."""
    reserved, tables, sectors = _geometry(image)
    raw = image.read_bytes()
    root = (reserved + tables * sectors) * _SECTOR
    told = ""
    for at in range(root, root + 64 * 1024, 32):
        entry = raw[at : at + 32]
        if entry[11] == 0x0F:  # a piece of a long name, last piece first
            piece = (entry[1:11] + entry[14:26] + entry[28:32]).decode("utf-16-le", "ignore")
            told = piece.split("\0")[0].rstrip("\uffff") + told
            continue
        short = (entry[:8].rstrip() + (b"." + entry[8:11].rstrip() if entry[8:11].strip() else b"")).decode("ascii", "replace")
        if name.lower() in (told.lower(), short.lower()):
            return at
        told = ""
    raise AssertionError(f"{image} has no {name} in the first sectors of its root")


def _geometry(image: Path) -> tuple[int, int, int]:
    """(reserved sectors, tables, sectors of one table); mkfs.vfat with one sector a cluster and 512 bytes a sector."""
    with image.open("rb") as stream:
        boot = stream.read(_SECTOR)
    assert (int.from_bytes(boot[11:13], "little"), boot[13]) == (_SECTOR, 1)
    return int.from_bytes(boot[14:16], "little"), boot[16], int.from_bytes(boot[36:40], "little")


def _patch(image: Path, at: int, data: bytes) -> None:
    with image.open("r+b") as stream:
        stream.seek(at)
        stream.write(data)


# --- the list -----------------------------------------------------------------------------------------------


def _kinds() -> Iterator[Kind]:
    yield Kind("good", "applied", ("APPLIED", "KEPT"), _good)
    yield Kind("good with a bundle", "applied", ("APPLIED", "KEPT"), _good_bundle)
    yield Kind("what operating systems leave behind", "applied", ("APPLIED", "KEPT"), _droppings)
    yield Kind("10,000 photographs beside it", "applied", ("APPLIED", "KEPT"), _ten_thousand_files, _root_of_ten_thousand,
               fat_fill=_good)  # fmt: skip
    yield Kind("collect only", "served", ("support-",), _collect)

    yield Kind("settings misspelt", "refused", ("did you mean deadline_ms",), _yaml(_misspelt))
    yield Kind("wrong station", "refused", ("acme/elsewhere/line9",), _yaml(_other_station))
    yield Kind("old revision", "refused", ("cannot go back",), _yaml(_old_revision), signed=True)
    yield Kind("altered after signing", "refused", ("altered or damaged",), _altered_after_signing, signed=True)
    yield Kind("not signed", "refused", ("not signed",), _yaml(lambda maker: maker.yaml, sign=False), signed=True)
    yield Kind("signed by a stranger", "refused", ("not that of these bytes",), _stranger, signed=True)
    yield Kind("misnamed", "refused", ("appliance.yaml.txt",), _misnamed)
    yield Kind("empty", "refused", ("no appliance.yaml",), _empty)
    yield Kind("a stranger's key to enrol", "refused", ("enrol",), _stranger_enrols)
    yield Kind("a key by which anybody signs", "refused", ("anybody can sign",), _weak_key)

    half = ("altered or damaged", "is missing", "not YAML", "digest", "cannot be read", "no file")
    yield Kind("half a configuration", "refused", half, _half_yaml)
    yield Kind("half a model", "refused", half, _half_model)
    yield Kind("a model's file missing", "refused", ("no such file", "cannot be read"), _model_missing)
    yield Kind("a sector of zeros", "refused", (*half, "unacceptable", "special characters"), _sectors_zeroed)
    yield Kind("a model exchanged", "refused", ("the file's digest is",), _other_model)
    yield Kind("a model that nothing signs", "refused", ("nothing signs it",), _unnamed_model, signed=True)
    yield Kind("zero bytes", "refused", ("the file is empty",), _only(b""))

    yield Kind("alias bomb", "refused", ("anchors",), _raw(_alias_bomb))
    yield Kind("60,000 nested brackets", "refused", ("deeper than 20",), _only(b"[" * 60_000))
    yield Kind("60,000 nested blocks", "refused", ("deeper than 20",), _only(b"- " * 60_000))
    yield Kind("half a million values", "refused", ("more than 50000",), _raw(_many_values))
    yield Kind("a number of base 60", "refused", ("characters",), _plus(b"x: 1" + b":1" * 500_000))
    yield Kind("a fraction of base 60", "refused", ("cannot be read",), _plus(b"x: 1" + b":1" * 1900 + b".5\n"))
    yield Kind("a tag that runs code", "refused", ("tags",), _only(b'x: !!python/object/apply:os.system ["id"]\n'))
    yield Kind("two documents", "refused", ("second document",), _twice)
    yield Kind("a key twice", "refused", ("second time",), _plus(b"part_mm: 99\n"))
    yield Kind("UTF-16", "refused", ("not UTF-8",), _raw(lambda maker: maker.yaml.encode("utf-16")))
    yield Kind("latin-1", "refused", ("not UTF-8",), _plus(b"# \xe4\n"))
    yield Kind("NUL bytes", "refused", ("not YAML",), _plus(b"\0" * 4096))
    yield Kind("a key that only looks right", "refused", ("unknown setting",), _lookalike)
    yield Kind("text that turns around", "refused", ("unknown setting",), _plus("\u202eevil\u202c: 1\n".encode()))
    yield Kind("terminal codes", "refused", ("not YAML",), _plus(b"# \x1b[2J\x1b]0;owned\x07\n"))

    yield Kind("40 MB of configuration", "refused", ("bytes",), _huge_yaml)
    yield Kind("half a gigabyte of model", "refused", ("MiB in all",), _huge_bundle, fat=False)
    yield Kind("10,000 files in a bundle", "refused", ("more than 200 files",), _many_in_bundle, fat=False)
    yield Kind("300 folders in a bundle", "refused", ("more than 200 files",), _many_folders)
    yield Kind("20 folders deep", "refused", ("deeper than",), _deep)
    yield Kind("a folder called appliance.yaml", "refused", ("is a folder",), _folder_for_file)
    yield Kind("a file called bundles", "refused", ("has to be a folder",), _file_for_folder)
    yield Kind("a folder called collect", "refused", ("collect is a folder",), _collect_folder)
    yield Kind("names that turn around", "refused", ("\\u202e",), _named("model\u202exnno.bat"))
    yield Kind("names that look alike", "refused", ("\\u0430",), _named("model.\u0430nnx"))
    yield Kind("names of full width", "refused", ("\\uff0e",), _named("\uff0e\uff0e"), fat=False)
    yield Kind("a bundle whose name climbs", "refused", ("name the bundle",), _bundle_called("a..\uff0f..\uff0fetc"))
    yield Kind("names with line breaks", "refused", ("\\n",), _named("a\nWHAT CHANGED: nothing"), fat=False)
    yield Kind("names with backslashes", "refused", ("name it",), _named("up\\..\\..\\etc"), fat=False)
    yield Kind("names that are not UTF-8", "refused", ("\\udcff",), _named(b"\xff\xfe"), fat=False)
    yield Kind("names that differ by case", "refused", ("more than case",), _named("a.bin", "A.bin"), fat=False)

    link = ("is a link",)
    yield Kind("a link for the configuration", "refused", link, _link("/etc/passwd", "appliance.yaml"), fat=False)
    yield Kind("a link for the signature", "refused", link, _link("/etc/passwd", "appliance.yaml.sig"), fat=False)
    yield Kind("a link for bundles", "refused", ("bundles is a link",), _link("/usr/share", "bundles"), fat=False)
    yield Kind("a link for a bundle", "refused", link, _link("/usr/share", "bundles", "BUNDLE"), fat=False)
    yield Kind("a link for a model", "refused", link, _link("/dev/zero", "bundles", "BUNDLE", "model.onnx"), fat=False)
    yield Kind("a link to itself", "refused", link, _link("appliance.yaml", "appliance.yaml"), fat=False)
    yield Kind("a pipe for the configuration", "refused", ("is a pipe",), _pipe("appliance.yaml"), fat=False)
    yield Kind("a pipe for a model", "refused", ("is a pipe",), _pipe("bundles", "BUNDLE", "model.onnx"), fat=False)
    yield Kind("a socket for the configuration", "refused", ("is a socket",), _socket, fat=False)
    yield Kind("a device for the configuration", "refused", ("is a device",), _device, fat=False, root=True)
    yield Kind("RESULT.txt is a folder", "applied", ("APPLIED", "KEPT"), _result_folder)
    yield Kind("RESULT.txt is a link", "applied", ("APPLIED", "KEPT"), _result_link, fat=False)

    yield Kind("boot sector dead", "unreadable", ("no FAT",), _good, _boot_sector_dead, folder=False)
    yield Kind("all zeros", "unreadable", ("no FAT",), _good, _all_zero, folder=False)
    yield Kind("foreign file system", "unreadable", ("no FAT",), _good, _foreign, folder=False)
    yield Kind("first sector of NTFS", "unreadable", ("no FAT",), _good, _ntfs_like, folder=False)
    yield Kind("size claimed: 4 GiB", "refused", ("4294967295 bytes",), _good, _size_claimed(2**32 - 1), folder=False)
    false = ("is said to have", "cannot be read to its end", "stick fails", "altered or damaged")
    yield Kind("size claimed: more than is there", "refused", false, _good, _size_claimed(900_000), folder=False)
    half_size = (*half, *false)
    yield Kind("size claimed: less than is there", "refused", half_size, _good, _size_claimed(600), folder=False)
    yield Kind("the configuration begins at cluster 0", "refused", (*half_size, "is empty", "the file"), _good,
               _first_cluster("appliance.yaml", 0), folder=False)  # fmt: skip
    yield Kind("a folder that holds itself", "refused", (*half_size, "bundles", "no such file", "listed"), _good_bundle,
               _first_cluster("bundles", 2), folder=False)  # fmt: skip
    yield Kind("tables of noise", "refused", (*half_size, "stick fails", "listed", "bundles", "no appliance.yaml"), _good_bundle,
               _fat_noise, folder=False, tags=frozenset({"or unreadable"}))  # fmt: skip
    yield Kind("a chain that loops", "refused", (*half_size, "second time", "unknown setting"), _good, _chain_loops, folder=False)


KINDS: dict[str, Kind] = {kind.name: kind for kind in _kinds()}


# --- random corruption --------------------------------------------------------------------------------------


def corrupt(data: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut off, zeroed, or exchanged for others of the file, as failing sticks do it."""
    if not data:
        return bytes([chance.randrange(256)])
    how, at = chance.randrange(5), chance.randrange(len(data))
    if how == 0:  # one bit
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if how == 1:  # cut
        return data[:at]
    block = at // _SECTOR * _SECTOR
    end = min(len(data), block + _SECTOR * chance.choice((1, 1, 8)))
    if how == 2:  # sectors of zeros
        return data[:block] + bytes(end - block) + data[end:]
    if how == 3:  # sectors of another place
        other = chance.randrange(len(data)) // _SECTOR * _SECTOR
        return data[:block] + (data[other:] + data)[: end - block] + data[end:]
    few = bytearray(data)  # a few bytes anywhere
    for _ in range(chance.randint(2, 16)):
        few[chance.randrange(len(few))] = chance.randrange(256)
    return bytes(few)


def corrupt_folder(folder: Path, chance: random.Random) -> str:
    """One file of the stick; returns which."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = chance.choice(files)
    path.write_bytes(corrupt(path.read_bytes(), chance))
    return path.relative_to(folder).as_posix()


def corrupt_image(image: Path, chance: random.Random) -> list[int]:
    """1 to 8 sectors of a FAT image, half of them among its boot sector, tables and first clusters; returns which."""
    sectors = image.stat().st_size // _SECTOR
    _reserved, _tables, table = _geometry(image)
    chosen = [chance.randrange(table * 3 if chance.random() < 0.5 else sectors) for _ in range(chance.randint(1, 8))]
    for sector in chosen:
        _patch(image, sector * _SECTOR, bytes(_SECTOR) if chance.random() < 0.5 else chance.randbytes(_SECTOR))
    return sorted(chosen)
