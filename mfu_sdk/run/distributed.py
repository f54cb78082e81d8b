"""This process's place among the ranks, and the run id that all ranks share, without a collective."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from mfu_sdk.guard import warn_once


@dataclass(frozen=True, slots=True)
class Place:
    """Rank, rank on this host, and number of ranks; 0, 0, 1 for a process on its own."""

    rank: int
    local_rank: int
    world_size: int


def place(env: Mapping[str, str] | None = None) -> Place:
    """Where this process stands: from torch's process group if one is up, else from torchrun's variables."""
    env = os.environ if env is None else env
    local_rank = _whole(env, "LOCAL_RANK", 0)
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return Place(dist.get_rank(), local_rank, dist.get_world_size())
    return Place(_whole(env, "RANK", 0), local_rank, max(1, _whole(env, "WORLD_SIZE", 1)))


def shared_run_id(given: str | None, name: str) -> str:
    """The run id: `given`, else one UUID that rank 0 hands out through the process group's store, else a UUID.

    The store is a key-value server, not a collective: nobody waits for a rank's step, only for rank 0's first word.
    torchrun's own run id is not used, since it may be the string "none".
    """
    if given:
        return given
    mine = uuid.uuid4().hex
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return mine
    try:
        from torch.distributed.distributed_c10d import _get_default_store

        # The n-th monitor of this name gets the n-th key, on every rank alike.
        _opened[name] = _opened.get(name, 0) + 1
        key = f"mfu_sdk/run_id/{name}/{_opened[name]}"
        store = _get_default_store()
        if dist.get_rank() == 0:
            store.set(key, mine)
        return str(store.get(key).decode())
    except (RuntimeError, ValueError, ImportError) as error:
        warn_once("run id", f"the process group's store did not answer ({error}); set MFU_RUN_ID to join the ranks")
        return mine


_opened: dict[str, int] = {}


def _whole(env: Mapping[str, str], variable: str, default: int) -> int:
    value = env.get(variable, "")
    return int(value) if value.isascii() and value.isdigit() else default
