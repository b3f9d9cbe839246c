"""inspectd's heart: from triggers and frames to verdicts and details. No sockets, no threads: time is passed in."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.inspect.archive import Archive, Slot
from appliance.inspect.image_health import HealthLimits, ImageHealth
from appliance.inspect.judge import Judgement, Limits, blind, judge, worst
from appliance.inspect.matching import Match, Matcher
from appliance.messages import Detail, Message, Stored, Trigger, Verdict
from appliance.model.bundle import Bundle
from appliance.ports import Clock, EngineError, EngineLost, Findings, Frame, Network

log = logging.getLogger("appliance.inspect")
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Look:
    """One camera of the recipe, with all that judging its frames needs. ``roi`` None = the whole frame;
    ``size`` the camera's: frames of another size are taken as already cut (photographs), if ``any_size``."""

    camera: str
    size: tuple[int, int]
    any_size: bool
    roi: Box | None
    bundle: Bundle
    network: Network
    limits: Limits
    health: HealthLimits


@dataclass(frozen=True)
class RecipePlan:
    """The active recipe: its looks and its names."""

    name: str
    number: int
    digest: str
    looks: tuple[Look, ...]
    keep: frozenset[str]
    passes_every: int


@dataclass
class _Kept:
    """A judged frame: its buffer while the part's verdict is near, its copy (None: dropped) once the buffer went back."""

    camera: str
    frame: Frame | None
    copy: Slot | None = None


@dataclass
class _Pending:
    trigger: Trigger
    judged: dict[str, Judgement] = field(default_factory=dict)
    kept: list[_Kept] = field(default_factory=list)
    sent: bool = False
    frame_ms: float = 0.0
    preprocess_ms: float = 0.0
    infer_ms: float = 0.0
    decide_ms: float = 0.0
    busy_ms: float = 0.0


class Inspector:
    """Looks at one part at a time. ``to_reject`` and ``to_report`` collect what is to be sent."""

    def __init__(self, recipe: RecipePlan, matchers: dict[str, Matcher], archive: Archive | None, clock: Clock) -> None:
        self._recipe = recipe
        self._looks = {look.camera: look for look in recipe.looks}
        self.looks = recipe.looks
        self.matchers = matchers
        self._archive = archive
        self._clock = clock
        self._health = {look.camera: ImageHealth(look.health) for look in recipe.looks}
        self._pending: dict[int, _Pending] = {}
        self._passes = 0
        self.to_reject: deque[Message] = deque()
        self.to_report: deque[Message] = deque()
        self.counts = {"judged": 0, "skipped_late": 0, "engine_errors": 0}
        self.lost = ""
        """Why no part can be judged any more in this process; empty while they can."""
        self.unfit = ""
        """Why the model is not believed any more (its golden vectors): parts are blind from then on."""
        self.latencies_ms: deque[float] = deque(maxlen=1000)
        self.judge_ms: deque[float] = deque(maxlen=1000)
        """How long each of the last parts kept the one who judges: looking, answering, copying images."""
        self.spare_passes = False
        """The box is hot: images of passed parts are not kept. Touches nothing but images."""
        self.passes_spared = 0
        self.verdict_ready: Callable[[], None] | None = None
        """Sends what ``to_reject`` holds: called before any image of the part is copied."""

    def on_trigger(self, trigger: Trigger) -> None:
        """A part to look at, once."""
        if trigger.part in self._pending:
            return
        self._pending[trigger.part] = _Pending(trigger)
        for camera in self._looks:
            self.matchers[camera].trigger(trigger.part, trigger.time_ns, trigger.deadline_ns)

    def on_frame(self, camera: str, frame: Frame) -> None:
        """A frame of one camera."""
        if not self.matchers[camera].frame(frame):
            frame.release()

    def step(self, now_ns: int) -> None:
        """Look at every part whose frame is there (or will never be)."""
        for camera, matcher in self.matchers.items():
            for match in matcher.due(now_ns):
                self._one(camera, match)
        self._forget_old(now_ns)

    def next_due_ns(self) -> int | None:
        due = [at for matcher in self.matchers.values() if (at := matcher.next_due_ns()) is not None]
        return min(due) if due else None

    def health_figures(self) -> dict[str, object]:
        """Image health and matching per camera."""
        return {
            name: {**self.matchers[name].counts, **{key: round(value, 3) for key, value in self._health[name].figures.items()}}
            for name in self._looks
        }

    def _one(self, camera: str, match: Match) -> None:
        pending = self._pending.get(match.part)
        if pending is None or pending.sent:
            if match.frame:
                match.frame.release()
            return
        begun_ns = self._clock.now_ns()
        if match.frame is None:
            missed = Judgement("missed", None, None, None, -1)
            pending.judged[camera] = missed if match.kind == "missed" else blind("ambiguous")
        elif begun_ns >= pending.trigger.deadline_ns:
            self.counts["skipped_late"] += 1  # no frame is begun whose part is committed already
            match.frame.release()
            return
        else:
            pending.judged[camera] = self._look(camera, match.frame, pending)
            pending.kept.append(_Kept(camera, match.frame))
        self._answer(match.part, pending)
        pending.busy_ms += (self._clock.now_ns() - begun_ns) / 1e6
        if pending.sent:
            self.judge_ms.append(pending.busy_ms)

    def _look(self, camera: str, frame: Frame, pending: _Pending) -> Judgement:
        if self.unfit:
            return blind("engine")
        look = self._looks[camera]
        roi = look.roi
        if frame.size != look.size:
            if not look.any_size:
                return blind(f"size: the camera gave {frame.size[0]} x {frame.size[1]}, not {look.size[0]} x {look.size[1]}")
            roi = None
        findings: Findings | None
        try:
            ticket = look.network.submit(frame, roi)
            findings = look.network.wait(ticket, pending.trigger.deadline_ns)
        except EngineError as why:
            self.counts["engine_errors"] += 1
            if isinstance(why, EngineLost):
                self.lost = str(why)
            log.error("the engine failed on part %d: %s", pending.trigger.part, why)
            return blind("engine")
        if findings is None:
            return blind("engine: no answer in time")
        begun_ns = self._clock.now_ns()
        cause = self._health[camera].early(findings)
        judgement = blind(cause) if cause else judge(findings, look.bundle, look.limits, camera, roi or (0, 0, *frame.size))
        pending.frame_ms = max(pending.frame_ms, (frame.arrived_ns - pending.trigger.time_ns) / 1e6)
        pending.preprocess_ms += findings.preprocess_ms
        pending.infer_ms += findings.infer_ms
        pending.decide_ms += (self._clock.now_ns() - begun_ns) / 1e6
        return judgement

    def _answer(self, part: int, pending: _Pending) -> None:
        """Send the verdict when all cameras have answered, or one says fail; then see to the images."""
        judged = list(pending.judged.values())
        whole = len(judged) == len(self._looks)
        if not whole and judged[-1].verdict != "fail":
            self._settle()
            self._give_back(part, pending)
            return
        result = worst(judged)
        pending.sent = True
        self.counts["judged"] += 1
        self.latencies_ms.append((self._clock.now_ns() - pending.trigger.time_ns) / 1e6)
        self.to_reject.append(
            Verdict(
                part, result.verdict, result.cause, result.score, result.threshold, result.class_id,
                pending.frame_ms, pending.preprocess_ms, pending.infer_ms, pending.decide_ms,
            )
        )  # fmt: skip
        keep = self._wants(result.verdict) and bool(pending.kept)
        model = self._recipe.looks[0].network.identity
        self.to_report.append(
            Detail(
                part, self._recipe.name, self._recipe.number, self._recipe.digest, model, result.regions,
                len(pending.kept) if keep and self._archive else 0,
            )
        )  # fmt: skip
        if self.verdict_ready:
            self.verdict_ready()
        self._settle()
        self._keep(part, pending, keep)
        del self._pending[part]

    def _settle(self) -> None:
        """What image health need not know before the verdict; while the frames are held."""
        for health in self._health.values():
            health.settle()

    def _give_back(self, part: int, pending: _Pending) -> None:
        """The part has further cameras to reach: its frames so far are copied, and their buffers are the cameras' again."""
        wall_us = self._clock.wall_us(pending.trigger.time_ns)
        for kept in pending.kept:
            if kept.frame is not None:
                kept.copy = self._archive.copy(part, kept.camera, kept.frame, wall_us) if self._archive else None
                kept.frame.release()
                kept.frame = None

    def _keep(self, part: int, pending: _Pending, keep: bool) -> None:
        if keep:
            self._give_back(part, pending)
        for kept in pending.kept:
            if kept.frame is not None:
                kept.frame.release()
            elif self._archive and kept.copy is not None:
                (self._archive.store if keep else self._archive.forget)(kept.copy)
            elif self._archive and keep:
                self.to_report.append(Stored(part, kept.camera, "", "", dropped=True))

    def _wants(self, verdict: str) -> bool:
        wanted = verdict in self._recipe.keep
        if verdict == "pass" and self._recipe.passes_every:
            self._passes += 1
            wanted |= self._passes % self._recipe.passes_every == 0
        if wanted and verdict == "pass" and self.spare_passes:
            self.passes_spared += 1
            return False
        return wanted

    def _forget_old(self, now_ns: int) -> None:
        while self._pending:
            part, first = next(iter(self._pending.items()))
            if now_ns < first.trigger.deadline_ns + 1_000_000_000:
                return
            self._keep(part, first, keep=False)
            del self._pending[part]
