"""A decorator for plain functions: what a function that is no model's handler and no training computes, call by call.

    @measured(name="solver")
    def solve(matrix, right):
        return torch.linalg.solve(matrix, right)

    solve(a, b)
    print(solve.summary())

Everything that runs in a call is counted, whoever's module it belongs to; calls with arguments of the same shapes cost
the same. A training function is `mfu.monitor`'s, a request handler `mfu.inference`'s, and both know more of theirs.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack

import mfu_sdk as mfu
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.integrations.options import Options
from mfu_sdk.records import PHASES, Phase

if TYPE_CHECKING:
    import torch

    from mfu_sdk.records import RunSummary
    from mfu_sdk.run.engine import Engine
    from mfu_sdk.run.monitor import Monitor

_P = ParamSpec("_P")
_R = TypeVar("_R")


def measured(
    *,
    name: str | None = None,
    phase: Phase = "inference",
    devices: str | torch.device | None = None,
    **options: Unpack[Options],
) -> Callable[[Callable[_P, _R]], Measured[_P, _R]]:
    """Decorate a function: each of its calls is a step of `phase`, and what lies between two calls is no one's.

    `name`: the workload's; the function's unless given. `devices` and `options` are those of `mfu.monitor`. The run
    begins with the first call, in whose thread the calls are measured, and ends with `close` or the process. Calls in
    other threads, and those that the function makes of itself, are not told apart.

    Raises `ConfigurationError` for a phase that there is not, and for what returns before its work is done (a
    coroutine function or a generator), which is `mfu.inference`'s.
    """
    if phase not in PHASES:
        raise ConfigurationError(f"phase={phase!r}: must be one of {', '.join(PHASES)}")

    def decorate(function: Callable[_P, _R]) -> Measured[_P, _R]:
        late = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
        if not callable(function) or any(is_so(function) for is_so in late):
            raise ConfigurationError(
                f"measured: {getattr(function, '__name__', repr(function))} must be a plain function; a coroutine or a "
                "generator that answers requests is mfu.inference's"
            )
        workload = name or getattr(function, "__name__", type(function).__name__)
        return Measured(function, phase, lambda: mfu.monitor(None, name=workload, devices=devices, **options))

    return decorate


class Measured(Generic[_P, _R]):
    """A function that is measured; called like it."""

    def __init__(self, function: Callable[_P, _R], phase: Phase, begin: Callable[[], Monitor]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._phase: Phase = phase
        self._begin = begin
        self._run: Monitor | None = None
        self._thread = self._process = 0
        self._inside = False
        self._opening = threading.Lock()

    def __get__(self, instance: object, _owner: type | None = None) -> object:
        """As a method: bound to its object."""
        return self if instance is None else functools.partial(self, instance)  # type: ignore[arg-type]  # its own self

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call it."""
        if self._run is None:
            self._open()
        engine = None if self._run is None else self._run.engine
        here = threading.get_ident() == self._thread and os.getpid() == self._process
        if engine is None or self._inside or not here:
            return self._function(*args, **kwargs)
        return self._measure(engine, args, kwargs)

    def _measure(self, engine: Engine, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _R:
        self._inside, failed = True, None
        # The time since the last call was not this function's.
        engine.interlude(lambda: None)
        engine.marked_begins(self._phase)
        engine.join_call(self._shown, args, kwargs)
        try:
            return self._function(*args, **kwargs)
        except BaseException as error:
            failed = type(error).__qualname__
            raise
        finally:
            self._inside = False
            engine.marked_ends(None, None, failed)

    def _open(self) -> None:
        with self._opening:
            if self._run is None:
                from torch import nn

                # Shapes are told by calls of modules; this one stands for the function.
                self._shown = nn.Identity()
                self._run = self._begin().__enter__()
                self._thread, self._process = threading.get_ident(), os.getpid()
                atexit.register(self.close)

    def summary(self) -> RunSummary:
        """The totals so far, or the final ones once closed. Raises `ConfigurationError` before the first call."""
        if self._run is None:
            called = getattr(self._function, "__name__", "the function")
            raise ConfigurationError(f"{called} was not called yet: ask for its summary after the first call")
        return self._run.summary()

    def close(self) -> None:
        """End the run; later calls are not measured."""
        atexit.unregister(self.close)
        if self._run is not None:
            self._run.__exit__(None, None, None)
