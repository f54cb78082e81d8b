"""The shapes of matrix products that a device is measured with: fixed by its units, searched by nobody.

A product is cut into tiles, one a unit at a time, so a count of tiles that is no multiple of the units leaves some of
them idle in the last wave. The first shape fills every wave; the second is the square that others publish; the third
has the proportions of a transformer's layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, sqrt
from typing import Final

TILE_M: Final = 128
TILE_N: Final = 256
"""What vendors' libraries and our own kernels cut large products into, as a rule."""
INNER: Final = 8192 + 128
"""The inner size: long enough to hide what a tile costs at both ends, and no power of two, which strides collide at."""
LEAST_WAVES: Final = 4
LEAST_SIDE: Final = 1024
LEAST_TILES: Final = 256
"""Below this side nothing but the launch would be measured."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A product of (m, k) and (k, n)."""

    m: int
    n: int
    k: int

    @property
    def flops(self) -> int:
        """2·m·n·k: a fused multiply-add is two FLOPs (Golub and Van Loan, Matrix Computations, section 1.1)."""
        return 2 * self.m * self.n * self.k

    def operand_bytes(self, itemsize: int) -> int:
        """Bytes of both operands."""
        return (self.m + self.n) * self.k * itemsize

    def __str__(self) -> str:
        return f"{self.m}×{self.n}×{self.k}"

    def smaller(self) -> Shape | None:
        """Half as many rows, columns and inner elements, in whole tiles; None for the smallest worth measuring."""
        m, n, k = (
            max(side // 2 // tile * tile, LEAST_TILES)
            for side, tile in ((self.m, TILE_M), (self.n, TILE_N), (self.k, TILE_M))
        )
        return Shape(m, n, k) if m * n * k < self.m * self.n * self.k else None


def shapes(units: int, call_flops: float) -> tuple[Shape, ...]:
    """Up to three shapes for a device of `units` SMs or CUs, of about `call_flops` FLOPs a call.

    `call_flops` is what the device does in a few milliseconds. The first shape has at least `LEAST_WAVES` whole waves
    of tiles even where that is more.
    """
    full = _whole_waves(units, call_flops)
    side = max(LEAST_SIDE, min(8192, round((call_flops / 2) ** (1 / 3)) // TILE_N * TILE_N))
    square = Shape(side, side, side)
    layer = Shape(2 * side, side, max(LEAST_SIDE, side // 2))
    return tuple(dict.fromkeys((full, square, layer)))


def _whole_waves(units: int, call_flops: float) -> Shape:
    """Tiles in a grid of a·i by b·j for units = a·b: whole waves, nearly square, near the wanted size."""
    across = next(b for b in range(isqrt(units), 0, -1) if units % b == 0)
    down = units // across
    wanted = sqrt(call_flops / (2 * INNER))
    best: tuple[float, Shape] | None = None
    for i in range(1, 65):
        for j in range(1, 65):
            if i * j < LEAST_WAVES:
                continue
            m, n = down * i * TILE_M, across * j * TILE_N
            # As far from square, and from the wanted size, as this: in octaves.
            off = max(m / n, n / m) * max(sqrt(m * n) / wanted, wanted / sqrt(m * n))
            if best is None or off < best[0]:
                best = (off, Shape(m, n, INNER))
    assert best is not None
    shape = best[1]
    # Where four waves are more than was wanted, a shorter inner size makes up for it.
    k = min(INNER, max(LEAST_SIDE, int(call_flops / (2 * shape.m * shape.n)) // 128 * 128))
    return Shape(shape.m, shape.n, k)
