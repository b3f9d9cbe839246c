"""Cameras through jetson-utils: each trap of the library is fallen into once, and what our camera does instead."""

from __future__ import annotations

import ast
import gc
import importlib.metadata
import inspect
import json
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.devices import camera_jetson
from appliance.devices.camera_jetson import JetsonCamera, why_missing
from appliance.devices.memory_plain import PlainMemory
from appliance.inspect.daemon import CameraThread
from appliance.ports import CameraLost, Frame
from tests.contracts.rigs import until
from tests.fakes import fake_jetson_utils
from tests.fakes.fake_jetson_utils import FREED, UNCONVERTED, Crashed, World

SIZE = (8, 6)
CSI, RTSP = "csi://0", "rtsp://user:secret@10.0.0.9/stream"
VENDOR = Path(__file__).parents[1] / "vendor" / "jetson_utils.json"


def scene(value: int) -> np.ndarray:
    """(6, 8, 3): the upper left pixel tells which way up it is."""
    image = np.full((SIZE[1], SIZE[0], 3), value, np.uint8)
    image[0, 0] = (255, value, 0)
    return image


def pixels(frame: Frame) -> np.ndarray:
    return np.frombuffer(frame.memory, np.uint8).reshape(frame.size[1], frame.pitch_bytes // 3, 3)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def utils(world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = world.utils()
    monkeypatch.setitem(sys.modules, "jetson_utils", module)
    return module


def camera_of(world: World, address: str = CSI, **others: Any) -> JetsonCamera:
    values = {"size": SIZE, "fps": 30.0, "flip": "none", "clock": world, **others}
    return JetsonCamera("top", address, **values)


@pytest.fixture
def camera(world: World, utils: Any) -> JetsonCamera:
    world.sensor(CSI)
    camera = camera_of(world)
    camera.open(PlainMemory())
    return camera


def shown(world: World, camera: JetsonCamera, value: int, address: str = CSI) -> Frame:
    """A frame that comes while the camera waits for it."""
    world.after(10, lambda: world.sensors[address].show(scene(value)))
    frame = camera.next_frame(0.2)
    assert frame is not None
    return frame


# --- the camera in the shape of its port -----------------------------------------------------------------


def test_a_frame_is_where_the_gpu_finds_it_and_tells_what_it_is(world: World, camera: JetsonCamera) -> None:
    frame = shown(world, camera, 7)
    assert (pixels(frame) == scene(7)).all()
    assert (frame.size, frame.pitch_bytes, frame.pixel, frame.clock) == (SIZE, 24, "rgb8", "none")
    assert frame.address in world.blocks and len(frame.memory) == 8 * 6 * 3 and frame.memory.ndim == 1
    assert frame.time_ns == frame.arrived_ns == world.now_ns()
    assert camera.frame_copies == 1


def test_an_idle_line_is_none_after_the_time_out(world: World, camera: JetsonCamera) -> None:
    before = world.now_ns()
    assert camera.next_frame(0.2) is None
    assert world.now_ns() - before == 200_000_000


def test_sequence_numbers_jump_by_the_frames_that_were_never_fetched(world: World, camera: JetsonCamera) -> None:
    first = shown(world, camera, 1)
    world.after(1, lambda: [world.sensors[CSI].show(scene(value)) for value in (2, 3, 4)] and None)
    world.after(2, lambda: world.sensors[CSI].show(scene(5)))
    newest = camera.next_frame(0.2)
    assert newest is not None and pixels(newest)[1, 1, 0] == 4
    after = camera.next_frame(0.2)
    assert after is not None and (after.sequence - first.sequence, camera.statistics()["gaps"]) == (3, 1)
    # One of the two lost ones may be waiting in the pipeline, as far as anyone can know; the next loss is told whole.
    world.after(1, lambda: [world.sensors[CSI].show(scene(value)) for value in (6, 7)] and None)
    last = camera.next_frame(0.2)
    assert last is not None and camera.statistics()["gaps"] == 2


def test_it_can_be_opened_again_after_each_loss_and_counts_on(world: World, camera: JetsonCamera) -> None:
    last = 0
    for round in range(3):
        frame = shown(world, camera, round)
        assert frame.sequence > last
        last = frame.sequence
        frame.release()
        world.sensors[CSI].die()
        with pytest.raises(CameraLost, match="no frame for 2.* opened anew"):
            for _ in range(20):
                camera.next_frame(0.2)
        camera.close()
        world.sensors[CSI].alive = True
        camera.open(PlainMemory())
    assert (camera.statistics()["opened"], camera.statistics()["lost"]) == (4, 3)
    assert world.sources_alive == 1


def test_the_camera_thread_of_inspectd_gets_it_back_while_the_judge_holds_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(real=True)
    monkeypatch.setitem(sys.modules, "jetson_utils", world.utils())
    sensor, got = world.sensor(CSI), []

    def hand_over(_: str, one: Frame | CameraLost | None) -> None:
        if isinstance(one, CameraLost):
            thread.forgotten.set()
        if one is not None:
            got.append(one)

    thread = CameraThread(camera_of(world), PlainMemory(), hand_over)
    thread.start()

    def more() -> bool:
        sensor.show(scene(len(got) % 200))
        return sum(isinstance(one, Frame) for one in got) > wanted

    wanted = 5
    until(more)
    sensor.end()
    until(lambda: any(isinstance(one, CameraLost) for one in got))
    for one in got:
        if isinstance(one, Frame):
            one.release()
    sensor.ended = False
    wanted = sum(isinstance(one, Frame) for one in got)
    until(more)
    thread.stopping.set()
    thread.join(10)
    frames = [one for one in got if isinstance(one, Frame)]
    assert not thread.is_alive() and [one.sequence for one in frames] == sorted({one.sequence for one in frames})


def test_a_camera_that_is_not_there_is_lost_in_words(world: World, utils: Any) -> None:
    with pytest.raises(CameraLost, match="ribbon cable.*nvargus-daemon"):
        camera_of(world).open(PlainMemory())
    with pytest.raises(CameraLost, match="check the address"):
        camera_of(world, RTSP).open(PlainMemory())


def test_a_stream_that_ended_is_lost_and_its_password_is_not_told(world: World, utils: Any) -> None:
    sensor = world.sensor(RTSP)
    camera = camera_of(world, RTSP)
    camera.open(PlainMemory())
    shown(world, camera, 3, RTSP)
    sensor.end()
    with pytest.raises(CameraLost, match="failed or its stream ended") as lost:
        camera.next_frame(0.2)
    assert "secret" not in str(lost.value) and "10.0.0.9" in str(lost.value)


def test_another_size_or_rate_than_configured_is_lost(world: World, utils: Any) -> None:
    world.sensor(CSI, (16, 12), 30)
    with pytest.raises(CameraLost, match=r"gives 16 x 12, the configuration says 8 x 6; correct cameras.top.size"):
        camera_of(world).open(PlainMemory())
    world.sensor(CSI, SIZE, 20)
    with pytest.raises(CameraLost, match="gives 20 frames per second, the configuration says 30"):
        camera_of(world).open(PlainMemory())


def test_a_stream_that_changes_its_size_is_lost(world: World, utils: Any) -> None:
    sensor = world.sensor(RTSP)
    camera = camera_of(world, RTSP)
    camera.open(PlainMemory())
    world.after(5, lambda: sensor.show(np.zeros((12, 16, 3), np.uint8)))
    with pytest.raises(CameraLost, match="16 x 12"):
        camera.next_frame(0.2)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"pixel": "mono8"}, "gives rgb8.*v4l2://"),
        ({"flip": "rotate180"}, "write one of none, rotate-180"),
        ({"fps": 29.97}, "cuts 29.97 fps to 29"),
    ],
)
def test_what_the_library_would_silently_do_otherwise_is_refused(world: World, utils: Any, others: Any, words: str) -> None:
    world.sensor(CSI)
    with pytest.raises(CameraLost, match=words):
        camera_of(world, **others).open(PlainMemory())


def test_the_library_is_given_no_options_of_ours_and_all_of_the_streams(world: World, utils: Any) -> None:
    world.sensor(CSI)
    world.sensor(RTSP + "?channel=2")
    camera_of(world, CSI + "?flip=rotate-180", flip="rotate-180").open(PlainMemory())
    camera_of(world, RTSP + "?channel=2").open(PlainMemory())


def test_a_network_stream_is_neither_scaled_nor_retimed(world: World, utils: Any) -> None:
    camera = camera_of(world, RTSP)
    assert not {"width", "height", "framerate"} & set(camera._options())


# --- trap 1, 2, 3: which library is it -------------------------------------------------------------------


def test_trap_1_the_strangers_package_imports_fine(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jetson_utils", fake_jetson_utils.strangers())
    import jetson_utils  # type: ignore[import-not-found]  # the trap: no error

    assert not hasattr(jetson_utils, "videoSource")
    with pytest.raises(CameraLost, match="stranger's.*pip uninstall jetson-utils.*dusty-nv"):
        camera_of(world).open(PlainMemory())


def test_trap_1_the_strangers_package_is_known_without_running_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.10" if name == "jetson-utils" else "1")
    monkeypatch.setitem(sys.modules, "jetson_utils", None)  # importing it would be an ImportError: other words
    with pytest.raises(CameraLost, match="stranger's"):
        camera_of(world).open(PlainMemory())


def test_trap_2_without_the_extension_the_import_succeeds_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jetson_utils", fake_jetson_utils.without_extension())
    import jetson_utils

    assert not hasattr(jetson_utils, "videoSource")
    with pytest.raises(CameraLost, match="without its C extension"):
        camera_of(world).open(PlainMemory())


@pytest.mark.parametrize("name", ["HAS_JETSON_UTILS_EXT", "cudaStreamCreate"])
def test_trap_2_an_older_build_is_told(world: World, utils: Any, name: str) -> None:
    delattr(utils, name)
    with pytest.raises(CameraLost, match="too old"):
        camera_of(world).open(PlainMemory())


R36, R39 = "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic", "# R39 (release), REVISION: 2.1"


@pytest.mark.parametrize(
    ("name", "release", "in_venv", "beside", "words"),
    [
        ("jetson_utils", R36, True, True, "--system-site-packages"),
        ("jetson_utils", R36, True, False, "never the package of that name"),
        ("jetson_utils", R36, False, False, "never the package of that name"),
        ("jetson_utils", R39, True, True, "not there.*JetPack 7.*v4l2://"),
        ("jetson_utils", "", False, False, "no Jetson"),
        ("termcolor", R36, False, True, "there but does not load"),
    ],
)
def test_trap_3_why_it_cannot_be_imported(name: str, release: str, in_venv: bool, beside: bool, words: str) -> None:
    import re

    assert re.search(words, why_missing(ImportError(f"No module named {name!r}", name=name), release, in_venv, beside))


def test_trap_3_on_this_machine_the_real_one_is_not_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jetson_utils", None)
    with pytest.raises(CameraLost, match="jetson-utils is not there|there but does not load"):
        camera_of(world).open(PlainMemory())


# --- trap 4: time-outs, errors, death --------------------------------------------------------------------


def test_trap_4_a_time_out_is_none_an_end_is_a_bare_exception_and_a_dead_camera_streams(world: World, utils: Any) -> None:
    source = utils.videoSource(CSI if world.sensor(CSI) else "", options={})
    assert source.Capture(timeout=5) is None
    world.sensors[CSI].die()
    assert source.Capture(timeout=5) is None and source.IsStreaming() is True
    world.sensors[CSI].end()
    with pytest.raises(Exception, match="failed to capture image") as raised:
        source.Capture(timeout=5)
    assert type(raised.value) is Exception


def test_trap_4_open_called_by_hand_ends_the_process(world: World, utils: Any, camera: JetsonCamera) -> None:
    world.sensors[CSI].die()
    with pytest.raises(Crashed):
        utils.videoSource(CSI).Open()
    assert "Open" not in _called("source")


def test_trap_4_the_first_frame_may_take_longer_than_later_silence(world: World, camera: JetsonCamera) -> None:
    for _ in range(30):
        assert camera.next_frame(0.2) is None  # six seconds: Argus acquires the sensor
    shown(world, camera, 1)
    with pytest.raises(CameraLost):
        for _ in range(12):
            camera.next_frame(0.2)


def test_trap_4_a_wall_clock_set_back_stretches_a_wait_and_is_told(world: World, camera: JetsonCamera) -> None:
    shown(world, camera, 1)
    world.clock_step_ns = 3_600_000_000_000
    with pytest.raises(CameraLost, match="no frame for 3600"):  # on the monotonic clock
        camera.next_frame(0.2)
    assert camera.statistics()["stretched_waits"] == 1


def test_trap_4_a_wall_clock_set_forward_ends_no_wait(world: World, camera: JetsonCamera) -> None:
    shown(world, camera, 1)
    world.clock_step_ns, before = -3_600_000_000_000, world.now_ns()
    assert camera.next_frame(0.2) is None and world.now_ns() - before == 200_000_000


# --- trap 5: the ring ------------------------------------------------------------------------------------


def test_trap_5_a_captured_image_is_overwritten_by_the_fourth_after_it(world: World, utils: Any) -> None:
    sensor = world.sensor(CSI)
    source = utils.videoSource(CSI, options={"flipMethod": "rotate-180"})
    source.Capture(timeout=0)  # the first one starts the pipeline
    kept = []
    for value in range(5):
        sensor.show(scene(value))
        kept.append(source.Capture(timeout=0))
        utils.cudaDeviceSynchronize()
    assert [int(world.pixels(image)[1, 1, 0]) for image in kept] == [4, 1, 2, 3, 4]


def test_trap_5_an_image_of_a_source_that_is_gone_dangles(world: World, utils: Any) -> None:
    sensor = world.sensor(CSI)
    source = utils.videoSource(CSI)
    source.Capture(timeout=0)
    sensor.show(scene(9))
    image = source.Capture(timeout=0)
    utils.cudaDeviceSynchronize()
    del source
    gc.collect()
    assert image.ptr not in world.blocks and (world.pixels(image) == FREED).all()


def test_trap_5_a_buffer_that_is_held_is_never_overwritten(world: World, utils: Any) -> None:
    world.sensor(CSI)
    camera = camera_of(world, buffers=4)
    camera.open(PlainMemory())
    held = shown(world, camera, 1)
    for value in (2, 3, 4):
        shown(world, camera, value).release()
    world.sensors[CSI].show(scene(5))
    assert camera.next_frame(0.02) is None  # its buffer's turn: nothing is fetched
    assert (pixels(held) == scene(1)).all() and camera.statistics()["held_back"] == 1
    held.release()
    assert shown(world, camera, 6).sequence > held.sequence


def test_trap_5_what_waited_while_nothing_was_fetched_is_not_stamped_as_new(world: World, utils: Any) -> None:
    world.sensor(CSI)
    camera = camera_of(world, buffers=2)
    camera.open(PlainMemory())
    held = [shown(world, camera, 1), shown(world, camera, 2)]
    assert camera.next_frame(0.01) is None
    world.sensors[CSI].show(scene(3))
    world.pass_time(50)
    for frame in held:
        frame.release()
    world.after(20, lambda: world.sensors[CSI].show(scene(4)))
    frame = camera.next_frame(0.2)
    assert frame is not None and pixels(frame)[1, 1, 0] == 4 and frame.arrived_ns == world.now_ns()
    assert camera.statistics()["stale"] == 1 and frame.sequence == held[-1].sequence + 2


def test_what_the_pipeline_lost_while_nothing_was_fetched_is_counted_whole(world: World, camera: JetsonCamera) -> None:
    last = shown(world, camera, 1)
    for value in (2, 3, 4):
        world.pass_time(30)
        world.sensors[CSI].show(scene(value))
    world.pass_time(30)
    frame = shown(world, camera, 5)
    assert pixels(frame)[1, 1, 0] == 5 and frame.sequence == last.sequence + 4
    assert (camera.statistics()["gaps"], camera.statistics()["stale"]) == (3, 1)


def test_trap_5_a_release_from_another_thread_lets_a_waiting_camera_go_on(world: World, utils: Any) -> None:
    world.sensor(CSI)
    camera = camera_of(world, buffers=1)
    camera.open(PlainMemory())
    held = shown(world, camera, 1)
    world.sensors[CSI].show(scene(2))
    threading.Timer(0.01, held.release).start()
    assert camera._ring is not None and camera._ring.wait_for_room(10.0)


def test_trap_5_a_frame_held_over_a_loss_stays_readable_until_it_is_released(world: World, camera: JetsonCamera) -> None:
    held = shown(world, camera, 9)
    camera.close()
    camera.open(PlainMemory())  # the sensor is free although the old source lives
    shown(world, camera, 3).release()
    assert (pixels(held) == scene(9)).all() and world.sources_alive == 2
    held.release()
    assert world.sources_alive == 2  # not in the judge's thread
    camera.close()
    assert world.sources_alive == 0


def test_trap_5_frames_that_are_void_and_dropped_do_not_keep_old_rings(world: World, camera: JetsonCamera) -> None:
    for value in range(3):
        frame = shown(world, camera, value)
        camera.close()
        del frame  # as the judge does when a camera is lost
        camera.open(PlainMemory())
    gc.collect()
    camera.close()
    assert world.sources_alive == 0


def test_trap_5_an_error_that_is_kept_does_not_keep_the_sensor_busy(world: World, camera: JetsonCamera) -> None:
    shown(world, camera, 1).release()
    world.sensors[CSI].end()
    kept = []
    for _ in range(3):
        try:
            camera.next_frame(0.2)
        except CameraLost as why:
            kept.append(why)
        camera.close()
        world.sensors[CSI].ended = False
        camera.open(PlainMemory())
        shown(world, camera, 2).release()
        world.sensors[CSI].end()
    assert len(kept) == 3 and world.sources_alive == 1


# --- trap 6: conversion is asynchronous ------------------------------------------------------------------


def test_trap_6_pixels_are_not_there_until_the_stream_was_waited_for(world: World, utils: Any) -> None:
    sensor = world.sensor(CSI)
    source, stream = utils.videoSource(CSI), utils.cudaStreamCreate(nonblocking=True)
    source.Capture(timeout=0)
    sensor.show(scene(9))
    image = source.Capture(timeout=0, stream=stream)
    assert (world.pixels(image) == UNCONVERTED).all()
    utils.cudaStreamSynchronize(stream)
    assert (world.pixels(image) == scene(9)[::-1, ::-1]).all()


def test_trap_6_a_graph_captured_meanwhile_is_left_alone(world: World, utils: Any, camera: JetsonCamera) -> None:
    world.capturing_graph = True
    with pytest.raises(Crashed):
        utils.cudaDeviceSynchronize()
    assert (pixels(shown(world, camera, 4)) == scene(4)).all() and world.device_waits == 1


# --- trap 7, 8, 9 ----------------------------------------------------------------------------------------


def test_trap_7_its_time_stamp_is_the_pipelines_running_time(world: World, utils: Any, camera: JetsonCamera) -> None:
    sensor = world.sensor("csi://1")
    source = utils.videoSource("csi://1")
    source.Capture(timeout=0)
    sensor.show(scene(1))
    image = source.Capture(timeout=0)
    assert image.timestamp < 1_000_000_000 < world.now_ns()
    assert shown(world, camera, 1).clock == "none"


def test_trap_8_a_misspelt_format_gives_the_raw_image(world: World, utils: Any, camera: JetsonCamera) -> None:
    sensor = world.sensor("csi://1")
    source = utils.videoSource("csi://1")
    source.Capture(timeout=0)
    sensor.show(scene(1))
    assert source.Capture(format="rgb", timeout=0).format == "nv12"
    world.after(5, lambda: world.sensors[CSI].show(scene(1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(camera_jetson, "FORMAT", "rbg8")
        with pytest.raises(CameraLost, match="nv12 where 8 x 6 rbg8 was asked"):
            camera.next_frame(0.2)


def test_trap_8_a_sensor_is_turned_by_default_and_flip_none_is_as_it_sees(world: World, utils: Any) -> None:
    sensor = world.sensor(CSI)
    source = utils.videoSource(CSI, options={"flipMethod": "none"})
    source.Capture(timeout=0)
    sensor.show(scene(1))
    image = source.Capture(timeout=0)
    utils.cudaDeviceSynchronize()
    assert (world.pixels(image)[-1, -1] == (255, 1, 0)).all()  # upside down
    del source
    gc.collect()
    for flip, corner in (("none", (0, 0)), ("rotate-180", (-1, -1))):
        camera = camera_of(world, flip=flip)
        camera.open(PlainMemory())
        assert (pixels(shown(world, camera, 1))[corner] == (255, 1, 0)).all() and camera.statistics()["flip"] == flip
        camera.close()


def test_trap_8_a_network_stream_is_not_turned(world: World, utils: Any) -> None:
    world.sensor(RTSP)
    camera = camera_of(world, RTSP)
    camera.open(PlainMemory())
    assert (pixels(shown(world, camera, 1, RTSP))[0, 0] == (255, 1, 0)).all()


def test_trap_9_memory_of_the_device_alone_is_refused(world: World, utils: Any, camera: JetsonCamera) -> None:
    assert camera._ring is not None
    camera._ring.source._pipeline.options["zeroCopy"] = False
    world.after(5, lambda: world.sensors[CSI].show(scene(1)))
    with pytest.raises(CameraLost, match="memory the CPU cannot read"):
        camera.next_frame(0.2)


def test_the_interface_dict_leaks_once_per_image_and_is_not_touched(world: World, utils: Any, camera: JetsonCamera) -> None:
    for _ in range(3):
        image = utils.cudaImage(4, 4)
        assert image.__cuda_array_interface__["data"][0] == image.ptr
    assert world.leaked_dicts == 3
    for value in range(20):
        shown(world, camera, value).release()
    assert world.leaked_dicts == 3


# --- the recorded names ----------------------------------------------------------------------------------


def recorded() -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(VENDOR.read_text())}


def _called(variable: str) -> set[str]:
    """Attributes our camera asks of a variable or attribute of that name."""
    tree = ast.parse(inspect.getsource(camera_jetson))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {
        node.attr for node in found
        if (isinstance(node.value, ast.Name) and node.value.id == variable)
        or (isinstance(node.value, ast.Attribute) and node.value.attr == variable)
    }  # fmt: skip


def test_every_name_the_camera_asks_for_is_recorded() -> None:
    names = set(recorded())
    assert {f"videoSource.{one}" for one in _called("source")} <= names
    assert {f"cudaImage.{one}" for one in _called("image")} <= names
    assert _called("_library") | _called("jetson_utils") <= names
    assert {f"videoSource.{one}" for one in _called("source") | {"CaptureNV12"}} - names == {"videoSource.CaptureNV12"}


def test_the_stand_in_has_the_recorded_names_and_signatures(utils: Any) -> None:
    assert signatures_of(utils, recorded()) == []
    assert public_names(utils) == {name for name in recorded()} | {"HAS_JETSON_UTILS_EXT"}


def public_names(module: types.ModuleType) -> set[str]:
    found = set()
    for name, one in vars(module).items():
        if not name.startswith("_"):
            found |= {name} | ({f"{name}.{attribute}" for attribute in _attributes(one)} if inspect.isclass(one) else set())
    return found


def _attributes(one: type) -> set[str]:
    """Methods and properties, and what __init__ leaves on an instance."""
    inside = {name for base in one.__mro__[:-1] for name in vars(base) if not name.startswith("_") or name.endswith("face__")}
    try:
        inside |= {name for name in vars(one(*(1 for _ in _required(one)))) if not name.startswith("_")}
    except Exception:  # a source that is not there
        pass
    return inside


def _required(one: Callable[..., Any]) -> list[str]:
    return [name for name, value in inspect.signature(one).parameters.items() if value.default is inspect.Parameter.empty]


def signatures_of(module: types.ModuleType, names: dict[str, dict[str, Any]]) -> list[str]:
    """Where a stand-in's signature is not the recorded one."""
    wrong = []
    for name, one in names.items():
        if one["signature"] is None:
            continue
        target: Any = module
        for part in name.split("."):
            target = getattr(target, part)
        signature = inspect.signature(target)
        if one["kind"] == "method" and "self" in signature.parameters:
            signature = signature.replace(parameters=list(signature.parameters.values())[1:])
        bare = signature.replace(
            parameters=[value.replace(annotation=inspect.Parameter.empty) for value in signature.parameters.values()],
            return_annotation=inspect.Signature.empty,
        )
        if str(bare) != one["signature"]:
            wrong.append(f"{name}: {bare} is not {one['signature']}")
    return wrong
