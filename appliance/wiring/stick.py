"""The dialogue with whoever plugs a stick in: read, judge, apply on trial, keep or return, and say so on the stick.

``serve`` is the whole of it, in order. Nothing is changed before everything on the stick is found good; from the moment that
a trial begins, pulling the stick or stopping this process changes nothing of what comes of it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from appliance.box import signature, stick
from appliance.box.again import begin_anew
from appliance.box.child import ChildFailed, run_limited
from appliance.box.health import read_state, wait_healthy
from appliance.box.result import Outcome, Report, compose
from appliance.box.signature import Key, SignatureError, Verified
from appliance.box.slots_doer import application_on_trial
from appliance.box.spool import spool_event
from appliance.box.stick import Calls, Found, Limits, Source, StickDead
from appliance.box.store import Generation, Meta, Store, StoreError, file_digest, tree_digest
from appliance.box.support import IMAGES_BYTES
from appliance.box.words import plain
from appliance.clock import boottime_ns
from appliance.config import ConfigError, Station, load
from appliance.ports import Clock
from appliance.wiring import update
from appliance.wiring.settle import ConfigurationOnTrial, decide, wait_a_while
from appliance.wiring.stick_judge import Judgement, judge
from appliance.wiring.store import changed_roles, essentials_of, load_chosen

log = logging.getLogger("appliance.stick")

TRIAL_NS = 180_000_000_000  # CUDA, engines from the cache, and three processes anew; engines being built get more, see health.py
BACK_NS = 90_000_000_000  # until the old configuration is seen running again
JUDGE_CPU_S = 60  # the worst file of 1 MiB takes 5 s on a laptop core, 512 MiB of models a second or two
JUDGE_BYTES = 2 << 30  # address space; the worst file takes 0.2 GB of it
JUDGE_S = 300.0  # its unit gives it less than half of a core
_TEXT_PROBLEMS = 3  # in the sentence for ledger and broker; all stand in RESULT.txt
_EVENT_LINES = 50
_SEEN_NS = 20_000_000_000  # reportd writes its state every second, but for while it begins anew
SUPPORT_S = 600.0  # every piece of it has a limit of its own


# (bundle, on whose behalf, how to wait) -> how it went
Install = Callable[[Path, str, Callable[[int], None]], update.Outcome]


@dataclass(frozen=True)
class Box:
    """Where this box keeps things. ``install``: another way to install an update than the box's own; ``trial_ns``: how long a
    new configuration has to become healthy, ``back_ns``: the old one again."""

    store: Store
    run_dir: Path
    data_dir: Path
    clock: Clock
    wait: Callable[[int], None] = wait_a_while
    limits: Limits = Limits()
    calls: Calls = Calls()
    install: Install | None = None
    trial_ns: int = TRIAL_NS
    back_ns: int = BACK_NS

    @property
    def keys_dir(self) -> Path:
        """Enrolled public keys."""
        return self.data_dir / "keys"

    @property
    def staging(self) -> Path:
        """The copy of a stick; on the disk, for half a gigabyte of models is not taken from a running inspection's memory."""
        return self.data_dir / "stick"


class Refused(Exception):
    """Nothing of the stick is applied: the sentence, and all that is wrong."""

    def __init__(self, text: str, wrong: list[str] | None = None) -> None:
        super().__init__(text)
        self.wrong = wrong or []


@dataclass
class _Told:
    """What RESULT.txt will say."""

    found: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    outcome: Outcome = "refused"
    text: str = ""
    head: str = ""
    by: str = ""
    device: str = ""
    enrolled: bool = False

    @property
    def went_well(self) -> bool:
        """All that was asked for was done."""
        return self.outcome not in ("refused", "returned") and not self.wrong


# --- the dialogue -------------------------------------------------------------------------------------------


def serve(source: Source, box: Box, out: TextIO, only_keys: bool = False) -> int:
    """One stick, from plugged in to RESULT.txt. ``only_keys``: enrol what lies in enrol/ and nothing else. Exit 0: applied, or
    there was nothing to do; 2: refused, returned or unreadable, or the box's own disk failed. Raises OSError where that fails so
    that not even what runs can be told."""
    box.data_dir.mkdir(parents=True, exist_ok=True)
    with _alone(box) as alone:
        if not alone:
            return _busy(source, box, out)
        who = f"stick {source.name}" if source.device else f"folder {source.name or source.place}"
        told = _Told(by=who, device=str(source.device or ""))
        text = f"{who} is being read"
        _spool(box, "stick_inserted", {"who": who, "device": told.device, "answers": True, "text": text})
        stuck = False
        try:
            files = _worked_on(source, box, told, only_keys)
            result = compose(_report(told, box))
            _write_back(source, result, files, box, who, told)
        except StickDead as why:
            stuck = why.stuck  # who hangs may yet write there
            return unreadable(box, who, str(why), out, source.device)
        finally:
            if not stuck:
                shutil.rmtree(box.staging, ignore_errors=True)
    out.write(result.decode("utf-8").replace("\r\n", "\n"))
    return 2 if told.outcome in ("refused", "returned") else 0


def unreadable(box: Box, who: str, why: str, out: TextIO, device: Path | None = None) -> int:
    """A stick that says nothing is told all the same. Exit 2."""
    text = f"{who} cannot be read: {plain(why)}; nothing was changed: format it as FAT32 or exFAT on a computer and copy anew"
    log.error("%s", text)
    _spool(box, "stick_unreadable", {"who": who, "device": str(device or ""), "why": why, "text": text})
    out.write(f"{text}\n")
    return 2


def _worked_on(source: Source, box: Box, told: _Told, only_keys: bool) -> list[Path]:
    """Read it and do what it asks; ``told`` holds what came of it, however it ends. Returns what is written beside RESULT.txt.
    Raises StickDead."""
    try:
        found = stick.read_stick(source, box.staging, box.clock, box.limits, box.calls)
        _answered(found, box, told, is_box=source.device is not None, only_keys=only_keys)
        return _support(found, box, told)
    except _Stopped as why:
        log.warning("%s", why)
    except OSError as why:
        log.error("the box's own disk fails: %s", why)
        told.outcome, told.head = "refused", "FAILED - the box's own disk does not work; what runs stands below"
        told.text = told.text or "the box's own disk failed before it was decided"
        told.wrong.append(f"the box's own disk: {why}")
    return []


@contextmanager
def _alone(box: Box) -> Iterator[bool]:
    """One stick at a time."""
    descriptor = os.open(box.data_dir / "stick.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        yield False
        return
    try:
        yield True
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that cannot be ended has it too, and would keep the lock
        os.close(descriptor)


def _busy(source: Source, box: Box, out: TextIO) -> int:
    """No event: lamp and alarms are the other stick's."""
    text = "another stick is being worked on; pull this one, and plug it in again when that one is done"
    result = compose(_report(_Told(outcome="refused", text=text), box))
    _write_back(source, result, [], box, source.name)
    out.write(f"{text}\n")
    return 2


def _answered(found: Found, box: Box, told: _Told, is_box: bool, only_keys: bool) -> None:
    """Do what the stick asks; whatever comes of it is in the ledger when this returns. Raises OSError, _Stopped."""
    told.found = [f"{path}, {size} bytes" for path, size in found.sizes.items() if not path.startswith(stick.BUNDLES)]
    told.found += _bundles_found(found)
    told.notes = list(found.notes)
    try:
        _answer(found, box, told, is_box, only_keys)
    except Refused as why:
        told.outcome, told.text, told.wrong = "refused", str(why), why.wrong
        if told.enrolled:
            told.head = "REFUSED - the keys are enrolled, the configuration was not taken"
        _spool(box, "configuration_refused", {
            "who": told.by, "old": _running(box), "why": str(why), "text": _sentence(why), "problems": why.wrong[:_EVENT_LINES],
        })  # fmt: skip


def _sentence(why: Refused) -> str:
    """For ledger and broker: with the first few mistakes."""
    more = f" (and {len(why.wrong) - _TEXT_PROBLEMS} more)" if len(why.wrong) > _TEXT_PROBLEMS else ""
    return plain(": ".join(filter(None, (str(why), "; ".join(why.wrong[:_TEXT_PROBLEMS]))))) + more


def _answer(found: Found, box: Box, told: _Told, is_box: bool, only_keys: bool) -> None:
    """Raises Refused, OSError."""
    if found.problems:
        raise Refused("the stick cannot be taken as it is", found.problems)
    keys, new_keys = _keys(found, box, told)
    has_file = stick.CONFIGURATION in found.sizes
    if only_keys or not has_file:
        if new_keys:
            _enrol(new_keys, box, told)
        elif not (found.keys or found.collect or found.update) or only_keys and not found.keys:
            raise Refused(_nothing_there(found, only_keys))
        told.outcome, told.text = "served", told.text or "the stick asked for no configuration"
        if not found.update:
            _spool(box, "stick_served", {"who": told.by, "text": told.text})
    else:
        _configuration(found, box, told, is_box, keys, new_keys)
    if found.update and not only_keys and told.outcome != "returned":
        _update(found, box, told)


def _nothing_there(found: Found, only_keys: bool) -> str:
    if only_keys:
        return "there is no enrol/NAME.pub on the stick; put the public key there"
    if found.near:
        return f"the stick has {', '.join(found.near)} and no {stick.CONFIGURATION}; give the file exactly that name"
    return f"there is no {stick.CONFIGURATION} at the root of the stick; put it there, or an empty file {stick.COLLECT}"


def _bundles_found(found: Found) -> list[str]:
    by_name: dict[str, list[int]] = {}
    for path, size in found.sizes.items():
        if path.startswith(f"{stick.BUNDLES}/"):
            by_name.setdefault(path.split("/")[1], []).append(size)
    return [f"bundles/{name}, {len(sizes)} files, {sum(sizes)} bytes" for name, sizes in sorted(by_name.items())]


# --- keys ---------------------------------------------------------------------------------------------------


def _keys(found: Found, box: Box, told: _Told) -> tuple[list[Key], dict[str, bytes]]:
    """(all that count for this stick, those of them that are yet to be enrolled). Raises Refused, OSError."""
    try:
        have = signature.enrolled(box.keys_dir)
    except SignatureError as why:
        raise Refused(f"an enrolled key cannot be read any more, so nothing is taken: {why}") from why
    if not found.keys:
        return have, {}
    raw = {name.removesuffix(".pub"): (box.staging / stick.ENROL / name).read_bytes() for name in found.keys}
    try:
        offered = signature.check_keys(raw)
    except SignatureError as why:
        raise Refused("a key in enrol/ cannot be used", [f"{stick.ENROL}/{why}"]) from why
    if {key.public for key in offered} <= {key.public for key in have}:
        told.notes.append(f"the keys in {stick.ENROL}/ are enrolled already")
        return have, {}
    if have:
        names = ", ".join(map(str, have))
        raise Refused(f"keys are enrolled once, and {names} is: take the folder {stick.ENROL} off the stick")
    if box.store.good is not None:
        raise Refused(
            f"keys are enrolled at the first start only, and a configuration was applied already: take the folder {stick.ENROL} "
            "off the stick; to begin anew, a person removes the box's configuration store by hand"
        )
    return offered, raw


def _enrol(keys: dict[str, bytes], box: Box, told: _Told) -> None:
    """Raises OSError."""
    enrolled = signature.enrol(box.keys_dir, keys)
    names = ", ".join(map(str, enrolled))
    told.text = f"enrolled: {names}; from now on only what one of them signed is the first configuration of this box"
    told.notes.append(f"enrolled: {names}")
    told.enrolled = True
    listed = [{"name": key.name, "id": key.id} for key in enrolled]
    _spool(box, "keys_enrolled", {"who": told.by, "keys": listed, "text": told.text})


# --- the configuration --------------------------------------------------------------------------------------


def _configuration(found: Found, box: Box, told: _Told, is_box: bool, keys: list[Key], new_keys: dict[str, bytes]) -> None:
    """Raises Refused, OSError."""
    _settled(box)
    good = box.store.good
    running = load_chosen_softly(box)
    mode = _mode(running, good, keys)
    verified = _signature(found, box, mode, keys, told)
    judged = _judged(box, good, signed=mode == "require")
    told.by = _who(told.by, verified, judged)
    _spool(box, "configuration_offered", {
        "who": told.by, "old": _running(box), "new": {"digest": file_digest(box.staging / stick.CONFIGURATION),
        "revision": judged.revision}, "why": judged.reason, "text": f"{told.by} offers revision {judged.revision}",
        "changed": judged.changed[:_EVENT_LINES],
    })  # fmt: skip
    told.notes += judged.notes
    if judged.problems:
        raise Refused(f"{stick.CONFIGURATION} has {len(judged.problems)} to correct", judged.problems)
    _allowed(judged, good, mode, verified, keys)
    told.found += [f"bundle {name}: {what}" for name, what in sorted(judged.bundles.items())]
    told.changed = judged.changed
    if good is not None and _same_as(good, box.staging):
        told.outcome, told.changed = "unchanged", []
        told.text = f"the stick holds what runs already: revision {good.meta.revision}, generation {good.number}"
        _spool(box, "configuration_unchanged", {"who": told.by, "old": good.told(), "new": good.told(), "text": told.text})
        return
    _apply(box, told, judged, running, is_box, new_keys)


def _settled(box: Box) -> None:
    """Nothing is on trial when this returns. Raises Refused, OSError."""
    if busy := application_on_trial(box.data_dir / "slots"):
        raise Refused(f"{busy}; then plug the stick in again")
    if box.store.trial is None:
        return
    if box.store.trial_holds():
        raise Refused("another configuration is on trial just now; plug the stick in again when that is decided")
    left = ConfigurationOnTrial(box.store, box.run_dir, box.data_dir, box.clock, who="a trial nobody ended", at_boot=True)
    left.give_up(left.left_over())  # who began it was killed; the processes may run it still


def load_chosen_softly(box: Box) -> Station | None:
    """What runs; None where nothing does or it cannot be read any more. Raises OSError."""
    try:
        return load_chosen(box.store, box.data_dir).station
    except ConfigError:  # strict_start: the box stands; a stick is how it gets up again
        return None


def _mode(running: Station | None, good: Generation | None, keys: list[Key]) -> str:
    """Whether signatures count. Where nothing can say so any more, or nothing was ever applied: `require` as soon as a key is
    enrolled, for who enrols keys wants them asked; else `warn`."""
    if running is not None and good is not None:
        return running.signature
    return "require" if keys else "warn"


def _signature(found: Found, box: Box, mode: str, keys: list[Key], told: _Told) -> Verified | None:
    """None: there is none, or nobody asks. Raises Refused."""
    if mode == "off":
        return None
    if not found.signature:
        if mode == "require":
            raise Refused(f"it is not signed, and this box takes signed configurations only; put {stick.SIGNATURES[0]} beside it")
        told.notes.append("warning: it is not signed (signature: warn)")
        return None
    raw, signed = (box.staging / stick.CONFIGURATION).read_bytes(), (box.staging / found.signature).read_bytes()
    verified = signature.verify(raw, signed, keys)
    told.found.append(f"{found.signature}: {verified.text}")
    if verified.outcome == "good":
        return verified
    # A signature that is wrong is more than none: the file is not what its author signed, by accident or not.
    if mode == "require" or verified.outcome in ("mismatch", "unreadable"):
        raise Refused(f"{found.signature}: {verified.text}")
    told.notes.append(f"warning: {verified.text} (signature: warn)")
    return verified


def _judged(box: Box, good: Generation | None, signed: bool) -> Judgement:
    """Raises Refused, OSError."""
    folder = good.folder if good else None
    try:
        return Judgement(**run_limited(
            lambda _moved: judge(box.staging, folder, box.data_dir, signed), box.clock, JUDGE_S, cpu_s=JUDGE_CPU_S,
            memory_bytes=JUDGE_BYTES,
        ))  # fmt: skip
    except ChildFailed as why:
        raise Refused(f"{stick.CONFIGURATION} and its bundles cannot be checked: {why}; make them smaller") from why
    except OSError as why:
        raise Refused(f"{stick.CONFIGURATION} and its bundles cannot be checked: {why.strerror or why}") from why


def _allowed(judged: Judgement, good: Generation | None, mode: str, verified: Verified | None, keys: list[Key]) -> None:
    """Raises Refused."""
    if good is not None and judged.station != good.meta.station:
        raise Refused(
            f"it is for station {judged.station}, and this is {good.meta.station}; plug it in there, or write this one's name"
        )
    if mode == "require" and good is not None and judged.revision < good.meta.revision:
        raise Refused(
            f"its revision is {judged.revision}, and {good.meta.revision} runs; with signature: require it cannot go back: "
            f"write revision: {good.meta.revision + 1} and sign it anew"
        )
    if judged.signature == "require" and not (verified and verified.outcome == "good"):
        enough = "sign this one too" if keys else f"enrol a key first: {stick.ENROL}/NAME.pub on the first stick of a box"
        raise Refused(f"it says signature: require and no enrolled key signed it, so no later one could be applied; {enough}")


def _who(who: str, verified: Verified | None, judged: Judgement) -> str:
    """The stick, the key that signed, and the author that the file names."""
    by_key = f", key {verified.key}" if verified and verified.key else ""
    return who + by_key + (f", author {plain(judged.author)}" if judged.author else "")


def _same_as(good: Generation, folder: Path) -> bool:
    here = (file_digest(folder / stick.CONFIGURATION), tree_digest(folder / stick.BUNDLES))
    return here == (good.digest, good.bundles)


# --- applying -----------------------------------------------------------------------------------------------


def _apply(box: Box, told: _Told, judged: Judgement, running: Station | None, is_box: bool, keys: dict[str, bytes]) -> None:
    """On trial, then kept or given up; ``keys``: enrolled with it. Raises Refused, OSError, _Stopped."""
    now_ns = box.clock.now_ns()
    why = judged.reason or "applied by a stick"
    meta = Meta(told.by, why, judged.revision, judged.station, box.clock.wall_us(now_ns), box.clock.quality())
    try:
        new = box.store.put(box.staging, meta)
        station = load(new.file, data_dir=box.data_dir)
        if keys:  # last of all that may be refused
            _enrol(keys, box, told)
    except (StoreError, ConfigError) as failed:
        raise Refused(f"it could not be stored: {failed}") from failed
    except OSError as failed:
        raise Refused(f"the box's disk did not take it ({failed.strerror}); free some room, images take most") from failed
    if is_box or _station_runs(box):
        with _to_its_end(box) as wait:
            _on_trial(replace(box, wait=wait), told, new, station, running)
    else:
        _kept_unseen(box, told, new, station)


def _station_runs(box: Box) -> bool:
    """Raises OSError."""
    state = read_state(box.run_dir)
    written_ns = state.get("written_ns") if isinstance(state, dict) else None
    return type(written_ns) is int and 0 <= box.clock.now_ns() - written_ns < _SEEN_NS


class _Stopped(Exception):
    """This process was asked to end in the middle of a trial, and the station is not there: the box goes down, or the stick was
    pulled while reportd was. What ran before runs again after either."""

    def __init__(self) -> None:
        super().__init__("the stick was pulled, or the box switched off, while the station did not answer")


@contextmanager
def _to_its_end(box: Box) -> Iterator[Callable[[int], None]]:
    """A trial that began goes on to its end, whoever pulls the stick: SIGTERM waits meanwhile. Yields how to wait; that raises
    _Stopped once this process was asked to end and the station is gone too, as when the box is switched off."""
    asked: list[int] = []
    before: dict[signal.Signals, Any] = {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        with contextlib.suppress(ValueError):  # not the main thread, which no signal reaches either
            before[number] = signal.signal(number, lambda number, _frame: asked.append(number))

    def wait(duration_ns: int) -> None:
        box.wait(duration_ns)
        if asked and not _station_runs(box):
            raise _Stopped

    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kept_unseen(box: Box, told: _Told, new: Generation, station: Station) -> None:
    """Where no station runs there is no health to wait for: a laptop, or a store that is prepared. Raises OSError."""
    old = box.store.good
    box.store.begin_trial(new, boottime_ns() + box.trial_ns)
    box.store.mark_good(essentials_of(station))
    box.store.prune()
    told.outcome, told.head = "applied", "KEPT - it will run when the station is started; no station is running here"
    told.text = f"revision {new.meta.revision} is kept as generation {new.number}; nothing runs here, so its health was not seen"
    _spool(box, "configuration_applied", {
        "who": told.by, "old": old.told() if old else None, "new": new.told(), "why": new.meta.why, "text": told.text,
        "changed": told.changed[:_EVENT_LINES],
    })  # fmt: skip


def _on_trial(box: Box, told: _Told, new: Generation, station: Station, running: Station | None) -> None:
    """Raises Refused, OSError, _Stopped."""
    before = box.store.good
    roles = changed_roles(running, station, box.data_dir)
    try:
        box.run_dir.mkdir(parents=True, exist_ok=True)
        box.store.begin_trial(new, boottime_ns() + box.trial_ns)
        # Each side writes its trial and then looks: of two that begin at once, none is judged by the other's health.
        if busy := application_on_trial(box.data_dir / "slots"):
            box.store.give_up()
            raise Refused(busy)
        begin_anew(box.run_dir, roles, new.digest)
    except StoreError as why:
        raise Refused(str(why)) from why
    except OSError as why:
        box.store.give_up()
        raise Refused(f"the processes could not be asked to begin anew ({why.strerror}); restart the box and try again") from why
    log.info("generation %d is on trial; %s begin anew", new.number, ", ".join(sorted(roles)))
    trial = ConfigurationOnTrial(box.store, box.run_dir, box.data_dir, box.clock, who=told.by, at_boot=False)
    try:
        why_not = decide(trial, box.run_dir, box.clock, box.wait)
    except (_Stopped, OSError) as why:
        trial.give_up(str(why))
        _returned(told, before, str(why))
        raise
    after = box.store.good
    if after is not None and after.number == new.number:
        told.outcome = "applied"
        told.text = f"revision {new.meta.revision} runs as generation {new.number} and is kept"
        return
    _returned(told, before, why_not or "the trial was over before it was decided")
    if before is not None and (amiss := _not_back(box, before)):
        told.text += f", but not well yet: {amiss}"


def _returned(told: _Told, before: Generation | None, why: str) -> None:
    told.outcome, told.wrong = "returned", [f"on trial: {why}"]
    told.text = "it was not kept, and there is none to go back to: every part is rejected until a configuration works"
    if before is not None:
        told.text = f"it was not kept; generation {before.number} (revision {before.meta.revision}) runs again"


def _not_back(box: Box, before: Generation) -> str:
    """What is amiss with it once it had time to come back, "" = nothing. Raises OSError, _Stopped."""
    until_ns = box.clock.now_ns() + box.back_ns
    return wait_healthy(lambda: read_state(box.run_dir), before.digest, None, until_ns, box.clock, box.wait)


# --- an update of the program -------------------------------------------------------------------------------


def _update(found: Found, box: Box, told: _Told) -> None:
    """After the configuration, which is settled by now. The update's own events are its room's; what came of it is told. Raises
    OSError, _Stopped."""
    name = f"{stick.UPDATE}/{found.update}"
    with _to_its_end(box) as wait:
        install = box.install or partial(_installed, box)
        try:
            went = install(box.staging / name, told.by, wait)
        except _Stopped as why:
            told.wrong.append(f"{name} was not kept: {why}")
            told.text, told.head = f"{told.text}; the update was not kept", ""
            told.outcome = "returned"
            raise
    told.notes.append(f"update: {went.text}")
    if went.result == "unchanged":  # a stick that was left in
        return
    if went.result == "applied":
        told.head = "APPLIED - the new version of the program is running; see below"
        return
    told.wrong.append(f"{name}: {went.text}")
    told.text = f"{told.text}; the update was {'refused' if went.result == 'refused' else 'not kept'}"
    if told.outcome in ("served", "unchanged"):
        told.outcome, told.head = went.result, ""
    else:
        told.head = "PARTLY - the configuration is running, the update of the program is not; see below"


def _installed(box: Box, path: Path, who: str, wait: Callable[[int], None]) -> update.Outcome:
    try:
        site = replace(update.site_of(box.data_dir, box.run_dir), clock=box.clock, wait=wait)
        return update.install(site, path, who, "update by stick")
    except OSError as why:
        return update.Outcome("refused", f"{path.name}: the update could not be made: {why}")


# --- telling ------------------------------------------------------------------------------------------------


def _spool(box: Box, kind: str, data: dict[str, Any]) -> None:
    """An event that the disk does not take is told in the log; what a person asked for goes on."""
    try:
        spool_event(box.data_dir, kind, data, box.clock)
    except OSError as why:
        log.error("%s could not be left for the ledger (%s): %s", kind, why, data.get("text"))


def _running(box: Box) -> dict[str, Any] | None:
    good = box.store.good
    return good.told() if good else None


def _report(told: _Told, box: Box) -> Report:
    now_ns = box.clock.now_ns()
    when = datetime.fromtimestamp(box.clock.wall_us(now_ns) // 1_000_000, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    quality = box.clock.quality()
    doubt = {"synced": "", "holdover": " (clock not synchronised)", "unset": " (clock never set: not to be believed)"}[quality]
    good = box.store.good
    return Report(
        told.outcome, told.text, when + doubt, good.meta.station if good else "no configuration yet", tuple(told.found),
        tuple(told.wrong), tuple(told.notes), tuple(told.changed), tuple(_runs_now(box)), told.head,
    )  # fmt: skip


def _runs_now(box: Box) -> list[str]:
    good = box.store.good
    if good is None:
        told = ["no configuration: every part is rejected until one is applied"]
    else:
        told = [f"{good.meta.station}, revision {good.meta.revision}, generation {good.number}, {good.digest}"]
    state = read_state(box.run_dir)
    if not isinstance(state, dict):
        return [*told, "no station is running here"]
    reject, inspect = state.get("reject"), state.get("inspect")
    told.append(f"station: {_state_told(reject, 'rejectd')}")
    told.append(f"judging: {_state_told(inspect, 'inspectd')}")
    return told


def _state_told(told: Any, name: str) -> str:
    if not isinstance(told, dict):
        return f"{name} does not answer"
    return ": ".join(str(told[key]) for key in ("state", "reason") if told.get(key))


def _support(found: Found, box: Box, told: _Told) -> list[Path]:
    """In a child: a disk may hang. What cannot be made is told, and undoes nothing of what was decided."""
    if not found.collect:
        return []
    from appliance.wiring.support import collect_support

    place = box.staging / "support"
    try:
        good, room = box.store.good, max(0, box.calls.free(box.staging) - box.limits.reserve_bytes)

        def work(_moved: Callable[[], None]) -> list[str]:
            return list(map(str, collect_support(place, good, box.run_dir, box.data_dir, box.clock, min(room, IMAGES_BYTES))))

        files = [Path(one) for one in run_limited(work, box.clock, SUPPORT_S)]
        sizes = [path.stat().st_size for path in files]
    except (ChildFailed, OSError) as why:
        shutil.rmtree(place, ignore_errors=True)  # the ledger needs the room
        told.notes.append(f"the support bundle could not be made: {getattr(why, 'strerror', None) or why}")
        return []
    if room < IMAGES_BYTES:
        told.notes.append(f"of the stored images at most {room >> 20} MiB: the box's disk has no room to copy more of them")
    for path, size in zip(files, sizes):
        told.notes.append(
            f"{path.name}, {size} bytes, is written after this file; if it is not there or shorter, the stick was "
            "full or was pulled too early"
        )
    return files


def _write_back(source: Source, result: bytes, files: list[Path], box: Box, who: str, told: _Told | None = None) -> None:
    """What cannot be written is told, and changes nothing of what was applied. Only now the lamp may say that the stick can be
    pulled; without ``told`` it is another stick's."""
    try:
        failed = stick.write_stick(source, result, files, box.clock, box.limits)
    except StickDead as why:
        failed = str(why)
    text = f"the answer is on {who}"
    if failed:
        log.warning("%s: %s", source.name or source.place, failed)
        text = f"the answer could not be written to {who}: {plain(failed)}"
    data: dict[str, Any] = {"who": who, "text": text}
    if told is not None:
        data |= {"device": told.device, "went": told.outcome, "lamp": "slow" if told.went_well else "fast"}
    if failed or told is not None:
        _spool(box, "stick_not_written" if failed else "stick_answered", data)
