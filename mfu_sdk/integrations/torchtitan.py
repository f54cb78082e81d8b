"""torchtitan: a monitor around a `Trainer`'s loop, which neither its configuration nor its code needs to know of.

    trainer = config.build()
    with monitor(trainer):
        trainer.train()

`Trainer.train` calls `train_step` once for each step of the optimizer, then saves a checkpoint and validates. While the
monitor runs, those three are wrapped on this trainer: a step is marked with the tokens that this rank has read in it,
a validation is a step of phase `eval`, and writing a checkpoint is in no step's time. So is `batch_generator`, to tell
apart how long a step waits for its batches.

Written against torchtitan's sources as of 2026-08 (`Trainer.train`, `train_step`, `batch_generator`, `model_parts`,
`ntokens_seen`, `checkpointer.save`, `validator.validate`), and tested with a loop of that shape: torchtitan itself
needs a nightly torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Unpack

import mfu_sdk as mfu
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.integrations.options import Options
from mfu_sdk.integrations.replaced import Around, marked, outside, replaced

if TYPE_CHECKING:
    from mfu_sdk.run.monitor import Monitor

_NEEDED = ("model_parts", "train_step", "step", "ntokens_seen")


@contextmanager
def monitor(trainer: Any, *, name: str | None = None, **options: Unpack[Options]) -> Iterator[Monitor]:
    """Measure `trainer.train()`; gives the `mfu.monitor` that runs. `options` are those of it.

    A pipeline's stages are one workload: the first of a rank's parts tells the steps' shapes, and everything that runs
    in a step is counted. Raises `ConfigurationError` for what is no such trainer.
    """
    missing = [each for each in _NEEDED if not hasattr(trainer, each)]
    if missing:
        raise ConfigurationError(
            f"monitor(trainer={type(trainer).__name__}): has no {', '.join(missing)}; give torchtitan's Trainer"
        )
    name = (
        name or getattr(getattr(trainer, "model_config", None), "name", None) or type(trainer.model_parts[0]).__name__
    )
    with mfu.monitor(trainer.model_parts[0], name=name, start_step=trainer.step, **options) as run, ExitStack() as undo:
        if (engine := run.engine) is not None:
            for owner, method, around in (
                (trainer, "train_step", marked(engine, "train", lambda: int(trainer.ntokens_seen))),
                (trainer, "batch_generator", _timed(run)),
                (getattr(trainer, "checkpointer", None), "save", outside(engine)),
                (getattr(trainer, "validator", None), "validate", marked(engine, "eval")),
            ):
                undo.enter_context(replaced(owner, method, around))
        yield run


def _timed(run: Monitor) -> Around:
    def around(batches: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: iter(run.batches(batches(*args, **kwargs)))

    return around
