"""Puts together the products and softmaxes that Inductor's decompositions took apart before it kept its graph.

Only what those decompositions write is recognised, by its operators, ranks and sizes (torch/_inductor/decomposition.py,
torch/_decomp/decompositions.py). A program may write elementwise work in just those words: whether it was a product is
then a matter of `provenance`. What that leaves open is not sure, and nobody's to count. What no program writes by
chance (sums over sizes of one that were taken away first) counts as a product where nothing speaks against it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch._ops import OpOverload

from mfu_sdk.counting.provenance import PRODUCTS, Form, Provenance

_aten: Final = torch.ops.aten
_CAST: Final = torch.ops.prims.convert_element_type.default


@dataclass(frozen=True, slots=True)
class Made:
    """How a tensor came to be: `result` where it is not the tensor that the last piece made.

    `pieces` are the tensors between. `open` is the form of what may be a product, and may be none.
    """

    func: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    name: str = ""
    result: Any = None
    pieces: tuple[Any, ...] = ()
    form: Form | None = None
    open: bool = False


Known = Mapping[int, Made]
"""How each tensor of a graph came to be, by its id."""


class Undivided:
    """Finds the products and softmaxes of one graph, piece by piece, and says at the end which are not sure."""

    def __init__(self, provenance: Provenance) -> None:
        self.provenance = provenance
        self._found: list[tuple[int, Made]] = []
        self._strays: dict[int, Made] = {}

    def meet(self, last: Made, result: Any, made: Known, at: int) -> Made | None:
        """The operator that `last` is the last piece of, or None; it becomes operation number `at` of the graph."""
        found = whole(last, result, made, self.provenance)
        if found is None:
            if _of_a_product(last, self.provenance):
                self._strays[id(result)] = last
        elif found.form is not None:
            self._found.append((at, found))
            for piece in found.pieces:
                self._strays.pop(id(piece), None)
        return found

    def forget(self, before: int) -> None:
        """The operations from number `before` on are not the graph's after all."""
        self._found = [(at, found) for at, found in self._found if at < before]

    def among(self, operators: Sequence[Any]) -> tuple[list[int], list[Made]]:
        """Of the graph's operations: the numbers of those that may be none, and pieces of products not recognised."""
        found = {at for at, _ in self._found}
        plain = Counter(
            func._schema.name.partition("::")[2]
            for at, func in enumerate(operators)
            if at not in found and isinstance(func, OpOverload)
        )
        unsure = []
        for at, each in self._found:
            if each.open and each.form is not None:
                only = sum(other.form == each.form or not other.open for _, other in self._found) == 1
                if not self.provenance.are_products(each.form, only=only, undivided=plain):
                    unsure.append(at)
        return unsure, list(self._strays.values())


# Elementwise work of the same look: torch.outer dispatches a multiplication too.
_OUTER: Final = Form(frozenset({"mm", "addmm", "linear", "matmul"}), frozenset({"mul", "addcmul", "lerp"}))
_BATCHED: Final = Form(frozenset({"bmm", "baddbmm", "matmul"}), _OUTER.twins)
_ADDED: Final = Form(frozenset({"addr"}), _OUTER.twins)
_VECTOR: Final = Form(frozenset({"mv", "addmv", "matmul"}), frozenset({"sum"}))
_DOT: Final = Form(frozenset({"dot", "vdot", "matmul"}), frozenset({"sum"}))


def whole(last: Made, result: Any, made: Known, provenance: Provenance) -> Made | None:
    """The operator that `last` is the last piece of, or None. Inputs are those of the undivided operator."""
    func, args = last.func, last.args
    if func is _aten.sum.dim_IntList or func is _aten.sum.default:
        return _decided(_summed(args, made), last.name, provenance)
    if func is _aten.mul.Tensor:
        return _decided(_outer(args, result, made), last.name, provenance)
    if func is _aten.div.Tensor:
        return _softmax(args, made)
    if func is _aten.sub.Tensor or func._schema.name == "prims::fma":
        return _softmax_gradient(func, args, made)
    if func in _PADDED:
        return _unpadded(func, args, last.kwargs, result, made)
    return None


def _of_a_product(last: Made, provenance: Provenance) -> bool:
    """Whether this multiplies two tensors for a product, so that it must be among the pieces of one."""
    if last.func is not _aten.mul.Tensor or not all(isinstance(t, Tensor) for t in last.args):
        return False
    return provenance.nodes is not None and provenance.nodes.get(last.name) in PRODUCTS


def _decided(found: Made | None, name: str, provenance: Provenance) -> Made | None:
    if found is None or found.form is None:
        return found
    is_product = provenance.is_product(name, found.form)
    if is_product is False:
        return None
    return replace(found, open=False) if is_product else found


def _summed(args: Sequence[Any], made: Known) -> Made | None:
    """A sum over the products of two tensors that were spread out for it: mv, and mm and bmm with a size of one."""
    product = _of(args[0], _aten.mul.Tensor, made)
    if product is None or not all(isinstance(t, Tensor) for t in product.args):
        return None
    left, right = product.args
    pieces = (args[0],)
    if len(args) == 1 or not args[1]:
        if left.dim() == 1 and left.shape == right.shape:
            return Made(_aten.dot.default, _operands(left, right, made), {}, pieces=pieces, form=_DOT, open=True)
        return None
    dims, keep = list(args[1]), len(args) > 2 and args[2]
    if (left.dim(), right.dim(), dims, keep) == (2, 1, [1], False):
        return Made(_aten.mv.default, _operands(left, right, made), {}, pieces=pieces, form=_VECTOR, open=True)
    a, b = _source(left, made), _source(right, made)
    if a is None or b is None:
        # The first operand of a small addmm is turned, the second is as it was.
        turned = _of(left, _aten.permute.default, made)
        if turned is not None and turned.args[0].dim() == 2 and (dims, keep) == ([0], True) and left.shape[1] == 1:
            operands = _operands(turned.args[0], right, made)
            return Made(_aten.mm.default, operands, {}, pieces=pieces, form=_OUTER)
        return None
    shapes = (a.dim(), b.dim(), left.dim(), right.dim(), tuple(dims), bool(keep))
    vectors = (2, 2, 1, 1, (0,), True)
    batched_vectors = (3, 3, 2, 2, (1,), True)
    spread = (2, 2, 3, 3, (1,), False)
    batched_spread = (3, 3, 4, 4, (2,), False)
    if shapes in (vectors, spread) and a.shape[1] == b.shape[0] and 1 in (a.shape[0], b.shape[1]):
        return Made(_aten.mm.default, _operands(a, b, made), {}, pieces=pieces, form=_OUTER)
    if shapes in (batched_vectors, batched_spread) and a.shape[2] == b.shape[1] and 1 in (a.shape[1], b.shape[2]):
        return Made(_aten.bmm.default, _operands(a, b, made), {}, pieces=pieces, form=_BATCHED)
    return None


def _outer(args: Sequence[Any], result: Tensor, made: Known) -> Made | None:
    """A product with an inner size of one: of two vectors, or a batch of them, as rotary embeddings have it."""
    left, right = args
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return None
    shapes = (tuple(left.shape), tuple(right.shape))
    if result.dim() == 3:
        batch, rows, columns = result.shape
        if shapes == ((batch, rows, 1), (batch, 1, columns)):
            return Made(_aten.bmm.default, _operands(left, right, made), {}, form=_BATCHED, open=True)
    elif result.dim() == 2:
        rows, columns = result.shape
        if shapes == ((rows, 1), (1, columns)) and 1 not in (rows, columns):
            return Made(_aten.mm.default, _operands(left, right, made), {}, form=_OUTER, open=True)
        if shapes == ((rows, 1), (columns,)):
            column = _of(left, _aten.view.default, made) or _of(left, _aten.reshape.default, made)
            vector, row = _operands(left if column is None else column.args[0], right, made)
            return Made(_aten.mm.default, (vector.reshape(rows, 1), row.unsqueeze(0)), {}, form=_ADDED, open=True)
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


def _operands(left: Tensor, right: Tensor, made: Known) -> tuple[Tensor, Tensor]:
    return _uncast(left, made), _uncast(right, made)


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
