"""Where telemetry would go, and whether something listens there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from mfu_sdk.doctor.finding import Finding
from mfu_sdk.errors import ConfigurationError
from mfu_sdk.export.destination import destination


def exporter_findings() -> Iterator[Finding]:
    """One for each signal that is exported."""
    for signal in ("traces", "metrics"):
        try:
            found = destination(signal)
        except ConfigurationError as error:
            yield Finding(signal, "bad", str(error))
            continue
        if found is None:
            yield Finding(
                signal, "note", "not sent: no endpoint is set, or it is turned off (OTEL_EXPORTER_OTLP_ENDPOINT)"
            )
        else:
            yield _reachable(signal, found.url)


def _reachable(signal: str, url: str) -> Finding:
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=2).close()
    except (OSError, ValueError) as error:
        return Finding(signal, "bad", f"{parts.netloc} does not answer ({error}); is the collector running?")
    return Finding(signal, "good", f"{parts.netloc} answers")
