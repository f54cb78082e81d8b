"""The instruments of `semconv.METRICS` as plain sums, and a picture of them as OpenTelemetry metrics data.

Not the OpenTelemetry MeterProvider: it takes 6 µs a measurement, nine of which make a step, and it leaves a handler
behind that runs resource detectors in every child that the user's program ever forks. These sums are touched by
one thread only, cost a dictionary look-up each, and end with the run. Attributes are `hw.id`, `mfu.phase` and
`mfu.peak.dtype`, besides the component of a time, the reason of a drop and the thread of an overhead; those of
`gen_ai.*` have that convention's. All values are doubles.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

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
from mfu_sdk.export.resource import SCOPE
from mfu_sdk.records import DriftEvent, Phase, StepRecord
from mfu_sdk.requests import InferenceRecord
from mfu_sdk.settings import GenAi

_Labels = tuple[tuple[str, str], ...]

_TOGETHER: Final = 64
"""Steps that wait for one another before they are added: 0.1 ms of the export thread's, and of the lock's."""

_of_timed: Final = attrgetter(
    "duration_s", "data_wait_s", "device_s", "peak_flops_per_s", "mfu", "expected_mfu", "batch_running",
    "batch_feasible",
)  # fmt: skip
_of_counted: Final = attrgetter("model_flops", "hardware_flops", "available_flops")


@dataclass(slots=True)
class _Number:
    """A counter or a gauge; None while it has none to tell, and is in no export then."""

    value: float | None = None

    def add(self, value: float | None) -> None:
        if value is not None:
            self.value = value + (self.value or 0.0)

    def add_all(self, values: Sequence[float | None]) -> None:
        if known := [value for value in values if value is not None]:
            self.value = sum(known, self.value or 0.0)

    def set(self, value: float | None) -> None:
        if value is not None:
            self.value = float(value)

    def set_last(self, values: Sequence[float | None]) -> None:
        self.set(next((value for value in reversed(values) if value is not None), None))


@dataclass(slots=True)
class _Buckets:
    """One histogram: a value v is in the first bucket whose upper bound is ≥ v, as OpenTelemetry defines."""

    bounds: tuple[float, ...]
    counts: list[int]
    total: float = 0.0
    least: float = float("inf")
    most: float = float("-inf")

    def add(self, value: float | None) -> None:
        if value is None:
            return
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
        if value < self.least:
            self.least = value
        if value > self.most:
            self.most = value

    def add_all(self, values: Sequence[float | None]) -> None:
        known = [value for value in values if value is not None]
        if not known:
            return
        bounds, counts = self.bounds, self.counts
        for value in known:
            counts[bisect_left(bounds, value)] += 1
        self.total = sum(known, self.total)
        self.least = min(self.least, *known)
        self.most = max(self.most, *known)


@dataclass(frozen=True, slots=True)
class _Kind:
    """The instruments of the steps of one phase and dtype."""

    steps: _Number
    tokens: _Number
    total_s: _Number
    data_s: _Number
    device_s: _Number
    duration: _Buckets
    model_flops: _Number
    hardware_flops: _Number
    available_flops: _Number
    fill_ratio: _Number
    peak: _Number
    mfu: _Number
    expected_mfu: _Number
    utilization: _Buckets

    def take(self, steps: list[StepRecord]) -> None:
        """Add these, in their order; a gauge keeps what the last that knows it says."""
        self.steps.add(len(steps))
        self.tokens.add_all([step.tokens for step in steps if step.error_type is None])
        timed = [step for step in steps if step.timed]
        if not timed:
            return
        duration_s, data_s, device_s, peak, mfu, expected_mfu, running, feasible = zip(
            *map(_of_timed, timed), strict=True
        )
        self.total_s.add_all(duration_s)
        self.data_s.add_all(data_s)
        self.device_s.add_all(device_s)
        self.duration.add_all(duration_s)
        self.peak.set_last(peak)
        self.mfu.set_last(mfu)
        self.expected_mfu.set_last(expected_mfu)
        self.utilization.add_all(mfu)
        self.fill_ratio.set_last(
            [of / could if of is not None and could else None for of, could in zip(running, feasible, strict=True)]
        )
        if counted := [step for step in timed if step.counts]:
            model, hardware, available = zip(*map(_of_counted, counted), strict=True)
            self.model_flops.add_all(model)
            self.hardware_flops.add_all(hardware)
            self.available_flops.add_all(available)


class Metrics:
    """The running sums of one run. Not thread-safe: the export thread owns it.

    `delta`: each delivered export starts the counters and histograms over; otherwise they run from `start_unix_ns`.
    """

    def __init__(
        self,
        device_id: str | None,
        start_unix_ns: int,
        *,
        delta: bool,
        gen_ai: GenAi = "off",
        model_name: str | None = None,
    ) -> None:
        self._device: _Labels = ((semconv.HW_ID, device_id),) if device_id else ()
        self._start_unix_ns = start_unix_ns
        self._delta = delta
        self._gen_ai: _Labels | None = None
        if gen_ai != "off":
            self._gen_ai = (
                *self._device,
                (semconv.GEN_AI_OPERATION_NAME, gen_ai),
                (semconv.GEN_AI_PROVIDER_NAME, semconv.SCOPE),
                *(() if model_name is None else ((semconv.GEN_AI_REQUEST_MODEL, model_name),)),
            )
        self._numbers: dict[tuple[str, _Labels], _Number] = {}
        self._histograms: dict[tuple[str, _Labels], _Buckets] = {}
        # What steps of one phase and dtype are added to, so that a step looks up but that.
        self._kinds: dict[tuple[Phase, str | None], _Kind] = {}
        self._waiting: list[StepRecord] = []
        self._dropped: dict[str, int] = {}
        self._export_s = 0.0
        # Those that have not recovered: phase and onset.
        self._excursions: set[tuple[str, int]] = set()

    def step(self, step: StepRecord) -> None:
        """Count one step: every step as a step, one that did not fail in the tokens, a timed one in the times, a
        counted one in the FLOPs (`windows.Sums`). A counter cannot take back what it said: it goes on without what a
        step does not know.
        """
        self._waiting.append(step)
        if len(self._waiting) == _TOGETHER:
            self._settle()

    def _settle(self) -> None:
        """Add the steps that wait to the sums, by columns: a call for each number of each step took twice as long."""
        of_kinds: dict[tuple[Phase, str | None], list[StepRecord]] = {}
        for step in self._waiting:
            of_kinds.setdefault((step.phase, step.peak_dtype), []).append(step)
        self._waiting.clear()
        for (phase, dtype), steps in of_kinds.items():
            (self._kinds.get((phase, dtype)) or self._kind(phase, dtype)).take(steps)

    def _kind(self, phase: Phase, dtype: str | None) -> "_Kind":
        of_phase: _Labels = (*self._device, (semconv.PHASE, phase))
        held = of_phase if dtype is None else (*of_phase, (semconv.PEAK_DTYPE, dtype))
        total, data, device = (
            self._number(semconv.METRIC_STEP_TIME, (*of_phase, (semconv.STEP_COMPONENT, component)))
            for component in ("total", "data", "device")
        )
        found = self._kinds[phase, dtype] = _Kind(
            steps=self._number(semconv.METRIC_STEP_COUNT, of_phase),
            tokens=self._number(semconv.METRIC_TOKEN_COUNT, of_phase),
            total_s=total,
            data_s=data,
            device_s=device,
            duration=self._histogram(semconv.METRIC_STEP_DURATION, of_phase),
            model_flops=self._number(semconv.METRIC_MODEL_FLOP, held),
            hardware_flops=self._number(semconv.METRIC_HARDWARE_FLOP, held),
            available_flops=self._number(semconv.METRIC_AVAILABLE_FLOP, held),
            fill_ratio=self._number(semconv.METRIC_BATCH_FILL_RATIO, of_phase),
            peak=self._number(semconv.METRIC_PEAK_FLOP_RATE, held),
            mfu=self._number(semconv.METRIC_UTILIZATION, held),
            expected_mfu=self._number(semconv.METRIC_EXPECTED, held),
            utilization=self._histogram(semconv.METRIC_STEP_UTILIZATION, held),
        )
        return found

    def inference(self, request: InferenceRecord) -> None:
        """Count one request: its times only, because requests overlap and their FLOPs are in the steps.

        The times of tokens are those of requests that finished: one that was left early says little of them.
        """
        phase: _Labels = (*self._device, (semconv.PHASE, "inference"))
        finished = request.outcome == "finished"
        first_token_s = request.time_to_first_token_s if finished else None
        output_token_s = request.time_per_output_token_s if finished else None
        self._histogram(semconv.METRIC_INFERENCE_DURATION, phase).add(request.duration_s)
        self._histogram(semconv.METRIC_TIME_TO_FIRST_TOKEN, phase).add(first_token_s)
        self._histogram(semconv.METRIC_TIME_PER_OUTPUT_TOKEN, phase).add(output_token_s)
        if self._gen_ai is None:
            return
        failed: _Labels = () if request.error_type is None else ((semconv.ERROR_TYPE, request.error_type),)
        self._histogram(semconv.METRIC_GEN_AI_DURATION, (*self._gen_ai, *failed)).add(request.duration_s)
        self._histogram(semconv.METRIC_GEN_AI_FIRST_TOKEN, self._gen_ai).add(first_token_s)
        self._histogram(semconv.METRIC_GEN_AI_OUTPUT_TOKEN, self._gen_ai).add(output_token_s)

    def drift(self, event: DriftEvent) -> None:
        """Count an excursion that was not told of before, and set how many of its phase have not recovered."""
        key = (event.phase, event.onset_step)
        found = key not in self._excursions
        self._excursions.discard(key)
        if event.recovered_step is None:
            self._excursions.add(key)
        active = sum(phase == event.phase for phase, _ in self._excursions)
        labels: _Labels = (*self._device, (semconv.PHASE, event.phase))
        self._number(semconv.METRIC_DRIFT_COUNT, labels).add(1 if found else 0)
        self._number(semconv.METRIC_DRIFT_ACTIVE, labels).set(active)

    def drift_scores(self, scores: Mapping[str, float]) -> None:
        """Set the evidence for drift of each phase, and that nothing has been found where nothing has."""
        for phase, score in scores.items():
            labels: _Labels = (*self._device, (semconv.PHASE, phase))
            self._number(semconv.METRIC_DRIFT_SCORE, labels).set(score)
            active = self._number(semconv.METRIC_DRIFT_ACTIVE, labels)
            if active.value is None:
                active.set(0)

    def peak_ratios(self, ratios: Mapping[str, float]) -> None:
        """Set what the device was measured to reach in the run over what it reached before, by dtype."""
        for dtype, found in ratios.items():
            self._number(semconv.METRIC_PEAK_RATIO, (*self._device, (semconv.PEAK_DTYPE, dtype))).set(found)

    def overhead(self, seconds: float) -> None:
        """Add time that the SDK took on the step path."""
        self._overhead("step").add(seconds)

    def snapshot(
        self,
        resource: Resource,
        now_unix_ns: int,
        *,
        dropped: Mapping[str, int],
        alive: bool,
        export_s: float = 0.0,
    ) -> MetricsData:
        """Everything as it stands. `dropped`: items lost since the run began, by reason.

        `alive`: whether the run still lives (`mfu.run.info` is 1 then, and 0 in its last export). `export_s`: processor
        time of the export threads since the run began.
        """
        self._settle()
        if export_s > self._export_s:
            self._overhead("export").add(export_s - self._export_s)
            self._export_s = export_s
        for reason, total in dropped.items():
            number = self._number(semconv.METRIC_SDK_DROPPED, (*self._device, (semconv.DROP_REASON, reason)))
            number.add(total - self._dropped.get(reason, 0))
            self._dropped[reason] = total
        self._number(semconv.METRIC_RUN_INFO, self._device).set(1.0 if alive else 0.0)
        metrics = [metric for name in semconv.METRICS if (metric := self._metric(name, now_unix_ns))]
        scope = ScopeMetrics(SCOPE, metrics, "")
        return MetricsData([ResourceMetrics(resource, [scope], "")])

    def delivered(self, now_unix_ns: int) -> None:
        """The last snapshot arrived: under delta temporality the next one starts here."""
        if self._delta:
            for (name, _), number in self._numbers.items():
                if semconv.METRICS[name].kind == "counter":
                    number.value = None
            self._histograms.clear()
            self._kinds.clear()
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
                for (of, labels), found in self._histograms.items()
                if of == name and found.least <= found.most
            ]
            data = Histogram(points, temporality)
            return Metric(name, registered.brief, registered.unit, data) if points else None
        numbers = [
            NumberDataPoint(dict(labels), self._start_unix_ns, now_unix_ns, number.value)
            for (of, labels), number in self._numbers.items()
            if of == name and number.value is not None
        ]
        data = Sum(numbers, temporality, is_monotonic=True) if registered.kind == "counter" else Gauge(numbers)
        return Metric(name, registered.brief, registered.unit, data) if numbers else None

    def _overhead(self, thread: str) -> _Number:
        return self._number(semconv.METRIC_SDK_OVERHEAD, (*self._device, (semconv.SDK_THREAD, thread)))

    def _number(self, name: str, labels: _Labels) -> _Number:
        return self._numbers.setdefault((name, labels), _Number())

    def _histogram(self, name: str, labels: _Labels) -> _Buckets:
        found = self._histograms.get((name, labels))
        if found is None:
            bounds = semconv.METRICS[name].bounds
            found = self._histograms[name, labels] = _Buckets(bounds, [0] * (len(bounds) + 1))
        return found
