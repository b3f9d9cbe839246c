"""The INT8 licence: what an engine of this module answers on held-out images beside the float model, and whether it may run.

It is refused, and the float16 engine runs, when one of these does not hold:

1. Every image gets a number from both. An engine that answers none, or what is no number, judges nothing.
2. No image that the float model fails passes or is only reviewed (`on_review: accept` would let it go), and no defect
   that it reviews passes, unless both scores lie within the band of the threshold between them. The band is the
   tolerance of the bundle's golden vectors: so far INT8 may move any score, and a part that close to a threshold is
   decided by less than that anyway.
3. No class loses recall beyond what the sample can tell. Lost and won defects of a class are compared image by image:
   losses so one-sided that chance gives them in fewer than 1 of 20 samples are INT8's doing; and the engine's share has
   to lie above the lower end of the float model's interval, which holds in small samples, where chance excuses much.
4. False rejects: the upper end of the interval is at most the bundle's promise. Where the sample is too small to show the
   promise even for the float model, it is at most the float model's own: then INT8 may add none.

A sample says nothing of what it has no images of: that stands among the remarks. The thresholds are the bundle's own."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from appliance.model.engine_cache import EngineKey, digest_of, json_bytes, key_difference, write_whole
from appliance.model.intervals import interval

Basis = Literal["sample", "images", "golden only"]
_SCHEMA: Literal[1] = 1
_CHANCE = 0.05
_MOST_BYTES = 64 * 1024 * 1024  # a line for each flip, and samples have thousands of images
_TOLD_FLIPS = 3


class LicenceError(Exception):
    """A licence that cannot be read or written, and why."""


@dataclass(frozen=True)
class Answer:
    """What one of both says of an image; ``score`` and ``threshold`` None where it is blind."""

    verdict: str
    cause: str | None
    score: float | None
    threshold: float | None


@dataclass(frozen=True)
class Shown:
    """One image, judged twice. ``kind``: the class it is, None where nobody said (golden vectors)."""

    image: str
    kind: str | None
    reference: Answer
    engine: Answer


@dataclass(frozen=True)
class Terms:
    """What the bundle asks for. ``band``: how far INT8 may move a score; ``promised``: share of false rejects, or None."""

    good: tuple[str, ...]
    defects: tuple[str, ...]
    review_at: float
    fail_at: float
    band: float
    promised: float | None


@dataclass(frozen=True)
class Flip:
    """An image on which both disagree. ``near``: both scores lie within the band of one threshold."""

    image: str
    kind: str | None
    reference: Answer
    engine: Answer
    near: bool


@dataclass(frozen=True)
class Share:
    """``hits`` of ``of``, with the exact 95 % interval of the true share."""

    hits: int
    of: int
    low: float
    high: float


@dataclass(frozen=True)
class Compared:
    """The images of one class (``kind``): both shares, and how many only one of both has."""

    kind: str
    reference: Share
    engine: Share
    only_reference: int
    only_engine: int


@dataclass(frozen=True)
class Latency:
    """Frame in, findings out, in milliseconds, over ``of`` runs."""

    p50_ms: float
    p99_ms: float
    p999_ms: float
    of: int


@dataclass(frozen=True)
class Agreement:
    """Both, compared. ``recall`` by class (share that did not pass); ``false_rejects``: share of good images that failed."""

    images: int
    flips: tuple[Flip, ...]
    recall: tuple[Compared, ...]
    false_rejects: Compared
    largest_difference: float | None


@dataclass(frozen=True)
class Licence:
    """``reasons``: why it was refused; ``remarks``: what it does not show. ``key``, the digests: what it holds for."""

    granted: bool
    basis: Basis
    reasons: tuple[str, ...]
    remarks: tuple[str, ...]
    agreement: Agreement
    latency: Latency
    terms: Terms
    bundle_digest: str
    plan_digest: str
    sample_digest: str
    key: EngineKey
    schema: Literal[1] = _SCHEMA


def decide(
    shown: Sequence[Shown], terms: Terms, basis: Basis, golden_fault: str | None, latency: Latency,
    bundle_digest: str, plan_digest: str, sample_digest: str, key: EngineKey,
) -> Licence:  # fmt: skip
    """The licence of an engine. ``golden_fault``: what its golden vectors showed (law 7), None when they agree."""
    found = agreement(shown, terms)
    reasons = ([f"golden vectors: {golden_fault}"] if golden_fault else []) + faults_of(shown, found, terms)
    return Licence(
        granted=not reasons, basis=basis, reasons=tuple(reasons), remarks=tuple(_remarks(found, terms, basis)),
        agreement=found, latency=latency, terms=terms, bundle_digest=bundle_digest, plan_digest=plan_digest,
        sample_digest=sample_digest, key=key,
    )  # fmt: skip


def agreement(shown: Sequence[Shown], terms: Terms) -> Agreement:
    """All images compared."""
    kinds = sorted({one.kind for one in shown if one.kind is not None and one.kind not in terms.good})
    flips = tuple(
        Flip(one.image, one.kind, one.reference, one.engine, _near(one, terms))
        for one in shown
        if one.reference.verdict != one.engine.verdict
    )
    fine = [(one.reference.verdict == "fail", one.engine.verdict == "fail") for one in shown if one.kind in terms.good]
    apart = [difference for one in shown if (difference := _apart(one)) is not None]
    return Agreement(
        len(shown), flips, tuple(_recall(kind, shown) for kind in kinds), _compared("good", fine), max(apart, default=None)
    )


def faults_of(shown: Sequence[Shown], found: Agreement, terms: Terms) -> list[str]:
    """What breaks the terms of this module's first lines, in words; empty = granted."""
    return [*_without_answer(shown), *_escapes(found, terms), *_lost_recall(found), *_false_rejects(found, terms)]


def share(hits: int, of: int) -> Share:
    """A share with its interval."""
    return Share(hits, of, *interval(hits, of))


def latency_of(runs_ms: Sequence[float]) -> Latency:
    """Percentiles by nearest rank. Raises ValueError when nothing was measured."""
    if not runs_ms:
        raise ValueError("no run was measured")
    ordered = sorted(runs_ms)

    def at(part: float) -> float:
        return round(ordered[max(0, math.ceil(part * len(ordered)) - 1)], 4)

    return Latency(at(0.5), at(0.99), at(0.999), len(ordered))


def sample_digest(files: Sequence[tuple[str, str]]) -> str:
    """Of (name in the folder, ``sha256:`` of its bytes), in any order: the same images under the same labels."""
    return digest_of("".join(f"{digest} {name}\n" for name, digest in sorted(files)).encode())


def valid_for(licence: Licence, key: EngineKey, plan_digest: str, bundle_digest: str) -> str | None:
    """Why it does not hold for this engine and bundle; None when it does."""
    if not licence.granted:
        return f"the INT8 licence was refused: {'; '.join(licence.reasons)}"
    if licence.bundle_digest != bundle_digest:
        return "the INT8 licence is of another revision of the bundle"
    difference = key_difference(licence.key, key)
    if difference:
        return f"the INT8 licence is of an engine of another {difference}"
    if licence.plan_digest != plan_digest:
        return "the INT8 licence is of another engine: this one was built since"
    return None


def write_licence(path: Path, licence: Licence) -> None:
    """Whole or not at all, with a digest of its own content. Raises LicenceError."""
    content = asdict(licence)
    try:
        write_whole(path, json_bytes({**content, "digest": _content_digest(content)}))
    except OSError as why:
        raise LicenceError(f"{path}: the licence cannot be written ({why.strerror}); free some of that disk") from why


def read_licence(path: Path) -> Licence | None:
    """None when there is none. Raises LicenceError when it was cut or altered."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise LicenceError(f"{path}: too large for a licence; run engine licence again")
        content = json.loads(path.read_bytes())
        told = content.pop("digest")
        whole = told == _content_digest(content)
        licence = msgspec.convert(content, Licence)
    except FileNotFoundError:
        return None
    except OSError as why:
        raise LicenceError(f"{path}: cannot be read ({why.strerror}); run engine licence again") from why
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as why:  # msgspec's error is a ValueError
        raise LicenceError(f"{path}: is not what was written there; run engine licence again") from why
    if not whole:
        raise LicenceError(f"{path}: was altered since it was written; run engine licence again")
    return licence


def _content_digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _apart(one: Shown) -> float | None:
    if one.reference.score is None or one.engine.score is None:
        return None
    return abs(one.reference.score - one.engine.score)


def _near(one: Shown, terms: Terms) -> bool:
    reference, engine = one.reference, one.engine
    if reference.score is None or engine.score is None:
        return False
    between = {terms.review_at, *(at for at in (reference.threshold, engine.threshold) if at is not None)}
    low, high = sorted((reference.score, engine.score))
    return any(at - terms.band <= low and high <= at + terms.band for at in between)


def _recall(kind: str, shown: Sequence[Shown]) -> Compared:
    return _compared(kind, [(one.reference.verdict != "pass", one.engine.verdict != "pass") for one in shown if one.kind == kind])


def _compared(kind: str, pairs: Sequence[tuple[bool, bool]]) -> Compared:
    counts = Counter(pairs)
    both, first, second = counts[True, True], counts[True, False], counts[False, True]
    return Compared(kind, share(both + first, len(pairs)), share(both + second, len(pairs)), first, second)


def _without_answer(shown: Sequence[Shown]) -> list[str]:
    found = []
    for who, answers in (("float model", [one.reference for one in shown]), ("engine", [one.engine for one in shown])):
        silent = sum(one.score is None for one in answers)
        if silent:
            found.append(f"the {who} gave no number on {silent} of {len(shown)} images")
    return found


def _escapes(found: Agreement, terms: Terms) -> list[str]:
    def escaped(flip: Flip) -> bool:
        """Review is no catch where the float model fails: `on_review: accept` would let the part go."""
        if flip.near:
            return False
        if flip.reference.verdict == "fail":
            return flip.engine.verdict in ("pass", "review")
        return flip.reference.verdict == "review" and flip.kind not in (None, *terms.good) and flip.engine.verdict == "pass"

    lost = [flip for flip in found.flips if escaped(flip)]
    if not lost:
        return []
    told = ", ".join(f"{one.image} ({_scores(one)})" for one in lost[:_TOLD_FLIPS])
    more = f" and {len(lost) - _TOLD_FLIPS} more" if len(lost) > _TOLD_FLIPS else ""
    return [f"{len(lost)} images that the float model catches go in INT8, and not for being near a threshold: {told}{more}"]


def _scores(flip: Flip) -> str:
    return f"{flip.reference.score or 0:.3f} there, {flip.engine.score or 0:.3f} here"


def _lost_recall(found: Agreement) -> list[str]:
    told = []
    for one in found.recall:
        lost, won = one.only_reference, one.only_engine
        by_chance = _one_sided(lost, won) >= _CHANCE
        share_now = one.engine.hits / one.engine.of
        if not by_chance or share_now < one.reference.low:
            told.append(
                f"{one.kind}: INT8 catches {_percent(one.engine)}, the float model {_percent(one.reference)} "
                f"({lost} lost, {won} won)"
            )
    return told


def _one_sided(lost: int, won: int) -> float:
    """How likely at least ``lost`` of both are on one side by chance (exact sign test)."""
    of = lost + won
    return math.fsum(math.comb(of, k) / 2**of for k in range(lost, of + 1))


def _false_rejects(found: Agreement, terms: Terms) -> list[str]:
    one = found.false_rejects
    allowed = max(terms.promised or 0.0, one.reference.high)
    if one.engine.of == 0 or one.engine.high <= allowed:
        return []
    promised = "no share" if terms.promised is None else f"{terms.promised:.2%}"
    return [
        f"false rejects: INT8 fails {_percent(one.engine)} of the good images; the bundle promises {promised}, "
        f"the float model shows {_percent(one.reference)}"
    ]


def _percent(one: Share) -> str:
    return f"{one.hits} of {one.of} ({one.low:.1%} to {one.high:.1%})"


def _remarks(found: Agreement, terms: Terms, basis: Basis) -> list[str]:
    if basis == "golden only":
        return ["golden only: no labelled held-out images, so what INT8 does to recall and false rejects was not measured"]
    seen = {one.kind for one in found.recall}
    told = []
    unseen = [name for name in terms.defects if name not in seen]
    if unseen:
        told.append(f"no held-out image of {', '.join(unseen)}: of them this licence says nothing")
    fine = found.false_rejects.reference
    if fine.of == 0:
        told.append("no held-out image of a good part: of false rejects this licence says nothing")
    elif terms.promised is not None and fine.high > terms.promised:
        told.append(
            f"{fine.of} good images cannot show the promised {terms.promised:.2%} of false rejects: "
            f"of the float model they show up to {fine.high:.2%}"
        )
    return told
