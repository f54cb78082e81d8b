"""Copy, triad and read: the kernels that a memory's rate is quoted from.

J. D. McCalpin, "Memory bandwidth and machine balance in current high performance computers", 1995. Bytes are
counted as STREAM counts them, each operand once; a GPU's stores do not read the line that they overwrite.
"""

# Triton ships no types: its decorator has none, and those that pyright infers for launches and pointers are wrong.
# mypy: allow-untyped-decorators
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false

from typing import Final

import torch
import triton
import triton.language as tl

from mfu_kernels.gemm import DTYPES, require_device

# 1,024 elements over four warps are 8 a thread: one 16-byte load for 2-byte dtypes, two for fp32.
BLOCK: Final = 1024
WARPS: Final = 4


@triton.jit
def copy_kernel(source_ptr: tl.tensor, out_ptr: tl.tensor, elements: tl.tensor, block: tl.constexpr) -> None:
    """out = source, one block a program."""
    # 64-bit: a buffer of bytes worth measuring passes 2**31 elements.
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < elements
    tl.store(out_ptr + at, tl.load(source_ptr + at, mask=inside), mask=inside)


@triton.jit
def triad_kernel(
    b_ptr: tl.tensor, c_ptr: tl.tensor, out_ptr: tl.tensor, scale: float, elements: tl.tensor, block: tl.constexpr
) -> None:
    """out = b + scale · c, one block a program."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < elements
    # Added in fp32: free beside the traffic, and the interpreter cannot add bfloat16.
    b = tl.load(b_ptr + at, mask=inside).to(tl.float32)
    c = tl.load(c_ptr + at, mask=inside).to(tl.float32)
    tl.store(out_ptr + at, (b + scale * c).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def read_kernel(
    source_ptr: tl.tensor, out_ptr: tl.tensor, elements: tl.tensor, programs: tl.constexpr, block: tl.constexpr
) -> None:
    """The sum of what this program reads, striding over the whole buffer, written once at the end."""
    program = tl.program_id(0)
    total = tl.zeros((block,), dtype=tl.float32)
    for start in range(program.to(tl.int64) * block, elements, programs * block):
        at = start + tl.arange(0, block)
        total += tl.load(source_ptr + at, mask=at < elements, other=0.0).to(tl.float32)
    tl.store(out_ptr + program, tl.sum(total))


def copy(source: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """`out` = `source`, bit for bit. Returns `out`; runs on the current stream and does not wait for it.

    Both have one shape, dtype (one of `gemm.DTYPES`) and device and are contiguous.

    Cost: 2·elements·itemsize bytes moved, no FLOPs.

    Raises ValueError for tensors that do not fit.
    """
    _require_alike(source, out)
    elements = out.numel()
    copy_kernel[(triton.cdiv(elements, BLOCK),)](
        source, out, elements, block=BLOCK, num_warps=WARPS, enable_fp_fusion=True
    )
    return out


def triad(b: torch.Tensor, c: torch.Tensor, scale: float, out: torch.Tensor) -> torch.Tensor:
    """`out` = `b` + `scale`·`c`, in fp32, rounded to their dtype. Returns `out`; does not wait for it.

    All three have one shape, dtype (one of `gemm.DTYPES`) and device and are contiguous; `scale` has no unit.

    Cost: 3·elements·itemsize bytes moved, 2·elements FLOPs.

    Raises ValueError for tensors that do not fit.
    """
    _require_alike(b, c, out)
    elements = out.numel()
    triad_kernel[(triton.cdiv(elements, BLOCK),)](
        b, c, out, scale, elements, block=BLOCK, num_warps=WARPS, enable_fp_fusion=True
    )
    return out


def read(source: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """`out[p]` = the sum in fp32 of what program p of `out.numel()` reads. Returns `out`; does not wait for it.

    `source` is contiguous, of a dtype in `gemm.DTYPES`; `out` is contiguous float32 with one element a program. Their
    sum is the sum of `source`, in an order of its own.

    Cost: elements·itemsize bytes read, and next to nothing written; a sum is no FLOP by convention.

    Raises ValueError for tensors that do not fit.
    """
    _require_alike(source)
    if out.dtype != torch.float32 or out.ndim != 1 or out.numel() == 0 or not out.is_contiguous():
        raise ValueError(f"out {tuple(out.shape)} {out.dtype}: must be a contiguous float32 vector, one a program")
    require_device(source, out)
    programs = out.numel()
    read_kernel[(programs,)](
        source, out, source.numel(), programs=programs, block=BLOCK, num_warps=WARPS, enable_fp_fusion=True
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
