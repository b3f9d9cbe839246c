"""The units as they are written: what must stand in them, what must not, since which systemd, and how exposed they are."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "systemd"
SERVICES = sorted(path.name for path in FOLDER.glob("*.service"))
SLICES = sorted(path.name for path in FOLDER.glob("*.slice"))
STICKS = ("appliance-usb@.service", "appliance-usb-unreadable@.service")
OLDEST = 249  # Ubuntu 22.04, JetPack 6; 255 is JetPack 7
DAEMONS = ("rejectd.service", "inspectd.service", "reportd.service")

# Directive -> the systemd that first has it (its NEWS, and "Added in version" of its manual). What is not listed is refused:
# look it up first. The first number of most is long before 249 and stands as 0.
SINCE = dict.fromkeys(
    """Description Documentation After Before Wants BindsTo PartOf OnFailure WantedBy RequiresMountsFor StartLimitIntervalSec
    Slice CollectMode
    ConditionPathExistsGlob Type NotifyAccess ExecStart ExecStopPost Restart RestartSec RestartPreventExitStatus SuccessExitStatus
    RemainAfterExit TimeoutStartSec TimeoutStopSec KillMode WatchdogSec RuntimeMaxSec RuntimeDirectory RuntimeDirectoryMode
    RuntimeDirectoryPreserve StateDirectory StateDirectoryMode ReadWritePaths LimitRTPRIO LimitMEMLOCK LimitCORE Nice CPUAffinity
    OOMScoreAdjust CPUQuota CPUWeight IOSchedulingClass IOWeight MemoryMax MemoryHigh MemorySwapMax TasksMax User Group
    DevicePolicy DeviceAllow PrivateDevices PrivateTmp PrivateNetwork PrivateMounts IPAddressDeny IPAddressAllow
    MemoryDenyWriteExecute RestrictAddressFamilies RestrictRealtime RestrictNamespaces NoNewPrivileges CapabilityBoundingSet
    AmbientCapabilities ProtectSystem ProtectHome ProtectControlGroups ProtectKernelModules ProtectKernelTunables KeyringMode
    LockPersonality RemoveIPC SystemCallArchitectures SystemCallFilter SystemCallErrorNumber UMask PathChanged Unit""".split(),
    0,
) | {
    "RestrictSUIDSGID": 242, "ProtectHostname": 242, "ExecCondition": 243, "OOMPolicy": 243, "ProtectKernelLogs": 244,
    "ProtectClock": 245, "ProtectProc": 247, "ProcSubset": 247,
    # Newer: an older one says "unknown" and goes on. Each with why that is no harm.
    "RestartSteps": 254, "RestartMaxDelaySec": 254, "RestrictFileSystems": 250, "MemoryZSwapMax": 253,
}  # fmt: skip
HARMLESS_WHERE_UNKNOWN: dict[str, str] = {}

# What systemd-analyze makes of each at most, and why where it is more than 2.0.
EXPOSURE = {
    "appliance-broker.service": 1.2,
    "appliance-settle.service": 0.8,
    "appliance-twin.service": 0.4,
    "appliance-usb-unreadable@.service": 1.2,
    "appliance-usb@.service": 1.7,
    "reportd.service": 1.6,
    # Pins, real time (its own calls and limits), and remote I/O on the plant's network: each is what it is for.
    "rejectd.service": 2.1,
    # Cameras and GPU, machine code that the CUDA driver writes, GigE cameras on the network, the camera server's /tmp.
    "inspectd.service": 2.2,
}
WITH_REASON = {name for name, limit in EXPOSURE.items() if limit > 2.0}


def unit(text: str) -> dict[str, list[str]]:
    """Directives by name, in their order, an emptied list as systemd has it. Sections are not told apart: no name of ours
    stands in two."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line or line.startswith(("#", "[")):
            continue
        name, _, value = line.partition("=")
        found.setdefault(name, []).append(value)
    return found


def read(name: str) -> str:
    return (FOLDER / name).read_text()


# --- what must and must not stand there ---------------------------------------------------------------------


def faults(name: str, text: str) -> list[str]:
    """What is wrong with a unit of ours, whoever wrote it."""
    has = unit(text)
    return [*_chains(name, has), *_of_every_service(name, has), *_of_daemons(name, has), *_of_trials(name, has), *_versions(has)]


def _chains(name: str, has: dict[str, list[str]]) -> Iterator[str]:
    """Nobody goes down with another, and nobody who tells of a rejectd that does not come up waits for it."""
    others = {one for one in (*SERVICES, "appliance.target") if one != name}
    for tie in ("Requires", "Requisite", "BindsTo", "Upholds", "Conflicts"):
        for one in " ".join(has.get(tie, [])).split():
            if one in others:
                yield f"{tie}={one}: it ends with that, or is started by it"
    after = set(" ".join(has.get("After", [])).split())
    if name != "inspectd.service" and after & set(DAEMONS):
        yield f"After={' '.join(after & set(DAEMONS))}: one that is started again and again is waited for without end"
    before = set(" ".join(has.get("Before", [])).split())
    if name == "rejectd.service" and before != {"inspectd.service"}:
        yield f"Before={' '.join(sorted(before))}: inspectd comes after it, and nobody else waits for it"


def _of_every_service(name: str, has: dict[str, list[str]]) -> Iterator[str]:
    wanted = {
        "User": ["appliance"], "NoNewPrivileges": ["yes"], "ProtectSystem": ["strict"], "ProtectHome": ["yes"],
        "DevicePolicy": ["closed"], "SystemCallArchitectures": ["native"], "LockPersonality": ["yes"], "UMask": ["0077"],
        "RestrictSUIDSGID": ["yes"], "ProtectKernelModules": ["yes"], "ProtectKernelTunables": ["yes"], "LimitCORE": ["0"],
        "CapabilityBoundingSet": ["CAP_SYS_ADMIN"] if name == "appliance-usb@.service" else [""],
    }  # fmt: skip
    if not name.endswith(".service"):
        return
    for key, value in wanted.items():
        if has.get(key) != value:
            yield f"{key}={has.get(key)}: write {key}={value[0]}"
    calls = has.get("SystemCallFilter", [])
    if not calls or calls[0] != "@system-service" or not any(one.startswith("~@privileged") for one in calls):
        yield "SystemCallFilter: begin with @system-service, take ~@privileged away, then name what is needed"
    if "adjtimex" not in " ".join(calls) and name in DAEMONS:
        yield "SystemCallFilter: without adjtimex every record says that the clock is not synchronised"
    if has.get("ProtectClock") != ["no"] and name in DAEMONS:
        yield "ProtectClock: forbids adjtimex even for reading"
    if has.get("ProcSubset") != ["all"]:
        yield "ProcSubset: the boot id, which decides over trials, stands below /proc"
    for line in has.get("ExecStart", []) + has.get("ExecCondition", []) + has.get("ExecStopPost", []):
        if re.search(r"/(ba|da)?sh\b|/env\b", line):
            yield f"{line}: no shell"


def _of_daemons(name: str, has: dict[str, list[str]]) -> Iterator[str]:
    if name not in DAEMONS:
        return
    wanted = {
        "Type": ["notify"], "NotifyAccess": ["main"], "Restart": ["always"], "StartLimitIntervalSec": ["0"],
        "RuntimeDirectory": ["appliance"], "RuntimeDirectoryPreserve": ["yes"], "KillMode": ["mixed"],
    }  # fmt: skip
    if name == "rejectd.service":
        wanted |= {"KillMode": ["control-group"]}  # remote I/O gets its failure levels by a process that outlives it
        wanted |= {"RestartSec": ["0"], "LimitRTPRIO": ["50"], "LimitMEMLOCK": ["infinity"], "RestrictRealtime": ["no"]}
        wanted |= {"CPUAffinity": ["0 1"], "DeviceAllow": ["char-gpiochip rw"]}
        calls = " ".join(has.get("SystemCallFilter", []))
        for one in ("sched_setscheduler", "sched_setaffinity", "mlockall"):
            if one not in calls:
                yield f"SystemCallFilter: rejectd asks for {one}"
        if "MemoryMax" in has:
            yield "MemoryMax: a limit is a kill of the gate's process"
    if name == "inspectd.service":
        wanted |= {"OOMPolicy": ["continue"]}
    for key, value in wanted.items():
        if has.get(key) != value:
            yield f"{key}={has.get(key)}: write {key}={value[0]}"
    if not has.get("WatchdogSec"):
        yield "WatchdogSec: nobody sees a loop that hangs"


def _of_trials(name: str, has: dict[str, list[str]]) -> Iterator[str]:
    """Whoever may hold a trial has a heir, who can be called as often as there are sticks."""
    if name == "appliance-usb@.service" and has.get("OnFailure") != ["appliance-settle.service"]:
        yield "OnFailure: killed in the middle of a trial nobody ends it; write OnFailure=appliance-settle.service"
    if name == "appliance-settle.service":
        if has.get("StartLimitIntervalSec") != ["0"]:
            yield "StartLimitIntervalSec: the stick after the fifth would have no heir; write StartLimitIntervalSec=0"
        if "RemainAfterExit" in has:
            yield "RemainAfterExit: it could not be started once more"


def _versions(has: dict[str, list[str]]) -> Iterator[str]:
    for name in has:
        if name not in SINCE:
            yield f"{name}=: since which systemd? Look it up and put it into SINCE"
        elif SINCE[name] > OLDEST and name not in HARMLESS_WHERE_UNKNOWN:
            yield f"{name}=: systemd {SINCE[name]} has it, {OLDEST} does not: say in HARMLESS_WHERE_UNKNOWN why that is no harm"


ALL = [*SERVICES, *SLICES, "appliance.target", "appliance-broker.path", "appliance-twin.path"]


@pytest.mark.parametrize("name", ALL)
def test_a_unit_is_as_it_must_be(name: str) -> None:
    assert faults(name, read(name)) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        ("rejectd.service", "PartOf=appliance.target", "Requires=reportd.service", "Requires=reportd"),
        ("rejectd.service", "PartOf=appliance.target", "BindsTo=inspectd.service", "BindsTo=inspectd"),
        ("rejectd.service", "RestartSec=0", "RestartSec=1", "write RestartSec=0"),
        ("rejectd.service", "StartLimitIntervalSec=0\n", "", "write StartLimitIntervalSec=0"),
        ("rejectd.service", "RuntimeDirectoryPreserve=yes\n", "", "RuntimeDirectoryPreserve"),
        ("rejectd.service", "Type=notify", "Type=simple", "write Type=notify"),
        ("rejectd.service", "WatchdogSec=2\n", "", "WatchdogSec"),
        ("rejectd.service", " mlockall", "", "mlockall"),
        ("rejectd.service", "RestrictRealtime=no", "RestrictRealtime=yes", "write RestrictRealtime=no"),
        ("rejectd.service", "ProtectClock=no", "ProtectClock=yes", "adjtimex even for reading"),
        ("rejectd.service", "ProcSubset=all", "ProcSubset=pid", "boot id"),
        ("rejectd.service", "Before=inspectd.service", "Before=inspectd.service reportd.service", "nobody else waits"),
        ("rejectd.service", "OOMScoreAdjust=-900", "MemoryMax=100M", "kill of the gate's process"),
        ("rejectd.service", "char-gpiochip rw", "char-* rw", "write DeviceAllow=char-gpiochip rw"),
        ("inspectd.service", "OOMPolicy=continue\n", "", "write OOMPolicy=continue"),
        ("reportd.service", "After=network.target", "After=rejectd.service", "waited for without end"),
        ("appliance-usb@.service", "-%i.device\nReq", "-%i.device reportd.service\nReq", "waited for without end"),
        ("appliance-settle.service", "Type=exec", "Type=exec\nAfter=inspectd.service", "waited for without end"),
        ("appliance-usb@.service", "OnFailure=appliance-settle.service\n", "", "write OnFailure=appliance-settle"),
        ("appliance-settle.service", "StartLimitIntervalSec=0\n", "", "write StartLimitIntervalSec=0"),
        ("appliance-settle.service", "Type=exec", "Type=exec\nRemainAfterExit=yes", "started once more"),
        ("appliance-usb@.service", "CapabilityBoundingSet=CAP_SYS_ADMIN", "CapabilityBoundingSet=~", "write Capability"),
        ("appliance-twin.service", "User=appliance\n", "", "write User=appliance"),
        ("appliance-twin.service", "ExecStart=/usr/bin/appliance", "ExecStart=/bin/sh -c appliance", "no shell"),
        ("reportd.service", "Restart=always", "Restart=always\nRestartSteps=3", "249 does not"),
        ("reportd.service", "Restart=always", "Restart=always\nRestartForTheBest=yes", "Look it up"),
    ],
)
def test_a_planted_fault_is_found(name: str, old: str, new: str, complaint: str) -> None:
    text = read(name)
    assert old in text
    assert complaint in " ".join(faults(name, text.replace(old, new, 1)))


def test_each_odd_line_of_the_table_is_used_or_refused() -> None:
    for name, why in HARMLESS_WHERE_UNKNOWN.items():
        assert SINCE[name] > OLDEST and len(why) > 10
        assert any(name in unit(read(one)) for one in ALL)


def test_the_target_wants_all_of_them_and_needs_none() -> None:
    target = unit(read("appliance.target"))
    wanted = set(" ".join(target["Wants"]).split())
    assert wanted == {one for one in ALL if "@" not in one and one not in ("appliance.target", *SLICES)}
    assert "Requires" not in target and target["WantedBy"] == ["multi-user.target"]


def test_a_stick_can_starve_nobody() -> None:
    limits = "CPUQuota CPUWeight Nice IOSchedulingClass MemoryMax MemorySwapMax TasksMax TimeoutStartSec".split()
    for name in STICKS:
        has = unit(read(name))
        for limit in limits:
            assert has.get(limit), f"{name}: {limit}"
        assert has["PrivateNetwork"] == ["yes"] and has["BindsTo"] == ["dev-appliance-stick-%i.device"]
        assert has["CollectMode"] == ["inactive-or-failed"], "no name comes again that would clear away a failed one"
        assert has["ExecStopPost"][0] == "/usr/bin/touch /run/appliance/pulled-%i"
        # the node's own name is soon another stick's
        assert not any(re.search(r"/dev/%[iI]", line) for lines in has.values() for line in lines)


def test_a_stick_of_a_hundred_partitions_takes_no_more_than_one_of_one() -> None:
    """Each partition is a unit: what one may take, all of them may take together, and it is weighed against the daemons: a slice
    is nested by the dashes of its name, and a weight counts among those of one slice."""
    (name,) = SLICES
    have = unit(read(name))
    assert name.removesuffix(".slice").split("-")[:-1] == ["system"], "beside the daemons, which have no slice of their own"
    for stick in STICKS:
        has = unit(read(stick))
        assert has.get("Slice") == [name]
        for limit in ("CPUQuota", "CPUWeight", "IOWeight", "MemoryMax", "MemorySwapMax"):
            assert have.get(limit) == has[limit], f"{stick}: {limit}"
    assert int(have["TasksMax"][0]) < 150
    assert all("Slice" not in unit(read(one)) for one in SERVICES if one not in STICKS)


def test_the_hardware_watchdog_is_within_what_every_driver_takes() -> None:
    has = unit(read("system.conf.d/appliance.conf"))
    assert has["RuntimeWatchdogSec"] == ["30s"] and has["RebootWatchdogSec"] == ["2min"]  # timer-tegra186 takes 255 s


def test_the_journal_is_bounded() -> None:
    has = unit(read("journald.conf.d/appliance.conf"))
    assert {"SystemMaxUse", "RuntimeMaxUse", "SystemKeepFree", "RateLimitBurst"} <= set(has)


# --- what systemd itself says -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with our units, each template as one instance, and a stand-in of what they start."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here")
    place = tmp_path_factory.mktemp("root")
    units = place / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    for path in (*FOLDER.glob("*.service"), *FOLDER.glob("*.target"), *FOLDER.glob("*.path"), *FOLDER.glob("*.slice")):
        (units / path.name.replace("@.", "@sda1.17.")).write_text(path.read_text())
    for name in ("basic", "sysinit", "multi-user", "shutdown", "network", "local-fs", "paths"):
        (units / f"{name}.target").write_text(f"[Unit]\nDescription={name}\n")
    (place / "usr/bin").mkdir()
    for name in ("appliance", "grep", "touch", "flock", "rm"):
        (place / "usr/bin" / name).write_text("#!/bin/sh\n")
        (place / "usr/bin" / name).chmod(0o755)
    return place


def analyze(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", f"--root={root}", "--no-pager", *words], capture_output=True, text=True)


def test_systemd_finds_nothing_to_complain_of(root: Path) -> None:
    names = [one.replace("@.", "@sda1.17.") for one in ALL]
    done = analyze(root, "verify", "--man=no", "--recursive-errors=yes", *names)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_does_complain_of_a_planted_fault(root: Path) -> None:
    path = root / "usr/lib/systemd/system/planted.service"
    path.write_text(read("rejectd.service").replace("RestartSec=0", "RestartSec=soon\nNoSuchThing=1"))
    done = analyze(root, "verify", "--man=no", "planted.service")
    path.unlink()
    assert "Unknown key 'NoSuchThing'" in done.stderr and "Failed to parse sec value" in done.stderr


def test_no_unit_is_more_exposed_than_it_must_be(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(EXPOSURE) == set(SERVICES)
    figures = {}
    for name in SERVICES:
        done = analyze(root, "security", "--offline=true", name.replace("@.", "@sda1.17."))
        found = re.search(r"Overall exposure level.*: ([\d.]+)", done.stdout)
        if not found:
            pytest.skip(f"this systemd-analyze rates no files: {done.stderr.strip()}")
        figures[name] = float(found[1])
    with capsys.disabled():
        print("\n" + "\n".join(f"  {name:34} {figure:.1f}" for name, figure in figures.items()))
    # The figures are of 252; another version weighs a little differently.
    spare = 0.0 if " 252" in subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True).stdout else 0.3
    assert {name: figure for name, figure in figures.items() if figure > EXPOSURE[name] + spare} == {}
    assert {name for name, figure in figures.items() if figure > 2.0} <= WITH_REASON == {"rejectd.service", "inspectd.service"}
