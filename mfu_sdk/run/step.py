"""A step that is running: what it has shown of itself so far."""

from __future__ import annotations

from collections.abc import Hashable

from mfu_sdk.counting.plan import Packed
from mfu_sdk.records import Phase
from mfu_sdk.run.clock import Mark
from mfu_sdk.run.costs import Seen
from mfu_sdk.run.elsewhere import Call


class Step:
    """A step that is running: what it has shown of itself so far."""

    __slots__ = (
        "batch_sum",
        "calls",
        "counting",
        "elsewhere",
        "last_call_end",
        "optimized",
        "packed",
        "phase",
        "profiled",
        "settings",
        "start",
        "start_unix_ns",
        "waits",
    )

    def __init__(
        self,
        phase: Phase,
        start: Mark,
        start_unix_ns: int,
        waits: list[tuple[Mark, Mark]],
        settings: Hashable,
        packed: Packed | None,
    ) -> None:
        self.phase: Phase = phase
        self.settings = settings
        self.packed = packed
        self.start = start
        self.start_unix_ns = start_unix_ns
        self.waits = waits
        # By number (`Costs.number`).
        self.calls: dict[int, int] = {}
        # Other threads', as they came.
        self.elsewhere: list[Call] = []
        self.batch_sum = 0
        self.counting = False
        # Whether its operators are timed.
        self.profiled = False
        # Where the optimizer stepped last, and how many of the waits came before.
        self.optimized: tuple[Mark, int] | None = None
        self.last_call_end: Mark | None = None

    def seen(self) -> Seen:
        """What its cost is looked up by."""
        return self.phase, self.settings, self.packed, tuple(self.calls.items())

    def batch_running(self) -> float | None:
        """Mean leading dimension of the model's calls."""
        calls = sum(self.calls.values())
        return self.batch_sum / calls if calls and self.batch_sum else None
