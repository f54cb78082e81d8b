"""How to make the entries of a mask again, any box of them, and how many of them let their pair through.

A recipe is what an operator did, on recipes. Boxes that bounds decide are counted by their size; only those that the
mask's edge crosses are made, on the CPU, and only once along dimensions that repeat.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from mfu_sdk.counting import intervals
from mfu_sdk.counting.intervals import Bounds

Box = tuple[tuple[int, int], ...]
"""A part of an index space: from and to, for each dimension."""
Walks = tuple[tuple[int, int, int | None], ...]
"""How a view walks its base: for each dimension of it the first index, the step, and the view's dimension."""

_MOST_HELD: Final = 1 << 24
"""Entries of a tensor that is made whole: indices, not masks."""
_MOST_MADE: Final = 1 << 28
"""Entries of a mask that are looked at one by one, where bounds do not decide; more take many seconds."""
_TILE: Final = 1 << 20
_LEAF: Final = 1 << 15
_OF_FORM: Final = frozenset({"dtype", "device", "layout", "memory_format", "non_blocking"})


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make a tensor of a shape, whose entries differ along the dimensions that `varies` says.

    `at` makes the entries in a box, or a tensor that broadcasts to them; `bounds` says between what values they lie.
    Recipes with the same `key` make the same tensor.
    """

    key: int
    shape: tuple[int, ...]
    varies: tuple[bool, ...]
    at: Callable[[Box], Tensor]
    bounds: Callable[[Box], Bounds]


def constant(key: int, shape: tuple[int, ...], value: float, dtype: torch.dtype) -> Recipe:
    """The same value everywhere."""

    def at(box: Box) -> Tensor:
        return torch.full((1,) * len(box), value, dtype=dtype, device="cpu")

    return Recipe(key, shape, (False,) * len(shape), at, lambda _: (value, value))


def whole(key: int, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Recipe:
    """Made at once and kept: indices, and operators on them that are not pointwise."""
    held: list[Tensor] = []

    def at(box: Box) -> Tensor:
        if not held:
            if math.prod(shape) > _MOST_HELD:
                raise ValueError(f"{math.prod(shape)} entries are too many to make at once")
            held.append(make())
        return held[0][tuple(slice(*side) for side in box)]

    def bounds(box: Box) -> Bounds:
        least, largest = at(box).aminmax()
        return least.item(), largest.item()

    return Recipe(key, shape, (True,) * len(shape), at, bounds)


def entire(recipe: Recipe) -> Tensor:
    """All entries at once. Raises `ValueError` where these are too many."""
    if math.prod(recipe.shape) > _MOST_HELD:
        raise ValueError(f"{math.prod(recipe.shape)} entries are too many to make at once")
    return recipe.at(tuple((0, size) for size in recipe.shape)).expand(recipe.shape)


def pointwise(
    key: int,
    shape: tuple[int, ...],
    name: str,
    func: Callable[..., Tensor],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    dtype: torch.dtype,
    *,
    mutates: bool,
) -> Recipe:
    """The operator `name`, whose overload is `func`, on recipes and numbers that broadcast to `shape`."""
    operands = [arg for arg in args if isinstance(arg, (Recipe, int, float))]
    options = {key: value for key, value in kwargs.items() if key not in _OF_FORM}
    varies = [False] * len(shape)
    for operand in operands:
        if isinstance(operand, Recipe):
            for back, along in enumerate(reversed(operand.varies), 1):
                varies[-back] |= along

    def at(box: Box) -> Tensor:
        given = [arg.at(_part(arg, box)) if isinstance(arg, Recipe) else arg for arg in args]
        if mutates:
            # What another recipe may use again is not written to.
            given[0] = given[0].expand([to - first for first, to in box]).clone()
        return func(*given, **kwargs)

    def bounds(box: Box) -> Bounds:
        known = [arg.bounds(_part(arg, box)) if isinstance(arg, Recipe) else (arg, arg) for arg in operands]
        return intervals.of_operator(name, known, options, dtype)

    return Recipe(key, shape, tuple(varies), at, bounds)


def triangle(key: int, base: Recipe, diagonal: int, *, lower: bool) -> Recipe:
    """The lower or upper triangle of the last two dimensions, zero elsewhere."""

    def at(box: Box) -> Tensor:
        tile = base.at(box).expand([to - first for first, to in box])
        shifted = diagonal + box[-2][0] - box[-1][0]
        return tile.tril(shifted) if lower else tile.triu(shifted)

    def bounds(box: Box) -> Bounds:
        return intervals.of_triangle(base.bounds(box), box[-2], box[-1], diagonal, lower)

    return Recipe(key, base.shape, (*base.varies[:-2], True, True), at, bounds)


def view(key: int, base: Recipe, shape: tuple[int, ...], walked: Walks) -> Recipe:
    """A view of a base: sliced, permuted, expanded, with dimensions of one more or fewer."""
    varying = {dim for (_, _, dim), varies in zip(walked, base.varies, strict=True) if varies}
    dims = [dim for _, _, dim in walked if dim is not None]
    order = sorted(range(len(dims)), key=dims.__getitem__)
    # A side of one entry may stand for all: a step leaves it so.
    steps = tuple(0 if dim is None else slice(None, None, step) for _, step, dim in walked)
    new = tuple(slice(None) if dim in dims else None for dim in range(len(shape)))

    def inside(box: Box) -> Box:
        sides = []
        for first, step, dim in walked:
            begin, end = (0, 1) if dim is None else box[dim]
            sides.append((first + step * begin, first + step * (end - 1) + 1))
        return tuple(sides)

    return Recipe(
        key,
        shape,
        tuple(dim in varying for dim in range(len(shape))),
        lambda box: base.at(inside(box))[steps].permute(order)[new],
        lambda box: base.bounds(inside(box)),
    )


def walks(
    base: Sequence[int], base_strides: Sequence[int], shape: Sequence[int], strides: Sequence[int], offset: int
) -> Walks | None:
    """How a view walks its base, by their strides, or None where one dimension of it crosses several of the base."""
    found: list[tuple[int, int, int | None]] = [(0, 1, None)] * len(base)
    free = {dim for dim in range(len(shape)) if shape[dim] > 1 and strides[dim] > 0}
    # Large strides first, so that what is left of the offset belongs to the smaller ones.
    for d in sorted((d for d in range(len(base)) if base[d] > 1), key=lambda d: -base_strides[d]):
        first, offset = divmod(offset, base_strides[d])
        if not 0 <= first < base[d]:
            return None
        found[d] = (first, 1, None)
        for dim in sorted(free, key=lambda dim: -strides[dim]):
            step, rest = divmod(strides[dim], base_strides[d])
            if rest == 0 and first + step * (shape[dim] - 1) < base[d]:
                found[d] = (first, step, dim)
                free.discard(dim)
                break
    return None if free or offset else tuple(found)


def count(recipe: Recipe, dtype: torch.dtype) -> int:
    """The entries of a mask of `dtype` that let their pair through. Raises `ValueError` where that is too much work."""
    if 0 in recipe.shape:
        return 0
    sizes = [size if varies else 1 for size, varies in zip(recipe.shape, recipe.varies, strict=True)]
    shown = made = 0
    pending: list[Box] = [tuple((0, size) for size in sizes)]
    while pending:
        box = pending.pop()
        lengths = [to - first for first, to in box]
        entries = math.prod(lengths)
        bounds = recipe.bounds(box)
        all_or_none = intervals.shows(bounds, dtype)
        if all_or_none is not None:
            shown += entries * all_or_none
        elif entries > (_TILE if bounds is None else _LEAF):
            longest = lengths.index(max(lengths))
            first, to = box[longest]
            middle = (first + to) // 2
            pending += [(*box[:longest], half, *box[longest + 1 :]) for half in ((first, middle), (middle, to))]
        else:
            made += entries
            if made > _MOST_MADE:
                raise ValueError(f"more than {_MOST_MADE} entries would have to be looked at")
            tile = recipe.at(box)
            tile = tile > torch.finfo(dtype).min / 2 if dtype.is_floating_point else tile
            # A side of one entry may stand for all.
            shown += int(tile.count_nonzero()) * (entries // tile.numel())
    return shown * (math.prod(recipe.shape) // math.prod(sizes))


def _part(operand: Recipe, box: Box) -> Box:
    """The box of an operand that broadcasts to the box of a result."""
    sides = box[len(box) - len(operand.shape) :]
    return tuple((0, 1) if size == 1 else side for size, side in zip(operand.shape, sides, strict=True))
