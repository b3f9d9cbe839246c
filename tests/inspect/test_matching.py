"""Which frame shows which part: by time, whatever is dropped, doubled or late."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.inspect.matching import Matcher
from appliance.ports import Frame

MS = 1_000_000
PITCH, READOUT, MATCH, ALLOWANCE = 100 * MS, 8 * MS, 10 * MS, 250 * MS


class Frames:
    """Frames that remember whether they were given back."""

    def __init__(self) -> None:
        self.released: list[int] = []

    def make(self, sequence: int, time_ns: int, arrived_ns: int) -> Frame:
        return Frame(
            memoryview(b""), 0, 0, (1, 1), "mono8", sequence, time_ns, arrived_ns, lambda: self.released.append(sequence)
        )  # fmt: skip


def run(events: list[tuple[int, str, int, int]], second: bool = True) -> tuple[dict[int, str], dict[str, int], Frames]:
    """events: (when, "trigger"|"frame", number, stamp). Returns part -> outcome ("frame N" or kind)."""
    matcher, frames = Matcher(1 * MS, MATCH, ALLOWANCE, second), Frames()
    found: dict[int, str] = {}

    def look(now: int) -> None:
        for match in matcher.due(now):
            assert match.part not in found, "answered twice"
            found[match.part] = f"frame {match.frame.sequence}" if match.frame else match.kind

    for when, what, number, stamp in sorted(events):
        while (due := matcher.next_due_ns()) is not None and due <= when:
            look(due)
        if what == "trigger":
            matcher.trigger(number, stamp, stamp + 800 * MS)
        else:
            matcher.frame(frames.make(number, stamp, when))
        look(when)
    last = max(when for when, *_ in events)
    while (due := matcher.next_due_ns()) is not None and due <= last + 2_000 * MS:
        look(due)
    return found, matcher.counts, frames


def plain(parts: int) -> list[tuple[int, str, int, int]]:
    events = []
    for part in range(1, parts + 1):
        at = part * PITCH
        events += [(at, "trigger", part, at), (at + 1 * MS + READOUT, "frame", part, at + 1 * MS)]
    return events


@given(
    parts=st.integers(3, 12),
    victim=st.integers(1, 12),
    trouble=st.sampled_from(["drop", "double", "late", "early trigger message"]),
)
def test_trouble_with_one_frame_changes_no_other_part(parts: int, victim: int, trouble: str) -> None:
    victim = min(victim, parts)
    events = plain(parts)
    frame = next(one for one in events if one[1] == "frame" and one[2] == victim)
    if trouble == "drop":
        events.remove(frame)
    elif trouble == "double":
        events.append((frame[0] + 1 * MS, *frame[1:]))
    elif trouble == "late":
        events.remove(frame)
        events.append((frame[0] + PITCH, *frame[1:]))
    else:
        trigger = next(one for one in events if one[1] == "trigger" and one[2] == victim)
        events.remove(trigger)
        events.append((frame[0] + 2 * MS, *trigger[1:]))  # the frame is here before the trigger's message
    found, counts, _ = run(events)
    wanted = {part: f"frame {part}" for part in range(1, parts + 1)}
    if trouble == "drop":
        wanted[victim] = "missed"
    assert found == wanted
    assert counts["duplicate"] == (trouble == "double")


def test_a_frame_of_no_part_is_stray_and_given_back() -> None:
    events = [*plain(2), (150 * MS, "frame", 50, 145 * MS), (900 * MS, "trigger", 9, 900 * MS)]
    found, counts, frames = run(events)
    assert found[1] == "frame 1" and found[2] == "frame 2"
    assert counts["stray"] == 1 and frames.released == [50]


def test_two_frames_that_fit_one_part_make_it_ambiguous_and_both_go_back() -> None:
    events = [(100 * MS, "trigger", 1, 100 * MS), (110 * MS, "frame", 1, 99 * MS), (112 * MS, "frame", 2, 104 * MS)]
    found, _, frames = run(events)
    assert found == {1: "ambiguous"} and sorted(frames.released) == [1, 2]


def test_gaps_are_counted_and_never_used_to_match() -> None:
    events = [one for one in plain(5) if not (one[1] == "frame" and one[2] in (2, 3))]
    found, counts, _ = run(events)
    assert counts["gap"] == 2
    assert found == {1: "frame 1", 2: "missed", 3: "missed", 4: "frame 4", 5: "frame 5"}


def test_where_each_frame_is_a_part_there_is_no_waiting_for_a_second() -> None:
    matcher, frames = Matcher(0, 1, ALLOWANCE, wait_for_second=False), Frames()
    matcher.frame(frames.make(1, 500 * MS, 508 * MS))
    matcher.trigger(7, 500 * MS, 900 * MS)
    (match,) = matcher.due(500 * MS)
    assert (match.part, match.kind) == (7, "frame")


def test_a_camera_that_runs_by_itself_gets_each_frame_back_as_soon_as_the_next_is_there() -> None:
    """At 120 frames/s nothing may wait for a trigger that its frame has outrun by a whole frame time."""
    matcher, frames = Matcher(0, 3 * MS, ALLOWANCE), Frames()
    for number in range(1, 40):
        matcher.frame(frames.make(number, number * 8 * MS, number * 8 * MS + 2 * MS))
        assert len(frames.released) == number - 1
    matcher.trigger(7, 40 * 8 * MS, 900 * MS)
    matcher.frame(frames.make(40, 40 * 8 * MS, 40 * 8 * MS + 2 * MS))
    assert len(frames.released) == 39, "a frame that shows a part sends home what waited before it"


def test_a_part_whose_frame_was_lost_is_missed_as_soon_as_a_later_frame_is_there() -> None:
    """At 1,200 parts a minute the two buffers a camera lends would be taken until the lost frame is given up, and the next
    three parts' frames be lost for it."""
    matcher, frames = Matcher(0, PITCH // 4, ALLOWANCE), Frames()
    for part in (1, 2, 3):
        matcher.trigger(part, part * PITCH, part * PITCH + 800 * MS)
    matcher.frame(frames.make(2, 2 * PITCH, 2 * PITCH + READOUT))
    assert matcher.next_due_ns() == 0
    (missed,) = matcher.due(2 * PITCH + READOUT)
    assert (missed.part, missed.kind) == (1, "missed")
    (found,) = matcher.due(2 * PITCH + PITCH // 2)
    assert (found.part, found.kind) == (2, "frame")


def test_a_camera_that_is_lost_gets_back_what_waited_for_parts_and_for_triggers() -> None:
    matcher, frames = Matcher(0, PITCH // 4, ALLOWANCE), Frames()
    matcher.trigger(1, PITCH, PITCH + 800 * MS)
    matcher.frame(frames.make(1, PITCH, PITCH + READOUT))
    matcher.frame(frames.make(2, 2 * PITCH, 2 * PITCH + READOUT))
    matcher.forget()
    assert sorted(frames.released) == [1, 2]
    assert [(one.part, one.kind) for one in matcher.due(PITCH + PITCH + ALLOWANCE)] == [(1, "missed")]
