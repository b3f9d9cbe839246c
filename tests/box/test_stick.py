"""The stick's dialogue: on trial by health, kept or returned, told; and nothing that it meets half-applies anything."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.box import manifest, mount, stick, support
from appliance.box.child import ChildFailed, run_limited
from appliance.box.signature import enrol
from appliance.box.spool import spool_event
from appliance.box.stick import Calls, Limits, Source, StickDead, name_of_device
from appliance.box.stick_reader import read_stick
from appliance.box.stick_writer import write_stick
from appliance.clock import SystemClock, boottime_ns
from appliance.report.dialogue import Dialogue, remembered
from appliance.wiring import update
from appliance.wiring.stick import serve, unreadable
from appliance.wiring.stick_box import Box
from tests.box.stick_rig import BUNDLE, ROOT, Rig, key, pem, result, yaml
from tests.box.sticks import Maker
from tests.box.test_signature import minisign, minisign_key

CLOCK = SystemClock()
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A box that never had a configuration, and no station running."""
    return Rig(tmp_path / "box")


@pytest.fixture
def running(rig: Rig, tmp_path: Path) -> Rig:
    """Revision 5 runs, ``signature: warn``."""
    rig.give_first(yaml(5, fail_at=0.75), tmp_path / "first")
    rig.forget_events()
    return rig.with_station()


@pytest.fixture
def strict(rig: Rig, tmp_path: Path) -> Rig:
    """Revision 5 runs, ``signature: require``, ada's key enrolled."""
    rig.give_first(yaml(5, "require", fail_at=0.75), tmp_path / "first", keys=True)
    rig.forget_events()
    return rig.with_station()


def stick_of(folder: Path, text: str, bundle: bool = False) -> Path:
    folder.mkdir()
    Maker(text, BUNDLE).write(folder, bundle=bundle)
    return folder


def signed(folder: Path, text: str, by: Ed25519PrivateKey | None = None, bundle: bool = False) -> Path:
    folder.mkdir()
    Maker(text, BUNDLE, by or key()).write(folder, bundle=bundle)
    return folder


# --- on trial -----------------------------------------------------------------------------------------------


def test_a_good_stick_runs_on_trial_is_kept_and_told(running: Rig, tmp_path: Path) -> None:
    folder = stick_of(tmp_path / "s", yaml(6))
    assert running.serve(folder) == 0
    good = running.store.good
    assert good is not None and good.meta.revision == 6 and running.store.trial is None
    assert running.kinds() == ["stick_inserted", "configuration_offered", "configuration_applied", "stick_answered"]
    assert running.lamps() == ["on", "on", "on", "slow"]
    applied = running.events()[-2]["data"]
    assert (applied["old"]["revision"], applied["new"]["revision"], applied["why"]) == (5, 6, "fewer false rejects")
    assert "author Ada" in applied["who"] and str(folder) in applied["who"]
    assert "recipes.cap-28mm.inspect[0].fail_at: 0.75 -> 0.6 (line 54)" in running.events()[1]["data"]["changed"]
    text = result(folder)
    assert text.startswith("Result: APPLIED - the new configuration is running\n")
    assert "revision 6, generation 2" in text and "station: running" in text and "judging: ready" in text


def test_only_who_is_concerned_begins_anew(running: Rig, tmp_path: Path) -> None:
    assert running.station is not None
    assert running.serve(stick_of(tmp_path / "s", yaml(6))) == 0
    assert set(running.station.restarts) == {"inspect", "report"}  # a threshold is nothing to rejectd, and the gate moves on
    digests = set(running.station.runs.values())
    assert running.store.good is not None and digests == {running.store.good.digest}


def test_a_configuration_that_does_not_work_here_is_returned_and_the_old_one_seen_running(running: Rig, tmp_path: Path) -> None:
    assert running.station is not None
    folder = stick_of(tmp_path / "s", yaml(6))
    before = running.store.good
    running.station.sick = {stick_digest(folder): "camera top: no such device"}
    assert running.serve(folder) == 2
    assert running.store.good == before and running.store.trial is None
    assert before is not None and set(running.station.runs.values()) == {before.digest}
    assert running.kinds() == ["stick_inserted", "configuration_offered", "configuration_returned", "stick_answered"]
    assert running.lamps() == ["on", "on", "on", "fast"]
    text = result(folder)
    assert text.startswith("Result: RETURNED") and "camera top: no such device" in text
    assert "generation 1 (revision 5) runs again" in text


def stick_digest(folder: Path) -> str:
    from appliance.box.store import file_digest

    return file_digest(folder / "appliance.yaml")


def test_a_station_that_says_nothing_keeps_what_it_had(running: Rig, tmp_path: Path) -> None:
    assert running.station is not None
    running.station.silent = True
    before = running.state()
    assert running.serve(stick_of(tmp_path / "s", yaml(6))) == 2
    after = running.state()
    assert (after["good"], after["chosen"], after["trial"]) == (before["good"], before["chosen"], None)
    assert "reportd does not answer" in result(tmp_path / "s")


def test_the_first_configuration_that_does_not_work_leaves_none(rig: Rig, tmp_path: Path) -> None:
    rig.with_station()
    assert rig.station is not None
    folder = stick_of(tmp_path / "s", yaml(6))
    rig.station.sick = {stick_digest(folder): "no camera"}
    assert rig.serve(folder) == 2
    assert rig.store.good is None and "every part is rejected until a configuration works" in result(folder)


def test_what_runs_already_changes_nothing_and_nobody_begins_anew(running: Rig, tmp_path: Path) -> None:
    assert running.station is not None
    before = running.state()
    assert running.serve(tmp_path / "first") == 0
    assert running.state() == before and running.station.restarts == []
    assert running.kinds() == ["stick_inserted", "configuration_offered", "configuration_unchanged", "stick_answered"]
    assert result(tmp_path / "first").startswith("Result: NOTHING TO CHANGE")


def test_the_same_stick_twice_is_applied_once(running: Rig, tmp_path: Path) -> None:
    folder = stick_of(tmp_path / "s", yaml(6), bundle=True)
    assert running.serve(folder) == 0 and running.serve(folder) == 0
    assert running.kinds().count("configuration_applied") == 1 and len(running.store.generations()) == 2


def test_while_another_one_is_on_trial_a_stick_waits_outside(running: Rig, tmp_path: Path) -> None:
    good = running.store.good
    assert good is not None
    running.store.begin_trial(good, boottime_ns() + 10**12)
    before = running.state()
    assert running.serve(stick_of(tmp_path / "s", yaml(6))) == 2
    assert running.state() == before and "on trial just now" in result(tmp_path / "s")


def test_an_update_that_goes_on_trial_in_the_same_moment_is_seen(
    running: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, answers = running.state(), ["", "an update is on trial just now"]
    for room in ("stick", "stick_trial"):
        monkeypatch.setattr(f"appliance.wiring.{room}.application_on_trial", lambda _slots: answers.pop(0))
    assert running.serve(stick_of(tmp_path / "s", yaml(6))) == 2
    assert running.store.trial is None and running.store.good and running.store.good.number == before["good"]
    assert "an update is on trial just now" in result(tmp_path / "s") and not answers
    assert running.station and running.station.restarts == [], "nobody was asked to begin anew"


def test_a_trial_that_nobody_ended_is_given_up_first(running: Rig, tmp_path: Path) -> None:
    """Who began it was killed; the processes run it still, and must not be taken for running the good one."""
    assert running.station is not None
    assert running.serve(stick_of(tmp_path / "s", yaml(6, fail_at=0.4))) == 0
    new = running.store.generations()[0]
    running.store.begin_trial(new, boottime_ns() - 1)
    running.station.restarts.clear()
    assert running.serve(stick_of(tmp_path / "t", yaml(7))) == 0
    assert "configuration_returned" in running.kinds()
    assert running.store.good is not None and running.store.good.meta.revision == 7


# --- pulled, stopped, switched off ----------------------------------------------------------------------------


def test_pulled_at_every_read_nothing_is_half_applied(strict: Rig, tmp_path: Path) -> None:
    folder = signed(tmp_path / "s", yaml(6, "require"), bundle=True)
    before, reads = strict.state(), 0
    while True:
        calls = Calls(read=_fails_after(reads))
        if strict.serve(folder, replace(strict.box, calls=calls)) == 0:
            break
        assert strict.state() == before, reads
        assert "was pulled" in result(folder) and "Input/output error" in result(folder)
        reads += 1
    assert reads >= 6  # the configuration, its signature and three files, each to its end
    assert strict.store.good is not None and strict.store.good.meta.revision == 6


def _fails_after(reads: int) -> Callable[[int, int], bytes]:
    left = [reads]

    def read(descriptor: int, most: int) -> bytes:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.read(descriptor, most)

    return read


def test_pulled_at_every_opening_nothing_is_half_applied(strict: Rig, tmp_path: Path) -> None:
    folder = signed(tmp_path / "s", yaml(6, "require"), bundle=True)
    before = strict.state()
    for opened in range(7):
        assert strict.serve(folder, replace(strict.box, calls=Calls(open=_opens(opened)))) == 2, opened
        assert strict.state() == before, opened
        assert "No such device" in result(folder)
    assert strict.serve(folder, replace(strict.box, calls=Calls(open=_opens(7)))) == 0


def _opens(times: int) -> Callable[..., int]:
    left = [times]

    def opened(*given: object, **named: object) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return os.open(*given, **named)  # type: ignore[arg-type]

    return opened


def test_a_stick_that_answers_nothing_any_more_ends_in_time_and_is_told(running: Rig, tmp_path: Path) -> None:
    """Its read waits for ever, as a dead stick's does; the child is ended, and the dialogue goes on."""
    folder, before = stick_of(tmp_path / "s", yaml(6)), running.state()
    reading, writing = os.pipe()
    hangs = Calls(read=lambda descriptor, most: os.read(reading, most))
    box = replace(running.box, clock=CLOCK, calls=hangs, limits=Limits(stall_s=0.3))
    assert running.serve(folder, box) == 2
    os.close(reading)
    os.close(writing)
    assert running.kinds() == ["stick_inserted", "stick_unreadable"] and running.state() == before
    assert "nothing moved for 0.3 s" in running.events()[-1]["data"]["text"]
    assert not (folder / "RESULT.txt").exists() and not (running.data / "stick").exists()


def test_a_slow_stick_ends_too(running: Rig, tmp_path: Path) -> None:
    """It moves a little, always; the whole has its own limit."""
    folder = stick_of(tmp_path / "s", yaml(6))
    reading, writing = os.pipe()

    def drip(descriptor: int, most: int) -> bytes:
        import select

        select.select([reading], [], [], 0.05)
        return b"#"

    box = replace(running.box, clock=CLOCK, calls=Calls(read=drip), limits=Limits(stall_s=5, whole_s=0.5))
    assert running.serve(folder, box) == 2
    os.close(reading)
    os.close(writing)
    assert "longer than 0.5 s" in running.events()[-1]["data"]["text"]


@pytest.mark.parametrize(("given", "word"), [(100, "only 100"), (None, "gives more")])
def test_a_size_that_lies_is_found_by_counting(running: Rig, tmp_path: Path, given: int | None, word: str) -> None:
    """The folder's entry says one size and the file has another, as a damaged FAT does. None: it never ends."""
    folder, before = stick_of(tmp_path / "s", yaml(6)), running.state()
    left = [given]

    def read(_descriptor: int, most: int) -> bytes:
        if left[0] is None:
            return b"#" * most
        part = b"#" * min(most, left[0])
        left[0] -= len(part)
        return part

    box = replace(running.box, clock=CLOCK, calls=Calls(read=read), limits=Limits(whole_s=10))
    assert running.serve(folder, box) == 2
    assert running.state() == before
    assert running.kinds()[-2:] == ["configuration_refused", "stick_answered"] and word in result(folder)
    assert "appliance.yaml is said to have" in result(folder)


def test_pulled_during_the_trial_it_goes_on_to_its_end(running: Rig, tmp_path: Path) -> None:
    assert running.station is not None
    folder = stick_of(tmp_path / "s", yaml(6))

    def pull() -> None:
        if folder.exists():
            shutil.rmtree(folder)
            os.kill(os.getpid(), signal.SIGTERM)  # systemd stops the unit of a device that went

    running.station.each_step = pull
    assert running.serve(folder) == 0
    assert running.store.good is not None and running.store.good.meta.revision == 6
    assert running.kinds()[-2:] == ["configuration_applied", "stick_not_written"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_pulled_while_the_trial_keeps_reportd_down_it_is_given_up(running: Rig, tmp_path: Path) -> None:
    """As when the box is switched off: nobody can tell the two apart, and the old configuration is right after both."""
    assert running.station is not None
    folder, station = stick_of(tmp_path / "s", yaml(6)), running.station

    def off() -> None:
        if not station.silent:
            station.silent = True
            os.kill(os.getpid(), signal.SIGTERM)

    station.each_step = off
    assert running.serve(folder) == 2
    assert running.store.good is not None and running.store.good.meta.revision == 5
    assert running.store.trial is None and running.store.owed is None
    assert running.kinds() == ["stick_inserted", "configuration_offered", "configuration_returned", "stick_answered"]
    assert result(folder).startswith("Result: RETURNED") and "generation 1 (revision 5) runs again" in result(folder)
    station.silent, station.each_step = False, lambda: None
    station.step()
    assert set(station.runs.values()) == {running.store.good.digest}


def test_the_lamp_says_done_once_the_answer_is_written(running: Rig, tmp_path: Path) -> None:
    folder = stick_of(tmp_path / "s", yaml(6))
    assert running.serve(folder) == 0
    last = sorted((running.data / "spool").iterdir())[-1]
    assert last.stat().st_mtime_ns >= (folder / "RESULT.txt").stat().st_mtime_ns and running.lamps()[-2:] == ["on", "slow"]


def test_an_answer_that_cannot_be_written_is_waited_for_no_longer(running: Rig, tmp_path: Path) -> None:
    folder = stick_of(tmp_path / "s", yaml(6))
    for name in ("RESULT.txt", "APPLIANCE-RESULT.txt"):
        (folder / name).mkdir()
    assert running.serve(folder) == 0 and running.lamps()[-2:] == ["on", "slow"]


def test_pulling_a_second_stick_leaves_the_firsts_lamp_and_alarm(running: Rig, tmp_path: Path) -> None:
    first = Source(stick_of(tmp_path / "s", yaml(6) + "x: 1\n"), Path("/dev/none1"))
    assert serve(first, running.box, io.StringIO()) == 2  # there is no such device
    assert running.lamps()[-1] == "fast"
    spool_event(running.data, "stick_removed", {"device": "/dev/none2"})
    assert running.lamps()[-1] == "fast"
    spool_event(running.data, "stick_removed", {"device": "/dev/none1"})
    assert running.lamps()[-1] == "off"


def test_another_stick_that_cannot_be_read_waits_for_the_lamp_of_one_being_worked_on(running: Rig, tmp_path: Path) -> None:
    told = Dialogue().heard("stick_inserted", {"device": "/dev/sda1", "answers": True}, "")
    other = {"device": "/dev/sdb", "text": "no FAT"}
    behind = told.heard("stick_unreadable", other, "")
    assert (behind.lamp, behind.alarms, behind.device) == ("on", {}, "/dev/sda1")
    assert behind.heard("stick_removed", other, "") == told, "it is gone, and needs no alarm any more"
    then = behind.heard("stick_answered", {"lamp": "slow"}, "").heard("stick_removed", {"device": "/dev/sda1"}, "")
    assert (then.lamp, then.alarms, then.device) == ("fast", {"stick_unreadable": "no FAT"}, "/dev/sdb")
    assert then.heard("stick_removed", other, "") == replace(told, lamp="off", device="", awaited=False)
    assert told.heard("stick_not_written", {"text": "a third, busy"}, "") == told
    after = told.heard("stick_answered", {"lamp": "slow"}, "").heard("stick_unreadable", other, "")
    assert (after.lamp, after.heard("stick_removed", {"device": "/dev/sda1"}, "").lamp) == ("fast", "fast")
    assert after.heard("stick_removed", other, "").lamp == "off"


def test_what_a_version_before_remembered_of_a_stick_still_counts() -> None:
    """An update by stick: reportd begins anew while the lamp is on, and the old version's doer never says that it answered."""
    old = {"lamp": "on", "alarms": {}, "result": "", "text": "", "at": None}
    told = remembered(old).heard("update_applied", {}, "")
    assert told.lamp == "slow" and told.heard("stick_removed", {"device": "/dev/sda1"}, "").lamp == "off"


def test_a_child_that_cannot_be_ended_keeps_no_other_stick_waiting(running: Rig, tmp_path: Path) -> None:
    """It was forked while the stick was worked on, and waits in the kernel for ever."""
    assert running.station is not None
    reading, writing = os.pipe()
    children: list[int] = []

    def fork_one_that_hangs() -> None:
        if not children:
            children.append(os.fork())
            if children[0] == 0:
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)

    running.station.each_step = fork_one_that_hangs
    assert running.serve(stick_of(tmp_path / "s", yaml(6))) == 0
    assert running.serve(stick_of(tmp_path / "t", yaml(7))) == 0, running.said
    os.close(writing)
    os.close(reading)
    os.waitpid(children[0], 0)


def test_a_stick_that_waits_has_the_lamp_and_what_is_told_of_the_one_before_leaves_it() -> None:
    first, second = {"device": "/dev/appliance/stick/sda1.17"}, {"device": "/dev/appliance/stick/sda1.18"}
    told = Dialogue().heard("stick_inserted", {**first, "answers": True}, "")
    told = told.heard("stick_inserted", {**second, "answers": True}, "")
    for kind in ("configuration_applied", "stick_not_written", "stick_removed"):
        told = told.heard(kind, {**first, "lamp": "slow"}, "")
    assert (told.lamp, told.device, told.awaited) == ("on", second["device"], True)
    assert told.heard("stick_answered", {**second, "lamp": "slow"}, "").lamp == "slow"


def test_a_stick_waits_for_what_a_pulled_one_began(running: Rig, tmp_path: Path) -> None:
    looks: list[int] = []
    with (running.data / "stick.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("/dev/none1")
        lock.flush()

        def wait(_duration_ns: int) -> None:
            looks.append(len(running.kinds()))
            if len(looks) == 3:
                fcntl.flock(lock, fcntl.LOCK_UN)

        source = Source(tmp_path / "at", Path("/dev/none2"), "two")
        assert serve(source, replace(running.box, wait=wait), io.StringIO()) == 2  # there is no such device
    assert looks == [0, 1, 1] and running.kinds() == ["stick_inserted", "stick_inserted", "stick_unreadable"]
    texts = [event["data"]["text"] for event in running.events()]
    assert "waits: what the one before it began is not over yet" in texts[0] and "is being read" in texts[1]
    assert (running.data / "stick.lock").read_text() == "/dev/none2", "whose turn it is"


def test_a_stick_does_not_wait_for_one_that_is_in(running: Rig, tmp_path: Path) -> None:
    with (running.data / "stick.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("/dev/null")
        lock.flush()
        said, never = io.StringIO(), replace(running.box, wait=lambda _ns: pytest.fail("it waited"))
        assert serve(Source(tmp_path / "at", Path("/dev/none2"), "two"), never, said) == 2
    assert "another stick is being worked on" in said.getvalue() and "stick_inserted" not in running.kinds()


def test_two_sticks_at_once_are_one_after_the_other(running: Rig, tmp_path: Path) -> None:
    assert running.station is not None
    first, second = stick_of(tmp_path / "s", yaml(6)), stick_of(tmp_path / "t", yaml(7))
    seen: list[int] = []

    def meanwhile() -> None:
        if not seen:
            seen.append(serve(Source(second), running.box, io.StringIO()))

    running.station.each_step = meanwhile
    assert running.serve(first) == 0 and seen == [2]
    assert running.store.good is not None and running.store.good.meta.revision == 6
    assert "another stick is being worked on" in result(second)
    assert running.kinds().count("stick_inserted") == 1


# --- signatures, keys, revisions --------------------------------------------------------------------------------


def test_on_a_fresh_box_keys_come_first_and_with_a_configuration_that_they_signed(rig: Rig, tmp_path: Path) -> None:
    folder = signed(tmp_path / "s", yaml(1, "require"))
    (folder / "enrol").mkdir()
    (folder / "enrol" / "ada.pub").write_bytes(pem(key()))
    assert rig.serve(folder) == 0
    assert [path.name for path in (rig.data / "keys").iterdir()] == ["ada.pub"]
    assert rig.kinds() == ["stick_inserted", "configuration_offered", "keys_enrolled", "configuration_applied", "stick_answered"]
    assert "enrolled: ada" in result(folder)
    assert rig.serve(folder) == 0  # again: they are enrolled already, and nothing is to change
    assert "enrolled already" in result(folder)


def test_keys_of_a_stick_whose_configuration_they_did_not_sign_are_not_enrolled(rig: Rig, tmp_path: Path) -> None:
    folder = signed(tmp_path / "s", yaml(1), by=Ed25519PrivateKey.generate())
    (folder / "enrol").mkdir()
    (folder / "enrol" / "ada.pub").write_bytes(pem(key()))
    assert rig.serve(folder) == 2
    assert not (rig.data / "keys").exists() and rig.store.good is None


def test_keys_alone_are_enrolled_and_the_first_configuration_then_needs_one(rig: Rig, tmp_path: Path) -> None:
    only = tmp_path / "keys"
    (only / "enrol").mkdir(parents=True)
    (only / "enrol" / "ada.pub").write_bytes(minisign_key(key()))
    assert rig.serve(only, only_keys=True) == 0 and rig.kinds()[-2:] == ["stick_served", "stick_answered"]
    assert rig.serve(stick_of(tmp_path / "unsigned", yaml(1))) == 2
    assert "takes signed configurations only" in result(tmp_path / "unsigned")
    assert rig.serve(signed(tmp_path / "signed", yaml(1))) == 0


def test_after_a_configuration_was_applied_no_key_is_enrolled(running: Rig, tmp_path: Path) -> None:
    for only_keys in (False, True):
        folder = signed(tmp_path / f"s{only_keys}", yaml(6))
        (folder / "enrol").mkdir()
        (folder / "enrol" / "ada.pub").write_bytes(pem(key()))
        before = running.state()
        assert running.serve(folder, only_keys=only_keys) == 2
        assert running.state() == before and "at the first start only" in result(folder)


def test_a_box_cannot_lock_itself_out(running: Rig, tmp_path: Path) -> None:
    folder = signed(tmp_path / "s", yaml(6, "require"))
    assert running.serve(folder) == 2
    assert "no later one could be applied" in result(folder)


def test_require_cannot_be_switched_off_without_a_signature(strict: Rig, tmp_path: Path) -> None:
    assert strict.serve(stick_of(tmp_path / "s", yaml(6, "off"))) == 2
    assert strict.serve(signed(tmp_path / "t", yaml(6, "off"))) == 0


@pytest.mark.parametrize(("revision", "code"), [(4, 2), (5, 0), (6, 0)])
def test_a_revision_does_not_go_back_under_require(strict: Rig, tmp_path: Path, revision: int, code: int) -> None:
    assert strict.serve(signed(tmp_path / "s", yaml(revision, "require"))) == code


def test_without_require_it_may_and_is_told(running: Rig, tmp_path: Path) -> None:
    assert running.serve(stick_of(tmp_path / "s", yaml(4))) == 0
    assert "revision: 5 -> 4" in result(tmp_path / "s")


@pytest.mark.parametrize("how", ["not signed", "by a stranger", "altered"])
def test_of_a_stick_that_its_signature_refuses_no_model_and_no_update_is_copied(strict: Rig, tmp_path: Path, how: str) -> None:
    folder = stick_of(tmp_path / "s", yaml(6), bundle=True)
    raw = (folder / "appliance.yaml").read_bytes()
    if how != "not signed":
        private = key() if how == "altered" else Ed25519PrivateKey.generate()
        (folder / "appliance.yaml.sig").write_bytes(private.sign(raw + (b"#" if how == "altered" else b"")))
    (folder / "update").mkdir()
    (folder / "update/appliance-2.bundle").write_bytes(b"an update")
    opened: list[str] = []

    def opening(name: str, *more: int, **how: int) -> int:
        opened.append(name)
        return os.open(name, *more, **how)

    assert strict.serve(folder, replace(strict.box, calls=Calls(open=opening))) == 2
    assert set(opened) <= {"appliance.yaml", "appliance.yaml.sig", "enrol"}
    assert "update and bundles not read" in result(folder) and "sign" in result(folder)


def test_with_no_signature_asked_all_of_it_is_read_and_judged(running: Rig, tmp_path: Path) -> None:
    folder = stick_of(tmp_path / "s", yaml(6) + "x: 1\n", bundle=True)
    assert running.serve(folder) == 2 and "not read" not in result(folder)


def test_warn_takes_what_is_not_signed_and_refuses_what_is_signed_wrongly(running: Rig, tmp_path: Path) -> None:
    enrol(running.data / "keys", {"ada": minisign_key(key())})
    damaged = signed(tmp_path / "damaged", yaml(6))
    (damaged / "appliance.yaml").write_bytes((damaged / "appliance.yaml").read_bytes().replace(b"0.6", b"0.9"))
    before = running.state()
    assert running.serve(damaged) == 2 and running.state() == before
    stranger = stick_of(tmp_path / "stranger", yaml(6))
    raw = (stranger / "appliance.yaml").read_bytes()
    (stranger / "appliance.yaml.minisig").write_bytes(minisign(Ed25519PrivateKey.generate(), raw, True, number=b"stranger"))
    assert running.serve(stranger) == 0 and "warning: it is signed by key" in result(stranger)
    assert running.serve(stick_of(tmp_path / "plain", yaml(7))) == 0 and "warning: it is not signed" in result(tmp_path / "plain")


def test_off_asks_nobody(rig: Rig, tmp_path: Path) -> None:
    rig.give_first(yaml(5, "off"), tmp_path / "first")
    folder = stick_of(tmp_path / "s", yaml(6, "off", fail_at=0.5))
    (folder / "appliance.yaml.sig").write_bytes(b"nothing")
    assert rig.serve(folder) == 0


def test_where_the_running_one_cannot_be_read_any_more_enrolled_keys_still_count(strict: Rig, tmp_path: Path) -> None:
    good = strict.store.good
    assert good is not None
    good.file.write_text("version: 1\n")
    assert strict.serve(stick_of(tmp_path / "s", yaml(9))) == 2
    assert "signed configurations only" in result(tmp_path / "s")
    assert strict.serve(signed(tmp_path / "old", yaml(4, "require"))) == 2
    assert strict.serve(signed(tmp_path / "t", yaml(9, "require"))) == 0


# --- bundles ----------------------------------------------------------------------------------------------------


def other_bundle(folder: Path) -> Path:
    """One that did not come with the program."""
    shutil.copytree(BUNDLE, folder)
    return folder


def test_a_bundle_that_is_here_goes_on_where_the_stick_brings_none(rig: Rig, tmp_path: Path) -> None:
    maker = Maker(yaml(1).replace("bundle: cap-28mm", "bundle: mine"), other_bundle(tmp_path / "mine"))
    first = tmp_path / "first"
    first.mkdir()
    maker.write(first, bundle=True)
    assert rig.serve(first) == 0, rig.said
    second = stick_of(tmp_path / "second", maker.yaml.replace("revision: 1", "revision: 2"))
    assert rig.serve(second) == 0, rig.said
    good = rig.store.good
    assert good is not None and good.meta.revision == 2 and (good.folder / "bundles/mine/model.onnx").is_file()
    assert (first / "bundles/mine/model.onnx").read_bytes() == (good.folder / "bundles/mine/model.onnx").read_bytes()


def test_another_model_under_the_same_configuration_is_another_configuration(rig: Rig, tmp_path: Path) -> None:
    """Unsigned, and the file says nothing of its bundle's digests: the bundle's own still tell the two apart."""
    mine = other_bundle(tmp_path / "mine")
    maker = Maker(yaml(1).replace("bundle: cap-28mm", "bundle: mine"), mine)
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        maker.write(folder)
        shutil.copytree(mine, folder / "bundles/mine")
    path = tmp_path / "second/bundles/mine/model.yaml"
    path.write_text(path.read_text().replace("revision: 1", "revision: 2", 1))
    assert rig.serve(tmp_path / "first") == 0 and rig.serve(tmp_path / "second") == 0, rig.said
    good = rig.store.good
    assert good is not None and good.number == 2
    assert (good.folder / "bundles/mine/model.yaml").read_bytes() == path.read_bytes()
    text = " ".join(result(tmp_path / "second").split())
    assert "bundle mine: revision 1, " in text and "-> revision 2, " in text


def test_a_bundle_that_nobody_names_is_left_out(running: Rig, tmp_path: Path) -> None:
    folder = stick_of(tmp_path / "s", yaml(6))
    shutil.copytree(BUNDLE, folder / "bundles" / "spare")
    assert running.serve(folder) == 0
    assert "bundles/spare was left out" in result(folder)
    assert running.store.good is not None and not list(running.store.good.folder.glob("bundles/*"))


def test_a_missing_bundle_is_told_with_its_line_and_where_to_put_it(running: Rig, tmp_path: Path) -> None:
    folder = stick_of(tmp_path / "s", yaml(6).replace("bundle: cap-28mm", "bundle: nothing"))
    assert running.serve(folder) == 2
    text = " ".join(result(folder).split())
    assert "appliance.yaml:53:9: recipes.cap-28mm.inspect.0.bundle: no bundle nothing; put it at one of bundles/nothing" in text


def test_a_judge_that_the_disk_fails_answers_in_words(running: Rig, tmp_path: Path) -> None:
    """A bundle of the box that holds more than plain files."""
    os.mkfifo(other_bundle(running.data / "bundles/mine") / "pipe")
    folder, before = stick_of(tmp_path / "s", yaml(6).replace("bundle: cap-28mm", "bundle: mine")), running.state()
    assert running.serve(folder) == 2
    assert running.state() == before and "configuration_refused" in running.kinds()
    assert "bundles/mine/pipe is no plain file" in " ".join(result(folder).split())


# --- what is asked beside a configuration ---------------------------------------------------------------------


def test_collect_brings_what_support_needs_and_no_secret(rig: Rig, tmp_path: Path) -> None:
    text = yaml(5).replace("mqtt:\n  broker: embedded", "mqtt:\n  broker: mqtt://user:hunter2@127.0.0.1:1883")
    rig.give_first(text, tmp_path / "first")
    enrol(rig.data / "keys", {"ada": pem(key())})
    (rig.data / "images/2026").mkdir(parents=True)
    (rig.data / "images/2026/17-top.jpg").write_bytes(b"\xff\xd8" * 100)
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "collect").touch()
    assert rig.serve(folder) == 0, rig.said
    assert rig.kinds()[-2:] == ["stick_served", "stick_answered"] and rig.lamps()[-2:] == ["on", "slow"]
    (archive,) = folder.glob("support-*.tar.gz")
    with tarfile.open(archive) as found:
        held = {Path(one.name).name: found.extractfile(one).read() for one in found.getmembers()}  # type: ignore[union-attr]
    assert {"versions.txt", "configuration.yaml", "state.json", "journal.txt", "ledger-verify.txt", "sensors.json"} <= held.keys()
    assert b"hunter2" not in b"".join(held.values()) and b"PUBLIC KEY" not in b"".join(held.values())
    assert b"mqtt://***@127.0.0.1" in held["configuration.yaml"]
    assert b"no ledger there" in held["ledger-verify.txt"]
    (images,) = folder.glob("support-*-images.tar")
    with tarfile.open(images) as found:
        assert [Path(one.name).name for one in found.getmembers()] == ["17-top.jpg"]
    assert archive.name in result(folder)


def test_an_update_is_installed_after_the_configuration(running: Rig, tmp_path: Path) -> None:
    folder = stick_of(tmp_path / "s", yaml(6))
    (folder / "update").mkdir()
    (folder / "update/appliance-2.bundle").write_bytes(b"an update")
    (folder / "update/appliance-2.bundle.sig").write_bytes(b"s" * 64)
    seen: list[tuple[str, bytes, bytes, int]] = []

    def install(bundle: Path, who: str, wait: Callable[[int], None]) -> update.Outcome:
        assert running.store.good is not None
        revision = running.store.good.meta.revision
        seen.append((bundle.name, bundle.read_bytes(), Path(f"{bundle}.sig").read_bytes(), revision))
        return update.Outcome("refused", "it is for another processor")

    assert running.serve(folder, replace(running.box, install=install)) == 0
    assert seen == [("appliance-2.bundle", b"an update", b"s" * 64, 6)]
    assert result(folder).startswith("Result: PARTLY") and "another processor" in result(folder)
    assert running.serve(folder, replace(running.box, install=install)) == 2  # now there is only the update to refuse


def test_an_update_that_runs_already_lets_the_lamp_say_done(running: Rig, tmp_path: Path) -> None:
    (tmp_path / "s/update").mkdir(parents=True)
    (tmp_path / "s/update/appliance-2.bundle").write_bytes(b"an update")
    box = replace(running.box, install=lambda *_given: update.Outcome("unchanged", "2 runs already"))
    assert running.serve(tmp_path / "s", box) == 0
    assert running.lamps()[-1] == "slow" and "2 runs already" in result(tmp_path / "s")


def test_a_disk_that_fails_after_the_decision_is_answered_too(running: Rig, tmp_path: Path) -> None:
    folder = stick_of(tmp_path / "s", yaml(6))
    (folder / "RESULT.txt").write_text("Result: APPLIED - of another day\n")
    (folder / "update").mkdir()
    (folder / "update/appliance-2.bundle").write_bytes(b"an update")

    def install(*_given: object) -> update.Outcome:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    assert running.serve(folder, replace(running.box, install=install)) == 2
    assert result(folder).startswith("Result: FAILED - the box's own disk") and "Input/output error" in result(folder)
    assert "revision 6, generation 2" in result(folder) and running.lamps()[-1] == "fast"


def test_a_refused_configuration_lets_no_update_through(running: Rig, tmp_path: Path) -> None:
    folder = stick_of(tmp_path / "s", yaml(6).replace("part_mm:", "partmm:"))
    (folder / "update").mkdir()
    (folder / "update/appliance-2.bundle").write_bytes(b"an update")

    def install(*_given: object) -> update.Outcome:
        raise AssertionError("nothing of a refused stick is applied")

    assert running.serve(folder, replace(running.box, install=install)) == 2


def test_an_unreadable_stick_is_an_event(running: Rig) -> None:
    assert unreadable(running.box, "stick sda1", "no FAT", io.StringIO()) == 2
    assert running.kinds() == ["stick_unreadable"]
    assert "no FAT" in running.events()[0]["data"]["text"]


# --- disks and sticks that are full -------------------------------------------------------------------------------


def test_a_box_without_room_says_so_and_keeps_its_reserve(running: Rig, tmp_path: Path) -> None:
    before = running.state()
    box = replace(running.box, calls=Calls(free=lambda _place: Limits().reserve_bytes + 1000))
    assert running.serve(stick_of(tmp_path / "s", yaml(6)), box) == 2
    assert running.state() == before and "no room" in result(tmp_path / "s")


@pytest.fixture
def small_stick(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def small_disk(rig: Rig) -> Iterator[Path]:
    """The box's, of 2 MiB."""
    rig.data.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(rig.data)], check=True)
    yield rig.data
    subprocess.run(["umount", str(rig.data)], check=True)


def _with_a_lie(rig: Rig) -> Box:
    """Full before anybody could see it coming."""
    return replace(rig.box, calls=Calls(free=lambda _place: 1 << 40))


@AS_ROOT
def test_a_full_disk_of_the_box_is_not_blamed_on_the_stick(rig: Rig, small_disk: Path, tmp_path: Path) -> None:
    folder = stick_of(tmp_path / "s", yaml(1))
    (folder / "bundles/big").mkdir(parents=True)
    (folder / "bundles/big/model.onnx").write_bytes(bytes(3 << 20))
    assert rig.serve(folder, _with_a_lie(rig)) == 2
    text = " ".join(result(folder).split())
    assert "the box's disk did not take bundles/big/model.onnx (No space left on device)" in text and "FAT32" not in text
    assert "configuration_refused" in rig.kinds() and not (small_disk / "stick").exists()


@AS_ROOT
def test_keys_of_a_configuration_that_the_disk_does_not_take_are_not_enrolled(
    rig: Rig, small_disk: Path, tmp_path: Path
) -> None:
    folder = signed(tmp_path / "s", yaml(1, "require").replace("bundle: cap-28mm", "bundle: mine"))
    (folder / "enrol").mkdir()
    (folder / "enrol/ada.pub").write_bytes(pem(key()))
    shutil.copytree(BUNDLE, folder / "bundles/mine")  # 1.3 MiB: once on the disk, and not twice
    named = manifest.as_yaml(manifest.digests("mine", folder / "bundles/mine"))
    raw = (folder / "appliance.yaml").read_bytes() + named.encode()
    (folder / "appliance.yaml").write_bytes(raw)
    (folder / "appliance.yaml.sig").write_bytes(key().sign(raw))
    assert rig.serve(folder, _with_a_lie(rig)) == 2
    assert "the box's disk did not take it (No space left on device)" in " ".join(result(folder).split())
    assert not (rig.data / "keys").exists() and "keys_enrolled" not in rig.kinds()


@AS_ROOT
def test_a_support_bundle_that_the_disk_does_not_take_is_told(rig: Rig, small_disk: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "collect").touch()
    (folder / "RESULT.txt").write_text("Result: APPLIED - of another day\n")
    with Filler(small_disk / "filler") as stream:
        while stream.write(b"x" * 4096):
            stream.flush()
    assert rig.serve(folder, _with_a_lie(rig)) == 0
    assert "the support bundle could not be made: No space left on device" in " ".join(result(folder).split())


def test_a_support_bundle_leaves_the_ledger_its_room(rig: Rig, tmp_path: Path) -> None:
    (rig.data / "images").mkdir(parents=True)
    (rig.data / "images/17-top.jpg").write_bytes(b"\xff\xd8" * 100)
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "collect").touch()
    box = replace(rig.box, calls=Calls(free=lambda _place: Limits().reserve_bytes + 100))
    assert rig.serve(folder, box) == 0
    assert list(folder.glob("support-*.tar.gz")) and not list(folder.glob("support-*-images.tar"))
    assert "of the stored images at most 0 MiB" in " ".join(result(folder).split())


def test_an_image_that_goes_while_it_is_collected_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "there.jpg").write_bytes(b"x")
    monkeypatch.setattr(support, "newest", lambda *_given: iter([images / "gone.jpg", images / "there.jpg"]))
    _texts, second = support.collect(tmp_path / "out", "s", {}, images, CLOCK, support.IMAGES_BYTES)
    with tarfile.open(second) as found:
        assert found.getnames() == ["s-images/there.jpg"]


def test_a_piece_that_does_not_end_says_so_and_the_others_come(tmp_path: Path) -> None:
    def whole_ledger() -> str:
        while True:
            pass

    pieces = {"ledger-verify.txt": whole_ledger, "versions.txt": lambda: "1"}
    (first,) = support.collect(tmp_path / "out", "s", pieces, tmp_path / "images", CLOCK, 0, piece_s=0.3)
    with tarfile.open(first) as found:
        held = {one.name: found.extractfile(one).read() for one in found.getmembers()}  # type: ignore[union-attr]
    assert held == {"s/ledger-verify.txt": b"not finished: it took longer than 0.3 s\n", "s/versions.txt": b"1"}


@AS_ROOT
def test_what_cannot_be_cleared_away_undoes_no_configuration(running: Rig, tmp_path: Path) -> None:
    stuck = running.data / "config/generations/000000.gone"
    stuck.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(stuck)], check=True)
    try:
        assert running.serve(stick_of(tmp_path / "s", yaml(6))) == 0
    finally:
        subprocess.run(["umount", str(stuck)], check=True)
    assert result(tmp_path / "s").startswith("Result: APPLIED")


def test_an_update_takes_nothing_of_the_models_limit(running: Rig, tmp_path: Path) -> None:
    folder = stick_of(tmp_path / "s", yaml(6))
    (folder / "update").mkdir()
    (folder / "update/appliance-2.bundle").write_bytes(bytes(6000))
    (folder / "bundles/big").mkdir(parents=True)
    for name in ("a", "b"):
        (folder / "bundles/big" / name).write_bytes(bytes(3000))
    limits = Limits(bundle_bytes=6000)
    assert read_stick(Source(folder), tmp_path / "staging", CLOCK, limits).problems == []
    (folder / "bundles/big/c").write_bytes(b"x")
    (told,) = read_stick(Source(folder), tmp_path / "staging", CLOCK, limits).problems
    assert "bundles/big/c has 1 bytes" in told


@AS_ROOT
def test_a_full_stick_does_not_undo_what_was_applied(running: Rig, small_stick: Path) -> None:
    Maker(yaml(6), BUNDLE).write(small_stick)
    (small_stick / "RESULT.txt").write_text("Result: APPLIED - of another day\n")
    with Filler(small_stick / "filler") as stream:
        while stream.write(b"x" * 512):
            stream.flush()
    assert running.serve(small_stick) == 0
    assert running.store.good is not None and running.store.good.meta.revision == 6
    text = (small_stick / "RESULT.txt").read_text() if (small_stick / "RESULT.txt").exists() else ""
    assert "of another day" not in text


class Filler:
    """Writes until the disk is full."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> io.BufferedWriter:
        self._stream = self._path.open("wb")
        return self._stream

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, _trace: object) -> bool:
        try:
            self._stream.close()
        except OSError:
            pass  # what it could not flush is what makes the disk full
        return isinstance(why, OSError) and why.errno == errno.ENOSPC


@AS_ROOT
def test_a_write_protected_stick_is_applied_and_told_elsewhere(running: Rig, small_stick: Path) -> None:
    Maker(yaml(6), BUNDLE).write(small_stick)
    subprocess.run(["mount", "-o", "remount,ro", str(small_stick)], check=True)
    assert running.serve(small_stick) == 0
    assert running.store.good is not None and running.store.good.meta.revision == 6
    assert running.kinds()[-1] == "stick_not_written" and "Read-only" in running.events()[-1]["data"]["text"]


def test_both_names_taken_by_folders_is_told(running: Rig, tmp_path: Path) -> None:
    folder = stick_of(tmp_path / "s", yaml(6))
    for name in ("RESULT.txt", "APPLIANCE-RESULT.txt"):
        (folder / name).mkdir()
    assert running.serve(folder) == 0
    assert "both folders" in running.events()[-1]["data"]["text"]


# --- mounts -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ext4_stick(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A block device with a folder's content; ext4, which every kernel of a test machine has."""
    devices: list[str] = []

    def make(folder: Path, *options: str) -> Path:
        image = tmp_path / f"{folder.name}.img"
        with image.open("wb") as stream:
            stream.truncate(16 << 20)
        tool = shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        if tool is None:
            pytest.skip("mkfs.ext4 is missing (apt: e2fsprogs)")
        subprocess.run([tool, "-q", "-d", str(folder), str(image)], check=True)
        done = subprocess.run(["losetup", "--find", "--show", *options, str(image)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no loop device: {done.stderr.strip()}")
        devices.append(done.stdout.strip())
        return Path(devices[-1])

    yield make
    for device in devices:
        subprocess.run(["losetup", "--detach", device], check=True)


def source_of(device: Path, place: Path) -> Source:
    return Source(place, device, "a stick", ("ext4",))


@AS_ROOT
def test_a_device_is_read_and_written_with_the_rights_that_are_said(tmp_path: Path, ext4_stick: Callable[..., Path]) -> None:
    folder = stick_of(tmp_path / "s", yaml(6), bundle=True)
    device, place = ext4_stick(folder), tmp_path / "at"

    def options(writable: bool) -> str:
        def work(_moved: Callable[[], None]) -> str:
            mount.own_namespace()
            with mount.mounted(device, place, writable=writable, file_systems=("ext4",)):
                return next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {place} " in line)

        return str(run_limited(work, CLOCK, 20, mounts=True))

    for writable, wanted in ((False, {"ro"}), (True, {"rw", "sync"})):
        line = options(writable)
        of_mount, of_disk = set(line.split()[5].split(",")), set(line.split()[-1].split(","))
        assert {"nosuid", "nodev", "noexec", "nosymfollow"} <= of_mount and wanted <= of_mount | of_disk, line
    assert str(place) not in Path("/proc/self/mountinfo").read_text()
    found = read_stick(source_of(device, place), tmp_path / "staging", CLOCK)
    assert found.file_system == "ext4" and not found.problems
    assert (tmp_path / "staging/appliance.yaml").read_bytes() == (folder / "appliance.yaml").read_bytes()
    assert write_stick(source_of(device, place), b"Result: x\r\n", [], CLOCK) == ""
    copied = tmp_path / "again"
    read_stick(source_of(device, place), copied, CLOCK)
    assert str(place) not in Path("/proc/self/mountinfo").read_text()


@AS_ROOT
def test_a_mount_is_seen_by_nobody_else_and_ends_with_a_killed_child(tmp_path: Path, ext4_stick: Callable[..., Path]) -> None:
    device, place, parent = ext4_stick(stick_of(tmp_path / "s", yaml(6))), tmp_path / "at", os.getpid()

    def look(_moved: Callable[[], None]) -> list[bool]:
        mount.own_namespace()
        with mount.mounted(device, place, writable=False, file_systems=("ext4",)):
            return [f" {place} " in Path(f"/proc/{one}/mountinfo").read_text() for one in ("self", str(parent))]

    assert run_limited(look, CLOCK, 20, mounts=True) == [True, False]

    def killed(moved: Callable[[], None]) -> None:
        mount.own_namespace()
        with mount.mounted(device, place, writable=False, file_systems=("ext4",)):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ChildFailed, match="killed"):
        run_limited(killed, CLOCK, 20, mounts=True)
    assert f" {place} " not in Path("/proc/self/mountinfo").read_text()


@AS_ROOT
def test_a_link_on_a_mounted_stick_is_not_followed_by_anybody(tmp_path: Path, ext4_stick: Callable[..., Path]) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "appliance.yaml").symlink_to("/etc/passwd")
    device, place = ext4_stick(folder), tmp_path / "at"

    def work(_moved: Callable[[], None]) -> int:
        mount.own_namespace()
        with mount.mounted(device, place, writable=False, file_systems=("ext4",)):
            try:
                (place / "appliance.yaml").read_bytes()
            except OSError as why:
                return why.errno or 0
        return 0

    assert run_limited(work, CLOCK, 20, mounts=True) == errno.ELOOP


@AS_ROOT
def test_a_write_protected_device_says_so(tmp_path: Path, ext4_stick: Callable[..., Path]) -> None:
    folder = stick_of(tmp_path / "s", yaml(6))
    device = ext4_stick(folder, "--read-only")
    read_stick(source_of(device, tmp_path / "at"), tmp_path / "staging", CLOCK)
    with pytest.raises(StickDead, match="write-protected"):
        write_stick(source_of(device, tmp_path / "at"), b"x", [], CLOCK)


@AS_ROOT
def test_a_file_whose_blocks_cannot_be_read(running: Rig, tmp_path: Path, ext4_stick: Callable[..., Path]) -> None:
    """Honest read errors: the device is as long as ever, and what lies behind its blocks is gone."""
    folder = stick_of(tmp_path / "s", yaml(6))
    (folder / "bundles/big").mkdir(parents=True)
    (folder / "bundles/big/model.onnx").write_bytes(os.urandom(12 << 20))
    device = ext4_stick(folder)
    os.truncate(tmp_path / "s.img", 8 << 20)
    before = running.state()
    assert serve(source_of(device, tmp_path / "at"), running.box, io.StringIO()) == 2
    assert running.state() == before
    told = running.events()[1]["data"]["text"]
    assert "bundles/big/model.onnx cannot be read to its end" in told or "Input/output error" in told, told


@AS_ROOT
def test_a_device_of_another_file_system_is_unreadable_in_words(
    running: Rig, tmp_path: Path, ext4_stick: Callable[..., Path]
) -> None:
    device = ext4_stick(stick_of(tmp_path / "s", yaml(6)))
    assert serve(Source(tmp_path / "at", device, "a stick"), running.box, io.StringIO()) == 2
    event = running.events()[-1]
    assert event["kind"] == "stick_unreadable"
    assert "FAT" in event["data"]["text"] or "this kernel cannot read vfat" in event["data"]["text"]


@AS_ROOT
def test_what_it_looks_like_is_looked_at_in_a_child(
    tmp_path: Path, ext4_stick: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first sectors wait for ever, as a dead stick's do."""
    device = ext4_stick(stick_of(tmp_path / "s", yaml(6)))
    reading, writing = os.pipe()
    monkeypatch.setattr(mount, "what_it_is", lambda _device: os.read(reading, 1).decode())
    with pytest.raises(StickDead, match="^(no FAT or exFAT file system is on it|this kernel cannot read vfat)$"):
        read_stick(Source(tmp_path / "at", device), tmp_path / "staging", CLOCK, Limits(stall_s=0.3))
    assert stick.looks_like(device, CLOCK, 0.3) == ""
    os.close(reading)
    os.close(writing)


def test_what_is_no_device_is_not_mounted(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, word in ((tmp_path / "file", "no block device"), (tmp_path / "none", "not there any more")):
        with pytest.raises(mount.MountRefused, match=word):
            mount.open_device(place)


@pytest.mark.parametrize(
    ("head", "word"),
    [(bytes(4096), "empty"), (b"\xeb\x52\x90NTFS    ", "NTFS"), (bytes(0x438) + b"\x53\xef", "ext4"), (b"\xeb\x58\x90mkfs", "")],
)
def test_what_a_stick_looks_like(tmp_path: Path, head: bytes, word: str) -> None:
    (tmp_path / "image").write_bytes(head)
    told = mount.what_it_is(tmp_path / "image")
    assert word in told and bool(told) == bool(word)


def test_a_sticks_name_is_its_makers_and_its_label(tmp_path: Path) -> None:
    (tmp_path / "dev/disk").mkdir(parents=True)
    node = tmp_path / "dev/sda1"
    node.touch()
    for folder, name in (("by-id", "usb-SanDisk_Ultra_4C53-0:0-part1"), ("by-label", "CONFIG"), ("by-uuid", "1234-ABCD")):
        (tmp_path / "dev/disk" / folder).mkdir()
        (tmp_path / "dev/disk" / folder / name).symlink_to(node)
    assert name_of_device(node, tmp_path) == "usb-SanDisk_Ultra_4C53-0:0-part1 CONFIG 1234-ABCD"
    assert name_of_device(Path("/dev/none"), tmp_path) == "none"
    plugged = tmp_path / "dev/appliance/stick/sda1.17"
    plugged.parent.mkdir(parents=True)
    plugged.symlink_to(node)
    assert name_of_device(plugged, tmp_path) == name_of_device(node, tmp_path)
    shutil.rmtree(tmp_path / "dev/disk")
    assert name_of_device(plugged, tmp_path) == "sda1"
    plugged.unlink()
    assert name_of_device(plugged, tmp_path) == "sda1"


def test_a_name_of_one_plugging_in_is_no_other_sticks(tmp_path: Path) -> None:
    counted = [one.parent.name for one in Path("/sys/block").glob("*/diskseq")]
    disk = next((name for name in counted if Path("/dev", name).is_block_device() and os.access(f"/dev/{name}", os.R_OK)), "")
    if not disk:
        pytest.skip("no disk here that this user reads and this kernel counts")
    number = int(Path("/sys/block", disk, "diskseq").read_text())
    for name in (f"sda1.{number}", "sda1.0", "sda1"):  # 0: of a kernel that counts none
        (tmp_path / name).symlink_to(Path("/dev", disk))
        mount.open_device(tmp_path / name)
    (tmp_path / f"sda1.{number + 1}").symlink_to(Path("/dev", disk))
    with pytest.raises(mount.MountRefused, match=f"another stick by now, number {number}"):
        mount.open_device(tmp_path / f"sda1.{number + 1}")


# --- the child ------------------------------------------------------------------------------------------------------


def test_a_child_ends_with_its_parent() -> None:
    """It has what its parent had, the stick's lock too, and nobody to end it any more."""
    code = (
        "import os, signal; from appliance.box.child import run_limited; from appliance.clock import SystemClock\n"
        "run_limited(lambda moved: (print(os.getpid(), flush=True), signal.pause()), SystemClock(), 600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        try:
            assert select.select([child], [], [], 20)[0], "it waits on"
        finally:
            if not select.select([child], [], [], 0)[0]:
                signal.pidfd_send_signal(child, signal.SIGKILL)
            os.close(child)


def _burn(_moved: Callable[[], None]) -> None:
    while True:
        pass


def _swell(_moved: Callable[[], None]) -> int:
    return len(bytearray(8 << 30))


def _die(_moved: Callable[[], None]) -> None:
    os._exit(3)


def _killed(_moved: Callable[[], None]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("work", "limits", "word"),
    [
        (_burn, {"cpu_s": 1}, "processor time"),
        (_burn, {"whole_s": 0.3}, "longer than 0.3 s"),
        (_burn, {"stall_s": 0.2}, "nothing moved"),
        (_swell, {"memory_bytes": 4 << 30}, "memory"),
        (_die, {}, "without a result"),
        (_killed, {}, "was killed"),
    ],
)
def test_a_child_that_runs_wild_is_ended_and_told(work: Callable[..., object], limits: dict[str, float], word: str) -> None:
    with pytest.raises(ChildFailed, match=word):
        run_limited(work, CLOCK, **{"whole_s": 30, **limits})  # type: ignore[arg-type]
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # nobody is left behind


def test_a_childs_answer_and_its_errors_come_back_as_they_are() -> None:
    assert run_limited(lambda _moved: {"a": 1}, CLOCK, 30) == {"a": 1}
    with pytest.raises(OSError, match="gone"):
        run_limited(lambda _moved: _raise(OSError(errno.ENODEV, "gone")), CLOCK, 30)
    with pytest.raises(ValueError, match="no"):
        run_limited(lambda _moved: _raise(ValueError("no")), CLOCK, 30)


def _raise(why: Exception) -> None:
    raise why


def test_a_childs_errors_keep_their_words(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="^/x/y is no plain file$"):
        run_limited(lambda _moved: _raise(OSError("/x/y is no plain file")), CLOCK, 30)
    with pytest.raises(ChildFailed, match="KeyError: 'bundle'"):
        run_limited(lambda _moved: _raise(KeyError("bundle")), CLOCK, 30)
    assert "Traceback" in capfd.readouterr().err


# As the unit starts it: of all rights only the one to mount, handed on to whatever it executes.
_AS_THE_UNIT = ("setpriv", "--securebits", "+noroot", "--no-new-privs", "--inh-caps", "-all,+sys_admin",
                "--ambient-caps", "-all,+sys_admin", "--bounding-set", "-all,+sys_admin")  # fmt: skip
_RIGHTS_OF = """
import ctypes, sys
sys.path.insert(0, "{root}")
from appliance.box.child import run_limited
from appliance.clock import SystemClock
def rights(_moved):
    return [line.split()[1].lstrip("0") for line in open("/proc/self/status") if line.startswith("Cap") and "Bnd" not in line]
{before}
print(rights(None), *(run_limited(rights, SystemClock(), 30, mounts=mounts) for mounts in (True, False)))
"""
# seccomp as SystemCallFilter= does it: capset(2) says EPERM, all else goes.
_WITHOUT_CAPSET = """
import struct, platform
number = 126 if platform.machine() == "x86_64" else 91
steps = ((0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000))
filter = b"".join(struct.pack("HBBI", *one) for one in steps)
held = ctypes.create_string_buffer(filter, len(filter))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(held)))
assert ctypes.CDLL(None).prctl(22, 2, program, 0, 0) == 0
"""


def _rights(before: str = "") -> subprocess.CompletedProcess[str]:
    code = _RIGHTS_OF.format(root=ROOT, before=before)
    return subprocess.run([*_AS_THE_UNIT, sys.executable, "-c", code], capture_output=True, text=True, check=True)


@AS_ROOT
def test_only_the_child_that_mounts_may_mount() -> None:
    done = _rights()
    all_four = "['200000', '200000', '200000', '200000']"
    assert done.stdout == f"{all_four} {all_four} ['', '', '', '']\n" and done.stderr == ""


@AS_ROOT
def test_a_right_that_cannot_be_given_up_is_told() -> None:
    done = _rights(_WITHOUT_CAPSET)
    assert "keeps the right to mount" in done.stderr and "Operation not permitted" in done.stderr
    assert done.stdout.endswith("['200000', '200000', '200000', '']\n")  # what it executes has it no more


# --- the command line -------------------------------------------------------------------------------------------------


def appliance(*words: str, **how: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "appliance", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **how)  # type: ignore[call-overload,no-any-return]


def test_the_verbs_and_their_exit_codes(tmp_path: Path) -> None:
    at = ["--data-dir", str(tmp_path / "data"), "--run-dir", str(tmp_path / "run")]
    good, bad = signed(tmp_path / "good", yaml(1, "require"), bundle=True), stick_of(tmp_path / "bad", yaml(2) + "x: 1\n")
    (good / "enrol").mkdir()
    (good / "enrol/ada.pub").write_bytes(pem(key()))
    told = appliance("usb", "apply", str(good), *at)
    assert told.returncode == 0 and told.stdout.startswith("Result: KEPT"), told
    assert appliance("usb", "apply", str(good), *at).returncode == 0
    assert appliance("usb", "apply", str(bad), *at).returncode == 2
    assert appliance("usb", "apply", str(tmp_path / "none"), *at).returncode == 2
    assert appliance("keys", "list", *at).stdout.startswith("ada (")
    assert appliance("keys", "enrol", str(bad), *at).returncode == 2
    fresh = stick_of(tmp_path / "fresh", yaml(1), bundle=True)
    (fresh / "enrol").mkdir()
    (fresh / "enrol/ada.pub").write_bytes(pem(key()))
    told = appliance("keys", "enrol", str(fresh), "--data-dir", str(tmp_path / "other"), "--run-dir", str(tmp_path / "run"))
    assert told.returncode == 0 and "enrolled" in told.stdout and "refused" not in told.stdout, told
    assert appliance("usb", "unreadable", "--device", "/dev/none1", *at).returncode == 2
    (tmp_path / "sda1.17").write_bytes(b"\xeb\x52\x90NTFS    ")
    told = appliance("usb", "unreadable", "--device", str(tmp_path / "sda1.17"), *at)
    assert "stick sda1 cannot be read: it has no FAT or exFAT file system; it looks like NTFS" in told.stdout
    kinds = [json.loads(path.read_bytes())["kind"] for path in sorted((tmp_path / "data/spool").iterdir())][:-1]
    assert kinds[-3:] == ["configuration_refused", "stick_answered", "stick_unreadable"]


def test_the_manifest_is_what_the_box_asks_for(tmp_path: Path) -> None:
    folder = stick_of(tmp_path / "s", yaml(1))
    shutil.copytree(BUNDLE, folder / "bundles" / BUNDLE.name)
    printed = appliance("usb", "manifest", str(folder))
    assert printed.returncode == 0
    with (folder / "appliance.yaml").open("a") as stream:
        stream.write(printed.stdout)
    at = ["--data-dir", str(tmp_path / "data"), "--run-dir", str(tmp_path / "run")]
    assert appliance("usb", "apply", str(folder), *at).returncode == 0
    assert appliance("usb", "manifest", str(tmp_path)).returncode == 2


def test_the_box_is_told_by_the_folder_and_by_name(tmp_path: Path) -> None:
    box = Box(Rig(tmp_path).store, tmp_path / "run", tmp_path / "data", CLOCK)
    assert (box.keys_dir, box.staging) == (tmp_path / "data/keys", tmp_path / "data/stick")
    assert stick.shown("a\u202e") == "'a\\u202e'"


def test_pulled_before_anything_is_tried_its_units_end_leaves_no_copy_but_another_sticks(tmp_path: Path) -> None:
    folder, data = stick_of(tmp_path / "s", yaml(2), bundle=True), tmp_path / "data"
    at = ["--data-dir", str(data), "--run-dir", str(tmp_path)]
    command = [sys.executable, "-m", "appliance", "usb", "apply", str(folder), *at]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while not (data / "stick").exists():  # the copy, which is there until it is decided
            assert process.poll() is None and time.monotonic() < end
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
    assert (data / "stick").exists() and not (data / "config" / "generations").exists()
    lines = (ROOT / "systemd/appliance-usb@.service").read_text().splitlines()
    (line,) = [one for one in lines if one.startswith("ExecStopPost=-/usr/bin/flock")]
    words = line.partition("=-")[2].replace("/var/lib/appliance", str(data)).split()
    assert subprocess.run(words).returncode == 0 and not (data / "stick").exists(), "at once, as systemd does it"
    (data / "stick").mkdir()
    with (data / "stick.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        at_once = [{"--timeout": "--nonblock", "10": ""}.get(one, one) for one in words]
        assert subprocess.run([one for one in at_once if one]).returncode == 1 and (data / "stick").exists(), "another stick's"
