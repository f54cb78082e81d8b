"""How the fused attention operators' arguments become score pairs: layouts, alignments, packed lengths, masks.

The SDPA operators take (batch, heads, length, size); the flash and efficient kernels beneath them (batch, length,
heads, size), or (total length, heads, size) with cumulative lengths. Hardware pairs: kernels skip what `is_causal` or a
window hides, so they are charged the exact pairs (what a block on the diagonal computes beyond them is left out, being
the kernel's own affair); a tensor mask is applied after the product, so all pairs run.
"""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final

import torch

from mfu_sdk.counting import attention
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.formulas import Cost, product
from mfu_sdk.counting.masks import Masks
from mfu_sdk.errors import FormulaError

Pass = Callable[[int, int, int, int, int], Cost]
Formula = Callable[[Call, Masks], Cost]


def _masked(masks: Masks, mask: Any, full: int, exact: int) -> tuple[int, int]:
    """(exact, executed) pairs once a tensor mask, if there is one, has cut them; an unreadable mask cuts nothing."""
    if not isinstance(mask, torch.Tensor) or mask.numel() == 0:
        return exact, exact
    allowed = masks.allowed(mask)
    if allowed is None:
        return exact, full
    # The mask broadcasts evenly over the scores.
    return min(exact, full * allowed // mask.numel()), full


def _sdpa(passed: Pass, mask: str | None) -> Formula:
    """An operator with (batch, heads, length, size) operands; its causal mask is aligned top-left."""

    def formula(call: Call, masks: Masks) -> Cost:
        query, key, value = call.shape("query"), call.shape("key"), call.shape("value")
        heads = math.prod(query[:-2])
        full = heads * query[-2] * key[-2]
        causal: attention.Alignment | None = "top_left" if call["is_causal"] else None
        exact = heads * attention.pairs(query[-2], key[-2], causal=causal)
        exact, executed = _masked(masks, call[mask] if mask else None, full, exact)
        return passed(exact, full, executed, query[-1], value[-1])

    return formula


def _kernel(
    passed: Pass,
    *,
    cumulative: tuple[str, str],
    causal: Callable[[Call], attention.Alignment | None],
    heads_first: bool = False,
    mask: str | None = None,
) -> Formula:
    """A kernel whose sequences are dense, or packed with cumulative lengths."""

    def formula(call: Call, masks: Masks) -> Cost:
        query, key, value = call.shape("query"), call.shape("key"), call.shape("value")
        if call.get("block_table") is not None:
            raise FormulaError("attention over paged keys: their lengths are the server's; register a formula")
        if (call.get("window_size") or 0) > 0:
            raise FormulaError("efficient attention with a window: its edge is the kernel's own; register a formula")
        if call[cumulative[0]] is not None:
            heads = query[-2]
            lengths = list(zip(_lengths(call[cumulative[0]]), _lengths(call[cumulative[1]]), strict=True))
        else:
            heads = query[1] if heads_first else query[2]
            q_len, k_len = (query[2], key[2]) if heads_first else (query[1], key[1])
            lengths = [(q_len, k_len)] * query[0]
        if call.get("seqused_k") is not None:
            lengths = [(q, k) for (q, _), k in zip(lengths, _values(call["seqused_k"]), strict=True)]
        window = (_side(call.get("window_size_left")), _side(call.get("window_size_right")))
        full = heads * sum(q * k for q, k in lengths)
        exact = heads * sum(
            attention.pairs(q, k, causal=causal(call), window=window, align="bottom_right") for q, k in lengths
        )
        exact, executed = _masked(masks, call[mask] if mask else None, full, exact)
        return passed(exact, full, executed, query[-1], value[-1])

    return formula


def _side(size: int | None) -> int | None:
    # Both None and any negative number say "no limit".
    return None if size is None or size < 0 else size


def _values(lengths: torch.Tensor) -> list[int]:
    if lengths.is_meta or type(lengths) is not torch.Tensor:
        raise FormulaError("packed attention on tensors without data: the lengths are in them; count it on a device")
    return [int(n) for n in lengths.tolist()]


def _lengths(cumulative: torch.Tensor) -> list[int]:
    ends = _values(cumulative)
    return [end - start for start, end in pairwise(ends)]


def _flash_causal(call: Call) -> attention.Alignment | None:
    return "bottom_right" if call["is_causal"] else None


def _top_left_causal(call: Call) -> attention.Alignment | None:
    return "top_left" if call["is_causal"] else None


def _efficient_causal(call: Call) -> attention.Alignment | None:
    # CUTLASS: 0 no mask, 1 causal from the top left, 2 causal from the bottom right.
    kinds: dict[int, attention.Alignment | None] = {0: None, 1: "top_left", 2: "bottom_right"}
    return kinds[call["custom_mask_type"]]


def _attention_block(call: Call, masks: Masks, batch: int, length: int, width: int) -> tuple[Cost, int]:
    """The self-attention of the transformer fast paths: (its pairs' cost, the FLOPs of its four projections)."""
    mask = call["mask"]
    heads = call.get("num_heads") or call["num_head"]
    full = batch * heads * length * length
    exact = full
    if mask is not None:
        count = masks.allowed(mask)
        if count is not None:
            # Unlike everywhere else, True hides here.
            shown = mask.numel() - count if mask.dtype is torch.bool else count
            exact = full * shown // mask.numel()
    return attention.forward(exact, full, full, width // heads, width // heads), product(
        (batch, length, width), 4 * width
    )


def _multi_head(call: Call, masks: Masks) -> Cost:
    batch, length, width = call.shape("query")
    if call.shape("key")[1] != length:
        raise FormulaError("cross-attention in _native_multi_head_attention: only self-attention has this fast path")
    scores, projections = _attention_block(call, masks, batch, length, width)
    return scores + Cost.plain(projections)


def _encoder_layer(call: Call, masks: Masks) -> Cost:
    batch, length, width = call.shape("src")
    scores, projections = _attention_block(call, masks, batch, length, width)
    feed_forward = product((batch, length, call.shape("ffn_weight_1")[0]), 2 * width)
    return scores + Cost.plain(projections + feed_forward)


_FLASH: Final = ("cum_seq_q", "cum_seq_k")
_EFFICIENT: Final = ("cu_seqlens_q", "cu_seqlens_k")


def _formulas(passed: Pass) -> dict[str, Formula]:
    """The fused operators of one direction."""
    return {
        "_scaled_dot_product_flash_attention_for_cpu": _sdpa(passed, "attn_mask"),
        "_scaled_dot_product_flash_attention": _sdpa(passed, None),
        "_scaled_dot_product_efficient_attention": _sdpa(passed, "attn_bias"),
        "_scaled_dot_product_cudnn_attention": _sdpa(passed, "attn_bias"),
        "_scaled_dot_product_fused_attention_overrideable": _sdpa(passed, "attn_bias"),
        "_flash_attention_forward": _kernel(passed, cumulative=_FLASH, causal=_flash_causal),
        "_efficient_attention_forward": _kernel(passed, cumulative=_EFFICIENT, causal=_efficient_causal, mask="bias"),
        "_cudnn_attention_forward": _kernel(
            passed, cumulative=_FLASH, causal=_top_left_causal, heads_first=True, mask="attn_bias"
        ),
    }


FORMULAS: Final[Mapping[str, tuple[Formula, str]]] = {
    **{f"aten::{name}": (formula, "query") for name, formula in _formulas(attention.forward).items()},
    **{
        f"aten::{name.removesuffix('_forward')}_backward": (formula, "query")
        for name, formula in _formulas(attention.backward).items()
    },
    "aten::_native_multi_head_attention": (_multi_head, "query"),
    "aten::_transformer_encoder_layer_fwd": (_encoder_layer, "src"),
}
"""Formulas by qualified name, each with the operand whose dtype is the dtype of its arithmetic."""
