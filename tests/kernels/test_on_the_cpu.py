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

from appliance.model import kernel_plan as planning
from appliance.model import pixels
from appliance.model.kernel_plan import ExtremesStruct, FrameStruct, KernelPlan, PlanStruct, SumsStruct, kernel_plan
from appliance.model.pixels import FORMATS, Box
from calibration.host_kernels import SOURCES
from calibration.host_kernels import host_library as library_of
from tests.kernels.host_library import host_library
from tests.kernels.rigs import GUARD, Ran, frame_of, hold, needed, spec_of


@pytest.fixture(scope="session")
def host() -> ctypes.CDLL:
    return host_library()


def test_the_structs_are_those_of_the_source(host: ctypes.CDLL) -> None:
    told = [host.sizes(which) for which in range(4)]
    assert told == [ctypes.sizeof(one) for one in (FrameStruct, PlanStruct, SumsStruct, ExtremesStruct)]


# --- what comes out ------------------------------------------------------------------------------------


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
    pixel=st.sampled_from(FORMATS), width=st.integers(8, 75), height=st.integers(8, 75), extra=st.integers(0, 19),
    target=st.tuples(st.integers(8, 40), st.integers(8, 40)), channels=st.sampled_from([1, 3]),
    fit=st.sampled_from(["stretch", "letterbox"]), cut=st.tuples(*[st.floats(0, 1)] * 4), start=st.integers(0, 17),
    blocks=st.integers(1, 9),
)  # fmt: skip
def test_any_size_roi_pitch_and_address(host, pixel, width, height, extra, target, channels, fit, cut, start, blocks) -> None:
    size = (2 * width, 2 * height)
    x, y = int(cut[0] * (size[0] - 4)), int(cut[1] * (size[1] - 4))
    roi = (x, y, 4 + int(cut[2] * (size[0] - x - 4)), 4 + int(cut[3] * (size[1] - y - 4)))
    pitch = pixels.bytes_per_row(pixel, size[0]) + extra
    hold(host, pixel, size, pitch, roi, spec_of(target, channels, fit), blocks=blocks, start=start)


@pytest.mark.parametrize("pixel", ["mono8", "mono12", "rgb8", "yuyv", "nv12", "bayer_gbrg8", "bayer_rggb12"])
@pytest.mark.parametrize("target", [(8, 8), (9, 21), (33, 70), (700, 500)])
def test_a_wide_picture_is_cut_into_tiles_that_fit(host, pixel: str, target: Any) -> None:
    """From none to six halvings of a picture whose rows no tile holds whole."""
    size, roi = (4000, 530), (3, 1, 3991, 521)
    hold(host, pixel, size, pixels.bytes_per_row(pixel, size[0]) + 4, roi, spec_of(target))


@pytest.mark.parametrize("pixel", FORMATS)
@pytest.mark.parametrize("target", [(20, 12), (90, 80)])
def test_the_launch_shape_changes_nothing(host: ctypes.CDLL, pixel: str, target: Any) -> None:
    size, roi, spec = (200, 130), (5, 7, 190, 121), spec_of(target)
    pitch = pixels.bytes_per_row(pixel, size[0]) + 6
    plan = kernel_plan(size, pixel, roi, spec, (1.5, 1.0, 0.9))
    memory = frame_of(pixel, size, pitch)
    one = Ran(host, plan, memory, pitch, blocks=1)
    for blocks, threads in ((64, 1), (1, 256), (3, 32), (7, 96)):
        for last_first in (False, True) if threads > 1 else (False,):
            assert Ran(host, plan, memory, pitch, blocks, threads, last_first).left == one.left


# --- what is read --------------------------------------------------------------------------------------

SIZE = (640, 480)
WHOLE: Box = (0, 0, *SIZE)
ROIS = [WHOLE, (160, 80, 320, 320), (161, 81, 320, 321), (163, 82, 321, 318), (319, 159, 321, 321)]


def reads(host: ctypes.CDLL, pixel: str, roi: Box, target: Any, blocks: int, start: int = 0) -> tuple[KernelPlan, Ran, Any]:
    """With a pitch that moves each row's place between two multiples of 16."""
    pitch = pixels.bytes_per_row(pixel, SIZE[0]) + 10
    plan = kernel_plan(SIZE, pixel, roi, spec_of(target))
    ran = hold(host, pixel, SIZE, pitch, roi, spec_of(target), blocks=blocks, start=start)
    wanted = needed(plan, pixel, SIZE, pitch, roi)
    return plan, ran, np.concatenate([np.zeros(start, np.uint8), wanted, np.zeros(GUARD, np.uint8)])


@pytest.mark.parametrize("pixel", FORMATS)
@pytest.mark.parametrize("roi", ROIS)
@pytest.mark.parametrize("target", [(80, 80), (300, 300)])
def test_each_byte_of_the_roi_is_read_once_and_no_other(host: ctypes.CDLL, pixel: str, roi: Box, target: Any) -> None:
    """Halved and not; for one block, which goes down each column of tiles."""
    plan, ran, wanted = reads(host, pixel, roi, target, 1, start=5)
    np.testing.assert_array_equal(np.minimum(ran.times, 1), wanted)
    cuts = columns_shared(plan) * (plan.tiles[0] - 1)
    assert ran.times.sum() == ran.bytes_read == wanted.sum() + cuts
    assert not cuts or (plan.tiles[0] <= 4 and cuts <= wanted.sum() / 50)


def columns_shared(plan: KernelPlan) -> int:
    """Bytes that two tiles side by side both need: a pair of YUV under an odd ROI, the pixels on both sides of Bayer's cut."""
    struct = plan.struct
    if plan.gather.startswith("bayer"):
        lines = min(struct.frame_height, struct.y + struct.height + 1) - max(0, struct.y - 1)
        return 2 * lines * (2 if plan.words else 1)
    if struct.x % 2 and plan.gather in ("yuyv", "uyvy"):
        return 4 * struct.height
    if struct.x % 2 and plan.gather == "nv12":
        return 2 * ((struct.y + struct.height + 1) // 2 - struct.y // 2)
    return 0


@pytest.mark.parametrize("pixel", ["mono12", "rgb8", "nv12", "yuyv", "uyvy", "bayer_gbrg8", "bayer_rggb12"])
@pytest.mark.parametrize("roi", ROIS)
def test_more_blocks_read_only_their_first_lines_again(host: ctypes.CDLL, pixel: str, roi: Box) -> None:
    """Each block that begins within a column of tiles: two rows of a Bayer picture, one chroma row under an odd ROI."""
    for target in ((80, 80), (300, 300)):
        plan, ran, wanted = reads(host, pixel, roi, target, 24)
        np.testing.assert_array_equal(np.minimum(ran.times, 1), wanted)
        across, down = plan.tiles
        begins = sum(first % down > 0 for first in {across * down * block // 24 for block in range(24)})
        shared = 2 if plan.gather.startswith("bayer") else int(plan.gather == "nv12" and roi[1] % 2 == 1)
        longest = plan.struct.tile_columns * (2 if plan.words else 1) + 4
        least, most = wanted.sum(), wanted.sum() + columns_shared(plan) * (across - 1) + begins * shared * longest
        assert least <= ran.bytes_read <= most
        assert ran.bytes_read == least or shared or across > 1
        assert ran.bytes_read <= least * (1 + 2 / 16 + 1 / 50), "a tile has 16 rows where two tiles need the same ones"


# --- how it is launched ----------------------------------------------------------------------------------


@given(
    pixel=st.sampled_from(FORMATS), width=st.integers(8, 4096), height=st.integers(8, 3000),
    target=st.tuples(st.integers(8, 1024), st.integers(8, 1024)), cut=st.tuples(*[st.floats(0, 1)] * 4),
    channels=st.sampled_from([1, 3]),
)  # fmt: skip
def test_every_tile_fits_into_the_shared_memory(pixel, width, height, target, cut, channels) -> None:
    size = (2 * width, 2 * height)
    x, y = int(cut[0] * (size[0] - 4)), int(cut[1] * (size[1] - 4))
    roi = (x, y, 4 + int(cut[2] * (size[0] - x - 4)), 4 + int(cut[3] * (size[1] - y - 4)))
    try:
        plan = kernel_plan(size, pixel, roi, spec_of(target, channels))
    except ValueError as why:
        assert "times; 6 can be, take a smaller roi" in str(why)
        return
    struct = plan.struct
    side = 1 << struct.halvings
    assert struct.tile_columns % side == 0 and struct.tile_rows % side == 0
    assert planning._fits(plan.gather, struct.tile_columns, struct.tile_rows, struct.halvings, plan.halved_channels)
    source = (SOURCES / "preprocess.cu").read_text()
    assert f"RAW_BYTES = {planning._RAW_BYTES}," in source and f"FIRST_BYTES = {planning._FIRST_BYTES}," in source
    if plan.gather.startswith("bayer") or (plan.gather == "nv12" and y % 2):
        assert struct.tile_rows >= 16, "rows read again are at most 2 of 16"


@pytest.mark.parametrize(("target", "times"), [((300, 16), 4), ((80, 16), 4)])
def test_a_tile_that_does_not_fit_is_told_before_it_is_read(host: ctypes.CDLL, target: Any, times: int) -> None:
    size, pitch = (1280, 64), 3840
    plan, memory = kernel_plan(size, "rgb8", None, spec_of(target)), frame_of("rgb8", size, pitch)
    plan.struct.tile_rows *= times
    frame, halved, sums = FrameStruct(memory.ctypes.data, pitch), np.zeros(plan.halved_bytes, np.uint8), SumsStruct()
    told = host.run_gather(b"rgb8", 1, ctypes.byref(frame), ctypes.byref(plan.struct), halved.ctypes.data, ctypes.byref(sums))
    assert told == 2 and not halved.any()


def test_the_launch_fills_the_chip_and_no_more() -> None:
    plan = kernel_plan((1280, 960), "rgb8", (160, 0, 960, 960), spec_of((224, 224)))
    assert plan.tiles == (1, 240)
    assert plan.gather_launch(8) == (32, 256) and plan.gather_launch(132) == (240, 256)
    assert plan.sample_launch(8) == (32, 256) and plan.sample_launch(1000) == (588, 256)


# --- the comparison bites ----------------------------------------------------------------------------------

FAULTS = {
    "rounding": ("preprocess.cu", "int sums[3] = {2, 2, 2}", "int sums[3] = {1, 1, 1}", "rgb8", 14),
    "rounding of the second halving": ("preprocess.cu", "(sum + 2) >> 2", "(sum + 1) >> 2", "rgb8", 14),
    "colours in another order": ("preprocess.cu", "{{at[RED], at[1],", "{{at[1], at[RED],", "rgb8", 14),
    "a tile that begins one byte off": ("preprocess.cu", "3 * (p.x + t.column), 3", "3 * (p.x + t.column) + 1, 3", "rgb8", 14),
    "a 16 that begins one byte off": ("preprocess.cu", "begin + 16 * w.column)", "begin + 16 * w.column + 1)", "mono8", 14),
    "a tail one byte off": ("preprocess.cu", "rest + w.column - 16", "rest + w.column - 15", "mono8", 14),
    "no row below": ("preprocess.cu", "p.y + t.row + t.rows + 1)", "p.y + t.row + t.rows)", "bayer_rggb8", 60),
    "no column to the right": ("preprocess.cu", "t.column + t.columns + 1);", "t.column + t.columns);", "bayer_rggb8", 60),
    "kept rows at the wrong place": ("preprocess.cu", "*line = picture ? 0", "*line = picture ? 1", "bayer_rggb12", 60),
    "rows that are read again": ("preprocess.cu", "at > begin && t.row ? keep", "false ? keep", "bayer_rggb8", 60),
    "chroma of the next pair": ("preprocess.cu", "4 * (column >> 1)", "4 * ((column + 1) >> 1)", "yuyv", 60),
    "chroma of the ROI's pairs, not the frame's": ("preprocess.cu", "(((p.x + t.column) & 1) + x) & ~1", "x & ~1", "nv12", 60),
    "chroma of the row above": ("preprocess.cu", "(((p.y + t.row) & 1) + y) >> 1", "y >> 1", "nv12", 60),
    "full range": ("preprocess.cu", "(luma - p.yuv[0])", "luma", "nv12/limited", 60),
    "no wait before a tile is used": ("preprocess.cu", "kept_line, kept);\n        SYNC();", "kept_line, kept);", "mono8", 14),
    "no wait before the next tile": ("preprocess.cu", "        SYNC();\n    }\n    for", "    }\n    for", "bayer_rggb8", 60),
    "no wait before kept rows go": ("preprocess.cu", "        SYNC();\n        stage(", "        stage(", "bayer_rggb8", 60),
    "no wait before a halving": ("preprocess.cu", "            SYNC();\n            Level", "            Level", "mono8", 14),
}  # fmt: skip


def planted(folder: Path, file: str, old: str, new: str) -> ctypes.CDLL:
    """The library of the source with one fault."""
    source = (SOURCES / file).read_text()
    assert source.count(old) == 1, old
    for path in SOURCES.iterdir():
        shutil.copy(path, folder)
    (folder / file).write_text(source.replace(old, new))
    return library_of(folder, folder, optimise=False)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_kernel_that_errs_is_found(host: ctypes.CDLL, fault: str, tmp_path: Path) -> None:
    file, old, new, pixel, side = FAULTS[fault]
    pitch, roi, spec = pixels.bytes_per_row(pixel, 128) + 6, (3, 1, 100, 66), spec_of((side, side))

    def check(library: ctypes.CDLL) -> None:
        for last_first in (False, True):
            ran = hold(library, pixel, (128, 72), pitch, roi, spec, blocks=2, threads=64, last_first=last_first)
            assert (ran.times > 1).sum() <= 2 * 2 * 102, "two blocks, and two rows that both need"

    check(host)
    with pytest.raises(AssertionError):
        check(planted(tmp_path, file, old, new))
