"""What recurrences over a matrix state cost: token by token, as their papers write them, and in chunks.

A state of d_k × d_v a head is decayed (elementwise, free), loses or gains matrices of rank one, and is read out:

- linear: S ← decay·S + k vᵀ, o = Sᵀ q: an outer product and a read-out, 2 products.
- delta: S ← decay·S, S ← S + k (β (v − Sᵀ k))ᵀ, o = Sᵀ q: one read-out more, 3 products.
- low rank: S ← decay·S + b (Sᵀ a)ᵀ + k vᵀ, o = Sᵀ q: 4 products.

Each product is d_k·d_v multiply-adds a token and head: an outer product counts like any product with an inner size of
one. This is what the model needs, whatever the chunk. In chunks of c tokens a kernel runs products of c × c instead of
rank-one updates: that is the hardware's count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mfu_sdk.counting.formulas import Cost

Kind = Literal["linear", "delta", "low_rank"]

_PRODUCTS = {"linear": 2, "delta": 3, "low_rank": 4}


def recurrence(kind: Kind, head_tokens: int, k_dim: int, v_dim: int) -> int:
    """FLOPs of a recurrence over `head_tokens` (tokens × heads)."""
    return 2 * _PRODUCTS[kind] * head_tokens * k_dim * v_dim


@dataclass(frozen=True, slots=True)
class Chunks:
    """Sequences cut into chunks: their tokens, and the sum of the chunks' squared lengths."""

    tokens: int
    squares: int

    @classmethod
    def cut(cls, lengths: Sequence[int], size: int) -> "Chunks":
        """`lengths` in chunks of `size`, the last of each as long as what is left."""
        return cls(sum(lengths), sum(length // size * size**2 + (length % size) ** 2 for length in lengths))


def chunked(kind: Kind, chunks: Chunks, heads: int, k_dim: int, v_dim: int) -> tuple[int, int]:
    """FLOPs that a chunked kernel runs: (forward, what the backward makes again of it).

    linear, a chunk of c tokens: scores Q Kᵀ (c²·d_k) and their product with V (c²·d_v), the read-out of the state
    before the chunk and the update after it (c·d_k·d_v each); the backward makes the states again. delta, besides:
    K Kᵀ (c²·d_k), the inverse of its triangle applied to K and V (c²·(d_k + d_v)), and what the state holds for the
    keys already (c·d_k·d_v); the backward makes these and the states again. The inverse itself is left out. Source:
    Yang et al., arXiv 2312.06635 section 4 and 2406.06484 section 3.
    """
    squares, states = chunks.squares * (k_dim + v_dim), chunks.tokens * k_dim * v_dim
    if kind == "linear":
        return 2 * heads * (squares + 2 * states), 2 * heads * states
    if kind == "delta":
        return (
            2 * heads * (2 * squares + chunks.squares * k_dim + 3 * states),
            2 * heads * (squares + 2 * states),
        )
    flops = recurrence(kind, heads * chunks.tokens, k_dim, v_dim)
    return flops, 0


def passes(model: int, executed: int, again: int = 0) -> tuple[Cost, Cost]:
    """(forward, backward): the backward is twice the forward, and its kernels make `again` FLOPs of it once more."""
    return Cost(model, executed), Cost(2 * model, 2 * executed + again)
