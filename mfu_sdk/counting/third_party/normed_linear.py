"""Norms and activations of fla and mamba_ssm that end in a linear layer: one product, in one autograd function."""

from collections.abc import Mapping
from typing import Any, Final

from mfu_sdk.counting.formulas import Cost
from mfu_sdk.counting.functions import FunctionCost, FunctionPrice, Needs
from mfu_sdk.counting.third_party.wanted import ordered, wants

_BEFORE: Final = ("x", "y", "g", "norm_weight", "norm_bias", "residual")


def _price(weight: str) -> FunctionPrice:
    def formula(named: Mapping[str, Any]) -> FunctionCost:
        flops = 2 * named["x"].shape[:-1].numel() * named[weight].numel()
        order = ordered(named)

        def backward(needs: Needs) -> Cost:
            return Cost.plain(flops * (wants(order, needs, _BEFORE) + wants(order, needs, (weight,))))

        return FunctionCost(Cost.plain(flops), backward)

    return FunctionPrice(formula, "x", words="2·rows·weight; as much for each gradient wanted", source=_SOURCE)


_SOURCE: Final = "fla-org/flash-linear-attention at bc3b101d; state-spaces/mamba at e9594ce"
FUNCTIONS: Final[Mapping[str, FunctionPrice]] = {
    **{
        f"fla.modules.activations:{name}LinearFunction.forward": _price("weight")
        for name in ("SwiGLU", "SigmoidGLU", "PowGLU")
    },
    "fla.modules.layernorm:LayerNormLinearFunction.forward": _price("linear_weight"),
    "fla.modules.fused_norm_gate:LayerNormGatedLinearFunction.forward": _price("linear_weight"),
    "fla.modules.fused_bitlinear:LayerNormLinearQuantFn.forward": _price("linear_weight"),
    "mamba_ssm.ops.triton.layer_norm:LayerNormLinearFn.forward": _price("linear_weight"),
}
