"""What telling of a run may cost: beyond a share of the steps' time spans are shed first, windows next, counters never.

Cost is the SDK's time on the step path and the export thread's processor time, which holds the interpreter's lock in
the way of the user's threads. Pure: times are arguments.
"""

from typing import Final

INTERVAL_S: Final = 10.0
LEAST_STEPS: Final = 64
"""A decision is made over so much of the steps' time, and so many steps, at least."""

WORTH_SHEDDING: Final = 0.1
"""Of the budget: spans that take less than that are kept, because it is something else that is dear."""

RESTORED_BELOW: Final = 0.8
"""Of the budget: what had been shed comes back if all of it together would have cost less than this share of it."""


class Budget:
    """Decides what is sent. `share` of the steps' time, None for no limit. Not thread-safe: the export thread owns it.

    Windows are shed only where they alone cost more than the budget: they are what sums are made of, and for a loop of
    very short steps the counters cost more than they do.
    """

    def __init__(self, share: float | None) -> None:
        self.share = share
        self.keeps_spans = True
        self.keeps_windows = True
        self.cost_share = 0.0
        """What everything cost in the last interval, as a share of the steps' time."""
        # What each cost when it was last sent: what is shed costs nothing to look at.
        self._spans_share = self._windows_share = 0.0
        self._begin()

    def spend(self, seconds: float) -> None:
        """Time that went into anything but spans and windows."""
        self._rest_s += seconds

    def step(self, duration_s: float, spans_s: float, windows_s: float) -> bool:
        """One step, and what its span and its window took: whether something was shed or came back."""
        self._steps += 1
        self._time_s += duration_s
        self._spans_s += spans_s
        self._windows_s += windows_s
        if self.share is None or self._time_s < INTERVAL_S or self._steps < LEAST_STEPS:
            return False
        before = (self.keeps_spans, self.keeps_windows)
        self._decide(self.share)
        self._begin()
        return before != (self.keeps_spans, self.keeps_windows)

    def _decide(self, budget: float) -> None:
        if self.keeps_spans:
            self._spans_share = self._spans_s / self._time_s
        if self.keeps_windows:
            self._windows_share = self._windows_s / self._time_s
        cost = self.cost_share = (self._rest_s + self._spans_s + self._windows_s) / self._time_s
        if cost > budget:
            if self.keeps_spans and self._spans_share > WORTH_SHEDDING * budget:
                self.keeps_spans = False
            elif self.keeps_windows and self._windows_share > budget:
                self.keeps_windows = False
        elif not self.keeps_windows:
            self.keeps_windows = cost + self._windows_share < RESTORED_BELOW * budget
        elif not self.keeps_spans:
            self.keeps_spans = cost + self._spans_share < RESTORED_BELOW * budget

    def _begin(self) -> None:
        self._steps = 0
        self._time_s = self._rest_s = self._spans_s = self._windows_s = 0.0
