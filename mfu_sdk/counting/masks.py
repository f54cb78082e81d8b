"""Recognises attention in products, masks and softmaxes, so that it costs what fused attention costs.

What is known is a fact about a storage: "these are scores of that product", "these weights are zero outside n pairs".
Scores become known when a batched product is made, lose pairs when a mask is added, filled or selected into them, and
are priced when a softmax follows; the softmax's result, and its gradient, are zero outside the pairs, so products with
them cost the pairs only. A pair is masked if its boolean is False or its bias is at most finfo.min / 2. Masks with data
are read, once a step, which waits for the device; a counted step may. Masks without data (meta, fake) are worked out
from how they were made (`origins`). What is not recognised counts in full.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from mfu_sdk.counting import origins
from mfu_sdk.counting.call import Call, tensors
from mfu_sdk.counting.mask_data import Hiding, is_plain, overlap, read
from mfu_sdk.counting.origins import Origins, lacks_data

Reprice = Callable[[int, int], None]
"""Called with (pairs let through, pairs in all) when a product proves to be attention scores."""

_T = TypeVar("_T")

# Elementwise: scores stay scores of their product, zeros stay zero.
_ELEMENTWISE: Final = frozenset(
    f"aten::{name}"
    for name in (
        "mul",
        "div",
        "neg",
        "tanh",
        "tanh_backward",
        "sub",
        "_to_copy",
        "clone",
        "native_dropout",
        "native_dropout_backward",
    )
)
_MOST_KNOWN: Final = 4096
_MOST_HIDING: Final = 4


@dataclass(frozen=True, slots=True)
class _Fact:
    """What a storage holds: `elements` of attention, `pairs` of which count, and attention sinks beside them.

    Sinks are columns joined to the scores before the softmax and cut off after it; there are so many entries of them.
    Peaks are where each row of the scores is largest: pairs that count, or sinks.
    """

    kind: Literal["scores", "weights", "peaks"]
    elements: int
    pairs: int
    products: tuple[Reprice, ...] = ()
    sinks: int = 0
    columns: int = 0

    @property
    def stored(self) -> int:
        return self.elements + self.sinks


class Masks:
    """What is known about the masks, scores and weights of a counted step."""

    def __init__(self) -> None:
        # A storage's address is its own for as long as the weak reference is held.
        self._facts: dict[int, tuple[StorageWeakRef, _Fact]] = {}
        self._reads: dict[Hashable, tuple[tuple[StorageWeakRef, ...], Any]] = {}
        self._read_from: set[int] = set()
        # What hides pairs of scores that no softmax followed yet, in case that another mask overlaps it.
        self._hiding: dict[Reprice, Hiding] = {}
        self._origins = Origins()

    def clear(self) -> None:
        """Forget everything."""
        self._facts.clear()
        self._reads.clear()
        self._read_from.clear()
        self._hiding.clear()
        self._origins.clear()

    def pairs_in(self, tensor: torch.Tensor) -> int | None:
        """How many elements of `tensor` a mask has not made zero, if that is known."""
        fact = self._fact(tensor, "weights")
        return None if fact is None else fact.pairs + fact.sinks

    def allowed(self, mask: torch.Tensor) -> int | None:
        """How many entries of `mask` let their pair through, or None if that cannot be known."""
        if lacks_data(mask):
            return self._origins.shown(mask)
        if not is_plain(mask) or mask.layout is not torch.strided or mask.is_complex():
            return None
        layout = (mask.dtype, mask.shape, mask.stride(), mask.storage_offset())
        return self.remembered((mask,), layout, lambda: read(mask))

    def remembered(self, of: Sequence[torch.Tensor], key: Hashable, work_out: Callable[[], _T]) -> _T:
        """What `work_out` makes of the values of `of`, kept under `key` until they change, die or the step ends."""
        whole = (key, *((t.untyped_storage()._cdata, 0 if t.is_inference() else t._version) for t in of))
        found = self._reads.get(whole)
        if found is None or any(map(_expired, found[0])):
            if len(self._reads) > _MOST_KNOWN:
                self._reads.clear()
            self._read_from.update(t.untyped_storage()._cdata for t in of)
            found = self._reads[whole] = (tuple(StorageWeakRef(t.untyped_storage()) for t in of), work_out())
        value: _T = found[1]
        return value

    def observe(self, name: str, call: Call, product: Reprice | None) -> None:
        """Learn from one operator that has run; `product` reprices it where it was a batched product.

        Operators that are neither in `WATCHED`, nor batched products, nor write to their arguments teach nothing.
        """
        fact: _Fact | None = None
        if product is not None:
            fact = _Fact("scores", call.out.numel(), call.out.numel(), products=(product,))
            if name == "aten::baddbmm" and call["beta"] == 1:
                fact = self._biased(fact, call["self"], call.out.shape)
        elif self._facts:
            rule = _RULES.get(name)
            fact = rule(self, call) if rule else self._carried(call) if name in _ELEMENTWISE else None
        written = _written(call.func)
        recorded = (
            fact is None
            and name in origins.NAMES
            and lacks_data(call.result)
            and self._origins.record(name, call, mutates=bool(written))
        )
        if not recorded:
            for argument in written:
                for tensor in tensors(call[argument]):
                    self._forget(tensor)
        if fact is not None:
            self._know(call.out, fact)

    # --- rules: what an operator's result is, given what its arguments are -------------------------------------------

    def _carried(self, call: Call) -> _Fact | None:
        elements = call.out.numel()
        for kind in ("weights", "scores"):
            for tensor in call.inputs():
                fact = self._fact(tensor, kind)
                if fact is not None and fact.stored == elements:
                    return fact
        return None

    def _added(self, call: Call) -> _Fact | None:
        left, right = call["self"], call["other"]
        if not isinstance(right, torch.Tensor):
            return self._carried(call)
        a, b = self._fact(left, "scores"), self._fact(right, "scores")
        if a is not None and b is not None and a.stored == b.stored:
            # Two products summed before the softmax, as relative positions do.
            return replace(a, pairs=min(a.pairs, b.pairs), products=a.products + b.products)
        scores, bias = (a, right) if a is not None else (b, left)
        if scores is None:
            # Gradients of the same weights.
            a, b = self._fact(left, "weights"), self._fact(right, "weights")
            return a if a is not None and a == b and a.stored == call.out.numel() else None
        if scores.stored != call.out.numel() or call["alpha"] != 1:
            return None
        return self._biased(scores, bias, call.out.shape)

    def _biased(self, scores: _Fact, bias: torch.Tensor, shape: torch.Size) -> _Fact:
        return self._cut(scores, bias, shape) if bias.is_floating_point() else scores

    def _filled(self, call: Call) -> _Fact | None:
        scores, mask = self._fact(call["self"], "scores"), call["mask"]
        if scores is None and self._constant(call["value"]) == 0:
            # The gradient of the fill: zeros stay zero.
            return self._fact(call["self"], "weights")
        if scores is None or scores.stored != call.out.numel():
            return None
        return (
            self._cut(scores, mask, call.out.shape, inverted=True)
            if self._hides(call["value"], call.out.dtype)
            else scores
        )

    def _selected(self, call: Call) -> _Fact | None:
        condition, out = call["condition"], call.out
        # A mask with data is not read here, where it is made, but where it meets scores.
        for kept, left_out, negated in ((call["self"], call["other"], False), (call["other"], call["self"], True)):
            weights = self._fact(kept, "weights")
            if weights is not None and weights.stored == out.numel() and self._constant(left_out) == 0:
                return weights
            scores = self._fact(kept, "scores")
            if scores is None or scores.stored != out.numel():
                continue
            if not self._hides(left_out, out.dtype):
                if lacks_data(left_out) and self._constant(left_out) is None:
                    # It may hide or not: nothing is cut.
                    return scores
                continue
            return self._cut(scores, condition, out.shape, inverted=negated)
        return None

    def _joined(self, call: Call) -> _Fact | None:
        """Attention sinks: a column of logits beside the scores, along the last dimension."""
        joined = list(tensors(call["tensors"]))
        facts = [(fact, t.shape[-1]) for t in joined if (fact := self._fact(t, "scores")) is not None and t.dim()]
        if len(facts) != 1 or facts[0][0].sinks or call["dim"] not in (-1, call.out.dim() - 1):
            return None
        scores, columns = facts[0]
        return replace(scores, sinks=call.out.numel() - scores.elements, columns=columns)

    def _uncut(self, call: Call) -> _Fact | None:
        """The gradient of cutting the sinks off."""
        gradient = call["grad_output"]
        fact = self._fact(gradient, "scores") or self._fact(gradient, "weights")
        if fact is None or fact.sinks or call["dim"] not in (-1, call.out.dim() - 1):
            return None
        return replace(fact, sinks=call.out.numel() - fact.elements, columns=gradient.shape[-1])

    def _largest(self, call: Call) -> _Fact | None:
        """A row's largest score is subtracted before the softmax; its gradient is scattered to where it was."""
        scores = self._fact(call["self"], "scores")
        if scores is not None and isinstance(call.result, tuple):
            self._know(call.result[1], replace(scores, kind="peaks", products=()))
        return None

    def _scattered(self, call: Call) -> _Fact | None:
        found = self._facts.get(call["index"].untyped_storage()._cdata)
        if found is None or found[1].kind != "peaks" or found[1].stored != call.out.numel():
            return None
        # Elsewhere it is zero, as it was made by the backward of max.
        return replace(found[1], kind="weights")

    def _softmax(self, call: Call) -> _Fact | None:
        scores = self._fact(call["self"], "scores")
        if scores is None or scores.stored != call.out.numel():
            return None
        return self._weights(scores)

    def _masked_softmax(self, call: Call) -> _Fact | None:
        scores, mask = self._fact(call["self"], "scores"), call["mask"]
        # True hides here.
        return None if scores is None else self._weights(self._cut(scores, mask, call.out.shape, inverted=True))

    def _weights(self, scores: _Fact) -> _Fact:
        for product in scores.products:
            product(scores.pairs, scores.elements)
            self._hiding.pop(product, None)
        return replace(scores, kind="weights", products=())

    def _softmax_gradient(self, call: Call) -> _Fact | None:
        weights, gradient = self._fact(call["output"], "weights"), self._fact(call["grad_output"], "scores")
        if weights is None or weights.stored != call.out.numel():
            return None
        if gradient is not None:
            for product in gradient.products:
                product(weights.pairs, weights.elements)
        return weights

    def _cut(self, scores: _Fact, mask: torch.Tensor, shape: torch.Size, *, inverted: bool = False) -> _Fact:
        """Scores of a shape that a mask hides a part of; `inverted` says that True hides."""
        shown = self.allowed(mask) if mask.numel() else None
        if shown is None or shown == (0 if inverted else mask.numel()):
            return scores
        shown = (mask.numel() - shown if inverted else shown) * scores.elements // mask.numel()
        key, hiding = scores.products[0], Hiding(mask, inverted, shape)
        before = self._hiding.get(key)
        if before is None:
            if len(self._hiding) >= _MOST_HIDING:
                self._hiding.pop(next(iter(self._hiding)))
            self._hiding[key] = hiding
        elif before.shape == shape:
            both = self._both(before, hiding)
            if both is not None:
                shown = both * scores.elements // math.prod(torch.broadcast_shapes(before.mask.shape, mask.shape))
        # Where the intersection is not known it is at most the smaller.
        return replace(scores, pairs=min(scores.pairs, shown))

    def _both(self, first: Hiding, second: Hiding) -> int | None:
        """The entries that two masks, broadcast together, both let through."""
        if lacks_data(first.mask) and lacks_data(second.mask):
            return self._origins.shown_by_both(((first.mask, first.inverted), (second.mask, second.inverted)))
        if lacks_data(first.mask) or lacks_data(second.mask):
            return None
        return overlap(first.shown(), second.shown())

    # --- the facts ---------------------------------------------------------------------------------------------------

    def _hides(self, value: Any, dtype: torch.dtype) -> bool:
        number = self._constant(value)
        return number is not None and dtype.is_floating_point and number <= torch.finfo(dtype).min / 2

    def _constant(self, value: Any) -> float | None:
        if isinstance(value, (int, float)):
            return float(value)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            return None
        return float(value) if is_plain(value) and not value.is_meta else self._origins.value(value)

    def _fact(self, tensor: Any, kind: str) -> _Fact | None:
        if not self._facts or not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
            return None
        found = self._facts.get(tensor.untyped_storage()._cdata)
        if found is None or found[1].kind != kind:
            return None
        fact, elements = found[1], tensor.numel()
        # The same number of elements in the same storage: the tensor, or a permutation of it.
        if elements == fact.stored:
            return fact
        if elements == fact.elements and tensor.shape[-1] == fact.columns:
            return replace(fact, sinks=0, columns=0)
        return None

    def _know(self, tensor: torch.Tensor, fact: _Fact) -> None:
        if tensor.layout is not torch.strided:
            return
        if len(self._facts) > _MOST_KNOWN:
            self._facts = {key: known for key, known in self._facts.items() if not _expired(known[0])}
        storage = tensor.untyped_storage()
        held = StorageWeakRef(storage)
        self._facts[storage._cdata] = (held, fact)

    def _forget(self, tensor: torch.Tensor) -> None:
        if tensor.layout is not torch.strided:
            return
        address = tensor.untyped_storage()._cdata
        self._facts.pop(address, None)
        self._origins.forget(tensor)
        # Versions tell of most writes, but not through `.data` or in inference mode.
        if address in self._read_from:
            self._reads.clear()
            self._read_from.clear()
            self._hiding.clear()


_RULES: Final[dict[str, Callable[[Masks, Call], _Fact | None]]] = {
    "aten::add": Masks._added,
    "aten::masked_fill": Masks._filled,
    "aten::where": Masks._selected,
    "aten::cat": Masks._joined,
    "aten::slice_backward": Masks._uncut,
    "aten::max": Masks._largest,
    "aten::scatter": Masks._scattered,
    "aten::_softmax": Masks._softmax,
    "aten::_safe_softmax": Masks._softmax,
    "aten::_masked_softmax": Masks._masked_softmax,
    "aten::_softmax_backward_data": Masks._softmax_gradient,
}

WATCHED: Final = frozenset(_RULES) | _ELEMENTWISE | origins.NAMES
"""The operators, by plain name, that `Masks.observe` learns from, beside batched products and whatever writes."""

_written_by: Final[dict[int, tuple[str, ...]]] = {}


def _written(func: torch._ops.OpOverload) -> tuple[str, ...]:
    """The arguments that an operator writes to; remembered, as a schema is slow to ask."""
    found = _written_by.get(id(func))
    if found is None:
        found = _written_by[id(func)] = tuple(
            a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write
        )
    return found


def _expired(storage: StorageWeakRef) -> bool:
    return bool(storage.expired())
