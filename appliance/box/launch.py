#!/usr/bin/python3 -IS
"""/usr/lib/appliance/bin/appliance: chooses which tree of the application runs, and becomes it.

It only reads: the slot on trial while its trial holds (this boot, not over), else the active slot, else the tree that the
package brought. So a power cut or a killed update needs nobody to tidy up. A slot counts only with its stamp, which is
written last, and only for this Python and processor. It stands alone: only Python's own modules, and few of them, for it
runs before everything else; box/slots.py chooses by the same function."""

from __future__ import annotations

import json
import os
import sys
import time

TYPE_CHECKING = False  # typing itself takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

PACKAGED = "packaged"
SLOTS = ("a", "b")
STATE = "state.json"
STAMP = "complete"
PACKAGE = "usr/lib/appliance"  # below the root, as this:
SLOTS_FOLDER = "var/lib/appliance/slots"
PYTHON = "/usr/bin/python3"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_MOST_BYTES = 1 << 16
# Before 3.11 `-m` looks for modules in the current folder first, and that may be a stick.
_NOT_HERE = "import sys, runpy; del sys.path[0]; runpy.run_module('appliance', run_name='__main__', alter_sys=True)"


def choose(
    slots: str, package: str, boot_id: str, now_ns: int, here: tuple[str, str, int] | None = None
) -> tuple[str, dict[str, Any] | None, str]:
    """(name, stamp, why) of what is to run; name is a slot's, or ``packaged`` with stamp None. ``why``: what stands in the
    way of another choice, "" = nothing. ``slots``: the folder of both; ``package``: the package's version; ``now_ns``:
    CLOCK_BOOTTIME; ``here``: python, arch and user id unless they are this process's own. Raises nothing that a file can
    bring about."""
    python, arch, user = here or this_process()
    found: list[str] = []
    try:
        state = _state(slots, user)
    except FileNotFoundError:
        return PACKAGED, None, ""
    except (OSError, ValueError, RecursionError) as why:
        return PACKAGED, None, f"which slot runs cannot be read ({why})"
    wanted = list(_wanted(state, boot_id, now_ns))
    if wanted and state.get("package") != package:  # who installs a package wants it to run
        return PACKAGED, None, f"another package was installed since slot {wanted[0]} was chosen"
    for name in wanted:
        try:
            return name, stamp_of(os.path.join(slots, name), python, arch, user), "; ".join(found)
        except (OSError, ValueError, RecursionError) as why:
            found.append(f"slot {name} cannot run ({why})")
    return PACKAGED, None, "; ".join(found)


def this_process() -> tuple[str, str, int]:
    """(python, arch, user id): what a slot must have been built for, and who may have written it."""
    machine = os.uname().machine
    return f"{sys.version_info[0]}.{sys.version_info[1]}", _ARCHITECTURES.get(machine, machine), os.geteuid()


def _state(slots: str, user: int) -> dict[str, Any]:
    state = _read(os.path.join(slots, STATE), user)
    _must_be_trusted(os.lstat(slots), user)
    return state


def _wanted(state: dict[str, Any], boot_id: str, now_ns: int) -> Iterator[str]:
    """Names in the order in which they are tried. What is none of ours is left out."""
    trial, active = state.get("trial"), state.get("active")
    if isinstance(trial, dict):
        what, boot, until_ns = trial.get("what"), trial.get("boot_id"), trial.get("until_ns")
        holds = bool(boot_id) and boot == boot_id and type(until_ns) is int and now_ns < until_ns
        if holds and what in SLOTS:
            yield what
    if active in SLOTS:
        yield active


def stamp_of(slot: str, python: str, arch: str, user: int) -> dict[str, Any]:
    """The stamp of a slot that can run here. Raises OSError, ValueError."""
    _must_be_trusted(os.lstat(slot), user)
    stamp = _read(os.path.join(slot, STAMP), user)
    if not all(isinstance(stamp.get(name), str) for name in ("version", "digest", "python", "arch")):
        raise ValueError("its stamp is none of ours")
    if (stamp["python"], stamp["arch"]) != (python, arch):
        raise ValueError(f"it is for Python {stamp['python']} on {stamp['arch']}, this is {python} on {arch}")
    os.stat(os.path.join(slot, "appliance", "__main__.py"))
    return stamp


def _read(path: str, user: int) -> dict[str, Any]:
    """The JSON object in a plain, small file. O_NONBLOCK: a FIFO must not hold us up. Raises OSError, ValueError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _must_be_trusted(os.fstat(descriptor), user)
        value = json.loads(os.read(descriptor, _MOST_BYTES))
    finally:
        os.close(descriptor)
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no object")
    return value


def _must_be_trusted(status: os.stat_result, user: int) -> None:
    """Root runs nothing that the daemons' user could have put there; others may run what they wrote. Raises ValueError."""
    if user == 0 and status.st_uid != 0:
        raise ValueError("another user may write there, and this is root")


def identity(version: str, name: str, stamp: Mapping[str, Any] | None) -> str:
    """How a tree is told from all others, in run/state.json and in the health check."""
    return f"{version} {PACKAGED}" if stamp is None else f"{version} {name} {stamp['digest'][7:19]}"


def packaged_version(tree: str) -> str:
    """What the package says in its file VERSION; "unknown" where it says nothing."""
    try:
        with open(os.path.join(tree, "VERSION"), encoding="ascii", errors="replace") as stream:
            return stream.read(80).strip() or "unknown"
    except OSError:
        return "unknown"


def environment(old: Mapping[str, str], tree: str, version: str, name: str) -> dict[str, str]:
    """What a process of ``tree`` is started with; ``version``: its identity, ``name``: the slot's. Its children are started
    as `sys.executable -m …`, so the environment carries the choice to them."""
    new = {key: value for key, value in old.items() if not key.startswith("PYTHON")}
    new["PYTHONPATH"] = tree + ":" + os.path.join(tree, "packages")
    new["PYTHONSAFEPATH"] = new["PYTHONNOUSERSITE"] = "1"
    # A cache file cut off in its middle would end every later start; a slot's are made when it is filled.
    new["PYTHONDONTWRITEBYTECODE"] = "1"
    new["APPLIANCE_VERSION"], new["APPLIANCE_SLOT"] = version, name
    return new


def command(*arguments: str) -> list[str]:
    """How the application is started in such an environment."""
    how = ["-m", "appliance"] if sys.version_info >= (3, 11) else ["-c", _NOT_HERE]
    return [PYTHON, *how, *arguments]


def main(arguments: list[str]) -> None:
    """Become the application. Does not return. Raises OSError where there is no Python."""
    tree = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    root = tree[: -len(PACKAGE)] if tree.endswith("/" + PACKAGE) else "/"  # another one in a test
    try:
        with open(_BOOT_ID, encoding="ascii") as stream:
            boot_id = stream.read().strip()
    except OSError:
        boot_id = ""  # then no trial holds
    # Not clock.py's: nothing of a tree may be imported before it is chosen.
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    slots = os.path.join(root, SLOTS_FOLDER)
    package = packaged_version(tree)
    name, stamp, why = choose(slots, package, boot_id, now_ns)
    version = identity(package if stamp is None else stamp["version"], name, stamp)
    tree = tree if stamp is None else os.path.join(slots, name)
    if why:
        sys.stderr.write(f"appliance: {why}; {version} runs\n")
        sys.stderr.flush()
    os.execve(PYTHON, command(*arguments), environment(os.environ, tree, version, name))


if __name__ == "__main__":
    main(sys.argv[1:])
