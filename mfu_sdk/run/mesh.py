"""How a model is laid out over the ranks, as far as it shows: by its parameters' device meshes, or by its wrapper."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, Final, cast

from mfu_sdk.guard import shield
from mfu_sdk.ranks import AXES, Axis
from mfu_sdk.records import RunIdentity

if TYPE_CHECKING:
    from torch import nn

_PARTS: Final[Mapping[str, str]] = {
    # torch's documentation, torchtitan's parallel_dims.py, Accelerate's and Lightning's names.
    **dict.fromkeys(("dp", "ddp", "data", "data_parallel", "dp_replicate", "dp_shard", "replicate", "shard"), "dp"),
    **dict.fromkeys(("dp_shard_mod_ep", "dp_shard_in_ep"), "dp"),
    **dict.fromkeys(("tp", "tensor", "tensor_parallel"), "tp"),
    **dict.fromkeys(("pp", "pipeline", "pipeline_parallel"), "pp"),
    **dict.fromkeys(("cp", "context", "context_parallel"), "cp"),
    **dict.fromkeys(("ep", "expert", "expert_parallel"), "ep"),
}
"""Names of mesh dimensions; several of one axis in a mesh are parts of it, the first the outermost."""


def axes(model: nn.Module | None, world_size: int) -> Mapping[str, Axis]:
    """The axes of `AXES` that `model` shows, each with its number of ranks and this rank's place; no collective.

    What is not there is not known, which is not 1: a loop may do in its own way what shows in no parameter. A process
    on its own has 1 of each. A rank that is in no place of a mesh is nowhere on its axes.
    """
    if world_size == 1:
        return dict.fromkeys(AXES, Axis(1, 0))
    found: dict[str, Axis] = {}
    with shield("reading the device mesh"):
        _read_meshes(model, found)
        _read_wrappers(model, world_size, found)
    return {name: found[name] for name in AXES if name in found}


def place_but_data(identity: RunIdentity) -> str:
    """What ranks must have in common to do the same work: the model's structure, and the place on all axes but `dp`."""
    if "ep" in identity.axes and identity.axes["ep"].size > 1:
        # Which expert gets which token is the router's to say, in each step anew: no two ranks are alike.
        return f"rank {identity.rank}"
    shared = [f"{name} {axis.index}" for name, axis in identity.axes.items() if name != "dp"]
    return " ".join((identity.workload_family or "", *shared))


# --- device meshes ------------------------------------------------------------------------------------------------


def _read_meshes(model: nn.Module | None, found: dict[str, Axis]) -> None:
    told: dict[str, dict[int, set[Axis]]] = {}
    for mesh, of_fsdp in _meshes(model):
        for name, (parts, axis) in _axes_of(mesh, of_fsdp=of_fsdp).items():
            told.setdefault(name, {}).setdefault(parts, set()).add(axis)
    for name, by_parts in told.items():
        # A sub-mesh may have one part of what its root has two of.
        most = by_parts[max(by_parts)]
        # Parameters that are laid out in different ways (experts and others) do not say which one is the run's.
        if len(most) == 1:
            [found[name]] = most


def _meshes(model: nn.Module | None) -> Iterator[tuple[Any, bool]]:
    """The parameters' meshes and those that they were cut from, and whether they are FSDP's own."""
    tensors = sys.modules.get("torch.distributed.tensor")
    if model is None or tensors is None:
        return
    fsdp = sys.modules.get("torch.distributed.fsdp")
    sharded = getattr(fsdp, "FSDPModule", ())
    seen: set[int] = set()
    of_fsdp = any(isinstance(module, sharded) for module in model.modules())
    parameters: Iterator[Any] = model.parameters()
    for parameter in parameters:
        if not isinstance(parameter, tensors.DTensor):
            continue
        own = parameter.device_mesh
        root = _root(own)
        for mesh in (own, root):
            if id(mesh) not in seen:
                seen.add(id(mesh))
                # A whole world without names, that named meshes were cut from, is nobody's axis.
                yield mesh, of_fsdp and mesh is own


def _root(mesh: Any) -> Any:
    """The mesh that `mesh` was cut from, itself where it is whole."""
    if hasattr(mesh, "_get_root_mesh"):
        return mesh._get_root_mesh() or mesh
    # Before torch 2.10.
    resources = getattr(sys.modules["torch.distributed.device_mesh"], "_mesh_resources", None)
    return mesh if resources is None else resources.get_root_mesh(mesh)


def _axes_of(mesh: Any, *, of_fsdp: bool) -> Mapping[str, tuple[int, Axis]]:
    """The axes of one mesh, each with how many of its dimensions are part of it."""
    here = mesh.get_coordinate()
    if here is None:
        return {}
    sizes, names = tuple(mesh.shape), mesh.mesh_dim_names
    if names is None:
        # `fully_shard` without a mesh makes one of all ranks; with tensor parallel beside it, it wants names.
        return {"dp": (len(sizes), Axis(prod(sizes), _flat(sizes, here)))} if of_fsdp else {}
    if "dp_shard_in_ep" in names and "dp_shard_mod_ep" not in names:
        # torchtitan's mesh of experts alone: its other dimensions are what experts leave of the data-parallel ranks.
        names = tuple(name if _PARTS.get(name) != "dp" else "" for name in names)
    # torchtitan calls data and context parallel together so; elsewhere it is the axis that parameters are sharded on.
    fsdp_is_dp = "torchtitan" not in sys.modules
    parts: dict[str, list[int]] = {}
    for dimension, name in enumerate(names):
        axis = "dp" if name == "fsdp" and fsdp_is_dp else _PARTS.get(name)
        if axis is not None:
            parts.setdefault(axis, []).append(dimension)
    if any(name in ("dp_shard_cp", "efsdp") or (name == "fsdp" and not fsdp_is_dp) for name in names):
        parts.pop("dp", None)
    return {
        axis: (len(dims), Axis(prod(sizes[d] for d in dims), _flat([sizes[d] for d in dims], [here[d] for d in dims])))
        for axis, dims in parts.items()
    }


def _flat(sizes: Any, place: Any) -> int:
    """The number of a place in row-major order."""
    number = 0
    for size, index in zip(sizes, place, strict=True):
        number = number * size + index
    return number


# --- wrappers -----------------------------------------------------------------------------------------------------


def _read_wrappers(model: nn.Module | None, world_size: int, found: dict[str, Axis]) -> None:
    """What DistributedDataParallel and the first FSDP tell, which know of data parallel alone."""
    if model is None:
        return
    import torch.distributed as dist

    if not dist.is_available():
        return
    from torch.nn.parallel import DistributedDataParallel

    flat = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", ())
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            group = module.process_group
            replicas = dist.get_world_size(group)
            shards = "tp" in found or "pp" in found
            found.setdefault("dp", Axis(replicas, dist.get_rank(group)))
            if replicas == world_size and not shards:
                # Every rank has a whole replica, so that none has a part of one.
                found.setdefault("tp", Axis(1, 0))
                found.setdefault("pp", Axis(1, 0))
            return
        if isinstance(module, flat):
            if "HYBRID" not in str(getattr(module, "sharding_strategy", "HYBRID")):
                group = cast("dist.ProcessGroup", module.process_group)
                found.setdefault("dp", Axis(dist.get_world_size(group), dist.get_rank(group)))
            return
