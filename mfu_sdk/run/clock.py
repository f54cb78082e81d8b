"""Two clocks with one face: marks are made on the step path without waiting, and resolved when they can be.

A processor's work is synchronous, so its marks are readings of the monotonic clock. A CUDA device runs behind the
host: a mark is an event recorded on the current stream, and the time between two events is known once the device
has passed the later one. Nothing here synchronises on the step path.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

Mark = Any
"""An opaque point in a device's time: nanoseconds, or a CUDA event."""


class Clock(Protocol):
    """A device's time line."""

    def mark(self) -> Mark:
        """A point in the device's time: now, after what was enqueued so far."""
        ...

    def elapsed_s(self, start: Mark, end: Mark) -> float | None:
        """Seconds from one mark to a later one, or None while the device has not come that far."""
        ...

    def drain(self, mark: Mark) -> None:
        """Wait until the device has passed `mark`. Only at the end of a run, never on the step path."""
        ...


class HostClock:
    """The monotonic clock, for work that is done when the call returns."""

    __slots__ = ("_now_ns",)

    def __init__(self, now_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._now_ns = now_ns

    def mark(self) -> Mark:
        """Nanoseconds now."""
        return self._now_ns()

    def elapsed_s(self, start: Mark, end: Mark) -> float:
        """Seconds between two readings."""
        return float(end - start) / 1e9

    def drain(self, mark: Mark) -> None:
        """Nothing: a reading has always been passed."""


class CudaClock:
    """Events on the current stream of one CUDA device."""

    __slots__ = ("_device",)

    def __init__(self, device: str) -> None:
        self._device = device

    def mark(self) -> Mark:
        """An event recorded behind what the current stream holds."""
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def elapsed_s(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float | None:
        """Device seconds between two events; None while the later one is still ahead."""
        if not (start.query() and end.query()):
            return None
        return float(start.elapsed_time(end)) / 1e3

    def drain(self, mark: torch.cuda.Event) -> None:
        """Wait for the event."""
        mark.synchronize()


def clock_for(device: str) -> Clock:
    """The clock of a device by its torch name."""
    return CudaClock(device) if device.startswith("cuda") else HostClock()
