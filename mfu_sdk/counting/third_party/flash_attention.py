"""flash_attn 2, 3 and 4: dense and packed sequences, KV caches, windows.

Versions 2.7 and later, and 3, register operators; earlier ones and 4 launch from Python functions.
"""

from collections.abc import Mapping
from typing import Any, Final

from mfu_sdk.counting import attention
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.formulas import Cost
from mfu_sdk.counting.functions import FunctionCost, FunctionPrice
from mfu_sdk.counting.masks import Masks
from mfu_sdk.counting.pricing import Price
from mfu_sdk.counting.third_party.sequences import Pass, flash

_FORWARD: Final = "2·pairs·(d_qk + d_v) a query head; pairs under the bottom-right causal mask and window"
_BACKWARD: Final = "model 2 × forward; executed 2·pairs·(3·d_qk + 2·d_v)"
_SOURCE: Final = "FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2; Dao-AILab/flash-attention at 0251105a"


def operator(passed: Pass, operand: str, source: str = _SOURCE) -> Price:
    """The price of an operator that has flash-attention's arguments."""

    def formula(call: Call, _: Masks) -> Cost:
        return flash(passed, call)

    return Price(formula, operand, words=_words(passed), source=source)


def function(passed: Pass, operand: str, source: str = _SOURCE) -> FunctionPrice:
    """The price of a Python function that has flash-attention's arguments, and launches that one pass."""

    def formula(named: Mapping[str, Any]) -> FunctionCost:
        return FunctionCost(flash(passed, named))

    return FunctionPrice(formula, operand, words=_words(passed), source=source)


def _words(passed: Pass) -> str:
    return _FORWARD if passed is attention.forward else _BACKWARD


OPERATORS: Final[Mapping[str, Price]] = {
    "flash_attn::_flash_attn_forward": operator(attention.forward, "q"),
    "flash_attn::_flash_attn_varlen_forward": operator(attention.forward, "q"),
    "flash_attn::_flash_attn_backward": operator(attention.backward, "q"),
    "flash_attn::_flash_attn_varlen_backward": operator(attention.backward, "q"),
    "flash_attn_3::_flash_attn_forward": operator(attention.forward, "q"),
    "flash_attn_3::_flash_attn_backward": operator(attention.backward, "q"),
    "flash_attn_3::fwd": operator(attention.forward, "q"),
    "flash_attn_3::bwd": operator(attention.backward, "q"),
}

# Where version 2 or 3 has operators, those are seen before these functions run beneath them.
_TWO: Final = "flash_attn.flash_attn_interface"
FUNCTIONS: Final[Mapping[str, FunctionPrice]] = {
    f"{_TWO}:flash_attn_with_kvcache": function(attention.forward, "q"),
    **{f"{_TWO}:_flash_attn_{kind}forward": function(attention.forward, "q") for kind in ("", "varlen_")},
    **{f"{_TWO}:_flash_attn_{kind}backward": function(attention.backward, "q") for kind in ("", "varlen_")},
    "flash_attn_interface:_flash_attn_forward": function(attention.forward, "q"),
    "flash_attn_interface:_flash_attn_backward": function(attention.backward, "q"),
    "flash_attn.cute.interface:_flash_attn_fwd": function(attention.forward, "v"),
    "flash_attn.cute.interface:_flash_attn_bwd": function(attention.backward, "v"),
}
