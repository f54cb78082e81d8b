"""Faults: what each kind does to a job, which of them a file asks for.

A fault changes the world (a link, a fan, a loader, a configuration), never the numbers that are sent, except for
`accounting`, whose whole point is that the numbers are wrong. `severity` lies between 0 (nothing) and 1 and means what
`KINDS` says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from mfu_sdk.provider.simulate import fabric
from mfu_sdk.provider.simulate.power import Cooling
from mfu_sdk.provider.simulate.training import Job


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind: its variants, what severity means, and from which virtual hour on it holds by default.

    `onset` is a share of the simulated time: 0 for what was wrong from the beginning, `None` for drawn in the middle.
    """

    variants: tuple[str, ...]
    severity: str
    onset: float | None


KINDS: Final[Mapping[str, Kind]] = {
    "under_batched_inference": Kind(
        ("language", "vision"), "share of the batch that fits and is not used: demand is spread too thin", 0.0
    ),
    "poor_topology": Kind(
        ("slow_link", "pcie_only", "nic_downgraded"),
        "share of the path's own rate that is lost (slow_link, pcie_only: of the slower path that is taken)",
        0.0,
    ),
    "scaling_inefficiency": Kind(
        ("spread",),
        "how small a rank's work is: communication over computation on the best links, from 0.3 to 2.3",
        0.0,
    ),
    "mig_fragmentation": Kind(("stranded",), "share of the time in which a profile waits that fits nowhere", None),
    "configuration_drift": Kind(
        ("batch", "dtype", "attention", "library", "checkpointing"),
        "share of the batch that is gone, of layers that are concerned, or of products' speed that is lost",
        None,
    ),
    "input_bound": Kind(("loader",), "share of the loader's rate that is lost", None),
    "thermal_or_power": Kind(
        ("hot_gpu", "hot_machine", "power_cap"), "share of the cooling (hot) or of the power limit that is lost", None
    ),
    "straggler": Kind(("slow_rank",), "by how much one rank's device time is longer", None),
    "idle_allocation": Kind(
        ("abandoned", "spare_replicas"), "share of the allocated devices that have nothing to do", None
    ),
    "accounting": Kind(
        ("over_counted", "wrong_peak"), "by how much too many FLOPs are counted, or the peak is understated", 0.0
    ),
}


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault that holds over [onset_s, end_s) of virtual time; `rank` is the one that it hits, where it hits one."""

    kind: str
    variant: str
    severity: float
    onset_s: float
    end_s: float
    rank: int = 0

    def holds(self, at_s: float) -> bool:
        """Whether it holds at virtual time `at_s`."""
        return self.onset_s <= at_s < self.end_s

    @property
    def new_run(self) -> bool:
        """Whether it comes with a new run: configurations do not change under a running process."""
        return self.kind == "configuration_drift"


def applied(job: Job, fault: Injected) -> Job:
    """`job` with the fault in force."""
    lost = fault.severity
    match fault.kind, fault.variant:
        case "poor_topology", "nic_downgraded":
            return replace(job, path=job.path.slower_between(1 - lost))
        case "poor_topology", _:
            inside: fabric.Link = "pcie" if fault.variant == "pcie_only" else "system"
            slow = fabric.path(job.gpu, job.path.ranks_inside, inside)
            return replace(
                job,
                path=replace(
                    job.path,
                    inside=inside,
                    inside_bytes_per_s=slow.inside_bytes_per_s * (1 - lost),
                    inside_hop_s=slow.inside_hop_s,
                ),
            )
        case "configuration_drift", "batch":
            return replace(job, sequences=max(1, round(job.sequences * (1 - lost))))
        case "configuration_drift", "dtype":
            return replace(job, kernels=replace(job.kernels, converted=lost))
        case "configuration_drift", "attention":
            return replace(job, kernels=replace(job.kernels, unfused=lost))
        case "configuration_drift", "library":
            return replace(job, kernels=replace(job.kernels, quality=job.kernels.quality * (1 - lost)))
        case "configuration_drift", "checkpointing":
            return replace(job, kernels=replace(job.kernels, recomputed=lost))
        case "input_bound", _:
            return replace(job, loader=job.loader * (1 - lost))
        case "thermal_or_power", "hot_gpu":
            return replace(job, cooling=((fault.rank, replace(job.rest, lost=lost)),))
        case "thermal_or_power", variant:
            machine = fault.rank // job.path.ranks_inside
            first = machine * job.path.ranks_inside
            changed = replace(job.rest, lost=lost) if variant == "hot_machine" else Cooling(job.rest.limit * (1 - lost))
            return replace(job, cooling=tuple((rank, changed) for rank in range(first, first + job.path.ranks_inside)))
        case "straggler", _:
            return replace(job, slow=((fault.rank, 1 + lost),))
        case _:
            return job


def counterfactual(job: Job, fault: Injected) -> Job:
    """What the job would be without it, where that is not simply the job itself.

    Of one that was spread too far: the same global batch on one machine, whose ranks exchange as much for more work.
    """
    if fault.kind == "scaling_inefficiency":
        return replace(job, path=job.path.within_a_machine(), exchanges=1 / job.path.machines)
    return job
