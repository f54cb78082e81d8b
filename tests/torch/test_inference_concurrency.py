"""Requests that overlap: whose FLOPs are whose, and a device's time told once."""

import asyncio
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mfu_sdk as mfu
from mfu_sdk import testing
from mfu_sdk.records import Peaks, Rate
from mfu_sdk.requests import Load
from mfu_sdk.run import handler, opening
from mfu_sdk.run.clock import HostClock
from mfu_sdk.run.load import STALE_S, LoadSampler

from .conftest import Sink

WIDE, OUT = 16, 8
ROW = 2 * WIDE * OUT
PEAKS = Peaks("cpu", {}, {"float32": Rate(1e9, 1e9, 1e9, "user", 0.0)}, None, None, {})


def call(model: nn.Module, rows: int) -> None:
    with torch.no_grad():
        model(torch.zeros(rows, WIDE))


calls = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 8)), max_size=5)
scripts = st.lists(st.tuples(st.integers(0, 2), calls, st.none() | st.integers(0, 4)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(scripts, st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=12), st.booleans())
def test_conservation(
    requests: list[tuple[int, list[tuple[int, int]], int | None]], order: list[tuple[int, int]], is_async: bool
) -> None:
    """However requests of three handlers interleave, and wherever they are left: nothing is lost or counted twice.

    The FLOPs of the requests are those of the steps, and those of their calls by hand. The steps' time is the union of
    the requests' times, also over handlers that share the device.
    """
    clock, sink = testing.FakeClock(), Sink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "clock_for", lambda _device: HostClock(clock))
        patch.setattr(handler, "now_ns", clock)
        patch.setattr(opening, "_telemetry", lambda _identity, _settings: sink)
        model = nn.Linear(WIDE, OUT, bias=False)
        done = []
        busy: list[list[int]] = []

        def stream(script: list[tuple[int, int]]) -> Iterator[int]:
            busy.append([clock(), clock()])
            own = busy[-1]
            try:
                for rows, eighths in script:
                    call(model, rows)
                    done.append(rows)
                    clock.advance(eighths / 8)
                    yield rows
            finally:
                own[1] = clock()

        async def astream(script: list[tuple[int, int]]):  # type: ignore[no-untyped-def]  # an asynchronous `stream`
            for each in stream(script):
                await asyncio.sleep(0)
                yield each

        handled = [
            mfu.inference(model, name=f"h{i}", tokens=lambda rows: rows, peaks=PEAKS)(astream if is_async else stream)
            for i in range(3)
        ]

        async def astep(running: object) -> None:
            await anext(running)  # type: ignore[call-overload]  # an asynchronous generator

        loop = asyncio.new_event_loop()
        pending = [(handled[which](script), leave) for which, script, leave in requests]
        steps = [0] * len(pending)
        turns = itertools.cycle(order)
        while pending_now := [i for i, each in enumerate(pending) if each is not None]:
            turn, pause = next(turns)
            i = pending_now[turn % len(pending_now)]
            running, leave = pending[i]
            try:
                if leave is not None and steps[i] >= leave:
                    loop.run_until_complete(running.aclose()) if is_async else running.close()
                    raise StopIteration
                loop.run_until_complete(astep(running)) if is_async else next(running)
                steps[i] += 1
            except (StopIteration, StopAsyncIteration):
                pending[i] = None  # type: ignore[call-overload]  # done with
            clock.advance(pause / 8)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        for each in handled:
            each.run.close()  # type: ignore[attr-defined]  # set by the decorator
    assert sum(r.model_flops or 0 for r in sink.requests) == sum(done) * ROW
    assert sum(s.model_flops or 0 for s in sink.steps) == sum(done) * ROW
    assert sum(r.tokens or 0 for r in sink.requests) == sum(done)
    assert sum(s.tokens or 0 for s in sink.steps) == sum(done)
    assert sum(s.requests or 0 for s in sink.steps) == len(sink.requests) == len(busy)
    union = covered = 0
    for start, end in sorted(map(tuple, busy)):
        union += max(0, end - max(start, covered))
        covered = max(covered, end)
    # In eighths, but for the thirds of three handlers.
    assert sum(s.duration_s for s in sink.steps) == pytest.approx(union / 1e9, abs=1e-9)


def test_two_handlers_share_a_device(clock: testing.FakeClock, sink: Sink) -> None:
    """By hand: a second alone, two seconds shared, a second alone. Each has half of what they shared."""
    model = nn.Linear(WIDE, OUT, bias=False)

    @mfu.inference(model, name="long", peaks=PEAKS)
    def long() -> Iterator[None]:
        call(model, 1)
        yield

    @mfu.inference(model, name="other", peaks=PEAKS)
    def other() -> Iterator[None]:
        call(model, 2)
        yield

    for handled in (long, other):
        list(handled())
    sink.steps.clear()
    one, two = long(), other()
    next(one)
    clock.advance(1.0)
    next(two)
    clock.advance(2.0)
    two.close()
    clock.advance(1.0)
    one.close()
    by_flops = {s.model_flops: s for s in sink.steps}
    assert by_flops[2 * ROW].duration_s == 1.0
    assert by_flops[ROW].duration_s == 3.0
    assert by_flops[2 * ROW].mfu == 2 * ROW / (1e9 * 1.0)
    assert by_flops[2 * ROW].requests_s == 2.0
    for handled in (long, other):
        handled.run.close()


def test_a_handler_inside_another(clock: testing.FakeClock, sink: Sink) -> None:
    """Where one handler asks another one of the same model, each call is the innermost one's, and counted once."""
    model = nn.Linear(WIDE, OUT, bias=False)

    @mfu.inference(model, name="inner", peaks=PEAKS)
    def inner() -> None:
        call(model, 2)

    @mfu.inference(model, name="outer", peaks=PEAKS)
    def outer() -> None:
        call(model, 1)
        inner()
        call(model, 1)

    outer()
    for handled in (inner, outer):
        handled.run.close()
    assert {r.name: r.model_flops for r in sink.requests} == {"inner": 2 * ROW, "outer": 2 * ROW}
    assert sorted(s.model_flops or 0 for s in sink.steps) == [2 * ROW, 2 * ROW]


def test_an_engine_of_two_handlers(clock: testing.FakeClock, sink: Sink) -> None:
    """A thread that works for two handlers' requests at once: its calls are counted once, and are no request's."""
    model = nn.Linear(WIDE, OUT, bias=False)

    def stream() -> Iterator[int]:
        call(model, 1)
        yield 1

    first, second = (mfu.inference(model, name=name, peaks=PEAKS)(stream) for name in ("first", "second"))
    one, two = first(), second()
    next(one)
    next(two)
    engine = threading.Thread(target=call, args=(model, 5))
    engine.start()
    engine.join()
    assert [list(one), list(two)] == [[], []]
    for handled in (first, second):
        handled.run.close()  # type: ignore[attr-defined]  # set by the decorator
    assert [r.model_flops for r in sink.requests] == [None, None]
    assert sorted(s.model_flops or 0 for s in sink.steps) == [ROW, 6 * ROW]


class Behind:
    """A device that runs behind the host: it has passed what lies before `reached`."""

    def __init__(self, now_ns: testing.FakeClock) -> None:
        self._host = HostClock(now_ns)
        self.mark = self._host.mark
        self.reached = 0

    def elapsed_s(self, start: int, end: int) -> float | None:
        return self._host.elapsed_s(start, end) if end <= self.reached else None

    def drain(self, mark: int) -> None:
        self.reached = max(self.reached, mark)


def test_a_device_that_runs_behind(clock: testing.FakeClock, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the device has not passed yet is not told yet; with the next request after it is, or at the end."""
    behind = Behind(clock)
    monkeypatch.setattr(opening, "clock_for", lambda _device: behind)
    model = nn.Linear(WIDE, OUT, bias=False)

    @mfu.inference(model, peaks=PEAKS)
    def handle() -> None:
        clock.advance(1.0)
        call(model, 1)

    handle()
    handle()
    assert (len(sink.requests), len(sink.steps)) == (0, 0)
    behind.reached = 1_000_000_000
    handle()
    assert (len(sink.requests), len(sink.steps)) == (1, 1)
    handle.run.close()
    assert (len(sink.requests), len(sink.steps)) == (3, 3)
    assert [s.duration_s for s in sink.steps] == [1.0] * 3


def test_many_tasks_at_once(clock: testing.FakeClock, sink: Sink) -> None:
    """Twenty asynchronous requests interleaved call by call are one busy period, with ten under way in the mean."""
    model = nn.Linear(WIDE, OUT, bias=False)

    @mfu.inference(model, peaks=PEAKS)
    async def handle(turns: int) -> None:
        for _ in range(turns):
            call(model, turns)
            await asyncio.sleep(0)

    async def drive() -> None:
        tasks = [asyncio.create_task(handle(turns)) for turns in range(1, 20)]
        for _ in range(20):
            await asyncio.sleep(0)
            clock.advance(1 / 32)
        await asyncio.gather(*tasks)

    asyncio.run(drive())
    handle.run.close()
    assert sorted(r.model_flops or 0 for r in sink.requests) == [turns**2 * ROW for turns in range(1, 20)]
    [step] = sink.steps
    assert step.model_flops == sum(turns**2 for turns in range(1, 20)) * ROW
    # All nineteen begin at once, and one ends with every turn of the loop: (19 + 18 + … + 1) / 19.
    assert step.requests_running == pytest.approx(10.0)


def test_threads_at_once(clock: testing.FakeClock, sink: Sink) -> None:
    """Real threads, calling at their own pace: each request its own, in sum the device's."""
    model = nn.Linear(WIDE, OUT, bias=False)
    start = threading.Barrier(8)

    @mfu.inference(model, peaks=PEAKS)
    def handle(rows: int) -> None:
        for _ in range(rows):
            call(model, rows)

    def work(rows: int) -> None:
        start.wait(timeout=120)
        for _ in range(5):
            handle(rows)

    threads = [threading.Thread(target=work, args=(rows,)) for rows in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.run.close()
    assert sorted(r.model_flops or 0 for r in sink.requests) == sorted(
        itertools.chain.from_iterable([rows**2 * ROW] * 5 for rows in range(1, 9))
    )
    assert sum(s.model_flops or 0 for s in sink.steps) == 5 * sum(rows**2 for rows in range(1, 9)) * ROW


def test_long_streams_do_not_wait_for_their_end(clock: testing.FakeClock, sink: Sink) -> None:
    """Where nothing but a long stream is handled, its work is told in between: its FLOPs and its time, once."""
    model = nn.Linear(WIDE, OUT, bias=False)

    @mfu.inference(model, tokens=lambda chunk: 1, peaks=PEAKS)
    def handle() -> Iterator[int]:
        for _ in range(7):
            clock.advance(4.0)
            call(model, 2)
            yield 1

    list(handle())
    handle.run.close()
    assert [(s.duration_s, s.model_flops, s.requests, s.tokens) for s in sink.steps] == [
        (12.0, 3 * 2 * ROW, 0, None),
        (12.0, 3 * 2 * ROW, 0, None),
        (4.0, 2 * ROW, 1, 7),
    ]
    assert [s.requests_running for s in sink.steps] == [1.0] * 3


FORKED = """
import os, threading
import torch
import mfu_sdk as mfu
from mfu_sdk.records import Peaks, Rate
from mfu_sdk.run.turns import turns

model = torch.nn.Linear(4, 2)
peaks = Peaks("cpu", {}, {"float32": Rate(1e9, 1e9, 1e9, "user", 0.0)}, None, None, {})


@mfu.inference(model, peaks=peaks)
def handle():
    return model.weight.sum().item()


handle()
held, let = threading.Event(), threading.Event()


def hold():
    with turns:
        held.set()
        let.wait()


thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    handle()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
let.set()
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_has_its_turn() -> None:
    """A child that is forked while another thread is at the books handles requests: that thread is not in it."""
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=300, check=True
    )
    assert said.stdout == "7\n"


def test_the_load_is_on_the_steps(clock: testing.FakeClock, sink: Sink) -> None:
    """What the server tells of its load is asked for in a thread of its own, and is on the steps that follow."""
    model = nn.Linear(WIDE, OUT, bias=False)
    asked = threading.Event()
    threads = []

    def load() -> Load:
        threads.append(threading.current_thread().name)
        asked.set()
        return Load(batch_feasible=32, queue_waiting=3, kv_cache_free_ratio=0.75, latency_target_s=0.05)

    @mfu.inference(model, load=load, peaks=PEAKS)
    def handle() -> None:
        assert asked.wait(timeout=120)
        call(model, 4)

    handle.run.open()
    assert asked.wait(timeout=120)
    # Whether the thread has put its answer down yet is a matter of time; this one has.
    handle.run.load.sample()
    handle()
    handle.run.close()
    [step] = sink.steps
    assert (step.batch_running, step.batch_feasible, step.queue_waiting) == (4, 32, 3)
    assert (step.kv_cache_free_ratio, step.latency_target_s) == (0.75, 0.05)
    assert threads[0] == "mfu-load"


def test_an_old_or_broken_load_is_unknown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An answer is reported until it is three seconds old; one that fails or is no `Load` is left out."""
    monkeypatch.setenv("MFU_GUARD", "log")
    now = [0.0]
    answers: list[object] = [Load(queue_waiting=1), None, {"queue": 2}]

    def load() -> Load:
        return answers.pop(0)  # type: ignore[return-value]  # wrong on purpose

    sampler = LoadSampler(load, now_s=lambda: now[0])
    assert sampler.latest() is None
    sampler.sample()
    assert sampler.latest() == Load(queue_waiting=1)
    for _ in range(3):
        sampler.sample()
    now[0] = STALE_S
    assert sampler.latest() == Load(queue_waiting=1)
    assert "must be an mfu_sdk.Load" in caplog.text
    assert "the load callback failed" in caplog.text
    now[0] += 0.001
    assert sampler.latest() is None


def test_a_load_that_cannot_be_is_refused() -> None:
    """A share lies between 0 and 1, and nothing is negative."""
    with pytest.raises(ValueError, match=r"kv_cache_free_ratio=50.*between 0 and 1"):
        Load(kv_cache_free_ratio=50)
    with pytest.raises(ValueError, match=r"queue_waiting=-1.*at least 0"):
        Load(queue_waiting=-1)
