"""A busy period of a device: the time in which requests are handled, split by what the model was doing.

A period lasts from the moment a first request is being handled until none is, or until a request ends after a second
of uninterrupted work, or a call of the model after ten. Its time is told once however many requests overlap in it. What
lies between the ends of two calls of the model belongs to the phase of the later one, as a step begins where the one
before it ended; what follows the last call belongs to that one's phase. So prefill, decode and calls of neither have a
part each, and a step each. Of each part it is told apart in which of its time no call was under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING

from mfu_sdk.records import Phase
from mfu_sdk.run.calls import Calls
from mfu_sdk.run.demand import Demand
from mfu_sdk.run.device_time import Slice, merged
from mfu_sdk.run.work import Work

if TYPE_CHECKING:
    from mfu_sdk.requests import Load
    from mfu_sdk.run.clock import Mark


class Part(Calls):
    """The calls of one phase, the time that was theirs, and the requests that ended in it, with their tokens."""

    __slots__ = ("between", "failed", "phase", "requests", "requests_ns", "slices", "start_unix_ns", "tokens")

    def __init__(self, phase: Phase, start_unix_ns: int) -> None:
        super().__init__()
        self.phase: Phase = phase
        self.start_unix_ns = start_unix_ns
        self.slices: list[Slice] = []
        self.between: list[Slice] = []
        self.tokens: int | None = None
        self.requests = self.failed = self.requests_ns = 0

    def answered(self, duration_ns: int, tokens: int | None, *, failed: bool) -> None:
        """A request has ended; `tokens` None where they are not known."""
        self.requests += 1
        self.failed += failed
        self.requests_ns += duration_ns
        if tokens is not None:
            self.tokens = (self.tokens or 0) + tokens


class Period:
    """A busy period that has not ended. Not thread-safe: its methods are called in turn."""

    __slots__ = (
        "_boundary_ns",
        "_parts",
        "_running_ns",
        "_seen_ns",
        "_uncalled",
        "current",
        "start",
        "start_ns",
        "start_unix_ns",
    )

    def __init__(self, start: Mark, start_ns: int, start_unix_ns: int) -> None:
        self.start = start
        self.start_ns = start_ns
        self.start_unix_ns = start_unix_ns
        self._parts: dict[Phase, Part] = {}
        self.current = Part("inference", start_unix_ns)
        self._boundary_ns = self._seen_ns = start_ns
        # Since the last call's end, what passed without another.
        self._uncalled: list[Slice] = []
        # Σ over time of the requests under way.
        self._running_ns = 0

    @property
    def has_calls(self) -> bool:
        """Whether a call of the model ended in it."""
        return bool(self._parts)

    def running(self, requests: int, now_ns: int) -> None:
        """So many requests were under way until now, since this was said last."""
        self._running_ns += requests * (now_ns - self._seen_ns)
        self._seen_ns = now_ns

    def without_calls(self, slices: Sequence[Slice]) -> None:
        """In the time since the last call's end, or since this was said last, no call was under way."""
        merged(self._uncalled, slices)

    def spend(self, phase: Phase, slices: Sequence[Slice], now_ns: int) -> Part:
        """The time since the last call's end was `phase`'s: its part.

        `slices` are what `without_calls` was not told of it.
        """
        part = self._parts.get(phase)
        if part is None:
            if self._parts:
                part = Part(phase, self.start_unix_ns + self._boundary_ns - self.start_ns)
            else:
                # What came before the first call is that one's.
                part = self.current
                part.phase = phase
            self._parts[phase] = part
        merged(part.slices, self._uncalled)
        merged(part.between, self._uncalled)
        self._uncalled = []
        merged(part.slices, slices)
        self._boundary_ns = now_ns
        self.current = part
        return part

    def works(
        self, end: Mark, slices: Sequence[Slice], now_ns: int, numbers: count[int], load: Load | None, dtype: str | None
    ) -> list[Work]:
        """A step for each part of it, numbered from `numbers`; `slices` are the time that nothing was said of yet.

        `dtype`: that of the peak which a period without calls is held against.
        """
        self.spend(self.current.phase, slices, now_ns)
        told = any(part.tokens is not None for part in self._parts.values())
        lasted_ns = now_ns - self.start_ns
        return [
            Work(
                index=next(numbers),
                phase=part.phase,
                start=self.start,
                end=end,
                start_unix_ns=part.start_unix_ns,
                # Requests that did not come to call the model kept its device waiting.
                demand=part.demand if part.calls or dtype is None else Demand.nothing(dtype),
                tokens=(part.tokens or 0) if told else None,
                batch_running=part.batch,
                requests=part.requests,
                requests_failed=part.failed,
                requests_s=part.requests_ns / 1e9,
                requests_running=self._running_ns / lasted_ns if lasted_ns > 0 else None,
                load=load,
                fitting=part.fitting,
                counting=part.counted,
                slices=tuple(part.slices),
                between=tuple(part.between),
            )
            for part in self._parts.values()
        ]
