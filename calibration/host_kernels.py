"""The GPU kernels on a CPU: the recipe that makes a shared library of their very source, with the machine's C++ compiler."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from pathlib import Path

import numpy as np

from appliance.model import pixels
from appliance.model.bundle import InputSpec
from appliance.model.kernel_plan import FrameStruct, SumsStruct, kernel_plan
from appliance.model.pixels import Box, Size

SOURCES = Path(__file__).resolve().parents[1] / "appliance" / "kernels"
_HOST = "host.cpp"
# No contraction: a product and a sum are rounded apart, as numpy does it.
_FLAGS = ("-std=c++17", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas", "-Werror", "-shared", "-fPIC")
_FRAME: Size = (1280, 960)
_CUT: Box = (160, 0, 960, 960)
_COUNTED = ("mono8", "mono12", "rgb8", "bgr8", "nv12", "yuyv", "uyvy", "bayer_rggb8", "bayer_rggb12")
_MULTIPROCESSORS = 16
_POINTER, _UNSIGNED = ctypes.c_void_p, ctypes.c_uint


class NoCompiler(Exception):
    """There is no C++ compiler on this machine."""


def host_library(folder: Path, sources: Path = SOURCES, *, optimise: bool = True) -> ctypes.CDLL:
    """Make the library of ``sources`` in ``folder``, once per content, and load it. Raises NoCompiler.

    ``run_gather(name, blocks, frame, plan, halved, sums) -> int`` (1: no such kernel; 2: a tile is larger than shared
    memory); ``run_sample(words, blocks, plan, channels, halved, rows, row_shares, columns, column_shares, tensor, sums)``;
    ``run_reduce_map(blocks, map, count, low, high, shares, extremes)``; ``take_bytes_read() -> int`` of frames since the
    last call; ``count_each_byte(times, start, bytes)``: how often each byte of memory is read, into u8;
    ``set_threads(count, last_first)`` of each block; ``sizes(which) -> int`` of Frame, Plan, Sums, Extremes. Names as
    bytes, pointers as an address or a ctypes pointer."""
    return load(build(folder, sources, optimise=optimise))


def build(folder: Path, sources: Path = SOURCES, *, optimise: bool = True) -> Path:
    """The library's file. Raises NoCompiler, and CalledProcessError when the compiler refuses the source."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise NoCompiler("no C++ compiler (g++ or clang++) on this machine")
    library = folder / f"kernels-{_digest(sources)}.so"
    if not library.is_file():
        made = library.with_suffix(".new")
        flags = [*_FLAGS, "-O2" if optimise else "-O0", "-I", str(sources)]
        subprocess.run([compiler, *flags, str(sources / _HOST), "-o", str(made)], check=True)
        made.replace(library)
    return library


def load(library: Path) -> ctypes.CDLL:
    """With every function's arguments set."""
    loaded = ctypes.CDLL(str(library))
    loaded.run_gather.argtypes = [ctypes.c_char_p, _UNSIGNED, *[_POINTER] * 4]
    loaded.run_gather.restype = ctypes.c_int
    loaded.run_sample.argtypes = [ctypes.c_int, _UNSIGNED, _POINTER, ctypes.c_int, *[_POINTER] * 7]
    loaded.run_sample.restype = None
    loaded.run_reduce_map.argtypes = [
        _UNSIGNED, _POINTER, ctypes.c_int, ctypes.c_float, ctypes.c_float, _POINTER, _POINTER
    ]  # fmt: skip
    loaded.run_reduce_map.restype = None
    loaded.count_each_byte.argtypes, loaded.count_each_byte.restype = [_POINTER, _POINTER, ctypes.c_ulonglong], None
    loaded.set_threads.argtypes, loaded.set_threads.restype = [_UNSIGNED, _UNSIGNED], None
    loaded.take_bytes_read.argtypes, loaded.take_bytes_read.restype = [], ctypes.c_ulonglong
    loaded.sizes.argtypes, loaded.sizes.restype = [ctypes.c_int], ctypes.c_ulonglong
    return loaded


def bytes_read(host: ctypes.CDLL) -> list[str]:
    """A table: what gather reads of a frame, format by format, with the blocks for 16 multiprocessors."""
    width, height = _FRAME
    across, down = _CUT[2:]
    told = [
        f"{'':<13}{'frame':>9}  {f'roi {across} x {down}':>13}  {'read':>9}  {'whole, read':>11}  {'not halved, read':>16}",
        f"{'':<13}{f'{width} x {height}':>9}  {'':>13}  {'to 224':>9}  {'to 224':>11}  {'to 1024 x 768':>16}",
    ]
    for pixel in _COUNTED:
        frame, roi = pixels.frame_bytes(pixel, *_FRAME), pixels.frame_bytes(pixel, across, down)
        read = [_read(host, pixel, _CUT, (224, 224)), _read(host, pixel, None, (224, 224)), _read(host, pixel, None, (1024, 768))]
        told.append(f"{pixel:<13}{frame:>9}  {roi:>13}  {read[0]:>9}  {read[1]:>11}  {read[2]:>16}")
    return told


def _read(host: ctypes.CDLL, pixel: str, roi: Box | None, target: Size) -> int:
    spec = InputSpec(tensor="input", size=target, channels=3, fit="stretch", mean=(0.0,) * 3, std=(1.0,) * 3)
    plan = kernel_plan(_FRAME, pixel, roi, spec)
    memory = np.zeros(pixels.frame_bytes(pixel, *_FRAME), np.uint8)
    frame = FrameStruct(memory.ctypes.data, pixels.bytes_per_row(pixel, _FRAME[0]))
    halved, sums = np.empty(plan.halved_bytes, np.uint8), SumsStruct()
    blocks, _ = plan.gather_launch(_MULTIPROCESSORS)
    host.take_bytes_read()
    host.run_gather(
        plan.gather.encode(), blocks, ctypes.byref(frame), ctypes.byref(plan.struct), halved.ctypes.data, ctypes.byref(sums)
    )  # fmt: skip
    return int(host.take_bytes_read())


def _digest(sources: Path) -> str:
    hashed = hashlib.sha256(" ".join(_FLAGS).encode())
    for path in sorted([*sources.glob("*.cu"), sources / _HOST]):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:16]
