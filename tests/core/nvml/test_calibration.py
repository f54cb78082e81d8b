"""A calibration of a GPU with the driver looking on.

The driver is the library that the tests build, behind the real nvidia-ml-py. The products are real and run on the
processor, in the place of the GPU that is not here: only `peak.cuda.measure`, which binds events, driver memory and
streams to the protocol, is stood in for; `tests/gpu` runs it.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mfu_kernels.clock
import mfu_sdk as mfu
from mfu_sdk.counting import cuda_graphs
from mfu_sdk.errors import CalibrationError
from mfu_sdk.peak import bench, cuda
from mfu_sdk.peak.buffers import TorchBuffers
from mfu_sdk.peak.calibrate import current
from mfu_sdk.peak.describe import describe
from mfu_sdk.peak.device import resolve
from mfu_sdk.peak.key import key_of, same_kind
from mfu_sdk.peak.protocol import Now
from mfu_sdk.peak.stopwatch import Clock, HostStopwatch
from mfu_sdk.peak.watch import FLOOR, NEIGHBOUR_FLOOR, SLICE_FLOOR, watching
from mfu_sdk.records import Peaks
from mfu_sdk.settings import Settings

from .conftest import H100, WHOLE, Fake, needs_gcc

pytestmark = needs_gcc


class Watched(HostStopwatch):
    """The processor's stopwatch, which looks at a GPU's clock in each batch, as the GPU's does."""

    def __init__(self, clock: Clock, counted: Clock | None) -> None:
        super().__init__()
        self.clock = clock
        self.counted = counted

    def time(self, call: Callable[[int], object], calls: int) -> tuple[float, float | None]:
        return super().time(call, calls)[0], self.clock()

    @contextmanager
    def counting(self) -> Iterator[bool]:
        told = self.clock
        self.clock = self.counted or told
        yield self.counted is not None
        self.clock = told


@pytest.fixture
def gpu(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What torch says of the H100, in a process whose products run on the processor."""
    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", uuid="00009", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))

    def measure(device: str, dtypes: Any, budget_s: float, plan: Any, progress: Any, **options: Any) -> bench.Measured:
        properties.asked.append(
            (tuple(dtypes), round(budget_s, 3), options["compiled"], plan.floor, dict(plan.history))
        )
        on = bench.Bench(
            "cpu",
            4,
            1 << 18,
            lambda: 1 << 32,
            lambda: TorchBuffers("cpu"),
            Watched(options["clock"], options["counted"]),
            now,
            {"float32": 2e10},
        )
        return bench.run(on, dtypes, 0.3, plan, progress)

    import time

    now: Now = time.perf_counter
    properties.asked = []
    monkeypatch.setattr(cuda, "measure", measure)
    return properties


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path)


def measured(settings: Settings, **options: Any) -> Peaks:
    return mfu.calibrate("cuda", ["float32"], settings=settings, **options)


def documents(settings: Settings) -> list[dict[str, Any]]:
    assert settings.cache_dir is not None
    return [json.loads(path.read_text()) for path in sorted((settings.cache_dir / "calibrations").glob("*.json"))]


def test_what_the_driver_saw(gpu: SimpleNamespace, settings: Settings) -> None:
    """The clock under load, the watts and why the clock was not higher; 128 lanes an SM make the efficiency's whole."""
    found = measured(settings)
    assert found.state["float32_clock_mhz"] == found.clock_mhz == 1755
    assert (found.state["power_w"], found.state["power_limit_w"]) == (698.5, 700.0)
    assert found.state["clock_events"] == "software power cap"
    assert "degraded" not in found.state
    batches = found.state["float32_median_flops_per_s"]
    whole = 132 * 256 * 1755e6
    assert found.state["float32_efficiency"] == pytest.approx(float(batches) / whole, abs=1e-4)
    assert found.theoretical["bfloat16"].flops_per_s == 132 * 4096 * 1830e6
    assert "float32_counted_clock_mhz" not in found.state, "in 3 s there is no time to compile what counts"


@pytest.mark.usefixtures("gpu")
def test_what_a_kernel_counts(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,755 MHz that the driver tells a kernel counts a twentieth: twenty times the share; then it is compiled."""
    monkeypatch.setattr(mfu_kernels.clock, "clock_mhz", lambda _device: 87.75)
    for options in ({"budget_s": 60.0}, {}):
        found = measured(settings, **options)
        assert found.state["float32_clock_mhz"] == 1755
        assert found.state["float32_counted_clock_mhz"] == 87.8
        share = found.achievable["float32"].flops_per_s / (132 * 256 * 87.75e6)
        # Of batches of its own: those that are reported are not disturbed.
        assert share / 4 < float(found.state["float32_efficiency"]) < share * 4
        assert "by the driver, 88 counted" in describe(found)


def test_everything_that_moves_it_is_in_the_key(gpu: SimpleNamespace, fake: Fake, settings: Settings) -> None:
    """Another power limit, another calibration: what is missing says what changed; set back, it is there again."""
    found = measured(settings)
    key = documents(settings)[0]["key"]
    assert key["uuid"] == "GPU-00009"
    assert (key["driver"], key["power_limit_w"], key["ecc"]) == ("580.105.08", 700, 1)
    assert key["product"] == "10de:2330"
    assert {"vbios", "triton", "blas", "kernels", "runtime", "multiprocessors", "memory_bytes"} <= set(key)
    fake.set(0, WHOLE, limit=500_000)
    moved = mfu.peaks("cuda", settings=settings)
    assert "power limit w 700 (now 500)" in str(moved.state["missing"])
    assert moved.achievable == {}
    fake.set(0, WHOLE, limit=700_000)
    assert mfu.peaks("cuda", settings=settings).calibration_id == found.calibration_id


def test_an_amd_partition_is_in_the_key(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A die in eight is another device than the whole, and no sister of it."""
    modes = {"compute_partition": "CPX", "memory_partition": "NPS4"}
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr("mfu_sdk.peak.key.partition", lambda _properties: modes)
    part = key_of(resolve("cuda"))
    assert modes.items() <= part.items()
    assert same_kind(part) != same_kind(part | {"compute_partition": "SPX"})


def test_a_slice_by_its_own_uuid(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch passes on the parent's UUID, the variable that made the slice visible knows its own."""
    own = "MIG-0f0e0d0c-0b0a-0908-0706-050403020100"
    for visible, uuid in ((f"{own},1", own), ("0,1", "GPU-00009"), ("MIG-0f0e", "GPU-00009"), ("", "GPU-00009")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert resolve("cuda").uuid == uuid


def test_nothing_is_measured_while_another_thread_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its capture would be broken by the memory that is asked for here; where there is none, all is well."""
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    cuda.refuse_capture("cuda:0")
    monkeypatch.setattr(cuda_graphs, "captures", lambda: True)
    with pytest.raises(CalibrationError, match="a CUDA graph is being captured"):
        cuda.refuse_capture("cuda:0")


def test_a_hot_device_is_no_baseline(gpu: SimpleNamespace, fake: Fake, settings: Settings) -> None:
    """A rate that was measured while heat held the clock down is kept as degraded, and is in no history."""
    measured(settings)
    fake.set(0, WHOLE, events=0x44)
    assert measured(settings).state["degraded"] == "hardware thermal slowdown"
    fake.set(0, WHOLE, events=0x4)
    cool = measured(settings)
    assert "degraded" not in cool.state
    assert len(documents(settings)[0]["history"]["float32 burst"]) == 2
    # The third run had one earlier value to rest on, not two.
    assert [len(asked[4].get("float32", ())) for asked in gpu.asked] == [0, 1, 1]


def test_a_sisters_rate_is_a_prior(gpu: SimpleNamespace, fake: Fake, settings: Settings) -> None:
    """On another GPU of the same product the first one's rate is shown as its own, and a run measures all the same."""
    first = measured(settings)
    gpu.uuid = "00019"
    fake.device(1, WHOLE, "NVIDIA H100 80GB HBM3", **H100)
    found = mfu.peaks("cuda", settings=settings)
    rate = found.achievable["float32"]
    assert rate.flops_per_s == first.achievable["float32"].flops_per_s
    assert rate.source.startswith("prior: burst, torch.mm")
    assert rate.source.endswith("of GPU-00009")
    assert "missing" in found.state
    own, was_measured = current("cuda", ["float32"], 3.0, settings=settings)
    assert was_measured
    assert own.achievable["float32"].source.startswith("calibrated")
    assert len(documents(settings)) == 2


def test_only_what_is_missing_is_measured(gpu: SimpleNamespace, settings: Settings) -> None:
    """A dtype that comes into use is measured beside what is known; kernels compiled before are known to be."""
    measured(settings)
    found, was_measured = current("cuda", ["float32", "int8"], 3.0, settings=settings)
    assert was_measured
    assert set(found.achievable) == {"float32", "int8"}
    assert [asked[0] for asked in gpu.asked] == [("float32",), ("int8",)]
    assert "torch.mm float32" in gpu.asked[1][2]
    assert current("cuda", ["float32", "int8"], 3.0, settings=settings)[1] is False


def test_the_driver_goes_in_between(gpu: SimpleNamespace, fake: Fake, settings: Settings, monkeypatch: Any) -> None:
    """Where NVML is lost while the device is measured, the rate is there, and what NVML would have told is not."""
    real = cuda.measure

    def loses(*args: Any, **options: Any) -> bench.Measured:
        fake.library.fake_broken(15)
        return real(*args, **options)

    monkeypatch.setattr(cuda, "measure", loses)
    found = measured(settings)
    assert found.achievable["float32"].flops_per_s > 0
    assert "float32_clock_mhz" not in found.state
    assert "power_w" not in found.state
    assert found.clock_mhz is None


def test_without_nvml(gpu: SimpleNamespace, fake: Fake, settings: Settings) -> None:
    """CUDA without NVML: measured under a key that has no driver in it, never read back as one that has."""
    fake.library.fake_broken(9)
    found = measured(settings)
    assert found.achievable["float32"].flops_per_s > 0
    assert "driver" not in documents(settings)[0]["key"]
    fake.library.fake_broken(0)
    assert "driver unknown (now 580.105.08)" in str(mfu.peaks("cuda", settings=settings).state["missing"])


def test_how_wide_one_run_is(gpu: SimpleNamespace, fake: Fake) -> None:
    """± 2 % on a GPU, ± 3 % on a slice whose neighbours are idle, ± 8 % beside a busy one."""
    device = mfu.peaks("cuda").device
    from mfu_sdk.peak.device import resolve

    target = resolve(device)
    with watching(target, allow_probe=False) as watch:
        assert watch.floor == FLOOR == 0.02
    fake.mig(0, 16, 26)
    part = replace(target, uuid="MIG-00000")
    with watching(part, allow_probe=False) as watch:
        assert watch.floor == NEIGHBOUR_FLOOR == 0.08
        watch.clock_mhz()
        assert watch.state()["busy_siblings"] == 1
    fake.set(0, 1, processes=0)
    with watching(part, allow_probe=False) as watch:
        assert watch.floor == SLICE_FLOOR == 0.03
    assert fake.sessions == 0


def test_a_dtype_that_no_gpu_of_this_kind_has(gpu: SimpleNamespace, settings: Settings, monkeypatch: Any) -> None:
    """Before Ampere there is no TF32: asked for alone, that is an error which says so."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    with pytest.raises(CalibrationError, match="has no instructions for tf32"):
        mfu.calibrate("cuda", ["tf32"], settings=settings)


@pytest.mark.parametrize(
    ("capability", "absent"),
    [
        ((7, 5), {"bfloat16", "tf32", "float8_e4m3fn", "float8_e5m2"}),
        ((8, 0), {"float8_e4m3fn", "float8_e5m2"}),
        ((8, 9), set()),
        ((10, 0), set()),
    ],
)
def test_dtypes_by_capability(monkeypatch: Any, capability: tuple[int, int], absent: set[str]) -> None:
    """Turing has fp16 and int8, Ampere bf16 and TF32, Ada eight-bit floats; the other kind of these is AMD's."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    known = cuda.known_dtypes()
    other = {"float8_e4m3fnuz", "float8_e5m2fnuz"}
    assert set(known) - set(cuda.measurable("cuda:0", known)) == absent | other


def test_what_cannot_be_measured_is_not_tried_each_time(gpu: SimpleNamespace, settings: Settings) -> None:
    """A dtype that failed beside others is remembered with its reason; the next run does not try it again."""
    found, _ = current("cuda", ["float32", "float8_e5m2"], 3.0, settings=settings)
    assert "no product of float8_e5m2" in str(found.state["float8_e5m2_missing"])
    assert current("cuda", ["float32", "float8_e5m2"], 3.0, settings=settings)[1] is False
    assert len(gpu.asked) == 1


def test_a_blip_is_no_throttling(gpu: SimpleNamespace, fake: Fake) -> None:
    """One look in twenty that saw a slowdown held nothing down; one in two did."""
    from mfu_sdk.peak.device import resolve

    target = resolve("cuda")
    with watching(target, allow_probe=False) as watch:
        for look in range(20):
            fake.set(0, WHOLE, events=0x8 if look == 0 else 0x1)
            watch.clock_mhz()
        assert "degraded" not in watch.state()
        for _ in range(20):
            fake.set(0, WHOLE, events=0x8)
            watch.clock_mhz()
        assert watch.state()["degraded"] == "hardware slowdown"
