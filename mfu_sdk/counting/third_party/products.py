"""Quantised and grouped products of other libraries, by what their operators' arguments and results say.

A product whose weight is packed in some layout of the library's own still shows its rows and inner size in the
activations, and its columns in the result. Arithmetic is at the activations' dtype: a weight that is only stored in
four or eight bits is widened first.
"""

import math
from collections.abc import Callable
from typing import Any

from mfu_sdk.counting.call import Call
from mfu_sdk.counting.formulas import FREE, Cost
from mfu_sdk.counting.masks import Masks
from mfu_sdk.counting.pricing import Price
from mfu_sdk.counting.third_party.sequences import values
from mfu_sdk.errors import FormulaError


def by_result(x: str, source: str, *, out: str | None = None, in_an_element: int = 1) -> Price:
    """out[..., n] = Σ_k x[..., k]·w: `out` names the argument that is written, None the result.

    `in_an_element` of x's numbers share one of its elements.
    """

    def formula(call: Call, _: Masks) -> Cost:
        result = call.out if out is None else call[out]
        return Cost.plain(2 * result.numel() * call.shape(x)[-1] * in_an_element)

    return Price(formula, x, words="2·rows·columns·inner", source=source)


def by_sizes(x: str, source: str) -> Price:
    """A product whose three sizes are arguments."""

    def formula(call: Call, _: Masks) -> Cost:
        return Cost.plain(2 * call["size_m"] * call["size_n"] * call["size_k"])

    return Price(formula, x, words="2·rows·columns·inner", source=source)


def by_problems(x: str, source: str) -> Price:
    """A grouped product that is given each expert's (rows, columns, inner size) as a tensor."""

    def formula(call: Call, _: Masks) -> Cost:
        sizes = values(call["problem_sizes"])
        if len(sizes) % 3:
            raise FormulaError(f"problem_sizes of {len(sizes)} numbers: must be three a group; register a formula")
        return Cost.plain(2 * sum(math.prod(sizes[i : i + 3]) for i in range(0, len(sizes), 3)))

    return Price(formula, x, words="Σ over experts 2·rows·columns·inner", source=source)


def by_kept(x: str, weight: str, source: str) -> Price:
    """A product with a weight of which only the numbers that are not zero are kept."""

    def formula(call: Call, _: Masks) -> Cost:
        return Cost.plain(2 * math.prod(call.shape(x)[:-1]) * call[weight].numel())

    return Price(formula, x, words="2·rows·numbers kept", source=source)


def free(names: str, namespace: str, source: str) -> dict[str, Price]:
    """Operators that quantise, normalise, move or otherwise multiply no matrices: declared to cost nothing."""
    formula: Callable[[Call, Any], Cost] = lambda _call, _masks: FREE  # noqa: E731 - a table of one
    price = Price(formula, "", words="0", source=source)
    return {f"{namespace}::{name}": price for name in names.split()}
