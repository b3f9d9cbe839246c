"""Writes a bundle: ONNX, golden vectors made with the float model, digests, model.yaml. For workstations; needs onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import yaml

from appliance.model.bundle import Bundle, BundleError, file_digest, load_bundle
from appliance.model.golden import LEAST_CASES, WORST_TOLERANCE, frame_of, part_score, write_golden
from appliance.model.graph import float_model, lint, quantised
from appliance.model.preprocess import prepare
from appliance.ports import Findings

_LEAST_TOLERANCE = 0.01


def write_bundle(folder: Path, model: onnx.ModelProto, meta: dict[str, Any], golden_frames: list[npt.NDArray[np.uint8]], pixel: str, decode: Any) -> Bundle:
    """A bundle in ``folder``. ``meta``: model.yaml without schema, precision, files. ``golden_frames``: uint8 at ROI size.

    ``decode(outputs, bundle)`` as inspect.decode.decode (handed in: this room does not know that one).
    Raises BundleError when the graph breaks the contract or INT8 leaves the float model by more than 0.05."""
    problems = lint(model)
    if problems:
        raise BundleError(f"{folder}: " + "; ".join(problems[:6]))
    if len(golden_frames) < LEAST_CASES:
        raise BundleError(f"{folder}: {len(golden_frames)} golden frames, at least {LEAST_CASES} are needed")
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / "model.onnx"))
    whole = {"schema": 1, "precision": "int8" if quantised(model) else "float32", **meta, "files": {}}
    draft = Bundle.model_validate(whole)
    cases = [_case(frame, pixel, draft) for frame in golden_frames]
    reference = _scores(float_model(model), cases, draft, decode)
    own = _scores(model, cases, draft, decode)
    difference = float(np.abs(reference[1] - own[1]).max())
    if difference > WORST_TOLERANCE:
        raise BundleError(f"{folder}: INT8 differs from float by {difference:.3f} on a golden vector; at most {WORST_TOLERANCE}")
    write_golden(
        folder / "golden.npz", frame=np.stack(golden_frames), input=np.stack(cases), output=reference[0],
        score=reference[1], pixel=pixel, tolerance=min(WORST_TOLERANCE, max(_LEAST_TOLERANCE, 2 * difference)),
    )  # fmt: skip
    whole["files"] = {name: file_digest(folder / name) for name in ("model.onnx", "golden.npz")}
    text = yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=110)
    (folder / "model.yaml").write_text(text, encoding="utf-8")
    return load_bundle(folder)


def _case(pixels: npt.NDArray[np.uint8], pixel: str, bundle: Bundle) -> npt.NDArray[np.float32]:
    frame = frame_of(pixels, pixel)
    flat = np.ascontiguousarray(pixels).ravel()
    return prepare(flat, frame.size, frame.pitch_bytes, pixel, None, bundle.input).tensor


def _scores(model: onnx.ModelProto, cases: list[npt.NDArray[np.float32]], bundle: Bundle, decode: Any) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    outputs, scores = [], []
    for case in cases:
        raw = session.run(None, {bundle.input.tensor: case[None]})
        outputs.append(raw[0].reshape(-1))
        found, score_map = decode(dict(zip(names, raw)), bundle)
        findings = Findings(bundle.task, found, score_map, None, np.zeros(256, np.int64), 0, 0.0, 0.0, 0.0)
        scores.append(part_score(findings, bundle))
    return np.stack(outputs), np.array(scores, np.float32)
