"""Finds the forward that the backward of an `autograd.Function` runs again, to differentiate it there and then.

So do functions that checkpoint in their own way (by offloading, in tiles): under `enable_grad` they call what they were
given, and then call the engine from inside of the engine. That gradients are on tells little by itself: with
`create_graph=True` they are on for every function's own gradient. What tells is the inner engine: what ran before it is
a forward, if it reaches a node of that while the same function still runs. Until then it stands as backward.
"""

import sys
import threading
from types import FrameType
from typing import Any, Final

import torch

from mfu_sdk.counting.tally import Line

_interpreters: Final = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]  # made in C++
_APPLY: Final = torch.autograd.function.BackwardCFunction.apply.__code__


class Rerun:
    """What one running backward has run with gradients on since its last inner backward, as it was entered."""

    __slots__ = ("entered", "key")

    def __init__(self, key: tuple[int, int]) -> None:
        self.entered: list[Line] = []
        self.key = key


class Reruns:
    """The operators that may prove to be reruns, by thread and by the number of their autograd nodes."""

    def __init__(self) -> None:
        self.by_node: dict[tuple[int, int], Rerun] = {}
        self._latest: dict[int, Rerun] = {}

    def clear(self) -> None:
        """Forget all."""
        self.by_node.clear()
        self._latest.clear()

    def may_be(self, node: Any, number: int) -> Rerun | None:
        """The operator that runs in the backward of `node`, with the latest node `number`: where to enter it too.

        None where it cannot be a rerun: `torch.func` takes its own gradients, or they are off, and were not on before
        in the same backward (a part of the forward may turn them off for itself, as an inner checkpoint does).
        """
        if _interpreters() is not None:
            return None
        thread = threading.get_ident()
        key = torch._C._current_graph_task_id(), id(node)
        found = self._latest.get(thread)
        if not torch.is_grad_enabled():
            return found if found is not None and found.key == key and found.entered else None
        if found is None or found.key != key:
            found = self._latest[thread] = Rerun(key)
        self.by_node[thread, number] = found
        return found

    def reached(self, number: int) -> Rerun | None:
        """The engine is at the node `number` of this thread: what that proves to have been a rerun."""
        found = self.by_node.pop((threading.get_ident(), number), None)
        return found if found is not None and found.entered and _runs(found.key[1]) else None


def _runs(node: int) -> bool:
    """Whether the backward of the function with this identity is on this thread's stack."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code is _APPLY and id(frame.f_locals["self"]) == node:
            return True
        frame = frame.f_back
    return False
