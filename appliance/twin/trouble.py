"""Faults a rehearsal can be given: NAME@T[+DURATION], T from the first part fed."""

from __future__ import annotations

import re
from dataclasses import dataclass

FAULTS = {
    "kill-inspectd": "inspectd is killed (kill -9)",
    "kill-reportd": "reportd is killed (kill -9)",
    "kill-rejectd": "rejectd is killed (kill -9)",
    "broker-down": "the broker cannot be reached",
    "slow-engine": "inspectd stands still",
    "drop-frame": "a frame is lost",
    "double-frame": "a frame comes twice",
    "delay-frame": "a frame comes one pitch late",
    "freeze-camera": "the camera repeats a picture",
    "double-trigger": "the photo-eye sees a glint: a second edge within one part",
}
# Faults after which good parts may go: the others must cost nothing but the part they touch.
_FORM = re.compile(r"^([a-z-]+)@([0-9.]+)s?(?:\+([0-9.]+)s?)?$")


@dataclass(frozen=True)
class Trouble:
    """One fault, seconds from the first part fed; duration 0 = once."""

    name: str
    at_s: float
    duration_s: float


def parse(text: str) -> Trouble:
    """Raises ValueError naming the faults there are."""
    match = _FORM.match(text)
    if not match or match[1] not in FAULTS:
        known = ", ".join(FAULTS)
        raise ValueError(f"{text!r} is no fault; write NAME@SECONDS or NAME@SECONDS+DURATION, NAME one of {known}")
    return Trouble(match[1], float(match[2]), float(match[3] or 0))
