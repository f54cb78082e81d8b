"""This process's place among the ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Rank, rank on this host where a launcher told it, and number of ranks; 0, None, 1 for a process on its own."""

    rank: int
    local_rank: int | None
    world_size: int


def place(env: Mapping[str, str] | None = None) -> Place:
    """Where this process stands: from torch's process group if one is up, else from torchrun's variables."""
    env = os.environ if env is None else env
    local_rank = _whole(env, "LOCAL_RANK", None)
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return Place(dist.get_rank(), local_rank, dist.get_world_size())
    return Place(_whole(env, "RANK", 0) or 0, local_rank, _whole(env, "WORLD_SIZE", 1) or 1)


def _whole(env: Mapping[str, str], variable: str, default: int | None) -> int | None:
    value = env.get(variable, "")
    return int(value) if value.isascii() and value.isdigit() else default
