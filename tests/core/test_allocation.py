"""Which allocation a process has: whatever scheduler started it, and what its user says goes before."""

import pytest

from mfu_sdk.run.allocation import Allocation, allocation
from mfu_sdk.run.distributed import _here

POD = {"POD_UID": "0b5f-77", "KUBERNETES_SERVICE_HOST": "10.0.0.1", "NODE_NAME": "gpu-17"}
SLURM = {"SLURM_JOB_ID": "4711"}
ARRAY = {"SLURM_JOB_ID": "4711", "SLURM_ARRAY_JOB_ID": "4700", "SLURM_ARRAY_TASK_ID": "11"}


@pytest.mark.parametrize(
    ("own", "env", "found"),
    [
        (None, {}, Allocation(None, None)),
        (None, POD, Allocation("0b5f-77", "gpu-17")),
        (None, {"K8S_POD_UID": "0b5f-78", "K8S_NODE_NAME": "gpu-18"}, Allocation("0b5f-78", "gpu-18")),
        (None, SLURM, Allocation("slurm-4711", None)),
        (None, ARRAY, Allocation("slurm-4700_11", None)),
        # Slurm in a pod: what the provider gave is the pod.
        (None, POD | SLURM, Allocation("0b5f-77", "gpu-17")),
        ("slot-4", POD | SLURM, Allocation("slot-4", "gpu-17")),
        # Jenkins calls its own agents so.
        (None, {"NODE_NAME": "built-in"}, Allocation(None, None)),
        (None, {"POD_UID": "", "SLURM_JOB_ID": ""}, Allocation(None, None)),
    ],
    ids=["nowhere", "pod", "other names", "slurm", "array", "both", "own", "jenkins", "empty"],
)
def test_whose_it_is(own: str | None, env: dict[str, str], found: Allocation) -> None:
    """The user's word, else the pod's UID, else Slurm's job, with the task of an array; a node in Kubernetes only."""
    assert allocation(own, env) == found


@pytest.mark.parametrize(
    ("env", "ranks", "here"),
    [
        ({"LOCAL_WORLD_SIZE": "4"}, 8, 4),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, 8, 2),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2"}, 8, 4),
        # One task a node, each with ranks of its own: torchrun would have told.
        ({"SLURM_NTASKS": "2", "SLURM_NNODES": "2"}, 8, None),
        ({"SLURM_NTASKS": "7", "SLURM_NNODES": "2"}, 7, None),
        ({}, 8, None),
    ],
    ids=["torchrun", "mpi", "slurm", "tasks are no ranks", "uneven", "untold"],
)
def test_how_many_are_here(env: dict[str, str], ranks: int, here: int | None) -> None:
    """Ranks of this machine, where the launcher's variables settle it."""
    assert _here(env, ranks) == here
