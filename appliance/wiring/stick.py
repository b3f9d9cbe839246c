"""The dialogue with whoever plugs a stick in: read, judge, apply on trial, keep or return, and say so on the stick.

``serve`` is the whole of it, in order. Nothing is changed before everything on the stick is found good; from the moment that
a trial begins, pulling the stick or stopping this process changes nothing of what comes of it. Its rooms: ``stick_rights``
(may it?), ``stick_judge`` (is it good?), ``stick_trial`` (does it run?), ``stick_answer`` (what is written back)."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

from appliance.box import stick
from appliance.box.child import ChildFailed, run_limited
from appliance.box.result import compose
from appliance.box.signature import Key
from appliance.box.slots_doer import application_on_trial
from appliance.box.stick import Found, Source, StickDead
from appliance.box.stick_reader import read_stick
from appliance.box.store import Generation, file_digest, tree_digest
from appliance.box.words import plain
from appliance.wiring import stick_rights as rights
from appliance.wiring.settle import ConfigurationOnTrial
from appliance.wiring.stick_answer import report, support_files, write_back
from appliance.wiring.stick_box import EVENT_LINES, Box, Refused, Told, running_now, tell
from appliance.wiring.stick_judge import Judgement, judge
from appliance.wiring.stick_trial import Stopped, apply_configuration, apply_update

log = logging.getLogger("appliance.stick")

JUDGE_CPU_S = 60  # the worst file of 1 MiB takes 5 s on a laptop core, 512 MiB of models a second or two
JUDGE_BYTES = 2 << 30  # address space; the worst file takes 0.2 GB of it
JUDGE_S = 300.0  # its unit gives it less than half of a core
_LOOK_NS = 200_000_000  # how soon a stick that waits sees that the one before it is over
_LONGEST_PATH = 4096
_TEXT_PROBLEMS = 3  # in the sentence for ledger and broker; all stand in RESULT.txt


def serve(source: Source, box: Box, out: TextIO, only_keys: bool = False) -> int:
    """One stick, from plugged in to RESULT.txt. ``only_keys``: enrol what lies in enrol/ and nothing else. Exit 0: applied, or
    there was nothing to do; 2: refused, returned or unreadable, or the box's own disk failed. Raises OSError where that fails so
    that not even what runs can be told."""
    box.data_dir.mkdir(parents=True, exist_ok=True)
    who = f"stick {source.name}" if source.device else f"folder {source.name or source.place}"
    told = Told(by=who, device=str(source.device or ""))

    def inserted(text: str) -> None:
        tell(box, "stick_inserted", {"who": who, "device": told.device, "answers": True, "text": text})

    with _alone(box, source.device, lambda: inserted(f"{who} waits: what the one before it began is not over yet")) as alone:
        if not alone:
            return _busy(source, box, out)
        inserted(f"{who} is being read")
        stuck = False
        try:
            files = _worked_on(source, box, told, only_keys)
            result = compose(report(told, box))
            write_back(source, result, files, box, who, told)
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
    tell(box, "stick_unreadable", {"who": who, "device": str(device or ""), "why": why, "text": text})
    out.write(f"{text}\n")
    return 2


def _worked_on(source: Source, box: Box, told: Told, only_keys: bool) -> list[Path]:
    """Read it and do what it asks; ``told`` holds what came of it, however it ends. Returns what is written beside RESULT.txt.
    Raises StickDead."""
    try:
        refused = (lambda _found: False) if only_keys else partial(rights.refused_already, box)
        found = read_stick(source, box.staging, box.clock, box.limits, box.calls, refused)
        _answered(found, box, told, is_box=source.device is not None, only_keys=only_keys)
        return support_files(found, box, told)
    except Stopped as why:
        log.warning("%s", why)
    except OSError as why:
        log.error("the box's own disk fails: %s", why)
        told.outcome, told.head = "refused", "FAILED - the box's own disk does not work; what runs stands below"
        told.text = told.text or "the box's own disk failed before it was decided"
        told.wrong.append(f"the box's own disk: {why}")
    return []


@contextmanager
def _alone(box: Box, device: Path | None, waits: Callable[[], None]) -> Iterator[bool]:
    """One stick at a time, the lock says which. A stick waits for as long as that one is pulled, which only ends what it began;
    ``waits`` is called when it has to."""
    descriptor = os.open(box.data_dir / "stick.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    looks = 0
    while not _locked(descriptor):
        # Not at the first look: who has just locked it may not have written yet. Once it was told to stay in, it has its turn.
        if looks < 2 and (device is None or not _is_pulled(os.fsdecode(os.pread(descriptor, _LONGEST_PATH, 0)))):
            os.close(descriptor)
            yield False
            return
        looks += 1
        if looks == 2:
            waits()
        box.wait(_LOOK_NS)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, os.fsencode(device or ""), 0)
        yield True
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that cannot be ended has it too, and would keep the lock
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_pulled(device: str) -> bool:
    """A folder never is."""
    return bool(device) and not os.path.exists(device)


def _busy(source: Source, box: Box, out: TextIO) -> int:
    """No event: lamp and alarms are the other stick's."""
    text = "another stick is being worked on; pull this one, and plug it in again when that one is done"
    result = compose(report(Told(outcome="refused", text=text), box))
    write_back(source, result, [], box, source.name)
    out.write(f"{text}\n")
    return 2


def _answered(found: Found, box: Box, told: Told, is_box: bool, only_keys: bool) -> None:
    """Do what the stick asks; whatever comes of it is in the ledger when this returns. Raises OSError, Stopped."""
    told.found = [f"{path}, {size} bytes" for path, size in found.sizes.items() if not path.startswith(stick.BUNDLES)]
    told.found += _bundles_found(found)
    told.notes = list(found.notes)
    try:
        _answer(found, box, told, is_box, only_keys)
    except Refused as why:
        told.outcome, told.text, told.wrong = "refused", str(why), why.wrong
        if told.enrolled:
            told.head = "REFUSED - the keys are enrolled, the configuration was not taken"
        tell(box, "configuration_refused", {
            "who": told.by, "old": running_now(box), "why": str(why), "text": _sentence(why), "problems": why.wrong[:EVENT_LINES],
        })  # fmt: skip


def _sentence(why: Refused) -> str:
    """For ledger and broker: with the first few mistakes."""
    more = f" (and {len(why.wrong) - _TEXT_PROBLEMS} more)" if len(why.wrong) > _TEXT_PROBLEMS else ""
    return plain(": ".join(filter(None, (str(why), "; ".join(why.wrong[:_TEXT_PROBLEMS]))))) + more


def _answer(found: Found, box: Box, told: Told, is_box: bool, only_keys: bool) -> None:
    """Raises Refused, OSError."""
    if found.problems:
        raise Refused("the stick cannot be taken as it is", found.problems)
    keys, new_keys = rights.keys_of(found, box, told)
    has_file = stick.CONFIGURATION in found.sizes
    if only_keys or not has_file:
        if new_keys:
            rights.enrol_new(new_keys, box, told)
        elif not (found.keys or found.collect or found.update) or only_keys and not found.keys:
            raise Refused(_nothing_there(found, only_keys))
        told.outcome, told.text = "served", told.text or "the stick asked for no configuration"
        if not found.update:
            tell(box, "stick_served", {"who": told.by, "text": told.text})
    else:
        _configuration(found, box, told, is_box, keys, new_keys)
    if found.update and not only_keys and told.outcome != "returned":
        apply_update(found, box, told)


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


# --- the configuration --------------------------------------------------------------------------------------


def _configuration(found: Found, box: Box, told: Told, is_box: bool, keys: list[Key], new_keys: dict[str, bytes]) -> None:
    """Raises Refused, OSError."""
    _settled(box)
    good = box.store.good
    running = rights.what_runs(box)
    mode = rights.mode_of(running, good, keys)
    verified = rights.signed_by(found, box, mode, keys, told)
    judged = _judged(box, good, signed=mode == "require")
    told.by = rights.called(told.by, verified, judged)
    tell(box, "configuration_offered", {
        "who": told.by, "old": running_now(box), "new": {"digest": file_digest(box.staging / stick.CONFIGURATION),
        "revision": judged.revision}, "why": judged.reason, "text": f"{told.by} offers revision {judged.revision}",
        "changed": judged.changed[:EVENT_LINES],
    })  # fmt: skip
    told.notes += judged.notes
    if judged.problems:
        raise Refused(f"{stick.CONFIGURATION} has {len(judged.problems)} to correct", judged.problems)
    rights.check_allowed(judged, good, mode, verified, keys)
    told.found += [f"bundle {name}: {what}" for name, what in sorted(judged.bundles.items())]
    told.changed = judged.changed
    if good is not None and _same_as(good, box.staging):
        told.outcome, told.changed = "unchanged", []
        told.text = f"the stick holds what runs already: revision {good.meta.revision}, generation {good.number}"
        tell(box, "configuration_unchanged", {"who": told.by, "old": good.told(), "new": good.told(), "text": told.text})
        return
    apply_configuration(box, told, judged, running, is_box, new_keys)


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


def _same_as(good: Generation, folder: Path) -> bool:
    here = (file_digest(folder / stick.CONFIGURATION), tree_digest(folder / stick.BUNDLES))
    return here == (good.digest, good.bundles)
