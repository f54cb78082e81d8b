"""What `kubectl get pods --all-namespaces -o json` prints, to allocations: a row for each pod that holds GPUs.

Only pods that are there still are printed: keep what earlier calls gave. A pod holds its devices from when it is bound
to its node until its containers have ended.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.books.imported import Imported, Row, stamp

COMMAND: Final = "kubectl get pods --all-namespaces -o json"
_WHOLE: Final = ("nvidia.com/gpu", "amd.com/gpu")
_SLICE: Final = re.compile(r"nvidia\.com/mig-(\d+g\.\d+gb)(?:\.\w+)?")
_SHARED: Final = "nvidia.com/gpu.shared"
_NAMES: Final = ("app.kubernetes.io/name", "app", "job-name", "batch.kubernetes.io/job-name")


def from_pods(text: str, tenant_label: str | None = None) -> Imported:
    """Allocations of the pods in `text`. The tenant is the namespace, or what the pod's label `tenant_label` says.

    Raises `ConfigurationError` where the text is not kubectl's.
    """
    try:
        items = json.loads(text)["items"]
        pods = [_Pod(item) for item in items]
        found: list[Row] = []
        left_out: list[str] = []
        for pod in pods:
            if pod.gpus.get(_SHARED):
                left_out.append(f"pod {pod.name}: {_SHARED} is a share of a GPU's time, whose hours nobody can tell")
            found += pod.rows(tenant_label)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"kubectl: not a list of pods ({error!r}); take it from `{COMMAND}`") from error
    return Imported(tuple(found), tuple(left_out))


class _Pod:
    """One pod as JSON has it."""

    def __init__(self, item: Mapping[str, Any]) -> None:
        self._meta, self._spec, self._status = item["metadata"], item["spec"], item.get("status") or {}
        self.name = f"{self._meta['namespace']}/{self._meta['name']}"
        self.gpus = self._gpus()

    def rows(self, tenant_label: str | None) -> list[Row]:
        """A row for each kind of device; none of a pod that no node was found for, or that held devices for no time."""
        since, until = self._since(), self._until()
        host = self._spec.get("nodeName")
        if host is None or since is None or (until is not None and until <= since):
            return []
        labels = self._meta.get("labels") or {}
        tenant = self._meta["namespace"] if tenant_label is None else labels.get(tenant_label)
        if tenant is None:
            tenant = self._meta["namespace"]
        workload = next((labels[name] for name in _NAMES if name in labels), self._meta["name"])
        rows = []
        for resource, count in self.gpus.items():
            part = _SLICE.fullmatch(resource)
            if count and (part or resource in _WHOLE):
                rows.append(
                    Row(
                        tenant=tenant,
                        workload=workload,
                        allocation_id=self._meta["uid"],
                        host=host,
                        gpus=count,
                        profile=part[1] if part else None,
                        since=stamp(since),
                        until=None if until is None else stamp(until),
                    )
                )
        return rows

    def _gpus(self) -> dict[str, int]:
        """Devices by resource: those of its containers together, or of the init container that wants most."""
        together: dict[str, int] = {}
        for container in self._spec["containers"]:
            for resource, count in _limits(container).items():
                together[resource] = together.get(resource, 0) + count
        for container in self._spec.get("initContainers") or ():
            for resource, count in _limits(container).items():
                together[resource] = max(together.get(resource, 0), count)
        return together

    def _since(self) -> datetime | None:
        bound = [
            condition.get("lastTransitionTime")
            for condition in self._status.get("conditions") or ()
            if condition.get("type") == "PodScheduled" and condition.get("status") == "True"
        ]
        text = (bound[0] if bound else None) or self._status.get("startTime")
        return None if text is None else _moment(text)

    def _until(self) -> datetime | None:
        if self._status.get("phase") not in ("Succeeded", "Failed"):
            return None
        ends = [
            state["terminated"]["finishedAt"]
            for status in self._status.get("containerStatuses") or ()
            if "terminated" in (state := status.get("state") or {}) and state["terminated"].get("finishedAt")
        ]
        # A pod that was evicted may have no container to tell when: then its devices were free as soon as it had them.
        return max(map(_moment, ends)) if ends else self._since()


def _limits(container: Mapping[str, Any]) -> dict[str, int]:
    limits = (container.get("resources") or {}).get("limits") or {}
    wanted = (*_WHOLE, _SHARED)
    return {name: int(count) for name, count in limits.items() if name in wanted or _SLICE.fullmatch(name)}


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
