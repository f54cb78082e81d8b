"""The run of one request handler: what each request cost, and how busy the handler kept its device.

Requests may overlap on a device, so a request carries FLOPs and time but no share of the device's time. Utilization
comes from *busy periods*: from the moment a first request is being handled until none is, or until a request ends
after a second of uninterrupted work. A busy period is a step of phase `inference`, with the FLOPs of the model calls
that ended in it. Two handlers that keep one device busy at the same time each report that time.

Counts are kept for each call of the model, by the shapes of its inputs: the first call with new shapes runs under the
counting mode, which makes its busy period untimed; later ones cost a look-up, and lengths between counted ones follow
from a closed form (`forms`). Where shapes never end, few calls are counted, and periods with calls of unknown cost are
in no sum of FLOPs.
"""

from __future__ import annotations

import atexit
import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextvars import ContextVar, Token
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from opentelemetry import trace

from mfu_sdk.counting import cuda_graphs, provenance
from mfu_sdk.counting.dispatch import CountingMode
from mfu_sdk.counting.expect import main_dtype
from mfu_sdk.counting.plan import leading_dimension, signature
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.guard import shield
from mfu_sdk.records import Convention, CountSource, InferenceRecord, Peaks, RunSummary
from mfu_sdk.run.amounts import amount
from mfu_sdk.run.demand import Demand
from mfu_sdk.run.forms import Forms
from mfu_sdk.run.hooks import Hook
from mfu_sdk.run.ledger import Ledger
from mfu_sdk.run.opening import open_ledger
from mfu_sdk.run.watched import others_than, watch
from mfu_sdk.run.work import Work
from mfu_sdk.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from mfu_sdk.run.clock import Mark

LONGEST_PERIOD_NS = 1_000_000_000
MOST_SHAPES = 4096
"""Call shapes whose cost is kept; of more, the one unused for longest is forgotten."""
# torch leaves the keywords out where a hook is removed while it is on its way to it.
_NO_KEYWORDS: Mapping[str, Any] = {}
FREE_COUNTS, CALLS_A_COUNT = 256, 50
"""Calls with new shapes are counted as they come, so many at once, then one in so many calls."""


class _Calls:
    """Sums over model calls; FLOPs are unknown as soon as those of one call are."""

    __slots__ = ("batch_sum", "calls", "counted", "start_ns", "start_unix_ns", "sum", "unknown")

    def __init__(self) -> None:
        self.start_ns = time.perf_counter_ns()
        self.start_unix_ns = time.time_ns()
        self.sum: Demand | None = None
        self.calls = 0
        self.batch_sum = 0
        self.counted = False
        self.unknown = False

    def enter(self, demand: Demand | None, batch: int, *, counted: bool) -> None:
        """Add one call."""
        self.calls += 1
        self.batch_sum += batch
        self.counted |= counted
        if demand is None:
            self.unknown = True
        else:
            self.sum = demand if self.sum is None else self.sum + demand

    @property
    def demand(self) -> Demand | None:
        """What the calls asked for, where all of it is known."""
        return None if self.unknown else self.sum

    @property
    def batch(self) -> float | None:
        """Mean leading dimension of the calls."""
        return self.batch_sum / self.calls if self.calls and self.batch_sum else None


class _Request(_Calls):
    """A request that is being handled."""

    __slots__ = ("token",)

    def __init__(self) -> None:
        super().__init__()
        self.token: Token[_Request | None] | None = None


class _Period(_Calls):
    """A busy period: the model calls that ended in it, and the requests that did, with their tokens."""

    __slots__ = ("failed", "requests", "requests_ns", "start", "tokens")

    def __init__(self, start: Mark) -> None:
        super().__init__()
        self.start = start
        self.tokens: int | None = None
        self.requests = self.failed = self.requests_ns = 0


class _Call:
    """A call of the model that is running in this thread."""

    __slots__ = ("batch", "key", "mode")

    def __init__(self, key: Hashable, mode: CountingMode | None, batch: int) -> None:
        self.key = key
        self.mode = mode
        self.batch = batch


class HandlerRun:
    """The run of one decorated handler: safe under concurrent requests from any thread."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        tokens: Callable[[Any], int] | None,
        peaks: Peaks | None,
        expected: float | None,
        convention: Convention,
        settings: Settings,
    ) -> None:
        self._model = model
        self._name = name
        self._tokens = tokens
        self._open_ledger = functools.partial(open_ledger, model, name, None, peaks, expected, convention, settings)
        self._convention: Convention = convention
        self._lock = threading.RLock()
        self._current: ContextVar[_Request | None] = ContextVar("mfu_request", default=None)
        self._local = threading.local()
        self._ledger: Ledger | None = None
        self._demands: OrderedDict[Hashable, Demand] = OrderedDict()
        self._forms = Forms()
        self._counts = self._calls = 0
        self._dtype: str | None = None
        self._failed = False
        self._hooks: list[Callable[[], None]] = []
        self._active = 0
        self._period: _Period | None = None
        self._index = 0
        self._summary: RunSummary | None = None

    # --- requests --------------------------------------------------------------------------------------------------

    def begins(self) -> _Request | None:
        """A request comes in; the first one opens the run."""
        with shield("beginning a request"):
            with self._lock:
                if self._summary is not None or self._failed:
                    return None
                # Set first: where opening fails, no later request tries again.
                self._failed = self._ledger is None
                ledger = self._ledger or self._open()
                self._failed = False
                self._active += 1
                if self._period is None:
                    self._period = _Period(ledger.clock.mark())
            request = _Request()
            request.token = self._current.set(request)
            return request
        return None

    def ends(self, request: _Request | None, output: Any, error_type: str | None) -> None:
        """It is answered, or has failed with the user's error."""
        if request is None:
            return
        began = time.perf_counter_ns()
        with shield("ending a request"):
            if request.token is not None:
                self._current.reset(request.token)
            if self._current.get() is None:
                # Calls that never came back: their hook was removed, or another hook raised before it.
                while self._running:
                    if (mode := self._running.pop().mode) is not None:
                        mode.stop()
            tokens = None
            if self._tokens is not None and error_type is None:
                with shield("the tokens callback"):
                    tokens = amount("inference(tokens=…)", self._tokens(output))
            with self._lock:
                self._active -= 1
                self._end(request, tokens, error_type, began)
        if self._ledger is not None:
            self._ledger.spent(time.perf_counter_ns() - began)

    def _end(self, request: _Request, tokens: int | None, error_type: str | None, now_ns: int) -> None:
        ledger, period = self._ledger, self._period
        if ledger is None or period is None:
            return
        if tokens is not None or (self._tokens is not None and error_type is not None):
            # A request that failed gave none, which is known.
            period.tokens = (period.tokens or 0) + (tokens or 0)
        period.requests += 1
        period.failed += error_type is not None
        period.requests_ns += now_ns - request.start_ns
        demand = request.demand
        source: CountSource | None = None if demand is None else "measured" if request.counted else demand.source
        if ledger.telemetry is not None:
            trace_id, span_id = _caller()
            ledger.telemetry.inference(
                InferenceRecord(
                    name=self._name,
                    start_unix_ns=request.start_unix_ns,
                    duration_s=(now_ns - request.start_ns) / 1e9,
                    model_flops=None if demand is None else demand.model_flops,
                    hardware_flops=None if demand is None else demand.hardware_flops,
                    count_source=source,
                    tokens=tokens,
                    batch=None if request.batch is None else round(request.batch),
                    model_calls=request.calls,
                    error_type=error_type,
                    parent_trace_id=trace_id,
                    parent_span_id=span_id,
                )
            )
        if self._active == 0 or now_ns - period.start_ns >= LONGEST_PERIOD_NS:
            self._end_period(ledger, period)

    def _end_period(self, ledger: Ledger, period: _Period) -> None:
        end = ledger.clock.mark()
        demand = period.demand
        if demand is None and not period.calls and self._dtype is not None:
            # Requests that did not come to call the model kept its device waiting.
            demand = Demand.nothing(self._dtype)
        work = Work(
            index=self._index,
            phase="inference",
            start=period.start,
            end=end,
            start_unix_ns=period.start_unix_ns,
            demand=demand,
            tokens=period.tokens,
            batch_running=period.batch,
            requests=period.requests,
            requests_failed=period.failed,
            requests_s=period.requests_ns / 1e9,
            counted_while_running=period.counted,
        )
        self._index += 1
        self._period = _Period(end) if self._active else None
        ledger.add(work)

    # --- the model's calls -----------------------------------------------------------------------------------------

    @property
    def _running(self) -> list[_Call]:
        """The model's calls that are running in this thread, the outermost first."""
        found: list[_Call] | None = getattr(self._local, "running", None)
        if found is None:
            found = self._local.running = []
        return found

    def _before_call(self, module: nn.Module, args: Any, kwargs: Any = _NO_KEYWORDS) -> None:
        # Inside of a compiled model this folds to nothing: no graph break, and no call either.
        if torch.compiler.is_compiling() or self._current.get() is None:
            return
        with shield("seeing a model call"):
            if self._running:
                # A model that calls itself: the outer call has it all.
                self._running.append(_Call(None, None, 0))
                return
            key = signature(module, args, kwargs)
            mode = self._mode() if self._should_count(key) else None
            self._running.append(_Call(key, mode, leading_dimension(args, kwargs)))
            if mode is not None:
                mode.start()

    def _after_call(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or (request := self._current.get()) is None or not self._running:
            return
        with shield("seeing a model call end"):
            call = self._running.pop()
            if self._running:
                return
            if call.mode is not None:
                call.mode.stop()
            with self._lock:
                if call.mode is not None:
                    self._learn(call.key, call.mode, output)
                demand = self._demands.get(call.key)
                self._calls += 1
                for books in (request, self._period):
                    if books is not None:
                        books.enter(demand, call.batch, counted=call.mode is not None)

    def _should_count(self, key: Hashable) -> bool:
        with self._lock:
            if key in self._demands:
                self._demands.move_to_end(key)
                return False
            if (predicted := self._forms.predict(key)) is not None:
                self._keep(key, predicted)
                return False
            if self._counts >= FREE_COUNTS + self._calls // CALLS_A_COUNT:
                return False
            self._counts += 1
            return True

    def _learn(self, key: Hashable, mode: CountingMode, output: Any) -> None:
        """Keep what a counted call cost. One that raised has no output, and is not what its shapes cost."""
        if output is None or self._ledger is None:
            return
        demand = self._ledger.price(mode.result(), "cached")
        self._dtype = main_dtype(demand.by_dtype)
        if self._forms.learn(key, demand):
            for other in [other for other, cost in self._demands.items() if cost.source == "predicted"]:
                del self._demands[other]
        self._keep(key, demand)

    def _keep(self, key: Hashable, demand: Demand) -> None:
        self._demands[key] = demand
        if len(self._demands) > MOST_SHAPES:
            self._demands.popitem(last=False)

    def _mode(self) -> CountingMode:
        return CountingMode(self._model, convention=self._convention, others=partial(others_than, self._model))

    # --- the run ---------------------------------------------------------------------------------------------------

    def _open(self) -> Ledger:
        ledger = self._open_ledger()
        self._hooks = [
            watch(self._model),
            # What is compiled or captured between counted requests is known in those.
            provenance.observe(),
            cuda_graphs.keep(),
            self._model.register_forward_pre_hook(Hook(self._before_call), with_kwargs=True).remove,
            self._model.register_forward_hook(Hook(self._after_call), always_call=True).remove,
        ]
        atexit.register(self.close)
        self._ledger = ledger
        return ledger

    def summary(self) -> RunSummary:
        """The totals so far, or the final ones once closed.

        Raises `ConfigurationError` before the first request.
        """
        with self._lock:
            if self._summary is not None:
                return self._summary
            if self._ledger is None:
                raise ConfigurationError(
                    f"{self._name} has handled no request yet: ask for its summary after the first"
                )
            with shield("settling a handler's run"):
                self._ledger.settle()
            return self._ledger.summary()

    def close(self) -> RunSummary | None:
        """End the run: hooks undone, records handed to the exporter. Requests after this are not measured."""
        with self._lock:
            if self._ledger is None or self._summary is not None:
                return self._summary
            atexit.unregister(self.close)
            for undo in self._hooks:
                undo()
            with shield("closing a handler's run"):
                if self._period is not None and self._period.calls:
                    self._end_period(self._ledger, self._period)
                self._summary = self._ledger.close()
            self._summary = self._summary or self._ledger.summary()
            return self._summary


def _caller() -> tuple[int | None, int | None]:
    """Trace and span id of the caller's OpenTelemetry context; (None, None) where it has none."""
    context = trace.get_current_span().get_span_context()
    return (context.trace_id, context.span_id) if context.is_valid else (None, None)
