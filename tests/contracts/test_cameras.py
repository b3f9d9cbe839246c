"""What inspectd may rely on, of every camera: order, pixels, memory, loss and return, time; one set of tests for all."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from appliance.devices.memory_plain import PlainMemory
from appliance.inspect.stamps import StampProof
from appliance.ports import Camera, CameraLost, Frame, FrameBuffer
from tests.contracts.camera_rigs import CLOCK, FPS, LOSSES, RIGS, SECOND, CameraRig
from tests.contracts.rigs import until

EVERY = pytest.mark.parametrize("rig", list(RIGS), indirect=True)
LONGEST_S = 10.0  # a deadline, never a pause


class CountingMemory(PlainMemory):
    """Remembers how many buffers were asked of it."""

    count = 0

    def allocate(self, nbytes: int, count: int) -> list[FrameBuffer]:
        self.count += count
        return super().allocate(nbytes, count)


@pytest.fixture
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CameraRig]:
    made = RIGS[request.param](tmp_path)
    yield made
    made.close()


@pytest.fixture
def camera(rig: CameraRig) -> Iterator[Camera]:
    made = rig.camera()
    made.open(PlainMemory())
    yield made
    made.close()


def take(camera: Camera) -> Frame:
    """The next frame, within a deadline."""
    return until(lambda: camera.next_frame(0.2), LONGEST_S)


def take_and_release(rig: CameraRig, camera: Camera, count: int, use: Callable[[Frame], object]) -> list[object]:
    """What ``use`` made of each of so many frames, while it was held."""
    found = []
    for _ in range(count):
        rig.expose(1)
        frame = take(camera)
        found.append(use(frame))
        frame.release()
    return found


def pixels(frame: Frame, row_bytes: int) -> bytes:
    """Row by row, without what lies between the rows."""
    count = (len(frame.memory) + frame.pitch_bytes - row_bytes) // frame.pitch_bytes
    return b"".join(bytes(frame.memory[n * frame.pitch_bytes :][:row_bytes]) for n in range(count))


def row_bytes(rig: CameraRig, frame: Frame) -> int:
    return len(rig.shown(frame)) // rig.size[1]


def words_of_loss(lost: Callable[[], object]) -> str:
    """What a loss says, or nothing while there is none."""
    try:
        lost()
    except CameraLost as why:
        assert len(str(why).split()) >= 4, f"no words: {why}"
        return str(why)
    return ""


# --- frames -----------------------------------------------------------------------------------------------------------


@EVERY
def test_frames_come_in_order_and_none_twice(rig: CameraRig, camera: Camera) -> None:
    numbers = take_and_release(rig, camera, 30, lambda frame: (frame.sequence, frame.time_ns, frame.arrived_ns))
    for before, after in pairwise(numbers):
        assert all(one < other for one, other in zip(before, after))  # type: ignore[arg-type,call-overload]


@EVERY
def test_size_pitch_pixel_and_bytes_are_what_was_shown(rig: CameraRig, camera: Camera) -> None:
    def look(frame: Frame) -> None:
        assert (frame.size, frame.pixel, frame.pitch_bytes) == (rig.size, rig.pixel, rig.pitch)
        assert pixels(frame, row_bytes(rig, frame)) == rig.shown(frame)

    take_and_release(rig, camera, 10, look)


@EVERY
def test_a_frame_given_back_makes_room_for_others(rig: CameraRig, camera: Camera) -> None:
    take_and_release(rig, camera, 60, lambda frame: frame.sequence)
    told = camera.statistics()
    assert told["frames"] >= 60 and told.get("no_buffer", 0) == 0 and told.get("held", 0) == 0


@EVERY
def test_frames_are_given_back_from_another_thread(rig: CameraRig, camera: Camera) -> None:
    for _ in range(20):
        rig.expose(1)
        thread = threading.Thread(target=take(camera).release)
        thread.start()
        thread.join()
    assert camera.statistics().get("held", 0) == 0


@EVERY
def test_two_frames_held_stay_as_they_are_while_the_camera_goes_on(rig: CameraRig, camera: Camera) -> None:
    rig.expose(2)
    held = [take(camera), take(camera)]
    rig.expose(10)
    end_ns = CLOCK.now_ns() + round(20 * SECOND / FPS)
    beyond = []
    while CLOCK.now_ns() < end_ns:
        frame = camera.next_frame(0.02)
        if frame is not None:
            beyond.append(frame)
    assert [pixels(frame, row_bytes(rig, frame)) for frame in held] == [rig.shown(frame) for frame in held]
    if rig.limited:
        assert beyond == [] and camera.statistics()["held"] == 2 and camera.statistics()["no_buffer"] >= 1
    for frame in (*held, *beyond):
        frame.release()
    rig.expose(1)
    take(camera).release()


# --- waiting, loss, return -----------------------------------------------------------------------------------------------


@EVERY
def test_an_idle_camera_gives_none_in_time(rig: CameraRig, camera: Camera) -> None:
    take_and_release(rig, camera, 3, lambda frame: None)
    rig.idle()
    began_ns = CLOCK.now_ns()
    until(lambda: camera.next_frame(0.05) is None, LONGEST_S)
    assert CLOCK.now_ns() - began_ns < 2 * SECOND


@pytest.mark.parametrize(("rig", "how"), LOSSES, indirect=["rig"])
def test_a_loss_is_told_in_words_and_the_camera_comes_back(rig: CameraRig, how: str) -> None:
    camera, memory = rig.camera(), CountingMemory()
    camera.open(memory)
    take_and_release(rig, camera, 5, lambda frame: None)
    rig.expose(1)
    held = take(camera)
    rig.lose(how)
    assert until(lambda: words_of_loss(lambda: camera.next_frame(0.1)), LONGEST_S)
    camera.close()
    allocated = memory.count
    rig.restore()
    until(lambda: not words_of_loss(lambda: camera.open(memory)), LONGEST_S)
    take_and_release(rig, camera, 5, lambda frame: None)
    held.release()  # late: it does no harm
    take_and_release(rig, camera, 20, lambda frame: pixels(frame, row_bytes(rig, frame)) == rig.shown(frame) or 1 / 0)
    assert memory.count == allocated, "opening anew took memory anew"
    camera.close()


@EVERY
def test_what_is_not_there_cannot_be_opened_and_says_why_until_it_is(rig: CameraRig) -> None:
    camera = rig.camera()
    rig.lose("gone")
    for _ in range(3):
        assert words_of_loss(lambda: camera.open(PlainMemory()))
        camera.close()
    rig.restore()
    until(lambda: not words_of_loss(lambda: camera.open(PlainMemory())), LONGEST_S)
    take_and_release(rig, camera, 3, lambda frame: None)
    camera.close()


@EVERY
def test_a_camera_is_closed_twice_and_opened_again(rig: CameraRig) -> None:
    camera, memory = rig.camera(), PlainMemory()
    camera.close()
    for _ in range(3):
        camera.open(memory)
        take_and_release(rig, camera, 3, lambda frame: None)
        camera.close()
        camera.close()


# --- figures and time ----------------------------------------------------------------------------------------------------


@EVERY
def test_statistics_are_counts_and_words_that_can_be_published(rig: CameraRig, camera: Camera) -> None:
    taken = take_and_release(rig, camera, 10, lambda frame: None)
    told = json.loads(json.dumps(camera.statistics()))
    assert told["frames"] >= len(taken)
    assert camera.frame_copies in (0, 1)
    if rig.limited:
        assert {"gaps", "fps", "held", "no_buffer", "memory"} <= set(told) and len(told["memory"].split()) > 3


@EVERY
def test_proved_stamps_are_near_the_truth_and_none_is_placed_wrongly_before(rig: CameraRig, camera: Camera) -> None:
    proof, told = StampProof(round(SECOND / FPS), rig.hardware, 0), 0
    proof.listen(CLOCK.now_ns() - SECOND)  # no edge since was missed

    def place(frame: Frame) -> int | None:
        nonlocal told
        while told < len(rig.edges):
            proof.on_trigger(rig.edges[told])
            told += 1
        placed = proof.place(frame)
        return placed.time_ns - rig.truth(frame) if placed.clock == "monotonic" else None

    placed: list[int] = []
    for _ in range(30):  # a camera without stamps is placed only when its arrivals have been known for a second
        placed += [error for error in take_and_release(rig, camera, 10, place) if error is not None]  # type: ignore[misc]
        if len(placed) >= 20:
            break
    assert len(placed) >= 20, proof.health()
    assert max(abs(error) for error in placed) < rig.near_ns, proof.health()  # type: ignore[arg-type]
    assert len(str(proof.health()["method"]).split()) > 3
