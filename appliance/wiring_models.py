"""From a bundle to a network that runs here: preprocess, engine and decode put together. Knows devices/ by name."""

from __future__ import annotations

from functools import partial

from appliance.devices.network_cpu import CpuNetwork
from appliance.inspect.decode import decode
from appliance.model.bundle import Bundle, BundleError
from appliance.model.preprocess_cv2 import prepare_cv2
from appliance.ports import EngineError


def cpu_network(bundle: Bundle) -> CpuNetwork:
    """The bundle on onnxruntime. Raises BundleError in words."""
    width, height = bundle.input.size
    try:
        return CpuNetwork(
            onnx=bundle.onnx.read_bytes(),
            what=str(bundle.onnx),
            identity={"name": bundle.name, "digest": bundle.digest, "precision": bundle.precision},
            task=bundle.task,
            input_name=bundle.input.tensor,
            input_shape=(1, bundle.input.channels, height, width),
            prepare=partial(_prepare, bundle),
            decode=partial(decode, bundle=bundle),
        )
    except EngineError as why:
        raise BundleError(str(why)) from why


def _prepare(bundle: Bundle, memory, size, pitch, pixel, roi):  # type: ignore[no-untyped-def]
    return prepare_cv2(memory, size, pitch, pixel, roi, bundle.input)
