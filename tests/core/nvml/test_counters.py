"""Time held down, energy and processes: differences of counters, computed by hand."""

import pytest

from mfu_sdk.peak.nvml import Counters, Held, Nvml, ProcessUse, counters, process_use

from .conftest import WHOLE, Fake, found, needs_gcc

pytestmark = needs_gcc


def test_an_interval(fake: Fake, nvml: Nvml) -> None:
    """Of twenty seconds five under the power cap and one of heat; 12 kJ are 600 W."""
    gpu = found(nvml)
    fake.set(0, WHOLE, held0=10**9, held1=0, held_at=1_000_000, energy=50_000_000)
    before = counters(gpu, lambda: 100.0)
    assert before == Counters({"power": Held(1.0, 1.0), "thermal": Held(0.0, 1.0)}, 50_000.0, 100.0)
    fake.set(0, WHOLE, held0=6 * 10**9, held1=10**9, held_at=21_000_000, energy=62_000_000)
    interval = counters(gpu, lambda: 120.0).since(before)
    assert interval.duration_s == 20.0
    assert interval.held_shares == pytest.approx({"power": 0.25, "thermal": 0.05})
    assert interval.mean_power_w == 600.0


@pytest.mark.parametrize(
    ("branch", "first"), [(595, 269), (590, 269), (580, 251), (575, 251), (570, None), (535, None)]
)
def test_numbers_of_fields(fake: Fake, nvml: Nvml, branch: int, first: int | None) -> None:
    """The same number is a counter of one driver and a setting of another; only those that fit are read."""
    # What each of the six fields would say: seconds as nanoseconds.
    fake.set(0, WHOLE, branch=branch, held_at=0, **{f"fi{n}": n * 10**9 for n in (251, 252, 253, 269, 270, 271)})
    held = counters(found(nvml)).held
    if first is None:
        assert held == {}
        return
    assert held == {
        "software thermal slowdown": Held(first, 0.0),
        "hardware thermal slowdown": Held(first + 1, 0.0),
        "power brake": Held(first + 2, 0.0),
    }


def test_refused_counters(fake: Fake, nvml: Nvml) -> None:
    """A counter that the device does not have, or that is missing in one of two readings, has no share."""
    gpu = found(nvml)
    assert counters(gpu, lambda: 1.0) == Counters({}, None, 1.0)
    fake.set(0, WHOLE, held0=0, held1=-4, fi253=10**9, held_at=1)
    before = counters(gpu, lambda: 1.0)
    assert set(before.held) == {"power", "power brake"}
    fake.set(0, WHOLE, held0=-4, held1=5, held_at=2, energy=5)
    interval = counters(gpu, lambda: 2.0).since(before)
    assert set(interval.held_shares) == {"power brake"}
    assert interval.mean_power_w is None


def test_a_driver_loaded_again(fake: Fake, nvml: Nvml) -> None:
    """Counters that went back, and a clock that stood still, give no share and no power."""
    gpu = found(nvml)
    fake.set(0, WHOLE, held0=5 * 10**9, held_at=9_000_000, energy=9_000)
    before = counters(gpu, lambda: 1.0)
    assert counters(gpu, lambda: 2.0).since(before).held_shares == {}
    fake.set(0, WHOLE, held0=1, held_at=12_000_000, energy=1)
    interval = counters(gpu, lambda: 2.0).since(before)
    assert (interval.held_shares, interval.mean_power_w) == ({}, None)
    assert before.since(before).mean_power_w is None


def test_a_slice_has_its_gpus_counters(fake: Fake, nvml: Nvml) -> None:
    """Power, heat and energy are the whole GPU's."""
    fake.mig(0, 16)
    fake.set(0, WHOLE, held0=10**9, held_at=1, energy=5000)
    assert counters(found(nvml, "MIG-00000"), lambda: 0.0) == counters(found(nvml), lambda: 0.0)


def test_what_counters_cost(fake: Fake, nvml: Nvml) -> None:
    """Five policies, the driver's version, the fields in one call, the energy."""
    gpu = found(nvml)
    before = fake.calls
    counters(gpu)
    assert fake.calls - before == 8


def test_processes(fake: Fake, nvml: Nvml) -> None:
    """The busiest first, in shares; only what was sampled after the time given, and no slot that was not filled."""
    gpu = found(nvml)
    assert process_use(gpu) is None
    fake.set(0, WHOLE, users=0)
    assert process_use(gpu) == ()
    fake.set(
        0, WHOLE, users=4,
        user0_pid=11, user0_sm=20, user0_memory=5, user0_at=1000,
        user1_pid=12, user1_sm=75, user1_memory=40, user1_at=2000,
        user2_pid=13, user2_sm=99, user2_memory=1, user2_at=0,
        user3_pid=14, user3_sm=4_000_000_000, user3_memory=1, user3_at=3000,
    )  # fmt: skip
    assert process_use(gpu) == (ProcessUse(12, 0.75, 0.4, 2000), ProcessUse(11, 0.2, 0.05, 1000))
    assert process_use(gpu, 1000) == (ProcessUse(12, 0.75, 0.4, 2000),)
    fake.set(0, WHOLE, users=-3)
    assert process_use(gpu) is None
