"""Records into spans, built after the fact: no live span object ever exists on the step path.

Every attribute is one of `semconv.ATTRIBUTES`, of the type that is registered there; what is not known is left out.
FLOPs are doubles: 2^63 of them pass in hours, and an integer beyond that fails the whole request.
"""

from collections.abc import Iterator

from mfu_sdk import semconv
from mfu_sdk.export import identity, step_fields
from mfu_sdk.export.attributes import attributes
from mfu_sdk.export.encode import Common, Layered, Span
from mfu_sdk.export.identity import Ids
from mfu_sdk.export.sampling import Kept
from mfu_sdk.export.signals import UNSEEN, Signals
from mfu_sdk.export.totals import Totals
from mfu_sdk.export.windows import Sums, Window
from mfu_sdk.records import DriftEvent, Peaks, Rate, RunIdentity, RunSummary, StepRecord
from mfu_sdk.requests import InferenceRecord
from mfu_sdk.settings import GenAi


class Spans:
    """Makes the spans of one process. Pure but for inference ids, which come from the operating system."""

    def __init__(self, who: RunIdentity, gen_ai: GenAi = "off") -> None:
        self._who = who
        self._gen_ai: GenAi = gen_ai
        self._ids = Ids.of(who)
        self._run = self._ids.run_trace(), self._ids.run_span()
        # The window of the last step, its trace and its span: the next step is most often its child too.
        self._last: tuple[Window, int, int] | None = None
        # What the last step had in common with others, and of which values that is made.
        self._common: tuple[tuple[object, ...], Common] | None = None

    def step(self, step: StepRecord, window: Window, kept: Kept) -> Span:
        """The span of one step, a child of its window's.

        A reader adds up FLOPs over the spans that have both model and available FLOPs; a step that was not timed has
        no available ones here. Tokens, samples and requests add up over every span without `error.type`. Either way
        a span weighs 1 / `mfu.sample.ratio`, and nothing where it has no ratio.
        """
        if self._last is None or self._last[0] is not window:
            self._last = window, *self._of(window)
        _, trace_id, window_id = self._last
        alike, common = step_fields.alike(step, kept), self._common
        if common is None or common[0] != alike:
            common = self._common = alike, step_fields.common(alike)
        return Span(
            semconv.SPAN_STEP,
            trace_id,
            self.step_id(step),
            window_id,
            step.start_unix_ns,
            step.start_unix_ns + round(step.duration_s * 1e9),
            Layered(common[1], step_fields.own(step)),
            (),
            step.error_type is not None,
        )

    def step_id(self, step: StepRecord) -> int:
        """The span id of one step."""
        return self._ids.step_span(step)

    def window(self, window: Window, total: Sums, seen: Signals = UNSEEN) -> Span:
        """The span of one window, linked to the run's: its steps' sums `total` and arrays, and what else was `seen`."""
        shared = window.denominator
        return Span(
            semconv.SPAN_WINDOW,
            *self._of(window),
            None,
            window.start_unix_ns,
            window.end_unix_ns,
            links=(self._run,),
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
                    semconv.EXPECTED_LOW: total.expected_low_mfu,
                    semconv.EXPECTED_HIGH: total.expected_high_mfu,
                    semconv.EXPECTED_FEASIBLE: total.expected_feasible_mfu,
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
                    semconv.STEP_COMM_TIME: seen.comm_s,
                    semconv.STEP_SKEW_TIME: seen.skew_s,
                    semconv.STEP_HOST_TIME: seen.host_s,
                    semconv.COMM_BYTES: seen.comm_bytes,
                    semconv.COMM_BUS_RATE: seen.bus_bytes_per_s,
                    semconv.COMM_BUS_RATE_PEAK: seen.bus_peak_bytes_per_s,
                    semconv.COMM_IDEAL_RATIO: seen.ideal_ratio,
                    semconv.PEAK_MEMORY_RATE: seen.memory_bytes_per_s,
                    semconv.CLOCK_RATIO: seen.clock_ratio,
                    semconv.THROTTLE_REASONS: seen.throttled,
                    semconv.WITNESS_UTILIZATION: seen.witness,
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

    def run(self, summary: RunSummary, totals: Totals, end_unix_ns: int, error_type: str | None) -> Span:
        """The span of the run, at its end. Its sums are those of the windows that were made, so they agree.

        So are the seconds of waiting, where each of these windows knows its own; else they are those of the run's
        waterfall, for which some steps stand for all.
        """
        went = {bar.name: bar.seconds for bar in summary.bars}
        return Span(
            semconv.SPAN_RUN,
            *self._run,
            None,
            self._who.start_unix_ns,
            end_unix_ns,
            failed=error_type is not None,
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
                    semconv.STEP_DATA_TIME: _first(totals.data_wait_s, went.get("data_wait")),
                    semconv.STEP_COMM_TIME: _first(totals.comm_s, went.get("exposed_communication")),
                    semconv.STEP_SKEW_TIME: _first(totals.skew_s, went.get("rank_skew")),
                    semconv.STEP_HOST_TIME: _first(totals.host_s, went.get("host_gap")),
                    semconv.TOKEN_COUNT: totals.tokens,
                    semconv.RUN_STEP_COUNT: summary.steps,
                    semconv.RUN_OVERHEAD: summary.overhead_s,
                    semconv.ERROR_TYPE: error_type,
                },
            ),
        )

    def inference(self, request: InferenceRecord, kept: Kept) -> Iterator[Span]:
        """The span of one request and its phases': the caller's child, or without a caller the root of its own trace.

        The request's name stays here: a function's name says more than a provider needs.
        """
        trace_id, parent_id = identity.random_trace_id(), None
        if request.parent_trace_id and request.parent_span_id:
            trace_id, parent_id = request.parent_trace_id, request.parent_span_id
        own_id = identity.random_span_id()
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
                semconv.GEN_AI_REQUEST_MODEL: self._who.model_name,
                semconv.GEN_AI_INPUT_TOKENS: request.input_tokens,
                semconv.GEN_AI_OUTPUT_TOKENS: request.output_tokens,
            }
        yield Span(
            semconv.SPAN_INFERENCE,
            trace_id,
            own_id,
            parent_id,
            request.start_unix_ns,
            request.start_unix_ns + round(request.duration_s * 1e9),
            failed=request.error_type is not None,
            attributes=attributes("inference", values),
        )
        for phase in request.phases:
            if phase.phase not in ("prefill", "decode"):
                continue
            start_unix_ns = request.start_unix_ns + round(phase.start_s * 1e9)
            yield Span(
                semconv.SPAN_PREFILL if phase.phase == "prefill" else semconv.SPAN_DECODE,
                trace_id,
                identity.random_span_id(),
                own_id,
                start_unix_ns,
                start_unix_ns + round(phase.duration_s * 1e9),
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

    def drift(self, event: DriftEvent, end_unix_ns: int) -> Span:
        """The span of an excursion, a child of the run's, from its onset to `end_unix_ns`."""
        return Span(
            semconv.SPAN_DRIFT,
            self._ids.run_trace(),
            self._ids.drift_span(event),
            self._ids.run_span(),
            event.onset_unix_ns,
            max(end_unix_ns, event.onset_unix_ns),
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

    def calibration(self, peaks: Peaks, start_unix_ns: int, end_unix_ns: int) -> Iterator[Span]:
        """One span for each dtype whose peak was just measured, children of the run's."""
        # What an earlier calibration found is in the same peaks, and was reported then.
        measured: list[tuple[str | None, Rate | None]] = [
            (dtype, rate) for dtype, rate in peaks.achievable.items() if rate.age_s == 0
        ]
        state = peaks.state
        # Where only the memory was measured, that is still a calibration.
        for dtype, rate in measured or [(None, None)]:
            clock_mhz = state.get(f"{dtype}_clock_mhz")
            run_trace, run_span = self._run
            yield Span(
                semconv.SPAN_CALIBRATION,
                run_trace,
                self._ids.calibration_span(dtype, start_unix_ns),
                run_span,
                start_unix_ns,
                end_unix_ns,
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

    def _of(self, window: Window) -> tuple[int, int]:
        """Its trace, and its own span."""
        return self._ids.window_trace(window.slot), self._ids.window_span(window.slot, window.first)


def _first(one: float | None, other: float | None) -> float | None:
    return other if one is None else one
