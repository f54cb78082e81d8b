"""Dense products of vectors and matrices, one, batched or grouped; where an operand is sparse, of what it stores."""

from collections.abc import Mapping
from typing import Any, Final

import torch

from mfu_sdk.counting import formulas
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.formulas import Cost
from mfu_sdk.counting.masks import Masks
from mfu_sdk.counting.pricing import sparse
from mfu_sdk.counting.pricing.price import DEFINITION, Price, per_multiply_add, plain
from mfu_sdk.errors import FormulaError

_WORDS: Final = "2·rows·inner·columns"
_SPARSE_TOO: Final = f"{_WORDS}; sparse: {sparse.STORED}"
_PAIRS: Final = "2·pairs of points·coordinates, as if by a product, whichever way it is computed"


def _in_an_element(tensor: torch.Tensor) -> int:
    # Two four-bit numbers share an element.
    return 2 if "float4" in str(tensor.dtype) else 1


def product(left: str, right: str, words: str = _WORDS, *, dtype: str = "") -> Price:
    """out[..., n] = Σ_k left[..., k] · right: the inner size is the last one of `left`.

    `right` may be packed in any way. Nested tensors and sparse ones are understood.
    """

    def flops(call: Call) -> int:
        a, b = call[left], call[right]
        each = per_multiply_add(a, b)
        if sparse.is_sparse(a) or sparse.is_sparse(b):
            return each * sparse.multiply_adds(a, b)
        # A nested tensor has no shape, but a number of elements and a last size.
        return formulas.product((call.out.numel(),), a.size(-1) * _in_an_element(a), each)

    return plain(flops, left, words, dtype=dtype)


def _batched(left: str, right: str) -> Price:
    def formula(call: Call, masks: Masks) -> Cost:
        a, b = call[left], call[right]
        each = per_multiply_add(a, b)
        if sparse.is_sparse(a) or sparse.is_sparse(b):
            return Cost.plain(each * sparse.multiply_adds(a, b))
        if a.is_nested:
            pairs_of = zip(_matrices(a), _matrices(b), strict=True)
            return Cost.plain(sum(each * x.numel() * y.shape[-1] for x, y in pairs_of))
        full = formulas.product(call.out.shape, a.shape[-1], each)
        # Where an operand holds attention probabilities, or their gradient, only the pairs let through multiply.
        for tensor, width in ((a, b.shape[-1]), (b, a.shape[-2])):
            pairs = masks.pairs_in(tensor)
            if pairs is not None:
                return Cost(dense=0, hardware=full, exact=each * pairs * width, full=full)
        return Cost.plain(full)

    return Price(formula, left, dense=True, words=f"{_SPARSE_TOO}; attention scores: see above", source=DEFINITION)


def _summed_batches(call: Call) -> int:
    batch, _rows, inner = call.shape("batch1")
    return formulas.product(call.out.shape, batch * inner, per_multiply_add(call["batch1"], call["batch2"]))


def _dot(other: str) -> Price:
    return plain(
        lambda call: formulas.product((), call["self"].numel(), per_multiply_add(call["self"], call[other])),
        "self",
        "2·elements",
    )


def _outer(call: Call) -> int:
    return formulas.product(call.out.shape, 1, per_multiply_add(call["vec1"], call["vec2"]))


def _products(call: Call) -> int:
    pairs = zip(call["self"], call["mat2"], strict=True)
    return sum(formulas.product((a.shape[0], b.shape[1]), a.shape[1], per_multiply_add(a, b)) for a, b in pairs)


def _grouped(call: Call) -> int:
    left, right = call.shape("self"), call.shape("mat2")
    in_an_element = _in_an_element(call["self"])
    if in_an_element == 2 and len(left) == len(right) == 2:
        raise FormulaError("a grouped product of four-bit numbers along its inner size: whether `offs` counts numbers")
    return in_an_element * formulas.grouped_product(left, right, _used(call["offs"]))


def _used(offsets: Any) -> int | None:
    # Without data there is no last offset: all rows count, which is what dropless experts are given.
    if offsets is None or type(offsets) is not torch.Tensor or offsets.is_meta:
        return None
    return int(offsets[-1])


def _two(call: Call) -> int:
    return sum(
        formulas.product(call.out.shape, call.shape(name)[-1], per_multiply_add(call[name])) for name in ("a", "c")
    )


def _trilinear(call: Call) -> int:
    # Its three operands are of one dtype.
    return (per_multiply_add(call["i1"], call["i1"]) // 2) * formulas.trilinear(
        (call.shape("i1"), call.shape("i2"), call.shape("i3")),
        (call["expand1"], call["expand2"], call["expand3"]),
        call["sumdim"],
    )


def _linear_backward(x: str, grad: str, mask: str | None) -> Price:
    """Each wanted gradient of x · weightᵀ; without a mask there is one. Nested tensors have no shape."""

    def flops(call: Call) -> int:
        wanted: int = 1 if mask is None else sum(call[mask][:2])
        return wanted * formulas.product((call[grad].numel(),), call.shape("weight")[-1])

    return plain(flops, x, f"{_WORDS} a gradient")


def _matmul_nested(call: Call, _masks: Masks) -> Cost:
    """`self` × `other` of nested tensors: matrix by matrix, or each of them with the same one."""
    left, right = _matrices(call["self"]), _matrices(call["other"])
    most = max(len(left), len(right))
    pairs = zip(left * (most // len(left)), right * (most // len(right)), strict=True)
    each = per_multiply_add(call["self"], call["other"])
    return Cost.plain(sum(formulas.product((x.numel(),), y.shape[-1], each) for x, y in pairs))


def _matmul_backward(call: Call) -> int:
    """`a` × `b`, strided or nested: either gradient pairs the numbers that the forward paired."""
    grads, matrices = _matrices(call["grad"]), _matrices(call["self"])
    forward = sum(grad.numel() * matrix.shape[-1] for grad, matrix in zip(grads, matrices, strict=True))
    wanted: int = sum(call["mask"])
    return wanted * forward * per_multiply_add(call["self"], call["other"])


def _matrices(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The stacks of matrices in a nested tensor, or the one that a strided tensor is."""
    return list(tensor.unbind()) if tensor.is_nested else [tensor]


def _distances(left: str, right: str) -> Price:
    """Distances of each point of the one to each of the other."""

    def flops(call: Call) -> int:
        a, b = call.shape(left), call.shape(right)
        batch = torch.broadcast_shapes(a[:-2], b[:-2])
        return formulas.product((*batch, a[-2], b[-2]), a[-1])

    return plain(flops, left, _PAIRS)


def _own_distances(passes: int) -> Price:
    """Distances among points; in the backward each pair moves two points."""

    def flops(call: Call) -> int:
        points, coordinates = call.shape("self")
        return passes * formulas.product((points * (points - 1) // 2,), coordinates)

    return plain(flops, "self", f"{_PAIRS}{'; once for either point' if passes == 2 else ''}")


def _gathered(call: Call) -> int:
    """All rows that were gathered, times this rank's columns of each matrix; the result is (gathered?, products)."""
    return sum(
        formulas.product(out.shape, right.shape[0]) for out, right in zip(call.result[1], call["Bs"], strict=True)
    )


def _scattered(call: Call) -> int:
    """All rows of this rank's part of the inner size, before they are added up and scattered."""
    return formulas.product(call.shape("A"), call.shape("B")[-1])


_GROUPED_WORDS: Final = "2·rows up to the last offset (all rows, of tensors without data)·inner·columns"

PRICES: Final[Mapping[str, Price]] = {
    "aten::mm": product("self", "mat2", _SPARSE_TOO),
    "aten::addmm": product("mat1", "mat2", _SPARSE_TOO),
    "aten::_addmm_activation": product("mat1", "mat2"),
    "aten::bmm": _batched("self", "mat2"),
    "aten::baddbmm": _batched("batch1", "batch2"),
    "aten::addbmm": plain(_summed_batches, "batch1", "2·batch·rows·inner·columns"),
    "aten::mv": product("self", "vec", "2·rows·inner; sparse: 2·numbers stored"),
    "aten::addmv": product("mat", "vec", "2·rows·inner; sparse: 2·numbers stored"),
    "aten::dot": _dot("tensor"),
    "aten::vdot": _dot("other"),
    "aten::addr": plain(_outer, "vec1", "2·rows·columns"),
    "aten::linear": product("input", "weight"),
    "aten::linear_backward": _linear_backward("self", "grad_output", "output_mask"),
    "aten::matmul": Price(
        _matmul_nested, "self", words=f"{_WORDS} of each pair of matrices", source=DEFINITION, nested=True
    ),
    "aten::matmul_backward": plain(_matmul_backward, "self", f"{_WORDS} a gradient"),
    "aten::mkldnn_linear": product("self", "weight"),
    "aten::mkldnn_linear_backward": _linear_backward("self", "grad_output", "output_mask"),
    "aten::mkldnn_linear_backward_input": _linear_backward("grad_output", "grad_output", None),
    "aten::mkldnn_linear_backward_weights": _linear_backward("input", "grad_output", None),
    "mkldnn::_linear_pointwise": product("X", "W"),
    "mkl::_mkl_linear": product("X", "ORI_W"),
    "inductor::_mm_plus_mm": plain(_two, "a", "2·rows·inner·columns of both"),
    "aten::_foreach_mm": plain(_products, "self", "Σ 2·rows·inner·columns"),
    "_native::_foreach_mm_native_0": plain(_products, "self", "Σ 2·rows·inner·columns"),
    "aten::_grouped_mm": plain(_grouped, "self", _GROUPED_WORDS),
    "aten::_scaled_grouped_mm": plain(_grouped, "self", _GROUPED_WORDS),
    "aten::_scaled_grouped_mm_v2": plain(_grouped, "self", _GROUPED_WORDS),
    "aten::_trilinear": plain(
        _trilinear, "i1", "two pairwise products, the first two operands first: bilinear 2·B·O·I·J + 2·B·O·J"
    ),
    "aten::_compute_linear_combination": plain(
        lambda call: formulas.product(call.out.shape, call.shape("input")[0], per_multiply_add(call["input"])),
        "input",
        "2·outputs·terms",
    ),
    "aten::_cdist_forward": _distances("x1", "x2"),
    "aten::_cdist_backward": _distances("x1", "x2"),
    "aten::_euclidean_dist": _distances("x1", "x2"),
    "aten::_pdist_forward": _own_distances(1),
    "aten::_pdist_backward": _own_distances(2),
    "torchaudio::_lfilter_core_loop": plain(
        lambda call: formulas.product(call.shape("input_signal_windows"), call.shape("a_coeff_flipped")[-1]),
        "input_signal_windows",
        "2·samples·coefficients",
        "pytorch/audio, lfilter.cpp",
    ),
    "symm_mem::_async_input_mm": product("a", "b"),
    "symm_mem::fused_all_gather_matmul": plain(_gathered, "A", "2·rows gathered·inner·this rank's columns"),
    "symm_mem::fused_all_gather_scaled_matmul": plain(_gathered, "A", "2·rows gathered·inner·this rank's columns"),
    "symm_mem::fused_matmul_reduce_scatter": plain(_scattered, "A", "2·rows·this rank's inner size·columns"),
    "symm_mem::fused_scaled_matmul_reduce_scatter": plain(_scattered, "A", "2·rows·this rank's inner size·columns"),
}
