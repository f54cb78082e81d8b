"""`mfu.monitor`: the context manager and decorator that watch a training loop."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Literal, ParamSpec, TypeVar

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.guard import shield, warn_once
from mfu_sdk.peak.device import import_torch
from mfu_sdk.records import PHASES, Convention, DriftEvent, Peaks, Phase, RunSummary, StepRecord
from mfu_sdk.run.amounts import amount
from mfu_sdk.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from mfu_sdk.counting.plan import Packed
    from mfu_sdk.run.board import Board
    from mfu_sdk.run.engine import Engine

_P = ParamSpec("_P")
_R = TypeVar("_R")
_B = TypeVar("_B")

_open: dict[int, Monitor] = {}
"""Monitors that are running, by the id of their model: a notebook cell run again closes the one it left open."""

before_entry: list[Callable[[], None]] = []
"""Told when a monitor is about to start: who watches a program unasked makes way for one that speaks for itself."""


def monitor(
    model: nn.Module | None = None,
    *,
    name: str | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    devices: str | torch.device | Sequence[str | torch.device] | None = None,
    peaks: Peaks | None = None,
    expected: float | None = None,
    convention: Convention = "exact",
    spans: Literal["auto", "all", "windows", "off"] | None = None,
    start_step: int = 0,
    on_step: Callable[[StepRecord], None] | None = None,
    on_drift: Callable[[DriftEvent], None] | None = None,
    live: bool = False,
    settings: Settings | None = None,
) -> Monitor:
    """Watch a training loop: a context manager, or a decorator of a function that trains.

    `model`: whose calls tell the steps and their shapes; whatever else runs inside of a step (a loss, a teacher, a
    second network) is counted with it, except for models that have monitors of their own. None: nothing is known of
    shapes, and counts are samples. `optimizer`: whose
    steps end the steps of a loop that does not mark its own (otherwise the first optimizer that steps). `devices`:
    whose peaks add up to the denominator, by default those that hold the parameters. `peaks`: a denominator of your
    own. `expected`: the MFU to hold the run against (0..1), instead of the roofline's. `start_step`: the first step's
    index, for a resumed run. `on_step` is called with every `StepRecord`; what it raises is logged, not passed on.
    `on_drift` is called likewise when steps have become slower or faster than the run's own baseline, and once more
    when they have recovered (docs/how-to/drift.md).
    `live`: show the figures while it runs, in a line on the terminal (`Monitor.live`).

    Raises `ConfigurationError` or `MissingDependencyError` before anything starts; nothing of ours after that.
    """
    settings = settings or Settings.from_env()
    if spans is not None:
        settings = replace(settings, spans=spans)
    if live:
        settings = replace(settings, live=True)
    if not isinstance(start_step, int) or start_step < 0:
        raise ConfigurationError(
            f"start_step={start_step}: must be a whole number of at least 0, the first step's index"
        )
    if settings.enabled:
        import_torch()
        from mfu_sdk.run.opening import check_model, check_run

        check_model(model, "monitor")
        check_run(name, peaks, expected, convention)
        _check_loop(optimizer, on_step, on_drift)
    return Monitor(
        model, name, optimizer, devices, peaks, expected, convention, settings, start_step, on_step, on_drift
    )


def _check_loop(optimizer: object, on_step: object, on_drift: object) -> None:
    import torch

    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigurationError(
            f"optimizer={type(optimizer).__name__}: must be a torch.optim.Optimizer; leave it out to take the first"
        )
    if on_step is not None and not callable(on_step):
        raise ConfigurationError(f"on_step={on_step!r}: must be a function of a StepRecord; or leave it out")
    if on_drift is not None and not callable(on_drift):
        raise ConfigurationError(f"on_drift={on_drift!r}: must be a function of a DriftEvent; or leave it out")


class Monitor:
    """A monitored run; made by `monitor`. Use its methods inside the `with` block, from one thread."""

    def __init__(
        self,
        model: nn.Module | None,
        name: str | None,
        optimizer: torch.optim.Optimizer | None,
        devices: str | torch.device | Sequence[str | torch.device] | None,
        peaks: Peaks | None,
        expected: float | None,
        convention: Convention,
        settings: Settings,
        start_step: int,
        on_step: Callable[[StepRecord], None] | None,
        on_drift: Callable[[DriftEvent], None] | None = None,
    ) -> None:
        self._model = model
        self._name = name
        self._optimizer = optimizer
        self._devices = devices
        self._peaks = peaks
        self._expected = expected
        self._convention: Convention = convention
        self._settings = settings
        self._start_step = start_step
        self._on_step = on_step
        # Called in their order; more may come while the run goes on.
        self._drift_callbacks: list[Callable[[DriftEvent], object]] = [] if on_drift is None else [on_drift]
        self._engine: Engine | None = None
        self._summary: RunSummary | None = None
        self._board: Board | None = None

    def __enter__(self) -> Monitor:
        if self._engine is not None:
            raise ConfigurationError("this monitor is running already; make another one with mfu.monitor(...)")
        if not self._settings.enabled:
            return self
        for tell in tuple(before_entry):
            tell()
        if (earlier := _open.pop(id(self._model), None)) is not None:
            warn_once("monitor", "a monitor of this model was left open; it is closed now")
            earlier._close(None)
        from mfu_sdk.run.engine import Engine
        from mfu_sdk.run.opening import open_ledger

        ledger = open_ledger(
            self._model,
            self._name,
            self._devices,
            self._peaks,
            self._expected,
            self._convention,
            self._settings,
            self._on_step,
            self._tell_of_drift,
        )
        self._engine = Engine(
            ledger,
            self._model,
            self._optimizer,
            self._convention,
            self._start_step,
            profiling=self._settings.profile,
        )
        if self._model is not None:
            _open[id(self._model)] = self
        # One line for the job, on the terminal that its ranks share.
        if self._settings.live and ledger.identity.rank == 0:
            with shield("the live line"):
                self._shows_live(self._engine)
        return self

    def _shows_live(self, engine: Engine) -> bool:
        if engine.ledger.live is None:
            from mfu_sdk.run.live import live_line

            engine.ledger.live = live_line()
        return engine.ledger.live is not None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(kind)

    def _close(self, kind: type[BaseException] | None) -> None:
        engine, self._engine = self._engine, None
        if engine is None:
            return
        if _open.get(id(self._model)) is self:
            del _open[id(self._model)]
        with shield("closing a monitor"):
            self._board = engine.standing.board
            self._summary = engine.close(None if kind is None else kind.__qualname__)
        self._summary = self._summary or engine.ledger.summary()

    @property
    def engine(self) -> Engine | None:
        """The wiring behind a running monitor, for integrations that mark what `step` and `batches` cannot."""
        return self._engine

    def __call__(self, train: Callable[_P, _R]) -> Callable[_P, _R]:
        """Run the decorated function under this monitor, each call as a run of its own."""

        @functools.wraps(train)
        def monitored(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            fresh = Monitor(
                self._model, self._name, self._optimizer, self._devices, self._peaks, self._expected,
                self._convention, self._settings, self._start_step, self._on_step, self._tell_of_drift,
            )  # fmt: skip
            with fresh:
                result = train(*args, **kwargs)
            self._summary, self._board = fresh._summary, fresh._board
            return result

        return monitored

    def step(
        self,
        tokens: int | None = None,
        samples: int | None = None,
        phase: Phase = "train",
        seq_lens: Sequence[int] | torch.Tensor | None = None,
    ) -> MarkedStep:
        """Mark one step: `with run.step(tokens=…):`. `tokens` and `samples` are this rank's share.

        `seq_lens`: the length of each sequence where several are packed into one, of all the step's batches together,
        as a list or a CPU tensor. The shapes of a packed batch do not tell them; without them such steps are counted
        as samples. Like a wrong amount, lengths that cannot be read are left out with one warning, a tensor on a
        device among them: to read it would wait for the device.

        `phase`: "train", "eval", or "checkpoint" for saving one, which takes time and no arithmetic: marked, it is the
        host's and no longer the next step's. A step of another phase may lie within a step, whose time and FLOPs are
        then without those of the inner one.

        The first marked step ends the search for unmarked ones. Raises `ConfigurationError` for an unknown phase.
        """
        if phase not in PHASES:
            raise ConfigurationError(f"phase={phase!r}: must be one of {', '.join(PHASES)}")
        return MarkedStep(
            self._engine,
            # What need not be looked at is not: this is on the path of every step.
            tokens if tokens is None or (type(tokens) is int and tokens >= 0) else amount("run.step(tokens=…)", tokens),
            samples if samples is None else amount("run.step(samples=…)", samples),
            phase,
            None if seq_lens is None or self._engine is None else _lengths(seq_lens),
        )

    def batches(self, loader: Iterable[_B]) -> Batches[_B]:
        """`loader`, to be iterated over: the time spent waiting for each batch becomes its step's `data_wait_s`."""
        return Batches(self, loader)

    def calibrate(self, budget_s: float = 1.0) -> Peaks | None:
        """Measure the device's peak now, between two steps, at the heat and the clocks of this run; keep it.

        For a checkpoint or the turn to an evaluation, some minutes into a run: call it on all ranks at once, since the
        GPUs of a machine share power and cooling. It takes `budget_s` seconds, of which the first half is dropped,
        waits for the device, and is in no step's time. Sends an `mfu.calibration` span. A denominator does not move
        within a run: a measured one is taken over by the next. Returns what is known now; None, with a warning, inside
        of a step or where nothing could be measured. Raises `ConfigurationError` for a budget that is not above 0.
        """
        if not budget_s > 0:
            raise ConfigurationError(f"run.calibrate(budget_s={budget_s}): must be above 0 seconds; 1 is enough")
        if self._engine is None:
            return None
        from mfu_sdk.run.opening import calibrate_between

        found: list[Peaks] = []
        ledger, devices = self._engine.ledger, (self._model, self._devices)
        with shield("calibrating in a run"):
            if not self._engine.interlude(
                lambda: found.extend(calibrate_between(ledger, *devices, budget_s, self._settings))
            ):
                warn_once("run.calibrate", "called inside of a step: nothing was measured; call it between two steps")
        return found[0] if found else None

    def on_drift(self, callback: Callable[[DriftEvent], _R]) -> Callable[[DriftEvent], _R]:
        """Have `callback` called with each `DriftEvent` from here on, as ``monitor(on_drift=)`` has it from the start.

        Returns `callback`, so that it decorates a function too. Raises `ConfigurationError` where it is none.
        """
        if not callable(callback):
            raise ConfigurationError(f"on_drift({callback!r}): must be a function of a DriftEvent")
        self._drift_callbacks.append(callback)
        return callback

    def _tell_of_drift(self, event: DriftEvent) -> None:
        for callback in tuple(self._drift_callbacks):
            # One that fails keeps the event from no other.
            with shield("the on_drift callback"):
                callback(event)

    def live(self) -> None:
        """Show the run's figures: MFU lately and so far, what was expected, tokens a second, the biggest loss.

        On a terminal that is a line which is drawn anew twice a second from here to the run's end, below what the
        program prints. Elsewhere (a pipe, a notebook) the line is printed once, as it is now: call it when you like.
        Nothing before the run has started or after it.
        """
        if self._engine is None:
            return
        with shield("the live line"):
            if not self._shows_live(self._engine):
                from mfu_sdk.run.live import plain

                sys.stdout.write(plain(self._engine.summary()) + "\n")

    def draw(self, path: str | Path) -> None:
        """Write the waterfall of `summary()` to `path`, as SVG, PNG or PDF by its ending.

        Raises `ConfigurationError` for another ending or where MFU is unknown, `MissingDependencyError` without
        matplotlib (the extra `plot`). What is printed with the summary needs nothing.
        """
        from mfu_sdk.run.picture import draw

        draw(self.summary(), path)

    def summary(self) -> RunSummary:
        """The run's totals so far, or, after the `with` block, its final ones; in `ranks` those of all ranks.

        What other ranks have posted is asked of the store that the ranks share, for a second at most.
        Raises `ConfigurationError` before the run has started. Under MFU_ENABLED=0 nothing is known; its notes say so.
        """
        if self._engine is not None:
            return self._engine.summary()
        if self._summary is not None:
            if self._board is not None:
                # Ranks that closed after this one.
                self._summary = replace(self._summary, ranks=self._board.latest())
            return self._summary
        if not self._settings.enabled:
            from mfu_sdk.run.totals import disabled_summary

            return disabled_summary(self._name or "disabled", self._convention)
        raise ConfigurationError("this monitor has not run yet: ask for its summary inside or after its `with` block")


def _lengths(seq_lens: object) -> Packed | None:
    from mfu_sdk.counting.plan import packed

    try:
        return packed(seq_lens)
    except ValueError as error:
        warn_once("run.step(seq_lens=…)", f"{error}; left out")
        return None


class Batches(Generic[_B]):
    """What `run.batches` returns: as long as the loader, and iterated over like it, any number of times."""

    __slots__ = ("_loader", "_monitor")

    def __init__(self, run: Monitor, loader: Iterable[_B]) -> None:
        self._monitor = run
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]  # raises what the loader raises where it has no length

    def __iter__(self) -> Iterator[_B]:
        engine = self._monitor._engine
        if engine is None:
            yield from self._loader
            return
        # A loader's workers start with its iterator: that is waiting too.
        engine.data_wait_begins()
        try:
            iterator = iter(self._loader)
        finally:
            engine.data_wait_ends()
        seen = False
        while True:
            engine.data_wait_begins()
            try:
                batch = next(iterator)
            except StopIteration:
                break
            finally:
                engine.data_wait_ends()
            seen = True
            yield batch
        if not seen:
            warn_once("run.batches", "the loader gave no batch: there was no step to measure; check the data set")


class MarkedStep:
    """The context manager that `run.step` returns."""

    __slots__ = ("_engine", "_packed", "_phase", "_samples", "_tokens")

    def __init__(
        self, engine: Engine | None, tokens: int | None, samples: int | None, phase: Phase, packed: Packed | None
    ) -> None:
        self._engine = engine
        self._tokens = tokens
        self._samples = samples
        self._phase: Phase = phase
        self._packed = packed

    def __enter__(self) -> MarkedStep:
        if self._engine is not None:
            self._engine.marked_begins(self._phase, self._packed)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._engine is not None:
            self._engine.marked_ends(self._tokens, self._samples, None if kind is None else kind.__qualname__)
