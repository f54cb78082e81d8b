"""Runs the kernels on the device that is its argument, "cuda" or "cpu", and judges them by float64.

A process of its own, because Triton asks for TRITON_INTERPRET once, when a kernel is defined, its own library's too.
It reads one JSON case a line and answers each with the worst error in units of what rounding allows: 1 or less is
right, infinity says that a kernel wrote outside its tensor. What a device or this Triton lacks, and what a case raises,
is an answer too. Tensors lie inside larger ones full of NaN, so that a read outside shows as NaN.
"""

import json
import math
import sys
from collections.abc import Callable
from functools import partial

import torch

from mfu_kernels import gemm, reference, simd, stream

DEVICE = sys.argv[1]
MARGIN = 16
UNTOUCHED = 7.0
SCALE = -0.75


def inside_nan(values: torch.Tensor, *, transposed: bool = False) -> torch.Tensor:
    """`values` as a view into a tensor that is NaN everywhere else, stored by rows or, transposed, by columns.

    Integers have no NaN: a large value shows as a wrong sum.
    """
    stored = values.T if transposed else values
    outside = math.nan if values.dtype.is_floating_point else 101
    around = torch.full([size + 2 * MARGIN for size in stored.shape], outside, device=DEVICE).to(values.dtype)
    view = around[tuple(slice(MARGIN, -MARGIN) for _ in stored.shape)].copy_(stored)
    return view.T if transposed else view


def judged(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    run: Callable[[torch.Tensor], object],
    allowed: torch.Tensor,
    truth: torch.Tensor,
) -> float:
    """The worst error of what `run` writes, over `allowed` and one rounding to `dtype`."""
    around = torch.full([size + 2 * MARGIN for size in shape], UNTOUCHED, dtype=dtype, device=DEVICE)
    inner = tuple(slice(MARGIN, -MARGIN) for _ in shape)
    run(around[inner])
    got = around[inner].double().cpu()
    around[inner] = UNTOUCHED
    if not bool((around == UNTOUCHED).all()):
        return math.inf
    limits = torch.finfo(dtype)
    # A whole unit in the last place, because the interpreter cuts bfloat16 off instead of rounding it.
    rounding = limits.eps * truth.abs() + limits.smallest_normal * limits.eps
    return float(((got - truth).abs() / (allowed + rounding)).max())


def drawn(shape: tuple[int, ...], dtype: torch.dtype, random: torch.Generator) -> torch.Tensor:
    """Normal deviates in a floating dtype, whole numbers of the whole range in int8."""
    if dtype == torch.int8:
        return torch.randint(-128, 128, shape, generator=random, dtype=torch.int8)
    return torch.randn(shape, generator=random).to(dtype)


def unit(a: torch.Tensor) -> float:
    """What a sum of products of `a`'s rows may be off by before it is rounded, as a share of the sum of their sizes."""
    k = a.shape[1]
    if DEVICE == "cuda" and a.dtype.is_floating_point and a.itemsize == 1 and capability() in ((8, 9), (9, 0)):
        # Ada and Hopper keep some fourteen bits of eight-bit floats' sums (DeepSeek-V3, arXiv 2412.19437, section
        # 3.5.2). An instruction adds 32 products to a sum, all cut off at the largest one's last bit.
        return (33 + -(-k // 32)) * 2.0**-13
    # Higham, Accuracy and Stability of Numerical Algorithms, section 3.1: an inner product in any order is within
    # γ_k Σ|a||b|, γ_k = ku / (1 - ku). u is 2**-23, because matrix units cut sums off where others round.
    u = 2.0**-23
    return k * u / (1 - k * u)


def capability() -> tuple[int, int]:
    """The compute capability of the GPU."""
    return torch.cuda.get_device_capability()


def allowed_for(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The error that a product of (m, k) and (k, n) may have before it is rounded."""
    return unit(a) * reference.matmul(a.double().abs(), b.double().abs())


def matmul(dtype: torch.dtype, shape: list[int], random: torch.Generator) -> float:
    """Random (m, k) @ (k, n), stored by rows and by columns, in each dtype that it may be written in: the worst."""
    m, k, n = shape
    a, b = drawn((m, k), dtype, random), drawn((k, n), dtype, random)
    if dtype == torch.int8:
        # Sums of whole numbers are exact.
        out = gemm.matmul(inside_nan(a), inside_nan(b, transposed=True)).cpu()
        return 0.0 if torch.equal(out.double(), reference.matmul(a, b)) else math.inf
    truth = reference.matmul(a, b)
    own = dtype if dtype in gemm.DTYPES else torch.bfloat16
    errors = []
    for transposed, out_dtype in ((False, own), (True, torch.float32)):
        left, right = inside_nan(a, transposed=transposed), inside_nan(b, transposed=transposed)
        run = partial(gemm.matmul, left, right)
        errors.append(judged((m, n), out_dtype, run, allowed_for(a, b), truth))
    # Not max(), which may lose a NaN.
    return float(torch.tensor(errors).max())


def described(dtype: torch.dtype, shape: list[int], random: torch.Generator) -> float:
    """The same by descriptors, the host's and the device's, where a store beyond an edge would show in what follows."""
    m, k, n = shape
    a, b = drawn((m, k), dtype, random), drawn((n, k), dtype, random).T
    truth = reference.matmul(a, b)
    errors = []
    for kernel in ("gemm_descriptor", "gemm_persistent"):
        written = torch.int32 if dtype == torch.int8 else torch.float32
        around = torch.full((m + 2 * MARGIN, n), int(UNTOUCHED), dtype=written, device=DEVICE)
        out = around[MARGIN:-MARGIN]
        gemm.matmul(a.to(DEVICE), b.T.contiguous().to(DEVICE).T, out, kernel=kernel)  # type: ignore[arg-type]
        got = out.double().cpu()
        out.fill_(int(UNTOUCHED))
        if not bool((around == UNTOUCHED).all()):
            return math.inf
        errors.append(float(((got - truth).abs() / (allowed_for(a, b) + 1e-30)).max()))
    return float(torch.tensor(errors).max())


def scaled(dtype: torch.dtype, shape: list[int], random: torch.Generator) -> bool:
    """Whether (2A)B equals 2(AB) to the bit, as it must where nothing over- or underflows."""
    m, k, n = shape
    a = torch.randn((m, k), generator=random).to(dtype).to(DEVICE)
    b = torch.randn((k, n), generator=random).to(dtype).to(DEVICE)
    return torch.equal(
        gemm.matmul(2 * a, b, torch.empty((m, n), device=DEVICE)),
        2 * gemm.matmul(a, b, torch.empty((m, n), device=DEVICE)),
    )


def known(dtype: torch.dtype, shape: list[int], random: torch.Generator) -> list[list[float]]:
    """The product of two matrices that a reader can multiply."""
    a = torch.tensor([[1, 2], [3, 4], [5, 6]], dtype=dtype, device=DEVICE)
    b = torch.tensor([[7, 8, 9, 10], [11, 12, 13, 14]], dtype=dtype, device=DEVICE)
    return gemm.matmul(a, b).tolist()


def copy(dtype: torch.dtype, shape: list[int], random: torch.Generator) -> float:
    """Random elements copied: no error is allowed beside the rounding, and there is none."""
    source = torch.randn(shape, generator=random).to(dtype)
    view = inside_nan(source)
    return judged(tuple(shape), dtype, partial(stream.copy, view), torch.zeros(shape), reference.copy(source).double())


def copied_bits(dtype: torch.dtype, shape: list[int], random: torch.Generator) -> bool:
    """Whether a copy of arbitrary bits, NaN payloads among them, has the same bits."""
    width = torch.int16 if dtype.itemsize == 2 else torch.int32
    limits = torch.iinfo(width)
    bits = torch.randint(limits.min, limits.max, shape, generator=random, dtype=width).to(DEVICE)
    return torch.equal(stream.copy(bits.view(dtype), torch.empty_like(bits.view(dtype))).view(width), bits)


def triad(dtype: torch.dtype, shape: list[int], random: torch.Generator) -> float:
    """Random b + scale·c; two roundings in fp32 are allowed beside the last one."""
    b = torch.randn(shape, generator=random).to(dtype)
    c = torch.randn(shape, generator=random).to(dtype)
    left, right = inside_nan(b), inside_nan(c)
    return judged(
        tuple(shape),
        dtype,
        partial(stream.triad, left, right, SCALE),
        2.0**-23 * reference.triad(b.abs(), c.abs(), abs(SCALE)),
        reference.triad(b, c, SCALE),
    )


def read(dtype: torch.dtype, shape: list[int], random: torch.Generator) -> float:
    """The sum of a buffer, read by three programs, over what sums in fp32 may be off by."""
    source = torch.randn(shape, generator=random).to(dtype)
    parts = stream.read(inside_nan(source), torch.full((3,), math.nan, device=DEVICE)).double().cpu()
    bound = source.numel() * 2.0**-23 * float(source.double().abs().sum()) + 1e-30
    return abs(float(parts.sum() - reference.read(source))) / bound


def fma(dtype: torch.dtype, shape: list[int], random: torch.Generator) -> float:
    """Four chains of multiply-adds: each step keeps |x| times the error before it and rounds once more."""
    x = (torch.rand(shape, generator=random) - 0.5).to(DEVICE)
    truth = reference.fma(x.cpu(), 2 * simd.UNROLLED)
    got = simd.fma(x, 2, torch.full_like(x, math.nan)).double().cpu()
    # |x| is at most 1/2, so the errors of a chain add up to at most twice that of its largest value, which is 4.
    return float(((got - truth).abs() / (4 * 2 * 4 * 2.0**-23)).max())


def main() -> None:
    """Answer each line of standard input until it ends."""
    # The tests share the machine with others.
    torch.set_num_threads(1)
    cases = {case.__name__: case for case in (matmul, described, scaled, known, copy, copied_bits, triad, read, fma)}
    for line in sys.stdin:
        asked = json.loads(line)
        random = torch.Generator().manual_seed(asked["seed"])
        answer: object
        try:
            answer = cases[asked["case"]](getattr(torch, asked["dtype"]), asked["shape"], random)
        except Exception as error:  # noqa: BLE001 - one case may fail, and the next be right
            said = f"{type(error).__name__}: {error}"
            lacks = "see mfu_kernels.configs" in said or "has no descriptors" in said
            answer = {"absent" if lacks else "error": said[:2000]}
        print(json.dumps(answer), flush=True)


main()
