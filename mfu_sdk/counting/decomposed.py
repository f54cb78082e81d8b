"""Puts together the products and softmaxes that Inductor's decompositions took apart before it kept its graph.

Only what those decompositions write is recognised, by its operators, ranks and sizes (torch/_inductor/decomposition.py,
torch/_decomp/decompositions.py). A program that spells a matrix product in just that way has it counted as the product
that it is. Left as it is, and free: a dot product, which reads like any sum of products, and an outer product of two
vectors, which reads like any broadcast.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

_aten: Final = torch.ops.aten
_CAST: Final = torch.ops.prims.convert_element_type.default


@dataclass(frozen=True, slots=True)
class Made:
    """How a tensor came to be: `result` where it is not the tensor that the last piece made."""

    func: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    name: str = ""
    result: Any = None


Known = Mapping[int, Made]
"""How each tensor of a graph came to be, by its id."""


def whole(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, made: Known) -> Made | None:
    """The operator that `func` is the last piece of, or None. Inputs are those of the undivided operator."""
    if func is _aten.sum.dim_IntList:
        return _summed(args, made)
    if func is _aten.mul.Tensor:
        return _outer(args, result)
    if func is _aten.div.Tensor:
        return _softmax(args, made)
    if func is _aten.sub.Tensor or func._schema.name == "prims::fma":
        return _softmax_gradient(func, args, made)
    if func in _PADDED:
        return _unpadded(func, args, kwargs, result, made)
    return None


def _summed(args: Sequence[Any], made: Known) -> Made | None:
    """A sum over the products of two tensors that were spread out for it: mv, and mm and bmm with a size of one."""
    product = _of(args[0], _aten.mul.Tensor, made)
    dims, keep = list(args[1]), len(args) > 2 and args[2]
    if product is None or not all(isinstance(t, Tensor) for t in product.args):
        return None
    left, right = product.args
    if (left.dim(), right.dim(), dims, keep) == (2, 1, [1], False):
        return Made(_aten.mv.default, (_uncast(left, made), _uncast(right, made)), {})
    a, b = _source(left, made), _source(right, made)
    if a is None or b is None:
        # The first operand of a small addmm is turned, the second is as it was.
        turned = _of(left, _aten.permute.default, made)
        if turned is not None and turned.args[0].dim() == 2 and (dims, keep) == ([0], True) and left.shape[1] == 1:
            return _product(_aten.mm.default, turned.args[0], right, made)
        return None
    shapes = (a.dim(), b.dim(), left.dim(), right.dim(), tuple(dims), bool(keep))
    vectors = (2, 2, 1, 1, (0,), True)
    batched_vectors = (3, 3, 2, 2, (1,), True)
    spread = (2, 2, 3, 3, (1,), False)
    batched_spread = (3, 3, 4, 4, (2,), False)
    if shapes in (vectors, spread) and a.shape[1] == b.shape[0] and 1 in (a.shape[0], b.shape[1]):
        return _product(_aten.mm.default, a, b, made)
    if shapes in (batched_vectors, batched_spread) and a.shape[2] == b.shape[1] and 1 in (a.shape[1], b.shape[2]):
        return _product(_aten.bmm.default, a, b, made)
    return None


def _outer(args: Sequence[Any], result: Tensor) -> Made | None:
    """A batched product with an inner size of one, as rotary embeddings have it."""
    left, right = args
    if not isinstance(right, Tensor) or not (left.dim() == right.dim() == 3) or not left.is_floating_point():
        return None
    batch, rows, columns = result.shape
    if (left.shape, right.shape) == ((batch, rows, 1), (batch, 1, columns)) and 1 not in (rows, columns):
        return Made(_aten.bmm.default, (left, right), {})
    return None


def _softmax(args: Sequence[Any], made: Known) -> Made | None:
    """exp(x − m) / s, with m and s of the size one where they were reduced; m and s may come from the forward graph."""
    powers, total = args
    power = _of(powers, _aten.exp.default, made)
    if power is None or not isinstance(total, Tensor):
        return None
    shifted = _of(power.args[0], _aten.sub.Tensor, made)
    if shifted is None:
        scaled = _of(power.args[0], _aten.mul.Tensor, made)
        shifted = None if scaled is None else _of(scaled.args[0], _aten.sub.Tensor, made)
    if shifted is None:
        return None
    scores, most = shifted.args
    reduced = [d for d, (n, m) in enumerate(zip(scores.shape, total.shape, strict=True)) if n != m or n == 1]
    if not isinstance(most, Tensor) or most.shape != total.shape or not reduced or total.shape[reduced[-1]] != 1:
        return None
    return Made(_aten._softmax.default, (scores, reduced[-1], False), {})


def _softmax_gradient(func: Any, args: Sequence[Any], made: Known) -> Made | None:
    """g·y − y·Σ(g·y): with a fused multiply-add of −y, or as a difference of products."""
    if func is _aten.sub.Tensor:
        times, taken = args[0], _of(args[1], _aten.mul.Tensor, made)
        factors = () if taken is None else taken.args
    else:
        negative, total, times = args
        plain = _of(negative, _aten.neg.default, made)
        factors = () if plain is None else (plain.args[0], total)
    product = _of(times, _aten.mul.Tensor, made)
    if product is None or len(factors) != 2:
        return None
    for weights, total in (factors, factors[::-1]):
        summed = _of(total, _aten.sum.dim_IntList, made)
        if summed is not None and summed.args[0] is times:
            for i in (0, 1):
                if product.args[i] is weights:
                    dim = summed.args[1][0]
                    given = (product.args[1 - i], weights, dim, weights.dtype)
                    return Made(_aten._softmax_backward_data.default, given, {})
    return None


_PADDED: Final = {_aten.mm.default: (0, 1), _aten.addmm.default: (1, 2), _aten.bmm.default: (0, 1)}


def _unpadded(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor, made: Known) -> Made | None:
    """A product whose operands Inductor padded to sizes that its kernels like: the model's sizes are the first ones."""
    at = _PADDED[func]
    left, right = (_before_padding(args[i], made) for i in at)
    if left is args[at[0]] and right is args[at[1]]:
        return None
    inner = min(left.shape[-1], right.shape[-2])
    given = list(args)
    given[at[0]], given[at[1]] = left.narrow(-1, 0, inner), right.narrow(-2, 0, inner)
    narrow = result.narrow(-2, 0, left.shape[-2]).narrow(-1, 0, right.shape[-1])
    return Made(func, given, kwargs, result=narrow)


def _before_padding(value: Tensor, made: Known) -> Tensor:
    found = _of(value, _aten.constant_pad_nd.default, made)
    # The name that a pattern's replacement gets; what the model pads itself is called after the operator alone.
    padded = found is not None and found.name.startswith("constant_pad_nd_default")
    source: Tensor = found.args[0] if found is not None and padded else value
    return source


def _product(func: Any, left: Tensor, right: Tensor, made: Known) -> Made:
    return Made(func, (_uncast(left, made), _uncast(right, made)), {})


def _of(value: Any, func: Any, made: Known) -> Made | None:
    found = made.get(id(value))
    return found if found is not None and found.func is func else None


def _source(value: Tensor, made: Known) -> Tensor | None:
    """What `value` was made of by taking a size of one away, or adding one."""
    found = made.get(id(value))
    if found is None or found.func not in (_aten.squeeze.dim, _aten.unsqueeze.default):
        return None
    source: Tensor = found.args[0]
    return source


def _uncast(value: Tensor, made: Known) -> Tensor:
    """Low precision is cast up before a product is taken apart: the product itself was in low precision."""
    cast = _of(value, _CAST, made)
    source: Tensor = value if cast is None else cast.args[0]
    return source if source.dtype in (torch.float16, torch.bfloat16) else value
