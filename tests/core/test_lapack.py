"""LAPACK's operation counts, against the textbook algorithms run with numbers that count."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfu_sdk.counting import lapack
from mfu_sdk.counting.lapack import Work

sizes = st.integers(min_value=1, max_value=7)
Matrix = list[list["Number"]]


class Number:
    """A number that counts the arithmetic done with it; a quotient and a root count as products."""

    multiplications = 0
    additions = 0

    def __init__(self, value: float) -> None:
        self.value = value

    def __mul__(self, other: Number) -> Number:
        Number.multiplications += 1
        return Number(self.value * other.value)

    def __truediv__(self, other: Number) -> Number:
        Number.multiplications += 1
        return Number(self.value / other.value)

    def __add__(self, other: Number) -> Number:
        Number.additions += 1
        return Number(self.value + other.value)

    def __sub__(self, other: Number) -> Number:
        Number.additions += 1
        return Number(self.value - other.value)

    def root(self) -> Number:
        Number.multiplications += 1
        return Number(math.sqrt(self.value))


def done(algorithm: Callable[[], object]) -> Work:
    """The arithmetic that `algorithm` does."""
    Number.multiplications = Number.additions = 0
    algorithm()
    return Work(Number.multiplications, Number.additions)


def matrix(m: int, n: int) -> Matrix:
    """Numbers that no algorithm here divides by too small a one of."""
    drawn = random.Random(m * 100 + n)
    return [[Number(drawn.uniform(1, 2) + 10 * m * (i == j)) for j in range(n)] for i in range(m)]


def symmetric(n: int) -> Matrix:
    a = matrix(n, n)
    return [[a[max(i, j)][min(i, j)] for j in range(n)] for i in range(n)]


def factor_lu(a: Matrix) -> Matrix:
    """Gaussian elimination in place."""
    m, n = len(a), len(a[0])
    for k in range(min(m, n)):
        if k == m - 1:
            # LAPACK scales the column below the last pivot too, though it is empty.
            _ = Number(1) / a[k][k]
            continue
        reciprocal = Number(1) / a[k][k]
        for i in range(k + 1, m):
            a[i][k] = a[i][k] * reciprocal
            for j in range(k + 1, n):
                a[i][j] = a[i][j] - a[i][k] * a[k][j]
    return a


def factor_cholesky(a: Matrix) -> Matrix:
    """Column by column, in place in the lower triangle."""
    n = len(a)
    for j in range(n):
        for k in range(j):
            a[j][j] = a[j][j] - a[j][k] * a[j][k]
        a[j][j] = a[j][j].root()
        for i in range(j + 1, n):
            for k in range(j):
                a[i][j] = a[i][j] - a[i][k] * a[j][k]
            a[i][j] = a[i][j] / a[j][j]
    return a


def solve_lower(a: Matrix, columns: Matrix, *, unit: bool) -> Matrix:
    """Forward substitution, on each of `columns`."""
    for x in columns:
        for i in range(len(a)):
            for k in range(i):
                x[i] = x[i] - a[i][k] * x[k]
            if not unit:
                x[i] = x[i] / a[i][i]
    return columns


def reflect(reflections: Matrix, columns: Matrix, *, from_column: bool) -> None:
    """Apply each reflection, whose first numbers are missing, to the columns; or to those that come after its own."""
    for j, v in enumerate(reflections):
        first = len(columns[0]) - len(v)
        for column in columns[j if from_column else 0 :]:
            along = v[0] * column[first]
            for i in range(1, len(v)):
                along = along + v[i] * column[first + i]
            for i in range(len(v)):
                column[first + i] = column[first + i] - along * v[i]


def reflections(m: int, k: int) -> Matrix:
    return [[Number(1.0)] * (m - j) for j in range(k)]


@pytest.mark.parametrize(("m", "n"), [(1, 1), (8, 8), (9, 6), (6, 9), (6, 1), (1, 6)])
def test_lu_to_the_last_operation(m: int, n: int) -> None:
    """Gaussian elimination does as many products and differences as LAPACK says, tall, wide and square."""
    assert done(lambda: factor_lu(matrix(m, n))) == lapack.lu(m, n)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_cholesky_to_the_last_operation(n: int) -> None:
    """The textbook's Cholesky does exactly that many, roots and quotients included; and it is a Cholesky."""
    a = symmetric(n)
    wanted = [[number.value for number in row] for row in a]
    assert done(lambda: factor_cholesky(a)) == lapack.cholesky(n)
    for i in range(n):
        for j in range(i + 1):
            assert sum(a[i][k].value * a[j][k].value for k in range(j + 1)) == pytest.approx(wanted[i][j])


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (4, 3), (7, 2)])
def test_solving_to_the_last_operation(n: int, columns: int) -> None:
    """A triangle, with and without ones on its diagonal; LU factors are one of each, Cholesky's two with none."""
    left, right = matrix(n, n), matrix(columns, n)
    unit = done(lambda: solve_lower(left, right, unit=True))
    divided = done(lambda: solve_lower(left, right, unit=False))
    assert unit == lapack.triangular_solve(n, columns, unit=True)
    assert divided == lapack.triangular_solve(n, columns)
    assert unit + divided == lapack.lu_solve(n, columns)
    assert divided + divided == lapack.cholesky_solve(n, columns)


def third_difference(cost: Callable[[int], Work]) -> tuple[int, int]:
    """Six times the cubic term of what grows with the third power: all smaller terms vanish."""

    def of(part: Callable[[Work], int]) -> int:
        f = [part(cost(n)) for n in range(4, 8)]
        return f[3] - 3 * f[2] + 3 * f[1] - f[0]

    return of(lambda work: work.multiplications), of(lambda work: work.additions)


@pytest.mark.parametrize(("taller", "wider"), [(0, 0), (3, 0), (0, 2)])
def test_qr_in_its_cubic_term(taller: int, wider: int) -> None:
    """Householder's reflections of all columns to come: 2mn² - 2n³/3."""
    brute = third_difference(
        lambda n: done(lambda: reflect(reflections(n + taller, n), matrix(n + wider, n + taller), from_column=True))
    )
    assert brute == third_difference(lambda n: lapack.qr(n + taller, n + wider))


@pytest.mark.parametrize(("taller", "wider"), [(0, 0), (4, 0), (4, 2)])
def test_q_in_its_cubic_term(taller: int, wider: int) -> None:
    """Its columns come from the identity's: reflection j changes columns from j on only."""
    brute = third_difference(
        lambda k: done(lambda: reflect(reflections(k + taller, k), matrix(k + wider, k + taller), from_column=True))
    )
    assert brute == third_difference(lambda k: lapack.householder(k + taller, k + wider, k))


@pytest.mark.parametrize("left", [True, False])
def test_applying_reflections_in_its_cubic_term(left: bool) -> None:
    """Each of k reflections meets every column, or every row from the right."""
    # 2k + 1 columns of k + 3 numbers; from the right they are rows.
    brute = third_difference(
        lambda k: done(lambda: reflect(reflections(k + 3, k), matrix(2 * k + 1, k + 3), from_column=False))
    )
    sizes = (lambda k: (k + 3, 2 * k + 1)) if left else (lambda k: (2 * k + 1, k + 3))
    assert brute == third_difference(lambda k: lapack.reflect(*sizes(k), k, left=left))


def test_inverses_in_their_cubic_term() -> None:
    """From LU: a triangle inverted and n columns solved, 4n³/3; from Cholesky: inverted and squared, 2n³/3."""

    def inverted_triangle(n: int) -> Work:
        # Column j of the inverse begins at j.
        return sum((lapack.triangular_solve(n - j, 1) for j in range(n)), Work(0, 0))

    def squared_triangle(n: int) -> Work:
        products = sum(n - max(i, j) for i in range(n) for j in range(i + 1))
        return Work(products, products)

    from_lu = third_difference(lambda n: inverted_triangle(n) + lapack.triangular_solve(n, n))
    from_cholesky = third_difference(lambda n: inverted_triangle(n) + squared_triangle(n))
    factors = third_difference(lambda n: lapack.lu(n, n))
    both = third_difference(lapack.inverse)
    assert (both[0] - factors[0], both[1] - factors[1]) == from_lu
    assert third_difference(lapack.cholesky_inverse) == from_cholesky
    assert third_difference(lapack.ldl) == third_difference(lapack.cholesky)


def test_complex_numbers() -> None:
    """A complex product is 6 FLOPs and a complex sum 2: a product of matrices would be 4 times that of reals."""
    assert Work(3, 5).flops() == 8
    assert Work(3, 5).flops(of_complex=True) == 28


@given(sizes, sizes, sizes)
def test_whole_numbers(m: int, n: int, columns: int) -> None:
    """The note's polynomials have sixths and thirds in them; of operations there are whole numbers, so none is lost."""
    sixths_of_lu = 3 * max(m, n) * min(m, n) ** 2 - min(m, n) ** 3 - 3 * m * n + min(m, n)
    assert sixths_of_lu == 6 * lapack.lu(m, n).additions
    assert n**3 + 3 * n**2 + 20 * n == 6 * lapack.ldl(n).multiplications
    assert 4 * n**3 - 9 * n**2 + 5 * n == 6 * (lapack.inverse(n).additions - lapack.lu(n, n).additions)
    rows = m + n
    assert 6 * rows * n**2 - 2 * n**3 + 3 * n**2 + 6 * rows * n + 23 * n == 6 * lapack.qr(rows, n).multiplications
    thirds_of_q = 6 * n * rows * n + 2 * n**3 - 3 * n**2 * (rows + n) + 3 * n * n - 3 * n * rows + n
    assert thirds_of_q == 3 * lapack.householder(rows, n, n).additions
    solved = lapack.triangular_solve(n, columns)
    assert lapack.least_squares(rows, n, columns) == (
        lapack.qr(rows, n) + lapack.reflect(rows, columns, n, left=True) + solved
    )


@given(sizes, sizes)
def test_nothing_costs_nothing(m: int, n: int) -> None:
    """A matrix without rows or columns has no factors."""
    assert lapack.lu(m, 0) == lapack.lu(0, n) == lapack.qr(m, 0) == lapack.qr(0, n) == Work(0, 0)
    assert lapack.householder(m, 0, 0) == lapack.cholesky(0) == lapack.inverse(0) == Work(0, 0)


def test_decompositions_by_hand() -> None:
    """Golub and Van Loan's counts for n = 3 and for 6 × 3, and their transposes alike."""
    assert lapack.symmetric_eigenvalues(3, vectors=True) == 9 * 27
    assert lapack.symmetric_eigenvalues(3, vectors=False) == 36
    assert lapack.symmetric_eigenvalues(4, vectors=False) == 85
    assert lapack.eigenvalues(3, vectors=True) == 25 * 27
    assert lapack.eigenvalues(3, vectors=False) == 270
    for m, n in ((6, 3), (3, 6)):
        assert lapack.singular_values(m, n, vectors=False) == 4 * 6 * 9 - 36
        assert lapack.singular_values(m, n, vectors=True) == 14 * 6 * 9 + 8 * 27
        assert lapack.singular_values(m, n, vectors=True, full=True) == 4 * 36 * 3 + 8 * 6 * 9 + 9 * 27
        assert lapack.singular_least_squares(m, n) == 4 * 6 * 9 + 8 * 27


@given(sizes, sizes)
def test_a_part_never_costs_more_than_the_whole(m: int, n: int) -> None:
    """Singular values alone are cheaper than with some vectors, and some than all."""
    values = lapack.singular_values(m, n, vectors=False)
    some = lapack.singular_values(m, n, vectors=True)
    every = lapack.singular_values(m, n, vectors=True, full=True)
    assert values < some <= every
