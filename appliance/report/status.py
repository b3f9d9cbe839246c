"""``appliance status``: the running station in a terminal, read over MQTT. Pure part: topics to text."""

from __future__ import annotations

import json
from typing import Any


def as_text(station: str, retained: dict[str, bytes]) -> str:
    """A plain view of state, counters, raised alarms and recipe."""
    told: dict[str, Any] = {topic: _read(body) for topic, body in retained.items()}
    state = told.get("state") or {}
    standing = f"state {state.get('state', 'unknown')} {state.get('reason') or ''}".rstrip()
    lines = [f"{station}: {told.get('available', 'unknown')}, {standing}"]
    counters = told.get("counters") or {}
    lines.append("  " + "  ".join(f"{name} {counters[name]}" for name in counters if name not in ("run", "unconfirmed")))
    alarms = {topic[6:]: body for topic, body in told.items() if topic.startswith("alarm/") and body.get("raised")}
    lines += [f"  ALARM {code}: {body['text']}" for code, body in alarms.items()]
    recipe = told.get("recipe") or {}
    if recipe:
        lines.append(f"  recipe {recipe.get('name')} ({recipe.get('number')}), inspectd {recipe.get('state')}")
    lines += _box(((told.get("health") or {}).get("report") or {}).get("box") or {})
    return "\n".join(lines)


def _box(box: dict[str, Any]) -> list[str]:
    """The machine under the station in a line, and what it spares."""
    heat, fans = box.get("temperatures_c") or {}, box.get("fans") or {}
    told = [f"{max(heat.values()):.0f} °C ({max(heat, key=heat.__getitem__)})"] if heat else []
    told += [f"power mode {box['power_mode']}"] if "power_mode" in box else []
    told += [f"{name} {fan['rpm']} rpm" for name, fan in fans.items() if "rpm" in fan]
    told += [f"the judge serves up to {box['highest_ppm']} parts/min"] if "highest_ppm" in box else []
    return ([f"  box {', '.join(told)}"] if told else []) + [f"  derated: {one}" for one in box.get("derated") or ()]


def _read(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
