"""The map of scores as the GPU reduces it, on the CPU, against the path that the CPU's network takes."""

from __future__ import annotations

import ctypes
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.inspect.decode import linear
from appliance.model.bundle import OutputSpec
from appliance.model.kernel_plan import ExtremesStruct
from calibration.host_kernels import SOURCES
from calibration.host_kernels import host_library as library_of
from tests.kernels.host_library import host_library
from tests.kernels.rigs import at

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
INF, NAN = math.inf, math.nan


@pytest.fixture(scope="module")
def host() -> ctypes.CDLL:
    return host_library()


def reduced(host: ctypes.CDLL, raw: F32, low: float, high: float, blocks: int = 3, threads: int = 1) -> tuple[U8, ExtremesStruct]:
    shares, extremes = np.full(raw.size + 8, 77, np.uint8), ExtremesStruct()
    extremes.highest = extremes.nan_seen = 5
    extremes.clear()
    host.set_threads(threads, 0)
    host.run_reduce_map(blocks, at(raw), raw.size, low, high, at(shares), ctypes.byref(extremes))
    host.set_threads(1, 0)
    assert (shares[raw.size :] == 77).all()
    return shares[: raw.size], extremes


def hold(host: ctypes.CDLL, values: Any, low: float, high: float, **launch: int) -> None:
    """Shares bit for bit, and the extreme's score."""
    raw = np.asarray(values, np.float32)
    spec = OutputSpec.model_construct(low=low, high=high)
    with np.errstate(invalid="ignore"):
        wanted = np.rint(np.nan_to_num(linear(raw, spec), nan=1.0) * 255).astype(np.uint8)
        worst = (raw.max() if low < high else raw.min()) if np.isfinite(raw).all() else np.float32(NAN)
        score = linear(worst, spec)
    shares, extremes = reduced(host, raw, low, high, **launch)
    np.testing.assert_array_equal(shares, wanted)
    np.testing.assert_array_equal(np.float32(extremes.extreme(low < high)), worst)
    np.testing.assert_array_equal(linear(np.float32(extremes.extreme(low < high)), spec), score)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.5, 12.25), (2.0, -1.0), (1e-3, 2e-3)])
@pytest.mark.parametrize("launch", [{}, {"blocks": 1}, {"blocks": 40, "threads": 64}])
def test_a_map_is_the_references_bit_for_bit(host: ctypes.CDLL, low: float, high: float, launch: dict[str, int]) -> None:
    low, high = float(np.float32(low)), float(np.float32(high))
    rng = np.random.default_rng(1)
    raw = low + (high - low) * rng.uniform(-0.2, 1.2, 5000)
    hold(host, raw, low, high, **launch)
    hold(host, np.full(17, 0.3), low, high, **launch)
    hold(host, -np.abs(raw), low, high, **launch)


def test_halves_go_to_the_even_one(host: ctypes.CDLL) -> None:
    steps = np.arange(0, 255, dtype=np.float32) + np.float32(0.5)
    hold(host, steps, 0.0, 255.0)
    shares, _ = reduced(host, steps, 0.0, 255.0)
    assert shares[:4].tolist() == [0, 2, 2, 4]


@pytest.mark.parametrize(
    "values", [[0.2, NAN, 0.1], [NAN], [INF, 0.5], [-INF, 0.5], [INF, -INF, NAN], [0.0, -0.0], [-1e-42, 1e-42]]
)
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 0.0)])
def test_what_is_no_number_is_painted_as_the_worst_and_stays_none(host: ctypes.CDLL, values: Any, low: float, high: float):
    hold(host, values, low, high)
    _, extremes = reduced(host, np.asarray(values, np.float32), low, high)
    assert math.isnan(extremes.extreme(low < high)) == any(not math.isfinite(value) for value in values)


@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=40), low=st.floats(-1e6, 1e6, width=32),
    high=st.floats(-1e6, 1e6, width=32),
)  # fmt: skip
def test_any_map(host: ctypes.CDLL, values: list[float], low: float, high: float) -> None:
    if abs(high - low) < 1e-6 or np.float32(high) - np.float32(low) != np.float32(high - low):
        return
    with np.errstate(over="ignore"):
        hold(host, values, low, high)


def test_bounds_that_no_float_is_cost_at_most_one_step(host: ctypes.CDLL) -> None:
    """The kernel has them as float32, whose difference may be rounded otherwise than theirs."""
    rng = np.random.default_rng(2)
    for _ in range(200):
        low, high = sorted(rng.uniform(-50, 50, 2))
        raw = rng.uniform(low - 1, high + 1, 300).astype(np.float32)
        wanted = np.rint(linear(raw, OutputSpec.model_construct(low=low, high=high)) * 255)
        assert np.abs(reduced(host, raw, low, high)[0].astype(int) - wanted).max() <= 1


FAULTS = {
    "halves up": ("rintf(", "floorf(0.5f + ("),
    "no number as the best": ("share != share ? 1.0f", "share != share ? 0.0f"),
    "negative ones in the wrong order": ("? ~bits : bits |", "? bits : bits |"),
    "no number forgotten": ("nan_seen = 1;", "nan_seen = 0;"),
    "the lowest is the highest": ("lowest_complement = ~order >", "lowest_complement = order >"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_kernel_that_errs_is_found(host: ctypes.CDLL, fault: str, tmp_path: Path) -> None:
    old, new = FAULTS[fault]
    source = (SOURCES / "reduce.cu").read_text()
    assert source.count(old) == 1
    for path in SOURCES.iterdir():
        shutil.copy(path, tmp_path)
    source = source.replace(old, new)
    if fault == "halves up":
        source = source.replace("* 255.0f);", "* 255.0f));")
    if fault == "the lowest is the highest":
        source = source.replace("? ~order : lowest", "? order : lowest")
    (tmp_path / "reduce.cu").write_text(source)
    broken = library_of(tmp_path, tmp_path, optimise=False)

    def check(library: ctypes.CDLL) -> None:
        hold(library, np.arange(-4, 260) + 0.5, 0.0, 255.0)
        hold(library, [-3.0, -1.0, -2.0, 5.0], 1.0, 0.0)
        hold(library, [-3.0, -1.0, -2.0], 0.0, 1.0)
        hold(library, [0.5, NAN, 0.25], 0.0, 1.0)

    check(host)
    with pytest.raises(AssertionError):
        check(broken)
