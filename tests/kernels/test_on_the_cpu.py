"""The GPU's kernels, compiled for the CPU from the same source, against the reference: every format, size and pitch."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.model import pixels
from appliance.model.bundle import InputSpec
from appliance.model.kernel_plan import ExtremesStruct, FrameStruct, KernelPlan, PlanStruct, SumsStruct, kernel_plan
from appliance.model.pixels import FORMATS
from appliance.model.preprocess import prepare
from calibration.host_kernels import SOURCES
from calibration.host_kernels import host_library as library_of
from tests.kernels.host_library import host_library


@pytest.fixture(scope="session")
def host() -> ctypes.CDLL:
    return host_library()


class Ran:
    """What the two kernels left."""

    def __init__(self, host: ctypes.CDLL, plan: KernelPlan, memory: np.ndarray, pitch: int, blocks: int = 3) -> None:
        self.halved = np.zeros(plan.halved_bytes, np.uint8)
        spec = plan.struct
        self.tensor = np.full((spec.channels, spec.target_height, spec.target_width), np.nan, np.float32)
        self.sums = SumsStruct()
        frame = FrameStruct(memory.ctypes.data, pitch)
        host.take_bytes_read()
        assert host.run_gather(
            plan.gather.encode(), blocks, ctypes.byref(frame), ctypes.byref(spec), _at(self.halved), ctypes.byref(self.sums)
        ) == 0  # fmt: skip
        self.bytes_read = host.take_bytes_read()
        host.run_sample(
            int(plan.words), blocks, ctypes.byref(spec), plan.halved_channels, _at(self.halved), _at(plan.rows),
            _at(plan.row_shares), _at(plan.columns), _at(plan.column_shares), _at(self.tensor), ctypes.byref(self.sums),
        )  # fmt: skip


def _at(array: np.ndarray) -> Any:
    return array.ctypes.data_as(ctypes.c_void_p)


def spec_of(size: tuple[int, int], channels: int = 3, fit: str = "stretch") -> InputSpec:
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if channels == 3 else ((0.5,), (0.25,))
    return InputSpec(tensor="input", size=size, channels=channels, fit=fit, mean=mean, std=std)  # type: ignore[arg-type]


def frame_of(pixel: str, size: tuple[int, int], pitch: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    memory = rng.integers(0, 256, pixels.frame_bytes(pixel, *size, pitch), dtype=np.uint8)
    smooth = np.linspace(0, 200, memory.size).astype(np.uint8)  # some of it not noise
    return np.where(rng.random(memory.size) < 0.5, memory, smooth).astype(np.uint8)


def hold(
    host: ctypes.CDLL, pixel: str, size: tuple[int, int], pitch: int, roi: Any, spec: InputSpec, gains: Any = (1.0, 1.0, 1.0)
) -> Ran:  # fmt: skip
    """Run both and compare; returns what the kernels left."""
    memory = frame_of(pixel, size, pitch)
    wanted = prepare(memory, size, pitch, pixel, roi, spec, gains)
    plan = kernel_plan(size, pixel, roi, spec, gains)
    ran = Ran(host, plan, memory, pitch)
    np.testing.assert_array_equal(np.array(ran.sums.histogram, np.int64), wanted.histogram)
    assert ran.sums.total == wanted.total
    np.testing.assert_allclose(ran.tensor, wanted.tensor, rtol=0, atol=1e-5)
    assert plan.laplacian_variance(ran.sums) == pytest.approx(wanted.laplacian_variance, rel=1e-9, abs=1e-9)
    return ran


def test_the_structs_are_those_of_the_source(host: ctypes.CDLL) -> None:
    told = [host.sizes(which) for which in range(4)]
    assert told == [ctypes.sizeof(one) for one in (FrameStruct, PlanStruct, SumsStruct, ExtremesStruct)]


@pytest.mark.parametrize("pixel", FORMATS)
@pytest.mark.parametrize(
    ("roi", "target", "fit"),
    [
        (None, (24, 24), "stretch"), (None, (24, 24), "letterbox"), ((7, 5, 91, 53), (40, 24), "stretch"),
        ((1, 1, 60, 60), (60, 60), "stretch"), ((70, 30, 58, 42), (16, 12), "letterbox"), (None, (150, 90), "stretch"),
    ],
)  # fmt: skip
def test_every_format_roi_and_resize_is_the_references(host, pixel: str, roi: Any, target: Any, fit: str) -> None:
    size = (128, 72)
    pitch = pixels.bytes_per_row(pixel, size[0]) + 32
    for channels in (1, 3):
        hold(host, pixel, size, pitch, roi, spec_of(target, channels, fit))


@pytest.mark.parametrize("pixel", ["rgb8", "nv12", "bayer_grbg8", "bayer_bggr12"])
def test_white_balance_is_the_references(host, pixel: str) -> None:
    hold(host, pixel, (96, 64), pixels.bytes_per_row(pixel, 96), (3, 2, 80, 60), spec_of((20, 15)), (1.37, 1.0, 1.911))


@given(
    pixel=st.sampled_from(FORMATS), width=st.integers(8, 75), height=st.integers(8, 75), extra=st.integers(0, 9),
    target=st.tuples(st.integers(8, 40), st.integers(8, 40)), channels=st.sampled_from([1, 3]),
    fit=st.sampled_from(["stretch", "letterbox"]), cut=st.tuples(*[st.floats(0, 1)] * 4),
)  # fmt: skip
def test_any_size_roi_and_pitch(host, pixel, width, height, extra, target, channels, fit, cut) -> None:
    size = (2 * width, 2 * height)
    x, y = int(cut[0] * (size[0] - 4)), int(cut[1] * (size[1] - 4))
    roi = (x, y, 4 + int(cut[2] * (size[0] - x - 4)), 4 + int(cut[3] * (size[1] - y - 4)))
    words = 2 if pixels.is_words(pixel) else 1
    hold(host, pixel, size, pixels.bytes_per_row(pixel, size[0]) + words * extra, roi, spec_of(target, channels, fit))


def test_the_launch_shape_changes_nothing(host: ctypes.CDLL) -> None:
    spec, size = spec_of((31, 17)), (200, 130)
    memory = frame_of("rgb8", size, 600)
    plan = kernel_plan(size, "rgb8", None, spec)
    one, many = Ran(host, plan, memory, 600, blocks=1), Ran(host, plan, memory, 600, blocks=64)
    np.testing.assert_array_equal(one.halved, many.halved)
    np.testing.assert_array_equal(one.tensor, many.tensor)
    assert bytes(one.sums) == bytes(many.sums)


@pytest.mark.parametrize("pixel", ["mono8", "mono12", "rgb8", "bgr8", "bayer_rggb8", "bayer_rggb12"])
def test_each_byte_of_the_roi_is_read_once(host: ctypes.CDLL, pixel: str) -> None:
    size = (640, 480)
    pitch = pixels.bytes_per_row(pixel, 640)
    ran = hold(host, pixel, size, pitch, (160, 80, 320, 320), spec_of((112, 112)))
    assert ran.bytes_read == 320 * pixels.bytes_per_row(pixel, 320)


@pytest.mark.parametrize("wrong", ["rounding", "offset", "order"])
def test_a_kernel_that_errs_is_found(host: ctypes.CDLL, wrong: str, tmp_path: Path) -> None:
    """The comparison bites: the source with one fault planted."""
    source = (SOURCES / "preprocess.cu").read_text()
    faults = {
        "rounding": ("(sums[c][level] + 2) >> 2", "(sums[c][level] + 1) >> 2"),
        "offset": ("3 * (p.x + x)", "3 * (p.x + x + 1)"),
        "order": ("byte_at(row + RED), byte_at(row + 1)", "byte_at(row + 1), byte_at(row + RED)"),
    }
    old, new = faults[wrong]
    assert source.count(old) == 1
    for path in SOURCES.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "preprocess.cu").write_text(source.replace(old, new))
    broken = library_of(tmp_path, tmp_path)
    with pytest.raises(AssertionError):
        hold(broken, "rgb8", (128, 72), 384, (2, 2, 100, 60), spec_of((24, 14)))
