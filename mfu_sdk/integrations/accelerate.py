"""Hugging Face Accelerate: a monitor for a loop whose parts were prepared.

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    with monitor(accelerator, model, optimizer) as run:
        for batch in run.batches(loader):
            with accelerator.accumulate(model):
                ...

Nothing is marked: a step ends with the optimizer's, so the micro-batches that `accumulate` gathers are one step, and a
step that was skipped, because the gradients were not finite, is part of the next one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

import mfu_sdk as mfu
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.integrations.logged import Logged
from mfu_sdk.integrations.options import Options

if TYPE_CHECKING:
    from torch import nn

    from mfu_sdk.records import StepRecord
    from mfu_sdk.run.monitor import Monitor


def monitor(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any = None,
    *,
    name: str | None = None,
    start_step: int = 0,
    log_every: int | None = None,
    **options: Unpack[Options],
) -> Monitor:
    """`mfu.monitor` of what `accelerator.prepare` returned.

    `optimizer`: whose steps end the steps, as it was prepared; the first that steps unless given. `log_every`: hand
    `mfu`, `hfu` and `expected_mfu` to the accelerator's trackers every so many steps of training, summed over them.
    `options` are those of `mfu.monitor`.

    Raises `ConfigurationError` as that does, and for a `log_every` that is not above 0.
    """
    if log_every is not None and log_every < 1:
        raise ConfigurationError(f"log_every={log_every}: must be at least 1 step; leave it out to log nothing")
    # What was prepared never steps by itself: it lets the one within step, or not.
    stepping = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    if log_every is not None:
        options["on_step"] = _Tracked(accelerator, log_every, Logged(options.get("on_step")))
    return mfu.monitor(model, name=name, optimizer=stepping, start_step=start_step, **options)


class _Tracked:
    """Logs every so many steps of training to the trackers."""

    def __init__(self, accelerator: Accelerator, every: int, logged: Logged) -> None:
        self._accelerator = accelerator
        self._every = every
        self._logged = logged

    def __call__(self, record: StepRecord) -> None:
        self._logged(record)
        if record.phase == "train" and (record.index + 1) % self._every == 0 and (found := self._logged.take()):
            self._accelerator.log(found, step=record.index)
