"""FLOP formulas, by hand and by law."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.counting import formulas
from mfu_sdk.errors import FormulaError

sizes = st.integers(min_value=1, max_value=40)


def test_one_multiply_add() -> None:
    """Two FLOPs for reals, four where one factor is complex, eight where both are."""
    assert formulas.multiply_add() == 2
    assert formulas.multiply_add(left_complex=True) == 4
    assert formulas.multiply_add(right_complex=True) == 4
    assert formulas.multiply_add(left_complex=True, right_complex=True) == 8


def test_product_by_hand() -> None:
    """(2, 3) × (3, 5) is 2·2·3·5; a dot product of 7 is 14; an inner size of one counts."""
    assert formulas.product((2, 5), 3) == 60
    assert formulas.product((), 7) == 14
    assert formulas.product((4, 6), 1) == 48


@pytest.mark.parametrize(
    ("left", "right", "used", "flops"),
    [
        ((10, 4), (3, 4, 5), 7, 2 * 7 * 4 * 5),
        ((10, 4), (3, 4, 5), None, 2 * 10 * 4 * 5),
        ((3, 2, 4), (4, 9), 6, 2 * 2 * 4 * 6),
        ((2, 10), (10, 5), 8, 2 * 2 * 8 * 5),
        ((3, 2, 4), (3, 4, 5), None, 2 * 3 * 2 * 4 * 5),
    ],
)
def test_grouped_product_by_hand(left: tuple[int, ...], right: tuple[int, ...], used: int | None, flops: int) -> None:
    """Rows, columns or the inner size are ragged, and only those up to the last offset multiply."""
    assert formulas.grouped_product(left, right, used) == flops


def test_grouped_product_of_other_ranks() -> None:
    """A rank that no grouped product has is refused."""
    with pytest.raises(FormulaError, match=r"ranks \(4, 2\)"):
        formulas.grouped_product((1, 2, 3, 4), (4, 5), None)


def test_convolution_by_hand() -> None:
    """A 3×3 over 8×8 pixels, 4 channels to 6: every output element takes 4·9 multiply-adds; two groups halve it."""
    x, out = (2, 4, 8, 8), (2, 6, 8, 8)
    assert formulas.convolution(x, (6, 4, 3, 3), out, transposed=False) == 2 * (2 * 6 * 64) * 36
    assert formulas.convolution(x, (6, 2, 3, 3), out, transposed=False) == 2 * (2 * 6 * 64) * 18


@given(sizes, sizes, sizes, sizes)
def test_transposed_convolution_is_a_convolution_read_backwards(batch: int, c_in: int, c_out: int, pixels: int) -> None:
    """Transposed forward over x costs what the ordinary convolution costs whose output has x's shape."""
    ordinary = formulas.convolution((batch, c_out, 99), (c_in, c_out, 3), (batch, c_in, pixels), transposed=False)
    transposed = formulas.convolution((batch, c_in, pixels), (c_in, c_out, 3), (batch, c_out, 99), transposed=True)
    assert ordinary == transposed


def test_convolution_backward_honours_the_mask() -> None:
    """Each wanted gradient costs one forward."""
    assert formulas.convolution_backward(100, input_grad=True, weight_grad=True) == 200
    assert formulas.convolution_backward(100, input_grad=False, weight_grad=True) == 100
    assert formulas.convolution_backward(100, input_grad=False, weight_grad=False) == 0


def test_recurrent_by_hand() -> None:
    """An LSTM of 8 inputs and 16 units takes 8·16·(8 + 16) FLOPs a row; biases are free."""
    assert formulas.recurrent(15, [(64, 8), (64, 16), (64,), (64,)]) == 15 * 8 * 16 * (8 + 16)


def test_bilinear_by_hand() -> None:
    """(B, I), (O, I, J), (B, J): 2·B·O·I·J for the first pair and 2·B·O·J for the second."""
    batch, outs, i, j = 2, 5, 3, 4
    found = formulas.trilinear(((batch, i), (outs, i, j), (batch, j)), ([1, 3], [0], [1, 2]), [2, 3])
    assert found == 2 * batch * outs * i * j + 2 * batch * outs * j


def test_trilinear_of_a_wrong_rank() -> None:
    """An operand that does not fit its expansion is refused."""
    with pytest.raises(FormulaError, match=r"must have 1 dimensions"):
        formulas.trilinear(((2, 3), (5, 3, 4), (2, 4)), ([1, 3], [0, 1, 2], [1, 2]), [2, 3])
