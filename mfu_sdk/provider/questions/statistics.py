"""The statistics of the answers: trends with dependence, paired ratios, and straight-line fits with intervals.

Pure, in a few lines each, because the provider has no library of statistics and needs four formulas.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import exp, log, sqrt
from statistics import NormalDist, mean, median, stdev
from typing import Final

from mfu_sdk.peak.statistics import student_t

LEAST_POINTS: Final = 8
"""Below this the normal approximation of Mann and Kendall's S is poor (Kendall, Rank Correlation Methods, 1975)."""

_NORMAL: Final = NormalDist()
_Z: Final = _NORMAL.inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; the ends are None where too little is known for one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Trend:
    """Whether series rise or fall: slope by unit of time, two-sided p, and by what dependence widened the variance."""

    slope: Estimate
    p_value: float
    inflation: float
    series: int
    points: int


@dataclass(frozen=True, slots=True)
class Judged:
    """One series compared with itself: S, its variance for independent points and as it is, and every slope."""

    s: int
    plain: float
    variance: float
    slopes: tuple[float, ...]
    points: int


def judge(points: Sequence[tuple[float, float]]) -> Judged | None:
    """Compare a series of (time, value), in order of time, with itself; None for fewer than `LEAST_POINTS`."""
    if len(points) < LEAST_POINTS:
        return None
    slopes = tuple(
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for i, earlier in enumerate(points)
        for later in points[i + 1 :]
    )
    middle = median(slopes)
    plain = _variance([value for _, value in points])
    widened = plain * _inflation([value - middle * time for time, value in points])
    return Judged(sum((slope > 0) - (slope < 0) for slope in slopes), plain, widened, slopes, len(points))


def trend(series: Iterable[Judged | None]) -> Trend | None:
    """The common trend of `series`; None where none of them is long enough to be judged.

    Mann and Kendall's S, summed over series that are each compared with themselves only (the regional Kendall test), so
    that what differs between series is no trend. Its variance has the correction for ties, and for each series one for
    dependence in time, never below 1 (`_inflation`). The slope is the median of all slopes between two points of a
    series (Theil, Sen), its interval the order statistics at S ± 1.96 √variance (Sen 1968; Gilbert 1987, section
    16.4.2).

    Assumed: points are evenly apart, dependence is stationary, and series are independent given their own past. A shock
    common to all makes p too small, and so does strong dependence (0.8) in few points: a sixth instead of a twentieth.
    Sources: K. H. Hamed and A. R. Rao, J. Hydrology 204 (1998) 182-196; D. R. Helsel and L. M. Frans, Environ. Sci.
    Technol. 40 (2006) 4066-4073.
    """
    long = [judged for judged in series if judged is not None]
    if not long:
        return None
    s, variance, points = (sum(column) for column in zip(*((j.s, j.variance, j.points) for j in long), strict=True))
    if variance <= 0:
        # Nothing but ties: no order to test.
        return Trend(Estimate(0.0, 0.0, 0.0), 1.0, 1.0, len(long), points)
    z = (s - (s > 0) + (s < 0)) / sqrt(variance)
    slopes = sorted(slope for judged in long for slope in judged.slopes)
    reach = _Z * sqrt(variance)
    low = slopes[max(0, round((len(slopes) - reach) / 2) - 1)]
    high = slopes[min(len(slopes) - 1, round((len(slopes) + reach) / 2))]
    p_value = min(1.0, 2 * (1 - _NORMAL.cdf(abs(z))))
    inflation = variance / sum(judged.plain for judged in long)
    return Trend(Estimate(median(slopes), low, high), p_value, inflation, len(long), points)


def paired(ratios: Sequence[float]) -> Estimate | None:
    """The geometric mean of positive `ratios`, with Student's t interval on their logarithms from two on."""
    if not ratios:
        return None
    logs = [log(ratio) for ratio in ratios]
    middle = mean(logs)
    if len(logs) < 2:
        return Estimate(exp(middle))
    half = student_t(len(logs) - 1) * stdev(logs) / sqrt(len(logs))
    return Estimate(exp(middle), exp(middle - half), exp(middle + half))


def wilson_low(successes: int, trials: int) -> float:
    """The lower end of the 95 % score interval of a share (Wilson 1927); 0 without trials."""
    if not trials:
        return 0.0
    share, z2 = successes / trials, _Z * _Z
    centre = share + z2 / (2 * trials)
    half = _Z * sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return (centre - half) / (1 + z2 / trials)


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients of a least-squares fit, the covariance of their errors, and its degrees of freedom."""

    coefficients: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    degrees: int

    def at(self, row: Sequence[float]) -> Estimate:
        """The fitted mean at `row`, with its 95 % interval where there are degrees of freedom."""
        value = sum(c * x for c, x in zip(self.coefficients, row, strict=True))
        if not self.degrees:
            return Estimate(value)
        spread = sum(x * y * self.covariance[i][j] for i, x in enumerate(row) for j, y in enumerate(row))
        half = student_t(self.degrees) * sqrt(max(spread, 0.0))
        return Estimate(value, value - half, value + half)

    def coefficient(self, index: int) -> Estimate:
        """One coefficient with its 95 % interval."""
        return self.at([float(i == index) for i in range(len(self.coefficients))])


def fit_relative(rows: Sequence[Sequence[float]], values: Sequence[float]) -> Fit | None:
    """`values` (positive) as a linear function of `rows`, least Σ (1 − fitted / value)²; None where it is not unique.

    Relative errors, because step times over a hundredfold of sizes err in proportion, not by the same seconds.
    """
    n, k = len(rows), len(rows[0]) if rows else 0
    if n < k or not k:
        return None
    scaled = [[x / value for x in row] for row, value in zip(rows, values, strict=True)]
    gram = [[sum(row[i] * row[j] for row in scaled) for j in range(k)] for i in range(k)]
    inverse = _inverse(gram)
    if inverse is None:
        return None
    moments = [sum(row[i] for row in scaled) for i in range(k)]
    coefficients = tuple(sum(inverse[i][j] * moments[j] for j in range(k)) for i in range(k))
    left = sum((1 - sum(c * x for c, x in zip(coefficients, row, strict=True))) ** 2 for row in scaled)
    error = left / (n - k) if n > k else 0.0
    covariance = tuple(tuple(error * inverse[i][j] for j in range(k)) for i in range(k))
    return Fit(coefficients, covariance, n - k)


def _variance(values: Sequence[float]) -> float:
    """Var S of independent values, corrected for ties (Kendall 1975)."""
    n = len(values)
    ties: dict[float, int] = {}
    for value in values:
        ties[value] = ties.get(value, 0) + 1
    return (n * (n - 1) * (2 * n + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties.values())) / 18


def _inflation(residuals: Sequence[float]) -> float:
    """n / n*, by which dependence widens Var S: equation 8 of Hamed and Rao, on ranks of detrended values.

    The larger of two: with the autocorrelations that are significant, up to a quarter of the series (a daily cycle),
    and with those of an autoregression of the first order, its one corrected for the bias that short, detrended series
    give it (Kendall 1954: (r + 1/n) / (1 - 4/n)). By the first alone, series of 28 with an autocorrelation of 0.6 show
    a trend that is not there in a quarter of cases, by both in a tenth.
    """
    n = len(residuals)
    ranks = _ranks(residuals)
    power = sum(rank * rank for rank in ranks)
    if power == 0:
        return 1.0
    lags = [sum(ranks[i] * ranks[i + lag] for i in range(n - lag)) / power for lag in range(1, max(1, n // 4) + 1)]
    first = min(0.95, max(0.0, (lags[0] + 1 / n) / (1 - 4 / n)))

    def widened(correlations: Iterable[float]) -> float:
        terms = ((n - k) * (n - k - 1) * (n - k - 2) * each for k, each in enumerate(correlations, 1))
        return 1 + 2 * sum(terms) / (n * (n - 1) * (n - 2))

    significant = (each if abs(each) > _Z / sqrt(n) else 0.0 for each in lags)
    return max(1.0, widened(significant), widened(first**lag for lag in range(1, n)))


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks about their mean; ties share theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    for _, tied in groupby(enumerate(order), key=lambda place: values[place[1]]):
        places = list(tied)
        for _, index in places:
            ranks[index] = (places[0][0] + places[-1][0]) / 2 - (len(values) - 1) / 2
    return ranks


def _inverse(matrix: Sequence[Sequence[float]]) -> list[list[float]] | None:
    """The inverse by Gauss and Jordan with pivots; None where a pivot is nothing beside its diagonal."""
    k = len(matrix)
    # Brought to a unit diagonal, so that "nothing" is the same for seconds and for seconds times ranks.
    scale = [sqrt(matrix[i][i]) for i in range(k)]
    if min(scale) <= 0:
        return None
    work = [
        [matrix[i][j] / (scale[i] * scale[j]) for j in range(k)] + [float(i == j) for j in range(k)] for i in range(k)
    ]
    for column in range(k):
        pivot = max(range(column, k), key=lambda row: abs(work[row][column]))
        if abs(work[pivot][column]) < 1e-10:
            return None
        work[column], work[pivot] = work[pivot], work[column]
        lead = work[column][column]
        work[column] = [x / lead for x in work[column]]
        for row in range(k):
            if row != column:
                factor = work[row][column]
                work[row] = [x - factor * y for x, y in zip(work[row], work[column], strict=True)]
    return [[work[i][k + j] / (scale[i] * scale[j]) for j in range(k)] for i in range(k)]
