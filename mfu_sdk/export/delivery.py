"""Spans and metrics into requests, tried again until they arrive, are refused for good, or are shed.

Spans are encoded once and sent again from those bytes, so with the same ids; metrics as they stand by then.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.metrics.export import MetricsData

from mfu_sdk import guard
from mfu_sdk.export.encode import Envelope, Span, encode
from mfu_sdk.export.outbox import Chunk, Outbox
from mfu_sdk.export.route import Route

CHUNK_SPANS: Final = 32
"""Spans that share one copy of the resource, and are shed together. Requests are larger: they are made of the chunks
that wait (`outbox.REQUEST_SPANS`)."""

CHUNK_WINDOWS: Final = 2
"""The same for windows, of which one is as long as the spans of a dozen steps."""

HOLD_S: Final = 5.0
"""How long an incomplete chunk waits for more."""


class SpanDelivery:
    """Encodes spans, gathers them in chunks and sends them; `lost` counts those that never arrive, by reason."""

    def __init__(self, route: Route, envelope: Envelope, lost: Counter[str], monotonic_s: Callable[[], float]) -> None:
        self._route = route
        self._envelope = envelope
        self._lost = lost
        self._monotonic_s = monotonic_s
        self._outbox = Outbox()
        self._essential: list[bytes] = []
        self._detail: list[bytes] = []
        self._arrived: list[Callable[[], None]] = []
        self._since_s = 0.0

    def add(self, span: Span, *, essential: bool, arrived: Callable[[], None] | None = None) -> None:
        """Take a span; `essential` are those that sums are made of, which are sent first and shed last.

        `arrived` is called once an essential one has: a collector has said so.
        """
        if arrived is not None:
            self._arrived.append(arrived)
        if not self._essential and not self._detail:
            self._since_s = self._monotonic_s()
        spans = self._essential if essential else self._detail
        spans.append(encode(span))
        if len(spans) >= (CHUNK_WINDOWS if essential else CHUNK_SPANS):
            self._gather(spans, essential=essential)

    def sent_by(self, envelope: Envelope) -> None:
        """From here on spans go out in this envelope; those that were taken before keep theirs."""
        self.gather()
        self._envelope = envelope

    def gather(self) -> None:
        """Make incomplete chunks ready to go."""
        self._gather(self._essential, essential=True)
        self._gather(self._detail, essential=False)

    def hasten(self) -> None:
        """Make everything ready, and due now."""
        self.gather()
        self._route.hasten()

    def deliver(self, deadline_s: float | None) -> float | None:
        """Send one request: seconds until there is more to do, None once all that is ready has gone."""
        if self._monotonic_s() - self._since_s >= HOLD_S:
            self.gather()
        request = self._outbox.peek()
        if request is None:
            return None
        if wait_s := self._route.wait_s:
            return wait_s
        # All of it at once: a second gzip member after the first is something that not every receiver reads.
        outcome = self._route.send(self._route.sender.compress(request.body), deadline_s)
        if outcome is None:
            return self._route.wait_s
        self._outbox.pop(request)
        if outcome.kind == "rejected":
            self._lost["rejected"] += request.spans
        else:
            self._lost["rejected"] += refused("spans", outcome.answer)
            for arrived in request.arrived:
                arrived()
        return None if self._outbox.peek() is None else 0.0

    def close(self) -> None:
        """Let go of the connection."""
        self._route.sender.close()

    def abandon(self) -> int:
        """Give up what has not arrived: how many spans that loses."""
        self.gather()
        return self._outbox.clear()

    def _gather(self, spans: list[bytes], *, essential: bool) -> None:
        if spans:
            arrived, self._arrived = (tuple(self._arrived), []) if essential else ((), self._arrived)
            chunk = Chunk(self._envelope.request(spans), len(spans), arrived)
            self._lost["queue_full"] += self._outbox.put(chunk, essential=essential)
            spans.clear()


class MetricDelivery:
    """Sends a picture of the metrics every `interval_s`. There is never more than one to send: the present one."""

    def __init__(self, route: Route, lost: Counter[str], interval_s: float, monotonic_s: Callable[[], float]) -> None:
        self._route = route
        self._lost = lost
        self._interval_s = interval_s
        self._monotonic_s = monotonic_s
        self._due_s = monotonic_s() + interval_s

    def hasten(self) -> None:
        """Make an export due now."""
        self._due_s = self._monotonic_s()
        self._route.hasten()

    def close(self) -> None:
        """Let go of the connection."""
        self._route.sender.close()

    def deliver(
        self, snapshot: Callable[[], MetricsData], delivered: Callable[[], None], deadline_s: float | None
    ) -> float | None:
        """Send if it is due: seconds until it may be tried again, None if nothing is due or it went.

        `snapshot` gives the picture, and `delivered` is called once it has arrived.
        """
        if self._monotonic_s() < self._due_s:
            return None
        if wait_s := self._route.wait_s:
            return wait_s
        body = self._route.sender.compress(encode_metrics(snapshot()).SerializeToString())
        outcome = self._route.send(body, deadline_s)
        if outcome is None:
            return self._route.wait_s
        self._due_s = self._monotonic_s() + self._interval_s
        if outcome.kind == "rejected":
            self._lost["rejected"] += 1
        else:
            delivered()
            self._lost["rejected"] += refused("data points", outcome.answer)
        return None


def refused(what: str, answer: bytes) -> int:
    """How many items of a delivered request its answer rejects. Both signals' answers have the same two fields."""
    try:
        success = ExportTraceServiceResponse.FromString(answer).partial_success
    except DecodeError:
        # A proxy's page or JSON: the status said that it arrived, and nothing says otherwise.
        return 0
    if success.rejected_spans:
        guard.warn_once(
            "export", f"the collector refused some {what}: {success.error_message or 'it does not say why'}"
        )
    return int(success.rejected_spans)
