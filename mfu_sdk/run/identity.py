"""Who a run is: its name, its model's family, its device, its place among the ranks."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mfu_sdk.peak.device import Device
from mfu_sdk.records import RunIdentity
from mfu_sdk.run.attempts import attempt
from mfu_sdk.run.distributed import place
from mfu_sdk.run.mesh import axes
from mfu_sdk.settings import Settings

if TYPE_CHECKING:
    from torch import nn


def identify(name: str | None, model: nn.Module | None, device: Device, settings: Settings) -> RunIdentity:
    """The identity of a run that starts now. Without a name: the model's class, else the script's name."""
    workload = name or (type(model).__name__ if model is not None else None) or Path(sys.argv[0] or "python").stem
    where = place()
    this = attempt(settings.run_id, settings.run_attempt, workload, where.world_size)
    return RunIdentity(
        run_id=this.run_id,
        attempt=this.number,
        workload=workload,
        workload_family=None if model is None else family(model),
        rank=where.rank,
        local_rank=where.local_rank,
        world_size=where.world_size,
        device_name=device.name,
        device_vendor=device.vendor,
        device_id=device.uuid,
        start_unix_ns=time.time_ns(),
        axes=axes(model, where.world_size),
    )


def family(model: nn.Module) -> str:
    """A hash of the model's structure: module classes and parameter shapes, in order; no names, no values."""
    digest = hashlib.blake2b(digest_size=8)
    for module in model.modules():
        digest.update(type(module).__name__.encode())
        for parameter in module.parameters(recurse=False):
            digest.update(str(tuple(parameter.shape)).encode())
    return digest.hexdigest()
