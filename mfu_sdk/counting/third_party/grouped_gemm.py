"""grouped_gemm, of which megablocks and Megatron make mixtures of experts: one product for each expert's rows."""

from collections.abc import Mapping
from typing import Any, Final

from mfu_sdk.counting.formulas import Cost
from mfu_sdk.counting.functions import FunctionCost, FunctionPrice
from mfu_sdk.counting.third_party.sequences import values


def _grouped(named: Mapping[str, Any]) -> FunctionCost:
    """(rows, K) × (experts, K, N), or, with `trans_a`, (rows, K) and (rows, N) to one (K, N) an expert."""
    rows = sum(values(named["batch_sizes"]))
    inner = named["a"].shape[-1]
    # Of a matrix an expert, all but the first size; else of the other operand, its columns.
    others = named["b"].shape[-1] if named["trans_a"] else named["b"].shape[1:].numel() // inner
    return FunctionCost(Cost.plain(2 * rows * inner * others))


_PRICE: Final = FunctionPrice(
    _grouped, "a", words="2·Σ rows·K·N", source="fanshiqing/grouped_gemm at 15721c6; tgale96/grouped_gemm"
)
FUNCTIONS: Final[Mapping[str, FunctionPrice]] = {"grouped_gemm.backend:gmm": _PRICE}
