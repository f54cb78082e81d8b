"""The key of a calibration: everything that moves the number and can be read before measuring it again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
from functools import cache
from pathlib import Path
from typing import Final

from mfu_sdk.peak.device import Device, driver_view
from mfu_sdk.peak.nvml import Identity, State
from mfu_sdk.peak.partition import partition
from mfu_sdk.peak.results import Key

PROTOCOL: Final = 2
"""Raised whenever the way of measuring changes, so that results of another protocol are never read back."""

_BLAS: Final = ("nvidia-cublas", "nvidia-cublas-cu13", "nvidia-cublas-cu12")


def key_of(target: Device) -> Key:
    """The key of `target` as it is configured now: two devices, or two configurations, never share one.

    What NVML does not tell is left out, so that a calibration made without it is not read back with it.
    """
    import torch

    key: dict[str, str | int] = {
        "kind": target.kind,
        "name": target.name,
        "torch": torch.__version__,
        "protocol": PROTOCOL,
    }
    if target.kind == "cpu":
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return key | {"threads": torch.get_num_threads(), "cores": affinity, "machine": platform.machine()}
    properties = torch.cuda.get_device_properties(target.torch_name)
    key |= {
        "uuid": target.uuid or target.torch_name,
        "runtime": str(torch.version.cuda or torch.version.hip),
        "blas": _version(*_BLAS),
        "triton": _version("triton", "pytorch-triton", "pytorch-triton-rocm"),
        "kernels": kernels_hash(),
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
    }
    key |= partition(properties) if torch.version.hip else {}
    view = driver_view(target)
    return key if isinstance(view, str) else key | driver_part(*view)


def driver_part(identity: Identity, state: State) -> dict[str, str | int]:
    """What a driver adds: board, firmware, power limit, clocks, ECC, and of a MIG device its slice and its siblings."""
    found: dict[str, str | int | None] = {
        "product": identity.product,
        "vbios": identity.vbios,
        "driver": identity.driver,
        "power_limit_w": None if state.power_limit_w is None else round(state.power_limit_w),
        "max_sm_clock_mhz": identity.max_sm_clock_mhz,
        "application_clock_mhz": state.application_clock_mhz,
        "ecc": None if identity.ecc is None else int(identity.ecc),
        "parent": identity.parent_uuid,
        "siblings": identity.siblings,
    }
    if identity.slice is not None:
        part = identity.slice
        found["slice"] = f"{part.compute_slices}c.{part.gpu_slices}g, {part.sm_count} SM, {part.memory_bytes} B"
    return {name: value for name, value in found.items() if value is not None}


DEVICE: Final = ("kind", "name", "uuid")
"""The parts of a key that tell devices apart."""


def same_kind(key: Key) -> tuple[str | int | None, ...]:
    """What a device's calibration may stand in for another's by, as a prior: the same product in the same shape."""
    return tuple(
        key.get(name)
        for name in (
            "kind",
            "name",
            "multiprocessors",
            "memory_bytes",
            "power_limit_w",
            "slice",
            "compute_partition",
            "memory_partition",
        )
    )


@cache
def kernels_hash() -> str:
    """A hash of our own kernels' sources, or "none" where they are not installed."""
    found = importlib.util.find_spec("mfu_kernels")
    if found is None or found.origin is None:
        return "none"
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(Path(found.origin).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(*distributions: str) -> str:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "none"
