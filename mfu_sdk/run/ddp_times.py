"""What DistributedDataParallel has timed of its own gradients' exchange: the part that no backward hid."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final

from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from torch import nn

FIRST_STEPS: Final = 12
"""Steps after which torch has timed all of its first iterations (10 of them)."""
THEN_EVERY: Final = 100
"""Iterations between two that torch times later."""


class DdpTimes:
    """Reads torch's own record of one model after each step that may have added to it.

    torch times the first ten iterations and every hundredth: when the exchange of the first bucket began, when the
    backward had no more to compute, and when the last bucket was there (torch/csrc/distributed/c10d/logger.cpp). It
    tells what it timed in one iteration with the next one's forward. Nothing is asked of other ranks, and no hook of
    the user's is touched. Moments are told of models on processors only; of others nothing is taken.
    """

    def __init__(self, model: DistributedDataParallel) -> None:
        self._model = weakref.ref(model)
        self._last_end_ns = 0
        self.whole_s: float | None = None
        """What the exchange that was told last took, hidden or not; None of several buckets, between which it rests."""
        self._iteration = -1
        self._steps = 0
        # Whether to look at the next step too: it was torch's turn at this one, or its turn is not known.
        self._polls = self._lost = False
        # Of the step before: when it began, where what is told of it can be used.
        self._before_unix_ns: int | None = None

    def after_step(self, start_unix_ns: int, calls: int, *, timed: bool) -> float | None:
        """Seconds that the exchange kept the step *before* this one waiting, where torch has just told them.

        `start_unix_ns` is when this step began. `calls` are those of the model in it; where there are several, what
        was timed is not all of a step's, and None. `timed` is False for a step whose time is not representative.
        """
        before_unix_ns, self._before_unix_ns = self._before_unix_ns, start_unix_ns if timed and calls == 1 else None
        self._steps += 1
        self._iteration += calls
        if self._steps > FIRST_STEPS and not self._polls and self._iteration % THEN_EVERY >= calls:
            return None
        model = self._model()
        if model is None:
            return None
        told = model._get_ddp_logging_data()
        end_ns = int(told.get("backward_comm_time_end", 0))
        fresh = end_ns > self._last_end_ns
        current = before_unix_ns is not None and end_ns >= before_unix_ns
        if fresh:
            self._last_end_ns = end_ns
            self._iteration = int(told["iteration"])
            # Where the monitor began late, what is new to it may be old, and says nothing of torch's next turn.
            self._lost = before_unix_ns is not None and not current
        self._polls = fresh or self._lost
        if not (fresh and current):
            return None
        exposed_ns = int(told["backward_comm_time"]) - int(told["backward_compute_comm_overlap_time"])
        self.whole_s = int(told["backward_comm_time"]) / 1e9 if told.get("num_buckets_reduced") == 1 else None
        return max(0, exposed_ns) / 1e9


def ddp_times(model: nn.Module | None) -> DdpTimes | None:
    """The times of `model`, None where it is no DistributedDataParallel."""
    return DdpTimes(model) if isinstance(model, DistributedDataParallel) else None


def waits_unseen(model: nn.Module | None) -> bool:
    """Whether a DistributedDataParallel is in `model`: it waits for its gradients where no Python sees it."""
    return model is not None and any(isinstance(module, DistributedDataParallel) for module in model.modules())
