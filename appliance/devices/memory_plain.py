"""FrameMemory of a laptop: plain memory, which only the CPU reaches."""

from __future__ import annotations

import mmap

from appliance.ports import FrameBuffer


class PlainMemory:
    """Buffers that no device reaches (address 0). Anonymous mappings: they begin on a page, as drivers want them."""

    def __init__(self) -> None:
        self._kept: list[mmap.mmap] = []

    def allocate(self, nbytes: int, count: int) -> list[FrameBuffer]:
        """``count`` zeroed buffers of ``nbytes`` bytes, rounded up to whole pages."""
        pages = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        buffers = [mmap.mmap(-1, pages) for _ in range(count)]
        self._kept += buffers
        return [FrameBuffer(memoryview(buffer), 0) for buffer in buffers]

    def register(self, memory: memoryview) -> FrameBuffer:
        """The CPU reads a driver's mapping where it lies."""
        return FrameBuffer(memory, 0)

    def unregister(self, buffer: FrameBuffer) -> None:
        """Nothing was done to it."""

    def close(self) -> None:
        """Forget them; whoever still holds a view keeps its buffer alive."""
        self._kept.clear()
