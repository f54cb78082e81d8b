"""What only a GPU can show of a calibration. Figures go into the report of `make gpu-check` as properties."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

import mfu_sdk as mfu
from mfu_kernels import configs, gemm
from mfu_sdk.errors import CalibrationError
from mfu_sdk.peak import calibrate as calibration
from mfu_sdk.peak import cuda, products
from mfu_sdk.peak.buffers import DriverBuffers, TorchBuffers
from mfu_sdk.peak.device import driver_view, resolve
from mfu_sdk.peak.protocol import Batch, Sustain
from mfu_sdk.peak.shapes import Shape
from mfu_sdk.peak.stopwatch import CudaStopwatch
from mfu_sdk.peak.watch import watching
from mfu_sdk.records import Peaks
from mfu_sdk.settings import Settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]

Record = Callable[[str, Any], None]


def _reference() -> str:
    """The dtype whose peak is the denominator: bf16, and fp16 before Ampere."""
    return "bfloat16" if torch.cuda.is_available() and cuda.measurable("cuda:0", ("bfloat16",)) else "float16"


REFERENCE = _reference()
TORCHS = products.NUMBERS[REFERENCE].operand


def _side() -> int:
    """A product of this side takes some milliseconds: 8192 on a whole data-centre GPU, less on a slice."""
    if not torch.cuda.is_available():
        return 0
    units = torch.cuda.get_device_properties("cuda:0").multi_processor_count
    return 8192 if units >= 100 else 4096 if units >= 30 else 2048


SIDE = _side()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path)


def batches(seconds: float, *, counting: bool = False) -> list[Batch]:
    """Batches of one product for some seconds, with the clock that the driver told or a kernel counted meanwhile."""
    dtype = REFERENCE
    target = resolve("cuda")
    with watching(target, allow_probe=True) as watch, products.precision_of(dtype):
        memory = TorchBuffers(target.torch_name)
        generator = torch.Generator(target.torch_name).manual_seed(0)
        found = products.vendor(dtype, memory)
        assert found is not None
        operands = products.allocate(Shape(SIDE, SIDE, SIDE), products.NUMBERS[dtype], memory, 64 << 20, generator)
        product = products.Product(found[0], operands, found[1], CudaStopwatch(watch.clock_mhz, watch.counted_mhz))
        end = time.perf_counter() + seconds
        ran = []
        with product._stopwatch.counting() if counting else nullcontext():
            while time.perf_counter() < end:
                ran.append(product.run(0.05))
        return ran


@pytest.mark.usefixtures("_launches")
def test_the_probe_against_nvml(record_property: Record) -> None:
    """Of an idle device both tell the same clock; beside products fewer cycles are counted than the driver tells.

    Not the other way round: what is counted is what was there, and no product reaches more than it allows.
    """
    if torch.version.hip is not None:
        pytest.skip("the probe reads counters of NVIDIA's GPUs only")
    from mfu_kernels.clock import clock_mhz

    view = driver_view(resolve("cuda"))
    if isinstance(view, str) or view[1].sm_clock_mhz is None:
        pytest.skip("NVML tells no clock here")
    device = torch.device("cuda")
    # What an idle device's clock is shows only once something, here the first probe, has woken it.
    clock_mhz(device)
    idle, told = clock_mhz(device), driver_view(resolve("cuda"))
    assert not isinstance(told, str)
    record_property("idle_mhz", [idle, told[1].sm_clock_mhz])
    assert idle == pytest.approx(told[1].sm_clock_mhz, rel=0.02)
    driver = median(batch.clock_mhz for batch in batches(3.0)[20:] if batch.clock_mhz is not None)
    counted = [batch for batch in batches(3.0, counting=True)[20:] if batch.clock_mhz is not None]
    counted_mhz = median(batch.clock_mhz or 0.0 for batch in counted)
    record_property("driver_mhz", driver)
    record_property("counted_mhz", counted_mhz)
    assert 0.7 * driver < counted_mhz < 1.05 * driver
    capability, units = torch.cuda.get_device_capability(), torch.cuda.get_device_properties(0).multi_processor_count
    # Dense FLOP a clock of an SM by tensor cores in 16 bits: NVIDIA's white papers on A100, Ada and H100.
    a_clock = {(8, 0): 2048, (8, 6): 512, (8, 9): 1024, (9, 0): 4096}.get(capability)
    if a_clock is not None:
        share = median(batch.rate / (units * a_clock * (batch.clock_mhz or 0.0) * 1e6) for batch in counted)
        record_property("share_of_what_was_counted", round(share, 4))
        assert 0.5 < share < 1.02


@pytest.mark.usefixtures("_launches")
def test_a_rate_and_its_clock(record_property: Record) -> None:
    """From cold to hot the clock falls further than the rate: the memory's clock stays, so a cycle does more.

    An efficiency is therefore no constant of a device: on an H200 0.80 at 1,900 MHz and 0.90 at 1,360. It goes with the
    clock it was measured at.
    """
    if torch.version.hip is not None:
        pytest.skip("the probe reads counters of NVIDIA's GPUs only")
    time.sleep(5)  # Idle, so that it starts cold: nothing on the device tells when it is.
    # The first one has the library choose its kernel.
    seen = [batch for batch in batches(6.0, counting=True)[1:] if batch.clock_mhz]
    clocks, rates = [batch.clock_mhz or 0.0 for batch in seen], [batch.rate for batch in seen]
    shares = [rate / clock for rate, clock in zip(rates, clocks, strict=True)]

    def width(values: list[float]) -> float:
        ordered = sorted(values)
        return (ordered[int(0.9 * len(ordered))] - ordered[int(0.1 * len(ordered))]) / median(ordered)

    for name, values in (("clock", clocks), ("rate", rates), ("efficiency", shares)):
        record_property(f"{name}_spread", round(width(values), 4))
    if width(clocks) < 0.03:
        pytest.skip(f"the clock moved by {width(clocks):.1%} only")
    assert width(rates) < width(clocks)


@pytest.mark.usefixtures("_launches")
def test_the_quick_tier(settings: Settings, record_property: Record) -> None:
    """Within the budget of 3 s, fresh and with kernels compiled; the vendor's and our kernels take part."""
    took = []
    for _ in range(3):
        began = time.perf_counter()
        found = mfu.calibrate("cuda", [REFERENCE], settings=settings)
        took.append(round(time.perf_counter() - began, 3))
    mfu.calibrate("cuda", [REFERENCE], budget_s=20.0, settings=settings)
    began = time.perf_counter()
    found = mfu.calibrate("cuda", [REFERENCE], settings=settings)
    took.append(round(time.perf_counter() - began, 3))
    record_property("seconds", took)
    for name, value in found.state.items():
        if name.startswith((REFERENCE, "memory")) or name in ("clock_events", "degraded", "power_w", "temperature_c"):
            record_property(name, value)
    record_property("achievable", {dtype: rate.flops_per_s for dtype, rate in found.achievable.items()})
    # The first one has also loaded Triton; of the others the last batch may go beyond the budget.
    assert max(took[1:]) < 3.5
    assert "gemm" in str(found.state[f"{REFERENCE}_kernels"])
    # Where it is far below the vendor's, something is wrong with our kernels' launch.
    assert 0.4 < float(found.state[f"{REFERENCE}_triton_over_vendor"]) < 1.6


def test_intervals_cover_repeats(settings: Settings, record_property: Record) -> None:
    """Of eight calibrations, each with the history of those before it, most intervals hold the next one's value."""
    values, held = [], []
    last: Peaks | None = None
    for _ in range(8):
        found = mfu.calibrate("cuda", [REFERENCE], settings=settings)
        rate = found.achievable[REFERENCE]
        values.append(rate.flops_per_s)
        if last is not None:
            old = last.achievable[REFERENCE]
            held.append(old.low <= rate.flops_per_s <= old.high)
        last = found
    record_property("values", values)
    record_property("coverage", sum(held) / len(held))
    assert sum(held) >= 5


def test_sustained(settings: Settings, record_property: Record) -> None:
    """A short sustained run heats the device first, and ends at or below the burst's rate."""
    target = resolve("cuda")
    burst = mfu.calibrate("cuda", [REFERENCE], settings=settings).achievable[REFERENCE]
    plan = Sustain(preheat_s=15.0, windows=3, window_s=2.0, gap_s=1.0)
    found = calibration._measured(target, [REFERENCE], 5.0, "sustained", settings, lambda *_: None, plan)
    hot = found.achievable[REFERENCE]
    record_property("burst", burst.flops_per_s)
    record_property("sustained", hot.flops_per_s)
    assert hot.source.startswith("calibrated: sustained")
    assert hot.flops_per_s < 1.05 * burst.flops_per_s
    situ = calibration.in_situ("cuda", [REFERENCE], settings=settings)
    record_property("in_situ", situ.state[f"{REFERENCE}_in_situ_flops_per_s"])


def _everything() -> list[tuple[str, str]]:
    if not torch.cuda.is_available():
        return []
    architecture = gemm.architecture_of(torch.device("cuda"))
    kernels = ("gemm", "gemm_descriptor", "gemm_persistent")
    dtypes = configs.DTYPES.get(architecture, ())
    return [(k, d) for k in kernels for d in dtypes if not configs.lacks(k, architecture, d, gemm.TRITON)]


@pytest.mark.usefixtures("_launches")
@pytest.mark.parametrize(("kernel", "dtype"), _everything())
def test_configurations_at_run_time(kernel: str, dtype: str, record_property: Record) -> None:
    """Every tile that is shipped for this architecture computes the right product here; its rate is recorded."""
    numbers, memory = products.NUMBERS[dtype], TorchBuffers("cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    operands = products.allocate(Shape(4096, 4096, 4096), numbers, memory, 16 << 20, generator)
    call = next(call for name, call in products.ours(dtype, torch.device("cuda")) if name == f"triton {kernel}")
    products.check(operands, call, numbers, kernel)
    product = products.Product(kernel, operands, call, CudaStopwatch(lambda: None))
    rates = [product.run(0.05).rate for _ in range(6)]
    record_property("flops_per_s", median(rates[1:]))


def test_every_dtype(settings: Settings, record_property: Record) -> None:
    """All dtypes that this GPU has are measured, none faster than what it could do on paper."""
    wanted = cuda.measurable("cuda:0", cuda.known_dtypes())
    found = mfu.calibrate("cuda", list(wanted), budget_s=60.0, settings=settings)
    for dtype, rate in found.achievable.items():
        record_property(dtype, [rate.flops_per_s, rate.low, rate.high, found.state[f"{dtype}_winner"]])
        at_max = found.state.get(f"{dtype}_at_max_clock_flops_per_s")
        if at_max is not None:
            assert rate.flops_per_s < 1.02 * float(at_max)
    record_property("missing", {name: value for name, value in found.state.items() if name.endswith("_missing")})
    assert {REFERENCE, "float16", "float32"} <= set(found.achievable)


def test_the_users_state(settings: Settings) -> None:
    """Random numbers, flags, the current device and the allocator's statistics are as they were."""
    x = torch.randn(64, 64, device="cuda")
    x @ x  # The library's workspace is torch's to keep, whoever multiplies first.
    (x.bfloat16() @ x.bfloat16()).float()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = (torch.cuda.get_rng_state(), torch.get_rng_state())
    peak, flag = torch.cuda.max_memory_allocated(), torch.backends.cuda.matmul.allow_tf32
    mfu.calibrate("cuda", [REFERENCE], settings=settings)
    assert torch.equal(torch.cuda.get_rng_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.backends.cuda.matmul.allow_tf32 == flag
    assert torch.cuda.max_memory_allocated() - peak < 16 << 20


def test_memory_of_the_driver() -> None:
    """Tensors in it are read and written like any other, and all of it is given back."""
    torch.zeros(1, device="cuda")
    memory = DriverBuffers.open("cuda:0")
    if memory is None:
        pytest.skip("no libcuda.so.1 here")
    free = torch.cuda.mem_get_info()[0]
    with memory:
        held = memory.empty((1 << 20, 64), torch.bfloat16)
        held.fill_(2.0)
        assert float(held[-1].float().sum()) == 128
        assert torch.cuda.mem_get_info()[0] <= free - (100 << 20)
        del held
    # What the first kernel of a kind loads stays.
    assert torch.cuda.mem_get_info()[0] >= free - (64 << 20)


def test_not_while_capturing(settings: Settings) -> None:
    """While a graph is being captured nothing is measured, and the capture goes on."""
    x, graph = torch.ones(8, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x * 2
        with pytest.raises(CalibrationError, match="being captured"):
            mfu.calibrate("cuda", [REFERENCE], budget_s=0.5, settings=settings)
    graph.replay()
    assert float(y.sum()) == 16


def test_short_of_memory(settings: Settings) -> None:
    """With little memory left the operands are smaller; with none, one line says what to do, and nothing is taken."""
    # What torch keeps for later would else be taken before anything that is free.
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    taken = [torch.empty(max(free - (1500 << 20), 1), dtype=torch.uint8, device="cuda")]
    found = mfu.calibrate("cuda", [REFERENCE], budget_s=2.0, settings=settings)
    assert found.achievable[REFERENCE].flops_per_s > 0
    taken.append(torch.empty(900 << 20, dtype=torch.uint8, device="cuda"))
    left = torch.cuda.mem_get_info()[0]
    with pytest.raises(CalibrationError, match="calibrate before the model is loaded"):
        mfu.calibrate("cuda", [REFERENCE], budget_s=1.0, settings=settings)
    assert torch.cuda.mem_get_info()[0] > left - (64 << 20)
    del taken
    torch.cuda.empty_cache()


def test_a_loop_of_products(settings: Settings, record_property: Record) -> None:
    """The MFU of a loop of bf16 products is its own rate over the peak, within 2 %."""
    a = torch.randn(SIDE, SIDE, device="cuda", dtype=TORCHS)
    out, number, steps = torch.empty_like(a), 20, 40
    # From cold a clock falls for a second or so.
    for _ in range(600):
        torch.mm(a, a, out=out)
    peaks = mfu.peaks("cuda", settings=replace(settings, calibrate="off"))
    if not peaks.theoretical:
        peaks = mfu.calibrate("cuda", [REFERENCE], settings=settings)
    headline = peaks.headline(REFERENCE)
    assert headline is not None
    marks = []
    with mfu.monitor(peaks=peaks, settings=settings) as run:
        for _ in range(steps):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            with run.step():
                start.record()
                for _ in range(number):
                    torch.mm(a, a, out=out)
                end.record()
            marks.append((start, end))
    torch.cuda.synchronize()
    # Of the same steps as the run: those that were not counted.
    timed = [start.elapsed_time(end) / 1e3 for index, (start, end) in enumerate(marks) if index & (index - 1)]
    rate = len(timed) * number * 2 * SIDE**3 / sum(timed)
    summary = run.summary()
    assert summary.mfu is not None
    record_property("mfu", summary.mfu)
    record_property("rate_over_peak", rate / headline[1].flops_per_s)
    assert summary.mfu == pytest.approx(rate / headline[1].flops_per_s, rel=0.02)
