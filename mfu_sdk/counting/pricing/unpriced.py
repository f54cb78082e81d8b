"""Operators of torch's that are neither priced nor free, each with the reason why: a call of one lowers coverage."""

from collections.abc import Mapping
from typing import Final

_TESTS: Final = "for torch's own tests"

UNPRICED: Final[Mapping[str, str]] = {
    "aten::_spsolve": "how full the factors of a sparse matrix become is the library's affair",
    "aten::_cslt_sparse_mm_search": "it tries as many kernels as the library has, and returns none of their products",
    **dict.fromkeys(
        ("sparse::qlinear", "sparse::qlinear_relu", "sparse::qlinear_dynamic", "sparse::qlinear_relu_dynamic"),
        "how many blocks of the weight are stored is packed away",
    ),
    "aten::_foobar": _TESTS,
    "aten::_test_autograd_multiple_dispatch": _TESTS,
    "aten::_test_functorch_fallback": _TESTS,
    "aten::_test_optional_filled_intlist": _TESTS,
    "aten::_test_optional_floatlist": _TESTS,
    "aten::_test_optional_intlist": _TESTS,
    "aten::_test_parallel_materialize": _TESTS,
    "aten::_test_warn_in_autograd": _TESTS,
}
"""Reasons by qualified name, without overload. A repository test sees that no other operator is forgotten."""
