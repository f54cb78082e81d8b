"""One OTLP/gRPC request: the bytes that HTTP would carry, and the same three outcomes back.

Not the stock exporter (1.45.2), which encodes spans by itself and retries inside of the call. A stub needs neither
messages nor serialisers: what our encoder made goes out as it is. gRPC is loaded, and its channel made, by the first
request, so on the export thread and never in a forked child, where gRPC's own threads do not exist
(https://github.com/grpc/grpc/blob/master/doc/fork_support.md). The protocol:
https://opentelemetry.io/docs/specs/otlp/#otlpgrpc.
"""

import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from time import time as now_unix_s
from typing import Any, Final
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types

import mfu_sdk
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.export.destination import Destination, Signal
from mfu_sdk.export.otlp import MAX_RETRY_AFTER_S, Outcome, headers_of, tls

METHODS: Final[Mapping[Signal, str]] = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}

RETRYABLE: Final = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"})
"""The codes after which a client should try again (OTLP specification, "Failures"). RESOURCE_EXHAUSTED is one more
where the collector says when: without that it means that the request is too large, and will be again."""

DETAILS: Final = "grpc-status-details-bin"
"""The trailer in which a server tells more than a code: a google.rpc.Status."""


class GrpcSender:
    """Calls one destination. Raises `ConfigurationError` when made, for certificates and headers that cannot be used.

    Everything else is the export thread's.
    """

    def __init__(self, signal: Signal, destination: Destination) -> None:
        self._method = METHODS[signal]
        self._destination = destination
        tls(destination)
        self._metadata = tuple(headers_of(destination).items())
        for name, value in self._metadata:
            if not (value.isascii() and value.isprintable()):
                raise ConfigurationError(
                    f"{destination.prefix}HEADERS: the value of {name} has characters that gRPC does not carry; "
                    "write it in printable ASCII"
                )
        self._channel: Any = None
        self._call: Any = None

    def compress(self, body: bytes) -> bytes:
        """`body` as it is: gRPC compresses by itself, as the channel says."""
        return body

    def send(self, body: bytes, timeout_s: float | None = None) -> Outcome:
        """Send `body` within `timeout_s` or the destination's own limit. Raises nothing of gRPC."""
        import grpc

        limit_s = self._destination.timeout_s if timeout_s is None else min(timeout_s, self._destination.timeout_s)
        call = self._call
        if call is None:
            self._channel = _channel(grpc, self._destination)
            call = self._call = self._channel.unary_unary(self._method)
        # gRPC makes a point in time of it by `time.time`, into which the user may have put a clock that stands still.
        timeout_by_their_clock_s = limit_s + (now_unix_s() - time.time())
        try:
            return Outcome("delivered", answer=call(body, timeout=timeout_by_their_clock_s, metadata=self._metadata))
        except grpc.RpcError as error:
            outcome = _outcome(error)
            if outcome.kind == "retry":
                # A channel waits longer and longer between its connections; when to try again is the route's to say.
                self.close()
            return outcome

    def close(self) -> None:
        """Let go of the connection; a later request makes another."""
        channel, self._channel, self._call = self._channel, None, None
        if channel is not None:
            channel.close()


def _channel(grpc: Any, destination: Destination) -> Any:
    options = (
        ("grpc.primary_user_agent", f"mfu_sdk/{mfu_sdk.__version__}"),
        ("grpc.enable_retries", 0),
        # Else a new channel to the same place takes over the back-off of the one before.
        ("grpc.use_local_subchannel_pool", 1),
    )
    compression = {
        "none": grpc.Compression.NoCompression,
        "gzip": grpc.Compression.Gzip,
        "deflate": grpc.Compression.Deflate,
    }[destination.compression]
    parts = urlsplit(destination.url)
    if parts.scheme == "http":
        return grpc.insecure_channel(parts.netloc, options, compression)
    key = destination.client_key or destination.client_certificate
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(destination.certificate or ssl.get_default_verify_paths().cafile),
        private_key=_read(key) if destination.client_certificate else None,
        certificate_chain=_read(destination.client_certificate),
    )
    return grpc.secure_channel(parts.netloc, credentials, options, compression)


def _read(path: str | None) -> bytes | None:
    return Path(path).read_bytes() if path else None


def _outcome(error: Any) -> Outcome:
    """What an RpcError of a blocking call means: it is also the call, which its type does not say."""
    code = error.code().name
    retry_after_s = _retry_after_s(dict(error.trailing_metadata() or ()).get(DETAILS))
    again = code in RETRYABLE or (code == "RESOURCE_EXHAUSTED" and retry_after_s is not None)
    return Outcome("retry" if again else "rejected", f"{code}: {error.details()}", retry_after_s)


def _retry_after_s(details: bytes | str | None) -> float | None:
    """Seconds that a RetryInfo among the details asks for (google/rpc/error_details.proto)."""
    if not isinstance(details, bytes):
        return None
    from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]  # generated, ships no types
    from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # as above

    try:
        for detail in Status.FromString(details).details:
            info = RetryInfo()
            if detail.Unpack(info):
                delay_s: float = info.retry_delay.seconds + info.retry_delay.nanos / 1e9
                return min(max(delay_s, 0.0), MAX_RETRY_AFTER_S)
    except DecodeError:
        pass
    return None
