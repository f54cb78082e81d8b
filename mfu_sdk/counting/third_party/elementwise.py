"""Kernels of other libraries that multiply no matrices: norms, activations, rotary embeddings, losses, moves.

Declared to cost nothing, as torch's own of these kinds are. An autograd function's declaration covers the Triton
kernels that it launches; those that are launched beside products are declared by themselves.
"""

from collections.abc import Mapping
from typing import Final

from mfu_sdk.counting.formulas import FREE
from mfu_sdk.counting.functions import FunctionCost, FunctionPrice, KernelPrice
from mfu_sdk.counting.pricing import Price
from mfu_sdk.counting.third_party.products import free

_LIGER: Final = """
    cross_entropy:LigerCrossEntropyFunction dyt:LigerDyTFunction fused_add_rms_norm:LigerFusedAddRMSNormFunction
    geglu:LigerGELUMulFunction group_norm:LigerGroupNormFunction grpo_loss:GrpoLossFunction jsd:LigerJSDFunction
    kl_div:LigerKLDivLossFunction layer_norm:LigerLayerNormFunction llama4_rope:LigerLlama4RopeFunction
    modulated_rms_norm:LigerModulatedRMSNormFunction poly_norm:LigerPolyNormFunction
    qwen2vl_mrope:LigerQwen2VLMRopeFunction relu_squared:LigerReLUSquaredFunction rms_norm:LigerRMSNormFunction
    rope:LigerRopeFunction softmax:LigerSoftmaxFunction sparsemax:LigerSparsemaxFunction swiglu:LigerSiLUMulFunction
    swiglu:LigerFusedGateUpSiLUMulFunction tvd:LigerTVDLossFunction
    vocab_parallel_cross_entropy:LigerVocabParallelCEFunction experimental.embedding:LigerEmbeddingFunction
"""
_FLA: Final = """
    modules.activations:SigmoidFunction modules.activations:LogSigmoidFunction modules.activations:SwishFunction
    modules.activations:GeLUFunction modules.activations:FastGeLUFunction modules.activations:SquaredReLUFunction
    modules.activations:SwiGLUFunction modules.activations:SigmoidGLUFunction modules.activations:PowGLUFunction
    modules.fused_cross_entropy:CrossEntropyLossFunction modules.grpo:GrpoLoss modules.l2norm:L2NormFunction
    modules.l2warp:L2Wrap modules.layernorm:LayerNormFunction modules.layernorm_gated:LayerNormFn
    modules.fused_norm_gate:LayerNormGatedFunction modules.rotary:RotaryEmbeddingFunction
    modules.token_shift:TokenShift modules.token_shift_cp:TokenShiftCPFunction layers.utils:IndexFirstAxis
    layers.utils:IndexPutFirstAxis ops.common.gate:BetaSigmoidFunction ops.gated_delta_rule.gate:GDNGateFunction
    ops.kda.gate:KDAGateFunction ops.linear_attn.utils:StatefulNormalizeFunction ops.hgrn.chunk:ChunkHGRNFunction
    ops.hgrn.fused_recurrent:FusedRecurrentHGRNFunction ops.rwkv7.fused_addcmul:Rwkv7FusedAddcmul
    ops.rwkv7.fused_k_update:KUpdateFunction ops.rwkv7.gate_output_correction:GateOutputCorrection
    ops.utils.pack:PackSequenceFunction ops.utils.pack:UnpackSequenceFunction ops.utils.pooling:MeanPoolingFunction
"""
_MAMBA: Final = """
    layer_norm:LayerNormFn layernorm_gated:LayerNormFn k_activations:SwiGLU
"""
_FLASH: Final = """
    layers.rotary:ApplyRotaryEmb layers.rotary:ApplyRotaryEmbQKV_ layers.rotary:ApplyRotaryEmbKV_
    ops.activations:SwiGLUFunction ops.layer_norm:DropoutAddLayerNormFn ops.layer_norm:DropoutAddLayerNormSubsetFn
    ops.layer_norm:DropoutAddLayerNormParallelResidualFn ops.triton.cross_entropy:CrossEntropyLoss
    ops.triton.layer_norm:LayerNormFn
"""
_UNSLOTH: Final = """
    rms_layernorm:Fast_RMS_Layernorm layernorm:Fast_Layernorm rope_embedding:Fast_RoPE_Embedding
    rope_embedding:Fast_RoPE_Embedding_QK rope_embedding:Slow_RoPE_Embedding cross_entropy_loss:Fast_CrossEntropyLoss
"""
# Activations that unsloth launches between the products of its low-rank adapters.
_UNSLOTH_KERNELS: Final = """
    swiglu:_fg_kernel swiglu:_DWf_DW_dfg_kernel geglu:_exact_forward_kernel geglu:_exact_backward_kernel
    geglu:_approx_forward_kernel geglu:_approx_backward_kernel
"""

_NO_FLOPS: Final = FunctionPrice(
    lambda _: FunctionCost(FREE, lambda _: FREE), "", words="0", source="the library's source: no product in it"
)
_NO_KERNEL_FLOPS: Final = KernelPrice(lambda _: FREE, "", words="0", source=_NO_FLOPS.source)

FUNCTIONS: Final[Mapping[str, FunctionPrice]] = {
    f"{library}.{name}.forward": _NO_FLOPS
    for library, names in (
        ("liger_kernel.ops", _LIGER),
        ("fla", _FLA),
        ("mamba_ssm.ops.triton", _MAMBA),
        ("flash_attn", _FLASH),
        ("unsloth.kernels", _UNSLOTH),
    )
    for name in names.split()
}
KERNELS: Final[Mapping[str, KernelPrice]] = {
    f"unsloth.kernels.{name}": _NO_KERNEL_FLOPS for name in _UNSLOTH_KERNELS.split()
}
OPERATORS: Final[Mapping[str, Price]] = free(
    "layer_norm_fwd_impl layer_norm_bwd_impl", "flash_attn", "flash_attn/ops/triton/layer_norm.py at 0251105a"
)
