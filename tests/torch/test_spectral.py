"""What Fourier transforms cost: 5·N·log2 N, half of that for real numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mfu_sdk as mfu
from mfu_sdk.counting import formulas

fft = torch.fft


@given(st.integers(0, 12), st.integers(1, 9))
def test_powers_of_two_are_whole(levels: int, transforms: int) -> None:
    """Of 2^n points there are n levels, for real numbers half the work, for any number of transforms."""
    points = 2**levels
    assert formulas.fourier(transforms * points, points, real=False) == 5 * transforms * points * levels
    assert formulas.fourier(transforms * points, points, real=True) == 5 * transforms * points * levels // 2


@given(st.integers(2, 5000), st.integers(1, 50))
def test_other_sizes_are_rounded_down(points: int, transforms: int) -> None:
    """Any size lies between the powers of two around it, and is a whole number."""
    found = formulas.fourier(transforms * points, points, real=False)
    assert found <= 5 * transforms * points * math.log2(points) < found + 1.001


def test_two_dimensions_are_one_after_the_other() -> None:
    """All rows and then all columns cost what both together do."""
    rows, columns = formulas.fourier(32, 8, real=False), formulas.fourier(32, 4, real=False)
    assert formulas.fourier(32, 32, real=False) == rows + columns


REAL, COMPLEX = torch.randn(3, 8), torch.randn(3, 8, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("run", "flops"),
    [
        (lambda: fft.fft(COMPLEX), 5 * 24 * 3),
        (lambda: fft.ifft(COMPLEX), 5 * 24 * 3),
        (lambda: fft.fft(REAL), 5 * 24 * 3 // 2),
        (lambda: fft.rfft(REAL), 5 * 24 * 3 // 2),
        (lambda: fft.rfft2(REAL[:2]), 5 * 16 * 4 // 2),
        (lambda: fft.irfft(fft.rfft(REAL)), 5 * 24 * 3),
        (lambda: fft.fftn(COMPLEX[:2]), 5 * 16 * 4),
        (lambda: fft.fft(COMPLEX, n=16), 5 * 48 * 4),
        (lambda: fft.hfft(COMPLEX[:, :5]), 5 * 24 * 3 // 2),
        (lambda: fft.fft(COMPLEX[:, :1]), 0),
        # 9 windows of 16, a quarter of a window apart.
        (lambda: torch.stft(torch.ones(32), 16, window=torch.ones(16), return_complex=True), 5 * 9 * 16 * 4 // 2),
    ],
)
def test_forward_by_hand(run: object, flops: int) -> None:
    """Each transform of a batch, of every form torch has; nothing is uncounted."""
    count = mfu.count(run)  # type: ignore[arg-type]
    assert (count.model_flops, count.uncounted) == (flops, ())


def test_the_backward_is_a_transform_too() -> None:
    """The gradient of a complex transform is one transform more."""
    x = COMPLEX.clone().requires_grad_()
    count = mfu.count(lambda: fft.fft(x).abs().sum().backward())
    assert count.forward_flops == count.backward_flops == 5 * 24 * 3
