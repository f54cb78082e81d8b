"""Takes counting along where work goes to another thread: a thread that is started, or a call that a pool is handed.

A dispatch mode is a thread's own. While any mode counts, functions of ours stand in the place of the methods by which a
thread hands work over; what a counting thread hands over, runs counted. With counting off these methods are as Python
made them, and where somebody else has replaced them meanwhile, ours lie beneath theirs and only pass the call on.

A call that goes to a pool is counted for its own length, whoever's the thread is; a thread is, from its start to its
end. What goes through a queue of the program's own to a thread that ran before is not recognised.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.thread import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from typing import Any, Final, Protocol

import torch

from mfu_sdk.guard import shield


class Pass(Protocol):
    """What makes a thread count, for as long as the count lasts in which it was issued."""

    def enter(self) -> Callable[[], None] | None:
        """Count in this thread from here on; returns what ends it, or None where the count is over."""


class Counter(Protocol):
    """What counts: a count that work may be taken along from."""

    def hand_over(self) -> Pass | None:
        """A pass for work that this thread hands over now, or None where this thread does not count."""

    def look_in(self) -> Callable[[], None] | None:
        """A backward begins in this thread: count it where the thread was visited; returns what ends it."""

    def forsake(self) -> None:
        """The process was forked, and this is the child."""


_lock = threading.Lock()
_counters: Final[list[Counter]] = []
_local: Final = threading.local()
_forks_seen = False


def watch(counter: Counter) -> None:
    """Take `counter` along from here on."""
    global _forks_seen
    with _lock:
        if not _forks_seen and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forked)
            _forks_seen = True
        _counters.append(counter)
        if not _replaced:
            _replace(threading.Thread, "start", _start)
            _replace(ThreadPoolExecutor, "submit", _submit)
            for name in ("apply_async", "_map_async", "imap", "imap_unordered"):
                _replace(ThreadPool, name, _call)


def unwatch(counter: Counter) -> None:
    """Undo `watch`; when nobody counts, all is as it was."""
    with _lock:
        if counter in _counters:
            _counters.remove(counter)
        if not _counters:
            _restore()


def watch_backward() -> None:
    """Ask the counters too where a backward begins in a thread, until the last of them is done."""
    with _lock:
        if _counters and not any(each.owner is torch.autograd for each in _replaced):
            _replace(torch.autograd, "_engine_run_backward", _run_backward)
            _replace(torch.autograd.graph, "_engine_run_backward", _run_backward)


def _forked() -> None:
    global _lock
    _lock = threading.Lock()
    for counter in _counters:
        counter.forsake()
    _counters.clear()
    _restore()


# --- what stands in the place of others' ----------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Replaced:
    owner: Any
    name: str
    ours: Any
    # None where the owner has inherited it.
    original: Any
    on: list[bool]
    compiles: bool
    """Whether dynamo was there to be told of it."""


_replaced: Final[list[_Replaced]] = []
# What stood in whose place last, with what it calls: most often the same again, and to make one takes 30 µs.
_made: Final[dict[tuple[Any, str], tuple[Any, _Replaced]]] = {}


def _replace(owner: Any, name: str, ours: Callable[..., Any]) -> None:
    beneath = getattr(owner, name)
    was, made = _made.get((owner, name), (None, None))
    if made is not None and was is beneath and made.compiles == ("torch._dynamo" in sys.modules):
        made.on[0] = True
        _replaced.append(made)
        setattr(owner, name, made.ours)
        return
    on = [True]

    def call(*args: Any, **kwargs: Any) -> Any:
        # Where somebody else has kept ours, it may be called when it should long be gone.
        return ours(beneath, *args, **kwargs) if on[0] else beneath(*args, **kwargs)

    call.__doc__, call.__name__, call.__qualname__ = beneath.__doc__, beneath.__name__, beneath.__qualname__
    if (dynamo := sys.modules.get("torch._dynamo")) is not None:
        # Called from compiled code that breaks its graph there, this is nothing to compile.
        call = dynamo.disable(call)
    made = _Replaced(owner, name, call, owner.__dict__.get(name), on, compiles=dynamo is not None)
    _made[owner, name] = beneath, made
    _replaced.append(made)
    setattr(owner, name, call)


def _restore() -> None:
    for each in _replaced:
        each.on[0] = False
        if each.owner.__dict__.get(each.name) is each.ours:
            if each.original is None:
                delattr(each.owner, each.name)
            else:
                setattr(each.owner, each.name, each.original)
    _replaced.clear()


def _passes() -> list[Pass]:
    found: list[Pass] = []
    with shield("following work into a thread"):
        for counter in tuple(_counters):
            granted = counter.hand_over()
            if granted is not None:
                found.append(granted)
    return found


@contextmanager
def _entered(passes: Sequence[Pass]) -> Iterator[None]:
    leave: list[Callable[[], None]] = []
    with shield("following work into a thread"):
        leave += [left for each in passes if (left := each.enter()) is not None]
    try:
        yield
    finally:
        for left in reversed(leave):
            with shield("following work into a thread"):
                left()


def _run(passes: Sequence[Pass], function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    with _entered(passes):
        return function(*args, **kwargs)


def _start(original: Callable[..., None], thread: threading.Thread) -> None:
    # A pool's own threads outlive what it is handed now.
    passes = [] if getattr(_local, "hands_over", False) else _passes()
    if not passes:
        original(thread)
        return
    run, its_own = thread.run, thread.__dict__.get("run")

    def give_back() -> None:
        thread.__dict__.pop("run", None)
        if its_own is not None:
            thread.__dict__["run"] = its_own

    def counted() -> None:
        give_back()
        with _entered(passes):
            run()

    thread.run = counted  # type: ignore[method-assign]
    try:
        original(thread)
    except BaseException:
        give_back()
        raise


def _submit(original: Callable[..., Any], pool: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
    # Other interpreters get their work in writing.
    passes = [] if any(kind.__name__ == "InterpreterPoolExecutor" for kind in type(pool).__mro__) else _passes()
    before = getattr(_local, "hands_over", False)
    _local.hands_over = True
    try:
        if passes:
            return original(pool, _run, passes, function, *args, **kwargs)
        return original(pool, function, *args, **kwargs)
    finally:
        _local.hands_over = before


def _call(original: Callable[..., Any], pool: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
    passes = _passes()
    return original(pool, _Counted(passes, func) if passes else func, *args, **kwargs)


class _Counted:
    """A function that a pool is handed, to call as often as it likes."""

    def __init__(self, passes: Sequence[Pass], function: Callable[..., Any]) -> None:
        self._passes = passes
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _run(self._passes, self._function, *args, **kwargs)


def _run_backward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    leave: list[Callable[[], None]] = []
    with shield("following a backward into a thread"):
        leave += [left for each in tuple(_counters) if (left := each.look_in()) is not None]
    try:
        return original(*args, **kwargs)
    finally:
        for left in leave:
            with shield("following a backward into a thread"):
                left()
