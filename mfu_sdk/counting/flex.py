"""What flex attention costs: the pairs that its block mask lets through, read from the mask itself.

Whole blocks count by area, blocks that the mask cuts by evaluating its `mask_mod` on them. A `score_mod` may hide pairs
too, by making their scores minus infinity; that shows in no mask, so such pairs count.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from mfu_sdk.counting import attention
from mfu_sdk.counting.formulas import Cost
from mfu_sdk.counting.masks import Masks
from mfu_sdk.errors import FormulaError

NAMES: Final = frozenset({"flex_attention", "flex_attention_backward"})
"""The higher-order operators that `price_flex` prices."""

# Both block sizes of the mask that torch makes where none is given.
_NO_MASK: Final = 1 << 30
_AT_ONCE: Final = 1 << 22
_TILE: Final = 1 << 10


def price_flex(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], masks: Masks, *, fused: bool = False) -> Cost:
    """The cost of one call of a higher-order operator of `NAMES`, forward or backward.

    Query, key and value are (batch, heads, length, size), with fewer heads and another size where the model has them.
    The model needs the pairs that the mask lets through, twice as much backward. `fused` says that a compiled kernel
    runs, which computes the visited blocks whole; the eager operator computes all pairs. A mask of batch or heads 1 is
    the same for all of them. Raises `FormulaError` for a mask without data.
    """
    backward = name == "flex_attention_backward"
    # The graph of the mask, and what it captured, come after the block sizes and at the end of the arguments.
    block_mask = args[9] if backward else args[4]
    captured = args[-1] if len(args) > (13 if backward else 8) else kwargs.get("mask_mod_other_buffers", ())
    query, key, value = (tuple(tensor.shape) for tensor in args[:3])
    lengths = (query[-2], key[-2])
    full = query[0] * query[1] * query[-2] * key[-2]
    exact = visited = full
    if block_mask[-3:-1] != (_NO_MASK, _NO_MASK):
        at = next(i for i, item in enumerate(block_mask) if isinstance(item, Tensor))
        read = [item for item in (*block_mask[at : at + 4], *captured) if isinstance(item, Tensor)]
        if any(tensor.is_meta or type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in read):
            raise FormulaError("flex attention with a mask without data: its pairs are in it; count it on a device")
        whole = None if block_mask[at + 2] is None else block_mask[at + 2 : at + 4]
        blocks = _Blocks(block_mask[at : at + 2], whole, block_mask[-3:-1], block_mask[-1], tuple(captured), lengths)
        exact, visited = masks.remembered(read, (block_mask[-1], *lengths), lambda: _pairs(blocks))
        copies = query[0] * query[1] // max(block_mask[at].shape[0] * block_mask[at].shape[1], 1)
        exact, visited = exact * copies, visited * copies
    passed = attention.backward if backward else attention.forward
    return passed(exact, full, visited if fused else full, query[-1], value[-1])


@dataclass(frozen=True, slots=True)
class _Blocks:
    """A block mask: which blocks of each row the mask cuts and which are whole, as (how many, which columns)."""

    cut: tuple[Tensor, Tensor]
    whole: tuple[Tensor, Tensor] | None
    size: tuple[int, int]
    mask_mod: Callable[..., Tensor]
    captured: tuple[Any, ...]
    lengths: tuple[int, int]


def _pairs(mask: _Blocks) -> tuple[int, int]:
    """(pairs let through, pairs in visited blocks), over the mask's own batch and heads."""
    with _disable_current_modes(), torch.no_grad():
        area = 0 if mask.whole is None else _area(mask, *mask.whole)
        return area + _let_through(mask), area + _area(mask, *mask.cut)


def _visited(count: Tensor, columns: Tensor) -> Tensor:
    """Which entries of `columns` (batch, heads, rows, columns) are in use: the first `count` of each row."""
    return torch.arange(columns.shape[-1], device=columns.device) < count[..., None]


def _area(mask: _Blocks, count: Tensor, columns: Tensor) -> int:
    (q_len, k_len), (q_block, k_block) = mask.lengths, mask.size
    at_end = (columns == (k_len - 1) // k_block) & _visited(count, columns)
    rows = torch.stack((count.sum((0, 1), dtype=torch.int64), at_end.sum((0, 1, 3)))).tolist()
    return attention.blocks(
        q_len, k_len, q_block, k_block, ((row, *of_row) for row, of_row in enumerate(zip(*rows, strict=True)))
    )


def _let_through(mask: _Blocks) -> int:
    """The pairs that `mask_mod` lets through in the blocks that it cuts."""
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    (q_len, k_len), device = mask.lengths, mask.cut[0].device
    # A block may be as large as the whole: it is taken in tiles.
    tile = tuple(min(block, length, _TILE) for block, length in zip(mask.size, mask.lengths, strict=True))
    if 0 in tile:
        return 0
    batch, head, row, entry = _visited(*mask.cut).nonzero(as_tuple=True)
    column = mask.cut[1][batch, head, row, entry].long()
    first_q, first_k = torch.cartesian_prod(
        *(
            torch.arange(0, min(block, length), size, device=device)
            for block, length, size in zip(mask.size, mask.lengths, tile, strict=True)
        )
    ).unbind(1)
    within_q, within_k = (torch.arange(n, device=device) for n in tile)
    mod = _over_tiles(mask.mask_mod, len(mask.captured))
    seen, tiles, step = 0, len(batch) * len(first_q), max(1, _AT_ONCE // (tile[0] * tile[1]))
    for at in range(0, tiles, step):
        number = torch.arange(at, min(at + step, tiles), device=device)
        block, part = number // len(first_q), number % len(first_q)
        q, q_held = _positions(row[block], first_q[part], within_q, mask.size[0], q_len)
        k, k_held = _positions(column[block], first_k[part], within_k, mask.size[1], k_len)
        with TransformGetItemToIndex():
            shown = mod(batch[block], head[block], q, k, *mask.captured)
        seen += int((shown.bool() & q_held[:, :, None] & k_held[:, None, :]).count_nonzero())
    return seen


def _positions(block: Tensor, first: Tensor, within: Tensor, size: int, length: int) -> tuple[Tensor, Tensor]:
    """(tiles, positions) in the sequence, and which of them lie in both the block and the sequence."""
    offset = first[:, None] + within
    position = block[:, None] * size + offset
    # What lies past the end is not asked about there: what mask_mod looks up has no such entry.
    return position.clamp(max=length - 1), (position < length) & (offset < size)


def _over_tiles(mask_mod: Callable[..., Tensor], captured: int) -> Callable[..., Tensor]:
    """`mask_mod` of one pair, made to take (tiles), (tiles), (tiles, queries), (tiles, keys): as torch calls it."""
    others = (None,) * captured
    over_keys = torch.vmap(mask_mod, in_dims=(None, None, None, 0, *others))
    over_queries = torch.vmap(over_keys, in_dims=(None, None, 0, None, *others))
    return cast(Callable[..., Tensor], torch.vmap(over_queries, in_dims=(0, 0, 0, 0, *others)))
