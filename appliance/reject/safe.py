"""Safe mode: no configuration can be used. The outputs stand in reject and fault; rejectd's loop, books and words go on.

What rejectd works out moves nothing but the stick's lamp: each other output can stand at one level only."""

from __future__ import annotations

from appliance.ports import Output
from appliance.reject.belt import ConstantBelt
from appliance.reject.daemon import RejectBuild
from appliance.reject.lamp import LAMP
from appliance.reject.plan import GatePlan, Plan

_NOWHERE = GatePlan("hold", "accept", 1.0, 1.0, 0.0)  # no part is ever seen: nothing comes of these lengths


class FixedOutput:
    """An output that stands at ``level``, whatever it is told."""

    longest_on_ms: int | None = None  # where it may not be energised for long, ``level`` is off

    def __init__(self, output: Output, level: bool) -> None:
        self._output, self._level = output, level
        self.name, self.start, self.failure = output.name, level, output.failure

    @property
    def lead_ns(self) -> int:
        return self._output.lead_ns

    def set(self, _energised: bool, now_ns: int) -> int:
        """Moves it to its level. Raises OutputLost."""
        return self._output.set(self._level, now_ns)

    def check(self, now_ns: int) -> None:
        """Raises OutputLost."""
        self._output.check(now_ns)

    def close(self) -> None:
        self._output.close()


def safe_build(outputs: dict[str, tuple[Output, bool]], why: str, version: str = "") -> RejectBuild:
    """``outputs``: by role, each with the level at which it rejects or tells the fault; ``why``: in words."""
    divert = _NOWHERE if "divert" in outputs else None
    plan = Plan(1.0, 1.0, _NOWHERE, 0.0, 1.0, line_stop_output="line_stop" in outputs, divert=divert)
    held: dict[str, Output] = {
        role: output if role == LAMP else FixedOutput(output, level) for role, (output, level) in outputs.items()
    }
    return RejectBuild(plan, ConstantBelt(1.0), held, {}, version=version, safe=why)
