"""Which operators are declared to cost no FLOPs, and by which rule.

Four rules that torch's own schema states, then tables, which say why. Nothing is free by default: an operator that
neither a rule nor a table names, and that has no price, is uncounted.

1. A view moves nothing (`OpOverload.is_view`, tag `view_copy`).
2. An operator that torch tags `pointwise` does a few operations an element; by convention these are not FLOPs.
3. An operator that torch tags `reduction` likewise.
4. The in-place form, the `_foreach_` form and the derivative of a free operator are free.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import torch

_ATEN: Final[Mapping[str, str]] = {
    "Normalisation and softmax": """
        softmax log_softmax _softmax _log_softmax _softmax_backward_data _log_softmax_backward_data
        _safe_softmax _masked_softmax logcumsumexp _logcumsumexp native_layer_norm native_group_norm
        native_batch_norm native_norm _native_batch_norm_legit _native_batch_norm_legit_functional
        _native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_no_update
        _batch_norm_with_update_functional batch_norm batch_norm_stats batch_norm_elemt
        batch_norm_backward_elemt batch_norm_backward_reduce batch_norm_gather_stats
        batch_norm_gather_stats_with_counts batch_norm_update_stats cudnn_batch_norm miopen_batch_norm
        _fused_rms_norm renorm _weight_norm_interface quantized_batch_norm _sparse_softmax _sparse_log_softmax
        _nested_tensor_softmax_with_shape
    """,
    "Activations, gates and dropout": """
        glu glu_jvp glu_backward_jvp hardswish rrelu_with_noise rrelu_with_noise_functional _prelu_kernel
        log_sigmoid_forward log_sigmoid _add_relu elu leaky_relu hardtanh hardsigmoid hardshrink softshrink
        softplus _thnn_fused_lstm_cell _thnn_fused_lstm_cell_backward_impl _thnn_fused_gru_cell native_dropout
        _fused_dropout _masked_scale _transform_bias_rescale_qkv floor_divide
    """,
    "Pointwise, though torch does not say so": "__irshift__",
    "Losses": """
        binary_cross_entropy binary_cross_entropy_with_logits mse_loss smooth_l1_loss huber_loss
        soft_margin_loss multi_margin_loss multilabel_margin_loss_forward multilabel_margin_loss
        nll_loss_forward nll_loss nll_loss2d_forward nll_loss2d _ctc_loss _cudnn_ctc_loss miopen_ctc_loss
        _use_cudnn_ctc_loss _use_miopen_ctc_loss
    """,
    "Pooling": """
        _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool2d
        max_pool2d_with_indices max_pool3d_with_indices fractional_max_pool2d fractional_max_pool3d max_unpool2d
        max_unpool3d mkldnn_max_pool2d mkldnn_max_pool3d mkldnn_adaptive_avg_pool2d quantized_max_pool1d
        quantized_max_pool2d quantized_max_pool3d
    """,
    "Look-ups and scattering": """
        embedding embedding_dense embedding_renorm _embedding_bag _embedding_bag_forward_only
        _embedding_bag_dense _embedding_bag_per_sample_weights index index_add index_copy index_fill index_put
        _index_put_impl index_reduce index_select _unsafe_index _unsafe_index_put _unsafe_masked_index
        _unsafe_masked_index_put_accumulate gather scatter scatter_add scatter_reduce masked_fill masked_scatter
        masked_select put take select_scatter slice_scatter diagonal_scatter as_strided_scatter select slice
        diagonal unfold segment_reduce _segment_reduce nonzero nonzero_static repeat_interleave _nested_select
        sparse_mask _sparse_mask_projection
    """,
    "Copies and changes of layout": """
        copy _copy_from _copy_from_and_resize _to_copy clone _lazy_clone cat _chunk_cat stack _stack block_diag
        repeat roll flip rot90 channel_shuffle pixel_shuffle pixel_unshuffle constant_pad_nd reflection_pad1d
        reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d col2im im2col
        _pin_memory _reshape_copy _unsafe_view unsafe_split unsafe_split_with_sizes lift complex polar tril triu
        diag_embed trace resize resize_as _resize_output set as_strided squeeze unsqueeze t transpose detach
        record_stream _pack_padded_sequence _jagged_to_padded_dense_forward _padded_dense_to_jagged_forward
        to_padded_tensor affine_grid_generator cudnn_affine_grid_generator _foreach_copy _make_dep_token
        is_set_to _cudnn_rnn_flatten_weight mkldnn_reorder_conv2d_weight mkldnn_reorder_conv3d_weight to_mkldnn
        _to_dense to_dense _mkldnn_reshape _mkldnn_transpose _spdiags from_file _nested_from_padded
        _nested_from_padded_tensor _nested_from_padded_and_nested_example _nested_tensor_from_mask
        _nested_tensor_from_tensor_list _coalesce _to_sparse _to_sparse_csr _to_sparse_csc _to_sparse_bsr
        _to_sparse_bsc copy_sparse_to_sparse resize_as_sparse sparse_resize sparse_resize_and_clear
        _convert_indices_from_coo_to_csr _convert_indices_from_csr_to_coo lu_unpack
    """,
    "Pruning: two of each four numbers are kept": """
        _to_sparse_semi_structured _sparse_semi_structured_apply _sparse_semi_structured_apply_dense
        _sparse_semi_structured_tile _cslt_compress
    """,
    "Making tensors, and random numbers": """
        arange range linspace logspace eye empty empty_like empty_strided empty_permuted _efficientzerotensor
        full full_like ones ones_like zeros zeros_like new_empty new_empty_strided new_full new_ones new_zeros
        zero fill scalar_tensor _new_zeros_with_same_feature_meta tril_indices triu_indices bartlett_window
        blackman_window hamming_window hann_window kaiser_window fft_fftfreq fft_rfftfreq
        _cudnn_init_dropout_state _fill_mem_eff_dropout_mask rand rand_like randn randn_like randint
        randint_like randperm random uniform normal normal_functional log_normal bernoulli binomial cauchy
        exponential geometric multinomial poisson _standard_gamma _standard_gamma_grad _sample_dirichlet
        _dirichlet_grad _philox_key_fold_in _philox_key_split _philox_normal _philox_uniform sparse_coo_tensor
        _sparse_coo_tensor_with_dims _sparse_coo_tensor_with_dims_and_tensors sparse_compressed_tensor
        _sparse_compressed_tensor_with_dims
    """,
    "Sorting, sums along an axis, and comparisons": """
        sort topk kthvalue median nanmedian mode bucketize searchsorted histc histogram _histogramdd_bin_edges
        _histogramdd_from_bin_cts _histogramdd_from_bin_tensors bincount isin unique_consecutive unique_dim
        unique_dim_consecutive _unique _unique2 cummax cummin _cummax_helper _cummin_helper cumsum cumprod
        _aminmax allclose equal _is_all_true _is_any_true dist linalg_cross hash_tensor _sparse_sum
        _sparse_csr_sum _sparse_csr_prod _nested_sum
    """,
    "Resampling": """
        grid_sampler_2d grid_sampler_3d cudnn_grid_sampler _grid_sampler_2d_cpu_fallback upsample_bicubic2d
        upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
        upsample_trilinear3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa
        _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    """,
    "Optimizers' pointwise updates": """
        _amp_foreach_non_finite_check_and_unscale _amp_update_scale _fused_adagrad _fused_adam _fused_adamw
        _fused_sgd _foreach_norm _foreach_max _foreach_powsum _foreach_zero _foreach_clone
    """,
    "Quantising, dequantising and packing": """
        quantize_per_tensor quantize_per_tensor_dynamic quantize_per_channel dequantize int_repr
        q_per_channel_scales q_per_channel_zero_points _make_per_tensor_quantized_tensor
        _make_per_channel_quantized_tensor empty_quantized _empty_affine_quantized
        _empty_per_channel_affine_quantized fake_quantize_per_tensor_affine_cachemask
        fake_quantize_per_channel_affine_cachemask _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
        _fake_quantize_learnable_per_tensor_affine _fake_quantize_learnable_per_channel_affine
        _fused_moving_avg_obs_fq_helper _fused_moving_avg_obs_fq_helper_functional _convert_weight_to_int4pack
        _convert_weight_to_int4pack_for_cpu _dyn_quant_pack_4bit_weight
    """,
    "Questions about tensors, and checks": """
        _local_scalar_dense item is_pinned is_coalesced is_same_size _assert_async _functional_assert_async
        _functional_assert_scalar _assert_tensor_metadata _functional_sym_constrain_range
        _functional_sym_constrain_range_for_size _has_same_storage_numel _fused_sdp_choice sparse_dim dense_dim
        _nnz _dimI _dimV q_scale q_zero_point q_per_channel_axis qscheme _linalg_check_errors _print _coalesced
        _validate_compressed_sparse_indices _nested_compute_contiguous_strides_offsets _nested_get_jagged_dummy
        _nested_get_lengths _nested_get_max_seqlen _nested_get_min_seqlen _nested_get_offsets
        _nested_get_ragged_idx _nested_tensor_from_mask_left_aligned _nested_tensor_size
        _nested_tensor_storage_offsets _nested_tensor_strides
    """,
}

# Of namespaces that have products too, only what is named here is free: a product that joins them must not be.
_OTHERS: Final[Mapping[str, str]] = {
    "prims": """
        inductor_random inductor_seeds inductor_seed inductor_lookup_seed inductor_randint inductor_rand_eager_offset
        inductor_rand_eager_offsets inductor_force_stride_order inductor_cvt_e8m0_rceil log normal cbrt bessel_i1e
        digamma hypot gt as_strided_scatter asinh full scalar_tensor where empty_permuted round atan2 amax bessel_j1
        fmin empty amin device_put bessel_i1 bessel_i0 sign _low_memory_max_pool_with_offsets
        _low_memory_max_pool_offsets_to_indices trunc bitwise_and item rsqrt _unsafe_index_put_ ndtri pow iota cat
        cosh add eq _sink_tokens _make_token igamma igammac asin exp2 conj_physical ge shift_right_arithmetic
        shift_left as_strided full_like zeta bessel_i0e fma gcd fmod collapse cos minimum maximum sub tanh log10
        spherical_bessel_j0 erfcx le atanh clone fmax atan bitwise_not acosh bessel_j0 erf_inv xor_sum sum tan mul
        fill acos abs neg log2 floor copy_to copy_strided uniform signbit sin expm1 ceil sinh prepare_softmax_online
        reciprocal erfc bitwise_xor prod exp remainder nextafter resize lt erf rev bitwise_or var div empty_strided
        log1p ne isfinite sqrt reshape lgamma convert_element_type frexp
    """,
    "quantized": """
        add add_out add_relu add_relu_out add_scalar add_scalar_out add_scalar_relu add_scalar_relu_out mul mul_out
        mul_relu mul_relu_out mul_scalar mul_scalar_out mul_scalar_relu mul_scalar_relu_out batch_norm batch_norm_relu
        batch_norm1d batch_norm1d_relu batch_norm2d batch_norm2d_relu batch_norm3d batch_norm3d_relu group_norm
        instance_norm layer_norm cat cat_out cat_relu cat_relu_out celu elu hardswish leaky_relu prelu relu6 sigmoid
        softmax threshold clamp dropout max_pool1d max_pool2d embedding_byte embedding_4bit embedding_bag_byte
        embedding_bag_4bit embedding_bag_byte_rowwise_offsets embedding_bag_4bit_rowwise_offsets
        embedding_bag_2bit_rowwise_offsets embedding_bag_prepack embedding_bag_byte_prepack
        embedding_bag_4bit_prepack embedding_bag_2bit_prepack embedding_bag_byte_unpack embedding_bag_4bit_unpack
        embedding_bag_2bit_unpack embedding_bag_byte_prepack_with_rowwise_min_max
        embedding_bag_4bit_prepack_with_rowwise_min_max embedding_bag_2bit_prepack_with_rowwise_min_max
        linear_prepack linear_prepack_legacy linear_prepack_fp16 linear_prepack_fp16_legacy linear_unpack
        linear_unpack_fp16 conv_prepack conv1d_prepack conv2d_prepack conv3d_prepack conv_transpose1d_prepack
        conv_transpose2d_prepack conv_transpose3d_prepack make_quantized_cell_params
        make_quantized_cell_params_dynamic
    """,
    "_quantized": """
        add linear_prepack linear_prepack_legacy linear_prepack_fp16 linear_prepack_fp16_legacy conv2d_prepack
        conv3d_prepack conv_transpose1d_prepack conv_transpose2d_prepack conv_transpose3d_prepack
        _wrapped_linear_prepack wrapped_fbgemm_pack_gemm_matrix_fp16
    """,
    "quantization": "_FloatToBfloat16Quantized _Bfloat16QuantizedToFloat",
    "quantized_decomposed": """
        quantize_per_tensor quantize_per_channel quantize_per_channel_group quantize_per_token dequantize_per_tensor
        dequantize_per_channel dequantize_per_channel_group dequantize_per_token choose_qparams
        choose_qparams_symmetric choose_qparams_per_token choose_qparams_per_token_asymmetric
        _choose_qparams_per_token_asymmetric_impl fake_quant_per_channel convert_element_type
    """,
    "sparse": "qlinear_prepack qlinear_unpack",
    "onednn": "qadd qadd_relu qmul qbatch_norm2d qlinear_prepack qconv_prepack linear_prepack_fp16",
    "mkldnn": """
        _reorder_linear_weight _reorder_convolution_weight _reorder_convolution_transpose_weight
        _reorder_mkldnn_rnn_layer_weight _get_mkldnn_serialized_md _nbytes data_ptr
    """,
    "mkl": "_mkl_reorder_linear_weight",
    "mkldnn_prepacked": "conv2d_prepack",
    "inductor": "accumulate_grad_ resize_storage_bytes_ _reinterpret_tensor _alloc_from_pool",
    "_inductor_test": "realize",
    "symm_mem": """
        _barrier _rendezvous _low_contention_all_gather _low_contention_reduce_scatter all_to_all_vdev
        all_to_all_vdev_2d all_to_all_vdev_2d_offset get_remote_tensors memset32_ multi_root_tile_reduce tile_reduce
        multimem_all_gather_out multimem_all_reduce_ multimem_one_shot_all_reduce multimem_one_shot_all_reduce_out
        multimem_one_shot_reduce_out nccl_get nccl_put nccl_put_signal nccl_put_with_signal
        nccl_reduce_scatter_offset nccl_wait_for_signal nccl_wait_signal nvshmem_all_to_all nvshmem_broadcast
        nvshmem_get nvshmem_put nvshmem_put_with_signal nvshmem_wait_for_signal one_shot_all_reduce
        one_shot_all_reduce_out one_shot_all_reduce_copy one_shot_all_reduce_copy_out reduce_scatter_out
        stream_write_value32_ two_shot_all_reduce_ two_shot_all_reduce_out
    """,
    "cplib": "flex_cp_allgather flex_cp_allgather_backward",
    "flex_lib": "zeros_and_scatter",
    "onnx": "RotaryEmbedding",
    "static_runtime": """
        expand_dims_copy embedding_bag permute_copy to_copy to_maybe_copy_out layer_norm dequantize_copy
        clamp_nan_to_num fused_equally_split flatten_copy signed_log1p reshape_copy select_tensor
    """,
    "torchvision": """
        nms roi_align _roi_align_backward roi_pool _roi_pool_backward ps_roi_align _ps_roi_align_backward ps_roi_pool
        _ps_roi_pool_backward
    """,
    "torchaudio": "forced_align rnnt_loss rnnt_loss_alphas rnnt_loss_betas _overdrive_core_loop",
}

NAMESPACES: Final[Mapping[str, str]] = {
    "c10d": "Collectives; their bytes are in `comm_bytes`",
    "_c10d_functional": "Collectives; their bytes are in `comm_bytes`",
    "_c10d_functional_autograd": "Collectives; their bytes are in `comm_bytes`",
    "c10d_functional": "Collectives",
    "_dtensor": "Collectives",
    "fsdp": "FSDP's copies into and out of its buffers",
    "streams": "Events and streams",
    "profiler": "Marks for the profiler",
    "debug_mode_ops": "Marks for debugging",
    "debugprims": "Reads tensors from files",
    "prim": "Python's side of TorchScript",
    "inductor_prims": "Seeds and random numbers",
    "rngprims": "Random numbers",
    "export": "Reads a tensor out of another",
    "onnx_symbolic": "Stands for an operator while a model is exported, and computes nothing",
}
"""Namespaces all of whose operators are free, and why."""

REASONS: Final[Mapping[str, tuple[str, ...]]] = {
    **{reason: tuple(names.split()) for reason, names in _ATEN.items()},
    "The same of other namespaces": tuple(
        f"{namespace}::{name}" for namespace, names in _OTHERS.items() for name in names.split()
    ),
}
"""Operators that are free by name, and why; aten's without their namespace."""

_TABLE: Final = frozenset(name for names in REASONS.values() for name in names)


@lru_cache(maxsize=4096)
def is_free(func: torch._ops.OpOverload) -> bool:
    """Whether `func` is declared to cost nothing."""
    qualified: str = func._schema.name
    namespace, _, name = qualified.partition("::")
    if func.is_view or namespace in NAMESPACES or qualified in _TABLE:
        return True
    return namespace == "aten" and any(stem in _TABLE or _tagged(stem) for stem in _stems(name))


def _stems(name: str) -> list[str]:
    """`name` and what it is the in-place, foreach or derivative form of."""
    stems = [name]
    for end in ("_", "_backward", "_backward_data", "_backward_jvp"):
        stems += [s.removesuffix(end) for s in stems if s.endswith(end)]
    return stems + [s.removeprefix("_foreach_") for s in stems if s.startswith("_foreach_")]


# Older versions of torch lack some of them.
_FREE_TAGS: Final = {
    getattr(torch.Tag, name) for name in ("pointwise", "reduction", "view_copy") if hasattr(torch.Tag, name)
}


def _tagged(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    if not isinstance(packet, torch._ops.OpOverloadPacket):
        return False
    overloads: list[str] = packet.overloads()
    tags = {tag for overload in overloads for tag in getattr(packet, overload).tags}
    return not tags.isdisjoint(_FREE_TAGS)
