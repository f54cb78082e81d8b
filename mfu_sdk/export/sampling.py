"""Which steps get a span of their own, and with what probability.

A kept step weighs 1/`ratio` in a sum over step spans. A step kept besides the sample, because it failed or began or
ended the run, has no `ratio` and weighs nothing: what it did is already stood for by the sampled ones. Which spans
enter which sum is said at `Spans.step`.
"""

import math
from dataclasses import dataclass
from typing import Literal

from mfu_sdk.export.identity import window_slot
from mfu_sdk.settings import Spans

FULL_RATE_PER_S = 2.0
"""Spans a second up to which `auto` keeps every step."""

Reason = Literal["all", "periodic", "first", "last", "error", "recorder"]
"""`recorder`: one of the last steps before a process was killed."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Why a step's span is kept, and the probability of that; None for a step kept besides the sample."""

    reason: Reason
    ratio: float | None


class Sampler:
    """Decides step by step. Not thread-safe: the export thread owns it.

    Under `auto`, one in N steps by index, N the smallest power of two that brings the rate down to
    `FULL_RATE_PER_S`. A power of two, so that ranks whose rates differ a little still keep the same steps. The rate is
    that of the last 30 s window or of the present one so far, whichever is higher: a burst must not buy a window
    full of spans. Only steps before the one decided on enter it, so no step influences its own probability.
    """

    def __init__(self, spans: Spans) -> None:
        self._spans = spans
        self._any = False
        self._slot = -1
        self._slot_start_ns = 0
        self._slot_end_ns = 0
        self._slot_steps = 0
        self._last_rate_per_s = 0.0

    def keep(self, index: int, start_unix_ns: int, duration_s: float, *, failed: bool) -> Kept | None:
        """Whether a step, or a request, gets a span, and why; None if it does not."""
        if self._spans in ("windows", "off"):
            return None
        every = 1 if self._spans == "all" else self._every(start_unix_ns, duration_s)
        first, self._any = not self._any, True
        if index % every == 0:
            return Kept("all" if every == 1 else "periodic", 1 / every)
        if failed:
            return Kept("error", None)
        return Kept("first", None) if first else None

    def _every(self, start_unix_ns: int, duration_s: float) -> int:
        slot = window_slot(start_unix_ns)
        if slot != self._slot:
            self._last_rate_per_s = self._rate_per_s()
            self._slot, self._slot_start_ns, self._slot_end_ns, self._slot_steps = slot, start_unix_ns, 0, 0
        rate = max(self._last_rate_per_s, self._rate_per_s())
        self._slot_steps += 1
        self._slot_end_ns = max(self._slot_end_ns, start_unix_ns + round(duration_s * 1e9))
        return 1 << max(0, math.ceil(math.log2(rate / FULL_RATE_PER_S))) if rate > FULL_RATE_PER_S else 1

    def _rate_per_s(self) -> float:
        if not self._slot_steps:
            return 0.0
        return self._slot_steps / max(1e-6, (self._slot_end_ns - self._slot_start_ns) / 1e9)
