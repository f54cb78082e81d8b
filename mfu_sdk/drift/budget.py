"""How much evidence an alarm needs: from the false alarms that a fleet can bear to a threshold.

The e-detector promises P(alarm within n blocks) ≤ n / A where nothing is wrong, whatever depends on what
(`drift.detector`). K streams of n blocks a week have at most K · n / A false alarms a week together, so that
A = K · n / a keeps them to a.
"""

import math
from dataclasses import dataclass
from typing import Final

from mfu_sdk.errors import ConfigurationError

WEEK_S: Final = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `alarms_per_week` false alarms over `streams` streams. Raises `ConfigurationError` unless above 0."""

    alarms_per_week: float = 1.0
    streams: int = 1000

    def __post_init__(self) -> None:
        for name, value in (("alarms_per_week", self.alarms_per_week), ("streams", self.streams)):
            if not 0 < value < math.inf:
                raise ConfigurationError(f"{name}={value}: must be a number above 0; 1 alarm a week over 1000 streams")

    def threshold(self, block_s: float, tests: int = 1) -> float:
        """The least evidence, where a block of steps takes `block_s` seconds and `tests` tests look at each block.

        Several tests share the budget (a union bound). Never below 1 / 0.05 for each: a week of one long block is
        still no licence to cry out at random.
        """
        blocks = WEEK_S / block_s if 0 < block_s < math.inf else WEEK_S
        return max(20.0, self.streams * blocks / self.alarms_per_week) * tests
