"""The counting mode: sees every operator that runs, and counts it.

Its price is a few microseconds an operator, so a run counts few steps and looks the others up (`plan`). What a call
costs is worked out once for its operator and shapes, and is one addition to a table from then on.

A dispatch mode is a thread's own, so a count has a part in each thread that works for it: the mode itself in the thread
that started it, and one more in each thread that was handed work (`threads`) or called the model (`visit`).
"""

import sys
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal

from mfu_sdk.errors import ConfigurationError, MissingDependencyError
from mfu_sdk.guard import shield, warn_once
from mfu_sdk.records import Convention, Count

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingDependencyError("torch is not installed: counting runs under it; pip install torch") from error

from torch.utils._python_dispatch import TorchDispatchMode

from mfu_sdk.counting import biases, cuda_graphs, launches, mode_stack, threads
from mfu_sdk.counting.books import Books
from mfu_sdk.counting.part import Part
from mfu_sdk.counting.place import ELSEWHERE, OTHERS
from mfu_sdk.counting.tally import Stage

_KEEPS_COMPILATION: Final = hasattr(TorchDispatchMode, "ignore_compile_internals")


@dataclass(frozen=True, slots=True)
class Pass:
    """Makes a thread count for `root`, for as long as the count lasts in which it was issued."""

    root: "CountingMode"
    count: int
    nowhere: str
    stage: Stage

    def enter(self) -> Callable[[], None] | None:
        """Count in this thread from here on; returns what ends it, or None where the count is over."""
        return self.root._work_begins(self)


Reach = Literal["all", "model", "none"]
"""What counts in other threads. "all": what is handed to them while counting. "model": what the model hands to them,
its modules that run in them, and the backward of these. "none": nothing."""


class CountingMode(Part):
    """Counts the operators that run while it is on, in this thread, in the autograd engine's for it, and in others.

    Either a context manager, any number of times and nested in itself, or `start()` and `stop()`, which may lie in
    different hooks. `model` gives modules their names; operators of other modules are counted too, but for those of
    the models that `others` returns. What `torch.compile` has compiled counts by its graph, and stays compiled.
    Wrapper tensors (DTensor, nested, quantized) are counted by the operators that they run on what they wrap, so a
    sharded tensor counts its local shard. `reach` says which work of other threads is this count's.
    """

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        *,
        convention: Convention = "exact",
        others: Callable[[], Collection[torch.nn.Module]] = tuple,
        reach: Reach = "all",
    ) -> None:
        super().__init__(None, self._open(model, convention, others))
        self._reach: Reach = reach
        self._lock = threading.RLock()
        # The parts of other threads in the count that is on, which is the so-manieth.
        self._parts: set[Part] = set()
        self._counts = 0
        self._local = threading.local()

    def _open(
        self,
        model: torch.nn.Module | None,
        convention: Convention,
        others: Callable[[], Collection[torch.nn.Module]],
    ) -> Books:
        return Books(model, convention, others)

    def start(self) -> None:
        """Count from here on. The mode lies beneath all others, so no `with` of the user's can meet it by mistake."""
        if self._depth == 0:
            with shield("count"):
                self._books.begin()
                if not _KEEPS_COMPILATION and "torch._dynamo" in sys.modules:
                    warn_once(
                        "count",
                        "this version of torch leaves eager what it first compiles while counting; call compiled "
                        "functions once before, or use torch 2.13",
                    )
                launches.watch(self._launched)
                biases.watch(self._aside)
                if self.reads_data:
                    cuda_graphs.watch(self._replayed)
                self._compiled.start()
                if self._reach != "none":
                    threads.watch(self)
            self._counts += 1
            if not mode_stack.holds(self):
                mode_stack.insert(self)
        self._depth += 1

    def stop(self) -> None:
        """Undo one `start`. Other modes stay as they are; called in another thread, it leaves the stack later.

        Until the thread that started calls `start` or `stop` again, the mode is then transparent.
        """
        was_on = self._depth > 0
        self._depth = max(0, self._depth - 1)
        if self._depth == 0:
            mode_stack.remove(self)
            if was_on:
                launches.unwatch(self._launched)
                biases.unwatch(self._aside)
                cuda_graphs.unwatch(self._replayed)
                threads.unwatch(self)
                with shield("count"):
                    self._compiled.stop()
                self._others_end()
            self._books.end()

    def __enter__(self) -> "CountingMode":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def result(self) -> Count:
        """What has run so far, since the last `reset`."""
        return self._books.count()

    @property
    def has_work(self) -> bool:
        """Whether anything that has run since then cost FLOPs."""
        return self._books.has_work

    def reset(self) -> None:
        """Begin again from nothing."""
        self._books.clear()
        with self._lock:
            for part in self._parts:
                part._books.follow(self._books)

    def outside(self) -> tuple[str, ...]:
        """Operators that cost FLOPs and ran in threads that were handed work, but belong to no monitored model."""
        return tuple(sorted(self._books.outside))

    # --- in other threads ------------------------------------------------------------------------------------------

    def hand_over(self) -> Pass | None:
        """A pass for work that this thread hands over now, or None where this thread does not count."""
        part = self._part_here()
        if part is None or not part._depth or self._reach == "none":
            return None
        module, stage, regions = part._books.places.now()
        if regions and part._books.covered(regions, module, stage):
            return None
        if self._reach == "model" and not module and stage != "optimizer":
            module = ELSEWHERE
        return Pass(self, self._counts, module, stage)

    def _work_begins(self, granted: Pass) -> Callable[[], None] | None:
        if (part := self._part_here()) is self:
            return None
        with self._lock:
            if not self._depth or granted.count != self._counts:
                return None
            mine = self._new_part(granted.nowhere, granted.stage, every_node=True)
        # A thread that counts by one rule may be handed work that counts by another.
        if part is not None:
            mode_stack.remove(part)
        mode_stack.insert(mine)
        mine._books.places.enter()

        def ends() -> None:
            mode_stack.remove(mine)
            if part is not None:
                mode_stack.insert(part)
            with self._lock:
                self._end(mine)

        return ends

    def visit(self) -> Callable[[], None] | None:
        """The model is called in this thread, which nobody handed it: count that; returns what ends the call."""
        if not self._depth or self._reach == "none" or self._part_here() is not None:
            return None
        with self._lock:
            if not self._depth:
                return None
            count, part = getattr(self._local, "visitor", (None, None))
            if part is None or count != self._counts:
                part = self._new_part(OTHERS, "forward", every_node=False)
                self._local.visitor = self._counts, part
        threads.watch_backward()
        return self._puts_on(part)

    def look_in(self) -> Callable[[], None] | None:
        """A backward begins in this thread: count it where the thread was visited; returns what ends it."""
        count, part = getattr(self._local, "visitor", (None, None))
        if part is None or count != self._counts or not part._depth or self._part_here() is not None:
            return None
        return self._puts_on(part)

    def _puts_on(self, part: Part) -> Callable[[], None]:
        mode_stack.insert(part)
        part._books.places.enter()

        def ends() -> None:
            mode_stack.remove(part)

        return ends

    def _part_here(self) -> Part | None:
        """The part of this count that is on this thread's stack."""
        for mode in mode_stack.modes():
            if isinstance(mode, Part) and (mode is self or mode._root is self):
                return mode
        return None

    def _new_part(self, nowhere: str, stage: Stage, *, every_node: bool) -> Part:
        part = Part(self, self._books.in_thread(nowhere, stage, every_node=every_node))
        part._depth = 1
        part._compiled.start()
        self._parts.add(part)
        return part

    def _end(self, part: Part) -> None:
        part._depth = 0
        self._parts.discard(part)
        with shield("count"):
            part._compiled.stop()
        part._books.places.end()

    def _others_end(self) -> None:
        """The count is over: threads that outlive it go on uncounted."""
        with self._lock:
            for part in tuple(self._parts):
                self._end(part)

    def forsake(self) -> None:
        """The process was forked, and this is the child: what counts is the parent."""
        self._lock = threading.RLock()
        self._books.unlock()
        for part in (self, *self._parts):
            part._depth = 0
            mode_stack.remove(part)
        self._parts.clear()

    def _launched(self, kernel: Any, named: Mapping[str, Any]) -> None:
        # While an operator runs beneath this mode the mode is off: a kernel that it launches is the operator's.
        part = self._part_here()
        if part is not None and part._depth and not self.steps_aside():
            part._books.launched(kernel, named)

    def _aside(self) -> Callable[[], None]:
        """Leave this thread's stack for a moment; returns what comes back."""
        part = self._part_here()
        if part is None:
            return lambda: None
        mode_stack.remove(part)
        return lambda: mode_stack.insert(part)

    def _replayed(self, captured: cuda_graphs.Captured | None) -> None:
        part = self._part_here()
        if part is not None and part._depth:
            part._books.replayed(captured)


def count(fn: Callable[..., Any], *args: Any, convention: Convention = "exact", **kwargs: Any) -> Count:
    """Run `fn(*args, **kwargs)` once and count what it ran; `fn` is a function or a module, its result is dropped.

    What `fn` raises passes unchanged. Call `backward()` inside of `fn` to count it too. Threads that `fn` starts count,
    and what it hands to a pool of threads, as long as `fn` runs; what it puts into a queue for a thread that ran before
    is not seen. Raises `ConfigurationError` for a convention that is neither.
    """
    if convention not in ("exact", "full"):
        raise ConfigurationError(f"convention={convention!r}: must be exact or full (see docs/explanation/mfu.md)")
    mode = CountingMode(fn if isinstance(fn, torch.nn.Module) else None, convention=convention)
    with mode:
        fn(*args, **kwargs)
    return mode.result()
