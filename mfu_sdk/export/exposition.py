"""A picture of the metrics as Prometheus reads it: text, or OpenMetrics where the scraper asks for that.

The rendering is prometheus_client's (extra `prometheus`), which is loaded with the first scrape; names are `naming`'s.
"""

from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from opentelemetry.sdk.metrics.export import HistogramDataPoint, Metric, MetricsData, NumberDataPoint

from mfu_sdk import naming, semconv

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family


def rendered(data: MetricsData, accept: str) -> tuple[str, bytes]:
    """Content type and body for a scraper that accepts `accept`, the header of its request."""
    from prometheus_client.exposition import choose_encoder

    encode, content_type = choose_encoder(accept)
    return content_type, encode(Picture(data))


class Picture:
    """What prometheus_client renders: something that can be collected, once or more often."""

    def __init__(self, data: MetricsData) -> None:
        self._data = data

    def collect(self) -> "Iterator[Family]":
        """The families: the resource as `target_info`, then each metric that has points."""
        from prometheus_client.core import Metric as Family

        for resource in self._data.resource_metrics:
            target = Family("target", "the resource that these metrics are of", "info")
            attributes = resource.resource.attributes
            target.add_sample(naming.TARGET_INFO, {naming.label(name): str(attributes[name]) for name in attributes}, 1)
            yield target
            for scope in resource.scope_metrics:
                who = dict(zip(naming.SCOPE_LABELS, (scope.scope.name, scope.scope.version or ""), strict=True))
                for metric in scope.metrics:
                    yield _family(metric, who)


def _family(metric: Metric, who: dict[str, str]) -> "Family":
    from prometheus_client.core import Metric as Family

    registered = semconv.METRICS[metric.name]
    name = naming.family(registered)
    found = Family(name, registered.brief, registered.kind, naming.unit(registered))
    for point in metric.data.data_points:
        labels = {naming.label(each): str(value) for each, value in (point.attributes or {}).items()} | who
        if isinstance(point, HistogramDataPoint):
            bounds = [*map(_bound, point.explicit_bounds), "+Inf"]
            for bound, count in zip(bounds, accumulate(point.bucket_counts), strict=True):
                found.add_sample(f"{name}_bucket", labels | {"le": bound}, count)
            found.add_sample(f"{name}_count", labels, point.count)
            found.add_sample(f"{name}_sum", labels, point.sum)
        elif isinstance(point, NumberDataPoint):
            found.add_sample(naming.series(registered)[0], labels, point.value)
    return found


def _bound(bound: float) -> str:
    """As OpenMetrics has it: a float's shortest form, with a point."""
    return repr(float(bound))
