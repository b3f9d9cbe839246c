"""The ledger record, one shape for journal, MQTT and export; its canonical JSON and its place in the chain. Pure."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec

from appliance.messages import Detail, Event, PartClosed, Stored

SCHEMA = 1
GENESIS = "0" * 64
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_encoder = msgspec.json.Encoder(order="sorted")


def canonical(entry: dict[str, Any]) -> bytes:
    """Sorted keys, no spaces, UTF-8: what json.dumps(sort_keys, separators=(",", ":"), ensure_ascii=False) gives.

    Holds for strings, integers, booleans, null and floats rounded to 4 places, which is all a record has (tested)."""
    return _encoder.encode(entry)


def chained(body: bytes) -> str:
    """SHA-256 of an entry's canonical JSON (which holds ``prev`` and not ``hash``)."""
    return hashlib.sha256(body).hexdigest()


def payload(body: bytes, hash_: str) -> bytes:
    """The record as it leaves the box: body and hash."""
    return body[:-1] + b',"hash":"' + hash_.encode() + b'"}'


def wall(wall_us: int) -> str:
    """RFC 3339, UTC, microseconds."""
    return (_EPOCH + timedelta(microseconds=wall_us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _rounded(value: float | None, places: int = 3) -> float | None:
    return None if value is None else round(float(value), places)


def part_record(
    part: PartClosed, detail: Detail | None, images: list[Stored], station: str, simulated: bool
) -> dict[str, Any]:
    """A part's record without seq, prev and hash."""
    regions = [
        {"camera": one.camera, "class": one.name, "score": round(one.score, 4), "box": list(one.box), "area_px": one.area_px}
        for one in (detail.regions if detail else ())
    ]
    return {
        "schema": SCHEMA, "station": station, "part": part.part, "run": part.run, "time": wall(part.wall_us),
        "clock": part.clock, "monotonic_ns": part.trigger_ns, "verdict": part.verdict, "cause": part.cause,
        "score": _rounded(part.score, 4), "threshold": _rounded(part.threshold, 4), "regions": regions,
        "disposition": part.disposition, "disposed_by": part.disposed_by, "fired": part.fired,
        "confirmed": part.confirmed,
        "times_ms": {
            "frame": _rounded(part.frame_ms), "preprocess": _rounded(part.preprocess_ms),
            "infer": _rounded(part.infer_ms), "decide": _rounded(part.decide_ms), "verdict": _rounded(part.verdict_ms),
            "deadline": _rounded(part.deadline_ms), "margin": _rounded(part.margin_ms),
        },
        "actuation": {"due_ms": _rounded(part.due_ms), "error_us": part.error_us},
        "recipe": {"name": part.recipe, "number": part.recipe_number, "digest": detail.recipe_digest if detail else None},
        "model": dict(detail.model) if detail else None,
        "images": [image_entry(one) for one in images],
        "label": part.label, "lot": part.lot, "operator": part.operator, "challenge": part.challenge,
        "simulated": simulated,
    }  # fmt: skip


def image_entry(stored: Stored) -> dict[str, Any]:
    """One image of a record."""
    if stored.dropped:
        return {"camera": stored.camera, "file": None, "sha256": None, "dropped": True}
    return {"camera": stored.camera, "file": stored.file, "sha256": stored.sha256}


def event_record(event: Event, station: str, simulated: bool) -> dict[str, Any]:
    """An event's entry without seq, prev and hash."""
    return {
        "schema": SCHEMA, "station": station, "event": event.kind, "run": event.run, "time": wall(event.wall_us),
        "clock": event.clock, "monotonic_ns": event.time_ns, "data": event.data, "simulated": simulated,
    }  # fmt: skip
