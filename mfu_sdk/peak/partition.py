"""How an AMD GPU is partitioned, as its kernel driver's files say: modes that its name does not show."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

_PCI: Final = Path("/sys/bus/pci/devices")
_FILES: Final = {"compute_partition": "current_compute_partition", "memory_partition": "current_memory_partition"}


def partition(properties: Any, devices: Path = _PCI) -> dict[str, str | int]:
    """The compute mode (SPX, DPX, TPX, QPX, CPX) and the memory mode (NPS1 … NPS8) of the GPU that has `properties`.

    Of MI300 and later. What there is no file for, or may not be read, is left out; a device whose place on the PCI
    bus torch does not tell has neither. Source: AMD SMI's guide to GPU partitioning (amdgpu's sysfs interface).
    """
    place = [getattr(properties, name, None) for name in ("pci_domain_id", "pci_bus_id", "pci_device_id")]
    domain, bus, device = (number if isinstance(number, int) else -1 for number in place)
    if min(domain, bus, device) < 0:
        return {}
    folder = devices / f"{domain:04x}:{bus:02x}:{device:02x}.0"
    found: dict[str, str | int] = {}
    for name, file in _FILES.items():
        try:
            mode = (folder / file).read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            continue
        if mode:
            found[name] = mode[:16]
    return found
