"""Where built things are kept between runs, and by what name: a thing is built anew when one of its inputs has changed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
HERE = Path(__file__).resolve().parent


class NotHere(Exception):
    """This computer lacks a tool; the text says which, and how to install it. A test skips with it."""


def cache_folder() -> Path:
    """``APPLIANCE_BOX_CACHE``, else build/box of this checkout."""
    folder = Path(os.environ.get("APPLIANCE_BOX_CACHE") or ROOT / "build" / "box")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def needs(tools: Sequence[str], packages: str) -> None:
    """Raises NotHere where one of ``tools`` is not on the path."""
    missing = [tool for tool in tools if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None]
    if missing:
        raise NotHere(f"{', '.join(missing)} not found: sudo apt-get install --no-install-recommends {packages}")


def digest(*parts: bytes | str) -> str:
    """Sixteen hexadecimal digits of all parts and their borders."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(path)


def _slow(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def cached(kind: str, key: str, build: Callable[[Path], Path]) -> Path:
    """The file of that kind and key; ``build(scratch)`` makes it where it is not there yet, and gives its place. Two calls at
    once build once; of one kind the last three are kept. When it was used stands beside it: a machine that runs on the file
    does not boot again once the file's own time has changed."""
    folder = cache_folder()
    target = folder / f"{kind}-{key}"
    with _locked(folder / f".{kind}.lock"):
        _used(target).touch()
        if target.exists():
            return target
        scratch = folder / f".{kind}-{key}.tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            os.replace(build(scratch), target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        for old in sorted(folder.glob(f"{kind}-*"), key=lambda one: (_used(one).exists() and _used(one).stat().st_mtime_ns))[:-3]:
            old.unlink()
            _used(old).unlink(missing_ok=True)
    return target


def _used(target: Path) -> Path:
    return target.with_name(f".{target.name}.used")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def run_tool(command: Sequence[str | os.PathLike[str]], log: Path, folder: Path | None = None) -> None:
    """A command whose words go to ``log``. Raises RuntimeError with the last of them."""
    with log.open("ab") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=folder)
    if done.returncode:
        last = log.read_text(errors="replace")[-3000:]
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{last}")
