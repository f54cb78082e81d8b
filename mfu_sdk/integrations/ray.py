"""Ray Train: a monitor for the loop of a worker, and reports that say how well it does.

    def train_loop_per_worker(config):
        ...
        with monitor(model) as worker:
            for batch in worker.run.batches(loader):
                ...
            worker.report({"loss": loss})

Every worker measures itself. Their run has one id, which rank 0 hands out through the process group that `TorchTrainer`
opens, and the experiment's name. A report, with the checkpoint that it uploads, is in no step's time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Unpack

import ray.train  # pyright: ignore[reportMissingImports]  # an extra of its own

import mfu_sdk as mfu
from mfu_sdk.integrations.logged import Logged
from mfu_sdk.integrations.options import Options

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mfu_sdk.run.monitor import Monitor


class Worker:
    """A worker's loop: `run` is its `mfu.monitor`."""

    def __init__(self, run: Monitor, logged: Logged) -> None:
        self.run = run
        self._logged = logged

    def report(self, metrics: Mapping[str, Any], checkpoint: Any = None) -> None:
        """`ray.train.report` of `metrics`, with `mfu`, `hfu` and `expected_mfu` of this worker since the last report.

        What is not known is not in it. All workers must call it, as Ray has it, between two steps.
        """

        def send() -> None:
            ray.train.report({**self._logged.take(), **metrics}, checkpoint=checkpoint)

        # Inside of a step, where it belongs to that, it is sent as well.
        if self.run.engine is None or not self.run.engine.interlude(send):
            send()


@contextmanager
def monitor(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    name: str | None = None,
    start_step: int = 0,
    **options: Unpack[Options],
) -> Iterator[Worker]:
    """`mfu.monitor` of what `ray.train.torch.prepare_model` returned, inside of a worker. `options` are those of it.

    `name`: the workload's; the experiment's unless given.
    """
    logged = Logged(options.get("on_step"))
    options["on_step"] = logged
    name = name or ray.train.get_context().get_experiment_name() or None
    with mfu.monitor(model, name=name, optimizer=optimizer, start_step=start_step, **options) as run:
        yield Worker(run, logged)
