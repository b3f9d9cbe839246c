"""``appliance update``: from a bundle to a version that is kept or not, beside a stand-in of the station that begins anew."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.__main__ import main
from appliance.box import launch, slots
from appliance.box.again import ROLES
from appliance.box.app_bundle import manifest_of, write
from appliance.box.durable import boot_id
from appliance.box.signature import enrol
from appliance.box.store import Meta
from appliance.clock import VirtualClock, boottime_ns
from appliance.wiring import update
from appliance.wiring.settle import decide, settle
from appliance.wiring.update import Outcome, Site

PYTHON, ARCH, _USER = launch.this_process()
SHIPPED = Path(__file__).resolve().parents[2] / "appliance/twin/station.yaml"


@dataclass
class Station:
    """Stands in for three daemons and systemd: who is asked begins anew with what the launcher chooses then, and reportd
    writes state.json. ``ill``: versions with which inspectd waits; ``mute``: with which nobody writes; ``stubborn``: who
    begins anew runs what he ran."""

    run: Path
    slots: Path
    clock: VirtualClock
    ill: set[str] = field(default_factory=set)
    mute: set[str] = field(default_factory=set)
    runs: dict[str, str] = field(default_factory=dict)
    restarts: int = 0
    interrupt: bool = False
    stubborn: bool = False

    def wait(self, duration_ns: int) -> None:
        """Time goes by, and everybody does what he would meanwhile."""
        if self.interrupt:
            raise KeyboardInterrupt
        self.clock.advance_to(self.clock.now_ns() + duration_ns)
        for role in ROLES:
            asked = self.run / f"again-{role}"
            if asked.exists() or role not in self.runs:
                asked.unlink(missing_ok=True)
                self.restarts += 1
                self.runs[role] = self.runs["report"] if self.stubborn else self.identity()
        version = self.runs["report"]
        if version.split()[0] not in self.mute:
            state = "waiting" if version.split()[0] in self.ill else "ready"
            told: dict[str, dict[str, Any]]
            told = {role: {"configuration": "", "version": self.runs[role], "reason": ""} for role in ROLES}
            told["inspect"] |= {"state": state, "progress": 0.0}
            told["reject"] |= {"state": "running"}
            (self.run / "state.json").write_text(json.dumps({"written_ns": self.clock.now_ns(), **told}))

    def identity(self) -> str:
        name, stamp, _why = launch.choose(str(self.slots), "0.1.0", boot_id(), boottime_ns())
        return launch.identity(stamp["version"] if stamp else "0.1.0", name, stamp)


@dataclass
class Children:
    """Stands in for the programs of a new slot. ``says``: what one answers, by a word of its command; ``result``: what it
    writes to a stick, ``mute``: nothing."""

    says: dict[str, str] = field(default_factory=dict)
    ran: list[list[str]] = field(default_factory=list)
    environments: list[dict[str, str]] = field(default_factory=list)
    rehearsed: str = ""
    result: str = "Result: KEPT"
    mute: bool = False

    def __call__(self, command: Sequence[str], environment: dict[str, str], *_rest: Any) -> str:
        self.ran.append(list(command))
        self.environments.append(environment)
        if "rehearse" in command:
            self.rehearsed = Path(command[-1]).read_text()
        if "apply" in command and not self.mute:
            Path(command[command.index("apply") + 1], "RESULT.txt").write_text(self.result)
        return next((said for word, said in self.says.items() if word in command), "")


@dataclass
class Bench:
    site: Site
    station: Station
    children: Children
    folder: Path

    def bundle(self, version: str, **more: Any) -> Path:
        tree = self.folder / f"tree-{version}"
        for name in ("appliance/__init__.py", "appliance/__main__.py", "appliance/twin/station.yaml", "VERSION"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(f"# {name} of {version}\n")
        (tree / "models").mkdir(exist_ok=True)
        (tree / "models/model.onnx").write_bytes(bytes(100_000))
        out = self.folder / f"appliance_{version}.bundle"
        write(tree, out, version, more.pop("arch", ARCH), PYTHON, **more)
        return out

    def install(self, bundle: Path, force: bool = False) -> Outcome:
        return update.install(self.site, bundle, "person ada", "a new gate", force)

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """All that the ledger will hear, oldest first."""
        told = [json.loads(path.read_bytes()) for path in sorted((self.site.data / "spool").glob("*.json"))]
        return [(one["kind"], one["data"]) for one in told]

    def configure(self, signature: str = "warn") -> None:
        """A good configuration."""
        source = self.folder / "configuration"
        source.mkdir(exist_ok=True)
        text, count = re.subn(r'(?m)^signature: "?\w+"?', f'signature: "{signature}"', SHIPPED.read_text())
        assert count == 1
        (source / "appliance.yaml").write_text(text)
        store = self.site.store
        store.begin_trial(store.put(source, Meta("ada", "why", 1, "s", 0, "synced")), boottime_ns() + 10**12)
        store.mark_good({})

    def enrol(self) -> Ed25519PrivateKey:
        key = Ed25519PrivateKey.generate()
        enrol(self.site.data / "keys", {"plant": key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)})
        return key

    def chosen(self) -> str:
        return self.station.identity().split()[0]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    for name in ("data", "run", "package"):
        (tmp_path / name).mkdir()
    (tmp_path / "package/VERSION").write_text("0.1.0\n")
    clock = VirtualClock(10**12)
    station = Station(tmp_path / "run", tmp_path / "data/slots", clock)
    station.wait(0)
    children = Children()
    site = Site(tmp_path / "data", tmp_path / "run", tmp_path / "package", clock, station.wait, children)
    return Bench(site, station, children, tmp_path)


def sign(key: Ed25519PrivateKey, bundle: Path) -> None:
    Path(f"{bundle}.sig").write_bytes(key.sign(manifest_of(bundle).raw))


# --- kept, or not ------------------------------------------------------------------------------------------


def test_a_healthy_version_is_kept_and_nothing_begins_anew_after_that(bench: Bench) -> None:
    bundle = bench.bundle("0.2.0")
    outcome = bench.install(bundle)
    digest = manifest_of(bundle).digest[7:19]
    unsigned = "warning: it is not signed (no appliance_0.2.0.bundle.sig beside it)"
    assert outcome == Outcome("applied", f"0.2.0 a {digest} runs and is kept, in place of 0.1.0 packaged; {unsigned}",
                              "0.1.0 packaged", f"0.2.0 a {digest}")  # fmt: skip
    assert set(bench.station.runs.values()) == {f"0.2.0 a {digest}"} and bench.station.restarts == 6
    for _ in range(50):
        bench.station.wait(10**9)
    assert bench.station.restarts == 6
    assert [kind for kind, _data in bench.events()] == ["update_offered", "update_applied"]
    applied = bench.events()[1][1]
    assert (applied["old"], applied["new"], applied["who"], applied["why"]) == (
        "0.1.0 packaged", f"0.2.0 a {digest}", "person ada", "a new gate"
    )  # fmt: skip


def test_the_same_bundle_again_changes_nothing_and_is_no_event(bench: Bench) -> None:
    """As a stick that was left plugged in at the next start."""
    bundle = bench.bundle("0.2.0")
    bench.install(bundle)
    events = len(bench.events())
    outcome = bench.install(bundle)
    assert (outcome.result, outcome.code) == ("unchanged", 0) and "runs already" in outcome.text
    assert len(bench.events()) == events and bench.station.restarts == 6


def test_the_next_version_fills_the_other_slot(bench: Bench) -> None:
    for version, slot in (("0.2.0", "a"), ("0.3.0", "b"), ("0.4.0", "a"), ("0.5.0", "b")):
        assert bench.install(bench.bundle(version)).new.split()[:2] == [version, slot]
        assert bench.chosen() == version


@pytest.mark.parametrize("how", ["ill", "mute"])
def test_a_version_that_is_not_healthy_is_not_kept_and_not_tried_again(bench: Bench, how: str) -> None:
    bench.install(bench.bundle("0.2.0"))
    getattr(bench.station, how).add("0.3.0")
    bundle = bench.bundle("0.3.0")
    outcome = bench.install(bundle)
    words = {"ill": "inspectd is waiting", "mute": "reportd does not answer"}
    assert outcome.result == "returned" and words[how] in outcome.text and outcome.code == 3
    bench.station.wait(10**9)
    assert {version.split()[0] for version in bench.station.runs.values()} == {"0.2.0"}
    kind, data = bench.events()[-1]
    assert kind == "update_returned" and words[how] in data["text"] and data["who"] == "person ada"
    again = bench.install(bundle)
    assert again.result == "refused" and "was tried and not kept" in again.text and again.code == 2
    assert bench.events()[-1][0] == "update_refused"
    getattr(bench.station, how).clear()
    assert bench.install(bundle, force=True).result == "applied"


def test_a_station_that_is_healthy_with_another_version_proves_nothing(bench: Bench) -> None:
    bench.station.stubborn = True
    outcome = bench.install(bench.bundle("0.2.0"))
    assert outcome.result == "returned" and "runs another version (0.1.0 packaged)" in outcome.text


def test_that_the_station_was_ill_before_is_told(bench: Bench) -> None:
    bench.station.ill = {"0.1.0", "0.2.0"}
    bench.station.wait(10**9)
    outcome = bench.install(bench.bundle("0.2.0"))
    assert "before the update it was not healthy either: inspectd is waiting" in outcome.text


def test_an_interrupted_update_is_given_up_at_once(bench: Bench) -> None:
    bench.station.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        bench.install(bench.bundle("0.2.0"))
    assert bench.chosen() == "0.1.0"
    assert "interrupted" in bench.events()[-1][1]["text"] and bench.site.doer().state().failed[0].tries == 1
    assert {path.name for path in bench.site.run.glob("again-*")} == {"again-reject", "again-inspect", "again-report"}


def test_where_no_station_runs_nothing_is_tried(bench: Bench) -> None:
    site = replace(bench.site, run=bench.folder / "nowhere")
    outcome = update.install(site, bench.bundle("0.2.0"), "ada", "")
    assert outcome.result == "refused" and "no station runs here" in outcome.text and bench.chosen() == "0.1.0"


# --- refused -----------------------------------------------------------------------------------------------


def test_nothing_of_a_bundle_runs_and_no_slot_is_touched_before_all_of_it_was_verified(bench: Bench) -> None:
    bench.install(bench.bundle("0.2.0"))
    bench.install(bench.bundle("0.3.0"))
    bench.children.ran.clear()
    bundle = bench.bundle("0.4.0")
    raw = bytearray(bundle.read_bytes())
    raw[-1024 - 1] ^= 1  # the last byte of the last file's padding
    bundle.write_bytes(raw)
    before = sorted(str(path) for path in bench.station.slots.rglob("*"))
    outcome = bench.install(bundle)
    assert outcome.result == "refused" and "the bundle is damaged" in outcome.text
    assert bench.children.ran == [] and sorted(str(path) for path in bench.station.slots.rglob("*")) == before
    assert bench.events()[-1][0] == "update_refused" and bench.chosen() == "0.3.0"


def test_no_bundle_is_refused_in_words(bench: Bench) -> None:
    (bench.folder / "x.bundle").write_bytes(b"no bundle" * 1000)
    outcome = bench.install(bench.folder / "x.bundle")
    assert outcome.result == "refused" and "no bundle of this application" in outcome.text and outcome.new == ""
    assert "No such file" in bench.install(bench.folder / "gone.bundle").text


def test_what_does_not_fit_is_refused_before_it_is_unpacked(bench: Bench) -> None:
    outcome = bench.install(bench.bundle("0.2.0", arch="arm64" if ARCH == "amd64" else "amd64"))
    assert "take the one for" in outcome.text and "nothing was changed, 0.1.0 packaged runs" in outcome.text
    assert "L4T" in bench.install(bench.bundle("0.2.0", l4t="999")).text
    assert {path.name for path in bench.station.slots.iterdir()} == {"lock"}


@pytest.mark.parametrize(
    ("word", "words"),
    [("check", "refuses the running configuration"), ("rehearse", "does not pass its own rehearsal here"),
     ("apply", "takes no stick here")],
)
def test_a_version_that_fails_its_preflight_never_runs_and_is_tried_twice(bench: Bench, word: str, words: str) -> None:
    bench.configure()
    bench.children.says = {word: "exit 2: no such setting"}
    bundle = bench.bundle("0.2.0")
    for _ in range(2):
        outcome = bench.install(bundle)
        assert outcome.result == "refused" and words in outcome.text and "no such setting" in outcome.text
        assert bench.station.restarts == 3 and bench.chosen() == "0.1.0"
        assert {path.name for path in bench.station.slots.iterdir()} == {"lock", "state.json"}
    assert "was tried and not kept" in bench.install(bundle).text


def test_the_preflight_looks_at_what_runs_and_leaves_the_stations_folders_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.configure()
    monkeypatch.setenv("STATE_DIRECTORY", str(bench.site.data))
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    bench.install(bench.bundle("0.2.0"))
    compiled, checked, rehearsed, applied = bench.children.ran
    assert compiled[1:4] == ["-I", "-m", "compileall"]
    assert checked[-2:] == ["check", str(bench.site.store.good.file if bench.site.store.good else "")]
    assert rehearsed[3:7] == ["rehearse", "--fast", "--parts", "50"]
    assert applied[3:5] == ["usb", "apply"] and "--device" not in applied
    home = Path(bench.children.environments[3]["HOME"])
    assert all(Path(applied[applied.index(word) + 1]).parent == home for word in ("apply", "--data-dir", "--run-dir"))
    assert bench.children.rehearsed == "# appliance/twin/station.yaml of 0.2.0\n\nengine: cpu\n"  # the GPU is the station's
    for environment in bench.children.environments[1:]:
        assert not {"STATE_DIRECTORY", "RUNTIME_DIRECTORY", "NOTIFY_SOCKET"} & set(environment)
        assert environment["PYTHONPATH"].startswith(str(bench.station.slots / "a:")) and environment["HOME"] != os.environ["HOME"]


def test_a_version_that_says_nothing_to_a_stick_never_runs(bench: Bench) -> None:
    """It would run, be healthy, and never be reached again."""
    bench.children.mute = True
    text = bench.install(bench.bundle("0.2.0")).text
    assert "takes no stick here: it wrote no RESULT.txt" in text and bench.chosen() == "0.1.0"
    bench.children.mute, bench.children.result = False, "Result: REFUSED\nthe disk is full"
    bench.children.says = {"apply": "exit 2"}
    assert "takes no stick here: exit 2: Result: REFUSED the disk is full" in bench.install(bench.bundle("0.3.0")).text


def test_a_configuration_that_goes_on_trial_while_an_update_is_prepared_is_seen_before_its_own_trial(bench: Bench) -> None:
    """The preflight takes minutes, and a stick's trial begins meanwhile: each would be judged by the other's health."""
    source = bench.folder / "configuration"
    source.mkdir()
    (source / "appliance.yaml").write_text(SHIPPED.read_text())
    store = bench.site.store
    new = store.put(source, Meta("ada", "why", 1, "s", 0, "synced"))

    class Slow(Children):
        def __call__(self, command: Sequence[str], *rest: Any) -> str:
            if "rehearse" in command:
                store.begin_trial(new, boottime_ns() + 10**12)
            return super().__call__(command, *rest)

    site = replace(bench.site, child=Slow())
    outcome = update.install(site, bench.bundle("0.2.0"), "ada", "")
    assert outcome.result == "refused" and "a configuration is on trial" in outcome.text
    assert bench.chosen() == "0.1.0" and bench.site.doer().state().trial is None and bench.site.doer().state().failed == ()
    assert not list(bench.site.run.glob("again-*")) and bench.events()[-1][0] == "update_refused"
    store.give_up()
    assert bench.install(bench.folder / "appliance_0.2.0.bundle").result == "applied"


def test_a_configuration_on_trial_refuses_an_update_and_an_update_says_that_it_is_on_trial(bench: Bench) -> None:
    source = bench.folder / "configuration"
    source.mkdir()
    (source / "appliance.yaml").write_text(SHIPPED.read_text())
    store = bench.site.store
    store.begin_trial(store.put(source, Meta("ada", "why", 1, "s", 0, "synced")), boottime_ns() + 10**12)
    assert "a configuration is on trial" in bench.install(bench.bundle("0.2.0")).text
    store.give_up()
    assert bench.install(bench.bundle("0.2.0")).result == "applied"


def test_while_another_update_is_made_a_second_is_refused(bench: Bench) -> None:
    with bench.site.doer().alone():
        assert "another update is being made" in bench.install(bench.bundle("0.2.0")).text


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As a disk that fills up: writing on fails (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_in_the_middle_leaves_nothing_and_is_not_held_against_the_bundle(bench: Bench) -> None:
    bundle = bench.bundle("0.2.0")
    for _ in range(3):
        with files_of_at_most(50_000):
            outcome = bench.install(bundle)
        assert outcome.result == "refused" and "File too large" in outcome.text
        assert {path.name for path in bench.station.slots.iterdir()} == {"lock"}
    assert bench.install(bundle).result == "applied"


# --- signatures --------------------------------------------------------------------------------------------


def test_require_takes_what_an_enrolled_key_signed_and_nothing_else(bench: Bench) -> None:
    bench.configure("require")
    key, bundle = bench.enrol(), bench.bundle("0.2.0")
    assert "it is not signed" in bench.install(bundle).text
    sign(Ed25519PrivateKey.generate(), bundle)
    assert "signature: require takes only" in bench.install(bundle).text
    Path(f"{bundle}.sig").write_bytes(b"no signature")
    assert "signature: require takes only" in bench.install(bundle).text
    sign(key, bench.bundle("0.3.0"))
    Path(f"{bundle}.sig").write_bytes((bench.folder / "appliance_0.3.0.bundle.sig").read_bytes())
    assert "signature: require takes only" in bench.install(bundle).text  # another bundle's
    assert bench.children.ran == [] and bench.chosen() == "0.1.0"
    sign(key, bundle)
    assert bench.install(bundle).result == "applied"


def test_require_takes_nothing_older(bench: Bench) -> None:
    bench.configure("require")
    key = bench.enrol()
    for version in ("0.3.0", "0.2.0"):
        sign(key, bench.bundle(version))
    assert bench.install(bench.folder / "appliance_0.3.0.bundle").result == "applied"
    assert "is older than 0.3.0" in bench.install(bench.folder / "appliance_0.2.0.bundle").text


@pytest.mark.parametrize(("mode", "told"), [("warn", True), ("off", False)])
def test_warn_tells_and_off_says_nothing(bench: Bench, mode: str, told: bool) -> None:
    bench.configure(mode)
    said: list[str] = []
    outcome = update.install(bench.site, bench.bundle("0.2.0"), "ada", "", say=said.append)
    assert outcome.result == "applied" and any("it is not signed" in text for text in said) == told
    assert ("warning: it is not signed" in outcome.text) == told, "the stick's RESULT.txt is made of this"


@pytest.mark.parametrize("keys", [True, False])
def test_warn_takes_no_wrong_signature_which_is_more_than_none(bench: Bench, keys: bool) -> None:
    """As for a configuration: by accident or not, it is not what its author signed."""
    bench.configure("warn")
    if keys:
        bench.enrol()
    stranger, bundle = Ed25519PrivateKey.generate(), bench.bundle("0.2.0")
    for raw in (b"no signature", *([stranger.sign(manifest_of(bundle).raw)] if keys else [])):
        Path(f"{bundle}.sig").write_bytes(raw)
        outcome = bench.install(bundle)
        assert outcome.result == "refused" and "a wrong signature is worse than none" in outcome.text
        assert bench.children.ran == [] and bench.chosen() == "0.1.0"


def test_warn_takes_and_tells_of_a_signature_that_nobody_can_check(bench: Bench) -> None:
    bench.configure("warn")
    bundle = bench.bundle("0.2.0")
    sign(Ed25519PrivateKey.generate(), bundle)
    outcome = bench.install(bundle)
    assert outcome.result == "applied" and "warning: it is signed, and no key is enrolled" in outcome.text


def test_without_a_configuration_the_enrolled_keys_say_what_is_required(bench: Bench) -> None:
    assert update.signature_mode(bench.site) == "warn"
    bench.enrol()
    assert update.signature_mode(bench.site) == "require"


def test_a_signature_by_openssl_over_the_manifest_is_taken(bench: Bench) -> None:
    """As README says: manifest, sign, lay beside."""
    bench.configure("require")
    bundle = bench.bundle("0.2.0")
    manifest, secret = bench.folder / "manifest.json", bench.folder / "secret.pem"
    said = subprocess.run(
        [sys.executable, "-m", "appliance", "update", "manifest", str(bundle)],
        capture_output=True, check=True, cwd=SHIPPED.parents[2],
    )  # fmt: skip
    manifest.write_bytes(said.stdout)

    def openssl(*arguments: str) -> bytes:
        return subprocess.run(["openssl", *arguments], capture_output=True, check=True).stdout

    try:
        openssl("genpkey", "-algorithm", "ed25519", "-out", str(secret))
    except FileNotFoundError:
        pytest.skip("no openssl here")
    enrol(bench.site.data / "keys", {"plant": openssl("pkey", "-in", str(secret), "-pubout")})
    openssl("pkeyutl", "-sign", "-inkey", str(secret), "-rawin", "-in", str(manifest), "-out", f"{bundle}.sig")
    assert bench.install(bundle).result == "applied"


# --- settling ----------------------------------------------------------------------------------------------


def begin(bench: Bench, version: str) -> None:
    """An update whose doer is killed as soon as the trial began."""
    bundle, doer = bench.bundle(version), bench.site.doer("person ada", "a new gate")
    with doer.alone():
        from appliance.box.app_bundle import verify
        from appliance.box.slots_doer import Offer

        doer.offer = Offer(bundle, verify(bundle))
        slot = slots.target(doer.state(), doer.seen())
        doer.do_all([*slots.filling(slot, doer.seen()), *slots.trying(slot)])


@pytest.mark.parametrize("ill", [False, True])
def test_settling_sees_a_trial_through_whose_doer_was_killed(bench: Bench, ill: bool) -> None:
    begin(bench, "0.2.0")
    bench.station.ill = {"0.2.0"} if ill else set()
    on_trial = update.ApplicationOnTrial(bench.site.doer("settle"))
    with on_trial.alone() as mine:
        assert mine and settle([on_trial], bench.site.run, bench.site.clock, bench.station.wait) == 0
    assert bench.chosen() == ("0.1.0" if ill else "0.2.0")
    kind, data = bench.events()[-1]
    assert kind == ("update_returned" if ill else "update_applied") and data["who"] == "person ada"


def test_settling_leaves_an_update_that_is_being_made_alone(bench: Bench) -> None:
    begin(bench, "0.2.0")
    on_trial = update.ApplicationOnTrial(bench.site.doer("settle"))
    with bench.site.doer().alone(), on_trial.alone() as mine:
        assert not mine
    assert bench.chosen() == "0.2.0"


def test_settling_at_boot_gives_up_what_a_restart_ended_and_asks_nobody(bench: Bench) -> None:
    begin(bench, "0.2.0")
    for path in bench.site.run.glob("again-*"):
        path.unlink()
    state = json.loads((bench.station.slots / "state.json").read_bytes())
    state["trial"]["boot_id"] = "the boot before"
    (bench.station.slots / "state.json").write_text(json.dumps(state))
    on_trial = update.ApplicationOnTrial(bench.site.doer("settle"))
    with on_trial.alone():
        assert decide(on_trial, bench.site.run, bench.site.clock, bench.station.wait) == ""
    assert "the box was restarted during its trial" in bench.events()[-1][1]["text"]
    assert not list(bench.site.run.glob("again-*")) and bench.chosen() == "0.1.0"


def test_the_verb_settles_both_halves(bench: Bench) -> None:
    (bench.station.slots / "b.part").mkdir(parents=True)
    assert main(["settle", "--data-dir", str(bench.site.data), "--run-dir", str(bench.site.run)]) == 0
    assert {path.name for path in bench.station.slots.iterdir()} == {"lock"}


# --- back by hand, status, the verb ------------------------------------------------------------------------


def test_back_by_hand_is_to_what_proved_itself_before_then_to_the_package(bench: Bench) -> None:
    assert "there is none to go back to" in update.come_back(bench.site, "ada", "").text
    bench.install(bench.bundle("0.2.0"))
    bench.install(bench.bundle("0.3.0"))
    outcome = update.come_back(bench.site, "person ada", "it is slower")
    assert outcome.result == "applied" and outcome.new.startswith("0.2.0 a ")
    bench.station.wait(10**9)
    assert bench.chosen() == "0.2.0" and {one.split()[0] for one in bench.station.runs.values()} == {"0.2.0"}
    kind, data = bench.events()[-1]
    assert kind == "update_returned" and data["why"] == "it is slower" and data["old"].startswith("0.3.0 b ")
    update.come_back(bench.site, "ada", "")
    assert bench.chosen() == "0.3.0"  # the other one, which proved itself too


@pytest.mark.parametrize("harm", ["altered", "gone", "manifest"])
def test_a_slot_that_rotted_since_it_proved_itself_is_not_gone_back_to(bench: Bench, harm: str) -> None:
    """Nobody looks at the health of what a person goes back to."""
    bench.install(bench.bundle("0.2.0"))
    bench.install(bench.bundle("0.3.0"))
    victim = bench.station.slots / "a" / {"manifest": "manifest.json"}.get(harm, "models/model.onnx")
    victim.unlink() if harm == "gone" else victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    outcome = update.come_back(bench.site, "ada", "")
    assert outcome.result == "refused" and victim.name in outcome.text and "not as it was installed" in outcome.text
    assert bench.chosen() == "0.3.0"
    assert update.come_back(bench.site, "ada", "").new == "0.1.0 packaged", "asked again: what is left"


ARMED = """Current rootfs slot: A
Active rootfs slot: A
num_slots: 2
slot: 0,             retry_count: 3,             status: normal
slot: 1,             retry_count: 0,             status: unbootable
"""
CHAIN = """Current version: 36.4.3
Capsule update status: 0
Current bootloader slot: A
Active bootloader slot: A
num_slots: 2
slot: 0,             status: normal
slot: 1,             status: normal
"""
ALONE = "Current rootfs slot: A\nActive rootfs slot: A\nnum_slots: 1\nslot: 0,             status: normal\n"


@pytest.fixture
def nvbootctrl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A program of that name, which writes down what it is asked."""

    def make(rootfs: str) -> Path:
        folder, log = tmp_path / "bin", tmp_path / "asked"
        folder.mkdir()
        (folder / "chain").write_text(CHAIN)
        (folder / "rootfs").write_text(rootfs)
        script = folder / "nvbootctrl"
        script.write_text(f'#!/bin/sh\necho "$*" >> {log}\ncase "$1" in -t) cat {folder}/rootfs;; *) cat {folder}/chain;; esac\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return log

    return make


def status(bench: Bench) -> str:
    out = io.StringIO()
    update.write_status(update.status_of(bench.site), out)
    return out.getvalue()


def test_status_shows_slots_and_l4ts_own_and_only_asks(bench: Bench, nvbootctrl: Callable[[str], Path]) -> None:
    log = nvbootctrl(ARMED)
    bench.install(bench.bundle("0.2.0"))
    text = status(bench)
    assert "runs      0.2.0 a " in text and "slot b    empty" in text and "package   0.1.0" in text
    assert "return    to 0.1.0 packaged" in text
    assert "L4T       rootfs: current A; 0 normal, 1 unbootable" in text and "warning: L4T's rootfs slot 1 is unbootable" in text
    assert "not armed" not in text
    assert log.read_text().splitlines() == ["dump-slots-info", "-t rootfs dump-slots-info"]


def test_rootfs_a_b_that_is_not_armed_is_a_warning(bench: Bench, nvbootctrl: Callable[[str], Path]) -> None:
    nvbootctrl(ALONE)
    assert "warning: rootfs A/B is not armed" in status(bench)


def test_without_nvbootctrl_nothing_is_warned_of(bench: Bench) -> None:
    assert update.l4t_slots(lambda question: None) is None
    out = io.StringIO()
    update.write_status({**update.status_of(bench.site), "l4t": None}, out)
    assert "L4T       none here" in out.getvalue() and "warning" not in out.getvalue()


def test_an_nvbootctrl_that_fails_is_told(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvbootctrl").write_text("#!/bin/sh\necho 'not root' >&2\nexit 1\n")
    (tmp_path / "nvbootctrl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "warning: L4T's rootfs slots cannot be read: nvbootctrl -t rootfs dump-slots-info: exit 1: not root" in status(bench)


@pytest.mark.parametrize("answer", ["", "\n\n", "slot", "slot:", "a: b: c\nslot: 0, , status", "slot: 0, status: " + "x" * 9999])
def test_any_answer_of_nvbootctrl_is_shown_or_left_out(answer: str) -> None:
    told = update.l4t_slots(lambda question: answer)
    assert told is not None and isinstance(told["warnings"], list)


def test_status_tells_what_failed_and_who_still_runs_what(bench: Bench) -> None:
    bench.station.ill = {"0.2.0"}
    bench.install(bench.bundle("0.2.0"))
    assert "failed    0.2.0 " in status(bench) and "inspectd is waiting" in status(bench)
    bench.station.wait(10**9)
    assert "still run" not in status(bench)
    begin(bench, "0.3.0")
    assert "trial     slot a, " in status(bench) and "still run 0.1.0 packaged" in status(bench)


def test_the_verb_tells_and_its_exit_code_says_how_it_went(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--data-dir", str(bench.site.data), "--run-dir", str(bench.site.run)]
    (bench.folder / "x.bundle").write_bytes(b"none")
    said = bench.folder / "said.json"
    assert main(["update", "install", str(bench.folder / "x.bundle"), *folders, "--json", str(said)]) == 2
    assert json.loads(said.read_bytes())["result"] == "refused" and "nothing was changed" in capsys.readouterr().err
    assert main(["update", "install", *folders]) == 2 and "name the bundle" in capsys.readouterr().err
    assert main(["update", "status", *folders]) == 0 and "runs      " in capsys.readouterr().out
    assert main(["update", "return", *folders]) == 2 and "none to go back to" in capsys.readouterr().err


def test_whatever_is_brought_is_answered(bench: Bench) -> None:
    for path in (bench.folder / "gone.bundle", bench.folder, Path("/dev/null"), Path("/proc/1/mem")):
        outcome = update.install(bench.site, path, "stick 4711", "")
        assert outcome.result == "refused" and path.name in outcome.text
    assert {data["who"] for _kind, data in bench.events()} == {"stick 4711"}


def test_a_person_whose_terminal_goes_away_gives_the_update_up() -> None:
    """SIGHUP, as when a network falls: the trial is ended as by Ctrl-C, not left to nobody."""
    program = """
import os, signal, sys
from appliance.__main__ import main
from appliance.wiring import update
update.install = lambda *_: os.kill(os.getpid(), signal.SIGHUP) or signal.pause()
sys.exit(main(["update", "install", "x.bundle", "--data-dir", "/tmp", "--run-dir", "/tmp"]))
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=SHIPPED.parents[2], timeout=30).returncode == 130


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it becomes another user")
def test_root_becomes_the_owner_of_the_stations_folders(bench: Bench) -> None:
    """In a process of its own: there is no way back."""
    packages = Path(msgspec.__file__).parents[1]
    environment = {"PATH": os.defpath, "PYTHONPATH": f"{SHIPPED.parents[2]}:{packages}", "PYTHONDONTWRITEBYTECODE": "1"}

    def python(user: int | None, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [launch.PYTHON, *arguments]  # the tests' own may lie where nobody else can read it
        return subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, user=user)

    if python(65534, "-c", "import appliance.wiring.update").returncode:
        pytest.skip(f"{launch.PYTHON} cannot import this tree and its packages as another user")
    with tempfile.TemporaryDirectory() as made_here:  # pytest's own folders are root's alone
        folder = Path(made_here)
        folder.chmod(0o755)
        for name in ("data", "run"):
            (folder / name).mkdir()
            os.chown(folder / name, 65534, 65534)
        bundle = folder / "x.bundle"
        bundle.write_bytes(bench.bundle("0.2.0", arch="arm64" if ARCH == "amd64" else "amd64").read_bytes())
        folders = ("--data-dir", str(folder / "data"), "--run-dir", str(folder / "run"))
        done = python(None, "-m", "appliance", "update", "install", str(bundle), *folders)
        assert done.returncode == 2 and "take the one for" in done.stderr
        made = [*(folder / "data").rglob("*")]
        assert made and {path.stat().st_uid for path in made} == {65534}
        shutil.rmtree(folder / "data/slots")  # as a factory reset does
        done = python(None, "-m", "appliance", "settle", *folders)
        assert done.returncode == 0, done.stderr
        assert (folder / "data/slots/lock").exists()
        assert {path.stat().st_uid for path in (folder / "data").rglob("*")} == {65534}


# --- with this very tree -----------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_this_tree_as_a_bundle_passes_its_own_preflight(bench: Bench) -> None:
    """Compiled, checked and rehearsed by real, bounded children; then kept. The packages are those of the tests' Python."""
    from appliance.box.slots_doer import bounded

    root, tree = SHIPPED.parents[2], bench.folder / "whole"
    for name in ("appliance", "models"):
        for path in (root / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and "train" not in path.parts:
                target = tree / path.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    write(tree, bench.folder / "whole.bundle", "0.9.0", ARCH, PYTHON)
    bench.configure()
    outcome = update.install(replace(bench.site, child=bounded), bench.folder / "whole.bundle", "ada", "")
    assert outcome.result == "applied", outcome.text
    # What is broken in it is found before it runs.
    (tree / "appliance/inspect/judge.py").write_text("def judge(:\n")
    write(tree, bench.folder / "broken.bundle", "0.9.1", ARCH, PYTHON)
    outcome = update.install(replace(bench.site, child=bounded), bench.folder / "broken.bundle", "ada", "")
    assert outcome.result == "refused" and "SyntaxError" in outcome.text and bench.chosen() == "0.9.0"
    (tree / "appliance/inspect/judge.py").write_bytes((root / "appliance/inspect/judge.py").read_bytes())
    (tree / "appliance/wiring/stick_verbs.py").write_text("def usb(*_):\n    raise RuntimeError('no stick any more')\n")
    write(tree, bench.folder / "deaf.bundle", "0.9.2", ARCH, PYTHON)
    outcome = update.install(replace(bench.site, child=bounded), bench.folder / "deaf.bundle", "ada", "")
    assert outcome.result == "refused" and "no stick any more" in outcome.text and bench.chosen() == "0.9.0"
