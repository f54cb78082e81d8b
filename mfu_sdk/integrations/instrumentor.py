"""OpenTelemetry's zero-code instrumentation: `opentelemetry-instrument python train.py` measures the training too.

`opentelemetry-instrument` finds this class by the entry point `mfu` of the group `opentelemetry_instrumentor`;
OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=mfu leaves it out. What it does is that of `mfu run`, but that nothing is printed:
the run goes where OTEL_EXPORTER_OTLP_ENDPOINT says. This file alone needs the package opentelemetry-instrumentation,
which whoever loads it has.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.guard import warn_once
from mfu_sdk.integrations.finding import Finder
from mfu_sdk.run.monitor import Monitor, monitor
from mfu_sdk.settings import Settings

if TYPE_CHECKING:
    from torch import nn


class MFUInstrumentor(BaseInstrumentor):
    """Watches the training of the program that it is loaded into, from `instrument` to `uninstrument` or the exit."""

    _finder: Finder | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        """What must be installed for there to be anything to measure."""
        return ("torch >= 2.6",)

    def _instrument(self, **_: Any) -> None:
        try:
            settings = Settings.from_env()
        except ConfigurationError as error:
            # Raised, it would keep OpenTelemetry's other instrumentations from being loaded.
            warn_once("opentelemetry-instrument", f"{error}; this program is not measured")
            return
        if not settings.enabled:
            return

        def begin(model: nn.Module | None, class_name: str | None) -> Monitor:
            return monitor(model, name=class_name, settings=settings)

        self._finder = Finder(begin, stop_at_exit=True)
        self._finder.start()

    def _uninstrument(self, **_: Any) -> None:
        if self._finder is not None:
            self._finder.stop()
            self._finder = None
