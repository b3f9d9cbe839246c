"""Golden vectors: frames whose answer is known; a model that cannot reproduce them is refused (law 7)."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from appliance.model.bundle import Bundle, BundleError
from appliance.model.preprocess import prepare
from appliance.ports import Findings, Frame

INPUT_TOLERANCE = 1e-4
WORST_TOLERANCE = 0.05
LEAST_CASES = 8
_NEVER_NS = 2**62  # a replay waits for its answer: nothing is decided by it in time
_OUTPUT_SHARE = 0.25  # without a written tolerance: of the spread of all outputs; INT8 moves them by some percent
Stage = Literal["input", "output", "score"]
F32 = npt.NDArray[np.float32]


class GoldenError(Exception):
    """A vector that was not reproduced; ``stage`` the first that shows it."""

    def __init__(self, text: str, stage: Stage = "output", index: int = -1) -> None:
        super().__init__(text)
        self.stage, self.index = stage, index


class Replayable(Protocol):
    """A network, with what its engine was given and gave last (None, empty: this network cannot tell)."""

    last_input: F32 | None
    last_outputs: dict[str, F32]

    def submit(self, frame: Frame, roi: tuple[int, int, int, int] | None) -> int: ...
    def wait(self, ticket: int, deadline_ns: int) -> Findings | None: ...


@dataclass(frozen=True)
class Golden:
    """frames uint8 (N, h, w[, 3]) at ROI size, inputs float32 (N, C, H, W), outputs float32 (N, ...) of the float
    model's first tensor (``output_tensor``), scores float32 (N,). ``tolerance`` on scores; ``output_tolerance`` only
    tells which stage to name."""

    frames: npt.NDArray[np.uint8]
    inputs: F32
    scores: F32
    pixel: str
    tolerance: float
    outputs: F32
    output_tolerance: float

    def __len__(self) -> int:
        return len(self.frames)


def load_golden(bundle: Bundle) -> Golden:
    """Raises BundleError when the file is not what the contract says."""
    try:
        with np.load(bundle.golden, allow_pickle=False) as stored:
            golden = _read(stored)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as why:
        raise BundleError(f"{bundle.golden}: cannot be read as golden vectors ({why}); make the bundle anew") from why
    problem = _problem(golden, bundle)
    if problem:
        raise BundleError(f"{bundle.golden}: {problem}; make the bundle anew")
    return golden


def _read(stored: Mapping[str, npt.NDArray[Any]]) -> Golden:
    outputs = stored["output"]
    written = float(stored["output_tolerance"]) if "output_tolerance" in stored else float(np.ptp(outputs)) * _OUTPUT_SHARE
    return Golden(
        frames=stored["frame"], inputs=stored["input"], scores=stored["score"], pixel=str(stored["pixel"]),
        tolerance=float(stored["tolerance"]), outputs=outputs, output_tolerance=written,
    )  # fmt: skip


def _problem(golden: Golden, bundle: Bundle) -> str:
    if len(golden) < LEAST_CASES:
        return f"{len(golden)} cases, at least {LEAST_CASES} are needed"
    if not len(golden.frames) == len(golden.inputs) == len(golden.outputs) == len(golden.scores):
        return "frames, inputs, outputs and scores are not equally many"
    if golden.frames.dtype != np.uint8 or golden.frames.ndim not in (3, 4) or golden.scores.ndim != 1:
        return "frame is not uint8 (cases, rows, columns), or score not one a case"
    if not np.isfinite(golden.scores).all() or not np.isfinite(golden.inputs).all():
        return "inputs or scores are no numbers"
    if not 0 < golden.tolerance <= WORST_TOLERANCE:
        return f"tolerance {golden.tolerance}, at most {WORST_TOLERANCE} is believed"
    wanted = (bundle.input.channels, bundle.input.size[1], bundle.input.size[0])
    if golden.inputs.shape[1:] != wanted:
        return f"inputs are {golden.inputs.shape[1:]}, model.yaml says {wanted}"
    return ""


def part_score(findings: Findings, bundle: Bundle) -> float:
    """The score a part would get without thresholds: the worst class that is not good."""
    if findings.task == "anomaly":
        return float(findings.scores[0])
    return max(float(findings.scores[index]) for index in bundle.defects)


def replay(network: Replayable, bundle: Bundle, golden: Golden, index: int, definition: bool = True) -> None:
    """One vector, from its frame on. ``definition``: also whether model.yaml still says what it was made with, which takes
    the reference's time and cannot change after load. Raises GoldenError naming the first stage that differs, EngineError."""
    pixels = golden.frames[index]
    frame = frame_of(pixels, golden.pixel)
    case = f"{bundle.folder}: golden vector {index}"
    if definition:
        _check_definition(bundle, golden, frame, index, case)
    findings = network.wait(network.submit(frame, None), _NEVER_NS)
    if findings is None:
        raise GoldenError(f"{case}: the engine gave no answer", "output", index)
    wanted = golden.inputs[index]
    if network.last_input is not None and not _apart(network.last_input, wanted) <= INPUT_TOLERANCE:
        apart = _apart(network.last_input, wanted)
        text = f"input: this engine's preprocess differs by {apart:.2g}, at most {INPUT_TOLERANCE:g}; report this fault"
        raise GoldenError(f"{case}: {text}", "input", index)
    score, known = part_score(findings, bundle), float(golden.scores[index])
    if not abs(score - known) <= golden.tolerance:  # written so that what is no number fails
        stage, told = _later_stage(network, bundle, golden, index)
        told = f"{stage}: {told}; the score is {score:.4f}, not {known:.4f} (tolerance {golden.tolerance:.3f})"
        raise GoldenError(f"{case}: {told}", stage, index)


def replay_all(network: Replayable, bundle: Bundle) -> Golden:
    """Every vector, at load. Raises GoldenError, BundleError, EngineError."""
    golden = load_golden(bundle)
    for index in range(len(golden)):
        replay(network, bundle, golden, index)
    return golden


def _check_definition(bundle: Bundle, golden: Golden, frame: Frame, index: int, case: str) -> None:
    """Does model.yaml's input section still say what the vectors were made with?"""
    memory = np.frombuffer(frame.memory, np.uint8)
    try:
        reference = prepare(memory, frame.size, frame.pitch_bytes, golden.pixel, None, bundle.input).tensor
    except ValueError as why:
        raise GoldenError(f"{case}: input: {why}", "input", index) from why
    apart = _apart(reference, golden.inputs[index])
    if not apart <= INPUT_TOLERANCE:
        text = f"input: preprocess as model.yaml says differs by {apart:.2g}, at most {INPUT_TOLERANCE:g}"
        raise GoldenError(f"{case}: {text}; see mean, std, fit and size there", "input", index)


def _later_stage(network: Replayable, bundle: Bundle, golden: Golden, index: int) -> tuple[Stage, str]:
    """The input agrees and the score does not: was it the engine, or what is made of its output?"""
    wanted = golden.outputs[index]
    name = bundle.output.tensor or bundle.output.score or bundle.output.map or ""
    got = network.last_outputs.get(name)
    if got is None:
        return "output", "the engine's output or its decoding differs"
    apart = _apart(got.reshape(-1), wanted.reshape(-1))
    if apart <= golden.output_tolerance:
        return "score", f"the engine's {name} agrees, what the output section makes of it does not"
    return "output", f"the engine's {name} differs by {apart:.3g} (INT8 by {golden.output_tolerance:.2g}); weights or engine"


def _apart(got: F32, wanted: F32) -> float:
    return float(np.abs(got - wanted).max()) if got.shape == wanted.shape else float("inf")


def frame_of(pixels: npt.NDArray[Any], pixel: str) -> Frame:
    """An array as a camera would give it: (h, w), (h, w, 3), or rows of ``pixel``'s bytes as uint8 or uint16."""
    flat = np.ascontiguousarray(pixels)
    height, width = flat.shape[:2]
    memory = memoryview(flat.view(np.uint8).reshape(-1))  # type: ignore[arg-type]  # no Buffer before Python 3.12
    return Frame(memory, 0, flat.strides[0], (width, height), pixel, 0, 0, 0, lambda: None)


def write_golden(path: Path, **arrays: Any) -> None:
    """frame, input, output, score, pixel, tolerance, output_tolerance."""
    np.savez_compressed(path, **arrays)
