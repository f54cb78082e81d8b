"""Flex attention costs the pairs of its mask, whatever its blocks: against masks drawn in full."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from mfu_sdk.counting.flex import price_flex
from mfu_sdk.counting.formulas import Cost
from mfu_sdk.counting.masks import Masks
from mfu_sdk.errors import FormulaError

B, H, KV, T, D, E = 2, 4, 2, 150, 16, 8
MaskMod = Callable[[Any, Any, Any, Any], Any]
DOCUMENTS = torch.arange(T) // 37
LENGTHS = torch.tensor([150, 40])


class Seen(TorchDispatchMode):
    """Keeps the arguments of every flex attention that runs under it."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, ...]] = []

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "_name", "") == "flex_attention":
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def no_warning_about_eager() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        yield


def seen(mask: BlockMask | None, q_len: int = T, k_len: int = T, **options: Any) -> tuple[Any, ...]:
    q, k, v = torch.randn(B, H, q_len, D), torch.randn(B, KV, k_len, D), torch.randn(B, KV, k_len, E)
    with Seen() as mode:
        flex_attention(q, k, v, block_mask=mask, enable_gqa=True, **options)
    (call,) = mode.calls
    return call


def priced(call: tuple[Any, ...], **options: Any) -> Cost:
    return price_flex("flex_attention", call, {}, Masks(), **options)


def causal(b: Any, h: Any, q: Any, k: Any) -> Any:
    return q >= k


def window(b: Any, h: Any, q: Any, k: Any) -> Any:
    return (q >= k) & (q - k < 20)


def prefix(b: Any, h: Any, q: Any, k: Any) -> Any:
    return (k < 33) | (q >= k)


def documents(b: Any, h: Any, q: Any, k: Any) -> Any:
    return (DOCUMENTS[q] == DOCUMENTS[k]) & (q >= k)


def padding(b: Any, h: Any, q: Any, k: Any) -> Any:
    return k < LENGTHS[b]


def by_head(b: Any, h: Any, q: Any, k: Any) -> Any:
    return q - k <= h * 7


def nothing(b: Any, h: Any, q: Any, k: Any) -> Any:
    return k < 0


def everything(b: Any, h: Any, q: Any, k: Any) -> Any:
    return q.new_ones((), dtype=torch.bool)


@pytest.mark.parametrize("mod", [causal, window, prefix, documents, padding, by_head, nothing, everything])
@pytest.mark.parametrize("block", [128, (16, 32)])
@pytest.mark.parametrize("spread", [True, False])
def test_the_mask_is_counted(mod: MaskMod, block: int | tuple[int, int], spread: bool) -> None:
    """As many pairs as the materialised mask has, with ragged blocks, a mask for each head or one for all."""
    own = spread or mod in (padding, by_head)
    sizes = (B, H) if own else (None, None)
    mask = create_block_mask(mod, *sizes, T, T, device="cpu", BLOCK_SIZE=block)  # type: ignore[arg-type]
    drawn = int(create_mask(mod, B, H, T, T, device="cpu").sum())
    cost = priced(seen(mask))
    assert (cost.exact, cost.full) == (2 * drawn * (D + E), 2 * B * H * T * T * (D + E))
    assert cost.hardware == cost.full


def test_queries_and_keys_of_their_own_length() -> None:
    """40 queries at the end of 150 keys."""

    def at_end(b: Any, h: Any, q: Any, k: Any) -> Any:
        return q + 110 >= k

    mask = create_block_mask(at_end, None, None, 40, T, device="cpu", BLOCK_SIZE=32)
    assert priced(seen(mask, q_len=40)).exact == 2 * B * H * (40 * 110 + 40 * 41 // 2) * (D + E)


def test_no_mask_is_dense() -> None:
    """Without a block mask all pairs count, and nothing is evaluated."""
    cost = priced(seen(None))
    assert cost.exact == cost.full == 2 * B * H * T * T * (D + E)


def test_a_compiled_kernel_runs_whole_blocks() -> None:
    """Causal over 150 in blocks of 64: rows of 64, 64 and 22 visit 1, 2 and 3 blocks, the last one ragged."""
    cost = priced(seen(create_block_mask(causal, None, None, T, T, device="cpu", BLOCK_SIZE=64)), fused=True)
    assert cost.hardware == 2 * B * H * (64 * 64 + 64 * 128 + 22 * 150) * (D + E)
    assert cost.exact == 2 * B * H * (T * (T + 1) // 2) * (D + E)


def test_backward_needs_twice_the_pairs() -> None:
    """The backward operator has its mask further along; its kernel makes the scores again."""
    q, k, v, score_mod, mask, *rest = seen(create_block_mask(causal, None, None, T, T, device="cpu"))
    args = (q, k, v, q, q, q, None, score_mod, score_mod, mask, *rest)
    cost = price_flex("flex_attention_backward", args, {}, Masks())
    assert cost.exact == 4 * B * H * (T * (T + 1) // 2) * (D + E)
    assert cost.hardware == 2 * B * H * T * T * (3 * D + 2 * E)


@pytest.mark.parametrize("block", [2048, 1100])
def test_a_mask_in_blocks_larger_than_a_tile(block: int) -> None:
    """Blocks of 2,048 and 1,100 queries and keys are looked at in parts, of which the last goes past the block."""
    mask = create_block_mask(causal, None, None, 1500, 1500, device="cpu", BLOCK_SIZE=block)
    q = torch.randn(1, 1, 1500, 4)
    with Seen() as mode:
        flex_attention(q, q, q, block_mask=mask)
    assert priced(mode.calls[0]).exact == 2 * (1500 * 1501 // 2) * 8


def test_a_mask_without_data_is_refused() -> None:
    """A block mask on meta tensors says nothing."""
    call = list(seen(create_block_mask(causal, None, None, T, T, device="cpu")))
    call[4] = tuple(item.to("meta") if isinstance(item, torch.Tensor) else item for item in call[4])
    with pytest.raises(FormulaError, match="without data"):
        priced(tuple(call))


def test_layers_share_one_evaluation() -> None:
    """The mask of a step is evaluated once, and again when what it looks up was written to."""
    asked = 0
    owner = DOCUMENTS.clone()

    def counted(b: Any, h: Any, q: Any, k: Any) -> Any:
        nonlocal asked
        asked += 1
        return owner[q] == owner[k]

    call = list(seen(create_block_mask(documents, None, None, T, T, device="cpu")))
    call[4], call[8] = (*call[4][:-1], lambda b, h, q, k, held: counted(b, h, q, k)), (owner,)
    masks = Masks()
    for _ in range(3):
        first = price_flex("flex_attention", call, {}, masks)
    assert asked == 1
    owner.zero_()
    assert price_flex("flex_attention", call, {}, masks).exact > first.exact


def test_evaluation_is_not_seen() -> None:
    """Neither modes nor the state of random numbers notice that the mask was evaluated."""
    call = seen(create_block_mask(documents, None, None, T, T, device="cpu"))
    state = torch.get_rng_state()

    class Counting(TorchDispatchMode):
        operators = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Counting.operators += 1
            return func(*args, **(kwargs or {}))

    with Counting():
        priced(call)
    assert Counting.operators == 0
    assert torch.equal(state, torch.get_rng_state())
