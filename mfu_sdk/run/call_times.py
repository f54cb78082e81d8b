"""Times the operators of a few calls of a handler's model, on a processor: where the time of all its calls goes.

As in training (`op_times`), timing takes at most half a percent of the run's time. A call that is timed stays in all
sums: it is no longer than that makes it. Calls of few new tokens against a cache are one kind and all others another,
since the memory binds the ones and arithmetic the others; whichever was timed less often is next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mfu_sdk.run.clock import HostClock
from mfu_sdk.run.op_times import OpTimes
from mfu_sdk.run.phases import DECODE_MOST

if TYPE_CHECKING:
    from mfu_sdk.records import Phase
    from mfu_sdk.run.clock import Clock
    from mfu_sdk.run.demand import Demand
    from mfu_sdk.run.evidence import Gathered
    from mfu_sdk.run.phases import CallShape
    from mfu_sdk.settings import Profiling

PAUSE_NS: Final = 50_000_000
"""Between two looks at whether the next call may be timed, and between two that are: a look takes longer than a
comparison, and to begin and end the timing of a call longer than its operators, where these are few."""


class CallTimes:
    """Times one call at a time, from when it is `due` to what it can `tell`, both in turn.

    `start` and `stop` are for the thread of the call.
    """

    def __init__(self, clock: HostClock) -> None:
        self._operators = OpTimes(clock)
        self._clock = clock
        self._look_at_ns: int = 0
        self._timed: dict[bool, int] = {}
        self._is_answer = False
        self._running = False

    def forget(self) -> None:
        """That call has not come to its end: it tells nothing."""
        self._running = False

    def due(self, shape: CallShape) -> bool:
        """Whether the operators of a call of this shape, which begins now, are to be timed."""
        is_answer = shape.cache is not None and shape.new is not None and shape.new <= DECODE_MOST
        times = self._timed.setdefault(is_answer, 0)
        if self._running or times > min(self._timed.values()) or (now_ns := self._clock.mark()) < self._look_at_ns:
            return False
        if not self._operators.earned():
            self._look_at_ns = now_ns + PAUSE_NS
            return False
        self._is_answer, self._running = is_answer, True
        return True

    def start(self) -> None:
        """The call begins."""
        self._operators.start()

    def stop(self) -> None:
        """It has ended, or will not."""
        self._operators.stop()

    def tell(self, gathered: Gathered, demand: Demand | None, phase: Phase) -> None:
        """Enter what that call, which was of `phase`, has shown; nothing where its cost is not known."""
        self._running = False
        self._look_at_ns = self._clock.mark() + PAUSE_NS
        if demand is not None and demand.hardware_flops:
            self._timed[self._is_answer] += 1
            self._operators.tell(gathered, demand.hardware_flops, phase)


def call_times(clock: Clock, profiling: Profiling) -> CallTimes | None:
    """What times the calls of a model whose device has this clock; None where the host does not do the work."""
    return CallTimes(clock) if isinstance(clock, HostClock) and profiling != "off" else None
