"""What a price is, and what formulas ask about tensors."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

from mfu_sdk.counting import formulas
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.formulas import Cost
from mfu_sdk.counting.masks import Masks
from mfu_sdk.errors import FormulaError

DEFINITION: Final = "by definition"
"""The source of a formula that only says what the operator does."""


@dataclass(frozen=True, slots=True)
class Price:
    """A formula for an operator, and the operand whose dtype is the dtype of its arithmetic.

    `dense` says that the operator is a batched product, of which eager attention is made (`masks`). `words` is the
    formula for people and `source` where it comes from; both go into the reference page. `dtype` names the dtype of
    the arithmetic where it is no operand's, as where activations are quantised inside. `by_shapes` is False where the
    price hangs on what no shape shows, so that it must not be remembered for them. `nested` says that it is for nested
    tensors only: of others the operator is taken apart.
    """

    formula: Callable[[Call, Masks], Cost]
    operand: str
    dense: bool = False
    words: str = ""
    source: str = ""
    dtype: Callable[[Call], str] | None = None
    by_shapes: bool = True
    nested: bool = False


def plain(
    flops: Callable[[Call], int], operand: str, words: str, source: str = DEFINITION, *, dtype: str = ""
) -> Price:
    """A price that is all needed and all executed, from a function of the call."""
    return Price(
        lambda call, _: Cost.plain(flops(call)),
        operand,
        words=words,
        source=source,
        dtype=(lambda _: dtype) if dtype else None,
    )


def per_multiply_add(left: Any, right: Any = None) -> int:
    """FLOPs of one multiply-add of an element of `left` with one of `right`; what is no tensor is real."""
    return formulas.multiply_add(
        left_complex=isinstance(left, torch.Tensor) and left.is_complex(),
        right_complex=isinstance(right, torch.Tensor) and right.is_complex(),
    )


def sizes(call: Call, name: str) -> tuple[int, ...]:
    """The sizes of a tensor argument all of whose elements are there. Raises `FormulaError` for a sparse one."""
    tensor = call[name]
    if tensor.layout not in (torch.strided, torch._mkldnn):  # type: ignore[attr-defined]  # torch leaves it undeclared
        raise FormulaError(f"{name} of layout {tensor.layout}: must be dense; register a formula for this operator")
    return tuple(tensor.shape)


def batches(shape: tuple[int, ...]) -> int:
    """How many matrices there are in a stack of them."""
    return math.prod(shape[:-2])
