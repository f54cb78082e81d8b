"""The fleet by the provider's own exporters: what was busy, how nodes are, and estimates where no SDK runs."""

from mfu_sdk.provider.fleet.gpu import ESTIMATE_ERROR, Estimate, Gpu, Reference, estimate, reference
from mfu_sdk.provider.fleet.health import Failures, Health, Shown, XidSeen, judge
from mfu_sdk.provider.fleet.read import failures, gpus, shown, witnessed
from mfu_sdk.provider.fleet.use import Figure, FleetUse, NodeUse, TypeEstimate, Useful, WorkloadWitness, fleet_use
from mfu_sdk.provider.fleet.witness import Witness

__all__ = [
    "ESTIMATE_ERROR",
    "Estimate",
    "Failures",
    "Figure",
    "FleetUse",
    "Gpu",
    "Health",
    "NodeUse",
    "Reference",
    "Shown",
    "TypeEstimate",
    "Useful",
    "Witness",
    "WorkloadWitness",
    "XidSeen",
    "estimate",
    "failures",
    "fleet_use",
    "gpus",
    "judge",
    "reference",
    "shown",
    "witnessed",
]
