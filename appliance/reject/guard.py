"""The supervised inputs: healthy is energised, so that a cut wire reads as the fault. Pure."""

from __future__ import annotations

from appliance.messages import Edge
from appliance.reject.alarms import Alarms
from appliance.reject.plan import MS

SUPERVISED = ("air_ok", "bin_full", "gate_home")
_SETTLED_NS = 30 * MS  # contacts bounce; nobody's air comes back in less
_HOMING_NS = 300 * MS  # a gate on its way home is not stuck


class Guard:
    """Alarms ``air_ok``, ``bin_full``, ``gate_home``: latched, and back at once while the cause stands."""

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms
        self._levels: dict[str, tuple[bool, int]] = {}

    def on_edge(self, name: str, edge: Edge) -> None:
        """An edge of a supervised input, or its level at opening."""
        self._levels[name] = (edge.level, edge.time_ns)

    def lost(self, name: str, now_ns: int) -> None:
        """The input itself is gone: as unhealthy as a cut wire."""
        if name in SUPERVISED and self._levels.get(name, (True, 0))[0]:
            self._levels[name] = (False, now_ns)

    def step(self, now_ns: int, home_since_ns: int | None) -> None:
        """Raise and settle. ``home_since_ns``: since when the gate is told to stand at home, None: it is not."""
        for name, (healthy, since_ns) in self._levels.items():
            if healthy:
                self._alarms.settle(name)
                continue
            if name == "gate_home":
                if home_since_ns is None or now_ns - max(home_since_ns, since_ns) < _HOMING_NS:
                    continue
            elif now_ns - since_ns < _SETTLED_NS:
                continue
            self._alarms.raise_(name, "", now_ns)
