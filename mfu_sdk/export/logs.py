"""Log records in OTLP: what whoever is on call must hear of before a span of it can end.

An event is a log record with a name (https://opentelemetry.io/docs/specs/otel/logs/data-model/#field-eventname). Ours
stand in the trace and the span of what they tell of, and have its attributes as far as these are known by then.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from mfu_sdk import semconv
from mfu_sdk.export.encode import Span, Value, any_value
from mfu_sdk.export.wire import FIXED64, delimited, fixed32, fixed64_tag, integer
from mfu_sdk.records import DriftEvent

Severity = Literal["INFO", "WARN"]

NUMBERS: Final[Mapping[Severity, int]] = {"INFO": 9, "WARN": 13}
"""Severities as OTLP counts them (opentelemetry/proto/logs/v1/logs.proto, `SeverityNumber`)."""

_MEASURES: Final = {
    "flop_rate": "model FLOPs a second",
    "token_rate": "tokens a second",
    "efficiency": "MFU over the expected",
}


class Log(NamedTuple):
    """One log record: plain data. Ids are whole numbers; no `body` where the attributes have to do.

    `sampled`: whether the span that the ids name is sent.
    """

    event_name: str
    trace_id: int
    span_id: int
    unix_ns: int
    observed_unix_ns: int
    severity: Severity
    body: str | None
    attributes: Mapping[str, Value]
    sampled: bool = True


def drift(event: DriftEvent, span: Span, observed_unix_ns: int) -> Log:
    """What to tell of an excursion now: a warning while it lasts, that it is over once it is. `span` is its own."""
    over = event.recovered_unix_ns is not None
    return Log(
        semconv.EVENT_DRIFT,
        span.trace_id,
        span.span_id,
        event.found_unix_ns if event.recovered_unix_ns is None else event.recovered_unix_ns,
        observed_unix_ns,
        "INFO" if over else "WARN",
        sentence(event),
        span.attributes,
    )


def sentence(event: DriftEvent) -> str:
    """The excursion for a person: which steps, how much, since when, why."""
    measure = _MEASURES.get(event.measure, event.measure)
    change = f"{abs(event.change):.1%} {'lower' if event.change < 0 else 'higher'}"
    if event.recovered_step is None:
        return f"In {event.phase}, {measure} are {change} since step {event.onset_step:,}; cause: {event.cause}."
    return (
        f"In {event.phase}, {measure} recovered at step {event.recovered_step:,}, having been {change} since step "
        f"{event.onset_step:,}; cause: {event.cause}."
    )


def encode(log: Log) -> bytes:
    """The bytes of one LogRecord message, which an `Envelope` takes as it takes spans.

    Raises `OverflowError` or `struct.error` for ids and times that no OTLP field can hold.
    """
    return b"".join(
        [
            _TIME,
            FIXED64(log.unix_ns),
            integer(2, NUMBERS[log.severity]),
            delimited(3, log.severity.encode()),
            b"" if log.body is None else delimited(5, any_value(log.body)),
            *[
                delimited(6, delimited(1, name.encode()) + delimited(2, any_value(value)))
                for name, value in log.attributes.items()
            ],
            fixed32(8, _SAMPLED) if log.sampled else b"",
            delimited(9, log.trace_id.to_bytes(16, "big")),
            delimited(10, log.span_id.to_bytes(8, "big")),
            _OBSERVED,
            FIXED64(log.observed_unix_ns),
            delimited(12, log.event_name.encode()),
        ]
    )


_TIME: Final = fixed64_tag(1)
_OBSERVED: Final = fixed64_tag(11)
# Of W3C's trace flags (https://www.w3.org/TR/trace-context/#trace-flags).
_SAMPLED: Final = 1
