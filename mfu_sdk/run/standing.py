"""What this rank lets the others know of itself, and when: in counted steps, when it is asked, and at its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mfu_sdk.guard import shield
from mfu_sdk.ranks import AllRanks, Counted
from mfu_sdk.run.board import Board
from mfu_sdk.run.mesh import place_but_data

if TYPE_CHECKING:
    from mfu_sdk.run.costs import Costs
    from mfu_sdk.run.demand import Demand
    from mfu_sdk.run.ledger import Ledger
    from mfu_sdk.run.step import Step


LISTEN_S: Final = 25.0
"""Seconds between two times that the others are listened to while the run goes on: less than a window lasts."""


class Standing:
    """One rank's side of the board; of a process on its own there is no board, and all of it is nothing."""

    def __init__(self, ledger: Ledger, costs: Costs, now_s: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._costs = costs
        self.board = Board.open(ledger.identity)
        """Where the ranks of this run tell one another their totals; None for a process on its own."""
        self._place = place_but_data(ledger.identity)
        self._counted: Counted | None = None
        self._now_s = now_s
        self._listened_s: float | None = None
        self._over = False
        if self.board is not None:
            ledger.gathered.listen = self.listen

    def counted(self, step: Step, index: int, usual: Demand | None, model_flops: int) -> None:
        """Let the others see what was counted in `step`, and the totals so far, without waiting.

        `usual` is what steps like it cost.
        """
        if self.board is None:
            return
        steady = usual is not None and usual.source == "cached" and usual.model_flops == model_flops
        alike = f"{self._place} {self._costs.shapes(step.seen())}"
        self._counted = Counted(index, model_flops, alike, steady)
        self.board.post(self._ledger.standing(index, self._counted))

    def listen(self) -> None:
        """Take in what others have posted of their exchanges, as far as it is here, and ask for more. From any thread.

        Without it a rank would know of its own alone, and take waiting for one that is late in every step for transfer.
        """
        now_s = self._now_s()
        if self.board is None or self._over:
            return
        self._ledger.gathered.heard(self.board.known().exchange_least_s)
        if self._listened_s is None or now_s - self._listened_s >= LISTEN_S:
            self._listened_s = now_s
            self.board.listen()

    def now(self, index: int) -> AllRanks | None:
        """What there is of all ranks, after `index` steps of this one."""
        if self.board is None:
            return None
        with shield("hearing of the other ranks"):
            return self._heard(self.board.read(self._ledger.standing(index, self._counted)))
        return None

    def at_the_end(self, index: int, *, wait: bool) -> AllRanks | None:
        """The same with this rank's last word; with `wait`, the others' is waited for a little."""
        if self.board is None:
            return None
        self._over = True
        with shield("hearing of the other ranks"):
            self._ledger.settle(wait=True)
            mine = self._ledger.standing(index, self._counted, closed=True)
            return self._heard(self.board.close(mine, wait=wait))
        return None

    def _heard(self, ranks: AllRanks) -> AllRanks:
        self._ledger.gathered.heard(ranks.exchange_least_s)
        return ranks
