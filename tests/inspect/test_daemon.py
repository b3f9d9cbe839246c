"""inspectd around its inspector: what it tells while engines are built, how it ends, what a lost GPU makes of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.clock import SystemClock
from appliance.inspect.daemon import InspectBuild, Inspectd, Loaded
from appliance.inspect.matching import Matcher
from appliance.inspect.stamps import StampProof
from appliance.link import Listener, SocketLink
from appliance.messages import Command, Event, FrameSeen, Health, InspectState, Message, Trigger, Verdict
from appliance.model.golden import GoldenError
from appliance.paths import Paths
from appliance.ports import CameraLost, EngineError, EngineLost, Frame, FrameMemory, LinkClosed
from tests.contracts.rigs import until
from tests.inspect.test_inspector import Network, station

CLOCK = SystemClock()
MS = 1_000_000


class Camera:
    """Gives the frames that are put into it; ``clock`` as a driver's stamps are, or known."""

    name, frame_copies = "top", 0

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.released: list[int] = []
        self._more = threading.Condition()

    def put(self, sequence: int, clock: Any = "monotonic") -> Frame:
        now_ns = CLOCK.now_ns()
        frame = Frame(
            memoryview(bytearray(64)), 0, 8, (8, 8), "mono8", sequence, now_ns - MS, now_ns,
            lambda: self.released.append(sequence), clock,
        )  # fmt: skip
        with self._more:
            self.frames.append(frame)
            self._more.notify()
        return frame

    def open(self, memory: FrameMemory) -> None: ...

    def next_frame(self, timeout_s: float) -> Frame | None:
        with self._more:
            if not self.frames:
                self._more.wait(timeout_s)
            return self.frames.pop(0) if self.frames else None

    def close(self) -> None: ...

    def statistics(self) -> dict[str, Any]:
        return {}


class Behaving(Network):
    def statistics(self) -> dict[str, Any]:
        return {"why": "a stand-in"}


class House:
    """An Inspectd with both far sides, stepped by the test."""

    def __init__(self, folder: Path, scores: dict[int, object], **changes: Any) -> None:
        self.paths = Paths(folder / "run", folder / "data").make()
        self.listeners = [Listener(self.paths.reject_socket), Listener(self.paths.report_socket)]
        self.links: list[SocketLink] = []
        self.heard: dict[int, list[Message]] = {0: [], 1: []}
        self.camera, self.closed = Camera(), 0
        inspector, _ = station({"top": scores})
        look = replace(inspector.looks[0], network=Behaving(scores))
        self.recipe = replace(inspector._recipe, looks=(look,))
        usual: dict[str, Any] = {
            "load": lambda progress: Loaded(self.recipe, [], None, self._close),  # type: ignore[arg-type]
            "cameras": {"top": self.camera}, "matchers": {"top": Matcher(0, 20 * MS, 100 * MS, wait_for_second=False)},
            "stamps": {"top": StampProof(10 * MS, False, 0)}, "slot_bytes": 64, "image_quota_bytes": 10**9,
            "frame_trigger": None,
        }  # fmt: skip
        self.daemon = Inspectd(InspectBuild(**{**usual, **changes}), self.paths, CLOCK)

    def _close(self) -> None:
        self.closed += 1

    def listen(self) -> dict[int, list[Message]]:
        """All that rejectd (0) and reportd (1) were told so far."""
        for number, listener in enumerate(self.listeners):
            link = listener.accept()
            if link:
                self.links.append(link)
                link.number = number  # type: ignore[attr-defined]
        for link in self.links:
            try:
                while told := link.receive():
                    self.heard[link.number] += told  # type: ignore[attr-defined]
            except LinkClosed:
                continue  # it ended; what it said before is heard
        return self.heard

    def states(self) -> list[InspectState]:
        return [one for one in self.listen()[0] if isinstance(one, InspectState)]

    def run(self) -> threading.Thread:
        thread = threading.Thread(target=self.daemon.run, name="inspectd of a test")
        thread.start()
        return thread


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path, {1: 0.9, 2: 0.1, 3: EngineLost("the GPU failed")})
    yield made
    made.daemon.stopping = True
    made.daemon.wake()


def test_a_build_tells_rejectd_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.inspect.daemon.PROGRESS_NS", 0)
    shares: list[float] = []

    def load(progress: Any) -> Loaded:
        for share in (0.0, 0.25, 0.5, 1.0):
            progress("timing kernels", share)
            shares.append(house.states()[-1].progress)
        return Loaded(house.recipe, [], None, house._close)  # type: ignore[arg-type]

    house = House(tmp_path, {}, load=load)
    house.listen()
    house.daemon.load()
    assert shares[1:] == [0.25, 0.5, 1.0], "each is told while the build goes on"
    told = house.states()
    assert [one.state for one in told][1:4] == ["building"] * 3 and told[2].reason == "timing kernels"
    house.daemon._send()
    assert house.states()[-1].state == "ready"
    house.daemon.close()
    assert house.closed == 1


def test_a_stop_while_an_engine_is_built_ends_the_build(tmp_path: Path) -> None:
    def load(progress: Any) -> Loaded:
        house.daemon.stopping = True  # SIGTERM's handler
        with pytest.raises(EngineError, match="stopped while"):
            progress("timing kernels", 0.3)
        raise EngineError("stopped")

    house = House(tmp_path, {}, load=load)
    house.daemon.load()
    house.daemon.run()
    house.daemon.close()


def test_a_refused_engine_is_a_fault_in_its_own_words_and_not_an_end(tmp_path: Path) -> None:
    def load(progress: Any) -> Loaded:
        raise EngineError("no CUDA driver answers")

    house = House(tmp_path, {}, load=load)
    house.daemon.load()
    house.daemon._send()
    until(lambda: any(one.state == "fault" and "no CUDA driver" in one.reason for one in house.states()))
    assert not house.daemon.failed
    house.daemon.close()


def test_a_gpu_that_is_lost_ends_the_process_and_says_which_part_met_it(house: House) -> None:
    house.daemon.load()
    thread = house.run()
    house.listen()
    frame = house.camera.put(3)
    until(lambda: len(house.links) == 2 or not house.listen())
    _to_inspectd(house, Trigger(7, frame.time_ns, frame.time_ns + 10**10, "r"))
    thread.join(10)
    assert not thread.is_alive() and house.daemon.failed
    house.daemon.close()
    told = house.listen()
    verdicts = [one for one in told[0] if isinstance(one, Verdict)]
    assert [(one.part, one.verdict, one.cause) for one in verdicts] == [(7, "blind", "engine")]
    assert any(isinstance(one, Event) and one.kind == "engine_lost" for one in told[1])
    assert house.states()[-1].state == "fault"
    assert house.closed == 0, "a lost GPU is not taken down piece by piece, which may hang: it goes with the process"


def test_a_gpu_that_is_lost_at_its_golden_vectors_ends_the_process(tmp_path: Path) -> None:
    """Only a new one judges again: a fault that waits for a person would wait for nothing."""

    def load(progress: Any) -> Loaded:
        raise EngineLost("the GPU failed")

    house = House(tmp_path, {}, load=load)
    house.daemon.load()
    house.daemon.run()
    house.daemon.close()
    assert house.daemon.failed and house.states()[-1].state == "fault"
    assert any(isinstance(one, Event) and one.kind == "engine_lost" for one in house.listen()[1])


def test_a_frame_that_nobody_can_place_goes_back_and_announces_no_part(tmp_path: Path) -> None:
    house = House(tmp_path, {1: 0.9}, frame_trigger="top")
    house.daemon.load()
    thread = house.run()
    house.camera.put(1, "driver")
    until(lambda: house.camera.released == [1])
    house.camera.put(2)
    until(lambda: any(isinstance(one, FrameSeen) for one in house.listen()[0]))
    assert [one.sequence for one in house.listen()[0] if isinstance(one, FrameSeen)] == [2]
    house.daemon.stopping = True
    house.daemon.wake()
    thread.join(10)
    house.daemon.close()


def test_health_tells_copies_stamps_and_engines(house: House) -> None:
    house.daemon.load()
    house.daemon._health(CLOCK.now_ns())
    house.daemon._send()
    (health,) = until(lambda: [one for one in house.listen()[1] if isinstance(one, Health)])
    assert health.values["frame_copies"] == 0 and health.values["engines"] == {"top": {"why": "a stand-in"}}
    assert "method" in health.values["top"]["stamps"]
    house.daemon._inspector.looks[0].network.frame_copies = 4  # type: ignore[union-attr]
    assert house.daemon._copies_per_frame() == 1, "frames were copied since the last look"
    assert house.daemon._copies_per_frame() == 0, "and none since this one"
    house.daemon.close()


def test_a_camera_that_hangs_at_the_end_keeps_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(tmp_path, {})
    inside, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(house.camera, "next_frame", lambda timeout_s: (inside.set(), ended.wait(30))[0])
    house.daemon.load()
    assert inside.wait(10)
    house.daemon.close()
    assert house.closed == 0 and house.daemon.failed, "nothing is freed under a camera that may still write"
    ended.set()


def test_a_camera_that_is_lost_begins_its_proof_anew(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.daemon.load()
    forgotten: list[int] = []
    proof = house.daemon._build.stamps["top"]
    monkeypatch.setattr(proof, "forget", lambda: forgotten.append(1))
    house.daemon._frame_came("top", CameraLost("unplugged"))
    house.daemon._take_frames()
    assert forgotten == [1]
    house.daemon.close()


@pytest.mark.parametrize("where", ["open", "next_frame", "close"])
def test_a_camera_that_fails_in_a_way_nobody_foresaw_is_lost_and_comes_back(
    house: House, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """An error no camera should raise (OSError: no route, MemoryRefused) killed its thread, and nobody was told."""
    sound, failed = getattr(house.camera, where), threading.Event()

    def fails(*given: Any) -> Any:
        if not failed.is_set():
            failed.set()
            raise OSError(101, "Network is unreachable")
        return sound(*given)

    if where == "close":
        monkeypatch.setattr(house.camera, "next_frame", _raises_once(house.camera.next_frame))
    monkeypatch.setattr(house.camera, where, fails)
    house.daemon.load()
    thread = house.run()
    until(lambda: failed.is_set() and any(one.reason.startswith("camera top: ") for one in house.states()))
    house.camera.put(5)
    until(lambda: house.states()[-1].state == "ready")
    assert where == "close" or any("Network is unreachable" in one.reason for one in house.states())
    _end(house, thread)


def _raises_once(sound: Any) -> Any:
    lost = [CameraLost("unplugged")]
    return lambda timeout_s: sound(timeout_s) if not lost else (_ for _ in ()).throw(lost.pop())


def _end(house: House, thread: threading.Thread) -> None:
    house.daemon.stopping = True
    house.daemon.wake()
    thread.join(10)
    house.daemon.close()


def test_a_lost_camera_is_opened_anew_only_when_the_judge_looks_at_none_of_its_frames(house: House) -> None:
    """Else the driver fills a buffer that is being judged, and a part gets the picture of another."""
    opened: list[int] = []
    house.camera.open = lambda memory: opened.append(1)  # type: ignore[method-assign]
    house.camera.next_frame = _raises_once(house.camera.next_frame)  # type: ignore[method-assign]
    house.daemon.load()
    until(lambda: house.daemon._frames.qsize() == 2)  # it was opened, it was lost; the judge looks at a part meanwhile
    thread = house.daemon._threads[0]
    thread.stopping.wait(0.5)
    assert opened == [1]
    house.daemon._take_frames()
    until(lambda: opened == [1, 1])
    house.daemon.close()


def test_a_camera_that_the_photo_eye_fires_is_back_before_its_next_part(tmp_path: Path) -> None:
    """A line that waits for `ready` sends no part, and without one such a camera gives no frame: nobody would go first."""
    for hardware, state in ((True, "ready"), (False, "starting")):
        house = House(tmp_path / str(hardware), {}, stamps={"top": StampProof(10 * MS, hardware, 0)})
        house.camera.next_frame = _raises_once(house.camera.next_frame)  # type: ignore[method-assign]
        house.daemon.load()
        thread = house.run()
        opened = [one for one in (1, 2)]
        house.camera.open = lambda memory: opened.pop()  # type: ignore[method-assign,misc]  # noqa: B023
        until(lambda: any(one.reason for one in house.states() if "unplugged" in one.reason))  # noqa: B023
        until(lambda: house.daemon._frames.empty() and len(opened) == 1)  # noqa: B023
        if hardware:
            until(lambda: house.states()[-1].state == state)  # noqa: B023
        house.daemon.wake()
        assert house.states()[-1].state == state
        _end(house, thread)


def _story(told: list[Message]) -> list[str | int]:
    """States and announced frames, in their order."""
    kinds = [one for one in told if isinstance(one, (InspectState, FrameSeen))]
    return [one.sequence if isinstance(one, FrameSeen) else one.state for one in kinds]


def test_a_frame_that_was_lost_where_each_is_a_part_is_a_part_nobody_announced(tmp_path: Path) -> None:
    house = House(tmp_path, {}, frame_trigger="top")
    house.daemon.load()
    thread = house.run()
    for number in (7, 8, 9, 12, 13):
        house.camera.put(number)
    told = until(lambda: (told := house.listen()[0]) and [one for one in told if isinstance(one, FrameSeen)][4:] and told)
    story = _story(told)
    assert story[-7:] == [7, 8, 9, "starting", "ready", 12, 13], "law 6: what is on the belt is unknown"
    assert any(isinstance(one, Event) and one.kind == "frames_lost" and one.data["count"] == 2 for one in house.listen()[1])
    _end(house, thread)


def test_a_frame_placed_nowhere_where_each_is_a_part_is_a_part_nobody_announced(tmp_path: Path) -> None:
    house = House(tmp_path, {}, frame_trigger="top")
    house.daemon.load()
    thread = house.run()
    for number, clock in ((1, "monotonic"), (2, "driver"), (3, "monotonic")):
        house.camera.put(number, clock)
    told = until(lambda: (told := house.listen()[0]) and [one for one in told if isinstance(one, FrameSeen)][1:] and told)
    story = _story(told)
    assert story[-4:] == [1, "starting", "ready", 3]
    _end(house, thread)


def test_three_cameras_that_hang_do_not_make_the_end_longer_than_two_seconds(tmp_path: Path) -> None:
    ended, inside = threading.Event(), threading.Semaphore(0)
    cameras = {}
    for name in ("top", "side", "below"):
        cameras[name] = Camera()
        cameras[name].name = name  # type: ignore[misc]
        cameras[name].next_frame = lambda timeout_s: (inside.release(), ended.wait(30))[0]  # type: ignore[method-assign]
    house = House(tmp_path, {}, cameras=cameras, stamps={name: StampProof(10 * MS, False, 0) for name in cameras})
    house.daemon.load()
    assert all(inside.acquire(timeout=10) for _ in cameras)
    began_ns = CLOCK.now_ns()
    house.daemon.close()
    assert CLOCK.now_ns() - began_ns < 2000 * MS and house.daemon.failed
    ended.set()


def test_a_camera_that_takes_three_quarters_of_a_second_to_close_ends_cleanly(tmp_path: Path) -> None:
    """jetson-utils: a wait of 0.2 s, then stopping and taking down, a quarter of a second each."""
    house = House(tmp_path, {})
    house.camera.close = lambda: threading.Event().wait(0.75) and None  # type: ignore[method-assign]
    house.daemon.load()
    house.daemon.close()
    assert not house.daemon.failed and house.closed == 1


class Watch:
    """A golden watch whose next vector ends as the test says."""

    last_good_part = 4

    def __init__(self, why: Exception | None) -> None:
        self.why = why

    def step(self, now_ns: int, newest_part: int) -> None:
        if self.why:
            raise self.why


def watched(house: House, why: Exception | None) -> Watch:
    watch = Watch(why)
    house.daemon._watches = [watch]  # type: ignore[list-item]
    return watch


def test_a_model_that_failed_its_golden_vectors_stays_a_fault_when_a_camera_comes_back(house: House) -> None:
    """Else the gates open again, for a model that is known to be wrong (law 7)."""
    house.daemon.load()
    watched(house, GoldenError("vector 3 differs"))
    house.daemon._watch_golden(CLOCK.now_ns())
    house.daemon._frame_came("top", CameraLost("unplugged"))
    house.daemon._frame_came("top", house.camera.put(1))
    house.daemon._take_frames()
    assert house.daemon._state.state == "fault" and "vector 3 differs" in house.daemon._state.reason
    house.daemon.close()


def test_parts_are_blind_from_a_failed_golden_vector_on(house: House) -> None:
    house.daemon.load()
    watch = watched(house, None)
    thread = house.run()
    house.listen()
    until(lambda: len(house.links) == 2 or not house.listen())
    watch.why = GoldenError("vector 3 differs")
    until(lambda: house.states()[-1].state == "fault")
    frame = house.camera.put(2)  # which this network would let pass
    _to_inspectd(house, Trigger(7, frame.time_ns, frame.time_ns + 10**10, "r"))
    (verdict,) = until(lambda: [one for one in house.listen()[0] if isinstance(one, Verdict)])
    assert (verdict.part, verdict.verdict, verdict.cause) == (7, "blind", "engine")
    house.daemon.stopping = True
    house.daemon.wake()
    thread.join(10)
    house.daemon.close()


@pytest.mark.parametrize("lost", [False, True])
def test_an_engine_that_fails_at_a_golden_vector_names_the_parts_since_the_last_good_round(house: House, lost: bool) -> None:
    """It gave no answer, which reproduces nothing: as a wrong one, and not an end without a word."""
    house.daemon.load()
    watched(house, EngineLost("the GPU failed") if lost else EngineError("the engine failed"))
    house.daemon._watch_golden(CLOCK.now_ns())
    house.daemon._send()
    (suspect,) = until(lambda: [one for one in house.listen()[1] if isinstance(one, Event) and one.kind == "suspect_parts"])
    assert suspect.data["since"] == 4
    assert house.states()[-1].state == "fault" and house.daemon.stopping == house.daemon.failed == lost
    house.daemon.close()


def test_one_camera_back_is_not_ready_while_another_is_lost(house: House) -> None:
    """Ready opens the gates: with ``on_late: accept`` every part that the lost one misses would pass."""
    house.daemon.load()
    house.daemon._build.cameras["side"] = house.camera
    house.daemon._build.matchers["side"] = Matcher(0, 20 * MS, 100 * MS)
    house.daemon._build.stamps["side"] = StampProof(10 * MS, False, 0)
    for name in ("top", "side"):
        house.daemon._frame_came(name, CameraLost("unplugged"))
    house.daemon._frame_came("top", house.camera.put(1))
    house.daemon._take_frames()
    assert house.daemon._state.state == "starting" and "side" in house.daemon._state.reason
    house.daemon._frame_came("side", house.camera.put(2))
    house.daemon._take_frames()
    assert house.daemon._state.state == "ready"
    house.daemon.close()


def _to_inspectd(house: House, message: Message) -> None:
    link = next(one for one in house.links if one.number == 0)  # type: ignore[attr-defined]
    assert link.send(message)


def _report_link(house: House) -> SocketLink:
    return next(one for one in house.links if one.number == 1)  # type: ignore[attr-defined]


def test_a_hot_box_is_heard_of_kept_over_a_load_and_forgotten_with_the_reportd_that_told(house: House) -> None:
    house.daemon._connect(CLOCK.now_ns())
    house.listen()
    _report_link(house).send(Command("box", "spare", {"passes": True}, "report"))
    until(lambda: house.daemon._read() or house.daemon._spare)
    house.daemon.load()
    assert house.daemon._inspector and house.daemon._inspector.spare_passes
    house.daemon._health_ns = 0
    house.daemon._health(CLOCK.now_ns())
    house.daemon._send()
    told = [one for one in house.listen()[1] if isinstance(one, Health)]
    assert told[-1].values["passes_spared"] == 0 and told[-1].values["engine_power_modes"] == []
    _report_link(house).close()
    until(lambda: house.daemon._read() or not house.daemon._spare)
    assert not house.daemon._inspector.spare_passes
    house.daemon.close()


@pytest.mark.parametrize("arguments", [{}, {"passes": "yes"}, {"passes": 1}, {"passes": False}])
def test_only_a_plain_true_spares_anything(house: House, arguments: dict[str, Any]) -> None:
    house.daemon.load()
    house.daemon._hear(Command("box", "spare", arguments, "report"))
    house.daemon._hear(Command("box", "bypass", {"passes": True}, "report"))
    assert house.daemon._inspector and not house.daemon._inspector.spare_passes
    house.daemon.close()


def test_a_build_ends_when_another_configuration_was_chosen(tmp_path: Path) -> None:
    """It would be of a configuration that nobody runs any more."""


    def load(progress: Any) -> Loaded:
        house.paths.again_file("inspect").touch()
        progress("timing kernels", 0.5)
        raise AssertionError("it went on building")

    house = House(tmp_path, {}, load=load)
    house.daemon.load()
    assert house.daemon.stopping
    house.daemon.close()


def test_inspectd_goes_by_another_name_where_nothing_changes_for_it(house: House) -> None:
    house.daemon.load()
    house.paths.same_file("inspect").write_text("sha256:new")
    house.daemon._hear_of_configurations(2**62)
    house.daemon._send()
    assert house.states()[-1].configuration == "sha256:new" and house.states()[-1].state == "ready"
    assert not house.paths.same_file("inspect").exists() and not house.daemon.stopping
