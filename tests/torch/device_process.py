"""Counts steps whose tensors lie on a device of their own, as a GPU's do, and prints the counts as JSON.

The device computes nothing: torch lets one be made in Python, and its operators give tensors of the right shapes. What
matters is that torch's engine runs a device's backward in a thread that it keeps for the device, which numbers the
autograd nodes that it makes itself. A process of its own, because torch knows one such device, and for good.
"""

import json
import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree, backend_registration
from torch.utils.checkpoint import checkpoint

import mfu_sdk as mfu
from mfu_sdk.counting.dispatch import CountingMode
from mfu_sdk.records import Count

ROWS, WIDE = 4, 8
PRODUCT = 2 * ROWS * WIDE * WIDE
# The price of a function, forward and backward, that nothing else costs.
FORWARD, BACKWARD = 100 * PRODUCT, 300 * PRODUCT


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16]


ran_in: set[int] = set()


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """What `op` gives, by shapes alone."""
    ran_in.add(threading.get_ident())

    def without_data(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty(value.shape, dtype=value.dtype, device="meta")
        return torch.device("meta") if isinstance(value, torch.device) else value

    shapes, named = _pytree.tree_map(without_data, (args, kwargs))
    with torch.no_grad():
        result = op(*shapes, **named)
    if op._schema.is_mutable:
        return args[0]
    return _pytree.tree_map(lambda each: on_device(each) if isinstance(each, Tensor) else each, result)


def on_device(like: Tensor) -> Tensor:
    made: Tensor = torch._C._acc.create_empty_tensor(tuple(like.shape), like.dtype)
    return made


def numbers(shape: tuple[int, ...], *, device: bool, grad: bool = True) -> Tensor:
    made = torch.randn(*shape)
    return (on_device(made) if device else made).requires_grad_(grad)


class Layer(nn.Module):
    """A product. Its weight is no parameter, which on such a device there is none of."""

    def __init__(self, *, device: bool) -> None:
        super().__init__()
        self._weight = [numbers((WIDE, WIDE), device=device)]

    def forward(self, x: Tensor) -> Tensor:
        return x @ self._weight[0]


class Written(torch.autograd.Function):
    """A product with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grad @ weight.t(), x.t() @ grad


class Priced(Written):
    """The same, whose price the user has said."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight


class Net(nn.Module):
    """A layer, two that may be checkpointed, a function in that checkpoint and one after it, and a layer."""

    def __init__(self, function: type[Written] | None, reentrant: bool | None, *, device: bool) -> None:
        super().__init__()
        self.first, self.last = Layer(device=device), Layer(device=device)
        self.middle = nn.ModuleList([Layer(device=device), Layer(device=device)])
        self._weights = [numbers((WIDE, WIDE), device=device) for _ in range(2)]
        self._function, self._reentrant = function, reentrant

    def _within(self, x: Tensor) -> Tensor:
        y = self.middle[0](x)
        z: Tensor = self.middle[1](y * y)
        return z if self._function is None else self._function.apply(z, self._weights[0])  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self._reentrant is None:
            y = self._within(y)
        else:
            y = checkpoint(self._within, y, use_reentrant=self._reentrant, preserve_rng_state=False)
        if self._function is not None:
            y = self._function.apply(y, self._weights[1])  # type: ignore[no-untyped-call]
        z: Tensor = self.last(y)
        return z


class Align(torch.autograd.Function):
    """Makes as many nodes in its backward's thread as it takes for that to number as the program's does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, number: int) -> Tensor:
        ctx.number = number
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        one = torch.ones(1, requires_grad=True)
        with torch.enable_grad():
            while torch._C._autograd._get_sequence_nr() < ctx.number:
                _ = one * 2
        return grad, None


def counted(net: Net, *, device: bool) -> Count:
    x = numbers((ROWS, WIDE), device=device)
    # Two nodes are made until the step begins.
    ahead = torch._C._autograd._get_sequence_nr() + 2
    Align.apply(numbers((ROWS, WIDE), device=device), ahead).sum().backward()  # type: ignore[no-untyped-call]
    assert torch._C._autograd._get_sequence_nr() == ahead
    mode = CountingMode(net)
    ran_in.clear()
    with mode:
        net(x).sum().backward()
    assert len(ran_in) == (2 if device else 0), "the engine has no thread of its own for this device"
    return mode.result()


def told(count: Count) -> dict[str, Any]:
    return {
        "flops": [
            flops / PRODUCT for flops in (count.forward_flops, count.backward_flops, count.recompute_flops)
        ],
        "modules": {name: flops / PRODUCT for name, flops in count.by_module.items()},
        "uncounted": [entry.op for entry in count.uncounted],
    }  # fmt: skip


def main() -> None:
    backend_registration._setup_privateuseone_for_python_backend("pencil", backend_module=_Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(_run, "PrivateUse1")
    mfu.register_flops(Priced, lambda *_, out: FORWARD, backward=lambda *_, out: BACKWARD)
    found = {}
    for function in (None, Written, Priced):
        for again, reentrant in {"plain": None, "reentrant": True, "not reentrant": False}.items():
            name = "no function" if function is None else function.__name__
            found[f"{name}, {again}"] = [
                told(counted(Net(function, reentrant, device=device), device=device)) for device in (False, True)
            ]
    print(json.dumps(found))


main()
