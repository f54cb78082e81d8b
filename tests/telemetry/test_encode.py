"""Our encoding of spans against OpenTelemetry's own, and through a collector of other make."""

import struct
import subprocess
import threading
from pathlib import Path

import pytest
import rotel
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, SpanContext, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from mfu_sdk.export.encode import Envelope, Span, encode
from mfu_sdk.export.logs import sentence
from mfu_sdk.export.resource import SCOPE
from mfu_sdk.export.spans import Spans
from mfu_sdk.export.telemetry import Telemetry
from mfu_sdk.export.wire import delimited, integer, varint
from mfu_sdk.settings import Settings

from .conftest import DRIFT, EPOCH_NS, attributes_of

RESOURCE = Resource({"service.name": "gpt", "mfu.run.attempt": 2, "odd": [1.5, 2.5], "on": True}, "https://schema/1")
SPAN = Span("mfu.step", 2**127 + 1, 2**63 + 2, 3, EPOCH_NS, EPOCH_NS + 1, {"mfu.step.index": 7})


def context(trace_id, span_id):
    return SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def stock(spans):
    """The request that OpenTelemetry's own encoder makes of the same spans."""
    return encode_spans(
        [
            ReadableSpan(
                span.name,
                context=context(span.trace_id, span.span_id),
                parent=None if span.parent_id is None else context(span.trace_id, span.parent_id),
                resource=RESOURCE,
                attributes=span.attributes,
                links=[Link(context(*link)) for link in span.links],
                status=Status(StatusCode.ERROR if span.failed else StatusCode.UNSET),
                start_time=span.start_unix_ns,
                end_time=span.end_unix_ns,
                instrumentation_scope=SCOPE,
            )
            for span in spans
        ]
    )


def ours(spans):
    return ExportTraceServiceRequest.FromString(Envelope(RESOURCE).request([encode(span) for span in spans]))


def test_every_kind(every_span):
    """Every kind of span, with every attribute that it can have, is to a reader what OpenTelemetry's encoder makes."""
    assert {span.name for span in every_span} == {
        "mfu.step", "mfu.window", "mfu.run", "mfu.inference", "mfu.prefill", "mfu.decode", "mfu.calibration",
        "mfu.drift",
    }  # fmt: skip
    assert ours(every_span) == stock(every_span)


int64s = st.integers(-(2**63), 2**63 - 1)
# OpenTelemetry's encoder raises for half a surrogate pair; ours is tested below.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
values = st.one_of(
    st.floats(), int64s, texts, st.booleans(), st.lists(int64s, max_size=200), st.lists(texts, max_size=5)
)
ids = st.integers(1, 2**64 - 1)
spans = st.builds(
    Span,
    texts,
    st.integers(1, 2**128 - 1),
    ids,
    st.none() | ids,
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.dictionaries(texts.filter(bool), values, max_size=8),
    st.lists(st.tuples(st.integers(1, 2**128 - 1), ids), max_size=2).map(tuple),
    st.booleans(),
)


@given(st.lists(spans, min_size=1, max_size=4))
def test_any_span(made):
    """Whatever a span holds: the same message, in the same order, but for NaN, which no message equals."""
    assert str(ours(made)) == str(stock(made))


@given(st.integers(-(2**63), 2**64 - 1))
def test_varint(value):
    """Seven bits a byte, the lowest first; a negative number takes ten."""
    encoded = varint(value)
    assert sum((byte & 0x7F) << 7 * place for place, byte in enumerate(encoded)) == value % 2**64
    assert [byte >> 7 for byte in encoded] == [1] * (len(encoded) - 1) + [0]
    assert len(encoded) == max(1, -(-(value % 2**64).bit_length() // 7))


def test_wire():
    """The examples of protobuf's own page on its encoding, byte by byte."""
    assert integer(1, 150) == b"\x08\x96\x01"
    assert delimited(2, b"testing") == b"\x12\x07testing"
    assert delimited(3, integer(1, 150)) == b"\x1a\x03\x08\x96\x01"
    assert integer(1, -2) == b"\x08" + b"\xfe" + b"\xff" * 8 + b"\x01"


def test_requests_join():
    """Two requests, one after the other, are one request with the spans of both."""
    envelope = Envelope(RESOURCE)
    first, second = (encode(SPAN._replace(span_id=number)) for number in (1, 2))
    joined = ExportTraceServiceRequest.FromString(envelope.request([first]) + envelope.request([second]))
    both = ExportTraceServiceRequest.FromString(envelope.request([first, second]))
    sent = [span for part in joined.resource_spans for scope in part.scope_spans for span in scope.spans]
    assert sent == list(both.resource_spans[0].scope_spans[0].spans)


def test_half_a_surrogate_pair():
    """A text that is none outside of Python loses the characters that are not, and nothing else is lost with it."""
    (span,) = ours([SPAN._replace(attributes={"a": "x\ud800y", "b": 1})]).resource_spans[0].scope_spans[0].spans
    assert attributes_of(span.attributes) == {"a": "x?y", "b": 1}


@pytest.mark.parametrize("change", [{"trace_id": 2**128}, {"span_id": -1}, {"parent_id": 2**64}, {"start_unix_ns": -1}])
def test_no_field_holds(change):
    """An id or a time that OTLP has no room for is an error, not another id."""
    with pytest.raises((OverflowError, struct.error), match=r"too big|negative|argument"):
        encode(SPAN._replace(**change))


@pytest.fixture
def through_rotel(collector, free_port, tmp_path):
    """The URLs, by protocol, of a rotel collector that decodes what it is sent, encodes it anew and sends it on to
    `collector`.
    """
    grpc, http = (f"127.0.0.1:{free_port()}" for _ in range(2))
    process = subprocess.Popen(
        [
            Path(rotel.__file__).parent / "rotel-agent", "start", "--otlp-grpc-endpoint", grpc,
            "--otlp-http-endpoint", http, "--exporter", "otlp", "--otlp-exporter-endpoint", collector.url,
            "--otlp-exporter-protocol", "http", "--disable-batching", "--pid-file", tmp_path / "pid",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={},
    )  # fmt: skip
    assert process.stdout is not None
    # It says so once it listens; what it says later is read too, so that the pipe never fills.
    assert any(b"Starting Rotel" in line for line in process.stdout)
    reader = threading.Thread(target=process.stdout.read)
    reader.start()
    yield {"http/protobuf": f"http://{http}", "grpc": f"http://{grpc}"}
    process.terminate()
    assert process.wait(120) is not None
    reader.join()
    process.stdout.close()


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_rotel(through_rotel, collector, identity, step, summary, protocol):
    """A collector that is not ours reads all of a run's spans, and what it passes on is what we sent."""
    telemetry = Telemetry.open(
        identity,
        Settings(spans="all"),
        env={
            "OTEL_EXPORTER_OTLP_ENDPOINT": through_rotel[protocol],
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_METRICS_EXPORTER": "none",
        },
        unix_ns=lambda: EPOCH_NS,
    )
    for index in range(40):
        telemetry.step(step(index, duration_s=0.001 * index))
    telemetry.close(summary)
    assert telemetry.flush(120.0)
    assert collector.wait_for(lambda: len(collector.spans()) == 43)
    found = {attributes_of(span.attributes)["mfu.step.index"]: span for span in collector.spans("mfu.step")}
    assert sorted(found) == list(range(40))
    assert attributes_of(found[7].attributes)["mfu.model.flop"] == 40.0
    first, _ = sorted(collector.spans("mfu.window"), key=lambda span: span.start_time_unix_nano)
    assert attributes_of(first.attributes)["mfu.window.step.durations"] == [max(1, 1000 * index) for index in range(30)]
    assert found[7].parent_span_id == first.span_id


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_rotel_logs(through_rotel, collector, identity, protocol):
    """It reads log records too, and passes them on as events, without the flags."""
    telemetry = Telemetry.open(
        identity,
        Settings(),
        env={
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": f"{through_rotel[protocol]}/v1/logs",
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        },
        unix_ns=lambda: EPOCH_NS,
    )
    telemetry.drift(DRIFT)
    assert collector.wait_for(lambda: len(collector.logs()) == 1)
    assert telemetry.stop(120.0)
    (log,) = collector.logs()
    made = Spans(identity, "off").drift(DRIFT, EPOCH_NS)
    assert (log.trace_id, log.span_id) == (made.trace_id.to_bytes(16, "big"), made.span_id.to_bytes(8, "big"))
    assert (log.severity_number, log.time_unix_nano) == (9, DRIFT.recovered_unix_ns)
    assert log.body.string_value == sentence(DRIFT)
    assert (log.event_name, log.observed_time_unix_nano) == ("mfu.drift", EPOCH_NS)
    assert attributes_of(log.attributes) == dict(made.attributes)
