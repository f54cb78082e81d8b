"""From hooks to steps: which work belongs to which step, whether it is counted, and when it ends.

The path of a step, in order: `_begin` → the model's calls give its signature → `_end` looks the signature's count up
in the plan (or takes the count that the mode has just made) → `Ledger.add` times it, divides it and sends it on.

Loops that mark their steps call `marked_begins` and `marked_ends`. In loops that do not, a step ends at the first
forward pass of the model after a step of the optimizer; forward passes without gradients in between are an `eval`
step of their own.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from collections.abc import Hashable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from mfu_sdk.counting.dispatch import CountingMode
from mfu_sdk.counting.plan import Plan, signature
from mfu_sdk.guard import shield, warn_once
from mfu_sdk.records import Convention, CountSource, Phase, RunSummary
from mfu_sdk.run.ledger import Demand, Ledger, Work

if TYPE_CHECKING:
    from torch import nn

    from mfu_sdk.run.clock import Mark

MOST_EXTRA_COUNTS = 256
"""Steps counted out of turn, because their shapes were new, in the life of a run."""


class _Step:
    """A step that is running: what it has shown of itself so far."""

    __slots__ = (
        "batch_sum",
        "calls",
        "counting",
        "last_call_end",
        "optimized",
        "optimizer_steps",
        "phase",
        "start",
        "start_unix_ns",
        "waited_ns",
    )

    def __init__(self, phase: Phase, start: Mark, start_unix_ns: int, waited_ns: int | None) -> None:
        self.phase: Phase = phase
        self.start = start
        self.start_unix_ns = start_unix_ns
        self.waited_ns = waited_ns
        self.calls: Counter[Hashable] = Counter()
        self.batch_sum = 0
        self.counting = False
        self.optimizer_steps = 0
        self.optimized: tuple[Mark, int | None] | None = None
        self.last_call_end: Mark | None = None

    def key(self) -> Hashable:
        """What the step's count is looked up by: the model's calls with their shapes, and whether it trained."""
        return self.phase, self.optimizer_steps, frozenset(self.calls.items())

    def batch_running(self) -> float | None:
        """Mean leading dimension of the model's calls."""
        calls = self.calls.total()
        return self.batch_sum / calls if calls and self.batch_sum else None


class Engine:
    """The wiring of one run. All its methods run in the thread that made it; other threads' calls are not its steps."""

    def __init__(
        self,
        ledger: Ledger,
        model: nn.Module | None,
        optimizer: torch.optim.Optimizer | None,
        convention: Convention,
        start_step: int,
    ) -> None:
        self.ledger = ledger
        self._clock = ledger.clock
        self._model = model
        # Weak: an optimizer that is gone ends no more steps, and the next one that steps takes its place.
        self._optimizer = None if optimizer is None else weakref.ref(optimizer)
        self._thread = threading.get_ident()
        self._mode = CountingMode(model, convention=convention)
        self._plan = Plan(convention=convention)
        self._demands: dict[Hashable, Demand] = {}
        self._counted_calls: set[Hashable] = set()
        self._first = self._index = start_step
        self._step: _Step | None = None
        self._last_end: tuple[Mark, int] | None = None
        self._waited_ns: int | None = None
        self._wait_began_ns: int | None = None
        self._marked = False
        self._depth = 0
        self._depth_of_marks = 0
        # Ranks must not wait for one another's slow steps, so only a process on its own counts out of turn.
        self._extra_counts = MOST_EXTRA_COUNTS if ledger.identity.world_size == 1 else 0
        self._count_next = False
        self._hooks = ExitStack()
        if model is not None:
            self._hooks.callback(model.register_forward_pre_hook(self._before_forward, with_kwargs=True).remove)
            self._hooks.callback(model.register_forward_hook(self._after_forward, always_call=True).remove)
        self._hooks.callback(register_optimizer_step_post_hook(self._after_optimizer).remove)
        if model is None:
            # With no forward pass to wait for, the first unmarked step begins with the run.
            self._begin("train")

    # --- what the hooks see ----------------------------------------------------------------------------------------

    def _before_forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        began = time.perf_counter_ns()
        with shield("seeing a forward pass"):
            self._depth += 1
            if self._depth == 1:
                self._forward_begins(module, args, kwargs)
        self.ledger.spent(time.perf_counter_ns() - began)

    def _after_forward(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        with shield("seeing a forward pass end"):
            self._depth = max(0, self._depth - 1)
            # An unmarked eval step has no optimizer to end it, so its last call's end must be known.
            if self._depth == 0 and not self._marked and self._step is not None and self._step.phase == "eval":
                self._step.last_call_end = self._clock.mark()

    def _after_optimizer(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        began = time.perf_counter_ns()
        with shield("seeing an optimizer step"):
            self._optimizer_stepped(optimizer)
        self.ledger.spent(time.perf_counter_ns() - began)

    def _forward_begins(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._marked:
            self._find_boundary()
        step = self._step
        if step is None:
            return
        call = signature(module, args, kwargs)
        if not step.counting and not step.calls and self._extra_counts > 0 and call not in self._counted_calls:
            self._extra_counts -= 1
            self._count(step)
        step.calls[call] += 1
        step.batch_sum += leading_dimension(args, kwargs)

    def _find_boundary(self) -> None:
        """In a loop that does not mark its steps: end and begin one where this forward pass says so."""
        phase: Phase = "train" if torch.is_grad_enabled() else "eval"
        step = self._step
        if step is not None and (step.optimized is not None or (step.phase == "eval" and phase == "train")):
            self._end(step, self._clock.mark())
        if self._step is None:
            self._begin(phase)

    def _optimizer_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        step = self._step
        if step is None:
            return
        step.optimizer_steps += 1
        if self._optimizer is None or self._optimizer() is None:
            self._optimizer = weakref.ref(optimizer)
        if self._marked or optimizer is not self._optimizer():
            return
        step.optimized = (self._clock.mark(), step.waited_ns)
        if self._model is None:
            self._end(step, step.optimized[0])
            self._begin("train")

    # --- marked steps and data -------------------------------------------------------------------------------------

    def marked_begins(self, phase: Phase) -> None:
        """A step that the loop marks begins; an unmarked one that was under way was none."""
        began = time.perf_counter_ns()
        with shield("beginning a step"):
            if not self._marked:
                self._marked = True
                self._drop()
            if self._step is not None:
                warn_once("run.step", "a step inside a step is part of the outer one")
                self._depth_of_marks += 1
            else:
                self._begin(phase)
        self.ledger.spent(time.perf_counter_ns() - began)

    def marked_ends(self, tokens: int | None, samples: int | None, error_type: str | None) -> None:
        """The marked step that began last ends."""
        began = time.perf_counter_ns()
        with shield("ending a step"):
            if self._depth_of_marks:
                self._depth_of_marks -= 1
            elif self._step is not None:
                self._end(self._step, self._clock.mark(), tokens, samples, error_type)
        self.ledger.spent(time.perf_counter_ns() - began)

    def data_wait_begins(self) -> None:
        """The loop asks for its next batch."""
        with shield("timing the loader"):
            if self._last_end is None and self._step is None:
                # The first step begins where its data is asked for.
                self._last_end = (self._clock.mark(), time.time_ns())
            self._wait_began_ns = self._clock.host_ns()

    def data_wait_ends(self) -> None:
        """It has it. The wait belongs to the step that is open, else to the one that begins next."""
        if self._wait_began_ns is None:
            return
        waited = self._clock.host_ns() - self._wait_began_ns
        self._wait_began_ns = None
        if self._step is not None:
            self._step.waited_ns = (self._step.waited_ns or 0) + waited
        else:
            self._waited_ns = (self._waited_ns or 0) + waited

    # --- a step's life ---------------------------------------------------------------------------------------------

    def _begin(self, phase: Phase) -> None:
        start, start_unix_ns = self._last_end or (self._clock.mark(), time.time_ns())
        waited, self._waited_ns = self._waited_ns, None
        self._step = step = _Step(phase, start, start_unix_ns, waited)
        if self._plan.should_count(self._index - self._first) or self._count_next:
            self._count_next = False
            self._count(step)

    def _count(self, step: _Step) -> None:
        self._mode.reset()
        self._mode.start()
        step.counting = True

    def _drop(self) -> None:
        """Forget the step under way: it turned out to be none."""
        if self._step is not None and self._step.counting:
            self._mode.stop()
        self._step = None

    def _end(
        self,
        step: _Step,
        end: Mark,
        tokens: int | None = None,
        samples: int | None = None,
        error_type: str | None = None,
        waited_ns: int | None = None,
    ) -> None:
        key = step.key()
        if step.counting:
            self._mode.stop()
            if error_type is None:
                self._plan.store(key, self._mode.result())
                self._demands.pop(key, None)
                self._counted_calls.update(step.calls)
        waited_ns = step.waited_ns if waited_ns is None else waited_ns
        work = Work(
            index=self._index,
            phase=step.phase,
            start=step.start,
            end=end,
            start_unix_ns=step.start_unix_ns,
            demand=self._demand(key),
            tokens=tokens,
            samples=samples,
            data_wait_s=None if waited_ns is None else waited_ns / 1e9,
            batch_running=step.batch_running(),
            error_type=error_type,
            counted_while_running=step.counting,
        )
        if work.demand is None and error_type is None and self._extra_counts > 0:
            # Known calls in a new combination: the next step of this kind is counted.
            self._extra_counts -= 1
            self._count_next = True
        self._step = None
        self._index += 1
        self._last_end = (end, time.time_ns())
        self.ledger.add(work)

    def _demand(self, key: Hashable) -> Demand | None:
        if (known := self._demands.get(key)) is not None:
            return known
        if (found := self._plan.lookup(key)) is None:
            return None
        count, source = found
        # Without a model nothing is seen of a step's shapes, so that its count is only a sample.
        priced: CountSource = "sampled" if self._model is None else source
        if len(self._demands) >= MOST_EXTRA_COUNTS * 4:
            self._demands.clear()
        demand = self._demands[key] = self.ledger.price(count, priced)
        return demand

    def close(self, error_type: str | None) -> RunSummary:
        """End the step under way where its work ended, undo every hook, and close the books."""
        with shield("ending the last step"):
            self._end_last(error_type)
        if self._step is not None:
            self._drop()
        self._hooks.close()
        return self.ledger.close(error_type=error_type)

    def _end_last(self, error_type: str | None) -> None:
        step = self._step
        if step is None:
            return
        if error_type is not None and (self._marked or step.calls):
            self._end(step, self._clock.mark(), error_type=error_type)
        elif step.optimized is not None:
            end, waited_ns = step.optimized
            self._end(step, end, waited_ns=waited_ns)
        elif step.last_call_end is not None:
            self._end(step, step.last_call_end)


def leading_dimension(args: Any, kwargs: Any) -> int:
    """The batch of a call: the first dimension of its first tensor; 0 where there is none."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            return int(value.shape[0])
    return 0
