"""Profiled steps of a GPU: when, at what price, and what a trace becomes. The traces are made by hand; on a processor
torch's own profiler has none.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import mfu_sdk as mfu
from mfu_sdk import testing
from mfu_sdk.drift.samples import Ran
from mfu_sdk.records import Peaks, Rate, StepRecord
from mfu_sdk.run import opening
from mfu_sdk.run.clock import CudaClock, HostClock
from mfu_sdk.run.evidence import Gathered, Worked
from mfu_sdk.run.kernel_names import canonical
from mfu_sdk.run.kernel_times import EVERY, FIRST, FIRST_COST_S, MOST_OF_RUN, KernelTimes
from mfu_sdk.run.op_times import OpTimes
from mfu_sdk.run.profile import _times

S = 1_000_000_000


def event(name: str, start_s: float, end_s: float, kind: str = "kernel") -> Any:
    return SimpleNamespace(
        name=lambda: name,
        activity_type=lambda: kind,
        start_ns=lambda: round(start_s * S),
        duration_ns=lambda: round((end_s - start_s) * S),
    )


TRACE = [
    event("nvjet_tst_128x256_64x4", 0.0, 4.0),
    event("void at::native::vectorized_elementwise_kernel<4>", 4.0, 6.0),
    event("Memcpy DtoD (Device -> Device)", 6.0, 6.5, "gpu_memcpy"),
    event("Memset (Device)", 6.5, 7.0, "gpu_memset"),
    # Neither works on the device: copies from the host, and what the program wrote beside its kernels.
    event("Memcpy HtoD (Pinned -> Device)", 7.0, 8.0, "gpu_memcpy"),
    event("the user's own words", 0.0, 10.0, "gpu_user_annotation"),
    event("cudaLaunchKernel", 0.0, 10.0, "cuda_runtime"),
    event("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", 3.0, 9.0),
]


def older(told: Any) -> Any:
    """The same event as torch 2.11 tells of it: it has a device, and no kind."""
    kind = told.activity_type()
    return SimpleNamespace(
        name=told.name,
        device_type=lambda: DeviceType.CPU if kind == "cuda_runtime" else DeviceType.CUDA,
        is_user_annotation=lambda: kind == "gpu_user_annotation",
        start_ns=told.start_ns,
        duration_ns=told.duration_ns,
    )


class Profiler:
    """Stands in for torch's: takes its time, and has that trace."""

    def __init__(self, clock: testing.FakeClock, *, fails: bool = False, trace: list[Any] = TRACE) -> None:
        self._clock = clock
        self._fails = fails
        self.profiler = SimpleNamespace(kineto_results=SimpleNamespace(events=lambda: trace))

    def start(self) -> None:
        self._clock.advance(1.0)
        if self._fails:
            raise RuntimeError("CUPTI_ERROR_NOT_INITIALIZED")

    def stop(self) -> None:
        self._clock.advance(0.5)


def times(clock: testing.FakeClock, **options: Any) -> KernelTimes:
    return KernelTimes(lambda: clock() / S, lambda: Profiler(clock, **options))


@pytest.mark.parametrize("trace", [TRACE, [*map(older, TRACE), older(event("Context Sync", 0.0, 10.0))]])
def test_a_trace_becomes_evidence(trace: list[Any]) -> None:
    """Products 4 s, streaming 2 + 0.5 + 0.5 s, and two seconds of an exchange that nothing hid."""
    clock = testing.FakeClock()
    kernels = times(clock, trace=trace)
    kernels.start()
    kernels.stop()
    gathered = Gathered(ranks=2)
    ran = kernels.tell(gathered, 1000)
    assert gathered._worked == {"train": Worked(1000, 4.0, 3.0)}
    # By names that are the same in every launch; copies and fills are no kernels.
    assert ran == Ran(
        {
            "nvjet_tst_128x256_64x4": 4.0,
            "at::native::vectorized_elementwise_kernel": 2.0,
            "ncclDevKernel_AllReduce_Sum_bf16_RING_LL": 6.0,
        },
        worked_s=7.0,
        hardware_flops=1000,
        exposed_s=2.0,
    )
    assert gathered.exchange == (2.0, 2.0)
    # A trace is told once.
    assert kernels.tell(gathered, 1000) == Ran({}, None, 1000)
    assert gathered._worked["train"].hardware_flops == 1000


def test_it_costs_less_than_its_budget() -> None:
    """First what starting it is reckoned to take, then what it took: 1.5 s, so twice that has to be earned."""
    clock = testing.FakeClock()
    kernels = times(clock)
    clock.advance(FIRST_COST_S / MOST_OF_RUN - 0.01)
    assert not kernels.due(FIRST)
    clock.advance(0.02)
    assert kernels.due(FIRST)
    assert not kernels.due(FIRST + 1)
    assert not kernels.due(FIRST - EVERY)
    kernels.start()
    kernels.stop()
    clock.advance(2 * 1.5 / MOST_OF_RUN - clock() / S - 0.01)
    assert not kernels.due(FIRST + EVERY)
    clock.advance(0.02)
    assert kernels.due(FIRST + EVERY)
    # One that is wanted costs what it costs, and that is on the account.
    kernels.start()
    kernels.stop()
    assert not kernels.due(FIRST + 2 * EVERY)
    assert kernels.due(FIRST + 2 * EVERY, wanted=True)
    assert not kernels.due(FIRST + 1, wanted=True)


def test_not_beside_a_profiler_of_the_users() -> None:
    """While it is on, no step is profiled."""
    clock = testing.FakeClock()
    kernels = times(clock)
    clock.advance(1e6)
    assert kernels.due(FIRST)
    with profile(activities=[ProfilerActivity.CPU]):
        assert not kernels.due(FIRST)


def test_one_that_does_not_start() -> None:
    """What it took is on the account, there is nothing to stop, and nothing is told."""
    clock = testing.FakeClock()
    kernels = times(clock, fails=True)
    with pytest.raises(RuntimeError, match="CUPTI"):
        kernels.start()
    kernels.stop()
    gathered = Gathered(ranks=1)
    kernels.tell(gathered, 1000)
    assert gathered._worked == {}
    clock.advance(1.0 / MOST_OF_RUN)
    assert not kernels.due(FIRST)


def test_torchs_own_profiler_on_a_processor() -> None:
    """Its trace is read as it is, and holds no kernel: nothing is told."""
    kernels = KernelTimes(make=lambda: profile(activities=[ProfilerActivity.CPU], acc_events=True))
    kernels.start()
    torch.ones(8, 8) @ torch.ones(8, 8)
    kernels.stop()
    gathered = Gathered(ranks=1)
    kernels.tell(gathered, 1000)
    assert gathered._worked == {}


def test_who_times_what() -> None:
    """A processor's operators unless that is off; a GPU's kernels only where they are asked for."""
    found = {
        (type(clock).__name__, profiling): type(_times(clock, profiling)).__name__
        for clock in (HostClock(), CudaClock("cuda:0"))
        for profiling in ("auto", "kernels", "off")
    }
    assert found == {
        ("HostClock", "auto"): "OpTimes",
        ("HostClock", "kernels"): "OpTimes",
        ("HostClock", "off"): "NoneType",
        ("CudaClock", "auto"): "NoneType",
        ("CudaClock", "kernels"): "KernelTimes",
        ("CudaClock", "off"): "NoneType",
    }


def test_a_run_with_profiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a trace is in no step's time, and of steps of ten seconds the waterfall has the bars that it tells."""
    clock = testing.FakeClock()
    monkeypatch.setattr(opening, "clock_for", lambda _device: HostClock(clock))
    monkeypatch.setattr("mfu_sdk.run.profile._times", lambda *_: times(clock))
    model = torch.nn.Linear(64, 64, bias=False)
    flops = 2 * 64**3
    # The product takes two seconds at this rate, of the four that it took.
    peaks = Peaks("cpu", {}, {"float32": Rate(flops / 2, flops / 2, flops / 2, "user", 0.0)}, None, None, {})
    records: list[StepRecord] = []
    with mfu.monitor(model, peaks=peaks, on_step=records.append) as run, torch.no_grad():
        for _ in run.batches(range(200)):
            with run.step():
                model(torch.randn(64, 64))
                clock.advance(10.0)
    profiled = [record.index for record in records if record.profiled]
    assert profiled
    assert {record.duration_s for record in records if not record.profiled} == {10.0}
    shares = run.summary().waterfall
    assert shares["mfu"] == pytest.approx(0.2)
    assert shares["kernel_inefficiency"] == pytest.approx(0.2)
    assert shares["memory_bound"] == pytest.approx(0.3)
    assert shares["host_gap"] == pytest.approx(0.3)
    assert shares["unexplained"] == pytest.approx(0.0, abs=1e-9)


def test_a_processors_kernels_as_torchs_profiler_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators that are timed have the names that torch's own profiler has for them, canonical as they are."""
    # Another test of this process may have compiled something, which is asked of the process.
    monkeypatch.setattr("mfu_sdk.run.op_times._compiled_graphs", lambda: 0)
    model = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
    batch = torch.randn(2, 16, 32)
    model(batch).sum().backward()
    timed = OpTimes(HostClock())
    timed.start()
    model(batch).sum().backward()
    timed.stop()
    ran = timed.tell(Gathered(ranks=1), 1000)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        model(batch).sum().backward()
    assert profiler.profiler is not None
    seen = {str(event.name()) for event in profiler.profiler.kineto_results.events()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in ran.kernels
    # Gradients are stolen where nobody looks, and detached where a mode does.
    assert set(ran.kernels) <= seen | {"aten::detach"}
    assert ran.worked_s == pytest.approx(sum(ran.kernels.values()))
    # And so of every operator there, down to what others call.
    operators = {name for name in seen if name.startswith("aten::")}
    assert len(operators) > 20
    assert {canonical(name) for name in operators} == operators
