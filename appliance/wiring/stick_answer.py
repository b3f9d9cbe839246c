"""The answer: what RESULT.txt says, the support bundle that was asked for, and both written to the stick."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from appliance.box.child import ChildFailed, run_limited
from appliance.box.health import read_state
from appliance.box.result import Report
from appliance.box.stick import Found, Source, StickDead
from appliance.box.stick_writer import write_stick
from appliance.box.support import IMAGES_BYTES
from appliance.box.words import plain
from appliance.wiring.stick_box import Box, Told, tell

log = logging.getLogger("appliance.stick")

SUPPORT_S = 600.0  # every piece of it has a limit of its own


def report(told: Told, box: Box) -> Report:
    now_ns = box.clock.now_ns()
    when = datetime.fromtimestamp(box.clock.wall_us(now_ns) // 1_000_000, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    quality = box.clock.quality()
    doubt = {"synced": "", "holdover": " (clock not synchronised)", "unset": " (clock never set: not to be believed)"}[quality]
    good = box.store.good
    return Report(
        told.outcome, told.text, when + doubt, good.meta.station if good else "no configuration yet", tuple(told.found),
        tuple(told.wrong), tuple(told.notes), tuple(told.changed), tuple(_runs_now(box)), told.head,
    )  # fmt: skip


def _runs_now(box: Box) -> list[str]:
    good = box.store.good
    if good is None:
        told = ["no configuration: every part is rejected until one is applied"]
    else:
        told = [f"{good.meta.station}, revision {good.meta.revision}, generation {good.number}, {good.digest}"]
    state = read_state(box.run_dir)
    if not isinstance(state, dict):
        return [*told, "no station is running here"]
    reject, inspect = state.get("reject"), state.get("inspect")
    told.append(f"station: {_state_told(reject, 'rejectd')}")
    told.append(f"judging: {_state_told(inspect, 'inspectd')}")
    return told


def _state_told(told: Any, name: str) -> str:
    if not isinstance(told, dict):
        return f"{name} does not answer"
    return ": ".join(str(told[key]) for key in ("state", "reason") if told.get(key))


def support_files(found: Found, box: Box, told: Told) -> list[Path]:
    """In a child: a disk may hang. What cannot be made is told, and undoes nothing of what was decided."""
    if not found.collect:
        return []
    from appliance.wiring.support import collect_support

    place = box.staging / "support"
    try:
        good, room = box.store.good, max(0, box.calls.free(box.staging) - box.limits.reserve_bytes)

        def work(_moved: Callable[[], None]) -> list[str]:
            return list(map(str, collect_support(place, good, box.run_dir, box.data_dir, box.clock, min(room, IMAGES_BYTES))))

        files = [Path(one) for one in run_limited(work, box.clock, SUPPORT_S)]
        sizes = [path.stat().st_size for path in files]
    except (ChildFailed, OSError) as why:
        shutil.rmtree(place, ignore_errors=True)  # the ledger needs the room
        told.notes.append(f"the support bundle could not be made: {getattr(why, 'strerror', None) or why}")
        return []
    if room < IMAGES_BYTES:
        told.notes.append(f"of the stored images at most {room >> 20} MiB: the box's disk has no room to copy more of them")
    for path, size in zip(files, sizes):
        told.notes.append(
            f"{path.name}, {size} bytes, is written after this file; if it is not there or shorter, the stick was "
            "full or was pulled too early"
        )
    return files


def write_back(source: Source, result: bytes, files: list[Path], box: Box, who: str, told: Told | None = None) -> None:
    """What cannot be written is told, and changes nothing of what was applied. Only now the lamp may say that the stick can be
    pulled; without ``told`` it is another stick's."""
    try:
        failed = write_stick(source, result, files, box.clock, box.limits)
    except StickDead as why:
        failed = str(why)
    text = f"the answer is on {who}"
    if failed:
        log.warning("%s: %s", source.name or source.place, failed)
        text = f"the answer could not be written to {who}: {plain(failed)}"
    data: dict[str, Any] = {"who": who, "text": text}
    if told is not None:
        data |= {"device": told.device, "went": told.outcome, "lamp": "slow" if told.went_well else "fast"}
    if failed or told is not None:
        tell(box, "stick_not_written" if failed else "stick_answered", data)
