"""torchao and bitsandbytes: quantised products and what quantises for them.

Most of torchao's float8 and int4 arithmetic is `aten`'s (`_scaled_mm`, `_weight_int4pack_mm`) and counted there.
"""

import math
from collections.abc import Mapping
from typing import Final

from mfu_sdk.counting import attention
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.formulas import Cost
from mfu_sdk.counting.masks import Masks
from mfu_sdk.counting.pricing import Price
from mfu_sdk.counting.third_party.products import by_kept, by_result, by_sizes, free

_SOURCE: Final = "pytorch/ao at 36027d82d"
_BITS: Final = "bitsandbytes-foundation/bitsandbytes, _ops.py at 0155ecc6"


def _quantised_attention(call: Call, masks: Masks) -> Cost:
    """SDPA on integers: (batch, heads, length, size)."""
    query, key, value, mask = call.shape("query"), call.shape("key"), call.shape("value"), call["attn_mask"]
    heads = math.prod(query[:-2])
    full = heads * query[-2] * key[-2]
    exact = heads * attention.pairs(query[-2], key[-2], causal="top_left" if call["is_causal"] else None)
    if mask is None:
        return attention.forward(exact, full, exact, query[-1], value[-1])
    allowed = masks.allowed(mask)
    if allowed is not None:
        exact = min(exact, full * allowed // mask.numel())
    return attention.forward(exact, full, full, query[-1], value[-1])


_QUANTISING: Final = """
    triton_fp8_blockwise_act_quant_lhs triton_fp8_blockwise_act_quant_rhs
    triton_fp8_blockwise_act_quant_transposed_lhs triton_fp8_blockwise_weight_quant_rhs
    triton_fp8_blockwise_weight_quant_transposed_rhs triton_fp8_blockwise_act_quant_k_grouped_deepgemm
    triton_fp8_blockwise_weight_quant_grouped_forward_rhs triton_fp8_blockwise_weight_quant_grouped_dgrad_rhs
    triton_fp8_rowwise_transpose_rhs triton_fp8_rowwise_transpose_rhs_fused triton_fp8_colwise_3d_scale_and_cast
    triton_fp8_rowwise_2d_scale_and_cast triton_fp8_per_group_rowwise_scales triton_fp8_per_group_colwise_scales
    triton_fp8_per_group_colwise_scales_dual triton_mx_block_rearrange_2d_M_groups
    triton_mx_block_rearrange_per_group_3d triton_mx_block_rearrange_2d_K_groups mx_block_rearrange_2d_M_groups
    mxfp8_quantize mxfp8_quantize_3d mxfp8_quantize_3d_cutedsl mxfp8_quantize_2d_1x32_cutedsl
    mxfp8_quantize_2d_32x1_cutedsl mxfp8_quantize_3d_flydsl mxfp8_quantize_2d_1x32_flydsl
    mxfp8_quantize_2d_32x1_flydsl triton_mxfp8_dequant_dim0 triton_to_mxfp8_dim0 triton_to_mxfp8_dim1
    fused_pad_token_groups fused_unpad_token_groups to_sparse_semi_structured_cutlass_sm9x_f8
    da8w4_linear_prepack_cpu float8_linear_prepack_cpu _scaled_embedding_bag _triton_permute_bwd
    _fill_indices_wrapper triton_weight_quantize_2d triton_group_weight_quantize_2d triton_group_weight_amax
    cutedsl_weight_quantize_2d unpack_tensor_core_tiled_layout dequantize_tensor_core_tiled_layout
    quantize_affine dequantize_affine choose_qparams_affine
"""

OPERATORS: Final[Mapping[str, Price]] = {
    "torchao::mx_fp8_bf16": by_result("a", _SOURCE),
    "torchao::mx_fp4_bf16": by_result("a", _SOURCE, in_an_element=2),
    "torchao::blockwise_scaled_mm": by_result("a", _SOURCE),
    "torchao::triton_fp8_gemm_1x128_128x128": by_result("a", _SOURCE),
    "torchao::triton_fp8_gemm_1x128_128x1": by_result("a", _SOURCE),
    "ao::blockwise_fp8_gemm": by_result("a", _SOURCE),
    "torchao::int_scaled_matmul": by_result("a", _SOURCE),
    "torchao::da8w4_linear_cpu": by_result("input", _SOURCE),
    "torchao::float8_linear_cpu": by_result("input", _SOURCE),
    "torchao::quant_llm_linear": by_result("_in_feats", _SOURCE),
    "torchao::marlin_qqq_gemm": by_sizes("x", _SOURCE),
    "torchao::rowwise_scaled_linear_sparse_cutlass_f8f8": by_kept("input", "weight", _SOURCE),
    "torchao::rowwise_scaled_linear_cutlass_s8s4": by_result("input", _SOURCE),
    "torchao::rowwise_scaled_linear_cutlass_s4s4": by_result("input", _SOURCE, in_an_element=2),
    **{f"torchao::_linear_8bit_act_{bits}bit_weight": by_result("activations", _SOURCE) for bits in range(1, 9)},
    "torchao::qscaled_dot_product": Price(
        _quantised_attention, "query", words="2·pairs·(d_qk + d_v) a query head", source=_SOURCE
    ),
    **free(_QUANTISING, "torchao", _SOURCE),
    **free("mslk_quantize_nvfp4 mslk_calculate_group_max mslk_quantize_nvfp4_stacked", "ao", _SOURCE),
    "bitsandbytes::int8_linear_matmul": by_result("A", _BITS),
    "bitsandbytes::int8_scaled_mm": by_result("A", _BITS),
    "bitsandbytes::int8_mixed_scaled_mm": by_result("CA", _BITS),
    "bitsandbytes::gemv_4bit": by_result("A", _BITS),
    "bitsandbytes::gemm_4bit": by_result("A", _BITS),
    **free(
        "int8_vectorwise_quant int8_vectorwise_dequant int8_mm_dequant int8_double_quant dequantize_4bit quantize_4bit"
        " dequantize_blockwise quantize_blockwise optimizer_update_32bit optimizer_update_8bit_blockwise",
        "bitsandbytes",
        _BITS,
    ),
}
