"""What a function's backward costs by which of its arguments want a gradient."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mfu_sdk.counting.formulas import FREE, Cost
from mfu_sdk.counting.functions import FunctionCost, Needs


def both(forward: Cost, backward: Cost) -> FunctionCost:
    """A function whose gradients are made together: all of `backward` where any is wanted."""
    return FunctionCost(forward, lambda needs: backward if any(needs) else FREE)


def ordered(named: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a forward's arguments in their order, as `Needs` has them, and after them what it has bound."""
    return tuple(name for name in named if name != "ctx")


def wants(order: Iterable[str], needs: Needs, arguments: Collection[str]) -> bool:
    """Whether any of `arguments` wants a gradient; `order` is as from `ordered`."""
    return any(need for name, need in zip(order, needs, strict=False) if name in arguments)


def products(named: Mapping[str, Any], flops: int, x: str, weight: str) -> FunctionCost:
    """A product of activations and a weight: `flops` forward, and as many again for each gradient that is wanted."""
    order = ordered(named)

    def backward(needs: Needs) -> Cost:
        return Cost.plain(flops * (wants(order, needs, (x,)) + wants(order, needs, (weight,))))

    return FunctionCost(Cost.plain(flops), backward)
