# ruff: noqa: FBT003 - the libraries pass booleans by position
"""Attention kernels of other libraries cost what a mask written out says, whatever form their lengths come in.

Each operator is a stand-in with the library's name and its arguments' names, so that the library need not be there.
"""

import sys
from collections.abc import Callable, Iterator
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mfu_sdk as mfu
from mfu_sdk.counting.third_party import FUNCTIONS, OPERATORS
from mfu_sdk.errors import FormulaError
from mfu_sdk.records import Count

H, KV, D = 4, 2, 8
"""Query heads, key heads, size of each."""

SCHEMAS = {
    "flash_attn::_flash_attn_forward": "Tensor q, Tensor k, Tensor v, float dropout_p, float softmax_scale, "
    "bool causal, int window_size_left, int window_size_right, float softcap, Tensor? alibi_slopes, "
    "bool return_softmax",
    "flash_attn::_flash_attn_varlen_forward": "Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
    "SymInt max_seqlen_q, SymInt max_seqlen_k, float dropout_p, float softmax_scale, bool causal, "
    "int window_size_left=-1, int window_size_right=-1, float softcap=0.0, Tensor? alibi_slopes=None, "
    "bool return_softmax=False, Tensor? block_table=None, Tensor? leftpad_k=None, Tensor? seqused_k=None, "
    "bool zero_tensors=False",
    "flash_attn::_flash_attn_varlen_backward": "Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, "
    "Tensor softmax_lse, Tensor? dq, Tensor? dk, Tensor? dv, Tensor cu_seqlens_q, Tensor cu_seqlens_k, "
    "SymInt max_seqlen_q, SymInt max_seqlen_k, float dropout_p, float softmax_scale, bool causal, "
    "int window_size_left, int window_size_right, float softcap, Tensor? alibi_slopes, bool deterministic",
    "flash_attn_3::_flash_attn_forward": "Tensor q, Tensor k, Tensor v, Tensor? k_new=None, Tensor? v_new=None, "
    "Tensor? qv=None, Tensor? out_=None, Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_k=None, "
    "Tensor? cu_seqlens_k_new=None, Tensor? seqused_q=None, Tensor? seqused_k=None, SymInt? max_seqlen_q=None, "
    "SymInt? max_seqlen_k=None, Tensor? page_table=None, Tensor? kv_batch_idx=None, Tensor? leftpad_k=None, "
    "bool causal=False, int window_size_left=-1, int window_size_right=-1, int attention_chunk=0",
    "mslk_flash::flash_fwd": "Tensor query, Tensor key, Tensor value, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, "
    "Tensor? seqused_k, SymInt max_seqlen_q, SymInt max_seqlen_k, float p, float softmax_scale, bool is_causal, "
    "int window_left, int window_right, bool return_softmax, Tensor? block_tables",
    "xformers::efficient_attention_forward_ck": "Tensor query, Tensor key, Tensor value, Tensor? attn_bias, "
    "Tensor? seqstart_q, Tensor? seqstart_k, int? max_seqlen_q, float dropout_p, bool compute_logsumexp, "
    "int custom_mask_type, float? scale, Tensor? seqlen_k, int? window_size, Tensor? block_tables, int? page_size",
    "mslk::cutlass_blackwell_fmha_fwd": "Tensor q, Tensor k, Tensor v, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, "
    "int? max_seq_len_q, int? max_seq_len_k, float? softmax_scale, bool? causal, Tensor? seqlen_kv, "
    "Tensor? page_table, int seqlen_k=-1, int window_size_left=-1, int window_size_right=-1, bool bottom_right=True",
    "xformer::memory_efficient_attention_forward": "Tensor q, Tensor k, Tensor v, Tensor? b=None, float? p=0.0, "
    "float? scale=None",
    "torchao::qscaled_dot_product": "Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, "
    "float dropout_p=0.0, bool is_causal=False",
    "vllm::unified_attention": "Tensor query, Tensor key, Tensor value, str layer_name",
    "_C::paged_attention_v1": "Tensor query, Tensor seq_lens, int blocksparse_vert_stride",
    "_C::sm100_cutlass_mla_decode": "Tensor q_nope, Tensor q_pe, Tensor seq_lens",
    "_vllm_fa2_C::fwd_kvcache": "Tensor q, Tensor kcache, Tensor vcache, Tensor? k, Tensor? v, Tensor? seqlens_k, "
    "bool is_causal, int window_size_left, int window_size_right",
}


@pytest.fixture(scope="module", autouse=True)
def libraries() -> Iterator[None]:
    """The operators, each giving back a tensor like its queries."""
    kept = []
    for name, arguments in SCHEMAS.items():
        namespace, _, operator = name.partition("::")
        library = torch.library.Library(namespace, "FRAGMENT")
        library.define(f"{operator}({arguments}) -> Tensor")
        library.impl(operator, lambda *args, **_: torch.empty_like(args[0]), "CompositeExplicitAutograd")
        kept.append(library)
    yield
    for library in kept:
        library._destroy()


def operator(name: str) -> Callable[..., torch.Tensor]:
    namespace, _, plain = name.partition("::")
    return getattr(getattr(torch.ops, namespace), plain)  # type: ignore[no-any-return]


def counted(name: str, *args: object, **named: object) -> Count:
    return mfu.count(lambda: operator(name)(*args, **named))


def shown(
    lengths: list[tuple[int, int]],
    *,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    top_left: bool = False,
) -> int:
    """Pairs by a mask written out, one sequence after the other."""
    total = 0
    for queries, keys in lengths:
        shift = 0 if top_left else keys - queries
        for i in range(queries):
            for j in range(keys):
                before, after = i + shift - j, j - i - shift
                hidden = (causal and after > 0) or (0 <= window[0] < before) or (0 <= window[1] < after)
                total += not hidden
    return total


def forward(pairs: int, heads: int = H, qk: int = D, v: int = D) -> int:
    return 2 * heads * pairs * (qk + v)


def packed(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def lens(*lengths: int) -> torch.Tensor:
    return torch.tensor(lengths, dtype=torch.int32)


def qkv(*shape: int, keys: tuple[int, ...] | None = None) -> list[torch.Tensor]:
    keys = keys or shape
    return [torch.empty(*shape, H, D), torch.empty(*keys, KV, D), torch.empty(*keys, KV, D)]


sides = st.sampled_from([-1, 0, 1, 3, 20])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), sides, sides)
def test_flash_2_dense(queries: int, keys: int, causal: bool, left: int, right: int) -> None:
    """Every length, mask and window is what the mask written out says; all pairs are the other count."""
    tensors = qkv(2, queries, keys=(2, keys))
    count = counted("flash_attn::_flash_attn_forward", *tensors, 0.0, 1.0, causal, left, right, 0.0, None, False)
    pairs = shown([(queries, keys)] * 2, causal=causal, window=(left, right))
    assert count.uncounted == ()
    assert count.attention_flops_exact == count.hardware_flops == forward(pairs)
    assert count.attention_flops_full == forward(2 * queries * keys)


def test_flash_2_packed() -> None:
    """Sequences of unlike lengths; the model's backward is twice its forward, the kernel's five products a pair."""
    queries, keys = [3, 1, 4], [3, 6, 2]
    total = (torch.empty(8, H, D), torch.empty(11, KV, D), torch.empty(11, KV, D))
    ends = packed(queries), packed(keys)
    one = counted("flash_attn::_flash_attn_varlen_forward", *total, *ends, 4, 6, 0.0, 1.0, True)
    pairs = shown(list(zip(queries, keys, strict=True)), causal=True)
    assert one.attention_flops_exact == one.hardware_flops == forward(pairs)
    out, lse = torch.empty(8, H, D), torch.empty(H, 8)
    two = counted(
        "flash_attn::_flash_attn_varlen_backward", out, *total, out, lse, None, None, None, *ends, 4, 6, 0.0, 1.0,
        True, -1, -1, 0.0, None, False,
    )  # fmt: skip
    assert two.attention_flops_exact == 2 * forward(pairs)
    assert two.hardware_flops == 5 * 2 * H * pairs * D


def test_flash_3_cache() -> None:
    """Pages hold 5 and 9 keys of which the first sequence's first 2 are padding, and each step brings 3 more."""
    query, new = torch.empty(2, 3, H, D), torch.empty(2, 3, KV, D)
    pages = torch.empty(10, 4, KV, D)
    count = counted(
        "flash_attn_3::_flash_attn_forward",
        query,
        pages,
        pages,
        new,
        new,
        seqused_k=lens(5, 9),
        page_table=torch.zeros(2, 5, dtype=torch.int32),
        leftpad_k=lens(2, 0),
        causal=True,
        window_size_left=7,
    )
    assert count.attention_flops_exact == forward(shown([(3, 6), (3, 12)], causal=True, window=(7, -1)))


def test_flash_3_latent() -> None:
    """A second product for the scores, as latent attention has: sizes of both are added."""
    query, key, value = torch.empty(1, 4, H, 4), torch.empty(1, 4, 1, 4), torch.empty(1, 4, 1, 16)
    count = counted("flash_attn_3::_flash_attn_forward", query, key, value, qv=torch.empty(1, 4, H, 16), causal=True)
    assert count.attention_flops_exact == forward(10, qk=20, v=16)


def test_flash_cache_of_version_2() -> None:
    """`flash_attn_with_kvcache` takes the cache's length as one number for all, or one for each."""
    price = FUNCTIONS["flash_attn.flash_attn_interface:flash_attn_with_kvcache"]
    cache = torch.empty(2, 32, KV, D)
    named: dict[str, Any] = {"q": torch.empty(2, 1, H, D), "k_cache": cache, "v_cache": cache}
    named |= {"k": torch.empty(2, 1, KV, D), "v": torch.empty(2, 1, KV, D), "causal": True, "window_size": (-1, -1)}
    assert price.formula(named | {"cache_seqlens": 7}).forward.exact == forward(2 * 8)
    assert price.formula(named | {"cache_seqlens": lens(7, 20)}).forward.exact == forward(8 + 21)
    whole = price.formula(named | {"k": None, "v": None, "cache_seqlens": None})
    assert whole.forward.exact == forward(2 * 32)


def test_flash_4() -> None:
    """Its window is a pair of numbers or None, and latent attention may leave queries and keys out."""
    price = FUNCTIONS["flash_attn.cute.interface:_flash_attn_fwd"]
    q, k, v = qkv(2, 6)
    named = {"q": q, "k": k, "v": v, "causal": True, "window_size_left": 2, "window_size_right": None}
    assert price.formula(named).forward.exact == forward(shown([(6, 6)] * 2, causal=True, window=(2, -1)))
    latent = {"q": None, "k": None, "v": v, "qv": q, "causal": True}
    assert price.formula(latent).forward.exact == forward(2 * 21)
    back = FUNCTIONS["flash_attn.cute.interface:_flash_attn_bwd"].formula(named).forward
    assert (back.exact, back.hardware) == (
        2 * price.formula(named).forward.exact,
        price.formula(named).forward.exact // 2 * 5,
    )


@pytest.mark.parametrize(
    "named",
    [
        {"attention_chunk": 4},
        {"mask_mod": print},
        {"block_sparse_tensors": (1,)},
        {"page_table": torch.zeros(1)},
        {"seqused_k": torch.zeros(2, device="meta")},
        {"k_new": torch.zeros(2, 1, KV, D)},
    ],
)
def test_what_cannot_be_known_is_refused(named: dict[str, object]) -> None:
    """A mask that is a function, pages without lengths, lengths without data: no price rather than a guess."""
    q, k, v = qkv(2, 6)
    with pytest.raises(FormulaError, match=r"register a formula|count it on a device"):
        FUNCTIONS["flash_attn.cute.interface:_flash_attn_fwd"].formula({"q": q, "k": k, "v": v, **named})


def test_packed_without_data_is_uncounted() -> None:
    """On tensors without data the lengths are unknown: listed, never counted as one long sequence."""
    q, k, v = (t.to("meta") for t in qkv(8))
    ends = packed([3, 5]).to("meta")
    count = counted("flash_attn::_flash_attn_varlen_forward", q, k, v, ends, ends, 5, 5, 0.0, 1.0, True)
    assert count.model_flops == 0
    assert [kind.op for kind in count.uncounted] == ["flash_attn::_flash_attn_varlen_forward"]


def test_mslk() -> None:
    """MSLK's flash attention, packed, with fewer keys in use than their places."""
    q, k, v = qkv(5, keys=(12,))
    count = counted(
        "mslk_flash::flash_fwd", q, k, v, packed([2, 3]), packed([6, 6]), lens(4, 6), 3, 6, 0.0, 1.0, True, -1, -1,
        False, None,
    )  # fmt: skip
    assert count.attention_flops_exact == forward(shown([(2, 4), (3, 6)], causal=True))


@pytest.mark.parametrize(("kind", "top_left"), [(0, False), (1, True), (2, False)])
def test_composable_kernels(kind: int, top_left: bool) -> None:
    """Three kinds of mask: none, causal from the top left, causal from the bottom right; five dimensions too."""
    q, k = torch.empty(2, 3, 1, H, D), torch.empty(2, 5, 1, H, D)
    count = counted(
        "xformers::efficient_attention_forward_ck", q, k, k, None, None, None, None, 0.0, False, kind, None, None,
        None, None, None,
    )  # fmt: skip
    pairs = shown([(3, 5)] * 2, causal=kind > 0, top_left=top_left)
    assert count.attention_flops_exact == forward(pairs)


def test_composable_kernels_packed() -> None:
    """Starting positions of queries, and lengths of keys that are fewer than their places."""
    q, k = torch.empty(1, 5, H, D), torch.empty(1, 12, H, D)
    count = counted(
        "xformers::efficient_attention_forward_ck", q, k, k, None, packed([2, 3]), packed([6, 6]), 3, 0.0, False, 2,
        None, lens(4, 6), None, None, None,
    )  # fmt: skip
    assert count.attention_flops_exact == forward(shown([(2, 4), (3, 6)], causal=True))


@pytest.mark.parametrize("bottom_right", [False, True])
def test_blackwell(bottom_right: bool) -> None:
    """The alignment of the causal mask is an argument."""
    q, k, v = qkv(2, 3, keys=(2, 5))
    arguments = (None, None, None, None, None, True, None, None)
    count = counted("mslk::cutlass_blackwell_fmha_fwd", q, k, v, *arguments, bottom_right=bottom_right)
    assert count.attention_flops_exact == forward(shown([(3, 5)] * 2, causal=True, top_left=not bottom_right))


def test_wrapped_with_a_bias() -> None:
    """A tensor bias is read: entries of minus infinity hide their pairs, and are computed all the same."""
    q, k, v = qkv(2, 3, keys=(2, 5))
    bias = torch.zeros(2, H, 3, 5).masked_fill(torch.ones(3, 5).triu(1).bool(), float("-inf"))
    count = counted("xformer::memory_efficient_attention_forward", q, k, v, bias)
    assert count.attention_flops_exact == forward(shown([(3, 5)] * 2, causal=True, top_left=True))
    assert count.hardware_flops == count.attention_flops_full == forward(30)


def test_quantised_attention() -> None:
    """torchao's integers: (batch, heads, length, size), causal from the top left."""
    q, k = torch.empty(2, H, 3, D, dtype=torch.uint8), torch.empty(2, H, 5, D, dtype=torch.uint8)
    count = counted("torchao::qscaled_dot_product", q, k, k, None, 0.0, True)
    assert count.attention_flops_exact == forward(shown([(3, 5)] * 2, causal=True, top_left=True))
    shorter = torch.ones(2, 1, 3, 5, dtype=torch.bool)
    shorter[..., 4:] = False
    masked = counted("torchao::qscaled_dot_product", q, k, k, shorter)
    assert (masked.attention_flops_exact, masked.hardware_flops) == (forward(24), forward(30))


def _context(**metadata: object) -> SimpleNamespace:
    layer = SimpleNamespace(num_heads=H, head_size=D, impl=SimpleNamespace(sliding_window=metadata.pop("window", None)))
    about = SimpleNamespace(**metadata) if metadata else None
    context = SimpleNamespace(attn_metadata={"layer.0": about}, no_compile_layers={"layer.0": layer})
    return SimpleNamespace(get_forward_context=lambda: context)


def test_vllm_reads_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request decodes over 9 keys, one brings 4 of 4, one is padding; a window hides what is further back."""
    q, k, v = torch.empty(6, H * D), torch.empty(6, KV * D), torch.empty(6, KV * D)
    known = {"query_start_loc": packed([1, 4, 0]), "seq_lens": lens(9, 4, 0), "causal": True}
    monkeypatch.setitem(sys.modules, "vllm.forward_context", _context(**known))  # type: ignore[arg-type]
    assert counted("vllm::unified_attention", q, k, v, "layer.0").attention_flops_exact == forward(9 + 10)
    for window in ((2, 0), 3):
        monkeypatch.setitem(sys.modules, "vllm.forward_context", _context(**known, window=window))  # type: ignore[arg-type]
        count = counted("vllm::unified_attention", q, k, v, "layer.0")
        pairs = shown([(1, 9), (4, 4)], causal=True, window=(2, 0))
        assert count.attention_flops_exact == forward(pairs) == forward(3 + 9)

    def twice() -> None:
        for window in (None, (0, 0)):
            monkeypatch.setitem(sys.modules, "vllm.forward_context", _context(**known, window=window))  # type: ignore[arg-type]
            operator("vllm::unified_attention")(q, k, v, "layer.0")

    # Tensors of the same shapes, other masks.
    assert mfu.count(twice).attention_flops_exact == forward(9 + 10) + forward(1 + 4)
    monkeypatch.setitem(sys.modules, "vllm.forward_context", _context())  # type: ignore[arg-type]
    profiling = counted("vllm::unified_attention", q, k, v, "layer.0")
    assert (profiling.model_flops, profiling.uncounted) == (0, ())


def test_vllm_elsewhere_is_uncounted() -> None:
    """Without vLLM's context nobody knows the lengths."""
    count = counted("vllm::unified_attention", torch.empty(6, H, D), torch.empty(6, KV, D), torch.empty(6, KV, D), "x")
    assert [kind.op for kind in count.uncounted] == ["vllm::unified_attention"]


def test_vllm_decoding() -> None:
    """One query a sequence over all its keys; latent attention's value is its key without the rotary part."""
    count = counted("_C::paged_attention_v1", torch.empty(3, H, D), lens(2, 5, 1), 0)
    assert count.attention_flops_exact == forward(8)
    latent = counted("_C::sm100_cutlass_mla_decode", torch.empty(2, H, 16), torch.empty(2, H, 4), lens(3, 4))
    assert latent.attention_flops_exact == forward(7, qk=20, v=16)
    q, cache, new = torch.empty(2, 2, H, D), torch.empty(9, 4, KV, D), torch.empty(2, 2, KV, D)
    cached = counted("_vllm_fa2_C::fwd_kvcache", q, cache, cache, new, new, lens(3, 6), True, -1, -1)
    assert cached.attention_flops_exact == forward(shown([(2, 5), (2, 8)], causal=True))
    sparse = counted("_C::paged_attention_v1", torch.empty(3, H, D), lens(2, 5, 1), 8)
    assert len(sparse.uncounted) == 1


def test_sage() -> None:
    """Either layout; a causal mask over unlike lengths is refused, its kernels differing about it."""
    price = FUNCTIONS["sageattention.core:sageattn"]
    q = torch.empty(2, H, 6, D)
    assert price.formula({"q": q, "k": q, "v": q, "is_causal": True}).forward.exact == forward(2 * 21)
    other = {"q": q.transpose(1, 2), "k": q.transpose(1, 2), "v": q.transpose(1, 2), "tensor_layout": "NHD"}
    assert price.formula(other).forward.exact == forward(2 * 36)
    with pytest.raises(FormulaError, match="alignment"):
        price.formula({"q": q[:, :, :4], "k": q, "v": q, "is_causal": True})
    total = torch.empty(8, H, D)
    named = {"q": total, "k": total, "v": total, "cu_seqlens_q": packed([3, 5]), "cu_seqlens_k": packed([3, 5])}
    packed_price = FUNCTIONS["sageattention.core:sageattn_varlen"]
    assert packed_price.formula(named | {"is_causal": True}).forward.exact == forward(6 + 15)


def _fused(mask: str, layout: str, q: torch.Tensor, k: torch.Tensor, **named: object) -> dict[str, object]:
    return {"attn_mask_type": mask, "qkv_layout": layout, "q": q, "k": k, "v": k, "window_size": (-1, -1), **named}


def test_transformer_engine() -> None:
    """Dense in either order, padded, and packed; causal masks from the top left unless they say otherwise."""
    price = FUNCTIONS["transformer_engine.pytorch.cpp_extensions.fused_attn:fused_attn_fwd"].formula
    q, k = torch.empty(3, 2, H, D), torch.empty(5, 2, KV, D)
    ends = {"cu_seqlens_q": packed([3, 2]), "cu_seqlens_kv": packed([5, 4])}
    causal = price(_fused("causal", "sbhd_sb2hd", q, k, **ends)).forward
    assert causal.exact == forward(shown([(3, 5)] * 2, causal=True, top_left=True))
    last = price(_fused("causal_bottom_right", "sbhd_sbhd_sbhd", q, k, **ends)).forward
    assert last.exact == forward(shown([(3, 5)] * 2, causal=True))
    padded = price(_fused("padding", "sbhd_sbhd_sbhd", q, k, **ends)).forward
    assert (padded.exact, padded.full, padded.hardware) == (forward(15 + 8), forward(30), forward(15 + 8))
    window = price(_fused("causal", "sbhd_sb2hd", q, k, **ends, bottom_right_diagonal=True) | {"window_size": (1, 0)})
    assert window.forward.exact == forward(shown([(3, 5)] * 2, causal=True, window=(1, 0)))
    total = _fused("padding_causal", "thd_thd_thd", torch.empty(5, H, D), torch.empty(9, KV, D), **ends)
    pairs = shown([(3, 5), (2, 4)], causal=True, top_left=True)
    assert price(total).forward.exact == forward(pairs)
    back = FUNCTIONS["transformer_engine.pytorch.cpp_extensions.fused_attn:fused_attn_bwd"].formula(total).forward
    assert (back.exact, back.hardware) == (2 * forward(pairs), 5 * 2 * H * pairs * D)
    with pytest.raises(FormulaError, match="arbitrary"):
        price(_fused("arbitrary", "thd_thd_thd", q, k, **ends))


def test_every_stand_in_has_a_price() -> None:
    """The names above are names in the table: a misspelled one would test nothing."""
    assert set(SCHEMAS) <= set(OPERATORS)
