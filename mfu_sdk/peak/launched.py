"""A process group for the length of a command that torchrun, or a launcher with its variables, has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.peak.device import import_torch

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def process_group() -> Iterator[int]:
    """Yield this process's rank in the default process group; one that is not up is started, and taken down at the end.

    NCCL where there is a GPU for this rank, which becomes the current device, else gloo. Raises `ConfigurationError`
    where the launcher's variables are not set, or the ranks do not find one another.
    """
    import_torch()
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise ConfigurationError("collectives: this build of torch has no torch.distributed; install one that has")
    if dist.is_initialized():
        yield dist.get_rank()
        return
    if absent := [name for name in _VARIABLES if not os.environ.get(name)]:
        raise ConfigurationError(
            f"collectives: {', '.join(absent)} not set; start all ranks with a launcher, as in "
            "`torchrun --nproc-per-node=8 --no-python mfu calibrate --collectives`"
        )
    backend = "gloo"
    if torch.cuda.is_available():
        local = os.environ.get("LOCAL_RANK", "0")
        if not (local.isascii() and local.isdigit() and int(local) < torch.cuda.device_count()):
            raise ConfigurationError(
                f"LOCAL_RANK={local!r}: must be one of the {torch.cuda.device_count()} GPUs of this host, from 0; "
                "start one rank for each"
            )
        torch.cuda.set_device(int(local))
        backend = "nccl"
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigurationError(f"collectives: the {backend} process group did not come up ({line})") from error
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()
