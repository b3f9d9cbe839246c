"""FrameMemory of a laptop: plain numpy buffers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class NumpyMemory:
    """Buffers that only the CPU reaches."""

    def __init__(self) -> None:
        self._kept: list[npt.NDArray[np.uint8]] = []

    def allocate(self, nbytes: int, count: int) -> list[memoryview]:
        """``count`` zeroed buffers of ``nbytes`` bytes."""
        buffers = [np.zeros(nbytes, np.uint8) for _ in range(count)]
        self._kept += buffers
        return [memoryview(buffer) for buffer in buffers]  # type: ignore[arg-type]

    def close(self) -> None:
        """Forget them; whoever still holds a view keeps its buffer alive."""
        self._kept.clear()
