"""From a network's raw outputs to scores 0..1, higher is worse; anomaly maps as u8 at network size. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from appliance.model.bundle import Bundle

F32 = npt.NDArray[np.float32]


def decode(outputs: Mapping[str, F32], bundle: Bundle) -> tuple[F32, npt.NDArray[np.uint8] | None]:
    """(scores float32, score map uint8 (h, w) or None): per class for classify, one for anomaly. Raises KeyError."""
    if bundle.task == "classify":
        return activate(outputs[bundle.output.tensor or ""].reshape(-1), bundle.output.activation), None
    spec = bundle.output
    span = np.float32((spec.high - spec.low) or 1.0)
    mapped: npt.NDArray[np.uint8] | None = None
    raw_map = outputs[spec.map] if spec.map else None
    if raw_map is not None:
        plane = raw_map.reshape(raw_map.shape[-2:])
        mapped = np.rint(np.clip((plane - np.float32(spec.low)) / span, 0, 1) * 255).astype(np.uint8)
    raw = outputs[spec.score].max() if spec.score else (raw_map.max() if raw_map is not None else np.float32(0))
    score = np.clip((np.float32(raw) - np.float32(spec.low)) / span, 0, 1)
    return np.array([score], np.float32), mapped


def activate(raw: F32, activation: str) -> F32:
    """Logits to 0..1."""
    if activation == "softmax":
        powers = np.exp(raw - raw.max())
        return (powers / powers.sum()).astype(np.float32)
    if activation == "sigmoid":
        return (1 / (1 + np.exp(-raw))).astype(np.float32)
    return np.clip(raw, 0, 1).astype(np.float32)
