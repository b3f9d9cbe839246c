"""Two slots: what is taken, what is done next, and that a cut after any step leaves a whole tree chosen, old or new."""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.box import launch, slots
from appliance.box.app_bundle import MANIFEST, Manifest, altered, read_manifest, verify, write
from appliance.box.durable import Trial, write_json
from appliance.box.slots import Box, Failed, Owed, Seen, Stamp, State, Step
from appliance.box.slots_doer import TOLD_CHARACTERS, Doer, Offer, Places, UpdateFailed, application_on_trial, bounded
from tests.box.survivors import Policy, Power
from tests.box.test_app_bundle import make_tree

PYTHON, ARCH, _USER = launch.this_process()
A, B = Stamp("0.2.0", "sha256:" + "a" * 64, PYTHON, ARCH), Stamp("0.3.0", "sha256:" + "b" * 64, PYTHON, ARCH)
NOW_NS = 10**12
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def seen(stamps: dict[str, Stamp] | None = None, runs: str = "packaged", folders: str = "", **more: Any) -> Seen:
    stamps = stamps or {}
    return replace(Seen(stamps, frozenset([*stamps, *folders.split()]), runs, "0.1.0", "boot-1", NOW_NS), **more)


def trial(what: str, before: str | None = None, boot: str = "boot-1", until_ns: int = NOW_NS + 10**9) -> Trial:
    return Trial(what, before, boot, until_ns)


# --- may it be taken? --------------------------------------------------------------------------------------


def offer(version: str = "0.2.0", **more: Any) -> Manifest:
    told = {"name": "appliance", "version": version, "arch": ARCH, "python": PYTHON,
            "files": {"appliance/__main__.py": {"sha256": "0" * 64, "size": 1 << 20, "mode": 420}}, **more}  # fmt: skip
    return read_manifest(json.dumps(told).encode())


BOX = Box(PYTHON, ARCH, "36.4.3", 1 << 32)


def test_a_bundle_that_fits_is_taken() -> None:
    assert slots.refusal(offer(), State(), seen(), BOX) == ""
    assert slots.refusal(offer(l4t="36.4"), State(), seen(), BOX) == ""


@pytest.mark.parametrize(
    ("bundle", "state", "there", "box", "words"),
    [
        (offer(arch="arm64" if ARCH == "amd64" else "amd64"), State(), seen(), BOX, "the bundle is for a"),
        (offer(python="3.99"), State(), seen(), BOX, "the bundle is for Python 3.99"),
        (offer(l4t="36.5"), State(), seen(), BOX, "the bundle is for L4T 36.5, this box has 36.4.3"),
        (offer(l4t="3"), State(), seen(), BOX, "the bundle is for L4T 3,"),
        (offer(l4t="36.4"), State(), seen(), replace(BOX, l4t=None), "this box has none"),
        (offer(), State(), seen(), replace(BOX, free=200 << 20), "257 MiB, 200 MiB are free"),
        (offer(), State(), seen(), replace(BOX, busy="a configuration is on trial"), "a configuration is on trial"),
        (offer(), State(trial=trial("a")), seen({"a": A}, "a"), BOX, "in slot a is on trial"),
        (offer("0.0.9"), State(), seen(), replace(BOX, strict=True), "older than 0.1.0, which runs"),
        (offer("0.2.9"), State(active="b"), seen({"b": B}, "b"), replace(BOX, strict=True), "older than 0.3.0, which runs"),
        (offer(), State(failed=(Failed(offer().digest, "0.2.0", 2, "inspectd is waiting"),)), seen(), BOX, "inspectd is waiting"),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused_in_words(
    bundle: Manifest, state: State, there: Seen, box: Box, words: str
) -> None:
    assert words in slots.refusal(bundle, state, there, box)


def test_one_that_failed_is_taken_once_more_and_then_only_by_force() -> None:
    once = State(failed=(Failed(offer().digest, "0.2.0", 1, "the box was restarted"),))
    twice = slots.with_failure(once, offer().digest, "0.2.0", 1, "the box was restarted again")
    assert slots.refusal(offer(), once, seen(), BOX) == ""
    assert "restarted again" in slots.refusal(offer(), twice, seen(), BOX)
    assert slots.refusal(offer(), twice, seen(), BOX, force=True) == ""
    assert slots.refusal(offer("0.2.1"), twice, seen(), BOX) == ""


def test_something_older_is_taken_where_signatures_are_not_required() -> None:
    assert slots.refusal(offer("0.0.9"), State(), seen(), BOX) == ""


def test_a_trial_that_is_over_refuses_nothing() -> None:
    for over in (trial("a", boot="boot-0"), trial("a", until_ns=NOW_NS)):
        assert slots.refusal(offer(), State(trial=over), seen({"a": A}), BOX) == ""


def test_versions_are_ordered_as_people_mean_them() -> None:
    rising = ["0.2", "0.2.0~rc1", "0.2.0~rc2", "0.2.0", "0.2.0+1", "0.2.0.1", "0.2.1", "0.10.0", "1.0"]
    assert sorted(reversed(rising), key=slots.order) == rising


# --- what is to be done ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "there", "wanted"),
    [
        (State(), seen(), "a"),
        (State("a"), seen({"a": A}, "a"), "b"),
        (State("b"), seen({"b": B}, "b"), "a"),
        (State("b"), seen({"a": A, "b": B}, "b"), "a"),
        (State(proved=(("a", A.digest),)), seen({"a": A, "b": B}), "b"),
        (State(proved=(("a", B.digest),)), seen({"a": A}), "a"),  # another one proved itself there
        (State("a"), seen({"b": B}, "packaged"), "b"),  # active, and for the moment unreadable: not thrown away
    ],
)
def test_the_slot_that_runs_or_is_chosen_is_never_filled(state: State, there: Seen, wanted: str) -> None:
    assert slots.target(state, there) == wanted


def test_an_old_slots_stamp_goes_first_and_the_new_ones_comes_last() -> None:
    verbs = [(one.verb, one.name) for one in slots.filling("a", seen({"a": A}, folders="a a.part"))]
    assert verbs == [("unstamp", "a"), ("clear", "a"), ("clear", "a.part"), ("unpack", "a.part"), ("compile", "a.part"),
                     ("flush", "a.part"), ("place", "a"), ("preflight", "a"), ("stamp", "a")]  # fmt: skip


def test_what_is_healthy_is_kept_and_nobody_begins_anew_again() -> None:
    assert [one.verb for one in slots.ending(State(trial=trial("a")), seen({"a": A}, "a"), "")] == ["mark_good", "tell"]


def test_whoever_runs_what_is_not_kept_begins_anew_and_after_a_restart_nobody_does() -> None:
    here = slots.ending(State(trial=trial("a")), seen({"a": A}, "a"), "ill")
    later = slots.ending(State(trial=trial("a", boot="boot-0")), seen({"a": A}), "restarted")
    assert [one.verb for one in here] == ["give_up", "again", "tell"]
    assert [one.verb for one in later] == ["give_up", "tell"]


def test_settling_leaves_a_trial_that_holds_and_what_is_whole() -> None:
    assert slots.settling(State(trial=trial("a")), seen({"a": A}, "a", told="0.2.0 a aaaaaaaaaaaa")) == []
    assert slots.settling(State("a", "0.1.0"), seen({"a": A, "b": B}, "a")) == []
    assert slots.settling(State("a", "0.1.0"), seen({}, folders="a")) == []  # chosen and unreadable: not thrown away


def test_settling_clears_what_is_half() -> None:
    steps = slots.settling(State("a"), seen({"a": A}, "a", folders="a b b.part lost+found"))
    assert steps == [Step("clear", "b"), Step("clear", "b.part")]


def test_processes_that_run_on_with_what_is_no_longer_chosen_begin_anew() -> None:
    assert slots.settling(State("a"), seen({"a": A, "b": B}, "a", told="0.3.0 b bbbbbbbbbbbb")) == [Step("again")]
    assert slots.settling(State("a"), seen({"a": A, "b": B}, "a", told="0.2.0 a aaaaaaaaaaaa")) == []


@pytest.mark.parametrize(
    ("state", "there", "back"),
    [
        (State("b", proved=(("a", A.digest), ("b", B.digest))), seen({"a": A, "b": B}, "b"), "a"),
        (State("b", proved=(("b", B.digest),)), seen({"a": A, "b": B}, "b"), "packaged"),  # a never proved itself
        (State("b", proved=(("a", B.digest),)), seen({"a": A, "b": B}, "b"), "packaged"),  # something else did, in a
        (State("b", proved=(("a", A.digest),)), seen({"b": B}, "b"), "packaged"),
        (State("b", trial=trial("a", "b")), seen({"a": A, "b": B}, "a"), "b"),
        (State(trial=trial("a")), seen({"a": A}, "a"), "packaged"),
    ],
)
def test_back_is_to_what_proved_itself(state: State, there: Seen, back: str) -> None:
    assert slots.came_from(state, there) == back
    assert slots.returning(state, there)[0] == Step("go_back", back)


def test_the_package_has_nothing_to_go_back_to() -> None:
    assert slots.returning(State(), seen({"a": A})) == []


# --- state.json --------------------------------------------------------------------------------------------


def test_a_state_comes_back_from_its_json() -> None:
    state = State("a", "0.1.0", trial("b", "a"), (("a", A.digest),), (Failed("sha256:x", "0.4", 1, "ill"),), "stick 1", "new",
                  (Owed("update_applied", "1", "2", "stick 1", "new", "words"),))  # fmt: skip
    assert slots.state_of(json.loads(json.dumps(slots.json_of(state)))) == state


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["active", "trial", "proved", "failed", "owed", "what", "boot_id", "until_ns", "digest", "tries", "a", "b", "kind"]
    ), inner, max_size=5), max_leaves=12,
)  # fmt: skip


@given(_JSON)
def test_any_json_is_a_state(value: Any) -> None:
    state = slots.state_of(value)
    assert state.active in (None, "a", "b")
    assert slots.state_of(slots.json_of(state)) == state


def test_marking_good_after_the_trial_is_refused() -> None:
    for over in (trial("a", boot="boot-0"), trial("a", until_ns=NOW_NS), None):
        with pytest.raises(ValueError, match="the trial is over"):
            slots.with_good(State(trial=over), seen({"a": A}))


def test_a_restart_counts_as_one_try_and_an_ill_station_as_all() -> None:
    there = seen({"a": A})
    (restart, *_), (expiry, *_) = (
        slots.settling(State(trial=one), there) for one in (trial("a", boot="boot-0"), trial("a", until_ns=NOW_NS))
    )
    assert (restart.name, expiry.name) == (slots.CUT_SHORT, "")
    (once,) = slots.without_trial(State(trial=trial("a")), there, "restarted", cut_short=True).failed
    (ill,) = slots.without_trial(State(trial=trial("a")), there, "ill").failed
    assert (once.tries, ill.tries) == (1, slots.TRIES)


def test_what_failed_before_and_proves_itself_is_forgiven() -> None:
    state = State(trial=trial("a"), failed=(Failed(A.digest, "0.2.0", 1, "restarted"), Failed(B.digest, "0.3.0", 2, "ill")))
    assert [one.digest for one in slots.with_good(state, seen({"a": A})).failed] == [B.digest]


def test_the_list_of_failures_ends() -> None:
    state = State()
    for number in range(50):
        state = slots.with_failure(state, f"sha256:{number}", "0.2.0", 1, "ill")
    assert len(state.failed) == slots.KEPT_FAILURES and state.failed[-1].digest == "sha256:49"


# --- doing it, with the power cut after every step ---------------------------------------------------------


def _good_child(command: Sequence[str], *_rest: Any) -> str:
    """Every program of a new slot ends well, and answers a stick."""
    if "apply" in command:
        Path(command[command.index("apply") + 1], "RESULT.txt").write_text("Result: KEPT")
    return ""


@dataclass
class Bench:
    """A box's disk in a folder: ``root`` is what the power is cut for; the bundles lie outside of it."""

    root: Path
    bundles: dict[str, Path]
    boot: str = "boot-1"
    now_ns: int = NOW_NS
    told: list[Owed] = field(default_factory=list)

    @property
    def slots(self) -> Path:
        return self.root / "slots"

    def doer(self) -> Doer:
        places = Places(self.slots, self.root.parent / "run", self.root.parent / "package")
        return Doer(places, None, lambda: self.boot, lambda: self.now_ns, _good_child, who="test", tell=self.told.append)

    def install(self, version: str, healthy: bool = True, stop_before_health: bool = False) -> None:
        """All that wiring/update.py does, without asking the station."""
        doer = self.doer()
        with doer.alone():
            doer.do_all(slots.settling(doer.state(), doer.seen()))
            bundle = self.bundles[version]
            doer.offer = Offer(bundle, verify(bundle))
            slot = slots.target(doer.state(), doer.seen())
            doer.do_all([*slots.filling(slot, doer.seen()), *slots.trying(slot)])
            if not stop_before_health:
                doer.do_all(slots.ending(doer.state(), doer.seen(), "" if healthy else "inspectd is ill"))

    def settle(self) -> None:
        doer = self.doer()
        with doer.alone():
            doer.do_all(slots.settling(doer.state(), doer.seen()))

    def chosen(self) -> str:
        """What the launcher would start, by version; the tree is whole, or this fails."""
        name, stamp, _why = launch.choose(str(self.slots), "0.1.0", self.boot, self.now_ns)
        if stamp is None:
            return "package"
        tree = self.slots / name
        manifest = read_manifest((tree / MANIFEST).read_bytes())
        assert manifest.digest == stamp["digest"]
        assert altered(tree, manifest) is None, f"slot {name} is chosen and not whole"
        return str(stamp["version"])

    def on_trial(self) -> bool:
        return application_on_trial(self.slots, lambda: self.boot, lambda: self.now_ns) != ""

    def reboot(self) -> None:
        self.boot = f"boot-{int(self.boot[5:]) + 1}"
        self.now_ns = 60 * 10**9  # CLOCK_BOOTTIME begins anew: the old trial's end lies far ahead

    def must_be_tidy(self, version: str) -> None:
        assert self.chosen() == version
        doer = self.doer()
        assert slots.settling(doer.state(), doer.seen()) == []
        assert {path.name for path in self.slots.iterdir()} <= {"a", "b", "lock", "state.json", "state.json.part"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    made = {}
    for version in ("0.2.0", "0.3.0", "0.4.0"):
        made[version] = folder / f"{version}.bundle"
        tree = folder / version
        for name in ("appliance/__init__.py", "appliance/__main__.py", "appliance/twin/station.yaml", "VERSION"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(f"# {name} of {version}\n")
        write(tree, made[version], version, ARCH, PYTHON)
    return made


def bench_in(folder: Path, bundles: dict[str, Path]) -> Bench:
    for name in ("disk", "run", "package"):
        (folder / name).mkdir(parents=True)
    (folder / "package/VERSION").write_text("0.1.0\n")
    return Bench(folder / "disk", bundles)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What forcing to disk is for is looked at by Power; elsewhere it would cost most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def disks() -> Iterator[Path]:
    """Where thousands of small disks are made and thrown away."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


@pytest.fixture
def bench(tmp_path: Path, bundles: dict[str, Path]) -> Bench:
    return bench_in(tmp_path, bundles)


POLICIES: tuple[tuple[Policy, int], ...] = (("everything", 0), ("nothing unforced", 0), ("mixed", 1), ("mixed", 2), ("mixed", 3))


def cuts(disks: Path, bundles: dict[str, Path], prepare: Any, act: Any) -> Iterator[tuple[Bench, Power]]:
    """``act`` cut before each of its steps, and each thing that a disk may hold after that."""
    ready = bench_in(disks / "ready", bundles)
    prepare(ready)
    for number in itertools.count():
        for policy, seed in POLICIES:
            folder = disks / f"{number}-{policy}-{seed}"
            shutil.copytree(ready.root.parent, folder)
            bench = replace(ready, root=folder / "disk", told=list(ready.told))
            with Power(bench.root, number) as power:
                act(bench)
            if not power.cut:
                assert number > 3
                return
            power.survive(policy, seed * 1000 + number)
            yield bench, power
            shutil.rmtree(folder)


def with_two(bench: Bench) -> None:
    bench.install("0.2.0")
    bench.install("0.3.0")


def test_an_install_cut_after_any_step_leaves_a_whole_tree_tells_what_was_decided_and_the_next_goes_on(
    disks: Path, bundles: dict[str, Path]
) -> None:
    count = 0
    kept = set()
    for bench, power in cuts(disks, bundles, with_two, lambda bench: bench.install("0.4.0")):
        count += 1
        bench.reboot()
        chosen = bench.chosen()
        assert chosen in ("0.3.0", "0.4.0"), power.told[-1:]
        kept.add(chosen)
        trial_was_on = bench.doer().state().trial is not None
        bench.settle()
        bench.must_be_tidy(chosen)
        events = {one.kind for one in bench.told[2:]}  # once where it was decided before the cut, or is by settling
        assert events == ({"update_applied"} if chosen == "0.4.0" else {"update_returned"} if trial_was_on else set())
        doer = bench.doer()
        doer.do_all(slots.returning(doer.state(), doer.seen()))
        assert bench.chosen() in ("package", "0.2.0", "0.3.0"), power.told[-1:]  # whole, or chosen() says so
        bench.install("0.4.0")
        bench.must_be_tidy("0.4.0")
    assert kept == {"0.3.0", "0.4.0"}  # cut between marking good and telling: the new one
    assert count > 5 * 40


def test_a_first_install_cut_after_any_step_leaves_the_package(disks: Path, bundles: dict[str, Path]) -> None:
    for bench, power in cuts(disks, bundles, lambda bench: None, lambda bench: bench.install("0.2.0")):
        bench.reboot()
        chosen = bench.chosen()
        assert chosen in ("package", "0.2.0"), power.told[-1:]
        bench.settle()
        bench.must_be_tidy(chosen)


def test_a_return_cut_after_any_step_leaves_the_old_tree(disks: Path, bundles: dict[str, Path]) -> None:
    for bench, power in cuts(disks, bundles, with_two, lambda bench: bench.install("0.4.0", healthy=False)):
        bench.reboot()
        assert bench.chosen() == "0.3.0", power.told[-1:]
        bench.settle()
        bench.must_be_tidy("0.3.0")


def test_settling_cut_after_any_step_is_settled_again(disks: Path, bundles: dict[str, Path]) -> None:
    def prepare(bench: Bench) -> None:
        with_two(bench)
        bench.install("0.4.0", stop_before_health=True)
        bench.reboot()
        (bench.slots / "b.part/x").mkdir(parents=True)

    for bench, _power in cuts(disks, bundles, prepare, Bench.settle):
        bench.reboot()
        assert bench.chosen() == "0.3.0"
        bench.settle()
        bench.must_be_tidy("0.3.0")


def test_going_back_by_hand_cut_after_any_step_leaves_one_of_the_two(disks: Path, bundles: dict[str, Path]) -> None:
    def go_back(bench: Bench) -> None:
        doer = bench.doer()
        doer.do_all(slots.returning(doer.state(), doer.seen()))

    found = set()
    for bench, _power in cuts(disks, bundles, with_two, go_back):
        bench.reboot()
        found.add(bench.chosen())
    assert found == {"0.2.0", "0.3.0"}


def test_a_killed_update_in_the_same_boot_runs_its_trial_out_and_falls_back(disks: Path, bundles: dict[str, Path]) -> None:
    """No power cut: all that was written stands, and the clock goes on."""
    for number in itertools.count():
        bench = bench_in(disks / str(number), bundles)
        with_two(bench)
        with Power(bench.root, number) as power:
            bench.install("0.4.0")
        if not power.cut:
            return
        assert bench.chosen() in ("0.3.0", "0.4.0")
        on_trial = bench.on_trial()
        bench.now_ns += slots.TRIAL_NS
        chosen = bench.chosen()
        assert chosen == "0.3.0" or not on_trial
        bench.settle()
        bench.must_be_tidy(chosen)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["0.2.0", "0.3.0", "0.4.0"]), st.integers(0, 90), st.booleans(),
                          st.sampled_from(POLICIES)), min_size=1, max_size=6), st.integers(0, 1 << 30))  # fmt: skip
def test_cuts_upon_cuts_never_leave_anything_but_a_whole_tree(
    bundles: dict[str, Path], history: Any, seed: int
) -> None:
    """Installs, healthy or not, each cut somewhere or not at all, some after another cut: never half a tree, never two trials,
    and a version never comes back that was not the last good one."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        _history(bench_in(Path(folder), bundles), history, seed)


def _history(bench: Bench, history: Any, seed: int) -> None:
    good = "package"
    chosen = random.Random(seed)
    for version, cut_at, healthy, (policy, policy_seed) in history:
        with Power(bench.root, cut_at) as power:
            bench.install(version, healthy)
        if power.cut:
            power.survive(policy, policy_seed + seed)
            bench.reboot()
            assert bench.chosen() in (good, version)
            if chosen.random() < 0.5:
                bench.settle()
            assert bench.chosen() in (good, version)
        else:
            assert bench.chosen() == (version if healthy else good)
        good = bench.chosen()
    bench.settle()
    bench.must_be_tidy(good)
    bench.install("0.4.0")
    bench.must_be_tidy("0.4.0")


# --- the doer's edges --------------------------------------------------------------------------------------


def test_two_installs_at_once_are_refused(bench: Bench) -> None:
    with bench.doer().alone(), pytest.raises(UpdateFailed, match="another update is being made"), bench.doer().alone():
        pass
    with bench.doer().alone():
        pass


def test_a_link_in_a_slots_place_is_removed_and_not_followed(bench: Bench, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "complete").write_text("mine")
    bench.slots.mkdir()
    (bench.slots / "a").symlink_to(victim)
    (bench.slots / "a.part").symlink_to(victim)
    bench.install("0.2.0")
    assert (victim / "complete").read_text() == "mine" and bench.chosen() == "0.2.0"


def test_another_package_has_the_say_and_the_slot_is_not_what_it_goes_back_to(bench: Bench) -> None:
    bench.install("0.2.0")
    (bench.root.parent / "package/VERSION").write_text("0.5.0\n")
    assert bench.doer().seen().runs == "packaged"
    bench.install("0.3.0", healthy=False)
    assert bench.doer().seen().runs == "packaged" and bench.doer().state().active is None


def test_a_stamp_without_its_tree_is_no_slot(bench: Bench) -> None:
    (bench.slots / "a").mkdir(parents=True)
    write_json(bench.slots / "a/complete", vars(A))
    write_json(bench.slots / "state.json", {"active": "a", "package": "0.1.0"})
    assert bench.chosen() == "package"


def test_a_bundle_exchanged_between_verifying_and_filling_leaves_no_slot(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "x.bundle"
    path.write_bytes(bench.bundles["0.2.0"].read_bytes())
    doer = bench.doer()
    doer.offer = Offer(path, verify(path))
    path.write_bytes(bench.bundles["0.3.0"].read_bytes())
    with doer.alone(), pytest.raises(Exception, match="was changed while it was read"):
        doer.do_all(slots.filling("a", doer.seen()))
    bench.settle()
    bench.must_be_tidy("package")


def test_a_slots_files_are_compiled_before_they_are_placed(bench: Bench, tmp_path: Path) -> None:
    """By the real compiler: the launcher forbids caches to be written later."""
    make_tree(tmp_path / "tree")
    write(tmp_path / "tree", tmp_path / "real.bundle", "0.9.0", ARCH, PYTHON)
    bench.bundles = {**bench.bundles, "0.9.0": tmp_path / "real.bundle"}
    doer = bench.doer()
    doer.child = bounded
    doer.offer = Offer(tmp_path / "real.bundle", verify(tmp_path / "real.bundle"))
    with doer.alone():
        doer.do_all([step for step in slots.filling("a", doer.seen()) if step.verb != "preflight"])
    caches = sorted(path.name for path in (bench.slots / "a/appliance/__pycache__").iterdir())
    assert len(caches) == 2 and caches[1].startswith("__main__.")


_NO_SCHEDULER = """
import ctypes, os, struct, sys
def rule(code, jump_true, jump_false, value): return struct.pack("HBBI", code, jump_true, jump_false, value)
number = {"x86_64": 144, "aarch64": 119}[os.uname().machine]  # sched_setscheduler
rules = rule(0x20, 0, 0, 0) + rule(0x15, 0, 1, number) + rule(0x06, 0, 0, 0x00050001) + rule(0x06, 0, 0, 0x7FFF0000)
held = ctypes.create_string_buffer(rules)
class Program(ctypes.Structure): _fields_ = [("count", ctypes.c_ushort), ("rules", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(Program(4, ctypes.addressof(held))), 0, 0) == 0
from pathlib import Path
from appliance.box.slots_doer import bounded
command = [sys.executable, "-I", "-c", "import os, sys; sys.exit(str(os.nice(0)))"]
sys.exit(bounded(command, dict(os.environ), Path("/"), 30, 1 << 30))
"""


def test_a_unit_that_may_not_choose_its_scheduler_can_still_run_programs() -> None:
    """As the stick's, whose filter of system calls answers EPERM."""
    root = Path(launch.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", _NO_SCHEDULER], capture_output=True, text=True, cwd=root)
    if "AssertionError" in done.stderr:
        pytest.skip("this kernel takes no filter of system calls")
    assert done.stderr == "exit 1: 19\n"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise SystemExit(3)", "exit 3"),
        ("import sys; sys.exit('no such setting')", "exit 1: no such setting"),
        ("import os; os.abort()", "ended by signal 6"),
        ("x = bytearray(3 << 30)", "MemoryError"),
        ("import sys; sys.stderr.write('x' * (1 << 22)); sys.exit(2)", "exit 2: xxx"),
        ("while True: pass", "did not end within"),
    ],
)
def test_a_program_of_a_new_slot_is_bounded(tmp_path: Path, program: str, words: str) -> None:
    said = bounded([sys.executable, "-I", "-c", program], dict(os.environ), tmp_path, 2.0, 1 << 30)
    assert words in said and len(said) < TOLD_CHARACTERS + 40


def test_what_a_program_left_running_ends_with_it(tmp_path: Path) -> None:
    child = "[sys.executable, '-c', 'import signal; signal.pause()']"
    program = f"import pathlib, subprocess, sys; pathlib.Path('pid').write_text(str(subprocess.Popen({child}).pid))"
    assert bounded([sys.executable, "-I", "-c", program], dict(os.environ), tmp_path, 30.0, 1 << 30) == ""
    try:
        process = os.pidfd_open(int((tmp_path / "pid").read_text()))
    except ProcessLookupError:
        return  # gone already
    assert select.select([process], [], [], 20)[0], "it runs on"


_WITH_A_RIGHT = """
import os, re, sys
from pathlib import Path
from appliance.box.slots_doer import bounded
def rights(text): return re.findall("Cap(?:Prm|Eff|Amb):.([0-9a-f]+)", text)
program = "import sys; sys.exit(''.join(line for line in open('/proc/self/status') if line.startswith('Cap')))"
told = bounded([sys.executable, "-I", "-c", program], dict(os.environ), Path("/"), 30, 1 << 30)
print(*rights(open("/proc/self/status").read()), *rights(told))
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv: it gives a right away")
def test_a_program_of_a_new_slot_has_none_of_the_rights_of_a_sticks_unit() -> None:
    """The unit mounts the stick by an ambient CAP_SYS_ADMIN, which every program that it starts would have."""
    root = Path(launch.__file__).parents[2]
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    command = ["setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all,+sys_admin", "--ambient-caps=-all,+sys_admin",
               launch.PYTHON, "-c", _WITH_A_RIGHT]  # fmt: skip
    environment = {"PATH": os.defpath, "PYTHONPATH": f"{root}:{packages}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment)
    if "ImportError" in done.stderr or "ModuleNotFoundError" in done.stderr:
        pytest.skip(f"{launch.PYTHON} cannot import this tree and its packages as another user")
    assert done.returncode == 0, done.stderr
    assert [int(one, 16) for one in done.stdout.split()] == [1 << 21] * 3 + [0] * 3


def test_a_program_that_cannot_be_limited_is_not_run(tmp_path: Path) -> None:
    """By a limit above what this process may have."""
    program = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()"
    with pytest.raises(UpdateFailed, match="could not be limited, so it was not run"):
        bounded([sys.executable, "-I", "-c", program], dict(os.environ), tmp_path, 30.0, 1 << 63)
    assert not (tmp_path / "ran").exists()


def test_a_program_of_a_new_slot_comes_last_in_line(tmp_path: Path) -> None:
    program = "import os, sys; sys.exit(f'{os.nice(0)} {os.sched_getscheduler(0) == os.SCHED_IDLE}')"
    assert bounded([sys.executable, "-I", "-c", program], dict(os.environ), tmp_path, 30.0, 1 << 30) == "exit 1: 19 True"
