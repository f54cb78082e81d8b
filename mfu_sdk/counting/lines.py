"""Our count as a list of lines: the calls of one operator in one module and stage, which comparisons are made of."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from torch import nn

from mfu_sdk.counting.books import Books
from mfu_sdk.counting.dispatch import CountingMode
from mfu_sdk.counting.region import Region
from mfu_sdk.counting.reruns import Rerun
from mfu_sdk.counting.tally import Stage
from mfu_sdk.records import Convention


@dataclass(frozen=True, slots=True)
class Line:
    """Our count of the calls of one operator in one module and stage, in FLOPs over all of its `calls`."""

    op: str
    module: str
    stage: str
    dtype: str
    known: bool
    calls: int
    dense: int
    exact: int
    full: int

    @property
    def every_pair(self) -> int:
        """FLOPs with no pair discounted, as other counters price attention."""
        return self.dense + self.full


class LinedMode(CountingMode):
    """The counting mode, which also says whether the operator just seen ran beneath a function priced as a whole."""

    covered = False

    def _open(
        self, model: nn.Module | None, convention: Convention, others: Callable[[], Collection[nn.Module]]
    ) -> Books:
        mode = self

        class Remembering(Books):
            def covered(self, regions: Sequence[Region | Rerun], module: str, stage: Stage) -> bool:
                mode.covered = super().covered(regions, module, stage)
                return mode.covered

        return Remembering(model, convention, others)

    def lines(self) -> tuple[Line, ...]:
        """What has FLOPs, and what has no price, so far."""
        found = []
        for (priced, module, stage), calls in self._books.calls().items():
            cost = priced.cost
            # What was repriced since has no calls left; collectives and free operators have no FLOPs.
            if calls and priced.sent is None and (cost.dense or cost.full or cost.hardware or not priced.known):
                sums = (calls * part for part in (cost.dense, cost.exact, cost.full))
                found.append(Line(priced.op, module, stage, priced.dtype, priced.known, calls, *sums))
        return tuple(found)
