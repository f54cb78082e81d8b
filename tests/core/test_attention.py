"""The mask algebra, against masks drawn in full."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.counting import attention
from mfu_sdk.errors import FormulaError

lengths = st.integers(min_value=0, max_value=30)
sides = st.none() | st.integers(min_value=0, max_value=35)


def drawn(q_len: int, k_len: int, left: int | None, right: int | None, shift: int) -> int:
    """Pairs of a band, one by one."""
    return sum(
        (left is None or k >= q + shift - left) and (right is None or k <= q + shift + right)
        for q in range(q_len)
        for k in range(k_len)
    )


@given(lengths, lengths, sides, sides, st.sampled_from(["top_left", "bottom_right"]), st.booleans())
def test_pairs_of_any_band(
    q_len: int,
    k_len: int,
    left: int | None,
    right: int | None,
    align: Literal["top_left", "bottom_right"],
    causal: bool,
) -> None:
    """The closed form equals the drawn mask for every length, window and alignment."""
    shift = k_len - q_len if align == "bottom_right" else 0
    if causal:
        found = attention.pairs(q_len, k_len, causal=align, window=(left, right))
        assert found == drawn(q_len, k_len, left, 0, shift)
    else:
        found = attention.pairs(q_len, k_len, window=(left, right), align=align)
        assert found == drawn(q_len, k_len, left, right, shift)


def test_pairs_by_hand() -> None:
    """Causal over 4 is 10; one query at the end of 8 keys sees all of them; a window of 2 before over 5 is 12."""
    assert attention.pairs(4, 4, causal="top_left") == 10
    assert attention.pairs(1, 8, causal="bottom_right") == 8
    assert attention.pairs(1, 8, causal="top_left") == 1
    assert attention.pairs(5, 5, causal="top_left", window=(2, None)) == 1 + 2 + 3 + 3 + 3
    assert attention.pairs(3, 7) == 21


def test_pairs_of_a_long_context() -> None:
    """A million tokens take no longer than one: T(T+1)/2."""
    tokens = 2**20
    assert attention.pairs(tokens, tokens, causal="top_left") == tokens * (tokens + 1) // 2


def test_negative_lengths() -> None:
    """There is no such attention."""
    with pytest.raises(FormulaError, match="-1 queries"):
        attention.pairs(-1, 4)


def test_forward_and_backward_by_hand() -> None:
    """10 of 16 pairs, sizes 3 and 5: forward 2·10·8, backward twice that; hardware five products over what it ran."""
    cost = attention.forward(10, 16, 12, 3, 5)
    assert (cost.dense, cost.exact, cost.full, cost.hardware) == (0, 160, 256, 192)
    cost = attention.backward(10, 16, 12, 3, 5)
    assert (cost.exact, cost.full, cost.hardware) == (320, 512, 2 * 12 * (3 * 3 + 2 * 5))


@given(st.integers(1, 1000), st.integers(1, 256))
def test_fused_backward_is_two_and_a_half_forwards(pairs: int, size: int) -> None:
    """With one head size, five products to the forward's two."""
    forward, backward = (f(pairs, pairs, pairs, size, size) for f in (attention.forward, attention.backward))
    assert 2 * backward.hardware == 5 * forward.hardware
