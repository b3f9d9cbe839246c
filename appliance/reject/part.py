"""One part between trigger and gate: what is known of it, what is planned, and its account when it closes. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from appliance.messages import (
    WORST_FIRST,
    ClockQuality,
    Confirmed,
    DisposedBy,
    Disposition,
    Message,
    PartClosed,
    Verdict,
    VerdictName,
)
from appliance.reject.gate import RejectWindow
from appliance.reject.plan import MS, Plan


class KeptPart(Message, frozen=True):
    """What the books hold of an open part."""

    part: int
    trigger_ns: int
    wall_us: int
    clock: ClockQuality
    recipe: str
    recipe_number: int
    verdict: Verdict | None
    heard_ns: int


_kept_decoder = msgspec.msgpack.Decoder(KeptPart)


def decode_kept(payload: bytes) -> KeptPart:
    """An open part as the books hold it. Raises msgspec.DecodeError."""
    return _kept_decoder.decode(payload)


@dataclass(eq=False)
class OpenPart:
    """A numbered part that has not closed. ``forced``: a cause that makes it blind whatever inspectd says."""

    part: int
    trigger_ns: int
    trigger_mm: float
    wall_us: int
    clock: ClockQuality
    recipe: str
    recipe_number: int
    verdict: Verdict | None = None
    heard_ns: int = 0
    forced: str | None = None
    committed: bool = False
    judged: VerdictName = "late"
    cause: str | None = None
    planned: Disposition = "reject"
    reason: DisposedBy = "on_late"
    deadline_ns: int = 0
    due_ns: int = 0
    arrive_mm: float = 0.0
    """Belt position as its front reaches the first gate; the gate's eye may correct it."""
    length_mm: float = 0.0
    """What of the belt is its: more than ``part_mm`` where two parts touch, for the second has no number of its own."""
    seen_at_gate: bool = False
    many: bool = False
    """More than one edge belongs to it: two parts that touch or follow too closely."""
    window: RejectWindow | None = None
    divert_window: RejectWindow | None = None
    hit: RejectWindow | None = None
    stuck: bool = False
    """The proof's sensor was on before its edge."""

    def kept(self) -> KeptPart:
        return KeptPart(
            self.part, self.trigger_ns, self.wall_us, self.clock, self.recipe, self.recipe_number, self.verdict,
            self.heard_ns,
        )  # fmt: skip


def final_verdict(part: OpenPart) -> tuple[VerdictName, str | None]:
    """Verdict and cause as they stand when the part is committed: no answer is `late`, two touching parts `blind`."""
    if part.verdict is None:
        return "late", None
    if part.forced and WORST_FIRST.index("blind") < WORST_FIRST.index(part.verdict.verdict):
        return "blind", part.forced
    return part.verdict.verdict, part.verdict.cause


def dispose(verdict: VerdictName, plan: Plan) -> tuple[Disposition, DisposedBy]:
    """Law 3: pass goes on, fail never does, the rest as the configuration says."""
    if verdict == "pass":
        return "accept", "verdict"
    if verdict == "fail":
        return "reject", "verdict"
    if verdict == "review":
        return plan.on_review, "on_review"
    return ("accept" if plan.on_late == "accept" else "reject"), "on_late"


def what_happened(
    part: OpenPart, rejected_by: RejectWindow | None, diverted_by: RejectWindow | None
) -> tuple[Disposition, DisposedBy]:
    """What the gates did to the part, told as it was, not as it was planned."""
    hit = rejected_by or diverted_by
    if hit is None:
        # Planned to go and the gate did not stand there in time: an escape, told as one.
        return ("accept", part.reason) if part.planned == "accept" else ("accept", "fault")
    taken: Disposition = "reject" if rejected_by else "divert"
    if hit.reason != "part":
        return taken, hit.reason
    if hit is part.window or hit is part.divert_window:
        return taken, part.reason
    return taken, "neighbour"


def closed(
    part: OpenPart,
    n: int,
    run: str,
    disposition: Disposition,
    disposed_by: DisposedBy,
    error_ns: int | None,
    confirmed: Confirmed = "unwatched",
) -> PartClosed:
    """The part's account. Times in ms from the trigger."""
    verdict = part.verdict
    answered = verdict is not None
    late = part.judged == "late"
    verdict_ms = None if not answered or late else (part.heard_ns - part.trigger_ns) / MS
    deadline_ms = (part.deadline_ns - part.trigger_ns) / MS
    return PartClosed(
        n=n,
        part=part.part,
        run=run,
        trigger_ns=part.trigger_ns,
        wall_us=part.wall_us,
        clock=part.clock,
        verdict=part.judged,
        cause=part.cause,
        score=verdict.score if verdict else None,
        threshold=verdict.threshold if verdict else None,
        class_id=verdict.class_id if verdict else -1,
        disposition=disposition,
        disposed_by=disposed_by,
        fired=disposition != "accept",
        confirmed=confirmed,
        answered=answered,
        frame_ms=verdict.frame_ms if verdict else None,
        preprocess_ms=verdict.preprocess_ms if verdict else None,
        infer_ms=verdict.infer_ms if verdict else None,
        decide_ms=verdict.decide_ms if verdict else None,
        verdict_ms=verdict_ms,
        deadline_ms=deadline_ms,
        margin_ms=None if verdict_ms is None else deadline_ms - verdict_ms,
        due_ms=(part.due_ns - part.trigger_ns) / MS,
        error_us=None if error_ns is None else error_ns // 1000,
        recipe=part.recipe,
        recipe_number=part.recipe_number,
    )
