"""The tree that a package is made of: its version, its date, its files. Asks git where there is git."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from calibration.package.target import PackageError

_toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
_GIT_S = 60
_NO_GIT_EPOCH = 1_767_225_600  # 2026-01-01: a tree out of an archive has no date that is the same everywhere
_SHORT = 10  # digits of a commit in a version


@dataclass(frozen=True)
class Source:
    """``version``: as dpkg orders them; ``epoch``: seconds since 1970 for every time stamp; ``commit``: None without git;
    ``changed``: what differs from that commit; ``files``: all that is not ignored, relative to ``root``."""

    root: Path
    version: str
    epoch: int
    commit: str | None
    changed: tuple[str, ...]
    files: tuple[str, ...]
    project: dict[str, Any]

    @property
    def date(self) -> datetime:
        """``epoch`` in UTC."""
        return datetime.fromtimestamp(self.epoch, timezone.utc)

    def below(self, folder: str) -> Iterator[tuple[str, Path]]:
        """(path relative to ``folder``, file) of what lies there."""
        for name in self.files:
            if name.startswith(folder + "/"):
                yield name[len(folder) + 1 :], self.root / name


def read_source(root: Path) -> Source:
    """``root``: the repository's. Raises PackageError."""
    project = _toml.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = str(project["version"])
    if not re.fullmatch(r"[0-9][0-9A-Za-z.+~]*", version):
        raise PackageError(f"pyproject.toml: version {version!r}: Debian knows no such version")
    told = os.environ.get("SOURCE_DATE_EPOCH")
    if told is not None and not re.fullmatch(r"[0-9]{1,10}", told):
        raise PackageError(f"SOURCE_DATE_EPOCH={told!r}: write seconds since 1970")
    if not (root / ".git").exists():
        files = tuple(sorted(_walk(root)))
        return Source(root, version, int(told or _NO_GIT_EPOCH), None, (), files, project)
    files = tuple(sorted(filter(None, _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"))))
    files = tuple(name for name in files if (root / name).is_file())
    commit, date = _git(root, "log", "-1", "--format=%H %ct").split()
    status = _git(root, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames").split("\0")
    changed = tuple(sorted(line[3:] for line in status if line))
    return Source(root, _version(root, version, commit, changed), int(told or date), commit, changed, files, project)


def _version(root: Path, version: str, commit: str, changed: tuple[str, ...]) -> str:
    """Of a clean tree at its tag: as pyproject has it. Else by day, count and commit, so that a later one is newer: ``~``
    for what leads to that release, older than it, and ``+`` for what came after it while pyproject still names it."""
    tag = f"v{version}"
    if not changed and tag in _git(root, "tag", "--points-at", commit).split():
        return version
    sign = "+" if tag in _git(root, "tag", "--merged", commit).split() else "~"
    day = _git(root, "log", "-1", "--format=%cd", "--date=format-local:%Y%m%d", env={"TZ": "UTC"}).strip()
    count = _git(root, "rev-list", "--count", commit).strip()
    return f"{version}{sign}git{day}.{count}.{commit[:_SHORT]}" + (".dirty" if changed else "")


def _git(root: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    command = ["git", "-C", str(root), "-c", f"safe.directory={root}", *arguments]
    surroundings = {**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", **(env or {})}
    try:
        done = subprocess.run(command, env=surroundings, capture_output=True, timeout=_GIT_S)
    except (OSError, subprocess.TimeoutExpired) as why:
        raise PackageError(f"git {arguments[0]}: {why}") from why
    if done.returncode:
        raise PackageError(f"git {arguments[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode("utf-8", "surrogateescape")


def _walk(root: Path) -> Iterator[str]:
    """As git would list it: no caches, nothing hidden, nothing that builds leave."""
    for place, folders, names in os.walk(root):
        folders[:] = [one for one in folders if not one.startswith(".") and one not in ("__pycache__", "build", "dist")]
        for name in names:
            if not name.startswith(".") and not name.endswith((".pyc", ".egg-info")):
                yield str(Path(place, name).relative_to(root))
