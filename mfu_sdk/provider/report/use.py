"""The report's view of what was allocated, busy and useful: read, judged and put beside what the roll-up says."""

from collections.abc import Iterable, Sequence

from mfu_sdk.provider import fleet, rollup
from mfu_sdk.provider.books import Holdings
from mfu_sdk.provider.causes import Evidence, compared
from mfu_sdk.provider.fleet import FleetUse, Gpu, Useful, WorkloadWitness
from mfu_sdk.provider.report.model import Fleet
from mfu_sdk.provider.rollup import Range, Usage
from mfu_sdk.provider.store import Store


def fleet_use(
    store: Store,
    span: Range,
    seen: tuple[Gpu, ...],
    usages: Sequence[Usage],
    holdings: Holdings | None,
    told: Fleet,
    evidence: Iterable[Evidence],
) -> FleetUse:
    """The whole fleet over `span`, for who may see it; `seen` are the GPUs that exporters told of."""
    shown = fleet.shown(store, span, seen) if seen else ()
    levels = rollup.by((usage for usage in usages if usage.host is not None), lambda usage: usage.host or "")
    return fleet.fleet_use(
        span,
        seen,
        fleet.judge(seen, shown, span.since_unix_ns),
        fleet.failures(store, span),
        levels,
        holdings,
        Useful(told.mfu, told.expected_mfu, told.owned_mfu, told.observed_share, told.gpu_hours_observed),
        _witnesses(evidence),
    )


def _witnesses(evidence: Iterable[Evidence]) -> Iterable[WorkloadWitness]:
    for e in evidence:
        both = compared(e)
        if both is None:
            continue
        counted, witness = both
        yield WorkloadWitness(
            e.tenant,
            e.workload,
            e.gpu_type,
            e.world_size,
            e.phase,
            counted,
            witness,
            rollup.ratio(counted, witness),
            e.watched_gpu_hours,
            "tenant" if e.watched_gpu_hours is None else "provider",
        )
