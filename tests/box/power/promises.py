"""Runs inside the guest: hears what the station publishes and marks in the disk's log what was thereby promised.

What left over MQTT must be on the disk (law 5), so it must be there after any cut that comes later. Arguments: the dm
device, the station's name. Prints one line once it listens; ends with SIGTERM.
"""

import json
import subprocess
import sys
import threading

import paho.mqtt.client as mqtt


def main(device: str, station: str) -> None:
    heard = threading.Condition()
    newest = 0

    def on_message(_client, _userdata, message):
        nonlocal newest
        with heard:
            newest = max(newest, json.loads(message.payload)["seq"])
            heard.notify()

    def on_connect(client, *_):
        client.subscribe([(f"{station}/verdict", 1), (f"{station}/event", 1)])

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "promises")
    client.on_connect, client.on_message = on_connect, on_message
    client.on_subscribe = lambda *_: print("listening", flush=True)
    client.connect("127.0.0.1")
    client.loop_start()
    told = 0
    while True:
        with heard:
            while newest <= told:
                heard.wait()
            told = newest
        subprocess.run(["dmsetup", "message", device, "0", "mark", f"seq-{told}"], check=True)


main(*sys.argv[1:])
