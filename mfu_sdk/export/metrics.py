"""The instruments of `semconv.METRICS` as plain sums, and a picture of them as OpenTelemetry metrics data.

Not the OpenTelemetry MeterProvider: it takes 6 µs a measurement, nine of which make a step, and it leaves a handler
behind that runs resource detectors in every child that the user's program ever forks. These sums are touched by
one thread only, cost a dictionary look-up each, and end with the run. Attributes are `hw.id`, `mfu.phase` and
`mfu.peak.dtype`, besides the component of a time and the reason of a drop; those of `gen_ai.*` have that convention's.
All values are doubles.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource

from mfu_sdk import semconv
from mfu_sdk.export.spans import SCOPE
from mfu_sdk.records import StepRecord
from mfu_sdk.requests import InferenceRecord
from mfu_sdk.settings import GenAi

_Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class _Buckets:
    """One histogram: a value v is in the first bucket whose upper bound is ≥ v, as OpenTelemetry defines."""

    bounds: tuple[float, ...]
    counts: list[int]
    total: float = 0.0
    least: float = float("inf")
    most: float = float("-inf")

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
        self.least = min(self.least, value)
        self.most = max(self.most, value)


class Metrics:
    """The running sums of one run. Not thread-safe: the export thread owns it.

    `delta`: each delivered export starts the counters and histograms over; otherwise they run from `start_unix_ns`.
    """

    def __init__(self, device_id: str | None, start_unix_ns: int, *, delta: bool, gen_ai: GenAi = "off") -> None:
        self._device: _Labels = ((semconv.HW_ID, device_id),) if device_id else ()
        self._start_unix_ns = start_unix_ns
        self._delta = delta
        self._gen_ai: _Labels | None = None
        if gen_ai != "off":
            self._gen_ai = (
                *self._device,
                (semconv.GEN_AI_OPERATION_NAME, gen_ai),
                (semconv.GEN_AI_PROVIDER_NAME, semconv.SCOPE),
            )
        self._counters: dict[tuple[str, _Labels], float] = {}
        self._gauges: dict[tuple[str, _Labels], float] = {}
        self._histograms: dict[tuple[str, _Labels], _Buckets] = {}
        self._dropped: dict[str, int] = {}

    def step(self, step: StepRecord) -> None:
        """Count one step: every step as a step, one that did not fail in the tokens, a timed one in the times, a
        counted one in the FLOPs (`windows.Sums`). A counter cannot take back what it said: it goes on without what a
        step does not know.
        """
        phase: _Labels = (*self._device, (semconv.PHASE, step.phase))
        self._count(semconv.METRIC_STEP_COUNT, phase, 1)
        if step.error_type is None:
            self._count(semconv.METRIC_TOKEN_COUNT, phase, step.tokens)
        if not step.timed:
            return
        for component, seconds in (("total", step.duration_s), ("data", step.data_wait_s), ("device", step.device_s)):
            self._count(semconv.METRIC_STEP_TIME, (*phase, (semconv.STEP_COMPONENT, component)), seconds)
        self._observe(semconv.METRIC_STEP_DURATION, phase, step.duration_s)
        held = phase if step.peak_dtype is None else (*phase, (semconv.PEAK_DTYPE, step.peak_dtype))
        if step.counts:
            self._count(semconv.METRIC_MODEL_FLOP, held, step.model_flops)
            self._count(semconv.METRIC_HARDWARE_FLOP, held, step.hardware_flops)
            self._count(semconv.METRIC_AVAILABLE_FLOP, held, step.available_flops)
        if step.batch_running is not None and step.batch_feasible:
            self._set(semconv.METRIC_BATCH_FILL_RATIO, phase, step.batch_running / step.batch_feasible)
        self._set(semconv.METRIC_PEAK_FLOP_RATE, held, step.peak_flops_per_s)
        self._set(semconv.METRIC_UTILIZATION, held, step.mfu)
        self._set(semconv.METRIC_EXPECTED, held, step.expected_mfu)
        self._observe(semconv.METRIC_STEP_UTILIZATION, held, step.mfu)

    def inference(self, request: InferenceRecord) -> None:
        """Count one request: its times only, because requests overlap and their FLOPs are in the steps.

        The times of tokens are those of requests that finished: one that was left early says little of them.
        """
        phase: _Labels = (*self._device, (semconv.PHASE, "inference"))
        finished = request.outcome == "finished"
        first_token_s = request.time_to_first_token_s if finished else None
        output_token_s = request.time_per_output_token_s if finished else None
        self._observe(semconv.METRIC_INFERENCE_DURATION, phase, request.duration_s)
        self._observe(semconv.METRIC_TIME_TO_FIRST_TOKEN, phase, first_token_s)
        self._observe(semconv.METRIC_TIME_PER_OUTPUT_TOKEN, phase, output_token_s)
        if self._gen_ai is None:
            return
        failed: _Labels = () if request.error_type is None else ((semconv.ERROR_TYPE, request.error_type),)
        self._observe(semconv.METRIC_GEN_AI_DURATION, (*self._gen_ai, *failed), request.duration_s)
        self._observe(semconv.METRIC_GEN_AI_FIRST_TOKEN, self._gen_ai, first_token_s)
        self._observe(semconv.METRIC_GEN_AI_OUTPUT_TOKEN, self._gen_ai, output_token_s)

    def drift(self, phase: str, *, found: bool, active: int) -> None:
        """Count an excursion that was found, and set how many of its phase have not recovered."""
        labels: _Labels = (*self._device, (semconv.PHASE, phase))
        self._count(semconv.METRIC_DRIFT_COUNT, labels, 1 if found else 0)
        self._set(semconv.METRIC_DRIFT_ACTIVE, labels, active)

    def drift_scores(self, scores: Mapping[str, float]) -> None:
        """Set the evidence for drift of each phase, and that nothing has been found where nothing has."""
        for phase, score in scores.items():
            labels: _Labels = (*self._device, (semconv.PHASE, phase))
            self._set(semconv.METRIC_DRIFT_SCORE, labels, score)
            self._gauges.setdefault((semconv.METRIC_DRIFT_ACTIVE, labels), 0.0)

    def overhead(self, seconds: float) -> None:
        """Add time that the SDK took on the step path."""
        self._count(semconv.METRIC_SDK_OVERHEAD, self._device, seconds)

    def snapshot(self, resource: Resource, now_unix_ns: int, *, dropped: Mapping[str, int], alive: bool) -> MetricsData:
        """Everything as it stands. `dropped`: items lost since the run began, by reason.

        `alive`: whether the run still lives (`mfu.run.info` is 1 then, and 0 in its last export).
        """
        for reason, total in dropped.items():
            self._count(
                semconv.METRIC_SDK_DROPPED,
                (*self._device, (semconv.DROP_REASON, reason)),
                total - self._dropped.get(reason, 0),
            )
            self._dropped[reason] = total
        self._set(semconv.METRIC_RUN_INFO, self._device, 1.0 if alive else 0.0)
        metrics = [metric for name in semconv.METRICS if (metric := self._metric(name, now_unix_ns))]
        scope = ScopeMetrics(SCOPE, metrics, "")
        return MetricsData([ResourceMetrics(resource, [scope], "")])

    def delivered(self, now_unix_ns: int) -> None:
        """The last snapshot arrived: under delta temporality the next one starts here."""
        if self._delta:
            self._counters.clear()
            self._histograms.clear()
            self._start_unix_ns = now_unix_ns

    def _metric(self, name: str, now_unix_ns: int) -> Metric | None:
        registered = semconv.METRICS[name]
        temporality = AggregationTemporality.DELTA if self._delta else AggregationTemporality.CUMULATIVE
        data: Sum | Gauge | Histogram
        if registered.kind == "histogram":
            points = [
                HistogramDataPoint(
                    attributes=dict(labels),
                    start_time_unix_nano=self._start_unix_ns,
                    time_unix_nano=now_unix_ns,
                    count=sum(found.counts),
                    sum=found.total,
                    bucket_counts=tuple(found.counts),
                    explicit_bounds=found.bounds,
                    min=found.least,
                    max=found.most,
                )
                for labels, found in _of(self._histograms, name)
            ]
            data = Histogram(points, temporality)
            return Metric(name, registered.brief, registered.unit, data) if points else None
        table = self._counters if registered.kind == "counter" else self._gauges
        numbers = [
            NumberDataPoint(dict(labels), self._start_unix_ns, now_unix_ns, value) for labels, value in _of(table, name)
        ]
        data = Sum(numbers, temporality, is_monotonic=True) if registered.kind == "counter" else Gauge(numbers)
        return Metric(name, registered.brief, registered.unit, data) if numbers else None

    def _count(self, name: str, labels: _Labels, value: float | None) -> None:
        if value is not None:
            self._counters[name, labels] = self._counters.get((name, labels), 0.0) + float(value)

    def _set(self, name: str, labels: _Labels, value: float | None) -> None:
        if value is not None:
            self._gauges[name, labels] = float(value)

    def _observe(self, name: str, labels: _Labels, value: float | None) -> None:
        if value is None:
            return
        found = self._histograms.get((name, labels))
        if found is None:
            bounds = semconv.METRICS[name].bounds
            found = self._histograms[name, labels] = _Buckets(bounds, [0] * (len(bounds) + 1))
        found.add(value)


_Entry = TypeVar("_Entry", float, _Buckets)


def _of(table: Mapping[tuple[str, _Labels], _Entry], name: str) -> list[tuple[_Labels, _Entry]]:
    return [(labels, value) for (of, labels), value in table.items() if of == name]
