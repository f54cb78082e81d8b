"""The OpenTelemetry resource and scope: who sent it.

What the user says in OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES wins for names that OpenTelemetry owns; our own
names are ours alone, because the provider joins ranks and attempts by them.
"""

import os
import re
import socket
import uuid
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

import mfu_sdk
from mfu_sdk import semconv
from mfu_sdk.records import RunIdentity

SCOPE: Final = InstrumentationScope(semconv.SCOPE, mfu_sdk.__version__)
"""The instrumentation scope of everything that we send."""

_SLICE: Final = re.compile(r" MIG \S+$")

# The process's UUID, with the id of the process that drew it: a forked child draws its own.
_instance: tuple[int, str] = (0, "")


def resource(identity: RunIdentity) -> Resource:
    """The resource of `identity`; what is not known is left out."""
    ours: dict[str, str | int | None] = {
        semconv.SERVICE_NAME: identity.workload,
        semconv.SERVICE_INSTANCE_ID: _instance_id(),
        semconv.RUN_ID: identity.run_id,
        semconv.RUN_ATTEMPT: identity.attempt,
        semconv.WORKLOAD_NAME: identity.workload,
        semconv.WORKLOAD_FAMILY: identity.workload_family,
        semconv.DIST_RANK: identity.rank,
        semconv.DIST_LOCAL_RANK: identity.local_rank,
        semconv.DIST_WORLD_SIZE: identity.world_size,
        **{semconv.DIST_AXES[name]: axis.size for name, axis in identity.axes.items()},
        semconv.MODEL_CLASS: identity.model_class,
        semconv.MIG_UUID: identity.device_id if (identity.device_id or "").startswith("MIG-") else None,
        semconv.MIG_PROFILE: identity.mig_profile,
        semconv.TOPOLOGY_LINK: identity.link,
        semconv.TOPOLOGY_LINK_BEST: identity.link_best,
        semconv.HOST_NAME: socket.gethostname() or None,
        semconv.K8S_NODE_NAME: identity.node,
        semconv.HW_ID: identity.device_id,
        # Of a slice that of its GPU: a provider knows what a GPU is, and how much of it a slice has by its profile.
        semconv.HW_NAME: _SLICE.sub("", identity.device_name),
        semconv.HW_PARENT: identity.parent_id,
        semconv.HW_VENDOR: identity.device_vendor,
        semconv.DISTRO_NAME: "mfu_sdk",
        semconv.DISTRO_VERSION: mfu_sdk.__version__,
    }
    detected = dict(Resource.create().attributes)
    # What the SDK calls a service that nobody named is no name.
    if str(detected.get(semconv.SERVICE_NAME, "")).startswith("unknown_service"):
        del detected[semconv.SERVICE_NAME]
    ours[semconv.ALLOCATION_ID] = identity.allocation_id or _text(detected.get("k8s.pod.uid"))
    known = {name: value for name, value in ours.items() if value is not None}
    own = {name: value for name, value in known.items() if name.startswith(("mfu.", "telemetry."))}
    return Resource({**known, **detected, **own})


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _instance_id() -> str:
    global _instance
    if _instance[0] != os.getpid():
        # uuid4 draws from the operating system, not from the user's `random`.
        _instance = (os.getpid(), str(uuid.uuid4()))
    return _instance[1]
