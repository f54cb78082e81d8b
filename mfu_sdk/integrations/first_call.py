"""Which of several modules a loop calls first: the outermost of a model's, whatever wraps it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from mfu_sdk.guard import shield
from mfu_sdk.run.hooks import Hook

if TYPE_CHECKING:
    from torch import nn

Call = Callable[["nn.Module", Any, Mapping[str, Any]], None]


def first_call(modules: Iterable[nn.Module], then: Call) -> Callable[[], None]:
    """Call `then`, once, when one of `modules` is called in this thread with gradients on: with it and its arguments.

    An evaluation may call a part of a model; training calls it all. Returns what calls it off.
    """
    import torch

    hooks = ExitStack()
    thread, process = threading.get_ident(), os.getpid()

    # torch leaves the keywords out where a hook is removed while it is on its way to it: it has come too late.
    def called(module: nn.Module, args: Any, kwargs: Mapping[str, Any] | None = None) -> None:
        if torch.compiler.is_compiling() or kwargs is None:
            return
        if not torch.is_grad_enabled() or threading.get_ident() != thread or os.getpid() != process:
            return
        with shield("seeing the model's first call"):
            hooks.close()
            then(module, args, kwargs)

    for module in dict.fromkeys(modules):
        hooks.callback(module.register_forward_pre_hook(Hook(called), with_kwargs=True).remove)
    return hooks.close
