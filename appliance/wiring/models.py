"""From a bundle to a network that runs here: preprocess, engine and decode put together. Knows devices/ by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import numpy.typing as npt

from appliance.clock import now_ns
from appliance.devices import engine_openvino
from appliance.devices.engine_openvino import OpenVinoEngine
from appliance.devices.network_cpu import CpuNetwork, Engine, InferenceEngine
from appliance.inspect import offline
from appliance.inspect.decode import decode
from appliance.model.bundle import Bundle, BundleError
from appliance.model.preprocess import NO_GAINS, Gains
from appliance.model.preprocess_cv2 import FastPreprocess
from appliance.ports import EngineError

if TYPE_CHECKING:  # onnx is for workstations and teaching
    import onnx

log = logging.getLogger("appliance.model")
_LEAST_TURNS, _MOST_TURNS, _TRIAL_NS = 5, 40, 400_000_000


def cpu_network(bundle: Bundle, white_balance: Gains = NO_GAINS) -> CpuNetwork:
    """The bundle on this computer's CPU, for one camera. Raises BundleError in words."""
    try:
        engine, why = cpu_engine(bundle.onnx.read_bytes(), str(bundle.onnx))
    except OSError as why_not:
        raise BundleError(f"{bundle.onnx}: cannot be read ({why_not.strerror}); copy the bundle anew") from why_not
    except EngineError as why_not:
        raise BundleError(str(why_not)) from why_not
    network = network_on(bundle, engine, why, white_balance)
    log.info("%s runs on %s: %s", bundle.name, engine.version, why)
    return network


def network_on(bundle: Bundle, engine: InferenceEngine, why: str, white_balance: Gains = NO_GAINS) -> CpuNetwork:
    """The bundle on an engine that is ready. Raises BundleError when the engine's tensors are not model.yaml's."""
    width, height = bundle.input.size
    try:
        network = CpuNetwork(
            engine=engine,
            why=why,
            what=str(bundle.onnx),
            identity={"name": bundle.name, "digest": bundle.digest, "precision": bundle.precision},
            task=bundle.task,
            input_name=bundle.input.tensor,
            input_shape=(1, bundle.input.channels, height, width),
            prepare=FastPreprocess(bundle.input, white_balance),
            decode=partial(decode, bundle=bundle),
        )
    except EngineError as why_not:
        raise BundleError(str(why_not)) from why_not
    _check_outputs(network, bundle)
    return network


def cpu_engine(onnx: bytes, what: str) -> tuple[InferenceEngine, str]:
    """The engine for a bundle's file on this CPU, and why this one. ``what`` names the file in errors.

    onnxruntime runs the graph rewritten (model.cpu_graph). OpenVINO takes over, where it is installed, what stays in
    float there, and else whatever it is measured to run faster. Raises EngineError."""
    rewritten, left = _for_onnxruntime(onnx)
    if rewritten is None:
        return Engine(onnx, what), "the graph is float"
    if not engine_openvino.installed():
        told = "OpenVINO is not installed" + (f"; {_in_float(left)}" if left else "")
        return Engine(rewritten, what), told
    try:
        openvino = OpenVinoEngine(onnx, what)
    except EngineError as why_not:
        log.warning("%s", why_not)
        return Engine(rewritten, what), f"OpenVINO is installed and failed: {why_not}"
    if left:
        return openvino, _in_float(left)
    return _faster(Engine(rewritten, what), openvino)


def _for_onnxruntime(onnx: bytes) -> tuple[bytes | None, tuple[str, ...]]:
    """(The file rewritten, what it leaves in float); None for a float graph, and for what is no graph at all: onnxruntime
    says so in its own words."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import load_from_string

    from appliance.model.cpu_graph import cpu_graph
    from appliance.model.graph import quantised

    try:
        model = load_from_string(onnx)
    except DecodeError:
        return None, ()
    if not quantised(model):
        return None, ()
    made = cpu_graph(model)
    return made.model.SerializeToString(), made.left


def _in_float(left: tuple[str, ...]) -> str:
    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
    return f"in onnxruntime it would stay in float here and there ({left[0]}{more})"


def _faster(onnxruntime: Engine, openvino: OpenVinoEngine) -> tuple[InferenceEngine, str]:
    """Which of two is the faster depends on the processor: each runs in turn, the quickest run of each counts."""
    engines: tuple[InferenceEngine, ...] = (onnxruntime, openvino)
    ((name, shape),) = onnxruntime.inputs.items()
    tensor = np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)
    quickest_ns = [2**62] * len(engines)
    end_ns = now_ns() + _TRIAL_NS
    turns = 0
    while turns < _LEAST_TURNS or (turns < _MOST_TURNS and now_ns() < end_ns):
        turns += 1
        for index, engine in enumerate(engines):
            begun_ns = now_ns()
            engine.run(name, tensor)
            quickest_ns[index] = min(quickest_ns[index], now_ns() - begun_ns)
    figures = ", ".join(f"{engine.version} {ns / 1e6:.2f} ms" for engine, ns in zip(engines, quickest_ns))
    keep = quickest_ns.index(min(quickest_ns))
    engines[1 - keep].close()
    return engines[keep], f"the faster of two at the start: {figures} a picture"


def write_bundle(
    folder: Path, model: onnx.ModelProto, meta: dict[str, Any], golden_frames: Sequence[npt.NDArray[np.uint8]], pixel: str
) -> Bundle:
    """make_bundle.write_bundle with the product's decode, and onnxruntime as the engine."""
    from appliance.model import make_bundle  # needs onnx

    return make_bundle.write_bundle(folder, model, meta, golden_frames, pixel, decode, lambda raw: Engine(raw, str(folder)).run)


def inspect_paths(
    bundle_dir: Path, recipe_file: Path | None, paths: Sequence[Path], out: TextIO, json_file: Path | None,
    errors: TextIO | None = None,
) -> int:  # fmt: skip
    """``appliance inspect``: see inspect.offline, which is handed the network here."""
    return offline.inspect_paths(bundle_dir, recipe_file, paths, out, json_file, cpu_network, errors)


def _check_outputs(network: CpuNetwork, bundle: Bundle) -> None:
    """Do the tensors that model.yaml names exist, in a shape that decode understands?"""
    output, found = bundle.output, network.outputs
    for name in filter(None, (output.tensor, output.score, output.map)):
        if name not in found:
            raise BundleError(f"{bundle.onnx} has no output {name}, only {', '.join(found)}; correct output in model.yaml")
        if not all(isinstance(side, int) for side in found[name]):
            raise BundleError(f"{bundle.onnx}: output {name} has no fixed size {list(found[name])}; make the bundle anew")
    if bundle.task == "classify" and int(np.prod(found[output.tensor or ""])) != len(bundle.classes):
        given = list(found[output.tensor or ""])
        raise BundleError(f"{bundle.onnx}: output {output.tensor} is {given}, model.yaml has {len(bundle.classes)} classes")
    if output.map and (len(found[output.map]) < 2 or int(np.prod(found[output.map][:-2])) != 1):
        raise BundleError(f"{bundle.onnx}: output {output.map} is {list(found[output.map])}, a map is (1, 1, height, width)")
