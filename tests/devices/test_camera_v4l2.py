"""The V4L2 camera on a driver that behaves and bites: sharing, formats, controls, stamps, loss; structs by the header."""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.clock import VirtualClock
from appliance.devices import v4l2_driver as v4l2
from appliance.devices.camera_v4l2 import V4l2Camera
from appliance.devices.memory_plain import PlainMemory
from appliance.devices.v4l2_driver import FOURCC, fourcc
from appliance.inspect.stamps import StampProof
from appliance.ports import CameraLost, Frame, FrameBuffer, MemoryRefused
from tests.fakes import fake_v4l2 as fake
from tests.fakes.fake_v4l2 import FakeCamera, FakeKernel, picture, tegra, usb, vivid

MS, SECOND = 1_000_000, 1_000_000_000
PATH = "/dev/v4l/by-path/usb-0:2:1.0-video-index0"


class DeviceMemory(PlainMemory):
    """Memory of a device: addresses of its own, registration where the device has it; counts what is registered."""

    def __init__(self, registers: bool = True, most: int = 100) -> None:
        super().__init__()
        self._registers, self._most = registers, most
        self.registered: dict[int, FrameBuffer] = {}
        self.allocated = 0

    def allocate(self, nbytes: int, count: int) -> list[FrameBuffer]:
        self.allocated += count
        if self.allocated > self._most:
            raise MemoryRefused("there is no device memory left")
        return [FrameBuffer(one.memory, 0x7000_0000 + 0x100_0000 * n) for n, one in enumerate(super().allocate(nbytes, count))]

    def register(self, memory: memoryview) -> FrameBuffer:
        if not self._registers:
            raise MemoryRefused("this device registers no foreign mapping")
        buffer = FrameBuffer(memory, 0x9000_0000 + 0x100_0000 * len(self.registered))
        self.registered[id(buffer)] = buffer
        return buffer

    def unregister(self, buffer: FrameBuffer) -> None:
        del self.registered[id(buffer)]


class Bench:
    """A fake kernel under a virtual clock, with one camera plugged in."""

    def __init__(self, camera: FakeCamera) -> None:
        self.clock = VirtualClock(9_000 * SECOND)
        self.kernel = FakeKernel(self.clock)
        self.fake = self.kernel.plug(PATH, camera)

    def camera(self, **changed: Any) -> V4l2Camera:
        usual: dict[str, Any] = {
            "size": (64, 48), "fps": 30.0, "pixel": "auto", "exposure_us": 300, "gain": 20.0, "hardware_trigger": False,
            "options": {}, "path": PATH,
        }  # fmt: skip
        return V4l2Camera("top", clock=self.clock, system=self.kernel, **{**usual, **changed})

    def open(self, memory: PlainMemory | None = None, **changed: Any) -> V4l2Camera:
        camera = self.camera(**changed)
        camera.open(memory or PlainMemory())
        return camera


def frames_of(camera: V4l2Camera, count: int, release: bool = True, timeout_s: float = 1.0) -> list[Frame]:
    found = []
    while len(found) < count:
        frame = camera.next_frame(timeout_s)
        assert frame is not None, f"{len(found)} of {count} frames"
        found.append(frame)
        if release:
            frame.release()
    return found


def take(camera: V4l2Camera) -> Frame:
    return frames_of(camera, 1, release=False)[0]


TEGRA = {"fps": 60.0, "gain": 32.0}
GREY = {"GREY": {(64, 48): [30.0]}}


# --- who gives the memory -----------------------------------------------------------------------------------------------


def test_a_usb_camera_writes_straight_into_the_networks_memory() -> None:
    bench, memory = Bench(usb()), DeviceMemory()
    camera = bench.open(memory)
    frame = take(camera)
    assert frame.address in {0x7000_0000 + 0x100_0000 * n for n in range(6)}
    assert bytes(frame.memory) == picture(0, 128, 48, 128)
    assert camera.frame_copies == 0
    assert camera.statistics()["memory"].startswith("USERPTR: the camera writes where the network reads")
    assert memory.registered == {}


def test_where_userptr_is_offered_and_refused_the_drivers_buffers_are_registered() -> None:
    bench, memory = Bench(tegra()), DeviceMemory()
    camera = bench.open(memory, **TEGRA)
    frame = take(camera)
    assert frame.address >= 0x9000_0000 and len(memory.registered) == 6
    assert bytes(frame.memory) == picture(0, 128, 48, 128)
    assert camera.frame_copies == 0
    assert "MMAP: the network reads where the camera writes" in camera.statistics()["memory"]


def test_where_neither_works_one_copy_is_made_and_counted() -> None:
    bench, memory = Bench(tegra()), DeviceMemory(registers=False)
    camera = bench.open(memory, **TEGRA)
    first, second = take(camera), take(camera)
    assert camera.frame_copies == 1
    assert "one copy: this device registers no foreign mapping" in camera.statistics()["memory"]
    assert first.address != second.address and first.address >= 0x7000_0000
    assert [bytes(one.memory) for one in (first, second)] == [picture(n, 128, 48, 128) for n in (0, 1)]
    assert bench.kernel.queued() == 6  # the driver has its own back at once


def test_plain_memory_reads_the_drivers_buffers_without_a_copy() -> None:
    camera = Bench(tegra()).open(**TEGRA)
    assert camera.frame_copies == 0 and take(camera).address == 0


def test_a_camera_that_shares_in_no_way_is_a_loss_in_words() -> None:
    with pytest.raises(CameraLost, match="no device memory left"):
        Bench(tegra()).open(DeviceMemory(registers=False, most=1), **TEGRA)


@pytest.mark.parametrize("make", [usb, tegra])
def test_opening_a_hundred_times_takes_memory_once_and_leaves_nothing_behind(make: Callable[..., FakeCamera]) -> None:
    bench, memory = Bench(make()), DeviceMemory()
    camera = bench.camera(**TEGRA)
    for _ in range(100):
        camera.open(memory)
        take(camera)
        camera.close()
    gc.collect()
    assert memory.allocated <= 6 and len(memory.registered) <= 1  # one: of the frame that nobody released
    assert bench.kernel.open_files() == 0 and bench.kernel.mappings <= 1


# --- who holds what ------------------------------------------------------------------------------------------------------


def test_the_judge_holds_two_at_most_and_the_driver_goes_on() -> None:
    bench = Bench(usb())
    camera = bench.open()
    first, second = take(camera), take(camera)
    assert camera.next_frame(0.5) is None
    told = camera.statistics()
    assert (told["held"], told["gaps"], bench.kernel.node.starved) == (2, 0, 0)
    assert told["no_buffer"] == 15 and bench.kernel.queued() == 4
    assert [bytes(one.memory)[0] for one in (first, second)] == [1, 14]  # still theirs
    first.release()
    assert take(camera).sequence == 17


def test_a_frame_that_is_read_after_it_was_given_back_shows_something_else() -> None:
    """The stand-in bites: else a test could not see a frame kept too long."""
    camera = Bench(usb()).open()
    frame = take(camera)
    before = bytes(frame.memory)
    frame.release()
    assert before == picture(0, 128, 48, 128) and set(frame.memory) == {fake.POISON}


def test_a_frame_released_twice_is_queued_once() -> None:
    bench = Bench(usb())
    camera = bench.open()
    frame = take(camera)
    frame.release()
    frame.release()
    assert camera.statistics()["stale_releases"] == 1
    frames_of(camera, 20)


@pytest.mark.parametrize("make", [usb, tegra])
def test_a_frame_of_before_the_loss_released_after_reopening_does_no_harm(make: Callable[..., FakeCamera]) -> None:
    bench, memory = Bench(make()), DeviceMemory()
    camera = bench.open(memory, **TEGRA)
    old = take(camera)
    camera.close()
    camera.open(memory)
    new = take(camera)
    queued = bench.kernel.queued()
    old.release()
    assert bench.kernel.queued() == queued
    assert bytes(new.memory) == picture(0, 128, 48, 128)
    frames_of(camera, 20)


def test_a_buffer_the_network_may_be_reading_stays_registered_until_it_is_released() -> None:
    bench, memory = Bench(tegra()), DeviceMemory()
    camera = bench.open(memory, **TEGRA)
    frame = take(camera)
    camera.close()
    assert [one.address for one in memory.registered.values()] == [frame.address]
    assert bytes(frame.memory) == picture(0, 128, 48, 128)  # and its mapping stays
    frame.release()
    assert memory.registered == {}
    del frame
    gc.collect()
    assert bench.kernel.mappings == 0


def test_a_driver_with_too_few_buffers_is_a_loss_in_words() -> None:
    with pytest.raises(CameraLost, match="its driver has 3 buffers, 4 are needed"):
        Bench(usb(most_buffers=3)).open()


# --- formats, sizes, rates ---------------------------------------------------------------------------------------------


def test_rows_lie_where_the_driver_puts_them() -> None:
    frame = take(Bench(usb(padding=32)).open())
    assert (frame.size, frame.pitch_bytes, len(frame.memory)) == ((64, 48), 160, 160 * 48)
    assert bytes(frame.memory) == picture(0, 128, 48, 160)
    assert {frame.memory[128], frame.memory[159]} == {fake.PADDING}


@pytest.mark.parametrize(
    ("names", "picked"),
    [
        (["MJPG", "YUYV", "GREY"], "mono8"),
        (["MJPG", "YUYV", "RGGB"], "bayer_rggb8"),
        (["MJPG", "NV12", "YUYV"], "yuyv/limited"),
        (["MJPG", "NV12"], "nv12/limited"),
        (["YUYV", "BGR3"], "bgr8"),
        (["Y10 ", "UYVY"], "uyvy/limited"),  # ten bits at the bottom would be read as a dark picture
    ],
)
def test_auto_takes_the_best_that_loses_nothing_and_can_be_read(names: list[str], picked: str) -> None:
    camera = Bench(vivid(modes={name: {(64, 48): [30.0]} for name in names})).open(exposure_us="auto")
    frame = take(camera)
    assert frame.pixel == picked == camera.statistics()["pixel"]
    assert frame.pitch_bytes == {"mono8": 64, "bayer_rggb8": 64, "bgr8": 192, "nv12/limited": 64}.get(picked, 128)


def test_auto_takes_no_lossy_format() -> None:
    with pytest.raises(CameraLost, match="does not give auto 64x48 at 30 fps; it offers mjpeg 64x48 at 30 fps"):
        Bench(usb(modes={"MJPG": {(64, 48): [30.0]}})).open()


def test_mjpeg_that_is_asked_for_comes_with_the_bytes_it_has() -> None:
    frame = take(Bench(usb(modes={"MJPG": {(64, 48): [30.0]}})).open(pixel="mjpeg"))
    assert (frame.pixel, len(frame.memory)) == ("mjpeg", 68)
    assert bytes(frame.memory[:2]) == b"\xff\xd8" and bytes(frame.memory[-2:]) == b"\xff\xd9"


def test_auto_passes_over_a_format_that_is_too_slow_at_this_size() -> None:
    modes = {"YUYV": {(64, 48): [9.0]}, "NV12": {(64, 48): [30.0]}}
    assert take(Bench(usb(modes=modes)).open()).pixel == "nv12/limited"
    with pytest.raises(CameraLost, match="yuyv of this size comes at 9 fps at most"):
        Bench(usb()).open(size=(1280, 960))


@pytest.mark.parametrize(
    ("changes", "word"), [(("YUYV", 640, 480), "YUYV 640x480"), (("MJPG", 64, 48), "the driver makes it MJPG 64x48")]
)
def test_a_format_or_size_that_the_driver_changed_is_a_loss_that_says_what_it_offers(
    changes: tuple[str, int, int], word: str
) -> None:
    with pytest.raises(CameraLost, match=word) as lost:
        Bench(usb(changes=changes)).open(pixel="yuyv")
    assert "it offers mjpeg 640x480 at 60, 30, 15 fps" in str(lost.value) and "correct cameras.top" in str(lost.value)


@pytest.mark.parametrize(("fps", "becomes"), [(30.0, 15.0), (30.0, 60.0)])
def test_a_rate_that_the_driver_changed_is_a_loss_that_says_what_it_offers(fps: float, becomes: float) -> None:
    with pytest.raises(CameraLost, match=f"makes {becomes:g} of {fps:g} fps; it offers") as lost:
        Bench(usb(rate_becomes=becomes)).open(fps=fps)
    assert "yuyv 64x48 at 60, 30, 15 fps" in str(lost.value)


def test_a_rate_that_differs_by_a_thousandth_is_none() -> None:
    take(Bench(usb(rate_becomes=29.97)).open())


@pytest.mark.parametrize(
    ("changed", "pixel"),
    [
        ({"quantization": 0, "colorspace": 8}, "yuyv/limited"),
        ({"quantization": 0, "colorspace": 7}, "yuyv"),
        ({"quantization": 1}, "yuyv"),
        ({"quantization": 2, "colorspace": 7}, "yuyv/limited"),
    ],
)
def test_limited_range_is_told_behind_the_pixel_word(changed: dict[str, Any], pixel: str) -> None:
    assert take(Bench(usb(**changed)).open()).pixel == pixel


def test_words_at_the_bottom_of_sixteen_bits_are_refused_and_not_shown_dark() -> None:
    modes = {"Y10 ": {(64, 48): [30.0]}}
    with pytest.raises(CameraLost, match="mono10 has its bits at the bottom of 16-bit words.*write .align=top"):
        Bench(usb(modes=modes)).open(pixel="mono10")
    assert take(Bench(usb(modes=modes)).open(pixel="mono10", options={"align": "top"})).pixel == "mono10"
    assert take(Bench(tegra()).open(**TEGRA)).pixel == "bayer_rggb10"  # Tegra's are at the top


def test_a_node_that_gives_no_frames_is_a_loss_in_words() -> None:
    with pytest.raises(CameraLost, match="take its video-index0"):
        Bench(usb(device_caps=0x04A00000)).open()


# --- controls ----------------------------------------------------------------------------------------------------------


def test_exposure_is_made_manual_before_its_time_is_set() -> None:
    bench = Bench(usb())
    bench.open(exposure_us=300)
    held = {number: bench.fake.of(number).value for number in (fake.EXPOSURE_MODE, fake.EXPOSURE, fake.PRIORITY, fake.GAIN)}
    assert held == {fake.EXPOSURE_MODE: 1, fake.EXPOSURE: 3, fake.PRIORITY: 0, fake.GAIN: 20}


def test_white_balance_stands_still_at_the_same_place_after_every_start() -> None:
    bench = Bench(usb())
    bench.open()
    assert (bench.fake.of(fake.WHITE_BALANCE).value, bench.fake.of(fake.KELVIN).value) == (0, 4600)


def test_exposure_in_steps_is_told_as_it_came_out() -> None:
    camera = Bench(usb()).open(exposure_us=250)
    assert any("exposure is 300 us where 250 was asked: its steps are 100 us" in note for note in camera.statistics()["controls"])


def test_tegras_controls_are_found_by_name_and_let_through() -> None:
    bench = Bench(tegra())
    bench.open(exposure_us=250, **TEGRA)
    values = {one.name: one.value for one in bench.fake.controls}
    assert values == {"Gain": 32, "Exposure": 250, "Frame Rate": 60_000_000, "Bypass Mode": 0, "Override Enable": 1,
                      "Trigger Mode": 0}  # fmt: skip


def test_gain_outside_the_controls_range_is_a_loss_that_says_the_range_and_the_cure() -> None:
    with pytest.raises(CameraLost, match="gain = 2, which runs from 16 to 356.*gain_unit"):
        Bench(tegra()).open(fps=60.0, gain=2.0)
    bench = Bench(tegra())
    bench.open(fps=60.0, gain=2.0, options={"gain_unit": "16"})
    assert bench.fake.of(fake.T_GAIN).value == 32


def test_exposure_beyond_the_range_is_a_loss_in_words() -> None:
    with pytest.raises(CameraLost, match="exposure_time_absolute = 6000, which runs from 1 to 5000; correct cameras"):
        Bench(usb()).open(exposure_us=600_000)


def test_a_camera_without_exposure_must_be_asked_for_auto() -> None:
    with pytest.raises(CameraLost, match="no control of its exposure; write cameras.top.exposure_us: auto"):
        Bench(vivid(modes=GREY)).open()
    take(Bench(vivid(modes=GREY)).open(exposure_us="auto"))


def test_exposure_in_lines_is_not_taken_for_microseconds() -> None:
    controls = [fake.Control(0x980911, "Exposure", fake.INTEGER, 4, 2000, 100)]
    with pytest.raises(CameraLost, match="steps of unknown length.*exposure_unit_us"):
        Bench(usb(controls=controls)).open()
    bench = Bench(usb(controls=controls))
    bench.open(options={"exposure_unit_us": "7.5"})
    assert bench.fake.of(0x980911).value == 40


def test_exposure_auto_is_left_to_the_camera() -> None:
    bench = Bench(usb())
    bench.open(exposure_us="auto")
    assert (bench.fake.of(fake.EXPOSURE_MODE).value, bench.fake.of(fake.GAIN).value) == (3, 17)


def test_a_camera_that_forgets_its_controls_at_the_start_is_a_loss() -> None:
    with pytest.raises(CameraLost, match="holds .* where .* was set"):
        Bench(usb(forgets=True)).open()


def test_a_control_that_does_not_move_is_told_where_it_is_no_setting_of_ours() -> None:
    bench = Bench(usb())
    bench.fake.of(fake.PRIORITY).follows = (fake.EXPOSURE_MODE, 3)  # some cameras let it go only while they are automatic
    camera = bench.open()
    assert any("holds exposure_dynamic_framerate = 1 where 0 was set" in note for note in camera.statistics()["controls"])
    take(camera)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"gain_unit": "x"}, "gain_unit=x is no number"), ({"trigger": "trigger_mode:on"}, "trigger=trigger_mode:on is no number"),
     ({"stamp": "sof"}, "stamp=sof is not known; write start, middle or end")],
)  # fmt: skip
def test_an_option_that_makes_no_sense_is_a_loss_in_words(options: dict[str, str], word: str) -> None:
    with pytest.raises(CameraLost, match=word):
        Bench(tegra()).open(hardware_trigger=True, options=options, **TEGRA)


def test_the_photo_eye_fires_the_camera_by_its_trigger_control() -> None:
    bench = Bench(tegra())
    camera = bench.open(hardware_trigger=True, **TEGRA)
    assert bench.fake.of(fake.TRIGGER).value == 1
    assert camera.next_frame(30.0) is None  # an idle line is normal
    bench.kernel.fire(PATH, bench.clock.now_ns() + 3 * MS)
    assert take(camera).sequence == 0


def test_a_trigger_control_of_another_value_is_named_in_the_address() -> None:
    bench = Bench(tegra(waits_for_trigger=(fake.TRIGGER, 2)))
    bench.open(hardware_trigger=True, options={"trigger": "trigger_mode:2"}, **TEGRA)
    assert bench.fake.of(fake.TRIGGER).value == 2


def test_a_camera_left_waiting_for_an_eye_runs_free_when_that_is_asked() -> None:
    bench = Bench(tegra())
    bench.fake.of(fake.TRIGGER).value = 1
    take(bench.open(**TEGRA))


def test_hardware_trigger_without_a_control_says_what_to_write() -> None:
    with pytest.raises(CameraLost, match=r"no control of it is named trigger\); write \?trigger=CONTROL:VALUE"):
        Bench(usb()).open(hardware_trigger=True)
    two = [fake.Control(fake.TRIGGER + n, f"{name} trigger", fake.BOOLEAN, 0, 1, 0) for n, name in enumerate(("Soft", "Line"))]
    with pytest.raises(CameraLost, match="controls named so: soft_trigger, line_trigger"):
        Bench(tegra(controls=[*tegra().controls[:5], *two])).open(hardware_trigger=True, **TEGRA)


# --- frames: numbers, broken ones, rate ---------------------------------------------------------------------------------


def test_lost_frames_are_gaps_and_broken_ones_are_not_handed_over() -> None:
    bench = Bench(usb(lost={3, 4}, flagged={6}, short={8}))
    camera = bench.open()
    assert [frame.sequence for frame in frames_of(camera, 7)] == [0, 1, 2, 5, 7, 9, 10]
    told = camera.statistics()
    assert {name: told[name] for name in ("frames", "gaps", "error_flagged", "short", "no_buffer")} == {
        "frames": 7, "gaps": 2, "error_flagged": 1, "short": 1, "no_buffer": 0,
    }  # fmt: skip
    assert bench.kernel.queued() + bench.kernel.node.buffers.__len__() == 12  # all are the driver's


def test_numbers_that_begin_anywhere_wrap_at_32_bits_and_go_on() -> None:
    camera = Bench(usb(first_sequence=0xFFFFFFFE, lost={3})).open()
    assert [frame.sequence for frame in frames_of(camera, 5)] == [0, 1, 2, 4, 5]
    assert camera.statistics()["gaps"] == 1


def test_numbers_that_do_not_count_are_told() -> None:
    camera = Bench(usb(sequence=lambda number: 0)).open()
    assert [frame.sequence for frame in frames_of(camera, 3)] == [0, 1, 2]
    assert "do not count" in camera.statistics()["sequence"]


def test_a_camera_slower_than_asked_is_told_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    camera = Bench(usb(slower=1.25)).open()
    frames_of(camera, 60)
    assert camera.statistics()["rate"].startswith("too slow: 24.0 fps where 30 were asked")
    assert camera.statistics()["fps"] == pytest.approx(24, abs=0.1)
    assert "too slow" in caplog.text


def test_a_camera_that_keeps_its_rate_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    camera = Bench(usb(lost={9, 20})).open()
    frames_of(camera, 60)
    assert camera.statistics()["rate"] == "30.0 fps where 30 were asked" and "slow" not in caplog.text


# --- stamps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flag", "half"), [(fake.START_OF_EXPOSURE, -1), (0, 1)])
def test_a_stamp_is_moved_to_the_middle_of_the_exposure(flag: int, half: int) -> None:
    stamp: Callable[[int, int], int] = lambda middle_ns, exposure_ns: middle_ns + half * exposure_ns // 2  # noqa: E731
    bench = Bench(usb(stamp_flags=fake.MONOTONIC | flag, stamp=stamp))
    camera = bench.open(exposure_us=2000)
    frame = take(camera)
    assert frame.clock == "driver"
    assert frame.time_ns == pytest.approx(bench.kernel.node.middles[0], abs=1000)
    assert camera.statistics()["stamp"] == f"{'start' if half < 0 else 'end'} of exposure, as the driver flags it"


def test_what_a_stamp_means_can_be_written() -> None:
    bench = Bench(usb(stamp=lambda middle_ns, exposure_ns: middle_ns))
    assert take(bench.open(options={"stamp": "middle"})).time_ns == pytest.approx(bench.kernel.node.middles[0], abs=1000)


@pytest.mark.parametrize("changed", [{"stamp_flags": 0}, {"stamp_flags": 0x4000}, {"stamp": lambda middle, exposure: 0}])
def test_an_unusable_stamp_is_none(changed: dict[str, Any]) -> None:
    frame = take(Bench(usb(**changed)).open())
    assert frame.clock == "none" and frame.time_ns == frame.arrived_ns


def test_tegras_counter_flagged_monotonic_is_found_out_by_its_edges() -> None:
    bench = Bench(tegra())
    camera = bench.open(hardware_trigger=True, **TEGRA)
    proof = StampProof(SECOND // 60, True, 2 * MS)
    proof.listen(bench.clock.now_ns() - SECOND)
    placed = []
    for part in range(20):
        edge_ns = bench.clock.now_ns() + (40 + part) * MS
        bench.kernel.fire(PATH, edge_ns + 2 * MS)
        bench.clock.advance_to(edge_ns)
        proof.on_trigger(edge_ns)
        frame = take(camera)
        assert frame.clock == "driver"
        placed.append((proof.place(frame), edge_ns + 2 * MS))
        frame.release()
    assert [one.clock for one, _ in placed[:3]] == ["none", "none", "monotonic"]
    assert all(abs(one.time_ns - true_ns) < 0.1 * MS for one, true_ns in placed[2:])


# --- loss and return -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [usb, tegra])
def test_an_unplugged_camera_is_lost_in_words_and_comes_back_with_its_settings(make: Callable[..., FakeCamera]) -> None:
    bench, memory = Bench(make()), DeviceMemory()
    camera = bench.open(memory, **TEGRA)
    frame = take(camera)
    bench.kernel.unplug(PATH)
    with pytest.raises(CameraLost, match="it is gone"):
        camera.next_frame(1.0)
    frame.release()
    camera.close()
    with pytest.raises(CameraLost, match="there is no such device"):
        camera.open(memory)
    again = bench.kernel.plug(PATH, make())
    camera.open(memory)
    frames_of(camera, 20)
    exposure = again.of(fake.EXPOSURE).value * 100 if make is usb else again.of(fake.T_EXPOSURE).value
    assert exposure == 300


def test_a_release_after_the_unplugging_harms_nobody() -> None:
    bench = Bench(usb())
    camera = bench.open()
    frame = take(camera)
    bench.kernel.unplug(PATH)
    frame.release()
    with pytest.raises(CameraLost, match="takes no buffer back: it is gone"):
        camera.next_frame(1.0)


def test_a_failed_transfer_is_a_loss() -> None:
    bench = Bench(usb())
    camera = bench.open()
    bench.fake.fails[17] = errno.EIO
    with pytest.raises(CameraLost, match="failed transfer"):
        camera.next_frame(1.0)


def test_a_camera_that_runs_free_and_falls_silent_is_lost() -> None:
    camera = Bench(usb(lost=set(range(10, 1000)))).open()
    frames_of(camera, 10)
    assert camera.next_frame(0.9) is None
    with pytest.raises(CameraLost, match="no whole frame for 1.0 s"):
        camera.next_frame(0.2)


def test_a_camera_all_of_whose_frames_are_broken_is_lost() -> None:
    camera = Bench(usb(flagged=set(range(5, 1000)))).open()
    frames_of(camera, 5)
    with pytest.raises(CameraLost, match=r"\(\d\d broken ones so far\)"):
        for _ in range(10):
            assert camera.next_frame(0.2) is None


def test_a_camera_may_take_its_time_to_the_first_frame() -> None:
    camera = Bench(usb(start_ns=2 * SECOND)).open()
    assert camera.next_frame(1.9) is None
    assert take(camera).sequence == 0


def test_a_judge_that_holds_two_for_long_does_not_make_the_camera_look_dead() -> None:
    camera = Bench(usb()).open()
    take(camera), take(camera)
    for _ in range(20):
        assert camera.next_frame(0.2) is None


def test_a_camera_of_another_program_is_a_loss_in_words() -> None:
    with pytest.raises(CameraLost, match="another program uses it"):
        Bench(usb(fails={5: errno.EBUSY})).open()


def test_a_serial_finds_the_camera_wherever_it_is_plugged_in(tmp_path: Path) -> None:
    bench = Bench(usb())
    node = tmp_path / "usb-Acme_Cam_A17-video-index0"
    for name in ("usb-Acme_Cam_B17-video-index0", "usb-Acme_Cam_A17-video-index1", node.name):
        (tmp_path / name).touch()
    bench.kernel.plug(str(node), usb())
    bench.kernel.unplug(PATH)
    camera = bench.camera(options={"serial": "A17"}, by_id=tmp_path)
    camera.open(PlainMemory())
    take(camera)
    camera.close()
    node.unlink()
    with pytest.raises(CameraLost, match="no camera with serial A17 is plugged in; there are: usb-Acme_Cam_A17-video-index1"):
        camera.open(PlainMemory())


# --- the header ----------------------------------------------------------------------------------------------------------

STRUCTS = {
    "Capability": "v4l2_capability", "FormatOffer": "v4l2_fmtdesc", "Format": "v4l2_format", "SizeOffer": "v4l2_frmsizeenum",
    "IntervalOffer": "v4l2_frmivalenum", "StreamParameters": "v4l2_streamparm", "BufferRequest": "v4l2_requestbuffers",
    "Buffer": "v4l2_buffer", "ControlOffer": "v4l2_query_ext_ctrl", "ControlValue": "v4l2_ext_control",
    "ControlValues": "v4l2_ext_controls",
}  # fmt: skip
# Where our name of a field is not the header's; "" = ours alone.
FIELDS = {
    "Capability": {"bus": "bus_info"},
    "Format": {"gap": "", "rest": "", **{name: f"fmt.pix.{name}" for name in (
        "width", "height", "pixelformat", "field", "bytesperline", "sizeimage", "colorspace", "priv", "flags", "ycbcr_enc",
        "quantization", "xfer_func")}},
    "SizeOffer": {"numbers": "discrete"},
    "IntervalOffer": {"numbers": "discrete"},
    "StreamParameters": {"rest": "", "numerator": "parm.capture.timeperframe.numerator",
                         "denominator": "parm.capture.timeperframe.denominator",
                         **{name: f"parm.capture.{name}" for name in ("capability", "capturemode", "extendedmode",
                                                                      "readbuffers")}},
    "Buffer": {"seconds": "timestamp.tv_sec", "microseconds": "timestamp.tv_usec", "place": "m.userptr"},
    "ControlValue": {"value": "value64"},
    "ControlValues": {"error_index": "error_idx"},
}  # fmt: skip
YOUNGER = {"FormatOffer": ("mbus_code", "reserved"), "BufferRequest": ("flags", "reserved")}  # than some headers
NUMBERS = {
    "QUERYCAP": "VIDIOC_QUERYCAP", "ENUM_FMT": "VIDIOC_ENUM_FMT", "S_FMT": "VIDIOC_S_FMT", "REQBUFS": "VIDIOC_REQBUFS",
    "QUERYBUF": "VIDIOC_QUERYBUF", "QBUF": "VIDIOC_QBUF", "DQBUF": "VIDIOC_DQBUF", "STREAMON": "VIDIOC_STREAMON",
    "STREAMOFF": "VIDIOC_STREAMOFF", "G_PARM": "VIDIOC_G_PARM", "S_PARM": "VIDIOC_S_PARM",
    "G_EXT_CTRLS": "VIDIOC_G_EXT_CTRLS", "S_EXT_CTRLS": "VIDIOC_S_EXT_CTRLS", "ENUM_FRAMESIZES": "VIDIOC_ENUM_FRAMESIZES",
    "ENUM_FRAMEINTERVALS": "VIDIOC_ENUM_FRAMEINTERVALS", "QUERY_EXT_CTRL": "VIDIOC_QUERY_EXT_CTRL",
    "CAPTURE": "V4L2_BUF_TYPE_VIDEO_CAPTURE", "MEMORY_MMAP": "V4L2_MEMORY_MMAP", "MEMORY_USERPTR": "V4L2_MEMORY_USERPTR",
    "CAP_CAPTURE": "V4L2_CAP_VIDEO_CAPTURE", "CAP_STREAMING": "V4L2_CAP_STREAMING", "CAP_DEVICE": "V4L2_CAP_DEVICE_CAPS",
    "CAP_RATE": "V4L2_CAP_TIMEPERFRAME", "FLAG_ERROR": "V4L2_BUF_FLAG_ERROR",
    "STAMP_MASK": "V4L2_BUF_FLAG_TIMESTAMP_MASK", "STAMP_MONOTONIC": "V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC",
    "SOURCE_MASK": "V4L2_BUF_FLAG_TSTAMP_SRC_MASK", "SOURCE_START": "V4L2_BUF_FLAG_TSTAMP_SRC_SOE",
    "PRIV_MAGIC": "V4L2_PIX_FMT_PRIV_MAGIC", "COLORSPACE_JPEG": "V4L2_COLORSPACE_JPEG",
    "QUANTIZATION_LIMITED": "V4L2_QUANTIZATION_LIM_RANGE", "NEXT_CONTROL": "V4L2_CTRL_FLAG_NEXT_CTRL",
    "CONTROL_UNUSABLE": "V4L2_CTRL_FLAG_DISABLED | V4L2_CTRL_FLAG_READ_ONLY", "INTEGER": "V4L2_CTRL_TYPE_INTEGER",
    "BOOLEAN": "V4L2_CTRL_TYPE_BOOLEAN", "MENU": "V4L2_CTRL_TYPE_MENU", "INTEGER64": "V4L2_CTRL_TYPE_INTEGER64",
    "INTEGER_MENU": "V4L2_CTRL_TYPE_INTEGER_MENU", "AUTO_WHITE_BALANCE": "V4L2_CID_AUTO_WHITE_BALANCE",
    "AUTOGAIN": "V4L2_CID_AUTOGAIN", "GAIN": "V4L2_CID_GAIN", "WHITE_BALANCE_K": "V4L2_CID_WHITE_BALANCE_TEMPERATURE",
    "EXPOSURE_MODE": "V4L2_CID_EXPOSURE_AUTO", "EXPOSURE_100US": "V4L2_CID_EXPOSURE_ABSOLUTE",
    "EXPOSURE_PRIORITY": "V4L2_CID_EXPOSURE_AUTO_PRIORITY", "ANALOGUE_GAIN": "V4L2_CID_ANALOGUE_GAIN",
    "MANUAL": "V4L2_EXPOSURE_MANUAL", "APERTURE_PRIORITY": "V4L2_EXPOSURE_APERTURE_PRIORITY", "AUTO": "V4L2_EXPOSURE_AUTO",
}  # fmt: skip
BAYER = [f"{order}{bits}" for order in ("RGGB", "GRBG", "GBRG", "BGGR") for bits in (8, 10, 12)]
FORMATS = {
    "mono8": "GREY", "mono10": "Y10", "mono12": "Y12", "mono16": "Y16", "rgb8": "RGB24", "bgr8": "BGR24", "nv12": "NV12",
    "yuyv": "YUYV", "uyvy": "UYVY", "mjpeg": "MJPEG", **{f"bayer_{one.lower()}": f"S{one}" for one in BAYER},
}  # fmt: skip


def test_every_size_offset_and_number_is_the_headers(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or not Path("/usr/include/linux/videodev2.h").exists():
        pytest.skip("no C compiler, or no linux/videodev2.h")
    ours: dict[str, int] = {}
    for mine, theirs in STRUCTS.items():
        made = getattr(v4l2, mine)
        ours[f"sizeof(struct {theirs})"] = ctypes.sizeof(made)
        for name, *_ in made._fields_:
            field = FIELDS.get(mine, {}).get(name, name)
            if field and name not in YOUNGER.get(mine, ()):
                ours[f"offsetof(struct {theirs}, {field})"] = getattr(made, name).offset
    ours |= {theirs: getattr(v4l2, mine) for mine, theirs in NUMBERS.items()}
    assert set(FORMATS) == set(FOURCC)
    ours |= {f"V4L2_PIX_FMT_{theirs}": fourcc(FOURCC[word]) for word, theirs in FORMATS.items()}
    lines = "\n".join(f'printf("%lu\\n", (unsigned long)(unsigned)({expression}));' for expression in ours)
    source = f"#include <stdio.h>\n#include <stddef.h>\n#include <linux/videodev2.h>\nint main(void){{{lines} return 0;}}"
    (tmp_path / "layout.c").write_text(source)
    subprocess.run([compiler, "-o", tmp_path / "layout", tmp_path / "layout.c"], check=True)
    told = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True).stdout.split()
    assert {what: int(number) for what, number in zip(ours, told)} == ours


def test_the_kernels_mapping_lives_as_long_as_its_last_view_and_keeps_no_descriptor_open(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(b"ab" * mmap.PAGESIZE)
    kernel = v4l2.Kernel()
    fd = kernel.open(str(path))
    view = kernel.mmap(fd, 2 * mmap.PAGESIZE, 0)
    kernel.close(fd)
    part = view[2:4]
    del view
    gc.collect()
    part[0:1] = b"x"
    assert bytes(part) == b"xb" and path.read_bytes()[2:4] == b"xb"
    before = Path("/proc/self/maps").read_text()
    del part
    gc.collect()
    assert str(path) in before and str(path) not in Path("/proc/self/maps").read_text()
