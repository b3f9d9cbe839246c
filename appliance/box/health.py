"""Whether the station works with a configuration and a program: told from what reportd writes in run/state.json.

``look`` is a pure fold over observations; ``wait_healthy`` makes them. Sticks, updates and the boot's settling ask alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.box.again import ROLES
from appliance.paths import Paths
from appliance.ports import Clock

STEADY_NS = 3_000_000_000  # all well for so long, and not between two crashes
FRESH_NS = 2_500_000_000  # reportd writes every second
PATIENCE_NS = 120_000_000_000  # an engine whose building did not get on for so long hangs
LONGEST_BUILD_NS = 2 * 3600 * 1_000_000_000  # TensorRT takes minutes for a net; one that begins anew for ever ends here
LOOK_NS = 200_000_000
_WELL = ("running", "purging", "held")


@dataclass(frozen=True)
class Health:
    """What was seen so far. ``why``: in words what is amiss, "" = nothing; ``well_since_ns``, ``well_until_ns``: from when to
    when it was written that nothing is; ``deadline_ns``: until when it may take, later while engines are built;
    ``building``: what and how far it was."""

    began_ns: int
    deadline_ns: int
    why: str = "nothing was seen yet"
    well_since_ns: int | None = None
    well_until_ns: int = 0
    building: tuple[str, float] | None = None

    @property
    def healthy(self) -> bool:
        """All well for long enough."""
        return self.well_since_ns is not None and self.well_until_ns - self.well_since_ns >= STEADY_NS


def look(health: Health, seen: Any, now_ns: int, digest: str | None, version: str | None) -> Health:
    """``health`` after one more observation. ``seen``: state.json's value with ``again``, the roles that were asked to begin
    anew and have not; None: nothing could be read. ``digest``, ``version``: of what has to run, None: whatever."""
    why = _amiss(seen, now_ns, digest, version)
    if why:
        health = replace(health, why=why, well_since_ns=None)
    else:  # by reportd's own time: a file that is not written anew says nothing of the time after
        written_ns = seen["written_ns"]
        since_ns = health.well_since_ns if health.well_since_ns is not None else written_ns
        health = replace(health, why="", well_since_ns=since_ns, well_until_ns=written_ns)
    return _patient(health, seen, now_ns)


def wait_healthy(
    read: Callable[[], Any], digest: str | None, version: str | None, deadline_ns: int, clock: Clock,
    wait: Callable[[int], None], extended: Callable[[int], None] = lambda deadline_ns: None,
) -> str:  # fmt: skip
    """"" once the station was healthy for STEADY_NS, else in words what was amiss as ``deadline_ns`` (of ``clock``) came.

    ``read``: makes one observation (``read_state``); ``wait``: lets so many ns go by; ``extended``: is told each later
    deadline, so that the trial does not end while an engine is built."""
    health = Health(clock.now_ns(), deadline_ns)
    while True:
        before_ns = health.deadline_ns
        now_ns = clock.now_ns()
        health = look(health, read(), now_ns, digest, version)
        if health.healthy:
            return ""
        if health.deadline_ns > before_ns:
            extended(health.deadline_ns)
        if now_ns >= health.deadline_ns:
            return health.why or f"it was well for less than {STEADY_NS // 10**9} s when the time was over"
        wait(min(LOOK_NS, health.deadline_ns - now_ns))


def read_state(run_dir: Path) -> Any:
    """One observation for ``look``. Raises OSError where the run folder fails, not where there is no file."""
    paths = Paths(run_dir, run_dir)
    try:
        seen = json.loads(paths.state_file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if isinstance(seen, dict):
        seen["again"] = [role for role in ROLES if paths.again_file(role).exists()]
    return seen


def _amiss(seen: Any, now_ns: int, digest: str | None, version: str | None) -> str:
    """In words; "" = nothing."""
    if not isinstance(seen, dict) or type(seen.get("written_ns")) is not int or now_ns - seen["written_ns"] > FRESH_NS:
        return "reportd does not answer"
    if seen.get("again"):
        return f"{', '.join(f'{role}d' for role in seen['again'])} did not begin anew yet"
    for role in ROLES:
        told = seen.get(role)
        if not isinstance(told, dict):
            return f"{role}d does not answer"
        if digest is not None and told.get("configuration") != digest:
            return f"{role}d runs another configuration" + _reason(told)
        if version is not None and told.get("version") != version:
            return f"{role}d runs another version ({told.get('version') or 'unnamed'})"
    if seen["inspect"].get("state") != "ready":
        return f"inspectd is {seen['inspect'].get('state')}" + _reason(seen["inspect"])
    if seen["reject"].get("state") not in _WELL:
        return f"the station is in state {seen['reject'].get('state')}" + _reason(seen["reject"])
    # A line that is held stands for reasons of its own, and is well. An input that is not there is none of these: a pin with
    # a wrong name would be kept, and the line stand.
    lost = seen["reject"].get("inputs_lost")
    return "; ".join(f"the input {role} gives no edges: {why}" for role, why in lost.items()) if isinstance(lost, dict) else ""


def _reason(told: dict[str, Any]) -> str:
    return f": {told['reason']}" if told.get("reason") else ""


def _patient(health: Health, seen: Any, now_ns: int) -> Health:
    """A later deadline where an engine's building got on."""
    told = seen.get("inspect") if isinstance(seen, dict) else None
    if not isinstance(told, dict) or told.get("state") != "building":
        return health
    building = (str(told.get("reason")), float(told.get("progress") or 0.0))
    if building == health.building:
        return health
    until_ns = min(now_ns + PATIENCE_NS, health.began_ns + LONGEST_BUILD_NS)
    return replace(health, building=building, deadline_ns=max(health.deadline_ns, until_ns))
