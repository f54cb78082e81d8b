"""Requests that wait together are stored together: one insert, one answer each, when it is on disk.

Two threads take turns: while one has the engine write, the other has it read the next requests, if there is enough of
them to be worth a group of their own, which has a price whatever it holds. Otherwise they wait and grow.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Final

from mfu_sdk.errors import StoreError
from mfu_sdk.provider.arrivals import Arrival, Arrivals, Outcome

MAX_WAITING_BYTES: Final = 128 * 1024 * 1024
"""Requests beyond this are turned away until others are stored: a client that keeps its spans is a better queue."""

_GROUP_BYTES: Final = 16 * 1024 * 1024
_WORTH_BYTES: Final = 4 * 1024 * 1024


class Groups:
    """A thread for each of `places`; `bounds` gives the earliest and the latest start of a span, now."""

    def __init__(self, places: Sequence[Arrivals], bounds: Callable[[], tuple[int, int]]) -> None:
        self._bounds = bounds
        self._waiting: deque[tuple[Arrival, Future[Outcome]]] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._turn = threading.Lock()
        self._writing = 0
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, args=(place,), name=f"provider-store-{number}", daemon=True)
            for number, place in enumerate(places)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, arrival: Arrival) -> Future[Outcome] | None:
        """What will have become of `arrival`; None where too much waits already."""
        found: Future[Outcome] = Future()
        with self._changed:
            if self._closing or self._waiting_bytes + len(arrival.body) > MAX_WAITING_BYTES:
                return None
            self._waiting.append((arrival, found))
            self._waiting_bytes += len(arrival.body)
            self._changed.notify()
        return found

    def close(self) -> None:
        """Store what waits, and end; a second call does nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, place: Arrivals) -> None:
        while True:
            with ExitStack() as turn:
                turn.enter_context(self._turn)
                group = self._next()
                if not group:
                    return
                oldest, newest = self._bounds()
                outcomes: Sequence[Outcome]
                writing = ExitStack()

                def reading_is_done(turn: ExitStack = turn, writing: ExitStack = writing) -> None:
                    writing.enter_context(self._writes())
                    turn.close()

                try:
                    with writing:
                        outcomes = place.add([arrival for arrival, _ in group], oldest, newest, reading_is_done)
                except Exception as error:  # noqa: BLE001  # whoever waits has to be answered, whatever went wrong
                    outcomes = [StoreError(f"a group was not stored ({error})")] * len(group)
            for (_, found), outcome in zip(group, outcomes, strict=True):
                found.set_result(outcome)

    @contextmanager
    def _writes(self) -> Iterator[None]:
        with self._changed:
            self._writing += 1
        try:
            yield
        finally:
            with self._changed:
                self._writing -= 1
                self._changed.notify_all()

    def _next(self) -> list[tuple[Arrival, Future[Outcome]]]:
        group: list[tuple[Arrival, Future[Outcome]]] = []
        with self._changed:
            while not group:
                self._changed.wait_for(
                    lambda: (
                        self._closing or (self._waiting and (not self._writing or self._waiting_bytes >= _WORTH_BYTES))
                    )
                )
                if not self._waiting:
                    break
                size = 0
                while self._waiting and (not size or size + len(self._waiting[0][0].body) <= _GROUP_BYTES):
                    arrival, found = self._waiting.popleft()
                    size += len(arrival.body)
                    # Whoever has gone meanwhile was told nothing, and what is done for the others cannot be called off.
                    if found.set_running_or_notify_cancel():
                        group.append((arrival, found))
                self._waiting_bytes -= size
        return group
