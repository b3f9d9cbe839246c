"""inspectd's heart with a network that behaves: answers, errors, silence; one camera and two."""

from __future__ import annotations

import queue
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from appliance.clock import VirtualClock
from appliance.inspect.archive import Archive
from appliance.inspect.image_health import HealthLimits
from appliance.inspect.inspector import Inspector, Look, RecipePlan
from appliance.inspect.judge import Limits
from appliance.inspect.matching import Matcher
from appliance.messages import Detail, Stored, Trigger, Verdict
from appliance.model.bundle import Bundle
from appliance.ports import Counted, EngineError, Findings, Frame

MS = 1_000_000
BUNDLE = Bundle.model_validate(
    {
        "schema": 1, "name": "b", "revision": 1, "task": "classify", "taught_on": "twin", "precision": "int8",
        "input": {"tensor": "image", "size": [8, 8], "channels": 1, "mean": [0.5], "std": [0.25]},
        "output": {"tensor": "scores", "activation": "softmax"}, "classes": ["good", "spot"], "good": ["good"],
        "thresholds": {"review_at": 0.4, "fail_at": 0.6},
        "files": {"model.onnx": "sha256:" + "0" * 64, "golden.npz": "sha256:" + "0" * 64},
    }
)  # fmt: skip


class Network:
    """Gives the score of the frame's sequence; raises or stays silent where told."""

    identity = {"name": "b", "digest": "d", "precision": "int8", "engine": "stand-in"}
    frame_copies = 0

    def __init__(self, scores: dict[int, object]) -> None:
        self.scores, self.asked = scores, 0
        self._frame: Frame | None = None

    def submit(self, frame: Frame, roi) -> int:
        self._frame, self.asked = frame, self.asked + 1
        return self.asked

    def wait(self, ticket: int, deadline_ns: int):
        assert self._frame is not None
        given = self.scores[self._frame.sequence]
        if isinstance(given, Exception):
            raise given
        if given is None:
            return None
        histogram = np.zeros(256, np.int64)
        histogram[100 + self._frame.sequence] = 64
        scores = np.array([1 - float(given), float(given)], np.float32)  # type: ignore[arg-type]
        return Findings("classify", scores, None, None, Counted(histogram, 6400, 5.0), 0.1, 1.0)

    def close(self) -> None: ...


def station(cameras: dict[str, dict[int, object]], archive: Archive | None = None):
    clock = VirtualClock(100 * MS)
    looks = tuple(
        Look(name, (8, 8), False, None, BUNDLE, Network(scores), Limits(0.4, 0.6, {}, {}), HealthLimits(True, (50, 200)))
        for name, scores in cameras.items()
    )
    matchers = {name: Matcher(0, 10 * MS, 100 * MS) for name in cameras}
    plan = RecipePlan("r", 1, "sha256:r", looks, frozenset({"fail"}), 0)
    return Inspector(plan, matchers, archive, clock), clock


def frame(sequence: int, at: int, released: list[int], size: tuple[int, int] = (8, 8)) -> Frame:
    memory = memoryview(bytearray(size[0] * size[1]))
    return Frame(memory, 0, size[0], size, "mono8", sequence, at, at, lambda: released.append(sequence))


def look_at(inspector: Inspector, clock: VirtualClock, now: int) -> list[Verdict]:
    clock.advance_to(now)
    inspector.step(now)
    verdicts = [one for one in inspector.to_reject if isinstance(one, Verdict)]
    inspector.to_reject.clear()
    return verdicts


@pytest.mark.parametrize(
    ("score", "verdict", "cause"),
    [
        (0.1, "pass", None),
        (0.5, "review", "spot"),
        (0.9, "fail", "spot"),
        (EngineError("dead"), "blind", "engine"),
        (None, "blind", "engine: no answer in time"),
    ],
)
def test_each_answer_of_the_engine_becomes_its_verdict(score, verdict: str, cause: str | None) -> None:
    inspector, clock = station({"top": {1: score}})
    released: list[int] = []
    inspector.on_trigger(Trigger(5, 200 * MS, 900 * MS, "r"))
    inspector.on_frame("top", frame(1, 200 * MS, released))
    (told,) = look_at(inspector, clock, 220 * MS)
    assert (told.part, told.verdict, told.cause) == (5, verdict, cause)
    assert released == [1], "the buffer goes back as soon as the verdict is out"
    assert any(isinstance(one, Detail) and one.part == 5 for one in inspector.to_report)


def test_a_frame_of_another_size_is_blind_and_says_which() -> None:
    inspector, clock = station({"top": {1: 0.1}})
    inspector.on_trigger(Trigger(5, 200 * MS, 900 * MS, "r"))
    inspector.on_frame("top", frame(1, 200 * MS, [], (16, 4)))
    (told,) = look_at(inspector, clock, 220 * MS)
    assert told.verdict == "blind" and "16 x 4" in (told.cause or "")


def test_a_part_whose_deadline_is_past_is_not_begun() -> None:
    inspector, clock = station({"top": {1: 0.1}})
    released: list[int] = []
    inspector.on_trigger(Trigger(5, 200 * MS, 210 * MS, "r"))
    inspector.on_frame("top", frame(1, 200 * MS, released))
    assert look_at(inspector, clock, 215 * MS) == []
    assert inspector.counts["skipped_late"] == 1 and released == [1]


def test_two_cameras_wait_for_each_other_but_a_fail_leaves_at_once() -> None:
    inspector, clock = station({"top": {1: 0.1, 2: 0.9}, "side": {1: 0.5, 2: 0.1}})
    inspector.on_trigger(Trigger(1, 200 * MS, 900 * MS, "r"))
    inspector.on_frame("top", frame(1, 200 * MS, []))
    assert look_at(inspector, clock, 220 * MS) == []
    inspector.on_frame("side", frame(1, 200 * MS, []))
    (told,) = look_at(inspector, clock, 230 * MS)
    assert told.verdict == "review"
    inspector.on_trigger(Trigger(2, 300 * MS, 900 * MS, "r"))
    inspector.on_frame("top", frame(2, 300 * MS, []))
    (told,) = look_at(inspector, clock, 320 * MS)
    assert told.verdict == "fail"


def test_a_part_without_a_frame_is_missed() -> None:
    inspector, clock = station({"top": {}})
    inspector.on_trigger(Trigger(4, 200 * MS, 900 * MS, "r"))
    (told,) = look_at(inspector, clock, 350 * MS)
    assert (told.part, told.verdict) == (4, "missed")


def test_a_part_on_its_way_to_the_next_camera_holds_no_buffer_and_keeps_its_picture(tmp_path: Path) -> None:
    stored: queue.SimpleQueue[Stored] = queue.SimpleQueue()
    archive = Archive(tmp_path, 64, 10**9, stored.put)
    inspector, clock = station({"top": {1: 0.1, 2: 0.1}, "side": {1: 0.9, 2: 0.1}}, archive)
    released: list[int] = []
    inspector.on_trigger(Trigger(1, 200 * MS, 900 * MS, "r"))
    inspector.on_frame("top", frame(1, 200 * MS, released))
    assert look_at(inspector, clock, 220 * MS) == [] and released == [1], "the camera has its buffer back"
    inspector.on_frame("side", frame(1, 200 * MS, []))
    assert [one.verdict for one in look_at(inspector, clock, 230 * MS)] == ["fail"]
    assert {stored.get(timeout=10).camera, stored.get(timeout=10).camera} == {"top", "side"}
    inspector.on_trigger(Trigger(2, 300 * MS, 900 * MS, "r"))
    inspector.on_frame("top", frame(2, 300 * MS, released))
    look_at(inspector, clock, 320 * MS)
    inspector.on_frame("side", frame(2, 300 * MS, []))
    assert [one.verdict for one in look_at(inspector, clock, 330 * MS)] == ["pass"]
    assert archive.counts["archive_copies"] == 3 and archive.free_slots == 8, "a passed part's copy is forgotten"
    archive.close()


def test_the_verdict_is_sent_before_any_picture_is_copied(tmp_path: Path) -> None:
    archive = Archive(tmp_path, 64, 10**9, lambda _: None)
    inspector, clock = station({"top": {1: 0.9}}, archive)
    told: list[tuple[str, int]] = []
    inspector.verdict_ready = lambda: told.append((inspector.to_reject[0].verdict, archive.counts["archive_copies"]))  # type: ignore[union-attr]
    inspector.on_trigger(Trigger(1, 200 * MS, 900 * MS, "r"))
    inspector.on_frame("top", frame(1, 200 * MS, []))
    look_at(inspector, clock, 220 * MS)
    assert told == [("fail", 0)] and archive.counts["archive_copies"] == 1
    archive.close()


@pytest.mark.parametrize("passes_every", [0, 2])
def test_a_hot_box_spares_pictures_of_passes_and_changes_no_verdict(tmp_path: Path, passes_every: int) -> None:
    scores: dict[int, object] = {1: 0.1, 2: 0.9, 3: 0.1, 4: 0.5, 5: 0.1, 6: EngineError("x")}

    def verdicts(spare: bool) -> tuple[list[object], list[int], int]:
        archive = Archive(tmp_path / f"{spare}", 64, 10**9, lambda _: None)
        inspector, clock = station({"top": scores}, archive)
        inspector._recipe = replace(
            inspector._recipe, keep=frozenset({"fail", "review", "blind"} | ({"pass"} if not passes_every else set())),
            passes_every=passes_every,
        )  # fmt: skip
        inspector.spare_passes = spare
        told: list[object] = []
        for part in scores:
            at = part * 1000 * MS
            inspector.on_trigger(Trigger(part, at, at + 800 * MS, "r"))
            inspector.on_frame("top", frame(part, at, []))
            told += [(one.part, one.verdict, one.cause, one.score) for one in look_at(inspector, clock, at + 20 * MS)]
        archive.close()
        kept = [one.part for one in inspector.to_report if isinstance(one, Detail) and one.images]
        return told, kept, inspector.passes_spared

    cool, hot = verdicts(False), verdicts(True)
    assert cool[0] == hot[0] and len(cool[0]) == 6, "every verdict is the same"
    passes = [3] if passes_every else [1, 3, 5]
    assert cool[1:] == (sorted([2, 4, 6, *passes]), 0) and hot[1:] == ([2, 4, 6], len(passes))


def test_how_long_a_part_kept_the_judge_counts_all_its_cameras(tmp_path: Path) -> None:
    inspector, clock = station({"top": {1: 0.1}, "side": {1: 0.1}})
    for look in inspector.looks:
        waits = look.network.wait

        def slow(ticket: int, deadline_ns: int, waits=waits):  # the network takes 7 ms
            clock.advance_to(clock.now_ns() + 7 * MS)
            return waits(ticket, deadline_ns)

        look.network.wait = slow  # type: ignore[method-assign]
    inspector.on_trigger(Trigger(1, 200 * MS, 900 * MS, "r"))
    inspector.on_frame("top", frame(1, 200 * MS, []))
    inspector.on_frame("side", frame(1, 200 * MS, []))
    look_at(inspector, clock, 220 * MS)
    assert list(inspector.judge_ms) == [14.0]
