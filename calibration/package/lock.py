"""The lock, read for another machine: which of its packages the firmware needs at run time there. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from calibration.package.target import PackageError, Target

# Named by a package that needs it for something else than what runs here; tests/box/test_deb.py imports everything
# that the firmware imports without them.
LEFT_OUT = {
    "setuptools": "colorzero names it for its own setup.py",
    "coloredlogs": "onnxruntime before 1.24: only its converter's log",
    "humanfriendly": "needed by coloredlogs alone",
    "sympy": "onnxruntime: only its tools/symbolic_shape_infer",
    "mpmath": "needed by sympy alone",
}
_HEAD = re.compile(r"^(?P<what>[A-Za-z0-9][^\\#\n]*?)\s*\\?$")


@dataclass(frozen=True)
class Pin:
    """One entry of the lock: "name==version", its digests, and whom it came by (``via``)."""

    name: str
    version: str
    marker: str
    digests: tuple[str, ...]
    via: frozenset[str]

    def line(self) -> str:
        """As pip reads it, without its marker: that is decided."""
        return " ".join([f"{self.name}=={self.version}", *(f"--hash=sha256:{one}" for one in self.digests)])


def read_lock(text: str) -> list[Pin]:
    """Every entry. Raises PackageError for a line that is none of uv's."""
    entries: list[tuple[Requirement, list[str], set[str]]] = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if line.startswith("#") or not stripped:
            continue
        if not line.startswith(" "):
            head = _HEAD.match(line)
            if head is None:
                raise PackageError(f"requirements.lock:{number}: not an entry: {line}")
            entries.append((Requirement(head["what"]), [], set()))
        elif stripped.startswith("--hash=sha256:"):
            entries[-1][1].append(stripped.removeprefix("--hash=sha256:").rstrip(" \\"))
        elif stripped.startswith("#"):
            via = stripped.lstrip("# ").removeprefix("via").strip()
            if via:
                entries[-1][2].add(via.split(" ")[0])
        else:
            raise PackageError(f"requirements.lock:{number}: not read: {stripped}")
    return [_pin(*one) for one in entries]


def _pin(what: Requirement, digests: list[str], via: set[str]) -> Pin:
    versions = [one.version for one in what.specifier if one.operator == "=="]
    if len(versions) != 1 or not digests:
        raise PackageError(f"requirements.lock: {what}: not pinned to one version with digests")
    marker = str(what.marker) if what.marker else ""
    return Pin(canonicalize_name(what.name), versions[0], marker, tuple(digests), frozenset(map(canonicalize_name, via)))


def holds(requirement: Requirement, target: Target, extras: Iterable[str] = ()) -> bool:
    """Whether ``requirement`` counts on the target, asked for with ``extras``."""
    if requirement.marker is None:
        return True
    environments = ({**target.markers(), "extra": extra} for extra in (*extras, ""))
    return any(requirement.marker.evaluate(environment) for environment in environments)


def run_time_pins(pins: Iterable[Pin], dependencies: Iterable[str], target: Target) -> list[Pin]:
    """What of the lock is needed there at run time: ``dependencies`` (pyproject's) and what came by them. Where a parent
    needs something only under another marker it is in all the same; the wheels' own words decide then (wheels.closure).
    Raises PackageError where the lock lacks one of ``dependencies``."""
    there = [pin for pin in pins if holds(Requirement(f"{pin.name} ; {pin.marker}" if pin.marker else pin.name), target)]
    by_name = {pin.name: pin for pin in there}
    if len(by_name) != len(there):
        raise PackageError(f"requirements.lock: two versions of one package for {target.tag}")
    needed: set[str] = {canonicalize_name(Requirement(one).name) for one in dependencies}
    missing = needed - by_name.keys()
    if missing:
        raise PackageError(f"requirements.lock: nothing for {', '.join(sorted(missing))} on {target.tag}; make the lock anew")
    while more := {pin.name for pin in there if pin.via & needed} - needed - LEFT_OUT.keys():
        needed |= more
    return sorted((by_name[name] for name in needed), key=lambda pin: pin.name)
