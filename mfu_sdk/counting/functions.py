"""Prices of work that the dispatcher does not see as one operator: Python functions and Triton kernels.

A library's fused kernel is often launched from an `autograd.Function` or a plain function through an extension of its
own, so that no operator of the dispatcher says what ran. The counting mode recognises such a function by its frame on
the Python stack when any operator, if only one that allocates, runs beneath it; its price then covers all that runs
beneath it. A Triton kernel that is launched from Python is seen at its launch.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any, Final

from mfu_sdk.counting.formulas import Cost

Needs = tuple[bool, ...]
"""Which of a function's tensor arguments want a gradient, as `ctx.needs_input_grad` says."""


@dataclass(frozen=True, slots=True)
class FunctionCost:
    """What one call of a function costs: its forward, and, for an `autograd.Function`, its backward by what it needs.

    `backward` is kept until the backward runs, so it must hold numbers only, never tensors. None leaves the backward to
    the operators that it runs. `Needs` is in the order of the forward's arguments, `ctx` left out.
    """

    forward: Cost
    backward: Callable[[Needs], Cost] | None = None


@dataclass(frozen=True, slots=True)
class FunctionPrice:
    """A formula for a function, by its arguments' names, `ctx` left out; defaults are filled in.

    `operand` names the argument whose dtype is the dtype of the arithmetic. `words` and `source` are for the
    reference page.
    """

    formula: Callable[[Mapping[str, Any]], FunctionCost]
    operand: str
    words: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class KernelPrice:
    """A formula for a Triton kernel, by the names of its parameters: tensors, scalars and constexprs alike."""

    formula: Callable[[Mapping[str, Any]], Cost]
    operand: str
    words: str = ""
    source: str = ""


_users: Final[dict[CodeType, tuple[str, FunctionPrice]]] = {}
_users_kernels: Final[dict[str, KernelPrice]] = {}
_changes = 0


def register(code: CodeType, name: str, price: FunctionPrice) -> None:
    """Price every call that runs `code`, before any price of ours; registering again replaces."""
    global _changes
    _users[code] = name, price
    _changes += 1


def version() -> int:
    """Rises with every registration, so that what was looked up before can be looked up again."""
    return _changes


def may_run() -> bool:
    """Whether any priced function can run in this process: one of the user's, or of a library that is loaded."""
    # Not a set against all that is loaded, which would be gone through: some thousands of modules.
    return bool(_users) or any(library in sys.modules for library in _libraries())


def of_code(code: CodeType, module: str) -> tuple[str, FunctionPrice] | None:
    """The name and price of the function whose code this is, `module` being the module that defines it."""
    if code in _users:
        return _users[code]
    name = f"{module}:{code.co_qualname}"
    price = _ours().get(name)
    return None if price is None else (name, price)


def register_kernel(name: str, price: KernelPrice) -> None:
    """Price every launch of the Triton kernel "module:qualname", before any price of ours."""
    _users_kernels[name] = price


def of_kernel(name: str) -> KernelPrice | None:
    """The price of the Triton kernel "module:qualname"."""
    from mfu_sdk.counting import third_party

    return _users_kernels.get(name) or third_party.KERNELS.get(name)


def arguments(frame: FrameType) -> dict[str, Any]:
    """What the call that `frame` runs has in hand: its arguments in order, then what it unpacked from them so far."""
    held = frame.f_locals
    first = {name: held[name] for name in parameters(frame.f_code) if name in held}
    return first | {name: value for name, value in held.items() if name not in first and name != "ctx"}


def parameters(code: CodeType) -> tuple[str, ...]:
    """The names of a function's parameters in order, `ctx` left out; *args and **kwargs by their own names."""
    number = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)
    return tuple(name for name in code.co_varnames[:number] if name != "ctx")


def _ours() -> Mapping[str, FunctionPrice]:
    # Late: the tables import formulas that import this module's types.
    from mfu_sdk.counting import third_party

    return third_party.FUNCTIONS


@lru_cache(maxsize=1)
def _libraries() -> frozenset[str]:
    return frozenset(name.partition(":")[0].partition(".")[0] for name in _ours())
