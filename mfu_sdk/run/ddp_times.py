"""What DistributedDataParallel has timed of its own gradients' exchange: the part that no backward hid.

torch can time an iteration: when the exchange of the first bucket began, when the backward had no more to compute, and
when the last bucket was there (torch/csrc/distributed/c10d/logger.cpp). Nothing is asked of other ranks for it, and no
hook of the user's is touched.
"""

from __future__ import annotations

import gc
import math
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from torch import nn

    from mfu_sdk.run.work import Work

TORCHS_OWN: Final = 100
"""Iterations between two that torch times behind its first ten, unless it is told otherwise (reducer.hpp)."""
FIRST_STEPS: Final = 16
"""Steps that are all timed; then, and with each doubling, it is reckoned how many of the next can be."""
MOST_OF_RUN: Final = 0.005
"""The share of the run's time that timing may take."""
LOOKS: Final = 3
"""So many looks a timed step costs: one before it and one behind it, and torch writes it down once more."""


STRAY_NS: Final = 1_000_000
"""How far two clocks may seem to have come apart between two looks, because the looks themselves take time."""
READS: Final = 3
"""Times that the two are read, where a thread is held up between them."""
MOST_SLEWED: Final = 0.001
"""The share by which a clock that is being corrected runs fast or slow: at most 500 ppm (adjtimex(2)), and as much on
top by the machine's own error."""


class Exchange(NamedTuple):
    """How long the exchange of its gradients kept `step` waiting, and took in all, in seconds.

    `whole_s` is hidden or not; None of several buckets, between which it rests.
    """

    step: Work
    exposed_s: float
    whole_s: float | None


class DdpTimes(Protocol):
    """The times of one model, of some of its steps."""

    def call_begins(self) -> None:
        """The model is called."""
        ...

    def after_step(self, step: Work) -> Exchange | None:
        """What has become known with the end of `step`: of itself, or of the one before it."""
        ...

    def close(self) -> None:
        """Leave torch as it was."""
        ...


class _TwoClocks:
    """Watches whether the machine's clock is set, by which torch reckons what an exchange took."""

    def __init__(self) -> None:
        self._steady_ns, self._ahead_ns = self._read()

    def came_apart(self) -> bool:
        """Whether it was set since the last look: by more than it is ever made to run faster or slower."""
        steady_ns, ahead_ns = self._read()
        allowed_ns = STRAY_NS + (steady_ns - self._steady_ns) * MOST_SLEWED
        apart = abs(ahead_ns - self._ahead_ns) > allowed_ns
        self._steady_ns, self._ahead_ns = steady_ns, ahead_ns
        return apart

    @staticmethod
    def _read() -> tuple[int, int]:
        """The steady clock, and how far the other is ahead of it; again where something came between the two."""
        for _ in range(READS - 1):
            before_ns = time.perf_counter_ns()
            unix_ns = time.time_ns()
            steady_ns = time.perf_counter_ns()
            if steady_ns - before_ns < STRAY_NS // 2:
                return steady_ns, unix_ns - steady_ns
        unix_ns = time.time_ns()
        steady_ns = time.perf_counter_ns()
        return steady_ns, unix_ns - steady_ns


class StepTimes:
    """Has torch time every step, or as many as `MOST_OF_RUN` allows, and reads each at its own end.

    Only of work that is done when it returns: the moments of a GPU are events, to read which waits for it. A step may
    exchange several times, where gradients are accumulated without `no_sync`: what it waited is the sum.
    """

    def __init__(self, model: DistributedDataParallel, now_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._model = weakref.ref(model)
        self._now_ns = now_ns
        self._began_ns = now_ns()
        self._looks = self._looked_ns = 0
        self._steps = 0
        self._every = 1
        # Of the iteration that was read last; when it ended by torch's clock, which may be set back.
        self._iteration = 0
        self._end_ns = 0
        # Since the last step's end: what was read, and whether there were iterations that were not.
        self._read: list[tuple[int, float, float | None]] = []
        self._missed = False
        self._times = False
        self._exchanges = 0
        self._clocks = _TwoClocks()
        self._time(model)

    def call_begins(self) -> None:
        """What a backward before it has exchanged is read now: torch keeps it for one call only."""
        model = self._model()
        if self._times and model is not None and _will_exchange(model):
            if self._exchanges:
                self._look(model)
            self._exchanges += 1

    def after_step(self, step: Work) -> Exchange | None:
        """That of `step`, where it was timed."""
        model = self._model()
        # A step of another phase may lie within one of training, whose exchanges are read behind it.
        if model is None or step.phase != "train":
            return None
        self._steps += 1
        if self._steps >= FIRST_STEPS and not self._steps & (self._steps - 1):
            self._every = self._affordable()
        found = self._of(model, step) if self._times else None
        wanted = self._steps < FIRST_STEPS or self._steps % self._every == 0
        if wanted and not self._times:
            self._time(model)
        elif self._times and not wanted:
            self.close()
        return found

    def close(self) -> None:
        """Let torch choose the iterations that it times, as it does by itself."""
        model = self._model()
        self._times = False
        if model is not None:
            model._set_ddp_runtime_logging_sample_rate(TORCHS_OWN)

    def _time(self, model: DistributedDataParallel) -> None:
        """Time the next step. What is there already is of no step."""
        model._set_ddp_runtime_logging_sample_rate(1)
        self._times = True
        self._look(model)
        self._forget()

    def _of(self, model: DistributedDataParallel, step: Work) -> Exchange | None:
        self._look(model)
        # What is older is a step's that failed. Work that is done when it returns is marked with the same clock.
        read = [each for each in self._read if each[0] >= step.start]
        missed = self._missed
        self._forget()
        if missed or not read:
            return None
        wholes_s = [whole_s for _, _, whole_s in read if whole_s is not None]
        return Exchange(
            step,
            math.fsum(exposed_s for _, exposed_s, _ in read),
            math.fsum(wholes_s) if len(wholes_s) == len(read) else None,
        )

    def _forget(self) -> None:
        self._read.clear()
        self._missed = False
        self._exchanges = 0

    def _look(self, model: DistributedDataParallel) -> None:
        """Read what the last iteration has exchanged, if anything."""
        began_ns = self._now_ns()
        logger = _logger(model)
        # The next forward will do so too, and find the same.
        logger.set_runtime_stats_and_log()
        told = logger._get_ddp_logging_data().ints_map
        iteration, end_ns = told.get("iteration", 0), told.get("backward_comm_time_end", 0)
        self._missed |= iteration > self._iteration + 1
        self._iteration = iteration
        # Where the clock was set meanwhile, what torch has reckoned is no time.
        self._missed |= self._clocks.came_apart()
        if end_ns != self._end_ns:
            self._end_ns = end_ns
            self._read.append((_moment_ns(end_ns), *_seconds(told)))
        self._looks += 1
        self._looked_ns += self._now_ns() - began_ns

    def _affordable(self) -> int:
        """Of how many steps one may be timed."""
        step_ns = (self._now_ns() - self._began_ns) / self._steps
        look_ns = self._looked_ns / self._looks
        return min(TORCHS_OWN, max(1, math.ceil(LOOKS * look_ns / (MOST_OF_RUN * step_ns))))


class TorchsTimes:
    """Reads what torch times anyway: the first ten iterations and every hundredth, each with the next one's step."""

    def __init__(self, model: DistributedDataParallel) -> None:
        self._model = weakref.ref(model)
        self._end_ns = 0
        self._iteration = -1
        self._steps = self._exchanges = 0
        # Whether to look at the next step too: it was torch's turn at this one, or its turn is not known.
        self._polls = self._lost = False
        self._clocks = _TwoClocks()
        # The step before, where it exchanged once and is like others, and when it can have begun at the earliest.
        self._before: Work | None = None
        self._before_ns = self._ended_ns = time.perf_counter_ns()

    def call_begins(self) -> None:
        """It is counted whether it exchanges."""
        model = self._model()
        if model is not None and _will_exchange(model):
            self._exchanges += 1

    def after_step(self, step: Work) -> Exchange | None:
        """That of the step before, where torch has just told it; of one that exchanged several times it is not all."""
        exchanges, self._exchanges = self._exchanges, 0
        before, before_ns = self._before, self._before_ns
        self._before_ns, self._ended_ns = self._ended_ns, time.perf_counter_ns()
        self._before = step if exchanges == 1 and not (step.counting or step.profiled) else None
        self._steps += 1
        self._iteration += exchanges
        if self._steps > FIRST_STEPS and not self._polls and self._iteration % TORCHS_OWN >= exchanges:
            return None
        model = self._model()
        if model is None:
            return None
        told = _logger(model)._get_ddp_logging_data().ints_map
        end_ns = told.get("backward_comm_time_end", 0)
        fresh = end_ns != self._end_ns
        apart = self._clocks.came_apart()
        current = before is not None and not apart and _moment_ns(end_ns) >= before_ns
        if fresh:
            self._end_ns = end_ns
            self._iteration = told["iteration"]
            # Where the monitor began late, what is new to it may be old, and says nothing of torch's next turn.
            self._lost = before is not None and not current
        self._polls = fresh or self._lost
        return Exchange(before, *_seconds(told)) if before is not None and fresh and current else None

    def close(self) -> None:
        """Nothing was changed."""


def _will_exchange(model: DistributedDataParallel) -> bool:
    """Whether the backward of a call that begins now exchanges: within `no_sync`, gradients stay where they are."""
    return model.require_backward_grad_sync and torch.is_grad_enabled()


def _logger(model: DistributedDataParallel) -> Any:
    return model.logger


def _moment_ns(unix_ns: int) -> int:
    """A moment of late on the clock that nobody sets: torch tells it by the machine's, which is set now and then."""
    return time.perf_counter_ns() - (time.time_ns() - unix_ns)


def _seconds(told: dict[str, int]) -> tuple[float, float | None]:
    """What one exchange kept this rank waiting, and took in all where it had one bucket."""
    whole_ns = told["backward_comm_time"]
    exposed_ns = whole_ns - told["backward_compute_comm_overlap_time"]
    return max(0, exposed_ns) / 1e9, whole_ns / 1e9 if told.get("num_buckets_reduced") == 1 else None


def ddp_times(model: nn.Module | None, *, each: bool) -> DdpTimes | None:
    """The times of `model` or of what wraps it, None where there is no DistributedDataParallel that has any.

    `each`: of as many steps as can be. Under TORCH_DISTRIBUTED_DEBUG=DETAIL torch writes a line of log for each
    iteration that it times, and is left alone.
    """
    wrapper = _wrapper(model)
    if wrapper is None or wrapper.logger is None:
        return None
    # Names that torch has and does not export.
    unlisted: Any = dist
    if each and wrapper.device_type == "cpu" and unlisted.get_debug_level() != unlisted.DebugLevel.DETAIL:
        return StepTimes(wrapper)
    return TorchsTimes(wrapper)


def _wrapper(model: nn.Module | None) -> DistributedDataParallel | None:
    """`model` itself, or the wrapper that a framework calls in place of the model that it names."""
    if isinstance(model, DistributedDataParallel):
        return model
    if model is None or not (dist.is_available() and dist.is_initialized()):
        return None
    # By the type, not by `isinstance`: objects that stand for others act when they are asked for their class.
    wrappers = [each for each in gc.get_objects() if issubclass(type(each), DistributedDataParallel)]
    return next((each for each in wrappers if each.module is model), None)


def waits_unseen(model: nn.Module | None) -> bool:
    """Whether a DistributedDataParallel is in `model`: it waits for its gradients where no Python sees it."""
    return model is not None and any(isinstance(module, DistributedDataParallel) for module in model.modules())
