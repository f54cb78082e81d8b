"""The mask algebra of attention: how many (query, key) pairs a mask lets through, and what they cost.

All closed forms are exact for every length, and tested against a materialised boolean mask.
"""

from collections.abc import Iterable
from typing import Literal

from mfu_sdk.counting.formulas import Cost
from mfu_sdk.errors import FormulaError

Alignment = Literal["top_left", "bottom_right"]
"""Where a causal mask's diagonal lies when there are more keys than queries: PyTorch's SDPA aligns the first query
with the first key (`top_left`), flash-attention from 2.1 on the last with the last (`bottom_right`)."""


def pairs(
    q_len: int,
    k_len: int,
    *,
    causal: Alignment | None = None,
    window: tuple[int | None, int | None] = (None, None),
    align: Alignment = "top_left",
) -> int:
    """The number of (query, key) pairs that a band lets through, of q_len × k_len.

    Query i sits on key i + shift, shift = k_len − q_len for `bottom_right` and 0 for `top_left`; `window` = (left,
    right) lets it see `left` keys before and `right` keys after that one, None meaning all. `causal` gives the
    alignment and closes the right side; a window without `causal` takes `align`. Raises `FormulaError` for negative
    lengths.
    """
    if q_len < 0 or k_len < 0:
        raise FormulaError(f"attention over {q_len} queries and {k_len} keys: lengths must not be negative")
    left, right = window
    if causal is not None:
        align = causal
        right = 0 if right is None else min(right, 0)
    shift = k_len - q_len if align == "bottom_right" else 0
    # Query i sees the keys in [i + shift − left, i + shift + right], cut to [0, k_len).
    until = q_len * k_len if right is None else _clipped_sum(shift + right + 1, q_len, k_len)
    before = 0 if left is None else _clipped_sum(shift - left, q_len, k_len)
    return max(0, until - before)


def packed(
    lengths: Iterable[tuple[int, int]],
    *,
    causal: Alignment | None = None,
    window: tuple[int | None, int | None] = (None, None),
    align: Alignment = "top_left",
) -> int:
    """The pairs of sequences of (queries, keys) that do not see each other, each banded as in `pairs`.

    Documents packed into one row are (n, n) each; a step of decoding over caches, paged or not, is (new tokens, filled
    length of the cache, these tokens included) with `bottom_right`.
    """
    return sum(pairs(q_len, k_len, causal=causal, window=window, align=align) for q_len, k_len in lengths)


def chunked(q_len: int, k_len: int, chunk: int, *, align: Alignment = "top_left") -> int:
    """The pairs of causal attention within chunks: position p sees the keys from chunk·⌊p / chunk⌋ to p.

    Positions count from the first key; query i has position i, or i + k_len − q_len for `bottom_right`, and none below
    zero sees anything. Raises `FormulaError` for negative lengths and a chunk below one. Source: Llama 4's
    `attention_chunk_size`.
    """
    _not_negative(q_len, k_len)
    if chunk < 1:
        raise FormulaError(f"attention in chunks of {chunk}: a chunk must hold a position; give 1 or more")
    first = k_len - q_len if align == "bottom_right" else 0
    start, end = max(first, 0), first + q_len
    seen = _sawtooth(min(end, k_len), chunk) - _sawtooth(min(start, k_len), chunk)
    # Positions past the last key still see what there is of the last chunk.
    past = max(0, min(end, -(-k_len // chunk) * chunk) - max(start, k_len))
    return seen + past * (k_len % chunk)


def prefix(q_len: int, k_len: int, prefix_len: int, *, align: Alignment = "top_left") -> int:
    """The pairs of a prefix language model: every query sees the first `prefix_len` keys, and its past.

    Positions are as in `chunked`. Raises `FormulaError` for negative lengths.
    """
    _not_negative(q_len, k_len, prefix_len)
    open_to_all = min(prefix_len, k_len)
    first = k_len - q_len if align == "bottom_right" else 0
    past = pairs(q_len, k_len, causal=align)
    # Of the prefix's columns, what the causal triangle has already.
    return past + q_len * open_to_all - _clipped_sum(first + 1, q_len, open_to_all)


def blocks(q_len: int, k_len: int, q_block: int, k_block: int, rows: Iterable[tuple[int, int, int]]) -> int:
    """The pairs inside whole blocks of a blocked mask; the blocks at both ends may be ragged.

    `rows` gives (row of blocks, how many blocks of it, how many of these lie at the keys' end), summed over batch and
    heads or not. Raises `FormulaError` for negative lengths.
    """
    _not_negative(q_len, k_len)
    # By so much the last block is longer than what keys are left for it.
    missing = -k_len % k_block
    total = 0
    for row, count, at_end in rows:
        height = max(0, min(q_block, q_len - row * q_block))
        total += height * (count * k_block - at_end * missing)
    return total


def _not_negative(*lengths: int) -> None:
    if min(lengths) < 0:
        raise FormulaError(f"attention over lengths {lengths}: must not be negative; correct them")


def _sawtooth(count: int, period: int) -> int:
    """Σ over p in [0, count) of p mod period + 1."""
    whole, rest = divmod(count, period)
    return whole * (period * (period + 1) // 2) + rest * (rest + 1) // 2


def _clipped_sum(first: int, count: int, limit: int) -> int:
    """Σ over i in [0, count) of first + i, clipped to [0, limit]."""
    # The first index whose term is positive, and the first whose term has reached the limit.
    rising = min(max(-first, 0), count)
    flat = min(max(limit - first, rising), count)
    terms = flat - rising
    return terms * first + (rising + flat - 1) * terms // 2 + (count - flat) * limit


def scores_flops(score_pairs: int, qk_dim: int, v_dim: int) -> int:
    """FLOPs of attention forward over `score_pairs`, already summed over batch and query heads.

    A pair costs one dot product of the query's and key's size and one multiply-add for each element of the value,
    which may differ (multi-head latent attention). Softmax is free. Grouped-query attention shares keys, not pairs.
    """
    return 2 * score_pairs * (qk_dim + v_dim)


def forward(exact: int, full: int, executed: int, qk_dim: int, v_dim: int) -> Cost:
    """The cost of fused attention forward over pairs: those let through, all, and those the kernel computes."""
    return Cost(
        dense=0,
        hardware=scores_flops(executed, qk_dim, v_dim),
        exact=scores_flops(exact, qk_dim, v_dim),
        full=scores_flops(full, qk_dim, v_dim),
    )


def backward(exact: int, full: int, executed: int, qk_dim: int, v_dim: int) -> Cost:
    """The cost of fused attention backward: 2 × forward for the model; five products a pair for the hardware.

    The model needs dQ, dK (the query's size) and dP, dV (the value's). A fused kernel kept no scores, so it makes
    them again: one more product of the query's size. Source: FlashAttention-2 (arXiv 2307.08691), algorithm 2.
    """
    return Cost(
        dense=0,
        hardware=2 * executed * (3 * qk_dim + 2 * v_dim),
        exact=2 * scores_flops(exact, qk_dim, v_dim),
        full=2 * scores_flops(full, qk_dim, v_dim),
    )
