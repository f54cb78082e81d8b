"""Where a simulated process puts what it sends; who delivers it is another matter."""

from collections.abc import Sequence
from typing import Protocol

PROVIDER = "fleet-exporters"
"""The name, one of `providers`, under whose token the provider's own exporters send."""


class Outgoing(Protocol):
    """Takes encoded telemetry."""

    def spans(self, tenant: str, resource: bytes, spans: Sequence[bytes]) -> None:
        """Spans of one process."""

    def metrics(self, tenant: str, resource: bytes, metrics: Sequence[bytes]) -> None:
        """Metrics of one process or exporter."""
