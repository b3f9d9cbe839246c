"""One rig for each engine behind the network's port: makes the network of a bundle, and memory that it reads."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
import pytest

from appliance.devices.engine_openvino import OpenVinoEngine
from appliance.devices.memory_plain import PlainMemory
from appliance.devices.network_cpu import Engine
from appliance.devices.network_jetson_inference import JetsonInferenceNetwork
from appliance.inspect.decode import activate
from appliance.model.bundle import Bundle
from appliance.model.preprocess_cv2 import FastPreprocess
from appliance.ports import FrameMemory
from appliance.wiring.jetson_inference import facts_of
from appliance.wiring.machine import GpuMachine
from appliance.wiring.models import network_on
from tests.fakes.fake_jetson_inference import Zoo
from tests.fakes.fake_jetson_utils import World
from tests.kernels.host_library import host_library
from tests.wiring.test_engines import VERSIONS, Box

OPENVINO = Path(__file__).resolve().parents[2] / ".venv/bench/openvino"  # where ./build.sh bench cpu puts it


class NetworkRig(Protocol):
    """``pixels``: the formats that this engine reads."""

    network: Any
    pixels: tuple[str, ...]

    def place(self, rows: np.ndarray) -> tuple[memoryview, int]:
        """The bytes in memory that the network reads where they lie, and where a device finds them (0: none does)."""
        ...


class PlainRig:
    """Plain memory, an engine on the CPU, or on the GPU's stand-in."""

    pixels = ("rgb8", "bgr8", "mono8", "yuyv", "nv12/limited", "bayer_rggb8", "mono12")

    def __init__(self, network: Any, memory: FrameMemory) -> None:
        self.network, self._memory = network, memory

    def place(self, rows: np.ndarray) -> tuple[memoryview, int]:
        (buffer,) = self._memory.allocate(rows.size, 1)
        np.frombuffer(buffer.memory, np.uint8)[: rows.size] = rows
        return buffer.memory[: rows.size], buffer.address


class ZooRig:
    """jetson-inference's stand-in, which runs the bundle's graph."""

    pixels = ("rgb8",)

    def __init__(self, network: Any, world: World) -> None:
        self.network, self._world, self._kept = network, world, list[Any]()

    def place(self, rows: np.ndarray) -> tuple[memoryview, int]:
        block = self._world.allocate(rows.size)
        block.view[:] = rows
        self._kept.append(block)
        return memoryview(block.raw).cast("B"), block.address


@contextmanager
def _onnxruntime(bundle: Bundle, folder: Path) -> Iterator[NetworkRig]:
    network = network_on(bundle, Engine(bundle.onnx.read_bytes(), "tiny"), "the contract's")
    yield PlainRig(network, PlainMemory())
    network.close()


@contextmanager
def _openvino(bundle: Bundle, folder: Path) -> Iterator[NetworkRig]:
    if importlib.util.find_spec("openvino") is None and not OPENVINO.is_dir():
        pytest.skip("OpenVINO is not installed; ./build.sh bench cpu installs it")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(OPENVINO))
        network = network_on(bundle, OpenVinoEngine(bundle.onnx.read_bytes(), "tiny"), "the contract's")
        yield PlainRig(network, PlainMemory())
        network.close()


@contextmanager
def _tensorrt(version: str, bundle: Bundle, folder: Path) -> Iterator[NetworkRig]:
    box = Box(folder, version)
    with box.site(host_library()) as site:
        machine = GpuMachine(box.data, site, box.build)
        network = machine.network(bundle, (1.0, 1.0, 1.0), lambda what, share: None)
        yield PlainRig(network, machine.memory)
        network.close()
        machine.memory.close()


@contextmanager
def _jetson_inference(bundle: Bundle, folder: Path) -> Iterator[NetworkRig]:
    world = World()
    zoo = Zoo(world, bundle.input.size)
    model = shutil.copytree(bundle.folder, folder / "own")
    (model / "labels.txt").write_text("\n".join(bundle.classes) + "\n")
    session = onnxruntime.InferenceSession(bundle.onnx.read_bytes(), providers=["CPUExecutionProvider"])

    def answer(tensor: np.ndarray) -> list[float]:
        given = tensor.reshape(1, 3, *bundle.input.size[::-1]).astype(np.float32)
        return list(map(float, session.run(None, {bundle.input.tensor: given})[0][0]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "jetson_utils", world.utils())
        patch.setitem(sys.modules, "jetson_inference", zoo.inference())
        facts = replace(facts_of(bundle, "8.6.2"), model=model / "model.onnx", labels=model / "labels.txt")
        zoo.answers[str(facts.model)] = answer
        network = JetsonInferenceNetwork(
            facts, {"name": bundle.name, "digest": bundle.digest}, FastPreprocess(bundle.input),
            partial(activate, activation=bundle.output.activation),
        )  # fmt: skip
        yield ZooRig(network, world)
        network.close()


RIGS: dict[str, Callable[[Bundle, Path], Any]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    **{f"tensorrt-{version}": partial(_tensorrt, version) for version in VERSIONS},
    "jetson-inference": _jetson_inference,
}
