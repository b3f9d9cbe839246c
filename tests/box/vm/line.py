"""A station in the guest and the line before it: gpio-sim, vivid, mosquitto, the package's own units; and the account of a run.

The camera's picture is bright for a bad part and ordinary for a good one, and a tiny bundle tells them apart: so what is true
of each part is known, and each verdict, each movement of the gate and each count can be held against it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.box.vm.cache import HERE
from tests.box.vm.machine import Machine

STATION = "acme/vm/line1/vivid"
EYE, GATE, HEARTBEAT = "PAC.06", "PQ.05", "PR.04"
LINES = (EYE, GATE, HEARTBEAT, "PN.01", "PH.00")
SPEED_MM_S, DISTANCE_MM, PART_MM, RESPONSE_MS = 250, 200, 28, 10
PURGE_MM = 250
PYTHON = "PYTHONPATH=/usr/lib/appliance:/usr/lib/appliance/packages /usr/bin/python3"
# An edge is read as what the pin shows when its interrupt is served: an eye that is covered for less time than this machine may
# stand still loses its edge. So the belt is slow and the parts long: 112 ms.
EDGE_NS = 100_000_000  # gpio-sim's interrupt comes with a tick of the timer, some milliseconds after the pin has moved
LEDGER = "/var/lib/appliance/ledger.sqlite"
YAML = f"""version: 1
station: {STATION}
revision: 1
cameras:
  top:
    source: v4l2:///dev/v4l/by-path/platform-vivid.0-video-index0
    size: [320, 180]
    pixel: yuyv
    fps: 25
    exposure_us: auto
    trigger: free-run
trigger: {{input: "gpio://{EYE}", min_pitch_mm: 30, max_part_mm: 56, blocked_mm: 120}}
transport: {{speed_mm_s: {SPEED_MM_S}, max_speed_mm_s: 2000}}
part_mm: {PART_MM}
reject:
  output: gpio://{GATE}
  kind: hold
  energised_means: accept
  distance_mm: {DISTANCE_MM}
  pulse_ms: 40
  response_ms: {RESPONSE_MS}
  deadline_ms: 30
  purge_mm: {PURGE_MM}
outputs: {{ready: "gpio://PN.01", fault: "gpio://PH.00", heartbeat: "gpio://{HEARTBEAT}"}}
alarms:
  consecutive_rejects: 1000
  reject_rate: {{over: 1.0, of_last: 200}}
recipes:
  tiny:
    number: 1
    inspect: [{{camera: top, bundle: tiny}}]
active: tiny
mqtt: {{broker: "mqtt://127.0.0.1", commands: [clear]}}
modbus: {{listen: "127.0.0.1:1502"}}
signature: "off"
"""
_GPIO_UNIT = """[Unit]
Description=The box's GPIO chip (gpio-sim)
DefaultDependencies=no
After=local-fs.target sys-kernel-config.mount
Wants=sys-kernel-config.mount
Before=rejectd.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/bash /root/gpio.sh
[Install]
WantedBy=sysinit.target
"""


RUNNING = """python3 -c 'import json; s = json.load(open("/run/appliance/state.json"))
r, i = s["reject"], s["inspect"]
raise SystemExit(not (r and i and r["state"] == "running" and i["state"] == "ready"))'"""
"""A command of the guest that ends with 0 when the station runs."""


def tiny(folder: Path) -> Path:
    """The line's bundle: vivid's picture at its ordinary brightness has a luma of about 0.2 and is good, a bright one has 0.7."""
    from tests.model.tiny import SIDE, tiny_bundle

    taught = {"tensor": "image", "size": [SIDE, SIDE], "channels": 1, "fit": "stretch", "mean": [0.2], "std": [1.0]}
    tiny_bundle(folder, input=taught)
    return folder


def set_up(machine: Machine, bundle: Path) -> None:
    """On a booted box without configuration: its GPIO chip at each boot, the broker, and the station above as the last good
    configuration. It runs after the next boot."""
    machine.run("systemctl is-system-running --wait", 120)  # tmpfiles and udev have done their part
    folder = machine.shared / "station"
    (folder / "bundles").mkdir(parents=True)
    (folder / "appliance.yaml").write_text(YAML)
    bundle.rename(folder / "bundles" / "tiny")
    (machine.shared / "gpio.sh").write_text(machine.gpio_script("tegra234-gpio", LINES))
    (machine.shared / "vm-gpio.service").write_text(_GPIO_UNIT)
    machine.check(
        "cp /host/gpio.sh /root/ && cp /host/vm-gpio.service /etc/systemd/system/ && systemctl enable vm-gpio mosquitto"
        " && cp -r /host/station /var/tmp/station && chown -R appliance: /var/tmp/station && systemctl stop appliance.target"
    )
    configure(machine, "/var/tmp/station")


def configure(machine: Machine, folder: str) -> None:
    """The configuration in that folder of the guest is the last good one."""
    (machine.shared / "configure.py").write_text((HERE / "guest" / "configure.py").read_text())
    machine.check(f"cp /host/configure.py /var/tmp/ && runuser -u appliance -- env {PYTHON} /var/tmp/configure.py {folder}")


@dataclass
class Made:
    """What a run of parts brought. ``parts``: bad, before_ns, after_ns of each edge; ``records``: of the ledger, by part."""

    parts: list[dict[str, Any]]
    came_by_mqtt: list[dict[str, Any]]
    repeats: int
    records: list[dict[str, Any]] = field(default_factory=list)


def start_parts(
    machine: Machine, bad: Sequence[bool], pitch_s: float = 0.4, name: str = "run", deadline_s: float = 580
) -> Any:  # fmt: skip
    """Parts one after another, a job; ``account`` takes its result. A file NAME.stop in the shared folder ends them early."""
    plan = {
        "parts": [{"bad": one} for one in bad], "pitch_s": pitch_s, "cover_s": PART_MM / SPEED_MM_S, "eye": f"/run/vm/gpio/{EYE}",
        "station": STATION, "stop": f"/host/{name}.stop",
    }  # fmt: skip
    (machine.shared / f"{name}.plan").write_text(json.dumps(plan))
    files = (f"/host/{name}.plan", f"/host/{name}.result")
    return machine.script(HERE / "guest" / "line.py", *files, python=PYTHON, deadline_s=deadline_s)


_LAST = f"""python3 -c 'import json, sqlite3; one = sqlite3.connect("file:{LEDGER}?mode=ro", uri=True)\\
.execute("select body from entries where part is not null order by seq desc").fetchone()
raise SystemExit(not (one and json.loads(one[0])["monotonic_ns"] >= FIRST))'"""


def account(machine: Machine, job: Any, name: str = "run", deadline_s: float = 580, wait_for_last: bool = True) -> Made:
    """The end of ``start_parts``, and the ledger's records of its parts, found by the time of their edges."""
    ran = job.wait(deadline_s)
    assert ran.rc == 0, ran.out
    result = json.loads((machine.shared / f"{name}.result").read_text())
    made = Made(result["parts"], result["records"], result["repeats"])
    first_ns, last_ns = made.parts[0]["before_ns"], made.parts[-1]["after_ns"] + EDGE_NS
    if wait_for_last:
        machine.wait_until(_LAST.replace("FIRST", str(made.parts[-1]["before_ns"])), 60, 0.5)
    made.records = [one for one in records(machine) if first_ns <= one["monotonic_ns"] <= last_ns]
    return made


def count_parts(verdict: str = "") -> str:
    """A command of the guest that prints how many parts (with that verdict) the ledger has."""
    which = f"verdict = \\\"{verdict}\\\"" if verdict else "part is not null"
    return f"""python3 -c 'import sqlite3; print(sqlite3.connect("file:{LEDGER}?mode=ro", uri=True)\\
.execute("select count(*) from entries where {which}").fetchone()[0])'"""


def records(machine: Machine) -> list[dict[str, Any]]:
    """All parts of the ledger, in its order."""
    machine.check("appliance ledger export /var/lib/appliance/ledger.sqlite > /host/ledger.jsonl", 120)
    entries = [json.loads(line) for line in (machine.shared / "ledger.jsonl").read_text().splitlines() if line.startswith("{")]
    return [one for one in entries if "part" in one]


def verify(machine: Machine) -> str:
    """The ledger's own check. Raises CommandFailed when it is broken."""
    return machine.check(f"appliance ledger verify {LEDGER}", 120)


def watch_gate(machine: Machine) -> None:
    """From now on the kernel notes each change of each pin, with its time."""
    machine.check(
        "cd /sys/kernel/tracing && echo 4096 > buffer_size_kb && echo mono > trace_clock"
        " && echo 1 > events/gpio/gpio_value/enable && echo > trace && echo 1 > tracing_on"
    )


def gate_windows(machine: Machine, killed_ns: Sequence[int] = ()) -> list[tuple[int, int | None]]:
    """Stretches in which the gate stood in reject (low: a dead box rejects): (from, to) in CLOCK_MONOTONIC ns. ``killed_ns``:
    when rejectd was killed: its pins fall to their pull then, which is down, and no trace tells it."""
    machine.check("cat /sys/kernel/tracing/trace > /host/trace")
    text = (machine.shared / "trace").read_text()
    found = re.findall(r"([0-9]+)\.([0-9]{6}): gpio_value: ([0-9]+) set ([01])", text)
    moves = [(int(s) * 10**9 + int(us) * 1000, int(pin), value == "1") for s, us, pin, value in found]
    counts: dict[int, int] = {}
    for _, pin, _ in moves:
        counts[pin] = counts.get(pin, 0) + 1
    # the heartbeat moves ten times a second: it tells where the chip's numbers begin
    base = max(counts, key=lambda pin: counts[pin]) - LINES.index(HEARTBEAT)
    gate = base + LINES.index(GATE)
    moves = sorted([*moves, *((when, gate, False) for when in killed_ns)])
    windows: list[tuple[int, int | None]] = []
    for when, pin, high in moves:
        if pin != gate:
            continue
        if not high and (not windows or windows[-1][1] is not None):
            windows.append((when, None))
        elif high and windows and windows[-1][1] is None:
            windows[-1] = (windows[-1][0], when)
    return windows
