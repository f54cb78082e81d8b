"""A step that has ended: what is known of it before and after the device has passed it."""

from __future__ import annotations

from dataclasses import dataclass

from mfu_sdk.records import CountSource, Phase
from mfu_sdk.run.clock import Mark
from mfu_sdk.run.demand import Demand
from mfu_sdk.run.held import Held


@dataclass(slots=True, eq=False)
class Work:
    """A step that has ended on the host: everything but its duration, which the clock may not know yet."""

    index: int
    phase: Phase
    start: Mark
    end: Mark
    start_unix_ns: int
    demand: Demand | None
    tokens: int | None = None
    samples: int | None = None
    waits: tuple[tuple[Mark, Mark], ...] | None = None
    batch_running: float | None = None
    error_type: str | None = None
    requests: int | None = None
    requests_failed: int | None = None
    requests_s: float | None = None
    counted_while_running: bool = False
    profiled: bool = False


@dataclass(slots=True, eq=False)
class Timed:
    """A step that the device has passed, and how long the device took and stood waiting for data, in seconds."""

    work: Work
    held: Held | None
    duration_s: float
    waited_s: float | None

    @property
    def source(self) -> CountSource | None:
        """How its FLOPs are known."""
        if self.work.counted_while_running:
            return "measured"
        return None if self.work.demand is None else self.work.demand.source

    @property
    def available_flops(self) -> float | None:
        """What the device could have done, None where that is not known or no time passed."""
        peak = None if self.held is None else self.held.peak_flops_per_s
        return None if peak is None or self.duration_s <= 0 else peak * self.duration_s
