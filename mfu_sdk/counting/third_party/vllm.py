"""vLLM: paged attention, quantised products, mixtures of experts, and what is elementwise there.

Its attention is one operator that is given queries and a layer's name; lengths, masks and windows are in vLLM's own
forward context, which is read where vLLM is loaded. `vllm::moe_forward` hides its experts altogether and stays
uncounted.
"""

import sys
from collections.abc import Mapping
from typing import Any, Final

from mfu_sdk.counting import attention
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.formulas import FREE, Cost
from mfu_sdk.counting.functions import KernelPrice
from mfu_sdk.counting.masks import Masks
from mfu_sdk.counting.pricing import Price
from mfu_sdk.counting.third_party import flash_attention
from mfu_sdk.counting.third_party.products import by_problems, by_result, by_sizes, free
from mfu_sdk.counting.third_party.sequences import cost, differences, side, values
from mfu_sdk.errors import FormulaError

_SOURCE: Final = (
    "vllm-project/vllm, csrc/torch_bindings.cpp at 00256d59 and csrc/libtorch_stable/torch_bindings.cpp at 0135b6c0"
)


def _in_context(call: Call, _: Masks) -> Cost:
    """Attention of one layer over its pages, whatever the shape of its queries."""
    module = sys.modules.get("vllm.forward_context")
    if module is None:
        raise FormulaError("vLLM attention outside of vLLM: its lengths are in its context; register a formula")
    context, name = module.get_forward_context(), call["layer_name"]
    metadata = context.attn_metadata
    metadata = metadata.get(name) if isinstance(metadata, dict) else metadata
    if metadata is None:
        # A profiling run of vLLM's: attention is left out.
        return FREE
    layer = context.no_compile_layers[name]
    if getattr(layer, "use_mla", False) or not hasattr(metadata, "query_start_loc"):
        raise FormulaError(f"vLLM attention with {type(metadata).__name__}: no price; register a formula")
    queries, keys = differences(metadata.query_start_loc), values(metadata.seq_lens)
    left, right = _window(getattr(layer.impl, "sliding_window", None))
    sizes = int(layer.head_size), int(getattr(layer, "head_size_v", layer.head_size))
    lengths = list(zip(queries, keys, strict=True))
    causal = bool(getattr(metadata, "causal", True))
    return cost(attention.forward, lengths, int(layer.num_heads), sizes, causal=causal, window=(left, right))


_ATTENTION_IN_CONTEXT: Final = Price(
    _in_context, "query", words="2·pairs·(d_qk + d_v) a query head", source=_SOURCE, by_shapes=False
)


def _window(size: Any) -> tuple[int | None, int | None]:
    """A sliding window: flash-attention's pair, or the number of keys that a query sees, itself among them."""
    if size is None:
        return None, None
    if isinstance(size, int):
        return (None, None) if size <= 0 else (size - 1, 0)
    return side(size[0]), side(size[1])


def _decode(call: Call, _: Masks) -> Cost:
    """One query for each sequence: (sequences, heads, size)."""
    if (call.get("blocksparse_vert_stride") or 0) > 1:
        raise FormulaError("block-sparse paged attention: its blocks are the kernel's own; register a formula")
    query, pairs = call.shape("query"), sum(values(call["seq_lens"]))
    return attention.forward(query[-2] * pairs, query[-2] * pairs, query[-2] * pairs, query[-1], query[-1])


def _latent_decode(call: Call, _: Masks) -> Cost:
    """Multi-head latent attention with absorbed weights: the value is the key without its rotary part."""
    latent, rotary = call.shape("q_nope"), call.shape("q_pe")
    pairs = latent[-2] * sum(values(call["seq_lens"]))
    return attention.forward(pairs, pairs, pairs, latent[-1] + rotary[-1], latent[-1])


def _cache(call: Call, _: Masks) -> Cost:
    """flash-attention's call over a cache, under vLLM's names."""
    query, value = call.shape("q"), call.shape("vcache")
    used, new = call["seqlens_k"], call["k"]
    if used is None:
        raise FormulaError("attention over a cache without its lengths: no price without them; register a formula")
    keys = [length + (0 if new is None else new.shape[1]) for length in values(used)]
    lengths = [(query[1], length) for length in keys]
    window = side(call["window_size_left"]), side(call["window_size_right"])
    return cost(attention.forward, lengths, query[-2], (query[-1], value[-1]), causal=call["is_causal"], window=window)


def _experts(call: Call, _: Masks) -> Cost:
    """Experts of two matrices, the first of which holds gate and up: each row meets those that it was routed to."""
    routed, mapped = call["topk_ids"], call.get("expert_map")
    rows = routed.numel()
    if mapped is not None:
        # Experts that live on other ranks are −1 here.
        here = values(mapped)
        rows = sum(here[expert] >= 0 for expert in values(routed))
    hidden, inner = call.shape("hidden_states")[-1], call.shape("w1")[1]
    gated = not str(call.get("activation", "silu")).endswith("_no_mul")
    return Cost.plain(2 * rows * hidden * (inner + (inner // 2 if gated else inner)))


def _scan(call: Call, _: Masks) -> Cost:
    """A selective scan: 4·D·N a token, as in `mamba`."""
    return Cost.plain(4 * call["u"].numel() * call.shape("A")[-1])


def _routed_product(named: Mapping[str, Any]) -> Cost:
    """The Triton kernel of experts: `num_valid_tokens` rows, each of K numbers, times N columns."""
    return Cost.plain(2 * int(named["num_valid_tokens"]) * int(named["N"]) * int(named["K"]))


def _priced(formula: Any, operand: str, words: str) -> Price:
    return Price(formula, operand, words=words, source=_SOURCE)


_FREE: Final = """
    rms_norm fused_add_rms_norm rms_norm_weightless fused_add_rms_norm_weightless rms_norm_static_fp8_quant
    fused_add_rms_norm_static_fp8_quant rms_norm_dynamic_per_token_quant rms_norm_per_block_quant fused_qk_norm_rope
    rotary_embedding batched_rotary_embedding silu_and_mul mul_and_silu gelu_and_mul gelu_tanh_and_mul fatrelu_and_mul
    swigluoai_and_mul gelu_new gelu_fast gelu_quick silu_and_mul_quant silu_and_mul_per_block_quant
    silu_and_mul_nvfp4_quant persistent_masked_m_silu_mul_quant static_scaled_fp8_quant dynamic_scaled_fp8_quant
    dynamic_per_token_scaled_fp8_quant static_scaled_int8_quant dynamic_scaled_int8_quant per_token_group_fp8_quant
    per_token_group_fp8_quant_packed per_token_group_quant_int8 scaled_fp4_quant scaled_fp4_experts_quant
    silu_and_mul_scaled_fp4_experts_quant mxfp4_experts_quant silu_and_mul_mxfp4_experts_quant mxfp8_experts_quant
    merge_attn_states weak_ref_tensor apply_repetition_penalties top_k_per_row_prefill top_k_per_row_decode
    persistent_topk permute_cols awq_dequantize ggml_dequantize gptq_shuffle gptq_marlin_repack awq_marlin_repack
    get_cutlass_moe_mm_data get_cutlass_batched_moe_mm_data minimax_allreduce_rms minimax_allreduce_rms_qk
    machete_prepack_B cutlass_encode_and_reorder_int4b cutlass_pack_scale_fp8 rearrange_kn_weight_as_n32k16_order
"""
_CACHE: Final = """
    reshape_and_cache reshape_and_cache_flash concat_and_cache_mla concat_and_cache_mla_rope_fused convert_fp8
    gather_and_maybe_dequant_cache cp_gather_cache cp_gather_and_upconvert_fp8_kv_cache indexer_k_quant_and_cache
    concat_mla_q cp_gather_indexer_k_quant_cache swap_blocks swap_blocks_batch copy_blocks
"""
_MOE: Final = """
    topk_softmax topk_sigmoid grouped_topk moe_sum moe_align_block_size sgl_moe_align_block_size
    batched_moe_align_block_size moe_permute moe_unpermute shuffle_rows
"""

OPERATORS: Final[Mapping[str, Price]] = {
    "vllm::unified_attention": _ATTENTION_IN_CONTEXT,
    "vllm::unified_attention_with_output": _ATTENTION_IN_CONTEXT,
    **{
        f"{library}::{name}_fused_experts": _priced(_experts, "hidden_states", "6·routed rows·hidden·inner")
        for library in ("vllm", "sglang")
        for name in ("inplace", "outplace")
    },
    "_vllm_fa2_C::varlen_fwd": flash_attention.operator(attention.forward, "q"),
    "_vllm_fa2_C::fwd_kvcache": _priced(_cache, "q", "2·pairs·(d_qk + d_v) a query head"),
    "_vllm_fa3_C::fwd": flash_attention.operator(attention.forward, "q"),
    "_C::paged_attention_v1": _priced(_decode, "query", "4·Σ lengths·d a query head"),
    "_C::paged_attention_v2": _priced(_decode, "query", "4·Σ lengths·d a query head"),
    "_C::sm100_cutlass_mla_decode": _priced(_latent_decode, "q_nope", "2·Σ lengths·(d_qk + d_v) a query head"),
    "_C::cutlass_scaled_mm": by_result("a", _SOURCE, out="out"),
    "_C::cutlass_scaled_mm_azp": by_result("a", _SOURCE, out="out"),
    "_C::cutlass_scaled_fp4_mm": by_result("a", _SOURCE, out="out", in_an_element=2),
    "_C::cutlass_moe_mm": by_problems("a_tensors", _SOURCE),
    "_C::cutlass_w4a8_moe_mm": by_problems("a_tensors", _SOURCE),
    "_C::cutlass_fp4_group_mm": by_problems("a", _SOURCE),
    "_C::cutlass_mxfp4_group_mm": by_problems("a", _SOURCE),
    "_C::cutlass_mxfp8_grouped_mm": by_problems("a", _SOURCE),
    "_C::cutlass_w4a8_mm": by_result("A", _SOURCE),
    "_C::machete_mm": by_result("A", _SOURCE),
    "_C::allspark_w8a16_gemm": by_result("a", _SOURCE),
    "_C::awq_gemm": by_result("_in_feats", _SOURCE),
    "_C::gptq_gemm": by_result("a", _SOURCE),
    "_C::marlin_gemm": by_sizes("a", _SOURCE),
    "_C::gptq_marlin_gemm": by_sizes("a", _SOURCE),
    "_C::ggml_mul_mat_a8": by_result("X", _SOURCE),
    "_C::ggml_mul_mat_vec_a8": by_result("X", _SOURCE),
    "_C::dsv3_fused_a_gemm": by_result("mat_a", _SOURCE, out="output"),
    "_C::fp32_router_gemm": by_result("mat_a", _SOURCE, out="output"),
    "_moe_C::moe_wna16_gemm": by_result("input", _SOURCE, out="output"),
    "_C::selective_scan_fwd": _priced(_scan, "u", "4·D·N a token"),
    **free(_FREE, "_C", _SOURCE),
    **free(_CACHE, "_C_cache_ops", _SOURCE),
    **free(_MOE, "_moe_C", _SOURCE),
    **free("unified_kv_cache_update all_reduce reduce_scatter all_gather", "vllm", _SOURCE),
}
KERNELS: Final[Mapping[str, KernelPrice]] = {
    f"{library}.fused_moe:fused_moe_kernel": KernelPrice(
        _routed_product, "a_ptr", words="2·routed rows·N·K", source=_SOURCE
    )
    for library in ("vllm.model_executor.layers.fused_moe", "sglang.srt.layers.moe.fused_moe_triton")
}
