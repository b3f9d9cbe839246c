"""Stamps are proved, never believed: simulated cameras, honest and not, against the truth."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.inspect.matching import Matcher
from appliance.inspect.stamps import StampProof
from appliance.ports import Frame

MS, SECOND = 1_000_000, 1_000_000_000
PERIOD = SECOND // 120
PITCH = 75 * MS // 2  # 30 mm at 800 mm/s
MATCH = PITCH // 4
OFFSET = 3 * MS  # edge to middle of exposure
DELAY = 7 * MS  # middle of exposure to arrival
IPC = 300_000  # edge to inspectd
START = 5_000 * SECOND


@dataclass(frozen=True)
class Shown:
    """One frame as it was: ``true_ns`` is the middle of its exposure, ``edge_ns`` the edge that fired it."""

    true_ns: int
    edge_ns: int
    frame: Frame


@dataclass(frozen=True)
class Sim:
    """A camera. ``stamp``: from the true middle of exposure and the frame's number to the driver's stamp."""

    stamp: Callable[[int, int], int]
    clock: Literal["driver", "none"] = "driver"
    jitter_ns: int = 200_000
    tail: float = 0.0  # share of frames that come up to 60 ms late
    spacing: Literal["free-run", "parts", "dense"] = "free-run"
    seed: int = 0
    actual_period_ns: int = PERIOD

    @property
    def hardware(self) -> bool:
        return self.spacing != "free-run"

    def frames(self, count: int, start_ns: int = START) -> Iterator[Shown]:
        chance = random.Random(self.seed)
        at_ns, last_ns, first = start_ns, 0, chance.randrange(1000)
        for number in range(count):
            at_ns += self._step(chance)
            true_ns = at_ns + (OFFSET if self.hardware else 0)
            held_up_ns = chance.randrange(60 * MS) if chance.random() < self.tail else 0
            arrived_ns = max(last_ns + 1000, true_ns + DELAY + held_up_ns + int(chance.expovariate(1 / self.jitter_ns)))
            last_ns = arrived_ns
            stamp_ns = self.stamp(true_ns, number) if self.clock == "driver" else arrived_ns
            yield Shown(true_ns, at_ns, _frame(first + number, stamp_ns // 1000 * 1000, arrived_ns, self.clock))

    def _step(self, chance: random.Random) -> int:
        if self.spacing == "parts":
            return PITCH + chance.randrange(300 * MS)
        return PITCH + chance.randrange(MS) if self.spacing == "dense" else self.actual_period_ns


def _frame(sequence: int, time_ns: int, arrived_ns: int, clock: Literal["driver", "none"]) -> Frame:
    return Frame(memoryview(b""), 0, 0, (1, 1), "mono8", sequence, time_ns, arrived_ns, lambda: None, clock)


def play(shown: list[Shown], proof: StampProof, hardware: bool) -> list[tuple[Shown, Frame]]:
    """Edges and frames in the order in which inspectd hears of them."""
    happenings: list[tuple[int, Shown, bool]] = [(one.frame.arrived_ns, one, True) for one in shown]
    if hardware:
        happenings += [(one.edge_ns + IPC, one, False) for one in shown]
    placed = []
    for _, one, is_frame in sorted(happenings, key=lambda what: (what[0], what[2])):
        if is_frame:
            placed.append((one, proof.place(one.frame)))
        else:
            proof.on_trigger(one.edge_ns)
    return placed


def run(sim: Sim, count: int = 1500, delay_ns: int | None = DELAY) -> tuple[list[tuple[Shown, Frame]], StampProof]:
    proof = StampProof(PERIOD, sim.hardware, OFFSET, delay_ns)
    return play(list(sim.frames(count)), proof, sim.hardware), proof


def errors_ms(placed: list[tuple[Shown, Frame]]) -> list[float]:
    return [(frame.time_ns - one.true_ns) / MS for one, frame in placed if frame.clock == "monotonic"]


def honest(true_ns: int, number: int) -> int:
    return true_ns


def counter(true_ns: int, number: int) -> int:
    """A hardware counter that began when the chip did."""
    return true_ns - 4_321_987_654_321


def drifting(ppm: float, offset_ns: int = -77 * SECOND) -> Callable[[int, int], int]:
    return lambda true_ns, number: true_ns + offset_ns + round((true_ns - START) * ppm / 1e6)


def one_behind() -> Callable[[int, int], int]:
    before = [START]

    def stamp(true_ns: int, number: int) -> int:
        before.append(true_ns)
        return before[-2]

    return stamp


# --- honest cameras: never half a match wrong, and hardly a frame that is not placed ------------------------------------

HONEST = {
    "honest": (honest, 3, "the driver's stamps, proved"),
    "start of a 0.25 ms exposure": (lambda true_ns, number: true_ns - 125_000, 3, "the driver's stamps, proved"),
    "end of frame, read out 5 ms later": (lambda true_ns, number: true_ns + 4 * MS, 3, "the driver's stamps, proved"),
    "counter": (counter, 16, "another clock"),
    "counter drifting 50 ppm": (drifting(50), 16, "another clock"),
    "counter drifting -50 ppm": (drifting(-50), 16, "another clock"),
    "clock of the year 1970": (lambda true_ns, number: true_ns + 1_700_000_000 * SECOND, 16, "another clock"),
}


@given(name=st.sampled_from(sorted(HONEST)), spacing=st.sampled_from(["free-run", "parts", "dense"]),
       tail=st.sampled_from([0.0, 0.03]), jitter=st.integers(50_000, 800_000), seed=st.integers(0, 10**6))  # fmt: skip
def test_an_honest_camera_is_placed_within_half_a_match_whatever_its_clock_and_its_arrivals(
    name: str, spacing: Literal["free-run", "parts", "dense"], tail: float, jitter: int, seed: int
) -> None:
    stamp, wait, words = HONEST[name]
    placed, proof = run(Sim(stamp, spacing=spacing, tail=tail, jitter_ns=jitter, seed=seed), 800)
    found = errors_ms(placed)
    assert max(map(abs, found)) < MATCH / 2 / MS
    assert len(found) >= 0.95 * len(placed) - wait
    assert words in proof.health()["method"]
    assert proof.counts["jumps"] == 0


@pytest.mark.parametrize("spacing", ["parts", "dense"])
def test_with_edges_the_first_frame_of_an_honest_camera_is_placed(spacing: Literal["parts", "dense"]) -> None:
    placed, proof = run(Sim(honest, spacing=spacing))
    assert [frame.clock for _, frame in placed] == ["monotonic"] * len(placed)
    assert proof.health()["nowhere"] == 0


def test_without_edges_three_frames_prove_an_honest_camera() -> None:
    placed, _ = run(Sim(honest))
    assert [frame.clock for _, frame in placed[:4]] == ["none", "none", "monotonic", "monotonic"]


@pytest.mark.parametrize(("spacing", "most"), [("free-run", 16), ("parts", 4), ("dense", 4)])
def test_a_counter_is_found_out_before_its_first_frame_is_placed(
    spacing: Literal["free-run", "parts", "dense"], most: int
) -> None:
    placed, proof = run(Sim(counter, spacing=spacing))
    assert sum(frame.clock == "none" for _, frame in placed) < most
    assert max(map(abs, errors_ms(placed))) < 0.5
    assert proof.health()["offset_ns"] == pytest.approx(-4_321_987_654_321, abs=MS)
    assert "another clock" in proof.news[0]


@pytest.mark.parametrize("spacing", ["free-run", "dense"])
def test_drift_is_followed_and_told(spacing: Literal["free-run", "dense"]) -> None:
    placed, proof = run(Sim(drifting(50), spacing=spacing), 20_000)
    assert max(map(abs, errors_ms(placed))) < 0.6
    assert proof.health()["drift_ppm"] == pytest.approx(50, abs=8)
    assert proof.counts["jumps"] == 0


def test_a_clock_that_begins_right_and_drifts_off_is_found_out_without_edges() -> None:
    placed, proof = run(Sim(drifting(150, offset_ns=0)), 120 * 120)
    assert max(map(abs, errors_ms(placed))) < MATCH / 2 / MS
    assert proof.counts["other_clock"] == 1


def test_after_an_idle_hour_the_edge_that_stands_alone_sets_a_drifting_clock_right() -> None:
    sim = Sim(drifting(50), spacing="parts")
    before, after = list(sim.frames(40)), list(replace(sim, seed=1).frames(40, START + 3600 * SECOND))
    proof = StampProof(PERIOD, True, OFFSET)
    placed = play(before, proof, True)
    later = play(after, proof, True)  # 180 ms off by then
    assert len(errors_ms(later)) == len(later)
    assert max(map(abs, errors_ms(placed) + errors_ms(later))) < 0.5


@pytest.mark.parametrize("ppm", [50, -50])
def test_after_an_idle_hour_a_frame_that_was_held_up_is_not_taken_for_the_next_edges(ppm: float) -> None:
    sim = Sim(drifting(ppm), spacing="dense")
    proof = StampProof(PERIOD, True, OFFSET)
    play(list(sim.frames(40)), proof, True)
    after = list(sim.frames(60, START + 3600 * SECOND))
    late_ns = after[0].frame.arrived_ns + 60 * MS
    held_up = [replace(one, frame=replace(one.frame, arrived_ns=max(one.frame.arrived_ns, late_ns + n * 1000)))
               for n, one in enumerate(after)]  # fmt: skip
    placed = play(held_up, proof, True)
    assert max(map(abs, errors_ms(placed))) < 0.5
    assert len(errors_ms(placed)) >= 50


def test_a_wrong_offset_is_told_and_not_corrected_away() -> None:
    """On the right clock but not where the configuration says: the operator's number is wrong, and health says by how much."""
    sim = Sim(honest, spacing="parts")
    proof = StampProof(PERIOD, True, OFFSET - 12 * MS)
    placed = play(list(sim.frames(50)), proof, True)
    assert max(map(abs, errors_ms(placed))) < 0.1
    assert proof.health()["behind_edge_ms"] == pytest.approx(12, abs=0.1)


@pytest.mark.parametrize("stamp", [honest, counter])
def test_edges_that_have_nothing_to_do_with_the_camera_do_not_keep_it_from_being_proved(stamp: Callable[[int, int], int]) -> None:
    sim = Sim(stamp, spacing="parts")
    chance = random.Random(1)
    shown = [replace(one, edge_ns=one.edge_ns - chance.randrange(60 * MS)) for one in sim.frames(400)]
    proof = StampProof(PERIOD, True, OFFSET, DELAY)
    placed = play(shown, proof, True)
    assert len(errors_ms(placed)) >= 380
    assert max(map(abs, errors_ms(placed))) < 0.5


# --- no stamps: arrival less measured delay -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("tail", [0.0, 0.03])
@pytest.mark.parametrize("spacing", ["free-run", "parts", "dense"])
def test_without_stamps_frames_are_placed_by_arrival_and_those_held_up_nowhere(
    spacing: Literal["free-run", "parts", "dense"], tail: float, seed: int
) -> None:
    placed, proof = run(Sim(honest, "none", spacing=spacing, tail=tail, seed=seed))
    assert max(map(abs, errors_ms(placed))) < MATCH / 2 / MS
    rest = placed[128:] if spacing == "free-run" else placed[16:]
    assert len(errors_ms(rest)) >= (0.98 if not tail else 0.7) * len(rest)
    assert "arrival" in proof.health()["method"]


def test_without_stamps_a_lost_frame_that_the_numbers_hide_moves_no_frame_to_its_neighbours_place() -> None:
    shown = [one for number, one in enumerate(Sim(honest, "none").frames(1500)) if number % 200 != 199]
    shown = [replace(one, frame=replace(one.frame, sequence=number)) for number, one in enumerate(shown)]
    proof = StampProof(PERIOD, False, 0, DELAY)
    placed = play(shown, proof, False)
    assert max(map(abs, errors_ms(placed))) < MATCH / 2 / MS
    assert len(errors_ms(placed[128:])) > 0.75 * len(placed[128:])


def test_the_delay_of_a_camera_without_stamps_is_measured_by_its_edges() -> None:
    placed, _ = run(Sim(honest, "none", spacing="parts"), delay_ns=None)
    assert max(map(abs, errors_ms(placed[20:]))) < 2.1


def test_without_edges_health_says_that_the_delay_is_only_assumed() -> None:
    assert run(Sim(honest, "none"), delay_ns=None)[1].health()["delay"] == "assumed"
    assert run(Sim(honest, "none"))[1].health()["delay"] == "measured"


def test_a_camera_slower_than_its_configuration_is_placed_by_arrival_all_the_same() -> None:
    placed, _ = run(Sim(honest, "none", actual_period_ns=round(PERIOD * 1.07), tail=0.02))
    assert max(map(abs, errors_ms(placed))) < MATCH / 2 / MS
    assert len(errors_ms(placed[128:])) > 0.7 * len(placed[128:])


# --- liars: whatever is placed matches no other part --------------------------------------------------------------------


def jumping(at_frame: int, by_ns: int, base: Callable[[int, int], int]) -> Callable[[int, int], int]:
    return lambda true_ns, number: base(true_ns, number) + (by_ns if number >= at_frame else 0)


@given(by_ms=st.one_of(st.integers(-5000, -10), st.integers(10, 5000)), base=st.sampled_from([honest, counter]),
       spacing=st.sampled_from(["free-run", "parts", "dense"]), seed=st.integers(0, 10**6))  # fmt: skip
def test_a_jump_is_found_out_before_a_frame_of_the_new_time_could_be_taken_for_another_part(
    by_ms: int, base: Callable[[int, int], int], spacing: Literal["free-run", "parts", "dense"], seed: int
) -> None:
    placed, proof = run(Sim(jumping(300, by_ms * MS, base), spacing=spacing, seed=seed), 900)
    nearest_other_ms = (PITCH - MATCH) / MS
    assert max(map(abs, errors_ms(placed))) < nearest_other_ms
    assert len(errors_ms(placed[400:])) > 0.9 * len(placed[400:])
    assert max(map(abs, errors_ms(placed[600:]))) < MATCH / 2 / MS or spacing == "free-run"


@pytest.mark.parametrize("spacing", ["parts", "dense"])
@pytest.mark.parametrize("seed", range(6))
def test_stamps_of_the_frame_before_are_found_out_and_no_part_gets_its_neighbours_frame(
    spacing: Literal["parts", "dense"], seed: int
) -> None:
    sim = Sim(one_behind(), spacing=spacing, seed=seed)
    shown = list(sim.frames(200))
    proof = StampProof(PERIOD, True, OFFSET)
    matcher = Matcher(OFFSET, MATCH, 250 * MS)
    truth = {one.frame.sequence: number for number, one in enumerate(shown)}
    found: dict[int, int] = {}
    happenings = sorted(
        [(one.edge_ns + IPC, False, number) for number, one in enumerate(shown)]
        + [(one.frame.arrived_ns, True, number) for number, one in enumerate(shown)]
    )
    for now_ns, is_frame, number in happenings:
        one = shown[number]
        if is_frame:
            matcher.frame(proof.place(one.frame))
        else:
            proof.on_trigger(one.edge_ns)
            matcher.trigger(number, one.edge_ns, one.edge_ns + 800 * MS)
        found |= {match.part: truth[match.frame.sequence] for match in matcher.due(now_ns) if match.frame}
    assert all(part == shown_part for part, shown_part in found.items())
    assert len(found) > 100
    assert proof.counts["behind"] == 1


def slow(kind: str, pitch_ns: int, delay_ns: int, lone: int, seed: int) -> list[Shown]:
    """A camera of 30 frames a second whose frames come later than the next part's edge; each ``lone``-th part stands alone."""
    chance, at_ns, before_ns, shown = random.Random(seed), START, START, []
    for number in range(300):
        at_ns += pitch_ns + chance.randrange(MS) + (SECOND // 2 if lone and number % lone in (0, 1) else 0)
        true_ns = at_ns + OFFSET
        arrived_ns = true_ns + delay_ns + int(chance.expovariate(1 / 200_000))
        stamp_ns = {"honest": true_ns, "counter": counter(true_ns, 0), "behind": before_ns, "none": arrived_ns}[kind]
        before_ns = true_ns
        shown.append(Shown(true_ns, at_ns, _frame(number, stamp_ns, arrived_ns, "none" if kind == "none" else "driver")))
    return shown


@pytest.mark.parametrize("lone", [0, 12])
@pytest.mark.parametrize("unheard", [0, 3])
@pytest.mark.parametrize(("pitch_ms", "delay_ms"), [(40, 45), (50, 52), (40, 60)])
@pytest.mark.parametrize("kind", ["honest", "counter", "behind", "none"])
def test_where_frames_come_after_the_next_parts_edge_no_part_gets_its_neighbours_frame(
    kind: str, pitch_ms: int, delay_ms: int, unheard: int, lone: int
) -> None:
    shown = slow(kind, pitch_ms * MS, delay_ms * MS, lone, pitch_ms + unheard)
    proof = StampProof(33 * MS, True, OFFSET)
    proof.listen(shown[unheard].edge_ns - MS)
    happenings = sorted(
        [(one.edge_ns + IPC, False, number) for number, one in enumerate(shown) if number >= unheard]
        + [(one.frame.arrived_ns, True, number) for number, one in enumerate(shown)]
    )
    errors = []
    for _, is_frame, number in happenings:
        if not is_frame:
            proof.on_trigger(shown[number].edge_ns)
        elif (placed := proof.place(shown[number].frame)).clock == "monotonic":
            errors.append(placed.time_ns - shown[number].true_ns)
    assert max(map(abs, errors), default=0) < pitch_ms * MS * 3 // 4, proof.health()
    assert not lone or kind in ("behind", "none") or len(errors) > 200, "a part that stands alone proves the stamps"


@pytest.mark.parametrize("stamp", [honest, counter])
@pytest.mark.parametrize("clock", ["driver", "none"])
def test_a_camera_down_the_belt_is_proved_while_many_parts_are_under_way(
    stamp: Callable[[int, int], int], clock: Literal["driver", "none"]
) -> None:
    """Four seconds of travel, a hundred parts in them; each fires the camera as it passes."""
    travel_ns = 4 * SECOND
    shown = [replace(one, edge_ns=one.edge_ns - travel_ns) for one in Sim(stamp, clock, spacing="dense").frames(600)]
    proof = StampProof(PERIOD, True, OFFSET + travel_ns)
    proof.listen(START - 2 * travel_ns)
    placed = play(shown, proof, True)
    assert len(errors_ms(placed)) > 590 and max(map(abs, errors_ms(placed))) < 2.1


def test_the_first_part_after_the_link_stands_counts_where_edges_were_heard_before() -> None:
    """Parts that come close from the first on: no gap between them shows which frame is whose, the quiet before does."""
    shown = slow("counter", 40 * MS, 20 * MS, 0, 1)
    for listens, enough in ((True, 290), (False, 0)):
        proof = StampProof(33 * MS, True, OFFSET)
        if listens:
            proof.listen(START - SECOND)
        assert len(errors_ms(play(shown, proof, True))) >= enough
        assert (proof.health()["placed"] > 0) == listens


def test_a_random_number_is_never_believed() -> None:
    chance = random.Random(3)
    for spacing in ("free-run", "parts", "dense"):
        placed, _ = run(Sim(lambda true_ns, number: chance.randrange(10**15), spacing=spacing), 2000)  # type: ignore[arg-type]
        assert all(abs(error) < MATCH / MS for error in errors_ms(placed)), spacing


def test_a_camera_opened_anew_is_proved_anew() -> None:
    proof = StampProof(PERIOD, False, 0)
    play(list(Sim(honest).frames(20)), proof, False)
    proof.forget()
    placed = play(list(Sim(counter).frames(40, START + SECOND)), proof, False)
    assert max(map(abs, errors_ms(placed))) < 2
    assert sum(frame.clock == "none" for _, frame in placed) == 15


def test_a_frame_whose_time_is_known_is_handed_on_as_it_is() -> None:
    frame = replace(_frame(1, 123, 456, "none"), clock="monotonic")
    assert StampProof(PERIOD, True, OFFSET).place(frame) is frame


def test_a_frame_that_is_placed_nowhere_fits_no_part_and_is_given_back() -> None:
    released = []
    frame = replace(_frame(1, START, START + DELAY, "driver"), release=lambda: released.append(1))
    placed = StampProof(PERIOD, False, OFFSET).place(frame)
    matcher = Matcher(OFFSET, MATCH, 250 * MS)
    matcher.trigger(1, START, START + 800 * MS)
    assert placed.clock == "none" and matcher.frame(placed)
    assert matcher.due(START + DELAY) == [] and released == [1]
