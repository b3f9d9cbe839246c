"""The units under a real systemd, process 1 in name spaces of its own: they run the shipped station on the twin, boxed in."""

from __future__ import annotations

import json
import re
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.box.booted import PROJECT, Booted, booted, why_not, with_our_units

FOLDER = PROJECT / "systemd"
UNITS = ("rejectd.service", "inspectd.service", "reportd.service")
STATE = "/run/appliance/state.json"
# The shipped station as the last good generation of the store, put there as its owner does.
_CONFIGURE = """
import sys
from pathlib import Path
from appliance.box.store import Meta, Store
from appliance.config import load
from appliance.wiring.store import essentials_of
store = Store(Path("/var/lib/appliance/config"))
new = store.put(Path(sys.argv[1]), Meta("test", "as shipped", 1, "x", 0, "unset"))
store.begin_trial(new, 2**62)
store.mark_good(essentials_of(load(new.file)))
"""
# A doer that is killed in the middle of its trial: of another configuration, whose camera is not there.
_TRY = """
import signal, sys
from pathlib import Path
from appliance.box.again import ROLES, begin_anew
from appliance.box.store import Meta, Store
from appliance.clock import boottime_ns
store = Store(Path("/var/lib/appliance/config"))
new = store.put(Path(sys.argv[1]), Meta("test", "another camera", 2, "x", 0, "unset"))
store.begin_trial(new, boottime_ns() + int(sys.argv[2]) * 10**9)
begin_anew(Path("/run/appliance"), ROLES, new.digest)
signal.pause()
"""
# Inside, where it is quick: a kill every half second, whatever stage rejectd is in; then five that wait until it is up.
_KILL = """
import json, os, select, signal, subprocess, time
def show(name):
    return subprocess.run(["systemctl", "show", "-P", name, "rejectd.service"], capture_output=True, text=True).stdout.strip()
def wait_up():
    while show("ActiveState") != "active":
        assert time.monotonic() - begun < 60
begun, kills, ready = time.monotonic(), 0, []
while kills < 20:
    pid = int(show("MainPID"))
    if pid:
        os.kill(pid, signal.SIGKILL)
        kills += 1
    select.select([], [], [], max(0.0, begun + kills * 0.5 - time.monotonic()))
seconds = time.monotonic() - begun
wait_up()
back = time.monotonic() - begun - seconds
for _ in range(5):
    pid = show("MainPID")
    os.kill(int(pid), signal.SIGKILL)
    while show("MainPID") in (pid, "0"):
        assert time.monotonic() - begun < 60
    wait_up()
    up_us, at_us = int(show("ActiveEnterTimestampMonotonic")), int(show("ExecMainStartTimestampMonotonic"))
    ready.append((up_us - at_us) / 1000)
print(json.dumps({"kills": kills, "seconds": seconds, "back_s": back, "exec_to_ready_ms": ready}))
"""
# What a process of that unit can do and what not.
_PROBE = """
import ctypes, errno, json, os, socket
def tried(act):
    try:
        act()
        return "yes"
    except OSError as why:
        return errno.errorcode[why.errno]
def call(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print("PROBE " + json.dumps({
    "user": os.getuid(), "caps": status["CapEff"] + status["CapBnd"], "no_new_privileges": status["NoNewPrivs"],
    "clock_read": tried(lambda: call("adjtimex", ctypes.byref(ctypes.create_string_buffer(512)))),
    "clock_set": tried(lambda: call("clock_settime", 0, ctypes.byref(ctypes.create_string_buffer(16)))),
    "boot_id": tried(lambda: open("/proc/sys/kernel/random/boot_id").read()),
    "load": tried(os.getloadavg),
    "state": tried(lambda: open("/var/lib/appliance/probe", "w")), "run": tried(lambda: open("/run/appliance/probe", "w")),
    "etc": tried(lambda: open("/etc/probe", "w")), "program": tried(lambda: open("/usr/lib/probe", "w")),
    "home": tried(lambda: os.listdir("/root")), "loop": tried(lambda: open("/dev/loop-control")),
    "null": tried(lambda: open("/dev/null", "w")), "affinity": tried(lambda: os.sched_setaffinity(0, os.sched_getaffinity(0))),
    "fifo": tried(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))),
    "mlockall": tried(lambda: call("mlockall", 1)) in ("yes", "ENOMEM"),
    "mount": tried(lambda: call("mount", b"none", b"/mnt", b"tmpfs", 0, None)),
    "name_space": tried(lambda: call("unshare", 0x10000000)), "reboot": tried(lambda: call("reboot", 0)),
    "internet": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)),
    "packet": tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
    "cores": sorted(os.sched_getaffinity(0)), "oom": open("/proc/self/oom_score_adj").read().strip(),
}))
"""

# As rejectd with remote I/O: a process beside it hears its end, and then has a coil to write, which takes an exchange.
_REMOTE = """
import os, select, signal
hears, says = os.pipe()
if os.fork():
    open("/run/appliance/remote.pid", "w").write(str(os.getpid()))
    signal.pause()
os.close(says)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.read(hears, 1)
select.select([], [], [], 0.3)
open("/run/appliance/remote.done", "w").write("failure levels written")
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """A box with a configuration, started."""
    if missing := why_not():
        pytest.skip(missing)
    place = tmp_path_factory.mktemp("box")
    station = place / "station"
    station.mkdir()
    (station / "appliance.yaml").write_text((PROJECT / "appliance/twin/station.yaml").read_text())
    other = place / "other"
    other.mkdir()
    (other / "appliance.yaml").write_text(
        (station / "appliance.yaml").read_text().replace("source: twin://top", "source: v4l2:///dev/v4l/by-path/nothing")
    )
    files = {"configure.py": _CONFIGURE, "try.py": _TRY, "probe.py": _PROBE, "remote.py": _REMOTE, "kill.py": _KILL}
    files["sitecustomize.py"] = _HANGS
    for name, text in files.items():
        (place / name).write_text(text)
    prepare = f"{with_our_units()}\nmkdir -p opt/test\ncp -r {station} {other} {place}/*.py opt/test/\n" \
              f"cp {place}/sitecustomize.py opt/appliance/\nchmod -R a+rX opt/test opt/appliance\n"  # fmt: skip
    with booted(place, prepare) as one:
        one.run("setpriv", "--reuid", "appliance", "--regid", "appliance", "--init-groups", "env", "-C", "/opt/test",
                "LD_LIBRARY_PATH=/opt/python/lib", "PYTHONPATH=/opt/appliance:/opt/packages",
                "/opt/python/bin/python3", "configure.py", "station")  # fmt: skip
        one.start("appliance.target")
        yield one


def may_raise_limits() -> bool:
    """Whether this machine lets root raise limits (CAP_SYS_RESOURCE, number 24): some sandboxes do not."""
    caps = re.search(r"CapBnd:\s*([0-9a-f]+)", Path("/proc/1/status").read_text())
    return caps is not None and bool(int(caps[1], 16) >> 24 & 1)


_HANGS = "import signal\n\ndef hang(*_):\n    while True:\n        pass\n\nsignal.signal(signal.SIGUSR1, hang)\n"


def state(box: Booted) -> dict:
    text = box.run("cat", STATE, check=False)
    return json.loads(text) if text.startswith("{") else {}


def wait_up(box: Booted, running: bool = False, limit_s: float = 60.0) -> None:
    """Until all three are connected and inspectd is ready. ``running``: and the line runs, which a machine without real time
    may end at any moment (a gate that was told too late is a fault until a person clears it)."""
    end = time.monotonic() + limit_s
    while True:
        now = state(box)
        reject, inspect = now.get("reject") or {}, now.get("inspect") or {}
        if inspect.get("state") == "ready" and reject and (reject["state"] == "running" or not running):
            return
        assert time.monotonic() < end, f"{now}\n{box.journal()[-3000:]}"
        select.select([], [], [], 0.1)


def test_the_shipped_station_runs_on_the_twin_with_its_own_broker(box: Booted) -> None:
    wait_up(box, running=True)
    for unit in (*UNITS, "appliance-twin.service", "appliance-broker.service"):
        assert box.show(unit, "ActiveState") == "active", box.journal(unit)
    assert box.show("inspectd.service", "StatusText") == "ready"
    assert box.show("reportd.service", "StatusText").startswith("recording")
    assert all(box.show(unit, "NRestarts") == "0" for unit in UNITS)


def put_in_the_place_of(box: Booted, unit: str, program: str, kind: str) -> None:
    """PROGRAM-UNIT: what that unit gives and forbids, for a program of this test."""
    not_of_it = ("ExecStart=", "Type=", "Restart", "WatchdogSec=", "Before=")
    lines = [line for line in (FOLDER / unit).read_text().splitlines() if not line.startswith(not_of_it)]
    begins = f"ExecStart=/opt/python/bin/python3 /opt/test/{program}.py\nEnvironment=LD_LIBRARY_PATH=/opt/python/lib"
    lines.insert(lines.index("[Service]") + 1, f"Type={kind}\n{begins}")
    box.run("sh", "-c", f"cat > /run/systemd/system/{program}-{unit} <<'UNIT'\n" + "\n".join(lines) + "\nUNIT")
    box.run("systemctl", "daemon-reload")


@pytest.mark.parametrize("unit", UNITS)
def test_a_daemon_can_do_what_it_must_and_nothing_else(box: Booted, unit: str) -> None:
    put_in_the_place_of(box, unit, "probe", "oneshot")
    box.start(f"probe-{unit}")
    can = json.loads(next(line for line in box.journal(f"probe-{unit}").splitlines() if line.startswith("PROBE"))[6:])
    assert can["user"] != 0 and set(can["caps"]) == {"0"} and can["no_new_privileges"] == "1"
    assert can["clock_read"] == "yes" and can["clock_set"] == "EPERM"
    assert can["boot_id"] == can["load"] == can["null"] == can["run"] == "yes"
    assert can["state"] == ("EROFS" if unit == "rejectd.service" else "yes")
    assert can["etc"] == can["program"] == "EROFS"
    assert can["home"] in ("EACCES", "EPERM") and can["loop"] in ("EPERM", "EACCES", "ENOENT")
    assert can["mount"] == can["name_space"] == can["reboot"] == "EPERM"
    assert can["packet"] in ("EPERM", "EAFNOSUPPORT") and can["internet"] == "yes"
    if may_raise_limits():
        assert can["oom"] == {"rejectd.service": "-900", "inspectd.service": "0", "reportd.service": "-500"}[unit]
        assert can["fifo"] == ("yes" if unit == "rejectd.service" else "EPERM")
    if unit == "rejectd.service":
        assert can["affinity"] == "yes" and can["mlockall"] and set(can["cores"]) <= {0, 1}


def test_remote_io_gets_its_failure_levels_from_a_process_that_outlives_a_killed_rejectd(box: Booted) -> None:
    put_in_the_place_of(box, "rejectd.service", "remote", "exec")
    box.start("remote-rejectd.service")
    until = "until test -s /run/appliance/remote.pid; do :; done; kill -9 $(cat /run/appliance/remote.pid)"
    box.run("sh", "-c", until)
    box.wait("remote-rejectd.service", "ActiveState", "failed")  # which it is when the last of its processes has gone
    assert box.run("cat", "/run/appliance/remote.done", check=False) == "failure levels written"


def test_rejectd_killed_twenty_times_in_ten_seconds_is_back(box: Booted, capsys: pytest.CaptureFixture[str]) -> None:
    wait_up(box)
    others = [box.pid(unit) for unit in ("inspectd.service", "reportd.service")]
    told = box.run("env", "LD_LIBRARY_PATH=/opt/python/lib", "/opt/python/bin/python3", "/opt/test/kill.py", timeout_s=120)
    seen = json.loads(told.splitlines()[-1])
    wait_up(box)
    *_, longest = ready_ms = sorted(seen["exec_to_ready_ms"])
    with capsys.disabled():
        print(f"\n{seen['kills']} kills in {seen['seconds']:.1f} s, up {seen['back_s']:.1f} s later; exec to READY "
              f"{ready_ms[2]:.0f} ms, longest of five {longest:.0f} ms")  # fmt: skip
    assert seen["kills"] == 20 and int(box.show("rejectd.service", "NRestarts")) >= 20
    assert [box.pid(unit) for unit in ("inspectd.service", "reportd.service")] == others, "nobody went down with it"


@pytest.mark.parametrize("unit", ["rejectd.service", "inspectd.service"])
def test_a_loop_that_hangs_is_ended_by_its_watchdog_and_says_where_it_hung(box: Booted, unit: str) -> None:
    """inspectd's own pulse is quicker than its watchdog, and says so in words."""
    wait_up(box)
    pid, before = box.pid(unit), int(box.show(unit, "NRestarts"))
    box.run("systemctl", "kill", "-s", "USR1", "--kill-who=main", unit)
    end = time.monotonic() + 30
    while int(box.show(unit, "NRestarts")) == before:
        assert time.monotonic() < end, box.journal(unit)[-2000:]
        select.select([], [], [], 0.1)
    box.wait(unit, "ActiveState", "active")
    assert box.pid(unit) != pid
    wait_up(box)
    told = box.journal(unit)
    if unit == "rejectd.service":
        assert "Watchdog timeout (limit 2s)!" in told and "Fatal Python error: Aborted" in told and "in hang" in told
    else:
        assert "the loop did not turn for 5 s" in told


def test_a_rejectd_that_never_comes_up_silences_nobody(box: Booted) -> None:
    """Ordering behind a unit that is started again and again has no end: neither reportd nor a stick's unit stands there."""
    # By name: the target's own stop does not wait for theirs, and a start that comes before takes those back.
    box.run("systemctl", "stop", "appliance.target", *UNITS, "appliance-twin.service")
    box.run("sh", "-c", "mkdir -p /run/systemd/system/rejectd.service.d && "
            "printf '[Service]\\nExecStartPre=/bin/false\\n' > /run/systemd/system/rejectd.service.d/broken.conf")  # fmt: skip
    box.run("systemctl", "daemon-reload")
    try:
        box.run("systemctl", "start", "--no-block", "appliance.target")
        box.wait("reportd.service", "ActiveState", "active")
        end = time.monotonic() + 30
        while (now := state(box)).get("reject", "") is not None or not now:
            assert time.monotonic() < end, now
            select.select([], [], [], 0.1)
        while int(box.show("rejectd.service", "NRestarts")) <= 2:  # it is not given up either; it begins after its twin
            assert time.monotonic() < end, box.journal("rejectd.service")[-2000:]
            select.select([], [], [], 0.1)
    finally:
        box.run("rm", "-r", "/run/systemd/system/rejectd.service.d")
        box.run("systemctl", "daemon-reload")
    box.wait("rejectd.service", "ActiveState", "active")
    wait_up(box)


def test_a_trial_whose_doer_was_killed_is_ended_while_the_station_runs(box: Booted) -> None:
    """As where an engine's build takes all memory and the kernel ends the stick's process first: no stick, no restart, and
    nobody who asks from time to time."""
    wait_up(box)
    good = state(box)["report"]["configuration"]
    not_of_a_trial = ("BindsTo=", "After=", "ExecStart=", "ExecStopPost=", "DeviceAllow=")
    lines = [line for line in (FOLDER / "appliance-usb@.service").read_text().splitlines() if not line.startswith(not_of_a_trial)]
    lines.insert(lines.index("[Service]") + 1,
                 "ExecStart=/opt/python/bin/python3 /opt/test/try.py /opt/test/other 15\n"
                 "Environment=LD_LIBRARY_PATH=/opt/python/lib PYTHONPATH=/opt/appliance:/opt/packages")  # fmt: skip
    box.run("sh", "-c", "cat > /run/systemd/system/trial.service <<'UNIT'\n" + "\n".join(lines) + "\nUNIT")
    box.run("systemctl", "daemon-reload")
    box.run("systemctl", "start", "--no-block", "trial.service")
    end = time.monotonic() + 30
    while (state(box).get("reject") or {}).get("configuration") in (good, None):
        assert time.monotonic() < end, box.journal("trial.service")
        select.select([], [], [], 0.1)
    assert box.show("trial.service", "ControlGroup") == "/system.slice/system-appliance_usb.slice/trial.service"
    box.run("systemctl", "kill", "-s", "KILL", "trial.service")
    box.wait("trial.service", "Result", "signal")
    end = time.monotonic() + 45
    while [(state(box).get(role) or {}).get("configuration") for role in ("reject", "inspect", "report")] != [good] * 3:
        assert time.monotonic() < end, f"{state(box)}\n{box.journal('appliance-settle.service')[-2000:]}"
        select.select([], [], [], 0.1)
    wait_up(box)
    kept = json.loads(box.run("cat", "/var/lib/appliance/config/state.json"))
    assert kept["trial"] is None and kept["owed"] is None
    exported = box.run("appliance", "ledger", "export", "/var/lib/appliance/ledger.sqlite")
    told = [json.loads(line) for line in exported.splitlines()]
    returned = [one for one in told if one.get("event") == "configuration_returned"]
    assert returned and returned[-1]["data"]["who"] == "settle"


def test_settle_by_hand_acts_on_the_box_and_leaves_nothing_of_roots(box: Booted) -> None:
    """After a factory reset too: a lock of root's could not be opened by the station's user."""
    box.run("rm", "-rf", "/var/lib/appliance/slots")
    box.run("env", "HOME=/tmp/home-of-root", "appliance", "settle", timeout_s=120)
    assert box.run("stat", "-c", "%U", "/var/lib/appliance/slots", "/var/lib/appliance/slots/lock").split() == ["appliance"] * 2
    assert "No such file" in box.run("ls", "/tmp/home-of-root", check=False)


def test_another_configuration_ends_the_show_and_the_first_brings_it_back(box: Booted) -> None:
    wait_up(box)
    box.run("mv", "/var/lib/appliance/config/generations", "/var/lib/appliance/config/elsewhere")
    box.run("touch", "/var/lib/appliance/config/state.json")
    box.wait("appliance-twin.service", "ActiveState", "inactive")
    box.run("mv", "/var/lib/appliance/config/elsewhere", "/var/lib/appliance/config/generations")
    box.run("sh", "-c", "cp -p /var/lib/appliance/config/state.json /tmp/s && cp -p /tmp/s /var/lib/appliance/config/state.json")
    box.wait("appliance-twin.service", "ActiveState", "active")


def test_udev_reads_the_rules_without_a_word(box: Booted) -> None:
    if "not found" in box.run("sh", "-c", "command -v udevadm || echo not found", check=False):
        pytest.skip("no udevadm here")
    asked = ("udevadm", "test", "/sys/devices/virtual/mem/null")
    assert "61-appliance.rules:" not in box.run(*asked, check=False)
    box.run("sh", "-c", "echo 'NOSUCHKEY==\"x\", SYMLINK+=\"y\"' >> /usr/lib/udev/rules.d/61-appliance.rules")
    assert "61-appliance.rules:" in box.run(*asked, check=False)


def test_stopped_it_leaves_its_memory_and_an_orderly_account(box: Booted) -> None:
    box.run("systemctl", "restart", "appliance.target")
    wait_up(box)
    begun = time.monotonic()
    box.run("systemctl", "stop", "appliance.target")
    assert time.monotonic() - begun < 15
    for unit in UNITS:
        assert (box.show(unit, "Result"), box.show(unit, "ExecMainStatus")) == ("success", "0"), box.journal(unit)[-1500:]
    assert "parts.state" in box.run("ls", "/run/appliance")
