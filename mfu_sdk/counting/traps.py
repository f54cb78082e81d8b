"""Where torch's FLOP formulas go astray, worked out from the arguments of one call."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from torch.utils import flop_counter

from mfu_sdk.counting.call import Call


def _complex_product(call: Call) -> int:
    if not call.out.is_complex():
        return 0
    # 2 FLOPs a multiply-add where it is 8.
    formula = flop_counter.flop_registry[call.func._overloadpacket]
    return -3 * int(formula(*call.args, **call.kwargs, out_val=call.result))


def _groups(call: Call) -> int:
    """What the weight's gradient is too much: torch takes the channels of all groups for each."""
    groups, (_, wants_weight, _) = call["groups"], call["output_mask"]
    if not wants_weight or groups == 1:
        return 0
    grad_out, x, weight = call.shape("grad_output"), call.shape("input"), call.shape("weight")
    pixels = x if call["transposed"] else grad_out
    right = 2 * pixels[0] * math.prod(pixels[2:]) * math.prod(weight)
    return right * (int(groups) - 1)


def _fifth(call: Call) -> int:
    """The scores that a fused backward makes again: queries by keys, once more."""
    batch, heads, rows, width = call.shape("query")
    columns = call.shape("key")[2]
    return 2 * batch * heads * rows * columns * width


def _fifth_packed(call: Call) -> int:
    """The same for (batch, length, heads, width), or for packed sequences."""
    _, heads, _, width = _by_length(call.shape("query"))
    return 2 * heads * width * sum(rows * columns for rows, columns in _lengths(call))


def _layout(call: Call, *, backward: bool = False) -> int:
    """(batch, length, heads, width) that was read as (batch, heads, length, width)."""
    formula = flop_counter.flop_registry[call.func._overloadpacket]
    said = int(formula(*call.args, **call.kwargs, out_val=call.result))
    _, heads, _, width = _by_length(call.shape("query"))
    values = call.shape("value")[-1]
    pairs = sum(rows * columns for rows, columns in _lengths(call))
    return said - 2 * heads * pairs * (3 * width + 2 * values if backward else width + values)


def _by_length(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """(batch, heads, length, width) of a shape (batch, length, heads, width) or packed (tokens, heads, width)."""
    batch = 1 if len(shape) == 3 else shape[0]
    return batch, shape[-2], shape[-3], shape[-1]


def _lengths(call: Call) -> Iterator[tuple[int, int]]:
    offsets = [call.get(f"cum_seq_{side}", call.get(f"cu_seqlens_{side}")) for side in "qk"]
    if offsets[0] is not None and not offsets[0].is_meta:
        yield from zip(*(each.diff().tolist() for each in offsets), strict=True)
        return
    query, key = call.shape("query"), call.shape("key")
    yield from [(query[-3], key[-3])] * (1 if len(query) == 3 else query[0])


Traps = dict[str, Callable[[Call], int]]
_DENSE: Final[Traps] = {"complex": _complex_product}
_FUSED_BACKWARD: Final[Traps] = {"fifth": _fifth}
_FORWARD: Final[Traps] = {"layout": _layout}
_BACKWARD: Final[Traps] = {"layout": lambda call: _layout(call, backward=True), "fifth": _fifth_packed}
TRAPS: Final[Mapping[str, Traps]] = {
    **{f"aten::{name}": _DENSE for name in ("mm", "bmm", "addmm", "baddbmm")},
    "aten::convolution_backward": {"groups": _groups},
    "aten::_scaled_dot_product_efficient_attention_backward": _FUSED_BACKWARD,
    "aten::_scaled_dot_product_flash_attention_backward": _FUSED_BACKWARD,
    "aten::_scaled_dot_product_cudnn_attention_backward": _FUSED_BACKWARD,
    "aten::_flash_attention_forward": _FORWARD,
    "aten::_efficient_attention_forward": _FORWARD,
    "aten::_flash_attention_backward": _BACKWARD,
    "aten::_efficient_attention_backward": _BACKWARD,
}
"""By operator and rule: FLOPs that a trap adds to torch's count of one call; negative where it leaves some out."""
