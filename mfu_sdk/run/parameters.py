"""The watched model's parameters: which of them want a gradient, which no call of the model shows."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch
    from torch import nn

LOOKED_AT: Final = 32
"""Parameters that one step looks at, at most: to read a flag takes 0.07 µs, and a large model has a thousand.

(AMD EPYC, torch 2.13, Python 3.11, November 2026.) Where the step's own work has just been through the caches it takes
ten times that.
"""
STEADY: Final = 64
"""Looks in a row that find everything as it was, after which not every step looks any more."""
REST: Final = 6
"""Steps between two looks then: seven is odd, so that weights that take turns are seen in each of their states."""


class Parameters:
    """The parameters of a model, or of none; weakly held, so that weights that are replaced are not kept alive.

    Each step looks at every n-th parameter, the next one at those beside them, with n such that no step looks at more
    than `LOOKED_AT`. So what is frozen or unfrozen is seen at once in a model of so few, or where it is n parameters
    in a row (a layer, a tower, the generator of two networks), and n steps later at the latest. Then all are looked at.
    Where nothing has changed for `STEADY` looks, only every seventh step looks, until something has changed again.
    """

    __slots__ = ("_flags", "_held", "_model", "_next", "_note", "_same", "_wanted", "rest")

    def __init__(self, model: nn.Module | None, note: Callable[[str], None]) -> None:
        self._model = model
        self._note = note
        self._next = 0
        # Looks that found nothing new, in a row.
        self._same = 0
        self.rest = 0
        """Steps that need not look."""
        self.refresh()

    def refresh(self) -> None:
        """Look again which parameters the model has, some may have been replaced, or added; and at all of them."""
        held = () if self._model is None else tuple(map(weakref.ref, self._model.parameters()))
        shares = max(1, -(-len(held) // LOOKED_AT))
        self._held = [held[first::shares] for first in range(shares)]
        self._flags = [_flags(share) for share in self._held]
        # Dealt out in another way, the same flags must give the same hash.
        self._wanted = hash(tuple(_flags(held)))

    def wanted(self) -> int:
        """A hash of which parameters want a gradient: unfreezing a layer changes what a step costs."""
        if self.rest:
            self.rest -= 1
            return self._wanted
        share = self._next
        # Written out: on the path of every step.
        if [None if (p := held()) is None else p.requires_grad for held in self._held[share]] != self._flags[share]:
            # Weights may have been replaced, or added beside frozen ones (adapters).
            before, steps = self._wanted, len(self._held) * (REST + 1 if self._same >= STEADY else 1)
            self.refresh()
            if self._wanted != before:
                self._same = 0
                if steps > 1:
                    self._note(
                        "which parameters want a gradient has changed in the run: of a single one that is seen up to "
                        f"{steps} steps late, and these have the FLOPs of before"
                    )
            share = 0
        elif self._same < STEADY:
            self._same += 1
        else:
            self.rest = REST
        self._next = share + 1 if share + 1 < len(self._held) else 0
        return self._wanted

    def skip(self, most: int) -> int:
        """Leave out asking what is `wanted` for the next steps, `most` at most and as many as need not: how many."""
        steps = min(most, self.rest)
        self.rest -= steps
        return steps

    def are_trained_by(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether `optimizer` steps any of them."""
        self.refresh()
        own = {id(held()) for share in self._held for held in share}
        return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])


def _flags(share: tuple[weakref.ref[nn.Parameter], ...]) -> list[bool | None]:
    """Which of them want a gradient, None for one that is gone."""
    return [None if (parameter := held()) is None else parameter.requires_grad for held in share]
