"""Gathers a run's evidence for its waterfall: running sums over the timed steps, and what some steps tell of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from mfu_sdk.counting.collective_time import seconds
from mfu_sdk.counting.exchanges import Sent, sent
from mfu_sdk.counting.expect import memory_bytes_per_s
from mfu_sdk.records import Count, Expectation, Peaks, Phase
from mfu_sdk.run.kinds import Kind
from mfu_sdk.run.waterfall import Evidence

LATEST: Final = 16
"""Of what was timed of some steps, so many are taken for a window: more would tell of times that are long past."""


@dataclass(slots=True)
class _Sum:
    """A sum over steps, None as soon as one of them does not know its part."""

    value: float | None = 0.0

    def add(self, part: float | None) -> None:
        self.value = None if self.value is None or part is None else self.value + part


@dataclass(frozen=True, slots=True)
class Exchanged:
    """Steps of which it was timed how long they waited for other ranks' data: how many, and seconds, sum and least.

    `least_whole_s` is the shortest exchange where it was told as a whole, what ran beside it included, `latest_s` the
    last `LATEST` of them.
    """

    steps: int
    sum_s: float
    least_s: float
    least_whole_s: float | None = None
    latest_s: tuple[float, ...] = ()

    def and_one(self, exposed_s: float, whole_s: float | None) -> Exchanged:
        """With one step more."""
        wholes_s = [each_s for each_s in (self.least_whole_s, whole_s) if each_s is not None]
        return Exchanged(
            self.steps + 1,
            self.sum_s + exposed_s,
            min(self.least_s, exposed_s),
            min(wholes_s, default=None),
            (*self.latest_s, exposed_s)[-LATEST:],
        )


@dataclass(frozen=True, slots=True)
class Worked:
    """Steps whose operators were timed: their FLOPs, and the seconds of those with FLOPs and of those without."""

    hardware_flops: int = 0
    products_s: float = 0.0
    streaming_s: float = 0.0

    def __add__(self, other: Worked) -> Worked:
        return Worked(
            self.hardware_flops + other.hardware_flops,
            self.products_s + other.products_s,
            self.streaming_s + other.streaming_s,
        )

    def scaled(self, hardware_flops: int) -> tuple[float, float] | None:
        """The seconds of as much work of so many FLOPs; None where nothing was timed."""
        if not self.hardware_flops:
            return None
        scale = hardware_flops / self.hardware_flops
        return self.products_s * scale, self.streaming_s * scale


@dataclass(slots=True)
class Gathered:
    """What is known so far. Memory does not grow with the run.

    Steps of different dtypes have different peaks: their seconds are weighted with those (`seconds` × FLOP/s), so that
    a share of the sum is a share of the available FLOPs. `ranks` is the number of all ranks, this one among them.
    `listen` has this rank hear of the others' exchanges (`heard`), soon.
    One thread enters; what another reads (`run.observer`) is replaced as a whole, never changed.
    """

    ranks: int
    listen: Callable[[], None] | None = None
    steps: int = 0
    time_s: float = 0.0
    model_flops: int = 0
    hardware_flops: int = 0
    available_flops: float = 0.0
    _waited: _Sum = field(default_factory=_Sum)
    _extra: _Sum = field(default_factory=_Sum)
    _memory: _Sum = field(default_factory=_Sum)
    _clock: _Sum = field(default_factory=_Sum)
    _idle: float = 0.0
    # Of counted steps: which operators have FLOPs, these FLOPs, and the seconds of `_products_memory_s`.
    _products: set[str] = field(default_factory=set)
    _counted_flops: int = 0
    _products_memory: _Sum = field(default_factory=_Sum)
    _worked: Worked = Worked()
    # The latest of these steps, each by itself.
    _latest: tuple[Worked, ...] = ()
    # By phase, and of all of them.
    _exchanged: dict[Phase | None, Exchanged] = field(default_factory=dict)
    # What the last counted step of a phase sent.
    _sent: dict[Phase, Sent] = field(default_factory=dict)
    # The shortest that any rank timed, as far as this one has heard.
    _anywhere_s: float | None = None
    # Whether that was all exchanges of a step, and whether these were all-reductions.
    _of_all: bool = False
    _only_reduces: bool = False
    # What all of a step's gradients take by the measured rate of their links, where that was measured.
    _transfer_s: float | None = None

    def add(self, kind: Kind) -> None:
        """Enter timed steps of one kind; nothing where their FLOPs or their peak is not known."""
        held = kind.held
        if held is None or held.peak_flops_per_s is None:
            return
        peak, demand, ratio, steps = held.peak_flops_per_s, held.demand, held.clock_ratio, kind.steps
        self.steps += steps
        self.time_s += kind.time_s
        self.model_flops += steps * demand.model_flops
        self.hardware_flops += steps * demand.hardware_flops
        self.available_flops += peak * kind.time_s
        if not demand.hardware_flops and not demand.bytes_moved:
            self._idle += peak * (kind.time_s - kind.waited_s)
        self._waited.add(kind.waited_s * peak if kind.waits_known else None)
        self._extra.add(None if held.extra_s is None else steps * held.extra_s * peak)
        self._memory.add(None if held.memory_s is None else steps * held.memory_s * peak)
        self._clock.add(None if ratio is None else steps * demand.model_flops / ratio)

    def counted(
        self, count: Count, peaks: Peaks, phase: Phase = "train", expectation: Expectation | None = None
    ) -> None:
        """Learn from a counted step which operators are products, how far memory holds those up, and what was sent."""
        if self.ranks > 1:
            self._sent[phase] = sent(count, peaks, self.ranks, expectation)
        self._products |= {op.op for op in count.ops if op.flops}
        self._counted_flops += count.hardware_flops
        self._products_memory.add(_products_memory_s(count, peaks))
        sent_bytes = count.comm_bytes.get("allreduce")
        self._only_reduces = not any(sent for name, sent in count.comm_bytes.items() if name != "allreduce")
        for rate in peaks.collectives.values() if sent_bytes else ():
            if rate.collective == "all_reduce" and (rate.ranks, rate.groups) == (self.ranks, 1):
                self._transfer_s = seconds(rate, sent_bytes or 0)

    def ran(self, op_seconds: Mapping[str, float], hardware_flops: int) -> None:
        """Enter a step whose operators were timed, by the names that counts have for them."""
        products_s = sum(taken_s for op, taken_s in op_seconds.items() if op in self._products)
        self.worked(products_s, sum(op_seconds.values()) - products_s, hardware_flops)

    def worked(self, products_s: float, streaming_s: float, hardware_flops: int) -> None:
        """Enter what the device worked in a step of so many FLOPs: on products, and on everything else."""
        if not hardware_flops or products_s + streaming_s <= 0:
            return
        before = self._worked
        self._worked = Worked(
            before.hardware_flops + hardware_flops, before.products_s + products_s, before.streaming_s + streaming_s
        )
        self._latest = (*self._latest, Worked(hardware_flops, products_s, streaming_s))[-LATEST:]

    def exchanged(
        self, exposed_s: float, *, of_all: bool = False, phase: Phase = "train", whole_s: float | None = None
    ) -> None:
        """Enter how long a step waited for other ranks' gradients, or for what all its collectives brought.

        `whole_s`: how long the exchange took, hidden or not, where that is known too.
        """
        self._of_all = of_all
        for key in (phase, None):
            before = self._exchanged.get(key)
            self._exchanged[key] = (
                Exchanged(1, exposed_s, exposed_s, whole_s, (exposed_s,))
                if before is None
                else before.and_one(exposed_s, whole_s)
            )

    @property
    def exchange(self) -> tuple[float, float] | None:
        """Seconds that a step waited for other ranks' data, the mean and the least; None where none told."""
        found = self._exchanged.get(None)
        return None if found is None else (found.sum_s / found.steps, found.least_s)

    def heard(self, least_s: float | None) -> None:
        """Enter the shortest exchange that any rank has timed."""
        self._anywhere_s = least_s

    def evidence(self) -> Evidence | None:
        """What is known of the steps entered, None where there was no time in them."""
        if not self.available_flops > 0 or not self.time_s > 0:
            return None
        # Seconds at the mean peak.
        peak = self.available_flops / self.time_s
        communication_s, skew_s = self._between_ranks(self.steps, None)
        products_s = streaming_s = products_memory_s = None
        if (worked := self.worked_s(self.hardware_flops)) is not None:
            products_s, streaming_s = worked
            memory_s = self._products_memory.value or 0.0
            products_memory_s = memory_s * self.hardware_flops / self._counted_flops if self._counted_flops else 0.0
        clock = self._clock.value
        return Evidence(
            step_s=self.time_s,
            useful_s=self.model_flops / peak,
            data_wait_s=None if self._waited.value is None else self._waited.value / peak,
            communication_s=communication_s,
            skew_s=skew_s,
            extra_s=None if self._extra.value is None else self._extra.value / peak,
            memory_s=None if self._memory.value is None else self._memory.value / peak,
            products_s=products_s,
            streaming_s=streaming_s,
            products_memory_s=products_memory_s,
            clock_ratio=self.model_flops / clock if clock else None,
            idle_s=self._idle / peak,
        )

    def worked_s(self, hardware_flops: int) -> tuple[float, float] | None:
        """The device's seconds on products and on everything else for so many FLOPs, by the steps that were timed."""
        return self._worked.scaled(hardware_flops)

    def waits_of(
        self, steps: int, step_s: float, data_wait_s: float | None, hardware_flops: int | None, phase: Phase
    ) -> Evidence:
        """The evidence of some steps of one phase for where they waited, `step_s` seconds together, above 0.

        What was timed of the latest few steps is taken for these too; of FLOPs only the time that they take is told.
        """
        communication_s, skew_s = self._between_ranks(steps, phase)
        latest = self._latest
        worked = None if hardware_flops is None else sum(latest, Worked()).scaled(hardware_flops)
        return Evidence(
            step_s=step_s,
            useful_s=0.0,
            data_wait_s=data_wait_s,
            communication_s=communication_s,
            skew_s=skew_s,
            products_s=None if worked is None else worked[0],
            streaming_s=None if worked is None else worked[1],
            products_memory_s=None if worked is None else 0.0,
            idle_s=max(0.0, step_s - (data_wait_s or 0.0)) if hardware_flops == 0 else 0.0,
        )

    def sent(self, phase: Phase) -> tuple[Sent | None, float | None]:
        """What a step of this phase sends to other ranks, and the bus rate in bytes/s at which it was seen to."""
        found, exchanged = self._sent.get(phase), self._exchanged.get(phase)
        if found is None or not found.bus_bytes or exchanged is None or not exchanged.least_whole_s:
            return found, None
        return found, found.bus_bytes / exchanged.least_whole_s

    def _between_ranks(self, steps: int, phase: Phase | None) -> tuple[float | None, float | None]:
        """Seconds of transfer that no work hid, and seconds of waiting for ranks that came late to it, in `steps`.

        An exchange ends when the last rank has come and its bytes have passed. The shortest one that any rank timed,
        as far as they have told, is taken for the bytes, or what they take by the link's measured rate where that is
        less, and what others took longer for peers that came late. Where other ranks are not heard of and no rate was
        measured (`mfu.calibrate(collectives=True)`), a rank that is late by as much in every step reads as a slow link.
        """
        if self.ranks == 1:
            return 0.0, 0.0
        exchanged = self._exchanged.get(phase)
        if exchanged is None:
            return None, None
        # Of a phase it is a window that asks, of none the run.
        latest_s = exchanged.latest_s
        mean_s = exchanged.sum_s / exchanged.steps if phase is None else sum(latest_s) / len(latest_s)
        transfer_s = None if self._of_all and not self._only_reduces else self._transfer_s
        least_s = min(s for s in (exchanged.least_s, self._anywhere_s, transfer_s) if s is not None)
        # A mean of equal numbers may be rounded below them.
        return least_s * steps, max(0.0, mean_s - least_s) * steps


def _products_memory_s(count: Count, peaks: Peaks) -> float | None:
    """Σ over operators with FLOPs of what their bytes take longer than these; None where a rate is not known."""
    excess_s = 0.0
    for op in count.ops:
        if not op.flops:
            continue
        rate = peaks.achievable.get(op.dtype) or peaks.theoretical.get(op.dtype)
        memory = memory_bytes_per_s(peaks, op.bytes_moved)
        if rate is None or memory is None:
            return None
        excess_s += op.calls * max(0.0, op.bytes_moved / memory - op.flops / rate.flops_per_s)
    return excess_s
