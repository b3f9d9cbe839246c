"""What a person at the box is told of a stick: lamp, alarms, topic ``configuration``. A pure fold over the spool's events."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
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


_ANSWERED = ("stick_answered", "stick_not_written")  # RESULT.txt is on the stick, or never will be
_LATER = {"device", "awaited", "behind"}  # what an earlier version did not remember: an update happens while a stick is in


@dataclass(frozen=True)
class Dialogue:
    """``lamp``: its pattern (off, on, slow, fast); ``alarms``: code -> text, raised until the stick is pulled; ``result``,
    ``text``, ``at``: of the last thing that happened to a configuration, in words and at what wall time. ``device``: whose lamp
    it is, "" = nobody said; ``awaited``: the stick's answer is yet to be written, so it is not to be pulled whatever is known;
    ``behind``: another stick that cannot be read, its device and why, for when this one is pulled."""

    lamp: str = "off"
    alarms: dict[str, str] = field(default_factory=dict)
    result: str = ""
    text: str = ""
    at: str | None = None
    device: str = ""
    awaited: bool = False
    behind: dict[str, str] = field(default_factory=dict)

    def heard(self, kind: str, data: dict[str, Any], at: str) -> Dialogue:
        """After one more event. ``at_boot`` in its data: no stick had a part in it, so no lamp waits for one to be pulled;
        ``device``: the stick's, where one is meant; ``answers``: stick_answered will follow; ``lamp``: the pattern then."""
        device, text = str(data.get("device") or ""), str(data.get("text") or "")
        if self._of_another(kind, device):
            return self._with_behind(kind, device, text)
        after = self
        if kind.startswith("configuration_") or kind == "stick_unreadable":
            after = replace(self, result=kind.rpartition("configuration_")[2], text=text, at=at)
        if kind in _ANSWERED and data.get("lamp") and self.lamp != "off":
            return replace(after, lamp=str(data["lamp"]), awaited=False)
        lamps = _LAMPS if self.lamp == "off" else {**_LAMPS, **_UPDATE_LAMPS}
        if kind not in lamps or data.get("at_boot"):
            return after
        if kind in ("stick_inserted", "stick_unreadable", "stick_removed"):
            after = replace(after, device="" if kind == "stick_removed" else device, awaited=bool(data.get("answers")))
        if kind == "stick_removed" and (next_one := self.behind):
            after = replace(after, device=next_one["device"], behind={})
            return replace(after, lamp=_LAMPS["stick_unreadable"], alarms={"stick_unreadable": next_one["text"]})
        alarms = {_ALARMS[kind]: text} if kind in _ALARMS else {}
        return replace(after, lamp="on" if after.awaited else lamps[kind], alarms=alarms)

    def _of_another(self, kind: str, device: str) -> bool:
        """Whether a stick is meant that lamp and alarms are not of."""
        if not self.device or not device or _name(device) == _name(self.device):
            return False
        return kind in ("stick_removed", *_ANSWERED) or kind == "stick_unreadable" and self.awaited

    def _with_behind(self, kind: str, device: str, text: str) -> Dialogue:
        """After an event of another stick than the lamp's."""
        if kind == "stick_unreadable":
            return replace(self, behind={"device": device, "text": text})
        if kind == "stick_removed" and self.behind and _name(device) == _name(self.behind["device"]):
            return replace(self, behind={})
        return self

    def as_json(self) -> dict[str, Any]:
        """For reportd's own restart."""
        return asdict(self)


def _name(device: str) -> str:
    """sda1.17, wherever its link lies: the units come with the package, this with an update, and each may be the older one."""
    return device.rpartition("/")[2]


def remembered(value: Any) -> Dialogue:
    """The other way round; an empty one from what is none."""
    names = {one.name for one in fields(Dialogue)}
    if not isinstance(value, dict) or not names - _LATER <= set(value) <= names:
        return Dialogue()
    return Dialogue(**value)
