"""What may go to the provider: numbers, ids and words of closed vocabularies; what is not listed stays home.

A flight recorder keeps no more than that either, since its file outlives the process.
"""

from collections.abc import Mapping
from typing import Final

from mfu_sdk import semconv

RESOURCE: Final = frozenset(
    name for name, registered in semconv.ATTRIBUTES.items() if "resource" in registered.on and name != semconv.TENANT_ID
) | {
    "service.namespace",
    "service.version",
    "deployment.environment.name",
    "host.id",
    "host.type",
    "cloud.provider",
    "cloud.platform",
    "cloud.account.id",
    "cloud.region",
    "cloud.availability_zone",
    "k8s.cluster.name",
    "k8s.cluster.uid",
    "k8s.namespace.name",
    "k8s.node.name",
    "k8s.node.uid",
    "k8s.pod.name",
    "k8s.pod.uid",
    "k8s.container.name",
    "k8s.job.name",
    "k8s.job.uid",
    "telemetry.sdk.name",
    "telemetry.sdk.language",
    "telemetry.sdk.version",
}
"""Names of the resource: who and where, not how it was started (`process.*`) nor what else somebody has written into
OTEL_RESOURCE_ATTRIBUTES (labels and annotations of a pod, owners, tickets)."""


def resource(attributes: Mapping[str, object]) -> dict[str, str | int]:
    """The part of a resource's `attributes` that may go."""
    return {
        name: value
        for name, value in attributes.items()
        if name in RESOURCE and isinstance(value, str | int) and not isinstance(value, bool)
    }
