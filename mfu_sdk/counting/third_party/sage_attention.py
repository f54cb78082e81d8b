"""SageAttention: attention with queries and keys in int8; inference only.

Half of its products run on integers and half on floats; all are listed at the queries' dtype.
"""

from collections.abc import Mapping
from typing import Any, Final

from mfu_sdk.counting import attention
from mfu_sdk.counting.functions import FunctionCost, FunctionPrice
from mfu_sdk.counting.third_party.sequences import cost, differences
from mfu_sdk.errors import FormulaError


def _dense(named: Mapping[str, Any]) -> FunctionCost:
    query, key, value = named["q"].shape, named["k"].shape, named["v"].shape
    if named.get("attn_mask") is not None:
        raise FormulaError("SageAttention with a mask tensor: no price; register a formula")
    # "HND" is (batch, heads, length, size), "NHD" (batch, length, heads, size).
    heads, length = (1, 2) if named.get("tensor_layout", "HND") == "HND" else (2, 1)
    return _cost([(query[length], key[length])] * query[0], query[heads], query[-1], value[-1], named)


def _packed(named: Mapping[str, Any]) -> FunctionCost:
    query, value = named["q"].shape, named["v"].shape
    lengths = zip(differences(named["cu_seqlens_q"]), differences(named["cu_seqlens_k"]), strict=True)
    return _cost(list(lengths), query[-2], query[-1], value[-1], named)


def _cost(
    lengths: list[tuple[int, int]], heads: int, qk_dim: int, v_dim: int, named: Mapping[str, Any]
) -> FunctionCost:
    causal = bool(named.get("is_causal"))
    if causal and any(q != k for q, k in lengths):
        raise FormulaError(
            "causal SageAttention of unlike lengths: its alignment differs by kernel; register a formula"
        )
    return FunctionCost(cost(attention.forward, lengths, heads, (qk_dim, v_dim), causal=causal))


_SOURCE: Final = "thu-ml/SageAttention at d1a57a5"
_WORDS: Final = "2·pairs·(d_qk + d_v) a query head"
_KINDS: Final = "pv_fp16_triton pv_fp16_cuda pv_fp8_cuda pv_fp8_cuda_sm90"

FUNCTIONS: Final[Mapping[str, FunctionPrice]] = {
    "sageattention.core:sageattn": FunctionPrice(_dense, "q", words=_WORDS, source=_SOURCE),
    **{
        f"sageattention.core:sageattn_qk_int8_{kind}": FunctionPrice(_dense, "q", words=_WORDS, source=_SOURCE)
        for kind in _KINDS.split()
    },
    "sageattention.core:sageattn_varlen": FunctionPrice(_packed, "q", words=_WORDS, source=_SOURCE),
}
