"""A collector for benchmarks: OTLP over HTTP, in a process of its own, so that its work is in nobody's figures."""

import gzip
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from threading import Thread

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Receiver:
    """What a process that collects has taken in so far."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.url = f"http://127.0.0.1:{pipe.recv()}"

    def spans(self) -> dict[str, int]:
        """Spans that arrived, whole and readable, by `service.name`."""
        self._pipe.send("spans")
        found: dict[str, int] = self._pipe.recv()
        return found


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver that runs as long as the block does."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield Receiver(ours)
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection) -> None:
    spans: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path.endswith("/traces"):
                for sender in ExportTraceServiceRequest.FromString(body).resource_spans:
                    name = next(
                        (pair.value.string_value for pair in sender.resource.attributes if pair.key == "service.name"),
                        "",
                    )
                    spans[name] += sum(len(scope.spans) for scope in sender.scope_spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(server.server_port)
    while pipe.recv() == "spans":
        pipe.send(dict(spans))
