"""Hugging Face `Trainer`: a callback that measures its steps and logs `mfu`.

    trainer = Trainer(model=model, args=args, train_dataset=data, callbacks=[MFUCallback()])

A step is one of the optimizer: the micro-batches that are accumulated for it are its parts. The batches of an
evaluation are steps of phase `eval`, and writing a checkpoint is one of phase `checkpoint`; waiting for the loader is
in its step's time, and told apart. A run that is resumed goes on with its step's number.

The sums go into what `Trainer` logs, under `mfu`, `hfu`, `expected_mfu` and `tokens_per_s` (the last where
`include_num_input_tokens_seen` makes it count tokens), and so into its log history. Callbacks are told of a log in
their order, and those that `report_to` brought come before the user's: `MFUCallback().attach(trainer)` puts this one
in front of them.
"""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Any, Unpack

from transformers import TrainerCallback
from transformers.trainer_callback import DefaultFlowCallback

import mfu_sdk as mfu
from mfu_sdk.guard import shield
from mfu_sdk.integrations.logged import Logged
from mfu_sdk.integrations.options import Options
from mfu_sdk.integrations.owners import as_called

if TYPE_CHECKING:
    from mfu_sdk.records import Phase, RunSummary
    from mfu_sdk.run.engine import Engine
    from mfu_sdk.run.monitor import Monitor


class MFUCallback(TrainerCallback):
    """Measures each `trainer.train()` as a run of its own; `summary` gives the last one's totals."""

    def __init__(self, name: str | None = None, **options: Unpack[Options]) -> None:
        """`name`: the workload's; without one, `TrainingArguments.run_name`, else the model's class.

        `options` are those of `mfu.monitor`. Raises its errors when the training begins.
        """
        self._name = name
        self._options = options
        self._run: Monitor | None = None
        self._logged = Logged(options.get("on_step"))
        self._phase: Phase | None = None
        self._tokens_seen = 0
        self._awaits_log = False

    def attach(self, trainer: Any) -> MFUCallback:
        """Put this callback in front of all others of `trainer`, so that every one of them is told what it logs.

        But behind the one that decides what comes after a step, whose word it needs.
        """
        callbacks = trainer.callback_handler.callbacks
        flow = [index for index, each in enumerate(callbacks) if isinstance(each, DefaultFlowCallback)]
        callbacks.insert(max(flow, default=-1) + 1, self)
        return self

    def summary(self) -> RunSummary | None:
        """The totals of the training that runs or ran last, None before the first."""
        return None if self._run is None else self._run.summary()

    # --- the training ------------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Open the run."""
        self._close()
        self._phase, self._awaits_log, self._tokens_seen = None, False, int(state.num_input_tokens_seen)
        self._logged.take()
        options = self._options | {"on_step": self._logged}
        name = self._name or getattr(args, "run_name", None) or None
        self._run = mfu.monitor(as_called(model), name=name, start_step=state.global_step, **options).__enter__()
        # A training that fails tells no callback.
        atexit.register(self._close)
        if (engine := self._run.engine) is not None:
            engine.data_wait_begins()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close it."""
        self._close()

    def _close(self) -> None:
        atexit.unregister(self._close)
        if self._run is not None:
            self._run.__exit__(None, None, None)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The batches of an optimizer's step are there."""
        if (engine := self._engine) is not None:
            # What was announced and did not come was none.
            self._abandon(engine)
            engine.data_wait_ends()
            self._begin(engine, "train")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The optimizer has stepped."""
        if (engine := self._engine) is not None and self._phase == "train":
            self._phase = None
            engine.marked_ends(self._new_tokens(args, state), None, None)
            self._awaits_log = control.should_log
            self._what_comes(engine, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What is to be done once in an epoch comes next."""
        if (engine := self._engine) is not None:
            engine.data_wait_ends()
            self._awaits_log = control.should_log
            self._what_comes(engine, control)

    # --- what lies between two steps ---------------------------------------------------------------------------------

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Add what was measured since the last log; an evaluation's log gets nothing."""
        if (engine := self._engine) is None:
            return
        if logs is not None and "loss" in logs:
            with shield("logging"):
                found = self._logged.take()
                logs.update(found)
                if state.log_history:
                    state.log_history[-1].update(found)
        if self._awaits_log:
            self._awaits_log = False
            self._what_comes(engine, control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A batch of an evaluation is done."""
        if (engine := self._engine) is None or self._phase == "train":
            return
        if self._phase == "eval":
            engine.marked_ends(None, None, None)
        self._begin(engine, "eval")

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An evaluation is over; what ran behind its last batch is no step."""
        if (engine := self._engine) is not None and self._phase != "train":
            self._abandon(engine)
            self._saves_or_loads(engine, control)

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        """As after an evaluation."""
        self.on_evaluate(args, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint was written: the next step begins behind it."""
        if (engine := self._engine) is not None and self._phase != "train":
            if self._phase == "checkpoint":
                self._phase = None
                engine.marked_ends(None, None, None)
            # One that nobody announced is no one's.
            engine.interlude(lambda: None)
            engine.data_wait_begins()

    @property
    def _engine(self) -> Engine | None:
        return None if self._run is None else self._run.engine

    def _begin(self, engine: Engine, phase: Phase) -> None:
        self._phase = phase
        engine.marked_begins(phase)

    def _what_comes(self, engine: Engine, control: Any) -> None:
        """Between two steps `Trainer` logs, evaluates and saves, in this order, and then asks for the next batches."""
        if self._awaits_log:
            return
        if control.should_evaluate:
            self._begin(engine, "eval")
        else:
            self._saves_or_loads(engine, control)

    def _saves_or_loads(self, engine: Engine, control: Any) -> None:
        if control.should_save:
            self._begin(engine, "checkpoint")
        else:
            engine.data_wait_begins()

    def _abandon(self, engine: Engine) -> None:
        if self._phase in ("eval", "checkpoint"):
            self._phase = None
            engine.marked_abandoned()

    def _new_tokens(self, args: Any, state: Any) -> int | None:
        """This rank's share of the tokens that `Trainer` has counted over all ranks."""
        if getattr(args, "include_num_input_tokens_seen", "no") in (False, "no", None):
            return None
        seen, self._tokens_seen = self._tokens_seen, int(state.num_input_tokens_seen)
        return (self._tokens_seen - seen) // max(1, int(args.world_size))
