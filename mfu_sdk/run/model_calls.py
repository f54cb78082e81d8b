"""The model's calls as its hooks see them: whose each is, what it costs, and in which phase it was.

A call belongs to the innermost request in whose context it runs, whichever thread that is. One that runs in no
request's context (an executor that does not take the context along, an engine's own thread) belongs to the only request
under way; where several are, it is the device's work, and their FLOPs are unknown.

Counts are kept for each call of the model, by the shapes of its inputs: the first call with new shapes runs under the
counting mode, which makes its part of the busy period untimed; later ones cost a look-up, and lengths between counted
ones follow from a closed form (`forms`). Where shapes never end, few calls are counted, and parts with calls of unknown
cost are in no sum of FLOPs. On a processor the operators of a few calls are timed (`call_times`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from mfu_sdk.counting import cuda_graphs, provenance
from mfu_sdk.counting.dispatch import CountingMode
from mfu_sdk.counting.plan import signature
from mfu_sdk.guard import shield
from mfu_sdk.records import Convention, Phase
from mfu_sdk.run import graphed
from mfu_sdk.run.call_costs import CallCosts
from mfu_sdk.run.call_times import CallTimes, call_times
from mfu_sdk.run.hooks import Hook
from mfu_sdk.run.innermost import current
from mfu_sdk.run.phases import CallShape, phase_of, shape_of
from mfu_sdk.run.turns import turns
from mfu_sdk.run.watched import others_than, watch

if TYPE_CHECKING:
    from torch import nn

    from mfu_sdk.run.clock import Mark
    from mfu_sdk.run.demand import Demand
    from mfu_sdk.run.ledger import Ledger
    from mfu_sdk.run.load import LoadSampler
    from mfu_sdk.run.request import Request
    from mfu_sdk.settings import Profiling

# torch leaves the keywords out where a hook is removed while it is on its way to it.
_NO_KEYWORDS: Mapping[str, Any] = {}
_NO_SHAPE = CallShape(0, None, None)


class Call:
    """A call of the model that is running in this thread: whose it is, or whose it may be."""

    __slots__ = ("key", "mode", "owner", "shape", "start", "suspects", "times")

    def __init__(self, owner: Request | None, suspects: tuple[Request, ...]) -> None:
        self.owner = owner
        self.suspects = suspects
        self.key: Hashable = None
        self.shape = _NO_SHAPE
        self.mode: CountingMode | None = None
        self.times: CallTimes | None = None
        self.start: Mark = None

    def stop(self) -> None:
        """In its own thread: count no more of it, and time no more."""
        if self.mode is not None:
            self.mode.stop()
        if self.times is not None:
            self.times.stop()


class Caller(Protocol):
    """The run that wants to know of its model's calls."""

    @property
    def active(self) -> Collection[Request]:
        """Its requests under way."""
        ...

    @property
    def load(self) -> LoadSampler | None:
        """Who asks the server for its load, where the caller gave a way to."""
        ...

    def calling(self, start: Mark) -> None:
        """A call begins while no other is under way; said in turn."""
        ...

    def called(self, call: Call, phase: Phase, demand: Demand | None, end: Mark) -> None:
        """A call has ended; said in turn."""
        ...


class ModelCalls:
    """Sees the calls of one run's model, from `watch` until what that returned is called."""

    def __init__(self, model: nn.Module, convention: Convention, run: Caller, profiling: Profiling) -> None:
        self._model = model
        self._convention: Convention = convention
        self._run = run
        self._profiling: Profiling = profiling
        self._ledger: Ledger | None = None
        self._costs = CallCosts()
        self._times: CallTimes | None = None
        self.under_way = 0
        """The calls that run now, in all threads. Changed in turn."""
        self._local = threading.local()

    @property
    def dtype(self) -> str | None:
        """The dtype of most FLOPs of the call counted last."""
        return self._costs.dtype

    def watch(self, ledger: Ledger) -> list[Callable[[], None]]:
        """Begin: hooks on the model, and what takes them away."""
        self._ledger = ledger
        self._times = call_times(ledger.clock, self._profiling)
        undo: list[Callable[[], None]] = [
            watch(self._model),
            # What is compiled or captured between counted calls is known in those.
            provenance.observe(),
            cuda_graphs.keep(),
            graphed.allow(),
            self._model.register_forward_pre_hook(Hook(self._before_call), with_kwargs=True).remove,
            self._model.register_forward_hook(Hook(self._after_call), always_call=True).remove,
            partial(_watching.remove, self),
        ]
        with turns:
            _watching.append(self)
        return undo

    @property
    def _running(self) -> list[Call]:
        """The model's calls that are running in this thread, the outermost first."""
        found: list[Call] | None = getattr(self._local, "running", None)
        if found is None:
            found = self._local.running = []
        return found

    def forget(self) -> None:
        """Drop calls in this thread that never came back: their hook was removed, or another raised before it."""
        with shield("ending a request"):
            while self._running:
                call = self._running.pop()
                call.stop()
                if call.start is not None:
                    with turns:
                        self.under_way -= 1
                        if call.times is not None:
                            call.times.forget()

    def _before_call(self, module: nn.Module, args: Any, kwargs: Any = _NO_KEYWORDS) -> None:
        # Inside of a compiled model this folds to nothing: no graph break, and no call either.
        if torch.compiler.is_compiling() or not self._run.active or cuda_graphs.is_capturing():
            return
        with shield("seeing a model call"):
            if self._running:
                # A model that calls itself: the outer call has it all.
                self._running.append(Call(None, ()))
                return
            ledger, whose = self._ledger, self._whose()
            if ledger is None or whose is None:
                return
            began_ns = time.perf_counter_ns()
            call = Call(*whose)
            self._running.append(call)
            call.key = signature(module, args, kwargs)
            call.shape = shape_of(args, kwargs)
            with turns:
                counts = self._costs.should_count(call.key)
                if not counts and self._times is not None and self._times.due(call.shape):
                    call.times = self._times
                call.start = ledger.clock.mark()
                if not self.under_way:
                    self._run.calling(call.start)
                self.under_way += 1
                ledger.overhead_ns += time.perf_counter_ns() - began_ns
            if call.times is not None:
                call.times.start()
            if counts:
                call.mode = CountingMode(
                    self._model, convention=self._convention, others=partial(others_than, self._model)
                )
                call.mode.start()

    def _whose(self) -> tuple[Request | None, tuple[Request, ...]] | None:
        """The request that a call of the model is for, or those that it may be for; None where it is not this run's."""
        request = current.get()
        if request is not None:
            if request.run is not self._run:
                return None
            # Of a task that outlives its request nobody is charged.
            return (None if request.ended else request), ()
        with turns:
            able = [each for each in _watching if each._model is self._model and each._run.active]
            under_way = [request for each in able for request in each._run.active]
            own = tuple(self._run.active)
            if len(under_way) == 1:
                return (own[0], ()) if own else None
            if able and able[0] is self:
                return None, tuple(under_way)
            return None

    def _after_call(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not self._running or cuda_graphs.is_capturing():
            return
        with shield("seeing a model call end"):
            call = self._running.pop()
            ledger = self._ledger
            if self._running or ledger is None:
                return
            call.stop()
            began_ns = time.perf_counter_ns()
            with turns:
                self._ended(ledger, call, output)
                ledger.overhead_ns += time.perf_counter_ns() - began_ns

    def _ended(self, ledger: Ledger, call: Call, output: Any) -> None:
        if call.start is not None:
            self.under_way -= 1
        owner = call.owner
        phase = phase_of(call.shape, output, prompted=owner is None or owner.prompted)
        # One that raised has no output, and is not what its shapes cost.
        if call.mode is not None and output is not None:
            count = call.mode.result()
            ledger.gathered.counted(count, ledger.peaks, phase)
            self._costs.learn(call.key, ledger.price(count, "cached", at_other_batches=self._run.load is not None))
        if call.suspects:
            ledger.note(
                "the model was called outside of any request's context while several were handled: such calls are in "
                "the device's FLOPs and in no request's (take the context along with asyncio.to_thread or "
                "contextvars.copy_context)"
            )
        demand = self._costs.of(call.key)
        if call.times is not None:
            call.times.tell(ledger.gathered, None if output is None else demand, phase)
        self._run.called(call, phase, demand, ledger.clock.mark())


_watching: list[ModelCalls] = []
"""Those that see calls now. Changed in turn."""
