"""How the fused attention operators' arguments become score pairs: layouts, alignments, packed lengths, masks.

The SDPA operators take (batch, heads, length, size); the flash and efficient kernels beneath them (batch, length,
heads, size), or (total length, heads, size) with cumulative lengths. Hardware pairs: kernels skip what `is_causal` or a
window hides, so they are charged the exact pairs (what a block on the diagonal computes beyond them is left out, being
the kernel's own affair); a tensor mask is applied after the product, so all pairs run.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

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


def _sdpa(passed: Pass, mask: str | None, *, skips: bool = True) -> Formula:
    """An operator with (batch, heads, length, size) operands; its causal mask is aligned top-left.

    `skips` says that the kernel leaves out what its causal mask hides.
    """

    def formula(call: Call, masks: Masks) -> Cost:
        query, key, value = call.shape("query"), call.shape("key"), call.shape("value")
        heads = math.prod(query[:-2])
        full = heads * query[-2] * key[-2]
        causal: attention.Alignment | None = "top_left" if call["is_causal"] else None
        exact = heads * attention.pairs(query[-2], key[-2], causal=causal)
        exact, executed = _masked(masks, call[mask] if mask else None, full, exact)
        return passed(exact, full, executed if skips else full, query[-1], value[-1])

    return formula


def _kernel(
    passed: Pass,
    *,
    cumulative: tuple[str, str],
    causal: Callable[[Call], attention.Alignment | None],
    window: Callable[[Call], tuple[int | None, int | None]],
    heads_first: bool = False,
    mask: str | None = None,
) -> Formula:
    """A kernel whose sequences are dense, packed with cumulative lengths, or in a cache, paged or not."""

    def formula(call: Call, masks: Masks) -> Cost:
        query, key, value = call.shape("query"), call.shape("key"), call.shape("value")
        packed = call[cumulative[0]] is not None
        heads = query[-2] if packed else query[1 if heads_first else 2]
        along = 2 if heads_first else 1
        q_lengths = _lengths(call[cumulative[0]]) if packed else [query[along]] * query[0]
        # The keys that are filled, where a cache holds room for more; else all of them.
        filled = call.get("seqused_k", call.get("seqlen_k"))
        if filled is not None:
            k_lengths = _values(filled)
        elif call.get("block_table") is not None:
            raise FormulaError("attention over paged keys: how many are filled must be given; pass seqused_k")
        elif call[cumulative[1]] is not None:
            k_lengths = _lengths(call[cumulative[1]])
        else:
            k_lengths = [key[along]] * len(q_lengths)
        lengths = Counter(zip(q_lengths, k_lengths, strict=True))
        full = heads * sum(q * k * times for (q, k), times in lengths.items())
        band, align = window(call), causal(call)
        exact = heads * sum(
            times * attention.pairs(q, k, causal=align, window=band, align="bottom_right")
            for (q, k), times in lengths.items()
        )
        exact, executed = _masked(masks, call[mask] if mask else None, full, exact)
        return passed(exact, full, executed, query[-1], value[-1])

    return formula


def _flash_window(call: Call) -> tuple[int | None, int | None]:
    return _side(call.get("window_size_left")), _side(call.get("window_size_right"))


def _varlen_window(call: Call) -> tuple[int | None, int | None]:
    left, right = call["window_size"] or (None, None)
    return _side(left), _side(right)


def _efficient_window(call: Call) -> tuple[int | None, int | None]:
    """CUTLASS's window is how many keys a query sees, itself included; only causal masks have one.

    Source: torch's kernel_forward.h, which hides columns up to query + offset − window_size.
    """
    size = call.get("window_size") or 0
    if size <= 0:
        return None, None
    if call["custom_mask_type"] == 0:
        raise FormulaError(f"efficient attention with window_size {size} and no causal mask: the kernel has no such")
    return size - 1, None


def _no_window(_: Call) -> tuple[int | None, int | None]:
    return None, None


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


def _attention_block(call: Call, masks: Masks, lengths: Sequence[int], width: int) -> tuple[Cost, int]:
    """The self-attention of the transformer fast paths: (its pairs' cost, the FLOPs of its four projections)."""
    mask = call["mask"]
    heads = call.get("num_heads") or call["num_head"]
    full = heads * sum(length * length for length in lengths)
    exact = full
    if mask is not None:
        count = masks.allowed(mask)
        if count is not None:
            # Unlike everywhere else, True hides here.
            shown = mask.numel() - count if mask.dtype is torch.bool else count
            exact = full * shown // mask.numel()
    return attention.forward(exact, full, full, width // heads, width // heads), product(
        (sum(lengths), width), 4 * width
    )


def _lengths_of(source: torch.Tensor) -> list[int]:
    """The lengths of a batch of sequences: of a padded batch, or of a nested one, as an encoder makes of a padded."""
    if source.is_nested:
        return [sequence.shape[0] for sequence in source.unbind()]
    return [source.shape[1]] * source.shape[0]


def _triton(call: Call, _: Masks) -> Cost:
    query, value = call.shape("q"), call.shape("v")
    full = math.prod(query[:-1]) * call.shape("k")[-2]
    return attention.forward(full, full, full, query[-1], value[-1])


def _onnx(call: Call, masks: Masks) -> Cost:
    """Attention as ONNX's operator 23 defines it: (batch, heads, length, size), or (batch, length, heads · size)."""
    query, key, value = call.shape("Q"), call.shape("K"), call.shape("V")
    if len(query) == 3:
        heads, shared = call["q_num_heads"], call["kv_num_heads"]
        query = (query[0], heads, query[1], query[2] // heads)
        key, value = ((s[0], shared, s[1], s[2] // shared) for s in (key, value))
    past = 0 if call["past_key"] is None else call.shape("past_key")[-2]
    pairs = query[0] * query[1]
    full = pairs * query[-2] * (past + key[-2])
    exact = pairs * attention.pairs(query[-2], past + key[-2], causal="top_left" if call["is_causal"] else None)
    exact, _ = _masked(masks, call["attn_mask"], full, exact)
    cost = attention.forward(exact, full, full, query[-1], value[-1])
    if call["softcap"] == 0 and call["qk_matmul_output_mode"] == 0 and call["softmax_precision"] is None:
        # torch makes the scores again, for the operator returns them.
        cost += Cost(dense=0, hardware=2 * full * query[-1])
    return cost


def _multi_head(call: Call, masks: Masks) -> Cost:
    lengths = _lengths_of(call["query"])
    if _lengths_of(call["key"]) != lengths:
        raise FormulaError("cross-attention in _native_multi_head_attention: only self-attention has this fast path")
    scores, projections = _attention_block(call, masks, lengths, call["query"].size(-1))
    return scores + Cost.plain(projections)


def _encoder_layer(call: Call, masks: Masks) -> Cost:
    lengths, width = _lengths_of(call["src"]), call["src"].size(-1)
    scores, projections = _attention_block(call, masks, lengths, width)
    feed_forward = product((sum(lengths), call.shape("ffn_weight_1")[0]), 2 * width)
    return scores + Cost.plain(projections + feed_forward)


_MULTI_HEAD: Final = "8 · tokens · width² + 4 · pairs · size of a head"
_VASWANI: Final = "Attention Is All You Need (arXiv 1706.03762), section 3.2.2"
_FLASH: Final = ("cum_seq_q", "cum_seq_k")
_EFFICIENT: Final = ("cu_seqlens_q", "cu_seqlens_k")
_VARLEN: Final = ("cu_seq_q", "cu_seq_k")


def _operators(passed: Pass) -> dict[str, Formula]:
    """The fused operators of one direction, by the name of the forward."""
    flash = _kernel(passed, cumulative=_FLASH, causal=_flash_causal, window=_flash_window)
    return {
        "aten::_scaled_dot_product_flash_attention_for_cpu": _sdpa(passed, "attn_mask"),
        "aten::_scaled_dot_product_flash_attention": _sdpa(passed, None),
        "aten::_scaled_dot_product_efficient_attention": _sdpa(passed, "attn_bias"),
        "aten::_scaled_dot_product_cudnn_attention": _sdpa(passed, "attn_bias"),
        "aten::_scaled_dot_product_fused_attention_overrideable": _sdpa(passed, "attn_bias"),
        "aten::_flash_attention_forward": flash,
        "aten::_efficient_attention_forward": _kernel(
            passed, cumulative=_EFFICIENT, causal=_efficient_causal, window=_efficient_window, mask="bias"
        ),
        "aten::_cudnn_attention_forward": _kernel(
            passed,
            cumulative=_FLASH,
            causal=_top_left_causal,
            window=_no_window,
            heads_first=True,
            mask="attn_bias",
        ),
        "torch_attn::_varlen_attn": _kernel(passed, cumulative=_VARLEN, causal=_flash_causal, window=_varlen_window),
    }


_PAIRS: Final = (
    "2 · pairs · (size of a key + size of a value); pairs are those that mask, window and lengths let through"
)
_PAIRS_BACKWARD: Final = (
    "2 × the forward; the hardware makes the scores again: 2 · pairs · (3 · size of a key + 2 · size of a value)"
)
_PAPER: Final = "FlashAttention-2 (arXiv 2307.08691), algorithms 1 and 2"


class Entry(NamedTuple):
    """A formula, the operand whose dtype is the dtype of its arithmetic, and both for people: words and source."""

    formula: Formula
    operand: str
    words: str
    source: str


_FORWARD: Final = _operators(attention.forward)

FORMULAS: Final[Mapping[str, Entry]] = {
    **{name: Entry(formula, "query", _PAIRS, _PAPER) for name, formula in _FORWARD.items()},
    **{
        f"{name.removesuffix('_forward')}_backward": Entry(formula, "query", _PAIRS_BACKWARD, _PAPER)
        for name, formula in _operators(attention.backward).items()
    },
    # Forms of these that write to what they are given.
    **{
        name: Entry(_FORWARD[forward], "query", _PAIRS, _PAPER)
        for name, forward in {
            "aten::_flash_attention_forward_no_dropout_inplace": "aten::_flash_attention_forward",
            "torch_attn::_varlen_attn_out": "torch_attn::_varlen_attn",
        }.items()
    },
    "aten::_scaled_dot_product_attention_math_for_mps": Entry(
        _sdpa(attention.forward, "attn_mask", skips=False), "query", f"{_PAIRS}; all pairs run", _PAPER
    ),
    "aten::_triton_scaled_dot_attention": Entry(_triton, "q", f"{_PAIRS}; it has no mask", _PAPER),
    "aten::_triton_multi_head_attention": Entry(_multi_head, "query", _MULTI_HEAD, _VASWANI),
    "aten::_native_multi_head_attention": Entry(_multi_head, "query", _MULTI_HEAD, _VASWANI),
    "aten::_transformer_encoder_layer_fwd": Entry(
        _encoder_layer, "src", f"{_MULTI_HEAD} + 4 · tokens · width · feed-forward width", _VASWANI
    ),
    "onnx::Attention": Entry(_onnx, "Q", f"{_PAIRS}; the hardware makes the scores twice", "ONNX Attention-23"),
}
"""Formulas by qualified name."""
