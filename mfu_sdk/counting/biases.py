"""Lets torch's causal biases (`torch.nn.attention.bias`) be made while counting.

Such a bias is a tensor of a class of its own, made the old way: torch makes an empty tensor, and then gives it its
class, which it refuses to where a dispatch mode has seen the tensor before. Ours step aside for that moment.
"""

import sys
import threading
from collections.abc import Callable
from typing import Any, Final

import torch

_MODULE: Final = "torch.nn.attention.bias"
_NAME: Final = "CausalBias"
_NEW: Final = "__new__"
_lock: Final = threading.Lock()
_asides: Final[list[Callable[[], Callable[[], None]]]] = []
_patched: Final[list[type]] = []


def watch(aside: Callable[[], Callable[[], None]]) -> None:
    """Call `aside` before a bias is made, and what it returns after it, until `unwatch`."""
    with _lock:
        _asides.append(aside)
        kind = getattr(sys.modules.get(_MODULE), _NAME, None)
        if not _patched and isinstance(kind, type) and _NEW not in kind.__dict__:
            setattr(kind, _NEW, staticmethod(_made))
            _patched.append(kind)


def unwatch(aside: Callable[[], Callable[[], None]]) -> None:
    """Undo `watch`."""
    with _lock:
        if aside in _asides:
            _asides.remove(aside)
        if not _asides:
            for kind in _patched:
                delattr(kind, _NEW)
            _patched.clear()


def _made(cls: type[torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
    back = [aside() for aside in tuple(_asides)]
    try:
        return torch.Tensor.__new__(cls, *args, **kwargs)
    finally:
        for each in reversed(back):
            each()
