"""Sums over calls of the model."""

from __future__ import annotations

from mfu_sdk.run.demand import Demand
from mfu_sdk.run.fitting import Fitting


class Calls:
    """Sums over model calls; FLOPs are unknown as soon as those of one call are, and so is what would fit."""

    __slots__ = ("_fits", "_fitting", "batch_sum", "calls", "counted", "sum", "unknown")

    def __init__(self) -> None:
        self.sum: Demand | None = None
        self.calls = 0
        self.batch_sum = 0
        self.counted = False
        self.unknown = False
        self._fitting: Fitting | None = None
        self._fits = True

    def enter(self, demand: Demand | None, batch: int, *, counted: bool, fitting: Fitting | None = None) -> None:
        """Add one call of `batch` sequences, and what it would take with as many as fit."""
        self.calls += 1
        self.batch_sum += batch
        self.counted |= counted
        if demand is None:
            self.unknown = True
        else:
            self.sum = demand if self.sum is None else self.sum + demand
        if fitting is None:
            self._fits = False
        else:
            self._fitting = fitting if self._fitting is None else self._fitting + fitting

    @property
    def fitting(self) -> Fitting | None:
        """What the calls would take with as many sequences as fit, where that is known of all."""
        return self._fitting if self._fits else None

    @property
    def demand(self) -> Demand | None:
        """What the calls asked for, where all of it is known."""
        return None if self.unknown else self.sum

    @property
    def batch(self) -> float | None:
        """Mean leading dimension of the calls."""
        return self.batch_sum / self.calls if self.calls and self.batch_sum else None
