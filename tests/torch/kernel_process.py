"""Runs the kernels on the device that is its argument, "cuda" or "cpu", and judges them by float64.

A process of its own, because Triton asks for TRITON_INTERPRET once, when a kernel is defined, its own library's too.
It reads one JSON case a line and answers each with the worst error in units of what rounding allows: 1 or less is
right, infinity says that a kernel wrote outside its tensor. Tensors lie inside larger ones full of NaN, so that a
read outside shows as NaN.
"""

import json
import math
import sys
from collections.abc import Callable
from functools import partial

import torch

from mfu_kernels import gemm, reference, stream

DEVICE = sys.argv[1]
MARGIN = 16
UNTOUCHED = 7.0
SCALE = -0.75


def inside_nan(values: torch.Tensor, *, transposed: bool = False) -> torch.Tensor:
    """`values` as a view into a tensor that is NaN everywhere else, stored by rows or, transposed, by columns."""
    stored = values.T if transposed else values
    around = torch.full([size + 2 * MARGIN for size in stored.shape], math.nan, dtype=values.dtype, device=DEVICE)
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


def matmul(dtype: torch.dtype, shape: list[int], random: torch.Generator) -> float:
    """Random (m, k) @ (k, n), stored by rows and by columns, written in its own dtype and in float32: the worst."""
    m, k, n = shape
    a = torch.randn((m, k), generator=random).to(dtype)
    b = torch.randn((k, n), generator=random).to(dtype)
    truth = reference.matmul(a, b)
    # Higham, Accuracy and Stability of Numerical Algorithms, section 3.1: an inner product in any order is within
    # γ_k Σ|a||b|, γ_k = ku / (1 - ku). u is 2**-23, because matrix units cut sums off where others round.
    u = 2.0**-23
    allowed = k * u / (1 - k * u) * reference.matmul(a.abs(), b.abs())
    errors = []
    for transposed, out_dtype in ((False, dtype), (True, torch.float32)):
        left, right = inside_nan(a, transposed=transposed), inside_nan(b, transposed=transposed)
        errors.append(judged((m, n), out_dtype, partial(gemm.matmul, left, right), allowed, truth))
    # Not max(), which may lose a NaN.
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


def main() -> None:
    """Answer each line of standard input until it ends."""
    # The tests share the machine with others.
    torch.set_num_threads(1)
    cases = {case.__name__: case for case in (matmul, scaled, known, copy, copied_bits, triad)}
    for line in sys.stdin:
        asked = json.loads(line)
        random = torch.Generator().manual_seed(asked["seed"])
        answer = cases[asked["case"]](getattr(torch, asked["dtype"]), asked["shape"], random)
        print(json.dumps(answer), flush=True)


main()
