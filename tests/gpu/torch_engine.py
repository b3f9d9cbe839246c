"""A DeviceEngine where TensorRT cannot be had: a torch module with seeded weights, on our stream, at the addresses bound."""

from __future__ import annotations

import math
from typing import Any

from appliance.ports import EngineError


class TorchEngine:
    """``make(torch) -> module``: float32 (1, C, H, W) in, one float32 tensor out. Torch lives in the primary context too."""

    def __init__(self, make: Any, input_shape: tuple[int, ...], output_shape: tuple[int, ...], stream: int) -> None:
        """``stream``: the handle that ``enqueue`` will be given. Raises EngineError where there is no torch with CUDA."""
        try:
            import torch
        except ImportError as why:
            raise EngineError(f"neither TensorRT nor torch is on this machine ({why})") from why
        if not torch.cuda.is_available():
            raise EngineError("the torch on this machine has no CUDA")
        self._torch = torch
        self.version = f"torch-{torch.__version__}"
        self.inputs, self.outputs = {"image": input_shape}, {"scores": output_shape}
        torch.manual_seed(0)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        self._module = make(torch).cuda().eval()
        self._stream = torch.cuda.ExternalStream(stream)
        self._bound: dict[str, Any] = {}

    def bind(self, name: str, address: int) -> None:
        """A view of device memory that torch did not allocate."""
        shape = {**self.inputs, **self.outputs}[name]
        self._bound[name] = self._torch.as_tensor(_Memory(address, shape), device="cuda")

    def enqueue(self, stream: int) -> None:
        """Torch's own allocator serves from its cache after the first run: nothing is allocated while a graph is captured."""
        torch = self._torch
        if stream != self._stream.cuda_stream:
            raise EngineError("another stream than the one this engine was made for")
        with torch.no_grad(), torch.cuda.stream(self._stream):
            self._bound["scores"].copy_(self._module(self._bound["image"]).reshape(self.outputs["scores"]))

    def close(self) -> None:
        """What torch cached goes back to the driver."""
        self._bound.clear()
        self._module = None
        self._torch.cuda.empty_cache()


class _Memory:
    """Device memory as torch takes it from strangers."""

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {"shape": shape, "typestr": "<f4", "data": (address, False), "version": 3}


def projection(size: tuple[int, int], channels: int, classes: int) -> Any:
    """Every input value reaches every score: any difference in the tensor shows."""

    def make(torch: Any) -> Any:
        count = channels * size[0] * size[1]
        layer = torch.nn.Linear(count, classes, bias=False)
        torch.nn.init.normal_(layer.weight, std=1 / math.sqrt(count))
        return torch.nn.Sequential(torch.nn.Flatten(), layer)

    return make


def mobile_net(channels: int, classes: int) -> Any:
    """About MobileNetV2: inverted residuals, 2.2 million weights, in float32."""

    def make(torch: Any) -> Any:
        nn = torch.nn

        class Inverted(nn.Module):
            def __init__(self, given: int, made: int, stride: int, wider: int) -> None:
                super().__init__()
                inner = given * wider
                self.skip = stride == 1 and given == made
                self.layers = nn.Sequential(
                    nn.Conv2d(given, inner, 1), nn.ReLU6(True), nn.Conv2d(inner, inner, 3, stride, 1, groups=inner),
                    nn.ReLU6(True), nn.Conv2d(inner, made, 1),
                )  # fmt: skip

            def forward(self, x: Any) -> Any:
                return x + self.layers(x) if self.skip else self.layers(x)

        layers, given = [nn.Conv2d(channels, 32, 3, 2, 1), nn.ReLU6(True)], 32
        for wider, made, times, stride in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                                           (6, 160, 3, 2), (6, 320, 1, 1)):  # fmt: skip
            for number in range(times):
                layers.append(Inverted(given, made, stride if number == 0 else 1, wider))
                given = made
        layers += [nn.Conv2d(given, 1280, 1), nn.ReLU6(True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes)]
        return nn.Sequential(*layers)

    return make
