"""Recognises attention in products, masks and softmaxes, so that it costs what fused attention costs.

What is known is a fact about a storage: "these are scores of that product", "these weights are zero outside n pairs",
"this mask lets n entries through". Scores become known when a batched product is made, lose pairs when a mask is added,
filled or selected into them, and are priced when a softmax follows; the softmax's result, and its gradient, are
zero outside the pairs, so products with them cost the pairs only. A pair is masked if its boolean is False or its
bias is at most finfo.min / 2. Masks with data are read, which waits for the device; a counted step may. Without data
(meta, fake) ones → tril → where is followed, as SDPA's own math does it. What is not recognised counts in full.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from mfu_sdk.counting.attention import pairs
from mfu_sdk.counting.call import Call, tensors

Reprice = Callable[[int, int], None]
"""Called with (pairs let through, pairs in all) when a product proves to be attention scores."""

_ELEMENTWISE: Final = frozenset(
    f"aten::{name}"
    for name in ("mul", "div", "neg", "tanh", "sub", "_to_copy", "clone", "native_dropout", "native_dropout_backward")
)


@dataclass(frozen=True, slots=True)
class _Fact:
    kind: Literal["constant", "mask", "scores", "weights"]
    elements: int
    pairs: int = 0
    value: float = 0.0
    products: tuple[Reprice, ...] = ()


class Masks:
    """What is known about the masks, scores and weights of a counted step."""

    def __init__(self) -> None:
        # A storage's address is its own for as long as the weak reference is held.
        self._facts: dict[int, tuple[StorageWeakRef, _Fact]] = {}

    def clear(self) -> None:
        """Forget everything."""
        self._facts.clear()

    def pairs_in(self, tensor: torch.Tensor) -> int | None:
        """How many elements of `tensor` a mask has not made zero, if that is known."""
        fact = self._fact(tensor, "weights")
        return None if fact is None else fact.pairs

    def allowed(self, mask: torch.Tensor) -> int | None:
        """How many entries of `mask` let their pair through, or None if that cannot be known."""
        fact = self._fact(mask, "mask")
        if fact is not None:
            return fact.pairs
        count = _read(mask)
        if count is not None and mask.numel() * mask.element_size() == mask.untyped_storage().nbytes():
            self._know(mask, _Fact("mask", mask.numel(), count))
        return count

    def observe(self, name: str, call: Call, product: Reprice | None) -> None:
        """Learn from one operator that has run; `product` reprices it where it was a batched product."""
        if product is not None:
            fact: _Fact | None = _Fact("scores", call.out.numel(), call.out.numel(), products=(product,))
        else:
            rule = _RULES.get(name)
            fact = rule(self, call) if rule else self._carried(call) if name in _ELEMENTWISE else None
        if call.func._schema.is_mutable and self._facts:
            for argument in call.func._schema.arguments:
                if argument.alias_info is not None and argument.alias_info.is_write:
                    for tensor in tensors(call[argument.name]):
                        self._forget(tensor)
        if fact is not None:
            self._know(call.out, fact)

    # --- rules: what an operator's result is, given what its arguments are -------------------------------------------

    def _carried(self, call: Call) -> _Fact | None:
        """Elementwise: scores stay scores of their product, zeros stay zero."""
        elements = call.out.numel()
        for kind in ("weights", "scores"):
            for tensor in call.inputs():
                fact = self._fact(tensor, kind)
                if fact is not None and fact.elements == elements:
                    return fact
        return None

    def _added(self, call: Call) -> _Fact | None:
        left, right = call["self"], call["other"]
        if not isinstance(right, torch.Tensor):
            return self._carried(call)
        a, b = self._fact(left, "scores"), self._fact(right, "scores")
        if a is not None and b is not None and a.elements == b.elements:
            # Two products summed before the softmax, as relative positions do.
            return replace(a, pairs=min(a.pairs, b.pairs), products=a.products + b.products)
        scores, bias = (a, right) if a is not None else (b, left)
        if scores is None or scores.elements != call.out.numel() or call["alpha"] != 1:
            return None
        count = self.allowed(bias) if bias.is_floating_point() and bias.numel() else None
        return scores if count is None else _cut(scores, count * scores.elements // bias.numel())

    def _filled(self, call: Call) -> _Fact | None:
        scores, mask = self._fact(call["self"], "scores"), call["mask"]
        if scores is None and self._constant(call["value"]) == 0:
            # The gradient of the fill: zeros stay zero.
            return self._fact(call["self"], "weights")
        if scores is None or scores.elements != call.out.numel():
            return None
        hidden = self.allowed(mask) if self._hides(call["value"], call.out.dtype) else 0
        return scores if hidden is None else _cut(scores, scores.elements - hidden * scores.elements // mask.numel())

    def _selected(self, call: Call) -> _Fact | None:
        condition, out = call["condition"], call.out
        # A mask with data is not read here, where it is made, but where it meets scores.
        for kept, left_out, negated in ((call["self"], call["other"], False), (call["other"], call["self"], True)):
            weights = self._fact(kept, "weights")
            if weights is not None and weights.elements == out.numel() and self._constant(left_out) == 0:
                return weights
            scores = self._fact(kept, "scores")
            if scores is not None and scores.elements != out.numel():
                scores = None
            bias = scores is None and not _has_data(out) and self._constant(kept) is not None
            if (scores is None and not bias) or not self._hides(left_out, out.dtype):
                continue
            true = self.allowed(condition)
            if true is None:
                return scores
            true = true * out.numel() // max(condition.numel(), 1)
            count = out.numel() - true if negated else true
            return _cut(scores, count) if scores is not None else _Fact("mask", out.numel(), count)
        return None

    def _softmax(self, call: Call) -> _Fact | None:
        scores = self._fact(call["self"], "scores")
        if scores is None or scores.elements != call.out.numel():
            return None
        for product in scores.products:
            product(scores.pairs, scores.elements)
        return _Fact("weights", scores.elements, scores.pairs)

    def _softmax_gradient(self, call: Call) -> _Fact | None:
        weights, gradient = self._fact(call["output"], "weights"), self._fact(call["grad_output"], "scores")
        if weights is None or weights.elements != call.out.numel():
            return None
        if gradient is not None:
            for product in gradient.products:
                product(weights.pairs, weights.elements)
        return weights

    def _constant_made(self, call: Call) -> _Fact | None:
        value = call.get("fill_value", call.get("s", 1))
        return _Fact("constant", call.out.numel(), value=float(value)) if isinstance(value, (int, float)) else None

    def _zeros_made(self, call: Call) -> _Fact | None:
        return _Fact("constant", call.out.numel(), value=0.0)

    def _triangle(self, call: Call) -> _Fact | None:
        constant = self._fact(call["self"], "constant")
        if constant is None or call.out.dim() != 2:
            return None
        rows, columns = call.out.shape
        diagonal = call["diagonal"]
        lower = call.func._schema.name.startswith("aten::tril")
        below = pairs(rows, columns, window=(None, diagonal if lower else diagonal - 1))
        kept = below if lower else rows * columns - below
        if call.out.dtype is torch.bool:
            return _Fact("mask", constant.elements, kept if constant.value else 0)
        if self._hides(constant.value, call.out.dtype):
            return _Fact("mask", constant.elements, constant.elements - kept)
        return None

    # --- the facts ---------------------------------------------------------------------------------------------------

    def _hides(self, value: Any, dtype: torch.dtype) -> bool:
        number = self._constant(value)
        return number is not None and dtype.is_floating_point and number <= torch.finfo(dtype).min / 2

    def _constant(self, value: Any) -> float | None:
        if isinstance(value, (int, float)):
            return float(value)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            return None
        fact = self._fact(value, "constant")
        if fact is not None:
            return fact.value
        return float(value) if _has_data(value) else None

    def _fact(self, tensor: Any, kind: str) -> _Fact | None:
        if not self._facts or not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
            return None
        found = self._facts.get(tensor.untyped_storage()._cdata)
        # The same number of elements in the same storage: the tensor, or a permutation of it.
        return found[1] if found and found[1].kind == kind and found[1].elements == tensor.numel() else None

    def _know(self, tensor: torch.Tensor, fact: _Fact) -> None:
        if tensor.layout is not torch.strided:
            return
        if len(self._facts) > 4096:
            self._facts = {key: known for key, known in self._facts.items() if not _expired(known[0])}
        storage = tensor.untyped_storage()
        held = StorageWeakRef(storage)
        self._facts[storage._cdata] = (held, fact)

    def _forget(self, tensor: torch.Tensor) -> None:
        if tensor.layout is torch.strided:
            self._facts.pop(tensor.untyped_storage()._cdata, None)


_RULES: Final[dict[str, Callable[[Masks, Call], _Fact | None]]] = {
    "aten::add": Masks._added,
    "aten::masked_fill": Masks._filled,
    "aten::where": Masks._selected,
    "aten::_softmax": Masks._softmax,
    "aten::_safe_softmax": Masks._softmax,
    "aten::_softmax_backward_data": Masks._softmax_gradient,
    "aten::ones": Masks._constant_made,
    "aten::full": Masks._constant_made,
    "aten::zeros": Masks._zeros_made,
    "aten::scalar_tensor": Masks._constant_made,
    "aten::tril": Masks._triangle,
    "aten::triu": Masks._triangle,
}


def _cut(scores: _Fact, count: int) -> _Fact:
    # Two masks may overlap: their intersection is at most the smaller.
    return replace(scores, pairs=min(scores.pairs, count))


def _expired(storage: StorageWeakRef) -> bool:
    return bool(storage.expired())


def _has_data(tensor: torch.Tensor) -> bool:
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.is_meta


def _read(mask: torch.Tensor) -> int | None:
    """How many entries let their pair through, read from the device; broadcast dimensions are read once."""
    if not _has_data(mask) or mask.layout is not torch.strided or mask.is_complex():
        return None
    once = mask.detach()
    for dim, stride in enumerate(mask.stride()):
        if stride == 0:
            once = once.narrow(dim, 0, min(1, mask.shape[dim]))
    if mask.is_floating_point():
        once = once > torch.finfo(mask.dtype).min / 2
    read = int(once.count_nonzero())
    return read * mask.numel() // max(once.numel(), 1)
