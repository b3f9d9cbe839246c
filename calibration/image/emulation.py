"""Runs commands inside a root file system of another processor, and leaves no trace of having been there.

Each command gets namespaces of its own, for mounts and for processes: /dev and /proc are bound into the rootfs, /tmp and
/run are empty memory, and all of it is gone when the command ends, however it ends, with whatever it started. /sys stays
empty: it tells of this computer's processor, and onnxruntime for another one crashes on that. Programs of another
processor need qemu-user and the kernel's word for it (binfmt_misc). Where this computer has registered that, it is used.
Where not, and the kernel is 6.7 or newer, the command gets a user namespace with a registration of its own: nothing on
this computer changes."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from calibration.image.rootfs import ImageError

_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_QEMU = {"aarch64": "qemu-aarch64-static", "x86_64": "qemu-x86_64-static"}
_MAGIC = {"aarch64": r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"}
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
_INSTALL = "sudo apt install qemu-user-static binfmt-support"
_LAYER = ".appliance-layer-"
SHARED = "/tmp/shared"  # where ``share`` stands inside
_NOTHING: Mapping[str, str] = {}
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "SYSTEMD_OFFLINE": "1",  # systemctl changes links only, and asks no manager
    "PIP_CERT": "/run/certificates.crt",  # this computer's: a company's own authority is among them
    "SSL_CERT_FILE": "/run/certificates.crt",
}
_FROM_HERE = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL")  # the way out is this computer's, too

# The first process of the namespace, with which all others end. It stays outside the chroot: by comparing its root with
# theirs, programs in there (systemctl, maintainer scripts) see that they are in one.
_FIRST = '"$@"; exit $?'
# $1: the registration or "", then the command. `go` is read where a user namespace gets its users from outside first;
# only a program started after that has root's rights in it.
_REGISTER = r"""
set -e
[ -n "$1" ] || { shift; exec "$@"; }
read -r go
exec sh -e -c '
  mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
  printf "%s" "$1" > /proc/sys/fs/binfmt_misc/register
  shift
  exec "$@" < /dev/null
' register "$@"
"""
# $1 root, $2 folder to share, $3 folder of a layer or "", then the command. /etc/resolv.conf: a file is covered; a link
# leads into /run, which is ours. /run/systemd/system: installing a package then asks systemctl to start its daemon,
# which in a chroot does nothing; without it the daemon's old init script would be run, here.
_CHROOT = r"""
set -e
root=$1 share=$2 layer=$3; shift 3
if [ -n "$layer" ]; then
  mkdir -p "$layer/changed" "$layer/work" "$layer/root"
  mount -t overlay -o "lowerdir=$root,upperdir=$layer/changed,workdir=$layer/work,userxattr" overlay "$layer/root"
  root=$layer/root
fi
for one in dev proc; do mount --rbind "/$one" "$root/$one"; done
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir -m 1777 "$root/run/lock"
mkdir -p "$root/run/systemd/system" "$root/tmp/shared"
[ ! -f /etc/ssl/certs/ca-certificates.crt ] || cp /etc/ssl/certs/ca-certificates.crt "$root/run/certificates.crt"
mount --rbind "$share" "$root/tmp/shared"
if [ -f "$root/etc/resolv.conf" ] && [ ! -L "$root/etc/resolv.conf" ]; then
  mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
else
  for link in systemd/resolve/stub-resolv.conf systemd/resolve/resolv.conf resolvconf/resolv.conf NetworkManager/resolv.conf; do
    mkdir -p "$root/run/${link%/*}"; cp /etc/resolv.conf "$root/run/$link"
  done
fi
exec chroot "$root" "$@"
"""


@dataclass(frozen=True)
class Done:
    """How a command ended. ``said``: both of its outputs."""

    code: int
    said: str


class Inside:
    """Commands in ``root``, made for ``machine`` ("aarch64"). ``share``: a folder of this computer that stands at
    ``SHARED`` inside. Raises ImageError where this computer cannot run them."""

    def __init__(self, root: Path, machine: str, share: Path, layer: Path | None = None) -> None:
        if os.geteuid() != 0:
            raise ImageError("a root file system belongs to root: run it with sudo, as NVIDIA's own scripts are")
        self._root, self._machine, self.share, self._layer = root, machine, share, layer
        self.registration = _registration(machine)

    @property
    def how(self) -> str:
        """In words, for the report."""
        return "by a registration of their own, in a user namespace" if self.registration else "as this computer runs them"

    def run(self, command: Sequence[str], environment: Mapping[str, str] = _NOTHING, timeout_s: float = 3600) -> Done:
        """The command's end. Raises ImageError when it does not end in time."""
        enter = ["sh", "-c", _CHROOT, "chroot", str(self._root), str(self.share), str(self._layer or ""), *command]
        from_here = {name: os.environ[name] for name in _FROM_HERE if name in os.environ}
        return self._ended(enter, {**from_here, **_ENVIRONMENT, **environment}, timeout_s)

    def must(self, command: Sequence[str], environment: Mapping[str, str] = _NOTHING, timeout_s: float = 3600) -> str:
        """What the command said. Raises ImageError with its last words when it failed."""
        return _good(self.run(command, environment, timeout_s), command, self._root)

    @contextmanager
    def layer(self) -> Iterator[Inside]:
        """The same root file system, whose changes go into a layer over it and are thrown away at the end. The layer lies
        beside the root file system, not in memory: a compiler and what it makes take gigabytes."""
        for left in self._root.parent.glob(f"{_LAYER}*"):  # by a run that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=_LAYER, dir=self._root.parent) as folder:
            yield Inside(self._root, self._machine, self.share, Path(folder))

    def beside(self, command: Sequence[str], folder: Path, timeout_s: float = 3600) -> str:
        """A script of this computer, in ``folder``, that runs programs of the other processor itself. What it said;
        raises ImageError when it failed."""
        enter = ["sh", "-c", 'cd "$1"; shift; exec "$@"', "beside", str(folder), *command]
        return _good(self._ended(enter, dict(os.environ), timeout_s), command, folder)

    def _ended(self, command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Done:
        spaces = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", *(["--user"] if self.registration else [])]
        with subprocess.Popen(
            [*spaces, "sh", "-c", _FIRST, "first", "sh", "-c", _REGISTER, "register", self.registration, *command],
            env=environment, text=True, errors="replace", stdin=subprocess.PIPE if self.registration else subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,  # Ctrl-C is ours alone to answer
        ) as process:  # fmt: skip
            try:
                if self.registration:
                    _give_users(process)
                said, _ = process.communicate("go\n" if self.registration else None, timeout_s)
            except subprocess.TimeoutExpired:
                raise ImageError(f"{' '.join(command[-3:])} did not end within {timeout_s:.0f} s") from None
            finally:
                _end(process)
        return Done(process.returncode, said)


def _end(process: subprocess.Popen[str]) -> None:
    """Whatever still runs in its namespace ends with the first process there, and unshare when all of them have."""
    if process.poll() is None:
        first = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for one in [int(number) for number in first] or [process.pid]:
            os.kill(one, signal.SIGKILL)
        process.wait()  # Popen itself does not after a KeyboardInterrupt


def _good(done: Done, command: Sequence[str], where: Path) -> str:
    if done.code:
        last = "\n  ".join(done.said.strip().splitlines()[-12:])
        raise ImageError(f"{' '.join(command)} failed in {where} with {done.code}:\n  {last}")
    return done.said


def _registration(machine: str) -> str:
    """The line for binfmt_misc; empty where programs of ``machine`` run already."""
    if platform.machine() == machine:
        return ""
    entry = _BINFMT / f"qemu-{machine}"
    if entry.exists() and entry.read_text().startswith("enabled"):
        return ""
    qemu = shutil.which(_QEMU.get(machine, "?")) if machine in _MAGIC else None
    if qemu is None:
        raise ImageError(f"programs for {machine} do not run on this computer: {_INSTALL}")
    if _kernel() < (6, 7):  # older ones know one binfmt_misc for all
        raise ImageError(f"qemu-user is here, but the kernel was not told to use it for {machine}: {_INSTALL}")
    return f":qemu-{machine}:M::{_MAGIC[machine]}:{_MASK}:{qemu}:OPF"


def _kernel() -> tuple[int, int]:
    major, minor = platform.release().split("-")[0].split(".")[:2]
    return int(major), int(minor)


def _give_users(process: subprocess.Popen[str]) -> None:
    """Every user and group of this computer is the same one in the namespace: dpkg gives files away to many."""
    own = os.readlink("/proc/self/ns/user")
    while os.readlink(f"/proc/{process.pid}/ns/user") == own:  # unshare is not through yet
        if process.poll() is not None:
            raise ImageError("this computer's kernel does not allow user namespaces; " + _INSTALL)
        os.sched_yield()
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{process.pid}/{name}").write_text("0 0 4294967295\n")
