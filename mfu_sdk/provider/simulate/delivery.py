"""Telemetry to a collector: OTLP over HTTP in protobuf, each tenant under its own token, a batch at a time.

A request is answered before the next one is made, so what waits is one batch a tenant and a slow collector slows the
simulation down. 429, 502, 503 and 504 are tried again, as the specification says (opentelemetry.io/docs/specs/otlp).
"""

import http.client
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from mfu_sdk.errors import ConfigurationError, DeliveryError
from mfu_sdk.provider.simulate import wire

BATCH_BYTES = 2 * 1024 * 1024
_AGAIN = frozenset({429, 502, 503, 504})
_TRIES = 6


class Delivery:
    """An `Outgoing` that posts to `url`. Raises `ConfigurationError` for a URL that is none.

    `tokens` are bearer tokens by tenant; a tenant without one sends without.
    """

    def __init__(self, url: str, tokens: Mapping[str, str], sleep: Callable[[float], None] = time.sleep) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(f"--otlp {url!r}: must be a URL like http://127.0.0.1:4318")
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"--otlp {url!r}: {error}; give a port of 1 to 65535") from None
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, port, timeout=60)
        self._base, self._url = parts.path.rstrip("/"), url
        self._tokens, self._sleep = tokens, sleep
        self._waiting: dict[tuple[str, str], list[bytes]] = {}
        self._bytes: dict[tuple[str, str], int] = {}
        self.requests = 0

    def spans(self, tenant: str, resource: bytes, spans: Sequence[bytes]) -> None:
        """Spans of one process; sent once there are enough of its tenant's."""
        self._add(tenant, "traces", resource, spans)

    def metrics(self, tenant: str, resource: bytes, metrics: Sequence[bytes]) -> None:
        """Metrics of one process or exporter, likewise."""
        self._add(tenant, "metrics", resource, metrics)

    def close(self) -> None:
        """Send what waits, and close the connection. Raises `DeliveryError`."""
        for key in list(self._waiting):
            self._flush(key)
        self._connection.close()

    def __enter__(self) -> "Delivery":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._connection.close()

    def _add(self, tenant: str, signal: str, resource: bytes, items: Sequence[bytes]) -> None:
        if not items:
            return
        key = tenant, signal
        group = wire.group(resource, items)
        self._waiting.setdefault(key, []).append(group)
        self._bytes[key] = self._bytes.get(key, 0) + len(group)
        if self._bytes[key] >= BATCH_BYTES:
            self._flush(key)

    def _flush(self, key: tuple[str, str]) -> None:
        body = b"".join(self._waiting.pop(key, []))
        self._bytes.pop(key, None)
        if body:
            self._post(*key, body)

    def _post(self, tenant: str, signal: str, body: bytes) -> None:
        headers = {"Content-Type": "application/x-protobuf"}
        if token := self._tokens.get(tenant):
            headers["Authorization"] = f"Bearer {token}"
        status, said = 0, b""
        for attempt in range(_TRIES):
            try:
                self._connection.request("POST", f"{self._base}/v1/{signal}", body, headers)
                answer = self._connection.getresponse()
                status, said = answer.status, answer.read()
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                # A connection that the server has closed meanwhile is opened again once.
                if attempt == 0 and self.requests:
                    continue
                raise DeliveryError(f"{self._url}: cannot be reached ({error}); start `mfu serve` there") from error
            if status == 200:
                self.requests += 1
                return
            if status not in _AGAIN:
                break
            self._sleep(0.2 * 2**attempt)
        remedy = "start it with --tokens tokens.yaml" if status in (401, 403) else "see its log"
        text = "".join(char for char in said.decode("utf-8", "replace") if char.isprintable())[:120].strip()
        raise DeliveryError(f"{self._url}: answered {status} to {tenant}'s {signal} ({text}); {remedy}")
