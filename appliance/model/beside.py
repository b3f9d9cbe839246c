"""A second thread for what a frame's tensor does not wait for: its statistics, while the network already runs.

A histogram of 1280 x 1024 bytes takes a core as long as some networks do (0.7 ms), and no library of ours counts faster.
On a busy machine the thread may not come to its turn for milliseconds, so nobody ever waits for it: what is not done
when it is asked for is done by whoever asks. It may then still be looking at a frame that was given back: nobody asks for what it
finds, and its reference keeps the memory mapped.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SecondThread:
    """preprocess.Beside on a thread of its own, first work first. Ends with ``close`` or with its owner."""

    def __init__(self, name: str = "statistics") -> None:
        self._waiting: SimpleQueue[_Work[Any] | None] = SimpleQueue()
        # The thread knows the queue only: while it waits there, nobody would ever collect what it held.
        self._thread = threading.Thread(target=_serve, args=(self._waiting,), name=name, daemon=True)
        self._end = weakref.finalize(self, self._waiting.put, None)
        self._thread.start()

    def __call__(self, work: Callable[[], T], /) -> Callable[[], T]:
        """Hand over. The result is asked for by the thread that handed over, once or more; it never waits.

        ``work`` may run in both threads at once: it changes nothing that both can see. What it raises, it raises again
        in whoever asks."""
        one = _Work(work)
        self._waiting.put(one)
        return one.result

    def close(self) -> None:
        """End the thread."""
        self._end()
        self._thread.join()


class _Work(Generic[T]):
    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._found: list[T] = []  # filled by one thread, then read by the other; a list's append is whole
        self._asked = False

    def do(self) -> None:
        """In the second thread, if nobody was quicker."""
        if self._asked:
            return
        try:
            self._found.append(self._work())
        except Exception:  # a thread's edge; nothing is swallowed: result does the work again, and fails in the asker
            return

    def result(self) -> T:
        """In the first one."""
        self._asked = True
        if not self._found:
            return self._work()
        return self._found[0]


def _serve(waiting: SimpleQueue[_Work[Any] | None]) -> None:
    while (one := waiting.get()) is not None:
        one.do()
        del one  # it holds the frame's memory
