"""What products with sparse matrices cost: two FLOPs for every number stored and every number that it meets."""

from collections.abc import Callable

import pytest
import torch

import mfu_sdk as mfu

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")

# 4 × 6 with 7 numbers, in 5 blocks of 2 × 2.
DENSE = torch.tensor(
    [[1.0, 2, 0, 0, 0, 0], [0, 0, 0, 3, 0, 0], [0, 0, 4, 5, 0, 0], [6, 0, 0, 0, 0, 7]],
)
B, VECTOR = torch.randn(6, 3), torch.randn(6)


def sparse(layout: str) -> torch.Tensor:
    """DENSE in another layout."""
    return DENSE.to_sparse_bsr((2, 2)) if layout == "bsr" else getattr(DENSE, f"to_sparse_{layout}")()


@pytest.mark.parametrize(("layout", "stored"), [("coo", 7), ("csr", 7), ("csc", 7), ("bsr", 20)])
def test_a_product_in_every_layout(layout: str, stored: int) -> None:
    """Only what is stored multiplies, in whichever layout; blocks are stored with the zeros in them."""
    a = sparse(layout)

    def run() -> None:
        torch.mm(a, B)
        torch.sparse.mm(a, B)
        torch.addmm(torch.ones(4, 3), a, B)
        torch.mv(a, VECTOR)

    count = mfu.count(run)
    assert (count.model_flops, count.uncounted) == (2 * stored * (3 * 3 + 1), ())


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
def test_a_sparse_matrix_on_the_right(layout: str) -> None:
    """Each stored number meets one of each row of the left."""
    assert mfu.count(lambda: torch.ones(5, 4) @ sparse(layout)).model_flops == 2 * 7 * 5


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_two_sparse_matrices(layout: str) -> None:
    """Column k of the one meets row k of the other: by brute force over all triples that are no zeros."""
    right = (DENSE.t() > 5).float()
    triples = sum(bool(DENSE[i, k]) and bool(right[k, j]) for i in range(4) for j in range(4) for k in range(6))
    a, b = sparse(layout), right.to_sparse_coo() if layout == "coo" else right.to_sparse_csr()
    assert mfu.count(lambda: torch.mm(a, b)).model_flops == 2 * triples


OTHERS: dict[str, tuple[Callable[[], object], int]] = {
    "bmm": (lambda: torch.bmm(torch.stack([DENSE, DENSE]).to_sparse(), torch.ones(2, 6, 3)), 2 * 14 * 3),
    "hspmm": (lambda: torch.hspmm(sparse("coo"), B), 2 * 7 * 3),
    "sspaddmm": (lambda: torch.sspaddmm(torch.zeros(4, 3).to_sparse(), sparse("coo"), B), 2 * 7 * 3),
    "smm": (lambda: torch.smm(sparse("coo"), B), 2 * 7 * 3),
    "sampled_addmm": (
        lambda: torch.sparse.sampled_addmm(sparse("csr"), torch.ones(4, 5), torch.ones(5, 6)),
        2 * 7 * 5,
    ),
    "complex": (lambda: sparse("coo").to(torch.complex64) @ B.to(torch.complex64), 8 * 7 * 3),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_by_hand(name: str) -> None:
    """Products that keep, add to or sample a sparse matrix."""
    run, flops = OTHERS[name]
    count = mfu.count(run)
    assert (count.model_flops, count.uncounted) == (flops, ())


@pytest.mark.parametrize(
    ("reduce", "backward"), [("sum", 2 * 2 * 7 * 3), ("mean", 2 * 2 * 7 * 3), ("amax", 2 * 2 * 12)]
)
def test_a_reducing_product_and_its_gradients(reduce: str, backward: int) -> None:
    """Each gradient pairs what the forward paired; that of a maximum only the winner of each of the 4 × 3 outputs."""
    a, b = sparse("csr").requires_grad_(), B.clone().requires_grad_()
    count = mfu.count(lambda: torch.sparse.mm(a, b, reduce).sum().backward())
    assert (count.forward_flops, count.backward_flops, count.uncounted) == (2 * 7 * 3, backward, ())


def test_the_gradient_of_a_sparse_matrix_is_a_dense_product() -> None:
    """torch multiplies all of it and keeps what is stored; the dense matrix's gradient is a sparse product."""
    a, b = sparse("coo").requires_grad_(), B.clone().requires_grad_()
    count = mfu.count(lambda: torch.sparse.mm(a, b).sum().backward())
    assert (count.forward_flops, count.backward_flops) == (2 * 7 * 3, 2 * 4 * 6 * 3 + 2 * 7 * 3)


def test_two_of_four() -> None:
    """On tensors without data: half of the inner size is stored, and only that multiplies."""
    aten = torch.ops.aten
    compressed, where, right = (
        torch.empty(*size, device="meta", dtype=torch.float16) for size in ((8, 16), (8, 2), (32, 4))
    )
    x, bias = right.t().contiguous(), compressed[:, 0].contiguous()
    flops = 2 * 8 * 16 * 4
    assert mfu.count(lambda: aten._sparse_semi_structured_mm(compressed, where, right)).model_flops == flops
    assert mfu.count(lambda: aten._sparse_semi_structured_addmm(bias, compressed, where, right)).model_flops == flops
    assert mfu.count(lambda: aten._sparse_semi_structured_linear(x, compressed, where)).model_flops == flops
    # cuSPARSELt keeps where the numbers were with the numbers.
    assert mfu.count(lambda: aten._cslt_sparse_mm(torch.empty_like(compressed), right)).model_flops == flops
