"""Matrix products that reach a GPU's matrix units: tiles read by pointers, by descriptors, or by resident programs."""

# Scalars are annotated as tensors, which inside of a kernel they are: Triton takes `int` for an order to pass every one
# as a 32-bit number, and then drops that a stride is 1, without which tiles are read element by element.
# Triton ships no types: its decorator has none, and those that pyright infers for launches and pointers are wrong.
# mypy: allow-untyped-decorators
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false
# pyright: reportOptionalCall=false

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Literal

import torch
import triton
import triton.language as tl

from mfu_kernels import configs
from mfu_kernels.configs import Tile

try:
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:
    # Triton before 3.4 has none.
    TensorDescriptor = None

Kernel = Literal["gemm", "gemm_descriptor", "gemm_persistent"]
HAS_DESCRIPTORS: Final = TensorDescriptor is not None
"""Whether this Triton moves tiles by descriptors: without, only `gemm` runs."""
TRITON: Final = (int(triton.__version__.split(".")[0]), int(triton.__version__.split(".")[1]))
"""The major and minor version of the Triton that is installed."""
Precision = Literal["ieee", "tf32"]

_GROUP_M: Final = 8
# Where no architecture is given (the interpreter, an architecture that is not listed): small enough for any.
_ANYWHERE: Final = Tile(128, 128, 128, warps=8, stages=3)

ACCUMULATED: Final[Mapping[torch.dtype, torch.dtype]] = {
    torch.float32: torch.float32,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float8_e4m3fn: torch.float32,
    torch.float8_e5m2: torch.float32,
    torch.float8_e4m3fnuz: torch.float32,
    torch.float8_e5m2fnuz: torch.float32,
    torch.int8: torch.int32,
}
"""The dtype that products of each dtype are summed in."""
DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes whose products may be written in their own dtype, and that streams move."""


@triton.jit
def _tile_of(  # type: ignore[no-untyped-def]  # two tensors
    program: tl.tensor, m: tl.tensor, n: tl.tensor, block_m: tl.constexpr, block_n: tl.constexpr, group_m: tl.constexpr
):
    # Programs walk down `group_m` rows of tiles before they move one column on, so that the tiles which run at the
    # same time share their rows of A and columns of B in the L2 cache.
    tiles_m = tl.cdiv(m, block_m)
    tiles_n = tl.cdiv(n, block_n)
    group = program // (group_m * tiles_n)
    first_m = group * group_m
    rows_in_group = tl.minimum(tiles_m - first_m, group_m)
    tile_m = first_m + (program % (group_m * tiles_n)) % rows_in_group
    tile_n = (program % (group_m * tiles_n)) // rows_in_group
    return tile_m, tile_n


@triton.jit
def gemm_kernel(
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    c_ptr: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    stride_am: tl.tensor,
    stride_ak: tl.tensor,
    stride_bk: tl.tensor,
    stride_bn: tl.tensor,
    stride_cm: tl.tensor,
    stride_cn: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    group_m: tl.constexpr,
    precision: tl.constexpr,
    accumulated: tl.constexpr,
    upcast: tl.constexpr,
) -> None:
    """C = A @ B by pointers, with any strides and ragged edges: one program a tile."""
    tile_m, tile_n = _tile_of(tl.program_id(0), m, n, block_m, block_n, group_m)
    # 64-bit: row × stride passes 2**31 for matrices of 46,341 squared.
    rows = tile_m.to(tl.int64) * block_m + tl.arange(0, block_m)
    columns = tile_n.to(tl.int64) * block_n + tl.arange(0, block_n)
    inner = tl.arange(0, block_k).to(tl.int64)
    a_tile = a_ptr + rows[:, None] * stride_am + inner[None, :] * stride_ak
    b_tile = b_ptr + inner[:, None] * stride_bk + columns[None, :] * stride_bn
    in_rows = rows[:, None] < m
    in_columns = columns[None, :] < n

    total = tl.zeros((block_m, block_n), dtype=accumulated)
    for start in range(0, k, block_k):
        # Beyond an edge the tiles read zeros, which add nothing to the sum.
        a = tl.load(a_tile, mask=in_rows & (inner[None, :] < k - start), other=0.0)
        b = tl.load(b_tile, mask=(inner[:, None] < k - start) & in_columns, other=0.0)
        if upcast:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        # Without "ieee" Triton rounds fp32 operands to TF32's ten bits.
        total = tl.dot(a, b, total, input_precision=precision, out_dtype=accumulated)
        a_tile += block_k * stride_ak
        b_tile += block_k * stride_bk

    c_tile = c_ptr + rows[:, None] * stride_cm + columns[None, :] * stride_cn
    tl.store(c_tile, total.to(c_ptr.dtype.element_ty), mask=in_rows & in_columns)


@triton.jit
def gemm_descriptor_kernel(
    a_tiles: tl.tensor,
    b_tiles: tl.tensor,
    c_tiles: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    group_m: tl.constexpr,
    precision: tl.constexpr,
    accumulated: tl.constexpr,
    written: tl.constexpr,
    upcast: tl.constexpr,
) -> None:
    """C = A @ Bᵀ by descriptors that the host made, B stored (n, k): the tensor memory accelerator moves the tiles."""
    tile_m, tile_n = _tile_of(tl.program_id(0), m, n, block_m, block_n, group_m)
    total = tl.zeros((block_m, block_n), dtype=accumulated)
    for start in range(0, k, block_k):
        a = a_tiles.load([tile_m * block_m, start])
        b = b_tiles.load([tile_n * block_n, start])
        if upcast:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        total = tl.dot(a, b.T, total, input_precision=precision, out_dtype=accumulated)
    c_tiles.store([tile_m * block_m, tile_n * block_n], total.to(written))


@triton.jit
def gemm_persistent_kernel(
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    c_ptr: tl.tensor,
    m: tl.tensor,
    n: tl.tensor,
    k: tl.tensor,
    programs: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    group_m: tl.constexpr,
    precision: tl.constexpr,
    accumulated: tl.constexpr,
    upcast: tl.constexpr,
) -> None:
    """C = A @ Bᵀ by descriptors that the device makes, one program an SM, which goes from tile to tile."""
    a_tiles = tl.make_tensor_descriptor(a_ptr, [m, k], [k, 1], [block_m, block_k])
    b_tiles = tl.make_tensor_descriptor(b_ptr, [n, k], [k, 1], [block_n, block_k])
    c_tiles = tl.make_tensor_descriptor(c_ptr, [m, n], [n, 1], [block_m, block_n])
    tiles = tl.cdiv(m, block_m) * tl.cdiv(n, block_n)
    for program in tl.range(tl.program_id(0), tiles, programs):
        tile_m, tile_n = _tile_of(program, m, n, block_m, block_n, group_m)
        total = tl.zeros((block_m, block_n), dtype=accumulated)
        for start in range(0, k, block_k):
            a = a_tiles.load([tile_m * block_m, start])
            b = b_tiles.load([tile_n * block_n, start])
            if upcast:
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            total = tl.dot(a, b.T, total, input_precision=precision, out_dtype=accumulated)
        c_tiles.store([tile_m * block_m, tile_n * block_n], total.to(c_ptr.dtype.element_ty))


INTERPRETED: Final = not isinstance(gemm_kernel, triton.JITFunction)
"""Whether these kernels run in Triton's interpreter, which TRITON_INTERPRET decided when they were imported."""


def matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor | None = None,
    *,
    precision: Precision = "ieee",
    kernel: Kernel = "gemm",
) -> torch.Tensor:
    """`a` @ `b`, accumulated in fp32 (int8: in int32), then rounded to the dtype of `out`.

    `a` is (m, k), `b` is (k, n), both of one dtype in `ACCUMULATED`, on one device. `out` is (m, n) in float32 or, for
    fp32, fp16 and bf16, in their dtype, for eight-bit floats in bfloat16; for int8 it is int32. Where it is None it is
    made, in the narrower of these. `precision` lets fp32 operands be rounded to TF32. Returns `out`. Runs on the
    current stream and does not wait for it.

    `kernel` "gemm" takes any strides; "gemm_descriptor" and "gemm_persistent" want `a` and `out` contiguous, `b`
    stored by columns (`b.T` contiguous) and rows of a multiple of 16 bytes, which descriptors can address.

    Cost: 2·m·n·k FLOPs (a fused multiply-add is two: Golub and Van Loan, Matrix Computations, section 1.1), and at
    least (m·k + k·n)·itemsize + m·n·itemsize of `out` bytes of memory traffic, each matrix passing once.

    Raises ValueError for shapes, strides, dtypes or devices that do not fit, and for a kernel that the device's
    architecture does not have.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or 0 in (*a.shape, *b.shape):
        raise ValueError(f"a {tuple(a.shape)} @ b {tuple(b.shape)}: must be (m, k) @ (k, n), none of them 0")
    (m, k), n = a.shape, b.shape[1]
    if a.dtype != b.dtype or a.dtype not in ACCUMULATED:
        raise ValueError(f"a {a.dtype}, b {b.dtype}: must be the same, one of {', '.join(map(str, ACCUMULATED))}")
    if precision == "tf32" and a.dtype != torch.float32:
        raise ValueError(f"precision='tf32' with a {a.dtype}: only float32 operands can be rounded to TF32")
    written = _written(a.dtype)
    if out is None:
        out = torch.empty((m, n), device=a.device, dtype=written[0])
    if out.shape != (m, n) or out.dtype not in written:
        raise ValueError(f"out {tuple(out.shape)} {out.dtype}: must be {(m, n)} in {' or '.join(map(str, written))}")
    require_device(a, b, out)
    if kernel != "gemm" and TensorDescriptor is None:
        raise ValueError(f"{kernel}: Triton {triton.__version__} has no descriptors; use kernel='gemm', or Triton 3.4")
    tile = _tile(kernel, a, precision, out.itemsize)
    options = _options(tile)
    constants = {
        "block_m": tile.m,
        "block_n": tile.n,
        "block_k": tile.k_bytes // a.itemsize,
        "group_m": _GROUP_M,
        "precision": precision,
        "accumulated": _TRITON[ACCUMULATED[a.dtype]],
        # The interpreter multiplies the raw bits of bfloat16 operands (triton issue 11584).
        "upcast": INTERPRETED and a.dtype == torch.bfloat16,
    }
    tiles = triton.cdiv(m, tile.m) * triton.cdiv(n, tile.n)
    if kernel == "gemm":
        gemm_kernel[(tiles,)](a, b, out, m, n, k, *a.stride(), *b.stride(), *out.stride(), **constants, **options)
        return out
    if not (a.is_contiguous() and b.T.is_contiguous() and out.is_contiguous()) or any(
        size * tensor.itemsize % 16 for tensor, size in ((a, k), (b, k), (out, n))
    ):
        raise ValueError(
            f"a {a.stride()}, b {b.stride()}, out {out.stride()} as strides: descriptors want a, b.T and out "
            "contiguous, with rows of a multiple of 16 bytes"
        )
    if kernel == "gemm_descriptor":
        blocks = ((a, [tile.m, constants["block_k"]]), (b.T, [tile.n, constants["block_k"]]), (out, [tile.m, tile.n]))
        described = [TensorDescriptor(t, list(t.shape), list(t.stride()), block) for t, block in blocks]
        gemm_descriptor_kernel[(tiles,)](*described, m, n, k, written=_TRITON[out.dtype], **constants, **options)
        return out
    programs = min(tiles, _multiprocessors(a.device))
    # The device makes its descriptors in memory that Triton asks for.
    triton.set_allocator(_scratch)
    gemm_persistent_kernel[(programs,)](a, b.T, out, m, n, k, programs=programs, **constants, **options)
    return out


_TRITON: Final = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.int32: tl.int32,
}


def _written(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """What a product of this dtype may be written as, the default first."""
    if dtype == torch.int8:
        return (torch.int32,)
    own = dtype if dtype in DTYPES else torch.bfloat16
    return tuple(dict.fromkeys((own, torch.float32)))


def _tile(kernel: Kernel, a: torch.Tensor, precision: Precision, written_bytes: int) -> Tile:
    if a.device.type == "cpu":
        return _ANYWHERE
    architecture = architecture_of(a.device)
    dtype = "tf32" if precision == "tf32" else str(a.dtype).removeprefix("torch.")
    if kernel == "gemm" and architecture not in configs.ARCHITECTURES:
        return _ANYWHERE
    found = configs.tile(kernel, architecture, dtype, written_bytes)
    why = configs.lacks(kernel, architecture, dtype, TRITON)
    if found is None or why:
        raise ValueError(f"{kernel} of {dtype} on {architecture}: {why}; see mfu_kernels.configs")
    return found


def _options(tile: Tile) -> dict[str, Any]:
    options: dict[str, Any] = {
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        # Said outright: Triton 3.9 announces that its default goes off, which halves the rate of fp32 products.
        "enable_fp_fusion": True,
    }
    if tile.matrix_instruction:
        options["matrix_instr_nonkdim"] = tile.matrix_instruction
    return options


@lru_cache(maxsize=64)
def architecture_of(device: torch.device) -> str:
    """The architecture of a GPU as compilers name it: "sm_90", "gfx942"."""
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _multiprocessors(device: torch.device) -> int:
    # The interpreter runs its programs one after the other: a few show that each goes through several tiles.
    return 3 if device.type == "cpu" else int(torch.cuda.get_device_properties(device).multi_processor_count)


def _scratch(size: int, _alignment: int, _stream: int | None) -> torch.Tensor:
    return torch.empty(size, dtype=torch.int8, device="cpu" if INTERPRETED else "cuda")


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
