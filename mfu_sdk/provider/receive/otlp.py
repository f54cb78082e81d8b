"""OTLP bytes to rows of the store: a pure function of the request, its encoding, the tenant and the time.

The protocol is OTLP 1.x (opentelemetry.io/docs/specs/otlp). Attribute values become strings as the engine writes them:
doubles in their shortest exact form, booleans in lower case, arrays and maps as JSON. Requests of spans in protobuf go
through `provider.arrivals`, which makes the same rows of them in the engine, unless it leaves one to this module.
"""

import base64
import binascii
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
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
from mfu_sdk.provider.arrivals import IMPLAUSIBLE, OLDEST_DAYS, flaws
from mfu_sdk.provider.receive.limits import OTHER, Cut, Limits
from mfu_sdk.provider.store import LogRow, PointRow, SpanEvent, SpanLink, SpanRow, timestamp

Encoding = Literal["protobuf", "json"]
R = TypeVar("R", SpanRow, PointRow, LogRow)
M = TypeVar("M", bound=Message)

_DAY_NS: Final = 86_400 * 10**9
_NO_LIMITS: Final = Limits()
_ID_KEYS: Final = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})
_KINDS: Final = {0: "Unspecified", 1: "Internal", 2: "Server", 3: "Client", 4: "Producer", 5: "Consumer"}
_STATUS: Final = {Status.STATUS_CODE_UNSET: "Unset", Status.STATUS_CODE_OK: "Ok", Status.STATUS_CODE_ERROR: "Error"}


class UndecodableError(ValueError):
    """The body is not an OTLP request in the encoding that it claims; the message says why."""


@dataclass(frozen=True, slots=True)
class Decoded(Generic[R]):
    """The rows of a request, how many of its items were rejected and why, and what of the rows was cut or renamed."""

    rows: tuple[R, ...]
    rejections: Mapping[str, int]
    notes: Mapping[str, int]

    @property
    def rejected(self) -> int:
        """How many items were rejected."""
        return sum(self.rejections.values())


def time_bounds(now_unix_ns: int, oldest_days: int = OLDEST_DAYS) -> tuple[int, int]:
    """The earliest and the latest start that a span may have: a day ahead, for a clock that is wrong."""
    return now_unix_ns - oldest_days * _DAY_NS, now_unix_ns + _DAY_NS


def in_words(counts: Mapping[str, int]) -> str:
    """Reasons and how often each was met, in one line."""
    return "; ".join(what if n == 1 else f"{what} ({n} times)" for what, n in sorted(counts.items()))


def decode_traces(
    body: bytes,
    encoding: Encoding,
    tenant: str,
    now_unix_ns: int,
    limits: Limits = _NO_LIMITS,
    beyond: Callable[[Iterable[str]], frozenset[str]] | None = None,
) -> Decoded[SpanRow]:
    """The spans of an ExportTraceServiceRequest, each stamped with `tenant`. Raises `UndecodableError`.

    `beyond` tells which names of workloads the tenant may not have any more; theirs is "other".
    """
    request = _parse(ExportTraceServiceRequest(), body, encoding)
    rows: list[SpanRow] = []
    rejections: Counter[str] = Counter()
    cut = Cut(limits.attributes)
    groups = [group for group in request.resource_spans if any(scoped.spans for scoped in group.scope_spans)]
    resources = [_resource(group.resource.attributes, tenant, cut) for group in groups]
    workloads = {name for resource in resources if (name := resource.get(semconv.WORKLOAD_NAME))}
    renamed = frozenset[str]() if beyond is None else beyond(workloads)
    for group, resource in zip(groups, resources, strict=True):
        before = len(rows)
        if resource.get(semconv.WORKLOAD_NAME) in renamed:
            resource[semconv.WORKLOAD_NAME] = OTHER
        for scoped in group.scope_spans:
            for span in scoped.spans:
                reason = _wrong_span(span, now_unix_ns, limits.span_days)
                if reason:
                    rejections[reason] += 1
                else:
                    rows.append(_span_row(span, resource, scoped.scope, cut))
                    cut.counts[IMPLAUSIBLE] += _implausible(rows[-1].attributes)
        if resource.get(semconv.WORKLOAD_NAME) == OTHER and len(rows) > before:
            cut.counts["spans kept under workload other"] += len(rows) - before
    return Decoded(tuple(rows), rejections, +cut.counts)


def decode_metrics(
    body: bytes, encoding: Encoding, tenant: str, now_unix_ns: int, limits: Limits = _NO_LIMITS
) -> Decoded[PointRow]:
    """The points of an ExportMetricsServiceRequest, stamped with `tenant`. Raises `UndecodableError`.

    Sums, gauges and explicit-bucket histograms are kept; the SDK sends no others, and others are rejected.
    """
    request = _parse(ExportMetricsServiceRequest(), body, encoding)
    rows: list[PointRow] = []
    rejections: Counter[str] = Counter()
    cut = Cut(limits.attributes)
    for group in request.resource_metrics:
        resource = _resource(group.resource.attributes, tenant, cut)
        for scoped in group.scope_metrics:
            shared: dict[str, Any] = {
                "ResourceAttributes": resource,
                "ResourceSchemaUrl": cut.value(group.schema_url),
                "ScopeName": cut.name(scoped.scope.name),
                "ScopeVersion": cut.name(scoped.scope.version),
                "ScopeAttributes": _strings(scoped.scope.attributes, cut),
                "ScopeDroppedAttrCount": scoped.scope.dropped_attributes_count,
                "ScopeSchemaUrl": cut.value(scoped.schema_url),
                "ServiceName": resource.get(semconv.SERVICE_NAME, ""),
            }
            for metric in scoped.metrics:
                named = shared | {
                    "MetricName": cut.name(metric.name),
                    "MetricDescription": cut.value(metric.description),
                    "MetricUnit": cut.name(metric.unit),
                }
                _points(metric, named, now_unix_ns, rows, rejections, cut)
    return Decoded(tuple(rows), rejections, cut.counts)


def decode_logs(
    body: bytes, encoding: Encoding, tenant: str, now_unix_ns: int, limits: Limits = _NO_LIMITS
) -> Decoded[LogRow]:
    """The records of an ExportLogsServiceRequest, each stamped with `tenant`. Raises `UndecodableError`."""
    request = _parse(ExportLogsServiceRequest(), body, encoding)
    rows: list[LogRow] = []
    rejections: Counter[str] = Counter()
    cut = Cut(limits.attributes)
    for group in request.resource_logs:
        resource = _resource(group.resource.attributes, tenant, cut)
        for scoped in group.scope_logs:
            shared: dict[str, Any] = {
                "ServiceName": resource.get(semconv.SERVICE_NAME, ""),
                "ResourceSchemaUrl": cut.value(group.schema_url),
                "ResourceAttributes": resource,
                "ScopeSchemaUrl": cut.value(scoped.schema_url),
                "ScopeName": cut.name(scoped.scope.name),
                "ScopeVersion": cut.name(scoped.scope.version),
                "ScopeAttributes": _strings(scoped.scope.attributes, cut),
            }
            for record in scoped.log_records:
                # What happened at a time that nobody knows was seen at one that somebody does.
                unix_ns = record.time_unix_nano or record.observed_time_unix_nano
                if _in_time(unix_ns, now_unix_ns):
                    rows.append(LogRow(shared | _log_columns(record, unix_ns, cut)))
                else:
                    rejections["a log record more than 366 days old or a day ahead"] += 1
    return Decoded(tuple(rows), rejections, cut.counts)


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


def _wrong_span(span: Span, now_unix_ns: int, oldest_days: int) -> str:
    no_trace, no_span, backwards, out_of_time = flaws(oldest_days)
    if len(span.trace_id) != 16 or not any(span.trace_id):
        return no_trace
    if len(span.span_id) != 8 or not any(span.span_id):
        return no_span
    if span.end_time_unix_nano < span.start_time_unix_nano:
        return backwards
    if not _in_time(span.start_time_unix_nano, now_unix_ns, oldest_days):
        return out_of_time
    return ""


def _implausible(attributes: Mapping[str, str]) -> bool:
    return _number_of(attributes, semconv.MODEL_FLOP) > _number_of(attributes, semconv.AVAILABLE_FLOP)


def _number_of(attributes: Mapping[str, str], name: str) -> float:
    text = attributes.get(name, "")
    # What the engine reads as a number too: it knows no digits of other scripts, and neither blanks nor underscores.
    if not text.isascii() or "_" in text or text != text.strip():
        return math.nan
    try:
        return float(text)
    except ValueError:
        return math.nan


def _in_time(unix_ns: int, now_unix_ns: int, oldest_days: int = OLDEST_DAYS) -> bool:
    oldest, newest = time_bounds(now_unix_ns, oldest_days)
    return oldest <= unix_ns <= newest


def _span_row(span: Span, resource: Mapping[str, str], scope: InstrumentationScope, cut: Cut) -> SpanRow:
    return SpanRow(
        start_unix_ns=span.start_time_unix_nano,
        duration_ns=span.end_time_unix_nano - span.start_time_unix_nano,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id[:8].hex(),
        trace_state=cut.value(span.trace_state),
        name=cut.name(span.name),
        kind=_KINDS.get(span.kind, "Unspecified"),
        service=resource.get(semconv.SERVICE_NAME, ""),
        resource=resource,
        scope_name=cut.name(scope.name),
        scope_version=cut.name(scope.version),
        attributes=_strings(span.attributes, cut),
        status_code=_STATUS.get(span.status.code, "Unset"),
        status_message=cut.value(span.status.message),
        events=tuple(
            SpanEvent(event.time_unix_nano, cut.name(event.name), _strings(event.attributes, cut))
            for event in span.events
            if event.time_unix_nano < 2**63
        ),
        links=tuple(
            SpanLink(
                link.trace_id[:16].hex(),
                link.span_id[:8].hex(),
                cut.value(link.trace_state),
                _strings(link.attributes, cut),
            )
            for link in span.links
        ),
    )


def _points(
    metric: Metric,
    named: dict[str, Any],
    now_unix_ns: int,
    rows: list[PointRow],
    rejections: Counter[str],
    cut: Cut,
) -> None:
    kind = metric.WhichOneof("data")
    if kind == "gauge":
        _keep("gauge", metric.gauge.data_points, named, _number, now_unix_ns, rows, rejections, cut)
    elif kind == "sum":
        named = named | {
            "AggregationTemporality": metric.sum.aggregation_temporality,
            "IsMonotonic": metric.sum.is_monotonic,
        }
        _keep("sum", metric.sum.data_points, named, _number, now_unix_ns, rows, rejections, cut)
    elif kind == "histogram":
        named = named | {"AggregationTemporality": metric.histogram.aggregation_temporality}
        _keep("histogram", metric.histogram.data_points, named, _histogram, now_unix_ns, rows, rejections, cut)
    elif kind is not None and (points := getattr(metric, kind).data_points):
        rejections[f"{kind} points are not kept, only sums, gauges and histograms"] += len(points)


P = TypeVar("P", NumberDataPoint, HistogramDataPoint)


def _keep(
    table: Literal["gauge", "sum", "histogram"],
    points: Iterable[P],
    named: dict[str, Any],
    values: Callable[[P], dict[str, Any]],
    now_unix_ns: int,
    rows: list[PointRow],
    rejections: Counter[str],
    cut: Cut,
) -> None:
    for point in points:
        if not _in_time(point.time_unix_nano, now_unix_ns):
            rejections["a point more than 366 days old or a day ahead"] += 1
            continue
        start_unix_ns = point.start_time_unix_nano if point.start_time_unix_nano < 2**63 else 0
        exemplars = [exemplar for exemplar in point.exemplars if exemplar.time_unix_nano < 2**63]
        rows.append(
            PointRow(
                table,
                named
                | {
                    "Attributes": _strings(point.attributes, cut),
                    "StartTimeUnix": timestamp(start_unix_ns),
                    "TimeUnix": timestamp(point.time_unix_nano),
                    "Flags": point.flags,
                    "Exemplars.FilteredAttributes": [_strings(e.filtered_attributes, cut) for e in exemplars],
                    "Exemplars.TimeUnix": [timestamp(e.time_unix_nano) for e in exemplars],
                    "Exemplars.Value": [_value(e) for e in exemplars],
                    "Exemplars.SpanId": [e.span_id[:8].hex() for e in exemplars],
                    "Exemplars.TraceId": [e.trace_id[:16].hex() for e in exemplars],
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


def _log_columns(record: LogRecord, unix_ns: int, cut: Cut) -> dict[str, Any]:
    return {
        "Timestamp": timestamp(unix_ns),
        "TraceId": record.trace_id[:16].hex(),
        "SpanId": record.span_id[:8].hex(),
        # The lower eight bits are W3C's.
        "TraceFlags": record.flags & 0xFF,
        "SeverityText": cut.name(record.severity_text),
        "SeverityNumber": record.severity_number & 0xFF,
        "Body": cut.value(_string(record.body)),
        "LogAttributes": _strings(record.attributes, cut),
        "EventName": cut.name(record.event_name),
    }


# --- attributes ----------------------------------------------------------------------------------------------------


def _resource(attributes: Iterable[KeyValue], tenant: str, cut: Cut) -> dict[str, str]:
    # Whatever the client said of its tenant is overwritten: the credential is the only witness.
    return _strings(attributes, cut) | {semconv.TENANT_ID: tenant}


def _strings(attributes: Iterable[KeyValue], cut: Cut) -> dict[str, str]:
    return cut.attributes({entry.key: _string(entry.value) for entry in attributes})


def _string(value: AnyValue) -> str:
    plain = _plain(value)
    if isinstance(plain, str):
        return plain
    if isinstance(plain, float):
        return double_text(plain)
    return "" if plain is None else json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def double_text(value: float) -> str:
    """The fewest digits that read back as `value`, as the engine and ECMAScript place them: plain from 1e-6 to 1e21."""
    if not math.isfinite(value):
        return repr(value)
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    text, point = "".join(map(str, digits)), len(digits) + exponent
    if value == 0:
        text = "0"
    elif len(text) <= point <= 21:
        text += "0" * (point - len(text))
    elif 0 < point <= 21:
        text = f"{text[:point]}.{text[point:]}"
    elif -6 < point <= 0:
        text = f"0.{'0' * -point}{text}"
    else:
        text = f"{text[0]}{'.' if len(text) > 1 else ''}{text[1:]}e{point - 1}"
    return "-" * sign + text


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
