"""Which models are watched in this process, so that each monitor counts its own and leaves the others' alone."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_lock = threading.Lock()
_models: dict[int, weakref.ref[nn.Module]] = {}
_times: Counter[int] = Counter()


def watch(model: nn.Module) -> Callable[[], None]:
    """Enter `model`, once more if it is entered already; returns what takes it out again, once."""
    key = id(model)
    with _lock:
        _models[key] = weakref.ref(model)
        _times[key] += 1
    entered = [True]

    def leave() -> None:
        with _lock:
            if entered and entered.pop():
                _times[key] -= 1
                if not _times[key]:
                    del _times[key], _models[key]

    return leave


def others_than(model: nn.Module | None) -> tuple[nn.Module, ...]:
    """The models watched now, but for `model` and those that lie within it."""
    with _lock:
        found = [watched for reference in _models.values() if (watched := reference()) is not None]
    own = set() if model is None else set(map(id, model.modules()))
    return tuple(watched for watched in found if id(watched) not in own)
