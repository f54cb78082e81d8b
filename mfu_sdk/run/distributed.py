"""This process's place among the ranks, and the run id that all ranks share, without a collective."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from mfu_sdk.guard import warn_once


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


def shared_run_id(given: str | None, name: str) -> str:
    """The run id: `given`, else one UUID that rank 0 hands out through the process group's store, else a UUID.

    The store is a key-value server, not a collective: nobody waits for a rank's step, only for rank 0's first word,
    and for that no longer than `WAIT_S`.
    torchrun's own run id is not used, since it may be the string "none".
    """
    if given:
        # The second run of a process is another run: their spans must not share ids.
        _opened[given] = _opened.get(given, 0) + 1
        return given if _opened[given] == 1 else f"{given}.{_opened[given]}"
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
        store.wait([key], timedelta(seconds=WAIT_S))
        return str(store.get(key).decode())
    except (RuntimeError, ValueError, ImportError) as error:
        warn_once("run id", f"the process group's store did not answer ({error}); set MFU_RUN_ID to join the ranks")
        return mine


WAIT_S = 5.0
_opened: dict[str, int] = {}


def _whole(env: Mapping[str, str], variable: str, default: int | None) -> int | None:
    value = env.get(variable, "")
    return int(value) if value.isascii() and value.isdigit() else default
