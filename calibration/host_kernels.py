"""The GPU kernels on a CPU: the recipe that makes a shared library of their very source, with the machine's C++ compiler."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "appliance" / "kernels"
_HOST = "host.cpp"
# No contraction: a product and a sum are rounded apart, as numpy does it.
_FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas", "-Werror", "-shared", "-fPIC")
_POINTER, _UNSIGNED = ctypes.c_void_p, ctypes.c_uint


class NoCompiler(Exception):
    """There is no C++ compiler on this machine."""


def host_library(folder: Path, sources: Path = SOURCES) -> ctypes.CDLL:
    """Make the library of ``sources`` in ``folder``, once per content, and load it. Raises NoCompiler."""
    return load(build(folder, sources))


def build(folder: Path, sources: Path = SOURCES) -> Path:
    """The library's file. Raises NoCompiler, and CalledProcessError when the compiler refuses the source."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise NoCompiler("no C++ compiler (g++ or clang++) on this machine")
    library = folder / f"kernels-{_digest(sources)}.so"
    if not library.is_file():
        made = library.with_suffix(".new")
        subprocess.run([compiler, *_FLAGS, "-I", str(sources), str(sources / _HOST), "-o", str(made)], check=True)
        made.replace(library)
    return library


def load(library: Path) -> ctypes.CDLL:
    """With every function's arguments set; where a pointer goes, an address (an int) or a ctypes pointer may."""
    loaded = ctypes.CDLL(str(library))
    loaded.run_gather.argtypes = [ctypes.c_char_p, _UNSIGNED, *[_POINTER] * 4]
    loaded.run_gather.restype = ctypes.c_int
    loaded.run_sample.argtypes = [ctypes.c_int, _UNSIGNED, _POINTER, ctypes.c_int, *[_POINTER] * 7]
    loaded.run_sample.restype = None
    loaded.run_reduce_map.argtypes = [
        _UNSIGNED, _POINTER, ctypes.c_int, ctypes.c_float, ctypes.c_float, _POINTER, _POINTER
    ]  # fmt: skip
    loaded.run_reduce_map.restype = None
    loaded.take_bytes_read.argtypes, loaded.take_bytes_read.restype = [], ctypes.c_ulonglong
    loaded.sizes.argtypes, loaded.sizes.restype = [ctypes.c_int], ctypes.c_ulonglong
    return loaded


def _digest(sources: Path) -> str:
    hashed = hashlib.sha256(" ".join(_FLAGS).encode())
    for path in sorted([*sources.glob("*.cu"), sources / _HOST]):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:16]
