"""What `torch.linalg` costs, run for real and compared with numbers worked out by hand."""

from collections.abc import Callable

import pytest
import torch

import mfu_sdk as mfu
from mfu_sdk.counting.pricing.linalg import matrix_exponential_products

linalg = torch.linalg
A = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) + 4 * torch.eye(4)
POSITIVE = A @ A.T
TALL = torch.randn(6, 3)
B = torch.randn(4, 2)

# Of n = 4: LU is 24 products and 14 sums, its solve 16 and 12 a column, Cholesky 20 and 10.
EXPECTED: dict[str, tuple[Callable[[], object], int]] = {
    "lu_factor": (lambda: linalg.lu_factor(A), 38),
    "lu_factor tall": (lambda: linalg.lu_factor(TALL), 6 * 9 - 9 - (9 - 5) // 2),
    "lu": (lambda: linalg.lu(A), 38),
    "det": (lambda: linalg.det(A), 38),
    "slogdet": (lambda: linalg.slogdet(A), 38),
    "solve": (lambda: linalg.solve(A, B), 38 + 2 * 28),
    "solve a vector": (lambda: linalg.solve(A, B[:, 0]), 38 + 28),
    "solve from the right": (lambda: linalg.solve(A, B.T, left=False), 38 + 2 * 28),
    "solve a batch": (lambda: linalg.solve(A.expand(3, 4, 4), B.expand(3, 4, 2)), 3 * (38 + 2 * 28)),
    "solve one matrix for a batch": (lambda: linalg.solve(A, B.expand(3, 4, 2)), 38 + 3 * 2 * 28),
    "lu_solve": (lambda: linalg.lu_solve(*linalg.lu_factor(A), B), 38 + 2 * 28),
    "cholesky": (lambda: linalg.cholesky(POSITIVE), 30),
    "cholesky_solve": (lambda: torch.cholesky_solve(B, A), 2 * 32),
    "cholesky_inverse": (lambda: torch.cholesky_inverse(A), 40 + 14),
    "ldl": (lambda: linalg.ldl_factor(POSITIVE), 32 + 10),
    "ldl_solve": (lambda: linalg.ldl_solve(*linalg.ldl_factor(POSITIVE), B), 42 + 2 * 28),
    "solve_triangular": (lambda: linalg.solve_triangular(A, B, upper=True), 2 * 16),
    "solve_triangular of ones": (lambda: linalg.solve_triangular(A, B, upper=True, unitriangular=True), 2 * 12),
    "solve_triangular from the right": (lambda: linalg.solve_triangular(A, B.T, upper=True, left=False), 2 * 16),
    "triangular_solve": (lambda: torch.ops.aten.triangular_solve(B, A), 2 * 16),
    # 79 products and 52 sums; then 49 and 37 for three columns of Q, 148 and 127 for all six.
    "qr": (lambda: linalg.qr(TALL), 131 + 86),
    "qr complete": (lambda: linalg.qr(TALL, mode="complete"), 131 + 275),
    "qr r": (lambda: linalg.qr(TALL, mode="r"), 131),
    "geqrf": (lambda: torch.geqrf(TALL), 131),
    "householder_product": (lambda: linalg.householder_product(*torch.geqrf(TALL)), 131 + 86),
    "ormqr": (lambda: torch.ormqr(*torch.geqrf(TALL), torch.ones(6, 2)), 131 + 66 + 60),
    "lstsq": (lambda: linalg.lstsq(TALL, torch.ones(6, 2)), 131 + 126 + 2 * 9),
    "lstsq wide": (lambda: linalg.lstsq(TALL.T, torch.ones(3, 2)), 131 + 126 + 2 * 9),
    "lstsq by svd": (lambda: linalg.lstsq(TALL, torch.ones(6, 2), driver="gelsd"), 4 * 6 * 9 + 8 * 27),
    "eigh": (lambda: linalg.eigh(POSITIVE), 9 * 64),
    # torch asks for the values only where no mode is on; what it asks for is what is counted.
    "eigh values": (lambda: torch.ops.aten._linalg_eigh(POSITIVE, compute_v=False), 4 * 64 // 3),
    "eigvals": (lambda: torch.ops.aten._linalg_eigvals(A), 10 * 64),
    "svd values": (lambda: torch.ops.aten._linalg_svd(TALL, compute_uv=False), 4 * 6 * 9 - 4 * 27 // 3),
    "eig": (lambda: linalg.eig(A), 25 * 64),
    "svd": (lambda: linalg.svd(TALL, full_matrices=False), 14 * 6 * 9 + 8 * 27),
    "svd full": (lambda: linalg.svd(TALL), 4 * 36 * 3 + 8 * 6 * 9 + 9 * 27),
    "svd of a batch": (lambda: linalg.svd(TALL.expand(2, 5, 6, 3)), 10 * (4 * 36 * 3 + 8 * 6 * 9 + 9 * 27)),
    "pinv": (lambda: linalg.pinv(TALL), 14 * 6 * 9 + 8 * 27 + 2 * 3 * 6 * 3),
    "pinv hermitian": (lambda: linalg.pinv(POSITIVE, hermitian=True), 9 * 64 + 2 * 64),
    "matrix_power": (lambda: linalg.matrix_power(A, 5), 3 * 2 * 64),
    "multi_dot": (lambda: linalg.multi_dot([A, B, B.T[:, :1]]), 2 * 4 * 2 + 2 * 4 * 4),
    "empty": (lambda: linalg.lu_factor(torch.ones(0, 0)), 0),
}


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
@pytest.mark.parametrize("name", EXPECTED)
def test_forward_by_hand(name: str) -> None:
    """Each routine costs its closed form, and nothing is uncounted."""
    run, flops = EXPECTED[name]
    count = mfu.count(run)
    assert (count.model_flops, count.hardware_flops, count.uncounted) == (flops, flops, ())


def test_an_inverse_is_executed_as_a_solve() -> None:
    """The model needs LU and GETRI, 54 products and 22 sums; torch solves for the identity's four columns."""
    count = mfu.count(lambda: linalg.inv(A))
    assert (count.model_flops, count.hardware_flops) == (38 + 54 + 22, 38 + 4 * 28)


def test_complex_matrices() -> None:
    """A complex product is 6 FLOPs and a sum 2; what has only a total is 4 times as much."""
    z = A.to(torch.complex64)
    assert mfu.count(lambda: linalg.lu_factor(z)).model_flops == 6 * 24 + 2 * 14
    assert mfu.count(lambda: linalg.eig(z)).model_flops == 4 * 25 * 64


def test_the_backward_of_a_solve() -> None:
    """Both gradients come from one more solve with the factors kept, and an outer product for the matrix."""
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    count = mfu.count(lambda: linalg.solve(a, b).sum().backward())
    assert (count.forward_flops, count.backward_flops) == (38 + 2 * 28, 2 * 28 + 2 * 4 * 4 * 2)
    assert count.uncounted == ()


@pytest.mark.filterwarnings(
    "ignore:Sparse CSR tensor support is in beta", "ignore:torch.triangular_solve is deprecated"
)
def test_a_sparse_matrix_has_no_price_here() -> None:
    """A sparse triangle's numbers may be anywhere: it is listed, not priced as if it were full."""
    triangle = torch.eye(4).to_sparse_csr()
    count = mfu.count(lambda: torch.triangular_solve(B, triangle))
    assert [(each.op, count.model_flops) for each in count.uncounted] == [("aten::triangular_solve", 0)]


@pytest.mark.parametrize(
    ("norm", "products"),
    [(0.0, 0), (1e-8, 1), (1e-4, 2), (0.04, 3), (0.2, 4), (1.0, 5), (1.0908, 5), (1.1, 6), (2.2, 7), (1.09 * 64, 11)],
)
def test_products_of_a_matrix_exponential(norm: float, products: int) -> None:
    """In double precision: Taylor polynomials of degree 1 to 18 have 0 to 5 products, each halving one more."""
    assert matrix_exponential_products(norm, double=True) == products


def test_a_matrix_exponential_is_priced_by_its_numbers() -> None:
    """Two matrices of one shape with different norms have different prices; a batch has the sum; 1 × 1 has none."""
    small, large = torch.full((2, 2), 1e-9), torch.full((2, 2), 3.0)

    def run() -> None:
        linalg.matrix_exp(small)
        linalg.matrix_exp(large)
        linalg.matrix_exp(torch.stack([small, large]))
        linalg.matrix_exp(torch.ones(1, 1))

    # The norm of the large one is 6, which one halving brings below 3.01.
    assert mfu.count(run).model_flops == 2 * 6 * 2 * 8


@pytest.mark.parametrize("of", [torch.ones(2, 2, device="meta"), torch.full((2, 2), torch.inf)])
def test_a_matrix_exponential_without_a_norm(of: torch.Tensor) -> None:
    """Without data, or of numbers that are not finite, its products are not known."""
    assert [each.op for each in mfu.count(lambda: linalg.matrix_exp(of)).uncounted] == ["aten::linalg_matrix_exp"]
