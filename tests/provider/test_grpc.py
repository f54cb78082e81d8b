"""OTLP/gRPC, TLS and limits against a real server on loopback: what OpenTelemetry's own exporters send is stored."""

import gzip
import json
import shutil
import ssl
import subprocess
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import zstandard
from click.testing import CliRunner
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogs
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

from mfu_sdk import semconv
from mfu_sdk.cli import main
from mfu_sdk.errors import ConfigurationError, PortInUseError
from mfu_sdk.provider.arrivals import AttributeLimits
from mfu_sdk.provider.receive import Limits
from mfu_sdk.provider.receive.grpc import GrpcServer
from mfu_sdk.provider.serve import Server
from mfu_sdk.testing import FakeClock

NOW = time.time_ns()
TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
LIMITS = Limits(
    body_bytes=100_000,
    attributes=AttributeLimits(count=6, name=40, value=40),
    workloads=2,
    spans_per_s=100.0,
)


@dataclass
class Provider:
    """A running server with TLS on all addresses, and the clock of its rates."""

    server: Server
    clock: FakeClock
    certificate: Path

    @property
    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))

    def channel(self) -> grpc.Channel:
        assert self.server.grpc_address is not None
        trusted = grpc.ssl_channel_credentials(self.certificate.read_bytes())
        return grpc.secure_channel(f"localhost:{self.server.grpc_address[1]}", trusted)

    def export(self, body: bytes, token: str | None = "a", compression: Any = None) -> ExportTraceServiceResponse:
        with self.channel() as channel:
            call = channel.unary_unary(TRACES)
            metadata = [] if token is None else [("authorization", f"Bearer {token}")]
            answer = call(body, metadata=metadata, compression=compression, timeout=300)
            return ExportTraceServiceResponse.FromString(answer)

    def post(self, body: bytes, token: str = "a", **headers: str) -> tuple[int, dict[str, str], bytes]:
        url = f"https://localhost:{self.server.http_address[1]}/v1/traces"
        asked = {"Content-Type": "application/x-protobuf", "Authorization": f"Bearer {token}"}
        asked |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, body, asked), context=self.context, timeout=300
            ) as found:
                return found.status, dict(found.headers), found.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()

    def stored(self, service: str) -> list[dict[str, Any]]:
        return self.server._store.query(
            "SELECT mfu_tenant_id AS tenant, mfu_workload_name AS workload, SpanName AS name,"
            " SpanAttributes AS attributes"
            " FROM otel.otel_traces WHERE ServiceName = {service:String} ORDER BY Timestamp, SpanId",
            service=service,
        )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of localhost, signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    home = tmp_path_factory.mktemp("tls")
    made, key = home / "certificate.pem", home / "key.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(made)]
    subprocess.run(["openssl", *command.split(), *names], check=True, capture_output=True)
    return made, key


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory, certificate: tuple[Path, Path]) -> Iterator[Provider]:
    """A server with tight limits, tenants acme (a), globex (g), initech (i) and an operator (o)."""
    home = tmp_path_factory.mktemp("grpc")
    (home / "tokens.yaml").write_text(
        "tenants: {acme: [{token: a}], globex: [{token: g}], initech: [{token: i}]}\noperators: {ops: [{token: o}]}\n"
    )
    clock = FakeClock()
    any_port = ("127.0.0.1", 0)
    server = Server(
        home / "data", http=any_port, web=any_port, grpc=any_port, tokens=home / "tokens.yaml", tls=certificate,
        limits=LIMITS, now_unix_ns=lambda: NOW, clock=lambda: clock.now_ns / 1e9,
    )  # fmt: skip
    ready = threading.Event()
    serving = threading.Thread(target=server.serve_until_stopped, args=(lambda addresses: ready.set(),))
    serving.start()
    try:
        assert ready.wait(120)
        yield Provider(server, clock, certificate[0])
    finally:
        server.stop()
        serving.join(120)
    assert not serving.is_alive()


@pytest.fixture(autouse=True)
def _rested(provider: Provider) -> None:
    """A minute later: nobody owes anything."""
    provider.clock.advance(60.0)


@pytest.fixture
def service(request: pytest.FixtureRequest) -> str:
    """A service of this test's own."""
    return str(request.node.name)


@pytest.fixture
def request_of(service: str) -> Callable[..., ExportTraceServiceRequest]:
    """Makes a request of spans of this test's service."""
    # Tests share a tenant, and a span of the same ids is the same span.
    first = [zlib.crc32(service.encode()) << 16 | 1]

    def make(spans: int = 1, workload: str = "") -> ExportTraceServiceRequest:
        made = ExportTraceServiceRequest()
        group = made.resource_spans.add()
        group.resource.attributes.add(key="service.name").value.string_value = service
        if workload:
            group.resource.attributes.add(key=semconv.WORKLOAD_NAME).value.string_value = workload
        scoped = group.scope_spans.add()
        for number in range(first[0], first[0] + spans):
            scoped.spans.add(
                name="mfu.window",
                trace_id=number.to_bytes(16, "big"),
                span_id=number.to_bytes(8, "big"),
                start_time_unix_nano=NOW - 10**9 + number % 65_536,
                end_time_unix_nano=NOW,
            )
        first[0] += spans
        return made

    return make


Requests = Callable[..., ExportTraceServiceRequest]


def exporters(provider: Provider) -> dict[str, Callable[[], SpanExporter]]:
    assert provider.server.grpc_address is not None
    trusted = grpc.ssl_channel_credentials(provider.certificate.read_bytes())
    at = f"localhost:{provider.server.grpc_address[1]}"
    url = f"https://localhost:{provider.server.http_address[1]}/v1/traces"
    bearer = {"authorization": "Bearer g"}
    return {
        "grpc": lambda: GrpcSpans(at, credentials=trusted, headers=bearer, timeout=300),
        "grpc-gzip": lambda: GrpcSpans(
            at, credentials=trusted, headers=bearer, timeout=300, compression=grpc.Compression.Gzip
        ),
        "http": lambda: HttpSpans(url, str(provider.certificate), headers=bearer, timeout=300),
        "http-gzip": lambda: HttpSpans(
            url, str(provider.certificate), headers=bearer, timeout=300, compression=Compression.Gzip
        ),
    }


@pytest.mark.parametrize("how", ["grpc", "grpc-gzip", "http", "http-gzip"])
def test_opentelemetry_exporters(provider: Provider, service: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans of OpenTelemetry's exporters arrive over both protocols, packed and not, through TLS."""
    # requests takes these for the certificate that it was given.
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    tracing = TracerProvider(resource=Resource({"service.name": service}))
    tracing.add_span_processor(SimpleSpanProcessor(exporters(provider)[how]()))
    span = tracing.get_tracer("mfu_sdk").start_span("mfu.window", start_time=NOW - 10**9)
    span.set_attribute(semconv.MODEL_FLOP, 2.5e14)
    span.end(NOW)
    tracing.shutdown()
    assert provider.stored(service) == [
        {
            "tenant": "globex",
            "workload": "",
            "name": "mfu.window",
            "attributes": {semconv.MODEL_FLOP: "250000000000000"},
        }
    ]


def test_metrics(provider: Provider) -> None:
    """Metrics over gRPC reach their tables."""
    assert provider.server.grpc_address is not None
    trusted = grpc.ssl_channel_credentials(provider.certificate.read_bytes())
    at = f"localhost:{provider.server.grpc_address[1]}"
    exporter = GrpcMetrics(at, credentials=trusted, headers={"authorization": "Bearer g"}, timeout=300)
    metering = MeterProvider([PeriodicExportingMetricReader(exporter, export_interval_millis=1e9)])
    metering.get_meter("mfu_sdk").create_gauge(semconv.METRIC_UTILIZATION).set(0.5)
    metering.shutdown()
    assert provider.server._store.query("SELECT MetricName AS name, Value AS value FROM otel.otel_metrics_gauge") == [
        {"name": semconv.METRIC_UTILIZATION, "value": 0.5}
    ]


def test_logs(provider: Provider) -> None:
    """Log records over gRPC reach their table, stamped with the token's tenant."""
    assert provider.server.grpc_address is not None
    trusted = grpc.ssl_channel_credentials(provider.certificate.read_bytes())
    at = f"localhost:{provider.server.grpc_address[1]}"
    logging = LoggerProvider(Resource({semconv.TENANT_ID: "liar"}), shutdown_on_exit=False)
    exporter = GrpcLogs(at, credentials=trusted, headers={"authorization": "Bearer g"}, timeout=300)
    logging.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    logging.get_logger("mfu_sdk").emit(LogRecord(timestamp=NOW, body="slower", event_name="mfu.drift"))
    logging.shutdown()
    assert provider.server._store.query(
        "SELECT EventName AS name, Body AS body, ResourceAttributes['mfu.tenant.id'] AS tenant FROM otel.otel_logs"
    ) == [{"name": "mfu.drift", "body": "slower", "tenant": "globex"}]


def test_partial_success(provider: Provider, request_of: Requests, service: str) -> None:
    """Rejected spans are counted by reason in the answer, and told to their tenant afterwards."""
    made = request_of(3)
    spans = made.resource_spans[0].scope_spans[0].spans
    spans[0].trace_id = b""
    spans[1].end_time_unix_nano = 1
    partial = provider.export(made.SerializeToString()).partial_success
    assert partial.rejected_spans == 2
    assert partial.error_message == "a span that ends before it starts; a span without a trace id of 16 bytes"
    assert len(provider.stored(service)) == 1
    url = f"https://localhost:{provider.server.web_address[1]}/api/received"
    asked = urllib.request.Request(url, headers={"Authorization": "Bearer a"})
    with urllib.request.urlopen(asked, context=provider.context, timeout=300) as answer:
        told = json.load(answer)
    assert list(told) == ["acme"]
    assert told["acme"]["a span that ends before it starts"] == 1


@pytest.mark.parametrize(
    ("token", "body", "code", "message"),
    [
        (None, b"", grpc.StatusCode.UNAUTHENTICATED, "no known token"),
        ("wrong", b"", grpc.StatusCode.UNAUTHENTICATED, "no known token"),
        ("o", b"", grpc.StatusCode.PERMISSION_DENIED, "an operator's token reads"),
        ("a", b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT, "not an OTLP request in protobuf"),
        ("a", bytes(200_000), grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
    ],
    ids=["no token", "wrong token", "operator", "garbage", "too large"],
)
def test_refused(provider: Provider, token: str | None, body: bytes, code: grpc.StatusCode, message: str) -> None:
    """What cannot be accepted gets the status that the protocol names."""
    with pytest.raises(grpc.RpcError) as caught:
        provider.export(body, token)
    assert (caught.value.code(), message in caught.value.details()) == (code, True)


def test_packed_bomb(provider: Provider) -> None:
    """A few bytes that unpack to more than the limit are refused over gRPC, gzip and zstd."""
    bomb = bytes(3_000_000)
    with pytest.raises(grpc.RpcError) as caught:
        provider.export(bomb, compression=grpc.Compression.Gzip)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    for coding, packed in (("gzip", gzip.compress(bomb)), ("zstd", zstandard.compress(bomb))):
        assert provider.post(packed, Content_Encoding=coding)[0] == 413


def test_zstd(provider: Provider, request_of: Requests, service: str) -> None:
    """A request in zstd is unpacked; one that is cut off, or none, is refused."""
    packed = zstandard.compress(request_of(5).SerializeToString())
    assert provider.post(packed, Content_Encoding="zstd")[0] == 200
    assert len(provider.stored(service)) == 5
    for body, message in ((packed[:-3], "not one whole zstd frame"), (b"plain", "not zstd")):
        status, _, answer = provider.post(body, Content_Encoding="zstd")
        assert (status, message in Status.FromString(answer).message) == (400, True)


def test_rate(provider: Provider, request_of: Requests, service: str) -> None:
    """Beyond ten seconds' worth a tenant is told to wait, for how long, over both protocols; others are not."""
    for _ in range(4):
        provider.export(request_of(300).SerializeToString(), "i")
    with pytest.raises(grpc.RpcError) as caught:
        provider.export(request_of().SerializeToString(), "i")
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    status = Status.FromString(dict(caught.value.trailing_metadata())["grpc-status-details-bin"])
    retry = RetryInfo()
    assert status.details[0].Unpack(retry)
    assert retry.retry_delay.seconds == 2
    code, headers, body = provider.post(request_of().SerializeToString(), "i")
    assert (code, headers["retry-after"]) == (429, "2")
    assert Status.FromString(body).message == "more than 100 spans a second; send again in 2 s"
    provider.export(request_of().SerializeToString(), "g")
    assert len(provider.stored(service)) == 1_201
    provider.clock.advance(2.1)
    provider.export(request_of().SerializeToString(), "i")


def test_attribute_limits(provider: Provider, request_of: Requests, service: str) -> None:
    """Attributes beyond the limits are cut, and the answer says what was."""
    made = request_of()
    attributes = made.resource_spans[0].scope_spans[0].spans[0].attributes
    for number in range(8):
        attributes.add(key=f"key {number}").value.string_value = "v" * (41 if number == 0 else 40)
    partial = provider.export(made.SerializeToString()).partial_success
    assert partial.rejected_spans == 0
    assert partial.error_message == "attributes beyond 6 left out (2 times); values cut to 40 characters"
    [row] = provider.stored(service)
    assert row["attributes"] == {f"key {number}": "v" * 40 for number in range(6)}


def test_workloads_beyond_the_limit(provider: Provider, request_of: Requests, service: str) -> None:
    """Workloads beyond a tenant's are kept as one, `other`, and their sums are in the roll-up."""
    for name in ("first", "second", "third", "fourth", "first"):
        answer = provider.export(request_of(2, name).SerializeToString(), "g").partial_success.error_message
        assert answer == ("spans kept under workload other (2 times)" if name in ("third", "fourth") else "")
    names = [row["workload"] for row in provider.stored(service)]
    assert sorted(names) == ["first"] * 4 + ["other"] * 4 + ["second"] * 2
    rows = provider.server._store.query(
        "SELECT workload, sum(spans) AS n FROM otel.mfu_sums_5m WHERE workload != '' AND tenant = 'globex'"
        " GROUP BY workload ORDER BY workload"
    )
    assert rows == [{"workload": "first", "n": 4}, {"workload": "other", "n": 4}, {"workload": "second", "n": 2}]


HOSTILE = [
    "'; DROP TABLE otel.otel_traces; --",
    "<script>alert(1)</script>",
    "\0\x01\x85\u2028",
    "{name:String} $1 %s",
    "é" * 20,
]


def test_hostile_texts(provider: Provider, service: str) -> None:
    """Names and values that would end a string or start a tag are texts, in the store and on the page."""
    made = ExportTraceServiceRequest()
    for number, text in enumerate(HOSTILE, 1):
        group = made.resource_spans.add()
        group.resource.attributes.add(key="service.name").value.string_value = service
        group.resource.attributes.add(key="host.name").value.string_value = text
        span = group.scope_spans.add().spans.add(
            name=text,
            trace_id=number.to_bytes(16, "big"),
            span_id=number.to_bytes(8, "big"),
            start_time_unix_nano=NOW - 10**9 + number % 65_536,
            end_time_unix_nano=NOW,
            trace_state=text,
        )
        span.attributes.add(key=text[:40]).value.string_value = text
        span.status.message = text
    assert not provider.export(made.SerializeToString()).partial_success.error_message
    rows = provider.stored(service)
    assert [(row["name"], row["attributes"]) for row in rows] == [(text, {text[:40]: text}) for text in HOSTILE]


def test_senders_race(provider: Provider, request_of: Requests, service: str) -> None:
    """The same spans from several senders at once, over both protocols, are stored and counted once."""
    body = request_of(20).SerializeToString()
    barrier = threading.Barrier(6)

    def send(number: int) -> None:
        barrier.wait(120)
        if number % 2:
            provider.export(body)
        else:
            provider.post(body)

    senders = [threading.Thread(target=send, args=(number,)) for number in range(6)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert len(provider.stored(service)) == 20
    [row] = provider.server._store.query(
        "SELECT (SELECT count() FROM otel.otel_traces WHERE SpanName = 'mfu.window') AS spans,"
        " (SELECT sum(spans) FROM otel.mfu_sums_5m) AS counted"
    )
    assert row["spans"] == row["counted"]


def test_plain_is_refused_where_tls_is_spoken(provider: Provider) -> None:
    """A client without TLS gets nothing on an address that speaks it."""
    with pytest.raises(OSError, match=r"."):
        urllib.request.urlopen(f"http://localhost:{provider.server.http_address[1]}/v1/traces", b"", timeout=300)


def test_bad_certificate(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """A certificate that is none, or not the key's, is refused before anything is listened on."""
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for pair in ((empty, certificate[1]), (certificate[0], empty), (tmp_path / "nowhere", certificate[1])):
        with pytest.raises(ConfigurationError, match="no certificate and its key"):
            Server(tmp_path / "data", tls=pair)


def test_grpc_address(tmp_path: Path, provider: Provider) -> None:
    """gRPC is loopback's too unless there are tokens; an address that is taken is told."""
    with pytest.raises(ConfigurationError, match="without a tokens file only loopback is served"):
        Server(tmp_path / "data", grpc=("0.0.0.0", 4317))
    assert provider.server.grpc_address is not None
    with pytest.raises(PortInUseError, match="is taken by another program"):
        GrpcServer(provider.server._intake, provider.server.grpc_address, None)


def test_certificate_without_its_key(tmp_path: Path) -> None:
    """A certificate is given with its key, or the command line says so."""
    found = CliRunner().invoke(main, ["serve", "--data", str(tmp_path), "--tls-cert", "fleet.pem"])
    assert found.exit_code == 2
    assert "--tls-cert and --tls-key belong together" in found.output
