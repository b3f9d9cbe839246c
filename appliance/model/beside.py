"""A second thread for what a frame's tensor does not wait for: its statistics, while the network already runs.

A histogram of 1280 x 1024 bytes costs as much as some networks (0.7 ms), and no library counts faster than a core can.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

_LONGEST_S = 10.0  # a histogram takes a millisecond; who waits this long waits for a thread that is gone
T = TypeVar("T")


class SecondThread:
    """preprocess.Beside on a thread of its own; works are done one after another. Ends with ``close`` or its owner."""

    def __init__(self, name: str = "statistics") -> None:
        self._waiting: SimpleQueue[_Work[Any] | None] = SimpleQueue()
        # The thread knows the queue only: while it waits there, nobody would ever collect what it held.
        self._thread = threading.Thread(target=_serve, args=(self._waiting,), name=name, daemon=True)
        self._end = weakref.finalize(self, self._waiting.put, None)
        self._thread.start()

    def __call__(self, work: Callable[[], T], /) -> Callable[[], T]:
        """Hand over; what comes back waits for the result (milliseconds) and raises what the work raised."""
        one = _Work(work)
        self._waiting.put(one)
        return one.result

    def close(self) -> None:
        """Do what was handed over, then end."""
        self._end()
        self._thread.join()


class _Work(Generic[T]):
    """One work and its result; a lock that is free once it is done."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._done = threading.Lock()
        self._done.acquire()
        self._value: list[T] = []
        self._error: BaseException | None = None

    def do(self) -> None:
        """In the second thread."""
        try:
            self._value.append(self._work())
        except BaseException as why:  # a thread's edge: whoever asks for the result gets it
            self._error = why
        finally:
            self._done.release()

    def result(self) -> T:
        """In the first one, as often as it likes."""
        if not self._done.acquire(timeout=_LONGEST_S):
            raise RuntimeError(f"the frame's statistics did not come within {_LONGEST_S:.0f} s; start inspectd anew")
        self._done.release()
        if self._error is not None:
            raise self._error
        return self._value[0]


def _serve(waiting: SimpleQueue[_Work[Any] | None]) -> None:
    while (one := waiting.get()) is not None:
        one.do()
        del one  # it holds the frame's memory
