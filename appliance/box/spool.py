"""Events for the ledger from processes that come and go: stick, update, settling. reportd appends each exactly once."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from appliance.box.durable import make_folder, write_json
from appliance.clock import SystemClock
from appliance.identity import new_ulid
from appliance.ports import Clock


def spool_folder(data_dir: Path) -> Path:
    """Where they wait for reportd."""
    return data_dir / "spool"


def new_id(clock: Clock) -> str:
    """For an event that is to be left later, and perhaps twice."""
    return new_ulid(clock.wall_us(clock.now_ns()), secrets.token_bytes(10))


def spool_event(
    data_dir: Path, kind: str, data: dict[str, Any], clock: Clock | None = None, *, identity: str | None = None
) -> str:  # fmt: skip
    """Leave an event for the ledger, on disk when this returns; returns its id. ``data``: plain JSON; ``text`` in it is what
    the operator reads. ``clock``: the machine's unless told. ``identity``: one that was left already comes into the ledger
    once all the same. Raises OSError."""
    clock = clock or SystemClock()
    wall_us = clock.wall_us(clock.now_ns())
    name = identity or new_id(clock)
    folder = spool_folder(data_dir)
    make_folder(folder)
    # The number keeps their order: a wall clock may be set back between two of them. What reportd took leaves no gap behind.
    taken = [int(one[:6]) for one in os.listdir(folder) if one[:6].isdigit()]
    number = max(taken, default=0) + 1
    body = {"id": name, "kind": kind, "data": data, "wall_us": wall_us, "clock": clock.quality()}
    write_json(folder / f"{number:06d}-{name}.json", body)
    return name
