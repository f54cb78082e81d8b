"""A request that is being handled: what it has shown of itself so far, and its record once it has ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mfu_sdk.records import CountSource, Phase
from mfu_sdk.requests import InferenceRecord, Outcome, PhaseRecord
from mfu_sdk.run.amounts import amount
from mfu_sdk.run.calls import Calls

if TYPE_CHECKING:
    from mfu_sdk.run.clock import Clock, Mark
    from mfu_sdk.run.demand import Demand
    from mfu_sdk.run.phases import CallShape


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a request or of a chunk; None where the caller did not tell."""

    total: int | None
    input: int | None = None
    output: int | None = None

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            None if self.total is None or other.total is None else self.total + other.total,
            _either(self.input, other.input),
            _either(self.output, other.output),
        )

    @classmethod
    def told(cls, value: object, *, chunk: bool) -> Tokens:
        """What `tokens=` gave: a whole number, or (input, output). Of a chunk, a number is one of output tokens."""
        what = "inference(tokens=…)"
        if isinstance(value, tuple) and len(value) == 2:
            came, went = amount(what, value[0]), amount(what, value[1])
            return cls(None if came is None or went is None else came + went, came, went)
        total = amount(what, value)
        return cls(total, None, total if chunk else None)


class PhaseCalls(Calls):
    """The calls of one phase of a request, and where they began and ended in the device's time."""

    __slots__ = ("end", "start")

    def __init__(self, start: Mark) -> None:
        super().__init__()
        self.start = start
        self.end = start


class Request:
    """A request that is being handled. Its calls are entered in turn, its chunks by whoever drives it."""

    __slots__ = (
        "_away_at",
        "_away_ns",
        "_first_chunk",
        "_last_chunk",
        "_left_ns",
        "_single",
        "caller",
        "chunks",
        "ended",
        "phases",
        "run",
        "start",
        "start_ns",
        "start_unix_ns",
        "streamed",
        "unknown",
    )

    def __init__(
        self, run: object, caller: tuple[int | None, int | None], start: Mark, start_ns: int, start_unix_ns: int
    ) -> None:
        # The handler's run, as who is asked whether a call is its own.
        self.run = run
        # Trace and span id of the OpenTelemetry context in which it began.
        self.caller = caller
        self.start = start
        self.start_ns = start_ns
        self.start_unix_ns = start_unix_ns
        self.ended = False
        # Whether calls of the model may have been for it that are not in `phases`.
        self.unknown = False
        self.phases: dict[Phase, PhaseCalls] = {}
        # Whether each decode call brought one token of each sequence.
        self._single = True
        # What was streamed: chunks, their tokens, and (when, tokens) of the first and when of the last with tokens.
        self.chunks: int | None = None
        self.streamed: Tokens | None = None
        self._first_chunk: tuple[int, int] | None = None
        self._last_chunk = 0
        # Time in which a consumer kept its generator waiting, in all, and up to the first and last chunk with tokens.
        self._left_ns: int | None = None
        self._away_ns = 0
        self._away_at = [0, 0]

    @property
    def prompted(self) -> bool:
        """Whether it had a prefill call."""
        return "prefill" in self.phases

    def called(
        self, phase: Phase, shape: CallShape, demand: Demand | None, start: Mark, end: Mark, *, counted: bool
    ) -> None:
        """A call of the model has ended that was its own."""
        calls = self.phases.get(phase)
        if calls is None:
            calls = self.phases[phase] = PhaseCalls(start)
        if phase == "decode":
            self._single &= shape.new == 1
        # The prompt of a later turn comes after a first token; what is timed is the first answer.
        if phase != "prefill" or "decode" not in self.phases:
            calls.end = end
        calls.enter(demand, shape.batch, counted=counted)

    def yielded(self, tokens: Tokens | None, now_ns: int) -> None:
        """Its generator hands out a chunk with so many tokens, None where nobody counts them."""
        self.chunks = (self.chunks or 0) + 1
        self._left_ns = now_ns
        if tokens is not None:
            self.streamed = tokens if self.streamed is None else self.streamed + tokens
        if (tokens.output or 0) > 0 if tokens is not None else self.phases:
            self._away_at[1] = self._away_ns
            if self._first_chunk is None:
                self._first_chunk = (now_ns, (tokens.output or 0) if tokens is not None else 0)
                self._away_at[0] = self._away_ns
            self._last_chunk = now_ns

    def resumed(self, now_ns: int) -> None:
        """Its generator is asked for the next chunk."""
        if self._left_ns is not None:
            self._away_ns += now_ns - self._left_ns
            self._left_ns = None

    def drain(self, clock: Clock) -> None:
        """Wait until the device has passed all marks of it."""
        for calls in self.phases.values():
            clock.drain(calls.end)

    def record(self, name: str, end: Ended, clock: Clock) -> InferenceRecord | None:
        """Its record; None while the device has not passed its calls."""
        spans: list[tuple[Phase, PhaseCalls, tuple[float | None, float | None]]] = [
            (phase, calls, self._span_s(calls, clock)) for phase, calls in self.phases.items()
        ]
        if any(None in span_s for *_, span_s in spans):
            return None
        demand = self._demand()
        batch_sum = sum(calls.batch_sum for calls in self.phases.values())
        model_calls = sum(calls.calls for calls in self.phases.values())
        trace_id, span_id = self.caller
        return InferenceRecord(
            name=name,
            start_unix_ns=self.start_unix_ns,
            duration_s=(end.end_ns - self.start_ns) / 1e9,
            model_flops=None if demand is None else demand.model_flops,
            hardware_flops=None if demand is None else demand.hardware_flops,
            count_source=None if demand is None else self._source(demand),
            tokens=end.tokens.total,
            batch=round(batch_sum / model_calls) if batch_sum else None,
            model_calls=model_calls,
            error_type=end.error_type,
            parent_trace_id=trace_id,
            parent_span_id=span_id,
            outcome=end.outcome,
            input_tokens=end.tokens.input,
            output_tokens=end.tokens.output,
            chunks=self.chunks,
            time_to_first_token_s=self._first_token_s(clock),
            time_per_output_token_s=self._token_s(end.tokens, clock),
            phases=tuple(
                PhaseRecord(phase, start_s or 0.0, max(0.0, (end_s or 0.0) - (start_s or 0.0)), *_flops(calls))
                for phase, calls, (start_s, end_s) in spans
                if phase != "inference"
            ),
        )

    def _demand(self) -> Demand | None:
        """What its calls asked for, where all of it is known."""
        total: Demand | None = None
        for calls in self.phases.values():
            if calls.demand is None:
                return None
            total = calls.demand if total is None else total + calls.demand
        return None if self.unknown else total

    def _source(self, demand: Demand) -> CountSource:
        return "measured" if any(calls.counted for calls in self.phases.values()) else demand.source

    def _span_s(self, calls: PhaseCalls, clock: Clock) -> tuple[float | None, float | None]:
        return clock.elapsed_s(self.start, calls.start), clock.elapsed_s(self.start, calls.end)

    def _first_token_s(self, clock: Clock) -> float | None:
        if self._first_chunk is not None:
            return (self._first_chunk[0] - self.start_ns) / 1e9
        prefill = self.phases.get("prefill")
        return None if prefill is None or self.chunks is not None else clock.elapsed_s(self.start, prefill.end)

    def _token_s(self, tokens: Tokens, clock: Clock) -> float | None:
        if self._first_chunk is not None and tokens.output is not None:
            first_ns, first_tokens = self._first_chunk
            after = tokens.output - first_tokens
            away_ns = self._away_at[1] - self._away_at[0]
            return (self._last_chunk - first_ns - away_ns) / 1e9 / after if after > 0 else None
        prefill, decode = self.phases.get("prefill"), self.phases.get("decode")
        if prefill is None or decode is None or not self._single:
            return None
        between_s = clock.elapsed_s(prefill.end, decode.end)
        return None if between_s is None else max(0.0, between_s - self._away_ns / 1e9) / decode.calls


@dataclass(frozen=True, slots=True)
class Ended:
    """How a request ended, and its tokens."""

    end_ns: int
    tokens: Tokens
    outcome: Outcome
    error_type: str | None


def outcome_of(error: BaseException | None) -> tuple[Outcome, str | None]:
    """How a request ended that raised `error`, and the class to name, of failures only."""
    if error is None:
        return "finished", None
    # By name: asyncio's and trio's are told without importing either.
    if type(error).__name__ in ("GeneratorExit", "CancelledError", "Cancelled"):
        return "cancelled", None
    return "failed", type(error).__qualname__


def _flops(calls: Calls) -> tuple[int | None, int | None, int]:
    demand = calls.demand
    if demand is None:
        return None, None, calls.calls
    return demand.model_flops, demand.hardware_flops, calls.calls


def _either(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else one + other
