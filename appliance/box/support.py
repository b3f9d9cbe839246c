"""The support bundle that a stick with a file ``collect`` asks for: versions, state, books, logs, configuration, images.

No password and no key goes into it. A piece that cannot be had says why in its own place, and the others come all the same."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from appliance.box.child import ChildFailed, run_limited
from appliance.box.words import without_secrets
from appliance.ports import Clock

PIECE_BYTES = 8 << 20
IMAGES_BYTES = 64 << 20
PIECE_S = 45.0  # a driver or a disk may hang; a ledger of months takes minutes to be verified
_COMMAND_S = 20.0
_UNITS = ("rejectd", "inspectd", "reportd", "appliance-settle", "appliance-usb@*")

Piece = Callable[[], str]


def collect(
    place: Path, name: str, pieces: Mapping[str, Piece], images: Path, clock: Clock, images_bytes: int = IMAGES_BYTES,
    piece_s: float = PIECE_S,
) -> list[Path]:  # fmt: skip
    """``NAME.tar.gz`` of all ``pieces`` (file name -> its text), each made within ``piece_s`` seconds, in ``place``, and
    ``NAME-images.tar`` of the newest images, if there are any and up to ``images_bytes``. Raises OSError of ``place``."""
    place.mkdir(parents=True, exist_ok=True)
    first = place / f"{name}.tar.gz"
    with tarfile.open(first, "w:gz") as archive:
        for file, piece in pieces.items():
            _add(archive, f"{name}/{file}", _text_of(piece, clock, piece_s))
    chosen = list(newest(images, images_bytes))
    if not chosen:
        return [first]
    second = place / f"{name}-images.tar"
    with tarfile.open(second, "w") as archive:
        for path in chosen:
            try:
                content = path.read_bytes()
            except OSError:  # gone meanwhile, or on a bad block
                continue
            _add(archive, f"{name}-images/{path.relative_to(images).as_posix()}", content)
    return [first, second]


def newest(images: Path, most_bytes: int) -> Iterator[Path]:
    """Plain files below ``images``, newest first, as many as fit. An image that went meanwhile is left out."""
    found: list[tuple[int, int, Path]] = []
    for folder, _folders, names in os.walk(images):
        for one in names:
            path = Path(folder, one)
            try:
                kind = path.lstat()
            except FileNotFoundError:
                continue
            if path.is_file() and not path.is_symlink():
                found.append((kind.st_mtime_ns, kind.st_size, path))
    left = most_bytes
    for _when, size, path in sorted(found, reverse=True):
        left -= size
        if left < 0:
            return
        yield path


def command(*words: str) -> Piece:
    """What a command prints, its last ``PIECE_BYTES``; on a system without it, that."""

    def run() -> str:
        try:
            done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_S, check=False)
        except FileNotFoundError:
            return f"{words[0]}: there is no such command here\n"
        except subprocess.TimeoutExpired:
            return f"{' '.join(words)}: did not answer within {_COMMAND_S:g} s\n"
        except PermissionError as why:
            return f"{words[0]}: {why.strerror}\n"
        return (done.stdout[-PIECE_BYTES:] + done.stderr[-4096:]).decode("utf-8", "replace")

    return run


def logs() -> dict[str, Piece]:
    """journald's and the kernel's, where this process may read them."""
    units = [word for unit in _UNITS for word in ("--unit", unit)]
    return {
        "journal.txt": command("journalctl", "--no-pager", "--quiet", "--output", "short-iso", "--lines", "20000", *units),
        "dmesg.txt": command("dmesg", "--ctime"),
    }


def _text_of(piece: Piece, clock: Clock, within_s: float) -> bytes:
    try:
        text = str(run_limited(lambda _moved: piece()[-PIECE_BYTES:], clock, within_s))
    except ChildFailed as why:
        text = f"not finished: {why}\n"
    except (OSError, ValueError) as why:  # a bundle without one piece is worth more than none; its place says why
        text = f"this could not be collected: {type(why).__name__}: {why}\n"
    return without_secrets(text).encode("utf-8", "backslashreplace")


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    archive.addfile(entry, io.BytesIO(content))
