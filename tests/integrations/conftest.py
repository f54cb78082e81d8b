"""What tests of integrations share: a peak that nobody measured, a way to run a command, a receiver of spans."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from mfu_sdk.records import Peaks, Rate

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def peaks() -> Peaks:
    """A processor of 1 GFLOP/s."""
    return Peaks("cpu", {}, {"float32": Rate(1e9, 1e9, 1e9, "user", 0.0)}, None, None, {})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command in a folder of its own, where this repository's package is found and nothing is calibrated."""

    def command(*words: object, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        return subprocess.run(
            list(map(str, words)),
            cwd=tmp_path,
            env={**os.environ, "MFU_CALIBRATE": "off", "OMP_NUM_THREADS": "1", "PYTHONPATH": path} | env,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    return command


class Receiver:
    """An OTLP/HTTP receiver on loopback: the attributes of each span that came, by its name, and of its resource."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, dict[str, object]]] = []
        self.resources: list[tuple[str, dict[str, object]]] = []
        self._arrived = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/traces":
                    receiver.take(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def take(self, body: bytes) -> None:
        def told(attributes: Iterable[KeyValue]) -> dict[str, object]:
            return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}

        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            of = told(resource.resource.attributes)
            for scope in resource.scope_spans:
                for span in scope.spans:
                    with self._arrived:
                        self.spans.append((span.name, told(span.attributes)))
                        self.resources.append((span.name, of))
                        self._arrived.notify_all()

    def wait_for(self, name: str, number: int) -> None:
        """Wait until so many spans of this name have come: within this process nothing waits for the exporter."""
        with self._arrived:
            came = self._arrived.wait_for(lambda: len(self.named(name)) >= number, timeout=300)
        assert came, f"{len(self.named(name))} {name} came of {number}"

    def named(self, name: str) -> list[dict[str, object]]:
        return [found for span, found in self.spans if span == name]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()
