"""What the export thread does with a record: it goes into the metrics, into a window, and may become a span."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from time import thread_time
from typing import Final

from opentelemetry.sdk.resources import Resource

from mfu_sdk import guard, semconv
from mfu_sdk.export import allowed, logs
from mfu_sdk.export.budget import Budget
from mfu_sdk.export.delivery import MetricDelivery, RecordDelivery
from mfu_sdk.export.destination import Destination
from mfu_sdk.export.encode import Common, Envelope, Layered, Span, Value, encode
from mfu_sdk.export.metrics import Metrics
from mfu_sdk.export.recorder import Recorder
from mfu_sdk.export.resource import resource as resource_of
from mfu_sdk.export.route import Route
from mfu_sdk.export.sampling import Kept, Sampler
from mfu_sdk.export.signals import UNSEEN, Observer, Signals
from mfu_sdk.export.spans import Spans
from mfu_sdk.export.step_template import StepEncoder
from mfu_sdk.export.totals import Totals
from mfu_sdk.export.turn import give_way
from mfu_sdk.export.windows import Sums, Window, Windows, sums
from mfu_sdk.records import DriftEvent, Peaks, RunIdentity, RunSummary, StepRecord
from mfu_sdk.requests import InferenceRecord
from mfu_sdk.settings import Settings

LOOK_EVERY: Final = 7
"""One step in so many is looked at for what it costs, and stands for all of them. Steps are kept by powers of two, so
that those looked at are neither all kept nor none."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """`seconds` more that the SDK took on the step path."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A measurement of the peak, from `start_unix_ns` to `end_unix_ns`."""

    peaks: Peaks
    start_unix_ns: int
    end_unix_ns: int


@dataclass(frozen=True, slots=True)
class Configured:
    """The hashes that the run's configuration is known by, complete once a step has been seen."""

    fingerprint: str
    intent: str


@dataclass(frozen=True, slots=True)
class DriftScores:
    """By phase: how much evidence for drift there is, over what an alarm needs."""

    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PeakRatios:
    """By dtype: what the device was measured to reach in the run, over what it reached before."""

    ratios: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Close:
    """The run is over: `error_type` is the class of the user's exception that ended it, if one did."""

    summary: RunSummary
    error_type: str | None
    end_unix_ns: int


@dataclass(frozen=True, slots=True)
class Exports:
    """Where a run's signals go and how: None for a signal that is not sent, `metric_interval_s` in seconds.

    `aggregates_only`: they are the provider's, and no more goes there than `allowed` lists.
    """

    traces: Destination | None
    metrics: Destination | None
    metric_interval_s: float = 60.0
    delta_metrics: bool = False
    aggregates_only: bool = False
    logs: Destination | None = None


class Pipeline:
    """One run's pipeline; its methods are called on the export thread only (`worker.Pipeline`).

    `unix_ns` is the wall clock in nanoseconds, `monotonic_s` a monotonic one in seconds. `overflowed` gives the
    number of records that never came in because the queue was full, `export_s` the processor time of all the run's
    export threads in seconds. `resource` and `recorder` are the run's, where
    the caller has them. Raises `ConfigurationError` when made, for certificates that cannot be read.
    """

    def __init__(
        self,
        identity: RunIdentity,
        settings: Settings,
        exports: Exports,
        *,
        unix_ns: Callable[[], int],
        monotonic_s: Callable[[], float],
        resource: Resource | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.overflowed: Callable[[], int] = lambda: 0
        self.export_s: Callable[[], float] = lambda: 0.0
        self.observer: Observer | None = None
        """Who is asked what else there is to tell of a window; set before the first record comes."""
        self._unix_ns = unix_ns
        self._resource = resource or resource_of(identity)
        gen_ai = settings.gen_ai
        if exports.aggregates_only:
            self._resource = Resource(
                dict(allowed.resource(self._resource.attributes, model_class=settings.provider.model_class))
            )
            gen_ai = "off"
        self._recorder = recorder
        self._spans = Spans(identity, gen_ai)
        self._aggregates_only = exports.aggregates_only
        self._step_encoder = StepEncoder(self._spans, self._allow)
        self._drifts: dict[tuple[str, int], DriftEvent] = {}
        self._told: set[tuple[str, int, bool]] = set()
        self._lost: Counter[str] = Counter()
        self._traces: RecordDelivery | None = None
        if exports.traces is not None:
            route = Route("traces", exports.traces, unix_ns, monotonic_s)
            self._traces = RecordDelivery(route, Envelope(self._resource), self._lost, monotonic_s)
        self._logs: RecordDelivery | None = None
        if exports.logs is not None:
            route = Route("logs", exports.logs, unix_ns, monotonic_s)
            self._logs = RecordDelivery(route, Envelope(self._resource), self._lost, monotonic_s, "logs")
        self._metrics: MetricDelivery | None = None
        if exports.metrics is not None:
            route = Route("metrics", exports.metrics, unix_ns, monotonic_s)
            self._metrics = MetricDelivery(route, self._lost, exports.metric_interval_s, monotonic_s)
        self._measured = Metrics(
            identity.device_id,
            identity.start_unix_ns,
            delta=exports.delta_metrics,
            gen_ai=gen_ai,
            model_name=identity.model_name,
        )
        self._windows = Windows()
        self._budget = Budget(settings.overhead_budget)
        self._totals = Totals()
        self._mode = settings.spans
        self._steps = Sampler(self._mode)
        # Requests are thinned out as steps are; `windows` speaks of steps only, so it does not silence them.
        self._requests = Sampler("auto" if self._mode == "windows" else self._mode)
        self._request_count = 0
        self._unkept: tuple[StepRecord, Window] | None = None
        # What steps have in common, and what of it may go.
        self._common: tuple[Common | None, Common] = (None, Common({}))
        self._step_count = 0
        self._closed = False

    @property
    def dropped(self) -> dict[str, int]:
        """Items that will never arrive, by reason (`semconv.DROP_REASON`)."""
        lost = {**self._lost, "queue_full": self._lost["queue_full"] + self.overflowed()}
        return {reason: count for reason, count in lost.items() if count}

    def consume(self, item: object) -> None:
        """Take one record, something that builds one, or one of the messages above; a recorded step has its number."""
        sequence, item = item if isinstance(item, tuple) else (0, item)
        if callable(item):
            item = item()
        if self._closed:
            self._lost["exit"] += 1
        elif isinstance(item, StepRecord):
            self._step(item, sequence)
        elif isinstance(item, InferenceRecord):
            self._inference(item)
        elif isinstance(item, Overhead):
            self._measured.overhead(item.seconds)
            self._budget.spend(item.seconds)
        elif isinstance(item, DriftEvent):
            self._drift(item)
        elif isinstance(item, DriftScores):
            self._measured.drift_scores(item.scores)
        elif isinstance(item, PeakRatios):
            self._measured.peak_ratios(item.ratios)
        elif isinstance(item, Configured):
            self._configured(item)
        elif isinstance(item, Calibration):
            if self._mode != "off":
                self._add(self._spans.calibration(item.peaks, item.start_unix_ns, item.end_unix_ns), essential=True)
        elif isinstance(item, Close):
            self._close(item)

    def flush(self) -> None:
        """Close all windows, and make all that there is due at once, whatever a back-off says."""
        self._end(self._windows.close())
        for delivery in (self._logs, self._traces, self._metrics):
            if delivery is not None:
                delivery.hasten()

    def deliver(self, deadline_s: float | None) -> float | None:
        """Send at most one request a signal (`worker.Pipeline.deliver`)."""
        began_s = thread_time()
        if self.observer is not None and self._windows.open:
            with guard.shield("observing the device"):
                self.observer.look(self._unix_ns())
        self._end(self._windows.expire(self._unix_ns()))
        waits_s: list[float | None] = []
        # Somebody may be waiting for these; most of the time there are none.
        if self._logs is not None:
            waits_s.append(self._logs.deliver(deadline_s))
        # Metrics go before spans: they are small, and their running totals stand in for every span that is lost.
        if self._metrics is not None:
            now_unix_ns = self._unix_ns()
            waits_s.append(
                self._metrics.deliver(
                    lambda: self._measured.snapshot(
                        self._resource,
                        now_unix_ns,
                        dropped=self.dropped,
                        alive=not self._closed,
                        export_s=self.export_s(),
                    ),
                    lambda: self._measured.delivered(now_unix_ns),
                    deadline_s,
                )
            )
        if self._traces is not None:
            waits_s.append(self._traces.deliver(deadline_s))
        self._budget.spend(thread_time() - began_s)
        return min((wait_s for wait_s in waits_s if wait_s is not None), default=None)

    def abandon(self, unread: int = 0) -> None:
        """Drop what did not arrive, and `unread` records with it, and count it."""
        lost = unread + sum(each.abandon() for each in (self._traces, self._logs) if each is not None)
        if lost:
            self._lost["exit"] += lost
            guard.warn_once(
                "export", f"{lost} spans or log records were not delivered in time; the run's work is not affected"
            )

    def retire(self) -> None:
        """Let go of the connections, of the recorder and of the observer."""
        if self.observer is not None:
            with guard.shield("observing the device"):
                self.observer.close()
        for delivery in (self._logs, self._traces, self._metrics):
            if delivery is not None:
                delivery.close()
        if self._recorder is not None:
            self._recorder.retire()

    def _step(self, step: StepRecord, sequence: int) -> None:
        # Asking for the thread's time costs a system call, four of which were a seventh of what they measured.
        self._step_count += 1
        looks = self._step_count % LOOK_EVERY == 0
        began_s = thread_time() if looks else 0.0
        self._measured.step(allowed.step(step) if self._aggregates_only else step)
        window, closed = self._windows.add(step)
        kept = self._steps.keep(step.index, step.start_unix_ns, step.duration_s, failed=step.error_type is not None)
        if kept and not self._budget.keeps_spans:
            kept = None
            self._lost["budget"] += 1
        if self._recorder is not None:
            self._recorder.joined(sequence, window, kept)
        counted_s = thread_time() if looks else 0.0
        self._unkept = None if kept else (step, window)
        if kept and self._traces is not None:
            self._traces.add(self._step_encoder.encode(step, window, kept), essential=False)
        told_s = thread_time() if looks or closed else 0.0
        windows_s = 0.0
        if closed:
            self._end(closed)
            windows_s = thread_time() - told_s
        self._budget.spend(LOOK_EVERY * (counted_s - began_s))
        if self._budget.step(step.duration_s, LOOK_EVERY * (told_s - counted_s) if looks else 0.0, windows_s):
            self._say_what_is_kept()

    def _say_what_is_kept(self) -> None:
        budget = self._budget
        if not budget.keeps_spans and budget.share is not None:
            what = "step spans" if budget.keeps_windows else "step spans and windows"
            guard.warn_once(
                "export",
                f"telling about the steps took {budget.cost_share:.2%} of their time, more than {budget.share:.2%} "
                f"(MFU_OVERHEAD_BUDGET); {what} are left out while it does",
            )

    def _inference(self, request: InferenceRecord) -> None:
        self._measured.inference(request)
        if self._aggregates_only:
            return
        index, self._request_count = self._request_count, self._request_count + 1
        failed = request.error_type is not None
        kept = self._requests.keep(index, request.start_unix_ns, request.duration_s, failed=failed)
        if kept:
            self._add(self._spans.inference(request, kept), essential=False)

    def _drift(self, event: DriftEvent) -> None:
        key = (event.phase, event.onset_step)
        self._drifts.pop(key, None)
        if event.recovered_step is None:
            self._drifts[key] = event
        elif self._mode != "off":
            self._add([self._spans.drift(event, event.recovered_unix_ns or event.found_unix_ns)], essential=True)
        self._measured.drift(event)
        self._log(event)

    def _log(self, event: DriftEvent) -> None:
        told = (event.phase, event.onset_step, event.recovered_step is not None)
        if self._logs is None or told in self._told:
            return
        self._told.add(told)
        made = logs.drift(event, self._spans.drift(event, event.found_unix_ns), self._unix_ns())
        made = made._replace(sampled=self._traces is not None and self._mode != "off")
        if self._aggregates_only:
            made = made._replace(body=None, attributes=allowed.attributes(made.attributes))
        self._logs.add(logs.encode(made), essential=True)
        # It waits for no other: there may be none for weeks.
        self._logs.gather()

    def _configured(self, known: Configured) -> None:
        more = {semconv.CONFIG_FINGERPRINT: known.fingerprint, semconv.CONFIG_INTENT: known.intent}
        self._resource = self._resource.merge(Resource(more))
        for delivery in (self._traces, self._logs):
            if delivery is not None:
                delivery.sent_by(Envelope(self._resource))

    def _close(self, last: Close) -> None:
        if self._mode != "off":
            # What has not recovered ends with the run.
            self._add([self._spans.drift(each, last.end_unix_ns) for each in self._drifts.values()], essential=True)
        if self._unkept and self._mode == "auto":
            self._add([self._spans.step(*self._unkept, Kept("last", None))], essential=False)
        self._end(self._windows.close())
        run = self._spans.run(last.summary, self._totals, last.end_unix_ns, last.error_type)
        if self._recorder is not None:
            self._recorder.ended(last.summary, self._totals, last.end_unix_ns, failed=last.error_type is not None)
        self._add([run], essential=True, arrived=None if self._recorder is None else self._recorder.run_arrived)
        self._closed = True
        self.flush()

    def _end(self, closed: list[Window]) -> None:
        for window in closed:
            total = sums(window.steps, give_way)
            seen = UNSEEN if self._mode == "off" else self._seen(window, total)
            self._totals.add(total, seen)
            # Encoding the arrays of 1,024 steps takes as long as a turn of the thread.
            give_way()
            arrived = None
            if self._recorder is not None:
                arrived = partial(self._recorder.arrived, self._recorder.closed(window))
            if self._mode == "off":
                continue
            if self._budget.keeps_windows:
                span = self._spans.window(window, total, seen)
                self._add([span], essential=True, arrived=arrived)
            else:
                self._lost["budget"] += 1

    def _seen(self, window: Window, total: Sums) -> Signals:
        if self.observer is not None:
            with guard.shield("observing a window"):
                return self.observer.signals(window, total)
        return UNSEEN

    def _allow(self, span: Span) -> Span:
        """As it may go to where this pipeline sends."""
        return span._replace(attributes=self._allowed(span.attributes)) if self._aggregates_only else span

    def _allowed(self, attributes: Mapping[str, Value]) -> Mapping[str, Value]:
        if not isinstance(attributes, Layered):
            return allowed.attributes(attributes)
        if self._common[0] is not attributes.common:
            self._common = attributes.common, Common(allowed.attributes(attributes.common.attributes))
        return Layered(self._common[1], allowed.attributes(attributes.own))

    def _add(self, spans: Iterable[Span], *, essential: bool, arrived: Callable[[], None] | None = None) -> None:
        if self._traces is not None:
            for made in spans:
                self._traces.add(encode(self._allow(made)), essential=essential, arrived=arrived)
