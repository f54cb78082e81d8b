"""The detector: levels of blocks of steps in, a drop, a rise or a recovery out, with a promise about false alarms.

A betting Shiryaev–Roberts e-detector. Let b be the level (a logarithm) of a block of steps, m a lower 95 % bound of the
baseline's median, δ a tolerance and s a scale. While nothing is wrong, X = clip((b − m − log(1 − δ)) / s, −c, 1) has a
mean of at least 0 given all that came before: that is the null, and all of it. No independence, no distribution and no
stationarity is assumed. A gambler who bets a share λ ≤ 1 of their money against it multiplies it by 1 − λX ≥ 0, by no
more than 1 on average. One who starts anew with every block has R ← (1 − λX)(1 + R), and R − n is a supermartingale:

    P(R reaches A within n blocks) ≤ n / A,  and the mean time to a false alarm is at least A blocks.

Several λ, averaged, are one such gambler. `scale` and the bets move how fast a change is seen, never the promise; the
promise is given the baseline's bound, which holds in 95 of 100 baselines of independent blocks. Rises are the mirror
image. Recovery is the same bet against the opposite null: that the level is still beyond the tolerated line.

Sources: Shin, Ramdas, Rinaldo, "E-detectors" (New England Journal of Statistics in Data Science 2, 2023); Waudby-Smith,
Ramdas, "Estimating means of bounded random variables by betting" (JRSS-B 86, 2024); Ville's inequality.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Final, Literal

from mfu_sdk.errors import ConfigurationError

Change = Literal["drop", "rise", "recovery"]
NAME: Final = "betting-sr/1"
"""Which detector an event is from: the method and the version of its tuning."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the detector bets on. Raises `ConfigurationError` for what voids its promise.

    `tolerance` is δ, the relative change that nobody is woken for. A block has `block_steps` steps, a baseline
    `baseline_blocks` blocks after `settle_steps` steps that are left out. `scale` times the blocks' standard deviation
    (by their median absolute deviation) is s; `clip` is c.
    """

    tolerance: float = 0.02
    block_steps: int = 16
    baseline_blocks: int = 128
    settle_steps: int = 32
    scale: float = 2.0
    clip: float = 6.0
    bets: tuple[float, ...] = (0.05, 0.15, 0.4, 0.9)

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ConfigurationError(f"tolerance={self.tolerance}: must be between 0 and 1; 0.02 is 2 %")
        for name, value, least in (
            ("block_steps", self.block_steps, 1),
            ("baseline_blocks", self.baseline_blocks, 8),
            ("settle_steps", self.settle_steps, 0),
        ):
            if value < least:
                raise ConfigurationError(f"{name}={value}: must be at least {least}")
        if not (self.scale > 0 and self.clip > 0 and self.bets and all(0 < bet <= 1 for bet in self.bets)):
            raise ConfigurationError(
                f"scale={self.scale}, clip={self.clip}, bets={self.bets}: scale and clip must be above 0, each bet "
                "above 0 and at most 1, or evidence could be negative"
            )

    @property
    def slack(self) -> float:
        """The tolerance as a difference of logarithms."""
        return -math.log1p(-self.tolerance)


@dataclass(frozen=True, slots=True)
class Baseline:
    """The level of blocks while nothing was wrong, as logarithms: the bounds `low` and `high` of its `middle`.

    `scale` is what differences are divided by, `blocks` how many there were.
    """

    middle: float
    low: float
    high: float
    scale: float
    blocks: int

    @classmethod
    def of(cls, levels: Sequence[float], tuning: Tuning) -> "Baseline":
        """By order statistics: of n independent values the k-th is below their median with 95 % probability.

        k is n/2 − 1.645 √n / 2, the normal approximation of the binomial.
        """
        ordered = sorted(levels)
        count = len(ordered)
        middle = median(ordered)
        below = max(0, int(count / 2 - 1.645 * math.sqrt(count) / 2) - 1)
        deviation = 1.4826 * median([abs(level - middle) for level in ordered])
        scale = max(tuning.scale * deviation, tuning.slack / 2)
        return cls(middle, ordered[below], ordered[count - 1 - below], scale, count)

    @classmethod
    def pooled(cls, runs: Sequence["Baseline"]) -> "Baseline":
        """One for a run that comes after `runs`: between their lowest and their highest bound nothing is wrong."""
        return cls(
            median([run.middle for run in runs]),
            min(run.low for run in runs),
            max(run.high for run in runs),
            max(run.scale for run in runs),
            sum(run.blocks for run in runs),
        )


@dataclass(slots=True)
class _Bets:
    """Evidence against one null, a value for each bet: the money of gamblers who start anew with every block."""

    bets: tuple[float, ...]
    values: list[float] = field(default_factory=list)

    def add(self, surplus: float) -> float:
        """Enter a block's X, in [−c, 1]: the evidence after it."""
        values = self.values = self.values or [0.0] * len(self.bets)
        total = 0.0
        for index, bet in enumerate(self.bets):
            values[index] = value = (1.0 - bet * surplus) * (1.0 + values[index])
            total += value
        return total / len(values)

    def clear(self) -> None:
        self.values = []


class Detector:
    """Watches one level against its baseline. `threshold` is A. Memory and time a block do not grow."""

    __slots__ = ("_back", "_fall", "_rise", "_slack", "_tuning", "baseline", "excursion", "score", "threshold")

    def __init__(self, tuning: Tuning, baseline: Baseline, threshold: float) -> None:
        if not 1 < threshold < math.inf:
            raise ConfigurationError(f"threshold={threshold}: must be a number above 1; 1e4 is one in 10,000 blocks")
        self._tuning = tuning
        self._slack = tuning.slack
        self.baseline = baseline
        self.threshold = threshold
        self._fall, self._rise, self._back = (_Bets(tuning.bets) for _ in range(3))
        self.excursion: Literal["drop", "rise"] | None = None
        """What was found and has not recovered."""
        self.score = 0.0
        """The evidence for what is being looked for: a change, or the recovery from one."""

    def add(self, level: float) -> Change | None:
        """Enter a block's level, a finite number: what has now been shown, if anything."""
        base, slack = self.baseline, self._slack
        if self.excursion is not None:
            beyond = base.low - slack - level if self.excursion == "drop" else level - base.high - slack
            self.score = self._back.add(self._clipped(beyond))
            if self.score < self.threshold:
                return None
            self.restart()
            return "recovery"
        fall = self._fall.add(self._clipped(level - base.low + slack))
        rise = self._rise.add(self._clipped(base.high + slack - level))
        self.score = max(fall, rise)
        if self.score < self.threshold:
            return None
        self.excursion = "drop" if fall >= rise else "rise"
        return self.excursion

    def restart(self) -> None:
        """Forget all evidence, and what was found."""
        self.excursion = None
        for bets in (self._fall, self._rise, self._back):
            bets.clear()

    def _clipped(self, surplus: float) -> float:
        scaled, least = surplus / self.baseline.scale, -self._tuning.clip
        return 1.0 if scaled > 1.0 else max(scaled, least)

    def state(self) -> dict[str, Any]:
        """All of it as plain data, for `restored`."""
        return {
            "baseline": asdict(self.baseline),
            "threshold": self.threshold,
            "excursion": self.excursion,
            "evidence": [list(bets.values) for bets in (self._fall, self._rise, self._back)],
        }

    @classmethod
    def restored(cls, tuning: Tuning, state: dict[str, Any]) -> "Detector":
        """A detector that goes on where `state` was told. Raises ValueError, KeyError or TypeError for another's."""
        baseline = Baseline(**state["baseline"])
        numbers = (baseline.middle, baseline.low, baseline.high, baseline.scale)
        if not all(math.isfinite(number) for number in numbers) or not baseline.scale > 0:
            raise ValueError(f"baseline={baseline}: must be finite, its scale above 0")
        found = cls(tuning, baseline, float(state["threshold"]))
        if state["excursion"] not in (None, "drop", "rise"):
            raise ValueError(f"excursion={state['excursion']!r}: must be drop, rise or null")
        found.excursion = state["excursion"]
        for bets, values in zip((found._fall, found._rise, found._back), state["evidence"], strict=True):
            if len(values) not in (0, len(tuning.bets)) or not all(0 <= value < math.inf for value in values):
                raise ValueError(
                    f"evidence={values}: must be a number of at least 0 for each of {len(tuning.bets)} bets"
                )
            bets.values = [float(value) for value in values]
        return found
