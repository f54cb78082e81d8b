"""What fvcore says of a call of a model, which it traces anew; whatever that changes is put back."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from mfu_sdk.counting.call import tensors
from mfu_sdk.counting.lines import Line, LinedMode

Exclusive = Mapping[tuple[str, str], int]
"""A number for each (module, operator), of the operators that the module runs outside of its children."""


@dataclass(frozen=True, slots=True)
class FvcoreSaw:
    """What fvcore said of one forward, in its own units, what it does not support, and our lines of that forward.

    `broadcast` is how many FLOPs its handle for `matmul` adds by leaving out a batch that only the right operand has.
    """

    counts: Exclusive
    unsupported: Exclusive
    broadcast: int
    lines: tuple[Line, ...]


@dataclass(slots=True)
class Forward:
    """A call of a model, as it was made: fvcore traces it again."""

    model: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    grad: bool = field(default_factory=torch.is_grad_enabled)
    autocast: tuple[tuple[str, torch.dtype], ...] = field(
        default_factory=lambda: tuple(
            (kind, torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)
        )
    )

    @contextmanager
    def conditions(self) -> Iterator[None]:
        """Gradients and autocast as at the call; the random state and the model's buffers are put back after it."""
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng())
            stack.enter_context(torch.set_grad_enabled(self.grad))
            for kind, dtype in self.autocast:
                # A weight that was cast before would be a constant to a tracer.
                stack.enter_context(torch.autocast(kind, dtype, cache_enabled=False))
            try:
                yield
            finally:
                with torch.no_grad():
                    for buffer, kept in buffers:
                        buffer.copy_(kept)


def ask_fvcore(forward: Forward) -> FvcoreSaw | str:
    """Trace the call again under fvcore, after counting it again ourselves; a note where that cannot be done."""
    try:
        with warnings.catch_warnings():
            # Its dependencies use what newer versions of Python deprecate.
            warnings.simplefilter("ignore")
            from fvcore.nn import FlopCountAnalysis  # type: ignore[import-untyped]  # it has no stubs
    except ImportError as missing:
        return f"fvcore: {missing.name} is not installed; pip install mfu-sdk[verify]"
    adapter = _Adapter(forward)
    held = tuple(_detached(tensor) for tensor in adapter.tensors)
    ours = LinedMode(adapter)
    try:
        with forward.conditions(), ours:
            adapter(*held)
        with forward.conditions(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            analysis = FlopCountAnalysis(adapter, held)
            analysis.unsupported_ops_warnings(enabled=False).uncalled_modules_warnings(enabled=False)
            analysis.tracer_warnings("none")
            broadcast = _Broadcast(analysis)
            counts = _exclusive(analysis.by_module_and_operator())
            names = {name for name, _ in adapter.named_modules()}
            unsupported = _exclusive({name: analysis.unsupported_ops(name) for name in names})
    except Exception as error:  # noqa: BLE001 - whatever a tracer or a handle of fvcore's makes of a user's model
        reason = (str(error).strip() or "no message").splitlines()[0]
        return f"fvcore: could not analyse {type(forward.model).__name__} ({type(error).__name__}: {reason[:160]})"
    return FvcoreSaw(counts, unsupported, broadcast.flops, ours.lines())


class _Broadcast:
    """Watches fvcore's handle for `matmul`, which multiplies the left operand's size by the right's columns."""

    def __init__(self, analysis: Any) -> None:
        self.flops = 0
        self._theirs = analysis._op_handles["aten::matmul"]
        analysis.set_op_handle("aten::matmul", self._handle)

    def _handle(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
        said = self._theirs(inputs, outputs)
        out, inner = outputs[0].type().sizes(), inputs[0].type().sizes()[-1]
        self.flops += 2 * (int(said) - math.prod(out) * inner)
        return said


class _Adapter(torch.nn.Module):
    """A model that takes and returns tensors only, as tracing wants it; every other argument is kept as it was."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        # Neither fvcore nor a tracer goes into compiled code.
        self.model = getattr(forward.model, "_orig_mod", forward.model)
        leaves, self._spec = tree_flatten((forward.args, dict(forward.kwargs)))
        self._leaves = leaves
        self._places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.tensors = [leaves[place] for place in self._places]

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        # A cache among the arguments grows in each call.
        leaves = [leaf if isinstance(leaf, Tensor) else copy.deepcopy(leaf) for leaf in self._leaves]
        for place, tensor in zip(self._places, given, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self._spec)
        return tuple(floats_in(self.model(*args, **kwargs)))


def floats_in(value: Any) -> Iterator[Tensor]:
    """Every floating-point tensor in what a model returned: through lists, tuples, mappings and dataclasses."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from floats_in(item)
    else:
        yield from (tensor for tensor in tensors(value) if tensor.is_floating_point() or tensor.is_complex())


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _exclusive(inclusive: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], int]:
    """By (module, operator), from sums that hold each module's children too."""
    own = {(module, op): int(number) for module, ops in inclusive.items() for op, number in ops.items()}
    for module, ops in inclusive.items():
        if module:
            parent = module.rpartition(".")[0]
            for op, number in ops.items():
                own[parent, op] = own.get((parent, op), 0) - int(number)
    return {key: number for key, number in own.items() if number}
