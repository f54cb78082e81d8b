"""What makes steps differ: an autoregression, a heavy tail, a slow wander, and ranks that are not quite alike.

Streams are drawn by name from the seed, so that one workload's noise does not hang on which others there are.
"""

import math
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_PHI, _LAGS = 0.6, 24
_WEIGHTS = _PHI ** np.arange(_LAGS, dtype=np.float64)


def generator(seed: int, *name: object) -> np.random.Generator:
    """The stream of `name`."""
    text = "\0".join(map(str, (seed, *name)))
    return np.random.Generator(np.random.PCG64(int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "big")))


class Jitter:
    """A run's factors on device time, step after step: an AR(1) of φ 0.6, 1 % slow steps, a wander over an hour."""

    def __init__(self, rng: np.random.Generator, sigma: float) -> None:
        self._rng = rng
        self._sigma = sigma * math.sqrt(1 - _PHI**2)
        self._phase = float(rng.uniform(0, 2 * math.pi))
        self._period_s = float(rng.uniform(2400, 7200))
        self._tail: Floats = rng.standard_normal(_LAGS - 1) * self._sigma

    def factors(self, steps: int, at_s: float, step_s: float) -> Floats:
        """Factors of the next `steps` steps of about `step_s` each from virtual time `at_s` on; all are positive."""
        shocks = np.concatenate([self._tail, self._rng.standard_normal(steps) * self._sigma])
        self._tail = shocks[steps:]
        wander = 0.004 * np.sin(self._phase + 2 * math.pi * (at_s + step_s * np.arange(steps)) / self._period_s)
        logs: Floats = np.convolve(shocks, _WEIGHTS, "valid") + wander
        slow = self._rng.random(steps) < 0.01
        # Pareto of shape 3 above 5 %, and never more than twice the time: a collected garbage, a neighbour's burst.
        logs[slow] += np.minimum(0.05 * (1 + self._rng.pareto(3.0, int(slow.sum()))), math.log(2))
        return np.exp(logs)

    def ranks(self, steps: int, ranks: int, sigma: float) -> Floats:
        """Factors of (steps, ranks) around one."""
        drawn: Floats = 1 + sigma * self._rng.standard_normal((steps, ranks))
        return np.maximum(drawn, 0.5)

    def lognormal(self, steps: int, sigma: float) -> Floats:
        """Factors of mean one."""
        drawn: Floats = np.exp(sigma * self._rng.standard_normal(steps) - sigma**2 / 2)
        return drawn
