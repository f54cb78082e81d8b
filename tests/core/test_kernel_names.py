"""Kernels by names that are the same in every launch: of libraries as profilers print them, by hand and by law."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.run.kernel_names import MOST_SIGNS, canonical
from mfu_sdk.run.kernels import kind_of

# As profilers print them: cuBLAS, cuBLASLt, CUTLASS, attention, cuDNN, torch, Inductor, Triton, NCCL, hipBLASLt.
NAMES = [
    ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT", "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT"),
    (
        "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn",
        "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn",
    ),
    (
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_nn_align8>"
        "(cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_nn_align8::Params)",
        "cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_nn_align8",
    ),
    (
        "_ZN7cutlass7Kernel2I67cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x64_32x4_nn_align8EEvNT_6ParamsE",
        "cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x64_32x4_nn_align8",
    ),
    (
        "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t>::Params)",
        "fmha_cutlassF_bf16_aligned_64x128_rf_sm80",
    ),
    (
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_128x64x64_1x1x1_kernel0_0",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3_128x64x64_1x1x1_kernel0_0",
    ),
    (
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>, "
        "std::array<char*, 3ul> >(int, at::native::CUDAFunctor_add<c10::BFloat16>, std::array<char*, 3ul>)",
        "at::native::vectorized_elementwise_kernel",
    ),
    (
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)"
        "::TensorListMetadata<4>, FusedAdamMathFunctor<float, 4>, float>(TensorListMetadata<4>)",
        "at::native::multi_tensor_apply_kernel",
    ),
    (
        "_ZN2at6native12_GLOBAL__N_125multi_tensor_apply_kernelINS1_18TensorListMetadataILi4EEEEEvT_",
        "at::native::multi_tensor_apply_kernel",
    ),
    (
        "void at::native::_INTERNAL_0a1b2c3d_9_Sorting_cu_4d5e6f70_1234::gatherTopK<float, unsigned int, 2, false>()",
        "at::native::gatherTopK",
    ),
    (
        "void at_cuda_detail::cub::CUB_200802_SM_900::DeviceRadixSortOnesweepKernel<Policy800, true, float>(int*)",
        "at_cuda_detail::cub::DeviceRadixSortOnesweepKernel",
    ),
    ("triton_poi_fused_addmm_gelu_1", "triton_poi_fused_addmm_gelu"),
    ("triton_poi_fused_addmm_gelu_17", "triton_poi_fused_addmm_gelu"),
    ("triton_red_fused__log_softmax_nll_loss_forward_3", "triton_red_fused__log_softmax_nll_loss_forward"),
    ("triton_tem_fused_mm_relu_0", "triton_tem_fused_mm_relu"),
    ("_rms_norm_forward_kernel_0d1d2de3", "_rms_norm_forward_kernel"),
    (
        "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
        "ncclDevKernel_AllReduce_Sum_bf16_RING_LL",
    ),
    (
        "ncclKernel_ReduceScatter_RING_SIMPLE_Sum_half(ncclDevComm*, unsigned long, ncclWork*)",
        "ncclKernel_ReduceScatter_RING_SIMPLE_Sum_half",
    ),
    (
        "Cijk_Alik_Bljk_BBS_BH_Bias_HAS_SAV_UserArgs_MT256x224x64_MI16x16x1 [clone .kd]",
        "Cijk_Alik_Bljk_BBS_BH_Bias_HAS_SAV_UserArgs_MT256x224x64_MI16x16x1",
    ),
    ("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_flash_attention_for_cpu"),
    ("aten::addmm", "aten::addmm"),
]


@pytest.mark.parametrize(("name", "shown"), NAMES, ids=range(len(NAMES)))
def test_names(name: str, shown: str) -> None:
    """What says which kernel was chosen stays, and what it does; parameters, functors, counters and files go."""
    assert canonical(name) == shown
    if not name.startswith(("aten::", "_Z")):
        assert kind_of(shown) == kind_of(name)


def test_what_was_chosen_by_a_template() -> None:
    """Another head size, tile or split is another kernel, told apart by a hash; spaces are none of it."""
    flash = "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, false, false>, true>(P)"
    wide = flash.replace("128, 128, 64", "128, 128, 32")
    split = "void cublasLt::splitKreduce_kernel<32, 16, int, float, float>(cublasLt::cublasSplitKParams<float>)"
    assert re.fullmatch(r"pytorch_flash::flash_fwd_kernel<[0-9a-f]{8}>", canonical(flash))
    assert re.fullmatch(r"cublasLt::splitKreduce_kernel<[0-9a-f]{8}>", canonical(split))
    assert canonical(wide) != canonical(flash)
    assert canonical(flash.replace(", ", ",").replace(">,", " >,")) == canonical(flash)
    # Where it is mangled, its parameters' addresses of nothing are no part of it.
    mangled = "_ZN13pytorch_flash16flash_fwd_kernelI23Flash_fwd_kernel_traitsILi128ELi128ELi64EEEEvT_"
    assert re.fullmatch(r"pytorch_flash::flash_fwd_kernel<[0-9a-f]{8}>", canonical(mangled))


def test_what_differs_between_launches() -> None:
    """Widths that follow the alignment, and addresses, are no other kernel."""
    wide = "void at::native::vectorized_elementwise_kernel<8, at::native::AddFunctor<float>>(int)"
    assert canonical(wide) == canonical(wide.replace("<8", "<2"))
    jitted = "void flash::kernel<{lambda(int) at 0x7f3a10}>(int)"
    assert canonical(jitted) == canonical(jitted.replace("7f3a10", "55d0"))


@pytest.mark.parametrize("name", ["acme_secret_sauce", "/home/alice/k.cu:kernel", "", "k\u00e9rnel"])
def test_a_programs_own(name: str) -> None:
    """A name of nobody's that is known is a hash, which tells it from others and nothing else."""
    told = canonical(name)
    assert re.fullmatch(r"kernel~[0-9a-f]{8}", told)
    assert canonical(name + "x") != told
    assert canonical("_ZN4acme6secretEv") == canonical("void acme::secret(int)") != canonical("void acme::other(int)")


@given(st.one_of(st.text(max_size=300), st.from_regex(r"(_ZN?|void )?[\w:<>(), 0-9]{0,300}", fullmatch=True)))
def test_bounded_and_plain(name: str) -> None:
    """Whatever stands in a trace: few signs, all of them harmless, and the same each time."""
    told = canonical(name)
    assert 0 < len(told) <= MOST_SIGNS
    assert re.fullmatch(r"[A-Za-z0-9_:.~<>-]+", told)
    assert canonical.__wrapped__(name) == told


def test_a_long_name() -> None:
    """It is cut, and two that differ behind the cut stay two."""
    one, other = (canonical(f"gemm_{'x' * 300}{end}") for end in "ab")
    assert len(one) == len(other) == MOST_SIGNS
    assert one != other
