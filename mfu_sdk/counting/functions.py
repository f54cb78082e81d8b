"""Prices of work that the dispatcher does not see as one operator: Python functions and Triton kernels.

A library's fused kernel is often launched from an `autograd.Function` or a plain function through an extension of its
own, so that no operator of the dispatcher says what ran. The counting mode recognises such a function by its frame on
the Python stack when any operator, if only one that allocates, runs beneath it; its price then covers all that runs
beneath it. A Triton kernel that is launched from Python is seen at its launch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
