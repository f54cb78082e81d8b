"""One OTLP/HTTP request: protobuf bytes out, one of three outcomes back.

Not the stock exporter, for what it does on every export (1.45.2): it draws from the user's global `random` for a
back-off that it may not need, it sleeps and retries inside the call, it logs each try to the user's terminal, and it
reports a rejected request and an unreachable collector alike. What the standard variables mean is the same here; a
test holds this against the stock exporter. The protocol: https://opentelemetry.io/docs/specs/otlp/#otlphttp.
"""

import gzip
import http.client
import ssl
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final, Literal

from opentelemetry.util.re import parse_env_headers

import mfu_sdk
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.export.destination import Compression, Destination

RETRYABLE: Final = frozenset({429, 502, 503, 504})
"""The statuses after which a client should try again (OTLP specification, "Retryable Response Codes")."""

MAX_RETRY_AFTER_S: Final = 300.0
"""A Retry-After beyond this is cut: a collector must not be able to silence a run for a day."""

_MAX_ANSWER_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request. `retry_after_s` is the collector's own wish; `detail` is one line for a person.

    `answer` is the body of a delivered request: it may say that a part was rejected.
    """

    kind: Literal["delivered", "retry", "rejected"]
    detail: str = ""
    retry_after_s: float | None = None
    answer: bytes = b""


class Sender:
    """Posts to one destination. Raises `ConfigurationError` when made, if its certificates cannot be read."""

    def __init__(self, destination: Destination, now_unix_s: Callable[[], float]) -> None:
        self._destination = destination
        self._now_unix_s = now_unix_s
        self.headers = {
            "Content-Type": "application/x-protobuf",
            "User-Agent": f"mfu_sdk/{mfu_sdk.__version__}",
            **headers_of(destination),
        }
        if destination.compression != "none":
            self.headers["Content-Encoding"] = destination.compression
        # An opener of our own, so that one which the user installed for the process never sees our requests. It has
        # no handler for redirects: following one would hand the credentials in the headers to another host.
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=tls(destination)),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            self._opener.add_handler(handler)

    def compress(self, body: bytes) -> bytes:
        """`body` as the destination wants it."""
        return compress(body, self._destination.compression)

    def send(self, body: bytes, timeout_s: float | None = None) -> Outcome:
        """Post `body`, compressed already, within `timeout_s` or the destination's own. Raises nothing of HTTP."""
        limit_s = self._destination.timeout_s if timeout_s is None else min(timeout_s, self._destination.timeout_s)
        request = urllib.request.Request(  # noqa: S310 - `destination` let http and https through only
            self._destination.url, data=body, headers=self.headers, method="POST"
        )
        try:
            with self._opener.open(request, timeout=limit_s) as response:
                return Outcome("delivered", answer=response.read(_MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                detail = f"HTTP {error.code} {error.reason}"
                if error.code not in RETRYABLE:
                    return Outcome("rejected", detail)
                return Outcome("retry", detail, self._retry_after_s(error.headers.get("Retry-After")))
        except urllib.error.URLError as error:
            # A certificate that does not verify is not mended by trying again, but the collector's may be renewed.
            return Outcome("retry", str(error.reason))
        except (OSError, http.client.HTTPException) as error:
            return Outcome("retry", str(error) or type(error).__name__)

    def close(self) -> None:
        """Nothing to let go of: each request has a connection of its own."""

    def _retry_after_s(self, text: str | None) -> float | None:
        """Seconds that a Retry-After header asks for, as a number or a date (RFC 9110, section 10.2.3)."""
        if text is None:
            return None
        try:
            seconds = float(text)
        except ValueError:
            try:
                when = parsedate_to_datetime(text)
            except ValueError:
                return None
            when = when if when.tzinfo else when.replace(tzinfo=UTC)
            seconds = when.timestamp() - self._now_unix_s()
        return min(max(seconds, 0.0), MAX_RETRY_AFTER_S) if seconds == seconds else None


def compress(body: bytes, compression: Compression) -> bytes:
    """`body` under `compression`; gzip at level 1, which is twice as fast as level 6 and 5 % larger here."""
    if compression == "gzip":
        return gzip.compress(body, compresslevel=1, mtime=0)
    return zlib.compress(body) if compression == "deflate" else body


def headers_of(destination: Destination) -> Mapping[str, str]:
    """The headers that the destination's variable names, their names in small letters."""
    return parse_env_headers(destination.headers, liberal=True)


def tls(destination: Destination) -> ssl.SSLContext | None:
    """How its TLS is checked, None without TLS. Raises `ConfigurationError` for certificates that cannot be read."""
    if not destination.url.startswith("https:"):
        return None
    try:
        context = ssl.create_default_context(cafile=destination.certificate)
        if destination.client_certificate:
            context.load_cert_chain(destination.client_certificate, destination.client_key)
    except OSError as error:
        raise ConfigurationError(
            f"TLS for {destination.url}: {error}; {destination.prefix}CERTIFICATE, _CLIENT_CERTIFICATE and "
            "_CLIENT_KEY must name readable PEM files"
        ) from error
    return context
