"""NVML through the real nvidia-ml-py and a library of our own: built here, loaded as the driver's would be."""

import ctypes
import ctypes.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mfu_sdk as mfu
from mfu_sdk.doctor import gpu_findings
from mfu_sdk.peak.device import silicon
from mfu_sdk.peak.nvml import Gpu, Nvml, NvmlError, State, events
from mfu_sdk.peak.theory import theoretical

SOURCE = Path(__file__).parent / "fake_nvml.c"
WHOLE = -1
# An H100 SXM under load. Power in milliwatts, as NVML has it.
H100 = {
    "pci": 0x233010DE, "subsystem": 0x16C110DE, "brand": 14, "capability": 90, "mig": 0, "mig_most": 7, "ecc": 1,
    "sm": 1755, "memory": 2619, "max_sm": 1980, "max_memory": 2619, "events": 0x4,
    "power": 698_500, "limit": 700_000, "default_limit": 700_000, "temperature": 64, "processes": 2,
}  # fmt: skip

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc builds the library; it is not here")


def build(directory: Path, *flags: str) -> Path:
    library = directory / "libnvidia-ml.so.1"
    subprocess.run(
        ["gcc", "-Wall", "-Wextra", "-Werror", *flags, "-shared", "-fPIC", "-o", str(library), str(SOURCE)],
        check=True,
    )  # fmt: skip
    return library


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Paths of the library, built once for each set of flags."""
    made: dict[tuple[str, ...], Path] = {}

    def get(*flags: str) -> Path:
        if flags not in made:
            made[flags] = build(tmp_path_factory.mktemp("nvml"), *flags)
        return made[flags]

    return get


class Fake:
    """The knobs of the library that nvidia-ml-py has loaded."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.fake_reset()

    def device(self, gpu: int, slice_: int, name: str, **fields: int) -> None:
        self.library.fake_name(gpu, slice_, name.encode())
        for field, value in fields.items():
            self.library.fake_set(gpu, slice_, field.encode(), ctypes.c_longlong(value))

    def mig(self, gpu: int, *sm_counts: int, parent: dict[str, int] | None = None) -> None:
        self.device(gpu, WHOLE, "NVIDIA H100 80GB HBM3", **{**(parent or H100), "mig": 1})
        for index, count in enumerate(sm_counts):
            # A 0 is a slice that was destroyed. Every name claims one seventh.
            if count:
                self.device(
                    gpu, index, "NVIDIA H100 80GB HBM3 MIG 1g.10gb", sm_count=count, gpu_slices=1, compute_slices=1,
                    mib=9984, processes=1,
                )  # fmt: skip

    @property
    def sessions(self) -> int:
        return int(self.library.fake_sessions())


@pytest.fixture
def fake(libraries: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Fake:
    """An H100 in a machine of one GPU, behind nvidia-ml-py. Parametrized by the flags of its build."""
    library = ctypes.CDLL(str(libraries(*getattr(request, "param", ()))))
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    made = Fake(library)
    made.device(0, WHOLE, "NVIDIA H100 80GB HBM3", **H100)
    return made


@pytest.fixture
def nvml(fake: Fake) -> Iterator[Nvml]:
    with Nvml.open() as session:
        yield session
    assert fake.sessions == 0


def found(nvml: Nvml, uuid: str = "GPU-00009") -> Gpu:
    gpu = nvml.gpu(uuid)
    assert gpu is not None
    return gpu


def test_identity(nvml: Nvml) -> None:
    """A whole GPU: names, ids in the vendor's order, highest clocks, watts."""
    identity = found(nvml).identity()
    assert (identity.name, identity.uuid, identity.parent_uuid) == ("NVIDIA H100 80GB HBM3", "GPU-00009", None)
    assert (identity.product, identity.subsystem, identity.brand) == ("10de:2330", "10de:16c1", "NVIDIA")
    assert (identity.driver, identity.vbios) == ("580.105.08", "96.00.74.00.01")
    assert (identity.compute_capability, identity.mig, identity.slice, identity.siblings) == ((9, 0), False, None, None)
    assert (identity.max_sm_clock_mhz, identity.max_memory_clock_mhz) == (1980, 2619)
    assert (identity.ecc, identity.default_power_limit_w) == (True, 700.0)


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
    )


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
    assert gpu.state() == State(None, None, None, None, None, None, None)
    identity = gpu.identity()
    assert (identity.product, identity.brand, identity.ecc, identity.siblings) == ("10de:2330", None, None, None)


def test_driver_gone(fake: Fake, nvml: Nvml) -> None:
    """A GPU that falls off the bus in the middle of a run answers nothing, and raises nothing."""
    gpu = found(nvml)
    assert gpu.state().sm_clock_mhz == 1755
    fake.library.fake_broken(15)
    assert gpu.state() == State(None, None, None, None, None, None, None)
    assert gpu.identity().product is None
    assert nvml.gpu("GPU-00009") is None
    fake.library.fake_broken(0)
    assert gpu.state().sm_clock_mhz == 1755


def test_unknown_uuid(nvml: Nvml) -> None:
    """A UUID that NVML does not know is no device."""
    assert nvml.gpu("GPU-ffff") is None


def test_sessions_are_counted(fake: Fake) -> None:
    """Sessions end on their own; a closed one answers None, twice closed is once closed."""
    first, second = Nvml.open(), Nvml.open()
    gpu = found(first)
    assert fake.sessions == 2
    first.close()
    first.close()
    assert fake.sessions == 1
    assert gpu.state().sm_clock_mhz is None
    assert found(second).state().sm_clock_mhz == 1755
    second.close()
    assert fake.sessions == 0


def test_threads(fake: Fake) -> None:
    """Threads that ask and close at the same time neither raise nor end the session twice."""
    others = Nvml.open()
    session = Nvml.open()
    gpu = found(session)
    begin = threading.Barrier(9)
    answers: list[int | None] = []

    def work(index: int) -> None:
        begin.wait()
        for step in range(200):
            answers.append(gpu.state().sm_clock_mhz)
            if step == 100 and index % 2:
                session.close()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    begin.wait()
    for thread in threads:
        thread.join()
    # A thread that raised would have fallen short.
    assert len(answers) == 8 * 200
    assert set(answers) == {1755, None}
    assert fake.sessions == 1
    others.close()


def test_driver_not_loaded(fake: Fake) -> None:
    """A library without its driver cannot be opened, and the error names the reason and the remedy."""
    fake.library.fake_broken(9)
    with pytest.raises(NvmlError, match=r"Driver Not Loaded.*install NVIDIA's driver"):
        Nvml.open()


@pytest.mark.skipif(ctypes.util.find_library("nvidia-ml") is not None, reason="this machine has NVML")
def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library there is one error, and it names the remedy."""
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    with pytest.raises(NvmlError, match=r"NVML Shared Library Not Found.*`utility`"):
        Nvml.open()


PROGRAM = """
import sys
import mfu_sdk.peak.nvml as nvml
assert "pynvml" not in sys.modules, "importing us loaded the binding"
with nvml.Nvml.open() as session:
    print(session.gpu("GPU-00009"), session.ask("nvmlSystemGetDriverVersion"))
"""


def test_found_by_the_loader(libraries: Callable[..., Path]) -> None:
    """In a process of its own the library is found as a driver's is, and nothing is loaded before it is opened."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(libraries().parent)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "None 580.105.08\n"


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


def test_doctor(fake: Fake, nvml: Nvml) -> None:
    """The doctor's screen: a throttled slice among others under a lowered cap, with a stranger on it."""
    fake.mig(0, 16, 60, parent={**H100, "events": 0x24, "limit": 500_000})
    gpu = found(nvml, "MIG-00001")
    lines = {each.what: (each.state, each.text) for each in gpu_findings((gpu.identity(), gpu.state()), process=1)}
    assert lines["driver"] == ("good", "580.105.08, product 10de:2330 (NVIDIA), ECC on")
    assert lines["mig"][0] == "note"
    assert lines["mig"][1].startswith("a slice of 60 SMs and 9.8 GiB; 1 other")
    assert lines["clock"][0] == "note"
    assert "1755 of 1980 MHz, held down by: software power cap, software thermal slowdown" in lines["clock"][1]
    assert lines["power"][0] == "note"
    assert "limited to 500 of 700 W" in lines["power"][1]
    assert "4007" in lines["processes"][1]


def test_doctor_of_a_quiet_gpu(fake: Fake, nvml: Nvml) -> None:
    """An idle GPU with only this process on it is in order."""
    fake.device(0, WHOLE, "NVIDIA H100 80GB HBM3", events=0x1, processes=1)
    gpu = found(nvml)
    findings = list(gpu_findings((gpu.identity(), gpu.state()), process=4007))
    assert [each.what for each in findings] == ["driver", "clock"]
    assert {each.state for each in findings} == {"good"}
    assert [each.state for each in gpu_findings("NVML cannot be used", process=1)] == ["note"]
