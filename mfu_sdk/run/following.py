"""A handler of any kind, followed from its call to its end.

A plain function ends when it returns, a coroutine function when its coroutine does, a generator when it is exhausted,
closed, dropped or fails. What a plain or coroutine function returns is looked at too: a coroutine, a generator or a
streaming response (what Starlette calls `body_iterator`) goes on after the return, and the request with it.

The request is entered into the context (`contextvars`) while the handler's own code runs and taken out while it waits
at a `yield`, where its consumer's code runs. Tasks and threads that copy the context take it along. Each kind of
function stays what it was to `inspect`, since frameworks choose by that how to call it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any

from mfu_sdk.guard import shield

if TYPE_CHECKING:
    from mfu_sdk.run.handler import HandlerRun
    from mfu_sdk.run.request import Request

Handler = Callable[..., Any]


class Held:
    """A request on its way through a coroutine or a generator: where that is dropped unfinished, the request ends."""

    __slots__ = ("request", "run")

    def __init__(self, run: HandlerRun, request: Request | None) -> None:
        self.run = run
        self.request = request

    def __del__(self) -> None:
        if self.request is not None and not self.request.ended:
            self.run.ends(self.request, error=GeneratorExit())


def follow(handler: Handler, run: HandlerRun) -> Handler:
    """`handler` as a function of its own kind that tells `run` of each request."""
    called = getattr(type(handler), "__call__", handler)  # noqa: B004 - its kind is asked for, not whether it is there
    for is_kind, following in (
        (inspect.isasyncgenfunction, _async_generator),
        (inspect.iscoroutinefunction, _coroutine),
        (inspect.isgeneratorfunction, _generator),
    ):
        if is_kind(handler) or is_kind(called):
            return following(handler, run)
    return _function(handler, run)


def _function(handler: Handler, run: HandlerRun) -> Handler:
    @functools.wraps(handler)
    def handle(*args: Any, **kwargs: Any) -> Any:
        request = run.begins()
        try:
            with run.inside(request):
                output = handler(*args, **kwargs)
        except BaseException as error:
            run.ends(request, error=error)
            raise
        return _until_its_end(output, run, request)

    return handle


def _coroutine(handler: Handler, run: HandlerRun, begun: Held | None = None) -> Handler:
    @functools.wraps(handler)
    async def handle(*args: Any, **kwargs: Any) -> Any:
        held = begun or Held(run, run.begins())
        try:
            with run.inside(held.request):
                output = await handler(*args, **kwargs)
        except BaseException as error:
            run.ends(held.request, error=error)
            raise
        return _until_its_end(output, run, held.request, held)

    return handle


def _generator(handler: Handler, run: HandlerRun, begun: Held | None = None) -> Handler:
    @functools.wraps(handler)
    def handle(*args: Any, **kwargs: Any) -> Any:
        held = begun or Held(run, run.begins())
        request = held.request
        try:
            with run.inside(request):
                inner = handler(*args, **kwargs)
            resume, value = inner.send, None
            while True:
                try:
                    with run.inside(request):
                        item = resume(value)
                except StopIteration as stop:
                    run.ends(request)
                    return stop.value
                run.yields(request, item)
                try:
                    value = yield item
                    resume = inner.send
                except GeneratorExit:
                    with run.inside(request):
                        inner.close()
                    raise
                except BaseException as error:  # noqa: BLE001 - whatever the consumer throws in is the handler's
                    resume, value = inner.throw, error
                run.resumes(request)
        except BaseException as error:
            run.ends(request, error=error)
            raise

    return handle


def _async_generator(handler: Handler, run: HandlerRun, begun: Held | None = None) -> Handler:
    @functools.wraps(handler)
    async def handle(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        held = begun or Held(run, run.begins())
        request = held.request
        try:
            with run.inside(request):
                inner = handler(*args, **kwargs)
            resume, value = inner.asend, None
            while True:
                try:
                    with run.inside(request):
                        item = await resume(value)
                except StopAsyncIteration:
                    run.ends(request)
                    return
                run.yields(request, item)
                try:
                    value = yield item
                    resume = inner.asend
                except GeneratorExit:
                    with run.inside(request):
                        await inner.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - as above
                    resume, value = inner.athrow, error
                run.resumes(request)
        except BaseException as error:
            run.ends(request, error=error)
            raise

    return handle


def _until_its_end(output: Any, run: HandlerRun, request: Request | None, held: Held | None = None) -> Any:
    """`output` of a handler that has returned: followed on where it goes on, else the request has ended."""
    following = _FOLLOWING.get(type(output))
    if following is not None:
        return following(lambda: output, run, held or Held(run, request))()
    # Looked up in the instance: an object's own `__getattr__` is not for us to call.
    body = getattr(output, "__dict__", {}).get("body_iterator")
    if isinstance(body, AsyncIterable):
        with shield("following a streaming response"):
            each = body if isinstance(body, AsyncGeneratorType) else _each(body)
            output.body_iterator = _async_generator(lambda: each, run, held or Held(run, request))()
            return output
    run.ends(request, output)
    return output


async def _each(iterable: AsyncIterable[Any]) -> AsyncIterator[Any]:
    async for item in iterable:
        yield item


_FOLLOWING: dict[type, Callable[[Handler, HandlerRun, Held], Handler]] = {
    CoroutineType: _coroutine,
    GeneratorType: _generator,
    AsyncGeneratorType: _async_generator,
}
