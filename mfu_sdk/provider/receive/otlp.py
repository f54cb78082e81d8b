"""OTLP bytes to rows of the store: a pure function of the request, its encoding, the tenant and the time.

The protocol is OTLP 1.x (opentelemetry.io/docs/specs/otlp). Attribute values become strings as the Collector's
exporter makes them: doubles in their shortest exact form, booleans in lower case, arrays and maps as JSON.
"""

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar

from google.protobuf import json_format  # type: ignore[import-untyped]  # protobuf ships no types
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]  # protobuf ships no types
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Exemplar, HistogramDataPoint, Metric, NumberDataPoint
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from mfu_sdk import semconv
from mfu_sdk.provider.store import LogRow, PointRow, SpanEvent, SpanLink, SpanRow, timestamp

Encoding = Literal["protobuf", "json"]
R = TypeVar("R", SpanRow, PointRow, LogRow)
M = TypeVar("M", bound=Message)

# Every day is a partition of the store, so times are bounded: a year back for what is replayed, a day ahead for a
# clock that is wrong.
_OLDEST_NS: Final = 366 * 86_400 * 10**9
_NEWEST_NS: Final = 86_400 * 10**9
_ID_KEYS: Final = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})
_KINDS: Final = {0: "Unspecified", 1: "Internal", 2: "Server", 3: "Client", 4: "Producer", 5: "Consumer"}
_STATUS: Final = {Status.STATUS_CODE_UNSET: "Unset", Status.STATUS_CODE_OK: "Ok", Status.STATUS_CODE_ERROR: "Error"}


class UndecodableError(ValueError):
    """The body is not an OTLP request in the encoding that it claims; the message says why."""


@dataclass(frozen=True, slots=True)
class Decoded(Generic[R]):
    """The rows of a request, how many of its items were rejected, and why the first of those was."""

    rows: tuple[R, ...]
    rejected: int
    reason: str


def decode_traces(body: bytes, encoding: Encoding, tenant: str, now_unix_ns: int) -> Decoded[SpanRow]:
    """The spans of an ExportTraceServiceRequest, each stamped with `tenant`. Raises `UndecodableError`."""
    request = _parse(ExportTraceServiceRequest(), body, encoding)
    rows: list[SpanRow] = []
    reasons: list[str] = []
    for group in request.resource_spans:
        resource = _resource(group.resource.attributes, tenant)
        for scoped in group.scope_spans:
            for span in scoped.spans:
                reason = _wrong_span(span, now_unix_ns)
                if reason:
                    reasons.append(reason)
                else:
                    rows.append(_span_row(span, resource, scoped.scope))
    return Decoded(tuple(rows), len(reasons), reasons[0] if reasons else "")


def decode_metrics(body: bytes, encoding: Encoding, tenant: str, now_unix_ns: int) -> Decoded[PointRow]:
    """The points of an ExportMetricsServiceRequest, stamped with `tenant`. Raises `UndecodableError`.

    Sums, gauges and explicit-bucket histograms are kept; the SDK sends no others, and others are rejected.
    """
    request = _parse(ExportMetricsServiceRequest(), body, encoding)
    rows: list[PointRow] = []
    reasons: list[str] = []
    for group in request.resource_metrics:
        resource = _resource(group.resource.attributes, tenant)
        for scoped in group.scope_metrics:
            shared: dict[str, Any] = {
                "ResourceAttributes": resource,
                "ResourceSchemaUrl": group.schema_url,
                "ScopeName": scoped.scope.name,
                "ScopeVersion": scoped.scope.version,
                "ScopeAttributes": _strings(scoped.scope.attributes),
                "ScopeDroppedAttrCount": scoped.scope.dropped_attributes_count,
                "ScopeSchemaUrl": scoped.schema_url,
                "ServiceName": resource.get(semconv.SERVICE_NAME, ""),
            }
            for metric in scoped.metrics:
                named = shared | {
                    "MetricName": metric.name,
                    "MetricDescription": metric.description,
                    "MetricUnit": metric.unit,
                }
                _points(metric, named, now_unix_ns, rows, reasons)
    return Decoded(tuple(rows), len(reasons), reasons[0] if reasons else "")


def decode_logs(body: bytes, encoding: Encoding, tenant: str, now_unix_ns: int) -> Decoded[LogRow]:
    """The records of an ExportLogsServiceRequest, each stamped with `tenant`. Raises `UndecodableError`."""
    request = _parse(ExportLogsServiceRequest(), body, encoding)
    rows: list[LogRow] = []
    reasons: list[str] = []
    for group in request.resource_logs:
        resource = _resource(group.resource.attributes, tenant)
        for scoped in group.scope_logs:
            shared: dict[str, Any] = {
                "ServiceName": resource.get(semconv.SERVICE_NAME, ""),
                "ResourceSchemaUrl": group.schema_url,
                "ResourceAttributes": resource,
                "ScopeSchemaUrl": scoped.schema_url,
                "ScopeName": scoped.scope.name,
                "ScopeVersion": scoped.scope.version,
                "ScopeAttributes": _strings(scoped.scope.attributes),
            }
            for record in scoped.log_records:
                # What happened at a time that nobody knows was seen at one that somebody does.
                unix_ns = record.time_unix_nano or record.observed_time_unix_nano
                if _in_time(unix_ns, now_unix_ns):
                    rows.append(LogRow(shared | _log_columns(record, unix_ns)))
                else:
                    reasons.append("a log record more than 366 days old or a day ahead")
    return Decoded(tuple(rows), len(reasons), reasons[0] if reasons else "")


# --- bytes to messages ---------------------------------------------------------------------------------------------


def _parse(message: M, body: bytes, encoding: Encoding) -> M:
    try:
        if encoding == "protobuf":
            message.ParseFromString(body)
        else:
            # OTLP's JSON writes ids in hexadecimal where protobuf's own mapping takes base64.
            json_format.ParseDict(_with_base64_ids(_object(body)), message, ignore_unknown_fields=True)
    # Where JSON holds a number in an object's place the parser trips over its type, and where it is nested too deep
    # over the stack; both are the client's fault.
    except (DecodeError, json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UndecodableError(f"not an OTLP request in {encoding} ({' '.join(str(error).split())[:200]})") from error
    return message


def _object(body: bytes) -> dict[str, Any]:
    found = json.loads(body)
    if not isinstance(found, dict):
        raise UndecodableError("the body is no JSON object")
    return found


def _with_base64_ids(node: Any) -> Any:
    if isinstance(node, list):
        return [_with_base64_ids(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _base64(value) if key in _ID_KEYS and isinstance(value, str) else _with_base64_ids(value)
        for key, value in node.items()
    }


def _base64(text: str) -> str:
    try:
        return base64.b64encode(binascii.unhexlify(text)).decode()
    except (binascii.Error, ValueError) as error:
        raise UndecodableError(f"id {text[:40]!r} is not hexadecimal") from error


# --- messages to rows ----------------------------------------------------------------------------------------------


def _wrong_span(span: Span, now_unix_ns: int) -> str:
    if len(span.trace_id) != 16 or not any(span.trace_id):
        return "a span without a trace id of 16 bytes"
    if len(span.span_id) != 8 or not any(span.span_id):
        return "a span without a span id of 8 bytes"
    if span.end_time_unix_nano < span.start_time_unix_nano:
        return "a span that ends before it starts"
    if not _in_time(span.start_time_unix_nano, now_unix_ns):
        return "a span that starts more than 366 days ago or a day ahead"
    return ""


def _in_time(unix_ns: int, now_unix_ns: int) -> bool:
    return now_unix_ns - _OLDEST_NS <= unix_ns <= now_unix_ns + _NEWEST_NS


def _span_row(span: Span, resource: Mapping[str, str], scope: InstrumentationScope) -> SpanRow:
    return SpanRow(
        start_unix_ns=span.start_time_unix_nano,
        duration_ns=span.end_time_unix_nano - span.start_time_unix_nano,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex(),
        trace_state=span.trace_state,
        name=span.name,
        kind=_KINDS.get(span.kind, "Unspecified"),
        service=resource.get(semconv.SERVICE_NAME, ""),
        resource=resource,
        scope_name=scope.name,
        scope_version=scope.version,
        attributes=_strings(span.attributes),
        status_code=_STATUS.get(span.status.code, "Unset"),
        status_message=span.status.message,
        events=tuple(
            SpanEvent(event.time_unix_nano, event.name, _strings(event.attributes))
            for event in span.events
            if event.time_unix_nano < 2**63
        ),
        links=tuple(
            SpanLink(link.trace_id.hex(), link.span_id.hex(), link.trace_state, _strings(link.attributes))
            for link in span.links
        ),
    )


def _points(metric: Metric, named: dict[str, Any], now_unix_ns: int, rows: list[PointRow], reasons: list[str]) -> None:
    kind = metric.WhichOneof("data")
    if kind == "gauge":
        _keep("gauge", metric.gauge.data_points, named, _number, now_unix_ns, rows, reasons)
    elif kind == "sum":
        named = named | {
            "AggregationTemporality": metric.sum.aggregation_temporality,
            "IsMonotonic": metric.sum.is_monotonic,
        }
        _keep("sum", metric.sum.data_points, named, _number, now_unix_ns, rows, reasons)
    elif kind == "histogram":
        named = named | {"AggregationTemporality": metric.histogram.aggregation_temporality}
        _keep("histogram", metric.histogram.data_points, named, _histogram, now_unix_ns, rows, reasons)
    elif kind is not None:
        points = getattr(metric, kind).data_points
        reasons += [f"{metric.name}: {kind} points are not kept, only sums, gauges and histograms"] * len(points)


P = TypeVar("P", NumberDataPoint, HistogramDataPoint)


def _keep(
    table: Literal["gauge", "sum", "histogram"],
    points: Iterable[P],
    named: dict[str, Any],
    values: Callable[[P], dict[str, Any]],
    now_unix_ns: int,
    rows: list[PointRow],
    reasons: list[str],
) -> None:
    for point in points:
        if not _in_time(point.time_unix_nano, now_unix_ns):
            reasons.append("a point more than 366 days old or a day ahead")
            continue
        start_unix_ns = point.start_time_unix_nano if point.start_time_unix_nano < 2**63 else 0
        exemplars = [exemplar for exemplar in point.exemplars if exemplar.time_unix_nano < 2**63]
        rows.append(
            PointRow(
                table,
                named
                | {
                    "Attributes": _strings(point.attributes),
                    "StartTimeUnix": timestamp(start_unix_ns),
                    "TimeUnix": timestamp(point.time_unix_nano),
                    "Flags": point.flags,
                    "Exemplars.FilteredAttributes": [_strings(e.filtered_attributes) for e in exemplars],
                    "Exemplars.TimeUnix": [timestamp(e.time_unix_nano) for e in exemplars],
                    "Exemplars.Value": [_value(e) for e in exemplars],
                    "Exemplars.SpanId": [e.span_id.hex() for e in exemplars],
                    "Exemplars.TraceId": [e.trace_id.hex() for e in exemplars],
                }
                | values(point),
            )
        )


def _number(point: NumberDataPoint) -> dict[str, Any]:
    return {"Value": _value(point)}


def _histogram(point: HistogramDataPoint) -> dict[str, Any]:
    return {
        "Count": point.count,
        "Sum": point.sum,
        "BucketCounts": list(point.bucket_counts),
        "ExplicitBounds": list(point.explicit_bounds),
        "Min": point.min,
        "Max": point.max,
    }


def _value(point: NumberDataPoint | Exemplar) -> float:
    return float(point.as_int) if point.WhichOneof("value") == "as_int" else point.as_double


def _log_columns(record: LogRecord, unix_ns: int) -> dict[str, Any]:
    return {
        "Timestamp": timestamp(unix_ns),
        "TraceId": record.trace_id.hex(),
        "SpanId": record.span_id.hex(),
        # The lower eight bits are W3C's.
        "TraceFlags": record.flags & 0xFF,
        "SeverityText": record.severity_text,
        "SeverityNumber": record.severity_number & 0xFF,
        "Body": _string(record.body),
        "LogAttributes": _strings(record.attributes),
        "EventName": record.event_name,
    }


# --- attributes ----------------------------------------------------------------------------------------------------


def _resource(attributes: Iterable[KeyValue], tenant: str) -> dict[str, str]:
    # Whatever the client said of its tenant is overwritten: the credential is the only witness.
    return _strings(attributes) | {semconv.TENANT_ID: tenant}


def _strings(attributes: Iterable[KeyValue]) -> dict[str, str]:
    return {entry.key: _string(entry.value) for entry in attributes}


def _string(value: AnyValue) -> str:
    plain = _plain(value)
    if isinstance(plain, str):
        return plain
    if isinstance(plain, float):
        return repr(plain)
    return "" if plain is None else json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {entry.key: _plain(entry.value) for entry in value.kvlist_value.values}
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    return getattr(value, kind)
