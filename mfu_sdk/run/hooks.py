"""What we hang on a user's module: it does its work there, and is nothing in a copy or on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Hook:
    """A callable that copies and pickles as `nothing`.

    A module is copied and saved with its hooks (`copy.deepcopy`, exponential averages, `torch.save`). A copy is not
    the module that is watched, and what stands behind a hook holds locks, which can be neither copied nor saved.
    """

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Pass the call on."""
        self._call(*args, **kwargs)

    def __deepcopy__(self, _memo: dict[int, Any]) -> Callable[..., None]:
        return nothing

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _nothing, ()


def nothing(*_args: Any, **_kwargs: Any) -> None:
    """The hook of a copy."""


def _nothing() -> Callable[..., None]:
    return nothing
