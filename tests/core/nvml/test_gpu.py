"""What a GPU or a MIG slice says of itself, and the peak that follows from it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mfu_sdk as mfu
from mfu_sdk.peak.device import silicon
from mfu_sdk.peak.nvml import Gpu, Health, Nvml, State, events
from mfu_sdk.peak.theory import theoretical

from .conftest import H100, WHOLE, Fake, found, needs_gcc

pytestmark = needs_gcc

NO_STATE = State(None, None, None, None, None, None, None)
NO_HEALTH = Health(None, None, None, None, None, None)


def test_identity(nvml: Nvml) -> None:
    """A whole GPU: names, ids in the vendor's order, highest clocks, watts."""
    identity = found(nvml).identity()
    assert (identity.name, identity.uuid, identity.parent_uuid) == ("NVIDIA H100 80GB HBM3", "GPU-00009", None)
    assert (identity.product, identity.subsystem, identity.brand) == ("10de:2330", "10de:16c1", "NVIDIA")
    assert (identity.driver, identity.vbios) == ("580.105.08", "96.00.74.00.01")
    assert (identity.compute_capability, identity.mig, identity.slice, identity.siblings) == ((9, 0), False, None, None)
    assert (identity.max_sm_clock_mhz, identity.max_memory_clock_mhz) == (1980, 2619)
    assert (identity.ecc, identity.ecc_pending, identity.default_power_limit_w) == (True, True, 700.0)
    assert (identity.default_application_clock_mhz, identity.memory_bus_bits) == (1980, 5120)
    assert (identity.memory_bytes, identity.profile, identity.gpu_instance) == (85_520_809_984, None, None)


def test_state(nvml: Nvml) -> None:
    """Clocks, reasons, watts, degrees and process ids of this moment."""
    assert found(nvml).state() == State(
        sm_clock_mhz=1755,
        memory_clock_mhz=2619,
        events=("software power cap",),
        power_w=698.5,
        power_limit_w=700.0,
        temperature_c=64,
        processes=(4006, 4007),
        application_clock_mhz=1980,
        memory_used_bytes=2**30,
        busy_siblings=None,
    )


def test_what_asking_costs(fake: Fake, nvml: Nvml) -> None:
    """Calls into the driver are counted: what is read at a run's edges stays cheap."""
    whole = found(nvml)
    before = fake.calls
    whole.state()
    assert fake.calls - before == 10
    before = fake.calls
    whole.identity()
    assert fake.calls - before == 15
    before = fake.calls
    whole.health()
    assert fake.calls - before == 4
    fake.mig(0, 16, 16, 16)
    slice_ = found(nvml, "MIG-00000")
    before = fake.calls
    slice_.state()
    # The ten, the most slices and its own UUID, seven places, two siblings: UUID and processes (asked twice for room).
    assert fake.calls - before == 10 + 2 + 7 + 1 + 2 * 3


def test_pending_ecc(fake: Fake, nvml: Nvml) -> None:
    """What ECC is and what it will be after a reset are two things."""
    fake.set(0, WHOLE, ecc=1, ecc_pending=0)
    identity = found(nvml).identity()
    assert (identity.ecc, identity.ecc_pending) == (True, False)


def test_health(fake: Fake, nvml: Nvml) -> None:
    """Errors since the driver was loaded, and memory that is or should be taken out of use."""
    gpu = found(nvml)
    assert gpu.health() == Health(0, 3, 1, remap_pending=False, remap_failed=False, retirement_pending=None)
    fake.set(0, WHOLE, errors1=2, rows_uncorrected=4, rows_pending=1, rows_failed=1, pages_pending=1)
    assert gpu.health() == Health(2, 3, 5, remap_pending=True, remap_failed=True, retirement_pending=True)
    fake.mig(0, 16)
    assert found(nvml, "MIG-00000").health() == gpu.health()


def test_busy_siblings(fake: Fake, nvml: Nvml) -> None:
    """Slices that exist and slices that run something are counted apart; one that does not say hides the sum."""
    fake.mig(0, 16, 16, 0, 26)
    fake.set(0, 1, processes=0)
    gpu = found(nvml, "MIG-00000")
    assert (gpu.identity().siblings, gpu.state().busy_siblings) == (2, 1)
    fake.set(0, 1, processes=3)
    assert gpu.state().busy_siblings == 2
    # What runs on this slice itself is no sibling's.
    fake.set(0, 0, processes=0)
    assert gpu.state().busy_siblings == 2
    fake.set(0, 3, processes=-4)
    assert (gpu.identity().siblings, gpu.state().busy_siblings) == (2, None)


def test_slice(fake: Fake, nvml: Nvml) -> None:
    """A MIG device has its own SMs and memory, its GPU's clock and product, and knows how many share that."""
    fake.mig(0, 16, 0, 26, 60)
    gpu = found(nvml, "00002")
    identity, state = gpu.identity(), gpu.state()
    assert gpu.sliced
    assert (identity.uuid, identity.parent_uuid, identity.siblings, identity.mig) == ("MIG-00002", "GPU-00009", 2, True)
    assert identity.slice is not None
    assert (identity.slice.sm_count, identity.slice.memory_bytes) == (26, 9984 * 2**20)
    assert (identity.product, identity.max_sm_clock_mhz) == ("10de:2330", 1980)
    assert (state.sm_clock_mhz, state.power_w, state.processes) == (1755, 698.5, (4007,))
    assert (identity.profile, identity.gpu_instance, identity.memory_bytes) == ("1g.10gb", 9, 9984 * 2**20)
    assert (state.memory_used_bytes, state.application_clock_mhz) == (5 * 2**20, 1980)


@pytest.mark.parametrize("profile", ["1g.10gb", "1g.10gb+me", "1c.2g.20gb", "7g.80gb"])
def test_profile(fake: Fake, nvml: Nvml, profile: str) -> None:
    """What people call a slice is the end of its name."""
    fake.mig(0, 16)
    fake.device(0, 0, f"NVIDIA H100 80GB HBM3 MIG {profile}")
    assert found(nvml, "MIG-00000").identity().profile == profile
    fake.device(0, 0, "GRID of another name")
    assert found(nvml, "MIG-00000").identity().profile is None


@pytest.mark.parametrize(
    ("product", "capability", "sms", "bf16_tflops"),
    [
        (0x233010DE, 90, 16, 119.93),
        (0x233010DE, 90, 26, 194.89),
        (0x233010DE, 90, 60, 449.74),
        (0x20B210DE, 80, 14, 40.43),
        (0x20B210DE, 80, 28, 80.86),
        (0x20B210DE, 80, 56, 161.71),
    ],
)
def test_peak_of_a_slice(fake: Fake, nvml: Nvml, product: int, capability: int, sms: int, bf16_tflops: float) -> None:
    """From the driver to the peak: the SMs are the slice's own, whatever its name says and torch counts."""
    fake.mig(0, sms, parent={**H100, "pci": product, "capability": capability})
    major, minor = divmod(capability, 10)
    properties = SimpleNamespace(major=major, minor=minor, multi_processor_count=132)
    made = silicon(properties, found(nvml, "MIG-00000").identity(), hip=False)
    assert made.sliced
    assert theoretical(made).reference["bfloat16"].flops_per_s / 1e12 == pytest.approx(bf16_tflops, abs=0.005)


def test_torch_may_give_the_parents_uuid(fake: Fake, nvml: Nvml) -> None:
    """Where the UUID is the partitioned GPU's, torch's count of SMs is the slice's, and it is known for a slice."""
    fake.mig(0, 16, 16)
    properties = SimpleNamespace(major=9, minor=0, multi_processor_count=16)
    made = silicon(properties, found(nvml, "GPU-00009").identity(), hip=False)
    assert (made.units, made.sliced, made.architecture) == (16, True, "sm_90")


def test_rocm() -> None:
    """On ROCm torch tells everything: the architecture without its features, the CUs, the engine clock."""
    properties = SimpleNamespace(
        gcnArchName="gfx942:sramecc+:xnack-", multi_processor_count=304, clock_rate=2_100_000, major=9, minor=4
    )
    made = silicon(properties, None, hip=True)
    assert (made.architecture, made.units, made.max_clock_mhz) == ("gfx942", 304, 2100)
    del properties.clock_rate
    assert silicon(properties, None, hip=True).max_clock_mhz is None


@pytest.mark.parametrize(
    ("field", "read"),
    [
        ("pci", lambda gpu: gpu.identity().product),
        ("brand", lambda gpu: gpu.identity().brand),
        ("capability", lambda gpu: gpu.identity().compute_capability),
        ("mig", lambda gpu: gpu.identity().mig),
        ("max_sm", lambda gpu: gpu.identity().max_sm_clock_mhz),
        ("ecc", lambda gpu: gpu.identity().ecc),
        ("default_limit", lambda gpu: gpu.identity().default_power_limit_w),
        ("sm", lambda gpu: gpu.state().sm_clock_mhz),
        ("events", lambda gpu: gpu.state().events),
        ("power", lambda gpu: gpu.state().power_w),
        ("limit", lambda gpu: gpu.state().power_limit_w),
        ("temperature", lambda gpu: gpu.state().temperature_c),
        ("processes", lambda gpu: gpu.state().processes),
        ("application", lambda gpu: gpu.state().application_clock_mhz),
        ("default_application", lambda gpu: gpu.identity().default_application_clock_mhz),
        ("memory_total", lambda gpu: gpu.state().memory_used_bytes),
        ("memory_total", lambda gpu: gpu.identity().memory_bytes),
        ("bus_bits", lambda gpu: gpu.identity().memory_bus_bits),
        ("errors0", lambda gpu: gpu.health().corrected_errors),
        ("errors1", lambda gpu: gpu.health().uncorrected_errors),
        ("rows_corrected", lambda gpu: gpu.health().remap_pending),
    ],
)
@pytest.mark.parametrize("code", [3, 4], ids=["not supported", "no permission"])
def test_a_refusal_costs_one_field(fake: Fake, nvml: Nvml, field: str, read: Callable[[Gpu], Any], code: int) -> None:
    """What the driver refuses is None, and the rest is still told."""
    gpu = found(nvml)
    assert read(gpu) is not None
    fake.device(0, WHOLE, "NVIDIA H100 80GB HBM3", **{field: -code})
    assert read(gpu) is None
    assert gpu.identity().name == "NVIDIA H100 80GB HBM3"


def test_slice_without_attributes(fake: Fake, nvml: Nvml) -> None:
    """Refused MIG attributes leave the slice unknown, not the parent's."""
    fake.mig(0, 16)
    fake.device(0, 0, "a slice", sm_count=-4)
    identity = found(nvml, "MIG-00000").identity()
    assert (identity.slice, identity.mig) == (None, True)


@pytest.mark.parametrize("fake", [("-DOLD_DRIVER",)], indirect=True)
def test_old_driver(nvml: Nvml) -> None:
    """The reasons have another name in drivers before 535."""
    assert found(nvml).state().events == ("software power cap",)


@pytest.mark.parametrize("fake", [("-DBARE",)], indirect=True)
def test_missing_symbols(nvml: Nvml) -> None:
    """A library without most functions tells what it can."""
    gpu = found(nvml)
    assert gpu.state() == NO_STATE
    identity = gpu.identity()
    assert (identity.product, identity.brand, identity.ecc, identity.siblings) == ("10de:2330", None, None, None)
    assert gpu.health() == NO_HEALTH


@given(st.sets(st.integers(0, 62)))
def test_every_bit_is_named(bits: set[int]) -> None:
    """Reasons combine: each bit has its name or its number, in order, and none is lost."""
    names = events(sum(1 << bit for bit in bits))
    assert len(names) == len(set(names)) == len(bits)
    assert list(names) == [name for bit in sorted(bits) for name in events(1 << bit)]


def test_event_names() -> None:
    """0x24 is what a hot GPU at its power cap reports; bits of the future are given as they are."""
    assert events(0) == ()
    assert events(0x24) == ("software power cap", "software thermal slowdown")
    assert events(0x1) == ("idle",)
    assert events(0x8C0) == ("hardware thermal slowdown", "power brake", "0x800")


def test_peaks_of_a_gpu(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """From `mfu.peaks` to the driver and back: the theory of the device that torch runs on, calibrated or not."""
    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", uuid="00009", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    peaks = mfu.peaks("cuda")
    headline = peaks.headline("bfloat16")
    assert headline is not None
    assert headline[1].flops_per_s == 132 * 4096 * 1830e6
    assert (peaks.device, peaks.achievable) == ("cuda:0", {})
    assert "run `mfu calibrate`" in str(peaks.state["missing"])
    # The driver goes: no theory, and the reason for it.
    fake.library.fake_broken(9)
    peaks = mfu.peaks("cuda")
    assert peaks.theoretical == {}
    assert "which product this sm_90 is" in str(peaks.state["theory_missing"])
    assert "Driver Not Loaded" in str(peaks.state["theory_missing"])
    assert fake.sessions == 0
