"""``appliance update``: install a bundle, say what runs, go back by hand; and the application's half of settling.

A bundle goes: signature, every byte held against the manifest, does it fit here, the idle slot filled, the new version
looks at the running configuration and rehearses, trial, health; then it is kept, or what ran before runs again."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from appliance.box import launch, slots
from appliance.box.app_bundle import BundleRefused, Manifest, manifest_of, verify
from appliance.box.health import Health, look, read_state
from appliance.box.jetson import read_facts
from appliance.box.owner import become_owner
from appliance.box.signature import MAX_SIGNATURE_BYTES, SignatureError, enrolled
from appliance.box.signature import verify as verify_signature
from appliance.box.slots import Owed, Step
from appliance.box.slots_doer import Child, Doer, Offer, Places, UpdateFailed, bounded
from appliance.box.spool import spool_event
from appliance.box.store import Store
from appliance.clock import SystemClock
from appliance.config import ConfigError
from appliance.paths import box_folders
from appliance.ports import Clock
from appliance.wiring.settle import Wanted, decide, wait_a_while
from appliance.wiring.store import load_chosen

log = logging.getLogger("appliance.update")

SIGNATURES = (".sig", ".minisig")
Mode = Literal["off", "warn", "require"]
_BOX_PACKAGE = Path("/") / launch.PACKAGE
_NVBOOTCTL = "nvbootctrl"
_NVBOOTCTL_S = 10
# All that is ever asked of it: L4T's own slots are read and shown, never switched.
_L4T_QUESTIONS = (("bootloader", ("dump-slots-info",)), ("rootfs", ("-t", "rootfs", "dump-slots-info")))


@dataclass(frozen=True)
class Outcome:
    """How an update went, in words; ``unchanged``: it ran already. ``old``, ``new``: how the versions call themselves; new "" =
    it was never read."""

    result: Literal["applied", "unchanged", "refused", "returned"]
    text: str
    old: str = ""
    new: str = ""

    @property
    def code(self) -> int:
        """The exit code."""
        return 0 if self.result in ("applied", "unchanged") else 3 if self.result == "returned" else 2


@dataclass(frozen=True)
class Site:
    """Where an update happens. ``data``, ``run``: the station's folders; ``package``: the tree that the package brought."""

    data: Path
    run: Path
    package: Path
    clock: Clock
    wait: Callable[[int], None] = wait_a_while
    child: Child = bounded

    @property
    def places(self) -> Places:
        return Places(self.data / "slots", self.run, self.package)

    @property
    def store(self) -> Store:
        """The configurations'."""
        return Store(self.data / "config")

    def doer(self, who: str = "", why: str = "") -> Doer:
        """For all that is done on behalf of ``who``. Raises OSError."""
        chosen = self.store.choose().generation
        file = chosen.file if chosen else None
        return Doer(self.places, file, child=self.child, who=who, why=why, tell=self.tell, busy=self.busy)

    def busy(self) -> str:
        """What else is on trial, in words; "" = nothing. Raises OSError."""
        return "a configuration is on trial; wait until that is decided" if self.store.trial_holds() else ""

    def tell(self, owed: Owed) -> None:
        """Raises OSError."""
        spool_event(self.data, owed.kind, {name: text for name, text in asdict(owed).items() if name != "kind"}, self.clock)


def site_of(data: Path | None = None, run: Path | None = None) -> Site:
    """The box's folders, unless others are told or systemd named them."""
    data, run = box_folders(data, run)
    return Site(data, run, _BOX_PACKAGE, SystemClock())


# --- install -----------------------------------------------------------------------------------------------


def install(site: Site, bundle: Path, who: str, why: str, force: bool = False, say: Callable[[str], None] = log.info) -> Outcome:
    """All of an update; takes minutes, longer while engines are built. ``say`` hears of each stage. What is refused changed
    nothing. Raises OSError where the disk fails; the trial then ends by itself."""
    doer = site.doer(who, why)
    try:
        with doer.alone():
            return _install(site, doer, bundle, force, say)
    except UpdateFailed as failed:  # somebody else is at it
        return _refused(site, doer, bundle.name, "", str(failed))


def _install(site: Site, doer: Doer, bundle: Path, force: bool, say: Callable[[str], None]) -> Outcome:
    doer.do_all(slots.settling(doer.state(), doer.seen()))  # what an earlier one left behind
    new = ""
    try:
        manifest = manifest_of(bundle)
        if slots.runs_already(manifest, doer.seen()) and not doer.state().trial:
            old = _running(doer)
            return Outcome("unchanged", f"{bundle.name}: {old} runs already", old, old)
        new = f"{manifest.version} {manifest.digest[7:19]}"
        _spool(site, "update_offered", doer, _running(doer), new, f"{bundle.name}: version {manifest.version} is offered")
        mode = signature_mode(site)
        remark = _signature(site, bundle, manifest, mode)
        say(f"{bundle.name}: version {manifest.version}" + (f"; {remark}" if remark else ""))
        _must_fit(site, doer, manifest, mode, force)
        say("every file is held against the manifest")
        doer.offer = Offer(bundle, verify(bundle))
        _must_be_the_same(manifest, doer.offer.manifest, bundle)
        slot = slots.target(doer.state(), doer.seen())
        _fill(doer, slot, say)
    except (BundleRefused, UpdateFailed, SignatureError, OSError) as why:
        return _refused(site, doer, bundle.name, new, str(why))
    return _try(site, doer, slot, remark, say)


def _must_fit(site: Site, doer: Doer, manifest: Manifest, mode: Mode, force: bool) -> None:
    """Raises UpdateFailed, OSError."""
    python, arch, _user = launch.this_process()
    state, seen = doer.state(), doer.seen()
    on_trial = state.trial is not None and state.trial.holds(seen.boot_id, seen.now_ns)
    free = 0 if on_trial else doer.free(slots.target(state, seen))  # on trial: no slot is idle, and that is the refusal
    box = slots.Box(python, arch, read_facts().l4t, free, mode == "require", site.busy())
    refusal = slots.refusal(manifest, state, seen, box, force)
    if refusal:
        raise UpdateFailed(refusal)


def _must_be_the_same(offered: Manifest, verified: Manifest, bundle: Path) -> None:
    """What was signed is what was read whole. Raises BundleRefused."""
    if offered.digest != verified.digest:
        raise BundleRefused(f"{bundle} was changed while it was read; copy it anew")


def _fill(doer: Doer, slot: str, say: Callable[[str], None]) -> None:
    """Raises UpdateFailed, BundleRefused, OSError; then what was begun is cleared, and the try is counted."""
    try:
        for step in slots.filling(slot, doer.seen()):
            say(_STAGES.get(step.verb, ""))
            doer.do(step)
    except (UpdateFailed, BundleRefused, OSError) as why:
        if not isinstance(why, OSError):  # a full disk is not the bundle's fault
            doer.note_failure(str(why))
        # Room for the next try; where the disk fails at this too, the next settling clears.
        with suppress(OSError):
            doer.do_all([Step("clear", name) for name in (slots.partial(slot), slot)])
        raise


_STAGES = {"unpack": "the idle slot is filled", "compile": "compiled", "preflight": "the new version rehearses here"}


def _try(site: Site, doer: Doer, slot: str, remark: str, say: Callable[[str], None]) -> Outcome:
    old, new = _running(doer), doer.seen().identity_of(slot)
    before = _amiss(site)
    on_trial = ApplicationOnTrial(doer)
    try:
        doer.do_all(slots.trying(slot))
        say(f"{new} runs on trial")
        why = decide(on_trial, site.run, site.clock, site.wait) or on_trial.lost
    except UpdateFailed as failed:  # no station runs: nothing was begun
        return _refused(site, doer, doer.seen().stamps[slot].version, new, str(failed))
    except BaseException:
        on_trial.give_up("the update was interrupted", cut_short=True)
        raise
    if not why:
        kept = f"{new} runs and is kept, in place of {old}"
        return Outcome("applied", f"{kept}; {remark}" if remark else kept, old, new)
    also = f" (before the update it was not healthy either: {before})" if before else ""
    return Outcome("returned", f"{new} was not kept: {why}{also}; {_running(doer)} runs again", old, new)


def _amiss(site: Site) -> str:
    """What is amiss with the station now, in words."""
    now_ns = site.clock.now_ns()
    return look(Health(now_ns, now_ns), read_state(site.run), now_ns, None, None).why


def _running(doer: Doer) -> str:
    seen = doer.seen()
    return seen.identity_of(seen.runs)


def _refused(site: Site, doer: Doer, name: str, new: str, text: str) -> Outcome:
    old = _running(doer)
    told = f"{name}: {text}; nothing was changed, {old} runs"
    _spool(site, "update_refused", doer, old, new, told)
    return Outcome("refused", told, old, new)


def _spool(site: Site, kind: str, doer: Doer, old: str, new: str, text: str) -> None:
    site.tell(Owed(kind, old, new, doer.who, doer.why, text))


# --- signatures --------------------------------------------------------------------------------------------


def signature_mode(site: Site) -> Mode:
    """As the running configuration says. Where none can be read: ``require`` once keys are enrolled, else ``warn``. Raises
    OSError, SignatureError."""
    try:
        station = load_chosen(site.store, site.data).station
    except ConfigError:
        station = None
    if station is not None:
        return station.signature
    return "require" if enrolled(site.data / "keys") else "warn"


def _signature(site: Site, bundle: Path, manifest: Manifest, mode: Mode) -> str:
    """What a person should know of it, in words. Raises UpdateFailed, SignatureError, OSError."""
    if mode == "off":
        return ""
    raw, wrong = _signature_of(bundle), False
    if raw is None:
        text = f"it is not signed (no {bundle.name}{SIGNATURES[0]} beside it)"
    else:
        found = verify_signature(manifest.raw, raw, enrolled(site.data / "keys"))
        if found.outcome == "good":
            return found.text
        text, wrong = found.text, found.outcome in ("mismatch", "unreadable")
    if wrong and mode == "warn":  # the bundle is not what its author signed, by accident or not
        raise UpdateFailed(f"{text}; a wrong signature is worse than none: copy bundle and signature anew, or sign its manifest")
    if mode == "require":
        raise UpdateFailed(f"{text}, and signature: require takes only what an enrolled key has signed; sign its manifest")
    return f"warning: {text}"


def _signature_of(bundle: Path) -> bytes | None:
    """Raises OSError."""
    for ending in SIGNATURES:
        try:
            descriptor = os.open(f"{bundle}{ending}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        with open(descriptor, "rb") as stream:
            return stream.read(MAX_SIGNATURE_BYTES + 1)
    return None


# --- settling ----------------------------------------------------------------------------------------------


class ApplicationOnTrial:
    """The slots' half of ``appliance settle`` (settle.OnTrial). ``lost``: why what had proved itself could not be kept."""

    name = "application"

    def __init__(self, doer: Doer) -> None:
        self._doer = doer
        self.lost = ""

    def left_over(self) -> str:
        return slots.lost(self._doer.state(), self._doer.seen())

    def wanted(self) -> Wanted | None:
        state, seen = self._doer.state(), self._doer.seen()
        if state.trial is None or not state.trial.holds(seen.boot_id, seen.now_ns):
            return None
        return Wanted(None, seen.identity_of(state.trial.what), state.trial.until_ns - slots.MARGIN_NS)

    def extend(self, until_ns: int) -> None:
        self._doer.extend_trial(until_ns + slots.MARGIN_NS)

    def keep(self) -> None:
        try:
            self._end("")
        except UpdateFailed as why:
            self.lost = str(why)
            self.give_up(self.lost)

    def give_up(self, why: str, cut_short: bool = False) -> None:
        self._end(why, cut_short)

    def _end(self, why: str, cut_short: bool = False) -> None:
        self._doer.do_all(slots.ending(self._doer.state(), self._doer.seen(), why, cut_short))

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether this is the only one at it; while it is, what a cut left half is gone and what it left untold is told. Raises
        OSError."""
        with ExitStack() as held:
            try:
                held.enter_context(self._doer.alone())
            except UpdateFailed as why:  # an update is being made, and decides by itself
                log.info("%s", why)
                yield False
                return
            self._doer.do_all(slots.settling(self._doer.state(), self._doer.seen()))
            yield True


def application_on_trial(data: Path, run: Path) -> ApplicationOnTrial:
    """For ``appliance settle``. Raises OSError."""
    site = site_of(data, run)
    return ApplicationOnTrial(site.doer("settle", "what was left on trial"))


# --- back by hand ------------------------------------------------------------------------------------------


def come_back(site: Site, who: str, why: str) -> Outcome:
    """To what ran before: the other slot where its version proved itself, else the package. Raises OSError."""
    doer = site.doer(who, why)
    try:
        with doer.alone():
            state, seen = doer.state(), doer.seen()
            old, steps = seen.identity_of(seen.runs), slots.returning(state, seen)
            if not steps:
                return Outcome("refused", f"{old} runs, and there is none to go back to", old)
            doer.do_all(steps)
            new = _running(doer)
            return Outcome("applied", f"{new} runs again, in place of {old}: the three processes begin anew with it", old, new)
    except UpdateFailed as failed:
        return Outcome("refused", str(failed))


# --- status ------------------------------------------------------------------------------------------------


def status_of(site: Site, questions: Callable[[tuple[str, ...]], str | None] | None = None) -> dict[str, Any]:
    """All that is known, plain JSON. Raises OSError. ``questions``: how nvbootctrl is asked; None: no such program."""
    doer = site.doer()
    state, seen = doer.state(), doer.seen()
    holds = state.trial is not None and state.trial.holds(seen.boot_id, seen.now_ns)
    return {
        "runs": seen.identity_of(seen.runs),
        "told": seen.told,
        "why": seen.blocked,
        "package": seen.package,
        "slots": {name: vars(seen.stamps[name]) if name in seen.stamps else None for name in launch.SLOTS},
        "back": seen.identity_of(slots.came_from(state, seen)),
        "trial": {"slot": state.trial.what, "seconds": (state.trial.until_ns - seen.now_ns) // 10**9}
        if state.trial and holds else None,
        "failed": [vars(one) for one in state.failed],
        "l4t": l4t_slots(questions or ask_nvbootctrl),
    }  # fmt: skip


def ask_nvbootctrl(question: tuple[str, ...]) -> str | None:
    """What it answers; None where there is no such program, as on everything but a Jetson. Raises OSError."""
    try:
        done = subprocess.run([_NVBOOTCTL, *question], capture_output=True, timeout=_NVBOOTCTL_S, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired as why:
        raise OSError(f"{_NVBOOTCTL} does not answer") from why
    if done.returncode:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[:200]
        raise OSError(f"{_NVBOOTCTL} {' '.join(question)}: exit {done.returncode}{': ' if said else ''}{said}")
    return done.stdout.decode("utf-8", "replace")


def l4t_slots(ask: Callable[[tuple[str, ...]], str | None]) -> dict[str, Any] | None:
    """L4T's own slots, read and shown; None where this is no Jetson. ``warnings`` in words."""
    told: dict[str, Any] = {}
    warnings: list[str] = []
    for what, question in _L4T_QUESTIONS:
        try:
            answer = ask(question)
        except OSError as why:
            warnings.append(f"L4T's {what} slots cannot be read: {why}")
            continue
        if answer is None:
            return None
        told[what] = slots_told(answer)
        warnings += _l4t_warnings(what, told[what])
    return {**told, "warnings": warnings}


def slots_told(answer: str) -> dict[str, Any]:
    """``dump-slots-info`` as its names and values; ``slots``: one of them for each."""
    told: dict[str, Any] = {"slots": []}
    for line in answer.splitlines():
        if re.match(r"\s*slot:", line):
            pairs = [pair.partition(":") for pair in line.split(",")]
            told["slots"].append({name.strip(): value.strip() for name, _, value in pairs})
        elif ":" in line:
            name, _, value = line.partition(":")
            told[name.strip()] = value.strip()
    return told


def _l4t_warnings(what: str, told: dict[str, Any]) -> list[str]:
    found = []
    if what == "rootfs" and len(told["slots"]) < 2:
        found.append(
            "rootfs A/B is not armed: an update of L4T would have nothing to fall back to; it is armed when the box is flashed "
            "(ROOTFS_AB=1). Updates of the application do not need it"
        )
    for one in told["slots"]:
        if one.get("status", "normal") != "normal":
            found.append(f"L4T's {what} slot {one.get('slot')} is {one['status']}")
    return found


def write_status(told: dict[str, Any], out: TextIO) -> None:
    """For a person."""
    out.write(f"runs      {told['runs']}\n")
    if told["told"] and told["told"] != told["runs"]:
        out.write(f"          warning: the station's processes still run {told['told']}\n")
    if told["why"]:
        out.write(f"          warning: {told['why']}\n")
    for name, stamp in told["slots"].items():
        out.write(f"slot {name}    " + (f"{stamp['version']} {stamp['digest'][7:19]}" if stamp else "empty") + "\n")
    out.write(f"package   {told['package']}\nreturn    to {told['back']}\n")
    if told["trial"]:
        out.write(f"trial     slot {told['trial']['slot']}, {told['trial']['seconds']} s more\n")
    for one in told["failed"]:
        out.write(f"failed    {one['version']} {one['digest'][7:19]}, tries {one['tries']}: {one['why']}\n")
    if told["l4t"] is None:
        out.write("L4T       none here (no nvbootctrl)\n")
        return
    for what in ("bootloader", "rootfs"):
        if what in told["l4t"]:
            known = told["l4t"][what]
            states = ", ".join(f"{one.get('slot')} {one.get('status', '?')}" for one in known["slots"])
            out.write(f"L4T       {what}: current {known.get(f'Current {what} slot', '?')}; {states}\n")
    for warning in told["l4t"]["warnings"]:
        out.write(f"          warning: {warning}\n")


# --- the verb ----------------------------------------------------------------------------------------------


def update_verb(options: Any, out: TextIO, err: TextIO) -> int:
    """``appliance update install|status|return|manifest``."""
    site = site_of(options.data_dir, options.run_dir)
    try:
        if options.action == "manifest":
            out.buffer.write(manifest_of(_named(options)).raw)
            return 0
        if options.action == "status":
            told = status_of(site)
            write_status(told, out)
            if options.json:
                options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            return 0
        become_owner(site.data)
        for number in (signal.SIGTERM, signal.SIGHUP):  # a trial that is interrupted is given up, not left
            signal.signal(number, signal.default_int_handler)
        who = options.who or "person " + (os.environ.get("SUDO_USER") or os.environ.get("USER") or str(os.getuid()))
        if options.action == "return":
            outcome = come_back(site, who, options.why or "by hand")
        else:
            file = _named(options)
            outcome = install(site, file, who, options.why or "by hand", options.force, lambda text: _say(out, text))
    except (OSError, BundleRefused, ValueError) as why:
        err.write(f"{why}\n")
        return 2
    (err if outcome.code else out).write(f"{outcome.text}\n")
    if options.json:
        options.json.write_text(json.dumps(asdict(outcome), indent=1) + "\n", encoding="utf-8")
    return outcome.code


def _named(options: Any) -> Path:
    if options.file is None:
        raise ValueError(f"name the bundle: appliance update {options.action} FILE")
    file: Path = options.file.absolute()
    return file


def _say(out: TextIO, text: str) -> None:
    if text:
        out.write(f"{text}\n")
        out.flush()
