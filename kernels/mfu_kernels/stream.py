"""Copy and triad: the two kernels of STREAM that a memory's rate is quoted from.

J. D. McCalpin, "Memory bandwidth and machine balance in current high performance computers", 1995. Bytes are
counted as STREAM counts them, each operand once; a GPU's stores do not read the line that they overwrite.
"""

# Triton ships no types: its decorator has none, and those that pyright infers for launches and pointers are wrong.
# mypy: allow-untyped-decorators
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false

from typing import Final

import torch
import triton
import triton.language as tl

from mfu_kernels.gemm import DTYPES, require_device

# 1,024 elements over four warps are 8 a thread: one 16-byte load for 2-byte dtypes, two for fp32.
_BLOCK: Final = 1024
_WARPS: Final = 4


@triton.jit
def _copy_kernel(source_ptr: tl.tensor, out_ptr: tl.tensor, elements: int, block: tl.constexpr) -> None:
    # 64-bit: a buffer of bytes worth measuring passes 2**31 elements.
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < elements
    tl.store(out_ptr + at, tl.load(source_ptr + at, mask=inside), mask=inside)


@triton.jit
def _triad_kernel(
    b_ptr: tl.tensor, c_ptr: tl.tensor, out_ptr: tl.tensor, scale: float, elements: int, block: tl.constexpr
) -> None:
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < elements
    # Added in fp32: free beside the traffic, and the interpreter cannot add bfloat16.
    b = tl.load(b_ptr + at, mask=inside).to(tl.float32)
    c = tl.load(c_ptr + at, mask=inside).to(tl.float32)
    tl.store(out_ptr + at, (b + scale * c).to(out_ptr.dtype.element_ty), mask=inside)


def copy(source: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """`out` = `source`, bit for bit. Returns `out`; runs on the current stream and does not wait for it.

    Both have one shape, dtype (one of `gemm.DTYPES`) and device and are contiguous.

    Cost: 2·elements·itemsize bytes moved, no FLOPs.

    Raises ValueError for tensors that do not fit.
    """
    _require_alike(source, out)
    elements = out.numel()
    _copy_kernel[(triton.cdiv(elements, _BLOCK),)](source, out, elements, block=_BLOCK, num_warps=_WARPS)
    return out


def triad(b: torch.Tensor, c: torch.Tensor, scale: float, out: torch.Tensor) -> torch.Tensor:
    """`out` = `b` + `scale`·`c`, in fp32, rounded to their dtype. Returns `out`; does not wait for it.

    All three have one shape, dtype (one of `gemm.DTYPES`) and device and are contiguous; `scale` has no unit.

    Cost: 3·elements·itemsize bytes moved, 2·elements FLOPs.

    Raises ValueError for tensors that do not fit.
    """
    _require_alike(b, c, out)
    elements = out.numel()
    _triad_kernel[(triton.cdiv(elements, _BLOCK),)](
        b, c, out, scale, elements, block=_BLOCK, num_warps=_WARPS, enable_fp_fusion=True
    )
    return out


def _require_alike(*tensors: torch.Tensor) -> None:
    if len({(tensor.shape, tensor.dtype) for tensor in tensors}) > 1:
        seen = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in tensors)
        raise ValueError(f"tensors {seen}: must have one shape and dtype")
    if tensors[0].dtype not in DTYPES:
        raise ValueError(f"dtype {tensors[0].dtype}: must be one of {', '.join(map(str, DTYPES))}")
    if tensors[0].numel() == 0 or not all(tensor.is_contiguous() for tensor in tensors):
        raise ValueError(f"tensors {tuple(tensors[0].shape)}: must be contiguous and not empty; use .contiguous()")
    require_device(*tensors)
