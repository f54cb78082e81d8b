"""Steps that lie within steps of another phase: which are open, and which of the inner ones are counted."""

from __future__ import annotations

from mfu_sdk.counting.plan import Plan
from mfu_sdk.records import Phase
from mfu_sdk.run.clock import Mark
from mfu_sdk.run.step import Step


class Nesting:
    """The steps that are open around the one that runs, the outermost first."""

    __slots__ = ("_due", "_seen", "outer")

    def __init__(self) -> None:
        self.outer: list[tuple[Step, int]] = []
        """With each, how many marks of its own phase were open within it."""
        # How many inner steps came of each phase before the last, and of which phases one is to be counted.
        self._seen: dict[Phase, int] = {}
        self._due: set[Phase] = set()

    @property
    def counting(self) -> bool:
        """Whether one of them is counted while it runs, so that no other can be: there is one mode."""
        return any(step.counting for step, _ in self.outer)

    def enter(self, outer: Step, marks: int, now: Mark) -> None:
        """A step of another phase begins within `outer`, in which so many marks of its own phase are open."""
        outer.pause(now)
        self.outer.append((outer, marks))

    def leave(self, now: Mark) -> tuple[Step, int]:
        """That step has ended: the one around it goes on, with so many marks open."""
        outer, marks = self.outer.pop()
        outer.resume(now)
        return outer, marks

    def counts(self, phase: Phase) -> bool:
        """Whether a step of `phase` that begins within others is counted: as others are, once the mode is free.

        So all ranks count the same ones.
        """
        seen = self._seen[phase] = self._seen.get(phase, -1) + 1
        if Plan.should_count(seen):
            self._due.add(phase)
        if phase not in self._due or self.counting:
            return False
        self._due.discard(phase)
        return True
