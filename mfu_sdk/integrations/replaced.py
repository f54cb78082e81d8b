"""Methods of one object that do more for a while: what a loop calls between its steps is seen where it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mfu_sdk.records import Phase
from mfu_sdk.run.engine import Engine

Around = Callable[[Callable[..., Any]], Callable[..., Any]]


@contextmanager
def replaced(owner: object, name: str, around: Around) -> Iterator[None]:
    """`owner.name` is what `around` makes of it; afterwards it is what it was, unless someone else replaced it too.

    Nothing where there is no such method.
    """
    if not callable(before := getattr(owner, name, None)):
        yield
        return
    own = vars(owner)
    was_own = name in own
    now = around(before)
    setattr(owner, name, now)
    try:
        yield
    finally:
        if own.get(name) is now:
            if was_own:
                setattr(owner, name, before)
            else:
                delattr(owner, name)


def outside(engine: Engine) -> Around:
    """Work that is in no step's time, such as writing a checkpoint."""

    def around(work: Callable[..., Any]) -> Callable[..., Any]:
        def apart(*args: Any, **kwargs: Any) -> Any:
            try:
                return work(*args, **kwargs)
            finally:
                engine.interlude(lambda: None)

        return apart

    return around


def marked(engine: Engine, phase: Phase, tokens: Callable[[], int] | None = None) -> Around:
    """Work that is a step; `tokens` counts those of the run so far."""

    def around(work: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            before, failed = 0 if tokens is None else tokens(), None
            engine.marked_begins(phase)
            try:
                return work(*args, **kwargs)
            except BaseException as error:
                failed = type(error).__qualname__
                raise
            finally:
                engine.marked_ends(None if tokens is None else tokens() - before, None, failed)

        return step

    return around
