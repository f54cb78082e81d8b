"""Products with sparse matrices: one multiply-add for every number stored and every number that it meets."""

import math
from collections.abc import Mapping
from typing import Final

import torch

from mfu_sdk.counting.call import Call
from mfu_sdk.counting.pricing.price import Price, per_multiply_add, plain

_LAYOUTS: Final = frozenset({torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc})
STORED: Final = "2·numbers stored·columns"


def is_sparse(tensor: object) -> bool:
    """Whether `tensor` stores only some of its elements."""
    return isinstance(tensor, torch.Tensor) and tensor.layout in _LAYOUTS


def stored(matrix: torch.Tensor) -> int:
    """How many numbers a sparse tensor stores, the zeros inside of stored blocks included."""
    values = matrix._values() if matrix.layout is torch.sparse_coo else matrix.values()
    return values.numel()


def multiply_adds(left: torch.Tensor, right: torch.Tensor) -> int:
    """Multiply-adds of left × right, at least one of them sparse; `right` may be a vector.

    Of two sparse matrices every number in column k of the one meets every number in row k of the other.
    """
    if not is_sparse(right):
        return stored(left) * (right.shape[-1] if right.dim() > 1 else 1)
    if not is_sparse(left):
        return stored(right) * left.shape[-2]
    inner = left.shape[1]
    columns, rows = _coordinates(left)[1], _coordinates(right)[0]
    return int((columns.bincount(minlength=inner) * rows.bincount(minlength=inner)).sum())


def _coordinates(matrix: torch.Tensor) -> torch.Tensor:
    indices: torch.Tensor = matrix.to_sparse_coo().coalesce().indices()
    return indices


def _by_stored(matrix: str, other: str) -> Price:
    """matrix × other, the matrix sparse."""
    return plain(
        lambda call: per_multiply_add(call[matrix], call[other]) * multiply_adds(call[matrix], call[other]),
        matrix,
        STORED,
    )


def _sampled(call: Call) -> int:
    return per_multiply_add(call["mat1"], call["mat2"]) * stored(call["self"]) * call.shape("mat1")[-1]


def _reduced(call: Call) -> int:
    return 2 * multiply_adds(call["self"], call["other"])


def _reduced_backward(call: Call) -> int:
    wanted: int = sum(call["output_mask"])
    gradient: torch.Tensor = call["grad_out"]
    if call["reduce"] in ("amax", "amin"):
        # Of each output element only the pair that won has a gradient.
        return 2 * wanted * gradient.numel()
    return 2 * wanted * multiply_adds(call["self"], gradient)


def _two_of_four(compressed: str, other: str) -> Price:
    """A matrix of which two in each four numbers are kept, in (rows, inner / 2)."""
    return plain(lambda call: 2 * math.prod(call.shape(compressed)) * call.shape(other)[-1], other, STORED)


PRICES: Final[Mapping[str, Price]] = {
    "aten::_sparse_addmm": _by_stored("mat1", "mat2"),
    "aten::hspmm": _by_stored("mat1", "mat2"),
    "aten::sspaddmm": _by_stored("mat1", "mat2"),
    "aten::_sparse_sparse_matmul": _by_stored("self", "other"),
    "aten::sparse_sampled_addmm": plain(_sampled, "mat1", "2·numbers stored·inner"),
    "aten::_sparse_mm_reduce_impl": plain(_reduced, "other", STORED),
    "aten::_sparse_mm_reduce_impl_backward": plain(
        _reduced_backward, "grad_out", f"{STORED} a gradient; for a maximum or minimum 2 an output element"
    ),
    "aten::_sparse_semi_structured_mm": _two_of_four("mat1", "mat2"),
    "aten::_sparse_semi_structured_addmm": _two_of_four("mat1", "mat2"),
    "aten::_sparse_semi_structured_linear": plain(
        lambda call: 2 * math.prod(call.shape("input")[:-1]) * math.prod(call.shape("weight")), "input", STORED
    ),
    # What it has compressed holds where the numbers were, too; half of the inner size are numbers.
    "aten::_cslt_sparse_mm": plain(lambda call: call.out.numel() * call.shape("dense_B")[0], "dense_B", STORED),
}
