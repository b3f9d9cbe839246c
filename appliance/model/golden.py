"""Golden vectors: frames whose answer is known; a model that cannot reproduce them is refused (law 7)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from appliance.model.bundle import Bundle, BundleError
from appliance.model.preprocess import prepare
from appliance.ports import Findings, Frame

INPUT_TOLERANCE = 1e-4
WORST_TOLERANCE = 0.05
LEAST_CASES = 8


class GoldenError(Exception):
    """A vector that was not reproduced: which, and the first stage that differs."""


class Replayable(Protocol):
    """A network, with what it saw and gave last."""

    last_input: npt.NDArray[np.float32] | None

    def submit(self, frame: Frame, roi: tuple[int, int, int, int] | None) -> int: ...
    def wait(self, ticket: int, deadline_ns: int) -> Findings | None: ...


@dataclass(frozen=True)
class Golden:
    """frames uint8 (N, h, w[, 3]) at ROI size, inputs float32 (N, C, H, W), scores float32 (N,); ``tolerance`` on them."""

    frames: npt.NDArray[np.uint8]
    inputs: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    pixel: str
    tolerance: float

    def __len__(self) -> int:
        return len(self.frames)


def load_golden(bundle: Bundle) -> Golden:
    """Raises BundleError when the file is not what the contract says."""
    try:
        with np.load(bundle.golden, allow_pickle=False) as stored:
            golden = Golden(stored["frame"], stored["input"], stored["score"], str(stored["pixel"]), float(stored["tolerance"]))
    except (OSError, ValueError, KeyError) as why:
        raise BundleError(f"{bundle.golden}: cannot be read as golden vectors ({why}); make the bundle anew") from why
    if len(golden) < LEAST_CASES:
        raise BundleError(f"{bundle.golden}: {len(golden)} cases, at least {LEAST_CASES} are needed")
    if not 0 < golden.tolerance <= WORST_TOLERANCE:
        raise BundleError(f"{bundle.golden}: tolerance {golden.tolerance}, at most {WORST_TOLERANCE} is believed")
    return golden


def part_score(findings: Findings, bundle: Bundle) -> float:
    """The score a part would get: the worst class that is not good."""
    if findings.task == "anomaly":
        return float(findings.scores[0])
    return max(float(findings.scores[i]) for i, name in enumerate(bundle.classes) if name not in bundle.good)


def replay(network: Replayable, bundle: Bundle, golden: Golden, index: int) -> None:
    """One vector, from its frame on. Raises GoldenError naming the first stage that differs."""
    pixels = golden.frames[index]
    frame = frame_of(pixels, golden.pixel)
    ticket = network.submit(frame, None)
    findings = network.wait(ticket, 2**62)
    case = f"{bundle.folder}: golden vector {index}"
    if findings is None:
        raise GoldenError(f"{case}: no answer came")
    reference = prepare(pixels.ravel(), frame.size, frame.pitch_bytes, golden.pixel, None, bundle.input).tensor
    for what, got in (("the bundle's own preprocess", reference), ("this network's preprocess", network.last_input)):
        if got is None:
            continue
        worst = float(np.abs(got - golden.inputs[index]).max()) if got.shape == golden.inputs[index].shape else np.inf
        if worst > INPUT_TOLERANCE:
            raise GoldenError(f"{case}: {what} differs by {worst:.2g} (at most {INPUT_TOLERANCE}); the input section of model.yaml?")
    score, wanted = part_score(findings, bundle), float(golden.scores[index])
    if abs(score - wanted) > golden.tolerance:
        raise GoldenError(f"{case}: the engine gives score {score:.4f}, not {wanted:.4f} (± {golden.tolerance:.3f}): weights or engine")


def frame_of(pixels: npt.NDArray[np.uint8], pixel: str) -> Frame:
    """An array as a camera would give it."""
    flat = np.ascontiguousarray(pixels)
    height, width = flat.shape[:2]
    memory: Any = memoryview(flat.reshape(-1))
    return Frame(memory, flat.ctypes.data, flat.strides[0], (width, height), pixel, 0, 0, 0, lambda: None)


def replay_all(network: Replayable, bundle: Bundle) -> Golden:
    """Every vector, at load. Raises GoldenError, BundleError."""
    golden = load_golden(bundle)
    for index in range(len(golden)):
        replay(network, bundle, golden, index)
    return golden


def write_golden(path: Path, **arrays: Any) -> None:
    """frame, input, output, score, pixel, tolerance."""
    np.savez_compressed(path, **arrays)
