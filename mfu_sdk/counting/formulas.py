"""What linear algebra, convolutions and recurrent layers cost, as pure functions of shapes.

One multiply-add is two FLOPs. Every function returns an exact int and takes ints or shapes, never tensors, so each can
be checked with a pencil. Products with an inner size of one count like any other.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from mfu_sdk.errors import FormulaError

FORMULA_VERSION: Final = "2"
"""Raised whenever a formula changes what it returns for some shape; every `Count` and every record carries it."""


@dataclass(frozen=True, slots=True)
class Cost:
    """FLOPs of one operator call: needed by the model, and executed (`hardware`).

    The model needs `dense` plus attention's score products, which are `exact` over the pairs that the mask lets
    through and `full` over all pairs. `early` is the part of `dense` that belongs to the backward although it runs in
    the forward, as in fused losses that make their gradients at once. `hardware` has what the kernel computes again or
    beyond the mask.
    """

    dense: int
    hardware: int
    exact: int = 0
    full: int = 0
    early: int = 0

    @classmethod
    def plain(cls, flops: int) -> "Cost":
        """A cost without attention, all of it needed and executed."""
        return cls(flops, flops)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.dense + other.dense,
            self.hardware + other.hardware,
            self.exact + other.exact,
            self.full + other.full,
            self.early + other.early,
        )

    def model(self, convention: str) -> int:
        """The FLOPs that the model needs, under "exact" or "full"."""
        return self.dense + (self.exact if convention == "exact" else self.full)


FREE: Final = Cost(0, 0)


def multiply_add(*, left_complex: bool = False, right_complex: bool = False) -> int:
    """FLOPs of one multiply-add of two numbers.

    Two for reals. A complex product is 4 multiplications and 2 additions and its sum 2 more: 8. Complex by real is
    2 and 2: 4. Source: LAPACK Working Note 41, appendix C (complex flops = 6 a multiplication, 2 an addition).
    """
    return 2 * (1 + left_complex) * (1 + right_complex)


def product(out_shape: Sequence[int], inner: int, per_multiply_add: int = 2) -> int:
    """FLOPs of a contraction: each of the output's elements sums `inner` products.

    mm, bmm, mv, dot, linear and their scaled and quantized kin all have this form. An added bias (addmm's) is
    elementwise and free.
    """
    return per_multiply_add * math.prod(out_shape) * inner


def grouped_product(left: Sequence[int], right: Sequence[int], used: int | None, per_multiply_add: int = 2) -> int:
    """FLOPs of a grouped product (`torch._grouped_mm`), `used` being the last of its offsets.

    `used` bounds the ragged size: rows of a (M, K) × (G, K, N), columns of a (G, M, K) × (K, N), or the inner size
    of a (M, K) × (K, N). (G, M, K) × (G, K, N) has none. Without offsets the whole ragged size counts. Raises
    `FormulaError` for other ranks.
    """
    rows, inner, columns = left[-2], left[-1], right[-1]
    ranks = (len(left), len(right))
    if ranks == (2, 3):
        return per_multiply_add * (rows if used is None else used) * inner * columns
    if ranks == (3, 2):
        return per_multiply_add * rows * inner * (columns if used is None else used)
    if ranks == (2, 2):
        return per_multiply_add * rows * (inner if used is None else used) * columns
    if ranks == (3, 3):
        return per_multiply_add * left[0] * rows * inner * columns
    raise FormulaError(f"grouped product of ranks {ranks}: must be 2 or 3 each; register a formula for this operator")


def convolution(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    out_shape: Sequence[int],
    *,
    transposed: bool,
    per_multiply_add: int = 2,
) -> int:
    """FLOPs of a convolution forward; taps that fall on padding count, as they are multiplied.

    Weights are (C_out, C_in / groups, *kernel), or (C_in, C_out / groups, *kernel) when transposed. An ordinary
    convolution multiplies all but its first size for each output element, a transposed one for each input element;
    groups, stride, padding and dilation are in these shapes already.
    """
    pixels = math.prod(x_shape) if transposed else math.prod(out_shape)
    return per_multiply_add * pixels * math.prod(weight_shape[1:])


def convolution_backward(forward_flops: int, *, input_grad: bool, weight_grad: bool) -> int:
    """FLOPs of a convolution backward: each wanted gradient pairs the same numbers as the forward did.

    The gradient of the input scatters what the forward gathered, that of the weight sums over the same (pixel, tap,
    channel) triples; that of the bias is a reduction and free.
    """
    return forward_flops * (input_grad + weight_grad)


def recurrent(rows: int, weight_shapes: Sequence[Sequence[int]]) -> int:
    """FLOPs of recurrent layers forward: each of `rows` (steps × batch, ragged or not) meets every matrix once.

    `weight_shapes` may hold biases too: only matrices multiply. An LSTM layer of I inputs and H units has (4H, I) and
    (4H, H), so 8·H·(I + H) a row; a projection adds its own matrix. Gates' pointwise arithmetic is free.
    """
    return 2 * rows * sum(math.prod(shape) for shape in weight_shapes if len(shape) == 2)


def trilinear(
    shapes: tuple[Sequence[int], Sequence[int], Sequence[int]],
    expanded: tuple[Collection[int], Collection[int], Collection[int]],
    summed: Collection[int],
) -> int:
    """FLOPs of `aten::_trilinear`, which `nn.Bilinear` is made of: two pairwise products, the first two operands first.

    `expanded[i]` are the dimensions of the common index space that operand i lacks; `summed` are contracted. Those of
    `summed` that the third operand lacks are contracted by the first product. Bilinear (B, I), (O, I, J), (B, J)
    gives 2·B·O·I·J + 2·B·O·J.
    """
    rank = len(shapes[0]) + len(expanded[0])
    sizes: list[int] = [1] * rank
    for shape, missing in zip(shapes, expanded, strict=True):
        present = [dim for dim in range(rank) if dim not in missing]
        if len(present) != len(shape):
            raise FormulaError(
                f"_trilinear operand {tuple(shape)}: must have {len(present)} dimensions; correct expand"
            )
        for dim, size in zip(present, shape, strict=True):
            sizes[dim] = max(sizes[dim], size)
    first = math.prod(size for dim, size in enumerate(sizes) if not (dim in expanded[0] and dim in expanded[1]))
    gone = [dim for dim in summed if dim in expanded[2]]
    second = math.prod(size for dim, size in enumerate(sizes) if dim not in gone)
    return 2 * first + 2 * second


def fourier(elements: int, points: int, *, real: bool) -> int:
    """FLOPs of Fourier transforms of `points` numbers each, `elements` in all; of several dimensions their product.

    5·N·log2 N for N complex numbers, half of that for real ones, rounded down, whatever the algorithm does for this
    size. Source: FFTW's benchFFT, which speeds of transforms are quoted by.
    """
    if points <= 1 or elements == 0:
        return 0
    # A logarithm in floating point need not be whole for a power of two.
    levels = points.bit_length() - 1 if points & (points - 1) == 0 else math.log2(points)
    return math.floor(5 * elements * levels) // (2 if real else 1)
