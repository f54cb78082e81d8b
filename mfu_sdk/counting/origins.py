"""How the masks without data that are alive were made, as far as operators on indices, comparisons and logic made them.

On meta and fake tensors a mask is a shape; what made it is kept, so that its entries can be counted. An operand that is
not known (a padding mask, a learnt bias) is left out of sums, conjunctions and disjunctions: what it hides counts as
shown.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes

from mfu_sdk.counting import recipes
from mfu_sdk.counting.call import Call
from mfu_sdk.counting.recipes import Recipe

_T = TypeVar("_T")


def _aten(names: str) -> frozenset[str]:
    return frozenset(f"aten::{name}" for name in names.split())


_CONSTANT: Final = {
    **dict.fromkeys(_aten("zeros zeros_like new_zeros zero"), 0),
    **dict.fromkeys(_aten("ones ones_like new_ones"), 1),
    **dict.fromkeys(_aten("full full_like new_full scalar_tensor fill"), None),
}
# What stands for an operand that is not known: the one that changes nothing.
_NEUTRAL: Final = {
    **dict.fromkeys(_aten("add where masked_fill"), 0),
    **dict.fromkeys(_aten("bitwise_and logical_and"), True),
    **dict.fromkeys(_aten("bitwise_or logical_or"), False),
}
_POINTWISE: Final = _NEUTRAL.keys() | _aten(
    """sub rsub mul div floor_divide remainder neg abs minimum maximum clamp le lt ge gt eq ne bitwise_not bitwise_xor
    logical_not logical_xor _to_copy clone"""
)
_TRIANGLES: Final = _aten("tril triu")
_WHOLE: Final = _aten("arange index cat")
NAMES: Final = frozenset(_CONSTANT) | _POINTWISE | _TRIANGLES | _WHOLE
"""The operators that recipes are made of; views need no watching, as they share their storage."""

_MOST_RECIPES: Final = 4096


@dataclass(frozen=True, slots=True)
class _Kept:
    storage: StorageWeakRef
    recipe: Recipe
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype


def lacks_data(tensor: Any) -> bool:
    """Whether there are no values to read: a meta or fake tensor."""
    return isinstance(tensor, FakeTensor) or (isinstance(tensor, Tensor) and tensor.is_meta)


class Origins:
    """How the tensors without data that are alive were made, where that is known."""

    def __init__(self) -> None:
        # A storage's address is its own for as long as the weak reference is held.
        self._kept: dict[int, _Kept] = {}
        # What was made the same way is the same: every layer may make its mask again.
        self._keys: dict[Hashable, int] = {}
        self._counts: dict[tuple[int, torch.dtype], int | None] = {}

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._keys.clear()
        self._counts.clear()

    def forget(self, tensor: Tensor) -> None:
        """The tensor was written to."""
        if self._kept:
            self._kept.pop(tensor.untyped_storage()._cdata, None)

    def record(self, name: str, call: Call, *, mutates: bool) -> bool:
        """Learn from an operator of `NAMES` whose result has no data; says whether how it was made is now known.

        An in-place form is known if it wrote all of a storage; what it wrote to is otherwise for `forget`.
        """
        out = call.result
        if not isinstance(out, Tensor) or out.layout is not torch.strided or type(out.numel()) is not int:
            return False
        if mutates and ("out" in call.kwargs or out.numel() * out.element_size() != out.untyped_storage().nbytes()):
            return False
        recipe = self._recipe(name, call, out, mutates)
        if recipe is not None:
            if len(self._kept) > _MOST_RECIPES:
                self._kept = {key: kept for key, kept in self._kept.items() if not kept.storage.expired()}
            storage = out.untyped_storage()
            held = StorageWeakRef(storage)
            self._kept[storage._cdata] = _Kept(held, recipe, out.stride(), int(out.storage_offset()), out.dtype)
        return recipe is not None

    def value(self, tensor: Tensor) -> float | None:
        """The one value of a tensor of one entry, or of a constant."""
        recipe = self._of(tensor)
        if recipe is None or (any(recipe.varies) and tensor.numel() != 1):
            return None
        return _attempt(lambda: float(recipe.at(((0, 1),) * len(recipe.shape)).flatten()[0]))

    def shown(self, mask: Tensor) -> int | None:
        """How many entries of a boolean mask are True, or of a bias above finfo.min / 2; None if it is not known."""
        recipe = self._of(mask)
        if recipe is None:
            return None
        key = (recipe.key, mask.dtype)
        if key not in self._counts:
            self._counts[key] = _attempt(lambda: recipes.count(recipe, mask.dtype))
        return self._counts[key]

    def shown_by_both(self, masks: tuple[tuple[Tensor, bool], tuple[Tensor, bool]]) -> int | None:
        """The entries that two masks, broadcast together, let through; each says whether True hides in it."""
        first, second = (self._shows(*mask) for mask in masks)
        if first is None or second is None:
            return None
        shape = torch.broadcast_shapes(first.shape, second.shape)
        both = self._made("aten::logical_and", torch.ops.aten.logical_and.default, tuple(shape), [first, second])
        return _attempt(lambda: recipes.count(both, torch.bool))

    def _shows(self, mask: Tensor, inverted: bool) -> Recipe | None:
        recipe = self._of(mask)
        if recipe is not None and mask.is_floating_point():
            edge = torch.finfo(mask.dtype).min / 2
            recipe = self._made("aten::gt", torch.ops.aten.gt.Scalar, recipe.shape, [recipe, edge])
        if recipe is not None and inverted:
            recipe = self._made("aten::logical_not", torch.ops.aten.logical_not.default, recipe.shape, [recipe])
        return recipe

    def _made(self, name: str, func: Callable[..., Tensor], shape: tuple[int, ...], args: list[Any]) -> Recipe:
        key = self._key(name, shape, torch.bool, _described(args), ())
        return recipes.pointwise(key, shape, name, func, args, {}, torch.bool, mutates=False)

    def _key(self, *made: Hashable) -> int:
        return self._keys.setdefault(made, len(self._keys))

    def _recipe(self, name: str, call: Call, out: Tensor, mutates: bool) -> Recipe | None:
        shape = tuple(out.shape)
        if name in _CONSTANT:
            value = _CONSTANT[name]
            if value is None:
                value = call.get("fill_value", call.get("s", call.get("value")))
            if isinstance(value, Tensor):
                value = self.value(value) if value.numel() == 1 else None
            return self._constant(shape, value, out.dtype) if isinstance(value, (int, float)) else None
        kwargs = {key: value for key, value in call.kwargs.items() if key not in ("pin_memory", "device")}
        if "device" in call.kwargs:
            kwargs["device"] = torch.device("cpu")
        call_again, neutral = call.func, _NEUTRAL.get(name)
        known = [False]

        def operand(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return [operand(item) for item in value]
            if not isinstance(value, Tensor):
                return value
            recipe = self._of(value)
            if recipe is None:
                # An index that is not known is not zero: only biases are left out of sums.
                fits = value.dtype is torch.bool if isinstance(neutral, bool) else value.is_floating_point()
                if neutral is None or not fits:
                    raise LookupError
                return self._constant(tuple(value.shape), neutral, value.dtype)
            known[0] = True
            return recipe

        try:
            args = [operand(arg) for arg in call.args]
        except LookupError:
            return None
        key = self._key(name, shape, out.dtype, _described(args), _described([*kwargs.items()]))
        if name == "aten::arange":
            return recipes.whole(key, shape, lambda: call_again(*args, **kwargs | {"device": torch.device("cpu")}))
        if not known[0]:
            return None
        if name in _WHOLE:
            return recipes.whole(key, shape, lambda: call_again(*_entire(args), **kwargs))
        if name in _TRIANGLES:
            lower = name == "aten::tril"
            return recipes.triangle(key, args[0], call["diagonal"], lower=lower) if len(shape) >= 2 else None
        return recipes.pointwise(key, shape, name, call_again, args, kwargs, out.dtype, mutates=mutates)

    def _constant(self, shape: tuple[int, ...], value: float, dtype: torch.dtype) -> Recipe:
        return recipes.constant(self._key("constant", shape, type(value).__name__, value, dtype), shape, value, dtype)

    def _of(self, tensor: Tensor) -> Recipe | None:
        """The recipe of a tensor, which may be a view of what an operator made."""
        if tensor.layout is not torch.strided:
            return None
        if isinstance(tensor, FakeTensor) and tensor.constant is not None:
            held = tensor.constant
            return recipes.whole(self._key(object()), tuple(held.shape), lambda: held)
        if not lacks_data(tensor):
            # A number among tensors without data, where reading it waits for nothing.
            is_number = type(tensor) is Tensor and tensor.dim() == 0 and tensor.is_cpu
            return self._constant((), tensor.item(), tensor.dtype) if is_number else None
        kept = self._kept.get(tensor.untyped_storage()._cdata)
        if kept is None or kept.dtype is not tensor.dtype or type(tensor.numel()) is not int:
            return None
        base, shape, offset = kept.recipe, tuple(tensor.shape), int(tensor.storage_offset()) - kept.offset
        if shape == base.shape and offset == 0 and tensor.stride() == kept.strides:
            return base
        walked = recipes.walks(base.shape, kept.strides, shape, tensor.stride(), offset)
        return None if walked is None else recipes.view(self._key("view", base.key, shape, walked), base, shape, walked)


def _described(args: Any) -> Hashable:
    """Arguments as a key: recipes by theirs, and numbers with their type, as 0 and False are equal."""
    if isinstance(args, (list, tuple)):
        return tuple(map(_described, args))
    return (Recipe, args.key) if isinstance(args, Recipe) else (type(args), args)


def _entire(args: list[Any]) -> list[Any]:
    """Arguments with every recipe in them made, in lists too."""
    return [
        _entire(arg) if isinstance(arg, list) else recipes.entire(arg) if isinstance(arg, Recipe) else arg
        for arg in args
    ]


def _attempt(make: Callable[[], _T]) -> _T | None:
    try:
        with _disable_current_modes(), torch.no_grad():
            return make()
    except Exception:  # noqa: BLE001 - what cannot be made stays unknown, and the program goes on
        return None
