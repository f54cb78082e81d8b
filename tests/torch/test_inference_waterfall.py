"""Where a handler's time went: between the calls of its model and within them, by hand.

The clock moves only where an operator or the handler says so.
"""

from collections.abc import Iterator
from typing import Final

import pytest
import torch
from torch import nn

import mfu_sdk as mfu
from mfu_sdk import testing
from mfu_sdk.export.windows import Windows, sums
from mfu_sdk.records import Peaks, Rate, RunSummary
from mfu_sdk.run.call_times import PAUSE_NS, call_times
from mfu_sdk.run.clock import CudaClock, HostClock
from mfu_sdk.run.evidence import Gathered
from mfu_sdk.run.phases import CallShape

from .conftest import Sink

WIDE: Final = 8
PRODUCT: Final = 2 * WIDE**3
PRODUCT_S, STREAM_S, GAP_S = 0.5, 0.25, 0.75
PEAK: Final = 4 * PRODUCT
"""FLOP/s, at which a product takes half of the time that it is made to take."""
PEAKS: Final = Peaks("cpu", {}, {"float32": Rate(PEAK, PEAK, PEAK, "user", 0.0)}, None, None, {})
BYTES_PER_S: Final = 3 * 4 * WIDE**2 / 0.375
"""At which a product's two matrices and its result take 0.375 s, an eighth longer than its FLOPs."""
MEMORY: Final = Peaks("cpu", {}, PEAKS.achievable, Rate(BYTES_PER_S, BYTES_PER_S, BYTES_PER_S, "user", 0.0), None, {})

_moving: list[testing.FakeClock] = []


@torch.library.custom_op("served::product", mutates_args=())
def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    _moving[-1].advance(PRODUCT_S)
    return x @ w


@torch.library.custom_op("served::stream", mutates_args=())
def stream(x: torch.Tensor) -> torch.Tensor:
    _moving[-1].advance(STREAM_S)
    return x + 1


class Layer(nn.Module):
    """Two products with an operator without FLOPs in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(WIDE, WIDE)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return product(stream(product(x, self.first)), self.second)


CALL_S: Final = 2 * PRODUCT_S + STREAM_S
USEFUL_S: Final = 2 * PRODUCT / PEAK
X: Final = torch.ones(WIDE, WIDE)


@pytest.fixture(autouse=True)
def _hand_wound(clock: testing.FakeClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import torch._dynamo.utils

    # What other tests have compiled in this process would end the timing of operators.
    monkeypatch.setitem(torch._dynamo.utils.counters["stats"], "unique_graphs", 0)
    mfu.register_flops("served::product", lambda x, w, **_: 2 * x[0] * x[1] * w[1])
    _moving.append(clock)
    with torch.no_grad():
        yield
    _moving.pop()


def seconds(run: RunSummary, calls: int) -> dict[str, float]:
    """Each bar's seconds a call."""
    return {bar.name: bar.seconds / calls for bar in run.bars}


def test_all_of_it(clock: testing.FakeClock, sink: Sink) -> None:
    """Three calls a request and 0.75 s behind each: what one timed call showed is taken for all, and nothing is left.

    A call works 1.25 s, of which its FLOPs take 0.5 at the peak and an operator without FLOPs 0.25.
    """
    model = Layer()

    @mfu.inference(model, peaks=PEAKS)
    def handle() -> None:
        for _ in range(3):
            model(X)
            clock.advance(GAP_S)

    for _ in range(6):
        handle()
    # The first request was counted.
    bars = seconds(handle.run.close(), 15)
    assert bars == pytest.approx(
        {
            "mfu": USEFUL_S,
            "host_gap": GAP_S,
            "exposed_communication": 0.0,
            "rank_skew": 0.0,
            "recomputation": 0.0,
            "memory_bound": STREAM_S,
            "kernel_inefficiency": 2 * PRODUCT_S - USEFUL_S,
            "unexplained": 0.0,
        },
        abs=1e-9,
    )


def test_without_operator_times(clock: testing.FakeClock, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    """MFU_PROFILE=off, and so on a GPU: the time between calls is measured, memory's is the roofline's.

    A product's bytes take 0.125 s longer than its FLOPs; those of the operator without FLOPs, two matrices, 0.25 s.
    """
    monkeypatch.setenv("MFU_PROFILE", "off")
    model = Layer()

    @mfu.inference(model, peaks=MEMORY)
    def handle() -> None:
        for _ in range(3):
            model(X)
            clock.advance(GAP_S)

    for _ in range(6):
        handle()
    summary = handle.run.close()
    bars = seconds(summary, 15)
    assert {name: bars[name] for name in ("host_gap", "memory_bound", "unexplained")} == pytest.approx(
        {"host_gap": GAP_S, "memory_bound": 2 * 0.125 + 0.25, "unexplained": CALL_S - USEFUL_S - 0.5}, abs=1e-9
    )
    assert {bar.name: bar.known for bar in summary.bars}["host_gap"] == "measured"
    assert "kernel_inefficiency" not in bars


def test_the_bytes_of_products_are_memorys(clock: testing.FakeClock, sink: Sink) -> None:
    """Of the products' second an eighth each is what their bytes take beyond their FLOPs, and the rest the kernels'."""
    model = Layer()

    @mfu.inference(model, peaks=MEMORY)
    def handle() -> None:
        model(X)

    for _ in range(6):
        handle()
    bars = seconds(handle.run.close(), 5)
    assert bars["memory_bound"] == pytest.approx(2 * 0.125 + STREAM_S)
    assert bars["kernel_inefficiency"] == pytest.approx(2 * PRODUCT_S - USEFUL_S - 2 * 0.125)


def test_streams_take_turns(clock: testing.FakeClock, sink: Sink) -> None:
    """Two streams at once: between calls is where neither has one, whoever's turn it is, and a consumer's time is too.

    Each round lets the clock run for a quarter second behind one call and for half of one behind the other.
    """
    model = Layer()

    @mfu.inference(model, peaks=PEAKS)
    def handle() -> Iterator[int]:
        for _ in range(8):
            model(X)
            yield 1

    # The first call is counted.
    assert next(handle()) == 1
    pairs = zip(handle(), handle(), strict=True)
    clock.advance(0.5)
    for _ in pairs:
        clock.advance(0.75)
    bars = seconds(handle.run.close(), 1)
    calls = 16
    assert bars["mfu"] == pytest.approx(calls * USEFUL_S)
    # What lies before the first call is its own period's, and what follows the last one is none's: all has ended.
    assert bars["host_gap"] == pytest.approx(8 * 0.75)
    assert bars["unexplained"] == pytest.approx(0.0, abs=1e-9)


def test_windows_add_up(clock: testing.FakeClock, sink: Sink) -> None:
    """The host's seconds of the run are those of its windows, which a provider sums."""
    model = Layer()

    @mfu.inference(model, peaks=PEAKS)
    def handle(gap_s: float) -> None:
        for _ in range(3):
            model(X)
            clock.advance(gap_s)

    for gap_s in (0.0, 0.25, 0.5, 1.0, 0.0, 2.0):
        handle(gap_s)
    summary = handle.run.close()
    windows = Windows()
    for step in sink.steps:
        windows.add(step)
    told = [sink.observer.signals(each, sums(each.steps)) for each in windows.close()]
    [gap_s] = [bar.seconds for bar in summary.bars if bar.name == "host_gap"]
    assert sum(each.host_s or 0.0 for each in told) == pytest.approx(gap_s) == pytest.approx(3 * 3.75)


def test_a_call_that_fails_is_over(clock: testing.FakeClock, sink: Sink) -> None:
    """What comes after it is between calls again; so is what comes after one whose end no hook was told of."""
    model = Layer()

    @mfu.inference(model, peaks=PEAKS)
    def handle(x: torch.Tensor) -> None:
        try:
            model(x)
        except RuntimeError:
            clock.advance(GAP_S)

    handle(X)
    for _ in range(4):
        handle(X)
    assert handle.run._calls.under_way == 0
    handle(torch.ones(3, 3))
    assert handle.run._calls.under_way == 0
    early = model.register_forward_hook(lambda *_: 1 / 0, prepend=True)
    with pytest.raises(ZeroDivisionError):
        handle(X)
    early.remove()
    assert handle.run._calls.under_way == 0
    handle(X)
    handle.run.close()


def test_prompts_and_answers_have_their_turns() -> None:
    """Whichever kind of call was timed less often is next, and one at a time, while it is earned."""
    clock = testing.FakeClock()
    times = call_times(HostClock(clock), "auto")
    assert times is not None
    prompt, answer = CallShape(1, 64, "empty"), CallShape(1, 1, "filled")
    assert not times.due(prompt)
    clock.advance(1e6)
    assert times.due(answer)
    assert not times.due(prompt)
    times.forget()
    assert times.due(prompt)
    # One that was timed is followed by none for a while, however little it took.
    times.tell(Gathered(ranks=1), None, "prefill")
    assert not times.due(answer)
    clock.advance(PAUSE_NS / 1e9)
    assert times.due(answer)
    assert call_times(HostClock(clock), "off") is None
    assert call_times(CudaClock("cuda:0"), "auto") is None
