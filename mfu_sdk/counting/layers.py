"""Counts a model on meta tensors with its identical layers counted once, exactly as if each had run.

A model of a hundred layers has few kinds of layers. The first layer of each kind runs; a later one of the kind only
hands on tensors of the same shapes. Then, for each kind, the model runs with two layers of it: what that adds is what
one layer costs, and it is added for every layer that did not run.

Two calls are of one kind if the layers are built alike (classes, parameters, settings, down to the last child) and are
called alike (shapes, layouts, flags, the same mask). What differs in any of these runs for itself, so a layer that is
not recognised costs time and no correctness.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from mfu_sdk.counting.dispatch import CountingMode
from mfu_sdk.records import Convention, Count, Uncounted

_OWN_NUMBER: Final = frozenset({"block_idx", "layer_id", "layer_idx", "layer_index", "layer_number"})
"""Attributes that say which layer of the model this is."""
_T = TypeVar("_T", bound=Hashable)


def count_layers_once(
    model: nn.Module,
    step: Callable[[], object],
    *,
    convention: Convention = "exact",
    mode: type[CountingMode] = CountingMode,
) -> Count:
    """Count `step()`, which runs `model` on meta tensors, under a `mode`; equal layers of it run once.

    `step` runs once, and once more for every kind of layer of which there are several, each time from no gradients;
    it must do the same every time. What it raises passes.
    """
    base, calls = _run(model, step, convention, mode, twice=None)
    kinds: defaultdict[int, list[str]] = defaultdict(list)
    for kind, layer in calls:
        kinds[kind].append(layer)
    added = []
    for kind, layers in kinds.items():
        if len(layers) > 1:
            both, _ = _run(model, step, convention, mode, twice=kind)
            added.append((both, tuple(layers[1:])))
    return _sum(base, added)


def _run(
    model: nn.Module,
    step: Callable[[], object],
    convention: Convention,
    kind_of_mode: type[CountingMode],
    twice: int | None,
) -> tuple[Count, list[tuple[int, str]]]:
    # What a gradient of an earlier run would be added to.
    model.zero_grad(set_to_none=True)
    calls = _Calls(model, twice)
    mode = kind_of_mode(model, convention=convention)
    with calls.intercepted(), mode:
        step()
    return mode.result(), calls.made


# --- which layers are alike --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Result:
    """What a layer returned: its leaves, and for those that it was given, which argument they are."""

    leaves: Sequence[Any]
    shape: Any
    given: Mapping[int, int]


@dataclass(slots=True)
class _Calls:
    """The calls of the layers of one run; those of a kind that has run before are not run."""

    model: nn.Module
    twice: int | None
    made: list[tuple[int, str]] = field(default_factory=list)
    # Kinds are numbered as they come, which is the same in every run.
    _kinds: dict[Hashable, int] = field(default_factory=dict)
    _ran: Counter[int] = field(default_factory=Counter)
    _results: dict[int, _Result] = field(default_factory=dict)
    # Tensors that came in, in order: two layers that get the same mask get the same number.
    _numbers: dict[int, tuple[int, Tensor]] = field(default_factory=dict)

    @contextmanager
    def intercepted(self) -> Iterator[None]:
        found = list(_layers(self.model))
        for name, layer, of in found:
            listed = [values for values in self._listed() if len(values) >= of]
            layer.forward = partial(self._call, name, _built(layer, listed), layer.forward)
        try:
            yield
        finally:
            for _, layer, _ in found:
                # The class's own shows again.
                del layer.__dict__["forward"]

    def _listed(self) -> list[Sequence[Any]]:
        # What the configuration says layer by layer, which a layer may look up by its number while it runs.
        config = getattr(self.model, "config", None)
        parts = [config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", {}))]
        values = (value for part in parts if part is not None for value in vars(part).values())
        return [value for value in values if isinstance(value, (list, tuple))]

    def _call(self, name: str, built: Hashable, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given, _ = tree_flatten((args, kwargs))
        called = tuple(self._described(value, i == 0) for i, value in enumerate(given))
        kind = self._kinds.setdefault((built, tuple(kwargs), called), len(self._kinds))
        self.made.append((kind, name))
        if self._ran[kind] == (2 if kind == self.twice else 1):
            return self._handed_on(self._results[kind], given)
        self._ran[kind] += 1
        result = forward(*args, **kwargs)
        leaves, shape = tree_flatten(result)
        places = {id(value): i for i, value in enumerate(given) if isinstance(value, Tensor)}
        self._results[kind] = _Result(
            leaves, shape, {i: places[id(leaf)] for i, leaf in enumerate(leaves) if id(leaf) in places}
        )
        return result

    def _described(self, value: Any, first: bool) -> Hashable:
        if isinstance(value, Tensor):
            # The hidden states come first, and are another tensor in every layer.
            number = -1 if first else self._numbers.setdefault(id(value), (len(self._numbers), value))[0]
            return number, value.shape, value.stride(), value.dtype, value.requires_grad
        if isinstance(value, (bool, int, float, str)):
            return value
        # mypy does not take a class for hashable.
        return cast("Hashable", type(value))

    def _handed_on(self, result: _Result, given: Sequence[Any]) -> Any:
        leaves = [given[result.given[i]] if i in result.given else leaf for i, leaf in enumerate(result.leaves)]
        made = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and i not in result.given]
        live = [value for value in given if isinstance(value, Tensor) and value.requires_grad]
        # As many and as large, from the same inputs: the backward goes on through it.
        new = _HandedOn.apply([result.leaves[i] for i in made], *live)  # type: ignore[no-untyped-call]
        for i, tensor in zip(made, new, strict=True):
            leaves[i] = tensor
        return tree_unflatten(leaves, result.shape)


class _HandedOn(torch.autograd.Function):
    """Tensors like those that a layer would have returned, and gradients like those that it would have sent."""

    @staticmethod
    def forward(ctx: Any, like: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.inputs = [torch.empty_like(tensor) for tensor in inputs]
        made = tuple(torch.empty_like(tensor) for tensor in like)
        constant = (new for new, old in zip(made, like, strict=True) if not old.requires_grad)
        ctx.mark_non_differentiable(*constant)
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Laid out as it came, where it can be: what runs before the layer may copy what is laid out otherwise.
        given = {grad.shape: grad for grad in reversed(grads) if grad is not None}
        return None, *(given.get(tensor.shape, tensor) for tensor in ctx.inputs)


def _layers(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module, int]]:
    """The members of the outermost lists of several modules, with their names and how many the list has."""
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList) and len(child) > 1:
            yield from ((f"{prefix}{name}.{i}", layer, len(child)) for i, layer in child.named_children())
        else:
            yield from _layers(child, f"{prefix}{name}.")


def _built(module: nn.Module, listed: Sequence[Sequence[Any]]) -> Hashable:
    """All that a module is made of, but for its values and which layer it is."""
    tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    attributes = []
    for name, value in vars(module).items():
        if name in _OWN_NUMBER and isinstance(value, int):
            attributes.append(repr([values[value] for values in listed if value < len(values)]))
        elif not name.startswith("_") and isinstance(value, (bool, int, float, str, tuple, list, torch.dtype)):
            attributes.append(f"{name}={value!r}")
    return (
        type(module),
        tuple((name, tensor.shape, tensor.dtype, tensor.requires_grad) for name, tensor in tensors),
        tuple(attributes),
        tuple((name, _built(child, listed)) for name, child in module.named_children()),
    )


# --- sums of counts ----------------------------------------------------------------------------------------------


def _sum(base: Count, added: Sequence[tuple[Count, tuple[str, ...]]]) -> Count:
    """`base` with, for each count that holds one layer more than it, that layer for all of the layers that are named.

    The first of the names is the layer that ran.
    """
    if not added:
        return base

    def total(of: Callable[[Count], int]) -> int:
        return of(base) + sum((of(more) - of(base)) * len(layers) for more, layers in added)

    def table(of: Callable[[Count], Mapping[_T, int]], named: Callable[[_T, str, str], _T]) -> dict[_T, int]:
        sums = Counter(of(base))
        for more, (ran, *others) in added:
            one = Counter(of(more))
            one.subtract(of(base))
            for layer in (ran, *others):
                for key, value in one.items():
                    sums[named(key, ran, layer)] += value
        return {key: value for key, value in sums.items() if value}

    root = next(iter(base.by_module), "").partition(".")[0]

    def module(name: str, ran: str, layer: str) -> str:
        inside = f"{name}.".startswith(f"{root}.{ran}.")
        return f"{root}.{layer}{name[len(root) + 1 + len(ran) :]}" if inside else name

    uncounted = table(
        lambda count: {(entry.op, entry.module): entry.calls for entry in count.uncounted},
        lambda key, ran, layer: (key[0], module(key[1], ran, layer)),
    )
    ops = table(lambda count: {replace(op, calls=0): op.calls for op in count.ops}, lambda key, *_: key)
    moved = total(lambda count: count.bytes_moved)
    priced = total(lambda count: round(count.coverage * count.bytes_moved))
    return replace(
        base,
        model_flops=total(lambda count: count.model_flops),
        hardware_flops=total(lambda count: count.hardware_flops),
        forward_flops=total(lambda count: count.forward_flops),
        backward_flops=total(lambda count: count.backward_flops),
        recompute_flops=total(lambda count: count.recompute_flops),
        optimizer_flops=total(lambda count: count.optimizer_flops),
        attention_flops_exact=total(lambda count: count.attention_flops_exact),
        attention_flops_full=total(lambda count: count.attention_flops_full),
        by_dtype=table(lambda count: count.by_dtype, lambda key, *_: key),
        by_module=table(lambda count: count.by_module, module),
        by_op=table(lambda count: count.by_op, lambda key, *_: key),
        uncounted=tuple(Uncounted(op, calls, where) for (op, where), calls in sorted(uncounted.items())),
        coverage=priced / moved if moved else base.coverage,
        bytes_moved=moved,
        comm_bytes=table(lambda count: count.comm_bytes, lambda key, *_: key),
        ops=tuple(replace(op, calls=calls) for op, calls in ops.items()),
    )
