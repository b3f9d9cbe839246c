"""Cameras ``csi://N`` and ``rtsp://…`` through jetson-utils' ``videoSource``: the ISP's sensors and network streams.

jetson_utils is named in this file and in the network of jetson-inference, and imported when a camera is opened. The
pipeline copies each frame once on the CPU (NV12 out of GStreamer into its own ring), converts it on the GPU into a ring
of mapped RGB buffers, and overwrites a buffer with the ``numBuffers``-th following capture, whoever still reads it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import logging
import math
import re
import sys
import threading
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from appliance.ports import CameraLost, Clock, Frame, FrameMemory

log = logging.getLogger("appliance.camera")

BUFFERS = 12  # as the twin's: what the judge may hold while parts wait for their window, and slots to go on in
FORMAT = "rgb8"  # NV12 has no conversion to grey in jetson-utils (cuda/cudaColorspace.cpp): colour is all there is
_CHANNELS = 3
_FIRST_FRAME_NS = 8_000_000_000  # nvarguscamerasrc gives itself 5 s to acquire a sensor and 3 s for its first event
_SILENT_NS = 2_000_000_000
_SILENT_FRAMES = 10
# A frame that came while this thread was away is stamped when it is fetched: so late a stamp may be, no later. Two of
# the interpreter's switch intervals; no figure of a board yet.
_STALE_NS = 10_000_000
_STRETCHED_NS = 1_000_000_000
_SOURCE = "github.com/dusty-nv/jetson-utils, built on the box with CMake"
_NAMES = ("videoSource", "cudaStreamCreate", "cudaStreamSynchronize")
# jetson-utils swaps these two for nvarguscamerasrc, so that `none` there turns the picture upside down.
_CSI_FLIP = {"none": "rotate-180", "rotate-180": "none"}
FLIPS = ("none", "rotate-180", "horizontal", "vertical")


class _Ring:
    """One videoSource, and which of its buffers are still read. Captures are numbered from 1."""

    def __init__(self, source: Any, buffers: int) -> None:
        # Held here and in no local variable: a traceback that outlives the camera must not keep a sensor busy.
        self.source = source
        self.captured = 0
        self._buffers = buffers
        # Weak: a camera that is lost voids its frames, and the judge then drops them without giving them back.
        self._held: WeakValueDictionary[int, _Lease] = WeakValueDictionary()
        self._returned = threading.Condition()

    @property
    def held(self) -> int:
        return len(self._held)

    def lend(self) -> _Lease:
        """The buffer captured last."""
        lease = _Lease(self, self.captured)
        self._held[self.captured] = lease
        return lease

    def give_back(self, number: int) -> None:
        with self._returned:
            self._held.pop(number, None)
            self._returned.notify_all()

    def wait_for_room(self, timeout_s: float) -> bool:
        """Whether the next capture overwrites nothing that is still read, after waiting for that."""
        with self._returned:
            return self._returned.wait_for(lambda: self.captured + 1 - self._buffers not in self._held, timeout_s)


class _Lease:
    """A frame's hold on its buffer and on the source that owns it: ``cudaImage`` itself holds neither."""

    def __init__(self, ring: _Ring, number: int) -> None:
        self._ring: _Ring | None = ring
        self._number = number

    def release(self) -> None:
        """From any thread. The source is let go of too, so that it is never destroyed in the judge's thread."""
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.give_back(self._number)


class JetsonCamera:
    """One sensor behind the ISP, or one network stream.

    A buffer still held when its turn comes is not overwritten: no frame is fetched until it is released (``held_back``).
    The frames lost that way never reach the ring and count as gaps; a copy would come too late, since the holder already
    has the address, and to take the camera down would lose far more."""

    frame_copies = 1

    def __init__(
        self, name: str, address: str, size: tuple[int, int], fps: float, flip: str, clock: Clock,
        pixel: str = "auto", buffers: int = BUFFERS,
    ) -> None:  # fmt: skip
        """``address``: ``csi://0`` or ``rtsp://…``; ``size``: width, height as delivered; ``flip``: one of FLIPS, as seen
        from the sensor (``none`` = as the sensor sees it)."""
        self.name = name
        self._size, self._fps, self._flip = size, fps, flip
        self._clock, self._pixel, self._buffers = clock, pixel, buffers
        self._csi = address.startswith("csi://")
        self._address = address.partition("?")[0] if self._csi else address  # a sensor's options are ours, a stream's its own
        self._shown = re.sub(r"//[^/@]*@", "//…@", address)  # a password is not for logs
        self._silent_ns = max(_SILENT_NS, round(_SILENT_FRAMES * 1e9 / fps))
        self._library: Any = None
        self._stream = 0
        self._ring: _Ring | None = None
        self._retired: list[_Ring] = []
        self._returned_ns = self._last_ns = self._first_ns = 0
        self._frames_since_open = self._lost_upstream = self._sequence = self._sequence_base = 0
        self._told_flip = ""
        self._counts = {
            "frames": 0, "gaps": 0, "stale": 0, "held_back": 0, "opened": 0, "lost": 0, "stretched_waits": 0,
        }  # fmt: skip

    def open(self, memory: FrameMemory) -> None:
        """A new source; ``memory`` is not asked, the pipeline owns its ring. Raises CameraLost with the reason in words."""
        self._refuse_what_cannot_be()
        self._library = _library()
        self._bury()
        try:
            if not self._stream:
                # The default stream, or waiting for the whole device, would break a graph the judge captures meanwhile.
                self._stream = self._library.cudaStreamCreate(nonblocking=True)
            self._ring = _Ring(self._library.videoSource(self._address, options=self._options()), self._buffers)
        except Exception as why:  # jetson-utils raises nothing but bare Exception
            raise CameraLost(f"camera {self.name}: jetson-utils cannot create {self._shown} ({why}); {self._advice()}") from why
        self._counts["opened"] += 1
        self._returned_ns = self._last_ns = self._clock.now_ns()
        self._frames_since_open = self._lost_upstream = 0
        self._sequence_base = self._sequence
        self._told_flip = str(self._ring.source.GetOptions().get("flipMethod", ""))
        self._compare(self._ring)

    def next_frame(self, timeout_s: float) -> Frame | None:
        """Raises CameraLost: an error, the stream's end, or silence (IsStreaming stays true when a camera dies)."""
        ring = self._ring
        assert ring is not None
        deadline_ns = self._clock.now_ns() + round(timeout_s * 1e9)
        while True:
            left_ns = max(0, deadline_ns - self._clock.now_ns())
            if not ring.wait_for_room(left_ns / 1e9):
                self._counts["held_back"] += 1
                self._last_ns = self._clock.now_ns()  # the silence is ours
                return None
            if self._clock.now_ns() - self._returned_ns > _STALE_NS:
                self._throw_away(ring)
                continue
            image = self._capture(ring, math.ceil(left_ns / 1e6))
            if image is not None:
                return self._frame(ring, image)
            self._watch_silence()
            if self._clock.now_ns() >= deadline_ns:
                return None

    def close(self) -> None:
        """Stop. Frames not released are void, but stay readable: their source is destroyed after them, in this thread."""
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.source.Close()  # now, not when the last reference goes: the sensor has to be free for the next open
            self._retired.append(ring)
        self._bury()

    def statistics(self) -> dict[str, Any]:
        """Counts, achieved rate, buffers held, and for how long nothing came: also while a wait is stretched."""
        ring, span_ns = self._ring, self._last_ns - self._first_ns
        return {
            **self._counts,
            "fps": round((self._frames_since_open - 1) * 1e9 / span_ns, 1) if self._frames_since_open > 1 and span_ns else 0.0,
            "held": (ring.held if ring else 0) + sum(one.held for one in self._retired),
            "silent_ms": (self._clock.now_ns() - self._last_ns) // 1_000_000 if ring else 0,
            "flip": self._told_flip,
            "memory": f"ring of {self._buffers} mapped RGB buffers of jetson-utils; one copy on the CPU before it",
        }

    # --- opening ------------------------------------------------------------------------------------

    def _refuse_what_cannot_be(self) -> None:
        """What jetson-utils would take without a word and do otherwise. Raises CameraLost."""
        if self._pixel not in ("auto", FORMAT):
            raise CameraLost(
                f"camera {self.name}: {self._address.split(':')[0]}:// gives {FORMAT}, the configuration says {self._pixel};"
                f" write cameras.{self.name}.pixel: {FORMAT}, or take the v4l2:// node of the sensor"
            )
        if self._flip not in FLIPS:
            raise CameraLost(f"camera {self.name}: flip {self._flip!r} is not known; write one of {', '.join(FLIPS)}")
        if self._csi and self._fps != int(self._fps):
            raise CameraLost(f"camera {self.name}: csi:// cuts {self._fps} fps to {int(self._fps)}; write a whole number as fps")

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"zeroCopy": True, "numBuffers": self._buffers, "flipMethod": self._flip}
        if self._csi:  # a network stream comes as it is sent: nothing is asked that might scale or retime it
            options |= {"width": self._size[0], "height": self._size[1], "framerate": float(self._fps)}
            options["flipMethod"] = _CSI_FLIP.get(self._flip, self._flip)
        return options

    def _compare(self, ring: _Ring) -> None:
        """The nearest the camera offers is chosen without a word. 0 = a stream that has not told yet. Raises CameraLost."""
        found = (ring.source.GetWidth(), ring.source.GetHeight())
        if all(found) and found != self._size:
            raise CameraLost(
                f"camera {self.name} gives {found[0]} x {found[1]}, the configuration says {self._size[0]} x {self._size[1]};"
                f" correct cameras.{self.name}.size"
            )
        rate = ring.source.GetFrameRate()
        if rate and rate != int(self._fps):
            raise CameraLost(
                f"camera {self.name} gives {rate} frames per second, the configuration says {self._fps:g};"
                f" correct cameras.{self.name}.fps"
            )

    def _advice(self) -> str:
        if self._csi:
            return (
                f"check the ribbon cable, the sensor's number and that it has a mode of {self._size[0]} x {self._size[1]} at"
                f" {self._fps:g} fps; if it stays: systemctl restart nvargus-daemon"
            )
        return "check the address, the network and the sender"

    def _bury(self) -> None:
        """Destroy the sources nobody reads any more: here and nowhere else, it takes a quarter of a second."""
        for ring in self._retired:
            if not ring.held:
                ring.source = None
        self._retired = [ring for ring in self._retired if ring.source is not None]

    # --- one frame ----------------------------------------------------------------------------------

    def _capture(self, ring: _Ring, timeout_ms: int) -> Any:
        """A cudaImage that may still be converted, or None. Raises CameraLost."""
        begun_ns = self._clock.now_ns()
        try:
            image = ring.source.Capture(format=FORMAT, timeout=timeout_ms, stream=self._stream)
        except Exception as why:  # bare Exception, the same one for an error and for the end of a stream
            raise self._lost(
                f"camera {self.name}: {self._shown} failed or its stream ended, jetson-utils does not say which ({why});"
                f" {self._advice()}"
            ) from why
        self._returned_ns = self._clock.now_ns()
        # The first capture starts the pipeline, which takes its own time.
        if ring.captured and self._returned_ns - begun_ns > timeout_ms * 1_000_000 + _STRETCHED_NS:
            # Its waits run on the wall clock. Nobody can cut one short; `silent_ms` tells of it while it lasts.
            self._counts["stretched_waits"] += 1
            log.warning("camera %s: a wait of %d ms took %d ms; the wall clock was set back", self.name, timeout_ms,
                        (self._returned_ns - begun_ns) // 1_000_000)  # fmt: skip
        if image is not None:
            ring.captured += 1
            self._last_ns = self._returned_ns
        return image

    def _throw_away(self, ring: _Ring) -> None:
        """What waited while this thread was away: nobody knows when it came. Then the pipeline is empty, and what it lost
        can be counted whole, unless a frame came just now."""
        received = ring.source.GetFrameCount()
        if self._capture(ring, 0) is not None:
            self._counts["stale"] += 1
        if ring.source.GetFrameCount() == received:
            self._lost_upstream = max(self._lost_upstream, received - ring.captured)

    def _frame(self, ring: _Ring, image: Any) -> Frame:
        """The image as a frame, once the GPU has converted it. Raises CameraLost."""
        arrived_ns = self._returned_ns
        self._check(image)
        if not self._frames_since_open:
            self._first_ns = arrived_ns
            self._compare(ring)
        try:
            self._library.cudaStreamSynchronize(self._stream)
        except Exception as why:  # bare Exception again
            raise self._lost(f"camera {self.name}: the GPU failed on a frame ({why}); restart the station") from why
        width, height = self._size
        # By address: `__cuda_array_interface__` leaks a dict per image, and the image's buffer would be 3-D.
        view = memoryview((ctypes.c_ubyte * (width * height * _CHANNELS)).from_address(image.ptr)).cast("B")
        self._frames_since_open += 1
        self._counts["frames"] += 1
        self._number(ring)
        return Frame(
            view, image.ptr, width * _CHANNELS, self._size, FORMAT, self._sequence, arrived_ns, arrived_ns,
            ring.lend().release, clock="none",  # its time stamp is the pipeline's running time, and may be the next frame's
        )  # fmt: skip

    def _check(self, image: Any) -> None:
        """A format it does not know gives the raw image, a stream may change its size. Raises CameraLost."""
        if (image.format, image.width, image.height) != (FORMAT, *self._size):
            raise self._lost(
                f"camera {self.name} gave {image.width} x {image.height} {image.format} where {self._size[0]} x"
                f" {self._size[1]} {FORMAT} was asked; correct cameras.{self.name}.size"
            )
        if not image.mapped:
            raise self._lost(f"camera {self.name}: jetson-utils gave memory the CPU cannot read; build {_SOURCE}")

    def _number(self, ring: _Ring) -> None:
        """Sequence numbers that jump by what was lost. The newest frame may wait in the pipeline and is not lost yet."""
        lost = max(self._lost_upstream, ring.source.GetFrameCount() - ring.captured - 1)
        before, self._sequence = self._sequence, self._sequence_base + ring.captured + lost
        if self._frames_since_open > 1:
            self._counts["gaps"] += self._sequence - before - 1
        self._lost_upstream = lost

    def _watch_silence(self) -> None:
        now_ns, limit_ns = self._clock.now_ns(), self._silent_ns if self._frames_since_open else _FIRST_FRAME_NS
        if now_ns - self._last_ns > limit_ns:
            raise self._lost(
                f"camera {self.name} sent no frame for {(now_ns - self._last_ns) / 1e9:.1f} s; it is opened anew;"
                f" {self._advice()}"
            )

    def _lost(self, words: str) -> CameraLost:
        self._counts["lost"] += 1
        return CameraLost(words)


# --- the library: the real one, or why not -------------------------------------------------------------


def _library() -> Any:
    """jetson_utils with its C extension. Raises CameraLost: not there, a stranger's, or half of it; and what to do."""
    stranger = (
        "the package jetson-utils of the Python package index is a stranger's (it calls shell commands and hides the real"
        f" jetson_utils); remove it with `python3 -m pip uninstall jetson-utils`; the real one is {_SOURCE}"
    )
    if _installed_version().startswith("0."):  # known by its metadata: its code is not run to find out
        raise CameraLost(stranger)
    try:
        import jetson_utils  # type: ignore[import-not-found]  # not on a laptop
    except ImportError as why:
        raise CameraLost(why_missing(why, *_surroundings())) from why
    if not hasattr(jetson_utils, "HAS_JETSON_UTILS_EXT") and not hasattr(jetson_utils, "videoSource"):
        raise CameraLost(stranger)
    if not getattr(jetson_utils, "HAS_JETSON_UTILS_EXT", True):
        raise CameraLost(
            "jetson-utils was installed without its C extension, which fails without a word (pip gives only the Python"
            f" part); remove it with `python3 -m pip uninstall jetson-utils` and take {_SOURCE}"
        )
    missing = [name for name in _NAMES if not hasattr(jetson_utils, name)]
    if missing or not hasattr(jetson_utils, "HAS_JETSON_UTILS_EXT"):
        raise CameraLost(f"this jetson-utils is too old ({', '.join(missing) or 'version 1'}); take the newest of {_SOURCE}")
    return jetson_utils


def _installed_version() -> str:
    try:
        return importlib.metadata.version("jetson-utils")
    except importlib.metadata.PackageNotFoundError:
        return ""  # as it is after `make install`


def _surroundings() -> tuple[str, bool, bool]:
    """What /etc/nv_tegra_release says, whether this Python is a venv, whether jetson-utils lies in the system's folder."""
    release = Path("/etc/nv_tegra_release")
    beside = Path(f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}/dist-packages/jetson_utils")
    return release.read_text() if release.is_file() else "", sys.prefix != sys.base_prefix, beside.is_dir()


def why_missing(why: ImportError, release: str, in_venv: bool, beside: bool) -> str:
    """Why jetson_utils cannot be imported, and what to do. Pure."""
    line = re.search(r"R(\d+)", release)
    if why.name not in (None, "jetson_utils"):
        return f"jetson-utils is there but does not load ({why}); install what it misses, or build {_SOURCE} anew"
    if line and int(line[1]) >= 38:
        return (
            "jetson-utils is not there: it does not build on JetPack 7 (it asks the compiler for chips CUDA 13 dropped), so"
            " csi:// and rtsp:// are not to be had on this box; write the v4l2:// node of the sensor, or gige://"
        )
    if in_venv and beside:
        return (
            "jetson-utils is installed, but this Python environment does not look into the system's packages; make it anew"
            " with `python3 -m venv --system-site-packages`"
        )
    if not line:
        return "jetson-utils is not there: this is no Jetson; csi:// and rtsp:// need one, write v4l2://, gige:// or folder://"
    return f"jetson-utils is not there; it is {_SOURCE}, never the package of that name on the Python package index"
