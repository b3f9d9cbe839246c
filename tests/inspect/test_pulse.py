"""A loop that no longer turns ends its process; one that turns, or was stopped for a while, does not."""

from __future__ import annotations

import itertools
import threading

from appliance.inspect.pulse import LOOKS, Pulse

LOOK_S = 0.005


def test_a_loop_that_hangs_ends_the_process_with_1() -> None:
    ended, codes = threading.Event(), list[int]()
    pulse = Pulse(lambda: 7, lambda code: (codes.append(code), ended.set())[1], LOOK_S)
    pulse.start()
    assert ended.wait(10) and codes == [1]
    pulse.join(10)
    assert not pulse.is_alive()


def test_a_loop_that_turns_goes_on_and_so_does_one_that_stood_still_for_a_moment() -> None:
    ended, enough = list[int](), threading.Event()
    turns = itertools.chain([1] * LOOKS, itertools.count(2))  # one look short of too many, then on

    def look() -> int:
        count = next(turns)
        if count > 30:
            enough.set()
        return count

    pulse = Pulse(look, ended.append, LOOK_S)
    pulse.start()
    assert enough.wait(10)
    pulse.over.set()
    pulse.join(10)
    assert ended == []
