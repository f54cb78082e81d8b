"""Factorisations, solvers and decompositions of `torch.linalg`, for each matrix m × n or n × n of a stack.

Direct routines count by the whole polynomial of LAPACK Working Note 41, whose leading terms stand here; of complex
numbers a multiplication is 6 FLOPs and an addition 2. Iterative ones have the customary counts of a textbook.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

import torch

from mfu_sdk.counting import formulas, lapack
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.formulas import Cost
from mfu_sdk.counting.lapack import Work
from mfu_sdk.counting.masks import Masks
from mfu_sdk.counting.pricing.price import Price, batches, per_multiply_add, plain, sizes
from mfu_sdk.errors import FormulaError

_LAWN: Final = "LAPACK Working Note 41, appendix C: "
_GOLUB: Final = "Golub and Van Loan, Matrix Computations, 4th edition, "


def _direct(matrix: str, work: Callable[[Call, int, int], Work], words: str, routine: str) -> Price:
    """`work(call, m, n)` on each of a stack of m × n."""

    def flops(call: Call) -> int:
        shape = sizes(call, matrix)
        return batches(shape) * work(call, shape[-2], shape[-1]).flops(of_complex=call[matrix].is_complex())

    return plain(flops, matrix, words, f"{_LAWN}{routine}")


def _square(matrix: str, work: Callable[[int], Work], words: str, routine: str) -> Price:
    return _direct(matrix, lambda _call, _m, n: work(n), words, routine)


def _columns(matrix: str, right: str, work: Callable[[Call, int], Work], words: str, routine: str) -> Price:
    """A solver from n × n factors; `work(call, n)` is that of one of the right side's vectors of n numbers."""

    def flops(call: Call) -> int:
        n = sizes(call, matrix)[-1]
        either = call[matrix].is_complex() or call[right].is_complex()
        # The right side may be vectors or matrices from either side, and either side may be broadcast: what is solved
        # for says how many vectors there are.
        return call.out.numel() // max(n, 1) * work(call, n).flops(of_complex=either)

    return plain(flops, matrix, words, f"{_LAWN}{routine}")


def _solve(call: Call) -> int:
    shape = sizes(call, "A")
    n, vectors, of_complex = shape[-1], call.out.numel() // max(shape[-1], 1), call["A"].is_complex()
    factors = batches(shape) * lapack.lu(n, n).flops(of_complex=of_complex)
    return factors + lapack.lu_solve(n, vectors).flops(of_complex=of_complex)


def _inverse(call: Call, _: Masks) -> Cost:
    shape = sizes(call, "A")
    n, many, of_complex = shape[-1], batches(shape), call["A"].is_complex()
    # torch solves for the columns of the identity instead.
    solved = lapack.lu(n, n) + lapack.lu_solve(n, n)
    return Cost(many * lapack.inverse(n).flops(of_complex=of_complex), many * solved.flops(of_complex=of_complex))


def _qr(call: Call, m: int, n: int) -> Work:
    k, factors = min(m, n), lapack.qr(m, n)
    if call["mode"] == "r":
        return factors
    return factors + lapack.householder(m, m if call["mode"] == "complete" else k, k)


def _householder(call: Call, m: int, n: int) -> Work:
    return lapack.householder(m, n, call.shape("tau")[-1])


def _reflect(call: Call) -> int:
    shape = sizes(call, "input3")
    work = lapack.reflect(shape[-2], shape[-1], call.shape("input2")[-1], left=call["left"])
    return batches(shape) * work.flops(of_complex=call["self"].is_complex())


def _triangular(unit: str) -> Callable[[Call, int], Work]:
    return lambda call, n: lapack.triangular_solve(n, 1, unit=call[unit])


def _least_squares(call: Call) -> int:
    shape = sizes(call, "self")
    m, n = shape[-2:]
    of_complex = call["self"].is_complex()
    if call["driver"] in ("gelss", "gelsd"):
        return batches(shape) * lapack.singular_least_squares(m, n) * (4 if of_complex else 1)
    vectors = call["b"].numel() // max(m, 1) // max(batches(shape), 1)
    return batches(shape) * lapack.least_squares(m, n, vectors).flops(of_complex=of_complex)


def _iterative(matrix: str, flops: Callable[[Call, int, int], int], words: str, section: str) -> Price:
    def total(call: Call) -> int:
        shape = sizes(call, matrix)
        return batches(shape) * flops(call, shape[-2], shape[-1]) * (4 if call[matrix].is_complex() else 1)

    return plain(total, matrix, f"{words}; complex ×4", f"{_GOLUB}{section}")


def _singular(call: Call, m: int, n: int) -> int:
    return lapack.singular_values(m, n, vectors=call.get("compute_uv", True), full=call["full_matrices"])


def _pseudo_inverse(call: Call, m: int, n: int) -> int:
    if call.get("hermitian"):
        return lapack.symmetric_eigenvalues(n, vectors=True) + formulas.product((n, n), n)
    return lapack.singular_values(m, n, vectors=True) + formulas.product((n, m), min(m, n))


# Up to which norm of the matrix torch takes which Taylor polynomial, and how many products that has; beyond the last,
# the matrix is halved until it is below, and the result squared as often.
_PRODUCTS: Final = (0, 1, 2, 3, 4, 5)
_SINGLE: Final = (
    1.192092800768788e-07,
    5.978858893805233e-04,
    5.116619363445086e-02,
    5.800524627688768e-01,
    1.461661507209034,
    3.010066362817634,
)
_DOUBLE: Final = (
    2.220446049250313e-16,
    2.580956802971767e-08,
    3.397168839976962e-04,
    4.991228871115323e-02,
    2.996158913811580e-01,
    1.090863719290036,
)


def matrix_exponential_products(norm: float, *, double: bool) -> int:
    """Products in torch's exponential of a matrix, by its largest absolute column sum."""
    bounds = _DOUBLE if double else _SINGLE
    for products, bound in zip(_PRODUCTS, bounds, strict=True):
        if norm <= bound:
            return products
    return _PRODUCTS[-1] + math.ceil(math.log2(norm / bounds[-1]))


def _matrix_exponential(call: Call, _: Masks) -> Cost:
    matrices, shape = call["self"], sizes(call, "self")
    if type(matrices) is not torch.Tensor or matrices.is_meta:
        raise FormulaError("a matrix exponential without data: its products follow from the norm; count it on a device")
    n = shape[-1]
    if n <= 1:
        return Cost.plain(0)
    double = matrices.dtype in (torch.float64, torch.complex128)
    norms = matrices.detach().reshape(-1, n, n).abs().sum(-2).amax(-1).tolist()
    if not all(map(math.isfinite, norms)):
        raise FormulaError("a matrix exponential of numbers that are not finite: how often it squares is undefined")
    products = sum(matrix_exponential_products(norm, double=double) for norm in norms)
    return Cost.plain(products * formulas.product((n, n), n, per_multiply_add(matrices, matrices)))


PRICES: Final[Mapping[str, Price]] = {
    **dict.fromkeys(
        ("aten::linalg_lu_factor_ex", "aten::linalg_lu"),
        _direct("A", lambda _, m, n: lapack.lu(m, n), "≈ m·n² - n³/3 (m ≥ n)", "getrf"),
    ),
    **dict.fromkeys(
        ("aten::_linalg_det", "aten::_linalg_slogdet"),
        _square("A", lambda n: lapack.lu(n, n), "≈ 2n³/3: the LU factors", "getrf"),
    ),
    "aten::linalg_lu_solve": _columns("LU", "B", lambda _, n: lapack.lu_solve(n, 1), "≈ 2n² a column", "getrs"),
    "aten::_linalg_solve_ex": plain(_solve, "A", "≈ 2n³/3 + 2n² a column", f"{_LAWN}getrf, getrs"),
    "aten::linalg_inv_ex": Price(
        _inverse,
        "A",
        words="≈ 2n³; executed ≈ 8n³/3, as torch solves for the identity",
        source=f"{_LAWN}getrf, getri; executed getrf, getrs",
    ),
    **dict.fromkeys(
        ("aten::linalg_cholesky_ex", "aten::cholesky"), _square("self", lapack.cholesky, "≈ n³/3", "potrf")
    ),
    "aten::cholesky_solve": _columns(
        "input2", "self", lambda _, n: lapack.cholesky_solve(n, 1), "2n² a column", "potrs"
    ),
    "aten::_cholesky_solve_helper": _columns(
        "A", "self", lambda _, n: lapack.cholesky_solve(n, 1), "2n² a column", "potrs"
    ),
    "aten::cholesky_inverse": _square("self", lapack.cholesky_inverse, "≈ 2n³/3", "potri"),
    "aten::linalg_ldl_factor_ex": _square("self", lapack.ldl, "≈ n³/3", "sytrf"),
    "aten::linalg_ldl_solve": _columns("LD", "B", lambda _, n: lapack.lu_solve(n, 1), "≈ 2n² a column", "sytrs"),
    "aten::linalg_solve_triangular": _columns("self", "B", _triangular("unitriangular"), "n² a column", "trsm"),
    "aten::triangular_solve": _columns("A", "self", _triangular("unitriangular"), "n² a column", "trsm"),
    "aten::geqrf": _direct("self", lambda _, m, n: lapack.qr(m, n), "≈ 2m·n² - 2n³/3 (m ≥ n)", "geqrf"),
    "aten::linalg_qr": _direct(
        "A", _qr, "≈ 2m·n² - 2n³/3 for R, as much again for n columns of Q (m ≥ n)", "geqrf, orgqr"
    ),
    "aten::linalg_householder_product": _direct(
        "input", _householder, "≈ 4m·n·k - 2(m + n)·k² + 4k³/3, k reflections", "orgqr"
    ),
    "aten::ormqr": plain(_reflect, "self", "≈ 4m·n·k - 2n·k² (left), k reflections", f"{_LAWN}ormqr"),
    "aten::linalg_lstsq": plain(
        _least_squares,
        "self",
        "≈ 2m·n² - 2n³/3 + (4m·n - n²) a column (m ≥ n; gels, and gelsy alike); gelss, gelsd: 4m·n² + 8n³",
        f"{_LAWN}geqrf, ormqr, trsm; {_GOLUB}§5.5",
    ),
    "aten::_linalg_eigh": _iterative(
        "A",
        lambda call, _, n: lapack.symmetric_eigenvalues(n, vectors=call["compute_v"]),
        "9n³; values only 4n³/3",
        "§8.3, symmetric QR algorithm",
    ),
    "aten::linalg_eig": _iterative(
        "self", lambda _call, _, n: lapack.eigenvalues(n, vectors=True), "25n³", "§7.5, unsymmetric QR algorithm"
    ),
    **dict.fromkeys(
        ("aten::linalg_eigvals", "aten::_linalg_eigvals"),
        _iterative(
            "self", lambda _call, _, n: lapack.eigenvalues(n, vectors=False), "10n³", "§7.5, unsymmetric QR algorithm"
        ),
    ),
    **dict.fromkeys(
        ("aten::_linalg_svd", "prims::svd"),
        _iterative(
            "A",
            _singular,
            "14m·n² + 8n³; all of U 4m²·n + 8m·n² + 9n³; values only 4m·n² - 4n³/3 (m ≥ n)",
            "§8.6, Golub and Reinsch's SVD",
        ),
    ),
    "aten::linalg_pinv": _iterative("self", _pseudo_inverse, "the SVD and 2m·n²; hermitian 9n³ + 2n³", "§8.6 and §8.3"),
    "aten::linalg_matrix_exp": Price(
        _matrix_exponential,
        "self",
        words="2n³ a product; 0 to 5 of them by the norm, and one more for each halving",
        source="Bader, Blanes and Casas, Mathematics 2019, 7, 1174, as in torch's LinearAlgebra.cpp",
        by_shapes=False,
    ),
}
