"""A second opinion on a model's FLOPs: from modules, their weights and what functions are given, never from operators.

It knows nothing of the package that it judges. Weights count where their module is called, other products where
Python asks for them, and attention is every product that leads into a softmax or comes out of one, over the pairs that
were materialised and not masked. The backward is the chain rule: a product again for each operand that wants a
gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass
class Reckoned:
    """FLOPs by the convention of the count: attention apart, over pairs let through and over all."""

    dense_forward: int = 0
    dense_backward: int = 0
    exact_forward: int = 0
    exact_backward: int = 0
    full: int = 0

    @property
    def forward(self) -> int:
        return self.dense_forward + self.exact_forward

    @property
    def backward(self) -> int:
        return self.dense_backward + self.exact_backward

    def dense(self, flops: int, *operands: Any) -> None:
        self.dense_forward += flops
        self.dense_backward += flops * _gradients(operands)

    def attention(self, exact: int, full: int, *operands: Any) -> None:
        self.exact_forward += exact
        self.exact_backward += exact * _gradients(operands)
        self.full += full * (1 + _gradients(operands))


def _gradients(operands: tuple[Any, ...]) -> int:
    """How many of the operands get a gradient, if the backward runs at all."""
    return sum(isinstance(operand, Tensor) and operand.requires_grad for operand in operands)


@dataclass(eq=False)
class _Scores:
    """A product whose result may turn out to be attention scores."""

    flops: int
    elements: int
    operands: tuple[Any, ...]


@dataclass
class Oracle:
    """Reckons what a model does while the context is entered."""

    model: nn.Module
    reckoned: Reckoned = field(default_factory=Reckoned)

    def __enter__(self) -> Reckoned:
        self._inside = 0
        self._hooks = []
        for module in self.model.modules():
            rule = _rule(module)
            if rule is not None:
                self._hooks += [
                    module.register_forward_pre_hook(self._enter),
                    module.register_forward_hook(self._leave(rule), with_kwargs=True),
                ]
        self._functions = _Functions(self)
        self._functions.__enter__()
        return self.reckoned

    def __exit__(self, *error: object) -> None:
        self._functions.__exit__(*error)
        self._functions.settle()
        for hook in self._hooks:
            hook.remove()

    @property
    def inside(self) -> bool:
        """Whether a module runs whose products its own rule reckons."""
        return self._inside > 0

    def _enter(self, *_: object) -> None:
        self._inside += 1

    def _leave(self, rule: Callable[..., None]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
            self._inside -= 1
            if not self._inside:
                rule(self.reckoned, module, args, kwargs, out)

        return hook


# --- modules with weights ------------------------------------------------------------------------------------------


def _rule(module: nn.Module) -> Callable[..., None] | None:
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        return _linear
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return _convolution
    if isinstance(module, nn.MultiheadAttention):
        return _multihead
    if type(module).__name__.endswith("Experts") and not isinstance(module, nn.ModuleList):
        return _experts
    return None


def _linear(found: Reckoned, module: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    x = args[0] if args else next(iter(kwargs.values()))
    found.dense(2 * x.numel() // x.shape[-1] * module.weight.numel(), x, module.weight)


def _convolution(found: Reckoned, module: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    taps = module.in_channels // module.groups * math.prod(module.kernel_size)
    found.dense(2 * out.numel() * taps, args[0], module.weight)


def _multihead(found: Reckoned, module: Any, args: Any, kwargs: Any, out: Any) -> None:
    assert module.batch_first
    assert kwargs.get("attn_mask") is None
    q, k, v = args
    width = module.embed_dim
    for x in (q, k, v):
        found.dense(2 * x.numel() * width, x, module.in_proj_weight)
    pairs = q.shape[0] * q.shape[1] * k.shape[1]
    # Scores, then their product with the values: all four operands come from weights.
    for _ in range(2):
        found.attention(2 * pairs * width, 2 * pairs * width, module.in_proj_weight, module.in_proj_weight)
    found.dense(2 * q.numel() * width, module.in_proj_weight, module.out_proj.weight)


def _experts(found: Reckoned, module: Any, args: Any, kwargs: Any, out: Any) -> None:
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    hidden = given[0]
    if len(given) == 1:
        # Llama 4 gives every expert a copy of every token.
        rows = hidden.numel() // hidden.shape[-1]
    else:
        rows = next(value for value in given[1:] if not value.is_floating_point()).numel()
    weights = [weight for weight in module.parameters() if weight.dim() == 3]
    assert weights, f"{type(module).__name__} keeps its experts in another way"
    for i, weight in enumerate(weights):
        # Their order does not matter: only the first product's input may be without gradient.
        live = hidden if i == 0 else weight
        found.dense(2 * rows * weight[0].numel(), live, weight)


# --- products of activations ---------------------------------------------------------------------------------------


class _Functions(TorchFunctionMode):
    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self.oracle = oracle
        self.found = oracle.reckoned
        self.pending: list[_Scores] = []
        # Attention weights, by the address of their data; held, so that no other tensor gets it.
        self.weights: dict[int, tuple[Tensor, int]] = {}

    def settle(self) -> None:
        """Products that no softmax followed were none of attention's."""
        for product in self.pending:
            self.found.dense(product.flops, *product.operands)
        self.pending.clear()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.oracle.inside:
            return out
        if func is F.scaled_dot_product_attention:
            self._attention(*args, **kwargs)
        elif func in (torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, torch.mm):
            self._product(args[0], args[1], out)
        elif func in (torch.baddbmm, Tensor.baddbmm):
            left, right = (kwargs.get(f"batch{i}", args[i] if len(args) > i else None) for i in (1, 2))
            self._product(left, right, out)
        elif func in (torch.addmm, Tensor.addmm):
            self._product(args[1], args[2], out)
        elif func is F.linear:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self.found.dense(2 * out.numel() * args[0].shape[-1], args[0], weight)
        elif func is torch.einsum:
            operands = args[1] if isinstance(args[1], (list, tuple)) else args[1:]
            assert len(operands) == 2, "an order of contraction is asked for"
            self._einsum(args[0].replace(" ", ""), *operands, out)
        elif func in (F.conv1d, F.conv2d, F.conv3d):
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self.found.dense(2 * out.numel() * weight[0].numel(), args[0], weight)
        elif func in (F.softmax, torch.softmax, Tensor.softmax):
            self._softmax(args[0], out)
        elif func in (F.dropout, Tensor.to, Tensor.type_as, Tensor.view, Tensor.reshape, Tensor.expand, Tensor.mul,
                      Tensor.contiguous, torch.Tensor.__mul__, torch.clone) and isinstance(out, Tensor):  # fmt: skip
            self._carried(args[0], out)
        elif func is Tensor.__getitem__:
            self._cut(args[0], out)
        return out

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, **_: Any,
    ) -> None:  # fmt: skip
        shape = (*q.shape[:-1], k.shape[-2])
        allowed = torch.ones(shape, dtype=torch.bool)
        if is_causal:
            allowed &= torch.ones(shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None:
            allowed &= attn_mask if attn_mask.dtype is torch.bool else attn_mask > torch.finfo(attn_mask.dtype).min / 2
        pairs = int(allowed.sum())
        self.found.attention(2 * pairs * q.shape[-1], 2 * allowed.numel() * q.shape[-1], q, k)
        # Its weights want a gradient if a query or a key does.
        weights = q if q.requires_grad else k
        self.found.attention(2 * pairs * v.shape[-1], 2 * allowed.numel() * v.shape[-1], weights, v)

    def _product(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        flops = 2 * out.numel() * left.shape[-1]
        for weights, width in ((left, right.shape[-1]), (right, left.shape[-2] if left.dim() > 1 else 1)):
            known = self.weights.get(weights.data_ptr())
            if known is not None and known[0].numel() == weights.numel():
                self.found.attention(2 * known[1] * width, flops, left, right)
                return
        self.pending.append(_Scores(flops, out.numel(), (left, right)))

    def _einsum(self, equation: str, left: Tensor, right: Tensor, out: Tensor) -> None:
        a, b = equation.partition("->")[0].split(",")
        sizes: dict[str, int] = {}
        for letters, tensor in ((a, left), (b, right)):
            sizes |= dict(zip(reversed(letters.replace("...", "")), reversed(tensor.shape), strict=False))
        inner = math.prod(sizes[letter] for letter in set(a) & set(b) - set(equation.partition("->")[2]) - {"."})
        self.pending.append(_Scores(2 * out.numel() * inner, out.numel(), (left, right)))

    def _softmax(self, scores: Tensor, out: Tensor) -> None:
        made = [product for product in self.pending if product.elements == scores.numel()][-1:]
        if not made:
            # Attention with a sink has one column more than its product.
            rows = scores.numel() // scores.shape[-1]
            made = [product for product in self.pending if product.elements == scores.numel() - rows][-1:]
            scores = scores[..., :-1] if made else scores
        if not made or scores.dim() < 3:
            return
        (product,) = made
        self.pending.remove(product)
        pairs = int((scores > torch.finfo(scores.dtype).min / 2).sum())
        self.found.attention(product.flops * pairs // scores.numel(), product.flops, *product.operands)
        self.weights[out.data_ptr()] = out, pairs

    def _carried(self, before: Any, after: Tensor) -> None:
        known = self.weights.get(before.data_ptr()) if isinstance(before, Tensor) else None
        if known is not None and known[0].numel() == after.numel():
            self.weights[after.data_ptr()] = after, known[1]

    def _cut(self, before: Tensor, after: Any) -> None:
        known = self.weights.get(before.data_ptr()) if isinstance(before, Tensor) else None
        # Without the sink's column the pairs are those of the scores.
        if known is not None and isinstance(after, Tensor) and after.shape[-1] == before.shape[-1] - 1:
            self.weights[after.data_ptr()] = after, known[1]
