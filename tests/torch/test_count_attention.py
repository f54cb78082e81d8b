"""Attention costs the same whatever computes it: fused, math or written out, with any mask."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

import mfu_sdk as mfu
from mfu_sdk.counting import attention
from mfu_sdk.records import Count

B, H, T, D = 2, 4, 8, 16
CAUSAL = T * (T + 1) // 2
TRIANGLE = torch.ones(T, T, dtype=torch.bool).tril()


def heads(
    dtype: torch.dtype = torch.float32, device: str = "cpu", kv_heads: int = H
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = (torch.randn(B, h, T, D, dtype=dtype, device=device, requires_grad=True) for h in (H, kv_heads, kv_heads))
    return q, k, v


def sdpa(backend: SDPBackend, device: str = "cpu", **options: object) -> Count:
    def run() -> None:
        with sdpa_kernel(backend):
            F.scaled_dot_product_attention(*heads(device=device), **options).sum().backward()  # type: ignore[arg-type]

    return mfu.count(run)


def model_side(count: Count) -> tuple[int, int, int, int]:
    assert count.uncounted == ()
    return count.forward_flops, count.backward_flops, count.attention_flops_exact, count.attention_flops_full


BY_HAND = (
    2 * B * H * CAUSAL * 2 * D,
    4 * B * H * CAUSAL * 2 * D,
    6 * B * H * CAUSAL * 2 * D,
    6 * B * H * T * T * 2 * D,
)
FULL_BY_HAND = (2 * B * H * T * T * 2 * D, 4 * B * H * T * T * 2 * D, *(6 * B * H * T * T * 2 * D,) * 2)


@pytest.mark.parametrize(
    ("backend", "device"),
    [(SDPBackend.FLASH_ATTENTION, "cpu"), (SDPBackend.MATH, "cpu"), (SDPBackend.MATH, "meta")],
)
def test_causal_by_hand(backend: SDPBackend, device: str) -> None:
    """T(T+1)/2 pairs a head; both products forward, four backward; the same on tensors without data."""
    assert model_side(sdpa(backend, device, is_causal=True)) == BY_HAND
    assert model_side(sdpa(backend, device)) == FULL_BY_HAND


def test_hardware_tells_the_backends_apart() -> None:
    """Math runs all pairs of 2 + 4 products; flash skips the masked ones but makes the scores again: 2 + 5."""
    pair = 2 * B * H * D
    assert sdpa(SDPBackend.MATH, is_causal=True).hardware_flops == 6 * pair * T * T
    assert sdpa(SDPBackend.FLASH_ATTENTION, is_causal=True).hardware_flops == 7 * pair * CAUSAL
    assert sdpa(SDPBackend.FLASH_ATTENTION, attn_mask=TRIANGLE).hardware_flops == 7 * pair * T * T


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
@pytest.mark.parametrize("bias", [False, True])
def test_a_tensor_mask_is_read(backend: SDPBackend, bias: bool) -> None:
    """A triangle given as booleans, or as a bias of minus infinity, costs what is_causal costs."""
    mask = torch.zeros(T, T).masked_fill(~TRIANGLE, float("-inf")) if bias else TRIANGLE
    assert model_side(sdpa(backend, attn_mask=mask)) == BY_HAND


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_a_padding_mask_is_spread_over_heads(backend: SDPBackend) -> None:
    """Keys hidden in one of two sequences: (B, 1, 1, T) lets 8 + 5 keys through for each query of each head."""
    mask = torch.ones(B, 1, 1, T, dtype=torch.bool)
    mask[1, ..., 5:] = False
    count = sdpa(backend, attn_mask=mask)
    assert count.forward_flops == 2 * H * T * (8 + 5) * 2 * D


def test_an_ordinary_bias_hides_nothing() -> None:
    """ALiBi's slopes are finite: every pair counts."""
    assert model_side(sdpa(SDPBackend.FLASH_ATTENTION, attn_mask=torch.randn(T, T))) == FULL_BY_HAND


def test_full_convention_prices_all_pairs() -> None:
    """Under `full` the model FLOPs take the masked pairs too, and both numbers still travel."""

    def run() -> None:
        F.scaled_dot_product_attention(*heads(), is_causal=True).sum().backward()

    count = mfu.count(run, convention="full")
    assert (count.forward_flops, count.backward_flops, count.attention_flops_exact, count.attention_flops_full) == (
        *FULL_BY_HAND[:2],
        *BY_HAND[2:],
    )


def test_the_conventions_convert() -> None:
    """full = exact − attention exact + attention full, on math attention beside a linear layer."""

    def run() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            q, k, v = heads()
            F.scaled_dot_product_attention(q @ torch.randn(D, D), k, v, is_causal=True).sum().backward()

    exact, full = mfu.count(run), mfu.count(run, convention="full")
    assert full.model_flops == exact.model_flops - exact.attention_flops_exact + exact.attention_flops_full
    assert full.attention_flops_full == exact.attention_flops_full


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_grouped_queries_share_keys_not_pairs(backend: SDPBackend) -> None:
    """Two key heads for four query heads cost what four would."""

    def run() -> None:
        with sdpa_kernel(backend):
            F.scaled_dot_product_attention(*heads(kv_heads=2), is_causal=True, enable_gqa=True)

    assert mfu.count(run).model_flops == BY_HAND[0]


def test_a_value_size_of_its_own() -> None:
    """Multi-head latent attention: keys of 16, values of 6, so 2·pairs·22."""
    q, k, v = torch.randn(B, H, T, 16), torch.randn(B, H, T, 16), torch.randn(B, H, T, 6)
    count = mfu.count(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    assert count.model_flops == 2 * B * H * CAUSAL * 22


Masking = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
EAGER: dict[str, Masking] = {
    "masked_fill": lambda s, m: s.masked_fill(m == 0, float("-inf")),
    "masked_fill_": lambda s, m: s.masked_fill_(~m, torch.finfo(s.dtype).min),
    "where": lambda s, m: torch.where(m, s, torch.finfo(s.dtype).min),
    "added": lambda s, m: s + torch.zeros_like(s[0, 0]).masked_fill(~m, torch.finfo(s.dtype).min),
}


@pytest.mark.parametrize("masking", EAGER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_written_out(masking: str, dtype: torch.dtype) -> None:
    """Scaled, masked, softmaxed in fp32, dropped out and multiplied by hand, it costs what fused attention costs."""

    def run() -> None:
        q, k, v = heads(dtype)
        scores = EAGER[masking](q @ k.transpose(-2, -1) / D**0.5, TRIANGLE)
        weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(dtype), 0.1)
        (weights @ v).sum().backward()

    assert model_side(mfu.count(run)) == BY_HAND


@pytest.mark.parametrize("overwritten", [False, True])
def test_two_masks_count_as_their_intersection(overwritten: bool) -> None:
    """Causal and padded in two steps: what both let through, and the tighter where one was written to since."""
    padding = torch.zeros(B, 1, 1, T)
    padding[1, ..., :3] = float("-inf")
    hidden = ~TRIANGLE

    def run() -> None:
        q, k, v = heads()
        scores = (q @ k.mT).masked_fill(hidden, float("-inf"))
        if overwritten:
            hidden.fill_(1)
        ((scores + padding).softmax(-1) @ v).sum()

    both = B * CAUSAL - sum(min(q + 1, 3) for q in range(T))
    assert mfu.count(run).model_flops == 4 * H * D * (B * CAUSAL if overwritten else both)


@pytest.mark.parametrize(("inference", "through_data"), [(False, False), (True, False), (False, True)])
def test_a_mask_overwritten_in_place_is_read_again(inference: bool, through_data: bool) -> None:
    """The same storage holds another mask for the second layer, whether torch numbers its versions or not."""

    def run() -> None:
        mask = torch.zeros(T, T)
        q, k, v = heads()
        for hidden in (~TRIANGLE, torch.zeros_like(TRIANGLE)):
            (mask.data if through_data else mask).zero_().masked_fill_(hidden, float("-inf"))
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    with torch.inference_mode(inference):
        count = mfu.count(run)
    assert count.model_flops == 4 * B * H * D * (CAUSAL + T * T)


def test_a_masked_product_without_softmax_is_no_attention() -> None:
    """Triangular masking of a product alone saves nothing that the model does not need."""
    a = torch.randn(3, T, T)
    count = mfu.count(lambda: torch.bmm(a, a).masked_fill(~TRIANGLE, float("-inf")).sum())
    assert (count.model_flops, count.attention_flops_full) == (2 * 3 * T**3, 0)


def flash_forward(**options: object) -> int:
    q = torch.empty(B, T, H, D, device="meta", dtype=torch.bfloat16)
    arguments = {"cum_seq_q": None, "cum_seq_k": None, "max_q": T, "max_k": T, "dropout_p": 0.0, "is_causal": False}
    count = mfu.count(
        lambda: torch.ops.aten._flash_attention_forward(q, q, q, **(arguments | options), return_debug_mask=False)
    )
    assert count.uncounted == ()
    return count.model_flops


def test_flash_kernel_takes_length_before_heads() -> None:
    """(batch, length, heads, size) is priced by length, whole, causal, and with a window of three before."""
    pair = 4 * B * H * D
    assert flash_forward() == pair * T * T
    assert flash_forward(is_causal=True) == pair * CAUSAL
    band = attention.pairs(T, T, window=(3, 0))
    assert flash_forward(window_size_left=3, window_size_right=0) == pair * band
    assert flash_forward(window_size_left=-1, window_size_right=-1) == pair * T * T


@pytest.mark.parametrize(("kind", "pairs"), [(0, T * T), (1, CAUSAL), (2, CAUSAL)])
def test_efficient_kernel_takes_length_before_heads(kind: int, pairs: int) -> None:
    """CUTLASS's mask types: none, causal from the top left, causal from the bottom right."""
    q = torch.empty(B, T, H, D, device="meta")
    count = mfu.count(lambda: torch.ops.aten._efficient_attention_forward(q, q, q, None, None, None, T, T, 0.0, kind))
    assert (count.model_flops, count.uncounted) == (4 * B * H * D * pairs, ())


CUDA_FORWARD = {
    "_scaled_dot_product_flash_attention": (0.0, True),
    "_scaled_dot_product_efficient_attention": (None, True, 0.0, True),
    "_scaled_dot_product_cudnn_attention": (None, True, 0.0, True),
    "_scaled_dot_product_fused_attention_overrideable": (None, 0.0, True),
}


@pytest.mark.parametrize("name", CUDA_FORWARD)
def test_cuda_operators_on_tensors_without_data(name: str) -> None:
    """The operators behind SDPA on a GPU cost the same causal pairs."""
    q = torch.empty(B, H, T, D, device="meta", dtype=torch.bfloat16)
    operator = getattr(torch.ops.aten, name)
    count = mfu.count(lambda: operator(q, q, q, *CUDA_FORWARD[name]))
    assert (count.model_flops, count.uncounted, count.by_dtype) == (BY_HAND[0], (), {"bfloat16": BY_HAND[0]})


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_any_mask_costs_its_pairs(q_len: int, k_len: int, data: st.DataObject) -> None:
    """For every boolean mask that leaves each query a key, fused and written-out attention cost its true entries."""
    rows = data.draw(
        st.lists(st.lists(st.booleans(), min_size=k_len, max_size=k_len).filter(any), min_size=q_len, max_size=q_len)
    )
    mask = torch.tensor(rows)
    q, k = torch.randn(1, 2, q_len, 4), torch.randn(1, 2, k_len, 4)

    def written_out() -> None:
        (q @ k.mT).masked_fill(~mask, float("-inf")).softmax(-1) @ k

    expected = 2 * 2 * int(mask.sum()) * 8
    assert mfu.count(lambda: F.scaled_dot_product_attention(q, k, k, attn_mask=mask)).model_flops == expected
    assert mfu.count(written_out).model_flops == expected
