"""The counting mode recognises other libraries' work by name, in modules that stand in for theirs."""

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mfu_sdk as mfu
from mfu_sdk.counting import functions

M, N, K = 5, 6, 8

LIGER = """
import torch

class LigerFusedLinearCrossEntropyFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, _input, weight, target, reduction="mean"):
        ctx.gradients = torch.empty_like(_input).fill_(1), torch.empty_like(weight).fill_(1)
        (_input @ weight.T).sum()
        return torch.zeros(())

    @staticmethod
    def backward(ctx, gradient):
        return ctx.gradients[0] * gradient, ctx.gradients[1] * gradient, None, None
"""
FLASH = """
import torch

def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, cache_seqlens=None, causal=False, window_size=(-1, -1)
):
    return torch.empty_like(q)
"""
GEMM = """
import torch

def general_gemm(A, B, layout="TN", out=None):
    return torch.empty(1)
"""
LINEAR = """
import torch
from transformer_engine.pytorch.cpp_extensions.gemm import general_gemm

class _LayerNormLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inp, ln_weight, ln_bias, weight, non_tensor_args):
        (wgrad_store, tp_size, sequence_parallel, parallel_mode) = non_tensor_args
        if ctx is not None:
            ctx.save_for_backward(inp, weight)
        general_gemm(weight, inp)
        return torch.empty(inp.shape[0], weight.shape[0])

    @staticmethod
    def backward(ctx, gradient):
        inp, weight = ctx.saved_tensors
        general_gemm(weight, gradient, layout="NN")
        # Accumulated in place: nothing is allocated that could be seen.
        return torch.zeros_like(inp), None, None, torch.zeros_like(weight), None
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], types.ModuleType]:
    """Makes a module of a library's name, and its parents, out of source."""

    def make(name: str, source: str) -> types.ModuleType:
        parts = name.split(".")
        for i in range(1, len(parts)):
            parent = ".".join(parts[:i])
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(source, module.__dict__)
        # Codes that were seen before their library was there are looked at again.
        functions._changes += 1
        return module

    return make


Make = Callable[[str, str], types.ModuleType]


def test_a_loss_that_makes_its_gradients_early(stand_in: Make) -> None:
    """One product is the forward's, two the backward's, though all run in the forward; what is inside is covered."""
    module = stand_in("liger_kernel.ops.fused_linear_cross_entropy", LIGER)
    x, weight = torch.randn(M, K, requires_grad=True), torch.randn(N, K, requires_grad=True)
    apply = module.LigerFusedLinearCrossEntropyFunction.apply
    count = mfu.count(lambda: apply(x, weight, torch.zeros(M)).backward())
    product = 2 * M * N * K
    assert (count.forward_flops, count.backward_flops, count.hardware_flops) == (product, 2 * product, 3 * product)
    assert count.uncounted == ()


def test_a_function_over_an_extension(stand_in: Make) -> None:
    """Seen by what it allocates, priced by its arguments."""
    module = stand_in("flash_attn.flash_attn_interface", FLASH)
    q, cache = torch.empty(2, 1, 4, 8), torch.empty(2, 32, 2, 8)
    count = mfu.count(lambda: module.flash_attn_with_kvcache(q, cache, cache, cache_seqlens=7, causal=True))
    assert count.attention_flops_exact == 2 * 4 * (2 * 7) * 16
    assert count.uncounted == ()


def test_a_priced_function_beneath_a_priced_backward(stand_in: Make) -> None:
    """The module's price covers its backward, and the products that run there are not counted again."""
    stand_in("transformer_engine.pytorch.cpp_extensions.gemm", GEMM)
    module = stand_in("transformer_engine.pytorch.module.layernorm_linear", LINEAR)
    x, weight = torch.randn(M, K, requires_grad=True), torch.randn(N, K, requires_grad=True)
    settings = (None, 4, True, "column")
    run = module._LayerNormLinear.apply
    count = mfu.count(lambda: run(x, torch.ones(K), None, weight, settings).sum().backward())
    # The settings are found by their names inside, and the rows of the whole group counted.
    product = 2 * (4 * M) * N * K
    assert (count.forward_flops, count.backward_flops) == (product, 2 * product)
    assert count.uncounted == ()


def test_a_second_backward_costs_again(stand_in: Make) -> None:
    """Through a graph that was kept, the same node runs its backward once more."""
    stand_in("transformer_engine.pytorch.cpp_extensions.gemm", GEMM)
    module = stand_in("transformer_engine.pytorch.module.layernorm_linear", LINEAR)
    x, weight = torch.randn(M, K, requires_grad=True), torch.randn(N, K, requires_grad=True)

    def run() -> None:
        y = module._LayerNormLinear.apply(x, torch.ones(K), None, weight, (None, 1, False, None)).sum()
        y.backward(retain_graph=True)
        y.backward()

    assert mfu.count(run).backward_flops == 2 * 2 * (2 * M * N * K)


def test_a_forward_called_without_a_node(stand_in: Make) -> None:
    """A library that calls the forward itself makes no node: the node before it keeps its own backward."""
    stand_in("transformer_engine.pytorch.cpp_extensions.gemm", GEMM)
    module = stand_in("transformer_engine.pytorch.module.layernorm_linear", LINEAR)
    x, weight = torch.randn(M, K), torch.randn(N, K, requires_grad=True)
    settings = (None, 1, False, None)

    def run() -> None:
        y = x @ weight.T
        with torch.no_grad():
            module._LayerNormLinear.forward(None, x, torch.ones(K), None, weight, settings)
        y.sum().backward()

    product = 2 * M * N * K
    count = mfu.count(run)
    assert (count.forward_flops, count.backward_flops) == (2 * product, product)


def test_an_inner_function_where_the_outer_refuses(stand_in: Make) -> None:
    """A module whose settings cannot be read is listed, and its products are counted one by one."""
    stand_in("transformer_engine.pytorch.cpp_extensions.gemm", GEMM)
    unreadable = LINEAR.replace("(wgrad_store, tp_size, sequence_parallel, parallel_mode) = non_tensor_args", "pass")
    module = stand_in("transformer_engine.pytorch.module.layernorm_linear", unreadable)
    x, weight = torch.randn(M, K), torch.randn(N, K)
    count = mfu.count(lambda: module._LayerNormLinear.apply(x, torch.ones(K), None, weight, (None, 1, False, None)))
    assert count.model_flops == 2 * M * N * K
    assert [entry.op.rpartition(":")[2] for entry in count.uncounted] == ["_LayerNormLinear.forward"]


KERNEL = """
import sys, types, torch, triton
import mfu_sdk as mfu
sys.path.insert(0, sys.argv[1])
from unsloth.kernels import swiglu, other

def run(kernel):
    x, out = torch.ones(16), torch.empty(16)
    kernel[(1,)](x, out, 16)

print(mfu.count(run, swiglu._fg_kernel).uncounted, len(mfu.count(run, other._fg_kernel).uncounted))
"""
JITTED = """
import triton, triton.language as tl

@triton.jit
def _fg_kernel(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at))
"""


def test_a_triton_kernel_that_is_declared_free(tmp_path: Path) -> None:
    """By the name of the module that defines it: the same kernel elsewhere is listed."""
    pytest.importorskip("triton")
    package = tmp_path / "unsloth" / "kernels"
    package.mkdir(parents=True)
    for name in ("swiglu", "other"):
        (package / f"{name}.py").write_text(JITTED)
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-", str(tmp_path)], input=KERNEL, capture_output=True, text=True, timeout=300,
        env={"TRITON_INTERPRET": "1", "PATH": "", "MFU_GUARD": "raise"}, check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "() 1"
