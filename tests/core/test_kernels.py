"""A trace of kernels as seconds of products, streaming and communication, by hand and by law."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.run.kernels import Kernel, Kind, Spent, kind_of, spent

S = 1_000_000_000

# As profilers print them: NVIDIA's and AMD's libraries, torch's own, Inductor's, NCCL's.
NAMES: list[tuple[str, Kind]] = [
    ("ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn", "product"),
    ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1", "product"),
    ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT", "product"),
    ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_nn_align8>(Params)", "product"),
    ("void gemv2T_kernel_val<int, int, float, float, float, float, 128, 16, 4, 4, false>(cublasGemvParams)", "product"),
    ("void cublasLt::splitKreduce_kernel<32, 16, int, float, float>(cublasLt::cublasSplitKParams)", "product"),
    ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4>>(Flash_fwd_params)", "product"),
    ("void cutlass::device_kernel<flash::FlashAttnFwdSm90<...>>", "product"),
    ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::Params)", "product"),
    ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_128x64x64_1x1x1_kernel0_0", "product"),
    ("sm80_xmma_wgrad_implicit_gemm_indexed_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "product"),
    ("void at::native::(anonymous namespace)::conv_depthwise2d_forward_kernel<3, float, int>", "product"),
    ("Cijk_Alik_Bljk_BBS_BH_Bias_HAS_SAV_UserArgs_MT256x224x64_MI16x16x1", "product"),
    ("triton_tem_fused_mm_relu_0", "product"),
    ("triton_tem_fused_flex_attention_1", "product"),
    ("triton_poi_fused_addmm_gelu_1", "streaming"),
    ("triton_per_fused_native_layer_norm_2", "streaming"),
    ("triton_red_fused__log_softmax_nll_loss_forward_3", "streaming"),
    ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>", "streaming"),
    ("void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float, float, float>", "streaming"),
    ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>", "streaming"),
    ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, MeanOps<float>>>", "streaming"),
    ("void cub::DeviceRadixSortOnesweepKernel<Policy800, true, float>", "streaming"),
    ("_rms_norm_forward_kernel", "streaming"),
    ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "communication"),
    ("ncclKernel_ReduceScatter_RING_SIMPLE_Sum_half(ncclDevComm*, unsigned long, ncclWork*)", "communication"),
    ("multimem_all_reduce_kernel<c10::BFloat16, 16>", "communication"),
    ("my_secret_kernel", "unknown"),
]


@pytest.mark.parametrize(("name", "kind"), NAMES)
def test_names(name: str, kind: Kind) -> None:
    """Libraries name their kernels after what they do; what a name does not tell stays unknown."""
    assert kind_of(name) == kind


def test_a_trace_by_hand() -> None:
    """Ten seconds: product 0–4, beside it an exchange 3–6 of which 4–5 is hidden by an addition, nothing 6–9, a
    kernel of unknown use 9–10.
    """
    found = spent(
        [
            Kernel("communication", 3 * S, 6 * S),
            Kernel("product", 0, 4 * S),
            Kernel("streaming", 4 * S, 5 * S),
            Kernel("unknown", 9 * S, 10 * S),
        ]
    )
    assert found == Spent(products_s=4.0, streaming_s=1.0, communication_s=1.0, unknown_s=1.0)
    assert not found.is_told


def test_little_unknown_is_told() -> None:
    """A twentieth of the work may be unknown; an exchange alone is no work."""
    assert Spent(90.0, 5.0, 50.0, 5.0).is_told
    assert not Spent(90.0, 4.0, 50.0, 6.0).is_told
    assert not Spent(0.0, 0.0, 1.0, 0.0).is_told
    assert spent([]) == Spent(0.0, 0.0, 0.0, 0.0)
    assert spent([Kernel("product", 5, 5), Kernel("product", 7, 6)]).products_s == 0.0


@st.composite
def traces(draw: st.DrawFn) -> list[Kernel]:
    kinds: list[Kind] = ["product", "streaming", "communication", "unknown"]
    return [
        Kernel(draw(st.sampled_from(kinds)), start, start + draw(st.integers(1, 20)))
        for start in draw(st.lists(st.integers(0, 60), max_size=12))
    ]


@given(traces())
def test_each_moment_is_charged_once(kernels: list[Kernel]) -> None:
    """Against a clock that ticks: of each nanosecond's kernels the first kind in order has it."""
    order: list[Kind] = ["product", "streaming", "unknown", "communication"]
    wanted = dict.fromkeys(order, 0)
    for tick in range(100):
        running = {kernel.kind for kernel in kernels if kernel.start_ns <= tick < kernel.end_ns}
        if running:
            wanted[min(running, key=order.index)] += 1
    found = spent(kernels)
    assert [found.products_s, found.streaming_s, found.unknown_s, found.communication_s] == pytest.approx(
        [wanted[kind] / 1e9 for kind in order], abs=1e-15
    )
