"""The MES of a rehearsal: a real MQTT subscriber that keeps what came, and a network that can be cut."""

from __future__ import annotations

import json
import select
import socket
import threading
from typing import Any

import paho.mqtt.client as mqtt


class Mes:
    """Subscribed to everything of one station. ``entries``: seq -> first payload; ``repeats``: how often one came again."""

    def __init__(self, port: int, station: str, host: str = "127.0.0.1") -> None:
        self._prefix = station + "/"
        self.entries: dict[int, dict[str, Any]] = {}
        self.order: list[int] = []
        self.received = self.repeats = self.altered = 0
        self.retained: dict[str, Any] = {}
        self.changed = threading.Condition()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="mes", clean_session=False)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.connect(host, port, 30)
        self._client.loop_start()

    def _on_connect(self, client: Any, *_: Any) -> None:
        client.subscribe(self._prefix + "#", 1)

    def _on_message(self, _client: Any, _userdata: Any, message: Any) -> None:
        topic = message.topic[len(self._prefix) :]
        with self.changed:
            if topic in ("verdict", "event"):
                entry = json.loads(message.payload)
                self.received += 1
                seen = self.entries.get(entry["seq"])
                if seen is None:
                    self.entries[entry["seq"]] = entry
                    self.order.append(entry["seq"])
                else:
                    self.repeats += 1
                    self.altered += seen != entry
            else:
                try:
                    self.retained[topic] = json.loads(message.payload)
                except ValueError:
                    self.retained[topic] = message.payload.decode()
            self.changed.notify_all()

    def wait_for(self, what: Any, timeout_s: float) -> bool:
        """Until ``what(self)`` holds."""
        with self.changed:
            return bool(self.changed.wait_for(lambda: what(self), timeout_s))

    def command(self, verb: str, identity: str) -> None:
        self._client.publish(f"{self._prefix}cmd/{verb}", json.dumps({"id": identity}), qos=1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Network:
    """A TCP relay between the firmware and the broker that can be cut: connections break and none are taken."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._wake, self._woken = socket.socketpair()
        self._down = False
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._thread.start()

    def cut(self, down: bool) -> None:
        self._down = down
        self._wake.send(b"x")

    def close(self) -> None:
        self._ending = True
        self._wake.send(b"x")
        self._thread.join(2)
        self._listener.close()

    def _run(self) -> None:
        while not self._ending:
            ends = {end: other for one, two in self._pairs for end, other in ((one, two), (two, one))}
            ready = select.select([self._listener, self._woken, *ends], [], [], 1.0)[0]
            for sock in ready:
                if sock is self._woken:
                    self._woken.recv(64)
                elif sock is self._listener:
                    self._take(self._listener.accept()[0])
                else:
                    self._relay(sock, ends[sock])
            if self._down or self._ending:
                self._drop(list(self._pairs))

    def _take(self, client: socket.socket) -> None:
        if self._down:
            client.close()
            return
        try:
            self._pairs.append((client, socket.create_connection(("127.0.0.1", self._target), 2)))
        except OSError:
            client.close()

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            data = source.recv(65536)
            if data:
                sink.sendall(data)
                return
        except OSError:
            pass  # the same end as an orderly close: the pair goes
        self._drop([pair for pair in self._pairs if source in pair])

    def _drop(self, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
        for pair in pairs:
            self._pairs.remove(pair)
            for sock in pair:
                sock.close()
