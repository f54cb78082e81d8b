"""The mask algebra, against masks drawn in full."""

from collections.abc import Callable
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


Align = Literal["top_left", "bottom_right"]
aligns = st.sampled_from(["top_left", "bottom_right"])


def shown(q_len: int, k_len: int, align: Align, sees: Callable[[int, int], bool]) -> int:
    """Pairs of any mask over (position of the query, key), one by one."""
    first = k_len - q_len if align == "bottom_right" else 0
    return sum(sees(first + q, k) for q in range(q_len) for k in range(k_len))


@given(lengths, lengths, st.integers(1, 35), aligns)
def test_pairs_within_chunks(q_len: int, k_len: int, chunk: int, align: Align) -> None:
    """Causal within a chunk, for ragged chunks, chunks longer than all, and queries before and past the keys."""
    drawn = shown(q_len, k_len, align, lambda p, k: k <= p and p // chunk == k // chunk)
    assert attention.chunked(q_len, k_len, chunk, align=align) == drawn


@given(lengths, lengths, lengths, aligns)
def test_pairs_of_a_prefix(q_len: int, k_len: int, prefix: int, align: Align) -> None:
    """The prefix is open to all, the rest causal; the prefix may be longer than the keys."""
    drawn = shown(q_len, k_len, align, lambda p, k: k <= p or k < prefix)
    assert attention.prefix(q_len, k_len, prefix, align=align) == drawn


@given(st.lists(st.integers(0, 9), max_size=5), sides, st.booleans())
def test_pairs_of_documents(documents: list[int], left: int | None, causal: bool) -> None:
    """Packed documents are the blocks on the diagonal of one mask over the whole row."""
    owner = [i for i, n in enumerate(documents) for _ in range(n)]
    drawn = sum(
        owner[q] == owner[k] and (not causal or k <= q) and (left is None or k >= q - left)
        for q in range(len(owner))
        for k in range(len(owner))
    )
    found = attention.packed(
        [(n, n) for n in documents], causal="top_left" if causal else None, window=(left, None), align="top_left"
    )
    assert found == drawn


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), max_size=5), sides)
def test_pairs_of_decoding_over_caches(sequences: list[tuple[int, int]], left: int | None) -> None:
    """The new tokens are the last of each cache, whatever else the pages hold."""
    drawn = 0
    for q_len, before in sequences:
        k_len = before + q_len
        drawn += sum(
            k <= before + q and (left is None or k >= before + q - left) for q in range(q_len) for k in range(k_len)
        )
    grown = [(q, before + q) for q, before in sequences]
    assert attention.packed(grown, causal="bottom_right", window=(left, None)) == drawn


@given(lengths, lengths, st.integers(1, 8), st.integers(1, 8), st.data())
def test_pairs_of_whole_blocks(q_len: int, k_len: int, q_block: int, k_block: int, data: st.DataObject) -> None:
    """Any choice of blocks, ragged at both ends, covers as many pairs as the mask that it draws."""
    grid = [(r, c) for r in range(-(-q_len // q_block)) for c in range(-(-k_len // k_block))]
    chosen = {block for block in grid if data.draw(st.booleans())}
    last = -(-k_len // k_block) - 1
    rows = [(r, sum(row == r for row, _ in chosen), int((r, last) in chosen)) for r in {row for row, _ in chosen}]
    drawn = sum((q // q_block, k // k_block) in chosen for q in range(q_len) for k in range(k_len))
    assert attention.blocks(q_len, k_len, q_block, k_block, rows) == drawn


def test_masks_by_hand() -> None:
    """Chunks of 4 over 6: 10 + 3; a prefix of 2 over 4: 2 + 2 + 3 + 4; one token on 7 cached keys sees 8."""
    assert attention.chunked(6, 6, 4) == 13
    assert attention.chunked(1, 6, 4, align="bottom_right") == 2
    assert attention.prefix(4, 4, 2) == 11
    assert attention.packed([(1, 8), (1, 3)], causal="bottom_right") == 11
    assert attention.blocks(6, 6, 4, 4, [(0, 2, 1), (1, 1, 0)]) == 4 * 6 + 2 * 4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: attention.chunked(4, 4, 0), "chunks of 0"),
        (lambda: attention.chunked(-1, 4, 2), "must not be negative"),
        (lambda: attention.prefix(4, 4, -2), "must not be negative"),
        (lambda: attention.blocks(4, -4, 2, 2, []), "must not be negative"),
    ],
)
def test_masks_that_cannot_be(call: Callable[[], int], words: str) -> None:
    """Lengths below zero and chunks that hold nothing are refused."""
    with pytest.raises(FormulaError, match=words):
        call()


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
