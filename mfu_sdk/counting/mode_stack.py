"""Puts a dispatch mode beneath every other mode of this thread, and takes it out from wherever it lies.

A `with` statement exits the mode on top, whichever that is: a mode that is entered in one hook and left in another must
not be in the way of the user's own. Beneath all others it never is, and it sees what really runs. Only the stack is
touched, not the flags that `TorchDispatchMode.__enter__` saves and restores: out of order, those would stay set, and
`torch.compile` would stay off for good.
"""

from torch._C import _len_torch_dispatch_stack, _pop_torch_dispatch_stack, _push_on_torch_dispatch_stack
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode,
    _get_current_dispatch_mode_stack,
)


def holds(mode: TorchDispatchMode) -> bool:
    """Whether `mode` is on this thread's stack."""
    above = _lift(mode)
    found = _get_current_dispatch_mode() is mode
    _restore(above)
    return found


def modes() -> list[TorchDispatchMode]:
    """The modes on this thread's stack, the one beneath all others first."""
    if not _len_torch_dispatch_stack():
        return []
    found: list[TorchDispatchMode] = _get_current_dispatch_mode_stack()
    return found


def push(mode: TorchDispatchMode) -> None:
    """Put `mode` on top, for the length of a call that should see it again."""
    _push_on_torch_dispatch_stack(mode)


def pop() -> None:
    """Undo `push`."""
    _pop_torch_dispatch_stack(None)


def insert(mode: TorchDispatchMode) -> None:
    """Put `mode` beneath every other mode of the user's; torch's own (fake tensors, tracing) lie deeper still."""
    above = _lift(None)
    _push_on_torch_dispatch_stack(mode)
    _restore(above)


def remove(mode: TorchDispatchMode) -> bool:
    """Take `mode` out; False where this thread's stack does not hold it."""
    above = _lift(mode)
    found = _get_current_dispatch_mode() is mode
    if found:
        _pop_torch_dispatch_stack(None)
    _restore(above)
    return found


def _lift(down_to: TorchDispatchMode | None) -> list[TorchDispatchMode]:
    """Take off the users' modes that lie above `down_to`, top first."""
    lifted = []
    while _len_torch_dispatch_stack():
        top = _get_current_dispatch_mode()
        # torch's own modes have a slot each, beneath all others.
        if top is None or top is down_to or getattr(top, "_mode_key", None) is not None:
            break
        lifted.append(_pop_torch_dispatch_stack(None))
    return lifted


def _restore(lifted: list[TorchDispatchMode]) -> None:
    for mode in reversed(lifted):
        _push_on_torch_dispatch_stack(mode)
