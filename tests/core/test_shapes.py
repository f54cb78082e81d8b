"""The shapes that a device is measured with."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.peak.shapes import INNER, TILE_M, TILE_N, Shape, shapes


def test_an_h100_by_hand() -> None:
    """132 SMs are 12 by 11: 12·6 by 11·3 tiles are 18 whole waves, near a square, near 1.5 ms at 900 TFLOP/s."""
    first, square, layer = shapes(132, 900e12 * 1.5e-3)
    assert first == Shape(12 * 6 * 128, 11 * 3 * 256, INNER)
    assert square == Shape(8192, 8192, 8192)
    assert layer == Shape(16384, 8192, 4096)


@given(st.integers(1, 320), st.floats(1e9, 1e13))
def test_waves_are_whole(units: int, call_flops: float) -> None:
    """For every device the first shape's tiles fill its units four times or more, with none left over."""
    first = shapes(units, call_flops)[0]
    assert first.m % TILE_M == first.n % TILE_N == first.k % 128 == 0
    tiles = (first.m // TILE_M) * (first.n // TILE_N)
    assert tiles % units == 0
    assert tiles // units >= 4


@given(st.integers(8, 320), st.floats(1e10, 1e13))
def test_calls_are_as_long_as_wanted(units: int, call_flops: float) -> None:
    """No shape is more than eight times the wanted work, but where four waves and the least sides are more."""
    least = max(4 * units * TILE_M * TILE_N * 1024 * 2 * 8, 2 * 1024 * 1024 * 2048)
    assert all(shape.flops <= max(8 * call_flops, 8 * least) for shape in shapes(units, call_flops))


def test_flops_and_bytes_by_hand() -> None:
    """2·3·4·5 FLOPs; (3 + 4)·5 elements of two bytes."""
    assert Shape(3, 4, 5).flops == 120
    assert Shape(3, 4, 5).operand_bytes(2) == 70


def test_smaller_ends() -> None:
    """Halving keeps whole tiles, and stops where there is nothing left to measure."""
    shape: Shape | None = Shape(9216, 8448, INNER)
    sizes = []
    while shape is not None:
        sizes.append(shape)
        shape = shape.smaller()
    assert sizes[1] == Shape(4608, 4096, 4096)
    assert min(sizes[-1].m, sizes[-1].n, sizes[-1].k) >= 256
    assert all(a.flops > b.flops for a, b in pairwise(sizes))


@pytest.mark.parametrize("units", [14, 16, 26, 60, 66, 84, 108, 114, 132, 142, 144, 148, 160, 188, 228, 256, 304])
def test_real_devices_are_nearly_square(units: int) -> None:
    """No real SM or CU count leads to a matrix four times as long as wide."""
    first = shapes(units, 1e12)[0]
    assert max(first.m / first.n, first.n / first.m) < 2.1
