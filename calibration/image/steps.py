"""Every change to the root file system, in its order: what is wanted, why, how to see that it is so, how to make it so."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from calibration.image import accounts
from calibration.image.debian import DebFile, install
from calibration.image.emulation import Inside
from calibration.image.quiet import NOT_NEEDED
from calibration.image.rootfs import ImageError, Rootfs
from calibration.image.step import Step

PACKAGE = "appliance"
_MULTI_USER = "/usr/lib/systemd/system/multi-user.target"
_UTC = "/usr/share/zoneinfo/Etc/UTC"
_ENABLED = ("enabled", "enabled-runtime", "alias", "static", "indirect", "generated")
# L4T, CUDA, cuDNN and TensorRT are one release together. libnv alone would be others', too (libnvme1).
_NVIDIAS = re.compile(
    r"nvidia-|libnvidia-|cuda-|libcu(blas|dla|dnn|fft|file|rand|solver|sparse)|libnpp|libnvj|(python3-)?libnv(infer|onnx)|tensorrt"
)
_SHELL = "/bin/bash"


@dataclass(frozen=True)
class Wanted:
    """What the image is to be. ``key``: an SSH public key, or empty."""

    deb: DebFile
    key: str = ""


def binaries_step(l4t: Path, rootfs: Rootfs, inside: Callable[[], Inside]) -> Step:
    """NVIDIA's own: drivers, kernel and firmware into the root file system."""
    return Step(
        "binaries", "run NVIDIA's apply_binaries.sh", "without it the tree has no driver and no release",
        lambda: rootfs.l4t() is not None, lambda: inside().beside(["./apply_binaries.sh"], l4t),
    )  # fmt: skip


def plan(rootfs: Rootfs, wanted: Wanted, inside: Callable[[], Inside]) -> list[Step]:
    """All steps in their order: what installs comes before what cleans up after it."""
    steps = [
        Step("package", f"install {wanted.deb.path.name}", "the firmware, its units and rules",
             lambda: _installed(rootfs, wanted.deb), lambda: install(inside(), rootfs, wanted.deb)),
        Step("hold", "hold every package of NVIDIA's", "an upgrade in the field would change one slot's kernel, or half of CUDA",
             lambda: not _not_held(rootfs), lambda: inside().must(["apt-mark", "hold", *_not_held(rootfs)])),
        Step("default target", "multi-user.target", "nobody sits at the box, and nobody answers NVIDIA's first-boot questions",
             lambda: _default_target(rootfs) == "multi-user.target",
             lambda: rootfs.link("etc/systemd/system/default.target", _MULTI_USER)),
        Step("not needed", f"mask {', '.join(_unmasked(rootfs)) or 'nothing more'}", "each has its reason in quiet.py",
             lambda: not _unmasked(rootfs), lambda: _mask(rootfs)),
        Step("units", "enable the package's units", "the line inspects when the box is on",
             lambda: bool(package_units(rootfs)) and not _not_enabled(rootfs), lambda: _enable(rootfs, inside)),
        Step("clock", "one time service", "two would pull at one clock; without any the ledger says clock: unset",
             lambda: not _wrong_clocks(rootfs), lambda: _one_clock(rootfs, inside())),
        Step("time zone", "UTC", "records carry UTC; a zone would only confuse the journal",
             lambda: rootfs.link_target("etc/localtime") == _UTC and (rootfs.text("etc/timezone") or "") == "Etc/UTC\n",
             lambda: _set_utc(rootfs)),
        *_account_steps(rootfs, wanted, inside),
        Step("machine id", "empty, so that each box makes its own", "boxes with one id get one address",
             lambda: rootfs.text("etc/machine-id") == "" and not _exists(rootfs, "var/lib/dbus/machine-id"),
             lambda: _empty_machine_id(rootfs)),
        Step("host keys", "remove SSH host keys", "every box of the image would have the same",
             lambda: not accounts.host_keys(rootfs),
             lambda: _remove(rootfs, accounts.host_keys(rootfs))),
    ]  # fmt: skip
    return steps


def _account_steps(rootfs: Rootfs, wanted: Wanted, inside: Callable[[], Inside]) -> list[Step]:
    welcome = accounts.SERVICE if wanted.key else ""
    steps = [
        Step("passwords", "no account has one", "a default password is everybody's password",
             lambda: not accounts.with_password(rootfs), lambda: accounts.lock_passwords(rootfs)),
        Step("persons", "no shell for persons' accounts", "NVIDIA's default user, or whoever was made by hand",
             lambda: not accounts.people(rootfs, welcome), lambda: accounts.take_shells(rootfs, welcome)),
        Step("automatic logins", "none", "a keyboard at the box would be a key to it",
             lambda: not accounts.automatic_logins(rootfs),
             lambda: _remove(rootfs, accounts.automatic_logins(rootfs))),
        Step("sshd rules", "keys only", "whoever switches sshd on later gets no passwords with it",
             lambda: not _has_sshd(rootfs) or (rootfs.text(accounts.SSHD) == accounts.SSHD_TEXT
                                               and rootfs.text(accounts.SSH_KEYS) == accounts.SSH_KEYS_TEXT),
             lambda: _sshd_rules(rootfs)),
    ]  # fmt: skip
    if wanted.key:
        steps += [
            Step("service user", f"{accounts.SERVICE}, by key", "--ssh-key was given",
                 lambda: _service_user_is(rootfs, wanted.key), lambda: _service_user(rootfs, inside(), wanted.key)),
            Step("sshd", "on", "--ssh-key was given",
                 lambda: bool(_enabled_of(rootfs, "ssh.service", "ssh.socket")),
                 lambda: _systemctl(inside(), "enable", "ssh.service")),
        ]  # fmt: skip
    else:
        left = (accounts.AUTHORIZED, accounts.SUDOERS)
        steps += [
            Step("service user", "none", "no --ssh-key was given", lambda: not any(_exists(rootfs, file) for file in left),
                 lambda: _remove(rootfs, [file for file in left if _exists(rootfs, file)])),
            Step("sshd", "off", "no --ssh-key was given, so nobody could log in by it",
                 lambda: not _enabled_of(rootfs, "ssh.service", "ssh.socket"),
                 lambda: _systemctl(inside(), "disable", *_enabled_of(rootfs, "ssh.service", "ssh.socket"))),
        ]  # fmt: skip
    return steps


def unit_states(rootfs: Rootfs, *names: str) -> dict[str, str]:
    """What systemctl says of each unit that is there: "enabled", "disabled", "masked", "static" …"""
    there = [name for name in names if rootfs.has_unit(name) or _masked(rootfs, name)]
    if not there:
        return {}
    said = subprocess.run(
        [_systemctl_here(), f"--root={rootfs.root}", "is-enabled", *there], capture_output=True, text=True, env={"LC_ALL": "C"}
    )
    words = said.stdout.split()
    if len(words) != len(there):
        raise ImageError(f"systemctl does not say how {', '.join(there)} stand in {rootfs.root}: {said.stderr.strip()}")
    return dict(zip(there, words))


def package_units(rootfs: Rootfs) -> list[str]:
    """The package's units that a box starts by itself, as its presets say."""
    lines = [
        line.split()
        for file in rootfs.package_files(PACKAGE)
        if "/system-preset/" in file and file.endswith(".preset")
        for line in (rootfs.text(file) or "").splitlines()
    ]
    return [line[1] for line in lines if len(line) == 2 and line[0] == "enable"]


def _systemctl_here() -> str:
    found = shutil.which("systemctl")
    if found is None:
        raise ImageError("this computer has no systemctl, which changes units in a tree: sudo apt install systemd")
    return found


def _systemctl(inside: Inside, verb: str, *units: str) -> None:
    """In there and not from here: for a daemon with an old init script it calls the distribution's own update-rc.d."""
    inside.must(["systemctl", verb, *units])


def _enable(rootfs: Rootfs, inside: Callable[[], Inside]) -> None:
    if not package_units(rootfs):
        raise ImageError(f"the package {PACKAGE} names no unit that a box starts by itself (system-preset/): nothing would run")
    _systemctl(inside(), "enable", *_not_enabled(rootfs))


def _installed(rootfs: Rootfs, deb: DebFile) -> bool:
    there = rootfs.packages().get(PACKAGE)
    if there is None or (there.version, there.state) != (deb.version, "installed"):
        return False
    return rootfs.text(f"var/lib/dpkg/info/{PACKAGE}.md5sums") == deb.md5sums  # the same version may have been built twice


def is_nvidias(package: str) -> bool:
    """Whether it is raised with a whole JetPack or not at all."""
    return _NVIDIAS.match(package) is not None


def _not_held(rootfs: Rootfs) -> list[str]:
    return sorted(one.name for one in rootfs.packages().values() if is_nvidias(one.name) and one.wanted != "hold")


def _default_target(rootfs: Rootfs) -> str:
    target = rootfs.link_target("etc/systemd/system/default.target") or ""
    return target.rpartition("/")[2]


def _masked(rootfs: Rootfs, unit: str) -> bool:
    return rootfs.link_target(f"etc/systemd/system/{unit}") == "/dev/null"


def _unmasked(rootfs: Rootfs) -> list[str]:
    return [unit for unit in NOT_NEEDED if rootfs.has_unit(unit) and not _masked(rootfs, unit)]


def _mask(rootfs: Rootfs) -> None:
    """Not by systemctl: it refuses a name that stands in /etc already, as NVIDIA's link into /opt and every alias does."""
    for unit in _unmasked(rootfs):
        rootfs.link(f"etc/systemd/system/{unit}", "/dev/null")


def _enabled_of(rootfs: Rootfs, *units: str) -> list[str]:
    return [unit for unit, state in unit_states(rootfs, *units).items() if state.startswith("enabled")]


def _not_enabled(rootfs: Rootfs) -> list[str]:
    wanted = package_units(rootfs)
    states = unit_states(rootfs, *wanted)
    return [unit for unit in wanted if states.get(unit) not in _ENABLED]


def _has_sshd(rootfs: Rootfs) -> bool:
    return rootfs.has_unit("ssh.service")


def _wrong_clocks(rootfs: Rootfs) -> list[str]:
    """chrony where somebody installed it (it holds a bad clock better), else systemd-timesyncd."""
    best, other = ("chrony.service", "systemd-timesyncd.service")
    if not rootfs.has_unit(best):
        best, other = other, best
    states = unit_states(rootfs, best, other)
    wrong = [best] if best in states and not states[best].startswith("enabled") else []
    return wrong + ([other] if best in states and states.get(other, "").startswith("enabled") else [])


def _one_clock(rootfs: Rootfs, inside: Inside) -> None:
    for unit in _wrong_clocks(rootfs):
        _systemctl(inside, "disable" if _enabled_of(rootfs, unit) else "enable", unit)


def _exists(rootfs: Rootfs, inside: str) -> bool:
    path = rootfs.path(inside, follow=False)
    return path.exists() and not path.is_symlink()


def _set_utc(rootfs: Rootfs) -> None:
    rootfs.link("etc/localtime", _UTC)
    rootfs.write("etc/timezone", "Etc/UTC\n")


def _remove(rootfs: Rootfs, files: list[str]) -> None:
    for file in files:
        rootfs.path(file, follow=False).unlink()


def _sshd_rules(rootfs: Rootfs) -> None:
    rootfs.write(accounts.SSHD, accounts.SSHD_TEXT)
    rootfs.write(accounts.SSH_KEYS, accounts.SSH_KEYS_TEXT)


def _empty_machine_id(rootfs: Rootfs) -> None:
    rootfs.write("etc/machine-id", "")
    if _exists(rootfs, "var/lib/dbus/machine-id"):
        rootfs.link("var/lib/dbus/machine-id", "/etc/machine-id")


def _service_user_is(rootfs: Rootfs, key: str) -> bool:
    rows = [line.split(":") for line in (rootfs.text("etc/passwd") or "").splitlines()]
    shell = next((row[-1] for row in rows if row[0] == accounts.SERVICE), "")
    files = (rootfs.text(accounts.AUTHORIZED), rootfs.text(accounts.SUDOERS))
    return shell == _SHELL and files == (key, accounts.SUDOERS_TEXT)


def _service_user(rootfs: Rootfs, inside: Inside, key: str) -> None:
    if not _has_sshd(rootfs):
        raise ImageError("--ssh-key: the root file system has no sshd; add openssh-server to it, or leave the key out")
    if inside.run(["id", accounts.SERVICE]).code:
        inside.must(["useradd", "--create-home", "--groups", "adm,video,dialout", accounts.SERVICE])
    inside.must(["usermod", "--shell", _SHELL, accounts.SERVICE])
    rootfs.write(accounts.SUDOERS, accounts.SUDOERS_TEXT, 0o440)
    rootfs.write(accounts.AUTHORIZED, key, 0o600)
    folder = f"/home/{accounts.SERVICE}/.ssh"
    inside.must(["chown", "-R", f"{accounts.SERVICE}:{accounts.SERVICE}", folder])
    inside.must(["chmod", "700", folder])


def remarks(rootfs: Rootfs) -> Iterator[str]:
    """What is read and told, and left as it is."""
    verifier = unit_states(rootfs, "nv_update_verifier.service")
    for unit, state in verifier.items():
        yield f"{unit} (NVIDIA's: tells the loader that a boot went well): {state}, left so"
    if not unit_states(rootfs, "chrony.service", "systemd-timesyncd.service"):
        yield "no time service is there, so the ledger will say clock: unset; add chrony or systemd-timesyncd"
    held = sorted(one.name for one in rootfs.packages().values() if one.wanted == "hold")
    yield f"{len(held)} packages held: {', '.join(held)}" if held else "no package of NVIDIA's to hold: is this NVIDIA's tree?"
