"""The twin's own process: plays the physical world in real time to the untouched firmware, and writes down the truth.

    python -m appliance.twin.process SCENARIO.json

Edges and frames carry the instant at which they happened, whenever this process came to tell them; fates are worked
out from the stamps of the outputs. So a busy machine delays the twin, and does not bend its truth.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import msgspec

from appliance.clock import SystemClock
from appliance.link import Listener, SocketLink
from appliance.messages import Edge, Level, TwinControl, TwinFrame, TwinHello, encode
from appliance.ports import LinkClosed
from appliance.twin.line import SENSORS, Fate, Line, LineShape
from appliance.twin.supply import Item, supply

_AHEAD = 12  # frames rendered before they are due
_BUFFERS = 4  # of the camera's driver
_READOUT_NS = 8_000_000
_MS = 1_000_000
_INPUT = {"encoder_a": "encoder"}  # the line's word -> the input's name
_SENSOR = {"encoder": "encoder_a"}


@dataclass
class _CameraClient:
    sock: socket.socket
    waiting: deque[memoryview] = field(default_factory=deque)

    def push(self) -> bool:
        """Send what waits; False when the firmware is gone."""
        try:
            while self.waiting:
                rest = self.waiting[0][self.sock.send(self.waiting[0]) :]
                if rest:
                    self.waiting[0] = rest
                else:
                    self.waiting.popleft()
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


@dataclass
class _Camera:
    name: str
    listener: socket.socket
    clients: list[_CameraClient] = field(default_factory=list)
    sequence: int = 0
    due: deque[tuple[int, int, int, Item]] = field(default_factory=deque)  # deliver_ns, exposure_ns, sequence, item
    last: Item | None = None


class World:
    """Sockets around a Line."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        self._clock = SystemClock()
        self._run = Path(scenario["run_dir"])
        self._shape = msgspec.convert(scenario["shape"], LineShape)
        self._covered_level = bool(scenario["covered_level"])
        self._line = Line(self._shape, scenario["seed"], self._clock.now_ns())
        self._supply = supply(scenario["seed"], scenario["hard"], scenario.get("good"), scenario.get("bad"))
        self._items: deque[Item] = deque()
        self._shown: dict[int, Item] = {}
        self._truth = open(scenario["truth_file"], "w", encoding="utf-8", buffering=1)
        self._listener = Listener(self._run / "twin.sock")
        self._cameras = {one.name: _Camera(one.name, self._camera_listener(one.name)) for one in self._shape.cameras}
        self._links: dict[SocketLink, TwinHello | None] = {}
        self._told: dict[SocketLink, int] = {}  # edges told of each input
        self._trouble: dict[str, int] = {}
        self._decided = 0
        self.stopping = False

    def run(self) -> None:
        """Until ``stopping``."""
        while not self.stopping:
            self._render_ahead()
            self._wait()
            self._accept()
            self._read()
            now_ns = self._clock.now_ns()
            for happened in self._line.advance(now_ns):
                if happened.where in SENSORS:
                    self._tell_edge(_INPUT.get(happened.where, happened.where), happened.covered, happened.time_ns)
                elif happened.where:
                    self._expose(happened.where, happened.part, happened.time_ns)
                else:
                    if happened.part >= 0:
                        self._shown[happened.part] = self._next_item()
                    self._tell_edge("eye", happened.covered == self._covered_level, happened.time_ns)
            self._deliver(self._clock.now_ns())
            for fate in self._line.fates(now_ns):
                self._write(fate)

    def feed(self, parts: int) -> None:
        """Lay so many more on the belt."""
        self._line.feed(parts, self._clock.now_ns())

    def close(self) -> None:
        for fate in self._line.still_on_belt():
            self._write(fate)
        self._truth.close()
        self._listener.close()

    # --- sockets -------------------------------------------------------------------------------------------

    def _camera_listener(self, name: str) -> socket.socket:
        path = self._run / f"twin-{name}.sock"
        path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.bind(str(path))
        sock.listen(4)
        return sock

    def _wait(self) -> None:
        now_ns = self._clock.now_ns()
        next_ns = self._line.next_ns()
        until_ns = now_ns + 20 * _MS if next_ns is None else min(next_ns, now_ns + 20 * _MS)
        for camera in self._cameras.values():
            if camera.due:
                until_ns = min(until_ns, camera.due[0][0])
        readers: list[Any] = [self._listener, *self._links, *(camera.listener for camera in self._cameras.values())]
        writers = [client.sock for camera in self._cameras.values() for client in camera.clients if client.waiting]
        select.select(readers, writers, [], max(0.0, (until_ns - now_ns) / 1e9))

    def _accept(self) -> None:
        while (link := self._listener.accept()) is not None:
            self._links[link] = None
        for camera in self._cameras.values():
            try:
                sock, _ = camera.listener.accept()
            except BlockingIOError:
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * 1024 * 1024)
            camera.clients.append(_CameraClient(sock))

    def _read(self) -> None:
        for link in list(self._links):
            try:
                messages = link.receive()
            except LinkClosed:
                self._gone(link)
                continue
            for message in messages:
                if isinstance(message, TwinHello):
                    self._welcome(link, message)
                elif isinstance(message, Level):
                    self._line.set_output(message.line, message.level, message.time_ns)
                elif isinstance(message, TwinControl):
                    self._control(link, message)

    def _gone(self, link: SocketLink) -> None:
        hello = self._links.pop(link)
        self._told.pop(link, None)
        link.close()
        if hello is not None and hello.kind == "output":
            # The line is released: it falls to its de-energised side.
            self._line.set_output(hello.name, False, self._clock.now_ns())

    def _welcome(self, link: SocketLink, hello: TwinHello) -> None:
        self._links[link] = hello
        if hello.kind == "input":
            eye = self._line.covered() == self._covered_level
            level = eye if hello.name == "eye" else self._line.level(_SENSOR.get(hello.name, hello.name))
            link.send(Edge(hello.name, level, self._clock.now_ns(), 0))
            self._told[link] = 0

    def _tell_edge(self, name: str, level: bool, time_ns: int) -> None:
        for link, hello in self._links.items():
            if hello is not None and hello.kind == "input" and hello.name == name:
                self._told[link] += 1
                try:
                    link.send(Edge(name, level, time_ns, self._told[link]))
                except LinkClosed:
                    continue  # the next read sees to it

    # --- frames --------------------------------------------------------------------------------------------

    def _render_ahead(self) -> None:
        if len(self._items) < _AHEAD:
            self._items.append(next(self._supply))

    def _next_item(self) -> Item:
        return self._items.popleft() if self._items else next(self._supply)

    def _expose(self, name: str, part: int, time_ns: int) -> None:
        camera, item = self._cameras[name], self._shown[part]
        camera.sequence += 1
        if self._due("drop-frame", time_ns):
            return
        if self._due("freeze-camera", time_ns) and camera.last is not None:
            item = camera.last
        camera.last = item
        pitch_ns = round(self._shape.pitch_mm / self._shape.speed_mm_s * 1e9)
        late_ns = pitch_ns if self._due("delay-frame", time_ns) else 0
        camera.due.append((time_ns + _READOUT_NS + late_ns, time_ns, camera.sequence, item))
        if self._due("double-frame", time_ns):
            camera.due.append((time_ns + _READOUT_NS + _MS, time_ns, camera.sequence, item))
        camera.due = deque(sorted(camera.due, key=lambda one: one[0]))  # a late one holds up no other

    def _deliver(self, now_ns: int) -> None:
        for camera in self._cameras.values():
            while camera.due and camera.due[0][0] <= now_ns:
                _, exposure_ns, sequence, item = camera.due.popleft()
                self._send_frame(camera, exposure_ns, sequence, item)
            camera.clients = [client for client in camera.clients if client.push()]

    def _send_frame(self, camera: _Camera, exposure_ns: int, sequence: int, item: Item) -> None:
        height, width = item.frame.shape[:2]
        pixels = item.frame.tobytes()
        header = encode(TwinFrame(camera.name, sequence, exposure_ns, width, height, item.pixel, len(pixels)))
        data = len(header).to_bytes(4, "little") + header + pixels
        for client in camera.clients:
            if len(client.waiting) < _BUFFERS:  # else: none is free, as a driver would have it; the sequence shows the gap
                client.waiting.append(memoryview(data))

    # --- truth and trouble -----------------------------------------------------------------------------------

    def _write(self, fate: Fate) -> None:
        self._decided += 1
        item = self._shown.pop(fate.part, None)
        row = {
            "part": fate.part, "edge_ns": fate.edge_ns, "arrive_ns": fate.arrive_ns, "leave_ns": fate.leave_ns,
            "bin": fate.bin, "kind": item.kind if item else None, "size": item.size if item else 0.0,
            "step": item.step if item else 1.0,
        }  # fmt: skip
        self._truth.write(json.dumps(row) + "\n")

    def _due(self, name: str, time_ns: int) -> bool:
        """Whether a trouble is on: until its end, or (end 0) once."""
        end_ns = self._trouble.get(name)
        if end_ns is None:
            return False
        if end_ns == 0 or time_ns > end_ns:
            del self._trouble[name]
            return end_ns == 0
        return True

    def _control(self, link: SocketLink, control: TwinControl) -> None:
        now_ns = self._clock.now_ns()
        if control.verb == "feed":
            self.feed(int(control.arguments["parts"]))
        elif control.verb == "fault" and control.arguments["name"] == "double-trigger":
            self._line.glint_next()
        elif control.verb == "fault":
            duration_ns = round(control.arguments["duration_s"] * 1e9)
            self._trouble[control.arguments["name"]] = now_ns + duration_ns if duration_ns else 0
        elif control.verb == "stop":
            self.stopping = True
        link.send(TwinControl("status", {"decided": self._decided, "done": self._line.done, "runs": self._line.runs}))


def main() -> int:
    cv2.setNumThreads(1)
    scenario = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    world = World(scenario)

    def stop(_signal: int, _frame: object) -> None:
        world.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        world.run()
    finally:
        world.close()
    return 0




if __name__ == "__main__":
    sys.exit(main())
