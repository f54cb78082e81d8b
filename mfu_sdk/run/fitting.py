"""What calls of the model would take if they had as many sequences as fit: FLOPs, and seconds by roofline."""

from __future__ import annotations

from dataclasses import dataclass

from mfu_sdk.run.demand import Demand


@dataclass(frozen=True, slots=True)
class Fitting:
    """`model_flops` and roofline `seconds` (above 0) of the same number of calls, at the batch that would fit."""

    model_flops: float
    seconds: float

    def __add__(self, other: Fitting) -> Fitting:
        return Fitting(self.model_flops + other.model_flops, self.seconds + other.seconds)


def fitting(demand: Demand | None, batch: int, feasible: float | None) -> Fitting | None:
    """A call of `batch` sequences, as if it had `feasible`; None where either or its roofline is not known."""
    if demand is None or demand.batched is None or not feasible or not batch:
        return None
    seconds = demand.batched.seconds(feasible / batch)
    return Fitting(demand.model_flops * feasible / batch, seconds) if seconds else None
