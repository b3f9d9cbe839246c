"""FrameMemory of a laptop: plain numpy buffers."""

from __future__ import annotations

import numpy as np


class NumpyMemory:
    """Buffers that only the CPU reaches."""

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []

    def allocate(self, nbytes: int, count: int) -> list[memoryview]:
        """``count`` zeroed buffers of ``nbytes`` bytes."""
        buffers = [np.zeros(nbytes, np.uint8) for _ in range(count)]
        self._kept += buffers
        return [memoryview(buffer) for buffer in buffers]

    def close(self) -> None:
        self._kept.clear()
