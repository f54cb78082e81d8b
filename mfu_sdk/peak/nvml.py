"""NVIDIA's management library, through nvidia-ml-py: what a GPU is, and what it is doing at this moment.

The only file that talks to NVML. Every question may fail (not supported on this board, not permitted in this container,
not in this driver, the GPU fallen off the bus) and then its answer is None: nothing here raises but `Nvml.open`. A MIG
device answers for its own SMs and memory; clocks, power and ECC are asked of the GPU that it is a slice of.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from mfu_sdk.errors import NvmlError

# nvmlBrandType_t. The others (vGPU, GRID) stay unknown: they say how a GPU is licensed, not what it is.
_BRANDS = {
    1: "Quadro", 2: "Tesla", 5: "GeForce", 6: "Titan", 12: "Quadro RTX", 13: "NVIDIA RTX", 14: "NVIDIA",
    15: "GeForce RTX", 16: "Titan RTX",
}  # fmt: skip
# nvmlClocksEventReasons, a bit mask: several hold at once.
_EVENTS = (
    "idle", "application clocks", "software power cap", "hardware slowdown", "sync boost",
    "software thermal slowdown", "hardware thermal slowdown", "power brake", "display clocks",
    "board limit", "reliability",
)  # fmt: skip
# nvmlClockType_t and nvmlTemperatureSensors_t.
_SM_CLOCK, _MEMORY_CLOCK = 1, 2
_GPU_SENSOR = 0


@dataclass(frozen=True, slots=True)
class Slice:
    """What a MIG device has of its GPU: SMs, slices of its GPU and of its compute instance, bytes of memory."""

    sm_count: int
    gpu_slices: int
    compute_slices: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Identity:
    """What a GPU is, as long as nobody reconfigures it; None for what NVML does not tell.

    `uuid` is the device's own and `parent_uuid` that of the GPU of a MIG device. `product` and `subsystem` are PCI ids,
    vendor first ("10de:2330", "10de:16c1"). `slice` is known of MIG devices only. `mig` says that the GPU is
    partitioned, and `siblings` how many other slices of it are visible. Clocks in MHz, power in watts.
    """

    name: str | None
    uuid: str | None
    parent_uuid: str | None
    brand: str | None
    product: str | None
    subsystem: str | None
    compute_capability: tuple[int, int] | None
    driver: str | None
    vbios: str | None
    mig: bool | None
    slice: Slice | None
    siblings: int | None
    max_sm_clock_mhz: int | None
    max_memory_clock_mhz: int | None
    ecc: bool | None
    default_power_limit_w: float | None


@dataclass(frozen=True, slots=True)
class State:
    """What a GPU is doing now; None for what NVML does not tell.

    `events` are the reasons why its clock is not higher, none for full speed; one without a name is its bit ("0x800").
    `power_w` is an average over the last second on most GPUs since Ampere. `processes` are those with a compute context
    on the device, by process id as NVML sees them: inside of a container it may see none.
    """

    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    events: tuple[str, ...] | None
    power_w: float | None
    power_limit_w: float | None
    temperature_c: int | None
    processes: tuple[int, ...] | None


class Nvml:
    """An open NVML session. Safe to use and to close from several threads; what is asked after closing is None."""

    __slots__ = ("_lock", "_open", "_pynvml")

    def __init__(self, pynvml: Any) -> None:
        self._pynvml = pynvml
        self._lock = threading.Lock()
        self._open = True

    @classmethod
    def open(cls) -> Nvml:
        """Start a session; sessions are counted by NVML, so others' are not disturbed. Raises `NvmlError`."""
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception as error:
            raise NvmlError(
                f"NVML cannot be used ({error}): the product, its clocks and MIG slices are unknown; "
                "install NVIDIA's driver, or give this container its `utility` capability"
            ) from error
        return cls(pynvml)

    def close(self) -> None:
        """End the session. Closing twice is closing once."""
        with self._lock:
            was_open, self._open = self._open, False
        if was_open:
            self._call("nvmlShutdown")

    def __enter__(self) -> Nvml:
        """The session itself."""
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Close."""
        self.close()

    def ask(self, function: str, *arguments: Any) -> Any:
        """The answer of NVML's `function`, or None if it has none."""
        return self._call(function, *arguments) if self._open else None

    def _call(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._pynvml, function)(*arguments)
        except Exception:  # noqa: BLE001 - NVML's errors, a binding without the function, bytes that are no text
            return None

    def gpu(self, uuid: str) -> Gpu | None:
        """The GPU or MIG device with this UUID, with or without "GPU-" or "MIG-" before it; None if NVML sees none.

        CUDA numbers devices as CUDA_VISIBLE_DEVICES wants, NVML by bus: only the UUID is the same in both.
        """
        bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
        for prefix in ("MIG-", "GPU-"):
            if (handle := self.ask("nvmlDeviceGetHandleByUUID", prefix + bare)) is not None:
                return Gpu(self, handle)
        return None


class Gpu:
    """One GPU or MIG device in an open session."""

    __slots__ = ("_handle", "_nvml", "_parent")

    def __init__(self, nvml: Nvml, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        sliced = nvml.ask("nvmlDeviceIsMigDeviceHandle", handle)
        self._parent = nvml.ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle) if sliced else handle

    @property
    def sliced(self) -> bool:
        """Whether this is a MIG device."""
        return self._parent is not self._handle

    def identity(self) -> Identity:
        """What this device is."""
        pci = self._of_parent("nvmlDeviceGetPciInfo")
        own = self._nvml.ask("nvmlDeviceGetUUID", self._handle)
        mig = self._of_parent("nvmlDeviceGetMigMode")
        capability = self._of_parent("nvmlDeviceGetCudaComputeCapability")
        ecc = self._of_parent("nvmlDeviceGetEccMode")
        return Identity(
            name=self._nvml.ask("nvmlDeviceGetName", self._handle),
            uuid=own,
            parent_uuid=self._of_parent("nvmlDeviceGetUUID") if self.sliced else None,
            brand=_BRANDS.get(self._of_parent("nvmlDeviceGetBrand")),
            product=None if pci is None else _pci_id(pci.pciDeviceId),
            subsystem=None if pci is None else _pci_id(pci.pciSubSystemId),
            compute_capability=None if capability is None else (capability[0], capability[1]),
            driver=self._nvml.ask("nvmlSystemGetDriverVersion"),
            vbios=self._of_parent("nvmlDeviceGetVbiosVersion"),
            mig=None if mig is None else mig[0] == 1,
            slice=self._slice(),
            siblings=self._siblings(own) if self.sliced else None,
            max_sm_clock_mhz=self._of_parent("nvmlDeviceGetMaxClockInfo", _SM_CLOCK),
            max_memory_clock_mhz=self._of_parent("nvmlDeviceGetMaxClockInfo", _MEMORY_CLOCK),
            ecc=None if ecc is None else ecc[0] == 1,
            default_power_limit_w=_watts(self._of_parent("nvmlDeviceGetPowerManagementDefaultLimit")),
        )

    def state(self) -> State:
        """What this device is doing now. Seven calls into the driver: for the edges of a run, not for every step."""
        mask = self._of_parent("nvmlDeviceGetCurrentClocksEventReasons")
        if mask is None:
            # Drivers before 535 know it under its former name.
            mask = self._of_parent("nvmlDeviceGetCurrentClocksThrottleReasons")
        running = self._nvml.ask("nvmlDeviceGetComputeRunningProcesses", self._handle)
        return State(
            sm_clock_mhz=self._of_parent("nvmlDeviceGetClockInfo", _SM_CLOCK),
            memory_clock_mhz=self._of_parent("nvmlDeviceGetClockInfo", _MEMORY_CLOCK),
            events=None if mask is None else events(mask),
            power_w=_watts(self._of_parent("nvmlDeviceGetPowerUsage")),
            power_limit_w=_watts(self._of_parent("nvmlDeviceGetEnforcedPowerLimit")),
            temperature_c=self._of_parent("nvmlDeviceGetTemperature", _GPU_SENSOR),
            processes=None if running is None else tuple(sorted(process.pid for process in running)),
        )

    def _of_parent(self, function: str, *arguments: Any) -> Any:
        return None if self._parent is None else self._nvml.ask(function, self._parent, *arguments)

    def _slice(self) -> Slice | None:
        attributes = self._nvml.ask("nvmlDeviceGetAttributes_v2", self._handle) if self.sliced else None
        if attributes is None:
            return None
        return Slice(
            sm_count=attributes.multiprocessorCount,
            gpu_slices=attributes.gpuInstanceSliceCount,
            compute_slices=attributes.computeInstanceSliceCount,
            memory_bytes=attributes.memorySizeMB << 20,
        )

    def _siblings(self, own: str | None) -> int | None:
        """How many other MIG devices of the same GPU there are; they share its power, clock and memory controllers."""
        most = self._of_parent("nvmlDeviceGetMaxMigDeviceCount")
        if most is None or own is None:
            return None
        # Indices may have gaps where a slice was destroyed.
        handles = (self._of_parent("nvmlDeviceGetMigDeviceHandleByIndex", index) for index in range(most))
        found = [self._nvml.ask("nvmlDeviceGetUUID", handle) for handle in handles if handle is not None]
        return sum(1 for uuid in found if uuid is not None and uuid != own)


def events(mask: int) -> tuple[str, ...]:
    """The names of the bits in `mask`, lowest first."""
    bits = (bit for bit in range(mask.bit_length()) if mask >> bit & 1)
    return tuple(_EVENTS[bit] if bit < len(_EVENTS) else hex(1 << bit) for bit in bits)


def _pci_id(packed: int) -> str:
    """Device id in the upper half, vendor id in the lower."""
    return f"{packed & 0xFFFF:04x}:{packed >> 16:04x}"


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000
