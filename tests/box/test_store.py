"""The configuration store: what is chosen after a cut at any step, a killed doer, a trial that is over, bits that rotted."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.box.store import KEPT, Generation, Meta, Store, StoreError
from tests.box.cuts import Disk

META = Meta("stick 4711", "new recipe", 3, "acme/line", 1_767_225_600_000_000, "synced")
LATER_NS = 10**12


@dataclass
class Machine:
    """What a Store asks of the box."""

    boot: str = "boot-1"
    now_ns: int = 10**9


def folder(place: Path, text: str, bundle: str | None = "weights") -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / "appliance.yaml").write_text(text)
    if bundle is not None:
        (place / "bundles/cap").mkdir(parents=True, exist_ok=True)
        (place / "bundles/cap/model.yaml").write_text("name: cap")
        (place / "bundles/cap/model.onnx").write_text(bundle * 1000)
    return place


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What forcing to disk is for is looked at by Disk; here it would cost most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def store(tmp_path: Path, machine: Machine) -> Store:
    return at(tmp_path / "config", machine)


def at(root: Path, machine: Machine) -> Store:
    return Store(root, lambda: machine.boot, lambda: machine.now_ns)


def good(store: Store, source: Path) -> Generation:
    one = store.put(source, META)
    store.begin_trial(one, LATER_NS)
    store.mark_good({"station": one.digest})
    return one


def chosen(store: Store) -> int | None:
    one = store.choose().generation
    return one.number if one else None


# --- the ordinary way ---------------------------------------------------------------------------------------


def test_an_empty_store_says_what_to_do(store: Store) -> None:
    choice = store.choose()
    assert choice.generation is None and choice.fallbacks == () and "plug in a stick" in choice.why
    assert not store.root.exists(), "choosing only reads"


def test_a_trial_runs_until_it_is_decided_or_over(store: Store, machine: Machine, tmp_path: Path) -> None:
    one = good(store, folder(tmp_path / "a", "one"))
    two = store.put(folder(tmp_path / "b", "two"), META)
    assert chosen(store) == one.number, "what was put is not chosen by that"
    store.begin_trial(two, machine.now_ns + 100)
    assert chosen(store) == two.number and store.choose().fallbacks == (one,)
    machine.now_ns += 99
    assert chosen(store) == two.number
    machine.now_ns += 1
    assert chosen(store) == one.number and "time is over" in store.choose().why
    with pytest.raises(StoreError, match="over"):
        store.mark_good({})
    assert store.give_up() == one and store.trial is None and chosen(store) == one.number


def test_a_restart_of_the_box_ends_a_trial(store: Store, machine: Machine, tmp_path: Path) -> None:
    one = good(store, folder(tmp_path / "a", "one"))
    store.begin_trial(store.put(folder(tmp_path / "b", "two"), META), LATER_NS)
    machine.boot = "boot-2"
    assert chosen(store) == one.number and "restarted" in store.choose().why
    with pytest.raises(StoreError):
        store.mark_good({})
    with pytest.raises(StoreError):
        store.extend_trial(LATER_NS)


def test_the_first_one_that_never_proved_itself_leaves_nothing_to_run(store: Store, machine: Machine, tmp_path: Path) -> None:
    store.begin_trial(store.put(folder(tmp_path / "a", "one"), META), LATER_NS)
    machine.boot = "boot-2"
    assert chosen(store) is None and "none before it" in store.choose().why
    assert store.give_up() is None


def test_a_second_stick_waits_until_the_first_is_decided(store: Store, machine: Machine, tmp_path: Path) -> None:
    one, two = (store.put(folder(tmp_path / name, name), META) for name in ("a", "b"))
    store.begin_trial(one, machine.now_ns + 100)
    with pytest.raises(StoreError, match="000001 is on trial"):
        store.begin_trial(two, LATER_NS)
    store.extend_trial(machine.now_ns + 200)
    machine.now_ns += 150
    assert chosen(store) == one.number
    machine.now_ns += 50
    store.begin_trial(two, LATER_NS)
    assert chosen(store) == two.number


def test_the_same_again_is_the_same_generation(store: Store, tmp_path: Path) -> None:
    one = store.put(folder(tmp_path / "a", "one"), META)
    assert store.put(folder(tmp_path / "b", "one"), META) == one
    other = store.put(folder(tmp_path / "c", "one", bundle="other weights"), META)
    assert other.number == 2 and other.digest == one.digest and other.bundles != one.bundles
    bare = store.put(folder(tmp_path / "d", "one", bundle=None), META)
    assert bare.number == 3 and bare.bundles == ""


def test_one_that_rotted_is_put_anew(store: Store, tmp_path: Path) -> None:
    one = good(store, folder(tmp_path / "a", "one"))
    (one.folder / "bundles/cap/model.onnx").write_text("rotten")
    assert not store.intact(one)
    again = store.put(folder(tmp_path / "b", "one"), META)
    assert again.number == 2 and store.intact(again)


def test_what_is_copied_is_what_lay_there(store: Store, tmp_path: Path) -> None:
    one = store.put(folder(tmp_path / "a", "one"), META)
    assert (one.folder / "bundles/cap/model.onnx").read_text() == "weights" * 1000
    assert at(store.root, Machine()).generations() == [one] and one.meta == META
    assert one.told()["revision"] == 3


@pytest.mark.parametrize("kind", ["link", "folder-link", "pipe", "yaml-link"])
def test_only_plain_files_are_taken(store: Store, tmp_path: Path, kind: str) -> None:
    source = folder(tmp_path / "a", "one")
    if kind == "link":
        (source / "bundles/cap/secret").symlink_to("/etc/hostname")
    elif kind == "folder-link":
        shutil.move(source / "bundles", tmp_path / "elsewhere")
        (source / "bundles").symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(source / "bundles/cap/pipe")
    else:
        (source / "appliance.yaml").rename(tmp_path / "real.yaml")
        (source / "appliance.yaml").symlink_to(tmp_path / "real.yaml")
    with pytest.raises((StoreError, OSError)):
        store.put(source, META)
    assert store.generations() == [] and not list((store.root / "generations").iterdir())


def test_a_full_disk_leaves_nothing_behind(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = good(store, folder(tmp_path / "a", "one"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space"):
        store.put(folder(tmp_path / "b", "two"), META)
    assert [entry.name for entry in (store.root / "generations").iterdir()] == [one.name] and chosen(store) == one.number


def test_the_newest_are_kept_and_the_good_one(store: Store, machine: Machine, tmp_path: Path) -> None:
    one = good(store, folder(tmp_path / "a", "good"))
    for number in range(8):
        store.put(folder(tmp_path / "b", f"{number}"), META)
    (store.root / "generations/000099.part").mkdir()
    store.prune()
    numbers = [entry.number for entry in store.generations()]
    assert numbers == [one.number, *range(5, 10)] and len(numbers) == KEPT + 1
    assert not (store.root / "generations/000099.part").exists()
    store.begin_trial(store.generations()[1], LATER_NS)
    for number in range(8, 16):
        store.put(folder(tmp_path / "b", f"{number}"), META)
    store.prune()
    assert {1, 5} <= {entry.number for entry in store.generations()}


# --- what cannot be believed --------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"{", b'{"good": 2}', b'{"good": 2, "trial": null, "checksum": "sha256:0"}', b"[]"])
def test_a_state_that_rotted_is_read_from_its_copy(store: Store, tmp_path: Path, damage: bytes) -> None:
    one = good(store, folder(tmp_path / "a", "one"))
    store.put(folder(tmp_path / "b", "two"), META)
    (store.root / "state.json").write_bytes(damage)
    (store.root / "essentials.json").write_bytes(damage)
    assert chosen(store) == one.number and store.essentials() == {"station": one.digest}
    (store.root / "state.copy.json").write_bytes(damage)
    (store.root / "essentials.copy.json").write_bytes(damage)
    assert chosen(store) is None and store.essentials() is None, "better none than a guess"


def test_a_generation_without_its_meta_is_none(store: Store, tmp_path: Path) -> None:
    one = good(store, folder(tmp_path / "a", "one"))
    (one.folder / "meta.json").write_text("{}")
    assert chosen(store) is None and store.generations() == []
    assert store.put(folder(tmp_path / "a", "one"), META).number == 2, "its number is not used again"


def test_a_writer_waits_for_another_process_and_readers_do_not(store: Store, tmp_path: Path) -> None:
    one = good(store, folder(tmp_path / "a", "one"))
    other = os.open(store.root / "lock", os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)
    made: list[Generation] = []
    writer = threading.Thread(target=lambda: made.append(store.put(folder(tmp_path / "b", "two"), META)))
    writer.start()
    writer.join(0.3)
    assert writer.is_alive() and made == [] and chosen(store) == one.number
    os.close(other)
    writer.join(30)
    assert [each.number for each in made] == [2]


# --- the power cut at every step ----------------------------------------------------------------------------


def cut_put(store: Store, source: Path) -> None:
    store.put(source, META)


def cut_begin(store: Store, source: Path) -> None:
    store.begin_trial(store.put(source, META), LATER_NS)


def cut_mark(store: Store, _source: Path) -> None:
    store.mark_good({"station": "new"})


def cut_all(store: Store, source: Path) -> None:
    store.begin_trial(store.put(source, META), LATER_NS)
    store.mark_good({"station": "new"})


def cut_give_up(store: Store, _source: Path) -> None:
    store.give_up()


def cut_prune(store: Store, _source: Path) -> None:
    store.prune()


def begun(store: Store, source: Path) -> None:
    store.begin_trial(store.put(source, META), LATER_NS)


def many(store: Store, source: Path) -> None:
    for number in range(8):
        store.put(folder(source.parent / "more", f"{number}"), META)


@pytest.mark.parametrize("first", [True, False], ids=["nothing before", "a good one before"])
@pytest.mark.parametrize(
    ("boot", "names_lost"),
    [("boot-1", False), ("boot-2", False), ("boot-2", True)],
    ids=["the doer is killed", "the power goes", "the power goes and names are lost"],
)
@pytest.mark.parametrize(
    ("before", "act"),
    [(None, cut_put), (None, cut_begin), (None, cut_all), (begun, cut_mark), (begun, cut_give_up), (many, cut_prune)],
    ids=["put", "begin_trial", "all of it", "mark_good", "give_up", "prune"],
)
def test_a_cut_at_any_step_leaves_the_old_or_the_new_whole(
    tmp_path: Path, first: bool, names_lost: bool, boot: str, before: Callable | None, act: Callable
) -> None:
    source, steps, seen = folder(tmp_path / "new", "new"), 0, set()
    for number in itertools.count():
        root, machine = tmp_path / f"config{number}", Machine()
        store = at(root, machine)
        old = None if first else good(store, folder(tmp_path / "old", "old"))
        if before:
            before(store, source)
        with Disk(root, cut_at=number) as disk:
            act(store, source)
        if not disk.cut:
            break
        steps += 1
        if boot == "boot-2":
            disk.after_the_cut(names_lost)
        machine.boot = boot
        again = at(root, machine)
        one = again.choose().generation
        seen.add(one.file.read_text() if one else None)
        assert one is None or again.intact(one), disk.told
        assert one is not None or first, f"the old one is lost after {disk.told}"
        if act is cut_prune and old:
            assert one == old
        assert all(again.intact(each) for each in again.generations()), disk.told
        assert again.essentials() in (None, {"station": "new"}, {"station": old.digest if old else ""})
        assert old is None or again.essentials() is not None
        again.give_up()  # what a killed doer began is settled
        third = good(again, folder(tmp_path / "third", "third"))  # and it goes on from there
        assert again.choose().generation == third and again.intact(third)
        again.prune()
        shutil.rmtree(root)
    assert steps >= 4, disk.told
    names = {None if first else "old", "new"}
    assert seen <= names | ({"old"} if not first else {None})
    if act is cut_mark:
        assert "new" in seen, "a new one is good from a step on"
    if act is cut_begin and boot == "boot-2":
        assert seen == {None if first else "old"}


def test_a_cut_between_good_and_essentials_is_told(store: Store, tmp_path: Path) -> None:
    """The store is right at each; the essentials name the digest they are of, for settle to write them anew."""
    good(store, folder(tmp_path / "a", "one"))
    begun(store, folder(tmp_path / "b", "two"))
    for number in itertools.count():
        with Disk(store.root, cut_at=number) as disk:
            store.mark_good({"station": "two"})
        if store.good and store.good.number == 2 and store.essentials() != {"station": "two"}:
            break
        assert disk.cut
    store.write_essentials({"station": "two"})
    assert store.essentials() == {"station": "two"}
