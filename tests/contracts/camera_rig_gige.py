"""Aravis's own fake GigE camera on loopback, a process of its own, and the library that reads it."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from appliance.clock import SystemClock
from appliance.devices.camera_gige import GigeCamera, GigeOptions, ask_identity
from appliance.devices.memory_plain import PlainMemory
from tests.contracts.rigs import until

PROGRAM = "arv-fake-gv-camera-0.8"
ADDRESS = "127.0.0.1"  # the port is fixed by the protocol, so only one can be there
FIRST_NUMBER = 65401  # it begins shortly before the wrap
EXPOSURE_US, GAIN = 10_000.0, 0.0  # here a pixel of its pattern is (x + y + number of the frame) % 255
CLOCK = SystemClock()
_DISTRIBUTION = Path("/usr/lib/python3/dist-packages/gi")


@functools.cache
def missing() -> str:
    """What is not there for these tests, "" = nothing. Loads gi from the distribution's folder, and only gi: with the
    whole folder on the path its numpy would stand before ours."""
    if not shutil.which(PROGRAM):
        return f"no {PROGRAM} (Debian's aravis-tools)"
    if importlib.util.find_spec("gi") is None:
        if not (_DISTRIBUTION / "__init__.py").exists():
            return "no python3-gi"
        spec = importlib.util.spec_from_file_location(
            "gi", _DISTRIBUTION / "__init__.py", submodule_search_locations=[str(_DISTRIBUTION)]
        )
        assert spec and spec.loader
        sys.modules["gi"] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules["gi"])
        except ImportError as why:  # compiled for another Python
            del sys.modules["gi"]
            return f"python3-gi is not for this Python ({why})"
    try:
        sys.modules.get("gi", importlib.import_module("gi")).require_version("Aravis", "0.8")
    except ValueError:
        return "no gir1.2-aravis-0.8"
    return ""


def gige_or_skip() -> None:
    """One clear word where Aravis cannot be had."""
    if missing():
        pytest.skip(f"GigE cameras are not tested here: {missing()}")


class FakeGige:
    """The camera's process. ``lost_per_thousand``: packets it leaves out."""

    def __init__(self, serial: str = "GV77", lost_per_thousand: int = 0) -> None:
        self.serial = serial
        self._options = ["-r", str(lost_per_thousand)] if lost_per_thousand else []
        self._lock = os.open(Path(tempfile.gettempdir()) / "gige-loopback.lock", os.O_CREAT | os.O_RDWR, 0o666)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._process: subprocess.Popen[bytes] | None = None
        self.restarted_ns = 0
        self.start()

    def start(self) -> None:
        """Until it answers."""
        self.restarted_ns = CLOCK.now_ns()
        command = [PROGRAM, "-i", ADDRESS, "-s", self.serial, *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._answers)

    def kill(self) -> None:
        """As when its plug is pulled."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        os.close(self._lock)

    def _answers(self) -> bool:
        assert self._process and self._process.poll() is None, f"{PROGRAM} ended: does something else hold port 3956?"
        found = ask_identity(ADDRESS)
        return found is not None and found.serial == self.serial


def gige_camera(serial: str = ADDRESS, **other: Any) -> GigeCamera:
    """64 x 64, mono, 1,000 a second, free-running, unless said otherwise. By its address: looking for it takes a second."""
    wishes: dict[str, Any] = {
        "size": (64, 64), "fps": 1000, "pixel": "mono8", "exposure_us": EXPOSURE_US, "gain": GAIN,
        "hardware_trigger": False, "options": GigeOptions(), "clock": CLOCK,
    }  # fmt: skip
    return GigeCamera("top", serial, **{**wishes, **other})


class GigeRig:
    """A GigE camera for the contract of all cameras."""

    word = ADDRESS

    def __init__(self, folder: Path) -> None:
        gige_or_skip()
        self._fake = FakeGige()
        self.memory = PlainMemory()

    def camera(self) -> GigeCamera:
        return gige_camera(fps=100)

    def lose(self) -> None:
        self._fake.kill()

    def restore(self) -> None:
        self._fake.start()

    def close(self) -> None:
        self._fake.close()
