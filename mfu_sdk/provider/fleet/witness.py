"""What a workload counted beside what the provider's own counters saw on its GPUs: the independent witness. Pure.

Both are shares of the peak on paper over the same wall time, whole hours in which the workload had the GPU to itself:
counted = Σ hardware FLOPs / Σ peak × time, witnessed = tensor activity × clock / reference clock. Their ratio is above
1 where more was counted than the pipes did, below where they were busy with what nobody counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mfu_sdk.provider.fleet.gpu import reference


@dataclass(frozen=True, slots=True)
class Witness:
    """Over `gpu_hours`: hardware FLOPs / (claimed peak × wall time), and tensor activity × clock / reference clock.

    `device_hours` are those hours by device. `pcie_tx_bytes_per_s` and `pcie_rx_bytes_per_s` are the means over devices
    and over those of the hours in which all of that was told, None where a device told of none.
    """

    hardware_mfu: float
    utilization: float
    gpu_hours: float
    device_hours: Mapping[str, float]
    pcie_tx_bytes_per_s: float | None = None
    pcie_rx_bytes_per_s: float | None = None


def witnesses(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], Witness]:
    """By (tenant, workload, family, GPU type, world size, intent, fingerprint, phase), None for what nobody said.

    `rows` are those of sql/read/witnessed.sql, one a device.
    """
    units: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        gpu_type = row["gpu_type"] or None
        if reference(gpu_type) is None or not row["wall_s"] or not row["available_flop"]:
            continue
        size = None if row["world_size"] < 0 else row["world_size"]
        key = (
            row["tenant"], row["workload"] or None, row["family"] or None, gpu_type, size, row["intent"] or None,
            row["fingerprint"] or None, row["phase"] or None,
        )  # fmt: skip
        units.setdefault(key, []).append(row)
    return {key: _witness(key[3], rows) for key, rows in units.items()}


def _witness(gpu_type: str | None, rows: Sequence[Mapping[str, Any]]) -> Witness:
    known = reference(gpu_type)
    assert known is not None
    hardware, available, step_s, wall_s, mhz_s = (
        sum(row[name] for row in rows) for name in ("hardware_flop", "available_flop", "step_time_s", "wall_s", "mhz_s")
    )
    # Available FLOPs are of steps; over wall time the time between them counts too.
    counted = hardware / available * step_s / wall_s
    devices = {row["device"]: row["wall_s"] / 3600 for row in rows}
    bus_s = sum(row["bus_s"] for row in rows)
    sent, received = (
        sum(row[name] for row in rows) / bus_s if all(row["bus_s"] for row in rows) else None
        for name in ("bus_tx_bytes", "bus_rx_bytes")
    )
    return Witness(counted, mhz_s / wall_s / known.mhz, wall_s / 3600, devices, sent, received)
