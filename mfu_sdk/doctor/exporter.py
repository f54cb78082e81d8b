"""Where telemetry would go, to the tenant's collector and to the provider's, and whether something listens there."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from mfu_sdk.doctor.finding import Finding
from mfu_sdk.errors import MfuError
from mfu_sdk.export.destination import destination, of_provider
from mfu_sdk.settings import Provider


def exporter_findings() -> Iterator[Finding]:
    """One for each signal that is exported, and one for the provider."""
    for signal in ("traces", "metrics"):
        try:
            found = destination(signal)
        except MfuError as error:
            yield Finding(signal, "bad", str(error))
            continue
        if found is None:
            yield Finding(
                signal, "note", "not sent: no endpoint is set, or it is turned off (OTEL_EXPORTER_OTLP_ENDPOINT)"
            )
        else:
            yield _reachable(signal, found.url)
    yield _provider()


def _provider() -> Finding:
    try:
        found = of_provider("traces", Provider.from_env(os.environ))
    except MfuError as error:
        return Finding("provider", "bad", str(error))
    if found is None:
        return Finding("provider", "note", "told nothing of its own: no MFU_PROVIDER_ENDPOINT is set, or all is off")
    return _reachable("provider", found.url)


def _reachable(what: str, url: str) -> Finding:
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=2).close()
    except (OSError, ValueError) as error:
        return Finding(what, "bad", f"{parts.hostname} does not answer ({error}); is the collector running?")
    return Finding(what, "good", f"{parts.hostname}:{port} answers")
