"""What judges on this machine, and the memory in which it wants the cameras' frames. Knows devices/ by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from appliance.model.bundle import Bundle
from appliance.model.preprocess import NO_GAINS, Gains
from appliance.ports import EngineError, FrameMemory

if TYPE_CHECKING:
    from appliance.devices.cuda import GpuFacts
    from appliance.wiring.engines import Builder, Site

_PACKAGE = Path(__file__).resolve().parents[1]
# Beside their source on a box, where the package's build puts them; in the tree where ./build.sh kernels leaves them.
KERNEL_FOLDERS = (_PACKAGE / "kernels" / "images", _PACKAGE.parent / "build" / "kernels")
Progress = Callable[[str, float], None]


class Machine(Protocol):
    """Makes networks for the thread that made it; that thread alone uses them."""

    memory: FrameMemory
    told: list[str]
    """What a person should know of the engines that were made."""
    power_modes: set[str]
    """In which they were built; empty for those that are not built here."""

    def network(self, bundle: Bundle, white_balance: Gains, progress: Progress) -> Any:
        """A ports.Network that is Replayable. Raises BundleError, EngineError in words."""
        ...

    def close(self) -> None: ...


class CpuMachine:
    """This computer's processor."""

    def __init__(self) -> None:
        from appliance.devices.memory_plain import PlainMemory

        self.memory: FrameMemory = PlainMemory()
        self.told: list[str] = []
        self.power_modes: set[str] = set()

    def network(self, bundle: Bundle, white_balance: Gains = NO_GAINS, progress: Progress | None = None) -> Any:
        """onnxruntime, or OpenVINO where it is faster and installed."""
        from appliance.wiring.models import cpu_network

        if bundle.runtime != "onnx":
            raise EngineError(f"{bundle.folder}: runtime: {bundle.runtime} needs a Jetson; write engine: cuda there")
        return cpu_network(bundle, white_balance)

    def close(self) -> None:
        """Nothing is held but memory."""
        self.memory.close()


class GpuMachine:
    """TensorRT on this module's GPU, in the thread that makes it."""

    def __init__(self, data_dir: Path, site: Site, build: Builder | None = None) -> None:
        """``data_dir``: where engines are kept; ``site``: the GPU, opened in this thread; ``build`` None: in a child."""
        self._data_dir, self._site, self._build = data_dir, site, build
        self.memory: FrameMemory = self._site.gpu.memory()
        self.told: list[str] = []
        self.power_modes: set[str] = set()

    def network(self, bundle: Bundle, white_balance: Gains, progress: Progress) -> Any:
        """The engine that may run (licensed INT8, else float16), built first where it is missing; measured again."""
        from appliance.wiring.engines import ensure_engine, start_network

        if bundle.runtime == "jetson-inference":
            from appliance.wiring.jetson_inference import jetson_inference_network

            return jetson_inference_network(bundle, white_balance)
        ready = ensure_engine(bundle, self._site.here, self._data_dir, progress, self._build)
        network, slower = start_network(self._site, bundle, ready, white_balance)
        if ready.figures.power_mode is not None:
            self.power_modes.add(ready.figures.power_mode)
        self.told += [f"{bundle.name}: {text}" for text in (*ready.told, *((slower,) if slower else ()))]
        return network

    def close(self) -> None:
        """After its networks."""
        self.memory.close()
        self._site.close()


def open_gpu_site(folders: Sequence[Path] = KERNEL_FOLDERS) -> Site:
    """The GPU of this process, with the kernels for it. Raises EngineError in words."""
    from appliance.wiring.engines import open_site

    return open_site(partial(kernels_for, folders))


def kernels_for(folders: Sequence[Path], facts: GpuFacts) -> bytes:
    """The image of the preprocess kernels for this GPU and driver. Raises EngineError in words."""
    from appliance.model.kernel_images import KernelImageMissing, check_sources, find_image

    try:
        image = find_image(folders, facts.driver_version, facts.capability)
        check_sources(image, _PACKAGE / "kernels")
        return image.read_bytes()
    except (KernelImageMissing, OSError) as why:
        raise EngineError(str(why)) from why


def on_the_gpu(choice: str, root: Path = Path("/")) -> bool:
    """Whether the GPU judges: where it is named, and on every Jetson that does not name the CPU."""
    from appliance.box.jetson import read_facts

    return choice == "cuda" or (choice == "auto" and read_facts(root).l4t is not None)


def machine_of(choice: str, data_dir: Path | None, root: Path = Path("/")) -> Machine:
    """``choice``: the station's ``engine``. On a Jetson a missing part of the GPU's is told and not passed over: a CPU
    that answers late would reject every part. Raises EngineError in words."""
    if not on_the_gpu(choice, root):
        return CpuMachine()
    if data_dir is None:
        raise EngineError("engines are kept in the data folder, and none is named")
    return GpuMachine(data_dir, open_gpu_site())
