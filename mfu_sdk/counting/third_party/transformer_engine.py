"""Transformer Engine: its linear modules, its products, and its fused attention.

Its kernels are called through an extension that the dispatcher does not see. The modules' `autograd.Function`s are
priced whole, because a weight's gradient that is accumulated in place allocates nothing and would not be noticed;
`general_gemm` is priced for all that calls it from elsewhere.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from mfu_sdk.counting import attention
from mfu_sdk.counting.attention import Alignment
from mfu_sdk.counting.formulas import Cost
from mfu_sdk.counting.functions import FunctionCost, FunctionPrice, Needs
from mfu_sdk.counting.third_party.sequences import Pass, cost, differences, side, values
from mfu_sdk.counting.third_party.wanted import ordered, wants
from mfu_sdk.errors import FormulaError

_SOURCE: Final = "NVIDIA/TransformerEngine at d0067d0da"


def _shape(operand: Any) -> tuple[int, ...]:
    """The logical sizes of a tensor, or of a quantized storage, which has only `size()`."""
    shape = getattr(operand, "shape", None)
    return tuple(operand.size() if shape is None else shape)


def _product(left: Any, right: Any, layout: str) -> int:
    """FLOPs of `general_gemm`, which is column-major: "TN" x·wᵀ, "NN" dy·w, "NT" dyᵀ·x; `left` is w, w, x."""
    a, b = _shape(left), _shape(right)
    if layout == "TN":
        inner, others = (a[-1], b[-1]), math.prod(b[:-1])
    elif layout == "NN":
        inner, others = (math.prod(a[:-1]), b[-1]), math.prod(b[:-1])
    elif layout == "NT":
        inner, others = (math.prod(a[:-1]), math.prod(b[:-1])), b[-1]
    else:
        raise FormulaError(f"layout={layout!r}: must be TN, NN or NT; register a formula")
    if inner[0] != inner[1]:
        raise FormulaError(f"{layout} product of {a} and {b}: inner sizes {inner} must agree; register a formula")
    return 2 * math.prod(a) * others


def _gemm(named: Mapping[str, Any]) -> FunctionCost:
    return FunctionCost(Cost.plain(_product(named["A"], named["B"], named["layout"])))


def _grouped_gemm(named: Mapping[str, Any]) -> FunctionCost:
    pairs = zip(named["A"], named["B"], strict=True)
    return FunctionCost(Cost.plain(sum(_product(a, b, named["layout"]) for a, b in pairs)))


def _setting(named: Mapping[str, Any], name: str) -> Any:
    """A setting of a module's call, by its own name or in the object that holds them all."""
    holder = named.get("fwd_args")
    if name in named:
        return named[name]
    if holder is not None and hasattr(holder, name):
        return getattr(holder, name)
    raise FormulaError(f"Transformer Engine's {name}: not among the arguments by name; register a formula")


def _rows(named: Mapping[str, Any], *, gathered: bool) -> int:
    """Rows that a linear module multiplies: with sequence parallelism its input is gathered over the group first."""
    rows = math.prod(_shape(named["inp"])[:-1])
    if _setting(named, "sequence_parallel") and gathered:
        rows *= int(_setting(named, "tp_size"))
    return rows


def _refuse_delayed(named: Mapping[str, Any]) -> None:
    held = (*named.values(), *named.get("non_tensor_args", ()), getattr(named.get("fwd_args"), "wgrad_store", None))
    stores = (getattr(one, "delay_wgrad_compute", None) for one in held)
    if any(delays() for delays in stores if callable(delays)):
        raise FormulaError("delayed weight gradients: their products run outside of the backward; register a formula")


def _linear(norm: Sequence[str]) -> Callable[[Mapping[str, Any]], FunctionCost]:
    """A linear module; `norm` are the parameters of the norm in front of it."""

    def formula(named: Mapping[str, Any]) -> FunctionCost:
        _refuse_delayed(named)
        rows = _rows(named, gathered=_setting(named, "parallel_mode") == "column")
        flops = 2 * rows * math.prod(_shape(named["weight"]))
        order = ordered(named)

        def backward(needs: Needs) -> Cost:
            return Cost.plain(flops * (wants(order, needs, ("inp", *norm)) + wants(order, needs, ("weight",))))

        return FunctionCost(Cost.plain(flops), backward)

    return formula


_BEFORE_SECOND: Final = ("inp", "ln_weight", "ln_bias", "fc1_weight", "fc1_bias")


def _mlp(named: Mapping[str, Any]) -> FunctionCost:
    """A norm and two linear layers with an activation between."""
    _refuse_delayed(named)
    rows = _rows(named, gathered=bool(_setting(named, "set_parallel_mode")))
    first, second = (2 * rows * math.prod(_shape(named[name])) for name in ("fc1_weight", "fc2_weight"))
    order = ordered(named)
    # Its own checkpointing runs the first layer again; `dense` leaves that out.
    again = first if named.get("checkpoint") else 0

    def backward(needs: Needs) -> Cost:
        flops = first * (wants(order, needs, _BEFORE_SECOND[:3]) + wants(order, needs, ("fc1_weight",)))
        flops += second * (wants(order, needs, _BEFORE_SECOND) + wants(order, needs, ("fc2_weight",)))
        return Cost(flops, flops + again)

    return FunctionCost(Cost.plain(first + second), backward)


def _grouped_linear(named: Mapping[str, Any]) -> FunctionCost:
    """A linear layer for each expert: `m_splits` are the rows of each, padding of theirs included."""
    _refuse_delayed(named)
    splits, weights = values(named["m_splits"]), named["weights_and_biases"]
    if _shape(weights[0]) != _shape(weights[len(splits) - 1]) or len(_shape(weights[0])) != 2:
        raise FormulaError("grouped linear layers of other than one 2-d weight each: no price; register a formula")
    flops = 2 * sum(splits) * math.prod(_shape(weights[0]))
    order = ordered(named)
    # The weights are the last of the arguments, spread out.
    ahead = order.index("weights_and_biases")
    number = len(splits)

    def backward(needs: Needs) -> Cost:
        weight = any(needs[ahead : ahead + number])
        return Cost.plain(flops * (wants(order, needs, ("inp",)) + weight))

    return FunctionCost(Cost.plain(flops), backward)


_CAUSAL: Final[Mapping[str, Alignment | None]] = {
    "no_mask": None,
    "padding": None,
    "causal": "top_left",
    "padding_causal": "top_left",
    "causal_bottom_right": "bottom_right",
    "padding_causal_bottom_right": "bottom_right",
}


def _attention(passed: Pass) -> FunctionPrice:
    def formula(named: Mapping[str, Any]) -> FunctionCost:
        mask, (left, right) = named["attn_mask_type"], named.get("window_size") or (-1, -1)
        if mask not in _CAUSAL or named.get("page_table_k") is not None:
            raise FormulaError(f"fused attention with mask {mask!r} or paged keys: no price; register a formula")
        query, key, value = _shape(named["q"]), _shape(named["k"]), _shape(named["v"])
        formats = [part.replace("2", "").replace("3", "") for part in named["qkv_layout"].split("_")]
        causal = _CAUSAL[mask]
        align: Alignment = causal or "top_left"
        if named.get("bottom_right_diagonal") is not None:
            align = "bottom_right" if named["bottom_right_diagonal"] else "top_left"
        queries, keys = (_lengths(named[f"cu_seqlens_{which}"]) for which in ("q", "kv"))
        padded = None
        if formats[0] != "thd":
            axis = formats[0].index("s")
            padded = [(query[axis], key[axis])] * query[formats[0].index("b")]
        lengths = padded
        if padded is None or mask.startswith("padding"):
            lengths = list(zip(queries(), keys(), strict=True))
        assert lengths is not None
        heads, sizes = query[-2], (query[-1], value[-1])
        counted = cost(
            passed, lengths, heads, sizes, causal=causal is not None, window=(side(left), side(right)), align=align
        )
        if padded is not None:
            # All pairs are those of the padded sequences too.
            counted = Cost(0, counted.hardware, counted.exact, cost(passed, padded, heads, sizes, causal=False).full)
        return FunctionCost(counted)

    words = "2·pairs·(d_qk + d_v) a query head" if passed is attention.forward else "2 × forward; executed 5 products"
    return FunctionPrice(formula, "q", words=words, source=_SOURCE)


def _lengths(cumulative: Any) -> Callable[[], list[int]]:
    # Read where they are needed only: reading waits for the device.
    return lambda: differences(cumulative)


def _named(*modules: str) -> list[str]:
    return [f"transformer_engine.pytorch.{module}" for module in modules]


_GEMM: Final = FunctionPrice(_gemm, "A", words="2·M·N·K", source=_SOURCE)
_GROUPED: Final = FunctionPrice(_grouped_gemm, "A", words="Σ 2·M·N·K", source=_SOURCE)
_LAYER: Final = "2·rows·weight; as much for each gradient wanted"
FUNCTIONS: Final[Mapping[str, FunctionPrice]] = {
    **dict.fromkeys(_named("cpp_extensions.gemm:general_gemm"), _GEMM),
    **dict.fromkeys(_named("cpp_extensions.gemm:general_grouped_gemm"), _GROUPED),
    **dict.fromkeys(
        _named("module.linear:_Linear.forward"), FunctionPrice(_linear(()), "inp", words=_LAYER, source=_SOURCE)
    ),
    **dict.fromkeys(
        _named("module.layernorm_linear:_LayerNormLinear.forward"),
        FunctionPrice(_linear(("ln_weight", "ln_bias")), "inp", words=_LAYER, source=_SOURCE),
    ),
    **dict.fromkeys(
        _named("module.layernorm_mlp:_LayerNormMLP.forward"),
        FunctionPrice(_mlp, "inp", words=_LAYER, source=_SOURCE),
    ),
    **dict.fromkeys(
        _named("module.grouped_linear:_GroupedLinear.forward"),
        FunctionPrice(_grouped_linear, "inp", words=_LAYER, source=_SOURCE),
    ),
    **dict.fromkeys(_named("cpp_extensions.fused_attn:fused_attn_fwd"), _attention(attention.forward)),
    **dict.fromkeys(_named("cpp_extensions.fused_attn:fused_attn_bwd"), _attention(attention.backward)),
}
