"""A real OTLP collector on loopback that can misbehave, and records to send to it."""

import dataclasses
import gzip
import os
import shutil
import socket
import ssl
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SentSpan

from mfu_sdk.bars import Bar
from mfu_sdk.export.encode import Span
from mfu_sdk.export.sampling import Kept
from mfu_sdk.export.signals import Signals
from mfu_sdk.export.spans import Spans
from mfu_sdk.export.totals import Totals
from mfu_sdk.export.windows import Window, Windows, sums
from mfu_sdk.records import DriftEvent, Peaks, Rate, RunIdentity, RunSummary, StepRecord, Uncounted
from mfu_sdk.requests import InferenceRecord, PhaseRecord

# 2026-01-01T00:00:00Z, a multiple of 30 s.
EPOCH_NS = 1_767_225_600_000_000_000


def value_of(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    assert kind is not None
    if kind == "array_value":
        return [value_of(entry) for entry in value.array_value.values]
    return getattr(value, kind)


def attributes_of(pairs: "list[KeyValue]") -> dict[str, object]:
    return {pair.key: value_of(pair.value) for pair in pairs}


@dataclasses.dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def encoding(self) -> str:
        """The Content-Encoding, whose name collectors write as they like."""
        return next((value for name, value in self.headers.items() if name.lower() == "content-encoding"), "")


class Collector:
    """Answers with `status` (or not at all while `hung`), after the `script` of (status, Retry-After) has run out."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Received] = []
        self.status = 200
        self.hung = False
        self.answer = b""
        self.script: list[tuple[int, str | None]] = []
        self.arrived = threading.Condition()
        self._release = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                # Some clients write them in small letters.
                headers = {name.title(): value for name, value in self.headers.items()}
                with collector.arrived:
                    collector.requests.append(Received(self.path, headers, body))
                    collector.arrived.notify_all()
                if collector.hung:
                    collector._release.wait(120)
                    self.close_connection = True
                    return
                status, after = collector.script.pop(0) if collector.script else (collector.status, None)
                self.send_response(status)
                if after is not None:
                    self.send_header("Retry-After", after)
                if status == 302:
                    self.send_header("Location", f"{collector.url}/elsewhere")
                answer = collector.answer if status == 200 else b""
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                # A client that hung up or failed its handshake is what some tests are about.
                pass

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def speak_tls(self, certificate: Path, key: Path) -> None:
        """Ask for TLS from here on, and for a client's certificate that `certificate` has signed."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate))
        context.load_cert_chain(certificate, key)
        context.verify_mode = ssl.CERT_REQUIRED
        # The handshake is done by the connection's own thread: one that fails must not stop the server.
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.url = self.url.replace("http:", "https:")

    def let_go(self) -> None:
        """End the requests that hang."""
        self.hung = False
        self._release.set()

    def stop(self) -> None:
        """Be gone; a second time does nothing."""
        self._release.set()
        if not self._thread.is_alive():
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait_for(self, predicate: Callable[[], bool], timeout_s: float = 120.0) -> bool:
        with self.arrived:
            return self.arrived.wait_for(predicate, timeout_s)

    def bodies(self, path: str) -> list[bytes]:
        unpack = {"gzip": gzip.decompress, "deflate": zlib.decompress}
        return [unpack.get(request.encoding, bytes)(request.body) for request in self.requests if request.path == path]

    def refuse_some(self, count: int) -> None:
        success = ExportTracePartialSuccess(rejected_spans=count, error_message="too old")
        self.answer = ExportTraceServiceResponse(partial_success=success).SerializeToString()

    def chunk_sizes(self) -> list[list[int]]:
        """How many spans were encoded together, for each request."""
        return [
            [sum(len(scope.spans) for scope in resource.scope_spans) for resource in request.resource_spans]
            for request in self.trace_requests()
        ]

    def trace_requests(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(body) for body in self.bodies("/v1/traces")]

    def spans(self, name: str | None = None) -> list[SentSpan]:
        """Every span received so far, once each, as a provider would keep it."""
        found = {
            span.span_id: span
            for request in self.trace_requests()
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }
        return [span for span in found.values() if name is None or span.name == name]

    def logs(self) -> list[LogRecord]:
        """Every log record received so far, as often as it came."""
        return [
            record
            for body in self.bodies("/v1/logs")
            for resource in ExportLogsServiceRequest.FromString(body).resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    def points(self) -> dict[str, list[tuple[dict[str, object], float]]]:
        """The last export of metrics: name to (attributes, value; a histogram's count)."""
        body = self.bodies("/v1/metrics")[-1]
        found: dict[str, list[tuple[dict[str, object], float]]] = {}
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    kind = metric.WhichOneof("data")
                    for point in getattr(metric, kind).data_points:
                        value = float(point.count) if kind == "histogram" else point.as_double
                        found.setdefault(metric.name, []).append((attributes_of(point.attributes), value))
        return found


@pytest.fixture(autouse=True)
def _no_otel_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in os.environ:
        if variable.startswith("OTEL_") or variable.lower().endswith("_proxy"):
            monkeypatch.delenv(variable)


@pytest.fixture
def collector() -> Iterator[Collector]:
    running = Collector()
    yield running
    running.stop()


@pytest.fixture
def loopback(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that vouches for itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program to make certificates")
    certificate, key = tmp_path / "loopback.pem", tmp_path / "key.pem"
    make_certificate(certificate, key)
    return certificate, key


def make_certificate(certificate: Path, key: Path) -> None:
    """Write a certificate of 127.0.0.1 that vouches for itself, and its key."""
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*make, "-subj", "/CN=loopback", *names, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
        timeout=300,
    )


@pytest.fixture
def other_collector() -> Iterator[Collector]:
    """A second one, for the provider where the first is the tenant's."""
    running = Collector()
    yield running
    running.stop()


@pytest.fixture
def refused() -> Iterator[str]:
    """The URL of a port that nobody listens on, nor can as long as it is bound."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


IDENTITY = RunIdentity(
    run_id="run-7",
    attempt=1,
    workload="bytegpt",
    workload_family="abc123",
    rank=3,
    local_rank=1,
    world_size=8,
    device_name="cpu",
    device_vendor=None,
    device_id=None,
    start_unix_ns=EPOCH_NS,
    model_name="acme/llama-tiny",
)
SUMMARY = RunSummary(
    name="bytegpt",
    steps=3,
    timed_steps=3,
    unknown_steps=0,
    mfu=0.4,
    hfu=0.5,
    expected_mfu=0.8,
    waterfall={},
    tokens=48,
    tokens_per_s=16.0,
    overhead_s=0.25,
    uncounted=(),
    coverage=1.0,
    model_flops=120,
    duration_s=3.0,
    peak_flops_per_s=100.0,
    peak_dtype="float32",
    peak_source="calibrated",
    device="cpu",
    convention="exact",
)


BARS = (
    Bar("mfu", 0.4, 1.2, "measured"),
    Bar("data_wait", 0.1, 0.3, "measured"),
    Bar("host_gap", 0.15, 0.45, "sampled"),
    Bar("exposed_communication", 0.2, 0.6, "sampled"),
    Bar("rank_skew", 0.05, 0.15, "sampled"),
    Bar("unexplained", 0.1, 0.3, "rest"),
)


@pytest.fixture
def identity() -> RunIdentity:
    return IDENTITY


def make_step(index: int, **changes: object) -> StepRecord:
    """A timed step of 1 s that starts `index` seconds into a window: 40 of 100 FLOPs that it could have done."""
    record = StepRecord(
        index=index,
        phase="train",
        duration_s=1.0,
        model_flops=40,
        hardware_flops=50,
        peak_flops_per_s=100.0,
        peak_source="calibrated",
        mfu=0.4,
        hfu=0.5,
        mfu_by_dtype=0.4,
        expected_mfu=0.8,
        achievable_mfu=0.5,
        count_source="cached",
        coverage=1.0,
        tokens=16,
        data_wait_s=0.1,
        comm_s=None,
        device_s=None,
        convention="exact",
        start_unix_ns=EPOCH_NS + index * 1_000_000_000,
        peak_dtype="float32",
        samples=2,
        attention_flops_exact=4,
        attention_flops_full=8,
        batch_running=2.0,
        arithmetic_intensity=10.0,
        expected_low_mfu=0.7,
        expected_high_mfu=0.9,
    )
    return dataclasses.replace(record, **changes)


@pytest.fixture
def step() -> Callable[..., StepRecord]:
    return make_step


@pytest.fixture
def summary() -> RunSummary:
    return SUMMARY


# --- a span of each kind -------------------------------------------------------------------------------------------

REQUEST = InferenceRecord("handle", EPOCH_NS, 0.5, 10**19, 20, "cached", 3, 4, 2)
RATE = Rate(1e12, 0.9e12, 1.1e12, "calibrated", 0.0)
DRIFT = DriftEvent(
    kind="drop",
    phase="train",
    measure="flop_rate",
    change=-0.25,
    baseline=0.4,
    current=0.3,
    onset_step=500,
    onset_unix_ns=EPOCH_NS,
    found_step=560,
    found_unix_ns=EPOCH_NS + 3 * 10**9,
    score=1.5,
    threshold=1e10,
    detector="betting-sr/1",
    cause="configuration_drift",
    evidence=("batch: 32 → 16", "log MFU changed by -0.288: compute -0.288"),
    parts={"compute": -0.288},
    fingerprint_diff=("batch: 32 → 16",),
    recovered_step=800,
    recovered_unix_ns=EPOCH_NS + 9 * 10**9,
)
PEAKS = Peaks(
    device="cpu",
    theoretical={},
    achievable={"float32": RATE, "bfloat16": RATE},
    memory=Rate(2e10, 1e10, 3e10, "calibrated", 0.0),
    clock_mhz=None,
    state={
        "tier": "burst",
        "float32_clock_mhz": 1500.0,
        "float32_efficiency": 0.75,
        "bfloat16_clock_mhz": 1400.0,
        "bfloat16_efficiency": 0.5,
        "degraded": "power brake",
    },
    calibration_id="cal-1",
)
SERVED = {
    "requests": 3,
    "requests_failed": 1,
    "requests_s": 1.5,
    "requests_running": 1.5,
    "batch_feasible": 32.0,
    "queue_waiting": 2.0,
    "kv_cache_free_ratio": 0.75,
    "latency_target_s": 0.05,
    "expected_feasible_mfu": 0.9,
}
PHASES = (PhaseRecord("prefill", 0.125, 0.25, 10**19, 12, 1), PhaseRecord("decode", 0.375, 0.125, 7, 8, 3))
STREAMED = dataclasses.replace(
    REQUEST,
    input_tokens=2,
    output_tokens=1,
    chunks=1,
    time_to_first_token_s=0.375,
    time_per_output_token_s=0.02,
    phases=PHASES,
)


SEEN = Signals(
    comm_s=0.25,
    skew_s=0.125,
    host_s=0.0625,
    comm_bytes=1e9,
    bus_bytes_per_s=4e9,
    bus_peak_bytes_per_s=8e9,
    ideal_ratio=0.1,
    memory_bytes_per_s=2e10,
    clock_ratio=0.9,
    throttled=("software power cap",),
    witness=0.45,
)


@pytest.fixture
def spans(identity: RunIdentity) -> Spans:
    return Spans(identity, "chat")


@pytest.fixture
def window() -> Window:
    windows = Windows()
    windows.add(make_step(0, device_s=0.5, **SERVED))
    return windows.add(make_step(1, device_s=0.5))[0]


@pytest.fixture
def every_span(spans: Spans, window: Window, summary: RunSummary) -> list[Span]:
    """A span of each kind, with each attribute that it can have."""
    total = sums(window.steps)
    totals = Totals()
    totals.add(total)
    missing = dataclasses.replace(
        summary, uncounted=(Uncounted("aten::x", 1, "m"),), peak_memory_bytes_per_s=2e10, calibration_id="c", bars=BARS
    )
    return [
        spans.step(make_step(0, device_s=0.5, **SERVED), window, Kept("all", 1.0)),
        spans.step(make_step(1, error_type="ValueError"), window, Kept("error", None)),
        spans.window(window, total, SEEN),
        spans.run(missing, totals, EPOCH_NS + 10, "ValueError"),
        *spans.inference(dataclasses.replace(STREAMED, error_type="KeyError"), Kept("periodic", 0.25)),
        *spans.calibration(PEAKS, EPOCH_NS, EPOCH_NS + 5),
        spans.drift(DRIFT, EPOCH_NS + 9 * 10**9),
    ]
