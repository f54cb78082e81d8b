"""`mfu.register_flops`: which table a user's formula goes to, by what its target is."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

from mfu_sdk.counting import functions, registry
from mfu_sdk.counting.formulas import Cost
from mfu_sdk.counting.functions import FunctionCost, FunctionPrice, KernelPrice
from mfu_sdk.counting.registry import Formula, checked, say_failed, shapes
from mfu_sdk.errors import ConfigurationError

# After the registry, which says what to install where torch is missing.
import torch  # isort: skip
from torch._library.custom_ops import CustomOpDef  # isort: skip


def register_flops(target: object, formula: Formula, *, backward: Formula | None = None, raw: bool = False) -> None:
    """Price a piece of work, before any formula of ours: from here on each call of `target` costs `formula(...)` FLOPs.

    `target` is one of

    - an operator (`torch.ops.lib.op`), one overload of it (`torch.ops.lib.op.default`), what
      `torch.library.custom_op` returned, or a name ("lib::op", "lib::op.default"), which may be registered before the
      library is loaded. The formula gets the call's arguments with each tensor replaced by its shape, and the result
      likewise as `out`;
    - a Triton kernel, which is seen when Python launches it. The formula gets all of the kernel's arguments in their
      order, constexprs included, and `out=None`;
    - an `autograd.Function` or a Python function that runs at least one operator, if only one that allocates. The
      formula gets the arguments of the call (for an `autograd.Function` those of its forward, without `ctx`) and
      `out=None`, since it is asked when the call begins. Its price covers every operator beneath the call. `backward`,
      for an `autograd.Function` only, prices the backward from the same arguments; without it the operators that the
      backward runs are counted one by one.

    `torch.compile` compiles functions and kernels away, so inside of compiled code only operators keep their prices:
    make what must keep one a `torch.library.custom_op`.

    With `raw` formulas get tensors, not shapes. A formula returns a whole number of FLOPs (one multiply-add is two);
    one that raises or returns anything else leaves its target uncounted, and says so once. Registering again replaces.
    Raises `ConfigurationError` for other targets.
    """
    for name, each in (("formula", formula), ("backward", backward)):
        if not (callable(each) or (each is None and name == "backward")):
            raise ConfigurationError(f"{name}={each!r}: must be callable; pass a function of shapes that returns FLOPs")
    is_function = isinstance(target, type) and issubclass(target, torch.autograd.Function)
    if backward is not None and not is_function:
        raise ConfigurationError(f"backward={backward!r}: only an autograd.Function has one; an operator has its own")
    if hasattr(target, "_torchdynamo_orig_callable"):
        raise ConfigurationError(
            f"target={target!r}: is compiled, so no call of it is seen; make it a torch.library.custom_op, or register "
            "the function that was compiled, which prices its eager calls"
        )
    operator = _operator_name(target)
    if operator is not None and operator.startswith("aten::"):
        packet = getattr(torch.ops.aten, operator.removeprefix("aten::").partition(".")[0], None)
        if packet is None:
            raise ConfigurationError(f"target={target!r}: torch has no such operator; see Count.by_op for names")
    if operator is not None:
        registry.add(operator, formula, raw=raw)
    elif is_function:
        assert isinstance(target, type)
        code = target.forward.__code__  # type: ignore[attr-defined]  # of an autograd.Function
        functions.register(code, _name(target), FunctionPrice(_of_function(code, formula, backward, raw=raw), ""))
    elif isinstance(target, types.FunctionType | types.MethodType):
        code = target.__code__
        functions.register(code, _name(target), FunctionPrice(_of_function(code, formula, None, raw=raw), ""))
    elif (kernel := _kernel(target)) is not None:
        functions.register_kernel(_name(kernel), KernelPrice(_of_kernel(formula, raw=raw), ""))
    else:
        raise ConfigurationError(
            f"target={target!r}: must be an operator or its name 'lib::op', a Triton kernel, an autograd.Function or a "
            "Python function; for code written in C++ give the Python function that calls it"
        )


def _operator_name(target: object) -> str | None:
    if isinstance(target, CustomOpDef):
        return str(target._qualname)
    if isinstance(target, torch._ops.OpOverload):
        return f"{target._schema.name}.{target._overloadname}"
    if isinstance(target, torch._ops.OpOverloadPacket):
        return str(target._qualified_op_name)
    if isinstance(target, str) and all(target.partition("::")):
        return target
    return None


def _kernel(target: Any) -> Any:
    """The Python function of a Triton kernel, beneath its autotuner and heuristics; None for anything else."""
    while type(target).__module__.startswith("triton.runtime") and hasattr(target, "fn"):
        target = target.fn
        if isinstance(target, types.FunctionType):
            return target
    return None


def _name(target: Any) -> str:
    return f"{target.__module__}:{target.__qualname__}"


def _called(formula: Formula, named: Mapping[str, Any], *, raw: bool) -> Cost:
    given = named if raw else shapes(dict(named))
    try:
        return Cost.plain(checked(formula(*given.values(), out=None)))
    except Exception as error:
        say_failed(getattr(formula, "__qualname__", repr(formula)), error)
        raise


def _of_function(
    code: types.CodeType, formula: Formula, backward: Formula | None, *, raw: bool
) -> Callable[[Mapping[str, Any]], FunctionCost]:
    names = functions.parameters(code)

    def priced(held: Mapping[str, Any]) -> FunctionCost:
        named = {name: held[name] for name in names}
        forward = _called(formula, named, raw=raw)
        if backward is None:
            return FunctionCost(forward)
        # Worked out now: what is kept until the backward must not keep tensors.
        later = _called(backward, named, raw=raw)
        return FunctionCost(forward, lambda _needs: later)

    return priced


def _of_kernel(formula: Formula, *, raw: bool) -> Callable[[Mapping[str, Any]], Cost]:
    return lambda named: _called(formula, named, raw=raw)
