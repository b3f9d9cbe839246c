"""Statistics beside the network: the same figures, and nobody ever waits for the second thread."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from appliance.model.beside import SecondThread
from appliance.model.bundle import InputSpec
from appliance.model.pixels import FORMATS, bytes_per_row, frame_bytes
from appliance.model.preprocess import prepare
from appliance.model.preprocess_cv2 import FastPreprocess
from tests.contracts.rigs import until

SIZE = (330, 402)  # four bands, the last one short


@pytest.fixture
def beside() -> Iterator[SecondThread]:
    thread = SecondThread("statistics under test")
    yield thread
    thread.close()


def held(beside: SecondThread) -> Callable[[], None]:
    """Keep the second thread busy until what is returned is called."""
    begun, end = threading.Event(), threading.Event()
    beside(lambda: (begun.set(), end.wait(10)))
    assert begun.wait(10)
    return end.set


def names() -> list[str]:
    return [one.name for one in threading.enumerate()]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pixel", sorted(set(FORMATS) - {"mjpeg"}))
@pytest.mark.parametrize("hurried", [False, True])
def test_the_figures_are_the_references(beside: SecondThread, pixel: str, channels: int, hurried: bool) -> None:
    spec = InputSpec(
        tensor="image", size=(64, 48), channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels  # type: ignore[arg-type]
    )
    fast = FastPreprocess(spec, beside=beside)
    release = held(beside) if hurried else lambda: None
    pitch = bytes_per_row(pixel, SIZE[0])
    for seed in range(3):
        memory = np.random.default_rng(seed).integers(0, 256, frame_bytes(pixel, *SIZE, pitch)).astype(np.uint8)
        found = fast(memory, SIZE, pitch, pixel, None)
        wanted = prepare(memory, SIZE, pitch, pixel, None, spec)
        assert np.array_equal(found.histogram, wanted.histogram) and found.total == wanted.total
        assert found.laplacian_variance == pytest.approx(wanted.laplacian_variance, rel=1e-9)
        assert np.abs(found.tensor - wanted.tensor).max() < 1e-5
    release()


def test_what_the_second_thread_did_is_not_done_again(beside: SecondThread) -> None:
    done: list[str] = []
    result = beside(lambda: done.append(threading.current_thread().name) or 5)
    until(lambda: done)
    assert result() == 5 and result() == 5
    assert done == ["statistics under test"]


def test_nobody_waits_for_a_second_thread_that_does_not_come_to_its_turn(beside: SecondThread) -> None:
    release = held(beside)
    assert [beside(lambda number=number: number)() for number in range(3)] == [0, 1, 2]
    release()


def test_work_that_was_asked_for_meanwhile_is_left_out(beside: SecondThread) -> None:
    release, done = held(beside), []
    result = beside(lambda: done.append(threading.current_thread() is threading.main_thread()))
    result()
    release()
    passed = threading.Event()
    beside(passed.set)
    assert passed.wait(10) and done == [True]


def test_what_the_work_raises_is_raised_in_whoever_asks(beside: SecondThread) -> None:
    tried = threading.Event()

    def fails() -> None:
        tried.set()
        raise ValueError("no picture")

    result = beside(fails)
    assert tried.wait(10)
    with pytest.raises(ValueError, match="no picture"):
        result()
    assert beside(lambda: 7)() == 7


def test_the_thread_ends_with_its_owner() -> None:
    thread = SecondThread("ends with its owner")
    assert thread(lambda: 1)() == 1 and "ends with its owner" in names()
    del thread
    gc.collect()
    until(lambda: "ends with its owner" not in names())


def test_closing_ends_it_at_once() -> None:
    thread = SecondThread("closed")
    thread.close()
    assert "closed" not in names()
