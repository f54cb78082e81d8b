"""Gathers a run's evidence for its waterfall: running sums over the timed steps, and what some steps tell of all.

Each phase has its own: a training step exchanges gradients and an evaluation does not, a prompt is bound by arithmetic
and its answer by memory. What was timed of some steps of a phase is taken for that phase's steps alone, so that the
seconds of a run are those of its windows, which have one phase each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Final, TypeVar

from mfu_sdk.counting.collective_time import seconds
from mfu_sdk.counting.exchanges import Sent, sent
from mfu_sdk.records import PHASES, Count, Expectation, Peaks, Phase
from mfu_sdk.run.kinds import Kind
from mfu_sdk.run.waterfall import Evidence

_Of = TypeVar("_Of")

SERVED: frozenset[Phase] = frozenset({"prefill", "decode", "inference"})
"""Phases of request handlers, which differ too much to stand for one another."""
LATEST: Final = 16
"""Of what was timed of some steps, so many are taken for a window: more would tell of times that are long past."""
LEAST_RESTED_S: Final = 2.0
"""Of a driver's samples, which are a second apart, so many seconds tell something."""
MOST_GAPS = 8192
"""Steps of a handler whose gaps are kept for their windows: as many as may be on their way to the exporter."""


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


@dataclass(frozen=True, slots=True)
class Links:
    """What a counted step of a phase sent to other ranks.

    `transfer_s`: what all of its gradients take by the measured rate of their links, None where that was not measured;
    `only_reduces`: whether all that it sent were these.
    """

    sent: Sent
    sends: bool
    transfer_s: float | None
    only_reduces: bool


@dataclass(slots=True)
class _Steps:
    """Sums over the timed steps of one phase, weighted with their peaks (`Gathered`)."""

    steps: int = 0
    time_s: float = 0.0
    model_flops: int = 0
    hardware_flops: int = 0
    available_flops: float = 0.0
    waited: _Sum = field(default_factory=_Sum)
    extra: _Sum = field(default_factory=_Sum)
    memory: _Sum = field(default_factory=_Sum)
    products_memory: _Sum = field(default_factory=_Sum)
    clock: _Sum = field(default_factory=_Sum)
    idle: float = 0.0

    def add(self, kind: Kind) -> None:
        held = kind.held
        assert held is not None
        peak, demand, ratio, steps = held.peak_flops_per_s, held.demand, held.clock_ratio, kind.steps
        assert peak is not None
        self.steps += steps
        self.time_s += kind.time_s
        self.model_flops += steps * demand.model_flops
        self.hardware_flops += steps * demand.hardware_flops
        self.available_flops += peak * kind.time_s
        if not demand.hardware_flops and not demand.bytes_moved:
            self.idle += peak * (kind.time_s - kind.waited_s)
        excess_s = demand.products_excess_s
        self.waited.add(kind.waited_s * peak if kind.waits_known else None)
        self.extra.add(None if held.extra_s is None else steps * held.extra_s * peak)
        self.memory.add(None if held.memory_s is None else steps * held.memory_s * peak)
        self.products_memory.add(None if excess_s is None else steps * excess_s * peak)
        self.clock.add(None if ratio is None else steps * demand.model_flops / ratio)


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
    _steps: dict[Phase, _Steps] = field(default_factory=dict)
    # Of counted steps: which operators have FLOPs.
    _products: set[str] = field(default_factory=set)
    _worked: dict[Phase, Worked] = field(default_factory=dict)
    # The latest of these steps of a phase, each by itself.
    _latest: dict[Phase, tuple[Worked, ...]] = field(default_factory=dict)
    _exchanged: dict[Phase, Exchanged] = field(default_factory=dict)
    # Of the last counted step of a phase that sent anything, else of the last.
    _links: dict[Phase, Links] = field(default_factory=dict)
    # By the numbers of a handler's last steps: seconds between the calls of its model.
    _gaps: dict[int, float] = field(default_factory=dict)
    # The shortest that any rank timed in the phase that is told to others, as far as this one has heard.
    _anywhere_s: float | None = None
    # Whether that was all exchanges of a step.
    _of_all: bool = False
    # Seconds of steps in which a GPU's driver saw no kernel run, and all seconds of these steps.
    _rested: tuple[float, float] = (0.0, 0.0)

    def add(self, kind: Kind) -> None:
        """Enter timed steps of one kind; nothing where their FLOPs or their peak is not known."""
        if kind.held is None or kind.held.peak_flops_per_s is None:
            return
        of_phase = self._steps.get(kind.phase)
        if of_phase is None:
            of_phase = self._steps[kind.phase] = _Steps()
        of_phase.add(kind)

    def counted(
        self, count: Count, peaks: Peaks, phase: Phase = "train", expectation: Expectation | None = None
    ) -> None:
        """Learn from a counted step which operators are products, and what was sent."""
        self._products |= {op.op for op in count.ops if op.flops}
        if self.ranks == 1:
            return
        before = self._links.get(phase)
        sends = any(count.comm_bytes.values())
        if not sends and before is not None and before.sends:
            return
        reduced_bytes = count.comm_bytes.get("allreduce")
        transfer_s = None if before is None else before.transfer_s
        for rate in peaks.collectives.values() if reduced_bytes else ():
            if rate.collective == "all_reduce" and (rate.ranks, rate.groups) == (self.ranks, 1):
                transfer_s = seconds(rate, reduced_bytes or 0)
        self._links[phase] = Links(
            sent(count, peaks, self.ranks, expectation),
            sends,
            transfer_s,
            not any(handed for name, handed in count.comm_bytes.items() if name != "allreduce"),
        )

    def ran(self, op_seconds: Mapping[str, float], hardware_flops: int, phase: Phase = "train") -> None:
        """Enter a step whose operators were timed, by the names that counts have for them."""
        products_s = sum(taken_s for op, taken_s in op_seconds.items() if op in self._products)
        self.worked(products_s, sum(op_seconds.values()) - products_s, hardware_flops, phase)

    def worked(self, products_s: float, streaming_s: float, hardware_flops: int, phase: Phase = "train") -> None:
        """Enter what the device worked in a step of so many FLOPs: on products, and on everything else."""
        if not hardware_flops or products_s + streaming_s <= 0:
            return
        found = Worked(hardware_flops, products_s, streaming_s)
        self._worked[phase] = self._worked.get(phase, Worked()) + found
        self._latest[phase] = (*self._latest.get(phase, ()), found)[-LATEST:]

    def exchanged(
        self, exposed_s: float, *, of_all: bool = False, phase: Phase = "train", whole_s: float | None = None
    ) -> None:
        """Enter how long a step waited for other ranks' gradients, or for what all its collectives brought.

        `whole_s`: how long the exchange took, hidden or not, where that is known too.
        """
        self._of_all = of_all
        before = self._exchanged.get(phase)
        self._exchanged[phase] = (
            Exchanged(1, exposed_s, exposed_s, whole_s, (exposed_s,))
            if before is None
            else before.and_one(exposed_s, whole_s)
        )

    def handled(self, step: int, phase: Phase, gap_s: float, idle_flops: float) -> None:
        """Enter a step of a handler's: in `gap_s` of it requests were under way and no call of the model was.

        `idle_flops` are what the device could have done in that time, 0 where it is entered as idle otherwise, or
        where its peak is not known.
        """
        if len(self._gaps) >= MOST_GAPS:
            del self._gaps[next(iter(self._gaps))]
        self._gaps[step] = gap_s
        of_phase = self._steps.get(phase)
        if of_phase is None:
            of_phase = self._steps[phase] = _Steps()
        of_phase.idle += idle_flops

    def rested(self, idle_s: float, step_s: float) -> None:
        """Enter that in `idle_s` of `step_s` seconds of steps a GPU's driver saw no kernel run."""
        self._rested = (self._rested[0] + idle_s, self._rested[1] + step_s)

    def driver_idle_s(self, step_s: float, phase: Phase) -> float | None:
        """The same for steps of `step_s` seconds; None without a driver that tells, and of a handler's.

        A handler's requests come when they come, and what passes between them is no step's.
        """
        idle_s, of_s = self._rested
        return None if phase in SERVED or of_s < LEAST_RESTED_S else step_s * idle_s / of_s

    def between_s(self, steps: Iterable[int]) -> float | None:
        """Seconds between the calls of the model in these steps of a handler, None where one is not known."""
        gaps = [self._gaps.get(step) for step in steps]
        return None if not gaps or None in gaps else fsum(gap_s or 0.0 for gap_s in gaps)

    @property
    def told_phase(self) -> Phase | None:
        """The phase whose exchanges are told to other ranks: the first of all phases that has any."""
        return next((phase for phase in PHASES if phase in self._exchanged), None)

    @property
    def exchange(self) -> tuple[float, float] | None:
        """Seconds that a step of that phase waited for other ranks' data, the mean and the least; None of none."""
        phase = self.told_phase
        if phase is None:
            return None
        found = self._exchanged[phase]
        return found.sum_s / found.steps, found.least_s

    def heard(self, least_s: float | None) -> None:
        """Enter the shortest exchange that any rank has timed."""
        self._anywhere_s = least_s

    @property
    def data_wait_s(self) -> float | None:
        """Seconds that a step waited for its data, in the mean; None where a step does not tell or none was timed."""
        steps = sum(each.steps for each in self._steps.values())
        waited = [each.waited.value for each in self._steps.values() if each.steps]
        available, time_s = self._available
        if not steps or None in waited or not available:
            return None
        return sum(each or 0.0 for each in waited) / (available / time_s) / steps

    @property
    def _available(self) -> tuple[float, float]:
        """Σ peak × time, and Σ time."""
        found = self._steps.values()
        return sum(each.available_flops for each in found), sum(each.time_s for each in found)

    def evidence(self) -> tuple[Evidence, ...]:
        """What is known of the steps entered, for each phase that has any; seconds are those at the run's mean peak."""
        available, time_s = self._available
        if not available > 0 or not time_s > 0:
            return ()
        peak = available / time_s
        return tuple(
            self._evidence(phase, of_phase, peak)
            for phase, of_phase in self._steps.items()
            if of_phase.available_flops > 0
        )

    def _evidence(self, phase: Phase, of: _Steps, peak: float) -> Evidence:
        # From seconds of this phase's to those at the run's mean peak.
        scale = of.available_flops / of.time_s / peak
        communication_s, skew_s = self._between_ranks(of.steps, phase)
        products_s = streaming_s = products_memory_s = None
        idle_s = min(of.idle / peak, of.available_flops / peak)
        sampled = False
        if (worked := self.worked_s(of.hardware_flops, phase)) is not None:
            products_s, streaming_s = (each_s * scale for each_s in worked)
            products_memory_s = (of.products_memory.value or 0.0) / peak
            if phase in SERVED and self._gaps:
                # A handler waits for no loader: what its calls did not work was the host's.
                idle_s += max(0.0, of.available_flops / peak - idle_s - products_s - streaming_s)
                sampled = True
        clock = of.clock.value
        return Evidence(
            step_s=of.available_flops / peak,
            useful_s=of.model_flops / peak,
            data_wait_s=None if of.waited.value is None else of.waited.value / peak,
            communication_s=None if communication_s is None else communication_s * scale,
            skew_s=None if skew_s is None else skew_s * scale,
            extra_s=None if of.extra.value is None else of.extra.value / peak,
            memory_s=None if of.memory.value is None else of.memory.value / peak,
            products_s=products_s,
            streaming_s=streaming_s,
            products_memory_s=products_memory_s,
            clock_ratio=of.model_flops / clock if clock else None,
            idle_s=idle_s,
            idle_sampled=sampled,
            driver_idle_s=self.driver_idle_s(of.available_flops / peak, phase),
        )

    def worked_s(self, hardware_flops: int, phase: Phase) -> tuple[float, float] | None:
        """The device's seconds on products and on everything else for so many FLOPs, by the steps that were timed.

        Where none of a phase was, training stands for evaluation, and it for training; handlers' phases stand alone.
        """
        return sum(_standing_for(phase, self._worked), Worked()).scaled(hardware_flops)

    def waits_of(
        self,
        steps: int,
        step_s: float,
        data_wait_s: float | None,
        hardware_flops: int | None,
        phase: Phase,
        gap_s: float | None = None,
        exposed_s: Sequence[float] = (),
    ) -> Evidence:
        """The evidence of some steps of one phase for where they waited, `step_s` seconds together, above 0.

        What was timed of the latest few steps is taken for these too; of FLOPs only the time that they take is told.
        `gap_s`: what passed in them between the calls of a handler's model (`between_s`). `exposed_s`: what those of
        them waited for other ranks' data that were timed themselves, which then stand for the others.
        """
        exchanged = self._exchanged.get(phase)
        latest_s = exposed_s or (() if exchanged is None else exchanged.latest_s)
        communication_s, skew_s = self._between_ranks(steps, phase, latest_s)
        latest = [each for several in _standing_for(phase, self._latest) for each in several]
        worked = None if hardware_flops is None else sum(latest, Worked()).scaled(hardware_flops)
        idle_s = max(0.0, step_s - (data_wait_s or 0.0)) if hardware_flops == 0 else 0.0
        if gap_s is not None:
            idle_s = min(gap_s, step_s)
            if worked is not None:
                idle_s += max(0.0, step_s - idle_s - sum(worked))
        return Evidence(
            step_s=step_s,
            useful_s=0.0,
            data_wait_s=data_wait_s,
            communication_s=communication_s,
            skew_s=skew_s,
            products_s=None if worked is None else worked[0],
            streaming_s=None if worked is None else worked[1],
            products_memory_s=None if worked is None else 0.0,
            idle_s=idle_s,
            # A gap that may hold waits for data is for readers of a summary, who are told so.
            driver_idle_s=None if data_wait_s is None else self.driver_idle_s(step_s, phase),
        )

    def sent(self, phase: Phase) -> tuple[Sent | None, float | None]:
        """What a step of this phase sends to other ranks, and the bus rate in bytes/s at which it was seen to."""
        links, exchanged = self._links.get(phase), self._exchanged.get(phase)
        found = None if links is None else links.sent
        if found is None or not found.bus_bytes or exchanged is None or not exchanged.least_whole_s:
            return found, None
        return found, found.bus_bytes / exchanged.least_whole_s

    def _between_ranks(
        self, steps: int, phase: Phase, timed_s: Sequence[float] = ()
    ) -> tuple[float | None, float | None]:
        """Seconds of transfer that no work hid, and seconds of waiting for ranks that came late to it, in `steps`.

        `timed_s` stand for these steps; without them all that were timed do.

        An exchange ends when the last rank has come and its bytes have passed. The shortest one that any rank timed,
        as far as they have told, is taken for the bytes, or what they take by the link's measured rate where that is
        less, and what others took longer for peers that came late. Where other ranks are not heard of and no rate was
        measured (`mfu.calibrate(collectives=True)`), a rank that is late by as much in every step reads as a slow link.
        An evaluation that sent nothing where it was counted waits for nobody.
        """
        if self.ranks == 1:
            return 0.0, 0.0
        exchanged, links = self._exchanged.get(phase), self._links.get(phase)
        if exchanged is None:
            return (0.0, 0.0) if phase == "eval" and links is not None and not links.sends else (None, None)
        mean_s = fsum(timed_s) / len(timed_s) if timed_s else exchanged.sum_s / exchanged.steps
        transfer_s = None if links is None or (self._of_all and not links.only_reduces) else links.transfer_s
        anywhere_s = self._anywhere_s if phase == self.told_phase else None
        least_s = min(s for s in (exchanged.least_s, anywhere_s, transfer_s) if s is not None)
        # A mean of equal numbers may be rounded below them.
        return least_s * steps, max(0.0, mean_s - least_s) * steps


def _standing_for(phase: Phase, of_phases: Mapping[Phase, _Of]) -> list[_Of]:
    """That of the phase, or of those that stand for it (`Gathered.worked_s`)."""
    if phase in of_phases:
        return [of_phases[phase]]
    return [] if phase in SERVED else [each for of, each in tuple(of_phases.items()) if of not in SERVED]
