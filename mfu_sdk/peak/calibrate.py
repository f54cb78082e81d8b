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
from mfu_sdk.peak.device import Device, driver_view, resolve, silicon
from mfu_sdk.peak.results import Results
from mfu_sdk.peak.theory import Theory, theoretical
from mfu_sdk.records import Collectives, Peaks
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
    collectives: bool = False,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Peaks:
    """Measure the peak of `device` within about `budget_s` seconds, keep it, and return it.

    On a processor: fp32 matrix products, bf16 ones where it has instructions for them, and copies; `dtypes` may only
    be ("float32",). On a CUDA device: `torch.mm` for each of `dtypes` (all of "bfloat16", "float16", "tf32" and
    "float32" unless given), and copies; dtypes measured earlier are kept. `progress` is told what is being measured and
    how much of the budget is gone (0..1). What the device could do on paper is beside what it did, as in `peaks`.

    With `collectives` also, first and in a budget of its own, all-reduce, all-gather, reduce-scatter and all-to-all
    between the ranks of each host, between hosts and between all ranks. That is a collective act: all ranks of the
    default process group must call this, with the same arguments. One that does not come within 30 seconds is named in
    the error that the others get. Without it, those measured earlier are kept.

    Raises `ConfigurationError` for a device, dtype or budget that cannot be, or for collectives without a process
    group; `CalibrationError` if it went wrong.
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
    together = _measure_collectives(budget_s, heard) if collectives else None
    if target.kind == "cpu":
        found = _measure_cpu(target, budget_s, heard)
    else:
        found = _measure_cuda(target, dtypes or CUDA_DTYPES, budget_s, heard)
    results, key = _results(settings), _key(target)
    earlier = results.load(key)
    if dtypes and earlier is not None:
        found = replace(found, achievable={**earlier.achievable, **found.achievable})
    if together is not None:
        told = {} if together.missing is None else {"collectives_missing": together.missing}
        found = replace(found, collectives=together.rates, state={**found.state, **told})
    elif earlier is not None:
        found = replace(found, collectives=earlier.collectives)
    results.save(key, found)
    return _with_theory(found, target)


def peaks(device: str | torch.device | None = None, *, settings: Settings | None = None) -> Peaks:
    """What is known of `device`: what it could do on paper, and its cached calibration; never another device's.

    `theoretical` holds dense rates at the vendor's reference clock, or at NVML's maximum where no reference clock is
    known; each says so in its `source`. `state["bfloat16_at_max_clock_flops_per_s"]` and the like give them at the
    maximum. A rate that cannot be told is absent, and `state["theory_missing"]` says why; a processor has none at all.
    Without a calibration `achievable` is empty and `state["missing"]` names the remedy.
    """
    target = resolve(device)
    found = _results(settings or Settings.from_env()).load(_key(target))
    if found is None:
        remedy = f"no calibration of {target.name} under this configuration; run `mfu calibrate`"
        found = Peaks(target.torch_name, {}, {}, None, None, {"missing": remedy})
    return _with_theory(found, target)


def theory_of(device: Device) -> Theory:
    """What a CUDA or ROCm device could do on paper."""
    import torch

    view = driver_view(device)
    identity = None if isinstance(view, str) else view[0]
    properties = torch.cuda.get_device_properties(device.torch_name)
    found = theoretical(silicon(properties, identity, hip=torch.version.hip is not None))
    if isinstance(view, str) and found.missing is not None:
        return replace(found, missing=f"{found.missing}; {view}")
    return found


def _with_theory(found: Peaks, target: Device) -> Peaks:
    # Made anew each time and never cached: the next version's tables may know more.
    return found if target.kind == "cpu" else with_theory(found, theory_of(target))


def with_theory(found: Peaks, theory: Theory) -> Peaks:
    """`found` with the rates of `theory`, and in its state those at the highest clock and what is missing."""
    state = dict(found.state)
    for dtype, rate in theory.at_max_clock.items():
        state[f"{dtype}_at_max_clock_flops_per_s"] = rate.flops_per_s
    if theory.missing is not None:
        state["theory_missing"] = theory.missing
    return replace(found, theoretical=theory.headline, state=state)


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


def _measure_collectives(budget_s: float, progress: Progress) -> Collectives:
    from mfu_sdk.peak import collectives

    return collectives.measure(budget_s=budget_s, progress=progress)


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
