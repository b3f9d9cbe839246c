"""The kernels' CPU build, one a test session."""

from __future__ import annotations

import ctypes
import functools
import tempfile
from pathlib import Path

import pytest

from calibration.host_kernels import NoCompiler
from calibration.host_kernels import host_library as make


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Goes with the process."""
    return tempfile.TemporaryDirectory(prefix="kernels-")


@functools.cache
def _made() -> ctypes.CDLL | str:
    try:
        return make(Path(_folder().name))
    except NoCompiler as why:
        return str(why)


def host_library() -> ctypes.CDLL:
    """The kernels of appliance/kernels, run one block after the other; skips the test where no C++ compiler is.

    ``run_gather(name, blocks, frame, plan, halved, sums) -> int`` (1: no such kernel); ``run_sample(words, blocks, plan,
    channels, halved, rows, row_shares, columns, column_shares, tensor, sums)``; ``run_reduce_map(blocks, map, count, low,
    high, shares, extremes)``; ``take_bytes_read() -> int`` of frames since the last call; ``sizes(which) -> int`` of Frame,
    Plan, Sums, Extremes. Name as bytes; pointers as an address or a ctypes pointer."""
    made = _made()
    if isinstance(made, str):
        pytest.skip(made)
    return made
