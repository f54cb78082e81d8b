"""Records into OpenTelemetry spans, built after the fact: no live span object ever exists on the step path.

Every attribute is one of `semconv.ATTRIBUTES`, of the type that is registered there; what is not known is left out.
FLOPs are doubles: 2^63 of them pass in hours, and an integer beyond that fails the whole request.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

import mfu_sdk
from mfu_sdk import semconv
from mfu_sdk.export import identity
from mfu_sdk.export.identity import Ids
from mfu_sdk.export.sampling import Kept
from mfu_sdk.export.totals import Totals
from mfu_sdk.export.windows import Sums, Window
from mfu_sdk.records import DriftEvent, Peaks, Rate, RunIdentity, RunSummary, StepRecord
from mfu_sdk.requests import InferenceRecord
from mfu_sdk.settings import GenAi

SCOPE: Final = InstrumentationScope(semconv.SCOPE, mfu_sdk.__version__)

Value = str | bool | int | float | list[int] | list[str]


def attributes(place: semconv.Place, values: Mapping[str, object]) -> dict[str, Value]:
    """`values` as the registry types them at `place`, without those that are None or not finite.

    Raises `KeyError` for a name that is not registered, `ValueError` for one that does not belong at `place`.
    """
    typed: dict[str, Value] = {}
    for name, value in values.items():
        registered = semconv.ATTRIBUTES[name]
        if place not in registered.on:
            raise ValueError(f"{name}: is not registered on {place}; add the place in semconv.py")
        if value is None:
            continue
        if registered.type == "double":
            number = float(value)  # type: ignore[arg-type]  # a value that is no number raises, which the tests want
            if math.isfinite(number):
                typed[name] = number
        elif registered.type == "int":
            typed[name] = int(value)  # type: ignore[call-overload]  # as above
        elif registered.type == "string":
            typed[name] = str(value)
        else:
            typed[name] = list(value)  # type: ignore[call-overload]  # as above
    return typed


class Spans:
    """Makes the spans of one process. Pure but for inference ids, which come from the operating system."""

    def __init__(self, who: RunIdentity, resource: Resource, gen_ai: GenAi = "off") -> None:
        self._who = who
        self._gen_ai: GenAi = gen_ai
        self._ids = Ids.of(who)
        self._resource = resource
        self._run = _context(self._ids.run_trace(), self._ids.run_span())

    def step(self, step: StepRecord, window: Window, kept: Kept) -> ReadableSpan:
        """The span of one step, a child of its window's.

        A reader adds up FLOPs over the spans that have both model and available FLOPs; a step that was not timed has
        no available ones here. Tokens, samples and requests add up over every span without `error.type`. Either way
        a span weighs 1 / `mfu.sample.ratio`, and nothing where it has no ratio.
        """
        trace = self._ids.window_trace(window.slot)
        return self._span(
            semconv.SPAN_STEP,
            _context(trace, self._ids.step_span(step)),
            step.start_unix_ns,
            _end_unix_ns(step),
            parent=_context(trace, self._ids.window_span(window.slot, window.steps[0])),
            error_type=step.error_type,
            attributes=attributes(
                "step",
                {
                    semconv.STEP_INDEX: step.index,
                    semconv.PHASE: step.phase,
                    semconv.UTILIZATION: step.mfu,
                    semconv.HARDWARE_UTILIZATION: step.hfu,
                    semconv.ACHIEVABLE_UTILIZATION: step.achievable_mfu,
                    semconv.DTYPE_UTILIZATION: step.mfu_by_dtype,
                    semconv.EXPECTED: step.expected_mfu,
                    semconv.MODEL_FLOP: step.model_flops,
                    semconv.HARDWARE_FLOP: step.hardware_flops,
                    semconv.AVAILABLE_FLOP: step.available_flops if step.timed else None,
                    semconv.ATTENTION_FLOP_EXACT: step.attention_flops_exact,
                    semconv.ATTENTION_FLOP_FULL: step.attention_flops_full,
                    semconv.PEAK_FLOP_RATE: step.peak_flops_per_s,
                    semconv.PEAK_SOURCE: step.peak_source,
                    semconv.PEAK_DTYPE: step.peak_dtype,
                    semconv.COUNT_SOURCE: step.count_source,
                    semconv.COUNT_COVERAGE: step.coverage,
                    semconv.CONVENTION: step.convention,
                    semconv.STEP_DATA_TIME: step.data_wait_s,
                    semconv.STEP_DEVICE_TIME: step.device_s,
                    semconv.TOKEN_COUNT: step.tokens,
                    semconv.SAMPLE_COUNT: step.samples,
                    semconv.REQUEST_COUNT: step.requests,
                    semconv.REQUEST_FAILED: step.requests_failed,
                    semconv.REQUEST_TIME: step.requests_s,
                    semconv.SAMPLE_REASON: kept.reason,
                    semconv.SAMPLE_RATIO: kept.ratio,
                    semconv.REQUEST_RUNNING: step.requests_running,
                    semconv.BATCH_RUNNING: step.batch_running,
                    semconv.BATCH_FEASIBLE: step.batch_feasible,
                    semconv.QUEUE_WAITING: step.queue_waiting,
                    semconv.KV_CACHE_FREE_RATIO: step.kv_cache_free_ratio,
                    semconv.LATENCY_TARGET: step.latency_target_s,
                    semconv.ARITHMETIC_INTENSITY: step.arithmetic_intensity,
                    semconv.ERROR_TYPE: step.error_type,
                },
            ),
        )

    def window(self, window: Window, total: Sums) -> ReadableSpan:
        """The span of one window, linked to the run's, with its steps' sums `total` and their arrays."""
        shared = window.denominator
        return self._span(
            semconv.SPAN_WINDOW,
            _context(self._ids.window_trace(window.slot), self._ids.window_span(window.slot, window.steps[0])),
            window.start_unix_ns,
            window.end_unix_ns,
            links=(Link(self._run),),
            attributes=attributes(
                "window",
                {
                    semconv.PHASE: shared.phase,
                    semconv.CONVENTION: shared.convention,
                    semconv.PEAK_FLOP_RATE: shared.peak_flops_per_s,
                    semconv.PEAK_SOURCE: shared.peak_source,
                    semconv.PEAK_DTYPE: shared.peak_dtype,
                    semconv.UTILIZATION: total.mfu,
                    semconv.HARDWARE_UTILIZATION: total.hfu,
                    semconv.ACHIEVABLE_UTILIZATION: total.achievable_mfu,
                    semconv.DTYPE_UTILIZATION: total.mfu_by_dtype,
                    semconv.EXPECTED: total.expected_mfu,
                    semconv.MODEL_FLOP: total.model_flops,
                    semconv.HARDWARE_FLOP: total.hardware_flops,
                    semconv.AVAILABLE_FLOP: total.available_flops,
                    semconv.EXPECTED_FLOP: total.expected_flops,
                    semconv.EXPECTED_AVAILABLE_FLOP: total.expected_available_flops,
                    semconv.ATTENTION_FLOP_EXACT: total.attention_flops_exact,
                    semconv.ATTENTION_FLOP_FULL: total.attention_flops_full,
                    semconv.COUNT_COVERAGE: total.coverage,
                    semconv.STEP_TIME: total.time_s,
                    semconv.STEP_DATA_TIME: total.data_wait_s,
                    semconv.STEP_DEVICE_TIME: total.device_s,
                    semconv.TOKEN_COUNT: total.tokens,
                    semconv.SAMPLE_COUNT: total.samples,
                    semconv.REQUEST_COUNT: total.requests,
                    semconv.REQUEST_FAILED: total.requests_failed,
                    semconv.REQUEST_TIME: total.requests_s,
                    semconv.REQUEST_RUNNING: total.requests_running,
                    semconv.BATCH_RUNNING: total.batch_running,
                    semconv.BATCH_FEASIBLE: total.batch_feasible,
                    semconv.QUEUE_WAITING: total.queue_waiting,
                    semconv.KV_CACHE_FREE_RATIO: total.kv_cache_free_ratio,
                    semconv.LATENCY_TARGET: total.latency_target_s,
                    semconv.ARITHMETIC_INTENSITY: total.arithmetic_intensity,
                    semconv.WINDOW_STEP_FIRST: min(step.index for step in window.steps),
                    semconv.WINDOW_STEP_COUNT: total.steps,
                    semconv.WINDOW_STEP_TIMED: total.timed,
                    semconv.WINDOW_STEP_UNKNOWN: total.unknown,
                    semconv.WINDOW_STEP_DURATIONS: window.durations_us,
                    semconv.WINDOW_STEP_UTILIZATIONS: window.utilizations_bp,
                },
            ),
        )

    def run(self, summary: RunSummary, totals: Totals, end_unix_ns: int, error_type: str | None) -> ReadableSpan:
        """The span of the run, at its end. Its sums are those of the windows that were made, so they agree."""
        return self._span(
            semconv.SPAN_RUN,
            self._run,
            self._who.start_unix_ns,
            end_unix_ns,
            error_type=error_type,
            attributes=attributes(
                "run",
                {
                    semconv.UTILIZATION: totals.mfu,
                    semconv.HARDWARE_UTILIZATION: totals.hfu,
                    semconv.EXPECTED: summary.expected_mfu,
                    semconv.MODEL_FLOP: totals.model_flops,
                    semconv.HARDWARE_FLOP: totals.hardware_flops,
                    semconv.AVAILABLE_FLOP: totals.available_flops,
                    semconv.PEAK_FLOP_RATE: summary.peak_flops_per_s,
                    semconv.PEAK_SOURCE: summary.peak_source,
                    semconv.PEAK_DTYPE: summary.peak_dtype,
                    semconv.PEAK_MEMORY_RATE: summary.peak_memory_bytes_per_s,
                    semconv.CALIBRATION_ID: summary.calibration_id,
                    semconv.COUNT_COVERAGE: summary.coverage,
                    semconv.COUNT_UNCOUNTED: [entry.op for entry in summary.uncounted],
                    semconv.CONVENTION: summary.convention,
                    semconv.STEP_TIME: totals.time_s,
                    semconv.TOKEN_COUNT: totals.tokens,
                    semconv.RUN_STEP_COUNT: summary.steps,
                    semconv.RUN_OVERHEAD: summary.overhead_s,
                    semconv.ERROR_TYPE: error_type,
                },
            ),
        )

    def inference(self, request: InferenceRecord, kept: Kept) -> Iterator[ReadableSpan]:
        """The span of one request and its phases': the caller's child, or without a caller the root of its own trace.

        The request's name stays here: a function's name says more than a provider needs.
        """
        parent = None
        trace = identity.random_trace_id()
        if request.parent_trace_id and request.parent_span_id:
            trace = request.parent_trace_id
            parent = _context(trace, request.parent_span_id)
        own = _context(trace, identity.random_span_id())
        values: dict[str, object] = {
            semconv.MODEL_FLOP: request.model_flops,
            semconv.HARDWARE_FLOP: request.hardware_flops,
            semconv.COUNT_SOURCE: request.count_source,
            semconv.TOKEN_COUNT: request.tokens,
            semconv.TOKEN_INPUT: request.input_tokens,
            semconv.TOKEN_OUTPUT: request.output_tokens,
            semconv.BATCH_RUNNING: request.batch,
            semconv.MODEL_CALLS: request.model_calls,
            semconv.CHUNKS: request.chunks,
            semconv.TIME_TO_FIRST_TOKEN: request.time_to_first_token_s,
            semconv.TIME_PER_OUTPUT_TOKEN: request.time_per_output_token_s,
            semconv.REQUEST_OUTCOME: request.outcome,
            semconv.SAMPLE_REASON: kept.reason,
            semconv.SAMPLE_RATIO: kept.ratio,
            semconv.ERROR_TYPE: request.error_type,
        }
        if self._gen_ai != "off":
            values |= {
                semconv.GEN_AI_OPERATION_NAME: self._gen_ai,
                semconv.GEN_AI_PROVIDER_NAME: semconv.SCOPE,
                semconv.GEN_AI_INPUT_TOKENS: request.input_tokens,
                semconv.GEN_AI_OUTPUT_TOKENS: request.output_tokens,
            }
        yield self._span(
            semconv.SPAN_INFERENCE,
            own,
            request.start_unix_ns,
            request.start_unix_ns + round(request.duration_s * 1e9),
            parent=parent,
            error_type=request.error_type,
            attributes=attributes("inference", values),
        )
        for phase in request.phases:
            if phase.phase not in ("prefill", "decode"):
                continue
            start_unix_ns = request.start_unix_ns + round(phase.start_s * 1e9)
            yield self._span(
                semconv.SPAN_PREFILL if phase.phase == "prefill" else semconv.SPAN_DECODE,
                _context(trace, identity.random_span_id()),
                start_unix_ns,
                start_unix_ns + round(phase.duration_s * 1e9),
                parent=own,
                attributes=attributes(
                    phase.phase,
                    {
                        semconv.PHASE: phase.phase,
                        semconv.MODEL_FLOP: phase.model_flops,
                        semconv.HARDWARE_FLOP: phase.hardware_flops,
                        semconv.MODEL_CALLS: phase.model_calls,
                    },
                ),
            )

    def drift(self, event: DriftEvent, end_unix_ns: int) -> ReadableSpan:
        """The span of an excursion, a child of the run's, from its onset to `end_unix_ns`."""
        return self._span(
            semconv.SPAN_DRIFT,
            _context(self._ids.run_trace(), self._ids.drift_span(event)),
            event.onset_unix_ns,
            max(end_unix_ns, event.onset_unix_ns),
            parent=self._run,
            attributes=attributes(
                "drift",
                {
                    semconv.PHASE: event.phase,
                    semconv.DRIFT_KIND: event.kind,
                    semconv.DRIFT_MEASURE: event.measure,
                    semconv.DRIFT_CHANGE: event.change,
                    semconv.DRIFT_SCORE: event.score,
                    semconv.DRIFT_THRESHOLD: event.threshold,
                    semconv.DRIFT_BASELINE: event.baseline,
                    semconv.DRIFT_CURRENT: event.current,
                    semconv.DRIFT_ONSET_STEP: event.onset_step,
                    semconv.DRIFT_FOUND_STEP: event.found_step,
                    semconv.DRIFT_RECOVERED_STEP: event.recovered_step,
                    semconv.DRIFT_DETECTOR: event.detector,
                    semconv.DRIFT_CAUSE: event.cause,
                    semconv.DRIFT_EVIDENCE: event.evidence,
                    semconv.DRIFT_DIFF: event.fingerprint_diff,
                },
            ),
        )

    def calibration(self, peaks: Peaks, start_unix_ns: int, end_unix_ns: int) -> Iterator[ReadableSpan]:
        """One span for each dtype whose peak was just measured, children of the run's."""
        # What an earlier calibration found is in the same peaks, and was reported then.
        measured: list[tuple[str | None, Rate | None]] = [
            (dtype, rate) for dtype, rate in peaks.achievable.items() if rate.age_s == 0
        ]
        state = peaks.state
        # Where only the memory was measured, that is still a calibration.
        for dtype, rate in measured or [(None, None)]:
            clock_mhz = state.get(f"{dtype}_clock_mhz")
            yield self._span(
                semconv.SPAN_CALIBRATION,
                _context(self._ids.run_trace(), self._ids.calibration_span(dtype, start_unix_ns)),
                start_unix_ns,
                end_unix_ns,
                parent=self._run,
                attributes=attributes(
                    "calibration",
                    {
                        semconv.PEAK_FLOP_RATE: rate.flops_per_s if rate else None,
                        semconv.PEAK_SOURCE: rate.source if rate else None,
                        semconv.PEAK_FLOP_RATE_LOW: rate.low if rate else None,
                        semconv.PEAK_FLOP_RATE_HIGH: rate.high if rate else None,
                        semconv.CALIBRATION_TIER: state.get("tier"),
                        semconv.CALIBRATION_CLOCK: None if clock_mhz is None else float(clock_mhz) * 1e6,
                        semconv.CALIBRATION_EFFICIENCY: state.get(f"{dtype}_efficiency"),
                        semconv.CALIBRATION_DEGRADED: state.get("degraded"),
                        semconv.PEAK_DTYPE: dtype,
                        semconv.PEAK_MEMORY_RATE: peaks.memory.bytes_per_s if peaks.memory else None,
                        semconv.CALIBRATION_ID: peaks.calibration_id,
                    },
                ),
            )

    def _span(
        self,
        name: str,
        context: SpanContext,
        start_unix_ns: int,
        end_unix_ns: int,
        *,
        attributes: dict[str, Value],
        parent: SpanContext | None = None,
        links: tuple[Link, ...] = (),
        error_type: str | None = None,
    ) -> ReadableSpan:
        return ReadableSpan(
            name=name,
            context=context,
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            links=links,
            status=Status(StatusCode.UNSET if error_type is None else StatusCode.ERROR),
            start_time=start_unix_ns,
            end_time=end_unix_ns,
            instrumentation_scope=SCOPE,
        )


def _context(trace_id: int, span_id: int) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _end_unix_ns(step: StepRecord) -> int:
    return step.start_unix_ns + round(step.duration_s * 1e9)
