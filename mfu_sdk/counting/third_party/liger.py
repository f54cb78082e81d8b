"""Fused linear losses and mixtures of experts, of Liger and of fla.

A fused linear loss makes logits, loss and gradients in chunks, so that the logits never exist whole. Its forward makes
the gradients and its backward only scales them: the model's forward is one product, its backward one for each gradient
that is wanted, wherever they run. Losses that are not here count by the operators that they run.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from mfu_sdk.counting.formulas import FREE, Cost
from mfu_sdk.counting.functions import FunctionCost, FunctionPrice, Needs
from mfu_sdk.counting.third_party.wanted import ordered
from mfu_sdk.errors import FormulaError

_SOURCE: Final = "linkedin/Liger-Kernel at ead96b61; fla-org/flash-linear-attention at bc3b101d"

Runs = Callable[[bool, bool], int]
"""How many gradient products the forward runs, by whether the input and the weight want a gradient."""


def _fused_loss(runs: Runs, student: tuple[str, str], teacher: tuple[str, str] | None = None) -> FunctionPrice:
    """A loss on x·wᵀ, `student` naming x and w; a teacher's logits are one product more, without a gradient."""

    def formula(named: Mapping[str, Any]) -> FunctionCost:
        if named.get("reduction") == "none":
            raise FormulaError(
                "fused linear loss with reduction='none': where its gradients are made differs by version"
            )
        product = _flops(named, student)
        logits = product + (0 if teacher is None else _flops(named, teacher))
        input_grad, weight_grad = (bool(named[name].requires_grad) for name in student)
        # Where the forward makes no gradient for the weight alone, nobody does.
        made = runs(input_grad, weight_grad)
        early = product * min(made, input_grad + weight_grad)
        return FunctionCost(Cost(logits + early, logits + product * made, early=early), lambda _: FREE)

    words = "2·rows·weight forward; as much for each gradient wanted, made in the forward"
    return FunctionPrice(formula, student[0], words=words, source=_SOURCE)


def _flops(named: Mapping[str, Any], pair: tuple[str, str]) -> int:
    x, weight = pair
    return int(2 * named[x].shape[:-1].numel() * named[weight].numel())


def _mixture(named: Mapping[str, Any]) -> FunctionCost:
    """A gated mixture of experts: each of the rows that were routed meets one expert's three matrices."""
    rows = named["top_k_index"].numel()
    up, down = (2 * rows * math.prod(named[name].shape[1:]) for name in ("gate_up_proj", "down_proj"))
    order = ordered(named)

    def backward(needs: Needs) -> Cost:
        wanted = dict(zip(order, needs, strict=False))
        before = wanted["x"] or wanted["gate_up_proj"]
        flops = up * (wanted["x"] + wanted["gate_up_proj"]) + down * (before + wanted["down_proj"])
        return Cost.plain(flops)

    return FunctionCost(Cost.plain(up + down), backward)


_LOSS: Final = _fused_loss(lambda x, weight: x * (1 + weight), ("_input", "weight"))
FUNCTIONS: Final[Mapping[str, FunctionPrice]] = {
    **{
        f"liger_kernel.ops.{module}fused_linear_cross_entropy:LigerFusedLinearCrossEntropyFunction.forward": _LOSS
        for module in ("", "cutile.ops.", "backends._ascend.ops.")
    },
    "liger_kernel.ops.fused_linear_jsd:LigerFusedLinearJSDFunction.forward": _fused_loss(
        lambda _, weight: 1 + weight, ("student_input", "student_weight"), ("teacher_input", "teacher_weight")
    ),
    "liger_kernel.ops.fused_moe:LigerFusedMoEFunction.forward": FunctionPrice(
        _mixture, "x", words="2·routed rows·expert's weights; as much for each gradient wanted", source=_SOURCE
    ),
    # fla makes both gradients, whoever wants them.
    "fla.modules.fused_linear_cross_entropy:FusedLinearCrossEntropyFunction.forward": _fused_loss(
        lambda _x, _weight: 2, ("x", "weight")
    ),
    "fla.modules.fused_kl_div:FusedKLDivLossFunction.forward": _fused_loss(
        lambda _x, _weight: 2, ("x", "weight"), ("target_x", "target_weight")
    ),
}
