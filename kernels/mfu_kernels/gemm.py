"""One matrix product with fp32 accumulation: a pointer-based, tiled Triton GEMM."""

# Triton ships no types: its decorator has none, and those that pyright infers for launches and pointers are wrong.
# mypy: allow-untyped-decorators
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false

from typing import Final

import torch
import triton
import triton.language as tl

_BLOCK_M: Final = 128
_BLOCK_N: Final = 128
# A tile's row of the inner dimension is 128 bytes whatever the dtype, so three stages of both tiles take at most
# 96 KiB of shared memory, within the 99 KiB that sm_89, the least of the data-centre GPUs since sm_80, gives a block.
_BLOCK_K_BYTES: Final = 128
_GROUP_M: Final = 8
# With four warps a 128 x 128 accumulator takes 128 registers of each thread; with eight it takes 64.
_WARPS: Final = 8
_STAGES: Final = 3

DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def _gemm_kernel(
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    c_ptr: tl.tensor,
    m: int,
    n: int,
    k: int,
    stride_am: int,
    stride_ak: int,
    stride_bk: int,
    stride_bn: int,
    stride_cm: int,
    stride_cn: int,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    group_m: tl.constexpr,
    upcast: tl.constexpr,
) -> None:
    # Programs walk down `group_m` rows of tiles before they move one column on, so that the tiles which run at the
    # same time share their rows of A and columns of B in the L2 cache.
    program = tl.program_id(0)
    tiles_m = tl.cdiv(m, block_m)
    tiles_n = tl.cdiv(n, block_n)
    group = program // (group_m * tiles_n)
    first_m = group * group_m
    rows_in_group = tl.minimum(tiles_m - first_m, group_m)
    tile_m = first_m + (program % (group_m * tiles_n)) % rows_in_group
    tile_n = (program % (group_m * tiles_n)) // rows_in_group

    # 64-bit: row × stride passes 2**31 for matrices of 46,341 squared.
    rows = tile_m.to(tl.int64) * block_m + tl.arange(0, block_m)
    columns = tile_n.to(tl.int64) * block_n + tl.arange(0, block_n)
    inner = tl.arange(0, block_k).to(tl.int64)
    a_tile = a_ptr + rows[:, None] * stride_am + inner[None, :] * stride_ak
    b_tile = b_ptr + inner[:, None] * stride_bk + columns[None, :] * stride_bn
    in_rows = rows[:, None] < m
    in_columns = columns[None, :] < n

    total = tl.zeros((block_m, block_n), dtype=tl.float32)
    for start in range(0, k, block_k):
        # Beyond an edge the tiles read zeros, which add nothing to the sum.
        a = tl.load(a_tile, mask=in_rows & (inner[None, :] < k - start), other=0.0)
        b = tl.load(b_tile, mask=(inner[:, None] < k - start) & in_columns, other=0.0)
        if upcast:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        # Without "ieee" Triton rounds fp32 operands to TF32's ten bits.
        total = tl.dot(a, b, total, input_precision="ieee")
        a_tile += block_k * stride_ak
        b_tile += block_k * stride_bk

    c_tile = c_ptr + rows[:, None] * stride_cm + columns[None, :] * stride_cn
    tl.store(c_tile, total.to(c_ptr.dtype.element_ty), mask=in_rows & in_columns)


INTERPRETED: Final = not isinstance(_gemm_kernel, triton.JITFunction)
"""Whether these kernels run in Triton's interpreter, which TRITON_INTERPRET decided when they were imported."""


def matmul(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """`a` @ `b`, accumulated in fp32, then rounded to the dtype of `out`.

    `a` is (m, k), `b` is (k, n), both of one dtype in `DTYPES`, on one device, with any strides. `out` is (m, n) in
    their dtype or float32; a new tensor in their dtype where it is None. Returns `out`. Runs on the current stream
    and does not wait for it.

    Cost: 2·m·n·k FLOPs (a fused multiply-add is two: Golub and Van Loan, Matrix Computations, section 1.1), and at
    least (m·k + k·n)·itemsize + m·n·itemsize of `out` bytes of memory traffic, each matrix passing once.

    Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or 0 in (*a.shape, *b.shape):
        raise ValueError(f"a {tuple(a.shape)} @ b {tuple(b.shape)}: must be (m, k) @ (k, n), none of them 0")
    (m, k), n = a.shape, b.shape[1]
    if a.dtype != b.dtype or a.dtype not in DTYPES:
        raise ValueError(f"a {a.dtype}, b {b.dtype}: must be the same, one of {', '.join(map(str, DTYPES))}")
    if out is None:
        out = torch.empty((m, n), device=a.device, dtype=a.dtype)
    if out.shape != (m, n) or out.dtype not in (a.dtype, torch.float32):
        raise ValueError(f"out {tuple(out.shape)} {out.dtype}: must be {(m, n)} in {a.dtype} or torch.float32")
    require_device(a, b, out)
    grid = (triton.cdiv(m, _BLOCK_M) * triton.cdiv(n, _BLOCK_N),)
    _gemm_kernel[grid](
        a,
        b,
        out,
        m,
        n,
        k,
        *a.stride(),
        *b.stride(),
        *out.stride(),
        block_m=_BLOCK_M,
        block_n=_BLOCK_N,
        block_k=_BLOCK_K_BYTES // a.itemsize,
        group_m=_GROUP_M,
        # The interpreter multiplies the raw bits of bfloat16 operands (triton issue 11584).
        upcast=INTERPRETED and a.dtype == torch.bfloat16,
        num_warps=_WARPS,
        num_stages=_STAGES,
        # Said outright: Triton 3.9 announces that its default goes off, which halves the rate of fp32 products.
        enable_fp_fusion=True,
    )
    return out


def require_device(*tensors: torch.Tensor) -> None:
    """Raise ValueError unless all tensors lie on one device that these kernels can run on."""
    devices = sorted({str(tensor.device) for tensor in tensors})
    if len(devices) > 1:
        raise ValueError(f"tensors on {' and '.join(devices)}: must be on one device; move them with .to()")
    if devices == ["cpu"] and not INTERPRETED:
        raise ValueError(
            "tensors on cpu: compiled kernels need a GPU; "
            "set TRITON_INTERPRET=1 before mfu_kernels is imported to run them in the interpreter"
        )
