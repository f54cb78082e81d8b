"""The port that Prometheus scrapes: a lane of its own, so that no collector that hangs keeps a scrape waiting.

A scrape is an item in the lane's queue like any other: it is answered on the lane's thread, which alone touches the
sums, with all that was recorded before it. The step path pays for one more append to a queue.
"""

import importlib.util
import ipaddress
import os
import socket
import socketserver
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, SimpleQueue
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.resources import Resource

from mfu_sdk import guard
from mfu_sdk.errors import MissingDependencyError
from mfu_sdk.export.exposition import rendered
from mfu_sdk.export.metrics import Metrics
from mfu_sdk.export.pipeline import Close, DriftScores, Overhead, PeakRatios
from mfu_sdk.records import DriftEvent, RunIdentity, StepRecord
from mfu_sdk.requests import InferenceRecord
from mfu_sdk.settings import Settings

ANSWER_S: Final = 5.0
"""How long a scrape waits for the lane's thread: half of Prometheus' own limit
(https://prometheus.io/docs/prometheus/latest/configuration/configuration/, `scrape_timeout`)."""

CLIENT_S: Final = 10.0
"""How long a connection may take to say what it wants."""


class Asked:
    """One scrape on its way through the queue."""

    def __init__(self) -> None:
        self.answer: SimpleQueue[MetricsData] = SimpleQueue()


class Scraped:
    """The lane's pipeline: records go into sums, and a scrape takes a picture of them (`worker.Pipeline`).

    `dropped` gives the items that never arrived anywhere, by reason, `export_s` the processor time of all the run's
    export threads in seconds.
    """

    def __init__(
        self, identity: RunIdentity, settings: Settings, resource: Resource, unix_ns: Callable[[], int]
    ) -> None:
        self.overflowed: Callable[[], int] = lambda: 0
        self.export_s: Callable[[], float] = lambda: 0.0
        self.lost: Callable[[], Mapping[str, int]] = dict
        self.server: ScrapeServer | None = None
        self._resource = resource
        self._unix_ns = unix_ns
        # Running totals, whatever the collectors' temporality is: a scraper has no other.
        self._measured = Metrics(
            identity.device_id,
            identity.start_unix_ns,
            delta=False,
            gen_ai=settings.gen_ai,
            model_name=identity.model_name,
        )
        self._closed = False

    @property
    def dropped(self) -> dict[str, int]:
        """Records that never came in because the queue was full."""
        overflowed = self.overflowed()
        return {"queue_full": overflowed} if overflowed else {}

    def consume(self, item: object) -> None:
        """Take one record, something that builds one, a message of the pipeline's, or a scrape."""
        if isinstance(item, tuple):
            _, item = item
        if callable(item):
            item = item()
        if isinstance(item, StepRecord):
            self._measured.step(item)
        elif isinstance(item, InferenceRecord):
            self._measured.inference(item)
        elif isinstance(item, Overhead):
            self._measured.overhead(item.seconds)
        elif isinstance(item, DriftEvent):
            self._measured.drift(item)
        elif isinstance(item, DriftScores):
            self._measured.drift_scores(item.scores)
        elif isinstance(item, PeakRatios):
            self._measured.peak_ratios(item.ratios)
        elif isinstance(item, Close):
            self._closed = True
        elif isinstance(item, Asked):
            item.answer.put(
                self._measured.snapshot(
                    self._resource,
                    self._unix_ns(),
                    dropped=self.lost(),
                    alive=not self._closed,
                    export_s=self.export_s(),
                )
            )

    def flush(self) -> None:
        """Nothing waits to be sent."""

    def deliver(self, deadline_s: float | None) -> float | None:  # noqa: ARG002 - as `worker.Pipeline` has it
        """Nothing is sent."""
        return None

    def abandon(self, unread: int) -> None:
        """What was not read is in no scrape."""

    def retire(self) -> None:
        """Let go of the port."""
        if self.server is not None:
            self.server.stop()


class ScrapeServer:
    """Listens, and asks with `ask`; `open` makes one."""

    def __init__(self, listening: "_Listening") -> None:
        self._listening = listening
        self._thread = threading.Thread(
            target=listening.serve_forever, kwargs={"poll_interval": 0.1}, name="mfu-prometheus", daemon=True
        )
        self._thread.start()
        _hook_process()
        _alive.add(self)

    @classmethod
    def open(cls, host: str, port: int, ask: Callable[[Asked], None]) -> "ScrapeServer | None":
        """A server on this address; None, with one warning, where it is taken or cannot be listened on."""
        try:
            return cls(_Listening(host, port, ask))
        except (OSError, OverflowError) as error:
            guard.warn_once(
                "prometheus",
                f"{host}:{port} cannot be listened on ({error}), so nothing can be scraped there; the run goes on. "
                "MFU_PROMETHEUS_PORT and MFU_PROMETHEUS_HOST name another",
            )
            return None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._listening.server_port

    def stop(self) -> None:
        """Listen no more; a second time does nothing."""
        if self in _alive:
            _alive.discard(self)
            self._listening.shutdown()
            self._listening.server_close()

    def disown(self) -> None:
        """This is a forked child: the port is the parent's, and must be free when the parent has gone."""
        self._listening.socket.close()


class _Listening(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, ask: Callable[[Asked], None]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), partial(_Handler, ask, _is_loopback(host)))

    def server_bind(self) -> None:
        # The HTTP server's own asks the name service what the host is called, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "", self.socket.getsockname()[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """A scraper that hung up in the middle is nobody's concern."""


class _Handler(BaseHTTPRequestHandler):
    timeout = CLIENT_S
    server_version = "mfu_sdk"
    sys_version = ""

    def __init__(self, ask: Callable[[Asked], None], on_loopback: bool, *connection: Any) -> None:
        self._ask = ask
        # A web page elsewhere could point its own name at 127.0.0.1, and read through its visitor's browser.
        self._on_loopback = on_loopback
        super().__init__(*connection)

    def do_GET(self) -> None:
        if self._on_loopback and not _names_loopback(self.headers.get("Host", "")):
            self._answer(403, "text/plain", b"only loopback is served, by its own name\n")
            return
        if self.path.partition("?")[0] != "/metrics":
            self._answer(404, "text/plain", b"there is /metrics\n")
            return
        asked = Asked()
        self._ask(asked)
        try:
            data = asked.answer.get(timeout=ANSWER_S)
        except Empty:
            self._answer(503, "text/plain", b"the run does not answer\n")
            return
        self._answer(200, *rendered(data, self.headers.get("Accept", "")))

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's names
        """The user's standard error is the user's."""


def _names_loopback(host: str) -> bool:
    try:
        return _is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def need_prometheus() -> None:
    """Raises `MissingDependencyError` without the extra; this does not load it."""
    if importlib.util.find_spec("prometheus_client") is None:
        raise MissingDependencyError(
            "MFU_PROMETHEUS_PORT needs prometheus_client, which is not installed: pip install 'mfu-sdk[prometheus]', "
            "or unset it"
        )


# --- one hook for the whole process --------------------------------------------------------------------------------

_alive: "weakref.WeakSet[ScrapeServer]" = weakref.WeakSet()
_hooked = False


def _hook_process() -> None:
    global _hooked
    if not _hooked:
        _hooked = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    for server in tuple(_alive):
        server.disown()
    _alive.clear()
