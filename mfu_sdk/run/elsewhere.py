"""Calls of a watched model in other threads than its loop's: each is part of the step that is open when it begins."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

from mfu_sdk.counting.plan import leading_dimension, signature

if TYPE_CHECKING:
    from torch import nn

    from mfu_sdk.counting.dispatch import CountingMode

Call = tuple[Hashable, int]
"""A call's signature, and its leading dimension."""


class Elsewhere:
    """Sees the calls that the model's hooks report from other threads, and has `mode` count them while it is on."""

    def __init__(self, model: nn.Module, mode: CountingMode) -> None:
        self._model = model
        self._mode = mode
        self._local = threading.local()

    def begins(self, args: Any, kwargs: Mapping[str, Any], calls: list[Call] | None) -> None:
        """A call begins in this thread; the outermost is added to `calls`, those of the step that is open."""
        depth = getattr(self._local, "depth", 0)
        self._local.depth = depth + 1
        if depth:
            return
        if calls is not None:
            # A replica (`nn.DataParallel`) has its model's hooks, and is another module in every step.
            calls.append((signature(self._model, args, kwargs), leading_dimension(args, kwargs)))
        self._local.ends = self._mode.visit()

    def ends(self) -> None:
        """A call ends in this thread."""
        self._local.depth = max(0, getattr(self._local, "depth", 0) - 1)
        ends: Callable[[], None] | None = getattr(self._local, "ends", None)
        if not self._local.depth and ends is not None:
            self._local.ends = None
            ends()
