"""What goes into a support bundle: who knows what, gathered from all rooms."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from appliance.box import support
from appliance.box.jetson import read_facts
from appliance.box.sensors import as_health, read
from appliance.box.store import Generation
from appliance.box.sysfs import Files
from appliance.identity import running_version
from appliance.paths import Paths
from appliance.ports import Clock
from appliance.report import verify
from appliance.report.record import payload

_ENTRIES = 5000  # of the ledger, the newest


def collect_support(
    place: Path, good: Generation | None, run_dir: Path, data_dir: Path, clock: Clock, images_bytes: int
) -> list[Path]:  # fmt: skip
    """The files, in ``place``, with at most ``images_bytes`` of images. Raises OSError of the box's disk."""
    paths = Paths(run_dir, data_dir)
    when = datetime.fromtimestamp(clock.wall_us(clock.now_ns()) // 1_000_000, timezone.utc).strftime("%Y%m%d-%H%M%S")
    station = good.meta.station.split("/")[-1] if good else "unconfigured"
    pieces: dict[str, support.Piece] = {
        "versions.txt": _versions,
        "machine.json": lambda: json.dumps(asdict(read_facts()), indent=1, default=str),
        "sensors.json": lambda: json.dumps(as_health(read(Files(), clock.now_ns())), indent=1, default=str),
        "state.json": lambda: paths.state_file.read_text(encoding="utf-8"),
        "configuration.yaml": lambda: good.file.read_text(encoding="utf-8") if good else "none was ever applied\n",
        "store.json": lambda: json.dumps(good.told() if good else None, indent=1),
        "ledger-verify.txt": _of_ledger(lambda: verify.verify(paths.ledger_file)[1] + "\n"),
        "ledger-newest.jsonl": _of_ledger(lambda: _newest_entries(paths.ledger_file)),
        **support.logs(),
    }
    return support.collect(place, f"support-{station}-{when}", pieces, paths.image_dir, clock, images_bytes)


def _versions() -> str:
    packages = sorted(f"{one.metadata['Name']} {one.version}" for one in importlib.metadata.distributions())
    head = [f"appliance {running_version() or '(checkout)'}", f"python {sys.version}", platform.platform()]
    return "\n".join([*head, *dict.fromkeys(packages)]) + "\n"


def _of_ledger(piece: Callable[[], str]) -> support.Piece:
    """A ledger that cannot be read says so in its piece's place."""

    def run() -> str:
        try:
            return piece()
        except sqlite3.Error as why:
            raise OSError(f"the ledger cannot be read: {why}") from why

    return run


def _newest_entries(path: Path) -> str:
    """As `ledger export` gives them, oldest first. Raises OSError, sqlite3.Error."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no ledger there")
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        rows = database.execute("SELECT body, hash FROM entries ORDER BY seq DESC LIMIT ?", (_ENTRIES,)).fetchall()
    finally:
        database.close()
    return "".join(payload(body.encode(), hash_).decode() + "\n" for body, hash_ in reversed(rows))
