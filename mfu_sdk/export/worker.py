"""A daemon thread with a bounded queue that neither a fork nor the end of the process can hurt.

One thread a run, both signals on it: a second one would only wait for the same collector. It starts with the first
item, ends when the run is closed and delivered, and is inert in a forked child: nothing there is queued, sent,
waited for or started. At the end of the process all workers together get `EXIT_S`, whatever their collectors do.
"""

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence

# By their names: a test of the user's may put a clock that stands still into the module.
from time import monotonic, thread_time
from typing import Final, Protocol

from opentelemetry import context

from mfu_sdk import guard
from mfu_sdk.export.turn import give_way

EXIT_S: Final = 2.0
"""Seconds that the end of the process waits for all workers together."""

LINGER_S: Final = 60.0
"""Seconds that a closed run keeps trying to deliver while its process lives on."""

QUEUE_ITEMS: Final = 8192
"""Records that wait for the thread; about 5 MB. A hung collector holds the thread for its timeout, 10 s unless set,
so a loop of up to 800 steps a second loses nothing to one."""

TURN_ITEMS: Final = 32
"""Items taken at a time, a millisecond's work at most: between them the user's threads have the interpreter's lock."""

PORTION_ITEMS: Final = 512
"""Records that are consumed between two looks at what there is to send."""

POLL_S: Final = 1.0
"""How often the thread looks. Nobody wakes it for a step: setting an event would cost the step more than the queue."""


class Pipeline(Protocol):
    """What the thread does with items. All its methods are called on that thread."""

    def consume(self, item: object) -> None:
        """Take one item."""

    def flush(self) -> None:
        """Make everything that was consumed ready to go, and due now."""

    def deliver(self, deadline_s: float | None) -> float | None:
        """Send at most one request a signal: seconds until there is more to do, None once nothing is left to send.

        `deadline_s` is on the monotonic clock and bounds the request.
        """

    def abandon(self, unread: int) -> None:
        """Give up what is left, and `unread` items that were never consumed: nobody will ask again."""

    def retire(self) -> None:
        """The thread ends, having delivered or given up everything."""


class Worker:
    """Runs a pipeline. `put`, `close` and `flush` may be called from any thread and never raise."""

    def __init__(
        self,
        name: str,
        pipeline: Pipeline,
        monotonic_s: Callable[[], float] = monotonic,
        thread_s: Callable[[], float] = thread_time,
    ) -> None:
        self._name = name
        self._pipeline = pipeline
        self._monotonic_s = monotonic_s
        self._thread_s = thread_s
        self._queue: deque[object] = deque()
        self._pid = os.getpid()
        # One flag for all that makes `put` a no-op: closed, or in a forked child. It is all that a step has to read.
        self._shut = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._wake = threading.Event()
        self._changed = threading.Condition()
        self._asked = 0
        self._served = 0
        self._ended = False
        self._complete = False
        self._deadline_s: float | None = None
        self.overflowed = 0
        self.cpu_s = 0.0
        """Processor time of the thread in seconds, as of its last look at what there is to send."""
        _hook_process()

    def put(self, item: object) -> None:
        """Queue `item`, or count it in `overflowed` if the queue is full."""
        if self._shut:
            return
        if len(self._queue) >= QUEUE_ITEMS:
            self.overflowed += 1
            return
        self._queue.append(item)
        if self._thread is None:
            self._start()

    def put_all(self, items: Sequence[object]) -> None:
        """Queue each of `items`, as `put` does; of a full queue's those that came last are counted."""
        if self._shut:
            return
        room = QUEUE_ITEMS - len(self._queue)
        if room < len(items):
            self.overflowed += len(items) - max(room, 0)
            items = items[: max(room, 0)]
        self._queue.extend(items)
        if self._thread is None:
            self._start()

    def close(self, last: object) -> None:
        """Queue `last`, even into a full queue, and take no more; the thread delivers and ends by itself."""
        if self._shut:
            return
        self._queue.append(last)
        self._shut = True
        self._deadline_s = self._monotonic_s() + LINGER_S
        if self._thread is None:
            self._start()
        self._wake.set()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was put before is delivered, for at most `timeout_s`: whether it is.

        On a closed run this also waits for the thread to end.
        """
        return self.wait(self.ask(), timeout_s)

    def ask(self) -> int:
        """Begin to deliver all that was put before, without waiting: a number for `wait`."""
        if self._inert() or self._thread is None:
            return 0
        with self._changed:
            self._asked += 1
            mine = self._asked
        self._wake.set()
        return mine

    def wait(self, mine: int, timeout_s: float) -> bool:
        """Wait until what `ask` began is delivered, for at most `timeout_s`: whether it is."""
        if self._inert() or self._thread is None:
            return not self._queue
        until_s = monotonic() + timeout_s
        with self._changed:
            self._changed.wait_for(lambda: self._served >= mine or self._ended, timeout_s)
            done = self._served >= mine or self._complete
        if self._shut:
            self._thread.join(max(0.0, until_s - monotonic()))
        return done

    def stop(self, timeout_s: float) -> bool:
        """Take no more, deliver for at most `timeout_s`, and give up the rest: whether the thread has ended.

        A thread inside a request ends when that does, at the latest at the request's own timeout.
        """
        # First of all: in a forked child not even a lock may be taken, its holder may not exist there.
        if self._inert() or self._thread is None:
            self.disown()
            if not self._inert():
                self._pipeline.retire()
            return True
        self.hurry(self._monotonic_s() + timeout_s)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def hurry(self, deadline_s: float) -> None:
        """Take no more and end by `deadline_s` on the monotonic clock, without waiting for it."""
        self._shut = True
        self._deadline_s = deadline_s if self._deadline_s is None else min(deadline_s, self._deadline_s)
        with self._changed:
            self._asked += 1
        self._wake.set()

    def disown(self) -> None:
        """Become inert: this is a forked child, where the thread does not exist and the items are the parent's."""
        self._shut = True
        self._queue.clear()

    @property
    def alive(self) -> bool:
        """Whether the thread is at work in this process."""
        return not self._inert() and self._thread is not None and self._thread.is_alive()

    def _inert(self) -> bool:
        return os.getpid() != self._pid

    def _start(self) -> None:
        if self._inert():
            self.disown()
            return
        with guard.shield("export"), self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=f"mfu-export-{self._name}", daemon=True)
                _LIVE.add(self)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        # HTTP libraries that the user has instrumented must not make spans of our requests.
        context.attach(context.set_value(key="suppress_instrumentation", value=True))
        try:
            with guard.shield("export"):
                self._loop()
            with guard.shield("export"):
                self._pipeline.retire()
        finally:
            # Also where the loop failed: from here on nobody takes what is put.
            self._shut = True
            _LIVE.discard(self)
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _loop(self) -> None:
        seen = begun = due = 0
        while True:
            # Both are read before the queue is: whatever was put before the question is drained after it.
            asked, shut = self._asked, self._shut
            if asked > seen:
                seen, due = asked, len(self._queue)
            due -= self._drain()
            if seen > begun and due <= 0:
                self._pipeline.flush()
                begun = seen
            self.cpu_s = self._thread_s()
            wait_s = self._pipeline.deliver(self._deadline_s)
            if wait_s is None and self._served < begun:
                with self._changed:
                    self._served = begun
                    self._changed.notify_all()
            left_s = POLL_S if self._deadline_s is None else self._deadline_s - self._monotonic_s()
            if shut and wait_s is None and not self._queue:
                self._complete = True
                return
            if shut and left_s <= 0:
                self._pipeline.abandon(len(self._queue))
                return
            if len(self._queue) >= (1 if shut or due > 0 else PORTION_ITEMS):
                continue
            self._wake.wait(max(0.0, min(POLL_S if wait_s is None else wait_s, POLL_S, left_s)))
            self._wake.clear()

    def _drain(self) -> int:
        # No more than what was there: a fast producer must not keep the thread from delivering. And in portions: at
        # the end of the process a full queue takes longer to encode than there is time to deliver.
        items, done = min(len(self._queue), PORTION_ITEMS), 0
        consume, take = self._pipeline.consume, self._queue.popleft
        while done < items:
            # One shield for all: it is left, and put up again, where one of them fails.
            with guard.shield("export"):
                while done < items:
                    done += 1
                    if done % TURN_ITEMS == 0:
                        give_way()
                    consume(take())
        return items


# --- one hook each for the whole process --------------------------------------------------------------------------

_LIVE: set[Worker] = set()
_hooked = False


def _hook_process() -> None:
    """Be told of the process's end and of forks, once.

    Exit handlers run last in, first out: whoever closes a run at exit registers after its exporter was made, and so
    closes it before the exporter gives up.
    """
    global _hooked
    if not _hooked:
        _hooked = True
        atexit.register(_at_exit)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    for worker in tuple(_LIVE):
        worker.disown()
    _LIVE.clear()


def _at_exit() -> None:
    deadline_s = monotonic() + EXIT_S
    # A fork that went past Python's own leaves the list as it was; the threads are the parent's.
    workers = [worker for worker in tuple(_LIVE) if worker.alive]
    for worker in workers:
        worker.hurry(deadline_s)
    for worker in workers:
        worker.stop(max(0.0, deadline_s - monotonic()))
    if any(worker.alive for worker in workers):
        guard.warn_once("export", f"not everything was delivered within the {EXIT_S:g} s that an exit may take")
