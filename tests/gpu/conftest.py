"""On a machine without a GPU each test here is skipped with one clear word."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.devices.cuda import Cuda
from appliance.model.kernel_images import KernelImageMissing
from tests.gpu import rig


@pytest.fixture(scope="session")
def gpu() -> Iterator[Cuda]:
    why = rig.missing()
    if why:
        pytest.skip(why)
    try:
        opened = rig.open_gpu()
    except KernelImageMissing as missing:
        pytest.skip(f"no kernels: {missing}")
    yield opened
    opened.close()
