"""OTLP over gRPC against a real gRPC server that answers in every way it may."""

import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

from mfu_sdk.doctor.exporter import exporter_findings
from mfu_sdk.errors import ConfigurationError, MissingDependencyError
from mfu_sdk.export import destination as destinations
from mfu_sdk.export.destination import Destination, destination, for_replay, of_provider
from mfu_sdk.export.otlp import MAX_RETRY_AFTER_S
from mfu_sdk.export.otlp_grpc import DETAILS, METHODS, RETRYABLE, GrpcSender
from mfu_sdk.export.replay import replay
from mfu_sdk.export.telemetry import Telemetry
from mfu_sdk.settings import Provider, Settings

from .conftest import EPOCH_NS, Collector, Received, attributes_of

GRPC = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}


class GrpcCollector(Collector):
    """A collector that speaks gRPC; `script` are (code, seconds of a RetryInfo), a code of None accepts."""

    def __init__(self, credentials=None):
        self.requests = []
        self.script = []
        self.code = None
        self.hung = False
        self.answer = b""
        self.arrived = threading.Condition()
        self._release = threading.Event()
        paths = {method: f"/v1/{signal}" for signal, method in METHODS.items()}

        class Handler(grpc.GenericRpcHandler):
            def service(self, details):
                return grpc.unary_unary_rpc_method_handler(
                    lambda body, context: collector._take(paths[details.method], body, context)
                )

        collector = self
        self._server = grpc.server(ThreadPoolExecutor(4), handlers=(Handler(),))
        if credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()
        self.url = f"{'http' if credentials is None else 'https'}://127.0.0.1:{port}"

    def _take(self, path, body, context):
        with self.arrived:
            self.requests.append(Received(path, dict(context.invocation_metadata()), body))
            self.arrived.notify_all()
        if self.hung:
            self._release.wait(120)
        code, after_s = self.script.pop(0) if self.script else (self.code, None)
        if code is not None:
            details = []
            if after_s is not None:
                any_of = Any()
                whole = int(after_s)
                any_of.Pack(RetryInfo(retry_delay=Duration(seconds=whole, nanos=round((after_s - whole) * 1e9))))
                details.append(any_of)
            status = Status(code=code.value[0], message="no", details=details)
            context.set_trailing_metadata(((DETAILS, status.SerializeToString()),))
            context.abort(code, "no")
        return self.answer

    def bodies(self, path):
        return [request.body for request in self.requests if request.path == path]

    def stop(self):
        self._release.set()
        self._server.stop(0).wait()


@pytest.fixture
def server():
    running = GrpcCollector()
    yield running
    running.stop()


@pytest.fixture
def sending():
    """Sends one body to a URL; the connections are let go of at the end."""
    made = []

    def send(url, body=b"body", *, timeout_s=None, **settings):
        made.append(GrpcSender("traces", Destination(url, protocol="grpc", **settings)))
        return made[-1].send(made[-1].compress(body), timeout_s)

    yield send
    for sender in made:
        sender.close()


# --- one request ---------------------------------------------------------------------------------------------------


def test_delivered(server, sending):
    """The bytes arrive as they are, with the user's headers as metadata; the answer comes back."""
    server.refuse_some(3)
    outcome = sending(server.url, headers="Authorization=Bearer%20key,x-scope=one")
    assert (outcome.kind, outcome.answer) == ("delivered", server.answer)
    (request,) = server.requests
    assert (request.path, request.body) == ("/v1/traces", b"body")
    assert (request.headers["authorization"], request.headers["x-scope"]) == ("Bearer key", "one")
    assert request.headers["user-agent"].startswith("mfu_sdk/")


@pytest.fixture
def wire(server):
    """A port before the server's, and a list of how many bytes came through it on their way there."""
    counted = []
    front = socket.create_server(("127.0.0.1", 0))

    def pump(source, sink, counts):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                counts.append(len(data))
                sink.sendall(data)
        sink.close()

    def forward():
        near, _ = front.accept()
        far = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
        back = threading.Thread(target=pump, args=(far, near, []))
        back.start()
        pump(near, far, counted)
        back.join()

    thread = threading.Thread(target=forward)
    thread.start()
    yield f"http://127.0.0.1:{front.getsockname()[1]}", counted
    server.stop()
    thread.join(20)
    front.close()


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
def test_compressed(server, wire, sending, compression):
    """gRPC compresses on the way, and what arrives is the body."""
    url, counted = wire
    sending(url, b"body" * 10_000, compression=compression)
    assert server.requests[0].body == b"body" * 10_000
    assert (sum(counted) < 4_000) is (compression != "none")


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK], ids=str)
def test_codes(server, sending, code):
    """The codes that the OTLP specification calls retryable are; a request that is too large is not sent again."""
    server.code = code
    outcome = sending(server.url)
    assert outcome.kind == ("retry" if code.name in RETRYABLE else "rejected")
    assert outcome.detail == f"{code.name}: no"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("code", "asked_s", "seconds"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1.5, 1.5),
        (grpc.StatusCode.UNAVAILABLE, 7, 7.0),
        (grpc.StatusCode.UNAVAILABLE, 0, 0.0),
        (grpc.StatusCode.UNAVAILABLE, 86400, MAX_RETRY_AFTER_S),
        (grpc.StatusCode.UNAVAILABLE, None, None),
    ],
    ids=["exhausted", "unavailable", "at once", "a day", "unsaid"],
)
def test_retry_info(server, sending, code, asked_s, seconds):
    """A RetryInfo says when, within reason, and makes RESOURCE_EXHAUSTED a reason to try again."""
    server.script = [(code, asked_s)]
    outcome = sending(server.url)
    assert (outcome.kind, outcome.retry_after_s) == ("retry", seconds)


def test_trailer_of_another_kind(server, sending, monkeypatch):
    """Details that are no Status say nothing."""
    monkeypatch.setattr(Status, "SerializeToString", lambda self: b"\xff\xff")
    server.script = [(grpc.StatusCode.UNAVAILABLE, 7)]
    assert sending(server.url).retry_after_s is None


def test_refused(refused, sending):
    """Nobody listening is a reason to try again, told in one line."""
    outcome = sending(refused)
    assert (outcome.kind, outcome.retry_after_s) == ("retry", None)
    assert outcome.detail.startswith("UNAVAILABLE")


def test_again_at_once(server):
    """After a failure a sender connects anew when it is told to send: the channel's own back-off is not waited for."""
    sender = GrpcSender("traces", Destination(server.url, protocol="grpc"))
    server.script = [(grpc.StatusCode.UNAVAILABLE, None)]
    assert [sender.send(b"body").kind for _ in range(2)] == ["retry", "delivered"]
    sender.close()
    sender.close()


def test_hung(server, sending):
    """A collector that never answers costs no more than the time allowed."""
    server.hung = True
    outcome = sending(server.url, timeout_s=0.05)
    assert (outcome.kind, outcome.detail.split(":")[0]) == ("retry", "DEADLINE_EXCEEDED")


def test_a_patched_clock(server, sending, monkeypatch):
    """A clock of the user's that stands still neither ends a request at once nor keeps it from ending."""
    monkeypatch.setattr(time, "time", lambda: 12.0)
    assert sending(server.url).kind == "delivered"
    server.hung = True
    assert sending(server.url, timeout_s=0.05).detail.startswith("DEADLINE_EXCEEDED")


def test_mutual_tls(loopback, sending):
    """The certificates are used: ours to trust the collector, the client's to be trusted by it."""
    certificate, key = loopback
    pem, secret = certificate.read_bytes(), key.read_bytes()
    server = GrpcCollector(grpc.ssl_server_credentials([(secret, pem)], pem, require_client_auth=True))
    trusted = {"certificate": str(certificate)}
    own = {"client_certificate": str(certificate), "client_key": str(key)}
    assert sending(server.url, **trusted, **own).kind == "delivered"
    distrusted = sending(server.url, **own)
    assert (distrusted.kind, distrusted.detail.split(":")[0]) == ("retry", "UNAVAILABLE")
    assert "CERTIFICATE_VERIFY_FAILED" in distrusted.detail
    assert sending(server.url, **trusted).kind == "retry"
    assert len(server.requests) == 1
    server.stop()


def test_unusable(tmp_path):
    """Certificates that cannot be read and headers that gRPC cannot carry are refused before anything starts."""
    with pytest.raises(ConfigurationError, match=r"TLS for https://c:1.*must name readable PEM files"):
        GrpcSender("traces", Destination("https://c:1", certificate=str(tmp_path / "none.pem")))
    with pytest.raises(ConfigurationError, match="HEADERS: the value of x has characters") as raised:
        GrpcSender("traces", Destination("http://c:1", headers="x=%C3%A4secret"))
    assert "secret" not in str(raised.value)


# --- a run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sink", ["tenant", "provider"])
def test_a_run(server, identity, step, summary, sink):
    """Spans and metrics of a run arrive over gRPC as over HTTP, whichever sink it is; UNAVAILABLE is tried again."""
    server.script = [(grpc.StatusCode.UNAVAILABLE, 0), (grpc.StatusCode.RESOURCE_EXHAUSTED, 0)]
    tenant = {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url, **GRPC, "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}
    telemetry = Telemetry.open(
        identity,
        Settings(
            spans="all", provider=Provider(endpoint=server.url, protocol="grpc") if sink == "provider" else Provider()
        ),
        env=tenant if sink == "tenant" else {},
        unix_ns=lambda: EPOCH_NS,
    )
    for index in range(40):
        telemetry.step(step(index))
    telemetry.close(summary)
    assert telemetry.flush(120.0)
    assert telemetry.dropped == {}
    steps = [attributes_of(span.attributes)["mfu.step.index"] for span in server.spans("mfu.step")]
    assert sorted(steps) == list(range(40))
    assert len(server.spans("mfu.run")) == 1
    assert server.points()["mfu.step.count"][0][1] == 40.0
    assert not telemetry.recorder.path.exists()


def test_what_a_killed_process_left(server, refused, identity, step, summary):
    """`mfu replay` delivers over gRPC too, where the variables say so."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": refused, **GRPC}
    telemetry = Telemetry.open(identity, Settings(spans="all"), env=env, unix_ns=lambda: EPOCH_NS)
    telemetry.step(step(0))
    telemetry.close(summary)
    assert not telemetry.flush(0.5)
    telemetry.stop(0.5)
    for worker in telemetry._workers:
        worker._thread.join(60)
    path = telemetry.recorder.path
    # Its file is free once nothing has it any more.
    del telemetry, worker
    gc.collect()
    done = replay(path, for_replay(server.url, Provider(), env))
    assert (done.steps, done.run) == (1, True)
    assert {span.name for span in server.spans()} == {"mfu.run", "mfu.window", "mfu.step"}


PROGRAM = """
import atexit, os, sys, threading, time
leaving = []
atexit.register(lambda: leaving and print(time.monotonic() - leaving[0]))
sys.path.insert(0, sys.argv[1])
from conftest import EPOCH_NS, IDENTITY, SUMMARY, make_step
from mfu_sdk.export.telemetry import Telemetry
from mfu_sdk.settings import Settings
telemetry = Telemetry.open(IDENTITY, Settings(spans="all", recorder="off"), unix_ns=lambda: EPOCH_NS)
loaded = "grpc" in sys.modules
for index in range(5):
    telemetry.step(make_step(index))
"""


def run_program(body, url):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM + body, Path(__file__).parent],
        capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": url, **GRPC},
    )  # fmt: skip


@pytest.mark.parametrize("trouble", ["hung", "unavailable"])
def test_exit_is_bounded(server, trouble):
    """Whatever a gRPC collector does, the end of the process takes 2 s for us.

    On a busy machine it is more, and less than the 10 s that one request may take.
    """
    server.hung = trouble == "hung"
    server.code = grpc.StatusCode.UNAVAILABLE
    done = run_program(
        "telemetry.close(SUMMARY)\natexit.register(lambda: leaving.append(time.monotonic()))\n",
        server.url,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert float(done.stdout) < 9.0


def test_fork(server):
    """Opening a run loads no gRPC, its first request does; children that are forked after that are inert and end in
    order, and the parent's spans arrive once.
    """
    done = run_program(
        """
print(loaded)
pids = []
for n in range(4):
    for index in range(20):
        telemetry.step(make_step(5 + 20 * n + index))
    assert telemetry.flush(120.0)
    pid = os.fork()
    if pid == 0:
        telemetry.step(make_step(0, model_flops=10**9))
        telemetry.flush(5.0)
        telemetry.close(SUMMARY)
        assert threading.active_count() == 1
        sys.exit(0)
    pids.append(pid)
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
telemetry.close(SUMMARY)
assert telemetry.flush(120.0)
""",
        server.url,
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "fork" not in line]) == (0, [])
    assert done.stdout == "False\n"
    assert len(server.spans("mfu.step")) == 85
    assert len(server.spans("mfu.run")) == 1
    assert server.points()["mfu.model.flop"][0][1] == 85 * 40.0


# --- where it goes -------------------------------------------------------------------------------------------------


def test_endpoints():
    """A URL's scheme says whether there is TLS, and its path says nothing; without a scheme a variable does."""

    def urls(endpoint, **more):
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **GRPC, **more}
        return [destination(signal, env).url for signal in ("traces", "metrics")]

    assert urls("http://collector:4317/in/") == ["http://collector:4317"] * 2
    assert urls("https://user:word@collector:4317") == ["https://collector:4317"] * 2
    assert urls("https://collector") == ["https://collector:443"] * 2
    assert urls("collector:4317") == ["https://collector:4317"] * 2
    assert urls("[::1]:4317", OTEL_EXPORTER_OTLP_INSECURE="true") == ["http://[::1]:4317"] * 2
    assert urls("a:1", OTEL_EXPORTER_OTLP_TRACES_INSECURE="TRUE") == ["http://a:1", "https://a:1"]
    assert urls("http://a:1", OTEL_EXPORTER_OTLP_METRICS_ENDPOINT="http://b:2/x") == ["http://a:1", "http://b:2"]
    with pytest.raises(ConfigurationError, match="OTEL_EXPORTER_OTLP_ENDPOINT='grpc://a': must be"):
        urls("grpc://a")
    provider = of_provider("traces", Provider(endpoint="https://mfu:4317/in", protocol="grpc"), {})
    assert (provider.url, provider.protocol) == ("https://mfu:4317", "grpc")


@pytest.mark.parametrize("endpoint", ["http://a:1/x", "https://b:2", "c:3"])
@pytest.mark.parametrize("insecure", [None, "true"])
def test_same_as_stock(monkeypatch, endpoint, insecure):
    """The variables mean what they mean to OpenTelemetry's own gRPC exporter."""
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_HEADERS": "k=v,Auth=Basic%20eA%3D%3D",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "3",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        **({} if insecure is None or "://" in endpoint else {"OTEL_EXPORTER_OTLP_INSECURE": insecure}),
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    stock = OTLPSpanExporter()
    ours = destination("traces", env | GRPC)
    assert ours.url == f"{'http' if stock._insecure else 'https'}://{stock._endpoint}"
    assert ours.timeout_s == stock._timeout
    assert (ours.compression, stock._compression) == ("gzip", grpc.Compression.Gzip)
    own = GrpcSender("traces", ours)
    assert set(own._metadata) <= set(stock._headers)
    assert {name for name, _ in stock._headers} - {name for name, _ in own._metadata} <= {"user-agent"}
    stock.shutdown()


def test_without_the_extra(monkeypatch, caplog):
    """What names the command: a warning for the standard variable, which a platform sets for all, an error for ours."""
    monkeypatch.setattr(destinations, "grpc_installed", lambda: False)
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1", **GRPC}
    assert destination("traces", env) is None
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=grpc needs grpcio" in caplog.text
    assert "pip install 'mfu-sdk[grpc]'" in caplog.text
    theirs = Provider(endpoint="http://a:1", protocol="grpc")
    with pytest.raises(MissingDependencyError, match=r"MFU_PROVIDER_PROTOCOL=grpc needs .*mfu-sdk\[grpc\]"):
        of_provider("traces", theirs, {})
    with pytest.raises(MissingDependencyError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL=grpc needs .*mfu-sdk\[grpc\]"):
        for_replay("http://a:1", Provider(), env)
    monkeypatch.setenv("MFU_PROVIDER_ENDPOINT", "http://a:1")
    monkeypatch.setenv("MFU_PROVIDER_PROTOCOL", "grpc")
    assert "mfu-sdk[grpc]" in {each.what: each.text for each in exporter_findings()}["provider"]
