"""One thread at a time works on the books of requests, and what the garbage collector ends meanwhile waits its turn."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType


class Turns:
    """A lock that a thread may take again, and a list of work for whoever leaves it.

    An abandoned generator is closed wherever the garbage collector runs, which may be in the middle of our own
    additions in this same thread. A lock would be deadlocked by that, and one that lets the thread in again would let
    it change sums that are half made. So such work is put down, and done by whoever holds the books when he is done.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self.renew()

    def renew(self) -> None:
        """Be nobody's turn: in a forked child the thread whose turn it was is gone and will not leave."""
        self._lock = threading.RLock()
        self._depth = 0
        self._waiting.clear()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._depth == 1 and self._waiting:
                self._waiting.popleft()()
        finally:
            self._depth -= 1
            self._lock.release()

    def do(self, work: Callable[[], None]) -> None:
        """Do `work` now, or, where this thread is in the middle of other work on the books, right after that."""
        self._waiting.append(work)
        with self:
            pass


turns = Turns()
"""Of the whole process: handlers that share a device work on one another's time (`run.device_time`)."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=turns.renew)
