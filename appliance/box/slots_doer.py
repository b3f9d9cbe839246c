"""Does what slots.py says, one step at a time; each is on disk before the next begins.

What it keeps: ``slots/state.json``, slots a and b, ``lock``. Programs of a new slot run here for the first time, as what
they are: bounded in time and memory, last in line for the processor, and never before all of their bundle was verified."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.box import launch, slots
from appliance.box.again import ROLES, begin_anew
from appliance.box.app_bundle import MANIFEST, BundleRefused, Manifest, altered, read_manifest, unpack
from appliance.box.durable import boot_id, fsync_folder, fsync_tree, read_json, write_json
from appliance.box.health import read_state
from appliance.box.slots import Owed, Seen, Stamp, State, Step
from appliance.clock import boottime_ns

PREFLIGHT_S = 900  # a rehearsal of 50 parts takes 10 s of one laptop core, most of it for the bank of judged images
PREFLIGHT_BYTES = 2 << 30  # private memory, stacks of threads included; 136 MB were seen in use
COMPILE_S = 1800  # some thousand modules, on what the station leaves over of a core
TOLD_CHARACTERS = 600
RESULT = "RESULT.txt"  # what every version writes to a stick, whatever comes of it
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4  # <linux/prctl.h>


class UpdateFailed(Exception):
    """A step that could not be done, in words. The version that ran runs on."""


@dataclass(frozen=True)
class Places:
    """Where things lie. ``slots``: both slots and state.json; ``run``: the processes' run folder; ``package``: the tree that
    the package brought."""

    slots: Path
    run: Path
    package: Path


@dataclass(frozen=True)
class Offer:
    """A bundle that was verified whole, and where it lies."""

    bundle: Path
    manifest: Manifest


# Runs a command in a tree: (command, environment, folder, seconds, bytes) -> "" or what it said as it failed.
Child = Callable[[Sequence[str], dict[str, str], Path, float, int], str]


def bounded(command: Sequence[str], environment: dict[str, str], folder: Path, seconds: float, most_bytes: int) -> str:
    """Run ``command`` in ``folder``; "" where it ended with 0, else its last words. It gets what the station leaves over of
    the processor, so many ``seconds`` and ``most_bytes`` of memory, none of the rights to mount that a stick's unit has, and
    takes its children with it. Raises UpdateFailed where it could not be limited, OSError."""
    libc = ctypes.CDLL(None, use_errno=True)  # before the fork: loading takes locks

    def limit() -> None:
        # Without them execve() leaves a user who is not root no capability at all.
        if libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "ambient capabilities")
        os.nice(19)
        with suppress(PermissionError):  # a unit that may not ask for it is last in line by its own settings
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 10,) * 2)  # its end, should this process be killed

    with tempfile.TemporaryFile() as words:  # a pipe would fill, or make us read without end
        try:
            child = subprocess.Popen(
                command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=words,
                preexec_fn=limit, start_new_session=True,
            )  # fmt: skip
        except subprocess.SubprocessError as why:  # all that is told of a ``limit`` that failed
            raise UpdateFailed(f"a program of the new version could not be limited, so it was not run: {why}") from why
        ended = False
        try:
            ended = _ends_within(child.pid, seconds)
        finally:
            # While it was not waited for its number is nobody else's, and so is that of its group.
            os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
        if not ended:
            return f"it did not end within {seconds:.0f} s"
        if code == 0:
            return ""
        words.seek(max(0, words.seek(0, os.SEEK_END) - TOLD_CHARACTERS))
        said = words.read().decode("utf-8", "replace").strip()
        return (f"it was ended by signal {-code}" if code < 0 else f"exit {code}") + (f": {said}" if said else "")


def _ends_within(pid: int, seconds: float) -> bool:
    process = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(process)


@dataclass
class Doer:
    """``configuration``: what the station runs now, for the new version to look at; ``who`` asks for what is done, and
    ``why``; ``tell``: leaves an event for the ledger, on disk when it returns; ``busy``: what else is on trial, in words, "" =
    nothing; ``boot``, ``now_ns`` (CLOCK_BOOTTIME) and ``child`` are the machine's own unless told."""

    places: Places
    configuration: Path | None = None
    boot: Callable[[], str] = boot_id
    now_ns: Callable[[], int] = boottime_ns
    child: Child = bounded
    offer: Offer | None = None
    who: str = ""
    why: str = ""
    tell: Callable[[Owed], None] = lambda owed: None
    busy: Callable[[], str] = lambda: ""

    # --- looking --------------------------------------------------------------------------------------------

    def state(self) -> State:
        """What state.json says. Raises OSError."""
        return slots.state_of(read_json(self.places.slots / launch.STATE))

    def seen(self) -> Seen:
        """What is there. Raises OSError."""
        folder, package = self.places.slots, launch.packaged_version(str(self.places.package))
        python, arch, _user = launch.this_process()
        here = (python, arch, folder.lstat().st_uid if folder.exists() else os.geteuid())  # the daemons' eyes, not root's
        boot, now_ns = self.boot(), self.now_ns()
        runs, _stamp, blocked = launch.choose(str(folder), package, boot, now_ns, here)
        names = frozenset(os.listdir(folder)) if folder.exists() else frozenset()
        stamps = {name: stamp for name in launch.SLOTS if (stamp := _stamp_of(folder / name, here))}
        return Seen(stamps, names, runs, package, boot, now_ns, _told(read_state(self.places.run)), blocked)

    def free(self, slot: str) -> int:
        """Bytes that will be free once ``slot`` was cleared. Raises OSError."""
        disk = os.statvfs(self.places.slots)
        old = [self.places.slots / slot, self.places.slots / slots.partial(slot)]
        return disk.f_bavail * disk.f_frsize + sum(_bytes_below(folder) for folder in old)

    # --- doing ----------------------------------------------------------------------------------------------

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One doer at a time, for as long as its update takes. Raises UpdateFailed, OSError."""
        self.places.slots.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.places.slots / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as why:
                raise UpdateFailed("another update is being made; wait until it is decided") from why
            yield
        finally:
            os.close(descriptor)

    def do(self, step: Step) -> None:
        """One step, on disk when this returns. Raises UpdateFailed, BundleRefused, OSError."""
        getattr(self, "_" + step.verb)(step)

    def do_all(self, steps: Sequence[Step]) -> None:
        """One after the other. Raises as ``do``."""
        for step in steps:
            self.do(step)

    def extend_trial(self, until_ns: int) -> None:
        """More time (CLOCK_BOOTTIME) for what is on trial; nothing where it is over. Raises OSError."""
        state, seen = self.state(), self.seen()
        if state.trial and state.trial.holds(seen.boot_id, seen.now_ns):
            self._write(slots.with_trial(state, seen, state.trial.what, until_ns))

    def note_failure(self, why: str) -> None:
        """The offered bundle was cut short before its trial. Raises OSError."""
        manifest = self._offered().manifest
        self._write(slots.with_failure(self.state(), manifest.digest, manifest.version, 1, why))

    def _unstamp(self, step: Step) -> None:
        slot = self.places.slots / step.name
        if slot.is_dir() and not slot.is_symlink():
            (slot / launch.STAMP).unlink(missing_ok=True)
            fsync_folder(slot)

    def _clear(self, step: Step) -> None:
        path = self.places.slots / step.name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        fsync_folder(self.places.slots)

    def _unpack(self, step: Step) -> None:
        offer, place = self._offered(), self.places.slots / step.name
        place.mkdir()
        unpack(offer.bundle, place, offer.manifest)

    def _compile(self, step: Step) -> None:
        place = self.places.slots / step.name
        command = [sys.executable, "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "."]
        said = self.child(command, {"PATH": os.defpath}, place, COMPILE_S, PREFLIGHT_BYTES)
        if said and not said.startswith("exit 1"):  # 1: some file is no Python of ours; if it matters, preflight says so
            raise UpdateFailed(f"the new version could not be compiled: {said}")

    def _flush(self, step: Step) -> None:
        fsync_tree(self.places.slots / step.name)

    def _place(self, step: Step) -> None:
        os.rename(self.places.slots / slots.partial(step.name), self.places.slots / step.name)
        fsync_folder(self.places.slots)

    def _preflight(self, step: Step) -> None:
        slot, manifest = self.places.slots / step.name, self._offered().manifest
        identity = launch.identity(manifest.version, step.name, {"digest": manifest.digest})
        with tempfile.TemporaryDirectory(prefix="appliance-preflight-") as home:
            own = {"HOME": home, "TMPDIR": home, "XDG_CACHE_HOME": home, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            environment = {**launch.environment(os.environ, str(slot), identity, step.name), **own}
            for name in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_USEC"):
                environment.pop(name, None)  # the station's, not a rehearsal's
            if self.configuration is not None:
                self._must_pass(slot, environment, "refuses the running configuration", "check", str(self.configuration))
            # On the processor, whatever the box has: the GPU is the running station's.
            station = Path(home, "station.yaml")
            station.write_bytes(_shipped_station(slot) + b"\nengine: cpu\n")
            rehearsal = ("rehearse", "--fast", "--parts", "50", "-c", str(station))
            self._must_pass(slot, environment, "does not pass its own rehearsal here", *rehearsal)
            self._must_take_a_stick(slot, environment, Path(home))

    def _must_pass(self, slot: Path, environment: dict[str, str], otherwise: str, *arguments: str) -> None:
        command = [sys.executable, *launch.command(*arguments)[1:]]
        said = self.child(command, environment, slot, PREFLIGHT_S, PREFLIGHT_BYTES)
        if said:
            raise UpdateFailed(f"the new version {otherwise}: {said}")

    def _must_take_a_stick(self, slot: Path, environment: dict[str, str], home: Path) -> None:
        """As the stick's unit calls it, with a folder and a box of its own: a version that is healthy and deaf to sticks could
        never be replaced. Raises UpdateFailed."""
        stick = home / "stick"
        stick.mkdir()
        (stick / "appliance.yaml").write_bytes(_shipped_station(slot))
        box = ("--data-dir", str(home / "data"), "--run-dir", str(home / "run"))
        command = [sys.executable, *launch.command("usb", "apply", str(stick), *box)[1:]]
        said = self.child(command, environment, slot, PREFLIGHT_S, PREFLIGHT_BYTES)
        answered = (stick / RESULT).is_file()
        if said or not answered:
            result = " ".join((stick / RESULT).read_text("utf-8", "replace").split()) if answered else f"it wrote no {RESULT}"
            raise UpdateFailed(f"the new version takes no stick here: {said}{': ' if said else ''}{result[:TOLD_CHARACTERS]}")

    def _stamp(self, step: Step) -> None:
        manifest = self._offered().manifest
        stamp = {"version": manifest.version, "digest": manifest.digest, "python": manifest.python, "arch": manifest.arch}
        write_json(self.places.slots / step.name / launch.STAMP, stamp)

    def _begin_trial(self, step: Step) -> None:
        if not self.places.run.is_dir():
            raise UpdateFailed(f"no station runs here (no folder {self.places.run}); start it, then install the bundle anew")
        before, seen = self.state(), self.seen()
        self._write(slots.with_trial(before, seen, step.name, seen.now_ns + slots.TRIAL_NS, self.who, self.why))
        # Once more, for filling took minutes; after the write, so that of two who begin at once not both pass the other by.
        # Nobody was asked to begin anew yet.
        if busy := self.busy():
            self._write(before)
            raise UpdateFailed(busy)

    def _again(self, _step: Step) -> None:
        if self.places.run.is_dir():  # else nobody runs, and who starts chooses rightly
            begin_anew(self.places.run, ROLES, "")

    def _mark_good(self, _step: Step) -> None:
        try:
            self._write(slots.with_good(self.state(), self.seen()))
        except ValueError as why:
            raise UpdateFailed(str(why)) from why

    def _give_up(self, step: Step) -> None:
        self._write(slots.without_trial(self.state(), self.seen(), step.why, step.name == slots.CUT_SHORT))

    def _go_back(self, step: Step) -> None:
        if step.name in launch.SLOTS and (other := self._not_as_installed(step.name)):
            self._unstamp(step)
            raise UpdateFailed(
                f"slot {step.name} is not as it was installed ({other}) and is not used any more; ask again for what is left, or "
                "install its bundle anew"
            )
        self._write(slots.gone_back(self.state(), self.seen(), step.name, self.who, self.why))

    def _not_as_installed(self, slot: str) -> str:
        """What is amiss with it, "" = nothing. Nobody looks at the health of what is gone back to, and it may have lain there for
        years."""
        place = self.places.slots / slot
        try:
            manifest = read_manifest((place / MANIFEST).read_bytes())
            if manifest.digest != self.seen().stamps[slot].digest:
                return MANIFEST
            return altered(place, manifest) or ""
        except BundleRefused:
            return MANIFEST
        except OSError as why:
            return str(why)

    def _tell(self, _step: Step) -> None:
        """After a cut between the two, once more."""
        for owed in self.state().owed:
            self.tell(owed)
            state = self.state()
            self._write(replace(state, owed=state.owed[1:]))

    def _write(self, state: State) -> None:
        write_json(self.places.slots / launch.STATE, slots.json_of(state))

    def _offered(self) -> Offer:
        if self.offer is None:
            raise BundleRefused("no bundle was named")
        return self.offer


def application_on_trial(slots_folder: Path, boot: Callable[[], str] = boot_id, now_ns: Callable[[], int] = boottime_ns) -> str:
    """In words, for whoever wants to try something else: the application that is on trial; "" = none. Raises OSError."""
    trial = slots.state_of(read_json(slots_folder / launch.STATE)).trial
    if trial and trial.holds(boot(), now_ns()):
        return f"the application in slot {trial.what} is on trial; wait until that is decided"
    return ""


def _shipped_station(slot: Path) -> bytes:
    """Raises UpdateFailed, OSError."""
    try:
        return (slot / "appliance/twin/station.yaml").read_bytes()
    except FileNotFoundError as why:
        raise UpdateFailed("the new version brings no station to rehearse with (appliance/twin/station.yaml)") from why


def _stamp_of(slot: Path, here: tuple[str, str, int]) -> Stamp | None:
    try:
        stamp = launch.stamp_of(str(slot), *here)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):  # none, or none that the launcher would take
        return None
    return Stamp(*(stamp[name] for name in ("version", "digest", "python", "arch")))


def _told(seen: Any) -> str | None:
    """The version that reportd says it runs."""
    report = seen.get("report") if isinstance(seen, dict) else None
    version = report.get("version") if isinstance(report, dict) else None
    return version if isinstance(version, str) and version else None


def _bytes_below(folder: Path) -> int:
    return sum(entry.lstat().st_blocks * 512 for entry in folder.rglob("*")) if folder.is_dir() else 0
