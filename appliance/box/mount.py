"""mount(2) and umount2(2) of a stick: vfat and exfat only, and never with more rights than reading or one report needs.

All of it happens in the child that touches the stick, in a mount namespace of its own: when that process ends, however it
ends, the mount is gone with it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FILE_SYSTEMS = ("vfat", "exfat")
RDONLY, NOSUID, NODEV, NOEXEC, SYNCHRONOUS, NOSYMFOLLOW = 1, 2, 4, 8, 16, 256  # <sys/mount.h>; the last since Linux 5.10
_BLKGETDISKSEQ = 0x80081280  # <linux/fs.h>
_REC, _PRIVATE = 16384, 1 << 18
_DETACH = 2
_SYS_ADMIN = 21  # <linux/capability.h>
_CAPABILITY_VERSION_3 = 0x20080522
_AMBIENT, _AMBIENT_LOWER = 47, 3  # <linux/prctl.h>
_NEWNS = 0x00020000
_HARDENED = NOSUID | NODEV | NOEXEC | NOSYMFOLLOW


class MountRefused(OSError):
    """The device cannot be mounted: ``strerror`` in words."""


def open_device(device: Path) -> None:
    """Raises MountRefused for what is no block device, or not the one that its name is of: sda1.17 is disk number 17."""
    try:
        mode = os.stat(device).st_mode
    except OSError as why:
        raise MountRefused(why.errno, f"{device} is not there any more") from why
    if mode & 0o170000 != 0o060000:
        raise MountRefused(errno.ENOTBLK, f"{device} is no block device")
    wanted = device.suffix[1:]
    if wanted.isdecimal() and wanted != "0" and (number := _disk_number(device)) not in (None, int(wanted)):
        raise MountRefused(errno.ENODEV, f"{device} is another stick by now, number {number}")


def _disk_number(device: Path) -> int | None:
    """None where the kernel counts no disks (before Linux 5.15). Raises MountRefused."""
    number = ctypes.c_uint64()
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.ioctl(descriptor, _BLKGETDISKSEQ, number)
        finally:
            os.close(descriptor)
    except OSError as why:
        if why.errno in (errno.ENOTTY, errno.EINVAL):
            return None
        raise MountRefused(why.errno, f"it cannot be read ({why.strerror})") from why
    return number.value


def own_namespace() -> None:
    """What this process mounts is seen by nobody else and ends with it. Needs CAP_SYS_ADMIN. Raises OSError."""
    libc = _libc()
    if libc.unshare(_NEWNS) != 0:
        raise _error("unshare")
    if libc.mount(b"none", b"/", None, ctypes.c_ulong(_REC | _PRIVATE), None) != 0:
        raise _error("mount --make-rprivate /")


def mount_no_more() -> None:
    """This process and all that it executes lose CAP_SYS_ADMIN, should they have it, for good. Raises OSError: of the two steps
    the one for what is executed was made all the same."""
    libc = _libc()
    if libc.prctl(_AMBIENT, _AMBIENT_LOWER, _SYS_ADMIN, 0, 0) != 0:
        raise _error("prctl(PR_CAP_AMBIENT)")
    header, sets = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) != 0:
        raise _error("capget")
    for at in range(3):  # effective, permitted, inheritable; their upper halves follow
        sets[at] &= ~(1 << _SYS_ADMIN)
    if libc.capset(header, sets) != 0:
        raise _error("capset")


@contextmanager
def mounted(device: Path, place: Path, *, writable: bool, file_systems: Sequence[str] = FILE_SYSTEMS) -> Iterator[str]:
    """``device`` at ``place`` (made if missing) while inside; yields its file system. ``writable``: synchronously, for the
    report. Raises MountRefused (a plain OSError of its errno): what is wrong with it, in words."""
    open_device(device)
    place.mkdir(parents=True, exist_ok=True)
    kind = _mount(device, place, writable, file_systems)
    try:
        yield kind
    finally:
        if _libc().umount2(os.fsencode(place), 0) != 0 and _libc().umount2(os.fsencode(place), _DETACH) != 0:
            raise _error("umount")


def _mount(device: Path, place: Path, writable: bool, file_systems: Sequence[str]) -> str:
    flags = _HARDENED | (SYNCHRONOUS if writable else RDONLY)
    told = ""
    for kind in file_systems:
        if _libc().mount(os.fsencode(device), os.fsencode(place), kind.encode(), ctypes.c_ulong(flags), _options(kind)) == 0:
            return kind
        code = ctypes.get_errno()
        if code in (errno.EROFS, errno.EACCES) and writable:
            raise MountRefused(code, "it is write-protected")
        if code in (errno.EINVAL, errno.EUCLEAN):  # the kernel knows it and does not find it there
            told = told or "no FAT or exFAT file system is on it"
        elif code == errno.ENODEV:  # of this kernel
            told = told or f"this kernel cannot read {kind}"
        elif code == errno.EBUSY:
            raise MountRefused(code, "something else is using it")
        elif code == errno.EPERM:
            raise MountRefused(code, "this process may not mount; it needs CAP_SYS_ADMIN")
        else:
            raise MountRefused(code, f"it cannot be read ({os.strerror(code)})")
    raise MountRefused(errno.EINVAL, told or "no file system was tried")


def _options(kind: str) -> bytes | None:
    """All files belong to whoever mounts and nobody executes them; names come as UTF-8."""
    if kind not in FILE_SYSTEMS:
        return None
    names = "utf8=1" if kind == "vfat" else "iocharset=utf8"
    return f"uid={os.geteuid()},gid={os.getegid()},fmask=0133,dmask=0022,errors=remount-ro,{names}".encode()


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _error(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{what}: {os.strerror(code)}")


def what_it_is(device: Path) -> str:
    """What the first sectors look like, for a stick that cannot be mounted; "" where they cannot be read or say nothing."""
    try:
        with open(os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as stream:
            head = stream.read(64 << 10)
    except OSError:
        return ""
    if not head.strip(b"\0"):
        return "its first sectors are empty"
    for at, mark, name in ((3, b"NTFS    ", "NTFS"), (0x438, b"\x53\xef", "ext4"), (0x8001, b"CD001", "a CD image"),
                           (0, b"LUKS\xba\xbe", "an encrypted volume"), (0, b"XFSB", "XFS")):  # fmt: skip
        if head[at : at + len(mark)] == mark:
            return f"it looks like {name}"
    return ""
