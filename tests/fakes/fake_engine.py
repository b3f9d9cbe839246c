"""A DeviceEngine on the stand-in of the GPU: runs an ONNX file by onnxruntime at the addresses it was bound to."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import onnxruntime

from appliance.ports import EngineError
from tests.fakes.fake_libcuda import Gpu, Refused


class FakeEngine:
    """ports.DeviceEngine. It takes its workspace at the first run: one that is captured without a run before breaks."""

    version = "fake-1.0/sm87"

    def __init__(self, gpu: Gpu, onnx: bytes) -> None:
        self._gpu = gpu
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        self.inputs = {one.name: tuple(one.shape) for one in self._session.get_inputs()}
        self.outputs = {one.name: tuple(one.shape) for one in self._session.get_outputs()}
        self._bound: dict[str, int] = {}
        self._workspace = 0
        self.runs = 0
        self.fails = False

    def bind(self, name: str, address: int) -> None:
        if name not in self.inputs and name not in self.outputs:
            raise EngineError(f"the engine has no tensor {name}")
        if self._gpu.find(address, 4 * self._count(name)) is None:
            raise EngineError(f"{name} is bound to memory that the GPU does not reach")
        self._bound[name] = address

    def enqueue(self, stream: int) -> None:
        missing = [name for name in (*self.inputs, *self.outputs) if name not in self._bound]
        if missing:
            raise EngineError(f"{', '.join(missing)}: bound to no address")
        if self.fails:
            raise EngineError("enqueue gave False: the log says so")
        try:
            if self._gpu.current("enqueue") is not self._gpu.primary:
                raise Refused(400, "enqueue")  # it lives in the primary context
            if not self._workspace:
                self._workspace = self._gpu.mem_alloc(4096)
            bound = dict(self._bound)
            self._gpu.enqueue(stream, "engine", lambda: self._run(bound))
        except Refused as why:
            raise EngineError(str(why)) from why

    def close(self) -> None:
        if self._workspace:
            self._gpu.mem_free(self._workspace)
            self._workspace = 0

    def _count(self, name: str) -> int:
        return int(np.prod((self.inputs | self.outputs)[name]))

    def _at(self, name: str, address: int) -> Any:
        count = self._count(name)
        self._gpu.reach(self._gpu.primary, address, 4 * count, 4)
        return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape((self.inputs | self.outputs)[name])

    def _run(self, bound: dict[str, int]) -> None:
        self.runs += 1
        given = {name: self._at(name, bound[name]) for name in self.inputs}
        for name, result in zip(self.outputs, self._session.run(list(self.outputs), given)):
            self._at(name, bound[name])[...] = result
