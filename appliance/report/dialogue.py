"""What a person at the box is told of a stick: lamp, alarms, topic ``configuration``. A pure fold over the spool's events."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

_LAMPS = {
    "stick_inserted": "on",
    "configuration_offered": "on",
    "configuration_applied": "slow",
    "configuration_unchanged": "slow",
    "stick_served": "slow",
    "configuration_refused": "fast",
    "configuration_returned": "fast",
    "stick_unreadable": "fast",
    "stick_removed": "off",
}
# Of a stick only while one is in: a person may update from a console too, and has no stick to pull.
_UPDATE_LAMPS = {"update_offered": "on", "update_applied": "slow", "update_refused": "fast", "update_returned": "fast"}
_ALARMS = {
    "configuration_refused": "stick_refused",
    "configuration_returned": "stick_refused",
    "update_refused": "stick_refused",
    "update_returned": "stick_refused",
    "stick_unreadable": "stick_unreadable",
}


@dataclass(frozen=True)
class Dialogue:
    """``lamp``: its pattern (off, on, slow, fast); ``alarms``: code -> text, raised until the stick is pulled; ``result``,
    ``text``, ``at``: of the last thing that happened to a configuration, in words and at what wall time."""

    lamp: str = "off"
    alarms: dict[str, str] = field(default_factory=dict)
    result: str = ""
    text: str = ""
    at: str | None = None

    def heard(self, kind: str, data: dict[str, Any], at: str) -> Dialogue:
        """After one more event. ``at_boot`` in its data: no stick had a part in it, so no lamp waits for one to be pulled."""
        text = str(data.get("text") or "")
        told = kind.startswith("configuration_") or kind == "stick_unreadable"
        result, said, when = (kind.rpartition("configuration_")[2], text, at) if told else (self.result, self.text, self.at)
        lamp, alarms = self.lamp, self.alarms
        lamps = _LAMPS if lamp == "off" else {**_LAMPS, **_UPDATE_LAMPS}
        if kind in lamps and not data.get("at_boot"):
            lamp = lamps[kind]
            alarms = {_ALARMS[kind]: text} if kind in _ALARMS else {}
        return Dialogue(lamp, alarms, result, said, when)

    def as_json(self) -> dict[str, Any]:
        """For reportd's own restart."""
        return asdict(self)


def remembered(value: Any) -> Dialogue:
    """The other way round; an empty one from what is none."""
    if not isinstance(value, dict) or set(value) != {one.name for one in fields(Dialogue)}:
        return Dialogue()
    return Dialogue(**value)
