"""Packages for tests: a copy of this tree as a repository of its own, built where and how a test likes."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from calibration.package.source import read_source

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / "build" / "wheels"
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
_BUILD_S = 600
_DATE = "2026-11-24T12:00:00+00:00"
EPOCH = 1_795_521_600  # of _DATE


@dataclass
class Build:
    """One build under way, or done. ``tree``: of what; ``out``: what it left."""

    process: subprocess.Popen[str]
    tree: Path
    out: Path
    said: str = field(default="")

    def wait(self) -> Build:
        """Until it ended well."""
        said, errors = self.process.communicate(timeout=_BUILD_S)
        self.said = said + errors
        assert self.process.returncode == 0, self.said
        return self

    def file(self, suffix: str) -> Path:
        """The only one that ends so."""
        (found,) = self.out.glob(f"*{suffix}")
        return found


def copy_tree(place: Path) -> Path:
    """All that git does not ignore, as a clean repository with one commit of a fixed date: equal trees have equal commits."""
    for name in read_source(ROOT).files:
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    commit(place)
    return place


def commit(place: Path) -> None:
    """All that lies in ``place``."""
    author = {"GIT_AUTHOR_NAME": "test", "GIT_AUTHOR_EMAIL": "test@localhost", "GIT_AUTHOR_DATE": _DATE,
              "GIT_COMMITTER_NAME": "test", "GIT_COMMITTER_EMAIL": "test@localhost", "GIT_COMMITTER_DATE": _DATE,
              "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}  # fmt: skip
    for arguments in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run(["git", *arguments], cwd=place, env={**os.environ, **author}, check=True, timeout=60)


def start(tree: Path, out: Path, *arguments: str, umask: int = 0o022, **environment: str) -> Build:
    """The packager of ``tree``, with its own surroundings."""
    command = [sys.executable, "-m", "calibration.package", "-o", str(out), "--wheels", str(WHEELS), *arguments]
    clean = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    process = subprocess.Popen(command, cwd=tree, env={**clean, "PYTHONPATH": str(tree), **environment}, umask=umask,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
    return Build(process, tree, out)


def files_of(deb: Path) -> tarfile.TarFile:
    """What dpkg would unpack, as dpkg reads it."""
    told = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], capture_output=True, timeout=120)
    assert told.returncode == 0, told.stderr
    return tarfile.open(fileobj=io.BytesIO(told.stdout))


def field_of(deb: Path, name: str) -> str:
    """Of its control file."""
    command = ["dpkg-deb", "-f", str(deb), name]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
