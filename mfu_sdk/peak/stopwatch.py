"""Times a run of calls on a device: between two events on a GPU, by the monotonic clock on a processor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Final, Protocol

import torch

_SPIN_CYCLES: Final = 2_000_000
"""About a millisecond: by then some ten launches are queued, and the host stays ahead of calls that last longer."""

_LOOKS: Final = 3
_LOOK_S: Final = 0.003
"""From the start of a batch to the first look at the clock, and from one to the next."""

Clock = Callable[[], float | None]
"""The device's clock in MHz at this moment, or None."""


class Stopwatch(Protocol):
    """Times calls."""

    def time(self, call: Callable[[int], object], calls: int) -> tuple[float, float | None]:
        """Seconds that `call(0)` … `call(calls - 1)` took, one behind the other, and the clock meanwhile in MHz."""
        ...

    @contextmanager
    def counting(self) -> Iterator[bool]:
        """Clocks in here are counted by a kernel beside the calls, not told by the driver; False where none counts."""
        ...


class Pace:
    """How long one call takes, by the last batch of them, and so how many last for so many seconds."""

    def __init__(self) -> None:
        self._call_s: float | None = None
        self._calls = 1

    def calls(self, seconds: float) -> int:
        """Calls that take about `seconds`, one at the least; of the first batch one."""
        return self._calls if self._call_s is None else max(1, round(seconds / self._call_s))

    def took(self, calls: int, seconds: float) -> None:
        """So many calls took so long; where that is below what the clock can tell, the next batch has twice as many."""
        if seconds > 0:
            self._call_s = seconds / calls
        else:
            self._call_s, self._calls = None, 2 * calls


class HostStopwatch:
    """For calls that are done when they return."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def time(self, call: Callable[[int], object], calls: int) -> tuple[float, float | None]:
        """Seconds that the calls took; a processor's clock is not known."""
        began = self._now()
        for index in range(calls):
            call(index)
        return self._now() - began, None

    @contextmanager
    def counting(self) -> Iterator[bool]:
        """No kernel counts a processor's cycles."""
        yield False


class CudaStopwatch:
    """For calls that are launched on the current stream: they queue up behind a spin, so that no launch is timed."""

    def __init__(self, clock: Clock, counted: Clock | None = None) -> None:
        self._clock = clock
        self._counted = counted

    def time(self, call: Callable[[int], object], calls: int) -> tuple[float, float | None]:
        """Device seconds of the calls, and the clock while the device was at work on them. Waits for the device."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_SPIN_CYCLES)
        start.record()
        for index in range(calls):
            call(index)
        end.record()
        # While the device is at work, and not where it begins: a calibration is on nobody's step path and may wait.
        clocks = []
        for _ in range(_LOOKS):
            time.sleep(_LOOK_S)
            if end.query():
                break
            if (clock_mhz := self._clock()) is not None:
                clocks.append(clock_mhz)
        # No sleep here: an idle device cools, and clocks higher in the next batch.
        end.synchronize()
        return start.elapsed_time(end) / 1e3, median(clocks) if clocks else None

    @contextmanager
    def counting(self) -> Iterator[bool]:
        """With the clock that a kernel counts, which takes a little of the device from the calls."""
        if self._counted is None:
            yield False
            return
        told, self._clock = self._clock, self._counted
        try:
            yield True
        finally:
            self._clock = told
