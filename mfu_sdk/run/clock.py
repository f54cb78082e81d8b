"""Two clocks with one face: marks are made on the step path without waiting, and resolved when they can be.

A processor's work is synchronous, so its marks are readings of the monotonic clock. A CUDA device runs behind the
host: a mark is an event recorded on the current stream, and the time between two events is known once the device
has passed the later one. Nothing here synchronises on the step path.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import torch

Mark = Any
"""An opaque point in a device's time: nanoseconds, or a CUDA event."""
_KEPT_EVENTS: Final = 1024


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

    def __init__(self, now_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        # The clock's own function, without one of ours around it: it is read several times a step.
        self.mark: Callable[[], int] = now_ns
        """Nanoseconds now."""

    def elapsed_s(self, start: Mark, end: Mark) -> float:
        """Seconds between two readings."""
        return float(end - start) / 1e9

    def drain(self, mark: Mark) -> None:
        """Nothing: a reading has always been passed."""


class _Passed:
    """An event on a stream, which its clock records anew once nobody needs this mark any more."""

    __slots__ = ("_unused", "event")

    def __init__(self, event: torch.cuda.Event, unused: list[torch.cuda.Event]) -> None:
        self.event = event
        self._unused = unused

    def __del__(self) -> None:
        if len(self._unused) < _KEPT_EVENTS:
            self._unused.append(self.event)


class CudaClock:
    """Events on the current stream of one CUDA device.

    An event is recorded again once its mark is dropped, and what torch makes of a stream is kept: in a loop bound by
    its host, two events that were made anew took 77 µs of a step (H200, torch 2.11, November 2026). What is saved has
    not been timed (`benchmarks/device_loop.py` does that).
    """

    __slots__ = ("_captures", "_device", "_index", "_streams", "_unused")

    def __init__(self, device: str) -> None:
        # Not above: it imports torch, which `import mfu_sdk` does not.
        from mfu_sdk.counting.cuda_graphs import captures

        self._captures = captures
        self._device = device
        self._index: int | None = None
        # By what torch's core says of the current stream.
        self._streams: dict[object, torch.cuda.Stream] = {}
        self._unused: list[torch.cuda.Event] = []

    def mark(self) -> Mark:
        """An event recorded behind what the current stream holds."""
        import torch

        if self._index is None:
            # Where nothing has used the device yet, this begins.
            self._index = torch.cuda.current_stream(self._device).device_index
        said = torch._C._cuda_getCurrentStream(self._index)
        stream = self._streams.get(said)
        if stream is None:
            stream = self._streams[said] = torch.cuda.current_stream(self._index)
        try:
            event = self._unused.pop()
        except IndexError:
            event = torch.cuda.Event(enable_timing=True)
        event.record(stream)
        return _Passed(event, self._unused)

    def elapsed_s(self, start: _Passed, end: _Passed) -> float | None:
        """Device seconds between two events; None while the later one is still ahead, or a graph is being captured.

        To ask for an event ends a capture with an error, in whichever thread of the process.
        """
        if self._captures() or not (start.event.query() and end.event.query()):
            return None
        return float(start.event.elapsed_time(end.event)) / 1e3

    def drain(self, mark: _Passed) -> None:
        """Wait for the event."""
        mark.event.synchronize()


def clock_for(device: str) -> Clock:
    """The clock of a device by its torch name."""
    return CudaClock(device) if device.startswith("cuda") else HostClock()
