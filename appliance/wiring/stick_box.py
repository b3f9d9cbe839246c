"""What every room of the stick's dialogue shares: the box's folders, what RESULT.txt will say, and the way into the ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.box.result import Outcome
from appliance.box.spool import spool_event
from appliance.box.stick import Calls, Limits
from appliance.box.store import Store
from appliance.ports import Clock
from appliance.wiring import update
from appliance.wiring.settle import wait_a_while

log = logging.getLogger("appliance.stick")

TRIAL_NS = 180_000_000_000  # CUDA, engines from the cache, and three processes anew; engines being built get more, see health.py
BACK_NS = 90_000_000_000  # until the old configuration is seen running again
EVENT_LINES = 50  # of changes and problems, in one event

# (bundle, on whose behalf, how to wait) -> how it went
Install = Callable[[Path, str, Callable[[int], None]], update.Outcome]


@dataclass(frozen=True)
class Box:
    """Where this box keeps things. ``install``: another way to install an update than the box's own; ``trial_ns``: how long a
    new configuration has to become healthy, ``back_ns``: the old one again."""

    store: Store
    run_dir: Path
    data_dir: Path
    clock: Clock
    wait: Callable[[int], None] = wait_a_while
    limits: Limits = Limits()
    calls: Calls = Calls()
    install: Install | None = None
    trial_ns: int = TRIAL_NS
    back_ns: int = BACK_NS

    @property
    def keys_dir(self) -> Path:
        """Enrolled public keys."""
        return self.data_dir / "keys"

    @property
    def staging(self) -> Path:
        """The copy of a stick; on the disk, for half a gigabyte of models is not taken from a running inspection's memory."""
        return self.data_dir / "stick"


class Refused(Exception):
    """Nothing of the stick is applied: the sentence, and all that is wrong."""

    def __init__(self, text: str, wrong: list[str] | None = None) -> None:
        super().__init__(text)
        self.wrong = wrong or []


@dataclass
class Told:
    """What RESULT.txt will say."""

    found: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    outcome: Outcome = "refused"
    text: str = ""
    head: str = ""
    by: str = ""
    device: str = ""
    enrolled: bool = False

    @property
    def went_well(self) -> bool:
        """All that was asked for was done."""
        return self.outcome not in ("refused", "returned") and not self.wrong


def tell(box: Box, kind: str, data: dict[str, Any]) -> None:
    """An event that the disk does not take is told in the log; what a person asked for goes on."""
    try:
        spool_event(box.data_dir, kind, data, box.clock)
    except OSError as why:
        log.error("%s could not be left for the ledger (%s): %s", kind, why, data.get("text"))


def running_now(box: Box) -> dict[str, Any] | None:
    """The kept configuration as events tell it; None where there is none yet."""
    good = box.store.good
    return good.told() if good else None
