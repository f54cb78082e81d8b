"""The run of one request handler: what each request cost, and how busy the handler kept its device.

Requests may overlap on a device, so a request carries FLOPs and time but no share of the device's time. Utilization
comes from *busy periods* (`busy`), whose parts are steps of phase `prefill`, `decode` and `inference`, with the FLOPs
of the model calls that ended in them. Two handlers that keep one device busy at the same time share its time
(`device_time`).
"""

from __future__ import annotations

import atexit
import functools
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.guard import shield
from mfu_sdk.records import Convention, Peaks, Phase, RunSummary
from mfu_sdk.run.busy import Period
from mfu_sdk.run.device_time import DeviceTime
from mfu_sdk.run.fitting import Fitting, fitting
from mfu_sdk.run.innermost import Inside
from mfu_sdk.run.ledger import Ledger
from mfu_sdk.run.load import LoadSampler
from mfu_sdk.run.model_calls import Call, ModelCalls
from mfu_sdk.run.opening import devices_of, open_ledger
from mfu_sdk.run.request import Ended, Request, Tokens, outcome_of
from mfu_sdk.run.turns import turns
from mfu_sdk.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from mfu_sdk.requests import Load
    from mfu_sdk.run.clock import Mark
    from mfu_sdk.run.demand import Demand

LONGEST_PERIOD_NS = 1_000_000_000
"""A busy period that is older ends with the next request that does."""
LONGEST_STREAM_NS = 10_000_000_000
"""One that is as old as this, because nothing but long streams is handled, ends with the next call of the model."""
_STREAMED = object()
_UNTOLD = Tokens(None)


def now_ns() -> int:
    """Nanoseconds on the monotonic clock, on which requests are timed."""
    return time.perf_counter_ns()


class HandlerRun:
    """The run of one decorated handler: safe under concurrent requests from any thread or task."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        tokens: Callable[[Any], object] | None,
        load: Callable[[], Load] | None,
        peaks: Peaks | None,
        expected: float | None,
        convention: Convention,
        settings: Settings,
    ) -> None:
        self._model = model
        self._name = name
        self._tokens = tokens
        self.load = None if load is None else LoadSampler(load)
        """Who asks the server for its load, where the caller gave a way to."""
        self._open_ledger = functools.partial(open_ledger, model, name, None, peaks, expected, convention, settings)
        self._opening = threading.Lock()
        self._failed = False
        self._ledger: Ledger | None = None
        self._calls = ModelCalls(model, convention, self, settings.profile)
        self._hooks: list[Callable[[], None]] = []
        self._active: dict[Request, None] = {}
        self._device: DeviceTime | None = None
        self._period: Period | None = None
        self._numbers = itertools.count()
        self._unsent: deque[tuple[Request, Ended]] = deque()
        self._summary: RunSummary | None = None

    # --- requests --------------------------------------------------------------------------------------------------

    def begins(self) -> Request | None:
        """A request comes in; the first one opens the run."""
        with shield("beginning a request"):
            self.open()
            ledger, device = self._ledger, self._device
            if ledger is None or device is None:
                return None
            began_ns = now_ns()
            request = Request(self, _caller(), ledger.clock.mark(), began_ns, time.time_ns())
            with turns:
                if self._summary is not None:
                    return None
                if self._period is None:
                    device.begin(request.start)
                    self._period = Period(request.start, began_ns, request.start_unix_ns)
                self._period.running(len(self._active), began_ns)
                self._active[request] = None
            return request
        return None

    def inside(self, request: Request | None) -> Inside:
        """A context in which calls of the model are `request`'s."""
        return Inside(request, self._calls.forget)

    def yields(self, request: Request | None, item: Any) -> None:
        """A generator hands out `item`."""
        if request is None:
            return
        with shield("seeing a chunk"):
            tokens = None if self._tokens is None else self._told(item, chunk=True)
            request.yielded(tokens, now_ns())

    def resumes(self, request: Request | None) -> None:
        """It is asked for the next one."""
        if request is not None:
            request.resumed(now_ns())

    def ends(self, request: Request | None, output: Any = _STREAMED, error: BaseException | None = None) -> None:
        """It is answered, was left by its caller, or has failed with the user's error."""
        if request is None or request.ended:
            return
        ended_ns = now_ns()
        with shield("ending a request"):
            request.ended = True
            outcome, error_type = outcome_of(error)
            tokens = request.streamed or _UNTOLD
            try:
                if self._tokens is not None and outcome == "finished":
                    if output is not _STREAMED:
                        tokens = self._told(output, chunk=False)
                    elif request.streamed is None:
                        tokens = Tokens(0, None, 0)
            finally:
                turns.do(partial(self._end, request, Ended(ended_ns, tokens, outcome, error_type)))

    def _told(self, value: Any, *, chunk: bool) -> Tokens:
        assert self._tokens is not None
        with shield("the tokens callback"):
            return Tokens.told(self._tokens(value), chunk=chunk)
        return _UNTOLD

    def _end(self, request: Request, end: Ended) -> None:
        began_ns = now_ns()
        ledger, period = self._ledger, self._period
        if ledger is None or period is None or self._summary is not None:
            return
        with shield("ending a request"):
            period.running(len(self._active), began_ns)
            self._active.pop(request, None)
            total = end.tokens.total
            if total is None and self._tokens is not None and end.outcome != "finished" and request.chunks is None:
                # One that gave no answer gave no tokens, which is known.
                total = 0
            period.current.answered(end.end_ns - request.start_ns, total, failed=end.outcome == "failed")
            if ledger.telemetry is not None:
                self._unsent.append((request, end))
                self._send(ledger)
            if not self._active or began_ns - period.start_ns >= LONGEST_PERIOD_NS:
                self._end_period(ledger, period)
        ledger.overhead_ns += now_ns() - began_ns

    def _send(self, ledger: Ledger) -> None:
        """Hand over the requests whose calls the device has passed."""
        while ledger.telemetry is not None and self._unsent:
            request, end = self._unsent[0]
            record = request.record(self._name, end, ledger.clock)
            if record is None:
                return
            self._unsent.popleft()
            ledger.telemetry.inference(record)

    def _end_period(self, ledger: Ledger, period: Period) -> None:
        assert self._device is not None
        end, ended_ns = ledger.clock.mark(), now_ns()
        slices = self._device.take(end)
        if not self._calls.under_way:
            period.without_calls(slices)
            slices = []
        load = None if self.load is None else self.load.latest()
        works = period.works(end, slices, ended_ns, self._numbers, load, self._calls.dtype)
        if self._active:
            self._period = Period(end, ended_ns, time.time_ns())
        else:
            self._period = None
            self._device.end()
        for work in works:
            ledger.add(work)

    # --- what the model's calls tell -------------------------------------------------------------------------------

    @property
    def active(self) -> Collection[Request]:
        """The requests under way."""
        return self._active

    def calling(self, start: Mark) -> None:
        """A call of the model begins, and no other is under way; in turn."""
        if self._period is not None and self._device is not None:
            self._period.without_calls(self._device.take(start))

    def called(self, call: Call, phase: Phase, demand: Demand | None, end: Mark) -> None:
        """Enter a call of the model that has ended into the books of its request and of the busy period; in turn."""
        counted, owner = call.mode is not None, call.owner
        for suspect in call.suspects:
            suspect.unknown = True
        if owner is not None and not owner.ended:
            owner.called(phase, call.shape, demand, call.start, end, counted=counted)
        ledger, period, ended_ns = self._ledger, self._period, now_ns()
        if ledger is None or period is None or self._device is None:
            return
        part = period.spend(phase, self._device.take(end), ended_ns)
        part.enter(demand, call.shape.batch, counted=counted, fitting=self._fitting(demand, call.shape.batch))
        if ended_ns - period.start_ns >= LONGEST_STREAM_NS:
            period.running(len(self._active), ended_ns)
            self._end_period(ledger, period)

    def _fitting(self, demand: Demand | None, batch: int) -> Fitting | None:
        load = None if self.load is None else self.load.latest()
        return None if load is None else fitting(demand, batch, load.batch_feasible)

    # --- the run ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin the run now and not with the first request, which would wait while the device's peak is measured."""
        if self._is_open_or_failed():
            return
        with self._opening:
            if self._is_open_or_failed():
                return
            try:
                with shield("opening a handler's run"):
                    self._ledger = self._opened()
            finally:
                # Where opening has failed, no later request tries again.
                self._failed = self._ledger is None

    def _opened(self) -> Ledger:
        ledger = self._open_ledger()
        self._device = DeviceTime(ledger.clock, [str(each) for each in devices_of(self._model, None)])
        self._hooks = self._calls.watch(ledger)
        if self.load is not None:
            self.load.start()
        atexit.register(self.close)
        return ledger

    def _is_open_or_failed(self) -> bool:
        return self._ledger is not None or self._failed

    def summary(self) -> RunSummary:
        """The totals so far, or the final ones once closed.

        Raises `ConfigurationError` before the first request.
        """
        with turns:
            if self._summary is not None:
                return self._summary
            if self._ledger is None:
                raise ConfigurationError(
                    f"{self._name} has handled no request yet: ask for its summary after the first"
                )
            with shield("settling a handler's run"):
                self._ledger.settle()
                self._send(self._ledger)
            return self._ledger.summary()

    def close(self) -> RunSummary | None:
        """End the run: hooks undone, records handed to the exporter. Requests after this are not measured."""
        with turns:
            ledger = self._ledger
            if ledger is None or self._summary is not None:
                return self._summary
            atexit.unregister(self.close)
            for undo in self._hooks:
                undo()
            with shield("closing a handler's run"):
                self._close_period(ledger)
                for request, _ in self._unsent:
                    request.drain(ledger.clock)
                self._send(ledger)
                self._summary = ledger.close()
            self._summary = self._summary or ledger.summary()
        if self.load is not None:
            self.load.stop()
        return self._summary

    def _close_period(self, ledger: Ledger) -> None:
        """End the period under way; requests that are not answered yet are in no record."""
        period = self._period
        if period is None:
            return
        period.running(len(self._active), now_ns())
        self._active.clear()
        if period.has_calls:
            self._end_period(ledger, period)
        elif self._device is not None:
            self._device.end()
        self._period = None


def _caller() -> tuple[int | None, int | None]:
    """Trace and span id of the caller's OpenTelemetry context; (None, None) where it has none."""
    context = trace.get_current_span().get_span_context()
    return (context.trace_id, context.span_id) if context.is_valid else (None, None)
