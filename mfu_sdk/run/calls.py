"""Sums over calls of the model."""

from __future__ import annotations

from mfu_sdk.run.demand import Demand


class Calls:
    """Sums over model calls; FLOPs are unknown as soon as those of one call are."""

    __slots__ = ("batch_sum", "calls", "counted", "sum", "unknown")

    def __init__(self) -> None:
        self.sum: Demand | None = None
        self.calls = 0
        self.batch_sum = 0
        self.counted = False
        self.unknown = False

    def enter(self, demand: Demand | None, batch: int, *, counted: bool) -> None:
        """Add one call of `batch` sequences."""
        self.calls += 1
        self.batch_sum += batch
        self.counted |= counted
        if demand is None:
            self.unknown = True
        else:
            self.sum = demand if self.sum is None else self.sum + demand

    @property
    def demand(self) -> Demand | None:
        """What the calls asked for, where all of it is known."""
        return None if self.unknown else self.sum

    @property
    def batch(self) -> float | None:
        """Mean leading dimension of the calls."""
        return self.batch_sum / self.calls if self.calls and self.batch_sum else None
