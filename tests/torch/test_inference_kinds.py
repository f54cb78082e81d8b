"""Handlers of every kind: what they stay, how long their requests last, and what is left of those that are dropped."""

import asyncio
import contextvars
import functools
import gc
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

import mfu_sdk as mfu
from mfu_sdk import testing
from mfu_sdk.records import Peaks, Rate
from mfu_sdk.run.innermost import current

from .conftest import Sink

WIDE, OUT = 64, 32
ROW = 2 * WIDE * OUT
PEAKS = Peaks("cpu", {}, {"float32": Rate(1e9, 1e9, 1e9, "user", 0.0)}, None, None, {})


@pytest.fixture
def model() -> Iterator[nn.Module]:
    model = nn.Linear(WIDE, OUT, bias=False)
    yield model
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def call(model: nn.Module, rows: int) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(torch.randn(rows, WIDE))
        return out


def test_kinds_and_signatures_stay(model: nn.Module) -> None:
    """Frameworks choose by kind and signature how to call a function: both are those of the one decorated."""

    def function(rows: int, *, flag: bool = True) -> int:
        return rows

    async def coroutine(rows: int, *, flag: bool = True) -> int:
        return rows

    def generator(rows: int, *, flag: bool = True) -> Iterator[int]:
        yield rows

    async def streaming(rows: int, *, flag: bool = True) -> AsyncIterator[int]:
        yield rows

    class Called:
        async def __call__(self, rows: int) -> int:
            return rows

    kinds = (
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
    )
    for handler in (function, coroutine, generator, streaming):
        handled = mfu.inference(model)(handler)
        assert [kind(handled) for kind in kinds] == [kind(handler) for kind in kinds]
        assert inspect.signature(handled) == inspect.signature(handler)
        assert handled.__name__ == handler.__name__
        assert handled.__wrapped__ is handler
    assert inspect.iscoroutinefunction(mfu.inference(model)(Called()))
    assert inspect.iscoroutinefunction(mfu.inference(model)(functools.partial(coroutine, 3)))


def test_the_same_requests_of_every_kind(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """Plain, threaded, async, in another thread, streamed, streamed async: one sum of FLOPs, and one of tokens."""
    rows_of = (1, 2, 3, 5, 8, 13)

    def plain(rows: int) -> list[int]:
        call(model, rows)
        call(model, 1)
        return [7] * rows

    async def coroutine(rows: int) -> list[int]:
        call(model, rows)
        await asyncio.sleep(0)
        call(model, 1)
        return [7] * rows

    async def elsewhere(rows: int) -> list[int]:
        await asyncio.to_thread(call, model, rows)
        context = contextvars.copy_context()
        await asyncio.get_running_loop().run_in_executor(None, context.run, call, model, 1)
        return [7] * rows

    def generator(rows: int) -> Iterator[list[int]]:
        call(model, rows)
        yield [7] * (rows - 1)
        call(model, 1)
        yield [7]

    async def streaming(rows: int) -> AsyncIterator[list[int]]:
        call(model, rows)
        yield [7] * (rows - 1)
        await asyncio.sleep(0)
        call(model, 1)
        yield [7]

    async def gathered(handler: Callable[[int], Any]) -> None:
        await asyncio.gather(*map(handler, rows_of))

    async def drained(handler: Callable[[int], Any]) -> None:
        async def one(rows: int) -> None:
            async for _ in handler(rows):
                await asyncio.sleep(0)

        await asyncio.gather(*map(one, rows_of))

    def threaded(handler: Callable[[int], Any]) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(handler, rows_of))

    ways: list[tuple[Callable[..., Any], Callable[[Callable[..., Any]], object]]] = [
        (plain, lambda handler: list(map(handler, rows_of))),
        (plain, threaded),
        (coroutine, lambda handler: asyncio.run(gathered(handler))),
        (elsewhere, lambda handler: asyncio.run(gathered(handler))),
        (generator, lambda handler: [list(handler(rows)) for rows in rows_of]),
        (streaming, lambda handler: asyncio.run(drained(handler))),
    ]
    for handler, drive in ways:
        sink.requests.clear()
        sink.steps.clear()
        handled = mfu.inference(model, tokens=len, peaks=PEAKS)(handler)
        drive(handled)
        handled.run.close()  # type: ignore[attr-defined]  # set by the decorator
        assert sorted(r.model_flops or 0 for r in sink.requests) == [ROW * (rows + 1) for rows in rows_of]
        assert sum(s.model_flops or 0 for s in sink.steps) == ROW * (sum(rows_of) + len(rows_of))
        assert sum(r.tokens or 0 for r in sink.requests) == sum(s.tokens or 0 for s in sink.steps) == sum(rows_of)
        assert {r.outcome for r in sink.requests} == {"finished"}


def test_methods(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """Methods of an instance, of a class and static ones are decorated in the class body, in either order."""

    class Service:
        rows = 2

        @mfu.inference(model, name="own", peaks=PEAKS)
        def own(self) -> int:
            call(model, self.rows)
            return self.rows

        @mfu.inference(model, name="of-class", peaks=PEAKS)  # type: ignore[arg-type]  # a descriptor, not a function
        @classmethod
        def of_class(cls) -> int:
            call(model, cls.rows)
            return cls.rows

        @staticmethod
        @mfu.inference(model, name="static", peaks=PEAKS)
        def static(rows: int) -> int:
            call(model, rows)
            return rows

        @mfu.inference(model, name="streamed", peaks=PEAKS)
        async def streamed(self) -> AsyncIterator[int]:
            call(model, self.rows)
            yield self.rows

    async def drain(service: Service) -> list[int]:
        return [each async for each in service.streamed()]

    service = Service()
    assert service.own() == service.of_class() == Service.static(2) == 2
    assert asyncio.run(drain(service)) == [2]
    for method in (service.own, service.of_class, Service.static, service.streamed):
        method.run.close()  # type: ignore[attr-defined]  # set by the decorator
    assert [r.model_flops for r in sink.requests] == [2 * ROW] * 4
    assert [r.name for r in sink.requests] == ["own", "of-class", "static", "streamed"]


def test_callable_objects(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """An object whose call is a coroutine is awaited as before."""

    class Called:
        async def __call__(self, rows: int) -> int:
            call(model, rows)
            return rows

    handled = mfu.inference(model, peaks=PEAKS)(Called())
    assert asyncio.run(handled(3)) == 3
    handled.run.close()  # type: ignore[attr-defined]  # set by the decorator
    assert [(r.name, r.model_flops) for r in sink.requests] == [("Called", 3 * ROW)]


def test_a_generator_is_one(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """What is sent, thrown and returned goes through a followed generator as through the one that it follows."""

    @mfu.inference(model, peaks=PEAKS)
    def handle() -> Generator[str, str, str]:
        said = yield "first"
        try:
            said += yield said
        except LookupError as error:
            said += str(error)
        yield said
        return "returned"

    def delegate() -> Generator[str, str, str]:
        return (yield from handle())

    running = delegate()
    assert next(running) == "first"
    assert running.send("sent ") == "sent "
    assert running.throw(LookupError("thrown")) == "sent thrown"
    with pytest.raises(StopIteration) as stopped:
        next(running)
    assert stopped.value.value == "returned"
    handle.run.close()
    assert [(r.outcome, r.chunks) for r in sink.requests] == [("finished", 3)]


def test_an_async_generator_is_one(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """So it is with an asynchronous one, whose own clean-up runs when it is closed."""
    cleaned = []

    @mfu.inference(model, peaks=PEAKS)
    async def handle() -> Any:
        try:
            said = yield "first"
            try:
                yield said
            except LookupError as error:
                yield str(error)
        finally:
            await asyncio.sleep(0)
            cleaned.append(1)

    async def drive() -> None:
        running = handle()
        assert await running.asend(None) == "first"
        assert await running.asend("sent") == "sent"
        assert await running.athrow(LookupError("thrown")) == "thrown"
        await running.aclose()

    asyncio.run(drive())
    handle.run.close()
    assert cleaned == [1]
    assert [(r.outcome, r.error_type, r.chunks) for r in sink.requests] == [("cancelled", None, 3)]


@pytest.mark.parametrize("way", ["close", "drop", "cycle"])
def test_generators_that_are_left(way: str, model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """A stream whose consumer stops half way ends its request: it is cancelled, not failed, and keeps its tokens."""

    @mfu.inference(model, tokens=lambda chunk: chunk, peaks=PEAKS)
    def handle() -> Iterator[int]:
        while True:
            call(model, 2)
            clock.advance(0.25)
            yield 3

    streams = [handle() for _ in range(4)]
    for stream in streams:
        assert [next(stream), next(stream)] == [3, 3]
        if way == "close":
            stream.close()
        if way == "cycle":
            stuck: list[object] = [stream]
            stuck.append(stuck)
            del stuck
    streams.clear()
    del stream
    gc.collect()
    summary = handle.run.close()
    assert [(r.outcome, r.error_type, r.tokens, r.model_flops) for r in sink.requests] == [
        ("cancelled", None, 6, 4 * ROW)
    ] * 4
    assert sum(s.requests or 0 for s in sink.steps) == 4
    assert sum(s.requests_failed or 0 for s in sink.steps) == 0
    assert summary.tokens == 24


def test_dropped_without_a_loop(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """An asynchronous stream that no event loop is left to close ends its request when it is collected."""

    @mfu.inference(model, peaks=PEAKS)
    async def handle() -> AsyncIterator[int]:
        call(model, 2)
        yield 1
        yield 2

    stream = handle()
    with pytest.raises(StopIteration) as stopped:
        stream.__anext__().send(None)
    assert stopped.value.value == 1
    assert not sink.requests
    del stream
    gc.collect()
    assert [r.outcome for r in sink.requests] == ["cancelled"]
    handle.run.close()


def test_collected_in_the_middle_of_the_books(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """A stream that is collected while this thread holds the books waits its turn, and is in them afterwards."""
    from mfu_sdk.run.turns import turns

    @mfu.inference(model, peaks=PEAKS)
    def handle() -> Iterator[int]:
        call(model, 2)
        yield 1

    stream = handle()
    next(stream)
    with turns:
        del stream
        gc.collect()
        assert not sink.requests
    assert [r.outcome for r in sink.requests] == ["cancelled"]
    handle.run.close()


def test_a_request_is_not_charged_what_its_consumer_does(
    model: nn.Module, clock: testing.FakeClock, sink: Sink
) -> None:
    """Between two chunks the consumer has the thread: what it calls then is another request's, or its own."""

    @mfu.inference(model, peaks=PEAKS)
    def inner() -> Iterator[int]:
        call(model, 1)
        yield 1
        call(model, 2)
        yield 2

    one, other = inner(), inner()
    for _ in range(2):
        next(one)
        next(other)
    one.close()
    other.close()
    assert current.get() is None
    inner.run.close()
    assert [r.model_flops for r in sink.requests] == [3 * ROW] * 2


def test_failing_and_cancelled_coroutines(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """A task that is cancelled was left by its caller; one that raises has failed, and says with what."""

    @mfu.inference(model, tokens=len, peaks=PEAKS)
    async def handle(*, fail: bool) -> str:
        call(model, 2)
        if fail:
            raise LookupError("mine")
        await asyncio.sleep(3600)
        return "never"

    async def drive() -> None:
        with pytest.raises(LookupError, match="mine"):
            await handle(fail=True)
        task = asyncio.create_task(handle(fail=False))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(drive())
    handle.run.close()
    assert [(r.outcome, r.error_type, r.tokens) for r in sink.requests] == [
        ("failed", "LookupError", None),
        ("cancelled", None, None),
    ]
    assert [(s.requests, s.requests_failed, s.tokens) for s in sink.steps] == [(1, 1, 0), (1, 0, 0)]


def test_threads_without_a_context(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """A call that no context reaches is the only request's; of several it is no one's, and the device's."""
    with ThreadPoolExecutor(1) as pool:

        @mfu.inference(model, peaks=PEAKS)
        async def handle(started: asyncio.Event | None) -> None:
            if started is not None:
                started.set()
                await asyncio.sleep(0)
            call(model, 1)
            await asyncio.get_running_loop().run_in_executor(pool, call, model, 2)

        async def together() -> None:
            started = asyncio.Event()
            await asyncio.gather(handle(started), handle(started))

        asyncio.run(handle(None))
        asyncio.run(together())
    handle.run.close()
    assert [r.model_flops for r in sink.requests] == [3 * ROW, None, None]
    assert [s.model_flops for s in sink.steps] == [3 * ROW, 6 * ROW]
    assert "outside of any request's context" in str(handle.run.summary())


def test_a_task_that_outlives_its_request(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """What it calls while another request is handled is charged to neither, and is the device's work all the same."""
    left: list[asyncio.Task[None]] = []

    @mfu.inference(model, peaks=PEAKS)
    async def handle(let: asyncio.Event, *, leaves: bool) -> None:
        async def later() -> None:
            await let.wait()
            call(model, 4)

        if leaves:
            left.append(asyncio.create_task(later()))
            return
        call(model, 1)
        let.set()
        await left[0]

    async def drive() -> None:
        let = asyncio.Event()
        await handle(let, leaves=True)
        await handle(let, leaves=False)

    asyncio.run(drive())
    handle.run.close()
    assert [r.model_flops for r in sink.requests] == [None, ROW]
    assert sink.steps[-1].model_flops == 5 * ROW


def test_the_caller_of_a_stream_is_the_parent(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """The span in whose context a request begins is its parent: in a task, in a thread, of a stream that ends later."""
    from opentelemetry import context
    from opentelemetry.sdk.trace import TracerProvider

    @mfu.inference(model, peaks=PEAKS)
    async def coroutine() -> None:
        await asyncio.sleep(0)
        call(model, 1)

    @mfu.inference(model, peaks=PEAKS)
    def generator() -> Iterator[int]:
        yield 1

    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("user")
    expected = []

    async def drive() -> None:
        async def one(name: str) -> None:
            with tracer.start_as_current_span(name) as span:
                expected.append(span.get_span_context().span_id)
                await coroutine()

        await asyncio.gather(one("a"), one("b"))

    asyncio.run(drive())
    with tracer.start_as_current_span("stream") as span:
        expected.append(span.get_span_context().span_id)
        stream = generator()
        next(stream)
    stream.close()
    with tracer.start_as_current_span("thread") as span:
        expected.append(span.get_span_context().span_id)
        carried = context.get_current()

        def in_thread() -> None:
            token = context.attach(carried)
            list(generator())
            context.detach(token)

        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
    coroutine.run.close()
    generator.run.close()
    assert [r.parent_span_id for r in sink.requests] == expected


def test_what_a_function_returns_is_followed(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """A plain function that hands out a generator or a coroutine has not answered yet when it returns."""

    @mfu.inference(model, peaks=PEAKS)
    def handle(*, later: bool) -> Any:
        def stream() -> Iterator[int]:
            call(model, 2)
            yield 1

        async def coroutine() -> int:
            call(model, 3)
            return 2

        return coroutine() if later else stream()

    assert list(handle(later=False)) == [1]
    assert asyncio.run(handle(later=True)) == 2
    unread = handle(later=False)
    assert len(sink.requests) == 2
    del unread
    gc.collect()
    handle.run.close()
    assert [(r.outcome, r.model_flops) for r in sink.requests] == [
        ("finished", 2 * ROW),
        ("finished", 3 * ROW),
        ("cancelled", None),
    ]


def test_disabled_leaves_every_kind_alone(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """MFU_ENABLED=0 returns the very object that was decorated, whatever it is."""
    monkeypatch.setenv("MFU_ENABLED", "0")

    class Slotted:
        __slots__ = ()

        def __call__(self) -> int:
            return 1

        def method(self) -> int:
            return 2

    async def coroutine() -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    one = Slotted()
    for handler in (coroutine, generator, one, staticmethod(generator), classmethod(generator), one.method):
        assert mfu.inference(model)(handler) is handler  # type: ignore[arg-type]  # descriptors are no functions


def test_opened_before_the_first_request(model: nn.Module, clock: testing.FakeClock, sink: Sink) -> None:
    """A service opens the run when it starts, so that no request waits; it can be asked and closed then."""

    @mfu.inference(model, peaks=PEAKS)
    def handle() -> None: ...

    handle.run.open()
    assert handle.run.summary().steps == 0
    assert handle.run.close() is not None
    handle()
    assert not sink.requests
