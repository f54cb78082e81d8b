"""A workload's hours, and the part of them in which one of its signals is worse than in the others. Pure.

Sums of a day dilute what began at noon. So each signal is also looked at hour by hour, for one stretch of hours that
stands out (an epidemic change: B. Levin and J. Kline, Statistics in Medicine 4 (1985) 469-488). The stretches are all
that there are, of two hours or more, and the level pays for all that were looked at: Student's t of the difference over
a scatter that no change of level is in, at Bonferroni's share of one in a thousand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan, cos, inf, pi, sin, sqrt
from typing import Final, Literal

from mfu_sdk.provider.causes.finding import MATERIAL_LOSS
from mfu_sdk.provider.rollup import ratio

Signal = Literal["data", "skew", "comm", "clock"]
SIGNALS: Final[tuple[Signal, ...]] = ("data", "skew", "comm", "clock")

LEAST_HOURS: Final = 2
"""A cold cache, a checkpoint or a congested network is over within one hour."""
MOST_HOURS: Final = 48
"""Of more the days are judged one by one (`provider.findings`): looks grow with the square of the hours."""
FALSE_LOOKS: Final = 0.001
"""The share of workloads without any change of which a stretch may stand out by chance; it must also lose enough."""
LEAST_TIME: Final = 0.1
"""An hour with less of a workload's time than this share of its fullest hour says nothing of its level."""
_ROUNDING: Final = 1e-12
KNOWN_SHARE: Final = 0.25
"""A component of the time is known where at least this share of the steps tells it."""


@dataclass(frozen=True, slots=True)
class Hour:
    """Sums of one configuration of a workload in one hour; seconds are over its devices, None where nobody knew any.

    `slowest_s` is the clock of its slowest device (over the peak's) × `slowest_known_s`, so that hours add up.
    """

    start_unix_s: int
    time_s: float
    model_flops: float | None = None
    available_flops: float | None = None
    data_s: float = 0.0
    data_known_s: float = 0.0
    comm_s: float = 0.0
    comm_known_s: float = 0.0
    skew_s: float = 0.0
    skew_known_s: float = 0.0
    bus_rate_s: float = 0.0
    bus_rate_known_s: float = 0.0
    clock_s: float = 0.0
    clock_known_s: float = 0.0
    slowest_s: float = 0.0
    slowest_known_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Level:
    """What some hours say together; shares are of the time, clocks over the peak's, the rate in bytes/s."""

    time_s: float
    mfu: float | None
    data: float | None
    comm: float | None
    skew: float | None
    bus_bytes_per_s: float | None
    clock: float | None
    slowest_clock: float | None


@dataclass(frozen=True, slots=True)
class Stretch:
    """Hours [first, end) of a workload's, by their place; `others` are those that neither lie in it nor next to it."""

    first: int
    end: int
    others: tuple[int, ...]


def level(hours: Sequence[Hour]) -> Level:
    """The level of these hours: sums over sums."""
    time_s = sum(hour.time_s for hour in hours)

    def of(part: str, known: str, least: float) -> float | None:
        known_s = sum(getattr(hour, known) for hour in hours)
        return sum(getattr(hour, part) for hour in hours) / known_s if known_s > least * time_s else None

    model = [hour.model_flops for hour in hours if hour.model_flops is not None]
    available = [hour.available_flops for hour in hours if hour.available_flops is not None]
    return Level(
        time_s,
        ratio(sum(model), sum(available)) if model else None,
        of("data_s", "data_known_s", KNOWN_SHARE),
        of("comm_s", "comm_known_s", KNOWN_SHARE),
        of("skew_s", "skew_known_s", KNOWN_SHARE),
        of("bus_rate_s", "bus_rate_known_s", 0.0),
        of("clock_s", "clock_known_s", 0.0),
        of("slowest_s", "slowest_known_s", 0.0),
    )


def judged(hours: Sequence[Hour]) -> tuple[Hour, ...]:
    """The hours that say something, in their order."""
    fullest = max((hour.time_s for hour in hours), default=0.0)
    return tuple(hour for hour in hours if hour.time_s >= LEAST_TIME * fullest)


def worst(hours: Sequence[Hour], signal: Signal) -> Stretch | None:
    """The stretch of `hours`, as `judged`, in which a signal is worse than in others; None where none stands out."""
    if not LEAST_HOURS + 2 <= len(hours) <= MOST_HOURS:
        return None
    values = []
    for hour in hours:
        told = level((hour,))
        # A clock is worse when it is lower, and counts in shares of itself.
        value = getattr(told, signal) if signal != "clock" else told.slowest_clock or told.clock
        if value is None:
            return None
        values.append(value if signal != "clock" else -value)
    spread = max(values) - min(values)
    # Of two ranks the late one waits for nobody, so that their mean is half of what it is late.
    least = {"skew": MATERIAL_LOSS / 2, "clock": MATERIAL_LOSS * -min(values)}.get(signal, MATERIAL_LOSS)
    if spread < least:
        # No stretch of it can lose what matters more than the others do.
        return None
    return _standing_out(values)


def _standing_out(values: Sequence[float]) -> Stretch | None:
    """The stretch whose mean stands out upwards the most, if it does so at all.

    A change seldom falls on the hour: the hours on either side of a stretch are of neither level.
    """
    n = len(values)
    sums, squares = [0.0], [0.0]
    for at, value in enumerate(values):
        sums.append(sums[-1] + value)
        squares.append(squares[-1] + ((value - values[at - 1]) ** 2 if at else 0.0))
    standing: list[tuple[float, float, int, int]] = []
    looks = 0
    for first in range(n - LEAST_HOURS + 1):
        for end in range(first + LEAST_HOURS, n + 1):
            before, after = max(0, first - 1), min(n, end + 1)
            inside, others = end - first, before + n - after
            if not others:
                continue
            looks += 1
            rise = (sums[end] - sums[first]) / inside - (sums[before] + sums[n] - sums[after]) / others
            # Equal hours are no stretch, however their sums are rounded.
            if rise <= _ROUNDING:
                continue
            # Squared differences of neighbours within the stretch, before it and after it.
            steps = inside - 1 + max(0, before - 1) + max(0, n - after - 1)
            scatter = squares[end] - squares[first + 1] + squares[before]
            if after < n:
                scatter += squares[n] - squares[after + 1]
            deviation = sqrt(max(scatter, 0.0) / (2 * steps))
            t = rise / (deviation * sqrt(1 / inside + 1 / others)) if deviation > _ROUNDING else inf
            # A rounding error's worth of scatter is none. Differences of neighbours know a scatter about two thirds as
            # well as deviations from a mean do (J. von Neumann et al., Annals of Mathematical Statistics 12 (1941)
            # 153-162).
            chance = tail(t, max(1, 2 * steps // 3))
            if chance <= FALSE_LOOKS:
                standing.append((chance, rise * sqrt(inside), first, end))
    level_of_each = FALSE_LOOKS / (max(1, looks) * len(SIGNALS))
    # Of those that stand out the highest, as if all scattered alike: a calm hour or two of a stretch are not the whole.
    _, first, end = max(
        ((height, first, end) for chance, height, first, end in standing if chance <= level_of_each),
        default=(0.0, 0, 0),
    )
    if not end:
        return None
    return Stretch(first, end, (*range(max(0, first - 1)), *range(min(n, end + 1), n)))


def tail(t: float, degrees: int) -> float:
    """P(T > t) of Student's t for t ≥ 0 (M. Abramowitz and I. Stegun, Handbook of Mathematical Functions, 26.7.3-4)."""
    if t == inf:
        return 0.0
    angle = atan(t / sqrt(degrees))
    cosine, sine = cos(angle), sin(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    inside = 2 / pi * (angle + sine * total) if odd else sine * total
    return max(0.0, (1 - inside) / 2)
