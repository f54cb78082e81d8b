"""Which operators are declared to cost no FLOPs, and by which rule.

Four rules that torch's own schema states, then a table. Nothing is free by default: an operator that neither a rule
nor the table names, and that has no price, is uncounted.

1. A view moves nothing (`OpOverload.is_view`, tag `view_copy`).
2. An operator that torch tags `pointwise` does a few operations an element; by convention these are not FLOPs.
3. An operator that torch tags `reduction` likewise.
4. The in-place form, the `_foreach_` form and the derivative of a free operator are free.
"""

from functools import lru_cache
from typing import Final

import torch

_NORMALISATION: Final = """
    softmax log_softmax _softmax _log_softmax _softmax_backward_data _log_softmax_backward_data _safe_softmax
    _masked_softmax logcumsumexp _logcumsumexp native_layer_norm native_group_norm native_batch_norm native_norm
    _native_batch_norm_legit _native_batch_norm_legit_functional _native_batch_norm_legit_no_training
    _batch_norm_with_update _batch_norm_no_update _batch_norm_with_update_functional batch_norm batch_norm_stats
    batch_norm_elemt batch_norm_backward_elemt batch_norm_backward_reduce batch_norm_gather_stats
    batch_norm_gather_stats_with_counts batch_norm_update_stats cudnn_batch_norm miopen_batch_norm _fused_rms_norm
    renorm _weight_norm_interface quantized_batch_norm
"""
_ACTIVATION: Final = """
    glu glu_jvp glu_backward_jvp hardswish rrelu_with_noise rrelu_with_noise_functional _prelu_kernel
    log_sigmoid_forward log_sigmoid _add_relu elu leaky_relu hardtanh hardsigmoid hardshrink softshrink softplus
    _thnn_fused_lstm_cell _thnn_fused_lstm_cell_backward_impl _thnn_fused_gru_cell native_dropout _fused_dropout
    _masked_scale _transform_bias_rescale_qkv floor_divide
"""
_LOSS: Final = """
    binary_cross_entropy binary_cross_entropy_with_logits mse_loss smooth_l1_loss huber_loss soft_margin_loss
    multi_margin_loss multilabel_margin_loss_forward multilabel_margin_loss nll_loss_forward nll_loss
    nll_loss2d_forward nll_loss2d _ctc_loss _cudnn_ctc_loss miopen_ctc_loss _use_cudnn_ctc_loss _use_miopen_ctc_loss
"""
_POOLING: Final = """
    _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool2d max_pool2d_with_indices
    max_pool3d_with_indices fractional_max_pool2d fractional_max_pool3d max_unpool2d max_unpool3d mkldnn_max_pool2d
    mkldnn_max_pool3d mkldnn_adaptive_avg_pool2d quantized_max_pool1d quantized_max_pool2d quantized_max_pool3d
"""
_INDEXING: Final = """
    embedding embedding_dense embedding_renorm _embedding_bag _embedding_bag_forward_only _embedding_bag_dense
    _embedding_bag_per_sample_weights index index_add index_copy index_fill index_put _index_put_impl index_reduce
    index_select _unsafe_index _unsafe_index_put _unsafe_masked_index _unsafe_masked_index_put_accumulate gather
    scatter scatter_add scatter_reduce masked_fill masked_scatter masked_select put take select_scatter slice_scatter
    diagonal_scatter as_strided_scatter select slice diagonal unfold segment_reduce _segment_reduce nonzero
    nonzero_static repeat_interleave
"""
_COPYING: Final = """
    copy _copy_from _copy_from_and_resize _to_copy clone _lazy_clone cat _chunk_cat stack _stack block_diag repeat
    roll flip rot90 channel_shuffle pixel_shuffle pixel_unshuffle constant_pad_nd reflection_pad1d reflection_pad2d
    reflection_pad3d replication_pad1d replication_pad2d replication_pad3d col2im im2col _pin_memory _reshape_copy
    _unsafe_view unsafe_split unsafe_split_with_sizes lift complex polar tril triu diag_embed trace resize resize_as
    _resize_output set as_strided squeeze unsqueeze t transpose detach record_stream _pack_padded_sequence
    _jagged_to_padded_dense_forward _padded_dense_to_jagged_forward to_padded_tensor affine_grid_generator
    cudnn_affine_grid_generator _foreach_copy _make_dep_token is_set_to _cudnn_rnn_flatten_weight
    mkldnn_reorder_conv2d_weight mkldnn_reorder_conv3d_weight to_mkldnn _to_dense to_dense _mkldnn_reshape
    _mkldnn_transpose _spdiags from_file
"""
_MAKING: Final = """
    arange range linspace logspace eye empty empty_like empty_strided empty_permuted _efficientzerotensor full
    full_like ones ones_like zeros zeros_like new_empty new_empty_strided new_full new_ones new_zeros zero fill
    scalar_tensor _new_zeros_with_same_feature_meta tril_indices triu_indices bartlett_window blackman_window
    hamming_window hann_window kaiser_window fft_fftfreq fft_rfftfreq _cudnn_init_dropout_state
    _fill_mem_eff_dropout_mask rand rand_like randn randn_like randint randint_like randperm random uniform normal
    normal_functional log_normal bernoulli binomial cauchy exponential geometric multinomial poisson _standard_gamma
    _standard_gamma_grad _sample_dirichlet _dirichlet_grad _philox_key_fold_in _philox_key_split _philox_normal
    _philox_uniform
"""
_ORDERING: Final = """
    sort topk kthvalue median nanmedian mode bucketize searchsorted histc histogram _histogramdd_bin_edges
    _histogramdd_from_bin_cts _histogramdd_from_bin_tensors bincount isin unique_consecutive unique_dim
    unique_dim_consecutive _unique _unique2 cummax cummin _cummax_helper _cummin_helper cumsum cumprod _aminmax
    allclose equal _is_all_true _is_any_true dist linalg_cross hash_tensor
"""
_RESAMPLING: Final = """
    grid_sampler_2d grid_sampler_3d cudnn_grid_sampler _grid_sampler_2d_cpu_fallback upsample_bicubic2d
    upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_trilinear3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
"""
_TRAINING: Final = """
    _amp_foreach_non_finite_check_and_unscale _amp_update_scale _fused_adagrad _fused_adam _fused_adamw _fused_sgd
    _foreach_norm _foreach_max _foreach_powsum _foreach_zero _foreach_clone
"""
_QUANTIZING: Final = """
    quantize_per_tensor quantize_per_tensor_dynamic quantize_per_channel dequantize int_repr q_per_channel_scales
    q_per_channel_zero_points _make_per_tensor_quantized_tensor _make_per_channel_quantized_tensor empty_quantized
    _empty_affine_quantized _empty_per_channel_affine_quantized fake_quantize_per_tensor_affine_cachemask
    fake_quantize_per_channel_affine_cachemask _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
    _fake_quantize_learnable_per_tensor_affine _fake_quantize_learnable_per_channel_affine
    _fused_moving_avg_obs_fq_helper _fused_moving_avg_obs_fq_helper_functional _convert_weight_to_int4pack
    _convert_weight_to_int4pack_for_cpu _dyn_quant_pack_4bit_weight
"""
_ASKING: Final = """
    _local_scalar_dense item is_pinned is_coalesced is_same_size _assert_async _functional_assert_async
    _functional_assert_scalar _assert_tensor_metadata _functional_sym_constrain_range
    _functional_sym_constrain_range_for_size _has_same_storage_numel _fused_sdp_choice sparse_dim dense_dim _nnz _dimI
    _dimV q_scale q_zero_point q_per_channel_axis qscheme _linalg_check_errors _print
"""

_TABLE: Final = frozenset(
    " ".join(
        (
            _NORMALISATION,
            _ACTIVATION,
            _LOSS,
            _POOLING,
            _INDEXING,
            _COPYING,
            _MAKING,
            _ORDERING,
            _RESAMPLING,
            _TRAINING,
            _QUANTIZING,
            _ASKING,
        )
    ).split()
)
_NAMESPACES: Final = frozenset(
    {"c10d", "_c10d_functional", "_c10d_functional_autograd", "profiler", "prim", "inductor_prims"}
)
"""Collectives move bytes, which `Count.comm_bytes` holds; the others mark, ask, or draw random numbers."""


@lru_cache(maxsize=4096)
def is_free(func: torch._ops.OpOverload) -> bool:
    """Whether `func` is declared to cost nothing."""
    namespace, _, name = func._schema.name.partition("::")
    if func.is_view or namespace in _NAMESPACES:
        return True
    return namespace == "aten" and any(stem in _TABLE or _tagged(stem) for stem in _stems(name))


def _stems(name: str) -> list[str]:
    """`name` and what it is the in-place, foreach or derivative form of."""
    stems = [name]
    for end in ("_", "_backward", "_backward_data", "_backward_jvp"):
        stems += [s.removesuffix(end) for s in stems if s.endswith(end)]
    return stems + [s.removeprefix("_foreach_") for s in stems if s.startswith("_foreach_")]


def _tagged(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return False
    overloads: list[str] = packet.overloads()
    tags = {tag for overload in overloads for tag in getattr(packet, overload).tags}
    return not tags.isdisjoint({torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.view_copy})
