"""A step that has ended: what is known of it before and after the device has passed it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import fsum

from mfu_sdk.records import Phase, StepRecord
from mfu_sdk.requests import Load
from mfu_sdk.run.clock import Clock, Mark
from mfu_sdk.run.demand import Demand
from mfu_sdk.run.device_time import Slice
from mfu_sdk.run.fitting import Fitting
from mfu_sdk.run.held import Held


@dataclass(eq=False)
class Work:
    """A step that has ended on the host; once the device has passed it, also how long that took.

    Called, it is its record: whoever reads that builds it. Without slots: what a step leaves at its default costs it
    nothing.
    """

    index: int
    phase: Phase
    start: Mark
    end: Mark
    start_unix_ns: int
    demand: Demand | None
    tokens: int | None = None
    samples: int | None = None
    waits: Sequence[tuple[Mark, Mark]] | None = None
    batch_running: float | None = None
    error_type: str | None = None
    requests: int | None = None
    requests_failed: int | None = None
    requests_s: float | None = None
    requests_running: float | None = None
    load: Load | None = None
    counting: bool = False
    """Whether it was counted while it ran: its time is not that of a step like it."""
    profiled: bool = False
    exchange_s: float | None = None
    """Seconds that it stood waiting for what its collectives brought, where it was timed itself."""
    autocast: str | None = None
    """What autocast made of products where the model was called, of a step that was counted."""
    fitting: Fitting | None = None
    """What its calls would take with as many sequences as fit, where the server tells how many."""
    # Of a step that had the device to itself in parts only: which, and what share of each; else from start to end.
    slices: tuple[Slice, ...] | None = None
    # Of a handler's: the parts of that time in which no call of the model was under way.
    between: tuple[Slice, ...] | None = None

    # What is known once the device has passed it, in seconds (`Ledger.settle`).
    took_s: float = field(init=False, default=0.0)
    waited_s: float | None = field(init=False, default=None)
    """How long the device stood waiting for data."""
    held: Held | None = field(init=False, default=None)
    """What it asked for against the peaks, also of one that failed (`known_demand`)."""
    records: Callable[[Work], StepRecord] | None = field(init=False, default=None)
    """Makes its record, in whichever thread."""

    def __call__(self) -> StepRecord:
        """Its record. Raises TypeError where the device has not passed it."""
        if self.records is None:
            raise TypeError("a step that the device has not passed has no record")
        return self.records(self)

    @property
    def known_demand(self) -> Demand | None:
        """What it asked for; None of one that failed, of which nobody knows how far it came."""
        return self.demand if self.error_type is None else None

    @property
    def expected_feasible_mfu(self) -> float | None:
        """The MFU that a roofline allows at the batch that would fit."""
        peak = None if self.held is None else self.held.peak_flops_per_s
        fitting = self.fitting
        return None if peak is None or fitting is None else fitting.model_flops / (peak * fitting.seconds)

    @property
    def available_flops(self) -> float | None:
        """What the device could have done, None where that is not known or no time passed."""
        peak = None if self.held is None else self.held.peak_flops_per_s
        return None if peak is None or self.took_s <= 0 else peak * self.took_s

    def drain(self, clock: Clock) -> None:
        """Wait until the device has passed all of it."""
        clock.drain(self.end)
        for each in self.slices or ():
            clock.drain(each.end)

    def duration_s(self, clock: Clock) -> float | None:
        """Its seconds of the device's time; None while the device has not come that far."""
        whole_s = clock.elapsed_s(self.start, self.end)
        if whole_s is None or self.slices is None:
            return whole_s
        parts_s = [clock.elapsed_s(each.start, each.end) for each in self.slices]
        if None in parts_s:
            return None
        return fsum(each.share * (part_s or 0.0) for each, part_s in zip(self.slices, parts_s, strict=True))

    def between_s(self, clock: Clock) -> float:
        """Seconds of the device's time between the calls of the model, once the device has passed all of it."""
        return fsum(each.share * (clock.elapsed_s(each.start, each.end) or 0.0) for each in self.between or ())
