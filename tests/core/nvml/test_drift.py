"""From a clock that the driver tells to the verdict: a monitored run on a GPU that becomes hot.

The driver is the library that the tests build, behind the real nvidia-ml-py. The steps are real and run on the
processor, in the place of the GPU that is not here, by a clock that is told the time.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mfu_sdk as mfu
from mfu_sdk import testing
from mfu_sdk.drift.detector import Tuning
from mfu_sdk.records import DriftEvent, Peaks, Rate
from mfu_sdk.run import attempts, opening
from mfu_sdk.run.clock import HostClock
from mfu_sdk.settings import Settings

from .conftest import WHOLE, Fake, needs_gcc

pytestmark = needs_gcc

RATE = Rate(1e11, 1e11, 1e11, "user", 0.0)
PEAKS = Peaks("cuda:0", {"bfloat16": RATE}, {"float32": RATE}, None, None, {})
IDLE, POWER_CAP, THERMAL, BRAKE = 0x1, 0x4, 0x20, 0x80
"""Of NVML's clock event reasons (nvml.h): GpuIdle, SwPowerCap, SwThermalSlowdown, HwPowerBrakeSlowdown."""


@pytest.fixture
def clock(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> testing.FakeClock:
    """The device's clock, and what torch says of the H100 whose driver `fake` is."""
    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", uuid="00009", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    found = testing.FakeClock()
    monkeypatch.setattr(opening, "clock_for", lambda _device: HostClock(found))
    monkeypatch.setattr(opening, "tuning", lambda _settings: Tuning(block_steps=4, baseline_blocks=16, settle_steps=4))
    return found


def run(
    clock: testing.FakeClock,
    tmp_path: Path,
    fault: Callable[[], object],
    *,
    wait_s: float = 0.0,
    onset: int = 256,
    attempt: int | None = None,
) -> DriftEvent | None:
    """What is told of a run whose steps take 1.5 times as long after `fault`, by themselves or by a wait for data."""
    told: list[DriftEvent] = []
    model, generator = torch.nn.Linear(4, 4), random.Random(0)
    settings = Settings(profile="off", cache_dir=tmp_path)
    if attempt is not None:
        attempts._opened.pop("a-run-on-a-hot-node", None)
        settings = replace(settings, run_id="a-run-on-a-hot-node", run_attempt=attempt)

    def loader() -> Any:
        for index in range(400):
            if index == onset:
                fault()
            late = index >= onset
            clock.advance(wait_s if late else 0.0)
            yield torch.ones(2, 4), 0.5 if wait_s or not late else 0.75

    with mfu.monitor(model, devices="cuda:0", peaks=PEAKS, settings=settings, on_drift=told.append) as monitored:
        for inputs, duration_s in monitored.batches(loader()):
            with monitored.step():
                model(inputs).sum().backward()
                clock.advance(duration_s * generator.uniform(0.99, 1.01))
    if not told:
        return None
    [event] = told
    # Of the first steps some are left out, and some counted.
    assert abs(event.onset_step - onset) <= 12
    return event


def test_a_hot_gpu(clock: testing.FakeClock, fake: Fake, tmp_path: Path) -> None:
    """The driver tells of two thirds of the clock and of heat, and steps take as much longer."""
    event = run(clock, tmp_path, lambda: fake.set(0, WHOLE, sm=1170, events=THERMAL | POWER_CAP))
    assert event is not None
    assert event.cause == "thermal_or_power"
    assert event.evidence[:2] == ("the clock went to 67% of what it was", "software thermal slowdown")
    assert event.parts["clock"] == pytest.approx(sum(event.parts.values()), rel=0.05)


def test_a_power_brake_without_a_clock(clock: testing.FakeClock, fake: Fake, tmp_path: Path) -> None:
    """A driver that tells no clock may tell why it is low."""
    fake.set(0, WHOLE, sm=-3)
    event = run(clock, tmp_path, lambda: fake.set(0, WHOLE, events=BRAKE))
    assert event is not None
    assert (event.cause, event.evidence[0]) == ("thermal_or_power", "power brake")
    assert "clock" not in event.parts


def test_a_gpu_that_waits(clock: testing.FakeClock, fake: Fake, tmp_path: Path) -> None:
    """A slow loader leaves it idle, and it lowers its clock: the loader is the cause, not the clock."""
    event = run(clock, tmp_path, lambda: fake.set(0, WHOLE, sm=345, events=IDLE), wait_s=0.25)
    assert event is not None
    assert event.cause == "input_bound"
    assert "clock" not in event.parts


def test_a_cool_gpu(clock: testing.FakeClock, fake: Fake, tmp_path: Path) -> None:
    """The clock is what it was, and a cap that was there before is no news: what nothing explains is unknown."""
    event = run(clock, tmp_path, lambda: fake.set(0, WHOLE, events=POWER_CAP))
    assert event is not None
    assert event.cause == "unknown"
    assert event.parts["clock"] == pytest.approx(0.0, abs=1e-9)


def test_a_driver_that_is_gone(clock: testing.FakeClock, fake: Fake, tmp_path: Path) -> None:
    """It answers no more (code 15, GPU is lost): nothing is made up for it."""
    event = run(clock, tmp_path, lambda: fake.library.fake_broken(15))
    assert event is not None
    assert event.cause == "unknown"
    assert "clock" not in event.parts
    fake.library.fake_broken(0)


def test_a_restart_on_a_hot_gpu(clock: testing.FakeClock, fake: Fake, tmp_path: Path) -> None:
    """It is slow from its first step on, by the clock: which is held against that of the attempt before."""
    assert run(clock, tmp_path, lambda: None, onset=400, attempt=0) is None
    event = run(clock, tmp_path, lambda: fake.set(0, WHOLE, sm=1170), onset=0, attempt=1)
    assert event is not None
    assert (event.cause, event.evidence[0]) == ("thermal_or_power", "the clock went to 67% of what it was")
