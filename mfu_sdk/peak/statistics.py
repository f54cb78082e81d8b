"""The statistics of a calibration: batch rates in, one rate with an honest interval out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import hypot, inf, sqrt
from statistics import median as _median
from statistics import stdev
from typing import Final

from mfu_sdk.records import Rate

ENOUGH_RUNS: Final = 3
"""From this many runs on, how they differ is known; before, a floor stands in for it."""
_MOST_GROUPS: Final = 10
_GROUP: Final = 3
_LEAST: Final = 0.001
"""An interval ends above zero, however wide it is: a device that was measured does something."""
# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom: NIST/SEMATECH e-Handbook of Statistical Methods,
# section 1.3.6.7.2.
_T: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


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


def rate_of(
    value: float, over: Spread, floor: float, *, history: Sequence[float] = (), source: str = "calibrated"
) -> Rate:
    """`value` with an interval that holds the middle 80 % of the batches and is at least ± `floor` wide.

    For what is disturbed from outside all the time (a shared processor): batches differ as much within a run as runs
    do, and `history`, the values of earlier runs, can only widen the interval.
    """
    half = max(floor * value, between_runs((*history, value)) if len(history) + 1 >= ENOUGH_RUNS else 0.0)
    return Rate(
        value, max(min(over.p10, value - half), _LEAST * value), max(over.p90, value + half), source=source, age_s=0.0
    )


def estimate(
    groups: Sequence[Sequence[float]], floor: float, *, history: Sequence[float] = (), source: str = "calibrated"
) -> Rate:
    """The median of the batch rates in `groups`, with the interval in which the next run's would lie, at 95 %.

    Its half width is √(within² + between²). Within: the batches' (`within_run`). Between: that of `history`, the values
    of earlier runs, and this one; with fewer than `ENOUGH_RUNS` a share `floor` of the value stands in, for one
    short run cannot know how much the next one will differ (clocks, heat, neighbours), however quiet it was. Raises
    ValueError without a batch.
    """
    rates = [rate for group in groups for rate in group]
    value = spread(rates).median
    within = within_run(groups)
    between = between_runs((*history, value)) if len(history) + 1 >= ENOUGH_RUNS else floor * value
    # Too few batches to tell how they differ: as much again as runs may.
    half = hypot(within if within < inf else floor * value, between)
    return Rate(value, max(value - half, _LEAST * value), value + half, source=source, age_s=0.0)


def within_run(groups: Sequence[Sequence[float]]) -> float:
    """Half the 95 % interval of the mean of a series, from the means of its groups; infinite for fewer than two.

    Batches that follow each other are alike (clocks, heat), so the means of groups of them stand for independent
    samples: t · s / √groups. One group is cut into at most ten of at least three batches. Source: A. M. Law, Simulation
    Modeling and Analysis, section 9.5.3 (batch means).
    """
    if len(groups) == 1:
        groups = _cut(groups[0])
    means = [sum(group) / len(group) for group in groups if group]
    if len(means) < 2:
        return inf
    return student_t(len(means) - 1) * stdev(means) / sqrt(len(means))


def between_runs(values: Sequence[float]) -> float:
    """Half the 95 % interval in which the next of `values` lies: t · s · √(1 + 1/n).

    Source: G. J. Hahn and W. Q. Meeker, Statistical Intervals, section 4.8 (prediction of one future observation).
    """
    n = len(values)
    return student_t(n - 1) * stdev(values) * sqrt(1 + 1 / n)


def student_t(degrees: int) -> float:
    """The 97.5 % quantile of Student's t; beyond 30 degrees of freedom that of 30, which is a little wide."""
    return _T[min(degrees, len(_T)) - 1]


def _cut(rates: Sequence[float]) -> list[Sequence[float]]:
    number = max(1, min(_MOST_GROUPS, len(rates) // _GROUP))
    edges = [round(i * len(rates) / number) for i in range(number + 1)]
    return [rates[a:b] for a, b in pairwise(edges)]


def _quantile(ordered: Sequence[float], q: float) -> float:
    position = q * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
