"""What a run's steps show of where their time goes, besides how long they take: operators, kernels, exchanges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mfu_sdk.run.clock import CudaClock, HostClock
from mfu_sdk.run.ddp_times import Exchange, ddp_times, waits_unseen
from mfu_sdk.run.kernel_times import KernelTimes
from mfu_sdk.run.op_times import EVERY, FIRST, OpTimes

if TYPE_CHECKING:
    from torch import nn

    from mfu_sdk.drift.samples import Ran
    from mfu_sdk.records import Phase
    from mfu_sdk.run.clock import Clock
    from mfu_sdk.run.demand import Demand
    from mfu_sdk.run.evidence import Gathered
    from mfu_sdk.run.ledger import Ledger
    from mfu_sdk.run.step import Step
    from mfu_sdk.settings import Profiling


class Times(Protocol):
    """What times the work of some steps."""

    pauses: int

    @property
    def rests(self) -> bool:
        """Whether none will be timed for now, unless it is wanted."""
        ...

    def due(self, step: int, *, wanted: bool = False) -> bool:
        """Whether it is the turn of the run's `step`-th step; of one that is `wanted`, whatever it costs."""
        ...

    def start(self) -> None:
        """Time what runs from here on."""
        ...

    def stop(self) -> None:
        """Time no more."""
        ...

    def tell(self, gathered: Gathered, hardware_flops: int, phase: Phase = "train") -> Ran:
        """Enter what the last step showed, which had so many FLOPs, and return it."""
        ...


class Profile:
    """Times the work of some of a run's steps, and reads what DistributedDataParallel has timed."""

    def __init__(self, ledger: Ledger, model: nn.Module | None, profiling: Profiling) -> None:
        self._ledger = ledger
        self._gathered = ledger.gathered
        self._exchanges = ddp_times(model, each=profiling != "off")
        self.sees_exchanges = self._exchanges is not None
        """Whether each step is asked for what the exchange of its gradients took."""
        self._times = _times(ledger.clock, profiling)
        if isinstance(self._times, OpTimes):
            self._times.sees_waits = not (self.sees_exchanges or waits_unseen(model))
            ledger.on_profiled = self._times.longer

    def close(self) -> None:
        """Leave torch as it was."""
        if self._exchanges is not None:
            self._exchanges.close()

    def call_begins(self) -> None:
        """The model is called; only said where it `sees_exchanges`."""
        if self._exchanges is not None:
            self._exchanges.call_begins()

    def begin(self, step: Step, number: int) -> int:
        """Time the work of `step`, the run's `number`-th, where it is the turn of one: steps from it to the next turn.

        Where none will be timed for now, that is as many as lie between two turns, whichever these are.
        """
        if self._times is None:
            return EVERY
        drift = self._ledger.drift
        wanted = drift is not None and drift.wants_sample
        turn = FIRST - number if number < FIRST else -(number - FIRST) % EVERY
        if turn:
            return EVERY if self._times.rests and not wanted else turn
        if self._times.due(number, wanted=wanted):
            self._times.start()
            step.profiled = True
        return EVERY

    def end(self, step: Step) -> None:
        """Time no more of `step`; nothing where that has happened already."""
        if step.profiled and self._times is not None:
            self._times.stop()

    def pause(self) -> None:
        """What runs from here on is not the step's: a loader's, or a step's of another phase within it."""
        if self._times is not None:
            self._times.pauses += 1

    def resume(self) -> None:
        """That is done."""
        if self._times is not None:
            self._times.pauses -= 1

    def gather(self, step: Step, demand: Demand | None) -> None:
        """Enter what `step`, which has ended well and costs `demand`, has shown."""
        if step.profiled and not step.counting and demand is not None and self._times is not None:
            ran = self._times.tell(self._gathered, demand.hardware_flops, step.phase)
            step.exchange_s = ran.exposed_s
            if self._ledger.drift is not None:
                self._ledger.drift.sampled(step, ran)
        if self._exchanges is not None:
            found = self._exchanges.after_step(step)
            if found is not None:
                self._exchanged(found)

    def _exchanged(self, found: Exchange) -> None:
        of = found.step
        # One that was told late may be in its record all the same, where the device has not passed it.
        of.exchange_s = found.exposed_s
        if of.counting or of.profiled:
            return
        self._gathered.exchanged(found.exposed_s, phase=of.phase, whole_s=found.whole_s)
        if self._ledger.drift is not None:
            self._ledger.drift.exchanged(of.index, found.exposed_s)


def _times(clock: Clock, profiling: Profiling) -> Times | None:
    """Operators where the host does the work; a GPU's kernels only where they are asked for."""
    if isinstance(clock, HostClock):
        return None if profiling == "off" else OpTimes(clock)
    return KernelTimes() if isinstance(clock, CudaClock) and profiling == "kernels" else None
