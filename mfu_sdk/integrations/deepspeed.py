"""DeepSpeed: a monitor of the engine that `deepspeed.initialize` returned.

    engine, _, loader, _ = deepspeed.initialize(model=model, config=config)
    with monitor(engine) as run:
        for batch in run.batches(loader):
            engine.backward(engine(batch))
            engine.step()

Nothing is marked: a step ends with the optimizer that the engine steps once its micro-batches are through, with ZeRO or
without; a step that was skipped for an overflow is part of the next one. A pipeline engine's `train_batch` and
`eval_batch` are steps. Checkpoints, written and read, are in no step's time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Unpack

import mfu_sdk as mfu
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.integrations.options import Options
from mfu_sdk.integrations.replaced import marked, outside, replaced

if TYPE_CHECKING:
    from mfu_sdk.run.monitor import Monitor


@contextmanager
def monitor(engine: Any, *, name: str | None = None, **options: Unpack[Options]) -> Iterator[Monitor]:
    """Measure a loop around `engine`, a `DeepSpeedEngine`; gives the `mfu.monitor` that runs, with its `options`.

    `name`: the workload's; the class of the engine's module unless given. Raises `ConfigurationError` for what is no
    such engine.
    """
    if not hasattr(engine, "module") or not hasattr(engine, "global_steps"):
        raise ConfigurationError(
            f"monitor(engine={type(engine).__name__}): is no DeepSpeed engine; give what deepspeed.initialize returned"
        )
    name = name or type(engine.module).__name__
    with mfu.monitor(engine, name=name, start_step=int(engine.global_steps), **options) as run, ExitStack() as undo:
        if (inner := run.engine) is not None:
            for method, around in (
                ("save_checkpoint", outside(inner)),
                ("load_checkpoint", outside(inner)),
                ("train_batch", marked(inner, "train")),
                ("eval_batch", marked(inner, "eval")),
            ):
                undo.enter_context(replaced(engine, method, around))
        yield run
