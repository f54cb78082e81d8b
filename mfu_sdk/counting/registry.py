"""Who prices an operator: the user, then this package, then what is declared free, then torch's own registry.

An operator that none of them knows, or whose formula fails, is uncounted: it lowers coverage and is listed, and never
stops the program.
"""

import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from mfu_sdk.errors import FormulaError, MissingDependencyError
from mfu_sdk.guard import warn_once

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingDependencyError("torch is not installed: formulas price its operators; pip install torch") from error

from torch._ops import HigherOrderOperator

from mfu_sdk.counting.call import Call
from mfu_sdk.counting.formulas import Cost
from mfu_sdk.counting.free import is_free
from mfu_sdk.counting.masks import WATCHED, Masks
from mfu_sdk.counting.pricing import PRICES, Price

Formula = Callable[..., int]


@dataclass(frozen=True, slots=True)
class _UsersFormula:
    formula: Formula
    raw: bool


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """Who prices an operator, and what else the path of its calls asks about it; found once for each overload.

    "subclass": a question that a tensor subclass answers itself. "control": control flow, which runs the functions
    that it is given. "higher": any other higher-order operator. `decomposes`: made of other operators, which in
    inference mode do not arrive by themselves. `by_shapes`: what it moves and costs follows from its arguments' shapes.
    """

    kind: Literal["subclass", "control", "higher", "view", "free", "priced", "users", "unknown"]
    name: str
    price: Price | None = None
    formula: Callable[[Call], int] | None = None
    decomposes: bool = False
    by_shapes: bool = True
    watched: bool = False
    mutates: bool = False


# Tensor subclasses with sizes of their own (nested tensors) are asked for these; the answer is theirs.
_METADATA: Final = frozenset(
    f"aten::{name}"
    for name in (
        "dim",
        "is_contiguous",
        "is_non_overlapping_and_dense",
        "is_strides_like_format",
        "numel",
        "size",
        "storage_offset",
        "stride",
        "sym_is_contiguous",
        "sym_numel",
        "sym_size",
        "sym_storage_offset",
        "sym_stride",
    )
) | {"prim::layout"}
# These only run the functions that they are given, which run under the mode again.
_CONTROL_FLOW: Final = frozenset(
    {
        "associative_scan",
        "cond",
        "invoke_subgraph",
        "map_impl",
        "scan",
        "tag_activation_checkpoint",
        "while_loop",
        "while_loop_stack_output",
        "wrap",
    }
)
_DATA_DEPENDENT: Final = frozenset({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output})

RULES: Final[dict[int, Rule]] = {}
"""Every rule found so far, by the id of its overload: what the path of an operator looks up, since an overload's own
hash is slow. `rule` finds the others, and keeps each overload alive, so that its id stays its own."""
_overloads: Final[list[Any]] = []

_users: Final[dict[str, _UsersFormula]] = {}
_changes = 0


def add(name: str, formula: Formula, *, raw: bool) -> None:
    """Let a user's formula price the operator "lib::op" or its overload "lib::op.default"."""
    global _changes
    _users[name] = _UsersFormula(formula, raw)
    RULES.clear()
    _changes += 1


def changes() -> int:
    """Rises with every registration: what was priced before may have another price now."""
    return _changes


def rule(func: Any) -> Rule:
    """Who prices `func`; its name is that of its schema, without the overload."""
    found = RULES.get(id(func))
    if found is None:
        _overloads.append(func)
        found = RULES[id(func)] = _found(func)
    return found


def _found(func: Any) -> Rule:
    if isinstance(func, HigherOrderOperator):
        return Rule("control" if func._name in _CONTROL_FLOW else "higher", f"higher_order::{func._name}")
    name = func._schema.name
    if name in _METADATA:
        return Rule("subclass", name)
    # The in-place form has its price from the plain one.
    plain = name.removesuffix("_")
    mutates = bool(func._schema.is_mutable)
    by_shapes = _DATA_DEPENDENT.isdisjoint(func.tags)
    for key in (f"{name}.{func._overloadname}", name):
        if key in _users:
            users = _users_formula(_users[key])
            return Rule("users", name, formula=users, by_shapes=False, watched=mutates, mutates=mutates)
    price = PRICES.get(plain) or _third_party().get(plain)
    if price is not None:
        watched = mutates or price.dense or plain in WATCHED
        return Rule(
            "priced", plain, price=price, by_shapes=by_shapes and price.by_shapes, watched=watched, mutates=mutates,
            decomposes=price.nested and _decomposes(func),
        )  # fmt: skip
    if func.is_view:
        return Rule("view", plain, watched=plain in WATCHED)
    if is_free(func):
        return Rule("free", plain, by_shapes=by_shapes, watched=mutates or plain in WATCHED, mutates=mutates)
    return Rule("unknown", name, decomposes=_decomposes(func), by_shapes=False, watched=mutates, mutates=mutates)


def _decomposes(func: torch._ops.OpOverload) -> bool:
    """Whether `func` is made of others; in inference mode it arrives whole."""
    if func.namespace == "prim":
        # These have no dispatcher entry to ask about.
        return False
    schema = func._schema
    qualified = f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(qualified, "CompositeImplicitAutograd"))


def _third_party() -> Mapping[str, Price]:
    # Late: its tables are large, and few programs have these libraries.
    from mfu_sdk.counting import third_party

    return third_party.OPERATORS


def ecosystem_formula(func: torch._ops.OpOverload) -> Callable[[Call], int] | None:
    """The formula that another library gave torch's flop counter for `func`, if one did.

    torch's own entries are left out: this package prices those operators, or knows that it cannot yet.
    """
    formula = ecosystem_entry(func._overloadpacket)
    if formula is None:
        return None
    found = formula
    return lambda call: checked(found(*call.args, **call.kwargs, out_val=call.result))


def ecosystem_entry(target: Any) -> Formula | None:
    """What another library gave torch's flop counter for an operator, a Triton kernel or a higher-order operator."""
    counter = sys.modules.get("torch.utils.flop_counter")
    formula = None if counter is None else counter.flop_registry.get(target)
    return None if formula is None or formula.__module__ == "torch.utils.flop_counter" else formula


def price(call: Call, found: Rule, masks: Masks) -> Cost:
    """The cost of one call of a priced operator. Raises whatever its formula raises."""
    if found.price is not None:
        return found.price.formula(call, masks)
    if found.formula is not None:
        return Cost.plain(found.formula(call))
    raise FormulaError(f"{found.name} has no formula; register one with mfu.register_flops")


def _users_formula(entry: _UsersFormula) -> Callable[[Call], int]:
    def priced(call: Call) -> int:
        given = (call.args, call.kwargs, call.result)
        args, kwargs, out = given if entry.raw else shapes(given)
        try:
            return checked(entry.formula(*args, out=out, **kwargs))
        except Exception as error:
            say_failed(call.func._schema.name, error)
            raise

    return priced


def say_failed(name: str, error: Exception) -> None:
    """Tell a user, once, why a formula of theirs leaves its target uncounted."""
    warn_once("register_flops", f"the formula for {name} failed, so it is uncounted: {type(error).__name__}: {error}")


def shapes(value: Any) -> Any:
    """`value` with every tensor in it replaced by its shape."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)):
        return type(value)(map(shapes, value)) if type(value) in (list, tuple) else tuple(map(shapes, value))
    if isinstance(value, dict):
        return {key: shapes(item) for key, item in value.items()}
    return value


def checked(flops: object) -> int:
    """What a formula returned, if it is a number of FLOPs. Raises `TypeError` or `FormulaError` if not."""
    number = operator.index(flops)  # type: ignore[arg-type]  # what is no whole number raises here, as it should
    if number < 0:
        raise FormulaError(f"a formula returned {number} FLOPs: must not be negative; correct it")
    return number
