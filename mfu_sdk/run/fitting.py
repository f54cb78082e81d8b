"""What calls of the model would take if they had as many sequences as fit: FLOPs, and seconds by roofline."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fitting:
    """`model_flops` and roofline `seconds` (above 0) of the same number of calls, at the batch that would fit."""

    model_flops: float
    seconds: float

    def __add__(self, other: Fitting) -> Fitting:
        return Fitting(self.model_flops + other.model_flops, self.seconds + other.seconds)
