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
    """The kernels of appliance/kernels on this CPU (functions: ``calibration.host_kernels.host_library``); skips the test
    where no C++ compiler is."""
    made = _made()
    if isinstance(made, str):
        pytest.skip(made)
    return made
