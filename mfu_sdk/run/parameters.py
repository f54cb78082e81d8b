"""The watched model's parameters: which of them want a gradient, which no call of the model shows."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


class Parameters:
    """The parameters of a model, or of none; weakly held, so that weights that are replaced are not kept alive."""

    __slots__ = ("_held", "_last", "_model")

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._last = 0
        self.refresh()

    def refresh(self) -> None:
        """Look again which parameters the model has: some may have been replaced, or added."""
        self._held = () if self._model is None else tuple(map(weakref.ref, self._model.parameters()))

    def wanted(self) -> int:
        """A hash of which parameters want a gradient: unfreezing a layer changes what a step costs."""
        found = hash(bytes([2 if (p := held()) is None else p.requires_grad for held in self._held]))
        if found != self._last:
            # Weights may have been replaced, or added beside frozen ones (adapters).
            self.refresh()
            found = hash(bytes([p.requires_grad for held in self._held if (p := held()) is not None]))
            self._last = found
        return found

    def are_trained_by(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether `optimizer` steps any of them."""
        self.refresh()
        own = {id(held()) for held in self._held}
        return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])
