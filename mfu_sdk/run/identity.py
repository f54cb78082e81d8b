"""Who a run is: its name, its model's family, its device, its place among the ranks."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mfu_sdk.guard import shield
from mfu_sdk.peak.device import Device, ask_driver, resolve
from mfu_sdk.peak.wiring import Wiring, wiring
from mfu_sdk.records import RunIdentity
from mfu_sdk.run.allocation import allocation
from mfu_sdk.run.attempts import attempt
from mfu_sdk.run.distributed import Place, place
from mfu_sdk.run.mesh import axes
from mfu_sdk.settings import Settings

if TYPE_CHECKING:
    from torch import nn


# What a model is wrapped in for several ranks, and what torch.compile returns.
_WRAPPERS: Final = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
_PROFILE: Final = re.compile(r"\bMIG (\S+)$")


def identify(name: str | None, model: nn.Module | None, device: Device, settings: Settings) -> RunIdentity:
    """The identity of a run that starts now. Without a name: the model's class, else the script's name."""
    workload = name or (type(model).__name__ if model is not None else None) or Path(sys.argv[0] or "python").stem
    where, given = place(), allocation(settings.allocation_id, os.environ)
    this = attempt(settings.run_id, settings.run_attempt, workload, where.world_size)
    wires, (profile, parent) = _wiring(device, where), _slice(device)
    kind, known_as = _kind(model)
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
        allocation_id=given.id,
        node=given.node,
        mig_profile=profile,
        parent_id=parent,
        link=wires.link,
        link_best=wires.best,
        model_class=kind,
        model_name=known_as,
    )


def _slice(device: Device) -> tuple[str | None, str | None]:
    """Of a MIG slice its profile and the UUID of its GPU; the profile is in its name too, where no driver answers."""
    named = _PROFILE.search(device.name)
    profile = None if named is None else named[1]
    if not (device.uuid or "").startswith("MIG-") and profile is None:
        return None, None
    found = ask_driver(device, lambda gpu: gpu.identity())
    return (profile, None) if isinstance(found, str) else (found.profile or profile, found.parent_uuid)


def _wiring(device: Device, where: Place) -> Wiring:
    with shield("asking how devices are connected"):
        device_id = device.uuid if device.vendor == "NVIDIA" else None
        seen: list[str] = []
        if device_id is not None and where.world_size > 1:
            import torch

            every = (resolve(f"cuda:{index}").uuid for index in range(torch.cuda.device_count()))
            seen = [uuid for uuid in every if uuid is not None]
        return wiring(device_id, seen, ranks=where.world_size, here=where.here)
    return Wiring(None, None)


def _kind(model: nn.Module | None) -> tuple[str | None, str | None]:
    """What kind of model it is ("llama"; without a configuration its class), and what its authors call it."""
    # A configuration may be anything, and what it computes may fail.
    with shield("naming the model's kind"):
        while (holds := _WRAPPERS.get(type(model).__name__)) is not None and hasattr(model, holds):
            model = getattr(model, holds)
        if model is None:
            return None, None
        config = getattr(model, "config", None)
        kind, name = getattr(config, "model_type", None), getattr(config, "name_or_path", None)
        return (
            kind if isinstance(kind, str) and kind else type(model).__name__,
            name if isinstance(name, str) and name else None,
        )
    return None, None


def family(model: nn.Module) -> str:
    """A hash of the model's structure: module classes and parameter shapes, in order; no names, no values."""
    digest = hashlib.blake2b(digest_size=8)
    for module in model.modules():
        digest.update(type(module).__name__.encode())
        for parameter in module.parameters(recurse=False):
            digest.update(str(tuple(parameter.shape)).encode())
    return digest.hexdigest()
