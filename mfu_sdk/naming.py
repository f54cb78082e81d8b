"""What the names of `semconv` are elsewhere: columns in the provider's store, series and labels in Prometheus.

Prometheus' names are those of OpenTelemetry's compatibility specification
(https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/), so that a scrape of this process
and a Collector that passes on what it was sent give the same series. Pure.
"""

import re
from collections.abc import Iterator
from typing import Final

from mfu_sdk import semconv

_WORDS: Final = {"s": "seconds", "By": "bytes", "us": "microseconds", "Hz": "hertz"}
"""UCUM's units in Prometheus' words (https://prometheus.io/docs/practices/naming/#base-units)."""

SCOPE_LABELS: Final[tuple[str, str]] = ("otel_scope_name", "otel_scope_version")
"""Labels that every series has: who made it."""

TARGET_INFO: Final = "target_info"
"""The series whose labels are the resource's attributes; the others are joined to it by job and instance."""


def column(attribute: str) -> str:
    """The column of a span's or resource's attribute in `otel_traces`, where it has one."""
    return attribute.replace(".", "_")


def columns() -> frozenset[str]:
    """Every name that a typed column may have."""
    return frozenset(map(column, semconv.ATTRIBUTES))


def label(attribute: str) -> str:
    """The label of a metric's attribute."""
    return _legal(attribute)


def unit(metric: semconv.Metric) -> str:
    """The unit in words, "" where there is none: annotations in braces are none, and 1 is one for gauges only.

    The specification turns every 1 into "ratio"; the Collector and Prometheus' own receiver do so for gauges alone
    (https://pkg.go.dev/github.com/open-telemetry/opentelemetry-collector-contrib/pkg/translator/prometheus).
    """
    if metric.unit == "1":
        return "ratio" if metric.kind == "gauge" else ""
    above, _, below = re.sub(r"\{[^}]*\}", "", metric.unit).partition("/")
    parts = [_WORDS.get(above, above)]
    if below:
        parts.append(f"per_{_WORDS.get(below, below).removesuffix('s')}")
    return "_".join(part for part in parts if part)


def family(metric: semconv.Metric) -> str:
    """The name of a metric without what its kind appends."""
    name, of = _legal(metric.name), unit(metric)
    return f"{name}_{of}" if of and not name.endswith(f"_{of}") else name


def series(metric: semconv.Metric) -> tuple[str, ...]:
    """The series that a metric becomes."""
    name = family(metric)
    if metric.kind == "histogram":
        return f"{name}_bucket", f"{name}_count", f"{name}_sum"
    return (f"{name}_total",) if metric.kind == "counter" else (name,)


def all_series() -> frozenset[str]:
    """Every series that a query may ask for."""
    return frozenset({TARGET_INFO, *(each for metric in semconv.METRICS.values() for each in series(metric))})


def labels() -> frozenset[str]:
    """Every label that a query may ask for; those of `target_info` are the resource's attributes."""
    return frozenset({"job", "instance", "le", *SCOPE_LABELS, *_of("metric"), *_of("resource")})


def _of(place: semconv.Place) -> Iterator[str]:
    return (label(name) for name, registered in semconv.ATTRIBUTES.items() if place in registered.on)


def _legal(name: str) -> str:
    return re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9_]", "_", name))
