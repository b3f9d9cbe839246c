"""The application's bundle: reproducible when written; when read, nothing in it is believed that its manifest does not say."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.box import app_bundle
from appliance.box.app_bundle import BundleRefused, Manifest, altered, manifest_of, read_manifest, unpack, verify, write

LONG = "packages/" + "a_name_of_thirty_characters_xy/" * 5 + "module.py"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small application: a program, an empty file, one that fills its block, a long name, something to run."""
    return make_tree(tmp_path / "tree")


def make_tree(folder: Path, version: str = "0.2.0") -> Path:
    files = {
        "appliance/__init__.py": b"",
        "appliance/__main__.py": b"print('here')\n",
        "VERSION": version.encode() + b"\n",
        "models/cap/model.onnx": random.Random(1).randbytes(512 * 7),
        LONG: b"x = 1\n",
        "bin/appliance": b"#!/bin/true\n",
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "bin/appliance").chmod(0o755)
    return folder


def bundle_of(tree: Path, out: Path, **more: Any) -> Manifest:
    return write(tree, out, more.pop("version", "0.2.0"), more.pop("arch", "amd64"), more.pop("python", "3.11"), **more)


def manifest_dict(tree: Path, tmp_path: Path) -> dict[str, Any]:
    told = json.loads(bundle_of(tree, tmp_path / "plain.bundle").raw)
    assert isinstance(told, dict)
    return told


# --- writing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("xz", [False, True])
def test_the_same_files_give_the_same_bytes(tree: Path, tmp_path: Path, xz: bool) -> None:
    bundle_of(tree, tmp_path / "one.bundle", xz=xz)
    other = make_tree(tmp_path / "made later")
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
    (other / "appliance/__pycache__").mkdir()
    (other / "appliance/__pycache__/x.pyc").write_bytes(b"of another Python")
    (other / "VERSION").chmod(0o600)
    bundle_of(other, tmp_path / "two.bundle", xz=xz)
    assert (tmp_path / "one.bundle").read_bytes() == (tmp_path / "two.bundle").read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_tar_itself_reads_a_bundle(tree: Path, tmp_path: Path) -> None:
    bundle_of(tree, tmp_path / "x.bundle", xz=True)
    with tarfile.open(tmp_path / "x.bundle") as tar:
        members = tar.getmembers()
        assert members[0].name == "manifest.json" and LONG in [one.name for one in members]
        assert {(one.uid, one.gid, one.mtime) for one in members} == {(0, 0, 0)}
        program = tar.extractfile("appliance/__main__.py")
        assert program is not None and program.read() == b"print('here')\n"
        assert tar.getmember("bin/appliance").mode == 0o755


def test_a_link_is_not_written(tree: Path, tmp_path: Path) -> None:
    (tree / "models/passwd").symlink_to("/etc/passwd")
    with pytest.raises(BundleRefused, match="no plain file"):
        bundle_of(tree, tmp_path / "x.bundle")


def test_a_linked_folder_is_not_written(tree: Path, tmp_path: Path) -> None:
    (tree / "models/etc").symlink_to("/etc")
    with pytest.raises(BundleRefused, match="no plain file"):
        bundle_of(tree, tmp_path / "x.bundle")


# --- reading what is whole ---------------------------------------------------------------------------------


@pytest.mark.parametrize("xz", [False, True])
def test_what_was_written_is_unpacked(tree: Path, tmp_path: Path, xz: bool) -> None:
    made = bundle_of(tree, tmp_path / "x.bundle", l4t="36.4", xz=xz)
    assert manifest_of(tmp_path / "x.bundle") == verify(tmp_path / "x.bundle") == made
    place = tmp_path / "slot"
    place.mkdir()
    unpack(tmp_path / "x.bundle", place, made)
    found = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert found.pop("manifest.json") == made.raw
    assert found == {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    assert (place / "bin/appliance").stat().st_mode & 0o777 == 0o755
    assert (place / "VERSION").stat().st_mode & 0o777 == 0o644
    assert altered(place, made) is None
    assert made.digest == "sha256:" + hashlib.sha256(made.raw).hexdigest()


@pytest.mark.parametrize("harm", ["content", "size", "gone", "link"])
def test_an_altered_slot_is_seen(tree: Path, tmp_path: Path, harm: str) -> None:
    made = bundle_of(tree, tmp_path / "x.bundle")
    victim = tree / "VERSION"
    before = victim.read_bytes()
    if harm == "content":
        victim.write_bytes(before[::-1])
    elif harm == "size":
        victim.write_bytes(before + b"\n")
    else:
        victim.unlink()
    if harm == "link":
        (tmp_path / "elsewhere").write_bytes(before)
        victim.symlink_to(tmp_path / "elsewhere")
    assert altered(tree, made) == "VERSION"


# --- reading what is not -----------------------------------------------------------------------------------


def refused(bundle: Path, place: Path) -> str:
    """The words with which it is refused, by looking and by unpacking alike; and nothing stands outside of ``place``."""
    with pytest.raises(BundleRefused) as looking:
        verify(bundle)
    try:
        known = manifest_of(bundle)
    except BundleRefused:
        return str(looking.value)
    place.mkdir()
    with pytest.raises(BundleRefused):
        unpack(bundle, place, known)
    return str(looking.value)


@pytest.mark.parametrize("xz", [False, True])
def test_every_truncation_is_refused(tree: Path, tmp_path: Path, xz: bool) -> None:
    bundle_of(tree, tmp_path / "x.bundle", xz=xz)
    whole = (tmp_path / "x.bundle").read_bytes()
    for length in (*range(0, len(whole), 97), len(whole) - 1):
        (tmp_path / "cut.bundle").write_bytes(whole[:length])
        with pytest.raises(BundleRefused):
            verify(tmp_path / "cut.bundle")


@pytest.mark.parametrize("xz", [False, True])
def test_every_changed_byte_is_refused(tree: Path, tmp_path: Path, xz: bool) -> None:
    made = bundle_of(tree, tmp_path / "x.bundle", xz=xz)
    whole = (tmp_path / "x.bundle").read_bytes()
    for place in range(0, len(whole), 41):
        changed = bytearray(whole)
        changed[place] ^= 0x20
        (tmp_path / "bad.bundle").write_bytes(changed)
        try:
            found = verify(tmp_path / "bad.bundle")
        except BundleRefused:
            continue
        assert found.digest != made.digest  # a letter of the manifest: another manifest, and a signature would not fit


@pytest.mark.parametrize("xz", [False, True])
def test_what_follows_the_end_is_refused(tree: Path, tmp_path: Path, xz: bool) -> None:
    bundle_of(tree, tmp_path / "x.bundle", xz=xz)
    with (tmp_path / "x.bundle").open("ab") as stream:
        stream.write(lzma.compress(bytes(512)) if xz else bytes(512))
    assert "follows" in refused(tmp_path / "x.bundle", tmp_path / "slot")


def with_manifest(tree: Path, out: Path, told: Any) -> Path:
    """A bundle with a manifest of one's own, the files as they are."""
    raw = told if isinstance(told, bytes) else json.dumps(told).encode()
    parts = [app_bundle._header("manifest.json", len(raw), 0o644), raw, app_bundle._padding(len(raw))]
    for name in sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()):
        content = (tree / name).read_bytes()
        mode = 0o755 if name == "bin/appliance" else 0o644
        parts += [app_bundle._header(name, len(content), mode), content, app_bundle._padding(len(content))]
    out.write_bytes(b"".join(parts) + bytes(1024))
    return out


ENTRY = {"sha256": "0" * 64, "size": 3, "mode": 420}


@pytest.mark.parametrize(
    ("path", "entry", "words"),
    [
        ("../../etc/cron.d/x", ENTRY, "no path below a slot"),
        ("/etc/passwd", ENTRY, "no path below a slot"),
        ("models/../../x", ENTRY, "no path below a slot"),
        ("models/./x", ENTRY, "no path below a slot"),
        ("models//x", ENTRY, "no path below a slot"),
        ("models/x\n", ENTRY, "no path below a slot"),
        ("models\\x", ENTRY, "no path below a slot"),
        ("models/\u2025/x", ENTRY, "no path below a slot"),
        ("", ENTRY, "no path below a slot"),
        ("x" * 101, ENTRY, "too long"),
        ("d/" + "x" * 254, ENTRY, "no path below a slot"),
        ("complete", ENTRY, "the box itself"),
        ("manifest.json", ENTRY, "the box itself"),
        ("appliance/__pycache__/x.pyc", ENTRY, "the box itself"),
        ("VERSION/x", ENTRY, "a file and a folder"),
        ("x", {**ENTRY, "sha256": "0" * 63}, "64 hexadecimal"),
        ("x", {**ENTRY, "sha256": "G" * 64}, "64 hexadecimal"),
        ("x", {**ENTRY, "size": -1}, "size must lie"),
        ("x", {**ENTRY, "size": 1 << 40}, "size must lie"),
        ("x", {**ENTRY, "size": 3.0}, "size must lie"),
        ("x", {**ENTRY, "size": True}, "size must lie"),
        ("x", {**ENTRY, "mode": 0o4755}, "mode must be"),
        ("x", {**ENTRY, "mode": 0o120777}, "mode must be"),
        ("x", {**ENTRY, "link": "/etc/passwd"}, "and no more"),
        ("x", None, "and no more"),
    ],
)  # fmt: skip
def test_a_manifest_with_a_hostile_file_is_refused(tree: Path, tmp_path: Path, path: str, entry: Any, words: str) -> None:
    told = manifest_dict(tree, tmp_path)
    told["files"][path] = entry
    assert words in refused(with_manifest(tree, tmp_path / "x.bundle", told), tmp_path / "slot")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "another"}, "is of 'another'"),
        ({"version": "../0.2"}, "version"),
        ({"version": 2}, "version"),
        ({"arch": "mips"}, "arch"),
        ({"python": "2.7"}, "python"),
        ({"l4t": "36.x"}, "l4t"),
        ({"files": {}}, "1 to"),
        ({"files": []}, "1 to"),
        ({"run": "rm -rf /"}, "and no more"),
        ({"files": {"x": ENTRY}}, "it is no application"),
        ({"files": {f"appliance/{index}": {**ENTRY, "size": 1 << 32} for index in range(3)}}, "at most"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(tree: Path, tmp_path: Path, change: Any, words: str) -> None:
    told = {**manifest_dict(tree, tmp_path), **change}
    assert words in refused(with_manifest(tree, tmp_path / "x.bundle", told), tmp_path / "slot")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 60_000, "no JSON"),
        (b'{"name": "appliance", "name": "appliance"}', "twice"),
        (b"[]", "must hold"),
        (b"{}", "must hold"),
        (b"1" * 5000, "no JSON"),
    ],
)
def test_what_is_no_manifest_is_refused(tree: Path, tmp_path: Path, raw: bytes, words: str) -> None:
    assert words in refused(with_manifest(tree, tmp_path / "x.bundle", raw), tmp_path / "slot")


def test_more_files_than_a_slot_may_have_are_refused(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_bundle, "MAX_FILES", 5)
    with pytest.raises(BundleRefused, match="1 to 5 files"):
        bundle_of(tree, tmp_path / "x.bundle")


@pytest.mark.parametrize("kind", ["symlink", "hard link", "device", "fifo", "folder", "sparse", "pax", "other size", "owner"])
def test_a_header_that_write_would_not_make_is_refused(tree: Path, tmp_path: Path, kind: str) -> None:
    """The manifest is honest; a member is a link, a device … of the same name."""
    told = bundle_of(tree, tmp_path / "honest.bundle")
    raw = (tmp_path / "honest.bundle").read_bytes()
    wanted = app_bundle._header("VERSION", 6, 0o644)
    forged = tarfile.TarInfo("VERSION")
    forged.size, forged.mode = 6, 0o644
    kinds = {"symlink": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "fifo": tarfile.FIFOTYPE,
             "folder": tarfile.DIRTYPE, "sparse": tarfile.GNUTYPE_SPARSE, "pax": tarfile.XHDTYPE}  # fmt: skip
    forged.type = kinds.get(kind, tarfile.REGTYPE)
    forged.linkname = "/etc/passwd" if "link" in kind else ""
    forged.size = 1 << 20 if kind == "other size" else 6
    forged.uid = 1000 if kind == "owner" else 0
    assert raw.count(wanted) == 1
    (tmp_path / "x.bundle").write_bytes(raw.replace(wanted, forged.tobuf(tarfile.USTAR_FORMAT)))
    assert "the header of 'VERSION'" in refused(tmp_path / "x.bundle", tmp_path / "slot")
    assert manifest_of(tmp_path / "x.bundle") == told


def test_another_order_or_one_file_more_is_refused(tree: Path, tmp_path: Path) -> None:
    bundle_of(tree, tmp_path / "honest.bundle")
    raw = (tmp_path / "honest.bundle").read_bytes()
    more = app_bundle._header("appliance/more.py", 4, 0o644) + b"evil" + app_bundle._padding(4)
    (tmp_path / "x.bundle").write_bytes(raw[:-1024] + more + bytes(1024))
    assert "its end" in refused(tmp_path / "x.bundle", tmp_path / "slot")


def test_a_bomb_ends_at_the_size_that_was_told(tree: Path, tmp_path: Path) -> None:
    """4 GiB of zeros in some KB: no more is unpacked than the manifest says, and the refusal takes no memory."""
    told = bundle_of(tree, tmp_path / "honest.bundle")
    whole = (tmp_path / "honest.bundle").read_bytes()
    packer = lzma.LZMACompressor(preset=1)
    zeros = bytes(1 << 20)
    with (tmp_path / "x.bundle").open("wb") as stream:
        stream.write(packer.compress(whole[:-1024]))
        for _ in range(64):
            stream.write(packer.compress(zeros))
        stream.write(packer.flush())
    assert (tmp_path / "x.bundle").stat().st_size < 1 << 16
    assert "follows" in refused(tmp_path / "x.bundle", tmp_path / "slot")
    assert sum(path.stat().st_size for path in (tmp_path / "slot").rglob("*") if path.is_file()) <= told.bytes


def test_xz_that_wants_more_memory_than_a_box_has_is_refused(tree: Path, tmp_path: Path) -> None:
    bundle_of(tree, tmp_path / "honest.bundle")
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 256 << 20}]
    (tmp_path / "x.bundle").write_bytes(lzma.compress((tmp_path / "honest.bundle").read_bytes(), filters=filters))
    assert "Memory usage" in refused(tmp_path / "x.bundle", tmp_path / "slot")


def test_a_manifest_larger_than_any_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.bundle").write_bytes(app_bundle._header("manifest.json", 1 << 32, 0o644))
    assert "does not begin with" in refused(tmp_path / "x.bundle", tmp_path / "slot")


@pytest.mark.parametrize("make", ["link", "fifo", "folder"])
def test_a_bundle_that_is_no_plain_file_is_refused(tree: Path, tmp_path: Path, make: str) -> None:
    bundle_of(tree, tmp_path / "honest.bundle")
    path = tmp_path / "x.bundle"
    if make == "link":
        path.symlink_to("honest.bundle")
    elif make == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises((BundleRefused, OSError)):
        verify(path)


def test_a_bundle_that_was_exchanged_after_it_was_verified_is_not_unpacked(tree: Path, tmp_path: Path) -> None:
    verified = bundle_of(tree, tmp_path / "x.bundle")
    make_tree(tree, "0.2.1")
    bundle_of(tree, tmp_path / "x.bundle")
    place = tmp_path / "slot"
    place.mkdir()
    with pytest.raises(BundleRefused, match="was changed while it was read"):
        unpack(tmp_path / "x.bundle", place, verified)
    assert not list(place.iterdir())


def test_nothing_is_written_over(tree: Path, tmp_path: Path) -> None:
    """Whatever stands in the slot's folder already, a link too, is not followed and not replaced."""
    made = bundle_of(tree, tmp_path / "x.bundle")
    place = tmp_path / "slot"
    place.mkdir()
    (tmp_path / "victim").write_bytes(b"mine")
    (place / "VERSION").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        unpack(tmp_path / "x.bundle", place, made)
    assert (tmp_path / "victim").read_bytes() == b"mine"


@given(st.binary(max_size=2000), st.booleans())
def test_no_bytes_bring_anything_but_a_refusal(noise: bytes, after_a_header: bool) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".bundle") as stream:
        stream.write(app_bundle._header("manifest.json", max(1, len(noise)), 0o644) + noise if after_a_header else noise)
        stream.flush()
        with pytest.raises(BundleRefused):
            verify(Path(stream.name))


_SMALL = st.none() | st.booleans() | st.integers(-3, 1 << 65) | st.text(max_size=12) | st.lists(st.integers(), max_size=3)


_FIELDS = st.dictionaries(st.sampled_from(["name", "version", "arch", "python", "l4t", "files", "more"]), _SMALL)
_ENTRY = st.dictionaries(st.sampled_from(["sha256", "size", "mode"]), _SMALL)


@given(_FIELDS, st.dictionaries(st.text(max_size=20), _SMALL | _ENTRY))
def test_no_json_brings_anything_but_a_refusal(change: dict[str, Any], files: dict[str, Any]) -> None:
    told = {"name": "appliance", "version": "1", "arch": "amd64", "python": "3.11", "files": files, **change}
    with pytest.raises(BundleRefused):
        read_manifest(json.dumps(told).encode())


def test_the_command_makes_a_bundle_and_says_which(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tree), "-o", str(tmp_path / "x.bundle"), "--version", "0.2.0", "--arch", "arm64", "--python", "3.10"]
    assert app_bundle.main([*arguments, "--l4t", "36.4"]) == 0
    made = verify(tmp_path / "x.bundle")
    assert made.digest in capsys.readouterr().out and (made.arch, made.python, made.l4t) == ("arm64", "3.10", "36.4")
    (tree / "appliance/__main__.py").unlink()
    assert app_bundle.main(arguments) == 2
    assert "it is no application" in capsys.readouterr().err
