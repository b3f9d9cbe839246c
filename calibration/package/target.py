"""What a package is made for: a processor and a Python. Nothing here asks the machine that builds."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

# Debian's name of a processor → what Python calls it, and the ELF header's number for it.
MACHINES = {"amd64": ("x86_64", 62), "arm64": ("aarch64", 183)}
# Python → its full version and glibc (2.X) in the system that brings it, which one that is, and its JetPack.
SYSTEMS = {
    "3.10": ("3.10.12", 35, "Ubuntu 22.04", "JetPack 6.2"),
    "3.11": ("3.11.2", 36, "Debian 12", None),
    "3.12": ("3.12.3", 39, "Ubuntu 24.04", "JetPack 7.2"),
    "3.13": ("3.13.5", 41, "Debian 13", None),
}
_OLDEST_GLIBC = 17  # manylinux2014: no wheel of ours is for less


class PackageError(Exception):
    """The package cannot be made: what, where, and what to do."""


@dataclass(frozen=True)
class Target:
    """``arch`` as Debian calls it, ``python`` as "3.10"."""

    arch: str
    python: str

    @property
    def machine(self) -> str:
        """As Python and wheels call the processor."""
        return MACHINES[self.arch][0]

    @property
    def elf_machine(self) -> int:
        """e_machine of every library that may be in the package."""
        return MACHINES[self.arch][1]

    @property
    def system(self) -> str:
        """Which system brings that Python."""
        _full, _glibc, system, jetpack = SYSTEMS[self.python]
        return f"{jetpack}, {system}" if jetpack and self.arch == "arm64" else system

    @property
    def tag(self) -> str:
        """In file names: "arm64_py310"."""
        return f"{self.arch}_py{self.python.replace('.', '')}"

    def markers(self) -> dict[str, str]:
        """Every variable of an environment marker (PEP 508) as the target has it."""
        full = SYSTEMS[self.python][0]
        return {
            "implementation_name": "cpython",
            "implementation_version": full,
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": full,
            "python_version": self.python,
            "sys_platform": "linux",
            "extra": "",
        }

    def pip_arguments(self) -> list[str]:
        """What makes pip choose wheels for the target, newest glibc first."""
        glibc = SYSTEMS[self.python][1]
        platforms = [f"manylinux_2_{minor}_{self.machine}" for minor in range(glibc, _OLDEST_GLIBC - 1, -1)]
        chosen = [argument for one in [*platforms, f"manylinux2014_{self.machine}"] for argument in ("--platform", one)]
        return [*chosen, "--python-version", self.python, "--implementation", "cp", "--only-binary", ":all:"]


def target(arch: str | None, python: str | None) -> Target:
    """The one asked for; None: as this machine. Raises PackageError."""
    here = {machine: name for name, (machine, _number) in MACHINES.items()}.get(platform.machine())
    chosen = arch or here
    if chosen not in MACHINES:
        raise PackageError(f"--arch {chosen or platform.machine()}: there is no package for that; write {' or '.join(MACHINES)}")
    version = python or f"{sys.version_info[0]}.{sys.version_info[1]}"
    if version not in SYSTEMS:
        raise PackageError(f"--python {version}: write one of {', '.join(SYSTEMS)}")
    return Target(chosen, version)
