"""OTLP/HTTP against a real server on loopback: what it accepts is stored, and what it refuses says why."""

import gzip
import http.client
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from google.protobuf import json_format
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from mfu_sdk import semconv
from mfu_sdk.errors import StoreError
from mfu_sdk.export.telemetry import Telemetry
from mfu_sdk.provider.receive import Limits
from mfu_sdk.provider.serve import Server
from mfu_sdk.records import DriftEvent, RunIdentity
from mfu_sdk.settings import Settings
from mfu_sdk.testing import FakeClock

T0 = 1_780_000_200 * 10**9
PROTOBUF = {"Content-Type": "application/x-protobuf"}
MAX_BODY_BYTES = Limits().body_bytes
JSON = {"Content-Type": "application/json"}


@dataclass
class Provider:
    """A running server and the clock it goes by; `post` returns (status, headers, body)."""

    server: Server
    clock: FakeClock

    @property
    def url(self) -> str:
        host, port = self.server.http_address
        return f"http://{host}:{port}"

    def post(
        self, body: bytes | Sequence[bytes], headers: dict[str, str], path: str = "/v1/traces", token: str | None = "a"
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection(*self.server.http_address, timeout=120)
        try:
            bearer = {} if token is None else {"Authorization": f"Bearer {token}"}
            connection.request("POST", path, body=body, headers=headers | bearer)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def read(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        return self.server._store.query(sql, **parameters)


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    """A server with a tenant acme (token a), a tenant globex (token g) and an operator (token o)."""
    home = tmp_path_factory.mktemp("receive")
    (home / "tokens.yaml").write_text(
        "tenants: {acme: [{token: a}], globex: [{token: g}]}\noperators: {ops: [{token: o}]}\n"
    )
    clock = FakeClock(T0)
    server = Server(
        home / "data", http=("127.0.0.1", 0), web=("127.0.0.1", 0), tokens=home / "tokens.yaml", now_unix_ns=clock
    )
    ready = threading.Event()
    serving = threading.Thread(target=server.serve_until_stopped, args=(lambda addresses: ready.set(),))
    serving.start()
    try:
        assert ready.wait(120)
        yield Provider(server, clock)
    finally:
        server.stop()
        serving.join(120)
    assert not serving.is_alive()


@pytest.fixture
def request_of(request: pytest.FixtureRequest) -> Callable[..., ExportTraceServiceRequest]:
    """Makes a request of spans that this test's name tells apart."""

    def make(count: int = 1, first: int = 0) -> ExportTraceServiceRequest:
        made = ExportTraceServiceRequest()
        group = made.resource_spans.add()
        for key, value in (("service.name", request.node.name), ("mfu.tenant.id", "liar")):
            group.resource.attributes.add(key=key).value.string_value = value
        spans = group.scope_spans.add().spans
        for number in range(first, first + count):
            spans.add(
                name="mfu.window",
                trace_id=number.to_bytes(8, "big") + abs(hash(request.node.name)).to_bytes(8, "big"),
                span_id=(number + 1).to_bytes(8, "big"),
                start_time_unix_nano=T0 - 60 * 10**9 + number,
                end_time_unix_nano=T0 - 30 * 10**9 + number,
            )
        return made

    return make


@pytest.fixture
def stored(provider: Provider, request: pytest.FixtureRequest) -> Callable[[], list[dict[str, Any]]]:
    """How many spans of this test the store holds, by tenant."""

    def read() -> list[dict[str, Any]]:
        return provider.read(
            "SELECT mfu_tenant_id AS tenant, count() AS spans FROM otel.otel_traces"
            " WHERE ServiceName = {name:String} GROUP BY tenant ORDER BY tenant",
            name=request.node.name,
        )

    return read


Requests = Callable[..., ExportTraceServiceRequest]
Stored = Callable[[], list[dict[str, Any]]]


def test_protobuf(provider: Provider, request_of: Requests, stored: Stored) -> None:
    """A request in protobuf is answered in protobuf, stored under the credential's tenant whatever it claims."""
    status, headers, body = provider.post(request_of(3).SerializeToString(), PROTOBUF)
    assert (status, headers["Content-Type"]) == (200, "application/x-protobuf")
    assert ExportTraceServiceResponse.FromString(body) == ExportTraceServiceResponse()
    assert stored() == [{"tenant": "acme", "spans": 3}]


def test_json(provider: Provider, request_of: Requests, stored: Stored) -> None:
    """A request in JSON, ids in hexadecimal, is answered in JSON and stored."""
    asked = json.loads(json_format.MessageToJson(request_of()))
    asked["resourceSpans"][0]["scopeSpans"][0]["spans"][0] |= {"traceId": "ab" * 16, "spanId": "cd" * 8}
    status, headers, body = provider.post(json.dumps(asked).encode(), JSON)
    assert (status, headers["Content-Type"], json.loads(body)) == (200, "application/json", {})
    assert stored() == [{"tenant": "acme", "spans": 1}]


def test_gzip(provider: Provider, request_of: Requests, stored: Stored) -> None:
    """A packed request is unpacked."""
    packed = gzip.compress(request_of(2).SerializeToString())
    assert provider.post(packed, PROTOBUF | {"Content-Encoding": "gzip"})[0] == 200
    assert stored() == [{"tenant": "acme", "spans": 2}]


def test_retry_counts_once(provider: Provider, request_of: Requests, stored: Stored) -> None:
    """The same request twice is accepted twice and stored once."""
    body = request_of(2).SerializeToString()
    assert [provider.post(body, PROTOBUF)[0] for _ in range(2)] == [200, 200]
    assert stored() == [{"tenant": "acme", "spans": 2}]


def test_partial_success(provider: Provider, request_of: Requests, stored: Stored) -> None:
    """Spans without an id are rejected and counted, the others are kept."""
    made = request_of(3)
    made.resource_spans[0].scope_spans[0].spans[1].span_id = b""
    status, _, body = provider.post(made.SerializeToString(), PROTOBUF)
    partial = ExportTraceServiceResponse.FromString(body).partial_success
    assert (status, partial.rejected_spans) == (200, 1)
    assert partial.error_message == "a span without a span id of 8 bytes"
    assert stored() == [{"tenant": "acme", "spans": 2}]


@pytest.mark.parametrize("token", [None, "", "wrong", "b"])
def test_unknown_token(provider: Provider, request_of: Requests, stored: Stored, token: str | None) -> None:
    """Without a known token nothing is stored, loopback or not."""
    status, headers, body = provider.post(request_of().SerializeToString(), PROTOBUF, token=token)
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    assert Status.FromString(body).message == "no known token; send `Authorization: Bearer TOKEN`"
    assert stored() == []


def test_operators_read(provider: Provider, request_of: Requests, stored: Stored) -> None:
    """An operator's token sends nothing: a span has to belong to a tenant."""
    status, _, body = provider.post(request_of().SerializeToString(), PROTOBUF, token="o")
    assert (status, Status.FromString(body).message) == (403, "an operator's token reads; send with a tenant's")
    assert stored() == []


@pytest.mark.parametrize(
    ("headers", "body", "status", "message"),
    [
        ({"Content-Type": "text/plain"}, b"", 415, "content type 'text/plain': send application/x-protobuf"),
        ({}, b"", 415, "content type ''"),
        (PROTOBUF | {"Content-Encoding": "br"}, b"", 415, "content encoding 'br': send gzip, zstd or none"),
        (PROTOBUF, b"\xff\xff", 400, "not an OTLP request in protobuf"),
        (PROTOBUF | {"Content-Encoding": "gzip"}, b"plain", 400, "not gzip"),
        (
            PROTOBUF | {"Content-Encoding": "gzip"},
            gzip.compress(b"abc", mtime=0)[:-4],
            400,
            "not one whole gzip member",
        ),
        (PROTOBUF, b"x" * (MAX_BODY_BYTES + 1), 413, "more than 20971520 bytes; send smaller batches"),
    ],
)
def test_refused(provider: Provider, headers: dict[str, str], body: bytes, status: int, message: str) -> None:
    """What cannot be accepted gets the protocol's status and a google.rpc.Status that says why."""
    found, answered, reason = provider.post(body, headers)
    assert (found, answered["Content-Type"]) == (status, "application/x-protobuf")
    assert message in Status.FromString(reason).message


def test_refused_in_json(provider: Provider) -> None:
    """A request in JSON is refused in JSON."""
    status, headers, body = provider.post(b"{", JSON)
    assert (status, headers["Content-Type"], json.loads(body)["code"]) == (400, "application/json", 3)


def test_zip_bomb(provider: Provider) -> None:
    """A few bytes that unpack to more than the limit are refused, and no more than the limit is unpacked."""
    bomb = gzip.compress(bytes(MAX_BODY_BYTES * 4))
    assert len(bomb) < 100_000
    status, _, body = provider.post(bomb, PROTOBUF | {"Content-Encoding": "gzip"})
    assert (status, Status.FromString(body).message) == (
        413,
        "more than 20971520 bytes once unpacked; send smaller batches",
    )


def test_only_post(provider: Provider) -> None:
    """Nothing is read on the OTLP address."""
    connection = http.client.HTTPConnection(*provider.server.http_address, timeout=120)
    try:
        connection.request("GET", "/v1/traces")
        assert connection.getresponse().status == 405
    finally:
        connection.close()


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
def test_accepted_means_stored(
    provider: Provider,
    request_of: Requests,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    encoding: str,
) -> None:
    """When the store takes nothing the answer is one that the client retries, and tells nothing of the inside."""

    def full(*args: object) -> object:
        raise StoreError("/secret/path: no space left")

    monkeypatch.setattr(provider.server._store, "writing", full)
    if encoding == "protobuf":
        status, headers, body = provider.post(request_of().SerializeToString(), PROTOBUF)
        message = Status.FromString(body).message
    else:
        asked = json.loads(json_format.MessageToJson(request_of()))
        asked["resourceSpans"][0]["scopeSpans"][0]["spans"][0] |= {"traceId": "ab" * 16, "spanId": "cd" * 8}
        status, headers, body = provider.post(json.dumps(asked).encode(), JSON)
        message = json.loads(body)["message"]
    assert (status, headers["Retry-After"], message) == (503, "1", "the store took nothing; send it again")
    assert "no space left" in caplog.text


def test_opentelemetry_sdk(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans and metrics of the OpenTelemetry SDK's own exporters arrive, with their values."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20g")
    # The SDK stamps metrics by the machine's clock.
    now = time.time_ns()
    monkeypatch.setattr(provider.clock, "now_ns", now)
    resource = Resource.create({"service.name": "sdk", semconv.RUN_ID: "r"})
    tracing = TracerProvider(resource=resource)
    tracing.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{provider.url}/v1/traces", timeout=120)))
    span = tracing.get_tracer("mfu_sdk").start_span("mfu.window", start_time=now - 10**9)
    span.set_attribute(semconv.MODEL_FLOP, 2.5e19)
    span.set_attribute(semconv.WINDOW_STEP_DURATIONS, [3, -4])
    span.end(now)
    tracing.shutdown()
    exporter = OTLPMetricExporter(f"{provider.url}/v1/metrics", timeout=120)
    metering = MeterProvider([PeriodicExportingMetricReader(exporter, export_interval_millis=1e9)], resource)
    meter = metering.get_meter("mfu_sdk")
    meter.create_counter(semconv.METRIC_MODEL_FLOP).add(2.5e19)
    meter.create_gauge(semconv.METRIC_UTILIZATION).set(0.5)
    meter.create_histogram(semconv.METRIC_STEP_DURATION).record(0.25)
    metering.shutdown()
    assert provider.read(
        "SELECT mfu_tenant_id AS tenant, mfu_run_id AS run, mfu_model_flop AS flop, Duration AS ns,"
        " JSONExtract(SpanAttributes['mfu.window.step.durations'], 'Array(Int64)') AS us"
        " FROM otel.otel_traces WHERE ServiceName = 'sdk'"
    ) == [{"tenant": "globex", "run": "r", "flop": 2.5e19, "ns": 10**9, "us": [3, -4]}]
    for table, name, value in (
        ("sum", semconv.METRIC_MODEL_FLOP, "Value"),
        ("gauge", semconv.METRIC_UTILIZATION, "Value"),
        ("histogram", semconv.METRIC_STEP_DURATION, "Sum"),
    ):
        assert provider.read(
            f"SELECT MetricName AS name, ResourceAttributes['mfu.tenant.id'] AS tenant, {value} AS value"
            f" FROM otel.otel_metrics_{table}"
        ) == [{"name": name, "tenant": "globex", "value": {"sum": 2.5e19, "gauge": 0.5, "histogram": 0.25}[table]}]


def test_drift(provider: Provider) -> None:
    """What a run tells of an excursion, when it is found and when it has recovered, is stored under its tenant."""
    event = DriftEvent(
        kind="drop", phase="train", measure="flop_rate", change=-0.25, baseline=0.4, current=0.3, onset_step=500,
        onset_unix_ns=T0 - 9 * 10**9, found_step=560, found_unix_ns=T0 - 6 * 10**9, score=1.5, threshold=1e10,
        detector="betting-sr/1", cause="configuration_drift", evidence=("batch: 32 → 16",),
    )  # fmt: skip
    identity = RunIdentity("run", 0, "drifting", None, 0, 0, 1, "cpu", None, None, T0)
    settings = Settings(provider=Settings.from_env({
        "MFU_PROVIDER_ENDPOINT": provider.url, "MFU_PROVIDER_HEADERS": "authorization=Bearer%20g",
    }).provider)  # fmt: skip
    telemetry = Telemetry.open(identity, settings, env={}, unix_ns=lambda: T0)
    assert telemetry is not None
    telemetry.drift(event)
    telemetry.drift(replace(event, recovered_step=800, recovered_unix_ns=T0 - 3 * 10**9))
    assert telemetry.flush(120.0)
    assert telemetry.dropped == {}
    telemetry.stop(120.0)
    rows = provider.read(
        "SELECT SeverityText AS severity, EventName AS name, toUnixTimestamp64Nano(Timestamp) AS ns, Body AS body,"
        " LogAttributes['mfu.drift.cause'] AS cause, LogAttributes['mfu.drift.evidence'] AS evidence, SpanId AS span,"
        " ResourceAttributes['mfu.tenant.id'] AS tenant FROM otel.otel_logs WHERE ServiceName = 'drifting' ORDER BY ns"
    )
    spans = provider.read("SELECT SpanId AS span FROM otel.otel_traces WHERE SpanName = 'mfu.drift'")
    told = {"name": "mfu.drift", "body": "", "cause": "configuration_drift", "evidence": "", "tenant": "globex"}
    assert rows == [
        {**told, "severity": "WARN", "ns": T0 - 6 * 10**9, "span": spans[0]["span"]},
        {**told, "severity": "INFO", "ns": T0 - 3 * 10**9, "span": spans[0]["span"]},
    ]


def test_logs_in_json(provider: Provider) -> None:
    """Log records in JSON are stored too; what is too old is said to be, and nothing else is lost with it."""
    made = {
        "resourceLogs": [{
            "scopeLogs": [{
                "logRecords": [
                    {"timeUnixNano": str(T0), "traceId": "0af7651916cd43dd8448eb211c80319c", "severityNumber": 9},
                    {"timeUnixNano": "5"},
                ]
            }]
        }]
    }  # fmt: skip
    status, _, body = provider.post(json.dumps(made).encode(), JSON, path="/v1/logs")
    assert status == 200
    assert json.loads(body)["partialSuccess"]["rejectedLogRecords"] == "1"
    assert provider.read(
        "SELECT SeverityNumber AS n FROM otel.otel_logs WHERE TraceId = '0af7651916cd43dd8448eb211c80319c'"
    ) == [{"n": 9}]


def test_numbers_that_are_none(provider: Provider) -> None:
    """A point that is not a number, or infinite, is stored as it is and fails nothing."""
    made = ExportMetricsServiceRequest()
    points = made.resource_metrics.add().scope_metrics.add().metrics.add(name="odd").gauge.data_points
    for value in (math.nan, math.inf, -math.inf, 1.5):
        points.add(time_unix_nano=T0, as_double=value)
    status, _, _ = provider.post(made.SerializeToString(), PROTOBUF, path="/v1/metrics")
    assert status == 200
    [row] = provider.read(
        "SELECT count() AS n, countIf(isNaN(Value)) AS nan, countIf(isInfinite(Value)) AS inf"
        " FROM otel.otel_metrics_gauge WHERE MetricName = 'odd'"
    )
    assert row == {"n": 4, "nan": 1, "inf": 2}
