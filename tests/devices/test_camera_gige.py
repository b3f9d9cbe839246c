"""GigE Vision: Aravis itself against its own fake camera on loopback, a process that is killed and started again."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from appliance.devices import camera_gige
from appliance.devices.camera_gige import FrameNumbers, GigeCamera, GigeOptions, choose_format
from appliance.devices.memory_plain import PlainMemory
from appliance.inspect.daemon import CameraThread
from appliance.ports import CameraLost, Frame
from tests.contracts.camera_rig_gige import ADDRESS, CLOCK, FIRST_NUMBER, FakeGige, gige_camera, gige_or_skip
from tests.contracts.rigs import until

_S = 1_000_000_000
_WRAP = 65535


@pytest.fixture
def memory() -> Iterator[PlainMemory]:
    one = PlainMemory()
    yield one
    one.close()


@pytest.fixture
def fake(request: pytest.FixtureRequest) -> Iterator[FakeGige]:
    """``indirect``: packets lost per thousand."""
    gige_or_skip()
    one = FakeGige(lost_per_thousand=getattr(request, "param", 0))
    yield one
    one.close()


@contextlib.contextmanager
def opened(camera: GigeCamera, memory: PlainMemory) -> Iterator[GigeCamera]:
    try:
        camera.open(memory)
        yield camera
    finally:
        camera.close()


def frames(camera: GigeCamera, count: int) -> Iterator[Frame]:
    """The next ``count``; each is given back when the next is asked for."""
    for _ in range(count):
        frame = until(lambda: camera.next_frame(0.2))
        yield frame
        frame.release()


def whole(frame: Frame, first: int = FIRST_NUMBER) -> bool:
    """Whether every pixel is of the frame that ``sequence`` names, where the session's first has number ``first``."""
    number = (first + frame.sequence - 2) % _WRAP + 1
    pattern = (pattern_of(frame.size) + number) % 255
    return bool((np.frombuffer(frame.memory, np.uint8).reshape(pattern.shape) == pattern).all())


@functools.cache
def pattern_of(size: tuple[int, int]) -> Any:
    return np.add.outer(np.arange(size[1]), np.arange(size[0]))


def accounted(figures: dict[str, Any]) -> int:
    return int(figures["frames"] + figures["gaps"] + figures["incomplete"] + figures["unread"] + figures["no_buffer"])


# --- the must-show -----------------------------------------------------------------------------------------------


def test_2000_frames_then_killed_and_restarted_loses_none_uncounted_and_runs_within_3_s(
    fake: FakeGige, memory: PlainMemory, capsys: pytest.CaptureFixture[str]
) -> None:
    arrived: queue.SimpleQueue[Frame | CameraLost] = queue.SimpleQueue()
    camera = gige_camera(fake.serial)

    def hand_over(_: str, one: Frame | CameraLost | None) -> None:
        if isinstance(one, CameraLost):
            thread.forgotten.set()
        if one is not None:
            arrived.put(one)

    thread = CameraThread(camera, memory, hand_over)
    thread.start()
    try:
        seen, last = 0, 0
        while seen < 2000:  # over the wrap of its numbers
            frame = arrived.get(timeout=10)
            assert isinstance(frame, Frame), frame
            kept = dataclasses.replace(frame, memory=memoryview(bytes(frame.memory)))
            frame.release()  # at once: a busy machine would find the judge's two buffers taken
            assert whole(kept) and frame.sequence > last, frame.sequence
            seen, last = seen + 1, frame.sequence
        fake.kill()
        killed_ns = CLOCK.now_ns()
        while isinstance(one := arrived.get(timeout=10), Frame):
            seen, last = seen + 1, one.sequence
            one.release()
        lost_ns = CLOCK.now_ns()
        before = camera.statistics()
        fake.start()
        while not isinstance(one := arrived.get(timeout=10), Frame):
            pass
        back_ns = CLOCK.now_ns()
    finally:
        thread.stopping.set()
        thread.join(10)
    assert not thread.is_alive()
    # The camera counted `last` frames up to the last one handed over; nobody but it numbered them.
    assert before["frames"] == seen and accounted(before) >= last and before["frames"] + before["gaps"] <= last
    assert (lost_ns - killed_ns) / _S < 1.5
    assert (back_ns - fake.restarted_ns) / _S < 3.0
    after = camera.statistics()
    assert after["losses"] == 1 and after["outage_ms"] > 0 and camera.frame_copies == 0
    assert one.sequence > last and whole(one, FIRST_NUMBER + 1 - one.sequence)  # a restarted camera counts from its start
    shown = f"{after['frames']} frames, not handed over: {before['gaps']} gaps, {before['incomplete']} incomplete,"
    shown += f" {before['no_buffer']} no buffer; told lost after"
    with capsys.disabled():
        print(f"\n{shown} {(lost_ns - killed_ns) / 1e6:.0f} ms, back {(back_ns - fake.restarted_ns) / 1e6:.0f} ms after restart")


@pytest.mark.parametrize("fake", [20], indirect=True)
def test_frames_with_lost_packets_are_counted_and_never_handed_over(fake: FakeGige, memory: PlainMemory) -> None:
    with opened(gige_camera(fps=500), memory) as camera:
        for frame in frames(camera, 500):
            assert whole(frame)
            last = frame.sequence
        figures = camera.statistics()
    assert figures["incomplete"] > 20 and sum(figures["incomplete_by"].values()) == figures["incomplete"]
    assert figures["frames"] == 500 and accounted(figures) == last and figures["no_buffer"] == 0


# --- memory --------------------------------------------------------------------------------------------------------


def test_aravis_writes_into_the_memory_that_was_allocated(fake: FakeGige, memory: PlainMemory) -> None:
    given = []
    allocate = memory.allocate
    memory.allocate = lambda nbytes, count: given.extend(allocate(nbytes, count)) or given  # type: ignore[func-returns-value, method-assign]
    with opened(gige_camera(), memory) as camera:
        places = {camera_gige._address_of(one.memory) for one in given}
        assert len(places) == 12
        for frame in frames(camera, 30):
            assert camera_gige._address_of(frame.memory) in places and whole(frame)
        assert camera.frame_copies == 0
        assert "puts the packets together" in camera.statistics()["memory"]


def test_frames_the_judge_holds_stay_as_they_are_while_the_camera_runs_on(fake: FakeGige, memory: PlainMemory) -> None:
    with opened(gige_camera(), memory) as camera:
        one, other = (until(lambda: camera.next_frame(0.2)) for _ in range(2))
        assert camera.next_frame(0.2) is None  # two are the most
        assert whole(one) and whole(other) and camera.statistics()["held"] == 2
        other.release()
        for frame in frames(camera, 100):
            assert whole(frame) and frame.sequence > 10
            last = frame.sequence
        assert whole(one)
        one.release()
        figures = camera.statistics()
    assert figures["held"] == 0 and figures["no_buffer"] > 10 and accounted(figures) - figures["unread"] == last


def test_frames_that_found_no_buffer_are_a_gap_and_counted(fake: FakeGige, memory: PlainMemory) -> None:
    with opened(gige_camera(), memory) as camera:
        assert camera._session
        until(lambda: camera._session.stream.get_info_uint64_by_name("n_underruns") > 20)  # type: ignore[union-attr]
        for frame in frames(camera, 50):
            assert whole(frame)  # so the numbers in between were really passed over
            last = frame.sequence
        figures = camera.statistics()
    assert figures["gaps"] > 3 and figures["frames"] == 50 and accounted(figures) - figures["unread"] == last


def test_a_frame_released_twice_or_after_the_end_disturbs_nobody(fake: FakeGige, memory: PlainMemory) -> None:
    camera = gige_camera()
    with opened(camera, memory):
        old = until(lambda: camera.next_frame(0.2))
        twice = until(lambda: camera.next_frame(0.2))
        twice.release()
        twice.release()
        assert camera.statistics()["held"] == 1
        assert all(whole(frame) for frame in frames(camera, 40))
    old.release()
    with opened(camera, memory):
        first = until(lambda: camera.next_frame(0.2))
        old.release()
        before = bytes(first.memory)
        for _ in frames(camera, 40):
            pass
        assert bytes(first.memory) == before


def test_twelve_bits_come_low_aligned_and_are_handed_over_top_aligned(
    fake: FakeGige, memory: PlainMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(camera_gige._FORMATS, "Mono16", ("mono12", 4))  # the fake has no other words of 16 bits
    with opened(gige_camera(pixel="mono12", fps=100), memory) as camera:
        frame = until(lambda: camera.next_frame(0.2))
        words = np.frombuffer(frame.memory, "<u2").reshape(64, 64)
        sent = (pattern_of((64, 64)) + FIRST_NUMBER + frame.sequence - 1) % 255 * 256 + 255
        assert frame.pixel == "mono12" and frame.pitch_bytes == 128 and camera.frame_copies == 1
        assert (words == (sent << 4) % 65536).all()
        assert "low-aligned" in camera.statistics()["memory"]


# --- control -------------------------------------------------------------------------------------------------------


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def test_after_close_another_program_gets_control_at_once_and_no_thread_is_left(fake: FakeGige, memory: PlainMemory) -> None:
    for _ in frames(camera := gige_camera(), 0):
        pass
    camera.open(memory)
    camera.close()
    before = threads()
    for _ in range(3):
        camera.open(memory)
        assert camera.next_frame(1.0)
        camera.close()
        assert camera_gige.ask_controlled(ADDRESS) is False
        assert threads() == before
    with opened(gige_camera(), memory) as other:
        assert other.next_frame(1.0)


def test_a_loss_that_is_still_being_told_keeps_no_control(fake: FakeGige, memory: PlainMemory) -> None:
    """The exception travels to the judge, and its traceback with it."""
    camera = gige_camera()
    camera.open(memory)
    session = camera._session
    assert session is not None
    code, session.code = session.code, 0
    told = []
    try:
        until(lambda: camera.next_frame(0.2))
    except CameraLost as why:
        told.append(why)
    assert told and f"{code:#x}" in str(told[0]) and "did another program change it" in str(told[0])
    camera.close()
    assert camera_gige.ask_controlled(ADDRESS) is False


_HOLDER = """
import sys
from tests.contracts.camera_rig_gige import gige_camera, missing
from appliance.devices.memory_plain import PlainMemory
assert not missing()
camera = gige_camera("127.0.0.1")
camera.open(memory := PlainMemory())
print("open", flush=True)
sys.stdin.read()
"""


def test_a_camera_in_other_hands_is_told_at_once_and_taken_when_a_crashed_holder_is_forgotten(
    fake: FakeGige, memory: PlainMemory
) -> None:
    root = Path(__file__).resolve().parents[2]
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root)
    camera = gige_camera(ADDRESS)
    try:
        assert holder.stdout and holder.stdout.readline() == b"open\n"
        begun_ns = CLOCK.now_ns()
        with pytest.raises(CameraLost, match="controlled by another program; end that one"):
            camera.open(memory)
        assert CLOCK.now_ns() - begun_ns < _S
    finally:
        holder.kill()
        holder.communicate()
    begun_ns = CLOCK.now_ns()

    def taken() -> bool:
        with contextlib.suppress(CameraLost):
            camera.open(memory)
            return True
        return False

    until(taken)
    camera.close()
    assert CLOCK.now_ns() - begun_ns < 4.5 * _S  # the camera's heartbeat is three


# --- loss ----------------------------------------------------------------------------------------------------------


def test_an_idle_line_is_no_loss_and_a_dead_camera_is(fake: FakeGige, memory: PlainMemory) -> None:
    with opened(gige_camera(hardware_trigger=True, options=GigeOptions(trigger_line="Line0")), memory) as camera:
        assert camera.next_frame(1.6) is None  # asked three times meanwhile
        fake.kill()
        begun_ns = CLOCK.now_ns()
        with pytest.raises(CameraLost, match=r"does not answer at 127.0.0.1; check its power and cable"):
            until(lambda: camera.next_frame(0.2))
        assert CLOCK.now_ns() - begun_ns < 1.2 * _S
        fake.start()  # else Aravis waits for it at closing


def test_a_camera_restarted_while_the_line_stood_is_a_loss(fake: FakeGige, memory: PlainMemory) -> None:
    with opened(gige_camera(hardware_trigger=True, options=GigeOptions(trigger_line="Line0")), memory) as camera:
        fake.kill()
        fake.start()
        with pytest.raises(CameraLost, match="knows no controller: it was restarted"):
            until(lambda: camera.next_frame(0.2))


def test_a_free_running_camera_gone_silent_is_a_loss_though_it_answers(fake: FakeGige, memory: PlainMemory) -> None:
    with opened(gige_camera(), memory) as camera:
        assert camera.next_frame(1.0)
        assert camera._session
        camera._session.camera.stop_acquisition()
        with pytest.raises(CameraLost, match="no frame for 0.[5-9] s, but it answers .* check firewall"):
            for frame in frames(camera, 100):
                assert whole(frame)  # those it had sent before


def test_a_dead_camera_keeps_open_no_longer_than_its_question(fake: FakeGige, memory: PlainMemory) -> None:
    with opened(gige_camera(fake.serial), memory) as camera:
        assert camera.next_frame(1.0)
    fake.kill()
    begun_ns = CLOCK.now_ns()
    with pytest.raises(CameraLost, match="GV77 does not answer at 127.0.0.1"):
        camera.open(memory)
    assert CLOCK.now_ns() - begun_ns < 0.5 * _S


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"serial": "GV78"}, r"no GigE camera answers to GV78; found GV77 \(127.0.0.1\)"),
        ({"serial": "127.0.0.9"}, "no GigE camera answers at 127.0.0.9"),
        ({"pixel": "mono12"}, r"pixel: mono12; it offers BayerBG8, .*Write one of bayer_bggr8, .*mono16, mono8, rgb8 in"),
        ({"size": (4096, 64)}, "cannot give 4096 x 64; it has 2048 x 2048 pixels, in steps of 1 and 1: correct cameras.top.size"),
        ({"exposure_us": 5.0}, "exposure_us from 10 to 1e.07; correct cameras.top.exposure_us, which says 5"),
        ({"gain": 48.0}, "gain from 0 to 10"),
        ({"exposure_us": "auto"}, "no automatic exposure"),
        ({"hardware_trigger": True}, "cannot be triggered by Line1; it has Line0, Software"),
    ],
)
def test_what_the_camera_does_not_have_is_refused_in_words(
    fake: FakeGige, memory: PlainMemory, wish: dict[str, Any], words: str
) -> None:
    camera = gige_camera(**{"serial": ADDRESS, **wish})
    with pytest.raises(CameraLost, match=words):
        camera.open(memory)
    assert camera_gige.ask_controlled(ADDRESS) is False


def test_options_of_the_address() -> None:
    assert GigeOptions.from_query({}) == GigeOptions()
    given = {"trigger": "Line0", "packet_delay_us": "2.5", "packet_bytes": "1500", "stamp": "end", "packet_socket": "0"}
    assert GigeOptions.from_query(given) == GigeOptions("Line0", 1500, 2500, "end", False)
    with pytest.raises(ValueError, match="packet_delay_us=fast is no number"):
        GigeOptions.from_query({"packet_delay_us": "fast"})
    with pytest.raises(ValueError, match="stamp=late is no part of an exposure; write start, middle or end"):
        GigeOptions.from_query({"stamp": "late"})


def test_packets_of_another_size_without_the_packet_socket(fake: FakeGige, memory: PlainMemory) -> None:
    options = GigeOptions(packet_bytes=900, packet_socket=False)
    with opened(gige_camera(options=options, fps=100), memory) as camera:
        assert all(whole(frame) for frame in frames(camera, 20))
        assert camera.statistics()["packet_bytes"] == 900


def test_a_rate_it_cannot_give_is_told(fake: FakeGige, memory: PlainMemory) -> None:
    with opened(gige_camera(fps=2000), memory) as camera:
        (told,) = camera.statistics()["told"]
    assert "gives 1000.0 frames a second, the configuration says 2000" in told and "0.1 to 1000" in told


@pytest.mark.parametrize(("pixel", "pitch"), [("mono8", 64), ("mono16", 128), ("rgb8", 192), ("bayer_rggb8", 64), ("auto", 64)])
def test_rows_begin_where_the_frame_says(fake: FakeGige, memory: PlainMemory, pixel: str, pitch: int) -> None:
    with opened(gige_camera(pixel=pixel, size=(64, 48), fps=100), memory) as camera:
        frame = until(lambda: camera.next_frame(0.2))
    assert (frame.pitch_bytes, frame.size, len(frame.memory)) == (pitch, (64, 48), pitch * 48)
    assert frame.pixel == ("mono8" if pixel == "auto" else pixel)


def test_stamps_are_of_the_cameras_clock_at_the_middle_of_the_exposure(fake: FakeGige, memory: PlainMemory) -> None:
    def stamps(stamp: Any) -> tuple[Frame, int]:
        with opened(gige_camera(options=GigeOptions(stamp=stamp), fps=100), memory) as camera:
            frame = until(lambda: camera.next_frame(0.2))
            return frame, CLOCK.wall_us(frame.arrived_ns) * 1000 - frame.time_ns  # the fake's clock is the wall's

    frame, delay = stamps("middle")
    assert frame.clock == "driver" and 0 < delay < 0.1 * _S and abs(CLOCK.now_ns() - frame.arrived_ns) < _S
    assert stamps("start")[1] < delay + 20_000_000  # 5 ms nearer, give or take the machine
    assert stamps("end")[0].time_ns % 1000 == 0


@pytest.mark.parametrize(
    ("wished", "standing", "offered", "chosen"),
    [
        ("auto", "BayerRG8", ["Mono8", "BayerRG8"], "BayerRG8"),
        ("auto", "Mono12Packed", ["Mono12Packed", "Mono12", "Mono8"], "Mono8"),
        ("auto", "Mono12", ["Mono12", "Mono16"], "Mono16"),  # it stands at one that would have to be shifted
        ("auto", "Mono12Packed", ["Mono12Packed"], ""),
        ("bgr8", "Mono8", ["Mono8", "BGR8Packed"], "BGR8Packed"),
        ("uyvy", "Mono8", ["YUV422Packed"], "YUV422Packed"),
        ("yuyv", "Mono8", ["YCbCr601_422_8"], "YCbCr601_422_8"),
        ("bayer_grbg12", "Mono8", ["BayerGR12Packed", "BayerGR12"], "BayerGR12"),
        ("mono10", "Mono8", ["Mono10Packed", "Mono10p"], ""),
        ("nv12", "Mono8", ["Mono8"], ""),
    ],
)
def test_pixel_formats_by_name(wished: str, standing: str, offered: list[str], chosen: str) -> None:
    assert choose_format(wished, standing, offered) == chosen


def test_every_format_says_how_far_its_words_lie_low() -> None:
    for name, (word, shift) in camera_gige._FORMATS.items():
        bits = int("".join(one for one in word.split("/")[0][-2:] if one.isdigit()) or 8)
        assert shift == (16 - bits if bits in (10, 12) else 0), name
    assert camera_gige._FORMATS["YCbCr601_422_8"][0] == "yuyv/limited"


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "steps"),
    [
        ([7, 8, 9, 12], [1, 1, 1, 3]),
        ([65534, 65535, 1, 2], [1, 1, 1, 1]),
        ([65534, 2], [1, 3]),  # 65535 and 1 between
        ([65535, 65536, 65537], [1, 1, 1]),  # extended numbers do not wrap
        ([70000, 3], [1, -69997]),
        ([5, 5, 6], [1, 0, 1]),
        ([5, 4, 6], [1, -1, 1]),  # an older one
        ([1, 65535, 2], [1, -1, 1]),  # and over the wrap
        ([30000, 1, 2, 3], [1, -29999, 1, 1]),  # the camera counts anew
    ],
)
def test_distances_of_frame_numbers(numbers: list[int], steps: list[int]) -> None:
    one = FrameNumbers()
    assert [one.step(number) for number in numbers] == steps


# --- buffers the fake camera does not send ------------------------------------------------------------------------------


class ScriptedStream:
    """Hands out prepared buffers, and remembers what comes back."""

    def __init__(self, *buffers: Any) -> None:
        self.waiting, self.back = list(buffers), []  # type: list[Any], list[Any]

    def timeout_pop_buffer(self, timeout: int) -> Any:
        return self.waiting.pop(0) if self.waiting else None

    def try_pop_buffer(self) -> Any:
        return self.timeout_pop_buffer(0)

    def push_buffer(self, buffer: Any) -> None:
        self.back.append(buffer)

    def get_info_uint64_by_name(self, name: str) -> int:
        return 0


class ScriptedBuffer:
    def __init__(self, number: int, status: str = "success", stamp_ns: int = 5_000_000, size: tuple[int, int] = (4, 2)) -> None:
        self._number, self._status, self._stamp_ns, self._size = number, status, stamp_ns, size

    def get_status(self) -> Any:
        return SimpleNamespace(value_nick=self._status)

    def get_frame_id(self) -> int:
        return self._number

    def get_timestamp(self) -> int:
        return self._stamp_ns

    def get_image_width(self) -> int:
        return self._size[0]

    def get_image_height(self) -> int:
        return self._size[1]

    def get_image_pixel_format(self) -> int:
        return 7

    def get_image_padding(self) -> tuple[int, int]:
        return 4, 0


def scripted(memory: PlainMemory, *buffers: ScriptedBuffer) -> tuple[GigeCamera, ScriptedStream]:
    """A camera as if opened on ``buffers``."""
    camera, stream = gige_camera(size=(4, 2)), ScriptedStream(*buffers)
    camera._memory = memory.allocate(100, len(buffers))
    camera._session = camera_gige._Session(
        1, ADDRESS, stream=stream, buffers=list(buffers), index={one: n for n, one in enumerate(buffers)}, code=7,
        pixel="mono8", row_bytes=4, heard_ns=CLOCK.now_ns(), figures_ns=CLOCK.now_ns(), stamp_shift_ns=1000,
    )  # fmt: skip
    return camera, stream


def test_every_status_but_success_is_counted_by_its_name_and_the_buffer_goes_back(memory: PlainMemory) -> None:
    words = ["timeout", "missing-packets", "wrong-packet-id", "size-mismatch", "aborted", "cleared"]
    stale = [ScriptedBuffer(70 + number, word) for number, word in enumerate(words)]  # of the buffer's last use
    camera, stream = scripted(memory, ScriptedBuffer(101), *stale, ScriptedBuffer(109))
    first, last = camera.next_frame(0.2), camera.next_frame(0.2)
    assert first and last and last.sequence - first.sequence == 8
    figures = camera.statistics()
    assert figures["incomplete_by"] == dict.fromkeys(words, 1)
    assert (figures["incomplete"], figures["gaps"]) == (6, 1)  # 102 to 108 are seven
    assert len(stream.back) == 6


def test_incomplete_frames_before_the_first_whole_one_have_their_place_in_the_sequence(memory: PlainMemory) -> None:
    camera, _ = scripted(memory, ScriptedBuffer(0, "missing-packets"), ScriptedBuffer(0, "timeout"), ScriptedBuffer(3))
    frame = camera.next_frame(0.2)
    assert frame and frame.sequence == 3 and camera.statistics()["gaps"] == 0


def test_the_same_frame_again_and_an_older_one_are_not_handed_over(memory: PlainMemory) -> None:
    camera, _ = scripted(memory, *(ScriptedBuffer(number) for number in (5, 5, 4, 6)))
    assert [frame.sequence for frame in frames(camera, 2)] == [1, 2]
    figures = camera.statistics()
    assert (figures["frames"], figures["duplicates"], figures["older"], figures["gaps"]) == (2, 1, 1, 0)


def test_a_buffer_goes_back_once_however_often_its_frame_is_released(memory: PlainMemory) -> None:
    camera, stream = scripted(memory, ScriptedBuffer(1), ScriptedBuffer(2))
    first, second = camera.next_frame(0), camera.next_frame(0)
    assert first and second
    first.release()
    first.release()
    assert len(stream.back) == 1 and camera.statistics()["held"] == 1


def test_a_late_release_does_not_take_a_buffer_from_a_frame_of_the_next_session(memory: PlainMemory) -> None:
    camera, _ = scripted(memory, ScriptedBuffer(1))
    old, session, after = camera.next_frame(0), camera._session, ScriptedStream()
    assert old and session and camera._held == {0}  # as if the same buffer were held again
    camera._session = dataclasses.replace(session, number=2, stream=after)
    old.release()
    assert after.back == [] and camera.statistics()["held"] == 1


def test_padded_rows_and_a_camera_without_stamps(memory: PlainMemory) -> None:
    camera, _ = scripted(memory, ScriptedBuffer(1), ScriptedBuffer(2, stamp_ns=0))
    stamped, bare = camera.next_frame(0), camera.next_frame(0)
    assert stamped and bare and stamped.pitch_bytes == 8 and len(stamped.memory) == 16
    assert (stamped.time_ns, stamped.clock) == (5_001_000, "driver")
    assert (bare.time_ns, bare.clock) == (bare.arrived_ns, "none")


def test_rows_are_an_equal_share_where_aravis_does_not_tell_their_padding(
    memory: PlainMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ScriptedBuffer, "get_image_padding")  # as before 0.8.23
    for payload, pitch in ((8, 4), (16, 8), (11, 4)):
        camera, _ = scripted(memory, ScriptedBuffer(1))
        assert camera._session
        camera._session.payload = payload
        frame = camera.next_frame(0)
        assert frame and frame.pitch_bytes == pitch


def test_another_size_than_was_set_is_a_loss(memory: PlainMemory) -> None:
    camera, _ = scripted(memory, ScriptedBuffer(1, size=(8, 2)))
    with pytest.raises(CameraLost, match=r"sent 8 x 2, format 0x7, where 4 x 2"):
        camera.next_frame(0)


@pytest.mark.parametrize("alive", [True, False])
def test_only_a_camera_that_answers_is_asked_to_stop(memory: PlainMemory, alive: bool) -> None:
    """A dead one costs Aravis 2.5 s a question. What nobody fetched is counted."""
    camera, _ = scripted(memory, ScriptedBuffer(1), ScriptedBuffer(2, "timeout"), ScriptedBuffer(4))
    asked: list[str] = []
    camera._library = camera_gige._Library(None, None, RuntimeError)
    assert camera._session
    camera._session.camera = SimpleNamespace(stop_acquisition=lambda: asked.append("stop"))
    camera._session.alive = alive
    camera.close()
    assert asked == ["stop"] * alive
    figures = camera.statistics()
    assert (figures["unread"], figures["incomplete"], figures["gaps"]) == (2, 1, 1)


# --- what is missing -----------------------------------------------------------------------------------------------------


def test_a_missing_library_is_told_by_its_packages(memory: PlainMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gi", None)
    with pytest.raises(CameraLost, match="apt install python3-gi gir1.2-aravis-0.8.*--system-site-packages"):
        gige_camera().open(memory)

    def refuse(namespace: str, version: str) -> None:
        raise ValueError(f"Namespace {namespace} not available")

    monkeypatch.setitem(sys.modules, "gi", SimpleNamespace(require_version=refuse))
    with pytest.raises(CameraLost, match="apt install gir1.2-aravis-0.8"):
        gige_camera().open(memory)
