"""`mfu.inference`: the decorator of a request handler."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.peak.device import import_torch
from mfu_sdk.records import Convention, Peaks, RunSummary
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
    tokens: Callable[[Any], int] | None = None,
    peaks: Peaks | None = None,
    expected: float | None = None,
    convention: Convention = "exact",
    settings: Settings | None = None,
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorate a synchronous request handler that calls `model`.

    `tokens` takes what the handler returned and gives its number of tokens. `peaks`, `expected` and `convention` are
    those of `mfu.monitor`. The run starts with the first request and ends with the process; the decorated function
    has `run`, a `HandlerRun`, whose `summary()` tells the totals and whose `close()` ends it earlier.

    Raises `ConfigurationError` for a model without parameters and for a handler that is a coroutine or a generator,
    and `MissingDependencyError` without torch; nothing of ours once requests come in.
    """
    settings = settings or Settings.from_env()
    if settings.enabled:
        import_torch()
        from mfu_sdk.run.opening import check_model, check_run

        if model is None:
            raise ConfigurationError("inference(model=None): needs the torch.nn.Module that the handler calls; pass it")
        check_model(model, "inference")
        if tokens is not None and not callable(tokens):
            raise ConfigurationError(
                f"tokens={tokens!r}: must be a function of what the handler returns; or leave it out"
            )
        check_run(name, peaks, expected, convention)

    def decorate(handler: Callable[_P, _R]) -> Callable[_P, _R]:
        handled = str(name or getattr(handler, "__name__", type(handler).__name__))
        if _returns_early(handler):
            raise ConfigurationError(
                f"inference: {handled} is a coroutine or a generator function, which this version cannot time; "
                "decorate the synchronous function that calls the model"
            )
        if not settings.enabled:
            # Functions take attributes; their type does not say so.
            handler.run = DisabledRun(handled, convention)  # type: ignore[attr-defined]
            return handler
        from mfu_sdk.run.handler import HandlerRun

        run = HandlerRun(model, handled, tokens, peaks, expected, convention, settings)

        @functools.wraps(handler)
        def handle(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            request = run.begins()
            error_type: str | None = None
            output: Any = None
            try:
                output = result = handler(*args, **kwargs)
            except BaseException as error:
                error_type = type(error).__qualname__
                raise
            else:
                return result
            finally:
                run.ends(request, output, error_type)

        handle.run = run  # type: ignore[attr-defined]  # as above
        return handle

    return decorate


def _returns_early(handler: Callable[..., Any]) -> bool:
    """Whether calling `handler` returns before its work is done: coroutines and generators, as functions or objects."""
    kinds = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    called = getattr(type(handler), "__call__", handler)  # noqa: B004 - its kind is asked for, not whether it is there
    return any(kind(each) for kind in kinds for each in (handler, called))


class DisabledRun:
    """The run of a handler under MFU_ENABLED=0: nothing is measured, nothing is known."""

    def __init__(self, name: str, convention: Convention) -> None:
        self._name = name
        self._convention: Convention = convention

    def summary(self) -> RunSummary:
        """A summary that says so."""
        return disabled_summary(self._name, self._convention)

    def close(self) -> RunSummary:
        """The same: there is nothing to end."""
        return self.summary()
