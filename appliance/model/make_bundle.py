"""Writes a bundle: ONNX, golden vectors made with the float model, digests, model.yaml. For workstations; needs onnx."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import yaml

from appliance.model.bundle import (
    GOLDEN_FILE,
    MODEL_FILE,
    ONNX_FILE,
    Bundle,
    BundleError,
    file_digest,
    load_bundle,
    parse,
)  # fmt: skip
from appliance.model.golden import LEAST_CASES, WORST_TOLERANCE, frame_of, part_score, write_golden
from appliance.model.graph import float_model, lint, quantised
from appliance.model.preprocess import prepare
from appliance.ports import Counted, Findings

_LEAST_TOLERANCE = 0.01  # engines sum in other orders; a score is judged to the hundredth
_NO_DIGEST = "sha256:" + "0" * 64
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Outputs = dict[str, F32]
# A model made ready to run: input name and tensor (1, C, H, W) -> outputs by name.
Runner = Callable[[str, F32], Outputs]
Decode = Callable[[Mapping[str, F32], Bundle], tuple[F32, U8 | None]]


def write_bundle(
    folder: Path, model: onnx.ModelProto, meta: dict[str, Any], golden_frames: Sequence[U8], pixel: str,
    decode: Decode, engine: Callable[[bytes], Runner] | None = None,
) -> Bundle:  # fmt: skip
    """A bundle in ``folder``. ``meta``: model.yaml without schema, precision, files. ``golden_frames``: uint8 (h, w) or
    (h, w, 3) of one size, as ``pixel`` (mono8, rgb8, bgr8), cut to the ROI; good ones and bad ones.

    ``decode`` is inspect.decode.decode and ``engine`` makes a model ready to run (onnxruntime): handed in, for this room
    knows neither; wiring.models.write_bundle does. Without ``engine`` onnx's own, slow evaluator runs.
    Raises BundleError when the graph breaks the contract, when INT8 leaves the float model by more than 0.05 on a
    golden frame, or when meta is not valid."""
    problems = lint(model)
    if problems:
        raise BundleError(f"{folder}: the model breaks the bundle's rules: " + "; ".join(problems[:6]))
    _check_frames(folder, golden_frames, pixel)
    whole = {"schema": 1, "precision": "int8" if quantised(model) else "float32", **meta}
    draft = parse(_yaml({**whole, "files": {ONNX_FILE: _NO_DIGEST, GOLDEN_FILE: _NO_DIGEST}}), folder / MODEL_FILE)
    cases = [_case(frame, pixel, draft) for frame in golden_frames]
    engine = engine or _onnx_evaluator
    reference, score = _answers(engine(float_model(model).SerializeToString()), cases, draft, decode)
    own_output, own = _answers(engine(model.SerializeToString()), cases, draft, decode)
    apart = float(np.abs(score - own).max())
    if not apart <= WORST_TOLERANCE:
        raise BundleError(
            f"{folder}: INT8 differs from float by {apart:.3f} on a golden frame, at most {WORST_TOLERANCE} is allowed; "
            "calibrate on more images, or leave the worst layer in float"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / ONNX_FILE, lambda path: onnx.save(model, str(path)))
    _replace(
        folder / GOLDEN_FILE,
        lambda path: write_golden(
            path, frame=np.stack(golden_frames), input=np.stack(cases), output=reference, score=score, pixel=pixel,
            tolerance=min(WORST_TOLERANCE, max(_LEAST_TOLERANCE, 2 * apart)),
            output_tolerance=max(1e-3, 2 * float(np.abs(reference - own_output).max())),
        ),
    )  # fmt: skip
    whole["files"] = {name: file_digest(folder / name) for name in (ONNX_FILE, GOLDEN_FILE)}
    _replace(folder / MODEL_FILE, lambda path: path.write_bytes(_yaml(whole)))
    return load_bundle(folder)


def _check_frames(folder: Path, frames: Sequence[U8], pixel: str) -> None:
    if len(frames) < LEAST_CASES:
        raise BundleError(f"{folder}: {len(frames)} golden frames, at least {LEAST_CASES} are needed")
    if pixel not in ("mono8", "rgb8", "bgr8"):
        raise BundleError(f"{folder}: golden frames of {pixel}; give them as mono8, rgb8 or bgr8")
    shapes = {frame.shape for frame in frames}
    if len(shapes) != 1 or any(frame.dtype != np.uint8 for frame in frames):
        raise BundleError(f"{folder}: golden frames are not all uint8 of one size: {sorted(shapes)}")
    if (len(shapes.pop()) == 3) != (pixel != "mono8"):
        raise BundleError(f"{folder}: golden frames do not have the channels of {pixel}")


def _case(pixels: U8, pixel: str, bundle: Bundle) -> F32:
    frame = frame_of(pixels, pixel)
    memory = np.frombuffer(frame.memory, np.uint8)
    return prepare(memory, frame.size, frame.pitch_bytes, pixel, None, bundle.input).tensor


def _answers(run: Runner, cases: list[F32], bundle: Bundle, decode: Decode) -> tuple[F32, F32]:
    """(main output (N, values), part scores (N,)). Raises BundleError when a score is no number."""
    main = bundle.output.tensor or bundle.output.score or bundle.output.map or ""
    outputs, scores = [], []
    for case in cases:
        raw = run(bundle.input.tensor, np.ascontiguousarray(case[None]))
        if main not in raw:
            raise BundleError(f"{bundle.name}: the model has no output {main}, only {', '.join(raw)}; correct the output section")
        outputs.append(raw[main].reshape(-1).copy())
        found, score_map = decode(raw, bundle)
        findings = Findings(bundle.task, found, score_map, None, Counted(np.zeros(256, np.int64), 0, 0.0), 0.0, 0.0)
        scores.append(part_score(findings, bundle))
    result = np.array(scores, np.float32)
    if not np.isfinite(result).all():
        raise BundleError(f"{bundle.name}: the model gives scores that are no numbers; train or quantise it anew")
    return np.stack(outputs), result


def _onnx_evaluator(model: bytes) -> Runner:
    """onnx's own evaluator. It has no Q and DQ of opset 17: the graph's rules (int8, zero point 0) make them short."""
    from onnx.reference import ReferenceEvaluator  # pulls in every operator, and teaching on the box never comes here
    from onnx.reference.op_run import OpRun

    class QuantizeLinear(OpRun):
        def _run(self, x: F32, scale: F32, zero: Any, axis: int = 1, **later: Any) -> tuple[Any]:
            return (np.clip(np.rint(x / _along(scale, x, axis)), -128, 127).astype(np.int8),)

    class DequantizeLinear(OpRun):
        def _run(self, x: Any, scale: F32, zero: Any, axis: int = 1, **later: Any) -> tuple[Any]:
            return (x.astype(np.float32) * _along(scale, x, axis),)

    evaluator = ReferenceEvaluator(onnx.load_from_string(model), new_ops=[QuantizeLinear, DequantizeLinear])

    def run(name: str, tensor: F32) -> Outputs:
        return dict(zip(evaluator.output_names, evaluator.run(None, {name: tensor})))

    return run


def _along(scale: F32, values: npt.NDArray[Any], axis: int) -> F32:
    """A scale per channel, in the shape that multiplies ``values``."""
    return scale if scale.ndim == 0 else scale.reshape([-1 if at == axis else 1 for at in range(values.ndim)])


def _yaml(content: dict[str, Any]) -> bytes:
    return yaml.dump(_plain(content), Dumper=_NoAliases, sort_keys=False, allow_unicode=True, width=110).encode()


class _NoAliases(yaml.SafeDumper):
    """Writes a value out wherever it stands: the reader refuses anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _plain(value: Any) -> Any:
    """numpy's numbers and tuples as YAML's own."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Written whole under another name first: whoever reads meanwhile sees the old file or the new one."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
