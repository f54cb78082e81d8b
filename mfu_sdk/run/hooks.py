"""What we hang on a user's module: it does its work there, and is nothing in a copy or on disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


class Hook(partial[None]):
    """A callable that copies and pickles as `nothing`.

    A module is copied and saved with its hooks (`copy.deepcopy`, exponential averages, `torch.save`). A copy is not
    the module that is watched, and what stands behind a hook holds locks, which can be neither copied nor saved.

    A `partial` of nothing: it passes the call on without a frame of its own.
    """

    __slots__ = ()

    def __copy__(self) -> Callable[..., None]:
        return nothing

    def __deepcopy__(self, _memo: dict[int, Any]) -> Callable[..., None]:
        return nothing

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _nothing, ()


def nothing(*_args: Any, **_kwargs: Any) -> None:
    """The hook of a copy."""


def _nothing() -> Callable[..., None]:
    return nothing
