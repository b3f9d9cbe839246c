"""inspectd: one thread per camera, one that judges (this loop), one that archives; links to rejectd and reportd."""

from __future__ import annotations

import gc
import logging
import os
import queue
import secrets
import select
import signal
import statistics
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Union

import msgspec

from appliance.inspect.archive import Archive
from appliance.inspect.golden_watch import GoldenWatch
from appliance.inspect.inspector import Inspector, RecipePlan
from appliance.inspect.matching import Matcher
from appliance.inspect.pulse import Pulse
from appliance.inspect.stamps import StampProof
from appliance.link import SocketLink, connect
from appliance.messages import (
    Ack,
    Command,
    Event,
    FrameSeen,
    Health,
    Heard,
    Hello,
    InspectState,
    Message,
    Stored,
    Trigger,
    Verdict,
)
from appliance.model.bundle import BundleError
from appliance.model.golden import GoldenError
from appliance.notify import Notifier
from appliance.paths import Paths
from appliance.ports import Camera, CameraLost, Clock, EngineError, EngineLost, Frame, FrameMemory, LinkClosed

log = logging.getLogger("appliance.inspect")

RETRY_NS = 100_000_000
HEALTH_NS = 5_000_000_000
PROGRESS_NS = 500_000_000
END_NS = 1_400_000_000  # for images to be written and all cameras to stop (one of jetson-utils takes 0.7 s); two seconds in all
LOAD_STILL_S = 180.0  # opening a GPU, reading an engine, replaying golden vectors: seconds each, and none of them speaks
BUILD_STILL_NS = 1_900_000_000_000  # wiring/engines.py ends a build that says nothing for 1,800 s, and says so
_MOST_WAITING = 10_000  # details and events kept for a reportd that is away; what goes beyond is counted


Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Loaded:
    """The active recipe ready to judge. ``memory``: where its networks want the cameras' frames; ``told``: what a person
    should know of the engines."""

    recipe: RecipePlan
    watches: list[GoldenWatch]
    memory: FrameMemory
    close: Callable[[], None]
    """Networks, memory and GPU given back, in this thread, when no camera writes any more."""
    told: tuple[str, ...] = ()
    power_modes: tuple[str, ...] = ()
    """The power modes in which the GPU's engines were built; empty where the processor judges."""


@dataclass(frozen=True)
class InspectBuild:
    """What wiring hands over. ``load`` opens the GPU (in this thread, which owns it from then on), builds engines and
    replays golden vectors; it may take minutes, tells what it does and how far it is (0..1), and may refuse."""

    load: Callable[[Progress], Loaded]
    cameras: dict[str, Camera]
    matchers: dict[str, Matcher]
    stamps: dict[str, StampProof]
    slot_bytes: int
    image_quota_bytes: int
    frame_trigger: str | None
    """Name of the camera whose every frame is a part, where ``trigger.input`` is ``frame``."""
    load_still_s: float = LOAD_STILL_S
    """How long ``load`` may say nothing before it is taken for hung."""
    configuration: str = ""
    version: str = ""


FromCamera = Union[Frame, CameraLost, None]
"""None: it was opened."""


class CameraThread(threading.Thread):
    """Waits for one camera's frames and hands them to the judge; opens it again when it is lost."""

    def __init__(self, camera: Camera, memory: FrameMemory, hand_over: Callable[[str, FromCamera], None]) -> None:
        super().__init__(name=f"camera-{camera.name}", daemon=True)
        self.camera = camera.name
        self._camera, self._memory, self._hand_over = camera, memory, hand_over
        self.stopping = threading.Event()
        self.forgotten = threading.Event()
        """Set by whoever heard of a loss and looks at none of its frames any more: only then their buffers are filled anew."""

    def run(self) -> None:
        while not self.stopping.is_set():
            self.forgotten.clear()
            self._tell_of(self._live)  # before it is closed: a dead one may take seconds at that
            self._tell_of(self._camera.close)
            self.stopping.wait(0.25)
            while not self.stopping.is_set() and not self.forgotten.wait(0.1):
                pass

    def _live(self) -> None:
        self._camera.open(self._memory)
        self._hand_over(self._camera.name, None)
        while not self.stopping.is_set():
            frame = self._camera.next_frame(0.2)
            if frame is not None:
                self._hand_over(self._camera.name, frame)

    def _tell_of(self, act: Callable[[], None]) -> None:
        try:
            act()
        except CameraLost as why:
            self._hand_over(self._camera.name, why)
        except Exception as why:  # the edge of a thread: dead without a word, it would leave a line without frames for good
            log.exception("camera %s", self._camera.name)
            text = f"camera {self._camera.name} failed in a way nobody foresaw, see the log: {why!r}"
            self._hand_over(self._camera.name, CameraLost(text))


class Inspectd:
    """One inspectd: sockets, threads and engines around an Inspector."""

    def __init__(self, build: InspectBuild, paths: Paths, clock: Clock, notifier: Notifier | None = None) -> None:
        self._build, self._paths, self._clock = build, paths, clock
        self._notifier = notifier or Notifier({}, 0)
        self._moved: tuple[tuple[str, float], int] = (("", 0.0), 0)  # the build's last words, and since when they stand
        self._journal = secrets.token_hex(8)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._frames: queue.SimpleQueue[tuple[str, FromCamera]] = queue.SimpleQueue()
        self._stored: queue.SimpleQueue[Stored] = queue.SimpleQueue()
        self._reject: SocketLink | None = None
        self._report: SocketLink | None = None
        self._retry_ns = self._health_ns = self._progress_ns = self._again_ns = 0
        self._verdicts: dict[int, Verdict] = {}
        self._to_reject: deque[Message] = deque()
        self._to_report: deque[Message] = deque()
        self._events: dict[int, Event] = {}
        self._next_n = 1
        self._newest_part = 0
        told = {"configuration": build.configuration, "version": build.version}
        self._state = InspectState("starting", "loading the model", 0.0, "", 0, "", {}, **told)
        self._inspector: Inspector | None = None
        self._watches: list[GoldenWatch] = []
        self._lost_cameras: dict[str, str] = {}  # and why
        self._announced: int | None = None
        self._unannounced = self._unannounced_ns = 0
        self._staged: dict[str, int] = {}
        self._spare = False
        self._power_modes: tuple[str, ...] = ()
        self._unload: Callable[[], None] | None = None
        self._threads: list[CameraThread] = []
        self.stopping = self.failed = False
        self.turns = 0
        self.lost_messages = 0
        self._archive = Archive(paths.image_dir, build.slot_bytes, build.image_quota_bytes, self._image_stored)

    # --- life ------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Engines and golden vectors; a refusal is a state, not an end: rejectd goes on and rejects."""
        self._connect(self._clock.now_ns())
        self._send()
        try:
            loaded = self._build.load(self._building)
        except (BundleError, GoldenError, EngineError) as why:
            log.error("%s", why)
            self._tell_state("fault", str(why)[:240])
            self._event("model_refused", {"why": str(why)[:240]})
            if isinstance(why, EngineLost):
                self._give_up(str(why))
            return
        recipe, self._watches, self._unload = loaded.recipe, loaded.watches, loaded.close
        self._power_modes = loaded.power_modes
        if loaded.told:
            log.warning("%s", "; ".join(loaded.told))
            self._event("engine", {"told": list(loaded.told)})
        self._inspector = Inspector(recipe, self._build.matchers, self._archive, self._clock)
        self._inspector.spare_passes = self._spare
        self._inspector.verdict_ready = self._verdict_ready
        models = {look.camera: look.network.identity for look in recipe.looks}
        self._state = msgspec.structs.replace(
            self._state, state="starting", reason="opening cameras", progress=1.0, recipe=recipe.name,
            recipe_number=recipe.number, recipe_digest=recipe.digest, models=models,
        )  # fmt: skip
        for camera in self._build.cameras.values():
            thread = CameraThread(camera, loaded.memory, self._frame_came)
            thread.start()
            self._threads.append(thread)
        self._tell_state("ready", "")
        gc.collect()
        gc.freeze()

    def _building(self, what: str, share: float) -> None:
        """An engine is being built: say so; rejectd holds the gate meanwhile. Raises EngineError to end the building."""
        self._hear_of_configurations(self._clock.now_ns())
        if self.stopping:
            raise EngineError("stopped while an engine was being built; it is built anew at the next start")
        now_ns = self._clock.now_ns()
        if (what, share) != self._moved[0]:
            self._moved = ((what, share), now_ns)
        if now_ns - self._moved[1] < BUILD_STILL_NS:
            self._notifier.alive(now_ns)
        if now_ns < self._progress_ns:
            return
        self._progress_ns = now_ns + PROGRESS_NS
        self._state = msgspec.structs.replace(self._state, progress=round(share, 3))
        self._tell_state("building", what[:240])
        self._connect(now_ns)
        self._send()

    def run(self) -> None:
        """Until ``stopping``: wait, read, look, send."""
        while not self.stopping:
            self.turns += 1
            self._wait()
            now_ns = self._clock.now_ns()
            self._notifier.alive(now_ns)
            self._hear_of_configurations(now_ns)
            self._connect(now_ns)
            self._read()
            self._take_frames()
            if self._inspector:
                self._inspector.step(self._clock.now_ns())
                self._collect(self._inspector)
                self._watch_golden(now_ns)
                if self._inspector.lost and not self.stopping:
                    self._give_up(self._inspector.lost)
            self._health(now_ns)
            self._send()

    def _hear_of_configurations(self, now_ns: int) -> None:
        """Another one was chosen: begin anew with it, or where it changes nothing here go by its name. Files in memory."""
        if now_ns < self._again_ns:
            return
        self._again_ns = now_ns + RETRY_NS
        if self._paths.again_file("inspect").exists():
            self.stopping = True
        same = self._paths.same_file("inspect")
        if same.exists():
            self._state = msgspec.structs.replace(self._state, configuration=same.read_text(encoding="ascii"))
            same.unlink()
            self._to_reject.append(self._state)
            self._queue_report(self._state)

    def _give_up(self, why: str) -> None:
        """The parts of this process are blind from now on; the next process may judge again."""
        self._event("engine_lost", {"why": why[:240]})
        self._tell_state("fault", why[:240])
        self.stopping = self.failed = True

    def close(self) -> None:
        """Threads ended, GPU given back, links closed."""
        self._notifier.stopping()
        end_ns = self._clock.now_ns() + END_NS
        for thread in self._threads:
            thread.stopping.set()
        self._archive.close()
        self._send()
        for thread in self._threads:
            thread.join(max(0.0, (end_ns - self._clock.now_ns()) / 1e9))
        for link in (self._reject, self._report):
            if link:
                link.close()
        hung = [thread.name for thread in self._threads if thread.is_alive()]
        if hung:  # what it may still write into cannot be freed under it: the system does that with the process
            log.error("%s does not end; the process ends without it", ", ".join(hung))
            self.failed = True
        if self._unload and not self.failed:  # a lost GPU may hang at it: it goes with the process
            self._unload()

    # --- waiting and reading ------------------------------------------------------------------------------------

    def wake(self) -> None:
        os.eventfd_write(self._wake, 1)

    def _frame_came(self, camera: str, frame: FromCamera) -> None:
        self._frames.put((camera, frame))
        self.wake()

    def _image_stored(self, stored: Stored) -> None:
        self._stored.put(stored)
        self.wake()

    def _wait(self) -> None:
        now_ns = self._clock.now_ns()
        until_ns = min(now_ns + 100_000_000, self._health_ns)
        due_ns = self._inspector.next_due_ns() if self._inspector else None
        if due_ns is not None:
            until_ns = min(until_ns, due_ns)
        readers: list[object] = [self._wake, *(link for link in (self._reject, self._report) if link)]
        select.select(readers, [], [], max(0.0, (until_ns - now_ns) / 1e9))
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass  # something else woke us

    def _connect(self, now_ns: int) -> None:
        if now_ns < self._retry_ns:
            return
        self._retry_ns = now_ns + RETRY_NS
        if self._reject is None:
            self._reject = connect(self._paths.reject_socket, Hello("inspect", self._journal, os.getpid()))
            if self._reject:
                self._to_reject = deque([self._state, *self._verdicts.values()])
                for proof in self._build.stamps.values():
                    proof.listen(now_ns)
        if self._report is None:
            self._report = connect(self._paths.report_socket, Hello("inspect", self._journal, os.getpid()))
            if self._report:
                self._to_report.extendleft(reversed([self._state, *self._events.values()]))

    def _read(self) -> None:
        for name in ("_reject", "_report"):
            link: SocketLink | None = getattr(self, name)
            if link is None:
                continue
            try:
                messages = link.receive()
            except LinkClosed:
                log.warning("%s is gone", name[1:] + "d")
                link.close()
                setattr(self, name, None)
                if name == "_report":
                    self._spare_passes(False)  # nobody would tell when it is cool again; the next reportd tells anew
                continue
            for message in messages:
                self._hear(message)

    def _hear(self, message: Message) -> None:
        if isinstance(message, Trigger) and self._inspector:
            for proof in self._build.stamps.values():
                proof.on_trigger(message.time_ns)
            self._inspector.on_trigger(message)
        elif isinstance(message, Heard):
            self._verdicts.pop(message.part, None)
        elif isinstance(message, Command) and message.verb == "spare":
            self._spare_passes(message.arguments.get("passes") is True)
        elif isinstance(message, Ack):
            for n in [n for n in self._events if n <= message.n]:
                del self._events[n]

    def _spare_passes(self, spare: bool) -> None:
        """The box is hot, as reportd tells it: no images of passed parts are kept. No verdict hangs on it."""
        if spare != self._spare:
            self._spare = spare
            log.warning("images of passed parts are %s", "not kept: the box is hot" if spare else "kept again")
        if self._inspector:
            self._inspector.spare_passes = spare

    def _take_frames(self) -> None:
        while not self._frames.empty():
            camera, frame = self._frames.get()
            if isinstance(frame, CameraLost):
                self._camera_lost(camera, frame)
                continue
            # Where the photo-eye fires it, the next frame needs a part, and the line may wait for us to be ready.
            if camera in self._lost_cameras and (frame is not None or self._build.stamps[camera].hardware):
                del self._lost_cameras[camera]
                self._event("camera_back", {"camera": camera})
                self._tell_cameras()
            if frame is None:
                continue
            if self._inspector is None or camera not in self._inspector.matchers:
                frame.release()
                continue
            frame = self._build.stamps[camera].place(frame)
            if frame.clock != "monotonic":
                frame.release()  # nobody knows when it was exposed: it shows no part, and makes none
                continue
            if camera == self._build.frame_trigger:
                self._announce(frame)
            self._inspector.on_frame(camera, frame)
        while not self._stored.empty():
            self._queue_report(self._stored.get())

    def _announce(self, frame: Frame) -> None:
        """Each frame is a part. One that was lost, or placed nowhere, is a part nobody announces, which an open gate would
        let pass: the trigger is told to be lost and back, and what lies on the belt is rejected (law 6)."""
        camera = str(self._build.frame_trigger)
        lost = 0 if self._announced is None else frame.sequence - self._announced - 1
        self._announced = frame.sequence
        if lost > 0:
            self._unannounced += lost
            if frame.arrived_ns - self._unannounced_ns > HEALTH_NS:  # where it goes on, the books are not filled with it
                self._unannounced_ns = frame.arrived_ns
                self._event("frames_lost", {"camera": camera, "count": self._unannounced})
            self._tell_state("starting", f"camera {camera}: {lost} frames were lost, and each may have shown a part")
            self._tell_cameras()
        self._to_reject.append(FrameSeen(camera, frame.sequence, frame.time_ns))

    def _tell_cameras(self) -> None:
        away = ", ".join(sorted(self._lost_cameras))
        self._tell_state("starting" if away else "ready", f"camera {away}: lost" if away else "")

    def _camera_lost(self, camera: str, why: CameraLost) -> None:
        if self._inspector:
            self._inspector.matchers[camera].forget()
        self._build.stamps[camera].forget()
        if camera == self._build.frame_trigger:
            self._announced = None
        for thread in self._threads:
            if thread.camera == camera:
                thread.forgotten.set()
        if self._lost_cameras.get(camera) == str(why):
            return  # tried again, and still so
        self._lost_cameras[camera] = str(why)
        log.error("camera %s: %s", camera, why)
        self._event("camera_lost", {"camera": camera, "why": str(why)[:240]})
        self._tell_state("starting", f"camera {camera}: {why}"[:240])

    # --- sending ----------------------------------------------------------------------------------------------------

    def _collect(self, inspector: Inspector) -> None:
        while inspector.to_reject:
            message = inspector.to_reject.popleft()
            if isinstance(message, Verdict):
                self._verdicts[message.part] = message
                self._newest_part = max(self._newest_part, message.part)
                if len(self._verdicts) > _MOST_WAITING:
                    self._verdicts.pop(next(iter(self._verdicts)))
                    self.lost_messages += 1
            self._to_reject.append(message)
        while inspector.to_report:
            self._queue_report(inspector.to_report.popleft())

    def _verdict_ready(self) -> None:
        assert self._inspector
        self._collect(self._inspector)
        self._send()

    def _queue_report(self, message: Message) -> None:
        if len(self._to_report) >= _MOST_WAITING:
            self._to_report.popleft()
            self.lost_messages += 1
        self._to_report.append(message)

    def _send(self) -> None:
        for link, waiting in ((self._reject, self._to_reject), (self._report, self._to_report)):
            if link is None:
                continue
            try:
                while waiting and link.send(waiting[0]):
                    waiting.popleft()
            except LinkClosed:
                continue  # the next read finds it closed; what waits is sent to its successor
        if self._reject is None:
            self._to_reject.clear()

    def _tell_state(self, state: str, reason: str) -> None:
        if self._inspector and self._inspector.unfit and state != "fault":
            return  # whatever else became well again: the model did not
        self._state = msgspec.structs.replace(self._state, state=state, reason=reason)
        share = f" {self._state.progress:.0%}" if state == "building" else ""
        self._notifier.status(f"{state}{share}: {reason}" if reason else state)
        self._to_reject.append(self._state)
        self._queue_report(self._state)

    def _event(self, kind: str, data: dict[str, object]) -> None:
        now_ns = self._clock.now_ns()
        event = Event(self._next_n, kind, now_ns, self._clock.wall_us(now_ns), self._clock.quality(), data)
        self._next_n += 1
        self._events[event.n] = event
        self._queue_report(event)

    def _watch_golden(self, now_ns: int) -> None:
        for watch in self._watches:
            try:
                watch.step(now_ns, self._newest_part)
            except (GoldenError, EngineError) as why:  # what gives no answer reproduces nothing either
                self._watches.remove(watch)
                log.error("%s", why)
                self._event("suspect_parts", {"why": str(why)[:200], "since": watch.last_good_part})
                self._tell_state("fault", str(why)[:240])
                if self._inspector:
                    self._inspector.unfit = str(why)
                if isinstance(why, EngineLost):
                    self._give_up(str(why))
                return

    def _health(self, now_ns: int) -> None:
        if now_ns < self._health_ns:
            return
        self._health_ns = now_ns + HEALTH_NS
        self._stamp_news()
        values: dict[str, object] = {
            name: {**camera.statistics(), "stamps": self._build.stamps[name].health()}
            for name, camera in self._build.cameras.items()
        }
        if self._inspector:
            for name, taken in (("latency_ms", self._inspector.latencies_ms), ("judge_ms", self._inspector.judge_ms)):
                if len(taken) > 1:
                    cuts = statistics.quantiles(taken, n=100)
                    values[name] = {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2), "max": round(max(taken), 2)}
            values["engine_power_modes"] = list(self._power_modes)
            values["image_health"] = self._inspector.health_figures()
            values["passes_spared"] = self._inspector.passes_spared
            values["counts"] = self._inspector.counts
            values["engines"] = {look.camera: look.network.statistics() for look in self._inspector.looks}
        values["archive"] = self._archive.counts
        values["frame_copies"] = self._copies_per_frame()
        values["lost_messages"] = self.lost_messages
        values["unannounced"] = self._unannounced
        self._queue_report(Health("inspect", values))

    def _stamp_news(self) -> None:
        for camera, proof in self._build.stamps.items():
            while proof.news:
                text = proof.news.popleft()
                log.warning("camera %s: %s", camera, text)
                self._event("camera_clock", {"camera": camera, "what": text})

    def _copies_per_frame(self) -> int:
        """Of the worst camera since the last look, between the kernel's buffer and the engine's input (law 9)."""
        copies = {name: camera.frame_copies for name, camera in self._build.cameras.items()}
        for look in self._inspector.looks if self._inspector else ():
            staged = look.network.frame_copies
            copies[look.camera] += staged > self._staged.get(look.camera, 0)
            self._staged[look.camera] = staged
        return max(copies.values(), default=0)


def main(build: InspectBuild, paths: Paths, clock: Clock, notifier: Notifier | None = None) -> int:
    """Run inspectd until SIGTERM or SIGINT. Exit 1: its GPU or a camera's thread is lost, begin anew."""
    notifier = notifier or Notifier({}, 0)
    daemon = Inspectd(build, paths, clock, notifier)

    def stop(_signal: int, _frame: object) -> None:
        daemon.stopping = True
        daemon.wake()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    notifier.ready("starting: loading the model")  # an engine may take many minutes; a start that long would be timed out
    turning_s = notifier.watchdog_s
    notifier.watchdog(build.load_still_s)
    daemon.load()
    notifier.watchdog(turning_s)
    pulse = Pulse(lambda: daemon.turns)  # not while engines are built: that has its own watch
    pulse.start()
    try:
        daemon.run()
    finally:
        pulse.over.set()
        daemon.close()
    if daemon.failed:
        logging.shutdown()
        os._exit(1)  # with the GPU's context still pushed the interpreter's own end would abort
    return 0
