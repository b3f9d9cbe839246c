"""The package in a clean Debian: installed, run by an ordinary user, upgraded, removed, purged. In a chroot, so without a
running systemd; tests/box/vm boots it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from calibration.package.source import read_source
from calibration.package.target import PackageError, Target
from tests.box.debs import ROOT, WHEELS, copy_tree, field_of, start
from tests.box.vm.cache import NotHere, cached, digest, needs

PYTHON = "3.11"  # of bookworm
RELEASE = "bookworm"
BESIDE = "systemd,systemd-sysv,udev,python3,zlib1g,libstdc++6"
_SLOW_S = 600
# A mount namespace of its own: what is mounted for a command is gone with it.
_ENTER = """
mount -t proc proc "$1/proc" && mount -t tmpfs tmpfs "$1/run" && mount --bind /dev "$1/dev"
root=$1; shift; exec chroot "$root" "$@"
"""

pytestmark = [
    pytest.mark.timeout(_SLOW_S),
    pytest.mark.skipif(os.geteuid() != 0, reason="installs packages in a chroot: needs root"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the clean Debian is one for amd64"),
]


@dataclass(frozen=True)
class Debian:
    """A root file system in a folder."""

    root: Path

    def run(self, *command: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
        """``command`` inside, as root or as ``user``."""
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--reset-env"] if user else []
        told = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", _ENTER, "enter", str(self.root), *as_user, *command]
        clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
        return subprocess.run(told, env=clean, cwd="/", capture_output=True, text=True, timeout=_SLOW_S)

    def check(self, *command: str, user: str | None = None) -> str:
        """The same; it must end well. Returns both outputs."""
        done = self.run(*command, user=user)
        assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from calibration.package.__main__ import vendored

    try:
        vendored(read_source(ROOT), Target("amd64", PYTHON), WHEELS)
    except PackageError as why:
        pytest.skip(f"no wheels: {why}")
    folder = tmp_path_factory.mktemp("deb")
    tree = copy_tree(folder / "tree")
    return start(tree, folder / "out", "--arch", "amd64", "--python", PYTHON, "--no-bundle").wait().file(".deb")


@pytest.fixture(scope="module")
def installed(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Debian, str]:
    """A clean Debian, the package installed by dpkg, a person who works there; and what dpkg said."""
    try:
        needs(("mmdebstrap", "unshare", "setpriv"), "mmdebstrap util-linux")
        packed = cached("clean-debian", digest(RELEASE, BESIDE), _clean_debian)
    except (NotHere, subprocess.CalledProcessError) as why:
        pytest.skip(f"no clean Debian: {why}")
    root = tmp_path_factory.mktemp("debian")
    subprocess.run(["tar", "-C", str(root), "-xf", str(packed)], check=True, timeout=_SLOW_S)
    debian = Debian(root)
    debian.check("useradd", "--create-home", "person")
    shutil.copy(deb, root / "root/appliance.deb")
    return debian, debian.check("dpkg", "-i", "/root/appliance.deb")


def _clean_debian(scratch: Path) -> Path:
    out = scratch / "root.tar"
    command = ["nice", "mmdebstrap", "--variant=minbase", f"--include={BESIDE}", "--quiet", RELEASE, str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=_SLOW_S)
    return out


@pytest.fixture
def box(installed: tuple[Debian, str], tmp_path: Path) -> Debian:
    """A copy of it, for what changes it."""
    subprocess.run(["cp", "-a", f"{installed[0].root}/.", str(tmp_path / "box")], check=True, timeout=_SLOW_S)
    return Debian(tmp_path / "box")


@pytest.fixture
def owner_of(installed: tuple[Debian, str]) -> Callable[[str], str]:
    users = {line.split(":")[2]: line.split(":")[0] for line in (installed[0].root / "etc/passwd").read_text().splitlines()}
    return lambda path: users[str((installed[0].root / path).stat().st_uid)]


def test_it_is_enabled_and_not_started(installed: tuple[Debian, str], deb: Path) -> None:
    debian, said = installed
    assert "installed and enabled, not started" in said
    assert (debian.root / "etc/systemd/system/multi-user.target.wants/appliance.target").is_symlink()
    version = field_of(deb, "Version")
    assert debian.check("dpkg-query", "-W", "-f", "${Status} ${Version}", "appliance") == f"install ok installed {version}"
    assert not [one for one in Path("/proc").glob("[0-9]*/root") if _leads_to(one, debian.root)]


def _leads_to(link: Path, root: Path) -> bool:
    try:
        return Path(os.readlink(link)) == root
    except OSError:  # ended, or the kernel's own
        return False


def test_its_user_cannot_log_in_and_has_no_password(installed: tuple[Debian, str]) -> None:
    root = installed[0].root
    (line,) = (one for one in (root / "etc/passwd").read_text().splitlines() if one.startswith("appliance:"))
    assert line.endswith(":/usr/sbin/nologin") and int(line.split(":")[2]) < 1000
    (shadow,) = (one for one in (root / "etc/shadow").read_text().splitlines() if one.startswith("appliance:"))
    assert shadow.split(":")[1].startswith("!")
    groups = installed[0].check("id", "-nG", "appliance").split()
    assert {"gpio", "video", "render", "dialout"} <= set(groups) and not {"root", "sudo", "disk", "adm"} & set(groups)


def test_its_folders_are_its_own_and_its_program_is_roots(
    installed: tuple[Debian, str], owner_of: Callable[[str], str]
) -> None:
    root = installed[0].root
    assert owner_of("var/lib/appliance") == "appliance" and (root / "var/lib/appliance").stat().st_mode & 0o007 == 0
    for path in (root / "usr/lib/appliance").rglob("*"):
        assert path.lstat().st_uid == 0 and (path.is_symlink() or not path.stat().st_mode & 0o022), path


def test_modules_are_compiled_and_every_file_is_as_it_was_packed(installed: tuple[Debian, str]) -> None:
    home = installed[0].root / "usr/lib/appliance"
    sources, compiled = ({one for one in home.rglob(f"*.{end}")} for end in ("py", "pyc"))
    assert len(compiled) > 0.99 * len(sources) > 1000
    assert installed[0].check("dpkg", "--verify", "appliance") == ""


def test_the_shipped_station_is_checked_and_rehearsed_by_an_ordinary_user(installed: tuple[Debian, str]) -> None:
    debian, _said = installed
    assert "valid" in debian.check("appliance", "check", "/usr/share/appliance/station.yaml", user="person")
    said = debian.check("appliance", "rehearse", "--fast", "--parts", "200", user="person")
    assert "PASSED" in said and "escapes  0" in said and "books  closed" in said


def test_the_application_says_which_tree_it_is(installed: tuple[Debian, str], deb: Path) -> None:
    said = installed[0].check("appliance", "update", "status", user="appliance")
    assert field_of(deb, "Version") in said and "packaged" in said


def test_the_units_are_whole_as_they_are_installed(installed: tuple[Debian, str]) -> None:
    units = sorted(one.name for one in (installed[0].root / "usr/lib/systemd/system").iterdir())
    ours = [one for one in units if re.match("appliance|rejectd|inspectd|reportd", one) and "@" not in one]
    assert len(ours) >= 6
    done = installed[0].run("systemd-analyze", "verify", *ours)
    assert done.returncode == 0 and done.stderr.strip() == "", done.stderr


def test_an_upgrade_keeps_what_a_person_decided_and_what_the_line_wrote(box: Debian) -> None:
    box.check("systemctl", "disable", "appliance.target")
    ledger = box.root / "var/lib/appliance/ledger.sqlite"
    ledger.write_bytes(b"the books")
    edited = box.root / "usr/lib/appliance/appliance/clock.py"
    packed = edited.read_bytes()
    edited.write_bytes(packed + b"# by hand\n")
    said = box.check("dpkg", "-i", "/root/appliance.deb")
    assert "installed and enabled" not in said
    assert not (box.root / "etc/systemd/system/multi-user.target.wants/appliance.target").is_symlink()
    assert ledger.read_bytes() == b"the books" and edited.read_bytes() == packed
    assert list((box.root / "usr/lib/appliance/appliance/__pycache__").glob("clock.*.pyc"))


def test_removed_it_leaves_the_books_and_nothing_of_itself(box: Debian) -> None:
    (box.root / "var/lib/appliance/ledger.sqlite").write_bytes(b"the books")
    box.check("dpkg", "-r", "appliance")
    assert not (box.root / "usr/lib/appliance").exists() and not (box.root / "usr/bin/appliance").is_symlink()
    left = [one for one in (box.root / "etc").rglob("*appliance*") if one.name != "appliance.list"]
    assert left == []
    said = box.check("dpkg", "-P", "appliance")
    assert (box.root / "var/lib/appliance/ledger.sqlite").read_bytes() == b"the books"
    assert box.run("dpkg", "-s", "appliance").returncode != 0
    assert "/var/lib/appliance stays" in said or not said


def test_purged_at_once_it_says_that_the_books_stay(box: Debian) -> None:
    said = box.check("dpkg", "-P", "appliance")
    assert "/var/lib/appliance stays (ledger" in said and (box.root / "var/lib/appliance").is_dir()
    assert not list((box.root / "var/lib/dpkg/info").glob("appliance.*"))


def test_installed_again_after_a_purge_it_finds_its_books(box: Debian) -> None:
    (box.root / "var/lib/appliance/ledger.sqlite").write_bytes(b"the books")
    box.check("dpkg", "-P", "appliance")
    box.check("dpkg", "-i", "/root/appliance.deb")
    assert (box.root / "var/lib/appliance/ledger.sqlite").read_bytes() == b"the books"
    user = next(one for one in (box.root / "etc/passwd").read_text().splitlines() if one.startswith("appliance:"))
    assert (box.root / "var/lib/appliance").stat().st_uid == int(user.split(":")[2])


@pytest.mark.parametrize("python", ["3.10", "3.12"])
def test_a_package_for_another_python_is_refused_by_dpkg(box: Debian, python: str) -> None:
    from calibration.package.content import control, depends
    from calibration.package.deb import write_deb
    from calibration.package.tree import Entry

    source, to = read_source(ROOT), Target("amd64", python)
    data = [Entry("usr/share/doc/appliance/one", b"1\n")]
    write_deb(box.root / "root/other.deb", control(source, to, data, depends(to, [], 17)), data, source.epoch)
    box.check("dpkg", "-P", "appliance")
    done = box.run("dpkg", "-i", "/root/other.deb")
    assert done.returncode != 0 and "depends on python3" in done.stderr
