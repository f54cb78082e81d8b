"""Where a run's time went: each fault moves its own bar.

The clock moves only where an operator, the loader or the loop says so, so that every bar can be worked out by hand.
"""

import sys
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

import mfu_sdk as mfu
from mfu_sdk import testing
from mfu_sdk.errors import ConfigurationError, MissingDependencyError
from mfu_sdk.records import Peaks, Rate, RunSummary, StepRecord
from mfu_sdk.run import op_times, opening
from mfu_sdk.run.clock import HostClock
from mfu_sdk.run.op_times import CALL_S, EVERY, FIRST, MOST_CALL_S, MOST_OF_RUN, OpTimes

WIDE: Final = 8
FORWARD: Final = 2 * WIDE**3
PRODUCT_S, STREAM_S = 0.5, 0.25
"""What the clock moves by for a product, and for an operator without FLOPs."""
# At 4,096 FLOP/s a product of 1,024 FLOPs takes 0.25 s of the 0.5 that it is made to take.
PEAK: Final = 4 * FORWARD
PEAKS: Final = Peaks("cpu", {}, {"float32": Rate(PEAK, PEAK, PEAK, "user", 0.0)}, None, None, {})
STEPS: Final = 40

_clock = testing.FakeClock()


@torch.library.custom_op("waterfall::product", mutates_args=())
def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    _clock.advance(PRODUCT_S)
    return x @ w


@torch.library.custom_op("waterfall::stream", mutates_args=())
def stream(x: torch.Tensor) -> torch.Tensor:
    _clock.advance(STREAM_S)
    return x + 1


def _keep(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, w = ctx.saved_tensors
    return product(gradient, w.t().contiguous()), product(x.t().contiguous(), gradient)


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests have compiled in this process would end the timing of operators."""
    import torch._dynamo.utils

    monkeypatch.setitem(torch._dynamo.utils.counters["stats"], "unique_graphs", 0)


product.register_autograd(_backward, setup_context=_keep)
stream.register_autograd(lambda _ctx, gradient: gradient)


class Layer(nn.Module):
    """Two products with an operator without FLOPs in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(WIDE, WIDE)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return product(stream(product(x, self.first)), self.second)


class Rows(Dataset[torch.Tensor]):
    """Inputs; each keeps the loader for `wait_s`, and for an operator's time more if it `streams`."""

    def __init__(self, wait_s: float, *, streams: bool = False) -> None:
        self.wait_s, self.streams = wait_s, streams

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> torch.Tensor:
        _clock.advance(self.wait_s)
        x = torch.randn(WIDE, WIDE)
        return stream(x) if self.streams else x


@pytest.fixture(autouse=True)
def _hand_wound(monkeypatch: pytest.MonkeyPatch) -> None:
    mfu.register_flops("waterfall::product", lambda x, w, **_: 2 * x[0] * x[1] * w[1])
    monkeypatch.setattr(opening, "clock_for", lambda _device: HostClock(_clock))


def train(
    *,
    data_s: float = 0.0,
    host_s: float = 0.0,
    recompute: bool = False,
    streams: int = 0,
    marks: str = "all",
    loader_streams: bool = False,
) -> tuple[RunSummary, list[StepRecord]]:
    """Forty steps with these faults; `marks` says which part of the loop `run.step` is around."""
    model = Layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for x in run.batches(DataLoader(Rows(data_s, streams=loader_streams), batch_size=None)):
            x.requires_grad_()
            step = None if marks == "none" else run.step()
            if step is not None:
                step.__enter__()
            _clock.advance(host_s)
            for _ in range(streams):
                stream(x)
            loss = (checkpoint(model, x, use_reentrant=False) if recompute else model(x)).sum()
            loss.backward()
            if step is not None and marks == "model":
                step.__exit__(None, None, None)
            optimizer.step()
            optimizer.zero_grad()
            if step is not None and marks == "all":
                step.__exit__(None, None, None)
    return run.summary(), records


# Two products forward and four backward, and what is in between once.
PRODUCTS_S: Final = 6 * PRODUCT_S
WORK_S: Final = PRODUCTS_S + STREAM_S
USEFUL_S: Final = 6 * FORWARD / PEAK


def by_hand(step_s: float, **seconds: float) -> dict[str, float]:
    """Shares of a step of `step_s`, of which a product's half is useful unless told otherwise."""
    usual = {
        "mfu": USEFUL_S,
        "data_wait": 0.0,
        "host_gap": 0.0,
        "exposed_communication": 0.0,
        "rank_skew": 0.0,
        "recomputation": 0.0,
        "memory_bound": STREAM_S,
        "kernel_inefficiency": PRODUCTS_S - USEFUL_S,
        "unexplained": 0.0,
    }
    return {name: seconds.get(name, value) / step_s for name, value in usual.items()}


def test_no_fault() -> None:
    """3.25 s a step: 1.5 useful, as much lost in the products, and 0.25 without FLOPs."""
    summary, records = train()
    assert {r.duration_s for r in records} == {WORK_S}
    assert dict(summary.waterfall) == pytest.approx(by_hand(WORK_S), abs=1e-9)
    assert summary.mfu == pytest.approx(USEFUL_S / WORK_S)


def test_a_slow_loader_moves_data_wait_alone() -> None:
    """A loader that takes 2 s for each batch: no other bar has another number of seconds."""
    summary, _ = train(data_s=2.0)
    assert dict(summary.waterfall) == pytest.approx(by_hand(WORK_S + 2, data_wait=2.0), abs=1e-9)


def test_a_slow_host_moves_the_gap_alone() -> None:
    """A loop that does something else for 2 s in each step: the processor ran no operator."""
    summary, _ = train(host_s=2.0)
    assert dict(summary.waterfall) == pytest.approx(by_hand(WORK_S + 2, host_gap=2.0), abs=1e-9)


def test_checkpointing_moves_recomputation() -> None:
    """The forward once more: two products and what is between them.

    At the measured rate, which here is the peak, the products' 1,024 FLOPs each take 0.25 s: those are
    recomputation, and their other half is as inefficient as that of all products. The operator without FLOPs ran twice.
    """
    summary, _ = train(recompute=True)
    again_s = 2 * FORWARD / PEAK
    expected = by_hand(
        WORK_S + 2 * PRODUCT_S + STREAM_S,
        recomputation=again_s,
        memory_bound=2 * STREAM_S,
        kernel_inefficiency=8 * PRODUCT_S - USEFUL_S - again_s,
    )
    assert dict(summary.waterfall) == pytest.approx(expected, abs=1e-9)


def test_operators_without_flops_move_memory_bound_alone() -> None:
    """Four more of them in each step."""
    summary, _ = train(streams=4)
    expected = by_hand(WORK_S + 4 * STREAM_S, memory_bound=5 * STREAM_S)
    assert dict(summary.waterfall) == pytest.approx(expected, abs=1e-9)


def test_marks_do_not_matter() -> None:
    """Around all of the loop's body, around the model alone, or none at all: every bar is the same.

    Without marks a step begins with its forward, so that the last of the 29 timed ones waits for nothing after it.
    """
    whole, model, none = (train(data_s=1.0, host_s=0.5, marks=marks)[0] for marks in ("all", "model", "none"))
    assert dict(whole.waterfall) == pytest.approx(by_hand(WORK_S + 1.5, data_wait=1.0, host_gap=0.5), abs=1e-9)
    assert dict(model.waterfall) == pytest.approx(dict(whole.waterfall), abs=1e-9)
    timed = none.timed_steps
    assert timed == 29
    last = by_hand(WORK_S + 1.5 - 1.5 / timed, data_wait=1 - 1 / timed, host_gap=0.5 - 0.5 / timed)
    assert dict(none.waterfall) == pytest.approx(last, abs=1e-9)


@pytest.mark.parametrize("marks", ["all", "none"])
def test_operators_of_a_loader_are_waiting(marks: str) -> None:
    """What a loader computes in this process is waiting for data, and not the model's operators a second time."""
    seconds = {
        bar.name: bar.seconds / summary.timed_steps
        for summary in [train(loader_streams=True, marks=marks)[0]]
        for bar in summary.bars
    }
    # Without marks the last step waits for nothing.
    waits = 1 if marks == "all" else 1 - 1 / 29
    assert seconds["data_wait"] == pytest.approx(waits * STREAM_S)
    assert seconds["memory_bound"] == pytest.approx(STREAM_S)
    assert seconds["host_gap"] == pytest.approx(0.0, abs=1e-9)


def test_the_users_profiler_has_its_steps_to_itself() -> None:
    """While it is on, no step's operators are timed."""
    clock = testing.FakeClock()
    times = OpTimes(HostClock(clock))
    clock.advance(1e6)
    assert times.due(FIRST)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert not times.due(FIRST)


def test_without_batches_the_gap_is_unexplained() -> None:
    """A loop that does not show its loader may wait for it where nothing runs."""
    model = Layer()
    with mfu.monitor(model, peaks=PEAKS) as run:
        for _ in range(STEPS):
            with run.step():
                _clock.advance(2.0)
                model(torch.randn(WIDE, WIDE, requires_grad=True)).sum().backward()
    shares = run.summary().waterfall
    assert not {"data_wait", "host_gap"} & set(shares)
    assert shares["unexplained"] == pytest.approx(2.0 / (WORK_S + 2.0))


def test_profiled_steps_are_told_and_in_no_sum() -> None:
    """Steps 13, 21, 29 and 37 of forty; neither they nor the counted ones (0, 1, 2, 4, 8, 16, 32) are timed."""
    summary, records = train()
    profiled = [record.index for record in records if record.profiled]
    assert profiled == [13, 21, 29, 37]
    assert not any(records[index].timed for index in profiled)
    assert summary.timed_steps == STEPS - len(profiled) - 7
    # They are work all the same, with their FLOPs.
    assert {records[index].model_flops for index in profiled} == {6 * FORWARD}


def test_profiling_can_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """MFU_PROFILE=off: no step's operators are timed, and what that would have shown is not guessed."""
    monkeypatch.setenv("MFU_PROFILE", "off")
    summary, records = train(host_s=2.0)
    assert not any(record.profiled for record in records)
    assert not {"host_gap", "kernel_inefficiency"} & set(summary.waterfall)
    assert summary.waterfall["unexplained"] == pytest.approx(1 - USEFUL_S / (WORK_S + 2.0))


def test_profiling_costs_less_than_its_budget() -> None:
    """A step's operators are timed only once what all that costs is at most 0.5 % of the time since the start."""
    clock = testing.FakeClock()
    times = OpTimes(HostClock(clock))
    assert not times.due(FIRST)
    # 1,000 operators are expected before any were seen.
    clock.advance(1000 * CALL_S / MOST_OF_RUN)
    assert times.due(FIRST)
    assert not times.due(FIRST + 1)
    times.start()
    for _ in range(3000):
        torch.neg(torch.ones(()))
    times.stop()
    # Twice 6,000 calls, the ones that were and the ones to come, are 120 ms and take 24 s to earn.
    clock.advance(24 - 2 - 0.01)
    assert not times.due(FIRST + EVERY)
    clock.advance(0.02)
    assert times.due(FIRST + EVERY)


def test_the_price_of_profiling_is_measured() -> None:
    """A step that was timed is held against those that were not: what it took longer is what timing costs here.

    1,000 operators are reckoned at 10 µs each and took 30. The next 1,000 are reckoned at a quarter of the way there:
    30 ms and 15 are to be earned, in 9 s.
    """
    clock = testing.FakeClock()
    times = OpTimes(HostClock(clock))
    times.start()
    for _ in range(500):
        torch.neg(torch.ones(()))
    times.stop()
    times.longer(0.03)
    clock.advance(9 - 0.01)
    assert not times.earned()
    clock.advance(0.02)
    assert times.earned()


@pytest.mark.parametrize(("longer_s", "call_s"), [(-1.0, CALL_S), (0.0, CALL_S), (60.0, MOST_CALL_S)])
def test_the_price_of_profiling_is_believed_within_bounds(longer_s: float, call_s: float) -> None:
    """A step that was shorter than others is no proof that timing is free, nor one of a minute of what it costs."""
    times = OpTimes(HostClock(testing.FakeClock()))
    times.start()
    for _ in range(50):
        torch.neg(torch.ones(()))
    times.stop()
    times.longer(longer_s)
    assert times._spent_s == pytest.approx(100 * call_s)


def test_a_run_learns_what_profiling_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that take a second longer where they are timed: after the first, at 0.5 %, none is for 200 s and more."""
    monkeypatch.setattr(op_times, "MOST_CALL_S", 10.0)
    model = Layer()
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=PEAKS, on_step=records.append) as run:
        for _ in range(STEPS):
            with run.step():
                model(torch.randn(WIDE, WIDE, requires_grad=True)).sum().backward()
                if run.engine is not None and run.engine.step is not None and run.engine.step.profiled:
                    _clock.advance(1.0)
    assert [record.index for record in records if record.profiled] == [13]


def test_nested_timing_is_thrown_away() -> None:
    """Two that run at once would each time the other: neither says anything."""
    outer, inner = OpTimes(HostClock()), OpTimes(HostClock())
    outer.start()
    torch.ones(2).neg()
    inner.start()
    torch.ones(2).neg()
    inner.stop()
    outer.stop()
    assert (outer.seconds(), inner.seconds()) == (None, None)
    outer.start()
    torch.ones(2).neg()
    outer.stop()
    assert set(outer.seconds() or ()) == {"aten::ones", "aten::neg"}


def test_compiled_work_is_not_timed() -> None:
    """What torch has compiled passes no dispatcher, so that the operators that do are not all."""
    times = OpTimes(HostClock())
    torch._dynamo.reset()
    try:
        times.start()
        torch.compile(torch.neg, backend="eager")(torch.ones(2))
        times.stop()
        assert times.seconds() is None
    finally:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_a_picture(ending: str, begins: bytes, tmp_path: Path) -> None:
    """Written in the format that its name ends in, with a rectangle for each bar; no global figure is left open."""
    pytest.importorskip("matplotlib")
    model = Layer()
    with mfu.monitor(model, name="drawn", peaks=PEAKS) as run:
        for _ in range(8):
            with run.step():
                model(torch.randn(WIDE, WIDE, requires_grad=True)).sum().backward()
    path = tmp_path / f"waterfall.{ending}"
    run.draw(path)
    assert path.read_bytes().startswith(begins)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_a_picture_of_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An ending that is no format, a run without MFU, and no matplotlib: each is said before anything is written."""
    model = Layer()
    with mfu.monitor(model, name="drawn", peaks=PEAKS) as run:
        with pytest.raises(ConfigurationError, match="drawn: its MFU is unknown"):
            run.draw(tmp_path / "waterfall.svg")
        for _ in range(8):
            with run.step():
                model(torch.randn(WIDE, WIDE, requires_grad=True)).sum().backward()
    with pytest.raises(ConfigurationError, match=r"waterfall\.jpg: must end in \.svg, \.png, \.pdf"):
        run.draw(tmp_path / "waterfall.jpg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r'matplotlib is not installed.*pip install "mfu-sdk\[plot\]"'):
        run.draw(tmp_path / "waterfall.svg")
    assert not list(tmp_path.glob("*.svg"))
