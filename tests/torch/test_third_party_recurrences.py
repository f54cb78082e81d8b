"""Recurrences over a matrix state cost what the recurrence, run token by token as matrix products, is counted to cost.

The chunked forms are run too: they give the same numbers, and cost what the hardware is said to do.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mfu_sdk as mfu
from mfu_sdk.counting.third_party import FUNCTIONS, OPERATORS
from mfu_sdk.counting.third_party.recurrences import Chunks, chunked, recurrence

K, V = 3, 5
FLA = "fla.ops."


def column(x: Tensor) -> Tensor:
    return x.unsqueeze(-1)


def row(x: Tensor) -> Tensor:
    return x.unsqueeze(-2)


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """S ← 0.9·S + k vᵀ, o = Sᵀ q over (heads, length, size)."""
    state, out = torch.zeros(q.shape[0], K, V, dtype=q.dtype), []
    for t in range(q.shape[1]):
        state = 0.9 * state + column(k[:, t]) @ row(v[:, t])
        out.append(row(q[:, t]) @ state)
    return torch.cat(out, 1)


def delta(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """S ← S + k (v − Sᵀ k)ᵀ, o = Sᵀ q."""
    state, out = torch.zeros(q.shape[0], K, V, dtype=q.dtype), []
    for t in range(q.shape[1]):
        state = state + column(k[:, t]) @ (row(v[:, t]) - row(k[:, t]) @ state)
        out.append(row(q[:, t]) @ state)
    return torch.cat(out, 1)


def low_rank(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """S ← 0.9·S + b (Sᵀ a)ᵀ + k vᵀ, o = Sᵀ q, with a = −k and b = k / 2."""
    state, out = torch.zeros(q.shape[0], K, V, dtype=q.dtype), []
    for t in range(q.shape[1]):
        read = row(-k[:, t]) @ state
        state = 0.9 * state + column(k[:, t] / 2) @ read + column(k[:, t]) @ row(v[:, t])
        out.append(row(q[:, t]) @ state)
    return torch.cat(out, 1)


def householder(q: Tensor, k: Tensor, v: Tensor, number: int) -> Tensor:
    """`number` delta updates before each read-out."""
    state, out = torch.zeros(q.shape[0], K, V, dtype=q.dtype), []
    for t in range(k.shape[1]):
        state = state + column(k[:, t]) @ (row(v[:, t]) - row(k[:, t]) @ state)
        if t % number == number - 1:
            out.append(row(q[:, t // number]) @ state)
    return torch.cat(out, 1)


def chunked_linear(q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
    """The same as `linear` without decay, in chunks."""
    state, out = torch.zeros(q.shape[0], K, V, dtype=q.dtype), []
    for start in range(0, q.shape[1], size):
        a, b, c = (x[:, start : start + size] for x in (q, k, v))
        out.append((a @ b.mT).tril() @ c + a @ state)
        state = state + b.mT @ c
    return torch.cat(out, 1)


def inverse_of(triangle: Tensor) -> Tensor:
    """The inverse of I + `triangle`, strictly lower, by substitution: elementwise, so it is not counted."""
    inverse = torch.eye(triangle.shape[-1], dtype=triangle.dtype).expand_as(triangle).clone()
    for i in range(1, triangle.shape[-1]):
        inverse[:, i] -= (triangle[:, i, :i, None] * inverse[:, :i]).sum(1)
    return inverse


def chunked_delta(q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
    """The same as `delta`, in chunks, by the WY form."""
    state, out = torch.zeros(q.shape[0], K, V, dtype=q.dtype), []
    for start in range(0, q.shape[1], size):
        a, b, c = (x[:, start : start + size] for x in (q, k, v))
        inverse = inverse_of((b @ b.mT).tril(-1))
        new = inverse @ c - (inverse @ b) @ state
        out.append((a @ b.mT).tril() @ new + a @ state)
        state = state + b.mT @ new
    return torch.cat(out, 1)


def inputs(heads: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(heads, length, size, dtype=torch.float64) for size in (K, K, V))
    return q, torch.nn.functional.normalize(k, dim=-1), v


def named(heads: int, length: int, **more: object) -> dict[str, Any]:
    q, k, v = (torch.empty(1, length, heads, size) for size in (K, K, V))
    return {"q": q, "k": k, "v": v, **more}


@pytest.mark.parametrize(
    ("reference", "function"),
    [
        (linear, "gla.chunk:ChunkGLAFunction"),
        (linear, "common.fused_recurrent:FusedRecurrentFunction"),
        (linear, "rwkv6.chunk:ChunkRWKV6Function"),
        (delta, "gated_delta_rule.chunk:ChunkGatedDeltaRuleFunction"),
        (delta, "delta_rule.fused_recurrent:FusedRecurrentFunction"),
        (delta, "kda.chunk:ChunkKDAFunction"),
        (low_rank, "generalized_delta_rule.dplr.chunk:ChunkDPLRDeltaRuleFunction"),
    ],
)
def test_the_model_needs_the_recurrence(reference: Any, function: str) -> None:
    """Run token by token, the recurrence is counted to cost what the formula says; the backward twice that."""
    tensors = inputs(heads=4, length=7)
    count = mfu.count(reference, *tensors)
    cost = FUNCTIONS[f"{FLA}{function}.forward"].formula(named(heads=4, length=7))
    assert cost.forward.dense == cost.forward.hardware == count.model_flops > 0
    assert cost.backward is not None
    assert cost.backward((True, False, False)).dense == 2 * count.model_flops
    assert cost.backward((False, False, False)).dense == 0


def test_heads_of_values() -> None:
    """Where values have more heads than keys, each has a state."""
    shapes = {"q": torch.empty(2, 6, 2, K), "k": torch.empty(2, 6, 2, K), "v": torch.empty(2, 6, 8, V)}
    cost = FUNCTIONS[f"{FLA}gated_delta_rule.chunk:ChunkGatedDeltaRuleFunction.forward"].formula(shapes)
    assert cost.forward.dense == 6 * (2 * 6 * 8) * K * V


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 8))
def test_chunks_of_linear_attention(length: int, size: int) -> None:
    """The chunked algorithm gives the recurrence's numbers and runs the FLOPs that the hardware is charged."""
    q, k, v = inputs(2, length)
    count = mfu.count(chunked_linear, q, k, v, size)
    cost = FUNCTIONS[f"{FLA}simple_gla.chunk:ChunkSimpleGLAFunction.forward"].formula(named(2, length, chunk_size=size))
    assert cost.forward.hardware == count.model_flops >= cost.forward.dense
    expected = torch.cat([(q[:, : t + 1] @ k[:, : t + 1].mT)[:, t:] @ v[:, : t + 1] for t in range(length)], 1)
    assert torch.allclose(chunked_linear(q, k, v, size), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 8))
def test_chunks_of_the_delta_rule(length: int, size: int) -> None:
    """Likewise for the delta rule, but for the inverses of its triangles, which are left out of the count."""
    q, k, v = inputs(2, length)
    count = mfu.count(chunked_delta, q, k, v, size)
    cost = FUNCTIONS[f"{FLA}delta_rule.chunk:ChunkDeltaRuleFunction.forward"].formula(named(2, length, chunk_size=size))
    assert cost.forward.hardware == count.model_flops >= cost.forward.dense
    assert torch.allclose(chunked_delta(q, k, v, size), delta(q, k, v))


def test_the_backward_makes_some_of_it_again() -> None:
    """One chunk of four tokens: linear attention makes the states again; the delta rule W, U, and two products more."""
    chunks = Chunks.cut([4], 4)
    assert chunked("linear", chunks, 3, K, V)[1] == 2 * 3 * 4 * K * V
    assert chunked("delta", chunks, 3, K, V)[1] == 2 * 3 * (16 * K + 16 * V + 2 * 4 * K * V)


def test_chunks_of_packed_sequences() -> None:
    """A chunk ends with its sequence."""
    packed = named(2, 12, chunk_size=4, cu_seqlens=torch.tensor([0, 5, 12]))
    cost = FUNCTIONS[f"{FLA}simple_gla.chunk:ChunkSimpleGLAFunction.forward"].formula(packed)
    assert cost.forward.hardware == 2 * 2 * ((16 + 1 + 16 + 9) * (K + V) + 2 * 12 * K * V)
    assert cost.forward.dense == recurrence("linear", 24, K, V)


def test_householder_products() -> None:
    """Three updates a token, one read-out."""
    q, _, _ = inputs(2, 4)
    _, k, v = inputs(2, 12)
    count = mfu.count(householder, q, k, v, 3)
    arguments = named(2, 12, num_householder=3) | {"q": torch.empty(1, 4, 2, K)}
    cost = FUNCTIONS[f"{FLA}gated_delta_product.chunk:ChunkGatedDeltaProductFunction.forward"].formula(arguments)
    assert cost.forward.dense == count.model_flops


def test_slots() -> None:
    """Gated slot attention: keys into m slots, softmax, slots into values; two linear recurrences."""
    slots = 6

    def reference(q: Tensor, k: Tensor, v: Tensor, s: Tensor) -> None:
        keys, values = torch.zeros(2, K, slots), torch.zeros(2, slots, V)
        for t in range(q.shape[1]):
            keys = keys + column(k[:, t]) @ row(s[:, t])
            values = values + column(s[:, t]) @ row(v[:, t])
            (row(q[:, t]) @ keys).softmax(-1) @ values

    tensors = [torch.randn(2, 4, size) for size in (K, K, V, slots)]
    count = mfu.count(reference, *tensors)
    cost = FUNCTIONS[f"{FLA}gsa.chunk:ChunkGSAFunction.forward"].formula(named(2, 4, s=torch.empty(1, 4, 2, slots)))
    assert cost.forward.dense == count.model_flops


def test_softmax_attention_of_fla() -> None:
    """Causal over the last keys of each packed sequence; five products a pair backward."""
    arguments = {"q": torch.empty(1, 7, 4, K), "k": torch.empty(1, 7, 2, K), "v": torch.empty(1, 7, 2, V)}
    arguments |= {"cu_seqlens": torch.tensor([0, 3, 7]), "window_size": 2}
    cost = FUNCTIONS[f"{FLA}attn.parallel:ParallelAttentionFunction.forward"].formula(arguments)
    pairs = (1 + 2 + 2) + (1 + 2 + 2 + 2)
    assert cost.forward.exact == 2 * 4 * pairs * (K + V)
    assert cost.backward is not None
    assert cost.backward((True,)).hardware == 2 * 4 * pairs * (3 * K + 2 * V)


def test_fused_decoding_of_rwkv_7() -> None:
    """One token more through the low-rank recurrence."""
    count = mfu.count(low_rank, *inputs(4, 1))
    arguments = {"r": torch.empty(1, 1, 4, K), "v": torch.empty(1, 1, 4, V)}
    cost = FUNCTIONS[f"{FLA}rwkv7.fused_recurrent:fused_mul_recurrent_rwkv7"].formula(arguments)
    assert cost.forward.dense == count.model_flops


# --- Mamba -----------------------------------------------------------------------------------------------------------

N = 4
"""States a channel."""


def selective_scan(x: Tensor, b: Tensor, c: Tensor, decay: Tensor) -> Tensor:
    """h ← Ā h + x Bᵀ, y = h C over (batch, channels, length); decays are elementwise."""
    state, out = torch.zeros(*x.shape[:2], N), []
    for t in range(x.shape[-1]):
        state = decay[..., t, :] * state + column(x[..., t]) @ row(b[:, t])
        out.append(state @ column(c[:, t]))
    return torch.cat(out, -1)


def test_selective_scan() -> None:
    """4·D·N a token: an outer product and a read-out; the backward makes the states again."""
    x, decay = torch.randn(2, 6, 5), torch.rand(2, 6, 5, N)
    count = mfu.count(selective_scan, x, torch.randn(2, 5, N), torch.randn(2, 5, N), decay)
    name = "mamba_ssm.ops.selective_scan_interface:SelectiveScanFn.forward"
    cost = FUNCTIONS[name].formula({"u": x, "delta": x, "A": torch.empty(6, N)})
    assert cost.forward.dense == cost.forward.hardware == count.model_flops == 4 * 2 * 5 * 6 * N
    assert cost.backward is not None
    backward = cost.backward((True,))
    assert (backward.dense, backward.hardware) == (2 * count.model_flops, 5 * count.model_flops // 2)


def duality(x: Tensor, b: Tensor, c: Tensor, size: int) -> Tensor:
    """State-space duality in chunks, over (length, heads, size) and (length, groups, N), without decay."""
    heads, groups = x.shape[1], b.shape[1]
    share = heads // groups
    state, out = torch.zeros(heads, N, x.shape[2], dtype=x.dtype), []
    for start in range(0, x.shape[0], size):
        u, keys, queries = (t[start : start + size].transpose(0, 1) for t in (x, b, c))
        scores = (queries @ keys.mT).tril().repeat_interleave(share, 0)
        wide_keys, wide_queries = keys.repeat_interleave(share, 0), queries.repeat_interleave(share, 0)
        out.append(scores @ u + wide_queries @ state)
        state = state + wide_keys.mT @ u
    return torch.cat(out, 1)


@pytest.mark.parametrize("size", [3, 4, 16])
def test_state_space_duality(size: int) -> None:
    """Model FLOPs do not depend on the chunk; the hardware's are those of the chunked algorithm."""
    length, heads, groups, width = 10, 4, 2, 5
    x = torch.randn(length, heads, width, dtype=torch.float64)
    b, c = (torch.randn(length, groups, N, dtype=torch.float64) for _ in range(2))
    count = mfu.count(duality, x, b, c, size)
    assert torch.allclose(duality(x, b, c, size), duality(x, b, c, 1))
    name = "mamba_ssm.ops.triton.ssd_combined:MambaChunkScanCombinedFn.forward"
    cost = FUNCTIONS[name].formula({"x": x[None], "B": b[None], "C": c[None], "chunk_size": size})
    assert cost.forward.hardware == count.model_flops
    assert cost.forward.dense == 4 * length * heads * width * N
    assert cost.backward is not None
    assert cost.backward((True,)).dense == 2 * cost.forward.dense
    assert cost.backward((True,)).hardware > 2 * cost.forward.hardware


def test_blocks_of_mamba() -> None:
    """A whole block: convolution, projections and scan; a frozen weight takes no gradient of its own."""
    batch, channels, length, rank, width, hidden = 2, 6, 5, 3, 4, 7
    arguments = {
        "xz": torch.empty(batch, 2 * channels, length),
        "conv1d_weight": torch.empty(channels, 1, width),
        "conv1d_bias": None,
        "x_proj_weight": torch.empty(rank + 2 * N, channels),
        "delta_proj_weight": torch.empty(channels, rank),
        "out_proj_weight": torch.empty(hidden, channels),
        "A": torch.empty(channels, N),
    }
    rows = batch * length
    conv, x_proj, delta_proj, out_proj = (
        2 * rows * n for n in (channels * width, (rank + 2 * N) * channels, channels * rank, hidden * channels)
    )
    scan = 4 * rows * channels * N
    cost = FUNCTIONS["mamba_ssm.ops.selective_scan_interface:MambaInnerFn.forward"].formula(arguments)
    assert cost.forward.dense == conv + x_proj + delta_proj + out_proj + scan
    assert cost.backward is not None
    assert cost.backward((True,) * 7).dense == 2 * cost.forward.dense
    assert cost.backward((True, True, True, True, True, False, True)).dense == 2 * cost.forward.dense - out_proj
    assert cost.backward((False,) * 7).dense == 0


def test_blocks_of_mamba_2() -> None:
    """Convolution, scan and output projection behind one input."""
    batch, length, heads, width, groups, taps, hidden = 2, 6, 4, 5, 2, 4, 7
    inner = heads * width
    arguments = {
        "zxbcdt": torch.empty(batch, length, 2 * inner + 2 * groups * N + heads),
        "conv1d_weight": torch.empty(inner + 2 * groups * N, taps),
        "D": torch.empty(heads),
        "headdim": width,
        "ngroups": groups,
        "chunk_size": 4,
        "outproj_weight": torch.empty(hidden, inner),
    }
    rows = batch * length
    name = "mamba_ssm.ops.triton.ssd_combined:MambaSplitConv1dScanCombinedFn.forward"
    cost = FUNCTIONS[name].formula(arguments)
    dense = 2 * rows * ((inner + 2 * groups * N) * taps + hidden * inner)
    assert cost.forward.dense == 4 * rows * heads * width * N + dense
    bare = FUNCTIONS[name].formula(arguments | {"outproj_weight": None})
    assert cost.forward.dense - bare.forward.dense == 2 * rows * hidden * inner


def test_one_token_of_mamba() -> None:
    """Decoding: each channel's state takes one product in and one out, with heads or without."""
    update = FUNCTIONS["mamba_ssm.ops.triton.selective_state_update:selective_state_update"].formula
    assert update({"state": torch.empty(2, 6, N), "x": torch.empty(2, 6)}).forward.dense == 4 * 12 * N
    assert update({"state": torch.empty(2, 3, 6, N), "x": torch.empty(2, 3, 6)}).forward.dense == 4 * 36 * N


def test_short_convolutions() -> None:
    """A depthwise causal convolution: what torch's own, padded on the left, costs for the elements that are kept."""
    x, weight = torch.randn(2, 6, 9), torch.randn(6, 4)
    padded = torch.nn.functional.pad(x, (3, 0))
    count = mfu.count(lambda: torch.nn.functional.conv1d(padded, weight[:, None], groups=6))
    cost = FUNCTIONS["causal_conv1d.causal_conv1d_interface:CausalConv1dFn.forward"].formula(
        {"x": x, "weight": weight, "bias": None}
    )
    assert cost.forward.dense == count.model_flops
    assert cost.backward is not None
    assert [cost.backward(n).dense // count.model_flops for n in ((True, True), (False, True), (False, False))] == [
        2, 1, 0,
    ]  # fmt: skip
    library = torch.library.Library("DaoAILab", "FRAGMENT")
    try:
        library.define("_causal_conv1d_fwd_cpp(Tensor x, Tensor weight, Tensor(a!) out) -> ()")
        library.impl("_causal_conv1d_fwd_cpp", lambda x, weight, out: None, "CompositeExplicitAutograd")
        op = torch.ops.DaoAILab._causal_conv1d_fwd_cpp
        assert mfu.count(lambda: op(x, weight, torch.empty_like(x))).model_flops == count.model_flops
        assert "DaoAILab::_causal_conv1d_bwd_cpp" in OPERATORS
    finally:
        library._destroy()
