"""Runs inside the guest: the line before the box. Parts come to the photo-eye, the camera sees them, the gate is watched.

    line.py PLAN.json RESULT.json

PLAN: {"parts": [{"bad": bool}, …], "pitch_s", "cover_s", "eye": pin's sysfs folder, "station",
"stop": a file that ends it early}. A bad part is a
bright picture: vivid's brightness is set half a pitch before the part's edge and stays until half a pitch after it.
RESULT: {"parts": [{"bad", "before_ns", "after_ns"}, …], "records": what came by MQTT, "repeats"}; times are
CLOCK_MONOTONIC around the write that moves the pin, so the edge lies between them.
"""

import json
import sys
import time
from pathlib import Path

import appliance.devices.v4l2_driver as v4l2
from appliance.twin.mes import Mes

CAMERA = "/dev/v4l/by-path/platform-vivid.0-video-index0"
GOOD, BAD = 128, 255  # of vivid's brightness
BRIGHTNESS = 0x980900


class Picture:
    """What lies under the camera. The node may go and come back: then it is opened again."""

    def __init__(self):
        self.controls = self.brightness = None

    def show(self, bad):
        for _ in range(2):
            try:
                if self.controls is None:
                    self.controls = v4l2.Controls(v4l2.Device(v4l2.Kernel(), CAMERA), "line")
                    self.brightness = self.controls.find(BRIGHTNESS)
                self.controls.put(self.brightness, BAD if bad else GOOD, "the line")
                return
            except (OSError, v4l2.CameraLost):
                self.controls = None


def until(moment_ns):
    left = moment_ns - time.monotonic_ns()
    if left > 0:
        time.sleep(left / 1e9)


def main():
    plan = json.loads(Path(sys.argv[1]).read_text())
    pull, pitch_ns, cover_ns = Path(plan["eye"]) / "pull", round(plan["pitch_s"] * 1e9), round(plan["cover_s"] * 1e9)
    mes, stop = Mes(1883, plan["station"]), Path(plan["stop"])
    picture, made = Picture(), []
    edge_ns = time.monotonic_ns()
    for part in plan["parts"]:
        if stop.exists():
            break
        edge_ns += pitch_ns  # from edge to edge as they were: a line that is late is late for all parts behind it
        until(edge_ns - pitch_ns // 2)
        picture.show(part["bad"])
        # Half a pitch from here, however long that took: vivid paints late when this machine stands still, and stamps the
        # frame with the time at which it should have been.
        until(time.monotonic_ns() + pitch_ns // 2)
        before_ns = time.monotonic_ns()
        pull.write_text("pull-up")
        edge_ns = after_ns = time.monotonic_ns()
        made.append({"bad": part["bad"], "before_ns": before_ns, "after_ns": after_ns})
        until(edge_ns + cover_ns)
        pull.write_text("pull-down")
    until(time.monotonic_ns() + pitch_ns // 2)
    picture.show(False)
    mes.wait_for(lambda one: sum("part" in entry for entry in one.entries.values()) >= len(made), 30)
    result = {"parts": made, "repeats": mes.repeats, "records": [one for one in mes.entries.values() if "part" in one]}
    mes.close()
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
