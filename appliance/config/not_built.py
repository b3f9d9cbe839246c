"""Settings of the contract whose feature this release does not have: refused in those words, never ignored.

A later release takes lines out of here; tests/config walks the schema and finds a setting that is neither used nor here.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from appliance.config.schema import Station

INSTEAD = "leave it out"


def _changed(section: BaseModel, setting: str) -> bool:
    """Whether a setting was given a value other than its default."""
    return bool(getattr(section, setting) != type(section).model_fields[setting].default)


def not_built(station: Station) -> list[tuple[tuple[Any, ...], str, str]]:
    """(path, what, instead) of every setting that would be accepted and ignored."""
    found: list[tuple[tuple[Any, ...], str, str]] = []

    def refuse(condition: object, *path: Any, instead: str = INSTEAD) -> None:
        if condition:
            found.append((path, "not built yet", instead))

    for name, camera in station.cameras.items():
        refuse(camera.strobe, "cameras", name, "strobe")
        if camera.source.scheme in ("folder", "twin"):  # neither has a sensor to set
            for setting in ("exposure_us", "gain"):
                refuse(_changed(camera, setting), "cameras", name, setting)
    refuse(station.trigger.input.scheme == "modbus", "trigger", "input", instead="write gpio://LINE, twin://NAME or frame")
    for setting in ("keep_days", "quota_gb"):  # nothing is pruned yet
        refuse(_changed(station.storage.ledger, setting), "storage", "ledger", setting)
    refuse(station.challenge, "challenge")
    refuse(station.storage.ledger.durable == "strict", "storage", "ledger", "durable", instead="write group")
    if station.mqtt:
        refuse(station.mqtt.sparkplug, "mqtt", "sparkplug")
        refuse(station.mqtt.home_assistant, "mqtt", "home_assistant")
        refuse(set(station.mqtt.commands) - {"clear"}, "mqtt", "commands", instead="write [clear] or []")
    return found
