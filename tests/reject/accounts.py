"""A closed part's account, with everything in it that a test does not care about."""

from __future__ import annotations

from typing import Any

from appliance.messages import PartClosed


def account(part: int, **changes: Any) -> PartClosed:
    fields: dict[str, Any] = {
        "n": part, "part": part, "run": "r", "trigger_ns": 0, "wall_us": 0, "clock": "synced", "verdict": "pass",
        "cause": None, "score": 0.1, "threshold": 0.6, "class_id": 0, "disposition": "accept", "disposed_by": "verdict",
        "fired": False, "confirmed": "unwatched", "answered": True, "frame_ms": 1.0, "preprocess_ms": 1.0,
        "infer_ms": 1.0, "decide_ms": 1.0, "verdict_ms": 5.0, "deadline_ms": 808.0, "margin_ms": 803.0, "due_ms": 828.0,
        "error_us": None, "recipe": "r", "recipe_number": 1, **changes,
    }  # fmt: skip
    return PartClosed(**fields)
