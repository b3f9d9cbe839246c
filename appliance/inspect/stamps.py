"""When a frame was exposed, on the monotonic clock: stamps are proved by arrivals and trigger edges, never believed. Pure.

Until a camera's stamps are proved, and whenever they contradict the arrivals, its frames are placed *nowhere* (clock
``none``, a time no part can have): their parts are `missed` and rejected, which no wrong placing can promise. A stamp that
lies within [arrival - 2 frame times, arrival] and on its trigger's edge is proved by that one frame; without edges it
takes a few in a row.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Literal

from appliance.ports import Frame

_MS = 1_000_000
_IN_A_ROW = 3  # frames that must agree where one alone could agree by chance
_ARRIVALS = 16  # among so many, one at least came without delay of the host
_ROW = 128  # arrivals that give the frame time where stamps do not; of a slow camera those of a second
_ROW_NS = 1_000_000_000
_BLOCK_NS = 2_000_000_000  # over which the shortest arrival is looked for again: 50 ppm are 0.1 ms by then
_EDGE_WAITS_NS = 250 * _MS  # a frame that has not come this long after its edge will not come (as the matcher has it)
_EDGES_KEPT_NS = 2_000_000_000  # beyond their travel to the camera
_APART_FRAMES = 5  # a frame is there two frame times after its exposure; within so many the edge before may be its own
_FUTURE_NS = 500_000  # a driver's stamps are in whole microseconds; a frame from further ahead is impossible
_TOLERANCE_NS = 2 * _MS  # below half of the narrowest match; an edge's and a stamp's own jitter is microseconds
_DRIFT_PPM = 200  # a bad quartz
_IDLE_NS = 5_000_000_000  # after so long without a frame an edge that stands alone is asked, not the nearest
_NOWHERE_NS = 10_000_000_000  # before its arrival: no part waits that long, so the frame fits none

Method = Literal["unproved", "driver", "other clock", "arrival"]
_WORDS: dict[Method, str] = {
    "unproved": "not proved yet: frames are placed nowhere; where the photo-eye fires it, a part must come alone once",
    "driver": "the driver's stamps, proved to be on the monotonic clock",
    "other clock": "the driver's stamps are on another clock; its offset is taken off",
    "arrival": "no usable stamps: arrival less measured delay",
}


@dataclass
class _Edge:
    time_ns: int
    served: bool = False


@dataclass(frozen=True)
class _Pair:
    """Where the edge that alone waits expects a frame, where the one before it did, and whether it can only be this frame's."""

    expected_ns: int
    before_ns: int | None
    sure: bool


class _Edges:
    """Trigger edges that wait for their frame, shifted to the middle of exposure that is expected of them.

    Where frames arrive later than the next part's edge, or some edges were not heard, the one edge that waits may be the
    next part's, frame after frame. So it is taken for a frame's own only once the edge before it lay too far back to be,
    and as long as one edge after the other gets its frame."""

    def __init__(self, offset_ns: int, period_ns: int) -> None:
        self._offset_ns, self._period_ns, self._apart_ns = offset_ns, period_ns, _APART_FRAMES * period_ns
        self._edges: deque[_Edge] = deque()
        self._sure = False
        self._heard_from_ns: int | None = None

    def listen(self, now_ns: int) -> None:
        """Edges are heard from now on; who knows how many were before."""
        self._heard_from_ns, self._sure = now_ns, False

    def add(self, time_ns: int) -> None:
        self._edges.append(_Edge(time_ns))
        while len(self._edges) > 1 and time_ns - self._edges[1].time_ns > max(0, self._offset_ns) + _EDGES_KEPT_NS:
            self._edges.popleft()

    def alone(self, arrived_ns: int) -> _Pair | None:
        """The only edge without a frame. None: no edge waits, or more than one does; then whose frame this is cannot be
        said, and none of them waits any longer."""
        waiting = self._waiting(arrived_ns)
        for edge in waiting:
            edge.served = True
        if len(waiting) != 1:
            self._sure = False
            return None
        number = self._edges.index(waiting[0])
        before_ns = self._edges[number - 1].time_ns + self._offset_ns if number else None
        others = [self._edges[number - 1].time_ns] if number else []
        others += [self._heard_from_ns] if self._heard_from_ns is not None else []
        self._sure |= bool(others) and arrived_ns - max(others) - self._offset_ns > self._apart_ns
        return _Pair(waiting[0].time_ns + self._offset_ns, before_ns, self._sure)

    def nearest(self, time_ns: int, arrived_ns: int, within_ns: int) -> int | None:
        """How far ``time_ns`` lies behind the next of the edges that wait; None when none is within. It waits no longer."""
        waiting = self._waiting(arrived_ns)
        best = min(waiting, key=lambda edge: abs(time_ns - edge.time_ns - self._offset_ns), default=None)
        if best is None or abs(time_ns - best.time_ns - self._offset_ns) > within_ns:
            return None
        best.served = True
        return time_ns - best.time_ns - self._offset_ns

    def forget(self) -> None:
        """None of them waits any longer; where they lay stays known."""
        for edge in self._edges:
            edge.served = True
        self._sure = False

    def _waiting(self, arrived_ns: int) -> list[_Edge]:
        """Those whose part stood before this camera by then; on their way to one further down the belt are many more."""
        latest_ns = arrived_ns - max(0, self._offset_ns - self._period_ns)
        earliest_ns = arrived_ns - max(0, self._offset_ns) - _EDGE_WAITS_NS
        return [edge for edge in self._edges if not edge.served and earliest_ns <= edge.time_ns <= latest_ns]


@dataclass(frozen=True)
class _Seen:
    stamp_ns: int
    arrived_ns: int
    sequence: int

    @property
    def delay_ns(self) -> int:
        return self.arrived_ns - self.stamp_ns


class StampProof:
    """One camera's stamps against its arrivals and, where the photo-eye fires it, against the trigger's edges."""

    def __init__(self, period_ns: int, hardware_trigger: bool, offset_ns: int, delay_ns: int | None = None) -> None:
        """``period_ns``: a frame time at the highest rate; ``offset_ns``: edge to middle of exposure, travel included;
        ``delay_ns``: middle of exposure to arrival as measured, None = one frame time is assumed where nothing measures it."""
        self._period_ns, self.hardware, self._offset_ns = period_ns, hardware_trigger, offset_ns
        self._given_delay_ns = delay_ns
        self._tolerance_ns = min(period_ns // 4, _TOLERANCE_NS)
        self._edges = _Edges(offset_ns, period_ns)
        self._row_length = max(2 * _ARRIVALS, min(_ROW, _ROW_NS // period_ns))
        self.counts = {"placed": 0, "nowhere": 0, "jumps": 0, "other_clock": 0, "behind": 0}
        self.news: deque[str] = deque(maxlen=16)
        self.forget()

    # --- the camera's life ---------------------------------------------------------------------------------------

    def forget(self) -> None:
        """The camera was lost or opened anew: its clock may begin anywhere."""
        self._edges.forget()
        self._delay_ns: int | None = None  # middle of exposure to arrival, once measured
        self._unprove()

    def _unprove(self) -> None:
        self._method: Method = "unproved"
        self._ahead_ns = 0  # what the driver's clock is ahead of the monotonic one
        self._first: tuple[int, int] | None = None  # (ahead, when) at the proof, for the drift
        self._seen: deque[_Seen] = deque(maxlen=_ARRIVALS)
        self._pairs: deque[int] = deque(maxlen=_ARRIVALS)  # stamp (or arrival) less what its edge expects
        self._block: list[_Seen] = []
        self._row: deque[_Seen] = deque(maxlen=self._row_length)
        self._shifted = self._doubts = self._agree = self._behind = 0
        self._use_edges = self.hardware
        self._last: _Seen | None = None

    def listen(self, now_ns: int) -> None:
        """The link to rejectd stands: edges are heard from now on."""
        self._edges.listen(now_ns)

    def on_trigger(self, time_ns: int) -> None:
        """A trigger edge, in the order of time."""
        if self.hardware:
            self._edges.add(time_ns)

    def place(self, frame: Frame) -> Frame:
        """The frame with ``time_ns`` on the monotonic clock; or, with clock ``none``, placed nowhere: give it back."""
        if frame.clock == "monotonic":
            return frame
        seen = _Seen(frame.time_ns if frame.clock == "driver" else frame.arrived_ns, frame.arrived_ns, frame.sequence)
        at_ns = self._by_stamp(seen) if frame.clock == "driver" else self._by_arrival(seen)
        if at_ns is None:
            self.counts["nowhere"] += 1
            return replace(frame, time_ns=frame.arrived_ns - _NOWHERE_NS, clock="none")
        self.counts["placed"] += 1
        return replace(frame, time_ns=at_ns, clock="monotonic")

    def health(self) -> dict[str, Any]:
        """Which method holds, in words, and its figures."""
        figures: dict[str, Any] = {"method": _WORDS[self._method], **self.counts}
        if self._method == "other clock":
            figures |= {"offset_ns": self._ahead_ns, "drift_ppm": round(self._drift_ppm(), 1)}
        if self._pairs and self._method in ("driver", "other clock"):
            figures["behind_edge_ms"] = round(statistics.median(self._pairs) / _MS, 3)
        if self._method != "driver" and not self.hardware:
            how = "measured" if self._delay_ns is not None or self._given_delay_ns is not None else "assumed"
            figures["delay_ms"], figures["delay"] = round(self._delay() / _MS, 3), how
        return figures

    # --- with stamps -----------------------------------------------------------------------------------------------

    def _by_stamp(self, seen: _Seen) -> int | None:
        if self._method == "arrival":
            return self._by_arrival(seen)
        if self._method == "unproved":
            self._prove(seen)
            if self._method not in ("driver", "other clock"):
                return None
            self._last = seen
            return seen.stamp_ns - self._ahead_ns if self._possible(seen) else None
        return self._believed(seen)

    def _prove(self, seen: _Seen) -> None:
        self._seen.append(seen)
        self._agree = self._agree + 1 if 0 <= seen.delay_ns <= 2 * self._period_ns else 0
        pair = self._edges.alone(seen.arrived_ns) if self.hardware else None
        if pair is not None:
            self._prove_by_edge(seen, pair)
        if self._method == "unproved" and (not self.hardware or len(self._pairs) >= _IN_A_ROW and len(self._seen) == _ARRIVALS):
            # With a hardware trigger: edges prove nothing here, they come from elsewhere. Where none could be told to be a
            # frame's own, arrivals may not speak either: they are wrong by up to a frame time, and so may be the part.
            self._prove_by_arrivals(_ARRIVALS if self.hardware else _IN_A_ROW)

    def _prove_by_edge(self, seen: _Seen, pair: _Pair) -> None:
        """One stamp on its edge is proof; three that lie equally far from theirs give the distance."""
        behind_ns = seen.stamp_ns - pair.expected_ns
        if abs(behind_ns) <= self._tolerance_ns and self._agree:
            return self._settle("driver", 0, seen, [behind_ns])
        if not pair.sure:
            return None
        self._pairs.append(behind_ns)
        if pair.before_ns is not None and abs(seen.stamp_ns - pair.before_ns) <= self._tolerance_ns:
            self._behind += 1
            if self._behind >= _IN_A_ROW - 1:
                self.counts["behind"] += 1
                self._settle("arrival", 0, seen, [])
                self.news.append("stamps are those of the frame before: frames are placed by arrival")
            return None
        last = list(self._pairs)[-_IN_A_ROW:]
        if len(last) < _IN_A_ROW or max(last) - min(last) > self._tolerance_ns:
            return None
        if self._agree >= _IN_A_ROW:
            return self._settle("driver", 0, seen, last)  # on the right clock, offset_ms is wrong: health says by how much
        return self._settle("other clock", round(statistics.median(last)), seen, [])

    def _prove_by_arrivals(self, in_a_row: int) -> None:
        last = self._seen[-1]
        if self._agree >= in_a_row:
            self._settle("driver", 0, last)
        elif len(self._seen) == _ARRIVALS:
            delays = sorted(one.delay_ns for one in self._seen)
            shortest_ns = delays[0]
            if delays[_ARRIVALS // 2] - shortest_ns > 2 * self._period_ns:
                return  # they do not go with the arrivals at all: no clock
            if 0 <= shortest_ns <= 2 * self._period_ns:
                self._settle("driver", 0, last)
            else:
                self._settle("other clock", self._delay() - shortest_ns, last)

    def _settle(self, method: Method, ahead_ns: int, seen: _Seen, pairs: list[int] | None = None) -> None:
        """``pairs``: what lies behind the edges by this method; None = edges had no part in the proof."""
        self._method, self._ahead_ns, self._first = method, ahead_ns, (ahead_ns, seen.arrived_ns)
        self._use_edges = pairs is not None
        self._pairs = deque(pairs or (), maxlen=_ARRIVALS)
        self._block, self._shifted, self._doubts, self._last = [], 0, 0, None
        if method == "other clock":
            self.counts["other_clock"] += 1
            self.news.append(f"stamps are on another clock, {ahead_ns / 1e9:+.6f} s from the monotonic one")

    def _believed(self, seen: _Seen) -> int | None:
        late = seen.delay_ns + self._ahead_ns > 2 * self._period_ns
        if not self._possible(seen):
            self._jumped("a stamp from the future", seen)
            return None
        if self.hardware:
            fits = self._fits_an_edge(seen) if self._use_edges else not late
        else:
            fits = self._goes_on(seen)
        if not fits and (late or self._method == "other clock"):
            self._doubts += 1
            if self._doubts >= _IN_A_ROW:
                self._jumped("stamps that fit neither arrivals nor edges", seen)
            return None
        self._doubts, self._last = 0, seen
        if not self._use_edges:
            self._watch(seen)
        return seen.stamp_ns - self._ahead_ns  # an edge may just have corrected it

    def _possible(self, seen: _Seen) -> bool:
        """Not from the future, as far as another clock can have drifted since it was last set right by an edge."""
        drift_ns = self._drift_since(seen) if self._use_edges and self._method == "other clock" else 0
        return seen.stamp_ns - self._ahead_ns <= seen.arrived_ns + _FUTURE_NS + drift_ns

    def _drift_since(self, seen: _Seen) -> int:
        return (seen.arrived_ns - self._last.arrived_ns) * _DRIFT_PPM // 1_000_000 if self._last else 0

    def _jumped(self, what: str, seen: _Seen) -> None:
        self._edges.alone(seen.arrived_ns)  # that edge has its frame
        self.counts["jumps"] += 1
        self.news.append(f"{what}: the camera's clock jumped, and is proved anew")
        self._unprove()

    def _fits_an_edge(self, seen: _Seen) -> bool:
        """Hardware trigger: the stamp lies on an edge, as far as the clock can have drifted since the last that did."""
        idle_ns = seen.arrived_ns - self._last.arrived_ns if self._last else 0
        within_ns = self._tolerance_ns + self._drift_since(seen)
        at_ns = seen.stamp_ns - self._ahead_ns
        usual_ns = round(statistics.median(self._pairs)) if self._pairs and self._method == "driver" else 0
        behind_ns: int | None
        if idle_ns > _IDLE_NS:
            pair = self._edges.alone(seen.arrived_ns)
            near = pair is not None and abs(at_ns - pair.expected_ns - usual_ns) <= within_ns
            behind_ns = at_ns - pair.expected_ns if pair and pair.sure and near else None
        else:
            found = self._edges.nearest(at_ns - usual_ns, seen.arrived_ns, within_ns)
            behind_ns = None if found is None else found + usual_ns
        if behind_ns is None:
            return False
        self._pairs.append(behind_ns)
        if self._method == "other clock":
            self._ahead_ns += behind_ns if idle_ns > _IDLE_NS else behind_ns // 4
        return True

    def _goes_on(self, seen: _Seen) -> bool:
        """Free-run: the stamp lies whole frame times behind the last one."""
        if self._last is None:
            return True
        step_ns = seen.stamp_ns - self._last.stamp_ns
        period_ns = self._measured_period_ns()
        frames = round(step_ns / period_ns)
        return frames >= 1 and abs(step_ns - frames * period_ns) <= max(self._period_ns // 4, self._tolerance_ns)

    def _measured_period_ns(self) -> float:
        known = [*self._seen, *self._block[-_ARRIVALS:]]
        steps = [
            (b.stamp_ns - a.stamp_ns) / (b.sequence - a.sequence) for a, b in zip(known, known[1:]) if b.sequence > a.sequence
        ]
        return max(1.0, statistics.median(steps)) if len(steps) >= _IN_A_ROW else float(self._period_ns)

    def _watch(self, seen: _Seen) -> None:
        """Free-run: the shortest arrival of every block; where it moves, the clock drifts (or jumped a little)."""
        self._block.append(seen)
        if len(self._block) < _ARRIVALS or seen.arrived_ns - self._block[0].arrived_ns < _BLOCK_NS:
            return
        shortest_ns = min(one.delay_ns for one in self._block) + self._ahead_ns
        self._block = self._block[-_IN_A_ROW - 1 :]  # the period goes on being known
        if self._method == "driver":
            self._watch_driver(shortest_ns, seen)
            return
        moved_ns = shortest_ns - self._delay()
        self._shifted = self._shifted + 1 if abs(moved_ns) > self._tolerance_ns else 0
        if self._shifted >= _IN_A_ROW - 1:
            self._ahead_ns -= moved_ns
            self.counts["jumps"] += 1
            self.news.append(f"the camera's clock moved by {-moved_ns / _MS:+.3f} ms")
        elif not self._shifted:
            self._ahead_ns -= moved_ns // 2

    def _watch_driver(self, shortest_ns: int, seen: _Seen) -> None:
        if self._delay_ns is None:
            self._delay_ns = shortest_ns
        moved_ns = shortest_ns - self._delay_ns
        self._shifted = self._shifted + 1 if abs(moved_ns) > self._tolerance_ns else 0
        if self._shifted >= _IN_A_ROW - 1:  # the delay of a camera does not move; its clock does
            self._settle("other clock", -moved_ns, seen)

    def _drift_ppm(self) -> float:
        if self._first is None or self._last is None or self._last.arrived_ns - self._first[1] < _BLOCK_NS:
            return 0.0
        return (self._ahead_ns - self._first[0]) * 1e6 / (self._last.arrived_ns - self._first[1])

    # --- without stamps ----------------------------------------------------------------------------------------------

    def _delay(self) -> int:
        if self._delay_ns is not None:
            return self._delay_ns
        return self._period_ns if self._given_delay_ns is None else self._given_delay_ns

    def _by_arrival(self, seen: _Seen) -> int | None:
        self._method = "arrival"
        return self._arrival_of_edge(seen) if self.hardware else self._arrival_of_row(seen)

    def _arrival_of_edge(self, seen: _Seen) -> int | None:
        """Only where one edge alone can be meant, and this frame and those before it came as long after theirs as usual: a
        frame that was held up may come just when the next part's would."""
        pair = self._edges.alone(seen.arrived_ns)
        if pair is None or not pair.sure:
            self._agree = 0
            return None
        self._pairs.append(seen.arrived_ns - pair.expected_ns)
        self._delay_ns = round(statistics.median(self._pairs))
        at_ns = seen.arrived_ns - self._delay_ns
        self._agree = self._agree + 1 if abs(at_ns - pair.expected_ns) <= self._tolerance_ns else 0
        return at_ns if self._agree >= _IN_A_ROW else None

    def _arrival_of_row(self, seen: _Seen) -> int | None:
        """A frame that came later than the row of its predecessors lets expect was held up: by how much is taken off, if
        it is little."""
        self._row.append(seen)
        if len(self._row) < self._row_length:
            return None
        row = list(self._row)
        later = row[self._row_length // 2 :]
        spans = [(b.arrived_ns - a.arrived_ns) / max(1, b.sequence - a.sequence) for a, b in zip(row, later)]
        period_ns = statistics.median(spans)  # half of those held up stand at a span's end, half at its beginning
        expected_ns = min(one.arrived_ns + (seen.sequence - one.sequence) * period_ns for one in row[-2 * _ARRIVALS :])
        late_ns = round(seen.arrived_ns - expected_ns)
        return seen.arrived_ns - late_ns - self._delay() if late_ns <= self._period_ns // 2 else None
