"""Who prices an operator: the user, then this package, then what is declared free, then torch's own registry.

An operator that none of them knows, or whose formula fails, is uncounted: it lowers coverage and is listed, and never
stops the program.
"""

import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

from mfu_sdk.errors import ConfigurationError, FormulaError, MissingDependencyError

try:
    import torch
except ModuleNotFoundError as error:
    raise MissingDependencyError("torch is not installed: formulas price its operators; pip install torch") from error

from mfu_sdk.counting.call import Call
from mfu_sdk.counting.formulas import Cost
from mfu_sdk.counting.free import is_free
from mfu_sdk.counting.masks import Masks
from mfu_sdk.counting.pricing import PRICES, Price

Formula = Callable[..., int]


@dataclass(frozen=True, slots=True)
class _UsersFormula:
    formula: Formula
    raw: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """Who prices an operator, found once for each overload."""

    kind: Literal["view", "free", "priced", "users", "unknown"]
    name: str
    price: Price | None = None
    formula: Callable[[Call], int] | None = None


_users: Final[dict[str, _UsersFormula]] = {}


def register_flops(target: object, formula: Formula, *, raw: bool = False) -> None:
    """Price an operator, before any formula of ours: from here on each call of `target` costs `formula(...)` FLOPs.

    `target` is an operator (`torch.ops.lib.op`), one overload of it (`torch.ops.lib.op.default`), or either's name
    ("lib::op", "lib::op.default"), which may be registered before the library is loaded. The formula gets the call's
    arguments with each tensor replaced by its shape, and the result likewise as `out`; with `raw` it gets the
    tensors. It returns a whole number of FLOPs (one multiply-add is two) and one that raises or returns anything
    else leaves its operator uncounted. Registering again replaces. Raises `ConfigurationError` for other targets.
    """
    if not callable(formula):
        raise ConfigurationError(f"formula={formula!r}: must be callable; pass a function of shapes that returns FLOPs")
    _users[_target_name(target)] = _UsersFormula(formula, raw)
    rule.cache_clear()


def _target_name(target: object) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return f"{target._schema.name}.{target._overloadname}"
    if isinstance(target, torch._ops.OpOverloadPacket):
        return str(target._qualified_op_name)
    if isinstance(target, str) and all(target.partition("::")):
        return target
    raise ConfigurationError(
        f"target={target!r}: must be an operator or its name 'lib::op'; wrap other code as a custom_op"
    )


@lru_cache(maxsize=4096)
def rule(func: torch._ops.OpOverload) -> Rule:
    """Who prices `func`; its name is that of its schema, without the overload."""
    name = func._schema.name
    # The in-place form has its price from the plain one.
    plain = name.removesuffix("_")
    for key in (f"{name}.{func._overloadname}", name):
        if key in _users:
            return Rule("users", name, formula=_users_formula(_users[key]))
    if plain in PRICES:
        return Rule("priced", plain, price=PRICES[plain])
    if func.is_view:
        return Rule("view", plain)
    if is_free(func):
        return Rule("free", plain)
    return Rule("unknown", name)


def ecosystem_formula(func: torch._ops.OpOverload) -> Callable[[Call], int] | None:
    """The formula that another library gave torch's flop counter for `func`, if one did.

    torch's own entries are left out: this package prices those operators, or knows that it cannot yet.
    """
    counter = sys.modules.get("torch.utils.flop_counter")
    formula = None if counter is None else counter.flop_registry.get(func._overloadpacket)
    if formula is None or formula.__module__ == "torch.utils.flop_counter":
        return None

    def priced(call: Call) -> int:
        return _checked(formula(*call.args, **call.kwargs, out_val=call.result))

    return priced


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
        args, kwargs, out = given if entry.raw else _shapes(given)
        return _checked(entry.formula(*args, out=out, **kwargs))

    return priced


def _shapes(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)):
        return type(value)(map(_shapes, value)) if type(value) in (list, tuple) else tuple(map(_shapes, value))
    if isinstance(value, dict):
        return {key: _shapes(item) for key, item in value.items()}
    return value


def _checked(flops: object) -> int:
    number = operator.index(flops)  # type: ignore[arg-type]  # what is no whole number raises here, as it should
    if number < 0:
        raise FormulaError(f"a formula returned {number} FLOPs: must not be negative; correct it")
    return number
