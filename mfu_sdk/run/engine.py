"""From hooks to steps: which work belongs to which step, whether it is counted, and when it ends.

The path of a step, in order: `_begin` → the model's calls show its shapes → `_end` asks `Costs` what such a step costs
(after giving it the count that the mode may just have made) → `Ledger.add` times it, divides it and sends it on.

Loops that mark their steps call `marked_begins` and `marked_ends`. In loops that do not, a step ends at the first
forward pass of the model after a step of the optimizer; forward passes without gradients in between are an `eval`
step of their own. Where the optimizer steps and no forward pass was seen (the model was compiled around our hook, or
is a container that is never called itself), steps end with the optimizer's, and their shapes are not known.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from mfu_sdk.counting import cuda_graphs, provenance
from mfu_sdk.counting.dispatch import CountingMode
from mfu_sdk.counting.plan import Packed, Plan, signature
from mfu_sdk.guard import contained, shield, warn_once
from mfu_sdk.records import Convention, Phase, RunSummary
from mfu_sdk.run import graphed
from mfu_sdk.run.configuration import autocast
from mfu_sdk.run.costs import Alike, Costs
from mfu_sdk.run.device_time import Slice
from mfu_sdk.run.ledger import Ledger
from mfu_sdk.run.nesting import Nesting
from mfu_sdk.run.parameters import Parameters
from mfu_sdk.run.profile import Profile
from mfu_sdk.run.sight import Sight
from mfu_sdk.run.standing import Standing
from mfu_sdk.run.step import Step
from mfu_sdk.run.watched import others_than, watch

if TYPE_CHECKING:
    from torch import nn

    from mfu_sdk.records import Count
    from mfu_sdk.run.clock import Mark
    from mfu_sdk.run.demand import Demand
    from mfu_sdk.settings import Profiling

_CUDA: Final = torch.cuda.is_available()
MOST_EXTRA_COUNTS = 64
"""Steps counted out of turn, because their shapes were new, in the life of a run."""
FREE_EXTRA_COUNTS, STEPS_AN_EXTRA_COUNT = 8, 16
"""So many at once, then one in so many steps: where every step has shapes of its own, most must still be timed."""


class Engine:
    """The wiring of one run. All its methods run in the thread that made it; other threads' calls begin no step."""

    # Side by side in memory: with so many, a table of them would lie in thrice as many lines of the cache.
    __slots__ = (
        "_alone",
        "_blind",
        "_clock",
        "_costs",
        "_depth_of_marks",
        "_due",
        "_extra_counts",
        "_first",
        "_hooks",
        "_index",
        "_joined_late",
        "_last_end",
        "_marked",
        "_mode",
        "_model",
        "_nesting",
        "_opened",
        "_optimizer",
        "_parameters",
        "_profile",
        "_quiet",
        "_sees_exchanges",
        "_settings",
        "_sight",
        "_step",
        "_thread",
        "_times_data",
        "_wait_began",
        "_waits",
        "_works_early",
        "ledger",
        "standing",
    )

    def __init__(
        self,
        ledger: Ledger,
        model: nn.Module | None,
        optimizer: torch.optim.Optimizer | None,
        convention: Convention,
        start_step: int,
        *,
        profiling: Profiling = "auto",
    ) -> None:
        self.ledger = ledger
        self._clock = ledger.clock
        self._model = model
        self._parameters = Parameters(model, ledger.note)
        optimizer = _innermost(optimizer)
        # Weak: an optimizer that is gone ends no more steps, and the next one that steps takes its place.
        self._optimizer = None if optimizer is None else weakref.ref(optimizer)
        self._thread = threading.get_ident()
        self._costs = Costs(ledger, convention, has_model=model is not None)
        self._first = self._index = start_step
        self._step: Step | None = None
        self._last_end: tuple[Mark, int] | None = None
        self._waits: list[tuple[Mark, Mark]] = []
        self._wait_began: Mark | None = None
        self._times_data = False
        self._marked = False
        # Without a model there is no forward pass to see; with one, whether any was seen shows in time.
        self._blind = model is None
        self._depth_of_marks = 0
        self._nesting = Nesting()
        # Ranks must not wait for one another's slow steps, so only a process on its own counts out of turn.
        self._alone = ledger.identity.world_size == 1
        self._extra_counts = 0
        # The number of the next step that is counted in any case, or of the first one after it that can be.
        self._due = 0
        # Of how many marked steps from now on nothing is to be asked when they begin, and what they would hear.
        self._quiet = 0
        self._settings: Hashable = None
        # Whether work comes before the model's first call of a step.
        self._works_early = False
        # Whether the run began inside of a step, whose end is then the first step's beginning.
        self._joined_late = False
        self._profile = Profile(ledger, model, profiling)
        self._sees_exchanges = self._profile.sees_exchanges
        self.standing = Standing(ledger, self._costs)
        """What is told to other ranks, and heard of them."""
        self._hooks = ExitStack()
        self._sight: Sight | None = None
        if model is None:
            self._mode = CountingMode(convention=convention, reach="model")
        else:
            self._mode = CountingMode(model, convention=convention, others=partial(others_than, model), reach="model")
            self._hooks.callback(watch(model))
            self._sight = Sight(self, model, self._mode)
            self._hooks.callback(self._sight.close)
        self._hooks.callback(self._profile.close)
        # What is compiled or captured between counted steps is known in those.
        self._hooks.callback(provenance.observe())
        self._hooks.callback(cuda_graphs.keep())
        self._hooks.callback(graphed.allow())
        self._hooks.callback(register_optimizer_step_post_hook(self._after_optimizer).remove)
        self._opened = (self._clock.mark(), time_ns())
        if self._blind:
            # With no forward pass to wait for, the first unmarked step begins with the run.
            self._begin("train")

    # --- what the hooks see ----------------------------------------------------------------------------------------

    def _after_optimizer(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        # Marked steps end where their mark does, and the first optimizer is the run's.
        if (self._marked and self._optimizer is not None) or threading.get_ident() != self._thread:
            return
        if _CUDA and cuda_graphs.is_capturing():
            return
        began = perf_counter_ns()
        with shield("seeing an optimizer step"):
            self._optimizer_stepped(optimizer)
        self.ledger.overhead_ns += perf_counter_ns() - began

    @property
    def step(self) -> Step | None:
        """The step that is open."""
        return self._step

    def call_ends(self) -> None:
        """A call of the model has ended, in a loop that does not mark its steps."""
        # An eval step has no optimizer to end it, so its last call's end must be known.
        if self._step is not None and self._step.phase == "eval":
            self._step.last_call_end = self._clock.mark()

    def call_begins(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """The loop calls the model."""
        if not self._marked and not self._blind:
            self._find_boundary()
        step = self._step
        if step is None:
            self.ledger.note(
                "the model was called between marked steps: the time is the next step's, the FLOPs no one's"
            )
            return
        if self._sees_exchanges:
            self._profile.call_begins()
        costs, key = self._costs, signature(module, args, kwargs)
        shown = key, step.phase, step.settings, step.packed
        last = costs.last
        if last is not None and shown == last[0] and not (step.calls or step.counting):
            step.calls, step.alone = last[1], last[2]
            return
        # What is known of calls like this one is looked up here, and asked for only where it is not there.
        call = costs.numbers.get(key)
        if call is None:
            call = costs.number(key, args, kwargs)
        if step.calls:
            step.called(call)
            step.alone = None
            return
        begins = step.phase, step.settings, call, step.packed
        step.alone = costs.alone.get(begins)
        if step.counting or (step.alone is None and begins not in costs.begins):
            self._see_first_call(step, call)
        step.called(call)
        if step.alone is not None:
            costs.last = Alike(shown, step.calls, step.alone)

    def _see_first_call(self, step: Step, call: int) -> None:
        """Count a step whose shapes are new out of turn, from here where nothing of it can have run before."""
        self._quiet = 0
        if step.counting:
            # Of other monitors' models only the backward would be seen, and taken for work of nobody's.
            self._works_early |= self._mode.has_work or bool(others_than(self._model))
        elif not self._costs.begins_known(step.phase, step.settings, call, step.packed) and self._may_count():
            if self._works_early:
                # A teacher or a sampler that runs first would be left out: the next step is counted instead.
                self._costs.wants_count = True
            else:
                self._extra_counts += 1
                self._count(step)
        if step.counting:
            step.autocast = autocast()

    def _may_count(self) -> bool:
        """Whether a step may be counted out of turn: on a process on its own, so many times."""
        steps = self._index - self._first
        allowed = min(MOST_EXTRA_COUNTS, FREE_EXTRA_COUNTS + steps // STEPS_AN_EXTRA_COUNT)
        return self._alone and self._extra_counts < allowed and not self._nesting.counting

    def _find_boundary(self) -> None:
        """In a loop that does not mark its steps: end and begin one where this forward pass says so."""
        phase: Phase = "train" if torch.is_grad_enabled() else "eval"
        step = self._step
        if step is not None and (step.optimized is not None or (step.phase == "eval" and phase == "train")):
            self._end(step, self._clock.mark())
        if self._step is None:
            self._begin(phase)

    def _optimizer_stepped(self, optimizer: torch.optim.Optimizer) -> None:
        if self._optimizer is None or self._optimizer() is None:
            self._optimizer = weakref.ref(optimizer)
        if self._marked or optimizer is not self._optimizer():
            return
        if self._joined_late:
            self._joined_late = False
            self._last_end = (self._clock.mark(), time_ns())
            self._begin("train")
            return
        if self._step is None:
            if not self._parameters.are_trained_by(optimizer):
                return
            # The model was trained and no forward pass was seen: none will be.
            self._blind = True
            self._last_end = self._last_end or self._opened
            self._begin("train", over=True)
        step = self._step
        assert step is not None
        step.optimized = (self._clock.mark(), len(step.waiting))
        if step.counting:
            # What comes until the next forward pass (averaging, evaluation of something else) is not training.
            self._mode.stop()
        if self._blind:
            self._end(step, step.optimized[0])
            self._begin("train")

    # --- a run that begins in the middle of things -------------------------------------------------------------------

    def join_call(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """The model is being called, and the hooks came too late for this call, which begins the first step.

        Without a model: `module` stands for the work of a marked step, whose shapes are those of the call.
        """
        if self._sight is not None:
            self._sight.join(args, kwargs)
            return
        with shield("seeing a call"):
            self.call_begins(module, args, kwargs)

    def join_step(self) -> None:
        """Its work has run, as far as it can be seen: the first step begins where the optimizer's ends."""
        self._drop()
        self._joined_late = self._blind = True

    # --- marked steps and data -------------------------------------------------------------------------------------

    def marked_begins(self, phase: Phase, packed: Packed | None = None) -> None:
        """A step that the loop marks begins; an unmarked one that was under way was none."""
        began = perf_counter_ns()
        try:
            last = self._last_end
            if self._quiet and self._step is None and last is not None:
                self._quiet -= 1
                self._step = step = Step(phase, last[0], last[1], self._settings)
                if packed is not None:
                    step.packed = packed
                if self._waits:
                    step.waiting, self._waits = self._waits, []
                self.ledger.overhead_ns += perf_counter_ns() - began
                return
            if not self._marked:
                self._marked = True
                self._drop()
                if self._sight is not None:
                    self._sight.steps_are_marked()
            if self._step is None:
                self._begin(phase, packed=packed)
            elif self._step.phase == phase:
                warn_once("run.step", f"a {phase} step inside a {phase} step is part of the outer one")
                self._depth_of_marks += 1
            else:
                self._begin_within(self._step, phase, packed)
        except Exception as error:
            if not contained("beginning a step", error):
                raise
        self.ledger.overhead_ns += perf_counter_ns() - began

    def marked_ends(self, tokens: int | None, samples: int | None, error_type: str | None) -> None:
        """The marked step that began last ends."""
        began = perf_counter_ns()
        try:
            step = self._step
            if self._depth_of_marks:
                self._depth_of_marks -= 1
            elif step is not None:
                self._end(step, self._clock.mark(), tokens, samples, error_type)
                if self._nesting.outer:
                    self._resume_outer()
        except Exception as error:
            if not contained("ending a step", error):
                raise
        self.ledger.overhead_ns += perf_counter_ns() - began

    def marked_abandoned(self) -> None:
        """What was marked last turned out to be no step; its time is no one's."""
        with shield("abandoning a step"):
            self._drop()
            self._last_end = (self._clock.mark(), time_ns())
            if self._nesting.outer:
                self._resume_outer()

    def data_wait_begins(self) -> None:
        """The loop asks for its next batch."""
        with shield("timing the loader"):
            if self._last_end is None and self._step is None:
                # The first step begins where its data is asked for.
                self._last_end = (self._clock.mark(), time_ns())
            self._times_data = True
            self._profile.pause()
            self._wait_began = self._clock.mark()

    def data_wait_ends(self) -> None:
        """It has it. The wait belongs to the step that is open, else to the one that begins next."""
        if self._wait_began is None:
            return
        with shield("timing the loader"):
            wait = (self._wait_began, self._clock.mark())
            self._wait_began = None
            self._profile.resume()
            if self._step is None:
                self._waits.append(wait)
            else:
                self._step.waited(wait)

    # --- a step's life ---------------------------------------------------------------------------------------------

    def _begin(self, phase: Phase, *, over: bool = False, packed: Packed | None = None) -> None:
        """Begin a step; one that is over already, because nothing showed that it had begun, cannot be counted."""
        start, start_unix_ns = self._last_end or (self._clock.mark(), time_ns())
        # Unfreezing a layer changes what a step costs and shows in no call.
        self._settings = self._parameters.wanted()
        self._step = step = Step(phase, start, start_unix_ns, self._settings)
        if packed is not None:
            step.packed = packed
        if self._waits:
            step.waiting, self._waits = self._waits, []
        if over or phase == "checkpoint":
            return
        number = self._index - self._first
        if self._nesting.outer:
            if self._nesting.counts(phase):
                self._count(step)
            return
        drift = self.ledger.drift
        if number >= self._due:
            self._due = Plan.counted_after(number)
            self._count(step)
        elif (self._costs.wants_count or (drift is not None and drift.wants_count)) and self._may_count():
            # A cost that is not known, or what has changed.
            self._extra_counts += 1
            self._count(step)
        else:
            turn = self._profile.begin(step, number)
            if self._marked and self._parameters.rest:
                # Until one of these comes again there is nothing to ask at the beginning of a step.
                self._quiet = self._parameters.skip(min(turn, self._due - number) - 1)

    def _begin_within(self, outer: Step, phase: Phase, packed: Packed | None) -> None:
        """A step of another phase begins within `outer`, whose time and work go on when it has ended."""
        if outer.counting:
            self._mode.stop()
        self._profile.pause()
        now = self._clock.mark()
        self._nesting.enter(outer, self._depth_of_marks, now)
        # Inner steps have numbers too.
        self._depth_of_marks = self._quiet = 0
        self._last_end = (now, time_ns())
        self._begin(phase, packed=packed)

    def _resume_outer(self) -> None:
        assert self._last_end is not None
        outer, self._depth_of_marks = self._nesting.leave(self._last_end[0])
        self._step = outer
        # What the inner one has shown may be of this one too.
        outer.alone = None
        self._profile.resume()
        if outer.counting:
            self._mode.start()

    def _count(self, step: Step) -> None:
        self._profile.end(step)
        self._parameters.refresh()
        self._mode.reset()
        self._mode.start()
        step.counting = True

    def _drop(self) -> None:
        """Forget the step under way: it turned out to be none."""
        if self._step is not None:
            self._profile.end(self._step)
        if self._step is not None and self._step.counting:
            self._mode.stop()
            # Its number will be another step's.
            self._due = self._index - self._first
            self._quiet = 0
        self._step = None

    def _end(
        self,
        step: Step,
        end: Mark,
        tokens: int | None = None,
        samples: int | None = None,
        error_type: str | None = None,
    ) -> None:
        if step.profiled:
            self._profile.end(step)
            # Reading a profile may take long, and is in no step's time.
            self._last_end = (self._clock.mark(), time_ns())
        count = None
        known: tuple[Demand | None, float | None] | None = step.alone
        if known is None or step.counting or step.elsewhere:
            known, count = self._reckon(step, error_type)
        step.demand, step.batch_running = known
        step.index = self._index
        if error_type is None and (step.profiled or self._sees_exchanges):
            self._profile.gather(step, step.demand)
        step.end = end
        if step.parts:
            step.slices = (*step.parts, Slice(step.since, end, 1.0))
        # What is not known is so by default.
        if tokens is not None:
            step.tokens = tokens
        if samples is not None:
            step.samples = samples
        if error_type is not None:
            step.error_type = error_type
        if self._times_data:
            step.waits = step.waiting
        if count is not None and self.ledger.drift is not None:
            self.ledger.drift.counted(step, count)
        self._step = None
        if self._costs.overfull:
            self._costs.forget_calls()
        self._index += 1
        now_unix_ns = time_ns()
        if not step.profiled:
            self._last_end = (end, now_unix_ns)
        self.ledger.add(step, now_unix_ns)

    def _reckon(self, step: Step, error_type: str | None) -> tuple[tuple[Demand | None, float | None], Count | None]:
        """What `step` costs and its mean leading dimension, and its own count, where it was counted.

        Off the path of most steps: it ends the counting of this one, and has what that showed learned.
        """
        costs = self._costs
        for key, batch in step.elsewhere:
            step.called(costs.enter(key, batch))
        seen = step.phase, step.settings, step.packed, tuple(step.calls.items())
        own = count = None
        if step.counting:
            self._mode.stop()
            # What is told of this one comes after those before it.
            self.ledger.settle()
            if error_type is None:
                count = self._mode.result()
                costs.learn(costs.shown(seen), count)
                # Its own count, not the mean of all that look like it.
                own = self.ledger.counted(count, step.phase)
                self.standing.counted(step, self._index, costs.of_seen(seen), count.model_flops)
            if outside := self._mode.outside():
                self.ledger.note(
                    "in threads that the step started, operators ran that belong to no module of the model, and are in "
                    f"no count: {', '.join(outside[:3])}"
                )
        if step.phase == "checkpoint" and not step.calls:
            own = self.ledger.nothing()
        known = costs.quick.get(seen)
        if own is None and known is not None:
            return known, count
        demand = own or costs.of_seen(seen)
        if demand is None and step.elsewhere:
            # Such calls could not have the step counted when they came.
            costs.wants_count = True
        if costs.wants_count:
            self._quiet = 0
        return (demand, costs.batch(step.calls)), count

    def interlude(self, between: Callable[[], None]) -> bool:
        """Do `between` where no step is under way, and let the next one begin behind it; False inside a step.

        A step that nothing has marked the end of is over once its optimizer has stepped. What was waited for data
        before belongs to no step.
        """
        step = self._step
        if step is not None and not self._marked:
            if step.optimized is not None:
                self._end(step, step.optimized[0])
            elif self._blind and not step.calls:
                self._drop()
        if self._step is not None:
            return False
        try:
            between()
        finally:
            self._waits.clear()
            self._last_end = (self._clock.mark(), time_ns())
            if self._blind and not self._marked:
                self._begin("train")
        return True

    def close(self, error_type: str | None) -> RunSummary:
        """End the step under way where its work ended, undo every hook, and close the books."""
        with shield("ending the last step"):
            self._end_last(error_type)
        while self._step is not None:
            self._drop()
            if self._nesting.outer:
                self._resume_outer()
        self._hooks.close()
        for note in self._costs.notes():
            self.ledger.note(note)
        # A run that fails does not wait for ranks that may be waiting for it.
        ranks = self.standing.at_the_end(self._index, wait=error_type is None)
        return replace(self.ledger.close(error_type=error_type), ranks=ranks)

    def summary(self) -> RunSummary:
        """The totals so far."""
        self.ledger.settle()
        ranks = self.standing.now(self._index)
        found = self.ledger.summary()
        return replace(found, notes=(*found.notes, *self._costs.notes()), ranks=ranks)

    def _end_last(self, error_type: str | None) -> None:
        step = self._step
        if step is None:
            return
        if error_type is not None and (self._marked or step.calls):
            self._end(step, self._clock.mark(), error_type=error_type)
        elif step.optimized is not None and not self._blind:
            end, waits = step.optimized
            step.waiting = step.waiting[:waits]
            self._end(step, end)
        elif step.last_call_end is not None:
            self._end(step, step.last_call_end)


def _innermost(optimizer: torch.optim.Optimizer | None) -> torch.optim.Optimizer | None:
    """The optimizer that steps: what wraps one, as Accelerate's does, is an optimizer too and never steps itself."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer
