"""A libnvidia-ml.so.1 of our own behind the real nvidia-ml-py: built here, loaded as the driver's would be."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

from mfu_sdk.peak.nvml import Gpu, Nvml

SOURCE = Path(__file__).parent / "fake_nvml.c"
WHOLE = -1
# An H100 SXM under load. Power in milliwatts, memory in bytes, as NVML has them.
H100 = {
    "pci": 0x233010DE, "subsystem": 0x16C110DE, "brand": 14, "capability": 90, "mig": 0, "mig_most": 7, "ecc": 1,
    "sm": 1755, "memory": 2619, "max_sm": 1980, "max_memory": 2619, "events": 0x4,
    "power": 698_500, "limit": 700_000, "default_limit": 700_000, "temperature": 64, "processes": 2,
    "application": 1980, "default_application": 1980, "memory_total": 85_520_809_984, "memory_used": 1 << 30,
    "bus_bits": 5120, "errors0": 3, "errors1": 0, "rows_corrected": 1, "rows_uncorrected": 0,
    "generation": 5, "max_generation": 5, "lanes": 16, "max_lanes": 16,
}  # fmt: skip

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc builds the library; it is not here")


def build(directory: Path, *flags: str) -> Path:
    library = directory / "libnvidia-ml.so.1"
    subprocess.run(
        ["gcc", "-Wall", "-Wextra", "-Werror", *flags, "-shared", "-fPIC", "-o", str(library), str(SOURCE)],
        check=True,
    )  # fmt: skip
    return library


@pytest.fixture(scope="session")
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
        self.set(gpu, slice_, **fields)

    def set(self, gpu: int, slice_: int, **fields: int) -> None:
        for field, value in fields.items():
            self.library.fake_set(gpu, slice_, field.encode(), ctypes.c_longlong(value))

    def mig(self, gpu: int, *sm_counts: int, parent: dict[str, int] | None = None) -> None:
        self.device(gpu, WHOLE, "NVIDIA H100 80GB HBM3", **{**(parent or H100), "mig": 1})
        for index, count in enumerate(sm_counts):
            # A 0 is a slice that was destroyed. Every name claims one seventh.
            if count:
                self.device(
                    gpu, index, "NVIDIA H100 80GB HBM3 MIG 1g.10gb", sm_count=count, gpu_slices=1, compute_slices=1,
                    mib=9984, processes=1, instance=7 + index, memory_total=9984 << 20, memory_used=5 << 20,
                )  # fmt: skip

    @property
    def sessions(self) -> int:
        return int(self.library.fake_sessions())

    @property
    def samples(self) -> int:
        """GPM samples that are not freed."""
        return int(self.library.fake_samples())

    @property
    def calls(self) -> int:
        """Calls into the library until now."""
        return int(self.library.fake_calls())


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
    assert fake.samples == 0


def found(nvml: Nvml, uuid: str = "GPU-00009") -> Gpu:
    gpu = nvml.gpu(uuid)
    assert gpu is not None
    return gpu
