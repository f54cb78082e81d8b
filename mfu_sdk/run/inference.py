"""`mfu.inference`: the decorator of a request handler."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.peak.device import import_torch
from mfu_sdk.records import Convention, Peaks, RunSummary
from mfu_sdk.requests import Load
from mfu_sdk.run.totals import disabled_summary
from mfu_sdk.settings import Settings

if TYPE_CHECKING:
    from torch import nn

_P = ParamSpec("_P")
_R = TypeVar("_R")


def inference(
    model: nn.Module,
    *,
    name: str | None = None,
    tokens: Callable[[Any], int | tuple[int | None, int | None] | None] | None = None,
    load: Callable[[], Load] | None = None,
    peaks: Peaks | None = None,
    expected: float | None = None,
    convention: Convention = "exact",
    settings: Settings | None = None,
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorate a request handler that calls `model`.

    The handler may be a function, a coroutine function, a generator or an asynchronous one, a static or class method,
    or an object that is called; it keeps its kind and its signature. A request lasts until it has returned, or until
    what it streams (a generator's chunks, the body of a Starlette response) is exhausted, closed or dropped.

    `tokens` takes what the handler returned and gives its number of tokens, or (input, output) tokens; of what is
    streamed it takes each chunk, and a number is one of output tokens. `load` gives the server's `Load`; it is asked
    once a second in a thread of its own. `peaks`, `expected` and `convention` are those of `mfu.monitor`.

    The run starts with the first request and ends with the process; the decorated function has `run`, a `HandlerRun`,
    whose `summary()` tells the totals, whose `open()` starts it earlier and whose `close()` ends it earlier.

    Raises `ConfigurationError` for a model without parameters and `MissingDependencyError` without torch; nothing of
    ours once requests come in.
    """
    settings = settings or Settings.from_env()
    if settings.enabled:
        import_torch()
        from mfu_sdk.run.opening import check_model, check_run

        if model is None:
            raise ConfigurationError("inference(model=None): needs the torch.nn.Module that the handler calls; pass it")
        check_model(model, "inference")
        for parameter, value, of in (("tokens", tokens, "what the handler returns"), ("load", load, "nothing")):
            if value is not None and not callable(value):
                raise ConfigurationError(f"{parameter}={value!r}: must be a function of {of}; or leave it out")
        check_run(name, peaks, expected, convention)

    def decorate(handler: Callable[_P, _R]) -> Callable[_P, _R]:
        handled = str(name or getattr(handler, "__name__", type(handler).__name__))
        if not settings.enabled:
            # Functions take attributes; their type does not say so, and some objects refuse.
            with contextlib.suppress(AttributeError):
                handler.run = DisabledRun(handled, convention)  # type: ignore[attr-defined]
            return handler
        if isinstance(handler, staticmethod | classmethod):
            descriptor: Any = type(handler)
            return descriptor(decorate(handler.__func__))  # type: ignore[no-any-return]  # of the kind that it was
        if not callable(handler):
            raise ConfigurationError(f"inference: {handled} is no function; decorate the one that calls the model")
        from mfu_sdk.run.following import follow
        from mfu_sdk.run.handler import HandlerRun

        run = HandlerRun(model, handled, tokens, load, peaks, expected, convention, settings)
        handle = follow(handler, run)
        handle.run = run  # type: ignore[attr-defined]  # as above
        return handle

    return decorate


class DisabledRun:
    """The run of a handler under MFU_ENABLED=0: nothing is measured, nothing is known."""

    def __init__(self, name: str, convention: Convention) -> None:
        self._name = name
        self._convention: Convention = convention

    def open(self) -> None:
        """Nothing: there is nothing to begin."""

    def summary(self) -> RunSummary:
        """A summary that says so."""
        return disabled_summary(self._name, self._convention)

    def close(self) -> RunSummary:
        """The same: there is nothing to end."""
        return self.summary()
