"""From a network's raw outputs to scores 0..1, higher is worse; anomaly maps as u8. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp

import numpy as np
import numpy.typing as npt

from appliance.model.bundle import Bundle, OutputSpec

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


def decode(outputs: Mapping[str, F32], bundle: Bundle) -> tuple[F32, U8 | None]:
    """(scores float32, score map uint8 (h, w) or None): one score a class for classify, one in all for anomaly.

    What is not a number stays so: judge calls that part blind. Raises KeyError for an output that is not there."""
    if bundle.task == "classify":
        return activate(outputs[bundle.output.tensor or ""].reshape(-1), bundle.output.activation), None
    return _anomaly(outputs, bundle.output)


def decode_reduced(scores: Mapping[str, F32], worst: float, shares: U8 | None, bundle: Bundle) -> tuple[F32, U8 | None]:
    """What ``decode`` gives, from what a GPU's reducers leave of the outputs: ``scores`` the small tensors whole, ``worst``
    the raw map's maximum (minimum where ``low`` > ``high``; not a number where one in the map is none, or infinite),
    ``shares`` the map as u8 (h, w)."""
    if bundle.task == "classify":
        return decode(scores, bundle)
    spec = bundle.output
    if spec.score is None and spec.map is None:
        raise KeyError("output.score")
    raw = _worst(scores[spec.score], spec) if spec.score else np.asarray(worst, np.float32)
    return linear(raw, spec).reshape(1), shares if spec.map else None


def activate(raw: F32, activation: str) -> F32:
    """Logits (classes,) to 0..1; none of them a number as soon as one logit is none, or infinite: float16 ran over."""
    if not np.isfinite(raw).all():
        return np.full_like(raw, np.nan, np.float32)
    if activation == "softmax":
        values: list[float] = raw.tolist()  # a handful: Python's own numbers are quicker than an array's
        top = max(values)
        powers = [exp(value - top) for value in values]  # what is no number spreads to all of them through the sum
        whole = sum(powers)
        return np.array([power / whole for power in powers], np.float32)
    if activation == "sigmoid":
        with np.errstate(over="ignore"):  # exp of a large logit is inf, and 1 / inf is the 0 that is meant
            return np.asarray(1 / (1 + np.exp(-raw)), np.float32)
    return np.clip(raw, 0, 1).astype(np.float32)


def _anomaly(outputs: Mapping[str, F32], spec: OutputSpec) -> tuple[F32, U8 | None]:
    raw_map = outputs[spec.map] if spec.map else None
    raw_score = outputs[spec.score] if spec.score else raw_map
    if raw_score is None:
        raise KeyError("output.score")
    score = linear(_worst(raw_score, spec), spec)
    if raw_map is None:
        return score.reshape(1), None
    shares = linear(raw_map.reshape(raw_map.shape[-2:]), spec)
    # What is not a number is painted as the worst; the score says so too where it comes of the map.
    return score.reshape(1), np.rint(np.nan_to_num(shares, nan=1.0) * 255).astype(np.uint8)


def _worst(raw: F32, spec: OutputSpec) -> F32:
    """Not a number as soon as one is none, or infinite on either side: clipped, it would be a sure answer."""
    highest, lowest = raw.max(), raw.min()
    if not (np.isfinite(highest) and np.isfinite(lowest)):
        return np.asarray(np.nan, np.float32)
    return np.asarray(highest if spec.low < spec.high else lowest)


def linear(raw: F32, spec: OutputSpec) -> F32:
    """``low`` to 0, ``high`` to 1, clipped; ``high`` may lie below ``low``."""
    span = np.float32(spec.high) - np.float32(spec.low)  # each rounded first, as the GPU's reducer is given them
    return np.asarray(np.clip((raw - np.float32(spec.low)) / span, 0, 1), np.float32)
