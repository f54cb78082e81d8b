"""The peak of a device: measured when asked for, kept, and read back while everything that moves it is the same."""

from __future__ import annotations

import os
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.peak.device import Device, resolve
from mfu_sdk.peak.results import Results
from mfu_sdk.records import Peaks
from mfu_sdk.settings import Settings

if TYPE_CHECKING:
    import torch

PROTOCOL = 1
"""Raised whenever the way of measuring changes, so that results of another protocol are never read back."""

Progress = Callable[[str, float], None]
CUDA_DTYPES = ("bfloat16", "float16", "tf32", "float32")


def calibrate(
    device: str | torch.device | None = None,
    dtypes: Sequence[str] | None = None,
    budget_s: float = 3.0,
    *,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Peaks:
    """Measure the peak of `device` within about `budget_s` seconds, keep it, and return it.

    On a processor: fp32 matrix products, bf16 ones where it has instructions for them, and copies; `dtypes` may only
    be ("float32",). On a CUDA device: `torch.mm` for each of `dtypes` (all of "bfloat16", "float16", "tf32" and
    "float32" unless given), and copies; dtypes measured earlier are kept. `progress` is told what is being measured and
    how much of the budget is gone (0..1).
    Raises `ConfigurationError` for a device, dtype or budget that cannot be, `CalibrationError` if it went wrong.
    """
    settings = settings or Settings.from_env()
    heard = progress or _unheard
    target = resolve(device)
    if not budget_s > 0:
        raise ConfigurationError(f"budget_s={budget_s}: must be above 0 seconds; 3 is enough for a first look")
    known = ("float32",) if target.kind == "cpu" else CUDA_DTYPES
    for dtype in dtypes or ():
        if dtype not in known:
            raise ConfigurationError(f"dtypes={dtype!r}: on {target.torch_name} choose among {', '.join(known)}")
    if target.kind == "cpu":
        found = _measure_cpu(target, budget_s, heard)
    else:
        found = _measure_cuda(target, dtypes or CUDA_DTYPES, budget_s, heard)
    results, key = _results(settings), _key(target)
    if dtypes and (earlier := results.load(key)) is not None:
        found = replace(found, achievable={**earlier.achievable, **found.achievable})
    results.save(key, found)
    return found


def peaks(device: str | torch.device | None = None, *, settings: Settings | None = None) -> Peaks:
    """What is known of `device`: its cached calibration, else nothing; never another device's.

    Without a calibration `achievable` and `theoretical` are empty and `state["missing"]` names the remedy.
    """
    target = resolve(device)
    cached = _results(settings or Settings.from_env()).load(_key(target))
    if cached is not None:
        return cached
    remedy = f"no calibration of {target.name} under this configuration; run `mfu calibrate`"
    return Peaks(target.torch_name, {}, {}, None, None, {"missing": remedy})


def _measure_cpu(target: Device, budget_s: float, progress: Progress) -> Peaks:
    from mfu_sdk.peak import cpu

    found = cpu.measure(budget_s, progress)
    return Peaks(
        device=target.torch_name,
        theoretical={},
        achievable=found.products,
        memory=found.memory,
        clock_mhz=None,
        state={"name": target.name, **found.state},
        memory_by_size=found.memory_by_size,
        calibration_id=_new_id(),
    )


def _measure_cuda(target: Device, dtypes: Iterable[str], budget_s: float, progress: Progress) -> Peaks:
    from mfu_sdk.peak import cuda

    rates, memory, state = cuda.measure(target.torch_name, dtypes, budget_s, progress)
    return Peaks(
        device=target.torch_name,
        theoretical={},
        achievable=rates,
        memory=memory,
        clock_mhz=None,
        state={"name": target.name, **state},
        calibration_id=_new_id(),
    )


def _unheard(_label: str, _share: float) -> None:
    """Where nobody wants to know how far a calibration is."""


def _new_id() -> str:
    return uuid.uuid4().hex[:16]


def _results(settings: Settings) -> Results:
    return Results(settings.resolved_cache_dir() / "calibrations", now=time.time)


def _key(target: Device) -> dict[str, str | int]:
    """Everything that moves the number and can be read without a driver library."""
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
    return key | {
        "uuid": target.uuid or target.torch_name,
        "runtime": str(torch.version.cuda or torch.version.hip),
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
    }
