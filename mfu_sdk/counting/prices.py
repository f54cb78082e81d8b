"""What one call of an operator costs, worked out once for its operator and shapes."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, cast

import torch
from torch import Tensor

from mfu_sdk.counting import registry, traffic
from mfu_sdk.counting.call import Call, tensors
from mfu_sdk.counting.formulas import FREE, Cost
from mfu_sdk.counting.masks import Masks
from mfu_sdk.counting.precision import convolutions_allow_tf32, products_allow_tf32
from mfu_sdk.counting.registry import Rule
from mfu_sdk.counting.tally import Priced

_MOST: Final = 16_384
"""Kinds of calls whose price is remembered."""
_CUDA: Final = torch.cuda.is_available()
# Values of these dtypes may be lengths or choices, on which a price can depend.
_KEPT: Final = (int, str, torch.dtype, torch.layout, torch.device, torch.memory_format, torch.SymInt, type(None))
_INDICES: Final = frozenset({torch.bool, torch.int16, torch.int32, torch.int64})


class Prices:
    """The prices of calls, by all that decides them. `known` is what the path of an operator looks into.

    `lock` is held while what is known about masks is asked for, not while a formula, which may be the user's, runs.
    """

    def __init__(self, lock: AbstractContextManager[Any]) -> None:
        self.lock = lock
        self.known: dict[Any, Priced] = {}
        self._rules_seen = 0

    def begin(self) -> None:
        """Counting starts: what a formula was registered for since has another price now."""
        if self._rules_seen != registry.changes():
            self.known.clear()
            self._rules_seen = registry.changes()

    def price(self, rule: Rule, call: Call, key: Any, masks: Masks) -> Priced:
        """What a call costs, remembered under `key` where that says all that decides it."""
        sent = traffic.handed_bytes(call)
        if sent is not None:
            return self._remember(key, Priced(sent[0], "none", FREE, 0, sent=sent[1]))
        asked = _Asked(masks, self.lock)
        cost, known = FREE, True
        if rule.kind == "priced" or rule.kind == "users":
            cost, known = priced_or_free(lambda: registry.price(call, rule, cast(Masks, asked)))
        elif rule.kind == "unknown":
            formula = registry.ecosystem_formula(call.func)
            if formula is not None:
                found = formula
                cost, known = priced_or_free(lambda: Cost.plain(found(call)))
            else:
                known = not traffic.touches_floats(call)
        if rule.price is not None and rule.price.dtype is not None:
            dtype = rule.price.dtype(call)
        else:
            dtype = _dtype(call, rule.price.operand if rule.price else None)
        priced = Priced(
            rule.name, dtype, cost, traffic.moved_bytes(call), known, weight_bytes=traffic.weight_bytes(call)
        )
        return priced if asked.was_asked else self._remember(key, priced)

    def _remember(self, key: Any, priced: Priced) -> Priced:
        if key is not None:
            if len(self.known) >= _MOST:
                self.known.clear()
            self.known[key] = priced
        return priced


class _Asked:
    """What is known about masks, and whether a formula asked for it: then its price is that of this call only."""

    def __init__(self, masks: Masks, lock: AbstractContextManager[Any]) -> None:
        self._masks = masks
        self._lock = lock
        self.was_asked = False

    def __getattr__(self, name: str) -> Any:
        self.was_asked = True
        ask = getattr(self._masks, name)

        def asked(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return ask(*args, **kwargs)

        return asked


def key_of(rule: Rule, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """All that decides what a call costs and moves, or None where that is more than shapes."""
    key: list[Any] = [id(func)]
    priced = rule.price is not None
    try:
        if not _describe(args, key, priced):
            return None
        if kwargs:
            key.append(tuple(kwargs))
            if not _describe(kwargs.values(), key, priced):
                return None
        if priced and _CUDA:
            first = next(tensors(args), None)
            key += (products_allow_tf32(), convolutions_allow_tf32(), first is not None and first.is_cuda)
    except RuntimeError:
        # A layout without strides.
        return None
    return tuple(key)


def _describe(values: Any, key: list[Any], priced: bool) -> bool:
    for value in values:
        if isinstance(value, Tensor):
            dtype = value.dtype
            if priced and dtype in _INDICES:
                return False
            key += (value.shape, value.stride(), dtype)
        elif isinstance(value, (list, tuple)):
            key.append(len(value))
            if not _describe(value, key, priced):
                return False
        else:
            # No price hangs on a scale, a rate or a probability; objects (process groups, generators) must not be kept.
            key.append(value if isinstance(value, _KEPT) else type(value))
    return True


def priced_or_free(price: Callable[[], Cost]) -> tuple[Cost, bool]:
    """A formula's answer, and whether it had one; what it raises is nobody's but the coverage's."""
    try:
        return price(), True
    except Exception:  # noqa: BLE001 - a formula, which may be the user's, costs coverage and nothing else
        return FREE, False


def _dtype(call: Call, operand: str | None) -> str:
    """The dtype of an operator's arithmetic: that of `operand`, "tf32" where torch lets CUDA use it for float32."""
    value = call.get(operand) if operand is not None else None
    tensor = next(tensors(value), None) if value is not None else next(call.inputs(), next(tensors(call.result), None))
    if tensor is not None and operand is not None and tensor.dtype is torch.float32 and tensor.is_cuda:
        return "tf32" if _allows_tf32(call.func) else "float32"
    return name_of(tensor)


def name_of(tensor: Tensor | None) -> str:
    """A tensor's dtype by name, "none" for no tensor."""
    return "none" if tensor is None else str(tensor.dtype).removeprefix("torch.")


def arithmetic(named: Mapping[str, Any], operand: str) -> str:
    """The dtype of a function's arithmetic: its operand's, else that of the first floating-point tensor."""
    held = list(tensors(named.get(operand))) or [t for t in tensors(list(named.values())) if t.is_floating_point()]
    return name_of(next(iter(held), None))


def _allows_tf32(func: torch._ops.OpOverload) -> bool:
    name = func._schema.name
    if "attention" in name or torch.cuda.get_device_capability() < (8, 0):
        return False
    return convolutions_allow_tf32() if "conv" in name or "rnn" in name else products_allow_tf32()
