"""From a bundle to a network that runs here: preprocess, engine and decode put together. Knows devices/ by name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import numpy.typing as npt

from appliance.devices.network_cpu import CpuNetwork, Engine
from appliance.inspect import offline
from appliance.inspect.decode import decode
from appliance.model.bundle import Bundle, BundleError
from appliance.model.preprocess import NO_GAINS, Gains
from appliance.model.preprocess_cv2 import FastPreprocess
from appliance.ports import EngineError

if TYPE_CHECKING:  # onnx is for workstations and teaching
    import onnx


def cpu_network(bundle: Bundle, white_balance: Gains = NO_GAINS) -> CpuNetwork:
    """The bundle on onnxruntime, for one camera. Raises BundleError in words."""
    width, height = bundle.input.size
    try:
        network = CpuNetwork(
            onnx=bundle.onnx.read_bytes(),
            what=str(bundle.onnx),
            identity={"name": bundle.name, "digest": bundle.digest, "precision": bundle.precision},
            task=bundle.task,
            input_name=bundle.input.tensor,
            input_shape=(1, bundle.input.channels, height, width),
            prepare=FastPreprocess(bundle.input, white_balance),
            decode=partial(decode, bundle=bundle),
        )
    except OSError as why:
        raise BundleError(f"{bundle.onnx}: cannot be read ({why.strerror}); copy the bundle anew") from why
    except EngineError as why:
        raise BundleError(str(why)) from why
    _check_outputs(network, bundle)
    return network


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
