"""OTLP bytes to rows: protobuf and JSON say the same, the tenant is stamped, and what cannot be kept is named."""

import json
from collections.abc import Callable

import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from mfu_sdk.provider.receive.otlp import UndecodableError, decode_metrics, decode_traces, in_words

NOW = 1_780_000_200 * 10**9
DAY = 86_400 * 10**9


def request(change: Callable[[Span], None] = lambda span: None) -> ExportTraceServiceRequest:
    made = ExportTraceServiceRequest()
    group = made.resource_spans.add()
    for key, value in (("service.name", "gpt"), ("mfu.tenant.id", "somebody else")):
        group.resource.attributes.add(key=key).value.string_value = value
    scoped = group.scope_spans.add()
    scoped.scope.name = "mfu_sdk"
    span = scoped.spans.add(
        name="mfu.window",
        kind=Span.SPAN_KIND_INTERNAL,
        trace_id=bytes(range(16)),
        span_id=bytes(range(8)),
        start_time_unix_nano=NOW - 10,
        end_time_unix_nano=NOW + 20,
    )
    change(span)
    return made


def test_tenant_is_stamped() -> None:
    """The credential's tenant replaces whatever the client said."""
    [row] = decode_traces(request().SerializeToString(), "protobuf", "acme", NOW).rows
    assert row.resource == {"service.name": "gpt", "mfu.tenant.id": "acme"}
    assert (row.name, row.kind, row.service, row.scope_name) == ("mfu.window", "Internal", "gpt", "mfu_sdk")
    assert (row.start_unix_ns, row.duration_ns) == (NOW - 10, 30)
    assert (row.trace_id, row.span_id) == ("000102030405060708090a0b0c0d0e0f", "0001020304050607")


def test_json_says_the_same() -> None:
    """A request in OTLP's JSON, its ids in hexadecimal, gives the rows of the same request in protobuf."""

    def change(span: Span) -> None:
        span.parent_span_id = b"\xff" * 8
        span.attributes.add(key="mfu.model.flop").value.double_value = 1.5e19
        span.links.add(trace_id=b"\x01" * 16, span_id=b"\x02" * 8)
        span.events.add(name="e", time_unix_nano=NOW)

    made = request(change)
    asked = json.loads(json_format.MessageToJson(made))
    span = asked["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    span |= {"traceId": "000102030405060708090A0B0C0D0E0F", "spanId": "0001020304050607", "kind": 1}
    span["parentSpanId"] = "ff" * 8
    span["links"][0] |= {"traceId": "01" * 16, "spanId": "02" * 8}
    span["aFieldOfTomorrow"] = {}
    decoded = decode_traces(json.dumps(asked).encode(), "json", "acme", NOW)
    assert decoded == decode_traces(made.SerializeToString(), "protobuf", "acme", NOW)
    assert decoded.rows[0].attributes == {"mfu.model.flop": "15000000000000000000"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda span: span.ClearField("trace_id"), "without a trace id"),
        (lambda span: setattr(span, "trace_id", bytes(16)), "without a trace id"),
        (lambda span: setattr(span, "span_id", b"short"), "without a span id"),
        (lambda span: setattr(span, "end_time_unix_nano", NOW - 11), "ends before it starts"),
        (lambda span: setattr(span, "start_time_unix_nano", 0), "starts more than 366 days ago"),
        (lambda span: setattr(span, "start_time_unix_nano", NOW - 367 * DAY), "starts more than 366 days ago"),
        (
            lambda span: (
                setattr(span, "end_time_unix_nano", NOW + 3 * DAY),
                setattr(span, "start_time_unix_nano", NOW + 2 * DAY),
            ),
            "or a day ahead",
        ),
    ],
)
def test_rejected_spans(change: Callable[[Span], None], reason: str) -> None:
    """A span that cannot be told apart or put in time is rejected, with the reason; its neighbours are kept."""
    made = request(change)
    made.resource_spans.extend(request().resource_spans)
    decoded = decode_traces(made.SerializeToString(), "protobuf", "acme", NOW)
    assert (len(decoded.rows), decoded.rejected) == (1, 1)
    assert reason in in_words(decoded.rejections)


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"\xff\xff\xff", "protobuf"),
        (b"{", "json"),
        (b"[]", "json"),
        (b'{"resourceSpans": 3}', "json"),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]}', "json"),
        (b'{"resourceSpans": [1]}', "json"),
        (b'{"resourceSpans": [{"resource": {"attributes": [{"key": "k", "value": 3}]}}]}', "json"),
        (b"\x80abc", "json"),
        (b"[" * 100_000, "json"),
    ],
)
def test_undecodable(body: bytes, encoding: str) -> None:
    """What is no request in its encoding is one error of ours, in one line."""
    with pytest.raises(UndecodableError) as caught:
        decode_traces(body, encoding, "acme", NOW)  # type: ignore[arg-type]  # a parameter is a plain string
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    """Whatever comes is decoded or refused, never anything else."""
    for decode in (decode_traces, decode_metrics):
        for encoding in ("protobuf", "json"):
            try:
                decode(body, encoding, "acme", NOW)
            except UndecodableError:
                continue


KEYS = [
    "resourceSpans",
    "scopeSpans",
    "spans",
    "resource",
    "attributes",
    "value",
    "traceId",
    "startTimeUnixNano",
    "key",
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3))
def test_any_json(asked: dict[str, object]) -> None:
    """JSON of any shape is decoded or refused, never anything else."""
    try:
        decode_traces(json.dumps(asked).encode(), "json", "acme", NOW)
    except UndecodableError:
        return


def value(**kind: object) -> AnyValue:
    return AnyValue(**kind)  # type: ignore[arg-type]  # the kind of a value is a parameter here


@pytest.mark.parametrize(
    ("given_value", "text"),
    [
        (value(string_value="a b"), "a b"),
        (value(bool_value=True), "true"),
        (value(int_value=-(2**63)), "-9223372036854775808"),
        (value(double_value=0.1), "0.1"),
        (value(double_value=1e300), "1e300"),
        (value(bytes_value=b"\x00\xff"), "AP8="),
        (value(), ""),
        (value(array_value={"values": [value(int_value=1), value(string_value="é")]}), '[1,"é"]'),
        (value(kvlist_value={"values": [{"key": "k", "value": value(bool_value=False)}]}), '{"k":false}'),
    ],
)
def test_values(given_value: AnyValue, text: str) -> None:
    """Each kind of value has one text."""
    made = request(lambda span: span.attributes.add(key="k").value.CopyFrom(given_value))
    [row] = decode_traces(made.SerializeToString(), "protobuf", "acme", NOW).rows
    assert row.attributes == {"k": text}


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_doubles_survive(number: float) -> None:
    """A double's text reads back as that double, to the last bit."""
    made = request(lambda span: setattr(span.attributes.add(key="k").value, "double_value", number))
    [row] = decode_traces(made.SerializeToString(), "protobuf", "acme", NOW).rows
    assert float(row.attributes["k"]) == number


def test_metrics() -> None:
    """Sums, gauges and histograms become points of their tables; other kinds are rejected by name."""
    made = ExportMetricsServiceRequest()
    group = made.resource_metrics.add()
    group.resource.attributes.add(key="service.name").value.string_value = "gpt"
    metrics = group.scope_metrics.add().metrics
    metrics.add(name="mfu.utilization").gauge.data_points.add(time_unix_nano=NOW, as_double=0.25)
    total = metrics.add(name="mfu.step.count", unit="{step}").sum
    total.is_monotonic, total.aggregation_temporality = True, 2
    total.data_points.add(time_unix_nano=NOW, start_time_unix_nano=NOW - DAY, as_int=7)
    duration = metrics.add(name="mfu.step.duration").histogram.data_points.add(time_unix_nano=NOW, count=3, sum=1.5)
    duration.bucket_counts.extend([1, 2])
    duration.explicit_bounds.extend([0.5])
    metrics.add(name="old").summary.data_points.add(time_unix_nano=NOW)
    metrics.add(name="late").gauge.data_points.add(time_unix_nano=NOW - 400 * DAY, as_double=1.0)
    decoded = decode_metrics(made.SerializeToString(), "protobuf", "acme", NOW)
    assert [row.table for row in decoded.rows] == ["gauge", "sum", "histogram"]
    gauge, steps, histogram = (row.columns for row in decoded.rows)
    assert (gauge["MetricName"], gauge["Value"], gauge["ResourceAttributes"]["mfu.tenant.id"]) == (
        "mfu.utilization",
        0.25,
        "acme",
    )
    assert (steps["Value"], steps["IsMonotonic"], steps["StartTimeUnix"]) == (
        7.0,
        True,
        "2026-05-27T20:30:00.000000000Z",
    )
    assert (histogram["Count"], histogram["BucketCounts"], histogram["ExplicitBounds"]) == (3, [1, 2], [0.5])
    assert decoded.rejections == {
        "summary points are not kept, only sums, gauges and histograms": 1,
        "a point more than 366 days old or a day ahead": 1,
    }
