"""The request for which this context's code works, whichever run it is of; tasks and threads may copy the context."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mfu_sdk.run.request import Request

current: ContextVar[Request | None] = ContextVar("mfu_request", default=None)
"""The innermost request in whose handler this context's code runs."""


class Inside:
    """While it is entered, this context's code works for `request`; `outside` is called where none is left then."""

    __slots__ = ("_outside", "_request", "_token")

    def __init__(self, request: Request | None, outside: Callable[[], None]) -> None:
        self._request = request
        self._outside = outside
        self._token: Token[Request | None] | None = None

    def __enter__(self) -> None:
        if self._request is not None:
            self._token = current.set(self._request)

    def __exit__(self, *_: object) -> None:
        if self._token is None:
            return
        # A coroutine that is dropped is finalized in another context than the one that it ran in.
        try:
            current.reset(self._token)
        except ValueError:
            return
        if current.get() is None:
            self._outside()
