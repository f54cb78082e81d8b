"""FBGEMM's generative kernels, and MSLK, where they live now: quantised and grouped products."""

from collections.abc import Callable, Mapping
from typing import Final

from mfu_sdk.counting.call import Call
from mfu_sdk.counting.formulas import Cost
from mfu_sdk.counting.masks import Masks
from mfu_sdk.counting.pricing import Price
from mfu_sdk.counting.third_party.products import by_result, free
from mfu_sdk.counting.third_party.sequences import values

_SOURCE: Final = "meta-pytorch/MSLK, csrc/gemm/gemm_ops.cpp at 2a3c897"


def _rows(count: Callable[[Call], int], x: str, in_an_element: int = 1) -> Price:
    """One stacked operand for all experts, of which `count` rows are filled: times their inner size and columns."""

    def formula(call: Call, _: Masks) -> Cost:
        return Cost.plain(2 * count(call) * call.out.shape[-1] * call.shape(x)[-1] * in_an_element)

    return Price(formula, x, words="2·Σ rows·columns·inner", source=_SOURCE)


def _sizes(call: Call) -> int:
    return sum(values(call["M_sizes"]))


def _filled(call: Call) -> int:
    return sum(values(call["zero_start_index_M"]))


def _offsets(call: Call) -> int:
    return values(call["offsets"])[-1]


def _lists(x: str, weight: str) -> Price:
    """A list of operands, one an expert: rows × inner size, and columns × inner size."""

    def formula(call: Call, _: Masks) -> Cost:
        return Cost.plain(sum(2 * a.numel() * b.shape[0] for a, b in zip(call[x], call[weight], strict=True)))

    return Price(formula, x, words="Σ 2·rows·columns·inner", source=_SOURCE)


def _weight_gradient(call: Call, _: Masks) -> Cost:
    """Every expert's columns × columns, summed over its rows."""
    return Cost.plain(2 * _sizes(call) * call.shape("X")[-1] * call.shape("W")[-1])


_FLOAT8: Final = """
    f8f8bf16_blockwise f8f8bf16_rowwise f8f8bf16_rowwise_batched f8f8bf16_groupwise f8f8f16_rowwise
    f8f8bf16_rowwise_preshuffle f8f8f16_rowwise_preshuffle i8i8bf16 i8i8bf16_dynamic f8i4bf16_rowwise f8i4bf16_shuffled
    mx8mx4bf16
"""
_WIDE: Final = "bf16i4bf16_rowwise bf16i4bf16_rowwise_batched bf16i4bf16_shuffled bf16i4bf16_shuffled_batched"
_STACKED: Final = """
    f8f8bf16_rowwise_grouped_stacked f8f8bf16_groupwise_grouped f8f8bf16_groupwise_grouped_preshuffle
    f8i4bf16_shuffled_grouped
"""


def _of(library: str) -> dict[str, Price]:
    prices = {
        **{name: by_result("XQ", _SOURCE) for name in _FLOAT8.split()},
        **{name: by_result("X", _SOURCE) for name in _WIDE.split()},
        **{name: _rows(_sizes, "XQ") for name in _STACKED.split()},
        "f8f8bf16_rowwise_out": by_result("XQ", _SOURCE, out="output"),
        "f4f4bf16": by_result("XQ", _SOURCE, in_an_element=2),
        "f4f4bf16_grouped_stacked": _rows(_sizes, "XQ", 2),
        "f4f4bf16_grouped_mm": _rows(_offsets, "XQ", 2),
        "mx8mx4bf16_grouped_mm": _rows(_offsets, "XQ"),
        "mx8mx8bf16_grouped_mm": _rows(_offsets, "XQ"),
        "bf16i4bf16_shuffled_grouped": _rows(_sizes, "X"),
        "bf16bf16bf16_grouped_stacked": _rows(_sizes, "X"),
        "bf16bf16bf16_grouped_grad": _rows(_sizes, "X"),
        "bf16bf16bf16_grouped_wgrad": Price(_weight_gradient, "X", words="2·Σ rows·N·K", source=_SOURCE),
        "bf16bf16bf16_grouped_dynamic": _rows(_filled, "X"),
        "f8f8bf16_rowwise_grouped_dynamic": _rows(_filled, "XQ"),
        **{f"bf16bf16bf16_grouped{end}": _lists("X", "W") for end in ("", "_cat")},
        **{f"f8f8bf16_rowwise_grouped{end}": _lists("XQ", "WQ") for end in ("", "_cat")},
    }
    return {f"{library}::{name}": price for name, price in prices.items()}


OPERATORS: Final[Mapping[str, Price]] = {
    **_of("mslk"),
    **_of("fbgemm"),
    **free("preshuffle_i4", "mslk", _SOURCE),
    **free("quantize_fp8_row quantize_fp8_block quantize_fp8_tensor", "triton", _SOURCE),
}
