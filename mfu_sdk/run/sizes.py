"""What of a call's signature is structure, and which sizes stand in it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch

from mfu_sdk.counting.plan import Packed

Sizes = tuple[int, ...]


class Taken(NamedTuple):
    """A signature taken apart: sizes are those of tensors, whole numbers given as arguments, and packed lengths' sums.

    `squares` are the places of sizes that are sums of squares, `numbers` those of arguments.
    """

    structure: Hashable
    sizes: Sizes
    squares: frozenset[int]
    numbers: frozenset[int]


def taken_apart(key: Hashable) -> Taken:
    """The parts of `key`, which holds a signature (`counting.plan.signature`)."""
    sizes: list[int] = []
    squares: set[int] = set()
    numbers: set[int] = set()
    structure = _structure(key, sizes, squares, numbers)
    return Taken(structure, tuple(sizes), frozenset(squares), frozenset(numbers))


def _structure(part: Any, sizes: list[int], squares: set[int], numbers: set[int]) -> Hashable:
    if isinstance(part, torch.Size):
        sizes.extend(part)
        return "size", len(part)
    if isinstance(part, Packed):
        squares.add(len(sizes) + 1)
        sizes.extend((part.total, part.squares, part.number))
        return "packed"
    if isinstance(part, tuple):
        # `plan.signature` gives an argument that is a whole number as (int, its value).
        if len(part) == 2 and part[0] is int:
            numbers.add(len(sizes))
            sizes.append(part[1])
            return "whole"
        return tuple([_structure(each, sizes, squares, numbers) for each in part])
    return part if isinstance(part, Hashable) else repr(part)
