"""Application updates in two slots: what is to be done next, from what is there. Pure; slots_doer.py does it.

Slots a and b lie beside the tree that the package brought. A bundle fills the slot that does not run; the slot gets its
stamp last, then runs on trial, and is kept only when the station was healthy with it. Each list below may be cut off after
any of its steps: the launcher (launch.py) then chooses a whole tree, and ``settling`` or the next ``filling`` goes on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from appliance.box.app_bundle import Manifest
from appliance.box.durable import Trial, as_json, trial_of
from appliance.box.launch import PACKAGED, SLOTS, identity

TRIES = 2  # of one bundle that was cut off or failed before its trial; a trial that failed is not repeated
CUT_SHORT = "cut short"
KEPT_FAILURES = 8
SPARE_BYTES = 256 << 20  # beside the slot's files: their compiled form, and what the station itself writes meanwhile
TRIAL_NS = 150_000_000_000  # the three processes begin anew within seconds; more while engines are built (health.py)
MARGIN_NS = 30_000_000_000  # from the end of our patience to the end of the trial: marking good comes before that
_NUMBER = re.compile(r"(\d+)|(~)|([^\d~]+)")

Verb = Literal[
    "unstamp", "clear", "unpack", "compile", "flush", "place", "preflight", "stamp", "begin_trial", "again", "mark_good",
    "give_up", "go_back", "tell",
]  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One thing to do. ``name``: the slot or folder that it is done to; ``why``: in words, where one is needed."""

    verb: Verb
    name: str = ""
    why: str = ""


@dataclass(frozen=True)
class Failed:
    """A bundle that did not prove itself: how often it was tried, and what was amiss."""

    digest: str
    version: str
    tries: int
    why: str


@dataclass(frozen=True)
class Owed:
    """An event that the ledger is to hear of: decided in the same write as what it tells, so no cut comes between."""

    kind: str
    old: str
    new: str
    who: str
    why: str
    text: str


@dataclass(frozen=True)
class State:
    """What state.json says. ``active``: the slot that runs, None: the package; ``package``: the package's version when that
    was decided (another one has the say since); ``proved``: by slot, the digest of what was good in it once; ``who`` and
    ``why``: of the trial; ``owed``: oldest first."""

    active: str | None = None
    package: str = ""
    trial: Trial | None = None
    proved: tuple[tuple[str, str], ...] = ()
    failed: tuple[Failed, ...] = ()
    who: str = ""
    why: str = ""
    owed: tuple[Owed, ...] = ()


@dataclass(frozen=True)
class Stamp:
    """What a complete slot holds."""

    version: str
    digest: str
    python: str
    arch: str


@dataclass(frozen=True)
class Seen:
    """What is there. ``stamps``: of slots that can run here; ``folders``: all names in the slots' folder that are folders;
    ``runs``: the slot that the launcher chooses now, or ``packaged``; ``package``: the package's version; ``boot_id``,
    ``now_ns`` (CLOCK_BOOTTIME): now; ``told``: the version that the station's processes say they run, None: not told;
    ``blocked``: why the launcher does not choose what it should, "" = it does."""

    stamps: Mapping[str, Stamp]
    folders: frozenset[str]
    runs: str
    package: str
    boot_id: str
    now_ns: int
    told: str | None = None
    blocked: str = ""

    def identity_of(self, name: str) -> str:
        """How the tree of that name calls itself while it runs."""
        stamp = self.stamps.get(name)
        return identity(stamp.version, name, {"digest": stamp.digest}) if stamp else identity(self.package, PACKAGED, None)

    @property
    def version(self) -> str:
        """Of what the launcher chooses now."""
        return self.stamps[self.runs].version if self.runs in self.stamps else self.package


@dataclass(frozen=True)
class Box:
    """What a bundle has to fit. ``python`` "3.10", ``arch`` as dpkg names it, ``l4t`` "36.4.3" or None; ``free``: bytes on the
    slots' disk; ``strict``: signatures are required; ``busy``: in words, what else is on trial, "" = nothing."""

    python: str
    arch: str
    l4t: str | None
    free: int
    strict: bool = False
    busy: str = ""


# --- state.json --------------------------------------------------------------------------------------------


def state_of(value: Any) -> State:
    """From its JSON; what cannot be believed is left out, as the launcher does."""
    value = value if isinstance(value, dict) else {}
    active, package, trial = value.get("active"), value.get("package"), trial_of(value.get("trial"))
    proved, failed, owed = value.get("proved"), value.get("failed"), value.get("owed")
    return State(
        active if active in SLOTS else None,
        _text(package),
        trial if trial and trial.what in SLOTS else None,
        tuple((name, digest) for name, digest in sorted(proved.items()) if name in SLOTS and isinstance(digest, str))
        if isinstance(proved, dict) else (),
        tuple(one for one in map(_failed_of, failed) if one)[-KEPT_FAILURES:] if isinstance(failed, list) else (),
        _text(value.get("who")),
        _text(value.get("why")),
        tuple(one for one in map(_owed_of, owed) if one) if isinstance(owed, list) else (),
    )  # fmt: skip


def json_of(state: State) -> dict[str, Any]:
    """The other way round."""
    return {
        "active": state.active,
        "package": state.package,
        "trial": as_json(state.trial),
        "proved": dict(state.proved),
        "failed": [vars(one) for one in state.failed],
        "who": state.who,
        "why": state.why,
        "owed": [vars(one) for one in state.owed],
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _owed_of(value: Any) -> Owed | None:
    try:
        one = Owed(**value)
    except TypeError:  # none of ours
        return None
    return one if all(isinstance(text, str) for text in vars(one).values()) else None


def _failed_of(value: Any) -> Failed | None:
    if not isinstance(value, dict) or type(value.get("tries")) is not int:
        return None
    digest, version, why = (value.get(name) for name in ("digest", "version", "why"))
    if not (isinstance(digest, str) and isinstance(version, str) and isinstance(why, str)):
        return None
    return Failed(digest, version, value["tries"], why)


# --- may it be taken? --------------------------------------------------------------------------------------


def refusal(offer: Manifest, state: State, seen: Seen, box: Box, force: bool = False) -> str:
    """Why this bundle is not taken, in words; "" = it is. ``force``: one that failed before is tried again."""
    if box.busy:
        return box.busy
    if state.trial and state.trial.holds(seen.boot_id, seen.now_ns):
        return f"the application in slot {state.trial.what} is on trial; wait until that is decided"
    if offer.arch != box.arch:
        return f"the bundle is for {offer.arch}, this box is {box.arch}; take the one for {box.arch}"
    if offer.python != box.python:
        return f"the bundle is for Python {offer.python}, this box has {box.python}; take the one for {box.python}"
    if offer.l4t and not _fits(offer.l4t, box.l4t):
        return f"the bundle is for L4T {offer.l4t}, this box has {box.l4t or 'none'}; take the one for it"
    if box.strict and order(offer.version) < order(seen.version):
        return (
            f"version {offer.version} is older than {seen.version}, which runs, and signature: require takes nothing older; "
            "go back to what ran before by `appliance update return`"
        )
    failed = next((one for one in state.failed if one.digest == offer.digest), None)
    if failed and failed.tries >= TRIES and not force:
        return f"this bundle was tried and not kept ({failed.why}); build a new one, or try it again by --force"
    need = offer.room() + SPARE_BYTES
    if box.free < need:
        return f"the bundle needs {need >> 20} MiB, {box.free >> 20} MiB are free; free some space"
    return ""


def runs_already(offer: Manifest, seen: Seen) -> bool:
    """Whether this very bundle is what is chosen now."""
    return seen.runs in seen.stamps and seen.stamps[seen.runs].digest == offer.digest


def _fits(wanted: str, have: str | None) -> bool:
    steps = wanted.split(".")
    return have is not None and have.split(".")[: len(steps)] == steps


def order(version: str) -> list[tuple[int, int, str]]:
    """What versions are compared by, much as Debian does: numbers as numbers, ``~`` before the end, the end before letters."""
    ranked = [(3, int(number), "") if number else (0, 0, "") if tilde else (2, 0, text)
              for number, tilde, text in _NUMBER.findall(version)]  # fmt: skip
    return [*ranked, (1, 0, "")]


# --- what is to be done ------------------------------------------------------------------------------------


def target(state: State, seen: Seen) -> str:
    """The slot to fill: never the one that runs or is chosen; of two idle ones the one without a proved version. Raises
    ValueError while a trial holds and neither is idle."""
    idle = [name for name in SLOTS if name not in (state.active, seen.runs)]
    proved = dict(state.proved)
    return min(idle, key=lambda name: (name in seen.stamps and proved.get(name) == seen.stamps[name].digest, name))


def partial(slot: str) -> str:
    """The folder in which a slot is filled."""
    return slot + ".part"


def filling(slot: str, seen: Seen) -> list[Step]:
    """All that comes before a trial: the slot's old content goes, the stamp first; the new one's stamp comes last."""
    steps = [Step("unstamp", slot)] if slot in seen.folders else []
    steps += [Step("clear", name) for name in (slot, partial(slot)) if name in seen.folders]
    steps += [Step("unpack", partial(slot)), Step("compile", partial(slot)), Step("flush", partial(slot))]
    return [*steps, Step("place", slot), Step("preflight", slot), Step("stamp", slot)]


def trying(slot: str) -> list[Step]:
    """The slot runs on trial."""
    return [Step("begin_trial", slot), Step("again")]


def ending(state: State, seen: Seen, why: str, cut_short: bool = False) -> list[Step]:
    """After the health check. ``why``: what is amiss, "" = healthy; ``cut_short``: the check never came to its end."""
    if not why:
        return [Step("mark_good"), Step("tell")]
    # Whoever started since another boot's trial chose rightly, and is left alone.
    again = [Step("again")] if trial_in_this_boot(state, seen) else []
    return [Step("give_up", CUT_SHORT if cut_short else "", why), *again, Step("tell")]


def trial_in_this_boot(state: State, seen: Seen) -> bool:
    """Whether somebody may still run what is or was on trial."""
    return state.trial is not None and state.trial.boot_id == seen.boot_id


def lost(state: State, seen: Seen) -> str:
    """Why a trial that was begun is lost already, "" = none is."""
    trial = state.trial
    if trial is None or trial.holds(seen.boot_id, seen.now_ns):
        return ""
    if trial_in_this_boot(state, seen):
        return "its time was over before it was healthy"
    return "the box was restarted during its trial"


def returning(state: State, seen: Seen) -> list[Step]:
    """Back by hand: to the other slot where a version proved itself in it, else to the package. [] where that runs already."""
    back = came_from(state, seen)
    if back == seen.runs and not state.trial:
        return []
    return [Step("go_back", back), Step("again"), Step("tell")]


def came_from(state: State, seen: Seen) -> str:
    """What ``returning`` goes back to."""
    if state.trial:
        return state.active or PACKAGED
    if seen.runs == PACKAGED:
        return PACKAGED
    other = next(name for name in SLOTS if name != seen.runs)
    whole = other in seen.stamps and dict(state.proved).get(other) == seen.stamps[other].digest
    return other if whole else PACKAGED


def settling(state: State, seen: Seen) -> list[Step]:
    """What a cut or a killed update left behind; [] where all is well. A trial that holds waits for its health check."""
    why = lost(state, seen)
    steps = ending(state, seen, why, not trial_in_this_boot(state, seen)) if why else [Step("tell")] if state.owed else []
    # Whoever was started in a trial that is over runs on with it until asked.
    if not state.trial and seen.told is not None and seen.told != seen.identity_of(seen.runs):
        steps.append(Step("again"))
    for name in sorted(seen.folders):
        if name.removesuffix(".part") in SLOTS and name not in seen.stamps and name not in (seen.runs, state.active):
            steps.append(Step("clear", name))
    return steps


# --- what state.json says after a step ---------------------------------------------------------------------


def with_trial(state: State, seen: Seen, slot: str, until_ns: int, who: str = "", why: str = "") -> State:
    """After ``begin_trial``, and once more where it needs longer."""
    active = state.active if state.package == seen.package else None  # what another package replaced comes back no more
    trial = Trial(slot, active, seen.boot_id, until_ns)
    return replace(state, active=active, package=seen.package, trial=trial, who=who or state.who, why=why or state.why)


def with_good(state: State, seen: Seen) -> State:
    """After ``mark_good``. Raises ValueError when the trial is over: whoever started since runs the old one."""
    trial = state.trial
    if trial is None or not trial.holds(seen.boot_id, seen.now_ns) or trial.what not in seen.stamps:
        raise ValueError("the trial is over, and the version before it is chosen again; install the bundle anew")
    digest = seen.stamps[trial.what].digest
    proved = {name: known for name, known in state.proved if name in seen.stamps and known == seen.stamps[name].digest}
    owed = _owed(state, seen, "update_applied", trial.before, trial.what, "the station is healthy with it: it is kept")
    return replace(
        state, active=trial.what, package=seen.package, trial=None, owed=owed,
        proved=tuple(sorted({**proved, trial.what: digest}.items())),
        failed=tuple(one for one in state.failed if one.digest != digest),
    )  # fmt: skip


def without_trial(state: State, seen: Seen, why: str, cut_short: bool = False) -> State:
    """After ``give_up``. What was cut short (a restart may have been a power cut) counts as one try; what was seen to be ill
    is not tried again."""
    trial = state.trial
    if trial is None:
        return state
    owed = _owed(state, seen, "update_returned", trial.what, trial.before, why)
    stamp = seen.stamps.get(trial.what)
    tries = 1 if cut_short else TRIES
    failed = with_failure(state, stamp.digest, stamp.version, tries, why) if stamp else state
    return replace(failed, trial=None, owed=owed)


def with_failure(state: State, digest: str, version: str, tries: int, why: str) -> State:
    """``tries`` more of that bundle did not end well."""
    before = next((one.tries for one in state.failed if one.digest == digest), 0)
    others = [one for one in state.failed if one.digest != digest]
    return replace(state, failed=(*others, Failed(digest, version, before + tries, why))[-KEPT_FAILURES:])


def gone_back(state: State, seen: Seen, name: str, who: str, why: str) -> State:
    """After ``go_back`` to a slot or the package."""
    asked = replace(state, who=who, why=why)
    owed = _owed(asked, seen, "update_returned", seen.runs, name, "a person asked for it")
    return replace(asked, active=None if name == PACKAGED else name, package=seen.package, trial=None, owed=owed)


def _owed(state: State, seen: Seen, kind: str, old: str | None, new: str | None, text: str) -> tuple[Owed, ...]:
    """One more. ``old``, ``new``: names of slots, None: the package's."""
    before, after = seen.identity_of(old or PACKAGED), seen.identity_of(new or PACKAGED)
    return (*state.owed, Owed(kind, before, after, state.who, state.why, f"{before} -> {after}: {text}"))[-KEPT_FAILURES:]
