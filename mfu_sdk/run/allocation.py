"""What a scheduler has given this process, and on which machine: from what it says in the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_POD_UID = ("POD_UID", "K8S_POD_UID", "MY_POD_UID")


@dataclass(frozen=True, slots=True)
class Allocation:
    """The scheduler's name for what the process was given, and the node where its host name is a container's."""

    id: str | None
    node: str | None


def allocation(own: str | None, env: Mapping[str, str]) -> Allocation:
    """`own` is what the user calls it, who is right; else it is the pod's UID, else "slurm-" and the job's number.

    Sources: Kubernetes, "Expose Pod Information to Containers Through Environment Variables" (metadata.uid,
    spec.nodeName: the manifest chooses the variables' names); Slurm, sbatch(1), "OUTPUT ENVIRONMENT VARIABLES" (a task
    of an array is told as sacct does, by the array's job and its own number: 123_4).
    """
    pod = next((env[name] for name in _POD_UID if env.get(name)), None)
    node = env.get("K8S_NODE_NAME")
    if not node and env.get("KUBERNETES_SERVICE_HOST"):
        # Elsewhere others mean nodes of their own by it: Jenkins does.
        node = env.get("NODE_NAME")
    return Allocation(own or pod or _slurm(env), node or None)


def _slurm(env: Mapping[str, str]) -> str | None:
    array, task, job = (env.get(f"SLURM_{name}") for name in ("ARRAY_JOB_ID", "ARRAY_TASK_ID", "JOB_ID"))
    if array and task:
        return f"slurm-{array}_{task}"
    return f"slurm-{job}" if job else None
