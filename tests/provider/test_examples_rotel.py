"""A real collector, rotel, with the example's settings: before `mfu serve`, and into the schema by its own inserts."""

import os
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import rotel
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mfu_sdk import semconv
from mfu_sdk.provider import report
from mfu_sdk.provider.rollup import Range
from mfu_sdk.provider.serve import Server
from mfu_sdk.provider.store import Store

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples" / "provider"
AGENT = Path(str(rotel.__file__)).parent / "rotel-agent"
NOW_NS = time.time_ns()
PATIENCE_S = 60


def settings(name: str) -> dict[str, str]:
    """The variables of a file of the examples."""
    lines = (EXAMPLES / "collector" / f"{name}.env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def until(met: Callable[[], bool], what: str) -> None:
    """Ask again until it is so, for a minute."""
    end_s, patience = time.monotonic() + PATIENCE_S, threading.Event()
    while not met():
        assert time.monotonic() < end_s, f"{what}: not within {PATIENCE_S} s"
        patience.wait(0.05)


def window(number: int, model_flop: float) -> bytes:
    """A request with one window of 4e15 available FLOPs, of a client that says it is somebody else."""
    made = ExportTraceServiceRequest()
    group = made.resource_spans.add()
    for key, value in ((semconv.TENANT_ID, "initech"), (semconv.WORKLOAD_NAME, "gpt"), (semconv.RUN_ID, "r")):
        group.resource.attributes.add(key=key).value.string_value = value
    span = group.scope_spans.add().spans.add(
        name=semconv.SPAN_WINDOW,
        trace_id=number.to_bytes(16, "big"),
        span_id=number.to_bytes(8, "big"),
        start_time_unix_nano=NOW_NS - 60 * 10**9,
        end_time_unix_nano=NOW_NS - 30 * 10**9,
    )
    flops = ((semconv.MODEL_FLOP, model_flop), (semconv.AVAILABLE_FLOP, 4e15), (semconv.STEP_TIME, 30.0))
    for key, amount in flops:
        span.attributes.add(key=key).value.double_value = amount
    body: bytes = made.SerializeToString()
    return body


@contextmanager
def agent(folder: Path, port: int, **given: str) -> Iterator[str]:
    """rotel on this port; gives the URL that it takes OTLP at."""
    places = {
        "ROTEL_OTLP_HTTP_ENDPOINT": f"127.0.0.1:{port}",
        "ROTEL_OTLP_GRPC_ENDPOINT": "127.0.0.1:0",
        "ROTEL_PID_FILE": str(folder / "rotel.pid"),
        "ROTEL_LOG_FILE": str(folder / "rotel.log"),
    }
    env = {**os.environ, **given, **places}
    process = subprocess.Popen([AGENT, "start"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}/v1/traces"
    finally:
        process.terminate()
        process.wait(120)


def send(url: str, body: bytes) -> bool:
    """Whether the collector took it; it is not there at once."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/x-protobuf"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Server]:
    """`mfu serve` with the tokens that make-tokens.sh makes for acme and initech."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program, as make-tokens.sh does")
    secrets = tmp_path / "secrets"
    subprocess.run([EXAMPLES / "make-tokens.sh", secrets, "acme", "initech"], check=True, timeout=300)
    free = ("127.0.0.1", 0)
    server = Server(tmp_path / "data", http=free, web=free, tokens=secrets / "tokens.yaml")
    thread = threading.Thread(target=server.serve_until_stopped)
    thread.start()
    yield server
    server.stop()
    thread.join(120)


def test_in_front_of_serve(serving: Server, free_port: Callable[[], int], tmp_path: Path) -> None:
    """What comes without a token is the collector's tenant's, whoever it says it is, and adds up: 3e15 of 8e15."""
    host, port = serving.http_address
    token = (tmp_path / "secrets" / "acme.token").read_text("ascii")
    given = {
        "ROTEL_OTLP_EXPORTER_ENDPOINT": f"http://{host}:{port}",
        "ROTEL_OTLP_EXPORTER_CUSTOM_HEADERS": f"authorization=Bearer {token}",
    }
    with agent(tmp_path, free_port(), **settings("rotel"), **given) as url:
        until(lambda: send(url, window(1, 1e15)), "rotel listens")
        assert send(url, window(2, 2e15))
        web = "http://{}:{}".format(*serving.web_address)
        operator = (tmp_path / "secrets" / "ops.token").read_text("ascii")

        def fleet() -> report.Report:
            request = urllib.request.Request(
                f"{web}/api/report?since=1h", headers={"Authorization": f"Bearer {operator}"}
            )
            with urllib.request.urlopen(request, timeout=300) as answer:
                return report.from_json(answer.read().decode())

        until(lambda: fleet().fleet.available_flop == 8e15, "both windows are in the sums")
        [workload] = fleet().workloads
    assert (workload.tenant, workload.workload, workload.mfu) == ("acme", "gpt", 0.375)


@contextmanager
def clickhouse(store: Store, folder: Path) -> Iterator[str]:
    """ClickHouse's HTTP interface as far as an exporter needs it, over the embedded engine: inserts in RowBinary."""

    class Front(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            asked = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            [statement], [database] = asked["query"], asked["database"]
            rows = folder / "rows.bin"
            rows.write_bytes(body)
            into, form = statement.removeprefix("INSERT INTO ").rsplit(" FORMAT ", 1)
            with store._write_lock:
                store._writer.query(f"INSERT INTO {database}.{into} FROM INFILE '{rows}' FORMAT {form}")
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    front = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    thread = threading.Thread(target=front.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{front.server_port}"
    finally:
        front.shutdown()
        thread.join()
        front.server_close()


def test_into_the_schema(free_port: Callable[[], int], tmp_path: Path) -> None:
    """rotel's own INSERT fills our columns and sums, under the tenant that its operator stamps, not the client's."""
    with Store(tmp_path / "data") as store, clickhouse(store, tmp_path) as endpoint:
        given = {
            "ROTEL_CLICKHOUSE_EXPORTER_ENDPOINT": endpoint,
            "ROTEL_CLICKHOUSE_EXPORTER_COMPRESSION": "none",
            "ROTEL_OTEL_RESOURCE_ATTRIBUTES": f"{semconv.TENANT_ID}=acme",
        }
        with agent(tmp_path, free_port(), **settings("rotel-clickhouse"), **given) as url:
            until(lambda: send(url, window(1, 1e15)), "rotel listens")
            assert send(url, window(2, 2e15))
            until(lambda: store.query("SELECT count() AS n FROM otel.otel_traces") == [{"n": 2}], "both are stored")
        found = report.build(store, Range(NOW_NS - 3600 * 10**9, NOW_NS), None)
    [workload] = found.workloads
    assert (workload.tenant, workload.workload, workload.mfu) == ("acme", "gpt", 0.375)
