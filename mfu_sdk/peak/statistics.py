"""The statistics of a calibration: batch rates in, one rate with an honest interval out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median as _median

from mfu_sdk.records import Rate


@dataclass(frozen=True, slots=True)
class Spread:
    """Batch rates in order statistics, all in the unit of the samples."""

    samples: int
    p10: float
    median: float
    p90: float

    @property
    def relative(self) -> float:
        """(p90 − p10) / median: how much the batches differ."""
        return (self.p90 - self.p10) / self.median


def spread(rates: Sequence[float]) -> Spread:
    """Order statistics of `rates`, by linear interpolation between closest ranks. Raises ValueError when empty."""
    if not rates:
        raise ValueError("no batch was measured")
    ordered = sorted(rates)
    return Spread(len(ordered), _quantile(ordered, 0.1), _median(ordered), _quantile(ordered, 0.9))


def rate_of(value: float, over: Spread, floor: float) -> Rate:
    """`value` with an interval that holds the middle 80 % of the batches and is at least ± `floor` wide.

    One short run cannot know how much the next one will differ (neighbours, clocks, heat), so the interval never
    shrinks below the floor, however quiet the batches were.
    """
    return Rate(
        value,
        low=min(over.p10, value * (1 - floor)),
        high=max(over.p90, value * (1 + floor)),
        source="calibrated",
        age_s=0.0,
    )


def _quantile(ordered: Sequence[float], q: float) -> float:
    position = q * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
