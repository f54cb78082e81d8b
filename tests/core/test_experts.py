"""What a GPU reads of experts that are shared out, by hand."""

import pytest

from mfu_sdk.intent.experts import GROUPED, Experts, on_one_gpu
from mfu_sdk.records import OpCost

# Eight experts in each of two layers, 1,600 parameters in all, of which a token takes two.
EXPERTS = Experts(params=1600, layers=2, number=8, top_k=2)
OTHER = OpCost("aten::mm", "bfloat16", 10, 5000, 3)


@pytest.mark.parametrize(("tokens", "share"), [(1, 0.25), (2, 0.5), (4, 1.0), (100, 1.0)])
def test_what_tokens_reach(tokens: int, share: float) -> None:
    """Two tokens of two experts each reach four of eight; none is reached twice before all are."""
    assert EXPERTS.read(tokens) == share


def test_many_tokens_read_all_of_fewer_experts() -> None:
    """A forward of 100 tokens moves 3,200 bytes of weights and 800 of the rest; on a quarter of them 800 and 800."""
    ops = [OpCost(GROUPED, "bfloat16", 1000, 2000, 2), OTHER]
    grouped, other = on_one_gpu(ops, EXPERTS, 4, 100, element_bytes=2, passes=1)
    assert (grouped.bytes_moved, grouped.flops, grouped.calls) == (800, 1000, 2)
    assert other is OTHER


def test_few_tokens_meet_at_their_experts() -> None:
    """One token reads two of eight experts, 800 bytes; among four GPUs each reads the two that it holds, as much.

    Among eight GPUs each holds and reads one: half as much.
    """
    ops = [OpCost(GROUPED, "bfloat16", 1000, 1000, 1)]
    assert on_one_gpu(ops, EXPERTS, 4, 1, element_bytes=2, passes=1)[0].bytes_moved == 1000
    assert on_one_gpu(ops, EXPERTS, 8, 1, element_bytes=2, passes=1)[0].bytes_moved == 600


def test_without_grouped_products_nothing_is_changed() -> None:
    """Experts that are counted as something else keep their bytes: more than they are, never less."""
    assert on_one_gpu([OTHER], EXPERTS, 4, 100, element_bytes=2, passes=1) == [OTHER]
