"""How many bytes an operator reads and writes, and how many a rank hands to a collective."""

import math
from collections.abc import Iterable
from typing import Final

import torch

from mfu_sdk.counting.call import Call, tensors

# These read as much of their source as they put out, not all of it.
LOOKUPS: Final = frozenset({"aten::embedding", "aten::index", "aten::index_select", "aten::gather", "aten::take"})
# The in-place forms of these overwrite `self` without reading it.
OVERWRITES: Final = frozenset(
    f"aten::{name}_" for name in ("copy", "fill", "zero", "uniform", "normal", "bernoulli", "random", "exponential")
)

# Memory that is only set aside, and a view that its schema does not call one.
NOTHING_MOVES: Final = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided")
) | {"aten::_unsafe_view"}

_GROUPED: Final = frozenset({"aten::_grouped_mm", "aten::_scaled_grouped_mm"})
_COMPRESSED: Final = frozenset({torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc})

COLLECTIVES: Final = frozenset({"c10d", "_c10d_functional", "_c10d_functional_autograd"})


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes that going once over `tensor` touches: broadcast dimensions once, and never more than its storage.

    A sparse tensor is its values and their indices; any other layout without strides is zero.
    """
    if tensor.layout in _COMPRESSED:
        indices = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
        along, across = (
            (tensor.crow_indices(), tensor.col_indices()) if indices else (tensor.ccol_indices(), tensor.row_indices())
        )
        return sum(map(tensor_bytes, (tensor.values(), along, across)))
    if tensor.layout is torch.sparse_coo:
        return tensor_bytes(tensor._values()) + tensor_bytes(tensor._indices())
    if tensor.layout is not torch.strided:
        return 0
    if tensor.is_nested:
        return tensor.numel() * tensor.element_size()
    elements = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not size)
    return min(elements * tensor.element_size(), tensor.untyped_storage().nbytes())


def moved_bytes(call: Call) -> int:
    """Bytes read plus bytes written by an operator that is no view: its tensor inputs, and its outputs."""
    name = call.func._schema.name
    if name in NOTHING_MOVES:
        return 0
    written = _sum(tensors(call.result))
    inputs = list(call.inputs())
    if name in OVERWRITES:
        inputs = inputs[1:]
    if name in LOOKUPS and inputs:
        source, *indices = inputs
        return min(tensor_bytes(source), written) + _sum(indices) + written
    if name in _GROUPED and len(inputs) > 1 and inputs[0].dim() == 2 and inputs[1].dim() == 3:
        # Of the experts' weights those that some row has chosen: no more than there are rows.
        experts, rows = inputs[1].shape[0], inputs[0].shape[0]
        idle = tensor_bytes(inputs[1]) * max(0, experts - rows) // max(1, experts)
        return _sum(inputs) - idle + written
    return _sum(inputs) + written


def weight_bytes(call: Call) -> int:
    """Bytes of `moved_bytes` that do not grow with the batch: weights, kernels and biases, by their names in schemas.

    The right-hand side of a product of matrices is one; that of a batch of products, as in attention, is not.
    """
    if call.func._schema.name in LOOKUPS or call.func._schema.name in NOTHING_MOVES:
        return 0
    fixed = [call.get(name) for name in ("weight", "bias")]
    if (right := call.get("mat2")) is not None and isinstance(right, torch.Tensor) and right.dim() == 2:
        # What addmm adds is called self; where it has a row for each of the product's it is no bias.
        added = call.get("self") if call.get("mat1") is not None else None
        fixed += [right, added if isinstance(added, torch.Tensor) and added.dim() < 2 else None]
    return _sum(each for each in fixed if isinstance(each, torch.Tensor))


def handed_bytes(call: Call) -> tuple[str, int] | None:
    """(collective, bytes that this rank put into it), or None for an operator that sends nothing.

    The name is that of `torch.distributed` without underscores at its ends: "allreduce", "all_gather_into_tensor".
    A receive and a wait hand over nothing.
    """
    namespace, _, name = call.func._schema.name.partition("::")
    if namespace not in COLLECTIVES or name.startswith(
        ("wait_tensor", "_wrap_tensor", "recv", "barrier", "monitored_barrier")
    ):
        return None
    sent = 0
    for argument in call.func._schema.arguments:
        if not argument.name.startswith("output") and argument.name != "out":
            sent += _sum(tensors(call[argument.name]))
    return name.strip("_"), sent


def touches_floats(call: Call) -> bool:
    """Whether any tensor that goes in or out holds floating-point or complex numbers."""
    return any(t.is_floating_point() or t.is_complex() for t in (*call.inputs(), *tensors(call.result)))


def _sum(many: Iterable[torch.Tensor]) -> int:
    return sum(tensor_bytes(tensor) for tensor in many)
