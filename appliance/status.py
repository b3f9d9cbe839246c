"""``appliance status``: subscribes to a station's retained topics and prints them, once or at each change."""

from __future__ import annotations

import select
from typing import TextIO

from appliance.clock import SystemClock
from appliance.config import Station
from appliance.devices.publisher_mqtt import MqttPublisher
from appliance.report.status import as_text
from appliance.wiring.station import broker_of

_WAIT_S = 4.0


def watch(station: Station, out: TextIO, err: TextIO, for_ever: bool) -> int:
    """Exit 0, or 2 when the broker does not answer."""
    if station.mqtt is None:
        err.write("this station has no mqtt section; there is nothing to read\n")
        return 2
    clock = SystemClock()
    name = f"status-{clock.now_ns() % 10**9}"
    client = MqttPublisher(broker_of(station), name, station.station + "/status", [station.station + "/#"])
    retained: dict[str, bytes] = {}
    end_ns = clock.now_ns() + round(_WAIT_S * 1e9)
    shown = ""
    while for_ever or clock.now_ns() < end_ns:
        for what, value in client.step(clock.now_ns()):
            if what == "connected":
                client.subscribe()
            elif what == "arrived":
                retained[value.topic[len(station.station) + 1 :]] = value.payload
        text = as_text(station.station, retained) if "state" in retained and "counters" in retained else ""
        if text and text != shown:
            out.write(text + "\n")
            shown = text
            if not for_ever:
                break
        select.select([client], [], [], 0.2)
    client.close()
    if not shown:
        err.write(f"no station answers on the broker: {client.reason or 'nothing was retained'}\n")
        return 2
    return 0
