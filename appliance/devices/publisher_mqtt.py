"""MQTT by paho: version 5, falling back to 3.1.1; a fresh client per connection, so that nothing queues in memory."""

from __future__ import annotations

import logging
import os
from collections import deque
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

log = logging.getLogger("appliance.mqtt")

FIRST_RETRY_NS, LAST_RETRY_NS = 250_000_000, 5_000_000_000
_KEEPALIVE_S = 15
_GOODBYE_S = 1.0
_ANSWER_NS = 2_000_000_000  # a broker that has not answered CONNECT by then does not understand it


@dataclass(frozen=True)
class Broker:
    """Where and as whom. ``ca_file`` and friends only for mqtts."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


@dataclass(frozen=True)
class Arrived:
    """A message on a subscribed topic."""

    topic: str
    payload: bytes
    retain: bool
    response_topic: str | None
    correlation: bytes | None


class MqttPublisher:
    """ports.Publisher. paho's thread only pushes to ``happened`` and wakes ``fileno``: connected, lost, acks, commands."""

    def __init__(self, broker: Broker, client_id: str, prefix: str, subscribe: list[str]) -> None:
        self._broker, self._client_id, self._prefix, self._subscribe = broker, client_id, prefix, subscribe
        self._protocol = mqtt.MQTTv5
        self._client: mqtt.Client | None = None
        self._generation = 0
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._queue: deque[tuple[int, str, Any]] = deque()
        self._retry_ns = self._asked_ns = 0
        self._delay_ns = FIRST_RETRY_NS
        self._told = ""
        self._last: mqtt.MQTTMessageInfo | None = None
        self.connected = False
        self.reason = "not connected yet"

    def fileno(self) -> int:
        return self._wake

    def step(self, now_ns: int) -> list[tuple[str, Any]]:
        """What happened since: ("connected", None), ("lost", reason), ("acked", mid), ("arrived", Arrived)."""
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass
        happened = []
        while self._queue:
            generation, what, value = self._queue.popleft()
            if generation != self._generation:
                continue
            if what == "connected":
                self.connected, self._delay_ns, self.reason = True, FIRST_RETRY_NS, ""
                log.info("connected to %s:%d", self._broker.host, self._broker.port)
            elif what in ("lost", "refused"):
                self._over(what, str(value), now_ns)
                what = "lost"
            happened.append((what, value))
        if self._client is None and now_ns >= self._retry_ns:
            self._connect(now_ns)
        elif self._client is not None and not self.connected and now_ns - self._asked_ns > _ANSWER_NS:
            self._over("lost", "no answer to CONNECT", now_ns)
        return happened

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> int | None:
        """The message's number, or None while not connected."""
        if not self.connected or self._client is None:
            return None
        info = self._last = self._client.publish(topic, payload, qos=qos, retain=retain)
        return info.mid if info.rc == mqtt.MQTT_ERR_SUCCESS else None

    def reply(self, topic: str, payload: bytes, correlation: bytes | None) -> None:
        """An answer to a command, with MQTT 5's correlation data where there was one."""
        if self._client is None:
            return
        properties = None
        if self._protocol == mqtt.MQTTv5 and correlation is not None:
            properties = Properties(PacketTypes.PUBLISH)
            properties.CorrelationData = correlation
        self._client.publish(topic, payload, qos=1, properties=properties)

    def close(self) -> None:
        """Say goodbye: a clean disconnect sends no last will. Waits a second at most for the last word's acknowledgement:
        a broker that reads the end of the connection before our DISCONNECT (amqtt, when busy) would send the will."""
        if self._client is not None:
            if self.connected and self._last is not None and self._last.rc == mqtt.MQTT_ERR_SUCCESS:
                self._last.wait_for_publish(_GOODBYE_S)
            self._client.disconnect()
            self._client.loop_stop()
            self._client = None
        self.connected = False

    def _connect(self, now_ns: int) -> None:
        self._generation += 1
        self._asked_ns = now_ns
        generation = self._generation
        v5 = self._protocol == mqtt.MQTTv5
        client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=self._client_id, protocol=self._protocol,
            clean_session=None if v5 else True, reconnect_on_failure=False,
        )  # fmt: skip
        client.max_inflight_messages_set(0)  # the outbox keeps the window; paho must not hold anything back
        client.will_set(f"{self._prefix}/available", "offline", qos=1, retain=True)
        if self._broker.username:
            client.username_pw_set(self._broker.username, self._broker.password)
        if self._broker.tls:
            client.tls_set(self._broker.ca_file, self._broker.cert_file, self._broker.key_file)

        def on_connect(_c: Any, _u: Any, _f: Any, reason: Any, _p: Any = None) -> None:
            self._push(generation, "refused" if reason.is_failure else "connected", str(reason))

        def on_disconnect(_c: Any, _u: Any, _f: Any, reason: Any, _p: Any = None) -> None:
            self._push(generation, "lost", str(reason))

        def on_message(_c: Any, _u: Any, message: Any) -> None:
            properties = getattr(message, "properties", None)
            arrived = Arrived(
                message.topic, message.payload, bool(message.retain),
                getattr(properties, "ResponseTopic", None), getattr(properties, "CorrelationData", None),
            )  # fmt: skip
            self._push(generation, "arrived", arrived)

        def on_publish(_c: Any, _u: Any, mid: int, _r: Any, _p: Any) -> None:
            self._push(generation, "acked", mid)

        client.on_connect, client.on_disconnect = on_connect, on_disconnect
        client.on_message, client.on_publish = on_message, on_publish
        try:
            client.connect_timeout = 2.0
            client.connect(self._broker.host, self._broker.port, _KEEPALIVE_S, **({"clean_start": True} if v5 else {}))
        except (OSError, ValueError) as why:
            self._client = client
            self._over("unreachable", str(why), now_ns)
            return
        client.loop_start()
        self._client = client

    def subscribe(self) -> None:
        """After each connect."""
        if self._client is not None and self._subscribe:
            self._client.subscribe([(topic, 1) for topic in self._subscribe])

    def _over(self, what: str, reason: str, now_ns: int) -> None:
        was_connected, self.connected = self.connected, False
        client, self._client = self._client, None
        if client is not None:
            client.loop_stop()
        self._generation += 1
        unspoken = what in ("lost", "refused") and "authori" not in reason.lower()
        if not was_connected and self._protocol == mqtt.MQTTv5 and unspoken:
            # Brokers of 3.1.1 close the connection on a version 5 CONNECT (or refuse the version).
            self._protocol = mqtt.MQTTv311
            log.info("the broker does not speak MQTT 5 (%s): 3.1.1 from here on", reason)
            self._retry_ns = now_ns
            return
        self.reason = f"{what}: {reason}"
        if self.reason != self._told:
            self._told = self.reason
            log.warning("broker %s:%d %s; records wait on disk", self._broker.host, self._broker.port, self.reason)
        self._retry_ns = now_ns + self._delay_ns
        self._delay_ns = min(2 * self._delay_ns, LAST_RETRY_NS)

    def _push(self, generation: int, what: str, value: Any) -> None:
        self._queue.append((generation, what, value))
        os.eventfd_write(self._wake, 1)
