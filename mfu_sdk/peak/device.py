"""Which device a piece of work runs on, as its driver names it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mfu_sdk.errors import ConfigurationError, MissingDependencyError, NvmlError
from mfu_sdk.peak.nvml import Gpu, Identity, State, open_gpu
from mfu_sdk.peak.theory import Silicon

if TYPE_CHECKING:
    import torch

_T = TypeVar("_T")
_WHOLE_UUID: Final = len("MIG-") + 36


@dataclass(frozen=True, slots=True)
class Device:
    """A device: its torch name ("cpu", "cuda:0"), the driver's name for it, its vendor, and its UUID if it has one."""

    torch_name: str
    name: str
    vendor: str | None
    uuid: str | None

    @property
    def kind(self) -> str:
        """The device's type as torch calls it: "cpu" or "cuda"."""
        return self.torch_name.partition(":")[0]


def import_torch() -> None:
    """Raise `MissingDependencyError` with the remedy where torch is not installed."""
    try:
        import torch  # noqa: F401 - asked for its presence only
    except ImportError as missing:
        raise MissingDependencyError(
            "torch is not installed: measuring needs it; install the build for your device, or mfu-sdk[torch]"
        ) from missing


def resolve(device: str | torch.device | None = None) -> Device:
    """The device that `device` names; None is the current CUDA device where there is one, else the processor.

    Raises `ConfigurationError` for a device that torch does not know, that is not there, or of a kind that cannot be
    measured, and `MissingDependencyError` without torch.
    """
    import_torch()
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigurationError(f"device={device!r}: torch knows no such device; use cpu or cuda:N") from error
    if wanted.type == "cpu":
        return Device("cpu", processor_name(), _processor_vendor(), None)
    if wanted.type != "cuda":
        raise ConfigurationError(
            f"device={device!r}: only cpu and cuda devices can be measured so far; use one of them"
        )
    if not torch.cuda.is_available():
        raise ConfigurationError(f"device={device!r}: torch sees no CUDA device here; use device='cpu'")
    index = wanted.index if wanted.index is not None else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise ConfigurationError(
            f"device={device!r}: torch sees {torch.cuda.device_count()} CUDA devices, numbered from 0"
        )
    properties = torch.cuda.get_device_properties(index)
    vendor = "AMD" if torch.version.hip else "NVIDIA"
    uuid = getattr(properties, "uuid", None)
    named = _visible_slice(index) or (None if uuid is None else f"GPU-{uuid}")
    return Device(f"cuda:{index}", properties.name, vendor, named)


def _visible_slice(index: int) -> str | None:
    """The MIG device that CUDA_VISIBLE_DEVICES makes this one, by its UUID, of which torch may pass on the parent's.

    CUDA takes a prefix of a UUID too, which NVML does not: such a one is no answer.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    named = visible[index].strip() if index < len(visible) else ""
    return named if named.startswith("MIG-") and len(named) >= _WHOLE_UUID else None


def driver_view(device: Device) -> tuple[Identity, State] | str:
    """What NVML says of a CUDA device, and how it is now; or in one sentence why it says nothing."""
    return ask_driver(device, lambda gpu: (gpu.identity(), gpu.state()))


def ask_driver(device: Device, question: Callable[[Gpu], _T]) -> _T | str:
    """The answer to `question` by NVML, in a session of its own; or in one sentence why there is none."""
    if device.vendor != "NVIDIA" or device.uuid is None:
        return f"{device.torch_name} has no NVML: it is read through torch alone"
    try:
        with open_gpu(device.uuid) as gpu:
            return question(gpu)
    except NvmlError as error:
        return str(error)


def silicon(properties: Any, identity: Identity | None, *, hip: bool) -> Silicon:
    """What a CUDA or ROCm device says of itself: torch's `properties` of it, and NVML's `identity` where there is one.

    torch counts the SMs of a MIG device as NVML does; where both tell, NVML's word is taken. ROCm gives a device's peak
    engine clock in kHz, which older versions of torch do not pass on.
    """
    units = int(properties.multi_processor_count)
    if hip:
        clock_khz = getattr(properties, "clock_rate", 0)
        return Silicon(properties.gcnArchName.partition(":")[0], units, max_clock_mhz=clock_khz // 1000 or None)
    architecture = f"sm_{properties.major}{properties.minor}"
    if identity is None:
        return Silicon(architecture, units)
    return Silicon(
        architecture,
        units if identity.slice is None else identity.slice.sm_count,
        max_clock_mhz=identity.max_sm_clock_mhz,
        product=identity.product,
        brand=identity.brand,
        # Once a GPU is partitioned, compute runs in its slices only, whichever of the two UUIDs torch passes on.
        sliced=identity.slice is not None or identity.mig is True,
    )


def of_tensors(tensors: Iterable[torch.Tensor]) -> tuple[str, ...]:
    """The torch names of the devices that hold `tensors`, sorted, meta tensors left out."""
    return tuple(sorted({str(t.device) for t in tensors if t.device.type != "meta"}))


def processor_name() -> str:
    """What the operating system calls this machine's processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine() or "processor"


def _processor_vendor() -> str | None:
    vendor = _cpuinfo("vendor_id")
    return {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}.get(vendor, vendor) if vendor else None


def _cpuinfo(key: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), None)
