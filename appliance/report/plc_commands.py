"""The PLC's command bits: what rises, what is refused, what rejectd is asked for, and when a bit is done. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.messages import Command, Reply, Status

ENABLE, TRIGGER, RESULT_ACK, RECIPE_CHANGE, CLEAR_LATCHED = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4
STOP, START, CHALLENGE, TEACH = 1 << 5, 1 << 6, 1 << 7, 1 << 8
BITS = 0x1FF
ONE_AT_A_TIME = RECIPE_CHANGE | CLEAR_LATCHED | STOP | START | CHALLENGE | TEACH
NOT_BUILT = TRIGGER | RECIPE_CHANGE | CHALLENGE | TEACH  # answered "not now" until their issues build them

BAD_VALUE, NOT_NOW = 3, 6  # Modbus exceptions

ANSWER_NS = 1_000_000_000  # rejectd answers within a turn of its loop; after this the answer was lost with its socket
ASK_AGAIN_NS = 100_000_000
PLC_ID = "plc:"  # how our commands' ids begin; no one else's may
HELD_BY = "held by "  # how rejectd's state tells whose hold it is


@dataclass(frozen=True)
class _Asked:
    """A Command under way. ``hold``: whose hold it brings about ("" = none), or None for a clear."""

    hold: str | None
    until_ns: int


class PlcCommands:
    """``level``: the bits as the PLC wrote them; ``done``: those completed. The hold that the PLC wants of rejectd
    ("plc stop", "plc enable" or "") is a wish that is told again until rejectd's answer agrees with it."""

    def __init__(self) -> None:
        self.level = 0
        self._known = 0  # bits that have been written since our start: only those can rise
        self._done = 0
        self._stopped = False
        self._decided = False  # this PLC stopped or started since our start, so an older stop is not taken over
        self._told = ""
        self._pending = 0
        self._clear_due = False
        self._asked: dict[str, _Asked] = {}
        self._number = 0
        self._ask_ns = 0
        self._rejectd_seen = False

    # --- the PLC's side ---------------------------------------------------------------------------------------

    def refusal(self, word: int, mask: int, alive: bool) -> int:
        """The Modbus exception for writing the bits of ``mask``, or 0. ``alive``: rejectd's loop was just seen."""
        if word & mask & ~BITS:
            return BAD_VALUE
        rising = self._rising(word, mask)
        acts = rising & ONE_AT_A_TIME
        if acts == STOP | START:
            acts = STOP  # stop beats start
        still_stop = self.level & STOP and not (mask & STOP and not word & STOP)
        refused = (
            rising & NOT_BUILT
            or acts & (acts - 1)  # more than one bit
            or (acts and self._pending and acts != STOP)  # a stop waits for nobody
            or (acts == START and still_stop)
            or (acts == CLEAR_LATCHED and not alive)
        )
        return NOT_NOW if refused else 0

    def write(self, word: int, mask: int) -> int:
        """Take a write that was not refused; returns the bits that rose."""
        rising = self._rising(word, mask)
        self.level = (self.level & ~mask) | (word & mask)
        self._known |= mask & BITS
        if rising & STOP:
            self._stopped, self._decided = True, True
            self._pending = (self._pending & ~START) | STOP
        elif rising & START:
            self._stopped, self._decided = False, True
            self._pending |= START
        elif rising & CLEAR_LATCHED:
            self._pending |= CLEAR_LATCHED
            self._clear_due = True
        self._done = (self._done | rising & RESULT_ACK) & self.level
        return rising

    def _rising(self, word: int, mask: int) -> int:
        return word & mask & self._known & ~self.level

    @property
    def done(self) -> int:
        """Bits whose command is complete; each falls when the PLC clears the bit."""
        enabled = self.level & ENABLE if self._told != "plc enable" else 0
        return (self._done | enabled) & self.level

    @property
    def _wants(self) -> str:
        if self._stopped:
            return "plc stop"
        return "plc enable" if self._known & ENABLE and not self.level & ENABLE else ""

    # --- rejectd's side -----------------------------------------------------------------------------------------

    def on_status(self, status: Status) -> None:
        """rejectd says whose hold stands: after our restart that is how an old stop is found again."""
        self._rejectd_seen = True
        if status.state == "running":
            stands = ""
        elif status.state == "held" and status.reason.startswith(HELD_BY + "plc "):
            stands = status.reason[len(HELD_BY) :]
        else:
            return  # another state hides it
        if self._asking_hold or self._wants != self._told:
            return
        if stands == "plc stop" and not self._decided:
            self._stopped = True
        self._told = stands

    def on_rejectd_gone(self) -> None:
        """A new rejectd knows of no hold; what was under way will not be answered."""
        self._rejectd_seen = False
        self._told = ""
        self._asked.clear()
        self._pending &= ~CLEAR_LATCHED
        self._clear_due = False

    def take(self, now_ns: int) -> list[Command]:
        """Commands to be sent to rejectd now."""
        for name in [name for name, one in self._asked.items() if now_ns >= one.until_ns]:
            self._forget(name)
        if not self._rejectd_seen:
            return []
        commands: list[Command] = []
        if self._clear_due:
            self._clear_due = False
            commands.append(self._ask("clear", "plc", None, now_ns))
        wants = self._wants
        if wants != self._told and not self._asking_hold and now_ns >= self._ask_ns:
            self._ask_ns = now_ns + ASK_AGAIN_NS
            commands.append(self._ask("hold" if wants else "release", wants or "plc", wants, now_ns))
        self._settle()
        return commands

    def on_reply(self, reply: Reply) -> None:
        """rejectd's answer. A clear is complete also when something still stands: the alarms say so."""
        asked = self._asked.pop(reply.id, None)
        if asked is None:
            return
        if asked.hold is None:
            self._complete(CLEAR_LATCHED)
        elif reply.ok:
            self._told = asked.hold
        self._settle()

    def not_sent(self, name: str) -> None:
        """A command could not be handed to rejectd: a hold is told again, a clear is the PLC's to repeat."""
        self._forget(name)

    @property
    def _asking_hold(self) -> bool:
        return any(one.hold is not None for one in self._asked.values())

    def _ask(self, verb: str, source: str, hold: str | None, now_ns: int) -> Command:
        self._number += 1
        command = Command(f"{PLC_ID}{self._number}", verb, {}, source)
        self._asked[command.id] = _Asked(hold, now_ns + ANSWER_NS)
        return command

    def _forget(self, name: str) -> None:
        asked = self._asked.pop(name, None)
        if asked is not None and asked.hold is None:
            self._pending &= ~CLEAR_LATCHED  # not done, and the way is free for the next try

    def _settle(self) -> None:
        if self._asking_hold or self._wants != self._told:
            return
        self._complete(self._pending & (STOP | START))

    def _complete(self, bits: int) -> None:
        self._done = (self._done | bits & self._pending) & self.level
        self._pending &= ~bits
