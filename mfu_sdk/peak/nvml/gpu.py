"""One GPU or MIG device: what it is, what it is doing at this moment, and whether its memory is sound.

A MIG device answers for its own SMs, memory and processes; clocks, power and ECC are asked of the GPU that it is a
slice of. What NVML does not tell is None.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mfu_sdk.errors import NvmlError
from mfu_sdk.peak.nvml.session import NO_PERMISSION, UNKNOWN, Nvml, Reading

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
# nvmlClockType_t (application clocks are set for graphics, which the SMs follow) and nvmlTemperatureSensors_t.
_GRAPHICS_CLOCK, _SM_CLOCK, _MEMORY_CLOCK = 0, 1, 2
_GPU_SENSOR = 0
# nvmlMemoryErrorType_t and nvmlEccCounterType_t: since the driver was loaded.
_CORRECTED, _UNCORRECTED = 0, 1
_VOLATILE = 0
# "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "... MIG 1c.2g.20gb+me".
_PROFILE = re.compile(r"\bMIG (\S+)$")


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
    `profile` is what people call a slice ("1g.10gb"): SMs are never derived from it. `memory_bytes` are a slice's own,
    `memory_bus_bits` its GPU's. `ecc_pending` is what ECC will be after the next reset. Clocks that someone locked
    (nvidia-smi -lgc) cannot be asked for: they show as a clock below the maximum under load.
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
    ecc_pending: bool | None = None
    default_application_clock_mhz: int | None = None
    memory_bytes: int | None = None
    memory_bus_bits: int | None = None
    profile: str | None = None
    gpu_instance: int | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What a GPU is doing now; None for what NVML does not tell.

    `events` are the reasons why its clock is not higher, none for full speed; one without a name is its bit ("0x800").
    `power_w` is an average over the last second on most GPUs since Ampere. `processes` are those with a compute context
    on the device, by process id as NVML sees them: inside of a container it may see none. `power_limit_w` is the one
    enforced. `application_clock_mhz` is the one asked for, where the device has such (drivers give them up).
    `busy_siblings` of a MIG device is how many of the other visible slices of its GPU run something.
    """

    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    events: tuple[str, ...] | None
    power_w: float | None
    power_limit_w: float | None
    temperature_c: int | None
    processes: tuple[int, ...] | None
    application_clock_mhz: int | None = None
    memory_used_bytes: int | None = None
    busy_siblings: int | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a GPU's memory is sound; None for what NVML does not tell.

    `uncorrected_errors` and `corrected_errors` are ECC's since the driver was loaded. `remap_pending` and
    `retirement_pending`: rows (since Ampere) or pages (before) will be taken out of use at the next reset.
    `remap_failed`: no spare row was left.
    """

    uncorrected_errors: int | None
    corrected_errors: int | None
    remapped_rows: int | None
    remap_pending: bool | None
    remap_failed: bool | None
    retirement_pending: bool | None


class Gpu:
    """One GPU or MIG device in an open session."""

    __slots__ = ("_handle", "_parent", "session")

    def __init__(self, session: Nvml, handle: Any) -> None:
        self.session = session
        self._handle = handle
        sliced = session.ask("nvmlDeviceIsMigDeviceHandle", handle)
        self._parent = session.ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle) if sliced else handle

    @property
    def sliced(self) -> bool:
        """Whether this is a MIG device."""
        return self._parent is not self._handle

    def ask(self, function: str, *arguments: Any) -> Any:
        """The answer of NVML's `function` about this device, or None."""
        return self.session.ask(function, self._handle, *arguments)

    def ask_gpu(self, function: str, *arguments: Any) -> Any:
        """The answer of NVML's `function` about this GPU, or the GPU that this MIG device is a slice of, or None."""
        return None if self._parent is None else self.session.ask(function, self._parent, *arguments)

    def answer_gpu(self, function: str, *arguments: Any) -> tuple[Any, int]:
        """As `ask_gpu`, with the nvmlReturn_t that says why there is no answer."""
        return (None, UNKNOWN) if self._parent is None else self.session.answer(function, self._parent, *arguments)

    def fields(self, *wanted: int | tuple[int, int]) -> list[Reading | None]:
        """Fields of this GPU, or the one that this MIG device is a slice of, in one call: see `Nvml.fields`."""
        return [None] * len(wanted) if self._parent is None else self.session.fields(self._parent, wanted)

    def ask_pair(self, function: str, other: Gpu, *arguments: Any) -> Any:
        """The answer of NVML's `function` about this GPU and that of `other`, or None."""
        return None if other._parent is None else self.ask_gpu(function, other._parent, *arguments)

    def identity(self) -> Identity:
        """What this device is: 15 calls into the driver, and of a slice some for each of its siblings."""
        name = self.ask("nvmlDeviceGetName")
        pci = self.ask_gpu("nvmlDeviceGetPciInfo")
        mig = self.ask_gpu("nvmlDeviceGetMigMode")
        capability = self.ask_gpu("nvmlDeviceGetCudaComputeCapability")
        ecc = self.ask_gpu("nvmlDeviceGetEccMode")
        memory = self.ask("nvmlDeviceGetMemoryInfo")
        siblings = self._siblings()
        return Identity(
            name=name,
            uuid=self.ask("nvmlDeviceGetUUID"),
            parent_uuid=self.ask_gpu("nvmlDeviceGetUUID") if self.sliced else None,
            brand=_BRANDS.get(self.ask_gpu("nvmlDeviceGetBrand")),
            product=None if pci is None else _pci_id(pci.pciDeviceId),
            subsystem=None if pci is None else _pci_id(pci.pciSubSystemId),
            compute_capability=None if capability is None else (capability[0], capability[1]),
            driver=self.session.ask("nvmlSystemGetDriverVersion"),
            vbios=self.ask_gpu("nvmlDeviceGetVbiosVersion"),
            mig=None if mig is None else mig[0] == 1,
            slice=self._slice(),
            siblings=None if siblings is None else len(siblings),
            max_sm_clock_mhz=self.ask_gpu("nvmlDeviceGetMaxClockInfo", _SM_CLOCK),
            max_memory_clock_mhz=self.ask_gpu("nvmlDeviceGetMaxClockInfo", _MEMORY_CLOCK),
            ecc=None if ecc is None else ecc[0] == 1,
            default_power_limit_w=_watts(self.ask_gpu("nvmlDeviceGetPowerManagementDefaultLimit")),
            ecc_pending=None if ecc is None else ecc[1] == 1,
            default_application_clock_mhz=self.ask_gpu("nvmlDeviceGetDefaultApplicationsClock", _GRAPHICS_CLOCK),
            memory_bytes=None if memory is None else memory.total,
            memory_bus_bits=self.ask_gpu("nvmlDeviceGetMemoryBusWidth"),
            profile=_profile(name) if self.sliced else None,
            gpu_instance=self.ask("nvmlDeviceGetGpuInstanceId") if self.sliced else None,
        )

    def state(self) -> State:
        """What this device is doing now: for the edges of a run, not for every step.

        Ten calls into the driver; of a slice two more, one for each slice that its GPU could have, and three for each
        sibling.
        """
        memory = self.ask("nvmlDeviceGetMemoryInfo")
        return State(
            sm_clock_mhz=self.ask_gpu("nvmlDeviceGetClockInfo", _SM_CLOCK),
            memory_clock_mhz=self.ask_gpu("nvmlDeviceGetClockInfo", _MEMORY_CLOCK),
            events=self._events(),
            power_w=_watts(self.ask_gpu("nvmlDeviceGetPowerUsage")),
            power_limit_w=_watts(self.ask_gpu("nvmlDeviceGetEnforcedPowerLimit")),
            temperature_c=self.ask_gpu("nvmlDeviceGetTemperature", _GPU_SENSOR),
            processes=self._processes(self._handle),
            application_clock_mhz=self.ask_gpu("nvmlDeviceGetApplicationsClock", _GRAPHICS_CLOCK),
            memory_used_bytes=None if memory is None else memory.used,
            busy_siblings=self._busy_siblings(),
        )

    def pulse(self) -> tuple[int | None, tuple[str, ...] | None]:
        """The SM clock in MHz and what holds it down, as in `state`: two calls, for a look while the device works."""
        return self.ask_gpu("nvmlDeviceGetClockInfo", _SM_CLOCK), self._events()

    def busy_share(self) -> float | None:
        """The share (0..1) of the driver's last period, a sixth of a second to one, in which any kernel ran.

        Whatever process launched it. It says nothing of how much of the device a kernel used. None of a MIG device,
        for which NVML has no such share (nvml.h, nvmlDeviceGetUtilizationRates).
        """
        rates = None if self.sliced else self.ask_gpu("nvmlDeviceGetUtilizationRates")
        return None if rates is None else float(rates.gpu) / 100

    def _events(self) -> tuple[str, ...] | None:
        mask = self.ask_gpu("nvmlDeviceGetCurrentClocksEventReasons")
        if mask is None:
            # Drivers before 535 know it under its former name.
            mask = self.ask_gpu("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if mask is None else events(mask)

    def health(self) -> Health:
        """Whether the memory of this GPU, or the one that this is a slice of, is sound: four calls."""
        rows = self.ask_gpu("nvmlDeviceGetRemappedRows")
        pages = self.ask_gpu("nvmlDeviceGetRetiredPagesPendingStatus")
        return Health(
            uncorrected_errors=self.ask_gpu("nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _VOLATILE),
            corrected_errors=self.ask_gpu("nvmlDeviceGetTotalEccErrors", _CORRECTED, _VOLATILE),
            remapped_rows=None if rows is None else rows[0] + rows[1],
            remap_pending=None if rows is None else rows[2] == 1,
            remap_failed=None if rows is None else rows[3] == 1,
            retirement_pending=None if pages is None else pages == 1,
        )

    def _processes(self, handle: Any) -> tuple[int, ...] | None:
        running = self.session.ask("nvmlDeviceGetComputeRunningProcesses", handle)
        return None if running is None else tuple(sorted(process.pid for process in running))

    def _slice(self) -> Slice | None:
        attributes = self.ask("nvmlDeviceGetAttributes_v2") if self.sliced else None
        if attributes is None:
            return None
        return Slice(
            sm_count=attributes.multiprocessorCount,
            gpu_slices=attributes.gpuInstanceSliceCount,
            compute_slices=attributes.computeInstanceSliceCount,
            memory_bytes=attributes.memorySizeMB << 20,
        )

    def _siblings(self) -> list[Any] | None:
        """Handles of the other MIG devices of the same GPU; they share its power, clock and memory controllers."""
        if not self.sliced:
            return None
        most, own = self.ask_gpu("nvmlDeviceGetMaxMigDeviceCount"), self.ask("nvmlDeviceGetUUID")
        if most is None or own is None:
            return None
        # Indices may have gaps where a slice was destroyed.
        handles = [self.ask_gpu("nvmlDeviceGetMigDeviceHandleByIndex", index) for index in range(most)]
        named = [(handle, self.session.ask("nvmlDeviceGetUUID", handle)) for handle in handles if handle is not None]
        return [handle for handle, uuid in named if uuid is not None and uuid != own]

    def _busy_siblings(self) -> int | None:
        siblings = self._siblings()
        running = [] if siblings is None else [self._processes(handle) for handle in siblings]
        # One that does not say leaves the sum unknown.
        return None if siblings is None or None in running else sum(1 for processes in running if processes)


@contextmanager
def open_gpu(uuid: str) -> Iterator[Gpu]:
    """The GPU or MIG device with this UUID in a session of its own. Raises `NvmlError` if NVML does not give it."""
    with Nvml.open() as session:
        handle, code = session.find(uuid)
        if handle is None:
            reason = (
                "may not be read (Insufficient Permissions): let this user read and write the GPU's /dev/nvidia*"
                if code == NO_PERMISSION
                else f"is not seen (NVML error {code}): look whether nvidia-smi -L lists it in this container"
            )
            raise NvmlError(f"NVML: {uuid} {reason}; the product, its clocks and MIG slices are unknown")
        yield Gpu(session, handle)


def _profile(name: str | None) -> str | None:
    found = None if name is None else _PROFILE.search(name)
    return None if found is None else found[1]


def events(mask: int) -> tuple[str, ...]:
    """The names of the bits in `mask`, lowest first."""
    bits = (bit for bit in range(mask.bit_length()) if mask >> bit & 1)
    return tuple(_EVENTS[bit] if bit < len(_EVENTS) else hex(1 << bit) for bit in bits)


def _pci_id(packed: int) -> str:
    """Device id in the upper half, vendor id in the lower."""
    return f"{packed & 0xFFFF:04x}:{packed >> 16:04x}"


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000
