"""A step that is running: what it has shown of itself so far."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Final

from mfu_sdk.counting.plan import Packed
from mfu_sdk.records import Phase
from mfu_sdk.run.clock import Mark
from mfu_sdk.run.costs import Seen
from mfu_sdk.run.demand import Demand
from mfu_sdk.run.device_time import Slice
from mfu_sdk.run.elsewhere import Call
from mfu_sdk.run.work import Work

_NONE: Final[Mapping[int, int]] = {}


class Step(Work):
    """A step that is running, and is entered into the books as it is once it has an end.

    Nothing is copied from one object to another: the object is made once a step, on the step's path.
    """

    # What came before steps of other phases that lay within it, and where it went on after the last of them.
    parts: tuple[Slice, ...] = ()
    since: Mark = None
    packed: Packed | None = None
    waiting: Sequence[tuple[Mark, Mark]] = ()
    """Waits for data, whether or not anybody times them."""
    elsewhere: Sequence[Call] = ()
    """Other threads' calls, as they came."""
    optimized: tuple[Mark, int] | None = None
    """Where the optimizer stepped last, and how many of the waits came before."""
    last_call_end: Mark | None = None
    alone: tuple[Demand, float | None] | None = None
    """What it costs and its mean leading dimension, if its first call remains its only one and both are known."""
    calls: Mapping[int, int] = _NONE
    """How often the model was called in which way, by number (`Costs.number`). Steps share it: it is never changed."""

    def __init__(self, phase: Phase, start: Mark, start_unix_ns: int, settings: Hashable) -> None:
        # `Work`'s own, of which the rest are its defaults until the end.
        self.phase: Phase = phase
        self.start = start
        self.start_unix_ns = start_unix_ns
        self.settings = settings

    def called(self, call: int, times: int = 1) -> None:
        """The model was called so, beside what it was called for before."""
        self.calls = {**self.calls, call: self.calls.get(call, 0) + times}

    def waited(self, wait: tuple[Mark, Mark]) -> None:
        """It has waited for data from the one mark to the other."""
        self.waiting = (*self.waiting, wait)

    def others_calls(self) -> list[Call]:
        """`elsewhere`, made where it is not there yet: by whichever thread comes first, and one only."""
        made: list[Call] = self.__dict__.setdefault("elsewhere", [])
        return made

    def pause(self, at: Mark) -> None:
        """A step of another phase begins within it."""
        self.parts = (*self.parts, Slice(self.since if self.parts else self.start, at, 1.0))

    def resume(self, at: Mark) -> None:
        """That one has ended."""
        self.since = at

    def seen(self) -> Seen:
        """What its cost is looked up by."""
        return self.phase, self.settings, self.packed, tuple(self.calls.items())
