"""The launcher: real processes of a real script, in a box that lies in a folder; whatever stands in the slots, something runs."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.box import launch

SOURCE = Path(launch.__file__)
_TELL = """
import json, os, sys
told = {name: os.environ.get(name) for name in ("APPLIANCE_VERSION", "APPLIANCE_SLOT", "PYTHONPATH")}
told |= {"arguments": sys.argv[1:], "file": __file__, "no caches": sys.dont_write_bytecode}
print(json.dumps(told))
"""


@dataclass
class BoxFolder:
    """A box's root. ``boot``: this machine's own, for the script asks the kernel."""

    root: Path
    boot: str
    now_ns: int

    @property
    def slots(self) -> Path:
        return self.root / launch.SLOTS_FOLDER

    @property
    def package(self) -> Path:
        return self.root / launch.PACKAGE

    def tree(self, place: Path) -> None:
        (place / "appliance").mkdir(parents=True, exist_ok=True)
        (place / "appliance/__init__.py").touch()
        (place / "appliance/__main__.py").write_text(_TELL)

    def slot(self, name: str, number: str, **change: Any) -> None:
        self.tree(self.slots / name)
        stamp = {"version": number, "digest": "sha256:" + name * 64, "python": python_here(), "arch": launch.this_process()[1]}
        (self.slots / name / "complete").write_text(json.dumps({**stamp, **change}))

    def state(self, active: Any = None, trial: Any = None, package: Any = "0.1.0") -> None:
        self.slots.mkdir(parents=True, exist_ok=True)
        (self.slots / "state.json").write_text(json.dumps({"active": active, "trial": trial, "package": package}))

    def on_trial(self, what: str, boot: str | None = None, seconds: int = 600) -> dict[str, Any]:
        return {"what": what, "before": None, "boot_id": boot or self.boot, "until_ns": self.now_ns + seconds * 10**9}

    def run(self, *arguments: str, cwd: Path | None = None, **environment: str) -> tuple[dict[str, Any], str]:
        """(what the chosen tree tells of itself, stderr)."""
        done = subprocess.run(
            [self.root / "usr/bin/appliance", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=True,
            env={"PATH": os.defpath, **environment},
        )  # fmt: skip
        told = json.loads(done.stdout)
        assert isinstance(told, dict)
        return told, done.stderr

    def chosen(self) -> str:
        told, _stderr = self.run()
        return str(told["APPLIANCE_VERSION"])


def python_here() -> str:
    """Of the Python that boxes use, not the one of the tests."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([launch.PYTHON, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def box(tmp_path: Path) -> BoxFolder:
    if not os.access(launch.PYTHON, os.X_OK):
        pytest.skip(f"no {launch.PYTHON} here")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    made = BoxFolder(tmp_path / "root", boot, time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    made.tree(made.package)
    (made.package / "VERSION").write_text("0.1.0\n")
    (made.package / "bin").mkdir()
    shutil.copy(SOURCE, made.package / "bin/appliance")
    (made.package / "bin/appliance").chmod(0o755)
    (made.root / "usr/bin").mkdir(parents=True)
    (made.root / "usr/bin/appliance").symlink_to("../lib/appliance/bin/appliance")
    return made


def test_without_slots_the_package_runs(box: BoxFolder) -> None:
    told, stderr = box.run("check", "mine.yaml", "--x=1 2")
    assert told["APPLIANCE_VERSION"] == "0.1.0 packaged" and told["APPLIANCE_SLOT"] == "packaged"
    assert told["file"] == str(box.package / "appliance/__main__.py")
    assert told["arguments"] == ["check", "mine.yaml", "--x=1 2"]
    assert told["PYTHONPATH"] == f"{box.package}:{box.package}/packages"
    assert told["no caches"] is True and stderr == ""


def test_the_active_slot_runs(box: BoxFolder) -> None:
    box.slot("b", "0.3.0")
    box.state("b")
    told, stderr = box.run()
    assert told["APPLIANCE_VERSION"] == "0.3.0 b bbbbbbbbbbbb" and told["APPLIANCE_SLOT"] == "b"
    assert told["file"] == str(box.slots / "b/appliance/__main__.py") and stderr == ""


def test_a_trial_runs_while_it_holds(box: BoxFolder) -> None:
    box.slot("a", "0.2.0")
    box.slot("b", "0.3.0")
    box.state("a", box.on_trial("b"))
    assert box.chosen() == "0.3.0 b bbbbbbbbbbbb"


@pytest.mark.parametrize("boot, seconds", [("another-boot", 600), (None, 0), (None, -1)])
def test_a_trial_of_another_boot_or_that_is_over_does_not_run(box: BoxFolder, boot: str | None, seconds: int) -> None:
    box.slot("a", "0.2.0")
    box.slot("b", "0.3.0")
    box.state("a", box.on_trial("b", boot, seconds))
    assert box.chosen() == "0.2.0 a aaaaaaaaaaaa"


def _unstamped(box: BoxFolder) -> None:
    (box.slots / "a/complete").unlink()


def _without_program(box: BoxFolder) -> None:
    (box.slots / "a/appliance/__main__.py").unlink()


def _fifo(box: BoxFolder) -> None:
    (box.slots / "a/complete").unlink()
    os.mkfifo(box.slots / "a/complete")


def _link(box: BoxFolder) -> None:
    (box.slots / "a/complete").rename(box.slots / "elsewhere")
    (box.slots / "a/complete").symlink_to("../elsewhere")


def _folder(box: BoxFolder) -> None:
    (box.slots / "a/complete").unlink()
    (box.slots / "a/complete").mkdir()


HARMS: dict[str, Callable[[BoxFolder], object]] = {
    "no stamp": _unstamped,
    "no program": _without_program,
    "no slot": lambda box: shutil.rmtree(box.slots / "a"),
    "empty stamp": lambda box: (box.slots / "a/complete").write_text(""),
    "half a stamp": lambda box: (box.slots / "a/complete").write_text('{"version": "0.'),
    "a stamp of zeros": lambda box: (box.slots / "a/complete").write_bytes(bytes(100)),
    "a stamp that is a list": lambda box: (box.slots / "a/complete").write_text("[]"),
    "nested brackets": lambda box: (box.slots / "a/complete").write_text("[" * 60_000),
    "a number's version": lambda box: box.slot("a", "0.2.0", version=2),
    "no digest": lambda box: box.slot("a", "0.2.0", digest=None),
    "another Python": lambda box: box.slot("a", "0.2.0", python="3.9"),
    "another processor": lambda box: box.slot("a", "0.2.0", arch="riscv64"),
    "a FIFO": _fifo,
    "a link": _link,
    "a folder": _folder,
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_slot_that_is_not_whole_or_not_for_this_box_is_never_chosen(box: BoxFolder, harm: str) -> None:
    box.slot("a", "0.2.0")
    box.slot("b", "0.3.0")
    HARMS[harm](box)
    box.state("a")
    told, stderr = box.run()
    assert told["APPLIANCE_VERSION"] == "0.1.0 packaged"
    assert stderr.startswith("appliance: slot a cannot run (") and stderr.endswith("); 0.1.0 packaged runs\n")


def test_a_trial_whose_slot_is_not_whole_leaves_the_active_one(box: BoxFolder) -> None:
    box.slot("a", "0.2.0")
    box.slot("b", "0.3.0")
    (box.slots / "a/complete").unlink()
    box.state("b", box.on_trial("a"))
    told, stderr = box.run()
    assert told["APPLIANCE_SLOT"] == "b" and "slot a cannot run" in stderr


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff" * 40, bytes(4096), b"[" * 60_000, b"1" * 5000, b'{"active": "b']
)
def test_a_state_that_cannot_be_read_leaves_the_package(box: BoxFolder, content: bytes) -> None:
    box.slot("b", "0.3.0")
    (box.slots / "state.json").write_bytes(content)
    told, stderr = box.run()
    assert told["APPLIANCE_VERSION"] == "0.1.0 packaged" and "which slot runs cannot be read" in stderr


@pytest.mark.parametrize(
    "state",
    [
        {"active": "c"}, {"active": "../../etc"}, {"active": ["b"]}, {"active": {}}, {"active": 1},
        {"trial": {"what": "../b"}}, {"trial": {"what": ["b"], "until_ns": 1 << 80}}, {"trial": {"what": "b", "until_ns": "9"}},
        {"trial": {"what": "b", "until_ns": True}}, {"trial": "b"}, {"trial": []},
    ],
)  # fmt: skip
def test_a_state_that_says_something_else_leaves_the_package(box: BoxFolder, state: dict[str, Any]) -> None:
    box.slot("b", "0.3.0")
    shutil.copytree(box.slots / "b", box.slots.parent / "b")  # whole, and no slot
    box.state(**state)
    if isinstance(state.get("trial"), dict):
        box.state(trial={**box.on_trial("b"), **state["trial"], "boot_id": box.boot})
    assert box.chosen() == "0.1.0 packaged"


def test_a_package_that_was_installed_since_has_the_say(box: BoxFolder) -> None:
    box.slot("b", "0.3.0")
    box.state("b")
    (box.package / "VERSION").write_text("0.4.0\n")
    told, stderr = box.run()
    assert told["APPLIANCE_VERSION"] == "0.4.0 packaged" and "another package was installed since" in stderr


def test_what_lies_in_the_current_folder_or_the_environment_is_not_run(box: BoxFolder, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    for name in ("appliance", "json", "os", "runpy"):
        (stick / name).mkdir(parents=True)
        (stick / name / "__init__.py").write_text("raise SystemExit('run from the stick')")
    told, _ = box.run(cwd=stick, PYTHONPATH=str(stick), PYTHONSTARTUP=str(stick / "os/__init__.py"), PYTHONHOME=str(stick))
    assert told["file"] == str(box.package / "appliance/__main__.py")


def test_the_way_of_python_3_10_keeps_the_current_folder_out_too(box: BoxFolder, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    (stick / "appliance").mkdir(parents=True)
    (stick / "appliance/__init__.py").write_text("raise SystemExit('run from the stick')")
    environment = launch.environment({"PATH": os.defpath}, str(box.package), "0.1.0 packaged", "packaged")
    del environment["PYTHONSAFEPATH"]  # which 3.10 does not know
    done = subprocess.run([launch.PYTHON, "-c", launch._NOT_HERE, "check", "x"], cwd=stick, env=environment, capture_output=True)
    told = json.loads(done.stdout)
    assert told["file"] == str(box.package / "appliance/__main__.py") and told["arguments"] == ["check", "x"]


def test_children_run_the_same_tree(box: BoxFolder) -> None:
    """They are started as `sys.executable -m appliance …` (supervisor, engine builds, the remote I/O's process)."""
    box.slot("b", "0.3.0")
    box.state("b")
    (box.slots / "b/appliance/__main__.py").write_text(
        "import subprocess, sys\nif sys.argv[1:] == ['child']:" + _TELL.replace("\n", "\n    ")
        + "\nelse: sys.exit(subprocess.run([sys.executable, '-m', 'appliance', 'child']).returncode)\n"
    )  # fmt: skip
    told, _stderr = box.run("parent")
    assert told["APPLIANCE_SLOT"] == "b" and told["file"] == str(box.slots / "b/appliance/__main__.py")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: what root believes of another user's files")
@pytest.mark.parametrize("whose", ["slots", "state", "slot", "stamp"])
def test_root_runs_nothing_that_another_user_may_write(box: BoxFolder, whose: str) -> None:
    box.slot("b", "0.3.0")
    box.state("b")
    assert box.chosen() == "0.3.0 b bbbbbbbbbbbb"
    places = {"slots": box.slots, "state": box.slots / "state.json", "slot": box.slots / "b", "stamp": box.slots / "b/complete"}
    os.chown(places[whose], 65534, 65534)
    told, stderr = box.run()
    assert told["APPLIANCE_SLOT"] == "packaged" and "another user may write there" in stderr
    here = (python_here(), launch.this_process()[1], 65534)
    assert launch.choose(str(box.slots), "0.1.0", box.boot, box.now_ns, here)[0] == "b"  # that user himself runs it


def test_choosing_costs_less_than_30_ms_of_processor(box: BoxFolder) -> None:
    """Beyond a bare Python, most of it the import of json. Processor time: a neighbour's load is not its fault."""
    box.slot("b", "0.3.0")
    box.state("a", box.on_trial("b"))
    script = box.package / "bin/appliance"
    whole = script.read_text()
    assert whole.count("    os.execve(PYTHON") == 1
    script.write_text(whole.replace("    os.execve(PYTHON", "    sys.exit(0)\n    os.execve(PYTHON"))
    spent = processor_ms([str(script)]) - processor_ms([launch.PYTHON, "-IS", "-c", "pass"])
    assert spent < 30


def processor_ms(command: list[str]) -> float:
    """The median of some runs."""
    times = []
    for _ in range(9):
        child = subprocess.Popen(command)
        _pid, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        times.append((used.ru_utime + used.ru_stime) * 1000)
    return statistics.median(times)


_LEAF = st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from(["a", "b", "boot", "0.1.0"])
_KEY = st.sampled_from(["active", "trial", "package", "what", "boot_id", "until_ns", "version", "digest", "python", "arch"])
_ANY = st.recursive(
    _LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEY, inner, max_size=6), max_leaves=10
)


@given(_ANY, st.none() | _ANY)
def test_nothing_in_the_files_raises(tmp_path_factory: pytest.TempPathFactory, state: Any, stamp: Any) -> None:
    slots = tmp_path_factory.getbasetemp() / "any"
    (slots / "a").mkdir(parents=True, exist_ok=True)
    (slots / "state.json").write_text(json.dumps(state))
    (slots / "a/complete").write_text(json.dumps(stamp))
    assert launch.choose(str(slots), "0.1.0", "boot", 1, ("3.11", "amd64", 1000))[0] == "packaged"  # it has no program
