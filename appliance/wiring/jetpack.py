"""What a configuration asks for and this box's JetPack does not bring: said by `appliance check`, on the box."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from appliance.config import Station

# From L4T 39 (JetPack 7.2) the compiler refuses GPUs that jetson-utils is written for, so no image holds it or
# jetson-inference; before, an image holds them where they were asked for. Named by their compiled modules: a stranger's
# package has the name jetson_utils, too.
_WITHOUT_JETSON_UTILS = 39
_BUILDS_IT = "make the image with --with-jetson-utils, or "
_UTILS, _INFERENCE = "jetson_utils_python", "jetson_inference_python"
_SCHEMES = {"csi": "name the v4l2:// node of the same sensor", "rtsp": "take a gige:// or v4l2:// camera"}


def _is_installed(module: str) -> bool:
    return find_spec(module) is not None


def not_there(
    station: Station, l4t: str | None, needs_jetson_inference: list[str], installed: Callable[[str], bool] = _is_installed
) -> list[str]:
    """One sentence each. ``l4t``: "39.2.1", None where this is no Jetson (a configuration is checked on a laptop before it
    travels, and there nobody knows); ``needs_jetson_inference``: names of bundles that run so."""
    if l4t is None:
        return []
    never = int(l4t.split(".")[0]) >= _WITHOUT_JETSON_UTILS
    lacks = f"which {'JetPack 7' if never else 'this box'} (L4T {l4t}) does not have; {'' if never else _BUILDS_IT}"
    found = [
        f"cameras.{name}.source: {camera.source.scheme}:// needs jetson-utils, {lacks}{_SCHEMES[camera.source.scheme]}"
        for name, camera in station.cameras.items()
        if camera.source.scheme in _SCHEMES and not installed(_UTILS)
    ]
    return found + [
        f"bundle {name} runs on jetson-inference, {lacks}make it a bundle of runtime: onnx, which TensorRT runs"
        for name in needs_jetson_inference
        if not installed(_INFERENCE)
    ]
