"""A monitor for a program that says nothing of us: the first optimizer that steps tells the model and the steps.

When an optimizer is about to step for the first time, the modules that hold its parameters are looked up
(`owners`) and given a hook each. The first of them that is called with gradients on is the model, whatever wraps it
(DDP, FSDP, `torch.compile`): a monitor begins with this call, so the first step is not measured and the second is.
A loop that hands its optimizer a closure calls the model inside of the first step, which is measured then.

No global hook on modules is set, because what is compiled while one is there is compiled again when it goes. A model
that was compiled in place (`model.compile()`) shows none of its calls: its steps are those of the optimizer, from the
third on, and their FLOPs are sampled.

When the optimizer that was followed is gone, so is its run: its monitor is closed, which lets the model go, and the
next optimizer that steps begins another. An optimizer beside it (a GAN's second) is part of the same steps.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mfu_sdk.guard import shield
from mfu_sdk.integrations.arrival import when_imported
from mfu_sdk.integrations.first_call import first_call
from mfu_sdk.integrations.owners import optimizers, trained_by, trains, uncompiled
from mfu_sdk.records import RunSummary
from mfu_sdk.run import monitor as monitors
from mfu_sdk.run.monitor import Monitor

if TYPE_CHECKING:
    import torch
    from torch import nn


class Finder:
    """Finds what a program trains, in this process alone, and watches it. `stop` ends it, and gives the summaries."""

    def __init__(self, begin: Callable[[nn.Module | None, str | None], Monitor], *, stop_at_exit: bool = False) -> None:
        """`begin` makes the monitor of a model, and is told its class's name where there is no model to hook into.

        `stop_at_exit`: nobody calls `stop`, so that the exit of the process does.
        """
        self._begin = begin
        self._stop_at_exit = stop_at_exit
        self._process = os.getpid()
        self._undo = ExitStack()
        self._search = ExitStack()
        self._searching_for: weakref.ref[torch.optim.Optimizer] | None = None
        self._seen: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._followed: weakref.ref[torch.optim.Optimizer] | None = None
        self._model: nn.Module | None = None
        self._run: Monitor | None = None
        self._thread = 0
        self._entering = False
        self.summaries: list[RunSummary] = []
        self.optimizer_steps_seen = 0
        """Steps of optimizers up to the second one that was seen: enough to say why nothing was measured."""
        self.stepped_aside = False
        """Whether the program turned out to have a monitor of its own."""

    @property
    def is_here(self) -> bool:
        """Whether this is the process that began to look, and not a fork of it."""
        return os.getpid() == self._process

    def start(self) -> None:
        """Begin to look, once the program has imported torch."""
        monitors.before_entry.append(self._aside)
        self._undo.callback(monitors.before_entry.remove, self._aside)
        self._undo.callback(when_imported("torch", self._torch_is_here))

    def stop(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> list[RunSummary]:
        """Close what is open, undo every hook, and give the summaries of the runs; the error is what ended them."""
        atexit.unregister(self.stop)
        if self.is_here:
            with shield("ending the watch over a program"):
                self._close_run(kind, error, trace)
                self._search.close()
                self._undo.close()
        return self.summaries

    def _torch_is_here(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        self._undo.callback(register_optimizer_step_pre_hook(self._before_step).remove)

    # --- what the hooks see ----------------------------------------------------------------------------------------

    def _before_step(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if optimizer in self._seen and self._searching_for is None:
            return
        with shield("looking for the model that is trained"):
            if self.stepped_aside or not self.is_here:
                return
            self.optimizer_steps_seen += 1
            if optimizer not in self._seen:
                self._seen.add(optimizer)
                if self._is_new_training(optimizer):
                    self._look_for_model(optimizer)
            elif self._searching_for is not None and self._searching_for() is optimizer:
                # A whole step went by, and nothing that could be hooked was called.
                self._open_blindly(optimizer)

    def _is_new_training(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether nothing is being watched, or it is over: what trained it is gone, and this trains something else."""
        if self._run is None:
            return self._searching_for is None or self._searching_for() is None
        if self._model is not None and trains(optimizer, self._model):
            return False
        # What schedules an optimizer's rate and the optimizer hold one another until they are collected.
        gc.collect()
        if self._followed is not None and self._followed() is not None:
            return False
        self._close_run()
        return True

    def _look_for_model(self, optimizer: torch.optim.Optimizer) -> None:
        self._search.close()
        self._searching_for = weakref.ref(optimizer)
        self._thread = threading.get_ident()
        self._search.callback(first_call(uncompiled(trained_by(optimizer)), self._called))

    def _called(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        optimizer = None if self._searching_for is None else self._searching_for()
        if optimizer is None or self._run is not None:
            return
        if (engine := self._open(module, None, optimizer).engine) is not None:
            engine.join_call(module, args, kwargs)

    def _open_blindly(self, optimizer: torch.optim.Optimizer) -> None:
        self._search.close()
        found = trained_by(optimizer)
        if (engine := self._open(None, type(found[0]).__name__ if found else None, optimizer).engine) is not None:
            engine.join_step()

    # --- the run ---------------------------------------------------------------------------------------------------

    def _open(self, model: nn.Module | None, name: str | None, optimizer: torch.optim.Optimizer) -> Monitor:
        self._searching_for = None
        self._entering = True
        try:
            run = self._begin(model, name)
            run.__enter__()
        finally:
            self._entering = False
        if self._stop_at_exit:
            # Registered after what sends the run, so that it is called before that is gone.
            atexit.unregister(self.stop)
            atexit.register(self.stop)
        self._run, self._model, self._followed = run, model, weakref.ref(optimizer)
        weakref.finalize(optimizer, self._optimizer_is_gone).atexit = False
        return run

    def _optimizer_is_gone(self) -> None:
        """Let the model go, unless another optimizer trains it; in the middle of our own work the next step sees to it.

        An object may go at any allocation, also at one of ours.
        """
        if self._run is None or threading.get_ident() != self._thread or not self.is_here:
            return
        frame = sys._getframe().f_back
        while frame is not None:
            if str(frame.f_globals.get("__name__", "")).startswith(("mfu_sdk.run.", "mfu_sdk.counting.")):
                return
            frame = frame.f_back
        with shield("ending a run whose optimizer is gone"):
            model = self._model
            if model is not None and (others := [each for each in optimizers() if trains(each, model)]):
                self._followed = weakref.ref(others[0])
                weakref.finalize(others[0], self._optimizer_is_gone).atexit = False
                return
            self._close_run()

    def _close_run(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        run, self._run, self._model, self._followed = self._run, None, None, None
        if run is not None:
            run.__exit__(kind, error, trace)
            self.summaries.append(run.summary())

    def _aside(self) -> None:
        """The program enters a monitor of its own: it knows better."""
        if self._entering or self.stepped_aside or not self.is_here:
            return
        self.stepped_aside = True
        self._searching_for = None
        self._search.close()
        self._close_run()
