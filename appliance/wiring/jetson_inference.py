"""jetson-inference's own FP16 networks as an engine of a bundle, and what it cannot do, in words. Knows devices/ by name."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from appliance.inspect.decode import activate
from appliance.model.bundle import Bundle
from appliance.model.preprocess import NO_GAINS, Gains
from appliance.model.preprocess_cv2 import FastPreprocess
from appliance.ports import EngineError


def facts_of(bundle: Bundle, tensorrt: str) -> Any:
    """``tensorrt``: its full version, empty where there is none."""
    from appliance.devices.network_jetson_inference import BundleFacts

    output = bundle.output
    return BundleFacts(
        task=bundle.task, model=bundle.onnx, labels=bundle.labels, classes=bundle.classes, input_name=bundle.input.tensor,
        outputs=tuple(filter(None, (output.tensor, output.score, output.map))), size=bundle.input.size,
        channels=bundle.input.channels, mean=bundle.input.mean, std=bundle.input.std, fit=bundle.input.fit,
        quantized=bundle.precision == "int8", folder_writable=os.access(bundle.folder, os.W_OK), tensorrt=tensorrt,
    )  # fmt: skip


def remarks(bundle: Bundle) -> list[str]:
    """What `appliance check` tells of a bundle that runs so: what rules it out here, and its limits anywhere."""
    from appliance.devices.engine_tensorrt import version
    from appliance.devices.network_jetson_inference import limits_of

    found = []
    try:
        tensorrt = version()
    except EngineError as why:
        tensorrt = ""
        found.append(f"{why}: jetson-inference needs it")
    return [f"bundle {bundle.name} on jetson-inference: {one}" for one in (*found, *limits_of(facts_of(bundle, tensorrt)))]


def jetson_inference_network(bundle: Bundle, white_balance: Gains = NO_GAINS) -> Any:
    """A ports.Network. Raises EngineError: refused, or not loaded; a first load takes minutes."""
    from appliance.devices.engine_tensorrt import version
    from appliance.devices.network_jetson_inference import JetsonInferenceNetwork

    if tuple(white_balance) != NO_GAINS:
        raise EngineError(f"{bundle.name}: jetson-inference takes pixels as they are; leave white_balance out, or use our engine")
    return JetsonInferenceNetwork(
        facts_of(bundle, version()), {"name": bundle.name, "digest": bundle.digest},
        FastPreprocess(bundle.input), partial(activate, activation=bundle.output.activation),
    )  # fmt: skip
