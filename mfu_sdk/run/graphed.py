"""Lets a watched module be made into a CUDA graph: `torch.cuda.make_graphed_callables` takes none that has hooks.

Before it returns the module, it calls it some times and captures it; that is no step, and needs none of our hooks. So
they are off while it runs, and on again when it is done. What others have hung there is as it was, for torch to refuse.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn

from mfu_sdk.run.hooks import Hook

_NAME: Final = "make_graphed_callables"
_OWNERS: Final = (torch.cuda, torch.cuda.graphs)
_lock: Final = threading.RLock()
_keepers: Final[list[object]] = []
_replaced: Final[list[tuple[Any, Any, Any]]] = []
"""Whose function was replaced, the function, and ours."""


def allow() -> Callable[[], None]:
    """Let watched modules be graphed until what this returns is called, which counts once."""
    keeper = object()
    with _lock:
        _keepers.append(keeper)
        if not _replaced:
            for owner in _OWNERS:
                original = getattr(owner, _NAME, None)
                if original is not None:
                    ours = _unhooking(original)
                    _replaced.append((owner, original, ours))
                    setattr(owner, _NAME, ours)

    def leave() -> None:
        with _lock:
            if keeper in _keepers:
                _keepers.remove(keeper)
            if not _keepers:
                _restore()

    return leave


def _restore() -> None:
    for owner, original, ours in _replaced:
        # Another's in our place is left there; ours beneath it does as torch's does where no hook is ours.
        if getattr(owner, _NAME) is ours:
            setattr(owner, _NAME, original)
    _replaced.clear()


def _unhooking(original: Callable[..., Any]) -> Callable[..., Any]:
    def make_graphed_callables(callables: Any, *args: Any, **kwargs: Any) -> Any:
        given = callables if isinstance(callables, tuple) else (callables,)
        with _unhooked(each for each in given if isinstance(each, nn.Module)):
            return original(callables, *args, **kwargs)

    return make_graphed_callables


@contextmanager
def _unhooked(modules: Iterable[nn.Module]) -> Iterator[None]:
    taken: list[tuple[dict[int, Any], dict[int, Hook]]] = []
    for module in modules:
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            ours = {key: hook for key, hook in hooks.items() if isinstance(hook, Hook)}
            for key in ours:
                del hooks[key]
            taken.append((hooks, ours))
    try:
        yield
    finally:
        for hooks, ours in taken:
            hooks.update(ours)
