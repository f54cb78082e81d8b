"""Chains of fused multiply-adds that reach what the ordinary fp32 units of a GPU can do, its matrix units idle."""

# Triton ships no types: its decorator has none, and those that pyright infers for launches and pointers are wrong.
# mypy: allow-untyped-decorators
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from typing import Final

import torch
import triton
import triton.language as tl

from mfu_kernels.gemm import require_device

BLOCK: Final = 1024
WARPS: Final = 8
# Independent chains hide the latency of each other's multiply-adds; the inner loop is written out to hide its own.
CHAINS: Final = 4
UNROLLED: Final = 16


@triton.jit
def fma_kernel(x_ptr: tl.tensor, out_ptr: tl.tensor, rounds: int, block: tl.constexpr, unrolled: tl.constexpr) -> None:
    """Four chains of y ← y·x + ½ for every element, `rounds` · `unrolled` long, and their sum."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    x = tl.load(x_ptr + at)
    first = x
    second = x + 1.0
    third = x + 2.0
    fourth = x + 3.0
    for _ in range(rounds):
        for _step in tl.static_range(unrolled):
            first = first * x + 0.5
            second = second * x + 0.5
            third = third * x + 0.5
            fourth = fourth * x + 0.5
    tl.store(out_ptr + at, first + second + third + fourth)


def fma(x: torch.Tensor, rounds: int, out: torch.Tensor) -> torch.Tensor:
    """`out` = the sum of four chains y ← y·x + ½, each `rounds` · 16 long, begun at x, x + 1, x + 2 and x + 3.

    `x` and `out` are contiguous float32 with a multiple of 1,024 elements, on one device; |x| below 1 keeps the chains
    finite. Returns `out`; runs on the current stream and does not wait for it.

    Cost: 2 · 4 · 16 · rounds FLOPs an element, in fp32 on the ordinary units.

    Raises ValueError for tensors that do not fit.
    """
    if x.dtype != torch.float32 or out.dtype != torch.float32 or x.shape != out.shape:
        raise ValueError(f"x {tuple(x.shape)} {x.dtype}, out {tuple(out.shape)} {out.dtype}: must be alike in float32")
    if x.numel() == 0 or x.numel() % BLOCK or not (x.is_contiguous() and out.is_contiguous()):
        raise ValueError(f"x {tuple(x.shape)}: must be contiguous, with a multiple of {BLOCK:,} elements")
    if rounds < 0:
        raise ValueError(f"rounds={rounds}: must not be negative")
    require_device(x, out)
    fma_kernel[(x.numel() // BLOCK,)](
        x, out, rounds, block=BLOCK, unrolled=UNROLLED, num_warps=WARPS, enable_fp_fusion=True
    )
    return out


def flops(elements: int, rounds: int) -> int:
    """FLOPs of `fma`."""
    return 2 * CHAINS * UNROLLED * rounds * elements
