"""README stays true: its commands are commands, its files are files."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.__main__ import _parser
from appliance.twin.trouble import parse

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("    appliance ")]
_OURS = ("devices", "model", "inspect", "reject", "wiring")
ROOMS = ("", "appliance", *(f"appliance/{room}" for room in _OURS), "models/cap-28mm")


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_line_is_understood(line: str) -> None:
    options = _parser().parse_args(shlex.split(line.split(">")[0])[1:])
    for fault in getattr(options, "fault", []):
        assert parse(fault).name in line


def test_there_are_commands_and_each_file_it_names_is_there() -> None:
    assert len(COMMANDS) >= 6
    named = re.findall(r"`([a-z_/-]+\.(?:py|yaml|lock|sh))`", README)
    assert len(named) > 20
    missing = [name for name in named if not any((PROJECT / room / name).exists() for room in ROOMS)]
    assert set(missing) <= {"mine.yaml", "appliance.yaml"}  # yours, and the one on a stick


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl here")
def test_a_stick_signed_as_it_says_is_taken(tmp_path: Path) -> None:
    lines = README[README.index("**Signatures.**") :].split("    openssl ", 1)[1].split("\n\n")[0]
    stick = tmp_path / "STICK"
    (stick / "enrol").mkdir(parents=True)
    shutil.copytree(PROJECT / "models/cap-28mm", stick / "bundles/cap-28mm")
    shutil.copy(PROJECT / "appliance/twin/station.yaml", stick / "appliance.yaml")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    script = 'set -e; appliance() { "$PYTHON" -m appliance "$@"; }\n' + "openssl " + lines
    where = f"--data-dir {tmp_path / 'data'} --run-dir {tmp_path / 'run'}"
    subprocess.run(
        ["bash", "-c", f"{script}\nappliance usb apply STICK {where}"], cwd=tmp_path, check=True, timeout=100,
        env={**environment, "PYTHON": sys.executable},
    )  # fmt: skip
    result = (stick / "RESULT.txt").read_text(encoding="utf-8")
    assert "appliance.yaml.sig: signed by ada" in result and "enrolled: ada" in result
