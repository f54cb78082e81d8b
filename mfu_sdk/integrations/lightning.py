"""Lightning: a callback that measures a `Trainer`'s steps and logs `mfu` to its loggers.

    trainer = Trainer(callbacks=[MFUCallback()])

A step is one of the optimizer: batches that are accumulated for it are its parts. Batches of a validation are steps of
phase `eval`. The model is what `training_step` calls first, since Lightning calls no module's own forward: the first
batch of a fit finds it, and is measured from that call on. A step behind which a checkpoint was written ends before it,
and the next begins behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

import mfu_sdk as mfu
from mfu_sdk.guard import shield
from mfu_sdk.integrations.first_call import first_call
from mfu_sdk.integrations.logged import Logged
from mfu_sdk.integrations.options import Options
from mfu_sdk.integrations.owners import holders_of_trained, uncompiled

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from torch import nn

    from mfu_sdk.records import Phase, RunSummary
    from mfu_sdk.run.engine import Engine
    from mfu_sdk.run.monitor import Monitor
else:
    try:
        from lightning.pytorch import Callback
    except ModuleNotFoundError as missing:
        # The same package under its older name; an error from within is passed on.
        if missing.name is None or missing.name.partition(".")[0] != "lightning":
            raise
        from pytorch_lightning import Callback


class MFUCallback(Callback):
    """Measures each `trainer.fit` as a run of its own; `summary` gives the last one's totals."""

    def __init__(self, name: str | None = None, **options: Unpack[Options]) -> None:
        """`name`: the workload's; the LightningModule's class unless given. `options` are those of `mfu.monitor`."""
        super().__init__()
        self._name = name
        self._options = options
        self._logged = Logged(options.get("on_step"))
        self._run: Monitor | None = None
        self._call_off: Any = None
        self._phase: Phase | None = None
        self._optimizer_steps = 0
        self._saved = False

    def summary(self) -> RunSummary | None:
        """The totals of the fit that runs or ran last, None before the first."""
        return None if self._run is None else self._run.summary()

    # --- a fit -------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Look for what the training step calls."""
        self._close()
        self._logged.take()
        self._phase, self._saved = None, False
        options = self._options | {"on_step": self._logged}
        name, start_step = self._name or type(pl_module).__name__, trainer.global_step

        def found(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
            self._run = mfu.monitor(module, name=name, start_step=start_step, **options).__enter__()
            if (engine := self._run.engine) is not None:
                self._begin(engine, "train")
                engine.join_call(module, args, kwargs)

        # With what a strategy put around the module.
        modules = dict.fromkeys((*trainer.strategy.model.modules(), *pl_module.modules()))
        self._call_off = first_call(uncompiled(holders_of_trained(list(modules))), found)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the run."""
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close it with what ended it."""
        self._close(exception)

    def _close(self, error: BaseException | None = None) -> None:
        if self._call_off is not None:
            self._call_off()
            self._call_off = None
        if self._run is not None:
            self._run.__exit__(None if error is None else type(error), error, None)

    # --- its batches -------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A batch is there; with it a step begins, unless this one is accumulated to the last."""
        self._optimizer_steps = trainer.global_step
        if (engine := self._engine) is None:
            return
        engine.data_wait_ends()
        if self._saved:
            self._saved = False
            if self._phase is None:
                engine.interlude(lambda: None)
        if self._phase is None:
            self._begin(engine, "train")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """If the optimizer has stepped, its step is over."""
        engine = self._engine
        if engine is None:
            return
        if self._phase == "train" and trainer.global_step != self._optimizer_steps:
            self._end(engine)
            if trainer.global_step % max(1, trainer.log_every_n_steps) == 0:
                self._log(trainer)
        engine.data_wait_begins()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """What was accumulated so far is a step of its own."""
        if (engine := self._engine) is not None:
            engine.data_wait_ends()
            if self._phase == "train":
                self._end(engine)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch of a validation is a step."""
        if (engine := self._engine) is not None and self._phase is None:
            self._begin(engine, "eval")

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """And ends as one."""
        if (engine := self._engine) is not None and self._phase == "eval":
            self._end(engine)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """The next batch of the training comes."""
        if (engine := self._engine) is not None:
            engine.data_wait_begins()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        """A checkpoint is about to be written."""
        self._saved = True

    @property
    def _engine(self) -> Engine | None:
        return None if self._run is None else self._run.engine

    def _begin(self, engine: Engine, phase: Phase) -> None:
        self._phase = phase
        engine.marked_begins(phase)

    def _end(self, engine: Engine) -> None:
        self._phase = None
        engine.marked_ends(None, None, None)

    def _log(self, trainer: Any) -> None:
        with shield("logging"):
            if found := self._logged.take():
                for logger in trainer.loggers:
                    logger.log_metrics(found, step=trainer.global_step)
