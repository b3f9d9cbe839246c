"""What judges on this machine, and the memory in which it wants the cameras' frames. Knows devices/ by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from appliance.model.bundle import Bundle
from appliance.model.preprocess import NO_GAINS, Gains
from appliance.ports import FrameMemory

Progress = Callable[[str, float], None]


class Machine(Protocol):
    """Makes networks for the thread that made it; that thread alone uses them."""

    memory: FrameMemory

    def network(self, bundle: Bundle, white_balance: Gains, progress: Progress) -> Any:
        """A ports.Network that is Replayable. Raises BundleError, EngineError in words."""
        ...

    def close(self) -> None: ...


class CpuMachine:
    """This computer's processor."""

    def __init__(self) -> None:
        from appliance.devices.memory_plain import PlainMemory

        self.memory: FrameMemory = PlainMemory()

    def network(self, bundle: Bundle, white_balance: Gains = NO_GAINS, progress: Progress | None = None) -> Any:
        """onnxruntime, or OpenVINO where it is faster and installed."""
        from appliance.wiring_models import cpu_network

        return cpu_network(bundle, white_balance)

    def close(self) -> None:
        """Nothing is held but memory."""
        self.memory.close()


def machine_of(choice: str, data_dir: Path | None) -> Machine:
    """``choice``: the station's ``engine``. ``data_dir``: where engines are kept. Raises EngineError in words."""
    return CpuMachine()
