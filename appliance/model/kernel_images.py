"""The kernels' compiled images: how their files are called, and which of them a GPU can run. Pure but for ``find_image``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """``cuda``: the version that makes it; ``arch``: sm_NN for a cubin, compute_NN for PTX."""

    cuda: str
    arch: str
    says: str

    @property
    def is_cubin(self) -> bool:
        return self.arch.startswith("sm_")

    @property
    def file(self) -> str:
        return f"preprocess-cuda{self.cuda}-{self.arch}.{'cubin' if self.is_cubin else 'ptx'}"

    @property
    def least_driver(self) -> int:
        """As cuDriverGetVersion says it."""
        major, minor = self.cuda.split(".")
        return 1000 * int(major) + 10 * int(minor)

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """A cubin on its very chip, PTX on any from its own on."""
        chip = 10 * capability[0] + capability[1]
        number = int(self.arch.partition("_")[2])
        return chip == number if self.is_cubin else chip >= number


TARGETS = (
    Target("12.6", "sm_87", "Orin, JetPack 6"),
    Target("13.0", "sm_87", "Orin, JetPack 7.2"),
    Target("13.0", "sm_110", "Thor, JetPack 7.2"),
    Target("12.6", "compute_80", "any other GPU, by its driver"),
)


SOURCES_FILE = "sources.sha256"


class KernelImageMissing(Exception):
    """No image there runs on this GPU, and what to do."""


def choose_image(available: Iterable[str], driver_version: int, capability: tuple[int, int]) -> str:
    """The file name to load: a cubin before PTX, the newest that the driver can load. Raises KernelImageMissing.

    ``available``: file names; ``driver_version``: of cuDriverGetVersion, 12060 for 12.6; ``capability``: (8, 7)."""
    there = sorted(set(available))
    fitting = [target for target in TARGETS if target.runs_on(capability) and target.least_driver <= driver_version]
    found = [target for target in fitting if target.file in there]
    if not found:
        raise KernelImageMissing(_missing(there, driver_version, capability, fitting))
    return max(found, key=lambda target: (target.is_cubin, target.least_driver)).file


def find_image(folders: Iterable[Path], driver_version: int, capability: tuple[int, int]) -> Path:
    """The file to load, of all that lie in ``folders``; of two alike the first folder's. Raises KernelImageMissing."""
    files: dict[str, Path] = {}
    searched = list(folders)
    for folder in searched:
        for path in sorted(folder.glob("preprocess-*")):
            files.setdefault(path.name, path)
    try:
        return files[choose_image(files, driver_version, capability)]
    except KernelImageMissing as why:
        raise KernelImageMissing(f"{why} Looked in {', '.join(map(str, searched)) or 'no folder'}.") from None


def sources_digest(folder: Path) -> str:
    """SHA-256 over the kernels' sources in ``folder``, which images made of them carry beside them."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.cu")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def check_sources(image: Path, sources: Path) -> None:
    """Raises KernelImageMissing for an image that was made of other sources than those in the folder ``sources``: its
    structs may be others too, and golden vectors would not meet every pixel format."""
    told = image.with_name(SOURCES_FILE)
    made_of = told.read_text().strip() if told.is_file() else ""
    if made_of != sources_digest(sources):
        raise KernelImageMissing(f"{image} was made of other sources than this firmware's; make it anew (./build.sh kernels)")


def _missing(there: list[str], driver_version: int, capability: tuple[int, int], fitting: list[Target]) -> str:
    gpu = f"a GPU of compute capability {capability[0]}.{capability[1]} whose driver is for CUDA {_version(driver_version)}"
    have = f"there is {', '.join(there)}" if there else "there is none"
    if fitting:
        needed = " or ".join(target.file for target in fitting)
        return f"no kernel image for {gpu}: {have}. Make {needed} with ./build.sh kernels, on any computer, and put it there."
    too_new = [target for target in TARGETS if target.runs_on(capability)]
    if too_new:
        least = min(too_new, key=lambda target: target.least_driver)
        return f"no kernel image for {gpu}: {have}, and the oldest that fits needs CUDA {least.cuda}. Update the GPU's driver."
    return f"no kernel image for {gpu}: {have}, and none can be made for GPUs below 8.0. Set engine: cpu, or use another GPU."


def _version(driver_version: int) -> str:
    return f"{driver_version // 1000}.{driver_version % 1000 // 10}"
