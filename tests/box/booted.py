"""systemd as process 1 in name spaces of its own, over this machine's files, with our units: starts in two seconds.

What it changes on disk lies in memory and is gone with it. It needs root, a kernel with overlayfs and cgroup v2, and no
virtual machine; ``why_not`` says what is missing. The kernel is this machine's: its devices, its scheduler."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
SYSTEMD = Path("/lib/systemd/systemd")
_UNSHARE = ("unshare", "-fpmCiu", "--propagation", "private", "--kill-child")
# Of the host only what these units hang on is started: no network, no logins, no services of its own.
_BOX_TARGET = """[Unit]
Requires=systemd-journald.service systemd-tmpfiles-setup.service
After=systemd-journald.service systemd-tmpfiles-setup.service
AllowIsolate=yes
"""
_BEGIN = r"""
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
find etc/systemd/system -name '*.wants' -prune -exec rm -rf {} +
rm -rf var/lib/appliance var/log/journal
sh -e "$2"
mkdir old
pivot_root . old
umount -l old
exec /lib/systemd/systemd --unit=box.target --log-target=journal --log-level=info --show-status=0
"""


class BootFailed(Exception):
    """systemd did not come up; what it said."""


def why_not() -> str:
    """What is missing here, "" where it can be booted."""
    if os.geteuid() != 0:
        return "systemd as process 1 needs root"
    if not SYSTEMD.is_file() or not shutil.which("unshare") or not shutil.which("nsenter"):
        return "no systemd, unshare or nsenter here"
    asks = "mount -t cgroup2 none /mnt && mount -t tmpfs none /tmp && mkdir /tmp/u /tmp/w /tmp/r && " \
           "mount -t overlay none -o lowerdir=/,upperdir=/tmp/u,workdir=/tmp/w /tmp/r"  # fmt: skip
    asked = subprocess.run(["unshare", "-fpmC", "sh", "-c", asks], capture_output=True, text=True)
    return f"no name spaces to boot in here: {asked.stderr.strip()}" if asked.returncode else ""


class Booted:
    """A running system manager. ``leader``: its process here."""

    def __init__(self, leader: int, log: Path) -> None:
        self.leader, self._log = leader, log

    def run(self, *words: str, timeout_s: float = 60.0, check: bool = True) -> str:
        """Inside, as root; its stdout and stderr. Raises AssertionError with both when it fails and ``check``."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.leader), "-a", *words], capture_output=True, text=True, timeout=timeout_s
        )  # fmt: skip
        text = done.stdout + done.stderr
        assert done.returncode == 0 or not check, f"{' '.join(words)}: {done.returncode}\n{text}"
        return text

    def start(self, *units: str, check: bool = True) -> str:
        """Waits until they are up, or failed."""
        return self.run("systemctl", "start", *units, check=check)

    def show(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", "-P", name, unit).strip()

    def pid(self, unit: str) -> int:
        """As the inside counts."""
        return int(self.show(unit, "MainPID"))

    def wait(self, unit: str, name: str, wanted: str, limit_s: float = 30.0) -> None:
        """Until a property has that value. Raises AssertionError."""
        end = time.monotonic() + limit_s
        while (is_now := self.show(unit, name)) != wanted:
            assert time.monotonic() < end, f"{unit}: {name} is {is_now}, not {wanted}\n{self.journal(unit)}"
            select.select([], [], [], 0.05)

    def journal(self, unit: str = "") -> str:
        """What that unit said."""
        return self.run("journalctl", "-o", "cat", "--no-pager", *(["-u", unit] if unit else []), check=False)


@contextmanager
def booted(folder: Path, prepare: str) -> Iterator[Booted]:
    """``prepare``: a shell script that is run in the new root before systemd takes over. Raises BootFailed."""
    place, script, log = folder / "system", folder / "prepare.sh", folder / "console"
    place.mkdir()
    script.write_text(f"cat > etc/systemd/system/box.target <<'BOX'\n{_BOX_TARGET}BOX\n{prepare}\n")
    environment = {"PATH": os.environ["PATH"], "container": "other"}
    with log.open("wb") as console:
        outer = subprocess.Popen(
            [*_UNSHARE, "sh", "-c", _BEGIN, "begin", str(place), str(script)],
            stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment,
        )  # fmt: skip
        try:
            yield _wait_until_up(outer, log)
        finally:
            outer.send_signal(signal.SIGKILL)  # unshare takes its child with it, and that child everything inside
            outer.wait(10)


def _wait_until_up(outer: subprocess.Popen[bytes], log: Path) -> Booted:
    end = time.monotonic() + 30
    while time.monotonic() < end and outer.poll() is None:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        if children:
            one = Booted(int(children[0]), log)
            if "running" in one.run("systemctl", "is-system-running", check=False):
                return one
        select.select([], [], [], 0.05)
    raise BootFailed(f"systemd did not come up: {log.read_text(errors='replace')[-2000:]}")


def with_our_units() -> str:
    """For ``prepare``: this tree's units, user and folders, and a launcher that runs this tree with this Python."""
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    return f"""
mkdir -p usr/lib/udev/rules.d usr/lib/sysusers.d usr/lib/tmpfiles.d usr/lib/systemd/journald.conf.d
mkdir -p opt/appliance opt/python opt/packages
cp {PROJECT}/systemd/*.service {PROJECT}/systemd/*.target {PROJECT}/systemd/*.path usr/lib/systemd/system/
cp {PROJECT}/systemd/*.slice usr/lib/systemd/system/
cp {PROJECT}/systemd/sysusers.d/* usr/lib/sysusers.d/
cp {PROJECT}/systemd/tmpfiles.d/* usr/lib/tmpfiles.d/
cp {PROJECT}/systemd/journald.conf.d/* usr/lib/systemd/journald.conf.d/
cp {PROJECT}/udev/*.rules usr/lib/udev/rules.d/
systemd-sysusers --root="$PWD" appliance.conf
mount --bind {sys.base_prefix} opt/python
mount --bind {packages} opt/packages
cp -r {PROJECT}/appliance {PROJECT}/models opt/appliance/
{sys.executable} -m compileall -q opt/appliance/appliance
cat > usr/bin/appliance <<'LAUNCHER'
#!/bin/sh
export PYTHONPATH=/opt/appliance:/opt/packages PYTHONDONTWRITEBYTECODE=1 LD_LIBRARY_PATH=/opt/python/lib
exec /opt/python/bin/python{sys.version_info[0]}.{sys.version_info[1]} -m appliance "$@"
LAUNCHER
chmod 755 usr/bin/appliance
"""
