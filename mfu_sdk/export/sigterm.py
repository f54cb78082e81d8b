"""SIGTERM while runs are open: what was recorded is delivered first, then happens what would have happened without us.

Where the program has left SIGTERM to the system, its runs are closed and delivered for at most `worker.EXIT_S`, and
the process dies of the signal. Where the program has a handler, the runs are flushed for at most as long, stay open,
since the program may go on, and its handler is called. One that it installs later takes our place; it decides then.

A handler in Python runs when the main thread comes back from whatever C code it is in, and a collective that hangs
never comes back: with a handler and nothing else the process could no longer be terminated. So Python's wake-up
descriptor, where nobody else has it, is watched by a thread that sees to the same end. The delivery is done in a thread
too: the main thread may have been interrupted with a lock in its hand.
"""

import ctypes
import os
import signal
import threading
from types import FrameType
from typing import Any, Final, Protocol

from mfu_sdk import guard
from mfu_sdk.export.worker import EXIT_S

GRACE_S: Final = 0.5
"""How long the main thread has to die by itself once all is delivered."""


class Ends(Protocol):
    """A run's way out. Both are called in a thread of their own, and wait for at most `timeout_s`."""

    def flush(self, timeout_s: float) -> bool:
        """Deliver what there is."""
        ...

    def terminate(self, timeout_s: float) -> None:
        """Close the run and deliver it: the process ends."""


_open: dict[Ends, None] = {}
_watch: "_Watch | None" = None


def watch(run: Ends) -> None:
    """Look after `run` until `forget`. Nothing happens outside of the main thread, and where SIGTERM is ignored or is
    handled by code that is not Python.
    """
    global _watch
    _open[run] = None
    if _watch is None and threading.current_thread() is threading.main_thread():
        previous = signal.getsignal(signal.SIGTERM)
        if previous is signal.SIG_DFL or callable(previous):
            _watch = _Watch(previous)


def forget(run: Ends) -> None:
    """`run` is closed; with the last one everything is as it was before."""
    global _watch
    _open.pop(run, None)
    if not _open and _watch is not None and threading.current_thread() is threading.main_thread():
        _watch.undo()
        _watch = None


class _Watch:
    """Our handler, and the thread behind it."""

    def __init__(self, previous: Any) -> None:
        self._previous = previous
        self._pid = os.getpid()
        self._begun = threading.Lock()
        self._delivered = threading.Event()
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._thread: threading.Thread | None = None
        signal.signal(signal.SIGTERM, self._handle)
        others = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        if others == -1:
            self._thread = threading.Thread(target=self._wait, name="mfu-sigterm", daemon=True)
            self._thread.start()
        else:
            signal.set_wakeup_fd(others)
        _hook_forks()

    @property
    def _deadly(self) -> bool:
        """Whether the process dies of the signal; the first one of a container does not."""
        return self._previous is signal.SIG_DFL and os.getpid() != 1

    def undo(self) -> None:
        """Put back what was there, unless somebody has put theirs in our place."""
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, self._previous)
        if self._thread is not None:
            theirs = signal.set_wakeup_fd(-1)
            if theirs not in (-1, self._write):
                signal.set_wakeup_fd(theirs)
            os.write(self._write, b"\0")
            self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Also called where a handler that came after ours passes the signal on, and our runs are long closed.
        if _open and os.getpid() == self._pid:
            self._deliver()
            self._delivered.wait(EXIT_S)
        if callable(self._previous):
            self._previous(number, frame)
        else:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    def _wait(self) -> None:
        """See to it that a main thread which does not come back is terminated all the same."""
        while (seen := os.read(self._read, 1)) not in (b"", b"\0"):
            if seen[0] == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == self._handle:
                self._deliver()
                self._delivered.wait(EXIT_S)
                if self._deadly:
                    threading.Event().wait(GRACE_S)
                    # What `signal.signal` does, which only the main thread may call.
                    ctypes.pythonapi.PyOS_setsig(int(signal.SIGTERM), ctypes.c_void_p(0))
                    os.kill(os.getpid(), signal.SIGTERM)

    def _deliver(self) -> None:
        """Begin to deliver, unless that has begun."""
        if self._begun.acquire(blocking=False):
            self._delivered.clear()
            threading.Thread(target=self._do_deliver, name="mfu-sigterm-delivery", daemon=True).start()

    def _do_deliver(self) -> None:
        try:
            runs = tuple(_open)
            threads = [
                threading.Thread(target=self._end, args=(run,), name="mfu-sigterm-run", daemon=True) for run in runs
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(EXIT_S)
        finally:
            self._delivered.set()
            if not self._deadly:
                # The program goes on, and may be asked again.
                self._begun.release()

    def _end(self, run: Ends) -> None:
        with guard.shield("SIGTERM"):
            if self._deadly:
                run.terminate(EXIT_S)
            else:
                run.flush(EXIT_S)

    def disown(self) -> None:
        """Become inert: this is a forked child, which has the program's own handler and an end of its own."""
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, self._previous)
        if self._thread is not None:
            signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)


_hooked = False


def _hook_forks() -> None:
    global _hooked
    if not _hooked and hasattr(os, "register_at_fork"):
        _hooked = True
        os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    global _watch
    _open.clear()
    if _watch is not None:
        _watch.disown()
        _watch = None
