"""What values an operator's result can have, given between what values its operands lie.

Bounds decide whole boxes of a mask at once: only the boxes that its edge crosses need their entries looked at.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch

Bounds = tuple[float, float] | None
"""Least and largest value, possibly wider than the truth; None if nothing is known."""
_Pair = tuple[float, float]


def _compared(holds: Callable[[float, float], bool]) -> Callable[[_Pair, _Pair], _Pair]:
    """A comparison that is most likely true with the first operand's one end and the second's other."""

    def rule(a: _Pair, b: _Pair) -> _Pair:
        corners = [holds(x, y) for x in a for y in b]
        return float(all(corners)), float(any(corners))

    return rule


def _equal(a: _Pair, b: _Pair) -> _Pair:
    if a[0] == a[1] == b[0] == b[1]:
        return 1, 1
    return 0, float(a[0] <= b[1] and b[0] <= a[1])


def _not(a: _Pair) -> _Pair:
    lowest, highest = _truth(a)
    return 1 - highest, 1 - lowest


def _truth(a: _Pair) -> _Pair:
    if a[0] == 0 == a[1]:
        return 0, 0
    return float(a[0] > 0 or a[1] < 0), 1


def _times(a: _Pair, b: _Pair) -> _Pair:
    return _ends([x * y for x in a for y in b])


def _over(a: _Pair, b: _Pair) -> _Pair:
    if b[0] <= 0:
        raise ValueError("a divisor that may be zero or below")
    return _ends([x // y for x in a for y in b])


def _ends(corners: Sequence[float]) -> _Pair:
    # Zero times infinity is not a number, and bounds nothing.
    if any(corner != corner for corner in corners):
        raise ValueError("a corner that is not a number")
    return min(corners), max(corners)


def _absolute(a: _Pair) -> _Pair:
    ends = abs(a[0]), abs(a[1])
    return (0 if a[0] <= 0 <= a[1] else min(ends)), max(ends)


_UNARY: Final[Mapping[str, Callable[[_Pair], _Pair]]] = {
    "neg": lambda a: (-a[1], -a[0]),
    "abs": _absolute,
    "clone": lambda a: a,
    "logical_not": _not,
}
_BINARY: Final[Mapping[str, Callable[[_Pair, _Pair], _Pair]]] = {
    "add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "rsub": lambda a, b: (b[0] - a[1], b[1] - a[0]),
    "mul": _times,
    "floor_divide": _over,
    "minimum": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "maximum": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "le": _compared(lambda x, y: x <= y),
    "lt": _compared(lambda x, y: x < y),
    "ge": _compared(lambda x, y: x >= y),
    "gt": _compared(lambda x, y: x > y),
    "eq": _equal,
    "ne": lambda a, b: _not(_equal(a, b)),
    "logical_and": lambda a, b: _both(_truth(a), _truth(b)),
    "logical_or": lambda a, b: _either(_truth(a), _truth(b)),
}
# Of booleans they are what the logical ones are; of integers nothing is known.
_BITWISE: Final = {"bitwise_and": "logical_and", "bitwise_or": "logical_or", "bitwise_not": "logical_not"}


def _both(a: _Pair, b: _Pair) -> _Pair:
    return min(a[0], b[0]), min(a[1], b[1])


def _either(a: _Pair, b: _Pair) -> _Pair:
    return max(a[0], b[0]), max(a[1], b[1])


def _chosen(condition: _Pair, a: _Pair, b: _Pair) -> _Pair:
    lowest, highest = _truth(condition)
    if lowest == 1:
        return a
    return b if highest == 0 else (min(a[0], b[0]), max(a[1], b[1]))


def of_operator(name: str, operands: Sequence[Bounds], kwargs: Mapping[str, Any], dtype: torch.dtype) -> Bounds:
    """The bounds of the result, of `dtype`, of a pointwise operator ("aten::add") on operands within bounds."""
    if any(bounds is None for bounds in operands):
        return None
    known = [bounds for bounds in operands if bounds is not None]
    short = name.removeprefix("aten::")
    if short in _BITWISE and dtype is torch.bool:
        short = _BITWISE[short]
    if short == "div" and kwargs == {"rounding_mode": "floor"}:
        short, kwargs = "floor_divide", {}
    found: Bounds = None
    if short == "_to_copy":
        found = _truth(known[0]) if dtype is torch.bool else known[0]
        if not dtype.is_floating_point and dtype is not torch.bool and not all(map(math.isfinite, found)):
            return None
    elif short == "where" and len(known) == 3:
        found = _chosen(*known)
    elif short == "masked_fill":
        found = _chosen(known[1], known[2], known[0])
    elif kwargs:
        # A scale, a rounding: ask the operator itself.
        return None
    elif short in _UNARY and len(known) == 1:
        found = _UNARY[short](known[0])
    elif short in _BINARY and len(known) == 2:
        try:
            found = _BINARY[short](*known)
        except (ValueError, OverflowError):
            return None
    # Infinity less infinity bounds nothing either.
    if found is None or found[0] != found[0] or found[1] != found[1]:
        return None
    if short == "_to_copy" or dtype.is_floating_point:
        # What is rounded, or cut to whole numbers, keeps its order.
        least, largest = torch.tensor(found, dtype=torch.float64, device="cpu").to(dtype).tolist()
        return least, largest
    return found


def of_triangle(inside: Bounds, rows: tuple[int, int], columns: tuple[int, int], diagonal: int, lower: bool) -> Bounds:
    """The bounds of a box of a triangle, zero beyond the diagonal, of entries within `inside`."""
    nearest, furthest = columns[0] - (rows[1] - 1), (columns[1] - 1) - rows[0]
    below, above = furthest <= diagonal, nearest > diagonal
    if not lower:
        below, above = nearest >= diagonal, furthest < diagonal
    if above:
        return 0, 0
    if below or inside is None:
        return inside
    return min(inside[0], 0), max(inside[1], 0)


def shows(bounds: Bounds, dtype: torch.dtype) -> bool | None:
    """Whether all of a mask's entries within bounds let their pair through, or none (False); None if it is open."""
    if bounds is None:
        return None
    if dtype.is_floating_point:
        edge = torch.finfo(dtype).min / 2
        return True if bounds[0] > edge else False if bounds[1] <= edge else None
    lowest, highest = _truth(bounds)
    return True if lowest == 1 else False if highest == 0 else None
