"""A sensor behind the ISP and a network stream, both through the stand-in of jetson-utils, in real time."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np

from appliance.devices.camera_jetson import JetsonCamera
from appliance.ports import Frame
from tests.contracts.camera_rigs import CLOCK, FPS, MS, register
from tests.fakes.fake_jetson_utils import World


class _Watched(JetsonCamera):
    """Notes which picture each frame was when it was handed over: its buffer may be overwritten later, were it wrong."""

    numbers: dict[int, int]

    def next_frame(self, timeout_s: float) -> Frame | None:
        frame = super().next_frame(timeout_s)
        if frame is not None:
            self.numbers[frame.sequence] = int.from_bytes(frame.memory[:3], "little")
        return frame


class JetsonRig:
    """It runs by itself: frames cannot be asked of an ISP or of a stream."""

    size, pixel, pitch, limited, near_ns, hardware = (16, 12), "rgb8", 48, False, 200 * MS, False  # a busy machine is late

    def __init__(self, address: str) -> None:
        self._address = address
        self._world = World(real=True)
        self._sensor = self._world.sensor(address, self.size, FPS)
        self._before = sys.modules.get("jetson_utils")
        sys.modules["jetson_utils"] = self._world.utils()
        self.edges: list[int] = []
        self._numbers: dict[int, int] = {}
        self._shown_ns: list[int] = []
        self._stop = threading.Event()
        self._idle = False
        self._thread = threading.Thread(target=self._run, name="sensor", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(1 / FPS):
            if not self._idle:
                self._shown_ns.append(CLOCK.now_ns())
                self._sensor.show(self._picture(len(self._shown_ns) - 1))

    def _picture(self, number: int) -> np.ndarray:
        image = np.full((self.size[1], self.size[0], 3), number % 251, np.uint8)
        image[0, 0] = tuple(number.to_bytes(3, "little"))
        return image

    def camera(self) -> JetsonCamera:
        camera = _Watched("top", self._address, self.size, FPS, "none", CLOCK)
        camera.numbers = self._numbers
        return camera

    def expose(self, count: int) -> None:
        pass

    def truth(self, frame: Frame) -> int:
        return self._shown_ns[self._numbers[frame.sequence]]

    def shown(self, frame: Frame) -> bytes:
        return self._picture(self._numbers[frame.sequence]).tobytes()

    def idle(self) -> None:
        self._idle = True

    def lose(self, how: str) -> None:
        if how == "gone":
            self._sensor.absent = True
        elif how == "ended":
            self._sensor.end()
        else:
            self._sensor.die()

    def restore(self) -> None:
        self._sensor.absent = self._sensor.ended = False
        self._sensor.alive = True

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        del sys.modules["jetson_utils"]
        if self._before is not None:
            sys.modules["jetson_utils"] = self._before


def _csi(folder: Path) -> JetsonRig:
    return JetsonRig("csi://0")


def _rtsp(folder: Path) -> JetsonRig:
    return JetsonRig("rtsp://10.0.0.9/stream")


register("csi", _csi, losses=("silent",))
register("rtsp", _rtsp, losses=("silent", "ended"))
