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

import numpy as np
import pytest

from appliance.devices.camera_gige import GigeCamera, GigeOptions, ask_identity
from appliance.ports import Frame
from tests.contracts.camera_rigs import CLOCK, FPS, MS, register
from tests.contracts.rigs import until

PROGRAM = "arv-fake-gv-camera-0.8"
ADDRESS = "127.0.0.1"  # the port is fixed by the protocol, so only one can be there
FIRST_NUMBER = 65401  # it begins shortly before the wrap
EXPOSURE_US, GAIN = 10_000.0, 0.0  # here a pixel of its pattern is (x + y + number of the frame) % 255
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

    @property
    def runs(self) -> bool:
        return self._process is not None

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


class _Watched(GigeCamera):
    """Notes which number each frame had when it was handed over: its buffer may be overwritten later, were it wrong."""

    numbers: dict[int, int]

    def next_frame(self, timeout_s: float) -> Frame | None:
        frame = super().next_frame(timeout_s)
        if frame is not None:
            self.numbers[frame.sequence] = frame.memory[0]
        return frame


class GigeRig:
    """It runs by itself. Its clock is the machine's wall clock, its stamps lie on the grid of its rate."""

    size, pixel, pitch, limited, near_ns, hardware = (64, 64), "mono8", 64, True, 50 * MS, False  # a busy machine is late

    def __init__(self, folder: Path) -> None:
        gige_or_skip()
        self.edges: list[int] = []
        self._numbers: dict[int, int] = {}
        self._made: list[GigeCamera] = []
        self._fake = FakeGige()

    def camera(self) -> GigeCamera:
        made = _Watched("top", ADDRESS, self.size, FPS, self.pixel, EXPOSURE_US, GAIN, False, GigeOptions(stamp="middle"), CLOCK)
        made.numbers = self._numbers
        self._made.append(made)
        return made

    def expose(self, count: int) -> None:
        pass

    def truth(self, frame: Frame) -> int:
        now_ns = CLOCK.now_ns()
        return frame.time_ns - (CLOCK.wall_us(now_ns) * 1000 - now_ns)

    def shown(self, frame: Frame) -> bytes:
        y, x = np.mgrid[: self.size[1], : self.size[0]]
        return ((x + y + self._numbers[frame.sequence]) % 255).astype(np.uint8).tobytes()

    def idle(self) -> None:
        session = self._made[-1]._session
        assert session is not None
        session.camera.stop_acquisition()

    def lose(self, how: str) -> None:
        if how == "silent":
            self.idle()
        else:
            self._fake.kill()

    def restore(self) -> None:
        if not self._fake.runs:
            self._fake.start()

    def close(self) -> None:
        self._fake.close()


register("gige", GigeRig, losses=("killed", "silent"))
