"""What a run's steps show of where their time goes, besides how long they take: operators' times and exchanges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mfu_sdk.run.clock import HostClock
from mfu_sdk.run.ddp_times import ddp_times
from mfu_sdk.run.op_times import OpTimes

if TYPE_CHECKING:
    from torch import nn

    from mfu_sdk.run.demand import Demand
    from mfu_sdk.run.ledger import Ledger
    from mfu_sdk.run.step import Step


class Profile:
    """Times the operators of some steps of a run on a processor, and reads what DistributedDataParallel has timed."""

    def __init__(self, ledger: Ledger, model: nn.Module | None, *, times_operators: bool) -> None:
        self._ledger = ledger
        self._gathered = ledger.gathered
        self._exchanges = ddp_times(model)
        self.sees_exchanges = self._exchanges is not None
        """Whether each step is asked for what the exchange of its gradients took."""
        clock = ledger.clock
        self._op_times = OpTimes(clock) if times_operators and isinstance(clock, HostClock) else None

    def begin(self, step: Step, number: int) -> None:
        """Time the operators of `step`, the run's `number`-th, where it is the turn of one."""
        if self._op_times is not None and self._op_times.due(number):
            self._op_times.start()
            step.profiled = True

    def end(self, step: Step) -> None:
        """Time no more of `step`; nothing where that has happened already."""
        if step.profiled and self._op_times is not None:
            self._op_times.stop()

    def pause(self) -> None:
        """What runs from here on is not the step's: a loader's, or a step's of another phase within it."""
        if self._op_times is not None:
            self._op_times.pauses += 1

    def resume(self) -> None:
        """That is done."""
        if self._op_times is not None:
            self._op_times.pauses -= 1

    def gather(self, step: Step, demand: Demand | None) -> None:
        """Enter what `step`, which has ended well and costs `demand`, has shown."""
        if step.profiled and not step.counting and demand is not None and self._op_times is not None:
            seconds = self._op_times.seconds()
            if seconds is not None:
                self._gathered.ran(seconds, demand.hardware_flops)
        if self._exchanges is not None:
            representative = not (step.counting or step.profiled)
            exposed_s = self._exchanges.after_step(step.start_unix_ns, sum(step.calls.values()), timed=representative)
            if exposed_s is not None:
                self._gathered.exchanged(exposed_s)
                if self._ledger.drift is not None:
                    self._ledger.drift.exchanged(exposed_s)
