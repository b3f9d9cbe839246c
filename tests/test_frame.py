"""build.sh on a computer that lacks something: one clear sentence, and nothing left behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERBS = ("demo", "test", "check", "kernels", "deb", "image", "box", "bench")

# Plays python3 on PATH. It notes how it was called, and makes environments whose python is itself.
PYTHON3 = """#!/bin/bash
echo "$*" >> {log}
case "$*" in
  *version_info*) echo "${{FAKE_VERSION:-3.11.2}}" ;;
  *ensurepip*) exit "${{FAKE_NO_VENV:-0}}" ;;
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  *"pip install"*) exit "${{FAKE_PIP:-0}}" ;;
  *) echo "ran: $*" ;;
esac
"""


class Copy:
    """build.sh in a folder of its own, with a stand-in for python3."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "tree"
        (self.tree / "appliance").mkdir(parents=True)
        shutil.copy2(ROOT / "build.sh", self.tree)
        shutil.copy2(ROOT / "appliance" / "requirements.lock", self.tree / "appliance")
        self._log = folder / "calls"
        self._bin = folder / "bin"
        self._bin.mkdir()
        (self._bin / "python3").write_text(PYTHON3.format(log=self._log))
        (self._bin / "python3").chmod(0o755)

    def call(self, *arguments: str, **fakes: str) -> subprocess.CompletedProcess[str]:
        self._log.write_text("")
        environment = {"PATH": f"{self._bin}{os.pathsep}/usr/bin{os.pathsep}/bin", **fakes}
        return subprocess.run(
            [str(self.tree / "build.sh"), *arguments], env=environment, cwd=self._bin, capture_output=True, text=True
        )

    def calls(self, word: str) -> list[str]:
        return [one for one in self._log.read_text().splitlines() if word in one]

    def files(self) -> set[str]:
        return {str(one.relative_to(self.tree)) for one in self.tree.rglob("*")}


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


def test_a_missing_venv_module_is_named_with_its_cure_and_nothing_is_written(copy: Copy) -> None:
    before = copy.files()
    done = copy.call("demo", FAKE_NO_VENV="1")
    assert done.returncode == 2
    assert "sudo apt install python3-venv" in done.stderr and len(done.stderr.splitlines()) == 1
    assert copy.files() == before


@pytest.mark.parametrize("version", ["2.7.18", "3.8.18", "3.9.18", "3.14.0", "3.1.4"])
def test_a_python_outside_3_10_to_3_13_is_refused_by_number(copy: Copy, version: str) -> None:
    before = copy.files()
    done = copy.call("test", FAKE_VERSION=version)
    assert done.returncode == 2
    assert f"Python {version}" in done.stderr and "3.10 to 3.13" in done.stderr
    assert copy.files() == before


def test_no_python_at_all_is_one_sentence(copy: Copy) -> None:
    done = copy.call("demo", PYTHON="/nowhere/python3")
    assert done.returncode == 2
    assert "/nowhere/python3 does not start" in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_second_call_does_no_set_up(copy: Copy) -> None:
    first = copy.call("demo", "--parts", "5")
    assert first.returncode == 0 and "ran: -m appliance demo --parts 5" in first.stdout
    assert copy.calls("-m venv") and copy.calls("--require-hashes")
    second = copy.call("demo")
    assert second.returncode == 0
    assert not copy.calls("-m venv") and not copy.calls("pip")


def test_a_new_lock_or_another_python_makes_the_environment_anew(copy: Copy) -> None:
    copy.call("demo")
    with (copy.tree / "appliance" / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    copy.call("demo")
    assert copy.calls("-m venv")
    copy.call("demo", FAKE_VERSION="3.12.3")
    assert copy.calls("-m venv")


def test_a_set_up_that_was_cut_short_is_thrown_away(copy: Copy) -> None:
    (copy.tree / ".venv" / "bin").mkdir(parents=True)
    (copy.tree / ".venv" / "half").touch()
    assert copy.call("demo").returncode == 0
    assert not (copy.tree / ".venv" / "half").exists()


def test_a_download_that_fails_says_so_and_leaves_nothing_half_made(copy: Copy) -> None:
    done = copy.call("demo", FAKE_PIP="1")
    assert done.returncode == 1
    assert "could not be installed" in done.stderr and "ran:" not in done.stdout
    assert not (copy.tree / ".venv").exists()


def test_build_sh_knows_each_verb_the_readme_names() -> None:
    assert os.access(ROOT / "build.sh", os.X_OK) and os.access(ROOT / ".ci" / "run", os.X_OK)
    usage = subprocess.run([str(ROOT / "build.sh"), "help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"^  (\w+) ", usage, re.MULTILINE))
    assert known == set(VERBS)
    named = set(re.findall(r"\./build\.sh (\w+)", (ROOT / "README.md").read_text() + (ROOT / ".ci" / "run").read_text()))
    assert {"demo", "test"} <= named <= known


def test_an_unknown_verb_is_refused_with_the_list(copy: Copy) -> None:
    done = copy.call("dmeo")
    assert done.returncode == 2
    assert "no verb 'dmeo'" in done.stderr and "demo" in done.stderr


def test_the_lock_is_pinned_with_digests_and_names_no_machine() -> None:
    text = (ROOT / "appliance" / "requirements.lock").read_text()
    entries = re.split(r"\n(?=[a-z])", text)[1:]
    assert len(entries) > 30
    for one in entries:
        assert re.match(r"[a-z0-9-]+==[^ ]+ ", one) and "--hash=sha256:" in one, one.splitlines()[0]
    assert not re.search(r"/(tmp|home|root|work)/", text)
    assert not re.search(r"^(torch|jetson|tensorrt|pycuda)", text, re.MULTILINE)


def test_the_box_pins_what_the_lock_pins_and_never_takes_nvidias_names_from_the_index() -> None:
    locked = set(re.findall(r"^([a-z0-9-]+==\S+) ", (ROOT / "appliance" / "requirements.lock").read_text(), re.MULTILINE))
    locked_names = {one.partition("==")[0] for one in locked}
    pins = re.findall(r"^([a-z0-9-]+==\S+)", (ROOT / "jetpack-requirements.txt").read_text(), re.MULTILINE)
    assert {"numpy", "onnxruntime", "pymodbus"} <= {one.partition("==")[0] for one in pins}
    assert [one for one in pins if one.partition("==")[0] in locked_names and one not in locked] == []
    assert [one for one in pins if re.match(r"jetson|tensorrt|nvidia|pycuda", one)] == []
