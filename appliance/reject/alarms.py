"""The alarms: limits over the parts as they close, latches that only a person clears. Pure.

``consecutive_rejects`` and ``reject_rate`` count verdict ``fail`` only; parts of a purge or hold, neighbours and
challenge parts count in none (contract, "Alarms").
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from appliance.faults import FAULTS, sentence
from appliance.messages import Alarm, PartClosed
from appliance.reject.plan import AlarmPlan, Window

_COUNTS_IN_NONE = frozenset({"purge", "neighbour", "held", "fault"})
# Causes that hold the station until a person has looked, whatever the configuration says of part alarms.
ALWAYS_LATCHED = frozenset(
    {
        "output_lost", "longest_on", "reject_failed", "books_full", "purge_line_stop", "on_late_stop", "encoder_lost",
        "air_ok", "bin_full", "gate_home", "safe_mode",
    }  # fmt: skip
)


@dataclass
class _Raised:
    text: str
    since_ns: int
    latched: bool
    standing: bool = True


class _Recent:
    """How many of the last ``of_last`` parts were of one kind."""

    def __init__(self, of_last: int) -> None:
        self._flags: deque[bool] = deque(maxlen=of_last)
        self.count = 0

    def add(self, flag: bool) -> None:
        if len(self._flags) == self._flags.maxlen:
            self.count -= self._flags[0]
        self._flags.append(flag)
        self.count += flag

    def __len__(self) -> int:
        return len(self._flags)

    def full(self) -> bool:
        return len(self._flags) == self._flags.maxlen

    def clear(self) -> None:
        self._flags.clear()
        self.count = 0


class Alarms:
    """Raised alarms by code. ``changes`` collects (code, raised, text, latched, now_ns) until they are taken."""

    def __init__(self, plan: AlarmPlan) -> None:
        self._plan = plan
        self._raised: dict[str, _Raised] = {}
        self._consecutive = self._unconfirmed = self._unexpected = 0
        self._rate = _Recent(plan.reject_rate[1])
        self._recent: dict[str, tuple[Window, _Recent]] = {
            name: (window, _Recent(window.of_last))
            for name, window in (("missed", plan.missed), ("blind", plan.blind), ("late", plan.late))
        }
        self.changes: list[tuple[str, bool, str, bool, int]] = []

    @property
    def consecutive_fails(self) -> int:
        return self._consecutive

    def count_part(self, part: PartClosed, now_ns: int) -> None:
        """Count one closed part and raise or clear what its counting changes."""
        self._count_proof(part, now_ns)
        if part.challenge or part.disposed_by in _COUNTS_IN_NONE:
            return
        failed = part.verdict == "fail"
        self._consecutive = self._consecutive + 1 if failed else 0
        self._rate.add(failed)
        if self._consecutive >= self._plan.consecutive_rejects:
            self.raise_("consecutive_rejects", f"{self._consecutive} in a row", now_ns)
        elif not self._consecutive:
            self.over("consecutive_rejects", now_ns)
        share, of_last = self._plan.reject_rate
        # Only over a full window: 1 of the first 2 parts is not a rate.
        if self._rate.full() and self._rate.count > share * of_last:
            self.raise_("reject_rate", f"{self._rate.count} of the last {of_last}", now_ns)
        else:
            self.over("reject_rate", now_ns)
        for name, (window, recent) in self._recent.items():
            recent.add(part.verdict == name)
            if recent.count >= window.count:
                self.raise_(name, f"{recent.count} of the last {len(recent)}", now_ns)
            else:
                self.over(name, now_ns)

    def _count_proof(self, part: PartClosed, now_ns: int) -> None:
        if part.confirmed == "no":
            self._unconfirmed += 1
            if self._unconfirmed >= self._plan.unconfirmed:
                self.raise_("unconfirmed", f"part {part.part}", now_ns)
        elif part.confirmed == "yes" and not self._raised_latched("unconfirmed"):
            self._unconfirmed = 0
            self.over("unconfirmed", now_ns)
            self.over("confirm_stuck", now_ns)

    def count_unexpected(self, now_ns: int) -> None:
        """Something was seen in the bin that no gate took."""
        self._unexpected += 1
        if self._unexpected >= self._plan.unexpected:
            self.raise_("unexpected", f"{self._unexpected} seen", now_ns)

    def _raised_latched(self, code: str) -> bool:
        return code in self._raised and self._raised[code].latched

    def raise_(self, code: str, what: str, now_ns: int) -> None:
        """Raise an alarm; raised twice it stays as it was first told. Raises KeyError for a code not in FAULTS."""
        standing = self._raised.get(code)
        if standing is not None:
            standing.standing = True
            return
        latched = code in self._plan.stops_line or code in ALWAYS_LATCHED
        self._raised[code] = _Raised(sentence(code, what), now_ns, latched)
        self.changes.append((code, True, self._raised[code].text, latched, now_ns))

    def over(self, code: str, now_ns: int) -> None:
        """The cause no longer stands: the alarm goes, unless a person must clear it."""
        raised = self._raised.get(code)
        if raised is None:
            return
        raised.standing = False
        if not raised.latched:
            self._drop(code, now_ns)

    def clear(self, now_ns: int) -> list[str]:
        """A person clears: latched alarms go, counting begins anew; what still stands is left. Returns what went."""
        self._consecutive = self._unconfirmed = self._unexpected = 0
        self._rate.clear()
        for _, recent in self._recent.values():
            recent.clear()
        counted = {
            "consecutive_rejects", "reject_rate", "missed", "blind", "late", "unconfirmed", "unexpected", "confirm_stuck",
        }  # fmt: skip
        gone = [code for code, raised in self._raised.items() if code in counted or not raised.standing]
        for code in gone:
            self._drop(code, now_ns)
        return gone

    def settle(self, code: str) -> None:
        """The cause is over but the latch stays (a person must still clear)."""
        if code in self._raised:
            self._raised[code].standing = False

    @property
    def stops_line(self) -> tuple[str, ...]:
        """Codes that keep the line stopped: latched ones."""
        return tuple(code for code, raised in self._raised.items() if raised.latched)

    @property
    def fault(self) -> str | None:
        """The first raised alarm that puts the station into ``fault``."""
        return next((code for code in self._raised if FAULTS[code].effect == "fault"), None)

    def raised(self, code: str) -> bool:
        return code in self._raised

    def as_messages(self, wall_us: dict[str, int]) -> tuple[Alarm, ...]:
        """The raised alarms; ``wall_us``: wall time of each code's raising."""
        return tuple(
            Alarm(code=code, raised=True, latched=one.latched, text=one.text, since_us=wall_us.get(code, 0))
            for code, one in self._raised.items()
        )

    def _drop(self, code: str, now_ns: int) -> None:
        one = self._raised.pop(code)
        self.changes.append((code, False, one.text, one.latched, now_ns))
