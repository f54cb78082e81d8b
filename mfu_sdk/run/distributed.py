"""This process's place among the ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Rank, rank on this host where a launcher told it, and number of ranks; 0, None, 1 for a process on its own.

    `here` is how many of the ranks are on this host, where a launcher told that.
    """

    rank: int
    local_rank: int | None
    world_size: int
    here: int | None = None


def place(env: Mapping[str, str] | None = None) -> Place:
    """Where this process stands: from torch's process group if one is up, else from torchrun's variables."""
    env = os.environ if env is None else env
    local_rank = _whole(env, "LOCAL_RANK", None)
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        ranks = dist.get_world_size()
        return Place(dist.get_rank(), local_rank, ranks, _here(env, ranks))
    ranks = _whole(env, "WORLD_SIZE", 1) or 1
    return Place(_whole(env, "RANK", 0) or 0, local_rank, ranks, _here(env, ranks))


def _here(env: Mapping[str, str], ranks: int) -> int | None:
    """torchrun and Open MPI tell it; of Slurm it is known where its tasks are the ranks and fill their nodes alike."""
    for variable in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"):
        if told := _whole(env, variable, None):
            return told
    tasks, nodes = _whole(env, "SLURM_NTASKS", None), _whole(env, "SLURM_NNODES", None)
    return ranks // nodes if tasks == ranks and nodes and not ranks % nodes else None


def _whole(env: Mapping[str, str], variable: str, default: int | None) -> int | None:
    value = env.get(variable, "")
    return int(value) if value.isascii() and value.isdigit() else default
