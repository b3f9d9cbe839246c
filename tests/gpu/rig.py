"""The GPU of this machine with our kernels loaded, and networks on it whose engine is a torch module."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from appliance.clock import now_ns
from appliance.devices.cuda import Cuda, driver
from appliance.devices.network_cuda import CudaNetwork, Structs, Wanted
from appliance.model import pixels
from appliance.model.bundle import InputSpec
from appliance.model.kernel_images import KernelImageMissing, check_sources, find_image
from appliance.model.kernel_plan import ExtremesStruct, FrameStruct, SumsStruct, kernel_plan
from appliance.ports import Frame, FrameBuffer
from tests.gpu.torch_engine import TorchEngine

PROJECT = Path(__file__).resolve().parents[2]
NEVER_NS = 2**62
CLASSES = 8


def missing() -> str:
    """Why nothing of this can run here, in a few words; empty when all of it can."""
    found = driver()
    if found is None:
        return "no GPU"
    for name in ("pycuda", "torch"):
        if importlib.util.find_spec(name) is None:
            return f"no {name}"
    return ""


def open_gpu() -> Cuda:
    """In the thread that uses it. Raises EngineError, KernelImageMissing."""
    gpu = Cuda.open()
    try:
        image = find_image([PROJECT / "build" / "kernels"], gpu.facts.driver_version, gpu.facts.capability)
        check_sources(image, PROJECT / "appliance" / "kernels")
    except KernelImageMissing:
        gpu.close()
        raise
    gpu.load_kernels(image.read_bytes())
    return gpu


def network(gpu: Cuda, spec: InputSpec, make: Any, classes: int = CLASSES) -> CudaNetwork:
    """Preprocess by our kernels for ``spec``, then the torch module that ``make`` gives."""
    shape = (1, spec.channels, spec.size[1], spec.size[0])
    engine = TorchEngine(make, shape, (1, classes), gpu.stream)
    return CudaNetwork(
        gpu=gpu, engine=engine, identity={"name": "gpu", "digest": "", "precision": "float32"}, task="classify",
        input_name="image", input_shape=shape, wanted=Wanted(("scores",)), plan_for=partial(kernel_plan, spec=spec),
        check=pixels.checked_rows, decode=lambda found, worst, shares: (found["scores"][0], None),
        structs=Structs(FrameStruct, SumsStruct, ExtremesStruct),
    )  # fmt: skip


def spec_of(size: tuple[int, int], channels: int, fit: str = "stretch") -> InputSpec:
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if channels == 3 else ((0.5,), (0.25,))
    return InputSpec(tensor="image", size=size, channels=channels, fit=fit, mean=mean, std=std)  # type: ignore[arg-type]


def filled(buffer: FrameBuffer, pixel: str, size: tuple[int, int], pitch: int, seed: int) -> np.ndarray:
    """Noise and a slope, written where the camera would write it; returns what was written."""
    used = pixels.frame_bytes(pixel, *size, pitch)
    rng = np.random.default_rng(seed)
    noise, slope = rng.integers(0, 256, used, dtype=np.uint8), np.linspace(0, 200, used).astype(np.uint8)
    content = np.where(rng.random(used) < 0.5, noise, slope).astype(np.uint8)
    np.frombuffer(buffer.memory, np.uint8)[:used] = content
    return content


def frame_in(buffer: FrameBuffer, pixel: str, size: tuple[int, int], pitch: int, sequence: int = 1, camera: bool = True) -> Frame:
    """``camera`` False: as a golden vector comes, whose tensors are kept."""
    used = pixels.frame_bytes(pixel, *size, pitch)
    arrived_ns = now_ns() if camera else 0
    return Frame(buffer.memory[:used], buffer.address, pitch, size, pixel, sequence, arrived_ns, arrived_ns, lambda: None)
