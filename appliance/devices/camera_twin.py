"""Camera ``twin://NAME``: frames over a stream socket from the twin's process, into buffers made once."""

from __future__ import annotations

import queue
import select
import socket
from pathlib import Path
from typing import Any

from appliance.messages import TwinFrame, TwinHello, decode, encode
from appliance.ports import CameraLost, Clock, Frame, FrameBuffer, FrameMemory

_BUFFERS = 12
_SILENT_S = 2.0  # a header announces pixels that follow at once


class TwinCamera:
    """One camera of the twin. The socket's copy stands for the sensor's DMA: it is not counted."""

    frame_copies = 0

    def __init__(self, name: str, path: Path, twin_name: str, size: tuple[int, int], any_size: bool, clock: Clock) -> None:
        self.name = name
        self._path, self._twin_name, self._size, self._any_size, self._clock = path, twin_name, size, any_size, clock
        self._socket: socket.socket | None = None
        self._free: queue.SimpleQueue[FrameBuffer] = queue.SimpleQueue()
        self._allocated = False
        self._counts = {"frames": 0, "no_buffer": 0}

    def open(self, memory: FrameMemory) -> None:
        """Connect. Raises CameraLost while the twin does not answer."""
        if not self._allocated:
            for buffer in memory.allocate(self._size[0] * self._size[1] * 3, _BUFFERS):
                self._free.put(buffer)
            self._allocated = True
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(self._path))
            hello = encode(TwinHello("camera", self._twin_name))
            sock.sendall(len(hello).to_bytes(4, "little") + hello)
        except OSError as why:
            sock.close()
            raise CameraLost(f"the twin's camera {self._twin_name} does not answer ({why.strerror})") from why
        sock.settimeout(_SILENT_S)
        self._socket = sock

    def next_frame(self, timeout_s: float) -> Frame | None:
        """Raises CameraLost when the twin is gone or gives another size than configured."""
        assert self._socket is not None
        if not select.select([self._socket], [], [], timeout_s)[0]:
            return None
        header = decode(self._exactly(int.from_bytes(self._exactly(4), "little")))
        if not isinstance(header, TwinFrame):
            raise CameraLost(f"the twin sent {type(header).__name__} where a frame was due")
        if not self._any_size and (header.width, header.height) != self._size:
            raise CameraLost(
                f"camera {self.name} gives {header.width} x {header.height}, the configuration says"
                f" {self._size[0]} x {self._size[1]}; correct cameras.{self.name}.size"
            )
        buffer = self._buffer(header.size)
        memory = buffer.memory[: header.size]
        self._receive_into(memory)
        self._counts["frames"] += 1
        if self._free.empty():
            self._counts["no_buffer"] += 1
        row = header.size // header.height
        return Frame(
            memory, buffer.address, row, (header.width, header.height), header.pixel, header.sequence,
            header.exposure_ns, self._clock.now_ns(), lambda: self._free.put(buffer),
        )  # fmt: skip

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None

    def statistics(self) -> dict[str, Any]:
        return dict(self._counts)

    def _buffer(self, size: int) -> FrameBuffer:
        """A free buffer; when the judge holds them all, one of its own (counted), so that no frame is lost unseen."""
        try:
            buffer = self._free.get_nowait()
        except queue.Empty:
            return FrameBuffer(memoryview(bytearray(size)), 0)
        return buffer if len(buffer.memory) >= size else FrameBuffer(memoryview(bytearray(size)), 0)

    def _exactly(self, size: int) -> bytes:
        data = bytearray(size)
        self._receive_into(memoryview(data))
        return bytes(data)

    def _receive_into(self, target: memoryview) -> None:
        assert self._socket is not None
        done = 0
        try:
            while done < len(target):
                got = self._socket.recv_into(target[done:])
                if not got:
                    raise CameraLost(f"the twin's camera {self._twin_name} closed")
                done += got
        except OSError as why:
            raise CameraLost(f"the twin's camera {self._twin_name}: {why}") from why
