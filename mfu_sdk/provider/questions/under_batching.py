"""Which tenants under-batch, and how many tokens a second does it cost?"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mfu_sdk.provider.questions.cells import Cell
from mfu_sdk.provider.questions.picture import Picture, Point, Series
from mfu_sdk.provider.rollup import Sums, ratio, total

MATERIAL_LOSS: Final = 0.05
"""A tenant under-batches where a batch that fits would give this share more of its tokens: PROVIDER's materiality."""


@dataclass(frozen=True, slots=True)
class Filled:
    """How full one tenant's workload runs its batches.

    `fill` = batch that runs / batch that would fit. `lost_share` = 1 − tokens/s ÷ tokens/s at the batch that fits,
    where tokens/s grow as the expected MFU does: 1 − expected MFU at this batch / expected MFU at that batch, by the
    same roofline. `tokens_per_s` and `lost_tokens_per_s` are of one device. `queue`, `kv_free` and `latency_target_s`
    say whether there were requests, memory and time for more.
    """

    tenant: str
    workload: str | None
    gpu_type: str | None
    phase: str | None
    batch_running: float | None
    batch_feasible: float
    fill: float | None
    lost_share: float | None
    tokens_per_s: float | None
    lost_tokens_per_s: float | None
    lost_gpu_hours: float | None
    queue: float | None
    kv_free: float | None
    latency_target_s: float | None
    gpu_hours: float | None


@dataclass(frozen=True, slots=True)
class TenantFilled:
    """One tenant over all its workloads that say what would fit; `under_batches` from a loss of 5 % on."""

    tenant: str
    fill: float | None
    lost_share: float | None
    lost_gpu_hours: float | None
    gpu_hours: float | None
    workloads: int
    under_batches: bool | None


@dataclass(frozen=True, slots=True)
class UnderBatching:
    """Tenants and their workloads, most GPU-hours lost first."""

    tenants: tuple[TenantFilled, ...] = ()
    workloads: tuple[Filled, ...] = ()
    missing: tuple[str, ...] = ()
    picture: Picture | None = None


def answer(cells: Iterable[Cell]) -> UnderBatching:
    """From sums by tenant, workload, GPU type and phase of work that is no training."""
    cells = tuple(cells)
    told = [cell for cell in cells if cell.sums.batch_feasible]
    workloads = sorted((_filled(cell) for cell in told), key=lambda row: (-(row.lost_gpu_hours or 0.0), row.tenant))
    by_tenant: dict[str, list[Cell]] = {}
    for cell in told:
        by_tenant.setdefault(cell.tenant or "", []).append(cell)
    tenants = sorted(
        (_tenant(name, of) for name, of in by_tenant.items()),
        key=lambda row: (-(row.lost_gpu_hours or 0.0), row.tenant),
    )
    missing = []
    silent = {cell.tenant for cell in cells} - {cell.tenant for cell in told}
    if silent:
        missing.append(
            f"{len(silent)} tenants' inference does not say what batch would fit (load=, mfu.batch.feasible)"
        )
    if any(row.lost_share is None for row in workloads):
        missing.append("tokens lost need the expected MFU at both batches (mfu.expected.flop, mfu.expected.feasible)")
    return UnderBatching(tuple(tenants), tuple(workloads), tuple(missing), _picture(tenants))


def _lost(sums: Sums) -> float | None:
    attained = ratio(sums.expected_mfu, sums.feasible_mfu)
    return None if attained is None else max(0.0, 1 - attained)


def _filled(cell: Cell) -> Filled:
    sums = cell.sums
    lost, hours, speed = _lost(sums), sums.device_hours, ratio(sums.tokens, sums.device_s)
    return Filled(
        cell.tenant or "",
        cell.workload,
        cell.gpu_type,
        cell.phase,
        sums.batch_running,
        sums.batch_feasible or 0.0,
        ratio(sums.batch_running, sums.batch_feasible),
        lost,
        speed,
        None if speed is None or lost is None or lost >= 1 else speed * lost / (1 - lost),
        None if lost is None or hours is None else lost * hours,
        sums.queue,
        sums.kv_free,
        sums.latency_target,
        hours,
    )


def _tenant(name: str, cells: list[Cell]) -> TenantFilled:
    sums = total(cell.sums for cell in cells)
    rows = [_filled(cell) for cell in cells]
    hours = [(row.lost_gpu_hours, row.gpu_hours) for row in rows]
    known = [(lost, of) for lost, of in hours if lost is not None and of is not None]
    lost = sum(lost for lost, _ in known) if known else None
    share = ratio(lost, sum(of for _, of in known))
    return TenantFilled(
        name,
        ratio(sums.batch_running, sums.batch_feasible),
        share,
        lost,
        sums.device_hours,
        len({row.workload for row in rows}),
        None if share is None else share >= MATERIAL_LOSS,
    )


def _picture(tenants: list[TenantFilled]) -> Picture | None:
    if not tenants:
        return None
    points = tuple(Point(row.tenant, row.fill) for row in tenants)
    return Picture(
        "bars", "Batch that runs over batch that would fit", "tenant", "fill", (Series("fill", points),), 1.0
    )
