"""What a workload counted beside what the provider's own counters saw on its GPUs: the independent witness. Pure.

Both are shares of the peak on paper over the same wall time, whole hours in which the workload had the GPU to itself:
counted = Σ hardware FLOPs / Σ peak × time, witnessed = tensor activity × clock / reference clock. Their ratio is above
1 where more was counted than the pipes did, below where they were busy with what nobody counted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mfu_sdk.provider.fleet.gpu import reference


@dataclass(frozen=True, slots=True)
class Witness:
    """Over `gpu_hours`: hardware FLOPs / (claimed peak × wall time), and tensor activity × clock / reference clock."""

    hardware_mfu: float
    utilization: float
    gpu_hours: float


def witnesses(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], Witness]:
    """By (tenant, workload, family, GPU type, world size, intent, fingerprint, phase), None for what nobody said."""
    found = {}
    for row in rows:
        gpu_type = row["gpu_type"] or None
        known = reference(gpu_type)
        if known is None or not row["wall_s"] or not row["available_flop"]:
            continue
        # Available FLOPs are of steps; over wall time the time between them counts too.
        share = row["step_time_s"] / row["wall_s"]
        counted = row["hardware_flop"] / row["available_flop"] * share
        utilization = row["mhz_s"] / row["wall_s"] / known.mhz
        size = None if row["world_size"] < 0 else row["world_size"]
        key = (
            row["tenant"], row["workload"] or None, row["family"] or None, gpu_type, size, row["intent"] or None,
            row["fingerprint"] or None, row["phase"] or None,
        )  # fmt: skip
        found[key] = Witness(counted, utilization, row["wall_s"] / 3600)
    return found
