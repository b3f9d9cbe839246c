"""One rig for each kind of camera: makes it, shows it frames, knows the truth, takes it away, brings it back.

A kind with a stand-in of its own registers its rig in a file beside this one, ``camera_rig_NAME.py``, by ``register``.
"""

from __future__ import annotations

import importlib
import shutil
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from appliance.clock import SystemClock
from appliance.devices.camera_folder import FolderCamera
from appliance.devices.camera_twin import TwinCamera
from appliance.devices.camera_v4l2 import V4l2Camera
from appliance.messages import TwinFrame, TwinHello, decode, encode
from appliance.ports import Camera, Frame
from tests.contracts.rigs import until
from tests.fakes import fake_v4l2
from tests.fakes.fake_v4l2 import FakeCamera, FakeKernel

CLOCK = SystemClock()
MS, SECOND = 1_000_000, 1_000_000_000
FPS = 100.0


class CameraRig(Protocol):
    """The far side of one camera of ``size`` that gives ``pixel`` at ``pitch`` bytes a row, at ``FPS`` at most.

    ``limited``: it hands over two frames at most at a time; ``near_ns``: how near to the truth its stamps are when proved;
    ``hardware``: ``expose`` fires it, and ``edges`` are when."""

    size: tuple[int, int]
    pixel: str
    pitch: int
    limited: bool
    near_ns: int
    hardware: bool
    edges: list[int]

    def camera(self) -> Camera:
        """Closed; ``expose`` waits until it is open."""
        ...

    def expose(self, count: int) -> None:
        """So many frames come soon; nothing to do for one that runs by itself."""
        ...

    def truth(self, frame: Frame) -> int:
        """The middle of its exposure."""
        ...

    def shown(self, frame: Frame) -> bytes:
        """Its pixels, row by row, without padding."""
        ...

    def idle(self) -> None:
        """No frame comes any more."""
        ...

    def lose(self, how: str) -> None: ...

    def restore(self) -> None: ...

    def close(self) -> None: ...


RIGS: dict[str, Callable[[Path], CameraRig]] = {}
LOSSES: list[tuple[str, str]] = []
"""(rig, what ``lose`` is told)."""


def register(name: str, make: Callable[[Path], CameraRig], losses: tuple[str, ...] = ()) -> None:
    """``make`` is given a folder of its own; ``losses``: ways of being lost while it runs."""
    assert name not in RIGS, f"there is a rig {name} already"
    RIGS[name] = make
    LOSSES.extend((name, how) for how in losses)


class V4l2Rig:
    """A stand-in of the kernel's driver; ``make`` says which."""

    size, limited, near_ns = (64, 48), True, MS
    path = "/dev/v4l/by-path/port"

    def __init__(self, make: Callable[..., FakeCamera], pixel: str, pitch: int, hardware: bool = False) -> None:
        self.pixel, self.pitch = pixel, pitch
        self._make, self.hardware = make, hardware
        self.edges: list[int] = []
        self._kernel = FakeKernel(CLOCK)
        self._fake = self._kernel.plug(self.path, self._made())
        self._gain = 32.0 if make is fake_v4l2.tegra else 20.0

    def _made(self) -> FakeCamera:
        made = self._make(readout_ns=3 * MS, padding=self.pitch - 128)
        for sizes in made.modes.values():
            for rates in sizes.values():
                rates[:] = [FPS] if rates else []
        return made

    def camera(self) -> Camera:
        return V4l2Camera(
            "top", self.path, self.size, FPS, "auto", 500, self._gain, self.hardware, {}, CLOCK, system=self._kernel
        )  # fmt: skip

    def expose(self, count: int) -> None:
        if self.hardware:
            for _ in range(count):
                at_ns = max([CLOCK.now_ns(), *self.edges[-1:]]) + round(SECOND / FPS)
                self.edges.append(at_ns)
                self._kernel.fire(self.path, at_ns)  # no time from the edge to the middle of exposure

    def truth(self, frame: Frame) -> int:
        return self._kernel.node.middles[frame.sequence]

    def shown(self, frame: Frame) -> bytes:
        return fake_v4l2.picture(frame.sequence, 128, 48, 128)

    def idle(self) -> None:
        if not self.hardware:
            self._fake.lost.update(range(100_000))

    def lose(self, how: str) -> None:
        if how == "silent":
            self.idle()
        else:
            self._kernel.unplug(self.path)

    def restore(self) -> None:
        self._fake = self._kernel.plug(self.path, self._made())

    def close(self) -> None:
        assert self._kernel.open_files() == 0, "a closed camera holds its node"


class TwinRig:
    """A stream socket where the twin's camera would be; frames are sent when they are asked for."""

    size, pixel, pitch, limited, near_ns, hardware = (32, 24), "bgr8", 96, False, 1, False

    def __init__(self, folder: Path) -> None:
        self._path = folder / "camera.sock"
        self.edges: list[int] = []
        self._clients: list[socket.socket] = []
        self._truth: dict[int, int] = {}
        self._sequence = 0
        self._listen()

    def _listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), name="twin-camera", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                size = int.from_bytes(client.recv(4), "little")
                assert isinstance(decode(client.recv(size)), TwinHello)
                self._clients.append(client)

    def camera(self) -> Camera:
        return TwinCamera("top", self._path, "top", self.size, False, CLOCK)

    def expose(self, count: int) -> None:
        for _ in range(count):
            self._sequence += 1
            self._truth[self._sequence] = CLOCK.now_ns()
            pixels = self._pixels(self._sequence)
            at_ns = self._truth[self._sequence]
            header = encode(TwinFrame("top", self._sequence, at_ns, *self.size, self.pixel, len(pixels)))
            until(lambda: self._send(len(header).to_bytes(4, "little") + header + pixels))  # noqa: B023

    def _send(self, message: bytes) -> bool:
        for client in list(self._clients):
            try:
                client.sendall(message)
            except OSError:  # a camera that was closed; it may come again
                self._clients.remove(client)
                client.close()
        return bool(self._clients)

    def _pixels(self, sequence: int) -> bytes:
        return bytes((sequence * 5 + number) % 251 for number in range(24 * 96))

    def truth(self, frame: Frame) -> int:
        return self._truth[frame.sequence]

    def shown(self, frame: Frame) -> bytes:
        return self._pixels(frame.sequence)

    def idle(self) -> None:
        pass

    def lose(self, how: str) -> None:
        for sock in (self._listener, *self._clients):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._clients.clear()
        self._path.unlink()

    def restore(self) -> None:
        self._listen()

    def close(self) -> None:
        for sock in (self._listener, *self._clients):
            sock.close()


class FolderRig:
    """Three photographs, for ever; its time is the grid of its own rate, and nothing can be lost once it runs."""

    size, pixel, pitch, limited, near_ns, hardware = (16, 12), "mono8", 16, False, SECOND, False  # a busy machine is late

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "photographs"
        self._images = [np.full((12, 16), 60 * number + 20, np.uint8) + np.arange(16, dtype=np.uint8) for number in range(3)]
        self.edges: list[int] = []
        self.restore()

    def camera(self) -> Camera:
        return FolderCamera("top", self._folder, FPS, False, CLOCK)

    def expose(self, count: int) -> None:
        pass

    def truth(self, frame: Frame) -> int:
        return frame.arrived_ns

    def shown(self, frame: Frame) -> bytes:
        return self._images[(frame.sequence - 1) % 3].tobytes()

    def idle(self) -> None:
        for path in self._folder.iterdir():
            path.write_bytes(b"no image any more")

    def lose(self, how: str) -> None:
        shutil.rmtree(self._folder)

    def restore(self) -> None:
        self._folder.mkdir()
        for number, image in enumerate(self._images):
            cv2.imwrite(str(self._folder / f"{number}.png"), image)

    def close(self) -> None:
        pass


# Where the photo-eye fires the camera, silence is an idle line and no loss.
register("v4l2-usb", lambda folder: V4l2Rig(fake_v4l2.usb, "yuyv/limited", 128), losses=("unplugged", "silent"))
register("v4l2-padded", lambda folder: V4l2Rig(fake_v4l2.usb, "yuyv/limited", 192))
register("v4l2-tegra", lambda folder: V4l2Rig(fake_v4l2.tegra, "bayer_rggb10", 128, hardware=True), losses=("unplugged",))
register("twin", TwinRig, losses=("gone",))
register("folder", FolderRig)
for _path in sorted(Path(__file__).parent.glob("camera_rig_*.py")):
    importlib.import_module(f"tests.contracts.{_path.stem}")
