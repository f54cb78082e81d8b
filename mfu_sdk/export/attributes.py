"""Attributes as the registry types them: what is not known, not finite or beyond an int64 is left out."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, get_args

from mfu_sdk import semconv
from mfu_sdk.export.encode import Value


def attributes(place: semconv.Place, values: Mapping[str, object]) -> dict[str, Value]:
    """`values` as the registry types them at `place`, without those that are None, not finite, or beyond an int64.

    Raises `KeyError` for a name that is not registered, `ValueError` for one that does not belong at `place`.
    """
    typed: dict[str, Value] = {}
    types = TYPES[place]
    for name, value in values.items():
        as_registered = types.get(name)
        if as_registered is None:
            raise ValueError(
                f"{semconv.ATTRIBUTES[name].name}: is not registered on {place}; add the place in semconv.py"
            )
        if value is not None and (found := as_registered(value)) is not None:
            typed[name] = found
    return typed


def double(value: Any) -> float | None:
    """`value` as a double, None where it is not finite."""
    number = float(value)
    return number if math.isfinite(number) else None


def _int(value: Any) -> int | None:
    number = int(value)
    return number if -(2**63) <= number < 2**63 else None


_Typing = Callable[[Any], Value | None]
_AS: Final[Mapping[semconv.Type, _Typing]] = {
    "double": double, "int": _int, "string": str, "boolean": bool, "int[]": list, "string[]": list,
}  # fmt: skip


def _typed_on(place: semconv.Place) -> dict[str, _Typing]:
    return {name: _AS[registered.type] for name, registered in semconv.ATTRIBUTES.items() if place in registered.on}


TYPES: Final = {place: _typed_on(place) for place in get_args(semconv.Place)}
"""By place, what makes each attribute that is registered there of its type."""
